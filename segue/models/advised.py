"""Counts with an advisor: their next-token distribution is mixed with that of another simple predictor.

Counts see runs of tokens that occurred before. They do not see that two items are chosen by the same people in any
order, that 20.4 is close to 20.5, or that a wave oscillates; an advisor does (`segue.models.neighbours`,
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
    def predict(self, histories: np.ndarray) -> np.ndarray:
        """(N, V), next-token distributions after histories (N, reach) int32, the newest token last, padded in front
        with `NO_TOKEN`."""

    def predictions(self, sequence: Any, begin: int = 0, end: int | None = None) -> np.ndarray:
        """(n, V), the advisor's own distributions of the elements from `begin` up to `end` of one whole sequence."""
        ids = as_checked_ids(sequence, self.vocabulary)
        positions = np.arange(begin, ids.size if end is None else min(end, ids.size))
        return self.predict(histories_before(ids, positions, self.reach))

    def can_predict(self, histories: np.ndarray) -> np.ndarray:
        """(N,) bool, after which histories the advisor has a prediction."""
        return np.ones(len(histories), bool)

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
        documents = list(documents)
        super().count(documents)
        self.advisor.learn([as_checked_ids(document, self.vocabulary) for document in documents])

    def add(self, documents: Iterable[Any]) -> None:
        super().add(documents)
        self._learn_stream()

    def _learn_stream(self) -> None:
        stream = self.tables.stream
        parts = np.split(stream, np.flatnonzero(stream == self.vocabulary))
        self.advisor.learn([part[part != self.vocabulary] for part in parts if len(part) > 1])

    def cross_fit(self, documents: Sequence[Any], seed: int = 0, *args: Any, **kwargs: Any) -> float:
        plain = BlendedCounts(self.vocabulary, self.window)
        bits = plain.cross_fit(documents, seed, *args, **kwargs)
        self.trust = plain.trust
        self.count(documents)
        return bits

    def merged_with(self, others: Sequence[BlendedCounts], base: BlendedCounts) -> BlendedCounts | None:
        counts = super().merged_with(others, base)
        if counts is None:
            return None
        merged = Advised(self.vocabulary, make_advisor(self.advisor.name, self.advisor.settings()), self.window)
        merged.advisor.restore(self.advisor.arrays())
        merged.gate.load_state_dict(self.gate.state_dict())
        merged.gated = self.gated
        merged.trust, merged.tables = counts.trust, counts.tables
        merged._learn_stream()
        return merged

    def learn_gate(self, documents: Sequence[Any], seed: int = 0, positions: int = GATE_POSITIONS,
                   epochs: int = 6) -> float:
        """Fit the gate between counts and advisor on documents that were not counted; returns their cost in bits per
        element (0 if the advisor predicts nothing)."""
        ids = [d for d in (as_checked_ids(d, self.vocabulary) for d in documents) if len(d) > 1]
        if not ids:
            raise SegueError("there is too little data to learn the advisor's part on: give more, or longer, sequences")
        self.advisor.tune(ids)
        positions = min(positions, TRUST_POSITIONS, (1 << 26) // self.vocabulary + 1)
        spans = sample_spans([len(document) for document in ids], positions, np.random.default_rng(seed), first=1)
        size = max(64, MAX_PROBABILITIES // self.vocabulary)
        batches = [self._gate_batch(ids[number], at, min(at + size, end))
                   for number, begin, end in spans for at in range(begin, end, size)]
        p, q, targets = (torch.cat(parts) for parts in zip(*batches))
        if not len(targets):
            return 0.0
        mixed_bits = fit_gate(self.gate, p, q, targets, seed, epochs)
        advisor_bits = -float(p.gather(1, targets[:, None]).float().mean() / np.log(2))
        self.gated = self.advisor.gated or mixed_bits < (1 - MIN_SAVING) * advisor_bits
        return mixed_bits if self.gated else advisor_bits

    def _gate_batch(self, ids: np.ndarray, begin: int, end: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The P elements from `begin` up to `end` of a document that the advisor predicts: log-probabilities (P, V) of
        advisor and counts in half precision, and the elements (P,) long."""
        counted = np.empty((end - begin, self.vocabulary))
        super().distributions(ids, begin, end, counted)
        histories = histories_before(ids, np.arange(begin, end), self.advisor.reach)
        predicts = self.advisor.can_predict(histories)
        targets = torch.from_numpy(ids[begin:end][predicts].astype(np.int64))
        advice = self.advisor.predict(histories[predicts])
        return _as_log(advice).half(), _as_log(counted[predicts]).half(), targets

    def _mix_advisor(self, histories: np.ndarray, out: np.ndarray) -> None:
        """Mix the advisor's predictions after these histories into `out` (N, V), which holds those of the counts."""
        predicts = self.advisor.can_predict(histories)
        advice = self.advisor.predict(histories[predicts])
        if self.gated:
            with torch.no_grad():
                advice = self.gate.mix(_as_log(advice), _as_log(out[predicts])).exp().numpy()
        out[predicts] = advice

    def _predict_nodes(self, past: np.ndarray, begins: np.ndarray, whole: np.ndarray, tokens: np.ndarray,
                       parents: np.ndarray, chain: bool, at: np.ndarray, out: np.ndarray) -> None:
        super()._predict_nodes(past, begins, whole, tokens, parents, chain, at, out)
        histories = histories_of_nodes(past, begins, tokens, None if chain else parents, at, self.advisor.reach)
        flat = out.reshape(-1, self.vocabulary)
        for first in range(0, len(flat), size := max(64, MAX_PROBABILITIES // self.vocabulary)):
            self._mix_advisor(histories[first : first + size], flat[first : first + size])

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
        counts = BlendedCounts.load(folder, name)
        with read_saved(folder, name) as (settings, arrays):
            advisor = make_advisor(settings["advisor"], settings["settings"])
            model = cls(counts.vocabulary, advisor, counts.window)
            model.tables, model.trust, model.gated = counts.tables, counts.trust, settings.get("gated", advisor.gated)
            gate = {key: torch.from_numpy(arrays[f"gate.{key}"]) for key in model.gate.state_dict()}
            model.gate.load_state_dict(gate)
            advisor.restore({key.partition(".")[2]: value for key, value in arrays.items()
                             if key.startswith("advisor.")})
            return model


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

    return {advisor.name: advisor for advisor in (Neighbours, Regression, LinearPrediction)}[name](**settings)


def histories_before(ids: np.ndarray, positions: np.ndarray, reach: int) -> np.ndarray:
    """(N, reach) int32, the tokens before each of the places `at` (N,) of a document, as `Advisor.predict` takes
    them."""
    index = positions[:, None] - reach + np.arange(reach)
    return np.where(index >= 0, ids[np.maximum(index, 0)] if len(ids) else NO_TOKEN, NO_TOKEN).astype(np.int32)


def histories_of_nodes(past: np.ndarray, begins: np.ndarray, tokens: np.ndarray, parents: np.ndarray | None,
                       at: np.ndarray, reach: int) -> np.ndarray:
    """(B * M, reach) int32, the tokens up to each of the nodes `at` (B, M) of tokens (B, N), as `Advisor.predict` takes
    them. The tokens are a chain or a tree by `parents`, after the part of `past` from `begins` (B,) on."""
    (rows, num_nodes), past_size = tokens.shape, past.shape[1]
    valid_past = np.where(np.arange(past_size) >= begins[:, None], past, NO_TOKEN)
    histories = np.full((rows, reach), NO_TOKEN, np.int32)
    histories[:, max(0, reach - past_size) :] = valid_past[:, max(0, past_size - reach) :]
    tokens_with_past = np.concatenate([histories, tokens.astype(np.int32)], 1)
    if parents is None:
        index = at[:, :, None] + 1 + np.arange(reach)
        return tokens_with_past[np.arange(rows)[:, None, None], index].reshape(-1, reach)
    out, parent_rows = np.full((*at.shape, reach), NO_TOKEN, np.int32), np.broadcast_to(parents, (rows, num_nodes))
    for row, column in np.ndindex(*at.shape):
        node, ancestors = int(at[row, column]), list[int]()
        while node >= 0:
            ancestors.append(int(tokens[row, node]))
            node = int(parent_rows[row, node])
        out[row, column] = np.concatenate([histories[row], np.array(ancestors[::-1], np.int32)])[-reach:]
    return out.reshape(-1, reach)


def _as_log(probabilities: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(probabilities.clip(1e-30)).log_().float()
