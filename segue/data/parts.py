"""Parts of flat arrays: where each begins, and how long it is."""

from __future__ import annotations

import numpy as np


def edges(lengths: np.ndarray) -> np.ndarray:
    """(n + 1,) where parts of these lengths begin and end when they follow each other."""
    ends = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=ends[1:])
    return ends


def positions(begins: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The indices begin, begin + 1, ... of every part, one part after the other."""
    return np.repeat(begins - edges(lengths)[:-1], lengths) + np.arange(int(lengths.sum()))


def gather(values: np.ndarray, begins: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Parts of flat values, one after the other; not a copy where they lie so."""
    if not len(begins):
        return values[:0]
    if (begins[1:] == begins[:-1] + lengths[:-1]).all():
        return values[begins[0] : begins[0] + int(lengths.sum())]
    return values[positions(begins, lengths)]
