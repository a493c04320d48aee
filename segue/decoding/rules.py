"""Rules on what may be said where, named, ordered and defined as in transformers' `GenerationConfig`.

They are one processor: it sees the path that it is asked about, so they hold in every decoder, with drafts, in beams
and in batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from segue.decoding.sampling import Array, Prefix, only
from segue.errors import SegueError


@dataclass(frozen=True)
class Rules:
    """no_repeat_ngram_size: so many tokens in a row are said once only, the prompt included (0: off).
    encoder_no_repeat_ngram_size: nor are so many that stand in the prompt, or in the source of an encoder-decoder.
    bad_words_ids: sequences of ids that are never said. min_length, min_new_tokens: no stop token comes before the text
        is so long, or so many tokens were said behind the prompt.
    forced_bos_token_id: what a text that has only begun goes on with: behind a prompt of one token, and of an
        encoder-decoder without a prefix. forced_eos_token_id: one id or several, of which the last token that the limit
        allows is one.
    exponential_decay_length_penalty: (start, factor); when t more than `start` tokens were said, the absolute score of
        each stop token, times factor ** t - 1, is added to it.
    suppress_tokens: ids that are never said. begin_suppress_tokens: those that are not said first.
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
            if (value := getattr(self, name)) is not None and not natural(value):
                raise SegueError(f"{name} must be a whole number, at least 0, not {value!r}")
        eos, decay = self.forced_eos_token_id, self.exponential_decay_length_penalty
        for name, ids in (("suppress_tokens", self.suppress_tokens),
                          ("begin_suppress_tokens", self.begin_suppress_tokens),
                          ("forced_eos_token_id", [] if eos is None else [eos] if isinstance(eos, int) else eos)):
            if not naturals(ids):
                raise SegueError(f"{name} must be a list of token ids, not {ids!r}")
        words = self.bad_words_ids
        if not isinstance(words, list | tuple) or not all(naturals(word) and len(word) for word in words):
            raise SegueError(f"bad_words_ids must be a list of lists of token ids, not {words!r}")
        if decay is not None and not (isinstance(decay, list | tuple) and len(decay) == 2 and natural(decay[0])
                                      and isinstance(decay[1], int | float) and decay[1] > 0):
            raise SegueError("exponential_decay_length_penalty must be how many tokens are free and a factor above 0, "
                             f"such as [20, 1.05], not {decay!r}")

    def __call__(self, scores: Array, prefix: Prefix) -> Array:
        scores, ends = scores.copy(), list(prefix.stops)
        if self.no_repeat_ngram_size:
            rule_out(scores, repeats(prefix.whole, prefix.whole, self.no_repeat_ngram_size))
        if self.encoder_no_repeat_ngram_size:
            source = prefix.tokens[: prefix.source - 1 if prefix.source else prefix.prompt]
            rule_out(scores, repeats(source, prefix.whole, self.encoder_no_repeat_ngram_size))
        if self.bad_words_ids:
            said = prefix.whole
            rule_out(scores, [word[-1] for word in self.bad_words_ids if (len(word) > 1 or word[0] not in ends)
                              and len(word) <= len(said) + 1 and said[len(said) - len(word) + 1 :] == list(word[:-1])])
        if prefix.length < self.min_length or prefix.count < self.min_new_tokens:
            rule_out(scores, ends)
        if self.forced_bos_token_id is not None and prefix.length == 1:
            scores = forced(scores, self.forced_bos_token_id)
        if self.forced_eos_token_id is not None and prefix.limit is not None and prefix.count == prefix.limit - 1:
            scores = forced(scores, self.forced_eos_token_id)
        if self.exponential_decay_length_penalty is not None:
            start, factor = self.exponential_decay_length_penalty
            for token in ends:
                if prefix.count > start and np.isfinite(scores[token]):
                    scores[token] += abs(scores[token]) * (factor ** (prefix.count - start) - 1)
        rule_out(scores, self.suppress_tokens)
        first = prefix.length - prefix.count  # where what is said begins; a forced begin is none of it
        if prefix.length == first + (first == 1 and self.forced_bos_token_id is not None):
            rule_out(scores, self.begin_suppress_tokens)
        return scores


def natural(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def naturals(values: object) -> bool:
    return isinstance(values, list | tuple) and all(map(natural, values))


def rule_out(scores: Array, tokens: Sequence[int] | Array) -> None:
    """In place; ids that the model does not have are none that it says."""
    index = np.asarray(tokens, np.int64)
    scores[index[index < len(scores)]] = -np.inf


def forced(scores: Array, token: int | Sequence[int]) -> Array:
    """Nothing but this, or one of these, follows."""
    index = np.atleast_1d(np.asarray(token, np.int64))
    if not index.size or index.max() >= len(scores):
        raise SegueError(f"token {token} cannot be forced: the model has the ids from 0 to {len(scores) - 1}")
    return only(np.zeros_like(scores), index)


def repeats(known: Sequence[int], said: Sequence[int], n: int) -> Array:
    """The tokens that would make the last n of `said` a sequence that stands in `known`."""
    if len(known) < n or len(said) < n - 1:
        return np.empty(0, np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(known, np.int64), n)
    last = np.asarray(said[len(said) - n + 1 :], np.int64)
    return windows[(windows[:, :-1] == last).all(1), -1]
