"""Depth by position: a stack that reads later elements of its answer with fewer of its layers (SkipDecode, Del Corro et
al. 2023, arXiv 2307.02628).

Depth never increases along an answer, so a layer that runs at one position has run at all positions before it: its
cache or recurrence holds them, and nothing is recomputed. All rows of a batch share the schedule, so the cost is known
in advance.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import floor
from typing import ClassVar

from torch import Tensor, nn

from segue.errors import SegueError
from segue.mixers.layout import LayerNodes, Layout
from segue.mixers.state import State
from segue.models.base import needs_whole_prompt
from segue.models.stack import OnePassModel, Stack

UNLIMITED_SPAN = 1 << 40  # longer than any document


@dataclass(frozen=True)
class DepthSchedule:
    """How many layers read the element t positions after the prompt, and which.

    depths: number of layers at t = 0, 1, ...; the last one holds from there on. They must not increase.
    warmup: number of bottom layers that always run; the rest of the depth is layers at the top, and the residual stream
        passes those between unchanged. keep: "top", or "bottom" for plain early exit, which runs bottom layers only.
    prompt: number of layers that read the prompt, at least the first depth (default: all).
    """

    depths: tuple[int, ...]
    warmup: int = 1
    keep: str = "top"
    prompt: int | None = None

    def __post_init__(self) -> None:
        depths = self.depths
        if not depths or any(after > before for before, after in zip(depths, depths[1:])):
            raise SegueError(f"depths {list(depths)} must not grow: a layer would not know the positions it was "
                             "left out at")
        if self.keep not in ("top", "bottom") or not 0 <= self.warmup <= depths[-1] or depths[-1] < 1:
            raise SegueError(f"depths down to {depths[-1]}, warmup {self.warmup}, keep '{self.keep}' do not fit: keep "
                             "is 'top' or 'bottom', and the warm-up at most the least depth, which is at least 1")
        if self.prompt is not None and self.prompt < depths[0]:
            raise SegueError(f"the prompt is read by {self.prompt} layers, fewer than the {depths[0]} after it: give "
                             "at least those")

    @classmethod
    def linear(cls, most: float, least: float, length: int, warmup: int = 1, keep: str = "top",
               prompt: int | None = None) -> DepthSchedule:
        """From `most` layers at the first of `length` positions linearly to `least` at the last, rounded."""
        if length < 1:
            raise SegueError(f"a schedule of {length} positions: give at least 1")
        steps = [most - (most - least) * t / max(length - 1, 1) for t in range(length)]
        return cls(tuple(floor(depth + 0.5) for depth in steps), warmup, keep, prompt)

    @classmethod
    def times(cls, faster: float, layers: int, length: int, warmup: int = 1, keep: str = "top",
              prompt: int | None = None) -> DepthSchedule:
        """A linear schedule of mean depth `layers` / `faster`: from one and a half times that down to half of it, or
        over a smaller range where the number of layers or the warm-up limits it."""
        if not 1 <= faster <= layers / max(warmup, 1):
            raise SegueError(f"{layers} layers, {warmup} of them at every position, cannot be {faster:g} times faster")
        mean = layers / faster
        spread = min(mean / 2, layers - mean, mean - max(warmup, 1))
        return cls.linear(mean + spread, mean - spread, length, warmup, keep, prompt)

    @classmethod
    def parse(cls, depth: DepthSchedule | int | str, length: int) -> DepthSchedule:
        """Parse a depth: "8-3", eight layers at the first of `length` positions down to three at the last; or a fixed
        5."""
        if isinstance(depth, DepthSchedule):
            return depth
        most, _, least = str(depth).partition("-")
        if not most.isdecimal() or not (least or most).isdecimal():
            raise SegueError(f"depth '{depth}' is not a number of layers, such as 4, or two, such as 8-3: so many at "
                             "an answer's beginning and at its end")
        return cls.linear(int(most), int(least or most), length)

    def depth(self, t: int) -> int:
        return self.depths[min(t, len(self.depths) - 1)]

    def active(self, depth: int, layers: int) -> list[int]:
        """The indices of the layers, of `layers`, that run at a depth of `depth`."""
        below = depth if self.keep == "bottom" else self.warmup
        return [*range(below), *range(layers - depth + below, layers)]

    def spans(self, layers: int) -> tuple[int, ...]:
        """The number of positions after the prompt at which each of `layers` layers runs (negative: not in the prompt
        either), see `State.spans`."""
        prompt = layers if self.prompt is None else self.prompt
        if prompt > layers or self.depths[0] > layers:
            raise SegueError(f"depths of up to {max(prompt, self.depths[0])} do not fit a model of {layers} layers")
        active_layers = [set(self.active(depth, layers)) for depth in (prompt, *self.depths)]
        return tuple(-UNLIMITED_SPAN if layer not in active_layers[0] else UNLIMITED_SPAN if layer in active_layers[-1]
                     else sum(layer in run for run in active_layers[1:]) for layer in range(layers))


class Scheduled(OnePassModel, nn.Module):
    """A stack under a schedule, with the stack's own weights. Satisfies `segue.models.base.Decodable`.

    In training (`forward`, `hidden`; hence `learn` with any objective) a layer reads each document only up to its last
    position, so steps become cheaper too. Prompts end where `Batch.prompt` says, in decoding where `State.prompt` says,
    which decoders set; without either, t counts from the beginning of the document. Where the rows of a batch are at
    different t, the deepest one determines the cost of a pass.
    """

    counts_from_prompt: ClassVar[bool] = True  # see `set_prompt_lengths`

    def __init__(self, stack: Stack, schedule: DepthSchedule) -> None:
        super().__init__()
        stack.check_causal(", to elements that have left its layer: depth by position is for causal mixers")
        self.stack, self.schedule = stack, schedule
        self.spans = schedule.spans(len(stack.blocks))

    @property
    def vocabulary(self) -> int:
        return self.stack.vocabulary

    @property
    def resettable(self) -> bool:
        return self.stack.resettable

    @property
    def head(self) -> nn.Linear:
        return self.stack.head

    @property
    def path(self) -> str:
        depths = self.schedule.depths
        return f"{self.stack.path}, {depths[0]} to {depths[-1]} of {len(self.spans)} layers"

    def hidden(self, tokens: Tensor, layout: Layout, state: State | None = None) -> Tensor:
        """`Stack.hidden` in which nodes beyond a layer's span skip that layer."""
        offsets = offsets_from_prompts(layout) if state is None else state.offset_from_prompt(layout.positions)
        if layout.prompt is not None and not needs_whole_prompt(self.stack):
            layout = replace(layout, prompt=None)  # it counts for the depth alone
        lowest, highest = (int(end) for end in offsets.aminmax()) if offsets.numel() else (0, 0)
        x, layer_nodes = self.stack.embed(tokens, layout.positions), dict[int, LayerNodes | None]()
        for index, span in enumerate(self.spans):
            if span <= lowest:
                layer_nodes[index] = None
            elif span > highest:
                x = self.stack.run_block(index, x, layout, state)
            else:
                layer_nodes[index] = nodes = LayerNodes.of(layout, offsets < span)
                x = nodes.scatter(x, self.stack.run_block(index, nodes.gather(x), nodes.layout, state))
        if state is not None:
            state.layer_nodes = layer_nodes
        return self.stack.finish(x, layout)

    def init_state(self, batch: int, history: int = 0) -> State:
        state = self.stack.init_state(batch, history)
        state.spans = self.spans
        return state


def offsets_from_prompts(layout: Layout) -> Tensor:
    """(B, N) long, the position of each node counted from the end of its document's prompt; negative in the prompt. The
    layout must hold whole documents."""
    if layout.prompt is None:
        return layout.positions
    prompt = layout.prompt.long()
    read = prompt.cumsum(1)
    if layout.starts is not None:  # less those of the documents before
        read = read - ((read - prompt) * layout.starts).cummax(1).values
    return layout.positions - read
