"""One vector for each sequence, from any model of the library: its hidden vectors pooled by their mean, the first, the
last, or both ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from segue.errors import SegueError
from segue.mixers.layout import Layout
from segue.models import Stack
from segue.models.autoencoder import POOLS
from segue.models.classify import Classifier
from segue.models.cloze import ClozeModel
from segue.models.point_process import History, PointProcess
from segue.models.pointer import PointerNetwork
from segue.models.seq2seq import encode_source
from segue.models.stack import has_constant_state
from segue.progress import Meter

NODES = 8192  # elements of a batch, at most
PIECE = 1024  # elements of a long sequence read at a time by a model whose state holds the past


def reader(model: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """A function (rows, lengths) -> hidden vectors (B, N, D), for rows (B, N, ...) padded behind `lengths` (B,).

    model: a `Stack` of any mixers and inputs, one way or both, a `ClozeModel`, the encoder of an encoder-decoder or of
        a `PointerNetwork`, the backbone of a `Classifier`, a `PointProcess` (rows hold types and gaps), or anything
        `Decodable` that returns its hidden vectors.
    """
    if isinstance(model, Classifier):
        return reader(model.backbone)
    if isinstance(model, PointProcess):
        return lambda rows, lengths: model.hidden_after(History(rows[..., 0].long(), rows[..., 1]))
    if isinstance(model, PointerNetwork):
        kind = model.stop.dtype if model.inputs else torch.long
        return lambda rows, lengths: model.encode(rows.to(kind), lengths)[0]
    if hasattr(model, "encode"):
        return lambda rows, lengths: model.encode(rows, lengths)
    if isinstance(model, Stack | ClozeModel):
        stack = model if isinstance(model, Stack) else model.stack
        if all(block.mixer.causal for block in stack.blocks):  # padding behind a row changes nothing in it
            return lambda rows, lengths: stack.hidden(rows, Layout.of(rows))
        return lambda rows, lengths: encode_source(stack, rows, lengths)
    if not hasattr(model, "extend"):
        raise SegueError(f"a {type(model).__name__} has no hidden vectors to make one of a sequence of")
    return lambda rows, lengths: model.extend(rows, model.init_state(len(rows)), at=lengths[:, None] - 1).hidden


def pieces(n: int, context: int | None) -> Iterator[tuple[int, int, int]]:
    """(start, end, new) of overlapping windows over n elements, of at most `context` (None: one window). Each element
    is at or behind `new` in exactly one window; in all but the first window, half a context precedes `new`."""
    done = n if context is None else min(n, context)
    yield 0, done, 0
    while context is not None and done < n:
        end = min(n, done + max(1, context // 2))
        yield max(0, end - context), end, done
        done = end


def length_batches(lengths: np.ndarray) -> Iterator[np.ndarray]:
    """Batches of row indices, the longest rows first, of at most NODES padded elements."""
    order, start = np.argsort(-lengths, kind="stable"), 0
    while start < len(order):
        size = max(1, NODES // max(1, int(lengths[order[start]])))
        yield order[start : start + size]
        start += size


class _Pooling:
    """Accumulates the pooled vectors of N sequences from pieces of them. sizes: (N,), elements of each."""

    def __init__(self, pool: str, sizes: np.ndarray) -> None:
        self.pool, self.sizes, self.vectors = pool, sizes, np.zeros((len(sizes), 0), np.float32)

    def add(self, hidden: Tensor, row: np.ndarray, begin: np.ndarray, end: np.ndarray, place: np.ndarray) -> None:
        """Add pieces: hidden (B, N, D), of which [begin, end) are the elements of sequence `row` from `place` on; (B,)
        each."""
        if not self.vectors.shape[1]:
            self.vectors = np.zeros((len(self.sizes), hidden.shape[2] * (1 + (self.pool == "ends"))), np.float32)
        if self.pool == "mean":
            index = np.arange(hidden.shape[1])
            inside = torch.from_numpy((begin[:, None] <= index) & (index < end[:, None])).to(hidden.device)
            total = torch.where(inside[..., None], hidden.float(), 0.0).sum(1)
            np.add.at(self.vectors, row, total.cpu().numpy() / self.sizes[row, None])
            return
        width, has_last = hidden.shape[2], place + end - begin == self.sizes[row]
        selections = [] if self.pool == "first" else [(has_last, end - 1, self.vectors.shape[1] - width)]
        if self.pool != "last":
            selections.append((place == 0, begin, 0))
        for mask, index, column in selections:
            chosen = hidden[torch.from_numpy(np.flatnonzero(mask)), torch.from_numpy(index[mask])]
            self.vectors[row[mask], column : column + width] = chosen.float().cpu().numpy()


@torch.no_grad()
def embed(model: Any, rows: Sequence[np.ndarray], pool: str = "", context: int | None = None,
          begin: int | None = None, meter: Meter = lambda done, note="": None) -> np.ndarray:
    """(N, D) float32, or (N, 2 D) of both ends: a vector for each row, independent of the other rows up to rounding.

    rows: ids (n,), or other inputs of the model (n, C). pool: "mean" of the hidden vectors (the default), the "first"
        or the "last" one, or both "ends", for models that read both ways. A model with vectors of its own
        (`SequenceAutoencoder`) gives those by default.
    context: elements that the model can read at once (default: all). Longer rows are read in windows that overlap by
        half, unless the model's state holds all of the past. begin: an id to put before each row; its vector counts
        only for empty rows. meter: called with the number of elements done.
    """
    if pool not in ("", *POOLS):
        raise SegueError(f"pool '{pool}' is unknown: choose {', '.join(POOLS)}")
    if isinstance(model, nn.Module):
        model.eval()
    table = [row if begin is None else np.concatenate([[begin], row]) for row in map(np.asarray, rows)]
    lengths = np.array([len(row) for row in table], np.int64)
    if not lengths.all():
        raise SegueError(f"sequence {int(np.argmin(lengths)) + 1} is empty: there is nothing to embed")
    if not pool and hasattr(model, "vectors"):
        return _own_vectors(model, table, lengths, meter)
    skip = np.minimum(lengths - 1, int(begin is not None))  # `begin` counts only where it is alone
    pooling, read = _Pooling(pool or "mean", lengths - skip), reader(model)
    streams = has_constant_state(model) and not (model.config.pool or model.config.inputs) and \
        all(block.mixer.causal for block in model.blocks)
    streamed = np.flatnonzero(lengths > PIECE) if streams else np.zeros(0, np.int64)
    done = 0
    for i in streamed:
        _stream_row(model, int(i), table[i], int(skip[i]), pooling, meter, done)
        done += len(table[i])
    others = np.setdiff1d(np.arange(len(table)), streamed)
    spans = np.array([(i, *piece) for i in others.tolist()
                      for piece in pieces(int(lengths[i]), None if streams else context)], np.int64).reshape(-1, 4)
    for batch in length_batches(spans[:, 2] - spans[:, 1]):
        row, start, end, new = spans[batch].T
        tokens = _padded([table[i][a:b] for i, a, b in zip(row, start, end)], model)
        first = np.maximum(new, skip[row])  # that counts, in the row
        pooling.add(read(tokens, torch.from_numpy(end - start).to(tokens.device)), row, first - start, end - start,
                    first - skip[row])
        meter(done := done + int((end - new).sum()))
    return pooling.vectors


def _own_vectors(model: Any, rows: Sequence[np.ndarray], lengths: np.ndarray, meter: Meter) -> np.ndarray:
    """(N, D) of a model whose `vectors` method encodes padded rows and their lengths."""
    order, vectors, done = list[np.ndarray](), list[np.ndarray](), 0
    for batch in length_batches(lengths):
        tokens = _padded([rows[i] for i in batch], model)
        order.append(batch)
        vectors.append(model.vectors(tokens, torch.from_numpy(lengths[batch]).to(tokens.device)).float().cpu().numpy())
        meter(done := done + int(lengths[batch].sum()))
    return np.concatenate(vectors)[np.concatenate(order).argsort()]


def _stream_row(model: Any, number: int, row: np.ndarray, skip: int, pooling: _Pooling, meter: Callable[[int], Any],
                done: int) -> None:
    """Pool one long row, PIECE elements at a time, by a model whose state holds the past; the first `skip` elements are
    read only. done: elements of other rows that the meter counts already."""
    state = model.init_state(1)
    for start in range(0, len(row), PIECE):
        tokens = _padded([row[start : start + PIECE]], model)
        hidden = model.extend(tokens, state, at=torch.zeros_like(tokens[:, :1])).hidden
        state.commit()
        begin = max(0, skip - start)
        pooling.add(hidden, np.array([number]), np.array([begin]), np.array([hidden.shape[1]]),
                    np.array([start + begin - skip]))
        meter(done + start + hidden.shape[1])


def _padded(rows: Sequence[np.ndarray], model: Any) -> Tensor:
    """Rows padded to one length, on the model's device."""
    dtype = np.int64 if rows[0].dtype.kind in "iu" else rows[0].dtype
    table = np.zeros((len(rows), max(map(len, rows)), *rows[0].shape[1:]), dtype)
    for target, row in zip(table, rows):
        target[: len(row)] = row
    device = getattr(model, "device", "cpu")
    if isinstance(model, nn.Module):
        device = next(chain(model.parameters(), model.buffers())).device
    return torch.from_numpy(table).to(device)
