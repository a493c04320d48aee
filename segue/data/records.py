"""`Data`: the records of one kind, views of them, and saving them to a folder."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from segue.data.arrow import BATCH, Batch, BatchParts, Writer, map_batches
from segue.data.clusters import clusters
from segue.data.options import check_options
from segue.data.split import split
from segue.data.summary import describe, summary_table
from segue.data.tokens import TokenStore, encode
from segue.errors import SegueError
from segue.files import atomic_folder, read_json, write_json
from segue.kinds import KINDS
from segue.kinds.base import Kind, Problem, Problems, Record

if TYPE_CHECKING:
    from rich.console import RenderableType

    from segue.kinds.codecs import Codec

FORMAT = "segue data 1"
EMPTY = pa.schema([("name", pa.string()), ("object", pa.large_binary())])


class Data:
    """Records of one kind. `len`, `data[i] -> Record` and iteration read lazily from Arrow batches.

    kind: the `Kind`. problems: what was skipped while reading. fingerprint: a hash of the contents.
    elements: the items that the codes of `values` stand for, or None if elements are bytes or letters.
    reading: the options of the kind's `read` that were given; None for data from memory.
    keep: an object that must live as long as this (a temporary folder).
    """

    def __init__(self, kind: Kind, batches: list[pa.RecordBatch], *, elements: list[Any] | None = None,
                 problems: Problems | None = None, fingerprint: str = "", spans: np.ndarray | None = None,
                 reading: dict[str, Any] | None = None, keep: Any = None) -> None:
        """For internal use; call `read`, `of` or `Data.open`. spans: (n, 3) record, start and stop of each part in this
        view, or None for all records in full."""
        self.kind = kind
        self.problems = problems if problems is not None else Problems()
        self.fingerprint = fingerprint
        self.elements = elements
        self.reading = reading
        self.keep = keep
        self._items = np.array(elements, dtype=object) if elements is not None else None
        self._arrow = batches
        self._batches = [Batch(batch, kind.storage) for batch in batches]
        self._firsts = np.cumsum([0, *map(len, self._batches)]).tolist()
        self._spans = spans
        self._counts: dict[Any, int] | None = None
        self._whole = np.concatenate([np.zeros(0, dtype=np.int64), *(batch.sizes for batch in self._batches)])

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

    def _locate_record(self, i: int) -> tuple[Batch, int, int, int]:
        """Batch, row within the batch, start and stop of record `i` of this view."""
        if not -len(self) <= i < len(self):
            raise IndexError(f"record {i} of {len(self)}")
        i %= len(self)
        record, start, stop = (i, 0, int(self._whole[i])) if self._spans is None else map(int, self._spans[i])
        return *self.locate(record), start, stop

    def values(self, i: int) -> np.ndarray:
        """The elements of record `i` as stored: uint8 bytes or letters, or int32 codes into `elements`. Not a copy."""
        batch, row, start, stop = self._locate_record(i)
        first = int(batch.offsets[row])
        return batch.values[first + start : first + stop]

    def object_of(self, values: np.ndarray) -> Any:
        """The object whose elements are stored as `values`."""
        if self.kind.storage == "bytes":
            return values.tobytes()
        if self.kind.storage == "letters":
            return values.tobytes().decode("ascii", "replace")
        assert self._items is not None
        return self._items[values].tolist()

    def __getitem__(self, i: int) -> Record:
        batch, row, start, stop = self._locate_record(i)
        first = int(batch.offsets[row] - batch.offsets[0])
        channels = {name: batch.channel(name)[first + start : first + stop] for name in batch.channels}
        return Record(self.object_of(self.values(i)), channels, self.name(i))

    def __iter__(self) -> Iterator[Record]:
        return (self[i] for i in range(len(self)))

    def objects(self, step: int = 1) -> Iterator[Any]:
        """The objects of every `step`-th record, quicker than whole records."""
        for run in self.batch_parts(self.spans()[::step]):
            yield from map(self.object_of, run.parts())

    def name(self, i: int) -> str:
        """Where record `i` came from; for a part of a record with its start and stop."""
        batch, row, start, stop = self._locate_record(i)
        name = batch.names[row].as_py()
        return name if start == 0 and stop == batch.sizes[row] else f"{name}[{start}:{stop}]"

    def whole(self, i: int) -> tuple[bool, bool]:
        """Whether record `i` includes the begin, and the end, of the original record."""
        batch, row, start, stop = self._locate_record(i)
        return start == 0, stop == int(batch.sizes[row])

    @property
    def vocabulary(self) -> dict[Any, int]:
        """How often each element occurs, most frequent first. Elements are byte values, letters or items."""
        if self._counts is None:
            size = 256 if self.elements is None else len(self.elements)
            counts = np.zeros(size, dtype=np.int64)
            for run in self.batch_parts(self.spans()):
                values = run.values()
                for at in range(0, len(values), BATCH):
                    counts += np.bincount(values[at : at + BATCH], minlength=size)
            labels: list[Any] = self.elements or list(range(256))
            if self.kind.storage == "letters":
                labels = [chr(i) for i in range(256)]
            self._counts = {labels[i]: int(counts[i]) for i in np.argsort(-counts, kind="stable") if counts[i]}
        return self._counts

    def codec(self, **options: Any) -> Codec:
        """The kind's codec for this data."""
        codec: Callable[..., Codec] = self.kind.codec
        return codec(self, **check_options(codec, f"the codec of {self.kind.name}", options))

    def encode(self, codec: Codec, folder: str | Path | None = None, boundary: bool = True) -> TokenStore:
        """Token ids of all records as a `TokenStore`, in `folder` (mapped), or in memory while they are few.

        boundary: put the codec's begin before a record and its end after it, where the record is not a part cut out of
        a longer one. A folder that already holds these very tokens is opened and not written again.
        Channels go along where one token is one element; at a begin or end they repeat the neighbouring time and are 0
        otherwise.
        """
        return encode(self, codec, folder, boundary)

    def describe(self) -> dict[str, Any]:
        """Statistics and examples, as plain values for JSON."""
        return describe(self)

    def summary(self) -> RenderableType:
        """A table for `rich.print`: kind, sequences, lengths, vocabulary, examples, problems."""
        return summary_table(self)

    def __repr__(self) -> str:
        return f"Data({self.kind.name}: {len(self):,} sequences, {self.total:,} {self.kind.unit}s)"

    # -- views

    def select(self, which: Iterable[int]) -> Data:
        """A view of some records, in the order given."""
        return self.view(self.spans()[np.asarray(list(which), dtype=np.int64).reshape(-1)])

    def split(self, fraction: float = 0.1, by: str | None = None, seed: int = 0) -> tuple[Data, Data]:
        """Training and held-out views, the second with about `fraction` of the elements; the same every time.

        by: what is hashed to decide. "name": the record's name. "entity": the same for entities (all of one entity's
        sequences stay on one side). "content": what is in the record, so that equal sequences stay on one side.
        "cluster": the family of similar records that it is of, as `clusters` finds them.
        "position": blocks of records, so that one long document can be split. "time": no hash; what happened last is
        held out. "last": no hash, and whatever the fraction, each record's last element (leave-one-out; for validation
        once more of the rest). What comes before held-out elements, `histories` says. None: the kind's own way, with
        records too long to fall on one side (one book, one genome) cut into blocks. A hash keeps every record on its
        side when data are added later, as long as enough records are there for the hash to come near `fraction`; few
        records, and blocks, are dealt out in the order of their hashes.
        """
        return split(self, fraction, by, seed)

    def clusters(self, k: int | None = None, share: float = 0.4) -> np.ndarray:
        """(len,) int64, the first record of the family of each: single linkage over shared words.

        Two records are linked where the one with fewer different words of `k` elements has at least `share` of them in
        common with the other. k: by default so long that records at random share hardly any (4 for proteins, 8 for
        genes). Time and memory grow with how many pairs of records share a word, so it is for up to some 100,000
        records of usual length.
        """
        return clusters(self, k, share)

    def histories(self) -> tuple[Data, np.ndarray]:
        """The parts of this view, each from where its record begins, and how many elements of each, (len,), come before
        the part: what a recommender may know when it is asked for the rest."""
        spans = self.spans()
        before = spans[:, 1].copy()
        spans = spans.copy()
        spans[:, 1] = 0
        return self.view(spans), before

    def spans(self, first: int = 0, last: int | None = None) -> np.ndarray:
        """(n, 3) record, start and stop of this view's records from `first` to `last`."""
        if self._spans is not None:
            return self._spans[first:last]
        lengths = self._whole[first:last]
        return np.stack([np.arange(first, first + len(lengths)), np.zeros(len(lengths), dtype=np.int64), lengths], 1)

    def view(self, spans: np.ndarray) -> Data:
        """A view of parts of records. spans: (n, 3) record, start and stop."""
        key = hashlib.blake2b(self.fingerprint.encode() + spans.astype(np.int64).tobytes(), digest_size=16).hexdigest()
        return Data(self.kind, self._arrow, elements=self.elements, problems=self.problems, fingerprint=key,
                    spans=spans, reading=self.reading, keep=self.keep)

    def locate(self, record: int) -> tuple[Batch, int]:
        """The batch that holds a record (numbered as in spans), and its row there."""
        at = bisect_right(self._firsts, record) - 1
        return self._batches[at], record - self._firsts[at]

    def batch_parts(self, spans: np.ndarray) -> Iterator[BatchParts]:
        """Group consecutive spans that lie in the same batch."""
        at = np.searchsorted(self._firsts, spans[:, 0], side="right") - 1
        for part in np.split(np.arange(len(spans)), np.flatnonzero(np.diff(at)) + 1):
            if len(part):
                number = int(at[part[0]])
                rows, starts, stops = spans[part].T
                yield BatchParts(self._batches[number], rows - self._firsts[number], starts, stops)

    # -- on disk

    def save(self, folder: str | Path) -> Path:
        """Write as a folder that `Data.open`, `segue.read` and `segue.fit` take: data.json, records.arrow (Arrow IPC,
        memory-mapped when opened) and, for items, elements.json. Streams; a kill leaves nothing half-written."""
        folder = Path(folder)
        if folder.exists() and not (folder / "data.json").is_file() and (not folder.is_dir() or any(folder.iterdir())):
            raise SegueError(f"{folder} exists and is not a saved data set: choose another place")
        with atomic_folder(folder) as temporary:
            elements, fingerprint = self.elements, self.fingerprint
            if not len(self):
                pa.ipc.new_file(str(temporary / "records.arrow"), EMPTY).close()
            elif self._spans is None:
                with pa.ipc.new_file(str(temporary / "records.arrow"), self._arrow[0].schema) as sink:
                    for batch in self._arrow:
                        sink.write_batch(batch)
            else:
                writer = Writer(self.kind, temporary / "records.arrow")
                for record in self:
                    writer.add(record)
                writer.close()
                elements, fingerprint = writer.elements, writer.fingerprint
            if elements is not None:
                write_json(temporary / "elements.json", elements)
            write_json(temporary / "data.json", {
                "format": FORMAT,
                "kind": self.kind.name,
                "records": len(self),
                "elements": self.total,
                "fingerprint": fingerprint,
                "problems": [asdict(problem) for problem in self.problems],
                "problems_total": self.problems.total,
                "note": self.problems.description,
                "columns": self.problems.columns,
                "reading": self.reading,
            })
        return folder

    @classmethod
    def open(cls, folder: str | Path) -> Data:
        """Open a saved folder; records are mapped, not loaded."""
        folder = Path(folder)
        meta = read_json(folder / "data.json")
        try:
            if meta["format"] != FORMAT:
                raise SegueError(f"{folder} was written as '{meta['format']}'; this version reads '{FORMAT}': make "
                                 "it again from its files")
            kind = KINDS[meta["kind"]]
            elements = read_json(folder / "elements.json") if kind.storage == "items" else None
            loaded_problems = (Problem(**problem) for problem in meta["problems"])
            problems = Problems(loaded_problems, meta["problems_total"], meta.get("note", ""), meta.get("columns", ()))
            data = cls(kind, map_batches(folder / "records.arrow"), elements=elements, problems=problems,
                       fingerprint=meta["fingerprint"], reading=meta.get("reading"))
            if len(data) != meta["records"] or data.total != meta["elements"]:
                raise ValueError("records.arrow does not hold what data.json says")
            for batch in data._batches if elements is not None else ():
                if len(batch.values) and (batch.values.min() < 0 or batch.values.max() >= len(elements or ())):
                    raise ValueError("records.arrow names items that elements.json does not hold")
        except (KeyError, TypeError, ValueError, OSError, pa.ArrowException, AttributeError) as error:
            raise SegueError(f"{folder} is a damaged data set ({error}); make it again with segue read "
                             "--out") from error
        return data
