"""Additions to a pretrained decoder: cross-attention to a source, a summary of the story so far, and prompts
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
    """Insert a cross-attention, whose output is initially zero, between mixer and channel mixer of these layers, and
    return the inserted modules.

    first: the first position that attends to the source (default: all do). SegueError where a layer does not exist,
    has a cross-attention already, or has parallel branches."""
    added = []
    for index in layers:
        if not 0 <= index < len(stack.blocks) or stack.blocks[index].cross is not None or stack.config.parallel:
            raise SegueError(f"there is no layer {index} without cross-attention in this stack of {len(stack.blocks)}, "
                             "or its branches are parallel")
        block, weight = stack.blocks[index], stack.embedding.weight
        block.cross_norm = make_norm(stack.config).to(weight)
        block.cross = CrossAttention(stack.config.width, heads, first=first).to(weight)
        nn.init.zeros_(block.cross.out.weight)
        added.append(block.cross)
    return added


class SequenceConditioner(nn.Module):
    """Summarises a sequence of vectors: a causal stack of one layer reads them, and its last hidden vector is mapped
    linearly, initially to zeros. inputs: C, features of each vector. width: D, of the stack and the summary."""

    def __init__(self, inputs: int, width: int, mixer: str = "attention") -> None:
        super().__init__()
        self.stack = Stack(StackConfig(1, width, [mixer], inputs=inputs, tied=False, norm="layer"))
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, vectors: Tensor, lengths: Tensor) -> Tensor:
        """Summaries (B, D) of vectors (B, T, C), of which the first `lengths` (B,), at least 1, of each row are valid.
        """
        hidden = self.stack.hidden(vectors, Layout.of(vectors))
        return self.out(hidden[torch.arange(len(hidden)), lengths - 1])


class Retrofitted(ConditionedDecoder):
    """A model of rows of segments that also reads a source: the codes of a picture, and the texts of the story so far.

    A prompt is `source + [begin] + text`. The source is the codes of one picture (as many ids of the last segment as it
    has positions), then whole texts of the first segment, padded with the id `pad`. The last of these is the current
    text, which `text` repeats without its first element: `begin` stands for that.

    lm: becomes part of this model. layers: those that attend to the codes' normed embeddings, from the last position of
    the text on, where the first code is predicted. story: maps the texts so far, each the mean of its words'
    embeddings, to a vector that is added to the embedding at `begin`. prompts: rows in front of the sequence. looks:
    whether the codes are visible; if not, the layers attend to zeros.
    """

    def __init__(self, lm: MultiSegmentLM, layers: Iterable[int], *, heads: int = 4, story: SequenceConditioner |
                 None = None, prompts: PromptTuning | None = None, looks: bool = True, pad: int = 1) -> None:
        super().__init__()
        self.lm, self.decoder, self.story, self.prompts = lm, lm.stack, story, prompts
        self.looks, self.pad = looks, pad
        self.picture_segment = int(lm.place.max())
        self.text_length = lm.segment_start(1)  # positions of a text
        self.num_codes = len(lm.place) - lm.segment_start(self.picture_segment)
        self.source_norm = make_norm(lm.stack.config)
        self.cross = insert_cross(lm.stack, layers, heads, first=lm.segment_start(self.picture_segment) - 1)

    def freeze(self) -> Retrofitted:
        """Freeze the pretrained model except its embeddings and the inserted modules (prompt tuning)."""
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
        """(B, M, D): the codes' normed embeddings, at the positions that the last segment has in a row."""
        positions = self.lm.segment_start(self.picture_segment) + torch.arange(self.num_codes, device=source.device)
        memory = self.source_norm(self.decoder.embed(source[:, : self.num_codes], positions.expand(len(source), -1)))
        return memory if self.looks else memory * 0

    def summary(self, source: Tensor, lengths: Tensor) -> Tensor | None:
        """(B, D): the summary of the texts so far, or None without a `story`."""
        if self.story is None:
            return None
        texts = source[:, self.num_codes :]
        texts = texts[:, : texts.shape[1] // self.text_length * self.text_length].unflatten(1, (-1, self.text_length))
        is_word = (texts != self.pad)[..., None]
        means = (self.decoder.embedding(texts) * is_word).sum(2) / is_word.sum(2).clamp(min=1)
        return self.story(means, (lengths - self.num_codes) // self.text_length)

    def _read(self, prompts: SplitPrompts, state: SourceState | None = None) -> Tensor:
        text_ids = prompts.lengths - self.num_codes
        if bool((text_ids % self.text_length).any()) or bool((text_ids <= 0).any()):
            raise SegueError(f"a source is {self.num_codes} codes and then texts of {self.text_length} ids each, at "
                             f"least one: these are of {prompts.lengths.tolist()} ids")
        source, target = (prompts.lengths, self.memory(prompts.source, prompts.lengths)), prompts.target
        layout = Layout(prompts.node, source=source[::-1])
        x = self.decoder.embed(target.masked_fill(target == self.begin, 0), prompts.node)
        if (summary := self.summary(prompts.source, prompts.lengths)) is not None:
            x = torch.cat([x[:, :1] + summary[:, None], x[:, 1:]], 1)
        prompt_length = 0
        if self.prompts is not None and state is None:
            rows = self.prompts(len(x))
            prompt_length, x = rows.shape[1], torch.cat([rows, x], 1)
            layout = replace(layout_with_prompt(rows, layout), source=layout.source)
        for index in range(len(self.decoder.blocks)):
            x = self.decoder.run_block(index, x, layout, state)
        return prompts.scatter_to_rows(self.decoder.finish(x, layout)[:, prompt_length:])

    def _logits(self, hidden: Tensor, target_positions: Tensor) -> Tensor:
        return nn.functional.pad(self.lm.scores(hidden, target_positions), (0, 1), value=-torch.inf)

    def init_state(self, batch: int, history: int = 0) -> SourceState:
        """The state after the prompts, which have positions below 0."""
        state = super().init_state(batch, history)
        if self.prompts is not None:
            x = self.prompts(batch)
            layout = positions_in_front(x)
            for index, parts in enumerate(state.layers):
                x = self.decoder.run_block(index, x, layout, state)
                for part in parts.values():
                    part.commit(None, None)
        return state
