"""Counts with an advisor: what they say of the next token is mixed with what another simple predictor says.

Counts see runs of tokens that came before. They do not see that two items are chosen by the same people in any order,
nor that 20.4 lies beside 20.5, nor that a wave swings on; an advisor does (`segue.models.neighbours`,
`segue.models.regression`, `segue.models.prediction`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from segue.errors import SegueError
from segue.files import read_json
from segue.models.counts import (
    MAX_PROBABILITIES,
    TRUST_POSITIONS,
    BlendedCounts,
    as_checked_ids,
    read_saved,
    sample_spans,
)
from segue.models.gate import Gate, fit_gate

GATE_POSITIONS = 12_000  # to fit the gate on, at most
MIN_SAVING = 0.1  # share of an ungated advisor's bits that mixing the counts in must save, else they are left out
NO_TOKEN = -1  # fills a history that reaches back beyond the beginning of its document


class Advisor(ABC):
    """Predicts the next of `vocabulary` tokens from the latest `reach` tokens of a document. gated: whether a learned
    gate mixes it with the counts; else it replaces them where it can predict, unless mixing is clearly better."""

    name: ClassVar[str]
    gated: ClassVar[bool] = True
    vocabulary: int
    reach: int

    @abstractmethod
    def learn(self, documents: Sequence[np.ndarray]) -> None:
        """Fit to documents (arrays of ids), replacing what was learned before."""

    def tune(self, documents: Sequence[np.ndarray]) -> None:  # noqa: B027
        """Fit what is better fitted on held-out documents; by default nothing."""

    @abstractmethod
    def predict(self, tails: np.ndarray) -> np.ndarray:
        """(N, V), next-token distributions after histories (N, reach) int32, the newest token last, padded in front
        with `NO_TOKEN`."""

    def predictions(self, sequence: Any, begin: int = 0, end: int | None = None) -> np.ndarray:
        """(n, V), the advisor's own distributions of the elements from `begin` up to `end` of one whole sequence."""
        ids = as_checked_ids(sequence, self.vocabulary)
        places = np.arange(begin, ids.size if end is None else min(end, ids.size))
        return self.predict(histories_before(ids, places, self.reach))

    def can_predict(self, tails: np.ndarray) -> np.ndarray:
        """(N,) bool, after which histories the advisor has a prediction."""
        return np.ones(len(tails), bool)

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Constructor arguments that make the same advisor, untrained."""

    @abstractmethod
    def arrays(self) -> dict[str, np.ndarray]:
        """The learned arrays, by name."""

    @abstractmethod
    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Load what `arrays` returned."""


class Advised(BlendedCounts):
    """Blended counts and an advisor as one proper distribution (see `Advisor.gated`). Decodes, is mixed and saved as
    counts are. `learn_gate` fits the mixing of both. Methods that concern the counts alone (drafts, classical models)
    are inherited unchanged.
    """

    def __init__(self, vocabulary: int, advisor: Advisor, window: int = 8192) -> None:
        super().__init__(vocabulary, window)
        if advisor.vocabulary != vocabulary or not 1 <= advisor.reach <= window:
            raise SegueError(f"an advisor of {advisor.vocabulary} tokens that reaches {advisor.reach} back does not "
                             f"fit counts of {vocabulary} and {window}")
        self.advisor, self.gate, self.gated = advisor, Gate(), advisor.gated

    @property
    def path(self) -> str:
        return f"{super().path} and {self.advisor.name}"

    def count(self, documents: Iterable[Any]) -> None:
        given = list(documents)
        super().count(given)
        self.advisor.learn([as_checked_ids(each, self.vocabulary) for each in given])

    def add(self, documents: Iterable[Any]) -> None:
        super().add(documents)
        self._learn_stream()

    def _learn_stream(self) -> None:
        stream = self.tables.stream
        parts = np.split(stream, np.flatnonzero(stream == self.vocabulary))
        self.advisor.learn([part[part != self.vocabulary] for part in parts if len(part) > 1])

    def cross_fit(self, documents: Sequence[Any], seed: int = 0, *options: Any, **named: Any) -> float:
        plain = BlendedCounts(self.vocabulary, self.window)
        bits = plain.cross_fit(documents, seed, *options, **named)
        self.trust = plain.trust
        self.count(documents)
        return bits

    def merged_with(self, others: Sequence[BlendedCounts], base: BlendedCounts) -> BlendedCounts | None:
        made = super().merged_with(others, base)
        if made is None:
            return None
        own = Advised(self.vocabulary, make_advisor(self.advisor.name, self.advisor.settings()), self.window)
        own.advisor.restore(self.advisor.arrays())
        own.gate.load_state_dict(self.gate.state_dict())
        own.gated = self.gated
        own.trust, own.tables = made.trust, made.tables
        own._learn_stream()
        return own

    def learn_gate(self, documents: Sequence[Any], seed: int = 0, positions: int = GATE_POSITIONS,
                   epochs: int = 6) -> float:
        """Fit the gate between counts and advisor on documents that were not counted; returns their cost in bits per
        element (0 if the advisor predicts nothing)."""
        ids = [d for d in (as_checked_ids(d, self.vocabulary) for d in documents) if len(d) > 1]
        if not ids:
            raise SegueError("there is too little data to learn the advisor's part on: give more, or longer, sequences")
        self.advisor.tune(ids)
        positions = min(positions, TRUST_POSITIONS, (1 << 26) // self.vocabulary + 1)
        spans = sample_spans([len(each) for each in ids], positions, np.random.default_rng(seed), first=1)
        size = max(64, MAX_PROBABILITIES // self.vocabulary)
        found = list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]()
        for number, begin, stop in spans:
            for at in range(begin, stop, size):
                end = min(at + size, stop)
                counted = np.empty((end - at, self.vocabulary))
                super().distributions(ids[number], at, end, counted)
                behind = histories_before(ids[number], np.arange(at, end), self.advisor.reach)
                speaks = self.advisor.can_predict(behind)
                targets = torch.from_numpy(ids[number][at:end][speaks].astype(np.int64))
                advice = self.advisor.predict(behind[speaks])
                found.append((_as_log(advice).half(), _as_log(counted[speaks]).half(), targets))
        p, q, targets = (torch.cat(side) for side in zip(*found))
        if not len(targets):
            return 0.0
        bits = fit_gate(self.gate, p, q, targets, seed, epochs)
        alone = -float(p.gather(1, targets[:, None]).float().mean() / np.log(2))
        self.gated = self.advisor.gated or bits < (1 - MIN_SAVING) * alone
        return bits if self.gated else alone

    def _mix_advisor(self, behind: np.ndarray, out: np.ndarray) -> None:
        """Mix the advisor's predictions after these histories into `out` (N, V), which holds those of the counts."""
        speaks = self.advisor.can_predict(behind)
        said = self.advisor.predict(behind[speaks])
        if self.gated:
            with torch.no_grad():
                said = self.gate.mix(_as_log(said), _as_log(out[speaks])).exp().numpy()
        out[speaks] = said

    def _predict_nodes(self, past: np.ndarray, begins: np.ndarray, whole: np.ndarray, tokens: np.ndarray,
                       parents: np.ndarray, chain: bool, at: np.ndarray, out: np.ndarray) -> None:
        super()._predict_nodes(past, begins, whole, tokens, parents, chain, at, out)
        behind = histories_of_nodes(past, begins, tokens, None if chain else parents, at, self.advisor.reach)
        flat = out.reshape(-1, self.vocabulary)
        for first in range(0, len(flat), size := max(64, MAX_PROBABILITIES // self.vocabulary)):
            self._mix_advisor(behind[first : first + size], flat[first : first + size])

    def distributions(self, ids: np.ndarray, begin: int, end: int, out: np.ndarray) -> None:
        super().distributions(ids, begin, end, out)
        self._mix_advisor(histories_before(ids, np.arange(begin, end), self.advisor.reach), out)

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "kind": "advised counts", "advisor": self.advisor.name,
                "settings": self.advisor.settings(), "gated": self.gated}

    def _arrays(self) -> dict[str, np.ndarray]:
        return {**super()._arrays(), **{f"advisor.{name}": value for name, value in self.advisor.arrays().items()},
                **{f"gate.{name}": value.detach().numpy() for name, value in self.gate.state_dict().items()}}

    @classmethod
    def load(cls, folder: str | Path, name: str = "counts") -> BlendedCounts:
        """Load what `save` wrote."""
        plain = BlendedCounts.load(folder, name)
        with read_saved(folder, name) as (settings, arrays):
            advisor = make_advisor(settings["advisor"], settings["settings"])
            made = cls(plain.vocabulary, advisor, plain.window)
            made.tables, made.trust, made.gated = plain.tables, plain.trust, settings.get("gated", advisor.gated)
            made.gate.load_state_dict({key: torch.from_numpy(arrays[f"gate.{key}"]) for key in made.gate.state_dict()})
            advisor.restore({key.partition(".")[2]: value for key, value in arrays.items()
                             if key.startswith("advisor.")})
            return made


def load_counts(folder: str | Path, name: str) -> BlendedCounts:
    """Load the counts that `save` wrote, with their advisor if they have one."""
    settings = read_json(Path(folder) / f"{name}.json")
    advised = isinstance(settings, dict) and settings.get("kind") == "advised counts"
    return Advised.load(folder, name) if advised else BlendedCounts.load(folder, name)


def make_advisor(name: str, settings: dict[str, Any]) -> Advisor:
    """Make an untrained advisor from its name and `settings`."""
    from segue.models.neighbours import Neighbours
    from segue.models.prediction import LinearPrediction
    from segue.models.regression import Regression

    return {each.name: each for each in (Neighbours, Regression, LinearPrediction)}[name](**settings)


def histories_before(ids: np.ndarray, at: np.ndarray, reach: int) -> np.ndarray:
    """(N, reach) int32, the tokens before each of the places `at` (N,) of a document, as `Advisor.predict` takes
    them."""
    index = at[:, None] - reach + np.arange(reach)
    return np.where(index >= 0, ids[np.maximum(index, 0)] if len(ids) else NO_TOKEN, NO_TOKEN).astype(np.int32)


def histories_of_nodes(past: np.ndarray, begins: np.ndarray, tokens: np.ndarray, parents: np.ndarray | None,
                       at: np.ndarray, reach: int) -> np.ndarray:
    """(B * M, reach) int32, the tokens up to each of the nodes `at` (B, M) of tokens (B, N), as `Advisor.predict` takes
    them. The tokens are a chain or a tree by `parents`, after the part of `past` from `begins` (B,) on."""
    (rows, most), size = tokens.shape, past.shape[1]
    held = np.where(np.arange(size) >= begins[:, None], past, NO_TOKEN)
    before = np.full((rows, reach), NO_TOKEN, np.int32)
    before[:, max(0, reach - size) :] = held[:, max(0, size - reach) :]
    whole = np.concatenate([before, tokens.astype(np.int32)], 1)
    if parents is None:
        index = at[:, :, None] + 1 + np.arange(reach)
        return whole[np.arange(rows)[:, None, None], index].reshape(-1, reach)
    found, tree = np.full((*at.shape, reach), NO_TOKEN, np.int32), np.broadcast_to(parents, (rows, most))
    for row, column in np.ndindex(*at.shape):
        node, way = int(at[row, column]), list[int]()
        while node >= 0:
            way.append(int(tokens[row, node]))
            node = int(tree[row, node])
        found[row, column] = np.concatenate([before[row], np.array(way[::-1], np.int32)])[-reach:]
    return found.reshape(-1, reach)


def _as_log(chances: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(chances.clip(1e-30)).log_().float()
