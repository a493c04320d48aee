"""A pretrained decoder fitted with what it did not have: a source to look at, a summary of what came before, prompts
(StoryDALL-E: Maharana et al. 2022, arXiv 2209.06192)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from segue.errors import SegueError
from segue.mixers.cross import CrossAttention
from segue.mixers.layout import Layout
from segue.models.prompts import PromptTuning, layout_with_prompt, positions_in_front
from segue.models.segments import MultiSegmentLM
from segue.models.seq2seq import ConditionedDecoder, SourceState, SplitPrompts
from segue.models.stack import Stack, StackConfig, make_norm


def insert_cross(stack: Stack, layers: Iterable[int], heads: int = 4, first: int | None = None) -> list[CrossAttention]:
    """Put a cross-attention between mixer and channel mixer of these layers; at first it changes nothing.

    first: the position from which on nodes look at the source (default: all do)."""
    made = []
    for index in layers:
        if not 0 <= index < len(stack.blocks) or stack.blocks[index].cross is not None or stack.config.parallel:
            raise SegueError(f"there is no layer {index} without cross-attention in this stack of {len(stack.blocks)}, "
                             "or its branches are parallel")
        block, like = stack.blocks[index], stack.embedding.weight
        block.cross_norm = make_norm(stack.config).to(like)
        block.cross = CrossAttention(stack.config.width, heads, first=first).to(like)
        nn.init.zeros_(block.cross.out.weight)
        made.append(block.cross)
    return made


class SequenceConditioner(nn.Module):
    """One vector of a sequence of vectors so far: a linear map of each into `stack`, a causal one, whose last hidden
    vector is mapped to `width` numbers, at first zeros."""

    def __init__(self, inputs: int, width: int, mixer: str = "attention") -> None:
        super().__init__()
        self.stack = Stack(StackConfig(1, width, [mixer], inputs=inputs, tied=False, norm="layer"))
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, vectors: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, C), of which the first `lengths` (B,) of each row are real, at least 1 -> (B, D)."""
        hidden = self.stack.hidden(vectors, Layout.of(vectors))
        return self.out(hidden[torch.arange(len(hidden)), lengths - 1])


class Retrofitted(ConditionedDecoder):
    """A model of rows of segments that also sees a source: the codes of a picture, and the texts so far.

    A prompt is `source + [begin] + text`, the source so many codes as the last segment has positions (ids of that
    segment), then whole texts of the first segment, padded with the id `pad`; the last of them is the one that follows
    without its first element, for which `begin` stands.

    lm: moved into this model. layers: which look at the codes (their embeddings with positions, normed), from the last
    position of the text on, where the first code is said. story: makes a vector of the texts so far, each the mean of
    its words' embeddings; it is added to what `begin` embeds. prompts: rows in front of all. looks: whether there are
    codes to see; without them the layers look at zeros.
    """

    def __init__(self, lm: MultiSegmentLM, layers: Iterable[int], *, heads: int = 4, story: SequenceConditioner |
                 None = None, prompts: PromptTuning | None = None, looks: bool = True, pad: int = 1) -> None:
        super().__init__()
        self.lm, self.decoder, self.story, self.prompts = lm, lm.stack, story, prompts
        self.looks, self.pad = looks, pad
        self.pictures = int(lm.place.max())
        self.text = lm.segment_start(1)  # positions of a text
        self.codes = len(lm.place) - lm.segment_start(self.pictures)
        self.source_norm = make_norm(lm.stack.config)
        self.cross = insert_cross(lm.stack, layers, heads, first=lm.segment_start(self.pictures) - 1)

    def state_parameters(self) -> list[nn.Parameter]:
        return self.decoder.state_parameters()

    def freeze(self) -> Retrofitted:
        """Leave all of the pretrained model as it is, but for its embeddings and what was put into it (prompt
        tuning)."""
        self.decoder.requires_grad_(False)
        for block in self.decoder.blocks:
            for part in (block.cross, block.cross_norm):
                if part is not None:
                    part.requires_grad_(True)
        for table in (self.decoder.embedding, self.decoder.position_embedding):
            if table is not None:
                table.requires_grad_(True)
        return self

    def memory(self, source: Tensor, lengths: Tensor) -> Tensor:
        """(B, M, D): the codes' embeddings with their positions in a row, normed."""
        positions = self.lm.segment_start(self.pictures) + torch.arange(self.codes, device=source.device)
        memory = self.source_norm(self.decoder.embed(source[:, : self.codes], positions.expand(len(source), -1)))
        return memory if self.looks else memory * 0

    def summary(self, source: Tensor, lengths: Tensor) -> Tensor | None:
        """(B, D): of the texts so far."""
        if self.story is None:
            return None
        texts = source[:, self.codes :]
        texts = texts[:, : texts.shape[1] // self.text * self.text].unflatten(1, (-1, self.text))
        words = (texts != self.pad)[..., None]
        means = (self.decoder.embedding(texts) * words).sum(2) / words.sum(2).clamp(min=1)
        return self.story(means, (lengths - self.codes) // self.text)

    def _read(self, prompts: SplitPrompts, state: SourceState | None = None) -> Tensor:
        if bool(((prompts.lengths - self.codes) % self.text).any()) or bool((prompts.lengths <= self.codes).any()):
            raise SegueError(f"a source is {self.codes} codes and then texts of {self.text} ids each, at least one: "
                             f"these are of {prompts.lengths.tolist()} ids")
        source, target = (prompts.lengths, self.memory(prompts.source, prompts.lengths)), prompts.target
        layout = Layout(prompts.node, source=source[::-1])
        x = self.decoder.embed(target.masked_fill(target == self.begin, 0), prompts.node)
        if (summary := self.summary(prompts.source, prompts.lengths)) is not None:
            x = torch.cat([x[:, :1] + summary[:, None], x[:, 1:]], 1)
        front = 0
        if self.prompts is not None and state is None:
            rows = self.prompts(len(x))
            front, x, layout = rows.shape[1], torch.cat([rows, x], 1), replace(layout_with_prompt(rows, layout),
                                                                               source=layout.source)
        for index in range(len(self.decoder.blocks)):
            x = self.decoder.run_block(index, x, layout, state)
        return prompts.scatter_to_rows(self.decoder.finish(x, layout)[:, front:])

    def _logits(self, hidden: Tensor, place: Tensor) -> Tensor:
        return nn.functional.pad(self.lm.scores(hidden, place), (0, 1), value=-torch.inf)

    def init_state(self, batch: int, history: int = 0) -> SourceState:
        """A state that has read the prompts, at positions below 0."""
        state = super().init_state(batch, history)
        if self.prompts is not None:
            x = self.prompts(batch)
            layout = positions_in_front(x)
            for index, parts in enumerate(state.layers):
                x = self.decoder.run_block(index, x, layout, state)
                for part in parts.values():
                    part.commit(None, None)
        return state
