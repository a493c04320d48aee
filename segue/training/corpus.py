"""A mixed training corpus: several sorts of sequences in one vocabulary, as DNA, proteins and prose (arXiv
2502.06253)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from segue.errors import SegueError
from segue.objectives import Batch
from segue.training.batches import Arrays, Batches, Store

GOLDEN = (5**0.5 - 1) / 2  # its multiples modulo 1 are spread evenly, which interleaves the sorts


class MixedCorpus:
    """Rows of several stores, each sort as often as its weight says, for `segue.training.learn`.

    parts: stores of ids by name, all encoded by one codec (`data.encode(codec)`), e.g. a `BPECodec` trained on all of
    them. size: ids of that codec. weights: of rows, by name (default: as many as there are tokens). tagged: each
    document begins with the id of its sort, `tag(name)`, instead of its first one, the codec's begin.
    """

    def __init__(self, parts: Mapping[str, Store], size: int, weights: Mapping[str, float] | None = None,
                 tagged: bool = False) -> None:
        weights = {name: len(store.tokens) for name, store in parts.items()} if weights is None else weights
        if not parts or set(weights) != set(parts) or min(weights.values()) < 0 or not sum(weights.values()) > 0:
            raise SegueError(f"sorts {sorted(parts)} with weights {dict(weights)}: give each sort a weight, none below "
                             "0, and one above")
        self.codec_size, self.names = size, list(parts)
        self.shares = np.array([weights[name] for name in self.names], float)
        self.shares /= self.shares.sum()
        self.stores = {name: self._tagged(store, self.tag(name)) if tagged else store for name, store in parts.items()}
        self.size = size + len(parts) * tagged

    def tag(self, name: str) -> int:
        """The id of a sort's tag, after those of the codec."""
        if name not in self.names:
            raise SegueError(f"there is no sort '{name}' in this corpus: choose from {', '.join(self.names)}")
        return self.codec_size + self.names.index(name)

    @staticmethod
    def _tagged(store: Store, tag: int) -> Arrays:
        tokens, offsets = np.array(store.tokens, np.int32), np.asarray(store.offsets)
        tokens[offsets[:-1][np.diff(offsets) > 0]] = tag
        return Arrays([tokens[a:b] for a, b in zip(offsets[:-1], offsets[1:])])

    def row_sorts(self, first: int, last: int) -> np.ndarray:
        """The sort of each row from `first` to `last`, interleaved so that any run of rows has about the right
        shares."""
        return np.searchsorted(self.shares.cumsum()[:-1], np.arange(first, last) * GOLDEN % 1, "right")

    def batches(self, context: int, rows: int, seed: int = 0, packing: bool = True) -> Mixture:
        """Batches of `rows` rows of `context` elements, see `Batches`."""
        return Mixture(self, context, rows, seed, packing)


class Mixture:
    """`batches(step)` -> Batch, a pure function of the step. Each store's rows come in the order of its own epochs."""

    def __init__(self, corpus: MixedCorpus, context: int, rows: int, seed: int, packing: bool) -> None:
        self.corpus, self.rows = corpus, rows
        self.parts = [Batches(store, context, rows, seed, packing) for store in corpus.stores.values()]
        self._counted = 0, np.zeros(len(self.parts), np.int64)  # so many first rows, and how many are of each sort

    def _count(self, rows: int) -> np.ndarray:
        """How many of the first `rows` rows are of each sort."""
        known, counts = self._counted if self._counted[0] <= rows else (0, np.zeros(len(self.parts), np.int64))
        counts = counts + np.bincount(self.corpus.row_sorts(known, rows), minlength=len(self.parts))
        self._counted = rows, counts
        return counts

    def __call__(self, step: int) -> Batch:
        chosen = []
        for part, first, last in zip(self.parts, self._count(step * self.rows), self._count((step + 1) * self.rows)):
            ranks = range(int(first), int(last))
            for batch in sorted({rank // self.rows for rank in ranks}):
                rows = [rank % self.rows for rank in ranks if rank // self.rows == batch]
                chosen.append(part.make(batch).rows(slice(rows[0], rows[-1] + 1)))
        return Batch.join(chosen)
