"""Position encodings for attention: rotary (Su et al. 2021), ALiBi biases (Press et al. 2022), sinusoids (Vaswani et
al. 2017) and relative positions by skewing (Huang et al. 2018, arXiv 1809.04281)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from segue.errors import SegueError

ABSENT = -(2**40)  # stands for a distance or a trait that does not exist


def rotary_frequencies(width: int, theta: float = 10_000.0, scaling: dict[str, Any] | None = None) -> Tensor:
    """Return the rotary frequencies, (width / 2,) radians per position; computed on the CPU, whatever the default
    device.

    theta: base. scaling: slows the rotations down so that a model reaches further than it was trained for. {"kind":
    "linear", "factor"} slows all of them. "llama3" and "yarn" (Peng et al. 2023) slow those that turn fewer than `low`
    times over the training `length`, leave those that turn more than `high` times, and interpolate linearly in the
    number of turns (llama3) or in the index (yarn; `whole`: between whole indices).
    """
    index = torch.arange(0, width, 2, dtype=torch.float64, device="cpu") / width
    frequencies = theta**-index
    if scaling is None:
        return frequencies
    kind, factor = scaling["kind"], scaling["factor"]
    if kind == "linear":
        return frequencies / factor
    if kind not in ("llama3", "yarn"):
        raise SegueError(f"rotary scaling '{kind}' is unknown: choose linear, llama3 or yarn")
    length, low, high = scaling["length"], scaling["low"], scaling["high"]
    if kind == "llama3":
        kept = (frequencies * length / (2 * math.pi) - low) / (high - low)
    else:
        first, last = (width * math.log(length / (2 * math.pi * turns)) / math.log(theta) / 2 for turns in (high, low))
        if scaling.get("whole", True):
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, width - 1)
        kept = 1 - (index * width / 2 - first) / (last - first or 0.001)
    return frequencies * torch.lerp(torch.ones_like(kept) / factor, torch.ones_like(kept), kept.clamp(0, 1))


def rotate(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    """Rotate the first 2F features of x (B, H, N, E) by position: features i and i + F form one plane.

    positions: (B or 1, N). frequencies: (F,) radians per position. The angles are computed in float64, since a
    float32 angle is off by radians at the positions a long stream reaches.
    """
    if positions.stride(0) == 0:  # all rows have the same positions: compute the angles once
        positions = positions[:1]
    angle = positions[:, None, :, None].to(frequencies.device).double() * frequencies.double()
    cos, sin = angle.cos().to(x.dtype).to(x.device), angle.sin().to(x.dtype).to(x.device)
    half = frequencies.shape[0]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)


def alibi_slopes(heads: int) -> Tensor:
    """Return the ALiBi slopes (heads,): a geometric series, interpolated where `heads` is no power of two."""
    whole = 2 ** math.floor(math.log2(heads))
    slopes = [2.0 ** (-8 * (i + 1) / whole) for i in range(whole)]
    slopes += [2.0 ** (-4 * (2 * i + 1) / whole) for i in range(heads - whole)]
    return torch.tensor(slopes, device="cpu")


def sinusoids(positions: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """Return sinusoidal embeddings (B, N, width) of positions (B, N): sines, then cosines, with falling frequencies."""
    half = (width + 1) // 2
    angle = positions[..., None].double() * rotary_frequencies(2 * half).to(positions.device)
    return torch.cat([angle.sin(), angle.cos()], -1)[..., :width].to(dtype)


def skew(scores: Tensor) -> Tensor:
    """Reindex scores (..., N, N) from distances to keys: column r of the input is distance N - 1 - r, column j of the
    output is key j, so entry (i, j) is query i's score of distance i - j. Entries with j > i are undefined."""
    n = scores.shape[-1]
    padded = F.pad(scores, (1, 0)).flatten(-2)
    return padded[..., n:].unflatten(-1, (n, n))


def relative_scores(q: Tensor, table: Tensor, distance: Tensor, causal: bool, unit_steps: bool, clamp: bool) -> Tensor:
    """Return q_i . E_(i - j) for every query and key, without a vector per pair: compute q E^T, then reorder columns.

    q: (B, H, ..., Q, E). table: (H, M, E), row k for a distance of k positions back; where `causal` is false
    (H, 2 M - 1, E), row M - 1 + k, with k < 0 for later keys. distance: (B, ..., Q, K) long; ABSENT gives 0.
    unit_steps: queries and keys are the same nodes of a chain whose positions go up by one, and no later keys are seen:
        columns are then skewed, which is cheaper than gathering them.
    clamp: distances beyond the table use its last row (Shaw et al. 2018), instead of 0 (Huang et al. 2018).
    """
    table, rows, n = table.to(q.dtype), table.shape[1], q.shape[-2]
    if causal and unit_steps:
        if n <= rows:
            table = table[:, :n]
        elif clamp:
            table = torch.cat([table, table[:, -1:].expand(-1, n - rows, -1)], 1)
        scores = torch.einsum("bh...e,hme->bh...m", q, table.flip(1))
        return skew(F.pad(scores, (n - scores.shape[-1], 0)))
    scores = F.pad(torch.einsum("bh...e,hme->bh...m", q, table), (0, 1))  # a last column for "no score"
    index = distance if causal else distance + rows // 2
    near = index.clamp(0, rows - 1)
    index = torch.where(distance == ABSENT if clamp else index != near, rows, near)[:, None]
    return scores.gather(-1, index.expand(*scores.shape[:-1], index.shape[-1]))
