"""From scores to a token: logits processors, the sampling distribution, and the random number that picks from it.

Options are named as in transformers' `GenerationConfig` where they mean the same. A random number depends only on
(seed, row, position), and a token is a fixed function of the scores and that number. So the same seed gives the same
text with and without drafts, alone or in a batch, in one call or in two.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from segue.errors import SegueError
from segue.models.base import Decodable, decoder_start_token, source_length

Array = np.ndarray
MIN_TEMPERATURE = 1e-9  # below it decoding is greedy: dividing scores by less would overflow
PREFIX_WINDOW = 65_536  # last tokens that a prefix keeps at least; bounds the memory of endless streams


class Noise:
    """Uniform numbers in [0, 1) indexed by position, from Philox (Salmon et al. 2011) keyed by seed and row.

    lane: one of the independent streams of a row (0 draws tokens, 1 decides about drafts).
    """

    BLOCK = 256  # numbers generated at once; Philox gives four for each value of its counter

    def __init__(self, seed: int, row: int = 0, lane: int = 0) -> None:
        self._key = (int(seed) % 2**64) | (4 * row + lane) % 2**64 << 64
        self._block, self._values = -1, [0.0]

    def at(self, position: int) -> float:
        """The random number of a position (from 0), the same at every call."""
        block, offset = divmod(position, self.BLOCK)
        if block != self._block:
            bits = np.random.Philox(key=self._key, counter=block * (self.BLOCK // 4)).random_raw(self.BLOCK)
            self._block, self._values = block, ((bits >> np.uint64(11)) * 2.0**-53).tolist()
        return self._values[offset]


class Prefix:
    """The prompt and the tokens generated so far on one path of decoding; what processors look at.

    tokens: the latest of both (all of them up to 65,536), the first `prompt` of them from the prompt. generated: the
    others. count: how many were ever generated. source: how many first tokens are the source (and begin token) of an
    encoder-decoder, which are not part of its output. start: the id that its decoder reads in place of the begin
    token, and which counts as output (None: there is none).
    length: of the text, prompt included; of an encoder-decoder, of its target, start token included.
    seen: (V,) bool, every token of the prompt and of the answer so far.
    limit: tokens that may be generated (None: no limit). stops: tokens that end the answer.
    removed_text: what the answer must begin with, where the prompt was cut short (`segue.decoding.prompt.OpenPrompt`).
    """

    def __init__(self, tokens: Sequence[int], vocabulary: int, source: int = 0, start: int | None = None,
                 limit: int | None = None, stops: frozenset[int] = frozenset()) -> None:
        self.tokens, self.prompt = list(tokens), len(tokens)
        self.vocabulary, self.source, self.start = vocabulary, source, start
        self.limit, self.stops, self.count = limit, stops, 0
        self.removed_text: bytes | str = getattr(tokens, "removed_text", b"")
        self._begun = len(tokens) - source + (source > 0)
        self._seen: Array | None = None

    @classmethod
    def of(cls, model: Decodable, prompt: Sequence[int], limit: int | None = None,
           stops: frozenset[int] = frozenset()) -> Prefix:
        """The prefix of an empty answer of this model."""
        return cls(prompt, model.vocabulary, source_length(model, prompt), decoder_start_token(model), limit, stops)

    def append(self, token: int) -> None:
        self.tokens.append(token)
        self.count += 1
        if self._seen is not None:
            self._seen[token] = True
        if len(self.tokens) > 2 * PREFIX_WINDOW:
            _ = self.seen  # computed now, before the oldest tokens are dropped
            dropped = len(self.tokens) - PREFIX_WINDOW
            self.prompt, self.source = max(0, self.prompt - dropped), max(0, self.source - dropped)
            del self.tokens[:dropped]

    def pop(self) -> None:
        """Remove the last token."""
        token = self.tokens.pop()
        self.count -= 1
        if self._seen is not None:
            self._seen[token] = token in self.decoder_tokens

    @property
    def generated(self) -> list[int]:
        return self.tokens[self.prompt :]

    @property
    def decoder_tokens(self) -> list[int]:
        """The prompt and the generated tokens; of an encoder-decoder, what its decoder has read."""
        return [*([] if self.start is None else [self.start]), *self.tokens[self.source :]]

    @property
    def length(self) -> int:
        return self._begun + self.count

    @property
    def seen(self) -> Array:
        if self._seen is None:
            self._seen = np.zeros(self.vocabulary, bool)
            self._seen[self.decoder_tokens] = True
        return self._seen

    def copy(self) -> Prefix:
        twin = copy.copy(self)
        twin.tokens = list(self.tokens)
        twin._seen = None if self._seen is None else self._seen.copy()
        return twin


class Processor(Protocol):
    """Changes the scores (V,) float64 of the next token, given the prefix; -inf forbids a token."""

    def __call__(self, scores: Array, prefix: Prefix) -> Array: ...


def repetition_penalty(scores: Array, prefix: Prefix, penalty: float) -> Array:
    """Divide positive scores of tokens that occurred before by the penalty, multiply negative ones (Keskar et al.
    2019)."""
    repeated = np.flatnonzero(prefix.seen)
    scores = scores.copy()
    penalised = scores[repeated]
    scores[repeated] = np.where(penalised > 0, penalised / penalty, penalised * penalty)
    return scores


def keep_only(scores: Array, tokens: Array) -> Array:
    """The scores with all tokens but these at -inf."""
    restricted = np.full_like(scores, -np.inf)
    restricted[tokens] = scores[tokens]
    return restricted


def top_k(scores: Array, k: int) -> Array:
    """Keep the k likeliest tokens (and any tied with the last of them)."""
    if k >= len(scores):
        return scores
    return np.where(scores < np.partition(scores, -k)[-k], -np.inf, scores)


def top_p(scores: Array, p: float) -> Array:
    """Keep the smallest set of likeliest tokens whose total probability reaches p, at least one (Holtzman et al.
    2020)."""
    probabilities = softmax(scores)
    candidates, size = np.arange(len(scores)), 512
    while size < len(scores) // 2:  # a full sort is slow: first partition off a set that holds enough
        largest = np.flatnonzero(probabilities >= np.partition(probabilities, -size)[-size])
        if probabilities[largest].sum() >= p:
            candidates = largest
            break
        size *= 8
    order = candidates[np.argsort(-scores[candidates], kind="stable")]
    cumulative = probabilities[order].cumsum()
    return keep_only(scores, order[: 1 + int(np.searchsorted(cumulative, p))])


def min_p(scores: Array, p: float) -> Array:
    """Keep tokens with at least p times the probability of the likeliest (Nguyen et al. 2024)."""
    return np.where(scores < scores.max() + np.log(p), -np.inf, scores)


def typical_p(scores: Array, p: float) -> Array:
    """Keep the smallest set of tokens with surprisal nearest to the entropy and total probability p (Meister et al.
    2022)."""
    logprobs = log_softmax(scores)
    probabilities = np.exp(logprobs)
    distance = np.abs(-logprobs - entropy(probabilities))
    order = np.argsort(distance, kind="stable")
    last = order[min(int((probabilities[order].cumsum() < p).sum()), len(scores) - 1)]
    return np.where(distance > distance[last], -np.inf, scores)


def epsilon_cutoff(scores: Array, epsilon: float) -> Array:
    """Keep the likeliest token and those with a probability of at least epsilon (Hewitt et al. 2022)."""
    return np.where((softmax(scores) < epsilon) & (scores < scores.max()), -np.inf, scores)


def eta_cutoff(scores: Array, eta: float) -> Array:
    """As epsilon_cutoff, with the threshold min(eta, sqrt(eta) exp(-entropy)) (Hewitt et al. 2022)."""
    return epsilon_cutoff(scores, min(eta, np.sqrt(eta) * np.exp(-entropy(softmax(scores)))))


def entropy(probabilities: Array) -> float:
    """The entropy of a distribution (V,), in nats."""
    positive = probabilities[probabilities > 0]
    return -float((positive * np.log(positive)).sum())


@dataclass(frozen=True)
class LogitBias:
    """A processor that adds constants to the scores of tokens, as in OpenAI's API.

    bias: (token, value) pairs. frequency, presence: penalties for a token generated after the prompt, subtracted once
    per occurrence and once in all.
    """

    bias: tuple[tuple[int, float], ...] = ()
    frequency: float = 0.0
    presence: float = 0.0

    def __call__(self, scores: Array, prefix: Prefix) -> Array:
        scores = scores.copy()
        for token, value in self.bias:
            scores[token] += value
        if self.frequency or self.presence:
            tokens, counts = np.unique(np.asarray(prefix.generated, np.int64), return_counts=True)
            scores[tokens] -= self.frequency * counts + self.presence
        return scores


def softmax(scores: Array) -> Array:
    """The probabilities of one row of scores (V,)."""
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def log_softmax(scores: Array) -> Array:
    """Log-probabilities over the last axis, in float64."""
    scores = scores.astype(np.float64) - scores.max(-1, keepdims=True)
    return scores - np.log(np.exp(scores).sum(-1, keepdims=True))


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen from the model's scores.

    do_sample: draw from the distribution; False takes the likeliest token (then only the repetition penalty and
        `processors` matter). temperature: divides the scores; 0 takes the likeliest. top_k: 0 is off.
    top_p, min_p, typical_p: probabilities in (0, 1]; 1, 0 and 1 are off. epsilon_cutoff, eta_cutoff: probability
        thresholds below 1; 0 is off. repetition_penalty: 1 is off, above 1 discourages repetition.
    processors: further ones, applied after the repetition penalty and before the temperature.
    renormalize_logits: in searches that rank whole answers by log-probability, normalise again after the processors
        (sampling always does).
    """

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    repetition_penalty: float = 1.0
    processors: tuple[Processor, ...] = ()
    renormalize_logits: bool = False

    def __post_init__(self) -> None:
        violations = [f"{name} must be {rule}, not {value}" for name, value, rule, is_valid in (
            ("temperature", self.temperature, "0 or more, and finite", 0 <= self.temperature < np.inf),
            ("top_k", self.top_k, "0 (off) or a positive whole number", self.top_k >= 0 and self.top_k % 1 == 0),
            ("top_p", self.top_p, "above 0 and at most 1", 0 < self.top_p <= 1),
            ("min_p", self.min_p, "at least 0 and at most 1", 0 <= self.min_p <= 1),
            ("typical_p", self.typical_p, "above 0 and at most 1", 0 < self.typical_p <= 1),
            ("epsilon_cutoff", self.epsilon_cutoff, "at least 0 and below 1", 0 <= self.epsilon_cutoff < 1),
            ("eta_cutoff", self.eta_cutoff, "at least 0 and below 1", 0 <= self.eta_cutoff < 1),
            ("repetition_penalty", self.repetition_penalty, "above 0", self.repetition_penalty > 0)) if not is_valid]
        if violations:
            raise SegueError("; ".join(violations))

    @cached_property
    def greedy(self) -> bool:
        return not self.do_sample or self.temperature < MIN_TEMPERATURE

    @cached_property
    def is_argmax(self) -> bool:
        """Whether the next token is simply the argmax of the model's scores: greedy and without processors."""
        return self.greedy and not self.uses_prefix

    @cached_property
    def uses_prefix(self) -> bool:
        """Whether the next token's scores depend on the prefix: there is a repetition penalty or a processor."""
        return self.repetition_penalty != 1 or bool(self.processors)

    def apply_processors(self, scores: Array, prefix: Prefix) -> Array:
        """Apply what depends on the prefix: the repetition penalty, then the processors (which may forbid all)."""
        if self.repetition_penalty != 1:
            scores = repetition_penalty(scores, prefix, self.repetition_penalty)
        for processor in self.processors:
            scores = processor(scores, prefix)
        return scores

    def process(self, scores: Array, prefix: Prefix) -> Array:
        """As `apply_processors`, with an error if no token is left."""
        scores = self.apply_processors(scores, prefix)
        highest = scores.max()
        if not np.isfinite(highest):
            raise SegueError(f"no token can follow after {len(prefix.tokens)} tokens: every score is ruled out or "
                             "not a number; look at the model's weights or the processors")
        return scores

    def warp(self, scores: Array, prefix: Prefix) -> Array:
        """Apply processors, temperature and truncation, in transformers' order."""
        scores = self.process(scores, prefix)
        if self.temperature != 1:
            scores = scores / self.temperature
        if self.top_k:
            scores = top_k(scores, self.top_k)
        if self.top_p < 1:
            scores = top_p(scores, self.top_p)
        if self.min_p > 0:
            scores = min_p(scores, self.min_p)
        if self.typical_p < 1:
            scores = typical_p(scores, self.typical_p)
        if self.epsilon_cutoff:
            scores = epsilon_cutoff(scores, self.epsilon_cutoff)
        if self.eta_cutoff:
            scores = eta_cutoff(scores, self.eta_cutoff)
        return scores

    def distribution(self, scores: Array, prefix: Prefix) -> Array:
        """(V,) float64 probabilities of the next token."""
        if self.greedy:
            chosen = np.zeros(len(scores))
            chosen[self.process(scores, prefix).argmax()] = 1
            return chosen
        return softmax(self.warp(scores, prefix))

    def choose(self, scores: Array, prefix: Prefix, noise: float) -> int:
        """The next token, a fixed function of scores (V,) float64, prefix and `noise` in [0, 1)."""
        if self.greedy:
            return int(self.process(scores, prefix).argmax())
        scores = self.warp(scores, prefix)
        return draw(np.exp(scores - scores.max()), noise)


def draw(weights: Array, noise: float) -> int:
    """Draw a token in proportion to weights (V,): the one at which their running sum passes `noise` of the total."""
    total = weights.cumsum()
    return int(total.searchsorted(noise * total[-1], side="right"))
