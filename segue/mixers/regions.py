"""Regions of a sequence, from an opening to a closing element: the place of each element within its region (Theme
Transformer, 2021, arXiv 2111.04093)."""

from __future__ import annotations

import torch
from torch import Tensor

from segue.errors import SegueError
from segue.mixers.layout import Layout
from segue.mixers.state import Carry, Recurrence, Tensors


class RegionLabels(Recurrence):
    """Labels m_t: 0 outside regions and at the closing element, 1 at the opening element, then 2, 3, ...; an opening
    element inside a region starts a new one.

    opens, closes: ids of the opening and closing elements. Inputs: (B, N) long, 1 opens, -1 closes, 0 neither. Outputs:
    the labels (B, N) long. State: the last label (B,) long. As a recurrence, labels follow decoding, drafts and
    rollbacks.
    """

    learnable_tensors = ()

    def __init__(self, opens: int, closes: int) -> None:
        super().__init__()
        self.opens, self.closes = opens, closes

    def label(self, tokens: Tensor, layout: Layout, carry: Carry | None = None) -> Tensor:
        """Return the labels (B, N) of ids (B, N)."""
        if tokens.dim() != 2:
            raise SegueError("regions need ids, not rows of weights over ids")
        return self(((tokens == self.opens).long() - (tokens == self.closes).long(),), layout, carry)

    def initial(self, batch: int, like: Tensor) -> Tensors:
        return (torch.zeros(batch, dtype=torch.long, device=like.device),)

    def scan(self, inputs: Tensors, state: Tensors, starts: Tensor | None = None,
             lengths: Tensor | None = None) -> tuple[Tensor, Tensors]:
        (events,), (last,) = inputs, state
        if not events.shape[1]:
            return events, state
        index = torch.arange(events.shape[1], device=events.device).expand_as(events)
        shut = events < 0 if starts is None else (events < 0) | starts

        def latest_index(mask: Tensor) -> Tensor:
            return torch.where(mask, index, -1).cummax(1).values

        opened, closed = latest_index(events > 0), latest_index(shut & (events <= 0))
        carried = torch.where((last[:, None] > 0) & (closed < 0), last[:, None] + index + 1, 0)
        labels = torch.where(opened > closed, index - opened + 1, torch.where(opened < 0, carried, 0))
        if lengths is None:
            return labels, (labels[:, -1],)
        after = labels.gather(1, (lengths - 1).clamp(min=0)[:, None])[:, 0]
        return labels, (torch.where(lengths > 0, after, last),)
