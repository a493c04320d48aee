"""What elements are besides where they stand, their time and their pitch say, for attention that compares it pair by
pair (Music Transformer: Huang et al. 2018, arXiv 1809.04281)."""

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
    """Whole numbers of each element, looked up by its id, as they are (its pitch) or summed up from the beginning of
    its document, its own included (the time: how far each id moves the clock).

    tables: by name {"of": for each id a whole number, or None where it has none, "sum": True or (default) False}.

    Inputs what each node brings, (B, N, R) long; outputs its traits (B, N, R) long, NONE where it has none; state the
    sums (B, R) long. So traits go along in decoding, in drafts and back again, as any recurrence does.
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
            # The id behind the vocabulary, with which texts begin, has no trait.
            columns.append([ABSENT if each is None else each for each in of] + [ABSENT])
        self.register_buffer("values", torch.tensor(columns).T.contiguous(), persistent=False)
        summed = torch.tensor([bool(table.get("sum")) for table in tables.values()])
        self.register_buffer("summed", summed, persistent=False)

    def look_up(self, tokens: Tensor, layout: Layout, carry: Carry | None = None) -> dict[str, Tensor]:
        """By name (B, N) long, of ids (B, N)."""
        if tokens.dim() != 2:
            raise SegueError("ids have traits: rows of weights of ids have none")
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
        if starts is not None:  # less what was summed before the document began
            begin = torch.where(starts, torch.arange(starts.shape[1], device=starts.device), -1).cummax(1).values
            outside = (sums - steps).gather(1, begin.clamp(min=0)[..., None].expand_as(sums))
            sums = sums - torch.where(begin[..., None] < 0, 0, outside)
        traits = torch.where(self.summed, sums, values)
        if lengths is None:
            return traits, (sums[:, -1],)
        after = sums.gather(1, (lengths - 1).clamp(min=0)[:, None, None].expand(-1, 1, sums.shape[2]))[:, 0]
        return traits, (torch.where(lengths[:, None] > 0, after, before),)


def trait_differences(query: Tensor, key: Tensor) -> Tensor:
    """(B, Q, R) and (B, K, R) traits -> (B, Q, K, R) long: by how much the query's is more than the key's, NONE where
    one of them has none."""
    query, key = query[:, :, None], key[:, None]
    return torch.where((query == ABSENT) | (key == ABSENT), ABSENT, query - key)
