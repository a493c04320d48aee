"""The one type for every kind of sequence: element ids with named side channels aligned to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Sequence:
    """One sequence of `n` elements.

    ids: (n,) int32 element ids, given by a codec.
    channels: arrays whose first axis is aligned with `ids`: a time gap, a mark, a number, a mask, a segment, a
        position on a grid or a graph.
    name: where it came from (file and record), for messages.
    """

    ids: np.ndarray
    channels: Mapping[str, np.ndarray] = field(default_factory=dict)
    name: str = ""

    def __post_init__(self) -> None:
        if self.ids.ndim != 1:
            raise ValueError(f"ids of sequence '{self.name}' must have one axis, not {self.ids.ndim}")
        for channel, values in self.channels.items():
            if len(values) != len(self.ids):
                raise ValueError(f"channel '{channel}' of sequence '{self.name}' has {len(values)} entries "
                                 f"for {len(self.ids)} elements")

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, where: slice) -> Sequence:
        return Sequence(self.ids[where], {name: values[where] for name, values in self.channels.items()}, self.name)
