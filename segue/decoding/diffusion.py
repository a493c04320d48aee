"""Sampling from discrete diffusion models (see `segue.objectives.diffusion`): filling the gaps of a sequence, and
continuing one block by block.

A sampler takes the known elements, the positions of the gaps, and `predict`, the model's log-probabilities of the clean
ids given noisy ones. Sampling is in float64: in float32, samplers of many steps miss rare elements, which makes texts
look likelier than they are (Zheng et al. 2024, arXiv 2409.02908). So results include the sample's entropy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from segue.decoding.loop import eval_mode
from segue.decoding.recipes import look_up
from segue.errors import SegueError
from segue.kernels.gumbel import gumbel_max
from segue.mixers.layout import Layout
from segue.models.base import pad_rows, padding_starts
from segue.models.diffusion import AbsorbingProcess, Denoiser, NoiseSchedule, Process
from segue.models.stack import Stack
from segue.objectives.diffusion import Predict

__all__ = ["SAMPLERS", "Filled", "ancestral", "confidence", "fill", "first_hitting", "go_on", "sample_entropy"]
Sampled = tuple[Tensor, int]  # the sequences (B, L), and the number of model passes


def ancestral(predict: Predict, x: Tensor, gaps: Tensor, process: Process, steps: int = 128,
              generator: torch.Generator | None = None, schedule: NoiseSchedule | None = None,
              dtype: torch.dtype = torch.float64, cached: bool = False) -> Sampled:
    """Ancestral sampling (D3PM, MDLM): undo the noise step by step, each element independently of the others; exact in
    the limit of many steps. x: (B, L) long; its values in the gaps (B, L) bool are ignored.

    cached: reuse the model's output while nothing changes: the same draws, with no more passes than elements; for the
    absorbing process and models without a time input.
    """
    keep_probabilities = (schedule or NoiseSchedule()).grid(steps).to(x.device)
    x = torch.where(gaps, process.sample_resting(x, generator), x)
    passes, log_p = 0, None
    for step in range(steps, 0, -1):
        noisy = gaps & process.can_be_noise(x)
        if not bool(noisy.any()):
            break
        if log_p is None:
            log_p, passes = predict(x, torch.full((len(x),), step / steps, dtype=torch.float64)), passes + 1
        posterior = process.posterior(log_p[noisy].to(dtype), x[noisy], keep_probabilities[step],
                                      keep_probabilities[step - 1])
        new = x.masked_scatter(noisy, gumbel_max(posterior, generator, dtype))
        if not cached or not torch.equal(new, x):
            log_p = None
        x = new
    return x, passes


def first_hitting(predict: Predict, x: Tensor, gaps: Tensor, process: Process, steps: int | None = None,
                  generator: torch.Generator | None = None) -> Sampled:
    """First-hitting sampler (Zheng et al. 2024): fill one gap of each row at a time, in random order; the limit of
    `ancestral` at many steps, in as many passes as a row has gaps. steps is ignored. For the absorbing process and
    models without a time input."""
    x, passes = torch.where(gaps, process.sample_resting(x), x), 0
    rank = torch.rand(gaps.shape, generator=generator, dtype=torch.float64, device=x.device)
    rank = rank.masked_fill(~gaps, 2.0).argsort(1).argsort(1)
    for order in range(int(gaps.sum(1).max())):
        current = gaps & (rank == order)
        log_p = predict(x, (gaps & (rank >= order)).sum(1) / gaps.sum(1).clamp(min=1))
        x, passes = x.masked_scatter(current, gumbel_max(log_p[current], generator)), passes + 1
    return x, passes


def confidence(predict: Predict, x: Tensor, gaps: Tensor, process: Process, steps: int = 16,
               generator: torch.Generator | None = None) -> Sampled:
    """Confidence-based decoding (MaskGIT: Chang et al. 2022, arXiv 2202.04200): sample all gaps in each of `steps`
    rounds and keep the most confident ones, by a cosine schedule. Not the model's distribution: likely elements come
    too often."""
    x, count, passes = torch.where(gaps, process.sample_resting(x), x), gaps.sum(1), 0
    hidden = gaps
    for step in range(1, min(steps, int(count.max())) + 1):
        rounds = count.clamp(max=steps)
        num_hidden = (count * torch.cos(math.pi / 2 * step / rounds.clamp(min=1)) + 1e-9).floor().long()
        num_hidden = torch.where(step >= rounds, 0, torch.minimum(num_hidden, hidden.sum(1) - 1)).clamp(min=0)
        log_p, passes = predict(x, hidden.sum(1) / count.clamp(min=1)), passes + 1
        sampled = gumbel_max(log_p, generator)
        certainty = log_p.gather(2, sampled[..., None])[..., 0].masked_fill(~hidden, math.inf)
        still_hidden = hidden & (certainty.argsort(1).argsort(1) < num_hidden[:, None])
        x, hidden = torch.where(hidden & ~still_hidden, sampled, x), still_hidden
    return x, passes


SAMPLERS: dict[str, Callable[..., Sampled]] = {
    "first-hitting": first_hitting,
    "ancestral": ancestral,
    "cached": partial(ancestral, cached=True),
    "confidence": confidence,
}


def sample_entropy(tokens: Sequence[int]) -> float:
    """The entropy of a text's id frequencies, in nats; lower where a sampler misses rare ids."""
    counts = torch.tensor(tokens).unique(return_counts=True)[1].double()
    frequencies = counts / counts.sum()
    return float(-(frequencies * frequencies.log()).sum()) + 0.0


@dataclass
class Filled:
    """A filled row. tokens: the whole row. passes: of the model, for all rows together. entropy: of the filled-in ids,
    see `sample_entropy`."""

    tokens: list[int]
    passes: int
    entropy: float


@torch.inference_mode()
def fill(model: Stack, rows: Sequence[Sequence[int]], sampler: str = "first-hitting", steps: int | None = None,
         seed: int = 0, temperature: float = 1.0, elements: int | None = None,
         allowed: Tensor | None = None) -> list[Filled]:
    """Fill the gaps (mask ids) of rows of any lengths.

    model: a bidirectional stack trained by `MaskedDiffusion`. sampler: a name in SAMPLERS; steps: its steps (default:
    its own). temperature: 0 takes the likeliest element of each gap. elements: see `MaskedDiffusion`. seed: fixes the
    draws of all rows together. allowed: (V,), (L, V) or (B, L, V) bool, L the longest row: the elements allowed in a
    gap at each position (default: all).
    """
    process = AbsorbingProcess(elements or model.vocabulary - 1)
    if not rows or not all(map(len, rows)) or (steps is not None and steps < 1) or temperature < 0:
        raise SegueError(f"{len(rows)} rows, {steps} steps and temperature {temperature}: fill at least one row, none "
                         "of them empty, in at least one step, at temperature 0 or above")
    if min(map(min, rows)) < 0 or max(map(max, rows)) > process.elements:
        raise SegueError(f"a row has an id that is none of the {process.elements} elements nor the mask, "
                         f"{process.elements}: was it encoded with another codec?")
    if model.vocabulary > process.states and sampler != "ancestral":
        raise SegueError(f"this model is told the time, and sampler '{sampler}' knows none: choose ancestral")
    lengths = torch.tensor([len(row) for row in rows])
    x = pad_rows(rows).to(model.embedding.weight.device)
    starts = padding_starts(lengths.to(x.device), x.shape[1])
    layout = Layout.chain((x.shape[0], x.shape[1]), starts=starts, device=x.device)
    gaps = x == process.elements
    if allowed is not None:
        allowed = allowed.to(x.device)
        if allowed.shape[-1] != process.elements or not bool((allowed.any(-1) | ~gaps).all()):
            raise SegueError(f"what may stand in a gap is said of {allowed.shape[-1]} elements, or leaves none of the "
                             f"{process.elements}: allow at least one element in each gap")
    generator = torch.Generator(x.device).manual_seed(seed)
    options: dict[str, Any] = {} if steps is None else {"steps": steps}
    with eval_mode(model):
        predict = Denoiser(model, process, layout, temperature, allowed)
        x, passes = look_up("sampler", sampler, SAMPLERS)(predict, x, gaps, process, generator=generator, **options)
    return [Filled(row[:length].tolist(), passes, sample_entropy(row[gap].tolist()) if bool(gap.any()) else 0.0)
            for row, gap, length in zip(x, gaps, lengths.tolist())]


def go_on(model: Stack, prompts: Sequence[Sequence[int]], n: int, block: int = 32, context: int = 256, seed: int = 0,
          eos: int | None = None, **options: Any) -> list[Filled]:
    """Continue prompts by n elements, semi-autoregressively: fill `block` masks at a time after the last elements,
    within a window of `context`. An answer ends before `eos`, and is returned without its prompt. options: of `fill`.
    """
    if not 0 < block < context or n < 1:
        raise SegueError(f"n {n}, block {block} and context {context}: add at least one element, in blocks of at least "
                         "one that are smaller than the context")
    mask = options.get("elements") or model.vocabulary - 1
    texts, active, passes = [list(prompt) for prompt in prompts], list(range(len(prompts))), 0
    while active:
        counts = [min(block, n + len(prompts[i]) - len(texts[i])) for i in active]
        windows = [texts[i][-(context - count):] + [mask] * count for i, count in zip(active, counts)]
        filled = fill(model, windows, seed=seed * 1_000_003 + passes, **options)
        passes += filled[0].passes
        for i, count, row in zip(list(active), counts, filled):
            new = row.tokens[-count:]
            ended = eos is not None and eos in new
            texts[i] += new[: new.index(eos)] if ended else new  # type: ignore[arg-type]
            if ended or len(texts[i]) - len(prompts[i]) >= n:
                active.remove(i)
    answers = [text[len(prompt):] for text, prompt in zip(texts, prompts)]
    return [Filled(answer, passes, sample_entropy(answer) if answer else 0.0) for answer in answers]
