"""From scores to a token: processors, the distribution they leave, and the random number that picks from it.

Options are named as in transformers' `GenerationConfig` where they mean the same. A random number belongs to a
(seed, row, position) and to nothing else, and a token is a fixed function of the scores and that number. So the same
seed gives the same text with and without drafts, alone or in a batch, in one go or in two.
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
COLD = 1e-9  # a temperature below which nothing but the likeliest has a chance; scores over it would overflow
WINDOW = 65_536  # how much of what was said a prefix holds at least: endless streams need flat memory


class Noise:
    """Uniform numbers in [0, 1) by position, from Philox (Salmon et al. 2011) keyed by seed and row.

    lane: independent streams of one row (0 draws tokens, 1 decides about drafts).
    """

    BLOCK = 256  # made at once; Philox gives four numbers per count

    def __init__(self, seed: int, row: int = 0, lane: int = 0) -> None:
        self._key = (seed % 2**64) | (4 * row + lane) % 2**64 << 64
        self._block, self._values = -1, [0.0]

    def at(self, position: int) -> float:
        """The number of a position, from 0; the same whenever it is asked for."""
        block, offset = divmod(position, self.BLOCK)
        if block != self._block:
            bits = np.random.Philox(key=self._key, counter=block * (self.BLOCK // 4)).random_raw(self.BLOCK)
            self._block, self._values = block, ((bits >> np.uint64(11)) * 2.0**-53).tolist()
        return self._values[offset]


class Prefix:
    """What one path has said so far, prompt included.

    tokens: the last ones (all of them up to 65,536), of which the first `prompt` are the prompt's. said: the others;
    count: how many there ever were. source: so many first tokens, source and begin of an encoder-decoder, are no part
    of what is said. start: the id that its decoder reads for begin, and which counts as said (None: it has none).
    length: how far the text goes, the prompt included, of an encoder-decoder its target, begin included.
    seen: (V,) bool, every token ever said, those of the prompt included.
    limit: how many tokens may be said behind the prompt (None: any number). stops: tokens that end the answer.
    rest: what the answer must begin with, where the prompt was cut short (`segue.decoding.prompt.OpenPrompt`).
    """

    def __init__(self, tokens: Sequence[int], vocabulary: int, source: int = 0, start: int | None = None,
                 limit: int | None = None, stops: frozenset[int] = frozenset()) -> None:
        self.tokens, self.prompt = list(tokens), len(tokens)
        self.vocabulary, self.source, self.start = vocabulary, source, start
        self.limit, self.stops, self.count = limit, stops, 0
        self.rest: bytes | str = getattr(tokens, "rest", b"")
        self._begun = len(tokens) - source + (source > 0)
        self._seen: Array | None = None

    @classmethod
    def of(cls, model: Decodable, prompt: Sequence[int], limit: int | None = None,
           stops: frozenset[int] = frozenset()) -> Prefix:
        """The beginning of an answer of this model."""
        return cls(prompt, model.vocabulary, source_length(model, prompt), decoder_start_token(model), limit, stops)

    def append(self, token: int) -> None:
        self.tokens.append(token)
        self.count += 1
        if self._seen is not None:
            self._seen[token] = True
        if len(self.tokens) > 2 * WINDOW:
            _ = self.seen  # from here on the list no longer knows
            gone = len(self.tokens) - WINDOW
            self.prompt, self.source = max(0, self.prompt - gone), max(0, self.source - gone)
            del self.tokens[:gone]

    def pop(self) -> None:
        """Take the last token back."""
        token = self.tokens.pop()
        self.count -= 1
        if self._seen is not None:
            self._seen[token] = token in self.whole

    @property
    def said(self) -> list[int]:
        return self.tokens[self.prompt :]

    @property
    def whole(self) -> list[int]:
        """The prompt and what was said; of an encoder-decoder what its decoder has read, where begin has an id."""
        return [*([] if self.start is None else [self.start]), *self.tokens[self.source :]]

    @property
    def length(self) -> int:
        return self._begun + self.count

    @property
    def seen(self) -> Array:
        if self._seen is None:
            self._seen = np.zeros(self.vocabulary, bool)
            self._seen[self.whole] = True
        return self._seen

    def copy(self) -> Prefix:
        twin = copy.copy(self)
        twin.tokens = list(self.tokens)
        twin._seen = None if self._seen is None else self._seen.copy()
        return twin


class Processor(Protocol):
    """Changes scores (V,) float64 of the next token in the light of this path's prefix; -inf rules a token out."""

    def __call__(self, scores: Array, prefix: Prefix) -> Array: ...


def repetition_penalty(scores: Array, prefix: Prefix, penalty: float) -> Array:
    """Scores of tokens already said are divided by the penalty if positive, else multiplied (Keskar et al. 2019)."""
    said = np.flatnonzero(prefix.seen)
    scores = scores.copy()
    old = scores[said]
    scores[said] = np.where(old > 0, old / penalty, old * penalty)
    return scores


def only(scores: Array, tokens: Array) -> Array:
    """The scores of these tokens; the others are ruled out."""
    kept = np.full_like(scores, -np.inf)
    kept[tokens] = scores[tokens]
    return kept


def top_k(scores: Array, k: int) -> Array:
    """Only the k likeliest (and what ties with the last of them)."""
    if k >= len(scores):
        return scores
    return np.where(scores < np.partition(scores, -k)[-k], -np.inf, scores)


def top_p(scores: Array, p: float) -> Array:
    """Only the fewest likeliest whose probability reaches p; at least one (Holtzman et al. 2020)."""
    probabilities = softmax(scores)
    likely, few = np.arange(len(scores)), 512
    while few < len(scores) // 2:  # sorting is dear: first cut out what surely holds enough
        cut_out = np.flatnonzero(probabilities >= np.partition(probabilities, -few)[-few])
        if probabilities[cut_out].sum() >= p:
            likely = cut_out
            break
        few *= 8
    order = likely[np.argsort(-scores[likely], kind="stable")]
    sums = probabilities[order].cumsum()
    return only(scores, order[: 1 + int(np.searchsorted(sums, p))])


def min_p(scores: Array, p: float) -> Array:
    """Only those with at least p times the probability of the likeliest (Nguyen et al. 2024)."""
    return np.where(scores < scores.max() + np.log(p), -np.inf, scores)


def typical_p(scores: Array, p: float) -> Array:
    """Only the fewest whose surprise is nearest to the entropy, with probability p in all (Meister et al. 2022)."""
    logs = log_softmax(scores)
    chances = np.exp(logs)
    far = np.abs(-logs - entropy(chances))
    order = np.argsort(far, kind="stable")
    last = order[min(int((chances[order].cumsum() < p).sum()), len(scores) - 1)]
    return np.where(far > far[last], -np.inf, scores)


def epsilon_cutoff(scores: Array, least: float) -> Array:
    """Only the likeliest, and those with a probability of at least `least` (Hewitt et al. 2022)."""
    return np.where((softmax(scores) < least) & (scores < scores.max()), -np.inf, scores)


def eta_cutoff(scores: Array, least: float) -> Array:
    """As epsilon_cutoff, with a least probability that falls to sqrt(least) exp(-entropy) where many are likely."""
    return epsilon_cutoff(scores, min(least, np.sqrt(least) * np.exp(-entropy(softmax(scores)))))


def entropy(chances: Array) -> float:
    """Of a distribution (V,), in nats."""
    live = chances[chances > 0]
    return -float((live * np.log(live)).sum())


@dataclass(frozen=True)
class Leaning:
    """A processor that leans towards or away from tokens, by constants added to their scores.

    bias: by token. frequency, presence: taken off for each time, and once if, a token was said after the prompt.
    """

    bias: tuple[tuple[int, float], ...] = ()
    frequency: float = 0.0
    presence: float = 0.0

    def __call__(self, scores: Array, prefix: Prefix) -> Array:
        scores = scores.copy()
        for token, value in self.bias:
            scores[token] += value
        if self.frequency or self.presence:
            said, times = np.unique(np.asarray(prefix.said, np.int64), return_counts=True)
            scores[said] -= self.frequency * times + self.presence
        return scores


def softmax(scores: Array) -> Array:
    """Of one row of scores (V,), as probabilities."""
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def log_softmax(scores: Array) -> Array:
    """Over the last axis, in float64."""
    scores = scores.astype(np.float64) - scores.max(-1, keepdims=True)
    return scores - np.log(np.exp(scores).sum(-1, keepdims=True))


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen from the model's scores.

    do_sample: draw from the distribution; False takes the likeliest (then only the repetition penalty and
        `processors` matter). temperature: above 0, divides the scores; 0 means the likeliest. top_k: 0 is off.
    top_p, min_p, typical_p: shares of probability in (0, 1]; 1, 0 and 1 are off. epsilon_cutoff, eta_cutoff: least
        probabilities below 1; 0 is off. repetition_penalty: 1 is off, above 1 discourages.
    processors: further ones, applied after the repetition penalty and before the temperature.
    renormalize_logits: searches that rank whole answers by their log-probability make what a processor leaves add up to
        1 again (elsewhere that goes without saying).
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
        bad = [f"{name} must be {rule}, not {value}" for name, value, rule, good in (
            ("temperature", self.temperature, "0 or more", self.temperature >= 0),
            ("top_k", self.top_k, "0 (off) or a positive whole number", self.top_k >= 0 and self.top_k % 1 == 0),
            ("top_p", self.top_p, "above 0 and at most 1", 0 < self.top_p <= 1),
            ("min_p", self.min_p, "at least 0 and at most 1", 0 <= self.min_p <= 1),
            ("typical_p", self.typical_p, "above 0 and at most 1", 0 < self.typical_p <= 1),
            ("epsilon_cutoff", self.epsilon_cutoff, "at least 0 and below 1", 0 <= self.epsilon_cutoff < 1),
            ("eta_cutoff", self.eta_cutoff, "at least 0 and below 1", 0 <= self.eta_cutoff < 1),
            ("repetition_penalty", self.repetition_penalty, "above 0", self.repetition_penalty > 0)) if not good]
        if bad:
            raise SegueError("; ".join(bad))

    @cached_property
    def greedy(self) -> bool:
        return not self.do_sample or self.temperature < COLD

    @cached_property
    def plain(self) -> bool:
        """The plain likeliest token: no processor has a say."""
        return self.greedy and not self.remembers

    @cached_property
    def remembers(self) -> bool:
        """What was said has a say in what follows."""
        return self.repetition_penalty != 1 or bool(self.processors)

    def ruled(self, scores: Array, prefix: Prefix) -> Array:
        """What depends on the path: repetition penalty, then the other processors, which may leave nothing."""
        if self.repetition_penalty != 1:
            scores = repetition_penalty(scores, prefix, self.repetition_penalty)
        for processor in self.processors:
            scores = processor(scores, prefix)
        return scores

    def process(self, scores: Array, prefix: Prefix) -> Array:
        """As `ruled`; that no token may follow is an error."""
        scores = self.ruled(scores, prefix)
        best = scores.max()
        if not np.isfinite(best):
            raise SegueError(f"no token can follow after {len(prefix.tokens)} tokens: every score is ruled out or "
                             "not a number; look at the model's weights or the processors")
        return scores

    def warp(self, scores: Array, prefix: Prefix) -> Array:
        """All processors, in transformers' order."""
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
        """(V,) float64: the probability of each next token."""
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
    """The token at which the running sum of weights (V,) passes `noise` of the total."""
    total = weights.cumsum()
    return int(total.searchsorted(noise * total[-1], side="right"))
