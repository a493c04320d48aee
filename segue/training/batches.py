"""Training batches as a pure function of (seed, step), so that a resumed run needs no loader state but the step.

Documents longer than the context are cut into windows, at a new offset each epoch. Shorter ones are packed several to a
row, with their starts marked so that none sees another. A batch holds rows of one type only, since windows need no
mask.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from segue.errors import SegueError
from segue.objectives import Batch


class Store(Protocol):
    """Encoded documents: flat token ids and the offsets where documents begin, such as `segue.data.TokenStore`."""

    tokens: np.ndarray
    offsets: np.ndarray
    channels: dict[str, np.ndarray]


class Arrays:
    """A `Store` of sequences in memory: of ids (n,), or structured arrays (n,) of "ids" and channels beside them."""

    def __init__(self, sequences: list[np.ndarray]) -> None:
        joined: np.ndarray = np.concatenate([np.asarray(s) for s in sequences]) if sequences else np.zeros(0, np.int32)
        names = joined.dtype.names or ()
        self.tokens = joined["ids"] if names else joined
        self.offsets = np.cumsum([0, *(len(s) for s in sequences)]).astype(np.int64)
        self.channels: dict[str, np.ndarray] = {name: joined[name] for name in names if name != "ids"}


def pack_documents(lengths: np.ndarray, room: int) -> list[list[int]]:
    """Best-fit packing: rows of document indices with at most `room` elements each. No length may exceed `room`."""
    rows: list[list[int]] = []
    spaces: list[int] = []  # the different amounts of free space, sorted
    rows_with: dict[int, list[int]] = {}  # rows by free space
    for index, length in enumerate(lengths.tolist()):
        at = bisect_left(spaces, length)
        if at == len(spaces):
            row, space = len(rows), room
            rows.append([])
        else:
            space = spaces[at]
            row = rows_with[space].pop()
            if not rows_with[space]:
                spaces.pop(at)
        rows[row].append(index)
        remaining = space - length
        if remaining > 1:
            if not rows_with.get(remaining):
                insort(spaces, remaining)
            rows_with.setdefault(remaining, []).append(row)
    return rows


@dataclass
class Epoch:
    """The rows of one pass over the data. windows: first element of each; packed: documents of each packed row.
    batches: the rows of each batch, as indices of windows, or -1, -2, ... for the first, second, ... packed row."""

    windows: np.ndarray
    packed: list[np.ndarray]
    batches: list[np.ndarray]


class Batches:
    """Batches of `rows` rows of `context` elements from a store.

    `batches(step)` -> Batch, always the same for the same step and seed. One epoch shows every element once, or twice
    where windows overlap, at the beginning and the end of a document longer than a row. packing: put several short
    documents in a row; False gives each a row of its own, for models that cannot reset their state within a row. vary:
    data augmentation; gets the ids of each window or short document, including the last target, and a random generator,
    and returns as many ids (see `segue.kinds.nucleotides.variation`). Side channels are not changed.
    """

    def __init__(self, store: Store, context: int, rows: int, seed: int = 0, packing: bool = True,
                 vary: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None) -> None:
        self.store, self.context, self.rows, self.seed, self.packing = store, context, rows, seed, packing
        self.vary = vary
        offsets = np.asarray(store.offsets)
        predicted = np.diff(offsets) - 1
        if not (predicted > 0).any():
            raise SegueError("there is nothing to learn: every sequence has fewer than two elements; give longer ones")
        self.long = np.flatnonzero(predicted >= context)
        self.short = np.flatnonzero((predicted > 0) & (predicted < context))
        self.offsets, self.predicted = offsets, predicted
        self._epochs: dict[int, Epoch] = {}
        self._firsts = [0]  # the first step of each epoch; the number of batches per epoch may vary a little
        self._ahead: tuple[int, Future[Batch]] | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="segue-batches")

    def epoch(self, number: int) -> Epoch:
        if number not in self._epochs:
            self._epochs = {k: v for k, v in self._epochs.items() if k >= number - 1}
            self._epochs[number] = self._plan(np.random.default_rng([self.seed, number]))
        return self._epochs[number]

    def _plan(self, draw: np.random.Generator) -> Epoch:
        context, rows = self.context, self.rows
        first, last = self.offsets[self.long], self.predicted[self.long] - context
        phase = draw.integers(0, context, len(self.long))
        # Windows end at phase, phase + context, ...; the first and the last are shifted to lie inside the document.
        count = np.where(last == 0, 1, -(-(last + context - phase) // context) + (phase > 0))
        document = np.repeat(np.arange(len(self.long)), count)
        number = np.arange(len(document)) - np.repeat(np.cumsum(count) - count, count)
        start = number * context + np.where(phase > 0, phase - context, 0)[document]
        windows = first[document] + np.clip(start, 0, last[document])
        short_order = draw.permutation(self.short)
        packed: list[np.ndarray] = []
        for at in range(0, len(short_order), 1 << 14):
            group = short_order[at : at + (1 << 14)]
            members = [[i] for i in range(len(group))]
            if self.packing:
                members = pack_documents(self.predicted[group], context)
            packed += [group[row] for row in members]
        window_order = draw.permutation(len(windows))
        packed_order = -1 - draw.permutation(len(packed))
        batches = [order[at : at + rows] for order in (window_order, packed_order)
                   for at in range(0, len(order) - rows + 1, rows)]
        remaining = np.concatenate([order[len(order) // rows * rows :] for order in (window_order, packed_order)])
        if len(remaining):
            everything = np.concatenate([window_order, packed_order])
            repeated = draw.choice(everything, -len(remaining) % rows)
            remaining = np.concatenate([remaining, repeated])
            batches += [remaining[at : at + rows] for at in range(0, len(remaining), rows)]
        return Epoch(windows, packed, [batches[i] for i in draw.permutation(len(batches))])

    def locate(self, step: int) -> tuple[int, int]:
        """The epoch of a step, and the number of its batch within it."""
        while self._firsts[-1] <= step:
            self._firsts.append(self._firsts[-1] + len(self.epoch(len(self._firsts) - 1).batches))
        number = int(np.searchsorted(self._firsts, step, side="right")) - 1
        return number, step - self._firsts[number]

    def __call__(self, step: int) -> Batch:
        """The batch of this step; starts preparing the next one in another thread."""
        ahead, self._ahead = self._ahead, None
        prepared = None if ahead is None else ahead[1].result()
        batch = prepared if prepared is not None and ahead is not None and ahead[0] == step else self.make(step)
        self._ahead = (step + 1, self._pool.submit(self.make, step + 1))
        return batch

    def make(self, step: int) -> Batch:
        """Make the batch of this step."""
        number, index = self.locate(step)
        epoch = self.epoch(number)
        chosen = epoch.batches[index]
        positions = np.zeros((len(chosen), self.context), dtype=np.int64)
        live = np.ones(positions.shape, dtype=bool)
        starts = np.zeros(positions.shape, dtype=bool)
        is_window = chosen >= 0
        positions[is_window] = epoch.windows[chosen[is_window], None] + np.arange(self.context)
        spans = [(row, 0, self.context) for row in np.flatnonzero(is_window)]  # rows, or documents in them
        for row in np.flatnonzero(~is_window):
            cursor = 0
            for document in epoch.packed[-1 - chosen[row]]:
                length = int(self.predicted[document])
                positions[row, cursor : cursor + length] = self.offsets[document] + np.arange(length)
                starts[row, cursor] = cursor > 0
                spans.append((row, cursor, cursor + length))
                cursor += length
            live[row, cursor:] = False
            starts[row, cursor : cursor + 1] = self.packing  # the padding is a document of its own
        tokens = self.store.tokens[positions].astype(np.int64)
        targets = np.where(live, self.store.tokens[positions + live].astype(np.int64), -1)
        if self.vary is not None:
            draw = np.random.default_rng([self.seed, number, index])
            for row, start, end in spans:
                ids = self.vary(np.append(tokens[row, start:end], targets[row, end - 1]), draw)
                tokens[row, start:end], targets[row, start:end] = ids[:-1], ids[1:]
        channels = {name: torch.from_numpy(np.ascontiguousarray(values[positions])) for name, values in
                    self.store.channels.items()}
        return Batch(torch.from_numpy(tokens), torch.from_numpy(targets),
                     torch.from_numpy(starts) if starts.any() else None, channels)

    def close(self) -> None:
        """Stop the thread that prepares batches."""
        self._pool.shutdown(cancel_futures=True)
