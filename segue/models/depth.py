"""Depth by position: a stack that reads each next element of its answer with fewer of its layers (SkipDecode,
Del Corro et al. 2023, arXiv 2307.02628).

Depth never grows along an answer, so wherever a layer runs it has run at all positions before: its cache or recurrence
holds them, and nothing is computed again. All rows of a batch share the schedule, and the cost is known beforehand.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor
from typing import ClassVar

from torch import Tensor, nn

from segue.errors import SegueError
from segue.mixers.layout import LayerNodes, Layout
from segue.mixers.state import State
from segue.models.stack import OnePassModel, Stack

UNLIMITED_SPAN = 1 << 40  # longer than any document


@dataclass(frozen=True)
class DepthSchedule:
    """How many layers read the element t places behind the prompt, and which.

    depths: layers at t = 0, 1, ...; the last number holds from there on. They must not grow.
    warmup: so many layers at the bottom always run, the others that do are at the top; between them the residual stream
        is carried unchanged. keep: "top", or "bottom" for the plain early exit, whose layers are all at the bottom.
    prompt: layers that read the prompt, at least as many as the first depth (default: all).
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
            raise SegueError(f"the prompt is read by {self.prompt} layers, fewer than the {depths[0]} behind it: give "
                             "at least those")

    @classmethod
    def linear(cls, most: float, least: float, length: int, warmup: int = 1, keep: str = "top",
               prompt: int | None = None) -> DepthSchedule:
        """From `most` layers at the first of `length` positions to `least` at the last, rounded to whole ones."""
        if length < 1:
            raise SegueError(f"a schedule of {length} positions: give at least 1")
        steps = [most - (most - least) * t / max(length - 1, 1) for t in range(length)]
        return cls(tuple(floor(depth + 0.5) for depth in steps), warmup, keep, prompt)

    @classmethod
    def times(cls, faster: float, layers: int, length: int, warmup: int = 1, keep: str = "top",
              prompt: int | None = None) -> DepthSchedule:
        """Linear, `layers` / `faster` deep on average: from one and a half times that down to half of it, or nearer
        together where there are not as many layers or the warm-up is more."""
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
        if not most.isdigit() or not (least or most).isdigit():
            raise SegueError(f"depth '{depth}' is not a number of layers, such as 4, or two, such as 8-3: so many at "
                             "an answer's beginning and at its end")
        return cls.linear(int(most), int(least or most), length)

    def depth(self, t: int) -> int:
        return self.depths[min(t, len(self.depths) - 1)]

    def active(self, depth: int, layers: int) -> list[int]:
        """Which of `layers` layers, from 0, run where `depth` do."""
        below = depth if self.keep == "bottom" else self.warmup
        return [*range(below), *range(layers - depth + below, layers)]

    def spans(self, layers: int) -> tuple[int, ...]:
        """For each of `layers` layers at how many places behind the prompt it runs (below 0: not in the prompt
        either), see `State.spans`."""
        prompt = layers if self.prompt is None else self.prompt
        if prompt > layers or self.depths[0] > layers:
            raise SegueError(f"depths of up to {max(prompt, self.depths[0])} do not fit a model of {layers} layers")
        runs = [set(self.active(depth, layers)) for depth in (prompt, *self.depths)]
        return tuple(-UNLIMITED_SPAN if layer not in runs[0] else UNLIMITED_SPAN if layer in runs[-1]
                     else sum(layer in run for run in runs[1:]) for layer in range(layers))


class Scheduled(OnePassModel, nn.Module):
    """A stack under a schedule, with the stack's own weights. Satisfies `segue.models.base.Decodable`.

    In training (`forward`, `hidden`; hence `learn` with any objective) a layer reads only the beginning of each
    document, up to where it leaves, so steps become cheaper too; where prompts end is told by `Batch.prompt`. In
    decoding it is told by `State.prompt`, which decoders set. Where nothing tells, t counts from the beginning of the
    document. Where the rows of a batch stand at different t, the deepest decides what a pass costs.
    """

    counts_from_prompt: ClassVar[bool] = True  # see `set_prompt_lengths`

    def __init__(self, stack: Stack, schedule: DepthSchedule) -> None:
        super().__init__()
        for name, block in zip(stack.config.mixers, stack.blocks):
            if not block.mixer.causal:
                raise SegueError(f"mixer '{name}' looks ahead, to elements that have left its layer: depth by position "
                                 "is for causal mixers")
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

    def state_parameters(self) -> list[nn.Parameter]:
        return self.stack.state_parameters()

    def hidden(self, tokens: Tensor, layout: Layout, state: State | None = None) -> Tensor:
        """`Stack.hidden` in which nodes beyond a layer's span skip that layer."""
        behind = offsets_from_prompts(layout) if state is None else state.offset_from_prompt(layout.positions)
        least, most = (int(end) for end in behind.aminmax()) if behind.numel() else (0, 0)
        x, given = self.stack.embed(tokens, layout.positions), dict[int, LayerNodes | None]()
        for index, span in enumerate(self.spans):
            if span <= least:
                given[index] = None
            elif span > most:
                x = self.stack.run_block(index, x, layout, state)
            else:
                given[index] = nodes = LayerNodes.of(layout, behind < span)
                x = nodes.scatter(x, self.stack.run_block(index, nodes.gather(x), nodes.layout, state))
        if state is not None:
            state.layer_nodes = given
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
