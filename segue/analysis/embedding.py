"""One vector for each sequence, of every model of the library: what its hidden vectors are on average, at the first
element, at the last, or at both."""

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

NODES = 8192  # read at once
PIECE = 1024  # of a long sequence whose past a state holds


def reader(model: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """What gives the hidden vectors (B, N, D) of rows (B, N, ...), of which the first `lengths` (B,) elements are real.

    model: a `Stack` of any mixers and inputs, one way or both, a `ClozeModel`, the encoder of an encoder-decoder or of
        a `PointerNetwork`, the backbone of a `Classifier`, a `PointProcess` (rows hold types and gaps), or anything
        `Decodable` that tells its hidden vectors.
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
    """(first, end, new) of what is read at once of n elements: each is new in one piece, and all but those of the first
    piece have half a context before them there."""
    done = n if context is None else min(n, context)
    yield 0, done, 0
    while context is not None and done < n:
        end = min(n, done + max(1, context // 2))
        yield max(0, end - context), end, done
        done = end


def grouped(lengths: np.ndarray) -> Iterator[np.ndarray]:
    """Indices of rows of these lengths, the longest first, as many at once as NODES holds."""
    order, at = np.argsort(-lengths, kind="stable"), 0
    while at < len(order):
        size = max(1, NODES // max(1, int(lengths[order[at]])))
        yield order[at : at + size]
        at += size


class _Pooled:
    """The vectors of sequences of which `sizes` (N,) elements count, piece by piece."""

    def __init__(self, pool: str, sizes: np.ndarray) -> None:
        self.pool, self.sizes, self.vectors = pool, sizes, np.zeros((len(sizes), 0), np.float32)

    def add(self, hidden: Tensor, row: np.ndarray, begin: np.ndarray, end: np.ndarray, place: np.ndarray) -> None:
        """hidden (B, N, D): its elements from `begin` to `end` are those of sequence `row` from `place` on, (B,)
        each."""
        if not self.vectors.shape[1]:
            self.vectors = np.zeros((len(self.sizes), hidden.shape[2] * (1 + (self.pool == "ends"))), np.float32)
        if self.pool == "mean":
            at = np.arange(hidden.shape[1])
            live = torch.from_numpy((begin[:, None] <= at) & (at < end[:, None])).to(hidden.device)
            total = torch.where(live[..., None], hidden.float(), 0.0).sum(1)
            np.add.at(self.vectors, row, total.cpu().numpy() / self.sizes[row, None])
            return
        width, last = hidden.shape[2], place + end - begin == self.sizes[row]
        wanted = [] if self.pool == "first" else [(last, end - 1, self.vectors.shape[1] - width)]
        if self.pool != "last":
            wanted.append((place == 0, begin, 0))
        for chosen, where, column in wanted:
            found = hidden[torch.from_numpy(np.flatnonzero(chosen)), torch.from_numpy(where[chosen])]
            self.vectors[row[chosen], column : column + width] = found.float().cpu().numpy()


@torch.no_grad()
def embed(model: Any, rows: Sequence[np.ndarray], pool: str = "", context: int | None = None,
          begin: int | None = None, meter: Meter = lambda done, note="": None) -> np.ndarray:
    """(N, D) float32, or (N, 2 D) of both ends: a vector for each row, the same alone and among others up to rounding.

    rows: ids (n,), or what else a model reads, (n, C). pool: "mean" of the hidden vectors (the default), that of the
        "first" or the "last" element, or of both "ends", which is what a model that reads both ways knows of the whole.
        A model that makes a vector of its own (`SequenceAutoencoder`) gives that one by default.
    context: elements that the model can read at once (default: all); of longer rows, pieces that overlap by half are
        read, unless a state holds all of the past. begin: an id to put before each row; it counts only where a row is
        empty. meter: is told how many elements are done.
    """
    own = getattr(model, "vectors", None) if not pool else None
    if pool not in ("", *POOLS):
        raise SegueError(f"pool '{pool}' is unknown: choose {', '.join(POOLS)}")
    if isinstance(model, nn.Module):
        model.eval()
    table = [row if begin is None else np.concatenate([[begin], row]) for row in map(np.asarray, rows)]
    lengths = np.array([len(row) for row in table], np.int64)
    if not lengths.all():
        raise SegueError(f"sequence {int(np.argmin(lengths)) + 1} is empty: there is nothing to embed")
    done = 0
    if own is not None:
        found: list[tuple[np.ndarray, np.ndarray]] = []
        for part in grouped(lengths):
            tokens = _rows([table[i] for i in part], model)
            found.append((part, own(tokens, torch.from_numpy(lengths[part]).to(tokens.device)).float().cpu().numpy()))
            meter(done := done + int(lengths[part].sum()))
        return np.concatenate([each for _, each in found])[np.concatenate([part for part, _ in found]).argsort()]
    skip = np.minimum(lengths - 1, int(begin is not None))  # what is put before a row counts where it is alone
    pooled, read = _Pooled(pool or "mean", lengths - skip), reader(model)
    goes_on = has_constant_state(model) and not (model.config.pool or model.config.inputs) and \
        all(block.mixer.causal for block in model.blocks)
    alone = np.flatnonzero(lengths > PIECE) if goes_on else np.zeros(0, np.int64)
    for i in alone:
        state = model.init_state(1)
        for first in range(0, len(table[i]), PIECE):
            tokens = _rows([table[i][first : first + PIECE]], model)
            hidden = model.extend(tokens, state, at=torch.zeros_like(tokens[:, :1])).hidden
            state.commit()
            inside = max(0, int(skip[i]) - first)
            pooled.add(hidden, np.array([i]), np.array([inside]), np.array([hidden.shape[1]]),
                       np.array([first + inside - skip[i]]))
            meter(done := done + hidden.shape[1])
    others = np.setdiff1d(np.arange(len(table)), alone)
    spans = np.array([(i, *piece) for i in others.tolist()
                      for piece in pieces(int(lengths[i]), None if goes_on else context)], np.int64).reshape(-1, 4)
    for part in grouped(spans[:, 2] - spans[:, 1]):
        row, first, end, new = spans[part].T
        tokens = _rows([table[i][a:b] for i, a, b in zip(row, first, end)], model)
        counts = np.maximum(new, skip[row])
        pooled.add(read(tokens, torch.from_numpy(end - first).to(tokens.device)), row, counts - first, end - first,
                   counts - skip[row])
        meter(done := done + int((end - new).sum()))
    return pooled.vectors


def _rows(rows: Sequence[np.ndarray], model: Any) -> Tensor:
    """Rows padded to one length, on the model's device."""
    kind = np.int64 if rows[0].dtype.kind in "iu" else rows[0].dtype
    table = np.zeros((len(rows), max(map(len, rows)), *rows[0].shape[1:]), kind)
    for place, row in zip(table, rows):
        place[: len(row)] = row
    device = getattr(model, "device", "cpu")
    if isinstance(model, nn.Module):
        device = next(chain(model.parameters(), model.buffers())).device
    return torch.from_numpy(table).to(device)
