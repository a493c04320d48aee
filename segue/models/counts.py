"""Count models: Markov models of any order, with back-off, Witten-Bell or Kneser-Ney smoothing, and a learned blend.

They are `Decodable` like every model: they draft, decode in trees and are mixed with networks (`segue.models.mixture`).
`CountModel` is the classical family. `BlendedCounts` adds the sequence's own past and learns how far each order is to
be believed. Both keep one sorted array of the training stream (`segue.kernels.counts`), whatever the orders.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segue.errors import SegueError
from segue.files import atomic_write, read_json, write_json
from segue.kernels import counts as kernel
from segue.models.base import Decoding, Output

SMOOTHINGS = {"none": kernel.MARKOV, "witten-bell": kernel.WITTEN_BELL, "kneser-ney": kernel.KNESER_NEY}


class TokenState:
    """The latest tokens of each row: all that a count model remembers. Satisfies `segue.models.base.Decoding`.

    past: (B, window + history) int32, newest last. known: (B,), how many of them are real.
    """

    def __init__(self, past: np.ndarray, known: np.ndarray, positions: Tensor, window: int) -> None:
        self.past, self.known, self.positions, self.window = past, known, positions, window
        self.pending: tuple[np.ndarray, np.ndarray | None] | None = None

    @classmethod
    def fresh(cls, batch: int, window: int, history: int) -> TokenState:
        return cls(np.zeros((batch, window + history), np.int32), np.zeros(batch, np.int64),
                   torch.zeros(batch, dtype=torch.long), window)

    @property
    def batch(self) -> int:
        return len(self.past)

    @property
    def whole(self) -> np.ndarray:
        """(B,) bool: the remembered tokens reach back to the start of the document."""
        return self.known == self.positions.numpy()

    def commit(self, path: Tensor | None = None, counts: Tensor | None = None) -> None:
        if self.pending is None:
            raise SegueError("nothing is pending: call extend before commit")
        tokens, parents = self.pending
        if path is None and parents is not None:
            raise SegueError("a draft tree is pending: say which path to commit")
        size = self.past.shape[1]
        past = np.empty_like(self.past)
        taken = np.full(self.batch, tokens.shape[1])
        if path is not None:
            taken = (path >= 0).sum(1).numpy()
        elif counts is not None:
            taken = counts.numpy()
        for b, n in enumerate(taken):
            new = tokens[b, :n] if path is None else tokens[b, path[b, :n].numpy()]
            past[b] = np.concatenate((self.past[b, min(n, size):], new[max(0, n - size):]))
        self.past, self.known = past, np.minimum(self.known + taken, size)
        self.positions = self.positions + torch.from_numpy(taken)
        self.pending = None

    def select(self, rows: Tensor) -> TokenState:
        index = rows.numpy()
        return TokenState(self.past[index], self.known[index], self.positions[rows], self.window)

    def rewind(self, n: int | Tensor) -> None:
        back = torch.as_tensor(n).expand(self.batch)
        positions = self.positions - back
        known = self.known - back.numpy()
        if (back < 0).any() or (positions < 0).any():
            raise SegueError(f"cannot rewind {back.tolist()} tokens at positions {self.positions.tolist()}")
        if (known < np.minimum(positions.numpy(), self.window)).any():
            raise SegueError(f"a count model can go back {self.past.shape[1] - self.window} tokens here, not "
                             f"{int(back.max())}: create the state with init_state(batch, history=N) for a larger N")
        self.past = np.stack([np.roll(row, k) for row, k in zip(self.past, back.tolist())])
        self.known, self.positions, self.pending = known, positions, None

    def snapshot(self) -> TokenState:
        # arrays are replaced, never written into, so a copy may share them
        return TokenState(self.past, self.known, self.positions, self.window)

    def restore(self, snapshot: Decoding) -> None:
        assert isinstance(snapshot, TokenState)
        self.past, self.known, self.positions = snapshot.past, snapshot.known, snapshot.positions
        self.pending = None


def mark_stream(documents: Iterable[Any], vocabulary: int) -> np.ndarray:
    """One int32 stream of documents (arrays of ids, or `segue.sequence.Sequence`), each after the mark `vocabulary`."""
    pieces = [np.array([vocabulary], np.int32)]
    for number, document in enumerate(documents):
        ids = np.asarray(getattr(document, "ids", document), np.int32)
        if ids.ndim != 1 or (ids.size and (ids.min() < 0 or ids.max() >= vocabulary)):
            raise SegueError(f"sequence {number} has ids outside 0..{vocabulary - 1}: "
                             "encode it with the codec the model was made for")
        if ids.size:
            pieces += [ids, pieces[0]]
    if len(pieces) == 1:
        raise SegueError("there is nothing to count: every sequence is empty")
    return np.concatenate(pieces[:-1])


class _Counted:
    """What all count models share: the sorted stream, the decodable protocol, files."""

    tables: kernel.Tables
    vocabulary: int
    window: int  # how many tokens back a prediction can depend on

    def _nodes(self, *args: Any) -> None:
        raise NotImplementedError

    def _document(self, ids: np.ndarray, begin: int, end: int, out: np.ndarray) -> None:
        raise NotImplementedError

    def init_state(self, batch: int, history: int = 0) -> TokenState:
        return TokenState.fresh(batch, self.window, history)

    def probabilities(self, tokens: Tensor, state: TokenState, parents: Tensor | None = None,
                      at: Tensor | None = None) -> np.ndarray:
        """As `extend`, giving probabilities (B, M, V) float64 instead of logits."""
        ids = tokens.numpy().astype(np.int32)
        tree = np.empty((1, 0), np.int64) if parents is None else np.ascontiguousarray(parents.numpy())
        nodes = np.broadcast_to(np.arange(ids.shape[1]), ids.shape) if at is None else at.numpy()
        out = np.empty((*nodes.shape, self.vocabulary))
        self._nodes(state.past, state.past.shape[1] - state.known, state.whole, ids, tree, parents is None,
                    np.ascontiguousarray(nodes), out)
        state.pending = (ids, None if parents is None else tree)
        return out

    def extend(self, tokens: Tensor, state: Decoding, parents: Tensor | None = None,
               at: Tensor | None = None) -> Output:
        """See `segue.models.base.Decodable.extend`; logits are log-probabilities, hidden is empty (B, N, 0)."""
        assert isinstance(state, TokenState)
        chances = self.probabilities(tokens, state, parents, at)
        return Output(torch.from_numpy(chances.clip(1e-30)).log().float(), torch.empty(*tokens.shape, 0))

    def predictions(self, sequence: Any) -> np.ndarray:
        """(n, V): the distribution of every element of one whole sequence, from the elements before it."""
        ids = np.asarray(getattr(sequence, "ids", sequence), np.int32)
        out = np.empty((ids.size, self.vocabulary))
        self._document(ids, 0, ids.size, out)
        return out

    def next(self, prefix: Any) -> np.ndarray:
        """(V,): the distribution of the element after a prefix (possibly empty) of a sequence."""
        ids = np.append(np.asarray(getattr(prefix, "ids", prefix), np.int32), np.int32(0))
        out = np.empty((1, self.vocabulary))
        self._document(ids, ids.size - 1, ids.size, out)
        return out[0]

    def log_probabilities(self, sequence: Any, piece: int = 1024) -> np.ndarray:
        """(n,): natural logarithm of the probability of each element given those before it."""
        ids = np.asarray(getattr(sequence, "ids", sequence), np.int32)
        found = np.empty(ids.size)
        for begin in range(0, ids.size, piece):
            end = min(begin + piece, ids.size)
            out = np.empty((end - begin, self.vocabulary))
            self._document(ids, begin, end, out)
            found[begin:end] = out[np.arange(end - begin), ids[begin:end]]
        return np.log(np.maximum(found, 1e-300))

    def _settings(self) -> dict[str, Any]:
        raise NotImplementedError

    def save(self, folder: str | Path, name: str = "counts") -> None:
        """Write NAME.json and NAME.safetensors into a folder: about 8 bytes for each training token."""
        from safetensors.numpy import save_file

        narrow = np.uint16 if self.vocabulary < 1 << 16 else np.int32
        arrays = {"stream": self.tables.stream.astype(narrow), "order": self.tables.order,
                  "common": self.tables.common, **self._arrays()}
        with atomic_write(Path(folder) / f"{name}.safetensors") as path:
            save_file(arrays, path)
        write_json(Path(folder) / f"{name}.json", self._settings())

    def _arrays(self) -> dict[str, np.ndarray]:
        return {}


def _load(folder: str | Path, name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    settings, path = read_json(Path(folder) / f"{name}.json"), Path(folder) / f"{name}.safetensors"
    try:
        return settings, load_file(path)
    except (OSError, SafetensorError) as error:
        raise SegueError(f"{path} cannot be read ({error}): was the folder copied whole?") from error


class CountModel(_Counted):
    """Markov model: the distribution of the next element from how often it followed the latest `order` ones.

    vocabulary: V, the end-of-sequence id included if there is one; whoever wants ends predicted puts that id into the
        sequences. order: k, 0 to 64. smoothing: "none", "witten-bell" (p_k = (c + t p_{k-1}) / (n + t)) or "kneser-ney"
        (interpolated; shorter contexts count distinct longer ones). start: the start of a sequence is itself seen, as
        one symbol before the first element (without it an order-k model predicts first elements from the unigram
        table). backoff: without smoothing, use the longest suffix that was seen (all-k-order Markov, AKOM) instead of
        exactly k elements (a uniform guess where those were never seen).
    discount: Kneser-Ney's, for every order (default: n1 / (n1 + 2 n2) of each order).

    Order 1 without smoothing is the directly-follows graph. Paper: next-element.
    """

    def __init__(self, vocabulary: int, order: int = 5, smoothing: str = "witten-bell", start: bool = True,
                 backoff: bool = True, discount: float | None = None) -> None:
        if smoothing not in SMOOTHINGS:
            raise SegueError(f"smoothing '{smoothing}' is unknown: choose {', '.join(SMOOTHINGS)}")
        if not 0 <= order <= 64 or vocabulary < 1:
            raise SegueError(f"a count model of order {order} over {vocabulary} symbols: choose an order of 0 to 64")
        self.vocabulary, self.order, self.smoothing, self.start, self.backoff = \
            vocabulary, order, smoothing, start, backoff
        self.discount = np.full(order + 1, np.nan if discount is None else discount)
        self.window = max(order, 1)

    @property
    def path(self) -> str:
        return f"counts of order {self.order}, {self.smoothing}"

    def fit(self, sequences: Iterable[Any]) -> CountModel:
        """Count sequences (arrays of ids or `Sequence`); what was counted before is replaced."""
        return self._with(kernel.build(mark_stream(sequences, self.vocabulary), self.vocabulary, max(self.order, 1)))

    def _with(self, tables: kernel.Tables) -> CountModel:
        self.tables = tables
        self.work = kernel.workspace(self.vocabulary, 0, self.order)
        if self.smoothing == "kneser-ney" and np.isnan(self.discount).any():
            few = np.empty((self.order + 1, 2))
            kernel.seen_once_and_twice(self.tables, self.order, few)
            self.discount = np.clip((few[:, 0] + 1) / (few[:, 0] + 2 * few[:, 1] + 2), 0.1, 0.95)
        return self

    def _plain(self) -> tuple[Any, ...]:
        return self.start, self.order, SMOOTHINGS[self.smoothing], self.backoff, self.discount, self.work

    def _nodes(self, past: np.ndarray, begins: np.ndarray, whole: np.ndarray, tokens: np.ndarray, parents: np.ndarray,
               chain: bool, at: np.ndarray, out: np.ndarray) -> None:
        kernel.plain_nodes(self.tables, past, begins, whole, tokens, parents, chain, at, *self._plain(), out)

    def _document(self, ids: np.ndarray, begin: int, end: int, out: np.ndarray) -> None:
        kernel.plain_document(self.tables, ids, begin, end, *self._plain(), out)

    def _settings(self) -> dict[str, Any]:
        return {"kind": "count model", "vocabulary": self.vocabulary, "order": self.order,
                "smoothing": self.smoothing, "start": self.start, "backoff": self.backoff}

    def _arrays(self) -> dict[str, np.ndarray]:
        return {"discount": self.discount}

    @classmethod
    def load(cls, folder: str | Path, name: str = "counts") -> CountModel:
        settings, arrays = _load(folder, name)
        settings.pop("kind", None)
        model = cls(**settings)
        model.discount = arrays["discount"]
        return model._with(kernel.restore(arrays["stream"], arrays["order"], arrays["common"], model.vocabulary,
                                          max(model.order, 1)))


def documents_bits(model: _Counted, documents: Sequence[Any]) -> float:
    """Total cost of documents in bits, every element scored once from those before it in its own document."""
    return -sum(float(model.log_probabilities(document).sum()) for document in documents) / np.log(2)
