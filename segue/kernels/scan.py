"""The linear scan h_t = a_t * h_{t-1} + b_t: diagonal, time-varying, signed, zero allowed.

It serves every diagonal state-space model and gated linear recurrence. Not in log space: a = 0 (a reset) and a < 0
(a parity) are ordinary values.
"""

from __future__ import annotations

import torch
from torch import Tensor


def linear_scan_reference(a: Tensor, b: Tensor, initial: Tensor) -> Tensor:
    """The naive loop. a, b: (B, T, ...). initial: (B, ...). Returns all states (B, T, ...)."""
    states, h = [], initial
    for t in range(a.shape[1]):
        h = a[:, t] * h + b[:, t]
        states.append(h)
    return torch.stack(states, 1) if states else b


def linear_scan(a: Tensor, b: Tensor, initial: Tensor) -> Tensor:
    """As `linear_scan_reference`, in about log2(T) passes over the data.

    Elements (a, b) compose as (a2 * a1, a2 * b1 + b2); each pass composes every element with the one 2^i before it.
    """
    if a.shape[1] == 0:
        return b
    b = torch.cat([(a[:, :1] * initial[:, None] + b[:, :1]), b[:, 1:]], 1)
    step = 1
    while step < a.shape[1]:
        b = torch.cat([b[:, :step], a[:, step:] * b[:, :-step] + b[:, step:]], 1)
        a = torch.cat([a[:, :step], a[:, step:] * a[:, :-step]], 1)
        step *= 2
    return b
