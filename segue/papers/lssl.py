"""Combining Recurrent, Convolutional, and Continuous-time Models with Linear State-Space Layers (Gu et al. 2021,
arXiv 2110.13985).

Two of its statements are tested. A linear state space remembers if its matrix is one of HiPPO's: without training, a
ridge readout recalls a slow signal from the states of HiPPO-LegS, HiPPO-LegT and random stable matrices. And since the
model is a continuous system sampled at steps of dt, it follows a change of the sampling rate by rescaling dt: trained
to classify tones, it is tested at a half and a quarter of the rate, with dt rescaled and without, beside a GRU.

The claim holds if HiPPO recalls and random matrices do not, for every ridge, and rescaling dt keeps the accuracy that
is lost without it.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections import defaultdict
from functools import partial
from statistics import mean
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from segue.kernels.convolution import long_convolution
from segue.mixers import hippo
from segue.mixers.lssl import krylov
from segue.mixers.ssm import scale_step_sizes
from segue.models.stack import Stack, StackConfig
from segue.objectives import Batch, generator_of
from segue.papers.base import Claim, Row, Run, Verdict
from segue.training.learn import accuracy, learn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STATES, CLASSES, LENGTH = 64, 8, 512
STEPS = (1e-3, 1e-2, 1e-1, 1.0)
LAGS = (100, 200, 400, 800)
RIDGES = (1e-6, 1e-3, 1e-2)  # the last bears noise of a tenth of the state
MEMORY = f"memory, ridge {RIDGES[-1]:g}"
ARMS: dict[str, dict[str, Any]] = {"lssl": {"states": 16}, "gru": {}}


def matrices(family: str, seed: int) -> tuple[Tensor, Tensor]:
    """A and B of a family; "random": a Gaussian A, shifted so that its slowest mode decays as e^(-t/2)."""
    if family != "random":
        return hippo.transition(family, STATES)
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(STATES, STATES, generator=generator, dtype=torch.float64) / math.sqrt(STATES)
    a = a - (torch.linalg.eigvals(a).real.max() + 0.5) * torch.eye(STATES)
    return a, torch.randn(STATES, generator=generator, dtype=torch.float64)


def memory(family: str, dt: float, seed: int, length: int) -> dict[str, float]:
    """R^2 of a ridge readout of u(t - lag) from the state at t, on the second half of slow noise (1% of Nyquist)."""
    generator = torch.Generator().manual_seed(1000 + seed)
    spectrum = torch.fft.rfft(torch.randn(length, generator=generator, dtype=torch.float64))
    spectrum[length // 200 :] = 0
    u = torch.fft.irfft(spectrum, n=length)
    u = u / u.std()
    a, b = hippo.bilinear(*matrices(family, seed), torch.tensor(dt, dtype=torch.float64))
    states = long_convolution(u[None, :, None].expand(1, length, STATES), krylov(a, b, length).T)[0]
    states, scores = states / states.std(0), {}
    for lag, ridge in itertools.product(LAGS, RIDGES):
        past, now = u[max(LAGS) - lag : length - lag], states[max(LAGS) :]
        half = len(past) // 2
        gram = now[:half].T @ now[:half] + ridge * half * torch.eye(STATES)
        guess = now[half:] @ torch.linalg.solve(gram, now[:half].T @ past[:half])
        rest = (guess - past[half:]).square().mean() / (past[half:] - past[half:].mean()).square().mean()
        scores[f"{lag} {ridge}"] = 1 - float(rest)
    return scores


def sample_tones(rows: int, rate: int, generator: torch.Generator) -> Batch:
    """Which of eight frequencies, half an octave apart? Sinusoids of any phase in noise, at every `rate`-th sample."""
    classes = torch.randint(CLASSES, (rows,), generator=generator)
    time, phase = torch.arange(0, LENGTH, rate) / LENGTH, torch.rand(rows, 1, generator=generator)
    pure = (2 * math.pi * (3 * 2.0 ** (classes[:, None] / 2) * time + phase)).sin()
    noisy = pure + 0.3 * torch.randn(pure.shape, generator=generator)
    targets = torch.full(noisy.shape, -1)
    targets[:, -1] = classes
    return Batch(noisy[..., None], targets)


def measure_rates(mixer: str, seed: int, steps: int, rows: int) -> dict[str, float]:
    """Train on tones; accuracy at the training rate, a half and a quarter of it, with dt as it is and rescaled."""
    torch.manual_seed(seed)
    model = Stack(StackConfig(CLASSES, 32, [mixer] * 2, {mixer: ARMS[mixer]}, channel="none", norm="layer", tied=False,
                              inputs=1, pool="mean"))
    learn(model, lambda step: sample_tones(32, 1, generator_of(seed, step)), steps, rate=5e-3,
          seed=seed)
    scores = {}
    for rate in (1, 2, 4):
        test = sample_tones(rows, rate, torch.Generator().manual_seed(-1 - seed))
        scores[f"{rate} as it is"] = accuracy(model, test)
        if mixer == "lssl":
            scaled = copy.deepcopy(model)
            scale_step_sizes(scaled, rate)
            scores[f"{rate} rescaled"] = accuracy(scaled, test)
    return scores


def measure(run: Run) -> list[Row]:
    length, steps, rows = run.pick((2_000, 2, 64), (40_000, 300, 512))
    seeds = range(run.seed, run.seed + run.pick(1, 3))
    kinds = [("legs", STEPS[0]), ("legt", STEPS[0]), *(("random", dt) for dt in STEPS)]
    trained = {"lssl": seeds, "gru": seeds[:1]}
    jobs: dict[str, Any] = {f"{family} {dt} {seed}": partial(memory, family, dt, seed, length)
                            for family, dt in kinds for seed in seeds}
    jobs |= {f"{mixer} {seed}": partial(measure_rates, mixer, seed, steps, rows)
             for mixer in ARMS for seed in trained[mixer]}
    done = run.cells(jobs)
    table: list[Row] = []
    for (family, dt), lag, ridge in itertools.product(kinds, LAGS, RIDGES):
        recall = mean(done[f"{family} {dt} {seed}"][f"{lag} {ridge}"] for seed in seeds)
        table.append({"task": f"memory, ridge {ridge:g}", "model": family, "dt": dt, "lag or rate": lag,
                      "value": recall})
    for mixer in ARMS:
        for which in done[f"{mixer} {run.seed}"]:
            rate, how = which.split(" ", 1)
            right = mean(done[f"{mixer} {seed}"][which] for seed in trained[mixer])
            table.append({"task": how, "model": mixer, "dt": "", "lag or rate": int(rate), "value": right})
    run.note(f"mean of {len(seeds)} seeds (the GRU one); memory needs no training: ridge readout fitted on the first "
             f"half of {length} steps of slow noise, measured (R2) on the second; the models that change rate are two "
             f"layers of width 32 (LSSL of 16 states, A and dt learning), {steps} steps, measured by accuracy")
    run.note("how much a random matrix recalls depends on how exact the readout may be, which the paper leaves open: "
             "trials on other seeds gave 0.91 at 400 steps with a ridge of 1e-6, 0.66 with 1e-3 and 0.51 with 1e-2, "
             "HiPPO above 0.999 with each; so the verdict asks for all three")
    run.note("at first the rule looked at one ridge, 1e-2, which was chosen after trials; by that the first "
             "run was confirmed, and the rule was made stricter")
    return table


def judge(table: list[Row]) -> tuple[Verdict, str]:
    value = {(row["task"], row["model"], row["dt"], row["lag or rate"]): row["value"] for row in table}
    memory = {ridge: (min(value[f"memory, ridge {ridge:g}", family, STEPS[0], 400] for family in ("legs", "legt")),
                      max(value[f"memory, ridge {ridge:g}", "random", dt, 400] for dt in STEPS)) for ridge in RIDGES}
    holds = [hippo >= 0.95 and chance <= 0.6 for hippo, chance in memory.values()]
    recalls = ", ".join(f"{hippo:.3f} and {chance:.3f}" for hippo, chance in memory.values())
    base = value["as it is", "lssl", "", 1]
    plain, scaled = (max(base - value[how, "lssl", "", rate] for rate in (2, 4)) for how in ("as it is", "rescaled"))
    least = min(base - value["as it is", "lssl", "", rate] for rate in (2, 4))
    ridges = ", ".join(f"{ridge:g}" for ridge in RIDGES)
    reason = (f"400 steps back the worse of LegS and LegT recalls, and the best random matrix (R2, ridges {ridges}): "
              f"{recalls}; right {base:.1%} at the rate of training, at lower rates up to {100 * scaled:.1f} points "
              f"less with dt rescaled and {100 * least:.1f} to {100 * plain:.1f} less without")
    if not any(holds) or scaled >= plain:
        return "refuted", reason
    return ("confirmed" if all(holds) and scaled <= 0.05 and least >= 0.4 else "inconclusive"), reason


def draw(figure: Figure, table: list[Row]) -> None:
    recall, rates = figure.subplots(1, 2)
    lines: dict[str, list[tuple[int, float]]] = defaultdict(list)
    memories = [row for row in table if row["task"] == MEMORY]
    best = max(STEPS, key=lambda dt: max(row["value"] for row in memories
                                         if (row["model"], row["dt"], row["lag or rate"]) == ("random", dt, 400)))
    names = {"legs": "HiPPO-LegS", "legt": "HiPPO-LegT", "random": f"random (its best dt, {best:g})"}
    for row in memories:
        if row["model"] != "random" or row["dt"] == best:
            lines[names[row["model"]]].append((row["lag or rate"], max(row["value"], 0.0)))
    for name, points in lines.items():
        recall.plot(*zip(*points), marker="o", label=name)
    recall.set(xlabel="steps back", ylabel="R2 of recall", title="Memory, no training", ylim=(0, 1.05))
    recall.legend(fontsize="small")
    for mixer, how, name in (("lssl", "rescaled", "LSSL, dt rescaled"), ("lssl", "as it is", "LSSL as it is"),
                             ("gru", "as it is", "GRU")):
        points = [(row["lag or rate"], row["value"]) for row in table if (row["model"], row["task"]) == (mixer, how)]
        rates.plot([f"1/{rate}" for rate, _ in points], [value for _, value in points], marker="o", label=name)
    rates.axhline(1 / CLASSES, color="grey", linestyle=":")
    rates.set(xlabel="sampling rate at test", ylabel="accuracy", title="Another sampling rate", ylim=(0, 1.05))
    rates.legend(fontsize="small")


CLAIM = Claim(
    slug="lssl",
    statement="A linear state space with a HiPPO matrix remembers where one with a random matrix does not, and adapts "
              "to another sampling rate by rescaling its step.",
    rule="confirmed if, 400 steps back, both HiPPO-LegS and HiPPO-LegT (dt 1/1000) recall a slow signal with R2 of "
         "at least 0.95 and a random stable matrix at its best dt with at most 0.6, whatever the ridge of the readout "
         "(1e-6, 1e-3, 1e-2), and at a half and a quarter of the sampling rate a trained model loses at most 5 points "
         "of accuracy with dt rescaled and at least 40 without; refuted if the memory part fails at every ridge or "
         "rescaling dt does not help; else inconclusive.",
    measure=measure, judge=judge, draw=draw,
    paper={"random A": "permuted MNIST 62% against 98.8%",
           "half the sampling rate at test": "raw Speech Commands 88.7%, after 95.9% at the full rate"},
)
