"""The types that every objective shares: `Batch`, `Loss` and the `Objective` protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.mixers.layout import Layout
from segue.models.base import pad_rows


def generator_of(seed: int, step: int) -> torch.Generator:
    """A random generator for one training step, determined by the run's seed and the step number alone."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)


@dataclass(frozen=True)
class Batch:
    """Rows of elements and the targets to predict from them.

    tokens: (B, T) long, or (B, T, C) real vectors. targets: (B, T) long, -1 where nothing is predicted.
    starts: (B, T) bool, True where a new document begins in a packed row, or None where each row is of one document.
    channels: side channels aligned with `tokens`, (B, T) or (B, T, w).
    grid: sizes of the sequence axes whose product is T, where elements lie on a grid (see `Layout`).
    prompt: (B, T) bool, True at the elements of a prompt, for mixers that read a prompt both ways (see `Layout`).
    sets: (B, T, 3) long, the position of each element, its set and its part of that, where some of a row are parts
        without an order (see `Layout`, `segue.decoding.prompt.set_placements`).
    """

    tokens: Tensor
    targets: Tensor
    starts: Tensor | None = None
    channels: dict[str, Tensor] = field(default_factory=dict)
    grid: tuple[int, ...] | None = None
    prompt: Tensor | None = None
    sets: Tensor | None = None

    @property
    def count(self) -> int:
        """How many elements are predicted."""
        return int((self.targets >= 0).sum())

    @property
    def layout(self) -> Layout:
        """The layout (positions, document starts, grid, prompt, sets) that the model reads the tokens with."""
        if self.sets is not None:
            return Layout(self.sets[..., 0], None, self.starts, self.grid, self.prompt, sets=self.sets[..., 1:])
        shape = (self.tokens.shape[0], self.tokens.shape[1])
        return Layout.chain(shape, starts=self.starts, device=self.tokens.device, grid=self.grid,
                            prompt=self.prompt)

    def documents(self) -> list[tuple[int, slice]]:
        """Row and span of each document in which something is predicted, up to its last prediction."""
        found = []
        for row, asked in enumerate((self.targets >= 0).cpu()):
            begins = [0] if self.starts is None else sorted({0, *self.starts[row].nonzero()[:, 0].tolist()})
            for begin, end in zip(begins, [*begins[1:], len(asked)]):
                live = asked[begin:end].nonzero()
                if len(live):
                    found.append((row, slice(begin, begin + int(live[-1]) + 1)))
        return found

    def to(self, device: torch.device | str) -> Batch:
        return self.map(lambda x: x.to(device))

    def rows(self, which: slice | Tensor) -> Batch:
        return self.map(lambda x: x[which])

    def as_prompts(self) -> Batch:
        """The batch with each row, up to its last predicted element, marked as a prompt: all of it stands there
        when that is asked for (a classifier's rows, padded behind), see `segue.models.prompts`."""
        return replace(self, prompt=(self.targets >= 0).int().flip(1).cummax(1).values.flip(1).bool())

    def map(self, change: Callable[..., Tensor]) -> Batch:
        """The batch with `change` applied to every tensor in it."""
        starts, prompt, sets = (None if x is None else change(x) for x in (self.starts, self.prompt, self.sets))
        channels = {name: change(values) for name, values in self.channels.items()}
        return replace(self, tokens=change(self.tokens), targets=change(self.targets), starts=starts, channels=channels,
                       prompt=prompt, sets=sets)

    @staticmethod
    def pairs(pairs: Sequence[tuple[Sequence[int], Sequence[int]]], begin: int) -> Batch:
        """Rows of source, `begin` and target for an encoder-decoder (`segue.models.seq2seq`), padded behind.

        pairs: of source and target, the end token included where there is one. Only the target is predicted.
        """
        return Batch(pad_rows([[*source, begin, *target[:-1]] for source, target in pairs]),
                     pad_rows([[*[-1] * len(source), *target] for source, target in pairs], -1))

    @staticmethod
    def labelled(rows: Sequence[Sequence[int]], labels: Sequence[int], length: int | None = None) -> Batch:
        """Rows of ids with one class label each, predicted at the last element; rows are right-padded.

        length: T of the batch, to which longer rows are cut (default: the longest row's)."""
        rows = [list(row[:length]) for row in rows]
        length = max(map(len, rows)) if length is None else length
        targets = [[*[-1] * (len(row) - 1), label] for row, label in zip(rows, labels, strict=True)]
        tokens, asked = pad_rows(rows), pad_rows(targets, -1)
        return Batch(F.pad(tokens, (0, length - tokens.shape[1])), F.pad(asked, (0, length - asked.shape[1]), value=-1))

    @staticmethod
    def labelled_pairs(pairs: Sequence[tuple[Sequence[int], Sequence[int]]], labels: Sequence[int],
                       length: int | None = None, between: Sequence[int] = ()) -> Batch:
        """As `labelled`, for pairs of sequences concatenated with `between` as separator (GPT: Radford 2018).

        length: maximum row length. A pair that is too long is cut in proportion to the lengths of its two sequences:
        cutting the row at its end would drop the second sequence, on which the label depends."""
        rows = []
        for first, second in pairs:
            total = len(first) + len(second)
            room = total if length is None else length - len(between)
            if total > room:
                most = min(len(first), max(1, min(room - 1, round(room * len(first) / total))))
                most = max(most, room - len(second))  # an empty one leaves its place to the other
                first, second = first[:most], second[: room - most]
            rows.append([*first, *between, *second])
        return Batch.labelled(rows, labels, length)

    @staticmethod
    def pointing(pairs: Sequence[tuple[Any, Sequence[int]]]) -> Batch:
        """Rows for a pointer network (`segue.models.pointer`), right-padded: the elements, a frame (which marks the end
        of elements and of answers), and the answer. Tokens are (B, T, 1 + C): the first number is -1 at an element, 0
        at the frame and the 1-based position pointed at in the answer; the others are the element's own features.

        pairs: (elements, answer), where elements are (n, C) real numbers or n ids, and the answer is 1-based positions.
        Only the answer and the frame that ends it are predicted.
        """
        sets = [np.asarray(elements).reshape(len(elements), -1) for elements, _ in pairs]
        longest = max(len(one) + 1 + len(answer) for one, (_, answer) in zip(sets, pairs))
        kind = np.float32 if sets[0].dtype.kind == "f" else np.int64
        tokens = np.zeros((len(pairs), longest, 1 + sets[0].shape[1]), kind)
        targets = np.full((len(pairs), longest), -1)
        for row, (one, (_, answer)) in enumerate(zip(sets, pairs)):
            n, end = len(one), len(one) + 1 + len(answer)
            tokens[row, :n, 0], tokens[row, :n, 1:] = -1, one
            tokens[row, n + 1 : end, 0], targets[row, n : end] = answer, [*answer, 0]
        return Batch(torch.from_numpy(tokens), torch.from_numpy(targets))

    @staticmethod
    def join(batches: list[Batch]) -> Batch:
        """Concatenate the rows of several batches of equal length (used by strategies that replay old rows)."""
        def mask(name: str) -> Tensor | None:
            masks = [getattr(batch, name) for batch in batches]
            if all(mask is None for mask in masks):
                return None
            return torch.cat([torch.zeros_like(b.targets, dtype=torch.bool) if mask is None else mask
                              for b, mask in zip(batches, masks)])

        channels = {name: torch.cat([b.channels[name] for b in batches]) for name in batches[0].channels}
        sets = None
        if any(batch.sets is not None for batch in batches):
            sets = torch.cat([F.pad(b.layout.positions.expand(b.targets.shape)[..., None], (0, 2))
                              if b.sets is None else b.sets for b in batches])
        return Batch(torch.cat([b.tokens for b in batches]), torch.cat([b.targets for b in batches]), mask("starts"),
                     channels, batches[0].grid, mask("prompt"), sets)


@dataclass
class Loss:
    """The result of an objective. total: scalar, the sum over predicted elements in nats plus any further terms; the
    training step divides it by `count`. terms: its named parts, detached, also sums. count: number of predicted
    elements."""

    total: Tensor
    terms: dict[str, Tensor]
    count: int


def content_rng(*tokens: int) -> np.random.Generator:
    """A random generator seeded by these tokens and the training step (through the seed that the training loop sets in
    torch), so a document gets the same draws alone, in any batch, in any process and in a resumed run."""
    return np.random.default_rng([torch.initial_seed() % 2**64, *tokens])


class Objective(Protocol):
    """A training objective: computes the loss of a model on a batch. One whose loss is no sum over rows, since it
    compares them with each other, has an attribute `compares_rows`, which is true."""

    def __call__(self, model: nn.Module, batch: Batch) -> Loss: ...
