"""`embed`: one vector per sequence, for search, clustering and classification."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from segue.analysis.embedding import POOLS
from segue.analysis.embedding import embed as vectors_of
from segue.errors import SegueError
from segue.files import atomic_write
from segue.models.base import begin_token
from segue.models.cloze import ClozeModel
from segue.models.point_process import PointProcess
from segue.objectives import ANY_ORDER
from segue.progress import progress
from segue.training.timed import EventStore
from segue.verbs.inputs import describe_unknown, nothing_known_error, unknown_share

if TYPE_CHECKING:
    from segue.data import Data
    from segue.verbs.fitted import Fitted


@dataclass
class Embeddings:
    """Vectors of N sequences. vectors: (N, D) float32. names: where each sequence came from. pool: how the vectors of
    its elements were combined. path: the code that ran. notes: remarks on the data."""

    vectors: np.ndarray
    names: list[str]
    pool: str
    path: str
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)

    def save(self, path: str | Path) -> None:
        """Write a file, atomically, in the format of its ending: .npz (arrays `vectors` and `names`, without pickle) or
        .parquet (columns `name` and `vector`)."""
        ending = Path(path).suffix.lower()
        if ending not in WRITERS:
            raise SegueError(f"{path}: vectors are written as {' or '.join(WRITERS)}; give the file one of these "
                             "endings")
        with atomic_write(path) as temporary:
            WRITERS[ending](self, temporary)

    def __str__(self) -> str:
        count, width = self.vectors.shape
        return "\n".join([f"{count:,} vectors of {width} numbers ({self.pool}), run by: {self.path}", *self.notes])


def _npz(embeddings: Embeddings, path: Path) -> None:
    with open(path, "wb") as handle:
        np.savez(handle, vectors=embeddings.vectors, names=np.array(embeddings.names, dtype=str))


def _parquet(embeddings: Embeddings, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    flat = pa.array(embeddings.vectors.reshape(-1))
    vectors = pa.FixedSizeListArray.from_arrays(flat, embeddings.vectors.shape[1])
    parquet.write_table(pa.table({"name": pa.array(embeddings.names, pa.string()), "vector": vectors}), path)


WRITERS: dict[str, Callable[[Embeddings, Path], None]] = {".npz": _npz, ".parquet": _parquet}


def embed(model: Fitted, data: Data, pool: str = "", quiet: bool = False) -> Embeddings:
    """One vector per record of `data`, in their order.

    pool: "mean" of the hidden states over the elements (default), the hidden state of the "first" or the "last"
        element, or of both "ends". Hidden states are taken after the network's last norm; counts mixed with it are not
        used. Records longer than the context are read in pieces that overlap by half, or with a carried state.
    """
    model.check_kind(data)
    network: Any = model.model
    if pool not in ("", *POOLS):
        raise SegueError(f"pool '{pool}' is unknown: choose {', '.join(POOLS)}")
    if not len(data):
        raise SegueError("there is no sequence to embed: give one at least")
    if (share := unknown_share(model.codec, data)) == 1:
        raise nothing_known_error(data)
    notes = [describe_unknown(share, data)] if share else []
    begin, context = model.codec.bos, model.context
    if isinstance(network, PointProcess):
        store = EventStore(data.encode(model.codec, boundary=False))
        flat = np.stack([store.tokens, store.channels["gap"]], 1).astype(np.float64)
        rows, begin = np.split(flat, store.offsets[1:-1]), None
    elif begin_token(network) is not None:  # an encoder-decoder: its encoder reads sequences as its codec frames them
        rows, begin = [model.codec.surrounded(obj) for obj in data.objects()], None
    else:
        encoded = data.encode(model.codec, boundary=False)
        rows = np.split(np.asarray(encoded.tokens), encoded.offsets[1:-1])
    if model.objective in ANY_ORDER:
        begin = None
    if isinstance(network, ClozeModel):
        context = network.length
    if begin is None and (empty := [i for i, row in enumerate(rows) if not len(row)]):
        raise SegueError(f"{data.name(empty[0])}: the sequence is empty, and this model has nothing that begins one: "
                         "leave it out")
    with progress("embedding", sum(map(len, rows)), quiet=quiet) as meter:
        vectors = vectors_of(network, rows, pool, context, begin, meter)
    return Embeddings(vectors, [data.name(i) for i in range(len(data))], pool or "mean", network.path
                      if hasattr(network, "path") else network.stack.path, notes)
