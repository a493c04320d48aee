"""Convolutions along the sequence, with a kernel per channel: the long one, with the whole past, by the fast Fourier
transform; the short one, with the last few nodes, compiled on a CPU (`segue.kernels.cpu.convolution`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from segue.kernels.cpu.room import room
from segue.kernels.scan import _array, _dense, _lines, _mask


def short_convolution(x: Tensor, window: Tensor, weight: Tensor, bias: Tensor, starts: Tensor | None = None) -> Tensor:
    """y_t = bias + sum_j weight_j x_{t - taps + 1 + j}, where a document does not look at the one before.

    x: (B, T, D). window: (B, taps - 1, D), the inputs before. weight: (D, taps). bias: (D,). starts: (B, T) bool, where
    documents begin, or None. For all that `segue.kernels.scan.compiles`.
    """
    return _ShortConvolution.apply(x, window, weight.T, bias, _mask(x, starts))


class _ShortConvolution(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, window: Tensor, weight: Tensor, bias: Tensor, starts: Tensor) -> Tensor:
        from segue.kernels.cpu import convolution, threads

        x, y = _dense(x), room(x, *x.shape)
        threads.share(convolution.short, len(x) * -(-x.shape[2] // convolution.WIDE), _lines(x[:, :, None]),
                      *map(_array, (window, weight, bias, starts)), y.numpy())
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:3], inputs[4])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        from segue.kernels.cpu import convolution, threads

        x, window, weight, starts = ctx.saved_tensors
        x, dx = _dense(x), room(x, *x.shape)
        dwindow = torch.empty(window.shape, dtype=x.dtype)
        dweight = x.new_empty(len(x), len(weight) + 1, x.shape[2])
        threads.share(convolution.short_backward, len(x) * -(-x.shape[2] // convolution.WIDE), _lines(x[:, :, None]),
                      *map(_array, (window, weight, starts, dy)), *(z.numpy() for z in (dx, dwindow, dweight)))
        dweight = dweight.sum(0)
        return dx, dwindow, dweight[:-1], dweight[-1], None


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
    """The smallest size from `least` on that is a power of two times a small odd number, as transforms like it."""
    return min(odd << (-(-least // odd) - 1).bit_length() for odd in (1, 3, 5, 9, 15, 25, 27))
