"""Diverse beam search (Vijayakumar et al. 2016, arXiv 1610.02424): groups of beams, each penalised for similarity to
the groups before it, at the cost of one beam search of the same width."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from segue.decoding.search.base import Hypothesis
from segue.decoding.search.beam import Beam, BeamSearch
from segue.errors import SegueError, check_choice


@dataclass(frozen=True)
class DiverseBeam(Beam):
    """Options, named as in transformers. Penalties steer the search but are not part of an answer's score.

    num_beam_groups: how many groups share the num_beams hypotheses (default: each is a group of its own).
    diversity_penalty: weight of the similarity, in nats. diversity: the measure of similarity to earlier groups:
        "hamming" (how many of their hypotheses have this token at this position), "cumulative" (the sum over their
        hypotheses of exp(-differing positions / diversity_scale)), "ngram" (how often they contain, anywhere, the
        n-gram of diversity_ngram tokens that this token would complete) or "embedding" (as hamming, with the cosine of
        the tokens' vectors in place of equality). diversity_embedding: (V, E) those vectors.
    """

    options: ClassVar[tuple[str, ...]] = (*Beam.options, "num_beam_groups", "diversity_penalty", "diversity",
                                          "diversity_scale", "diversity_ngram", "diversity_embedding")

    num_beam_groups: int | None = None
    diversity_penalty: float = 0.5
    diversity: str = "hamming"
    diversity_scale: float = 1.0
    diversity_ngram: int = 2
    diversity_embedding: np.ndarray | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        groups = self.groups
        if groups < 1 or self.num_beams % groups:
            raise SegueError(f"num_beam_groups must divide num_beams, not {groups} and {self.num_beams}")
        check_choice("diversity", self.diversity, SIMILARITIES)
        if self.diversity_penalty < 0 or self.diversity_scale <= 0 or self.diversity_ngram < 1:
            raise SegueError("diversity_penalty must be at least 0, diversity_scale above 0, diversity_ngram at least "
                             f"1, not {self.diversity_penalty}, {self.diversity_scale} and {self.diversity_ngram}")
        if (self.diversity == "embedding") != (self.diversity_embedding is not None):
            raise SegueError("diversity 'embedding', and no other, needs diversity_embedding: a vector of each token")

    @property
    def groups(self) -> int:
        return self.num_beams if self.num_beam_groups is None else self.num_beam_groups

    def begin(self, n: int, stops: frozenset[int]) -> DiverseBeamSearch:
        return DiverseBeamSearch(self, n, stops)


def hamming(options: DiverseBeam, living: Sequence[Hypothesis], earlier: Sequence[Hypothesis], v: int) -> np.ndarray:
    """How many of the earlier hypotheses end with each token."""
    counts = np.bincount([hypothesis.tokens[-1] for hypothesis in earlier], minlength=v)
    return np.broadcast_to(counts.astype(float), (len(living), v))


def cumulative(options: DiverseBeam, living: Sequence[Hypothesis], earlier: Sequence[Hypothesis], v: int) -> np.ndarray:
    """The sum over the earlier hypotheses of exp(-positions that would differ / diversity_scale)."""
    similarity = np.zeros((len(living), v))
    for row, hypothesis in enumerate(living):
        for other in earlier:
            distance = sum(a != b for a, b in zip(hypothesis.tokens, other.tokens))
            if_same, if_different = (np.exp(-count / options.diversity_scale) for count in (distance, distance + 1))
            similarity[row] += if_different
            similarity[row, other.tokens[-1]] += if_same - if_different
    return similarity


def ngram(options: DiverseBeam, living: Sequence[Hypothesis], earlier: Sequence[Hypothesis], v: int) -> np.ndarray:
    """How often the earlier hypotheses contain the n-gram that each token would complete."""
    counts, n = np.zeros((len(living), v)), options.diversity_ngram
    for row, hypothesis in enumerate(living):
        context = hypothesis.tokens[len(hypothesis.tokens) - n + 1 :]
        if len(context) < n - 1:
            continue
        for other in earlier:
            for position in range(n - 1, len(other.tokens)):
                if other.tokens[position - n + 1 : position] == context:
                    counts[row, other.tokens[position]] += 1
    return counts


def embedding(options: DiverseBeam, living: Sequence[Hypothesis], earlier: Sequence[Hypothesis], v: int) -> np.ndarray:
    """The summed cosine of each token's vector with those of the earlier hypotheses' last tokens, at least 0."""
    assert options.diversity_embedding is not None
    table = options.diversity_embedding / np.maximum(np.linalg.norm(options.diversity_embedding, axis=1, keepdims=True),
                                                     1e-12)
    last = table[[hypothesis.tokens[-1] for hypothesis in earlier]].sum(0)
    return np.broadcast_to((table @ last).clip(min=0), (len(living), v))


Similarity = Callable[[DiverseBeam, Sequence[Hypothesis], Sequence[Hypothesis], int], np.ndarray]
SIMILARITIES: dict[str, Similarity] = {"hamming": hamming, "cumulative": cumulative, "ngram": ngram,
                                       "embedding": embedding}
"""(options, hypotheses of this group, those of earlier groups, one token longer, V) -> (L, V) similarity, at least
0."""


class DiverseBeamSearch:
    """The search for one prompt's answers, see `DiverseBeam`: a beam search for each group."""

    def __init__(self, options: DiverseBeam, n: int, stops: frozenset[int]) -> None:
        self.options = options
        width = options.num_beams // options.groups
        beam = Beam(width, options.length_penalty, options.early_stopping, width)
        self.groups = [BeamSearch(beam, n, stops) for _ in range(options.groups)]

    def advance(self, living: Sequence[Hypothesis], logprobs: np.ndarray) -> list[Hypothesis]:
        """Advance one group after the other; each is penalised by what those before it have just chosen."""
        has_tokens, length = bool(living[0].tokens), len(living[0].tokens) + 1
        continuing: list[Hypothesis] = []
        earlier: list[Hypothesis] = []  # chosen by the groups before, also where they are finished
        for number, group in enumerate(self.groups):
            rows = [row for row, hypothesis in enumerate(living) if hypothesis.group == number or not has_tokens]
            if not rows:
                continue
            members = [replace(living[row], group=number) for row in rows]
            bonus = None
            if earlier and self.options.diversity_penalty:
                measure = SIMILARITIES[self.options.diversity]
                similarity = measure(self.options, members, earlier, logprobs.shape[1])
                bonus = -self.options.diversity_penalty * similarity
            advanced = group.advance(members, logprobs[rows], bonus)
            earlier += advanced or [done for done in group.done if len(done.tokens) == length]
            continuing += advanced
        return continuing

    def results(self) -> list[Hypothesis]:
        """The answers of all groups by the model's own score; one that several groups found is returned once."""
        unique: dict[tuple[int, ...], Hypothesis] = {}
        for group in self.groups:
            for hypothesis in group.done:
                hypothesis.score = hypothesis.total / hypothesis.length**self.options.length_penalty
                unique.setdefault((*hypothesis.tokens, -1 if hypothesis.stopped else -2), hypothesis)
        ranked = sorted(unique.values(), key=lambda hypothesis: -hypothesis.score)
        return ranked[: self.options.num_return_sequences]
