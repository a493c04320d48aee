"""Traits of elements, such as time or pitch, for attention relative in more than position (Music Transformer: Huang et
al. 2018, arXiv 1809.04281)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from segue.errors import SegueError
from segue.mixers.layout import Layout
from segue.mixers.positions import ABSENT
from segue.mixers.state import Carry, Recurrence, Tensors


class Traits(Recurrence):
    """Integers looked up by each element's id, either used directly (pitch) or summed from the beginning of the
    document up to and including the element (time: how far each id advances the clock).

    tables: by trait name, {"of": an integer per id, or None where it has none, "sum": True or (default) False}.
    vocabulary: number of ids.

    Inputs: looked-up values (B, N, R) long. Outputs: traits (B, N, R) long, ABSENT where there is none. State: the sums
    (B, R) long. As a recurrence, traits follow decoding, drafts and rollbacks.
    """

    learnable_tensors = ()
    values: Tensor
    summed: Tensor

    def __init__(self, tables: Mapping[str, Mapping[str, Any]], vocabulary: int) -> None:
        super().__init__()
        self.names = list(tables)
        columns = []
        for name, table in tables.items():
            of: Sequence[int | None] = table.get("of", ())
            if set(table) - {"of", "sum"} or len(of) != vocabulary:
                raise SegueError(f"trait '{name}' is to be {{'of': a whole number or null for each of the {vocabulary} "
                                 f"ids, 'sum': true or false}}, not {len(of)} of {sorted(table)}")
            # The start-of-text id, which follows the vocabulary, has no trait.
            columns.append([ABSENT if each is None else each for each in of] + [ABSENT])
        self.register_buffer("values", torch.tensor(columns).T.contiguous(), persistent=False)
        summed = torch.tensor([bool(table.get("sum")) for table in tables.values()])
        self.register_buffer("summed", summed, persistent=False)

    def look_up(self, tokens: Tensor, layout: Layout, carry: Carry | None = None) -> dict[str, Tensor]:
        """Return the traits of ids (B, N): by name (B, N) long."""
        if tokens.dim() != 2:
            raise SegueError("traits need ids, not rows of weights over ids")
        return dict(zip(self.names, self((self.values[tokens],), layout, carry).unbind(-1)))

    def initial(self, batch: int, like: Tensor) -> Tensors:
        return (torch.zeros(batch, len(self.names), dtype=torch.long, device=like.device),)

    def scan(self, inputs: Tensors, state: Tensors, starts: Tensor | None = None,
             lengths: Tensor | None = None) -> tuple[Tensor, Tensors]:
        (values,), (before,) = inputs, state
        if not values.shape[1]:
            return values, state
        steps = torch.where(self.summed & (values != ABSENT), values, 0)
        sums = before[:, None] + steps.cumsum(1)
        if starts is not None:  # subtract the sum before the document began
            begin = torch.where(starts, torch.arange(starts.shape[1], device=starts.device), -1).cummax(1).values
            outside = (sums - steps).gather(1, begin.clamp(min=0)[..., None].expand_as(sums))
            sums = sums - torch.where(begin[..., None] < 0, 0, outside)
        traits = torch.where(self.summed, sums, values)
        if lengths is None:
            return traits, (sums[:, -1],)
        after = sums.gather(1, (lengths - 1).clamp(min=0)[:, None, None].expand(-1, 1, sums.shape[2]))[:, 0]
        return traits, (torch.where(lengths[:, None] > 0, after, before),)


def trait_differences(query: Tensor, key: Tensor) -> Tensor:
    """Return the query's traits (B, Q, R) minus the key's (B, K, R): (B, Q, K, R) long, ABSENT where either is."""
    query, key = query[:, :, None], key[:, None]
    return torch.where((query == ABSENT) | (key == ABSENT), ABSENT, query - key)
