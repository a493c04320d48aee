"""Elements of several codes: the levels of a sound codec's frame (Lina-Speech, 2024, arXiv 2410.23320), or pitch,
length and loudness of a note.

Codes of one frame depend on each other, so they are not predicted together: level i is delayed by i + 1 rows (the delay
pattern: Copet et al. 2023, arXiv 2306.05284). A row's embeddings are summed, and each level has its own head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from segue.errors import SegueError
from segue.mixers.layout import Layout
from segue.mixers.state import State
from segue.models.stack import Stack, StackConfig

START, STOP, CODES = 0, 1, 2  # ids of every level; its codes follow from id 2 on


def delay_codes(codes: Tensor) -> Tensor:
    """Codes (T, Q) long, from 0 -> ids (T + Q + 1, Q): level i begins with i + 1 starts and ends with Q - i stops."""
    frames, levels = codes.shape
    ids = codes.new_full((frames + levels + 1, levels), STOP)
    for level in range(levels):
        ids[: level + 1, level] = START
        ids[level + 1 : level + 1 + frames, level] = codes[:, level] + CODES
    return ids


def undelay_codes(ids: Tensor) -> Tensor:
    """The inverse of `delay_codes`; a SegueError where `ids` (T + Q + 1, Q) do not follow the pattern."""
    levels = ids.shape[1]
    frames = len(ids) - levels - 1
    if frames >= 0:
        codes = torch.stack([ids[level + 1 : level + 1 + frames, level] for level in range(levels)], 1) - CODES
        if torch.equal(delay_codes(codes), ids) and bool((codes >= 0).all()):
            return codes
    raise SegueError(f"{len(ids)} rows of {levels} levels are not delayed by one row a level: give whole sequences, as "
                     "segue.models.streams.delay_codes makes them")


def next_targets(ids: Tensor) -> Tensor:
    """The targets of ids (..., T, Q): (..., T - 1, Q), the ids of each next row, with starts masked as -1."""
    next_rows = ids[..., 1:, :]
    return next_rows.masked_fill(next_rows == START, -1)


class MultiStream(nn.Module):
    """A stack over rows of Q ids.

    config: of the stack; its `vocabulary`, `tables` and `tied` are overridden. codes: the number of codes of each
    level. `heads`: one per level, for the next row's id. Trained by `segue.objectives.EachStream`, decoded by
    `segue.decoding.streams`.
    """

    def __init__(self, config: StackConfig, codes: Sequence[int]) -> None:
        super().__init__()
        if not codes or min(codes) < 1:
            raise SegueError(f"levels of {list(codes)} codes: give one level or more, of one code or more each")
        sizes = [CODES + count for count in codes]
        tables = {f"level {index}": size for index, size in enumerate(sizes[1:], 1)}
        self.codes = list(codes)
        self.stack = Stack(replace(config, vocabulary=sizes[0], tables=tables, tied=False))
        first: nn.Linear = self.stack.head
        self.heads: list[nn.Linear] = nn.ModuleList(  # type: ignore[assignment]
            [first, *(nn.Linear(config.width, size, bias=False) for size in sizes[1:])])
        for head in self.heads:
            nn.init.normal_(head.weight, std=0.02)

    def hidden(self, tokens: Tensor, layout: Layout | None = None, state: State | None = None) -> Tensor:
        """(B, N, Q) long -> (B, N, D); with a state, the rows are pending in it."""
        tokens = tokens if len(self.codes) > 1 else tokens[..., 0]
        layout = layout or (Layout.of(tokens) if state is None else state.layout(tokens.shape[1]))
        hidden = self.stack.hidden(tokens, layout, state)
        if state is not None:
            state.pending = layout
        return hidden

    def forward(self, tokens: Tensor, layout: Layout | None = None, state: State | None = None) -> list[Tensor]:
        """(B, N, Q) long -> for each level the logits (B, N, V) of its next id."""
        hidden = self.hidden(tokens, layout, state)
        return [head(hidden) for head in self.heads]

    def init_state(self, batch: int, history: int = 0) -> State:
        return self.stack.new_state(batch, history)
