"""Regions of a sequence, between an element that opens one and one that closes it: where each element stands in its
region (Theme Transformer, 2021, arXiv 2111.04093)."""

from __future__ import annotations

import torch
from torch import Tensor

from segue.errors import SegueError
from segue.mixers.layout import Layout
from segue.mixers.state import Carry, Recurrence, Tensors


class RegionLabels(Recurrence):
    """Labels m_t: 0 outside of regions, 1 at the element that opens one, then 2, 3, ...; the one that closes it has 0.
    One that opens while another region is open begins anew. opens, closes: ids.

    Inputs what each node is, (B, N) long: 1 opens, -1 closes, 0 neither; outputs the labels (B, N) long; state the last
    label (B,) long. So labels go along in decoding, in drafts and back again, as any recurrence does.
    """

    learnable_tensors = ()

    def __init__(self, opens: int, closes: int) -> None:
        super().__init__()
        self.opens, self.closes = opens, closes

    def label(self, tokens: Tensor, layout: Layout, carry: Carry | None = None) -> Tensor:
        """The labels (B, N) of ids (B, N)."""
        if tokens.dim() != 2:
            raise SegueError("regions are between ids: rows of weights of ids have none")
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

        def latest(happened: Tensor) -> Tensor:
            return torch.where(happened, index, -1).cummax(1).values

        opened, closed = latest(events > 0), latest(shut & (events <= 0))
        carried = torch.where((last[:, None] > 0) & (closed < 0), last[:, None] + index + 1, 0)
        labels = torch.where(opened > closed, index - opened + 1, torch.where(opened < 0, carried, 0))
        if lengths is None:
            return labels, (labels[:, -1],)
        after = labels.gather(1, (lengths - 1).clamp(min=0)[:, None])[:, 0]
        return labels, (torch.where(lengths > 0, after, last),)
