"""Ragged arrays: parts of a flat array, given by their begins and lengths."""

from __future__ import annotations

import numpy as np


def to_offsets(lengths: np.ndarray) -> np.ndarray:
    """(n + 1,) offsets of consecutive parts with these lengths (n,)."""
    ends = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=ends[1:])
    return ends


def part_indices(begins: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The concatenated indices begin, begin + 1, ... of all parts."""
    return np.repeat(begins - to_offsets(lengths)[:-1], lengths) + np.arange(int(lengths.sum()))


def gather(values: np.ndarray, begins: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The concatenated parts of flat values; a view if they are contiguous."""
    if not len(begins):
        return values[:0]
    if (begins[1:] == begins[:-1] + lengths[:-1]).all():
        return values[begins[0] : begins[0] + int(lengths.sum())]
    return values[part_indices(begins, lengths)]
