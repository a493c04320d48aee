"""Data sets: what `segue.read` gives and what training takes.

A `Data` holds the records of one kind in Arrow batches, in memory or mapped from a folder, so a corpus may be larger
than memory. `Data.encode` turns it into a `TokenStore`: flat, memory-mapped token ids with offsets, which is all that
training touches. Nothing here imports torch.
"""

from __future__ import annotations

import glob
import hashlib
import inspect
import json
import os
import tempfile
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from segue.errors import SegueError
from segue.files import atomic_folder, read_json, write_json
from segue.kinds import KINDS
from segue.kinds.base import Kind, Problem, Problems, Record, bare, head_of
from segue.kinds.codecs import shown
from segue.progress import progress
from segue.sequence import Sequence

if TYPE_CHECKING:
    from segue.kinds.codecs import Codec

FORMAT = "segue data 1"
STORE = "segue tokens 1"
BATCH = 1 << 23  # bytes of one Arrow batch
MEMORY = 1 << 30  # bytes kept in memory before a data set goes to a temporary folder
PART = 32  # elements of a block at least, where so few are cut into blocks: shorter ones say nothing of a sequence
MANY = 10  # files given one by one are taken for a pattern from here on
SHOWN = 1 << 26  # bytes from which on progress is shown
SKIPPED = {"readme", "license", "licence", "copying", "notice", "checksums", "sha256sums"}  # beside the data, not data


class _Batch:
    """Some thousand records: flat values with offsets, as zero-copy views of an Arrow batch."""

    def __init__(self, batch: pa.RecordBatch, storage: str) -> None:
        self.arrow = batch
        self.names = batch.column("name")
        self.offsets, self.values = _ragged(batch.column("object"), storage != "items")
        self.sizes = np.diff(self.offsets)
        self.channels = {
            column.removeprefix("channel:"): _ragged(batch.column(column), False)
            for column in batch.schema.names
            if column.startswith("channel:")
        }

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def flat_channel(self, name: str) -> np.ndarray:
        """One channel, aligned with the batch's own elements; entries wider than one number have a second axis."""
        offsets, values = self.channels[name]
        values = values[offsets[0] : offsets[-1]]
        elements = int(self.offsets[-1] - self.offsets[0])
        return values if len(values) == elements else values.reshape(elements, -1)

    def channel(self, name: str, row: int, start: int, stop: int) -> np.ndarray:
        first = int(self.offsets[row] - self.offsets[0])
        return self.flat_channel(name)[first + start : first + stop]


def _ragged(array: pa.Array, packed: bool) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.frombuffer(array.buffers()[1], dtype=np.int64)[array.offset : array.offset + len(array) + 1]
    if packed:
        data = array.buffers()[2]
        values = np.frombuffer(data, dtype=np.uint8) if data is not None else np.zeros(0, dtype=np.uint8)
        return offsets, values
    return offsets, array.values.to_numpy(zero_copy_only=True)


class _Writer:
    """Collects records into Arrow batches: in memory, or in an Arrow file (at once, or when `memory` is exceeded)."""

    def __init__(self, kind: Kind, file: Path | None = None, memory: int = MEMORY) -> None:
        self.kind = kind
        self.batches: list[pa.RecordBatch] = []
        self.memory = memory
        self.kept = 0
        self.folder: tempfile.TemporaryDirectory[str] | None = None
        self.file = file
        self.sink: pa.ipc.RecordBatchFileWriter | None = None
        self.digest = hashlib.blake2b(kind.name.encode(), digest_size=16)
        self.codes: dict[Any, int] = {}
        self.count = 0
        self.total = 0
        self.channels: dict[str, Any] | None = None
        self._clear()

    def _clear(self) -> None:
        self.names: list[str] = []
        self.objects: list[Any] = []
        self.values: dict[str, list[np.ndarray]] = {name: [] for name in self.channels or ()}
        self.size = 0

    def add(self, record: Record) -> None:
        obj = record.object
        if self.kind.storage == "letters":
            obj = obj.encode("ascii")
        elif self.kind.storage == "items":
            obj = self._items(obj, record.name)
        if self.channels is None:
            self.channels = {name: _column(values).dtype for name, values in record.channels.items()}
            self.values = {name: [] for name in self.channels}
        if record.channels.keys() != self.channels.keys():
            raise SegueError(
                f"record '{record.name}' has the channels {sorted(record.channels)}, others have "
                f"{sorted(self.channels)}: give all records the same"
            )
        for name, values in record.channels.items():
            column = _column(values)
            if len(column) != len(record.object):
                raise SegueError(
                    f"record '{record.name}': channel '{name}' has {len(column)} entries for "
                    f"{len(record.object)} elements"
                )
            column = column.astype(self.channels[name], copy=False)
            self.values[name].append(column)
            self.size += column.nbytes
        self.names.append(record.name.encode("utf-8", "backslashreplace").decode())
        self.objects.append(obj)
        self.size += len(obj) + 64
        self.count += 1
        self.total += len(obj)
        if self.size >= BATCH:
            self.flush()

    def _items(self, items: Iterable[Any], name: str) -> np.ndarray:
        items = list(items)
        codes = self.codes
        try:
            return np.fromiter(map(codes.__getitem__, items), dtype=np.int32, count=len(items))
        except (KeyError, TypeError):  # some are new
            pass
        for item in items:
            item = item.item() if isinstance(item, np.generic) else item
            wanted = str if not codes else type(next(iter(codes)))
            if type(item) is not wanted and not (not codes and type(item) is int):
                raise SegueError(f"record '{name}': items are all strings or all whole numbers, in every record alike")
            codes.setdefault(item, len(codes))
        return np.fromiter(map(codes.__getitem__, items), dtype=np.int32, count=len(items))

    def flush(self) -> None:
        if not self.names:
            return
        if self.kind.storage == "items":
            lengths = np.array([len(obj) for obj in self.objects])
            objects = _lists(lengths, np.concatenate(self.objects))
        else:
            objects = pa.array(self.objects, pa.large_binary())
        columns = {"name": pa.array(self.names, pa.string()), "object": objects}
        for name, parts in self.values.items():
            lengths = np.array([part.size for part in parts])
            columns[f"channel:{name}"] = _lists(lengths, np.concatenate([part.reshape(-1) for part in parts]))
        batch = pa.RecordBatch.from_pydict(columns)
        named = self.kind.storage == "items"  # an entity's name says something; where a file lies does not
        for column in batch.columns[0 if named else 1 :]:
            for buffer in column.buffers():
                if buffer is not None:
                    self.digest.update(buffer)
        self.kept += batch.nbytes
        self._clear()
        if self.sink is None and self.file is None and self.kept <= self.memory:
            self.batches.append(batch)
            return
        try:
            if self.sink is None:
                if self.file is None:
                    self.folder = tempfile.TemporaryDirectory(prefix="segue-")
                    self.file = Path(self.folder.name) / "records.arrow"
                self.sink = pa.ipc.new_file(str(self.file), batch.schema)
                for earlier in self.batches:
                    self.sink.write_batch(earlier)
                self.batches = []
            self.sink.write_batch(batch)
        except OSError as error:
            raise SegueError(
                f"cannot write {self.file or tempfile.gettempdir()} ({error}); free some space, or set TMPDIR to "
                "a place that has it"
            ) from error

    def elements(self) -> list[Any] | None:
        return list(self.codes) if self.kind.storage == "items" else None

    def finish(self, problems: Problems) -> Data:
        self.flush()
        if self.sink is not None:
            self.sink.close()
            self.batches = _mapped(self.file)
        self.digest.update(json.dumps(self.elements()).encode())
        return Data(
            self.kind,
            self.batches,
            elements=self.elements(),
            problems=problems,
            fingerprint=self.digest.hexdigest(),
            keep=self.folder,
        )


def _column(values: Any) -> np.ndarray:
    array = np.asarray(values)
    if array.dtype == bool:
        return array.astype(np.uint8)
    if array.dtype.kind not in "iuf":
        raise SegueError(f"a channel holds numbers, not {array.dtype}")
    return array


def _lists(lengths: np.ndarray, values: np.ndarray) -> pa.Array:
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values))


def _mapped(file: Path | None) -> list[pa.RecordBatch]:
    reader = pa.ipc.open_file(pa.memory_map(str(file)))
    batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
    for batch in batches:
        batch.validate(full=True)  # a damaged file must not be read past its end
    return batches


class Data:
    """Records of one kind. `len`, `data[i] -> Record` and iteration read lazily from Arrow batches.

    kind: the `Kind`. problems: what was stepped over while reading. fingerprint: a hash of everything in it.
    """

    def __init__(
        self,
        kind: Kind,
        batches: list[pa.RecordBatch],
        *,
        elements: list[Any] | None = None,
        problems: Problems | None = None,
        fingerprint: str = "",
        spans: np.ndarray | None = None,
        keep: Any = None,
        label: str = "",
    ) -> None:
        """Use `read`, `of` or `Data.open`. spans: (n, 3) record, start and stop of each part in this view, or None for
        all records whole. keep: what must live as long as this (a temporary folder)."""
        self.kind = kind
        self.problems = problems if problems is not None else Problems()
        self.fingerprint = fingerprint
        self._elements = elements
        self._items = np.array(elements, dtype=object) if elements is not None else None
        self._arrow = batches
        self._batches = [_Batch(batch, kind.storage) for batch in batches]
        self._firsts = np.cumsum([0, *(len(batch) for batch in self._batches)]).tolist()
        self._spans = spans
        self._keep = keep
        self._counts: dict[Any, int] | None = None
        whole = [batch.sizes for batch in self._batches]
        self._whole = np.concatenate(whole) if whole else np.zeros(0, dtype=np.int64)

    # -- what is in it

    def __len__(self) -> int:
        return len(self._whole) if self._spans is None else len(self._spans)

    @property
    def lengths(self) -> np.ndarray:
        """(len,) int64: elements of each record."""
        return self._whole if self._spans is None else self._spans[:, 2] - self._spans[:, 1]

    @property
    def total(self) -> int:
        """Number of elements (bytes, bases, residues, events) in all."""
        return int(self.lengths.sum())

    @property
    def channels(self) -> dict[str, np.dtype]:
        """Names and types of the side channels."""
        if not self._batches:
            return {}
        return {name: values.dtype for name, (_, values) in self._batches[0].channels.items()}

    def _where(self, i: int) -> tuple[_Batch, int, int, int]:
        if not -len(self) <= i < len(self):
            raise IndexError(f"record {i} of {len(self)}")
        i %= len(self)
        record, start, stop = (i, 0, int(self._whole[i])) if self._spans is None else map(int, self._spans[i])
        at = bisect_right(self._firsts, record) - 1
        return self._batches[at], record - self._firsts[at], start, stop

    def values(self, i: int) -> np.ndarray:
        """The elements of record `i` as stored: uint8 bytes or letters, or int32 codes into `elements`. Not a copy."""
        batch, row, start, stop = self._where(i)
        first = int(batch.offsets[row])
        return batch.values[first + start : first + stop]

    @property
    def elements(self) -> list[Any] | None:
        """The items that the codes of `values` stand for, or None where elements are bytes or letters."""
        return self._elements

    def _object(self, values: np.ndarray) -> Any:
        if self.kind.storage == "bytes":
            return values.tobytes()
        if self.kind.storage == "letters":
            return values.tobytes().decode("ascii", "replace")
        return self._items[values].tolist()  # type: ignore[index]

    def __getitem__(self, i: int) -> Record:
        batch, row, start, stop = self._where(i)
        first = int(batch.offsets[row])
        channels = {name: batch.channel(name, row, start, stop) for name in batch.channels}
        return Record(self._object(batch.values[first + start : first + stop]), channels, self.name(i))

    def __iter__(self) -> Iterator[Record]:
        return (self[i] for i in range(len(self)))

    def objects(self, step: int = 1) -> Iterator[Any]:
        """The objects of every `step`-th record, quicker than whole records."""
        for batch, rows, starts, stops in self._runs(self._all_spans()[::step]):
            first = batch.offsets[rows]
            for start, stop in zip((first + starts).tolist(), (first + stops).tolist()):
                yield self._object(batch.values[start:stop])

    def name(self, i: int) -> str:
        """Where record `i` came from; a part of a record carries its start."""
        batch, row, start, stop = self._where(i)
        name = batch.names[row].as_py()
        return name if start == 0 and stop == batch.sizes[row] else f"{name}[{start}:{stop}]"

    def whole(self, i: int) -> tuple[bool, bool]:
        """Whether record `i` begins, and ends, where its source does."""
        batch, row, start, stop = self._where(i)
        return start == 0, stop == int(batch.sizes[row])

    @property
    def vocabulary(self) -> dict[Any, int]:
        """How often each element occurs, most frequent first. Elements are byte values, letters or items."""
        if self._counts is None:
            size = 256 if self._elements is None else len(self._elements)
            counts = np.zeros(size, dtype=np.int64)
            for batch, rows, starts, stops in self._runs(self._all_spans()):
                values = _gather(batch.values, batch.offsets[rows] + starts, stops - starts)
                for at in range(0, len(values), BATCH):
                    counts += np.bincount(values[at : at + BATCH], minlength=size)
            labels: list[Any] = self._elements or list(range(256))
            if self.kind.storage == "letters":
                labels = [chr(i) for i in range(256)]
            self._counts = {labels[i]: int(counts[i]) for i in np.argsort(-counts, kind="stable") if counts[i]}
        return self._counts

    def codec(self, **options: Any) -> Codec:
        """The kind's codec for this data."""
        codec: Callable[..., Codec] = self.kind.codec
        return codec(self, **_check_options(codec, f"the codec of {self.kind.name}", options))

    # -- views

    def select(self, which: Iterable[int]) -> Data:
        """A view of some records, in the order given."""
        index = np.asarray(list(which), dtype=np.int64).reshape(-1)
        return self._view(self._all_spans()[index])

    def _all_spans(self, first: int = 0, last: int | None = None) -> np.ndarray:
        """(n, 3) record, start and stop of this view's records from `first` to `last`."""
        if self._spans is not None:
            return self._spans[first:last]
        lengths = self._whole[first:last]
        return np.stack([np.arange(first, first + len(lengths)), np.zeros(len(lengths), dtype=np.int64), lengths], 1)

    def _runs(self, spans: np.ndarray) -> Iterator[tuple[_Batch, np.ndarray, np.ndarray, np.ndarray]]:
        """Spans by the batch they lie in: batch, rows within it, starts, stops."""
        at = np.searchsorted(self._firsts, spans[:, 0], side="right") - 1
        for part in np.split(np.arange(len(spans)), np.flatnonzero(np.diff(at)) + 1):
            if len(part):
                number = int(at[part[0]])
                yield self._batches[number], spans[part, 0] - self._firsts[number], spans[part, 1], spans[part, 2]

    def _view(self, spans: np.ndarray) -> Data:
        key = hashlib.blake2b(self.fingerprint.encode() + spans.astype(np.int64).tobytes(), digest_size=16).hexdigest()
        return Data(
            self.kind,
            self._arrow,
            elements=self._elements,
            problems=self.problems,
            fingerprint=key,
            spans=spans,
            keep=self._keep,
        )

    def split(self, fraction: float = 0.1, by: str | None = None, seed: int = 0) -> tuple[Data, Data]:
        """Training and held-out views, the second with about `fraction` of the elements; the same every time.

        by: what is hashed to decide. "name": the record's name. "entity": the same for entities (all of one entity's
        sequences stay on one side). "content": what is in the record, so that equal sequences stay on one side.
        "position": blocks of records, so that one long document can be split. "time": no hash; what happened last is
        held out. None: the kind's own way, with records too long to fall on one side (one book, one genome) cut into
        blocks. A hash keeps every record on its side when data are added later, as long as enough records are there
        for the hash to come near `fraction`; few records, and blocks, are dealt out in the order of their hashes.
        """
        if not 0 < fraction < 1:
            raise SegueError(f"the held-out fraction lies between 0 and 1, not {fraction}")
        if by not in (None, "name", "entity", "content", "position", "time"):
            raise SegueError(f"cannot split by '{by}': name, entity, content, position or time")
        if by == "time":
            return self._split_time(fraction)
        total = self.total
        if total < 2:
            raise SegueError("there is too little data to hold anything out: at least two elements are needed")
        spans = self._all_spans()
        spans = spans[spans[:, 2] > spans[:, 1]]
        whole = len(spans)
        key = by or self.kind.split_by
        few = len(spans) * fraction < 1
        if by == "position" or (by is None and (few or key != "entity")):
            block = max(1, int(total * fraction / 16), min(PART, total // 4))
            spans = self._blocks(spans, block, everything=by == "position" or few)
        hashes = self._hashes(spans, key, seed)
        sizes = spans[:, 2] - spans[:, 1]
        held = hashes < fraction * 2.0**64
        share = sizes[held].sum() / total
        if len(spans) > whole or not fraction / 1.5 <= share <= fraction * 1.5:
            distinct, group = np.unique(hashes, return_inverse=True)
            if len(distinct) < 2 and by is None:
                return self.split(fraction, "position", seed)
            if len(distinct) < 2:
                raise SegueError(
                    f"all {len(spans)} records have the same {key}: nothing can be held out by {key}; split by position"
                )
            reached = np.cumsum(np.bincount(group, weights=sizes))
            last = min(int(np.searchsorted(reached, fraction * total)), len(distinct) - 2)
            held = group <= last
        return self._view(_merged(spans[~held])), self._view(_merged(spans[held]))

    def _blocks(self, spans: np.ndarray, block: int, everything: bool) -> np.ndarray:
        """Cut records (those longer than four blocks, or all) into blocks, at places the kind finds good."""
        parts = []
        for record, start, stop in spans.tolist():
            cuts = [start]
            if stop - start > (block if everything else 4 * block):
                at = bisect_right(self._firsts, record) - 1
                batch, row = self._batches[at], record - self._firsts[at]
                first = int(batch.offsets[row])
                for wished in range(start + block, stop - block // 2, block):
                    window = batch.values[first + wished : first + min(stop, wished + min(block // 2, 1024))]
                    cuts.append(wished + (self.kind.cut(window.tobytes()) if self.kind.storage == "bytes" else 0))
            parts += [(record, a, b) for a, b in zip(cuts, [*cuts[1:], stop])]
        return np.array(parts, dtype=np.int64).reshape(-1, 3)

    def _hashes(self, spans: np.ndarray, key: str, seed: int) -> np.ndarray:
        salt = seed.to_bytes(8, "little", signed=True)
        digests = []
        for batch, rows, starts, stops in self._runs(spans):
            if key == "content":
                first = batch.offsets[rows]
                for start, stop in zip((first + starts).tolist(), (first + stops).tolist()):
                    part = batch.values[start:stop]
                    content = part.data if self._elements is None else json.dumps(self._object(part)).encode()
                    digests.append(hashlib.blake2b(content, digest_size=8, key=salt).digest())
                continue
            cut = (starts != 0) | (stops != batch.sizes[rows])
            for name, start, is_cut in zip(batch.names.take(pa.array(rows)).to_pylist(), starts, cut):
                text = f"{name}@{start}" if is_cut and key in ("name", "position") else name
                digests.append(hashlib.blake2b(text.encode(), digest_size=8, key=salt).digest())
        return np.frombuffer(b"".join(digests), dtype="<u8")

    def _split_time(self, fraction: float) -> tuple[Data, Data]:
        if "time" not in self.channels:
            raise SegueError("these records carry no time: split by name, content or position")
        spans = self._all_spans()
        times = [np.asarray(self[i].channels["time"]) for i in range(len(self))]
        flat = np.sort(np.concatenate(times)) if times else np.zeros(0)
        cutoff = flat[min(len(flat) - 1, int(len(flat) * (1 - fraction)))] if len(flat) else 0.0
        cuts = spans[:, 1] + np.array([int(np.searchsorted(time, cutoff)) for time in times], dtype=np.int64)
        early = np.stack([spans[:, 0], spans[:, 1], cuts], 1)
        late = np.stack([spans[:, 0], cuts, spans[:, 2]], 1)
        early, late = early[early[:, 2] > early[:, 1]], late[late[:, 2] > late[:, 1]]
        if not len(early) or not len(late):
            raise SegueError("all events have the same time: split by name, content or position")
        return self._view(early), self._view(late)

    # -- on disk

    def save(self, folder: str | Path) -> Path:
        """Write as a folder that `Data.open`, `segue.read` and `segue.fit` take: data.json, records.arrow (Arrow IPC,
        memory-mapped when opened) and, for items, elements.json. Streams; a kill leaves nothing half-written."""
        folder = Path(folder)
        if folder.exists() and not (folder / "data.json").is_file() and (not folder.is_dir() or any(folder.iterdir())):
            raise SegueError(f"{folder} exists and is not a saved data set: choose another place")
        with atomic_folder(folder) as temporary:
            if self._spans is None:
                self._write(temporary, self._arrow, self._elements, len(self), self.fingerprint)
            else:
                writer = _Writer(self.kind, temporary / "records.arrow")
                for record in self:
                    writer.add(record)
                saved = writer.finish(self.problems)
                self._write(temporary, None, saved._elements, len(saved), saved.fingerprint)
        return folder

    def _write(
        self,
        folder: Path,
        batches: list[pa.RecordBatch] | None,
        elements: list[Any] | None,
        count: int,
        fingerprint: str,
    ) -> None:
        if batches is not None:
            schema = batches[0].schema if batches else pa.schema([("name", pa.string()), ("object", pa.large_binary())])
            with pa.ipc.new_file(str(folder / "records.arrow"), schema) as sink:
                for batch in batches:
                    sink.write_batch(batch)
        if elements is not None:
            write_json(folder / "elements.json", elements)
        write_json(
            folder / "data.json",
            {
                "format": FORMAT,
                "kind": self.kind.name,
                "records": count,
                "elements": self.total,
                "fingerprint": fingerprint,
                "problems": [asdict(problem) for problem in self.problems],
                "problems_total": self.problems.total,
                "note": self.problems.note,
            },
        )

    @classmethod
    def open(cls, folder: str | Path) -> Data:
        """Open a saved folder; records are mapped, not loaded."""
        folder = Path(folder)
        meta = read_json(folder / "data.json")
        try:
            if meta["format"] != FORMAT:
                raise SegueError(f"{folder} was written as '{meta['format']}'; this version reads '{FORMAT}'")
            kind = KINDS[meta["kind"]]
            elements = read_json(folder / "elements.json") if kind.storage == "items" else None
            found = (Problem(**problem) for problem in meta["problems"])
            problems = Problems(found, meta["problems_total"], meta.get("note", ""))
            data = cls(
                kind,
                _mapped(folder / "records.arrow"),
                elements=elements,
                problems=problems,
                fingerprint=meta["fingerprint"],
            )
            if len(data) != meta["records"] or data.total != meta["elements"]:
                raise ValueError("records.arrow does not hold what data.json says")
            for batch in data._batches if elements is not None else ():
                if len(batch.values) and (batch.values.min() < 0 or batch.values.max() >= len(elements or ())):
                    raise ValueError("records.arrow names items that elements.json does not hold")
        except (KeyError, TypeError, ValueError, OSError, pa.ArrowException, AttributeError) as error:
            raise SegueError(
                f"{folder} is a damaged data set ({error}); make it again with segue read --out"
            ) from error
        return data

    def encode(self, codec: Codec, folder: str | Path | None = None, boundary: bool = True) -> TokenStore:
        """Token ids of all records as a `TokenStore`, in `folder` (mapped), or in memory while they are few.

        boundary: put the codec's begin before a record and its end after it, where the record is not a part cut out of
        a longer one. A folder that already holds these very tokens is opened and not written again.
        Channels go along where one token is one element; at a begin or end they repeat the neighbouring time and are 0
        otherwise.
        """
        key = f"{self.fingerprint}-{fingerprint_of(codec)}-{int(boundary)}"
        if folder is not None and (Path(folder) / "store.json").is_file():
            with suppress(SegueError):  # damaged: made again
                store = TokenStore.open(folder)
                if store.key == key:
                    return store
        width = np.dtype(np.uint8 if codec.size <= 1 << 8 else np.uint16 if codec.size <= 1 << 16 else np.uint32)
        carried = self.channels if codec.elementwise else {}
        if folder is None and self.total * (width.itemsize + sum(t.itemsize for t in carried.values())) <= MEMORY // 4:
            writer = _TokenWriter(None, width, carried)
            self._encode(codec, boundary, writer)
            return TokenStore(writer.joined(), codec.size, key)
        keep = None
        if folder is None:
            keep = tempfile.TemporaryDirectory(prefix="segue-")
            folder = Path(keep.name) / "tokens"
        if Path(folder).exists() and not (Path(folder) / "store.json").is_file() and any(Path(folder).iterdir()):
            raise SegueError(f"{folder} exists and holds no tokens of segue: choose another place")
        with atomic_folder(folder) as temporary:
            writer = _TokenWriter(temporary, width, carried)
            try:
                self._encode(codec, boundary, writer)
            finally:
                writer.close()
            write_json(
                temporary / "store.json",
                {
                    "format": STORE,
                    "key": key,
                    "size": codec.size,
                    "dtype": width.name,
                    "channels": {name: [dtype.name, writer.width(name)] for name, dtype in carried.items()},
                },
            )
        store = TokenStore.open(folder)
        store.keep = keep
        return store

    def _encode(self, codec: Codec, boundary: bool, writer: _TokenWriter) -> None:
        """Encode groups of records of some megabytes together, so that a codec may use all cores."""
        ends = np.cumsum(self.lengths)
        lookup = codec.lookup(self._elements)
        first = 0
        with progress("encoding", int(ends[-1]) if len(ends) else 0, quiet=self.total < SHOWN) as meter:
            while first < len(self):
                reached = ends[first] + BATCH // 2
                last = max(first + 1, int(np.searchsorted(ends, reached)))
                for batch, rows, starts, stops in self._runs(self._all_spans(first, last)):
                    self._encode_run(batch, rows, starts, stops, codec, lookup, boundary, writer)
                meter(int(ends[last - 1]))
                first = last

    def _encode_run(
        self,
        batch: _Batch,
        rows: np.ndarray,
        starts: np.ndarray,
        stops: np.ndarray,
        codec: Codec,
        lookup: np.ndarray | None,
        boundary: bool,
        writer: _TokenWriter,
    ) -> None:
        """Records of one batch, all at once: by a table where the codec has one, else object by object."""
        cut = (starts != 0) | (stops != batch.sizes[rows])
        names = batch.names.take(pa.array(rows))
        if cut.any():
            names = pa.array(
                [
                    f"{name}[{start}:{stop}]" if is_cut else name
                    for name, start, stop, is_cut in zip(names.to_pylist(), starts, stops, cut)
                ],
                pa.string(),
            )
        lengths = stops - starts
        edges = _edges(lengths)
        values = _gather(batch.values, batch.offsets[rows] + starts, lengths)
        if lookup is not None:
            ids = lookup[values]
            sizes = units = lengths
            if len(ids) and ids.min() < 0:
                where = int(np.argmax(ids < 0))
                row = int(np.searchsorted(edges, where, side="right")) - 1
                self._refused(names[row].as_py(), codec, values[edges[row] : edges[row + 1]])
        else:
            objects = [self._object(values[a:b]) for a, b in zip(edges[:-1].tolist(), edges[1:].tolist())]
            try:
                encoded = codec.encode_many(objects)
            except SegueError:
                for row in range(len(objects)):
                    self._refused(names[row].as_py(), codec, values[edges[row] : edges[row + 1]])
                raise
            sizes = np.array([len(part) for part in encoded], dtype=np.int64)
            ids = np.concatenate(encoded)
            units = np.diff(_edges(codec.weights()[ids])[_edges(sizes)])
        before = (starts == 0) & boundary & (codec.bos is not None)
        after = (stops == batch.sizes[rows]) & boundary & (codec.eos is not None)
        framed = sizes + before + after
        outer = _edges(framed)
        inside = _positions(outer[:-1] + before, sizes)
        tokens = np.empty(int(outer[-1]), dtype=np.int64)
        tokens[inside] = ids
        tokens[outer[:-1][before]] = codec.bos if codec.bos is not None else 0
        tokens[outer[1:][after] - 1] = codec.eos if codec.eos is not None else 0
        channels = {}
        for name in writer.channels:
            flat = batch.flat_channel(name)
            part = _gather(flat, batch.offsets[rows] - batch.offsets[0] + starts, lengths)
            channels[name] = np.zeros((len(tokens), *part.shape[1:]), dtype=part.dtype)
            channels[name][inside] = part
            if name == "time":
                some = sizes > 0
                channels[name][outer[:-1][before & some]] = part[edges[:-1][before & some]]
                channels[name][outer[1:][after & some] - 1] = part[edges[1:][after & some] - 1]
        writer.add(tokens, framed, units, names, channels)

    def _refused(self, name: str, codec: Codec, values: np.ndarray) -> None:
        """Say which record the codec cannot take, if this is it."""
        try:
            codec.encode(self._object(values))
        except SegueError as error:
            raise SegueError(f"{name}: {error}") from error

    # -- for people

    def examples(self, n: int = 3, width: int = 72) -> list[tuple[str, str]]:
        """Name and beginning of a few records, spread over the whole."""
        which = sorted({int(i) for i in np.linspace(0, len(self) - 1, n)}) if len(self) else []
        shown = []
        for i in which:
            begin = self._object(self.values(i)[: 4 * width])
            text = " ".join((begin if isinstance(begin, str) else self.kind.show(begin)).split())
            shown.append(
                (self.name(i), text[:width] + ("…" if len(text) > width or self.lengths[i] > 4 * width else ""))
            )
        return shown

    def describe(self) -> dict[str, Any]:
        """What is in it, as plain values for JSON."""
        lengths = self.lengths
        spread = (
            {
                "least": int(lengths.min()),
                "median": float(np.median(lengths)),
                "mean": float(lengths.mean()),
                "most": int(lengths.max()),
            }
            if len(lengths)
            else {}
        )
        storage = self.kind.storage
        top = list(self.vocabulary.items())[:20]
        label = (lambda e: repr(bytes([e]))[1:] if e <= 32 else shown(bytes([e]))) if storage == "bytes" else str
        return {
            "kind": self.kind.name,
            "unit": self.kind.unit,
            "sequences": len(self),
            "total": self.total,
            "lengths": spread,
            "vocabulary": len(self.vocabulary),
            "most_frequent": {label(e): n for e, n in top},
            "channels": sorted(self.channels),
            "note": self.problems.note,
            "examples": [list(example) for example in self.examples()],
            "problems": [str(problem) for problem in self.problems],
            "problems_total": self.problems.total,
        }

    def summary(self) -> Any:
        """A table for `rich.print`: kind, sequences, lengths, vocabulary, examples, problems."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text as Styled

        facts = self.describe()
        unit = self.kind.unit
        table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        table.add_column(style="bold")
        table.add_column(overflow="fold")
        table.add_row("kind", facts["kind"])
        if facts["note"]:
            table.add_row("read as", Styled(facts["note"]))
        table.add_row("sequences", f"{facts['sequences']:,}")
        table.add_row(f"{unit}s", f"{facts['total']:,}")
        if spread := facts["lengths"]:
            table.add_row(
                "lengths",
                f"{spread['least']:,} to {spread['most']:,}, median {spread['median']:,.0f}, "
                f"mean {spread['mean']:,.1f}",
            )
        frequent = "  ".join(
            f"{element} {count / max(1, facts['total']):.1%}"
            for element, count in list(facts["most_frequent"].items())[:8]
        )
        table.add_row("vocabulary", Styled(f"{facts['vocabulary']:,} different {unit}s: {frequent}"))
        if facts["channels"]:
            table.add_row("channels", ", ".join(facts["channels"]))
        for i, (name, text) in enumerate(facts["examples"]):
            table.add_row("examples" if i == 0 else "", Styled.assemble((f"{name.rsplit('/', 1)[-1]}  ", "dim"), text))
        if self.problems.total:
            table.add_row("problems", Styled(f"{self.problems.total:,} stepped over", style="yellow"))
            for problem in self.problems[:5]:
                table.add_row("", Styled(str(problem)))
        return Group(table)

    def __repr__(self) -> str:
        return f"Data({self.kind.name}: {len(self):,} sequences, {self.total:,} {self.kind.unit}s)"


def _merged(spans: np.ndarray) -> np.ndarray:
    """Join neighbouring parts of one record."""
    if not len(spans):
        return spans
    joins = (spans[1:, 0] == spans[:-1, 0]) & (spans[1:, 1] == spans[:-1, 2])
    first = np.flatnonzero(np.concatenate([[True], ~joins]))
    last = np.concatenate([first[1:] - 1, [len(spans) - 1]])
    return np.stack([spans[first, 0], spans[first, 1], spans[last, 2]], 1)


def fingerprint_of(codec: Codec) -> str:
    """A hash of what a codec does."""
    state = json.dumps(codec.state(), sort_keys=True)
    tokenizer = getattr(codec, "tokenizer", None)
    text = codec.name + state + (tokenizer.to_str() if tokenizer is not None else "")
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _edges(lengths: np.ndarray) -> np.ndarray:
    """(n + 1,) where parts of these lengths begin and end when they follow each other."""
    edges = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=edges[1:])
    return edges


def _positions(begins: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The indices begin, begin + 1, ... of every part, one after the other."""
    return np.repeat(begins - _edges(lengths)[:-1], lengths) + np.arange(int(lengths.sum()))


def _gather(values: np.ndarray, begins: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Parts of flat values one after the other; no copy where they lie so."""
    if not len(begins):
        return values[:0]
    if (begins[1:] == begins[:-1] + lengths[:-1]).all():
        return values[begins[0] : begins[0] + int(lengths.sum())]
    return values[_positions(begins, lengths)]


class _TokenWriter:
    """Appends sequences to flat files, or to lists where `folder` is None."""

    def __init__(self, folder: Path | None, dtype: np.dtype, channels: Mapping[str, np.dtype]) -> None:
        self.folder = folder
        self.dtype = dtype
        self.channels = dict(channels)
        self.widths: dict[str, int] = {}
        self.sizes: list[np.ndarray] = [np.zeros(0, dtype=np.int64)]
        self.units: list[np.ndarray] = [np.zeros(0, dtype=np.int64)]
        self.names: list[pa.Array] = []
        self.parts: dict[str, list[np.ndarray]] = {name: [] for name in ["tokens", *(f"channel.{c}" for c in channels)]}
        self.files = {name: open(folder / f"{name}.bin", "wb", 1 << 20) for name in self.parts} if folder else {}  # noqa: SIM115

    def add(
        self, ids: np.ndarray, sizes: np.ndarray, units: np.ndarray, names: pa.Array, channels: Mapping[str, np.ndarray]
    ) -> None:
        self._put("tokens", ids.astype(self.dtype))
        for channel, values in channels.items():
            self.widths[channel] = values.shape[1] if values.ndim > 1 else 1
            self._put(f"channel.{channel}", np.ascontiguousarray(values))
        self.sizes.append(sizes)
        self.units.append(units)
        self.names.append(names)

    def _put(self, name: str, values: np.ndarray) -> None:
        if self.files:
            self.files[name].write(values.tobytes())
        else:
            self.parts[name].append(values)

    def width(self, channel: str) -> int:
        return self.widths.get(channel, 1)

    def joined(self) -> dict[str, Any]:
        flat = {
            name: np.concatenate(parts) if parts else np.zeros(0, dtype=self.dtype)
            for name, parts in self.parts.items()
        }
        return {
            "tokens": flat["tokens"],
            "offsets": _edges(np.concatenate(self.sizes)),
            "units": np.concatenate(self.units),
            "names": pa.chunked_array(self.names, pa.string()),
            "channels": {name: flat[f"channel.{name}"] for name in self.channels},
        }

    def close(self) -> None:
        assert self.folder is not None
        for handle in self.files.values():
            handle.close()
        _edges(np.concatenate(self.sizes)).tofile(self.folder / "offsets.bin")
        np.concatenate(self.units).tofile(self.folder / "units.bin")
        with pa.ipc.new_file(str(self.folder / "names.arrow"), pa.schema([("name", pa.string())])) as sink:
            for names in self.names:
                sink.write_batch(pa.RecordBatch.from_arrays([names], ["name"]))


class TokenStore:
    """Flat token ids of many sequences. `len`, `store[i] -> Sequence`, iteration.

    tokens: (N,) smallest unsigned type that holds `size` ids; memory-mapped where it lies in a folder.
    offsets: (len + 1,) int64; sequence i is tokens[offsets[i]:offsets[i + 1]].
    channels: name -> (N,) or (N, w), aligned with tokens. units: (len,) int64 base units of each sequence.
    """

    def __init__(self, parts: Mapping[str, Any], size: int, key: str) -> None:
        self.tokens: np.ndarray = parts["tokens"]
        self.offsets: np.ndarray = parts["offsets"]
        self.units: np.ndarray = parts["units"]
        self.channels: dict[str, np.ndarray] = parts["channels"]
        self._names = parts["names"]
        self.size = size
        self.key = key
        self.keep: Any = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> Sequence:
        if not -len(self) <= i < len(self):
            raise IndexError(f"sequence {i} of {len(self)}")
        i %= len(self)
        a, b = int(self.offsets[i]), int(self.offsets[i + 1])
        return Sequence(
            self.tokens[a:b].astype(np.int32),
            {name: values[a:b] for name, values in self.channels.items()},
            self._names[i].as_py(),
        )

    def __iter__(self) -> Iterator[Sequence]:
        return (self[i] for i in range(len(self)))

    @property
    def lengths(self) -> np.ndarray:
        """(len,) int64: tokens of each sequence."""
        return np.diff(self.offsets)

    @classmethod
    def open(cls, folder: str | Path) -> TokenStore:
        """Map a folder written by `Data.encode`."""
        folder = Path(folder)
        meta = read_json(folder / "store.json")
        try:
            if meta["format"] != STORE:
                raise SegueError(f"{folder} was written as '{meta['format']}'; this version reads '{STORE}'")
            channels = {}
            for name, (dtype, width) in meta["channels"].items():
                values = _map(folder / f"channel.{name}.bin", np.dtype(dtype))
                channels[name] = values.reshape(-1, width) if width > 1 else values
            parts = {
                "tokens": _map(folder / "tokens.bin", np.dtype(meta["dtype"])),
                "offsets": _map(folder / "offsets.bin", np.dtype(np.int64)),
                "units": _map(folder / "units.bin", np.dtype(np.int64)),
                "channels": channels,
                "names": pa.chunked_array((b.column("name") for b in _mapped(folder / "names.arrow")), pa.string()),
            }
            offsets, count = parts["offsets"], len(parts["tokens"])
            if offsets[0] != 0 or offsets[-1] != count or (np.diff(offsets) < 0).any():
                raise ValueError("tokens.bin is not as long as offsets.bin says")
            if any(len(values) != count for values in channels.values()):
                raise ValueError("a channel is not as long as tokens.bin")
            if not len(parts["names"]) == len(parts["units"]) == len(offsets) - 1:
                raise ValueError("names, units and offsets are not of one length")
            return cls(parts, int(meta["size"]), meta["key"])
        except (KeyError, TypeError, ValueError, IndexError, OSError, pa.ArrowException) as error:
            raise SegueError(f"{folder} holds damaged tokens ({error}); remove it and encode again") from error


def _map(file: Path, dtype: np.dtype) -> np.ndarray:
    return np.memmap(file, dtype=dtype, mode="r") if file.stat().st_size else np.zeros(0, dtype=dtype)


# -- reading


def read(*paths: str | os.PathLike[str], kind: str | None = None, memory: int = MEMORY, **options: Any) -> Data:
    """Read sequences of one kind from files, folders and globs, packed (gzip, xz, bzip2) or not.

    kind: one of `segue.kinds.KINDS`, found from names and contents if None. memory: bytes of records held in memory;
    more go to a temporary folder. options: the kind's own (see its `read`). A folder that `Data.save` wrote is opened.
    Whatever is wrong with the input is a SegueError naming file, record and position, or, where single records or files
    of a folder are bad, an entry of `Data.problems`.
    """
    if not paths:
        raise SegueError("nothing to read: give a file, a folder or a pattern such as 'data/*.txt'")
    if kind is not None and kind not in KINDS:
        raise SegueError(f"there is no kind '{kind}'; there are {', '.join(KINDS)}")
    if len(paths) == 1 and os.path.isfile(os.path.join(paths[0], "data.json")):
        data = Data.open(Path(paths[0]))
        if kind not in (None, data.kind.name):
            raise SegueError(f"{paths[0]} holds {data.kind.name}, not {kind}")
        return data
    problems = Problems()
    files, named = find(paths)
    chosen, files = _choose(files, named, kind, problems)
    options = _check_options(chosen.read, f"reading {chosen.name}", options)
    writer = _Writer(chosen, memory=memory)
    size = sum(_size(path) * (1 if bare(path) == path else 4) for path in files)
    with progress("reading", size, quiet=size < SHOWN) as meter:
        for record in chosen.read_all(files, problems, named, **options):
            writer.add(record)
            meter(min(writer.total, size), f"{writer.count:,} sequences")
    if not writer.count:
        telling = [problem for problem in problems if not problem.text.startswith("skipped")] or problems
        first = f"; first of {problems.total:,} problems: {telling[0]}" if telling else ""
        raise SegueError(f"no usable {chosen.name} sequence in {_listed(paths)}{first}")
    return writer.finish(problems)


def _size(path: Path) -> int:
    """Bytes of a file, 0 where it is gone by now."""
    with suppress(OSError):
        return path.stat().st_size
    return 0


def find(paths: Iterable[str | os.PathLike[str]]) -> tuple[list[Path], frozenset[Path]]:
    """Files behind paths, folders and patterns, in order, and which of them were named outright: all of a few, none of
    `MANY` or more, which a shell has written out from a pattern. A bad file is an error if it was named outright.

    Hidden files, caches and the README or LICENSE that lies beside data are left out of folders.
    """
    files: dict[Path, None] = {}
    named: set[Path] = set()
    for given in paths:
        path = Path(given).expanduser()
        try:
            if path.is_dir():
                within = list(_walk(path))
                if not within:
                    raise SegueError(f"{path}: the folder has no file to read in it")
                files.update(dict.fromkeys(within))
            elif path.exists():
                files[path] = None
                named.add(path)
            elif glob.has_magic(str(path)):
                matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
                matches = [match for match in matches if match.is_file()]
                if not matches:
                    raise SegueError(f"{given}: no file matches this pattern")
                files.update(dict.fromkeys(matches))
            else:
                raise SegueError(f"{given}: no such file or folder; check the path")
        except (OSError, ValueError) as error:
            raise SegueError(f"{given}: cannot be looked up ({error})") from error
    return list(files), frozenset(named if len(named) < MANY else ())


def _walk(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and name not in ("__pycache__", "node_modules")
        )
        for name in sorted(names):
            path = Path(root) / name
            if not name.startswith(".") and name.split(".")[0].lower() not in SKIPPED and path.is_file():
                yield path


def _choose(files: list[Path], named: frozenset[Path], name: str | None, problems: Problems) -> tuple[Kind, list[Path]]:
    """The kind that most bytes speak for, and the files of it; others are problems, or, if named, errors."""
    heads: dict[Path, bytes] = {}
    usable: list[Path] = []
    for path in files:
        try:
            if not path.is_file():
                raise SegueError(f"{path}: is not a regular file")
            heads[path] = head_of(path)
            if not heads[path]:
                raise SegueError(f"{path}: the file is empty; give a file with sequences in it")
            usable.append(path)
        except SegueError as error:
            if path in named and (path not in heads or len(files) == 1):
                raise
            problems.add(Problem(str(path), "", None, str(error).removeprefix(f"{path}: ")))
    if name is not None:
        if not usable:
            raise SegueError(f"no usable file: {problems[0]}")
        return KINDS[name], usable
    best: dict[Path, tuple[float, str]] = {}
    votes: dict[str, float] = {}
    for path in usable:
        best[path] = max(
            ((kind.sniff(bare(path), heads[path]), kind.name) for kind in KINDS.values()), key=lambda s: s[0]
        )
        if best[path][0] > 0:
            votes[best[path][1]] = votes.get(best[path][1], 0.0) + best[path][0] * (1 + _size(path))
    if not votes:
        path = next((path for path in files if path in named), files[0])
        reason = (
            f"{path}: not a file of a kind known here ({', '.join(KINDS)}): it is binary; "
            "name the kind with kind= if it is one"
        )
        raise SegueError(reason if usable else str(problems[0]))
    winner = KINDS[max(votes, key=lambda k: votes[k])]
    family = {
        kind.name for kind in KINDS.values() if kind is winner or (winner.family and kind.family == winner.family)
    }
    chosen = []
    for path in usable:
        score, found = best[path]
        if score > 0 and found in family:
            chosen.append(path)
        elif path in named:
            what = found if score > 0 else "of no kind known here"
            raise SegueError(
                f"{path} looks {'like ' if score > 0 else ''}{what}, other files like {winner.name}: read one "
                "kind at a time, or name the kind with kind="
            )
        else:
            problems.add(
                Problem(
                    str(path),
                    "",
                    None,
                    f"skipped: {f'looks like {found}' if score > 0 else 'binary'}, where most is {winner.name}",
                )
            )
    return winner, chosen


def _check_options(function: Callable[..., Any], whose: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as a function takes them; unknown ones and values of the wrong sort are refused before it runs."""
    known = {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    checked: dict[str, Any] = {}
    for option, value in options.items():
        if option not in known:
            raise SegueError(f"{whose} has no option '{option}'; it takes {', '.join(known) or 'none'}")
        sort = str(known[option].annotation)
        if sort.startswith("Sequence"):
            value = [value] if isinstance(value, str) or not isinstance(value, Iterable) else value
            value = [str(part) for part in value]
        elif sort.startswith("str") and value is not None:
            value = str(value)
        elif sort == "bool" and not isinstance(value, bool):
            raise SegueError(f"the option '{option}' is true or false, not {value!r}")
        elif sort.startswith("int") and type(value) is not int and not (value is None and "None" in sort):
            raise SegueError(f"the option '{option}' is a whole number, not {value!r}")
        checked[option] = value
    return checked


def _listed(paths: Iterable[Any]) -> str:
    listed = [str(path) for path in paths]
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")


def of(objects: Any, kind: str | None = None) -> Data:
    """Data from what is in memory, ragged as it may be.

    objects: a list of str or bytes (text, unless `kind` says dna or protein); a list of lists or arrays of items (str
    or int); a mapping of name -> any of these; a mapping of name -> table of columns (a mapping or a data frame), of
    which 'item' (or 'what', 'event', 'object') is the sequence and the others, if numbers, are channels; or `Record`s.
    """
    if kind is not None and kind not in KINDS:
        raise SegueError(f"there is no kind '{kind}'; there are {', '.join(KINDS)}")
    if isinstance(objects, (str, bytes)):
        objects = [objects]
    if not isinstance(objects, Mapping) and hasattr(objects, "to_pylist"):
        objects = objects.to_pylist()
    named = objects.items() if isinstance(objects, Mapping) else ((None, obj) for obj in objects)
    writer: _Writer | None = None
    for number, (name, obj) in enumerate(named, 1):
        record = _record(obj, str(number if name is None else name))
        if writer is None:
            plain = isinstance(record.object, (str, bytes))
            writer = _Writer(KINDS[kind or ("text" if plain else "events")])
        try:
            obj = writer.kind.normalise(record.object)
        except (SegueError, TypeError, ValueError) as error:
            raise SegueError(f"record '{record.name}': {error}") from error
        writer.add(Record(obj, record.channels, record.name))
    if writer is None:
        raise SegueError("there is no sequence in the list given")
    return writer.finish(Problems())


def _record(obj: Any, name: str) -> Record:
    if isinstance(obj, Record):
        return obj
    if isinstance(obj, (str, bytes, bytearray)):
        return Record(obj, name=name)
    if isinstance(obj, Mapping) or hasattr(obj, "columns"):
        columns = {str(c): np.asarray(obj[c]) for c in (obj.keys() if isinstance(obj, Mapping) else obj.columns)}
        main = next((c for c in ("item", "what", "event", "object") if c in columns), None)
        if main is None:
            raise SegueError(
                f"record '{name}': none of its columns is called item, what, event or object ({', '.join(columns)})"
            )
        return Record(columns.pop(main).tolist(), {c: v for c, v in columns.items() if v.dtype.kind in "iufb"}, name)
    if hasattr(obj, "tolist"):
        obj = obj.tolist()
    if not isinstance(obj, Iterable):
        raise SegueError(f"record '{name}' is {obj!r:.40}, not a sequence: give a list of lists, or of strings")
    return Record(list(obj), name=name)
