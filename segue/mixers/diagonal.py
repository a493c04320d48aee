"""What state spaces with a complex diagonal transition share: the recurrence, and a mixer with many inputs and outputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.kernels.scan import linear_scan
from segue.mixers.base import Mixer
from segue.mixers.layout import Layout
from segue.mixers.ssm import upcast
from segue.mixers.state import Parts, Recurrence, Tensors

if TYPE_CHECKING:
    from segue.kernels.cpu.program import Program, View


class DiagonalRecurrence(Recurrence):
    """h_t = a h_{t-1} + u_t, with complex decays a of any shape S, the same at every node.

    Inputs and outputs (B, N, *S, 2) and the state (B, *S, 2) hold real and imaginary parts, float32 or wider: a state
    that decays slowly does not survive bfloat16.
    """

    def decay(self) -> Tensor:
        """Return the decays a, complex (*S)."""
        raise NotImplementedError

    def initial(self, batch: int, like: Tensor) -> Tensors:
        return (upcast(like.new_zeros(batch, *self.decay().shape, 2)),)

    def scan(self, inputs: Tensors, state: Tensors, starts: Tensor | None = None,
             lengths: Tensor | None = None) -> tuple[Tensor, Tensors]:
        u, h = (torch.view_as_complex(x) for x in (inputs[0], state[0]))
        states = torch.view_as_real(linear_scan(self.decay().to(u.dtype)[None, None], u, h, starts))
        if not states.shape[1] or lengths is None:
            return states, (states[:, -1] if states.shape[1] else state[0],)
        last = states[torch.arange(len(states), device=states.device), (lengths - 1).clamp(min=0)]
        return states, (torch.where(lengths.view(-1, *[1] * (last.dim() - 1)) > 0, last, state[0]),)


class DiagonalMixer(Mixer):
    """y_t = Re(C h_t) + D u_t with h_t = a h_{t-1} + B u_t: P complex states that read from and write to all channels.

    C: (H, P, 2), real and imaginary parts. D: (H,). A subclass sets both and the recurrence, and implements `inputs`.
    """

    linear_in_values = True
    recurrence: DiagonalRecurrence
    C: nn.Parameter
    D: nn.Parameter

    def inputs(self) -> Tensor:
        """Return B, complex (P, H)."""
        raise NotImplementedError

    def _write(self, x: Tensor) -> Tensor:
        """Return B u, (B, N, P, 2)."""
        weight = torch.view_as_real(self.inputs()).transpose(1, 2).flatten(0, 1)  # real and imaginary rows in turn
        return upcast(F.linear(x, weight.to(x.dtype))).unflatten(-1, (-1, 2))

    def _read(self, states: Tensor, x: Tensor) -> Tensor:
        real, imaginary = self.C.unbind(-1)
        weight = torch.stack([real, -imaginary], -1)  # Re(c h) = Re c Re h - Im c Im h
        return F.linear(states.flatten(2).to(x.dtype), weight.flatten(1)) + self.D * x

    def run(self, x: Tensor, layout: Layout, parts: Parts) -> Tensor:
        return self._read(self.recurrence((self._write(x),), layout, parts.get("recurrence")), x)

    def state_parameters(self) -> list[nn.Parameter]:
        return list(self.recurrence.parameters())

    def lower(self, program: Program, source: View, into: View) -> None:
        write = self.inputs()  # the engine keeps all real parts before all imaginary ones
        written, states = (program.register(name, 2 * len(write)) for name in ("written", "states"))
        program.linear(source, written, torch.cat([write.real, write.imag]))
        program.diagonal(self.recurrence.decay(), written, states)
        program.linear(states, into, torch.cat([self.C[..., 0], -self.C[..., 1]], 1), add=True)
        program.add(source, into, self.D)

    def matrix(self, x: Tensor) -> Tensor:
        """(B, 2P, T, T): the powers of each decay, first all real parts, then all imaginary parts."""
        lag = torch.arange(x.shape[1], device=x.device)
        powers = (self.recurrence.decay()[:, None, None] ** (lag[:, None] - lag).clamp(min=0)).tril()
        return torch.cat([powers.real, powers.imag]).to(x.dtype).expand(len(x), -1, -1, -1)

    def values(self, x: Tensor) -> Tensor:
        """(B, 2P, T, 2): the input of each state, real and imaginary part, once for each half of the heads."""
        return self._write(x).transpose(1, 2).repeat(1, 2, 1, 1)

    def output(self, mixed: Tensor, x: Tensor) -> Tensor:
        by_real, by_imaginary = mixed.transpose(1, 2).chunk(2, 2)
        turned = torch.stack([-by_imaginary[..., 1], by_imaginary[..., 0]], -1)
        return self._read(by_real + turned, x)
