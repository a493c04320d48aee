"""Splitting a data set into training and held-out parts."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import numpy as np

from segue.data.clusters import clusters, hash_elements
from segue.errors import SegueError

if TYPE_CHECKING:
    from segue.data.records import Data

WAYS = (None, "name", "entity", "content", "cluster", "position", "time", "last")
LEAST_BLOCK = 32  # elements of a block when short data is cut; shorter blocks tell little about a sequence


def split(data: Data, fraction: float, by: str | None, seed: int) -> tuple[Data, Data]:
    """See `Data.split`."""
    if not 0 < fraction < 1:
        raise SegueError(f"the held-out fraction lies between 0 and 1, not {fraction}")
    if by not in WAYS:
        raise SegueError(f"cannot split by '{by}': name, entity, content, cluster, position, time or last")
    if by == "time":
        return _by_time(data, fraction)
    if by == "last":
        return _by_last(data)
    total = data.total
    if total < 2:
        raise SegueError("there is too little data to hold anything out: at least two elements are needed")
    spans = data.spans()
    spans = spans[spans[:, 2] > spans[:, 1]]
    num_records = len(spans)
    key = by or data.kind.split_by
    too_few = len(spans) * fraction < 1
    if by == "position" or (by is None and (too_few or key != "entity")):
        block = max(1, int(total * fraction / 16), min(LEAST_BLOCK, total // 4))
        spans = _blocks(data, spans, block, everything=by == "position" or too_few)
    hashes = _hashes(data, spans, key, seed) if key != "cluster" else _cluster_hashes(data, spans, seed)
    sizes = spans[:, 2] - spans[:, 1]
    held = hashes < fraction * 2.0**64
    share = sizes[held].sum() / total
    if len(spans) > num_records or not fraction / 1.5 <= share <= fraction * 1.5:
        distinct, group = np.unique(hashes, return_inverse=True)
        if len(distinct) < 2 and by is None:
            return split(data, fraction, "position", seed)
        if len(distinct) < 2:
            raise SegueError("there is too little data to hold anything out: give more, or longer, sequences"
                             if key == "position" else
                             f"all {len(spans)} records have the same {key}: nothing can be held out by {key}; split "
                             "by position")
        weights = np.bincount(group, weights=sizes)
        reached = np.cumsum(weights)
        last = min(int(np.searchsorted(reached, fraction * total)), len(distinct) - 2)
        if reached[last] > max(0.5, 1.5 * fraction) * total:  # the group that is most of the data goes to training
            weights[np.argmax(weights)] = 0
            last = min(int(np.searchsorted(np.cumsum(weights), fraction * total)), len(distinct) - 1)
        held = (group <= last) & (weights[group] > 0)
    return data.view(_merge_parts(spans[~held])), data.view(_merge_parts(spans[held]))


def _by_time(data: Data, fraction: float) -> tuple[Data, Data]:
    if "time" not in data.channels:
        raise SegueError("these records carry no time: split by name, content or position")
    spans = data.spans()
    times = [np.asarray(record.channels["time"]) for record in data]
    flat = np.sort(np.concatenate(times)) if times else np.zeros(0)
    cutoff = flat[min(len(flat) - 1, int(len(flat) * (1 - fraction)))] if len(flat) else 0.0
    cuts = spans[:, 1] + np.array([int(np.searchsorted(time, cutoff)) for time in times], dtype=np.int64)
    before = np.stack([spans[:, 0], spans[:, 1], cuts], 1)
    after = np.stack([spans[:, 0], cuts, spans[:, 2]], 1)
    before, after = before[before[:, 2] > before[:, 1]], after[after[:, 2] > after[:, 1]]
    if not len(before) or not len(after):
        raise SegueError("all events have the same time: split by name, content or position")
    return data.view(before), data.view(after)


def _by_last(data: Data) -> tuple[Data, Data]:
    spans = data.spans()
    spans = spans[spans[:, 2] > spans[:, 1]]
    has_several = spans[:, 2] - spans[:, 1] > 1
    if not has_several.any():
        raise SegueError("no record has two elements, one to be held out: split by name, content or time")
    cuts = spans[:, 2] - has_several
    return (data.view(np.stack([spans[:, 0], spans[:, 1], cuts], 1)),
            data.view(np.stack([spans[:, 0], cuts, spans[:, 2]], 1)[has_several]))


def _blocks(data: Data, spans: np.ndarray, block: int, everything: bool) -> np.ndarray:
    """Cut records (those longer than four blocks, or all) into blocks, at places that suit the kind."""
    parts = []
    for record, start, stop in spans.tolist():
        cuts = [start]
        if stop - start > (block if everything else 4 * block):
            batch, row = data.locate(record)
            first = int(batch.offsets[row])
            for target in range(start + block, stop - block // 2, block):
                window = batch.values[first + target : first + min(stop, target + min(block // 2, 1024))]
                cuts.append(target + (data.kind.cut(window.tobytes()) if data.kind.storage == "bytes" else 0))
        parts += [(record, a, b) for a, b in zip(cuts, [*cuts[1:], stop])]
    return np.array(parts, dtype=np.int64).reshape(-1, 3)


def _hashes(data: Data, spans: np.ndarray, key: str, seed: int) -> np.ndarray:
    """(n,) uint64: a hash of each span's content, or of its record's name and, if it is a part, its start."""
    salt = seed.to_bytes(8, "little", signed=True)
    digests = []
    for run in data.batch_parts(spans):
        if key == "content":
            contents = [part.data if data.elements is None else json.dumps(data.object_of(part)).encode()
                        for part in run.parts()]
        else:
            cut = (run.begin_cut | run.end_cut) & (key in ("name", "position"))
            names = run.batch.names.take(run.rows).to_pylist()
            contents = [(f"{name}@{start}" if is_cut else name).encode()
                        for name, start, is_cut in zip(names, run.starts.tolist(), cut.tolist())]
        digests += [hashlib.blake2b(content, digest_size=8, key=salt).digest() for content in contents]
    return np.frombuffer(b"".join(digests), dtype="<u8")


def _cluster_hashes(data: Data, spans: np.ndarray, seed: int) -> np.ndarray:
    """(n,) uint64: a hash of the smallest content hash in each span's cluster, the same for all of a cluster. Hashed
    once more, since the smallest of many is small: as it is, the largest clusters would always be held out."""
    family = clusters(data.view(spans))
    smallest = np.full(len(spans), np.iinfo(np.uint64).max)
    np.minimum.at(smallest, family, _hashes(data, spans, "content", seed))
    return hash_elements(smallest[family])


def _merge_parts(spans: np.ndarray) -> np.ndarray:
    """Join adjacent parts of the same record."""
    if not len(spans):
        return spans
    joins = (spans[1:, 0] == spans[:-1, 0]) & (spans[1:, 1] == spans[:-1, 2])
    first = np.flatnonzero(np.concatenate([[True], ~joins]))
    last = np.concatenate([first[1:] - 1, [len(spans) - 1]])
    return np.stack([spans[first, 0], spans[first, 1], spans[last, 2]], 1)
