"""Records in Arrow batches: a `Writer` collects them, `Batch` and `BatchParts` are views of them and of parts of
them."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from segue.data.parts import gather, to_offsets
from segue.errors import SegueError
from segue.kinds.base import Kind, Record

BATCH = 1 << 23  # bytes of one Arrow batch
MEMORY = 1 << 30  # bytes held in memory, beyond which a data set goes to a temporary folder
PROGRESS_BYTES = 1 << 26  # size of data from which on a progress bar is shown


class Batch:
    """Some thousand records: flat values with offsets, as zero-copy views of an Arrow batch."""

    def __init__(self, batch: pa.RecordBatch, storage: str) -> None:
        self.names = batch.column("name")
        self.offsets, self.values = _offsets_and_values(batch.column("object"), storage != "items")
        self.sizes = np.diff(self.offsets)
        self.channels = {column.removeprefix("channel:"): _offsets_and_values(batch.column(column), False)
                         for column in batch.schema.names if column.startswith("channel:")}

    def __len__(self) -> int:
        return len(self.sizes)

    def channel(self, name: str) -> np.ndarray:
        """A channel aligned with the batch's elements: (N,), or (N, w) if an entry has w numbers."""
        offsets, values = self.channels[name]
        values = values[offsets[0] : offsets[-1]]
        elements = int(self.offsets[-1] - self.offsets[0])
        return values if len(values) == elements else values.reshape(elements, -1)


@dataclass(frozen=True)
class BatchParts:
    """Parts of records of one batch. rows: (n,) records in the batch; starts, stops: (n,) ranges of their elements."""

    batch: Batch
    rows: np.ndarray
    starts: np.ndarray
    stops: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        return self.stops - self.starts

    @property
    def begins(self) -> np.ndarray:
        """(n,) where each part begins in the values of the batch."""
        return self.batch.offsets[self.rows] + self.starts

    @property
    def begin_cut(self) -> np.ndarray:
        """(n,) bool: whether the begin of the record is cut off."""
        return self.starts != 0

    @property
    def end_cut(self) -> np.ndarray:
        """(n,) bool: whether the end of the record is cut off."""
        return self.stops != self.batch.sizes[self.rows]

    def values(self) -> np.ndarray:
        """The concatenated elements of all parts; a view if they are contiguous."""
        return gather(self.batch.values, self.begins, self.lengths)

    def parts(self) -> Iterator[np.ndarray]:
        """Views of the elements of each part."""
        for begin, length in zip(self.begins.tolist(), self.lengths.tolist()):
            yield self.batch.values[begin : begin + length]

    def channel(self, name: str) -> np.ndarray:
        """A channel of all parts, aligned with `values()`."""
        return gather(self.batch.channel(name), self.begins - self.batch.offsets[0], self.lengths)

    def names(self) -> pa.Array:
        """(n,) names of the parts; with start and stop if a part is not the whole record."""
        names = self.batch.names.take(self.rows)
        cut = self.begin_cut | self.end_cut
        if not cut.any():
            return names
        return pa.array([f"{name}[{start}:{stop}]" if is_cut else name for name, start, stop, is_cut
                         in zip(names.to_pylist(), self.starts, self.stops, cut)], pa.string())


class Writer:
    """Collects records into Arrow batches: in memory, or in an Arrow file (at once, or when `memory` is exceeded).

    elements, fingerprint: as in `Data`, valid after `close`. keep: the temporary folder of the file, if there is one.
    """

    def __init__(self, kind: Kind, file: Path | None = None, memory: int = MEMORY) -> None:
        self.kind = kind
        self.file = file
        self.memory = memory
        self.keep: tempfile.TemporaryDirectory[str] | None = None
        self.count = 0  # records
        self.total = 0  # elements
        self._batches: list[pa.RecordBatch] = []
        self._bytes = 0  # of all batches
        self._sink: pa.ipc.RecordBatchFileWriter | None = None
        self._digest = hashlib.blake2b(kind.name.encode(), digest_size=16)
        self._codes: dict[Any, int] = {}
        self._types: dict[str, np.dtype] | None = None  # of the channels, as the first record has them
        self._clear()

    def _clear(self) -> None:
        self._names: list[str] = []
        self._objects: list[Any] = []
        self._values: dict[str, list[np.ndarray]] = {name: [] for name in self._types or ()}
        self._size = 0

    @property
    def elements(self) -> list[Any] | None:
        return list(self._codes) if self.kind.storage == "items" else None

    @property
    def fingerprint(self) -> str:
        return self._digest.hexdigest()

    def add(self, record: Record) -> None:
        """Add a record; a SegueError if the types of its items or channels differ from those of earlier records."""
        obj = record.object
        if self.kind.storage == "letters":
            obj = obj.encode("ascii")
        elif self.kind.storage == "items":
            obj = self._items(obj, record.name)
        self._add_channels(record)
        self._names.append(record.name.encode("utf-8", "backslashreplace").decode())
        self._objects.append(obj)
        self._size += len(obj) + 64
        self.count += 1
        self.total += len(obj)
        if self._size >= BATCH:
            self._flush()

    def _add_channels(self, record: Record) -> None:
        if self._types is None:
            self._types = {name: _channel_array(values).dtype for name, values in record.channels.items()}
            self._clear()
        if record.channels.keys() != self._types.keys():
            raise SegueError(f"record '{record.name}' has the channels {sorted(record.channels)}, others have "
                             f"{sorted(self._types)}: give all records the same")
        for name, values in record.channels.items():
            array, kind = _channel_array(values), self._types[name]
            column = array.astype(kind, copy=False)
            if kind.kind in "iu" and not np.array_equal(column, array):
                raise SegueError(f"record '{record.name}': channel '{name}' holds numbers that are no {kind}, which "
                                 "the first record's are: give all records one type")
            if len(column) != len(record):
                raise SegueError(f"record '{record.name}': channel '{name}' has {len(column)} entries for "
                                 f"{len(record)} elements")
            self._values[name].append(column)
            self._size += column.nbytes

    def _items(self, items: Iterable[Any], name: str) -> np.ndarray:
        items = list(items)
        codes = self._codes
        try:
            return np.fromiter(map(codes.__getitem__, items), dtype=np.int32, count=len(items))
        except (KeyError, TypeError):  # some items are new
            pass
        for item in items:
            item = item.item() if isinstance(item, np.generic) else item
            item_type = str if not codes else type(next(iter(codes)))
            if type(item) is not item_type and not (not codes and type(item) is int):
                raise SegueError(f"record '{name}': items are all strings or all whole numbers, in every record alike")
            codes.setdefault(item, len(codes))
        return np.fromiter(map(codes.__getitem__, items), dtype=np.int32, count=len(items))

    def _flush(self) -> None:
        if not self._names:
            return
        # Names of entities are part of the fingerprint, paths of files are not.
        has_items = self.kind.storage == "items"
        columns = {"name": pa.array(self._names, pa.string()),
                   "object": _list_column(self._objects) if has_items else pa.array(self._objects, pa.large_binary())}
        columns |= {f"channel:{name}": _list_column(parts) for name, parts in self._values.items()}
        batch = pa.RecordBatch.from_pydict(columns)
        for column in batch.columns[0 if has_items else 1 :]:
            for buffer in column.buffers():
                if buffer is not None:
                    self._digest.update(buffer)
        self._bytes += batch.nbytes
        self._clear()
        if self._sink is None and self.file is None and self._bytes <= self.memory:
            self._batches.append(batch)
            return
        try:
            if self._sink is None:
                if self.file is None:
                    self.keep = tempfile.TemporaryDirectory(prefix="segue-")
                    self.file = Path(self.keep.name) / "records.arrow"
                self._sink = pa.ipc.new_file(str(self.file), batch.schema)
                for earlier in self._batches:
                    self._sink.write_batch(earlier)
                self._batches = []
            self._sink.write_batch(batch)
        except OSError as error:
            raise SegueError(f"cannot write {self.file or tempfile.gettempdir()} ({error}); free some space, or set "
                             "TMPDIR to a place that has it") from error

    def close(self) -> list[pa.RecordBatch]:
        """Finish writing and return all batches, memory-mapped if they are in a file."""
        self._flush()
        if self._sink is not None and self.file is not None:
            self._sink.close()
            self._batches = map_batches(self.file)
        self._digest.update(json.dumps(self.elements).encode())
        return self._batches


def map_batches(file: Path) -> list[pa.RecordBatch]:
    """The batches of an Arrow file, memory-mapped and checked."""
    reader = pa.ipc.open_file(pa.memory_map(str(file)))
    batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
    for batch in batches:
        batch.validate(full=True)  # else a damaged file could be read past its end
    return batches


def _offsets_and_values(array: pa.Array, packed: bool) -> tuple[np.ndarray, np.ndarray]:
    """Offsets (n + 1,) and flat values of a column of byte strings (packed) or of lists."""
    offsets = np.frombuffer(array.buffers()[1], dtype=np.int64)[array.offset : array.offset + len(array) + 1]
    if not packed:
        return offsets, array.values.to_numpy(zero_copy_only=True)
    data = array.buffers()[2]
    return offsets, np.frombuffer(data, dtype=np.uint8) if data is not None else np.zeros(0, dtype=np.uint8)


def _list_column(parts: list[np.ndarray]) -> pa.Array:
    """A column of lists; parts with two axes are flattened."""
    offsets = to_offsets(np.array([part.size for part in parts]))
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate([p.reshape(-1) for p in parts])))


def _channel_array(values: Any) -> np.ndarray:
    array = np.asarray(values)
    if array.dtype == bool:
        return array.astype(np.uint8)
    if array.dtype.kind not in "iuf":
        raise SegueError(f"a channel holds numbers, not {array.dtype}")
    return array
