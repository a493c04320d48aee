"""Language models of rows with segments: a fixed number of text positions, then of picture codes (DALL-E: Ramesh et al.
2021, arXiv 2102.12092; StoryDALL-E: Maharana et al. 2022, arXiv 2209.06192).

Each segment has its own ids, positions and rows of the head: only ids of the next position's segment can be predicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from segue.errors import SegueError
from segue.mixers.layout import Layout, check_rows, gather_nodes
from segue.mixers.state import State
from segue.models.base import Decoding, Output
from segue.models.stack import Stack, StackConfig


class MultiSegmentLM(nn.Module):
    """A stack over rows of segments. Satisfies `segue.models.base.Decodable`.

    config: of the stack; its vocabulary and learned positions follow from the segments, and its head is untied.
    segments: (number of ids, number of positions) of each, in the order of a row, which is also that of the ids. A
    row's first element is given, never predicted.
    owner: (V,) long, the segment of each id. place: (L,) long, the segment of each position of a row.
    """

    owner: Tensor
    place: Tensor

    def __init__(self, config: StackConfig, segments: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        if not segments or any(min(segment) < 1 for segment in segments):
            raise SegueError(f"segments {list(segments)}: give ids and positions of each, at least 1")
        sizes, lengths = (torch.tensor(each) for each in zip(*segments))
        self.stack = Stack(replace(config, vocabulary=int(sizes.sum()), learned_positions=int(lengths.sum()),
                                   tied=False))
        self.register_buffer("owner", torch.arange(len(sizes)).repeat_interleave(sizes))
        self.register_buffer("place", torch.arange(len(lengths)).repeat_interleave(lengths))

    @property
    def vocabulary(self) -> int:
        return self.stack.vocabulary

    @property
    def path(self) -> str:
        return self.stack.path

    def ids(self, segment: int) -> Tensor:
        """(n,) long, the ids of a segment, ascending: those that were added come last."""
        return (self.owner == segment).nonzero()[:, 0]

    def segment_start(self, segment: int) -> int:
        """The first position of a segment."""
        return int((self.place < segment).sum())

    def scores(self, hidden: Tensor, positions: Tensor) -> Tensor:
        """Logits (B, N, V) from hidden vectors (B, N, D) at `positions` (B, N): -inf for all ids but those of the next
        position's segment."""
        next_positions = (positions + 1).clamp(0, len(self.place) - 1)
        return self.stack.head(hidden).masked_fill(self.place[next_positions][..., None] != self.owner, -torch.inf)

    def forward(self, tokens: Tensor, layout: Layout | None = None) -> Output:
        layout = Layout.of(tokens) if layout is None else layout
        hidden = self.stack.hidden(tokens, layout)
        return Output(self.scores(hidden, layout.positions), hidden)

    def init_state(self, batch: int, history: int = 0) -> State:
        return self.stack.init_state(batch, history)

    def extend(self, tokens: Tensor, state: Decoding, parents: Tensor | None = None,
               at: Tensor | None = None) -> Output:
        assert isinstance(state, State)
        check_rows(len(tokens), state)
        layout = state.layout(tokens.shape[1], parents)
        hidden, positions = self.stack.hidden(tokens, layout, state), layout.positions.expand(tokens.shape)
        state.pending = layout
        if at is None:
            return Output(self.scores(hidden, positions), hidden)
        return Output(self.scores(gather_nodes(hidden, at), positions.gather(1, at)), hidden)

    @torch.no_grad()
    def grow(self, segment: int, count: int) -> Tensor:
        """Add `count` ids to a segment and return them, (count,) long. They follow all earlier ids, whose rows stay as
        they are; new rows are initialised near the mean of the segment's, so that a new id is at least a likely one of
        its segment."""
        ids, stack = self.ids(segment), self.stack
        if not len(ids) or count < 1:
            raise SegueError(f"segment {segment} cannot get {count} new ids: there are {int(self.owner.max()) + 1} "
                             "segments, and 1 id is the least")
        for table in (stack.embedding, stack.head):
            weight = table.weight
            rows = weight[ids].mean(0) + 0.02 * torch.randn(count, weight.shape[1]).to(weight)
            table.weight = nn.Parameter(torch.cat([weight, rows]), requires_grad=weight.requires_grad)
        stack.config = replace(stack.config, vocabulary=stack.vocabulary + count)
        stack.embedding.num_embeddings = stack.head.out_features = stack.vocabulary
        self.owner = torch.cat([self.owner, torch.full((count,), segment).to(self.owner)])
        return torch.arange(stack.vocabulary - count, stack.vocabulary)
