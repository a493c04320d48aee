"""The long convolution: the whole past through one kernel per channel, by the fast Fourier transform."""

from __future__ import annotations

import torch
from torch import Tensor


def long_convolution_reference(u: Tensor, kernel: Tensor) -> Tensor:
    """The naive sum y_t = sum_s kernel_s u_{t-s}. u: (B, T, H). kernel: (S, H), S taps."""
    y = torch.zeros_like(u)
    for s in range(min(kernel.shape[0], u.shape[1])):
        y[:, s:] += kernel[s] * u[:, : u.shape[1] - s]
    return y


def long_convolution(u: Tensor, kernel: Tensor) -> Tensor:
    """As `long_convolution_reference`, in O(T log T). Computed in float32 at least; y has the dtype of u."""
    n, taps = u.shape[1], min(kernel.shape[0], u.shape[1])
    if not u.numel():
        return u
    wide = torch.promote_types(u.dtype, torch.float32)
    size = 1 << (n + taps - 2).bit_length() if n + taps > 2 else 1  # the end of the line must not wrap to its beginning
    spectrum = torch.fft.rfft(u.to(wide), n=size, dim=1) * torch.fft.rfft(kernel[:taps].to(wide), n=size, dim=0)
    return torch.fft.irfft(spectrum, n=size, dim=1)[:, :n].to(u.dtype)
