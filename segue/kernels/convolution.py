"""Convolutions: the long one, over the whole past with one filter per channel, by FFT; and the short causal one over a
few taps, compiled for long sequences on a CPU (`segue.kernels.cpu.convolution`)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from segue.kernels.compiled import as_array, as_lines, as_mask, runs_compiled
from segue.kernels.cpu.buffers import pooled_empty


def long_convolution_reference(u: Tensor, kernel: Tensor, back: Tensor | None = None) -> Tensor:
    """The naive sum y_t = sum_s kernel_s u_{t-s}, and with `back` also sum_s back_s u_{t+s}.

    u: (B, T, H). kernel, back: (S, H), S taps each.
    """
    y = torch.zeros_like(u)
    for s in range(min(kernel.shape[0], u.shape[1])):
        y[:, s:] += kernel[s] * u[:, : u.shape[1] - s]
    return y if back is None else y + long_convolution_reference(u.flip(1), back).flip(1)


def long_convolution(u: Tensor, kernel: Tensor, back: Tensor | None = None) -> Tensor:
    """As `long_convolution_reference`, in O(T log T). Computed in float32 at least; y has the dtype of u."""
    n, taps = u.shape[1], min(max(kernel.shape[0], 0 if back is None else back.shape[0]), u.shape[1])
    if u.numel() == 0:
        return u
    wide = torch.promote_types(u.dtype, torch.float32)
    size = _fast_size(n + taps - 1)  # the end of the line must not wrap to its beginning
    spectrum = torch.fft.rfft(kernel[:taps].to(wide), n=size, dim=0)
    if back is not None:  # a mirrored kernel has the conjugate spectrum
        spectrum = spectrum + torch.fft.rfft(back[:taps].to(wide), n=size, dim=0).conj()
    return torch.fft.irfft(torch.fft.rfft(u.to(wide), n=size, dim=1) * spectrum, n=size, dim=1)[:, :n].to(u.dtype)


def _fast_size(least: int) -> int:
    """The smallest FFT-friendly size of at least `least`: a power of two times a small odd number."""
    return min(odd << (-(-least // odd) - 1).bit_length() for odd in (1, 3, 5, 9, 15, 25, 27))


def tap_windows(x: Tensor, window: Tensor, starts: Tensor | None = None) -> list[Tensor]:
    """The inputs (B, T, D) in each node's window of taps, from taps - 1 nodes before to its own
    (`short_convolution`)."""
    n, before = x.shape[1], window.shape[1]
    line = torch.cat([window, x], 1)
    seen = [line[:, tap : tap + n] for tap in range(before + 1)]
    if starts is None:
        return seen
    document = F.pad(starts.long().cumsum(1), (before, 0))
    return [inputs * (document[:, tap : tap + n] == document[:, before:])[..., None] for tap, inputs in enumerate(seen)]


def short_convolution_reference(x: Tensor, weight: Tensor, bias: Tensor, window: Tensor, starts: Tensor | None = None,
                                silu: bool = False) -> Tensor:
    """y_t = bias + sum_k weight_{taps - 1 - k} x_{t - k}, channel by channel, then SiLU of it if `silu`; in torch.

    x: (B, T, D). weight: (D, taps), the last tap weighs the node itself. bias: (D,). window: (B, taps - 1, D), what
    was before x. starts: (B, T) bool or None, nothing before these is seen. Returns y (B, T, D).
    """
    y = bias
    for tap, seen in enumerate(tap_windows(x, window, starts)):
        y = y + seen * weight[:, tap]
    return F.silu(y) if silu else y


def short_convolution(x: Tensor, weight: Tensor, bias: Tensor, window: Tensor, starts: Tensor | None = None,
                      silu: bool = False) -> Tensor:
    """As `short_convolution_reference`. Where it is compiled it is computed in float32 at least."""
    kind = torch.promote_types(x.dtype, weight.dtype)
    wide = torch.promote_types(kind, torch.float32)
    if kind == torch.float32 and x.device.type == "cuda" and torch.is_autocast_enabled("cuda"):
        kind = torch.get_autocast_dtype("cuda")  # as torch's own convolutions answer
    if x.device.type == "cpu":
        x = x if x.dtype == wide else x.contiguous().to(wide)  # torch converts slices one number at a time
        weight, bias, window = (y.to(wide) for y in (weight, bias, window))
    if not runs_compiled(x):
        return short_convolution_reference(x, weight, bias, window, starts, silu).to(kind)
    return _ShortConvolution.apply(x, _pad_taps(weight), bias, window, as_mask(x, starts), silu).to(kind)


class _ShortConvolution(torch.autograd.Function):
    """weight: (taps, D), padded to what the loops take."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, window: Tensor, starts: Tensor, silu: bool) -> Tensor:
        from segue.kernels.cpu import convolution, threads

        y = pooled_empty(x, *x.shape)
        tasks = x.shape[0] * _spans(x) * -(-x.shape[2] // convolution.WIDE)
        threads.parallel_for(convolution.short, tasks, as_lines(x),
                             *map(as_array, (weight, bias, window, starts)), silu, y.numpy())
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:5])
        ctx.silu = inputs[5]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        from segue.kernels.cpu import convolution, threads

        x, weight, bias, window, starts = ctx.saved_tensors
        spans = x.shape[0] * _spans(x)
        dx, dwindow = pooled_empty(x, *x.shape), torch.empty(window.shape, dtype=x.dtype)
        dparameters = x.new_zeros(spans, len(weight) + 1, x.shape[2])
        threads.parallel_for(convolution.short_backward, spans * -(-x.shape[2] // convolution.WIDE), as_lines(x),
                             *map(as_array, (weight, bias, window, starts)), ctx.silu, as_array(dy),
                             *(z.numpy() for z in (dx, dparameters, dwindow)))
        total = dparameters.sum(0)
        return dx, total[:-1], total[-1], dwindow, None, None


def _pad_taps(weight: Tensor) -> Tensor:
    """(D, taps) -> (taps, D), with zeros before the first."""
    from segue.kernels.cpu import convolution

    return F.pad(weight, (-weight.shape[1] % convolution.TAPS, 0)).T


def _spans(x: Tensor) -> int:
    from segue.kernels.cpu import convolution

    return -(-x.shape[1] // convolution.NODES)
