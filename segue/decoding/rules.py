"""Rules on which tokens may be generated where; named, ordered and defined as in transformers' `GenerationConfig`.

They are one processor: it sees the prefix whose next token is chosen, so they hold in every decoder, with drafts, in
beams and in batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from segue.decoding.sampling import Array, Prefix, keep_only
from segue.errors import SegueError


@dataclass(frozen=True)
class Rules:
    """A processor of generation rules.

    no_repeat_ngram_size: no n-gram of this size occurs twice, the prompt included (0: off).
    encoder_no_repeat_ngram_size: no n-gram of this size of the prompt (of an encoder-decoder: its source) is generated.
    bad_words_ids: sequences of ids that are never generated. min_length, min_new_tokens: stop tokens are forbidden
        until the text, or the part after the prompt, has this many tokens.
    forced_bos_token_id: the token after a prompt of one token, or the first of an encoder-decoder's answer without a
        prefix. forced_eos_token_id: one id or several, one of which must be the last token that the limit allows.
    exponential_decay_length_penalty: (start, factor); t tokens after the first `start`, each stop token's score is
        raised by its absolute value times factor ** t - 1.
    suppress_tokens: ids that are never generated. begin_suppress_tokens: ids that are not generated first.
    """

    no_repeat_ngram_size: int = 0
    encoder_no_repeat_ngram_size: int = 0
    bad_words_ids: Sequence[Sequence[int]] = ()
    min_length: int = 0
    min_new_tokens: int = 0
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | Sequence[int] | None = None
    exponential_decay_length_penalty: tuple[int, float] | None = None
    suppress_tokens: Sequence[int] = ()
    begin_suppress_tokens: Sequence[int] = ()

    def __post_init__(self) -> None:
        for name in ("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length", "min_new_tokens",
                     "forced_bos_token_id"):
            if (value := getattr(self, name)) is not None and not is_natural(value):
                raise SegueError(f"{name} must be a whole number, at least 0, not {value!r}")
        eos, decay = self.forced_eos_token_id, self.exponential_decay_length_penalty
        for name, ids in (("suppress_tokens", self.suppress_tokens),
                          ("begin_suppress_tokens", self.begin_suppress_tokens),
                          ("forced_eos_token_id", [] if eos is None else [eos] if isinstance(eos, int) else eos)):
            if not are_naturals(ids):
                raise SegueError(f"{name} must be a list of token ids, not {ids!r}")
        words = self.bad_words_ids
        if not isinstance(words, list | tuple) or not all(are_naturals(word) and len(word) for word in words):
            raise SegueError(f"bad_words_ids must be a list of lists of token ids, not {words!r}")
        if decay is not None and not (isinstance(decay, list | tuple) and len(decay) == 2 and is_natural(decay[0])
                                      and isinstance(decay[1], int | float) and decay[1] > 0):
            raise SegueError("exponential_decay_length_penalty must be how many tokens are free and a factor above 0, "
                             f"such as [20, 1.05], not {decay!r}")

    def __call__(self, scores: Array, prefix: Prefix) -> Array:
        scores, ends = scores.copy(), list(prefix.stops)
        if self.no_repeat_ngram_size:
            rule_out(scores, ngram_completions(prefix.decoder_tokens, prefix.decoder_tokens, self.no_repeat_ngram_size))
        if self.encoder_no_repeat_ngram_size:
            source = prefix.tokens[: prefix.source - 1 if prefix.source else prefix.prompt]
            rule_out(scores, ngram_completions(source, prefix.decoder_tokens, self.encoder_no_repeat_ngram_size))
        if self.bad_words_ids:
            tokens = prefix.decoder_tokens
            rule_out(scores, [word[-1] for word in self.bad_words_ids if (len(word) > 1 or word[0] not in ends)
                              and len(word) <= len(tokens) + 1
                              and tokens[len(tokens) - len(word) + 1 :] == list(word[:-1])])
        if prefix.length < self.min_length or prefix.count < self.min_new_tokens:
            rule_out(scores, ends)
        if self.forced_bos_token_id is not None and prefix.length == 1:
            scores = force_tokens(scores, self.forced_bos_token_id)
        if self.forced_eos_token_id is not None and prefix.limit is not None and prefix.count == prefix.limit - 1:
            scores = force_tokens(scores, self.forced_eos_token_id)
        if self.exponential_decay_length_penalty is not None:
            start, factor = self.exponential_decay_length_penalty
            for token in ends:
                if prefix.count > start and np.isfinite(scores[token]):
                    scores[token] += abs(scores[token]) * (factor ** (prefix.count - start) - 1)
        rule_out(scores, self.suppress_tokens)
        first = prefix.length - prefix.count  # where the answer begins; a forced first token does not count
        if prefix.length == first + (first == 1 and self.forced_bos_token_id is not None):
            rule_out(scores, self.begin_suppress_tokens)
        return scores


def is_natural(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def are_naturals(values: object) -> bool:
    return isinstance(values, list | tuple) and all(map(is_natural, values))


def rule_out(scores: Array, tokens: Sequence[int] | Array) -> None:
    """Set the scores of these tokens to -inf, in place; ids outside the vocabulary are ignored."""
    index = np.asarray(tokens, np.int64)
    scores[index[index < len(scores)]] = -np.inf


def force_tokens(scores: Array, token: int | Sequence[int]) -> Array:
    """Scores that leave only this token, or only these."""
    index = np.atleast_1d(np.asarray(token, np.int64))
    if not index.size or index.max() >= len(scores):
        raise SegueError(f"token {token} cannot be forced: the model has the ids from 0 to {len(scores) - 1}")
    return keep_only(np.zeros_like(scores), index)


def ngram_completions(text: Sequence[int], tokens: Sequence[int], n: int) -> Array:
    """The next tokens that would complete an n-gram of `text` at the end of `tokens`."""
    if len(text) < n or len(tokens) < n - 1:
        return np.empty(0, np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(text, np.int64), n)
    last = np.asarray(tokens[len(tokens) - n + 1 :], np.int64)
    return windows[(windows[:, :-1] == last).all(1), -1]
