"""Encoded data sets: flat, memory-mapped token ids, as training reads them."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from segue.data.arrow import BATCH, MEMORY, PROGRESS_BYTES, BatchParts, map_batches
from segue.data.parts import part_indices, to_offsets
from segue.errors import SegueError
from segue.files import atomic_folder, read_json, write_json
from segue.progress import progress
from segue.sequence import Sequence

if TYPE_CHECKING:
    from segue.data.records import Data
    from segue.kinds.codecs import Codec

FORMAT = "segue tokens 1"


class TokenStore:
    """Flat token ids of many sequences. `len`, `store[i] -> Sequence`, iteration.

    tokens: (N,) smallest unsigned type that holds `size` ids; memory-mapped where it lies in a folder.
    offsets: (len + 1,) int64; sequence i is tokens[offsets[i]:offsets[i + 1]].
    channels: name -> (N,) or (N, w), aligned with tokens. units: (len,) int64 base units of each sequence.
    size: number of ids of the codec. key: identifies the data, the codec and the boundaries. keep: an object that must
    live as long as this.
    """

    def __init__(self, parts: Mapping[str, Any], size: int, key: str, keep: Any = None) -> None:
        self.tokens: np.ndarray = parts["tokens"]
        self.offsets: np.ndarray = parts["offsets"]
        self.units: np.ndarray = parts["units"]
        self.channels: dict[str, np.ndarray] = parts["channels"]
        self._names = parts["names"]
        self.size = size
        self.key = key
        self.keep = keep

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> Sequence:
        if not -len(self) <= i < len(self):
            raise IndexError(f"sequence {i} of {len(self)}")
        i %= len(self)
        a, b = int(self.offsets[i]), int(self.offsets[i + 1])
        channels = {name: values[a:b] for name, values in self.channels.items()}
        return Sequence(self.tokens[a:b].astype(np.int32), channels, self._names[i].as_py())

    def __iter__(self) -> Iterator[Sequence]:
        return (self[i] for i in range(len(self)))

    @property
    def lengths(self) -> np.ndarray:
        """(len,) int64: tokens of each sequence."""
        return np.diff(self.offsets)

    @classmethod
    def open(cls, folder: str | Path, keep: Any = None) -> TokenStore:
        """Map a folder written by `Data.encode`."""
        folder = Path(folder)
        meta = read_json(folder / "store.json")
        try:
            if meta["format"] != FORMAT:
                raise SegueError(f"{folder} was written as '{meta['format']}'; this version reads '{FORMAT}': "
                                 "remove it and encode again")
            channels = {}
            for name, (dtype, width) in meta["channels"].items():
                values = _memory_map(folder / f"channel.{name}.bin", np.dtype(dtype))
                channels[name] = values.reshape(-1, width) if width > 1 else values
            parts = {
                "tokens": _memory_map(folder / "tokens.bin", np.dtype(meta["dtype"])),
                "offsets": _memory_map(folder / "offsets.bin", np.dtype(np.int64)),
                "units": _memory_map(folder / "units.bin", np.dtype(np.int64)),
                "channels": channels,
                "names": pa.chunked_array((b.column("name") for b in map_batches(folder / "names.arrow")), pa.string()),
            }
            offsets, count = parts["offsets"], len(parts["tokens"])
            if offsets[0] != 0 or offsets[-1] != count or (np.diff(offsets) < 0).any():
                raise ValueError("tokens.bin is not as long as offsets.bin says")
            if any(len(values) != count for values in channels.values()):
                raise ValueError("a channel is not as long as tokens.bin")
            if not len(parts["names"]) == len(parts["units"]) == len(offsets) - 1:
                raise ValueError("names, units and offsets are not of one length")
            return cls(parts, int(meta["size"]), meta["key"], keep)
        except (KeyError, TypeError, ValueError, IndexError, OSError, pa.ArrowException) as error:
            raise SegueError(f"{folder} holds damaged tokens ({error}); remove it and encode again") from error


def encode(data: Data, codec: Codec, folder: str | Path | None = None, boundary: bool = True) -> TokenStore:
    """See `Data.encode`."""
    identity = hashlib.blake2b(codec.identity().encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    key = f"{data.fingerprint}-{identity}-{int(boundary)}"
    if folder is not None and (Path(folder) / "store.json").is_file():
        with suppress(SegueError):  # if it is damaged it is written again
            store = TokenStore.open(folder)
            if store.key == key:
                return store
    width = np.dtype(np.uint8 if codec.size <= 1 << 8 else np.uint16 if codec.size <= 1 << 16 else np.uint32)
    carried = data.channels if codec.elementwise else {}
    if folder is None and data.total * (width.itemsize + sum(t.itemsize for t in carried.values())) <= MEMORY // 4:
        writer = _Writer(None, width, carried)
        _encode_all(data, codec, boundary, writer)
        return TokenStore(writer.concatenate(), codec.size, key)
    keep = None
    if folder is None:
        keep = tempfile.TemporaryDirectory(prefix="segue-")
        folder = Path(keep.name) / "tokens"
    folder = Path(folder)
    if folder.exists() and not (folder / "store.json").is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise SegueError(f"{folder} exists and holds no tokens of segue: choose another place")
    with atomic_folder(folder) as temporary:
        writer = _Writer(temporary, width, carried)
        try:
            _encode_all(data, codec, boundary, writer)
        finally:
            writer.close()
        channels = {name: [dtype.name, writer.widths.get(name, 1)] for name, dtype in carried.items()}
        write_json(temporary / "store.json", {"format": FORMAT, "key": key, "size": codec.size, "dtype": width.name,
                                              "channels": channels})
    return TokenStore.open(folder, keep)


def _encode_all(data: Data, codec: Codec, boundary: bool, writer: _Writer) -> None:
    """Encode records in groups of some megabytes, so that codecs can use all cores."""
    ends = np.cumsum(data.lengths)
    lookup = codec.lookup(data.elements)
    first = 0
    with progress("encoding", int(ends[-1]) if len(ends) else 0, quiet=data.total < PROGRESS_BYTES) as meter:
        while first < len(data):
            last = max(first + 1, int(np.searchsorted(ends, ends[first] + BATCH // 2)))
            for run in data.batch_parts(data.spans(first, last)):
                _encode_batch_parts(data, run, codec, lookup, boundary, writer)
            meter(int(ends[last - 1]))
            first = last


def _encode_batch_parts(data: Data, run: BatchParts, codec: Codec, lookup: np.ndarray | None, boundary: bool,
                        writer: _Writer) -> None:
    """Encode parts of one batch, with begin and end tokens where a part is not cut off."""
    names = run.names()
    ids, sizes, units = _encode_parts(data, run, names, codec, lookup)
    begin, end = codec.bos, codec.eos
    before = ~run.begin_cut & (boundary and begin is not None)
    after = ~run.end_cut & (boundary and end is not None)
    framed = sizes + before + after
    outer = to_offsets(framed)
    inside = part_indices(outer[:-1] + before, sizes)
    tokens = np.empty(int(outer[-1]), dtype=np.int64)
    tokens[inside] = ids
    tokens[outer[:-1][before]] = 0 if begin is None else begin
    tokens[outer[1:][after] - 1] = 0 if end is None else end
    channels = {}
    for name in writer.channels:
        values = run.channel(name)
        channels[name] = channel = np.zeros((len(tokens), *values.shape[1:]), dtype=values.dtype)
        channel[inside] = values
        if name == "time":
            inner, some = to_offsets(sizes), sizes > 0
            channel[outer[:-1][before & some]] = values[inner[:-1][before & some]]
            channel[outer[1:][after & some] - 1] = values[inner[1:][after & some] - 1]
    writer.add(tokens, framed, units, names, channels)


def _encode_parts(data: Data, run: BatchParts, names: pa.Array, codec: Codec, lookup: np.ndarray | None,
         ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The concatenated ids of all parts, with the number of ids and of base units of each part. Uses the codec's lookup
    table if it has one. An object that the codec rejects raises a SegueError with its record's name."""

    def raise_error(row: int, part: np.ndarray) -> None:
        try:
            codec.encode(data.object_of(part))
        except SegueError as error:
            raise SegueError(f"{names[row].as_py()}: {error}") from error

    if lookup is not None:
        ids = lookup[run.values()]
        if len(ids) and ids.min() < 0:
            row = int(np.searchsorted(to_offsets(run.lengths), int(np.argmax(ids < 0)), side="right")) - 1
            raise_error(row, next(islice(run.parts(), row, None)))
        return ids, run.lengths, run.lengths
    try:
        encoded = codec.encode_many([data.object_of(part) for part in run.parts()])
    except SegueError:
        for row, part in enumerate(run.parts()):
            raise_error(row, part)
        raise
    sizes = np.array([len(part) for part in encoded], dtype=np.int64)
    ids = np.concatenate(encoded)
    return ids, sizes, np.diff(to_offsets(codec.weights()[ids])[to_offsets(sizes)])


class _Writer:
    """Appends sequences to flat files, or to lists in memory if `folder` is None."""

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

    def add(self, ids: np.ndarray, sizes: np.ndarray, units: np.ndarray, names: pa.Array,
            channels: Mapping[str, np.ndarray]) -> None:
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

    def concatenate(self) -> dict[str, Any]:
        """Everything appended so far, as the `parts` of a `TokenStore`."""
        flat = {name: np.concatenate(parts) if parts else np.zeros(0, dtype=self.dtype)
                for name, parts in self.parts.items()}
        return {
            "tokens": flat["tokens"],
            "offsets": to_offsets(np.concatenate(self.sizes)),
            "units": np.concatenate(self.units),
            "names": pa.chunked_array(self.names, pa.string()),
            "channels": {name: flat[f"channel.{name}"] for name in self.channels},
        }

    def close(self) -> None:
        """Close the files, and write offsets, units and names."""
        assert self.folder is not None
        for handle in self.files.values():
            handle.close()
        to_offsets(np.concatenate(self.sizes)).tofile(self.folder / "offsets.bin")
        np.concatenate(self.units).tofile(self.folder / "units.bin")
        with pa.ipc.new_file(str(self.folder / "names.arrow"), pa.schema([("name", pa.string())])) as sink:
            for names in self.names:
                sink.write_batch(pa.RecordBatch.from_arrays([names], ["name"]))


def _memory_map(file: Path, dtype: np.dtype) -> np.ndarray:
    return np.memmap(file, dtype=dtype, mode="r") if file.stat().st_size else np.zeros(0, dtype=dtype)
