"""The recipe: choose all hyperparameters of a run from the data and a budget of time or steps."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from segue.errors import SegueError, check_choice


@dataclass(frozen=True)
class Plan:
    """All hyperparameters of a run, which together with the data determine every weight.

    mixer: pattern of sequence mixers, one block each or repeated to `depth`. width, depth, heads. hidden: width inside
    channel mixers. channel, activation, norm: see `StackConfig`; qk_norm: see `Attention`. context: elements a row.
    rows: rows a step. accumulate: parts a step's rows are cut in, to save memory. steps: optimiser steps. muon:
    matrices by Muon instead of AdamW. sgd: all by gradient descent without momentum instead of either. rate: learning
    rate of matrices; table_rate, vector_rate, state_rate: of embeddings and head, of norms and biases, of the mixers'
    state parameters. schedule: a name in SCHEDULES, how the rates go. warmup, cooldown: fractions of the steps in which
    they rise from zero and fall (cooldown 1: all the way after the warm-up). floor: what they fall to, as a part of the
    full rates. decay: weight decay of matrices. clip: bound of the gradient's norm (0: none). dropout. ema: decay of
    the averaged weights that are measured and kept instead (0: none). precision: "float32" or "bfloat16" (products
    only). threads: of the CPU. patience: stop when so many held-out measurements in a row are no better than the best
    (0: never). measure: how often the held-out score is measured, in all. shared: layers of one name are one block.
    checkpointing: keep the blocks' inputs only, and compute the rest again on the way back: less memory, more time.
    prune: part of the matrices' weights that ends at zero (see `segue.training.pruning`). teacher: folder of a fitted
    model whose predictions are learned too, with its codec; distil: their part of the loss. objective: a name (see
    `objective_named`); where it is one of `BOTH_WAYS`, the mixers read both ways, and the mask is one id more.
    sequence_parallel: several processes share each row of a step instead of its rows (see `segue.parallel`). known: ids
    that are never hidden (see `MaskedDiffusion`). strands: rows of DNA or RNA are read from either strand, by chance.
    options: of mixers, by name.
    """

    vocabulary: int
    mixer: str = "attention"
    width: int = 128
    depth: int = 4
    heads: int = 4
    hidden: int | None = None
    channel: str = "glu"
    activation: str = "silu"
    norm: str = "layer"
    qk_norm: bool = False
    context: int = 256
    rows: int = 16
    accumulate: int = 1
    steps: int = 1000
    muon: bool = True
    sgd: bool = False
    rate: float = 0.01
    table_rate: float = 0.01
    vector_rate: float = 0.01
    state_rate: float = 0.002
    schedule: str = "linear"
    warmup: float = 0.02
    cooldown: float = 1.0
    floor: float = 0.0
    decay: float = 0.05
    clip: float = 1.0
    dropout: float = 0.0
    ema: float = 0.0
    precision: str = "float32"
    threads: int = 1
    patience: int = 0
    measure: int = 8
    seed: int = 0
    shared: bool = False
    checkpointing: bool = False
    prune: float = 0.0
    teacher: str = ""
    distil: float = 0.5
    strands: bool = False
    sequence_parallel: bool = False
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    objective: str = "next"
    known: list[int] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Plan:
        return cls(**values)

    def with_(self, **choices: Any) -> Plan:
        """A copy with these entries replaced; a SegueError for an unknown name or a value of the wrong type or size."""
        entries = [f.name for f in fields(self)]
        for name, value in choices.items():
            if name not in entries:
                raise SegueError(f"there is no '{name}' to choose: choose from {', '.join(entries)}")
            example = 4 * self.width if name == "hidden" else getattr(self, name)
            if not same_type(value, example):
                raise SegueError(f"{name} cannot be {value!r}: it is, for example, {example!r}")
        plan = replace(self, **choices)
        for names, is_valid, words in RANGES:
            for name in names:
                if (value := getattr(plan, name)) is not None and not is_valid(value):
                    raise SegueError(f"{name} must be {words}, not {value}")
        if plan.threads > (num_cores := os.cpu_count() or 1) and "threads" in choices:
            raise SegueError(f"this machine has {num_cores} cores: threads cannot be {plan.threads}")
        if not all(isinstance(value, dict) for value in plan.options.values()):
            raise SegueError(f"options cannot be {plan.options!r}: they are by mixer and name, for example "
                             '{"attention": {"window": 64}}')
        check_choice("schedule", plan.schedule, SCHEDULES)
        check_choice("precision", plan.precision, ("float32", "bfloat16"))
        return plan

    @property
    def tokens_per_step(self) -> int:
        return self.rows * self.context

    def scale(self, step: int) -> float:
        """The factor on all learning rates at `step`: a linear warm-up, then the schedule."""
        rise = max(1.0, self.warmup * self.steps)
        fall = max(1.0, min(self.cooldown * self.steps, self.steps - rise))
        factor = SCHEDULES[self.schedule](step + 1 - rise, self.steps - step, fall)
        return min((step + 1) / rise, self.floor + (1 - self.floor) * max(0.0, min(1.0, factor)))


def cosine(part: float) -> float:
    """Half a cosine, from 1 at part 0 (and before) to 0 at part 1 (and after)."""
    return 0.5 + 0.5 * math.cos(math.pi * max(0.0, min(1.0, part)))


SCHEDULES: dict[str, Callable[[float, float, float], float]] = {
    "linear": lambda since, left, fall: left / fall,
    "cosine": lambda since, left, fall: cosine(1 - left / fall),
    "infinite": lambda since, left, fall: cosine(since / fall),
}
"""Learning-rate schedules: (steps since the warm-up, steps left including this one, steps of the cool-down) -> the part
of the rates above their floor.

"linear": constant, then linearly down at the end. "cosine": the same with half a cosine; with a floor of 0.1 this is
the re-warming and re-decaying of continual pre-training (Ibrahim et al. 2024, arXiv 2403.08763). "infinite" (same
paper): down by half a cosine at first, then constant at the floor. Later runs continue with "linear" at that rate, with
warmup 0 and cooldown 0; only the run before a release has a cool-down."""


RANGES: tuple[tuple[tuple[str, ...], Callable[[float], bool], str], ...] = (
    (("width", "depth", "heads", "hidden", "context", "rows", "accumulate", "steps", "threads", "measure"),
     lambda value: value >= 1, "at least 1"),
    (("rate", "table_rate", "vector_rate", "state_rate", "decay", "clip", "patience"),
     lambda value: 0 <= value < math.inf, "0 or more"),
    (("seed",), lambda value: 0 <= value < 2**63, "from 0 to 2^63 - 1"),
    (("dropout", "ema", "prune"), lambda value: 0 <= value < 1, "a part of a whole, from 0 to below 1"),
    (("warmup", "cooldown", "distil", "floor"), lambda value: 0 <= value <= 1, "a part of a whole, from 0 to 1"),
)
"""Names of a plan's entries, the test that their values must pass, and the test in words."""


def same_type(value: Any, example: Any) -> bool:
    """Whether a value has the type of the example. An int can stand for a float; a bool only for a bool."""
    if isinstance(value, bool) or isinstance(example, bool):
        return isinstance(value, bool) and isinstance(example, bool)
    return isinstance(value, int | float if isinstance(example, float) else type(example))


SIZE_FACTOR = 0.075  # parameters of the blocks per square root of the compute in FLOPs (Chinchilla: 0.09)
BATCH_FACTOR = 1.8  # tokens per step, per fourth root of the compute
MOMENTS_PER_ROW = 49  # of series with several columns: two days of hours, and one more
MOMENTS_BESIDE_SEASON = 3  # moments in a row besides one season
MOST_CONTEXT = 1024  # tokens per row, at most, to fit those moments


@dataclass(frozen=True)
class Facts:
    """The facts that the choice depends on. tokens: of the training data. longest: tokens of the longest sequence.
    seconds: of training, or None if steps are given. flops: per second that training achieves on this machine. least:
    tokens per step below which a step gets no faster. turn: tokens per moment of series with several columns. season:
    of measured numbers, in moments."""

    tokens: int
    longest: int
    vocabulary: int
    threads: int
    flops: float
    precision: str
    seconds: float | None = None
    least: int = 512
    turn: int = 1
    season: int = 1


def choose_plan(facts: Facts, **choices: Any) -> tuple[Plan, str]:
    """The plan for the data and the budget, and the reason in one line. `choices` override its entries.

    With a time budget, `steps` is an estimate, to be replaced once the speed has been measured.
    """
    longest = max(2, facts.longest - 1)
    context = choices.get("context")
    if not isinstance(context, int) or context < 1:
        moments = MOMENTS_PER_ROW * facts.turn
        if (season_context := (facts.season + MOMENTS_BESIDE_SEASON) * facts.turn) <= MOST_CONTEXT:
            moments = max(moments, season_context)
        max_context = max(256, min(MOST_CONTEXT, 1 << (moments - 1).bit_length()))
        context = max(8, min(max_context, 1 << (longest - 1).bit_length()))
    steps = choices.get("steps")
    given_steps = steps if isinstance(steps, int) and steps > 0 else 1000
    # FLOPs of the time budget; or those that the given steps take at the size that would be chosen for them.
    compute = facts.flops * facts.seconds if facts.seconds is not None else (6 * SIZE_FACTOR * given_steps * 4096) ** 2
    tokens_per_step = max(facts.least, 1 << min(16, round(math.log2(BATCH_FACTOR * compute**0.25))))
    rows = max(1, max(256, min(tokens_per_step, facts.tokens // 4)) // context)
    size = max(20_000.0, min(SIZE_FACTOR * math.sqrt(compute), 40.0 * facts.tokens, 3e8))
    width = max(32, min(1024, round((64 * size / 12) ** (1 / 3) / 32) * 32))
    width = width if width < 128 else width // 64 * 64  # whole heads of 64
    depth = max(1, min(24, round(size / (12 * width * width))))
    steps = max(20, int(compute / (6 * (12 * width * width * depth + facts.vocabulary * width) * rows * context)))
    passes = (given_steps if "steps" in choices else steps) * rows * context / max(1, facts.tokens)
    plan = Plan(facts.vocabulary, width=width, depth=depth, heads=choose_heads(width), context=context, rows=rows,
                steps=steps, threads=facts.threads, precision=facts.precision,
                dropout=0.1 if facts.tokens < 200_000 else 0.0,
                patience=3 if facts.tokens < 2_000_000 or passes > 10 else 0)
    if isinstance(choices.get("width"), int) and "heads" not in choices:
        choices = {**choices, "heads": choose_heads(choices["width"])}
    plan = plan.with_(**choices)
    passes = plan.steps * plan.tokens_per_step / max(1, facts.tokens)
    budget = f"{facts.seconds:.0f} s" if facts.seconds is not None else f"{plan.steps:,} steps"
    threads = "1 thread" if plan.threads == 1 else f"{plan.threads} threads"
    reason = (f"{facts.tokens:,} tokens of {facts.vocabulary:,} kinds, {budget} on {threads} in "
              f"{plan.precision}: about {max(passes, 0.01):.2g} passes")
    if facts.turn > 1:
        moments = plan.context // facts.turn
        note = " (few: take less with --read columns=...)" if moments < 8 else ""
        reason += f"; a row has {moments} moments of {facts.turn} columns{note}"
    return plan, reason


def most_steps(tokens: int, plan: Plan) -> int:
    """The limit of steps for this much data: 100 passes, beyond which few sequences are only memorised."""
    return max(500, 100 * tokens // plan.tokens_per_step)


def choose_heads(width: int) -> int:
    """The number of attention heads: of 64 features if that divides the width, else 32, else the nearest that does."""
    return next((width // each for each in (64, 32, 48, 40, 24, 16) if width % each == 0), 1)


def describe_plan(plan: Plan, why: str) -> str:
    """The plan and the reason for it in one line."""
    method = "SGD" if plan.sgd else "Muon" if plan.muon else "AdamW"
    return (f"{plan.depth} x {plan.mixer} of width {plan.width}, rows of {plan.context} x {plan.rows}, "
            f"{plan.steps:,} steps of {method} at {plan.rate:g}, because: {why}")


def cores() -> int:
    """The number of physical cores this process may use (torch's default thread count excludes hyper-threads)."""
    import torch

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, torch.get_num_threads()))


@cache
def is_bfloat16_fast(threads: int) -> bool:
    """Whether bfloat16 matrix products measure at least 1.3 times as fast as float32 on this CPU."""
    import time

    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        def seconds(dtype: torch.dtype) -> float:
            a, b = (torch.ones(512, 512, dtype=dtype) for _ in range(2))
            best = math.inf
            for _ in range(6):
                begin = time.perf_counter()
                for _ in range(4):
                    a @ b
                best = min(best, time.perf_counter() - begin)
            return best

        return seconds(torch.float32) > 1.3 * seconds(torch.bfloat16)
    finally:
        torch.set_num_threads(before)


def bfloat16_pays(device: Any) -> bool:
    """Whether to use bfloat16 matrix products on the device by default: on GPUs, and on CPUs where it is faster."""
    return device.type == "cuda" or is_bfloat16_fast(cores())


def describe_machine() -> str:
    """Processor, cores, GPU and versions in words, for reports."""
    import torch

    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    processors = "1 core" if cores() == 1 else f"{cores()} cores"
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{name}, {processors}{gpu}; Python {platform.python_version()}, torch {torch.__version__}"
