"""A bidirectional stack as a model of the next element, which it predicts at a mask appended to the sequence (BERT4Rec:
Sun et al. 2019, arXiv 1904.06690)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from segue.errors import SegueError
from segue.mixers.layout import Layout, check_parents, check_rows
from segue.mixers.state import State
from segue.models.base import Decoding, Output, check_tokens, pad_rows
from segue.models.counts import TokenState
from segue.models.seq2seq import encode_source
from segue.models.stack import Stack, StackConfig

ROWS_AT_ONCE = 256  # rows per pass


class ClozeModel(nn.Module):
    """Satisfies `segue.models.base.Decodable`: each next element costs one pass over the latest elements and a mask.

    stack: its vocabulary is the elements and, last, the mask. It is trained to fill in masks (`hidden` and `head`, as
    `segue.objectives.Cloze` and `MaskedElements` use them). length: the longest row in training, masks included; the
    model reads the latest `length - 1` elements, so that the mask is at a position that training covered.
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
        """The id of the mask, after all elements."""
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

    def hidden(self, tokens: Tensor, layout: Layout, state: State | None = None) -> Tensor:
        """Hidden vectors (B, N, D) of ids (B, N), masks among them, read in both directions."""
        return self.stack.hidden(tokens, layout, state)

    def predict_next(self, rows: Sequence[Sequence[int]]) -> Output:
        """Next-element logits (n, V) after each of n rows of ids, and the hidden vectors (n, D) at the appended
        mask."""
        device = self.head.weight.device
        hidden = [self.head.weight.new_zeros(0, self.config.width)]
        for begin in range(0, len(rows), ROWS_AT_ONCE):
            table = [[*row[max(0, len(row) - self.length + 1) :], self.mask]
                     for row in rows[begin : begin + ROWS_AT_ONCE]]
            tokens, lengths = pad_rows(table).to(device), torch.tensor([len(row) for row in table], device=device)
            encoded = encode_source(self.stack, tokens, lengths)
            hidden.append(encoded[torch.arange(len(table), device=device), lengths - 1])
        at_mask = torch.cat([vectors.to(hidden[-1].dtype) for vectors in hidden])
        return Output(self.head(at_mask)[:, : self.vocabulary], at_mask)

    def forward(self, tokens: Tensor, layout: Layout | None = None) -> Output:
        """The predictions after each prefix of each row (B, T), one document a row: B x T passes."""
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
        nodes_at = np.broadcast_to(np.arange(ids.shape[1]), ids.shape) if at is None else at.cpu().numpy()
        size = state.past.shape[1]
        pasts = [past[size - int(filled) :].tolist() for past, filled in zip(state.past, state.filled)]
        rows = []
        for row, past, nodes in zip(range(len(ids)), pasts, nodes_at.tolist()):
            for node in nodes:
                suffix = ids[row, : node + 1].tolist() if tree is None else []
                while tree is not None and node >= 0:
                    suffix.insert(0, int(ids[row, node]))
                    node = int(tree[row, node])
                rows.append(past + suffix)
        output = self.predict_next(rows)
        state.pending = (ids, tree)
        return Output(output.logits.unflatten(0, nodes_at.shape), output.hidden.unflatten(0, nodes_at.shape))
