"""The long convolution: the whole past through one kernel per channel, by the fast Fourier transform."""

from __future__ import annotations

import torch
from torch import Tensor


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
