"""The contract of a sequence mixer: a map over the sequence axis, (B, T, D) -> (B, T, D), in forms that agree.

A mixer writes its body once, in `run`; the training form (`forward`) and the decoding form (`extend`: prefill, one
step, and verification of a draft chain or tree) both call it. `segue.testing.check_mixer` holds every mixer to this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from segue.errors import SegueError
from segue.mixers.layout import Layout, check_rows
from segue.mixers.state import Carry, Part, Parts, Recurrence, State

if TYPE_CHECKING:
    from segue.kernels.cpu.program import Program, View


class Mixer(nn.Module):
    """Base class of all mixers. A subclass declares its capabilities in class attributes (options may override them per
    object) and implements `run`, and also `parts` if it remembers more than the states of its recurrences."""

    causal: bool = True  # no position sees a later one, so `extend` exists
    constant_state: bool = True  # the state's size does not grow with the sequence
    resettable: bool = True  # packed documents behave as if run apart
    linear_in_values: bool = False  # `matrix`, `values` and `output` exist
    needs_whole_prompt: bool = False  # the prompt cannot be given in pieces
    sets: bool = False  # can read sets, whose parts have no order (`Layout.sets`)
    recomputable: bool = True  # running it again changes nothing, as activation checkpointing needs
    axes: int = 1  # how many sequence axes the input may have
    cost: ClassVar[str] = "T"  # growth of the training form's time and memory with the length T

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def run(self, x: Tensor, layout: Layout, parts: Parts) -> Tensor:
        """(B, N, D) -> (B, N, D). With `parts` (decoding), the nodes continue that state and are left pending in it."""
        raise NotImplementedError

    def parts(self, batch: int, like: Tensor, history: int) -> dict[str, Part]:
        """The parts of a fresh state, with the device and dtype of `like`. Default: a `Carry` for each attribute that
        is a `Recurrence`, under its name."""
        return {name: Carry(part, part.initial(batch, like), history) for name, part in self.named_children()
                if isinstance(part, Recurrence)}

    def forward(self, x: Tensor, layout: Layout | None = None, state: State | None = None) -> Tensor:
        """The training form over whole sequences.

        x: (B, T, D). layout: positions and document starts (default: one document from position 0).
        state: begin from this state (gradients flow into it) instead of a fresh one; x is then pending in it.
        """
        if layout is None:
            layout = Layout.of(x) if state is None else state.layout(x.shape[1])
        self.check_layout(layout)
        if state is None:
            return self.run(x, layout, {})
        check_rows(x.shape[0], state)
        y = self.run(x, layout, state.layers[0])
        state.pending = layout
        return y

    def extend(self, x: Tensor, state: State, parents: Tensor | None = None, positions: Tensor | None = None,
               starts: Tensor | None = None) -> Tensor:
        """The decoding form: nodes x (B, N, D) that follow `state`, a chain or a tree (`parents`, see `Layout`).

        Prefill (many nodes), a step (one) and the verification of a draft are the same call. The state stays as it
        was; what was computed is pending in it until `state.commit(path)`.
        """
        self._check_causal()
        check_rows(x.shape[0], state)
        layout = state.layout(x.shape[1], parents, positions, starts)
        self.check_layout(layout)
        y = self.run(x, layout, state.layers[0])
        state.pending = layout
        return y

    def check_layout(self, layout: Layout) -> None:
        """Raise SegueError if the layout needs a capability that this mixer does not declare."""
        if layout.starts is not None and not self.resettable:
            raise SegueError(f"{type(self).__name__} cannot reset inside a sequence: give it one document per row")
        if layout.grid is not None and len(layout.grid) > self.axes:
            raise SegueError(f"{type(self).__name__} takes {self.axes} sequence axes, not {len(layout.grid)}: "
                             "give the elements as one sequence, or choose a mixer of more axes (docs/mixers.md)")
        if layout.sets is not None and (not self.sets or layout.parents is not None):
            raise SegueError("a draft tree holds no sets" if self.sets else
                             f"{type(self).__name__} cannot read parts without their order: sets in a prompt need a "
                             "model of causal attention alone")

    def _check_causal(self) -> None:
        if not self.causal:
            raise SegueError(f"{type(self).__name__} looks ahead: it has no causal step, use forward on all of it")

    def init_state(self, batch: int, history: int = 0) -> State:
        """A fresh state for `batch` rows. Recurrent states can later go back `history` tokens at most."""
        self._check_causal()
        like = next(self.parameters())
        positions = torch.zeros(batch, dtype=torch.long, device=like.device)
        return State([self.parts(batch, like, history)], positions)

    def lower(self, program: Program, source: View, into: View) -> None:
        """Emit the mixer's operations for the compiled CPU engine: its output for `source` is added to `into`."""
        raise SegueError(f"{type(self).__name__} has no form for the compiled CPU engine")

    def state_parameters(self) -> list[nn.Parameter]:
        """Parameters of this mixer's state itself (decay rates, step sizes), without those of mixers inside it: own
        learning rate, no weight decay."""
        return []

    def penalty(self) -> Tensor | None:
        """A scalar regularisation term added to the training loss per element (such as the length of spans), or
        None."""
        return None

    def matrix(self, x: Tensor) -> Tensor:
        """The (B, H, T, T) matrix that the mixer applies to `values(x)`, where it is linear in its values."""
        raise SegueError(f"{type(self).__name__} is not linear in its values: it has no matrix")

    def values(self, x: Tensor) -> Tensor:
        """(B, H, T, E): what `matrix(x)` is applied to."""
        raise SegueError(f"{type(self).__name__} is not linear in its values")

    def output(self, mixed: Tensor, x: Tensor) -> Tensor:
        """From matrix @ values, (B, H, T, E), to the mixer's output (B, T, D)."""
        raise SegueError(f"{type(self).__name__} is not linear in its values")
