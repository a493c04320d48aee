"""A stack that reads both ways, as a model that goes on: what comes next is what it puts at a mask behind the end
(BERT4Rec: Sun et al. 2019, arXiv 1904.06690)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from segue.errors import SegueError
from segue.mixers.layout import Layout, check_parents, check_rows
from segue.mixers.state import State
from segue.models.base import Decoding, Output, check_tokens, pad_rows, padding_starts
from segue.models.counts import TokenState
from segue.models.stack import Stack, StackConfig

ROWS_AT_ONCE = 256  # read at once


class ClozeModel(nn.Module):
    """Satisfies `segue.models.base.Decodable`: each next element costs one reading of the latest elements and a mask.

    stack: over one id more than there are elements; the last is the mask. It learns by filling in masks (`hidden` and
    `head`, as `segue.objectives.Cloze` and `MaskedElements` use them). length: elements that it learned to read at
    once, a mask among them: it is shown the latest `length - 1`, so that no mask stands where none stood in training.
    """

    def __init__(self, stack: Stack, length: int) -> None:
        super().__init__()
        if length < 2 or stack.vocabulary < 2:
            raise SegueError(f"rows of {length} elements of {stack.vocabulary} kinds: there must be something beside "
                             "the mask")
        self.stack, self.length = stack, length

    @property
    def config(self) -> StackConfig:
        return self.stack.config

    @property
    def vocabulary(self) -> int:
        return self.stack.vocabulary - 1

    @property
    def mask(self) -> int:
        """The id of the mask, behind all elements."""
        return self.vocabulary

    @property
    def path(self) -> str:
        return f"{self.stack.path}, a mask at the end"

    @property
    def resettable(self) -> bool:
        return self.stack.resettable

    @property
    def head(self) -> nn.Linear:
        return self.stack.head

    def state_parameters(self) -> list[nn.Parameter]:
        return self.stack.state_parameters()

    def hidden(self, tokens: Tensor, layout: Layout, state: State | None = None) -> Tensor:
        """(B, N), masks among them -> (B, N, D), read both ways."""
        return self.stack.hidden(tokens, layout, state)

    def predict_next(self, rows: Sequence[Sequence[int]]) -> Output:
        """Next-element logits (n, V) after each of n rows of ids, and the hidden vectors (n, D) at the appended
        mask."""
        device = self.head.weight.device
        hidden = [self.head.weight.new_zeros(0, self.config.width)]
        for at in range(0, len(rows), ROWS_AT_ONCE):
            table = [[*row[max(0, len(row) - self.length + 1) :], self.mask] for row in rows[at : at + ROWS_AT_ONCE]]
            tokens, lengths = pad_rows(table).to(device), torch.tensor([len(row) for row in table], device=device)
            shape = (len(table), tokens.shape[1])
            layout = Layout.chain(shape, starts=padding_starts(lengths, shape[1]), device=device)
            hidden.append(self.hidden(tokens, layout)[torch.arange(len(table), device=device), lengths - 1])
        found = torch.cat([each.to(hidden[-1].dtype) for each in hidden])
        return Output(self.head(found)[:, : self.vocabulary], found)

    def forward(self, tokens: Tensor, layout: Layout | None = None) -> Output:
        """What comes after each beginning of each row (B, T), one document a row: B x T readings."""
        if layout is not None and layout.starts is not None:
            raise SegueError("a mask is put behind one document at a time: give one document a row")
        return self.extend(tokens, self.init_state(len(tokens)))

    def init_state(self, batch: int, history: int = 0) -> TokenState:
        return TokenState.fresh(batch, self.length, history)

    def extend(self, tokens: Tensor, state: Decoding, parents: Tensor | None = None,
               at: Tensor | None = None) -> Output:
        """See `segue.models.base.Decodable.extend`."""
        assert isinstance(state, TokenState)
        check_tokens(tokens, self.vocabulary)
        check_rows(len(tokens), state)
        if parents is not None:
            check_parents(parents, *tokens.shape)
        ids, tree = tokens.cpu().numpy().astype(np.int32), None if parents is None else parents.cpu().numpy()
        wanted = np.broadcast_to(np.arange(ids.shape[1]), ids.shape) if at is None else at.cpu().numpy()
        size = state.past.shape[1]
        pasts = [past[size - int(filled) :].tolist() for past, filled in zip(state.past, state.filled)]
        rows = []
        for row, past, nodes in zip(range(len(ids)), pasts, wanted.tolist()):
            for node in nodes:
                new = ids[row, : node + 1].tolist() if tree is None else []
                while tree is not None and node >= 0:
                    new.insert(0, int(ids[row, node]))
                    node = int(tree[row, node])
                rows.append(past + new)
        output = self.predict_next(rows)
        state.pending = (ids, tree)
        return Output(output.logits.unflatten(0, wanted.shape), output.hidden.unflatten(0, wanted.shape))
