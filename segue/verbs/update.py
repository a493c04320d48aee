"""`update`: train a fitted model on new data, and measure what it gained and what it forgot.

A call that was killed is resumed by repeating it, and ends with the same weights. The model's folder does not change
until everything is done: the new model is written next to the old one and then moved over it, and an interrupted move
is completed by whoever opens the folder next.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from segue.continual import Combined, Memory, Reservoir, ScoreMatrix, StateTuning, Strategy, strategy_named
from segue.continual.memory import sequences
from segue.data import Data, TokenStore
from segue.errors import SegueError
from segue.files import read_json, workspace, write_json, write_picture
from segue.kinds.nucleotides import variation
from segue.models import Stack
from segue.objectives import ANY_ORDER, BOTH_WAYS, Objective, objective_named
from segue.progress import Shown
from segue.training.batches import Arrays, Batches, Store
from segue.training.checkpoint import weights_of
from segue.training.evaluate import score, score_bound
from segue.training.loop import Run
from segue.training.recipe import Plan, bfloat16_pays, cores
from segue.verbs import mixed
from segue.verbs.fit import (
    HELD_OUT,
    LEAST_TRAINING_SHARE,
    held_out_scorer,
    measure_step_time,
    remove_on_failure,
    request_hash,
    steps_before,
)
from segue.verbs.fitted import Fitted, roll_forward
from segue.verbs.inputs import describe_unknown, nothing_known_error, training_minutes, unknown_share

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import RenderableType

MINUTES = 1.0
EARLY_STOP_PASSES = 3  # over the new data, from which an update of so many minutes stops once more steps do not help
PATIENCE = 3  # held-out measurements without progress before it does
RATE_FACTOR = 0.3  # of the first fit's learning rates, so that what the model knows is not washed away
PRETRAINED_RATE, PRETRAINED_TOKENS = 3e-5, 4096  # of AdamW, and in a step, for a network that was not fitted here

# Entries of the plan that an update may choose; the others are the model's.
UPDATE_CHOICES = ("rate", "table_rate", "vector_rate", "state_rate", "schedule", "warmup", "cooldown", "floor", "decay",
                  "clip", "ema", "rows", "accumulate", "muon", "sgd", "precision", "threads", "patience", "measure",
                  "checkpointing", "strands")

@dataclass
class Update(Shown):
    """The report of an update. matrix: bits per unit on each experience's held-out pieces, before and after. notes:
    remarks such as the share of items that the model has no token for."""

    strategy: str
    steps: int
    tokens: int
    seconds: float
    unit: str
    matrix: ScoreMatrix
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {"strategy": self.strategy, "steps": self.steps, "tokens": self.tokens, "seconds": self.seconds,
                "unit": self.unit, "matrix": self.matrix.to_dict(), "notes": self.notes}

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table("", *self.matrix.names, box=None)
        for step, row in zip(self.matrix.steps, self.matrix.scores):
            table.add_row(step, *(f"{value:.3f}" for value in row))
        *old, new = self.matrix.names
        table.add_row("forgotten", *(f"{self.matrix.forgetting(name):+.3f}" for name in old), "")
        table.add_row("gained", *[""] * len(old), f"{self.matrix.gain(new):+.3f}")
        head = (f"{self.strategy}: {self.steps:,} steps, {self.tokens:,} tokens in {self.seconds:.0f} s; bits per "
                f"{self.unit} on held-out pieces of each experience:")
        return Group(Text(head), table, *map(Text, self.notes))

    def draw(self, figure: Figure) -> None:
        """Bars before and after, for each experience."""
        axes = figure.add_subplot()
        place = np.arange(len(self.matrix.names))
        for index, (step, row) in enumerate(zip(self.matrix.steps, self.matrix.scores)):
            bars = axes.bar(place + 0.4 * (index - 0.5), row, 0.4, label=step)
            axes.bar_label(bars, fmt="%.2f")
        axes.set_xticks(place, self.matrix.names)
        axes.set(ylabel=f"bits per {self.unit} (lower is better)", title=f"Learning on with {self.strategy}")
        axes.margins(y=0.15)
        axes.legend()


def update(fitted: Fitted, data: Any, strategy: str | Strategy = "replay", minutes: float | None = None,
           steps: int | None = None, seed: int = 0, name: str | None = None, quiet: bool = False,
           save_seconds: float = 15.0, **choices: Any) -> Update:
    """Train `fitted` on `data`. Its weights change in place, and its folder, if it has one, is rewritten.

    strategy: a `Strategy`, or a name in `segue.continual.STRATEGIES`, optionally with settings ("ewc:strength=100") and
        several combined ("mas + replay", see `segue.continual.strategy_named`). What it must remember for the next
        update by the same strategy, such as the importance of weights, is saved with the model.
    minutes (default: 1) or steps: how long.
    name: of the new experience in reports (default: "update N").
    choices: entries of the plan about training (`UPDATE_CHOICES`), such as rate or schedule.

    Raises SegueError if the data do not suit the model, or another update of the same folder is unfinished.
    """
    begin = time.monotonic()
    minutes = training_minutes(minutes, steps, MINUTES)
    learner = strategy if isinstance(strategy, Strategy) else strategy_named(str(strategy))
    job = fitted.update_job()
    check_request(job, data, learner, choices)
    packing = fitted.model.resettable and learner.packs
    if (share := unknown_share(fitted.codec, data)) == 1:
        raise nothing_known_error(data)
    notes = [*([describe_unknown(share, data)] if share else []), *fitted.reading_differences(data)]
    memory = fitted.memory or job.new_memory()
    numbers = itertools.count(len(fitted.report.get("updates", [])) + 1)  # a merged model has another's experiences
    name = str(name) if name else next(free for number in numbers if (free := f"update {number}") not in memory.exams)
    if name in memory.exams:
        raise SegueError(f"the model has learned an experience called '{name}' already: choose another name")
    request = {"data": data.fingerprint, "strategy": strategy if isinstance(strategy, str) else learner.name,
               "minutes": minutes, "steps": steps, "seed": seed, "name": name, "choices": choices,
               "weights": weights_hash(fitted.model)}

    with workspace(None if fitted.folder is None else fitted.folder / "updating") as work:
        with remove_on_failure(work):
            prepare(work, request, data, job)
            train, held = (job.open(work / part) for part in ("train", "held"))
            exams = {**memory.exams, name: memory.exam(held)}
            plan, before, seconds = load_or_make_plan(work, job, train, exams, minutes, steps, begin,
                                                      {"seed": seed, **choices})
            memory.remind(learner)
            batches = Batches(train, plan.context, plan.rows, plan.seed, packing, variation(fitted.codec, plan.strands))
            run = Run(fitted.model, batches, plan, objective=job.objective(plan), strategy=learner,
                      folder=None if fitted.folder is None else work, key=request_hash(request),
                      held_out=job.held_out_scorer(held, plan), save_seconds=save_seconds,
                      past=memory.past(plan.rows, plan.seed, packing), seconds=seconds)
            with closing(batches):
                run.train("update", quiet)
        if run.step < run.plan.steps:
            notes.append(f"{run.step:,} of {run.plan.steps:,} steps: more did no better on held-out pieces of the new "
                         "data")
        notes += update_counts_and_states(fitted, learner, name, train)
        scores = ScoreMatrix(np.array([before, bits_per_unit(job, exams)]), list(exams), ["before", "after"],
                             f"bits per {fitted.kind.unit}")
        result = Update(learner.name, run.step, run.step * plan.tokens_per_step, round(run.elapsed, 2),
                        fitted.kind.unit, scores, notes)
        memory.learned(name, train, held)
        memory.keep(learner)
        fitted.memory = memory
        fitted.report.values.setdefault("updates", []).append(result.to_dict() | {"request": request})
        if fitted.folder is not None:
            fitted.write(work / "new")
            write_picture(work / "new" / "update.png", result.draw, (7, 4))
            write_json(work / "complete.json", request)
            roll_forward(work)
        return result


class UpdateJob:
    """What an update needs to know of the sort of model that it trains. (`segue.verbs.timed` has a subclass for events
    in time.)"""

    boundary: ClassVar[bool] = True  # whether a token marks the begin and the end of each document

    def __init__(self, fitted: Fitted) -> None:
        self.fitted = fitted

    def refusal(self, strategy: Strategy) -> str:
        """Why the strategy cannot be used, and which can; "" if it can."""
        both_ways = (self.fitted.report.values.get("plan") or {}).get("objective") in BOTH_WAYS
        return "asks for the next element, and this model reads both ways: choose replay, agem, gem, l2, lora, " \
               "merge or naive" if both_ways and strategy.asks_next else ""

    def check(self, data: Data) -> None:
        """Raise a SegueError for data that do not suit the model."""
        self.fitted.check_kind(data)

    def open(self, folder: Path) -> Store:
        """The encoded data in `folder`."""
        return TokenStore.open(folder)

    def new_memory(self) -> Memory:
        return Memory(self.fitted.context)

    def objective(self, plan: Plan) -> Objective:
        """What the model is trained by: that of its fit."""
        codec = self.fitted.codec
        return objective_named(plan.objective, codec.eos, codec.spelling, plan.known)

    def first_plan(self) -> Plan:
        """The plan of the first fit; of a pretrained network that was not fitted here, one with usual rates."""
        if saved := self.fitted.report.get("plan"):
            return Plan.from_dict(saved)
        if not self.fitted.report.get("huggingface"):
            raise SegueError("the model's report holds no plan to learn on by: update a model that fit wrote")
        context, rate = self.fitted.context, PRETRAINED_RATE / RATE_FACTOR
        return Plan(self.fitted.model.vocabulary, context=context, rows=max(1, PRETRAINED_TOKENS // context),
                    muon=False, rate=rate, table_rate=rate, vector_rate=rate, state_rate=rate)

    def held_out_scorer(self, held: Any, plan: Plan) -> Callable[[Any], float]:
        return held_out_scorer(held, plan)

    def bits(self, exam: Reservoir) -> float:
        """Bits per unit on an experience's held-out pieces, each read on its own."""
        fitted, pieces = self.fitted, Arrays(exam.pieces)
        if fitted.mixture is not None:
            scored = mixed.score_mixture(fitted.mixture, pieces, fitted.context)
        elif fitted.objective in ANY_ORDER:
            assert isinstance(fitted.model, Stack)
            scored = score_bound(fitted.model, pieces, fitted.context, known=fitted.report["plan"].get("known", ()))
        else:
            scored = score(fitted.model, pieces, fitted.context)
        units = sum(fitted.codec.units(piece[1:]) for piece in exam.pieces)
        return float(scored.nats.sum() / max(1, units) / math.log(2))


def check_request(job: UpdateJob, data: Data, strategy: Strategy, choices: Mapping[str, Any]) -> None:
    """Raise a SegueError for choices, strategies or data that do not suit the model."""
    if unsupported := [component for component in choices if component not in UPDATE_CHOICES]:
        raise SegueError(f"an update cannot choose {unsupported[0]}: choose from {', '.join(UPDATE_CHOICES)}")
    for component in component_strategies(strategy):
        if refusal := job.refusal(component):
            raise SegueError(f"{component.name} {refusal}")
    job.check(data)


def component_strategies(strategy: Strategy) -> Sequence[Strategy]:
    """The strategies that a combined strategy consists of; a list of itself for any other."""
    return strategy.strategies if isinstance(strategy, Combined) else [strategy]


def weights_hash(model: torch.nn.Module) -> str:
    """A hash of all weights."""
    total = hashlib.blake2b(digest_size=12)
    for name, tensor in sorted(weights_of(model).items()):
        total.update(name.encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def prepare(work: Path, request: dict[str, Any], data: Data, job: UpdateJob) -> None:
    """Write the request and the encoded data into `work`, unless they are there."""
    if (work / "request.json").exists():
        if request_hash(read_json(work / "request.json")) != request_hash(request):
            raise SegueError(f"{work.parent} holds an unfinished update with other data or settings: run that one "
                             f"again, or remove {work}")
        return
    train, held = data.split(HELD_OUT)
    if train.total < 2 or held.total < 2:
        raise SegueError("there is too little new data to learn from and to measure on: give more")
    train.encode(job.fitted.codec, work / "train", job.boundary)
    held.encode(job.fitted.codec, work / "held", job.boundary)
    write_json(work / "request.json", request)


def load_or_make_plan(work: Path, job: UpdateJob, train: Store, exams: dict[str, Reservoir], minutes: float | None,
                      steps: int | None, begin: float,
                      choices: dict[str, Any]) -> tuple[Plan, list[float], float | None]:
    """The plan, the scores on the exams before training, and the seconds that training may take (None: no time budget):
    read from `work`, or made and written there, so that a resumed update uses the same."""
    if not (work / "plan.json").exists():
        exam_begin = time.monotonic()
        before = bits_per_unit(job, exams)
        now = time.monotonic()
        # The exams are taken again after training.
        deadline = None if minutes is None else max(begin + 60 * minutes - (now - exam_begin),
                                                    now + 60 * LEAST_TRAINING_SHARE * minutes)
        plan = make_plan(job, train, minutes, steps, deadline, choices)
        write_json(work / "plan.json", {"plan": plan.to_dict(), "before": before,
                                        "seconds": None if deadline is None else deadline - time.monotonic()})
    saved = read_json(work / "plan.json")
    return Plan.from_dict(saved["plan"]), saved["before"], saved.get("seconds")


def make_plan(job: UpdateJob, train: Store, minutes: float | None, steps: int | None, deadline: float | None,
              choices: dict[str, Any]) -> Plan:
    """The first fit's plan with lower rates, this machine's threads, and `steps`, or as many as fit before the deadline
    (as `time.monotonic`), then with early stopping if they are many passes over the new data."""
    plan = job.first_plan()
    changes: dict[str, Any] = {rate: RATE_FACTOR * getattr(plan, rate) for rate in
                               ("rate", "table_rate", "vector_rate", "state_rate")}
    if not bfloat16_pays(job.fitted.device):  # the model may have been fitted on another machine
        changes["precision"] = "float32"
    plan = plan.with_(**{**changes, "warmup": 0.05, "patience": 0, "threads": cores(), **choices})
    if minutes is None or deadline is None:
        return plan.with_(steps=steps)
    threads, seconds = measure_step_time(train, plan, job.fitted.device, minutes, job.objective(plan),
                                         fixed="threads" in choices, make=lambda _: copy.deepcopy(job.fitted.model))
    steps = steps_before(deadline, seconds)
    if "patience" not in choices and steps * plan.tokens_per_step > EARLY_STOP_PASSES * len(train.tokens):
        plan = plan.with_(patience=PATIENCE)
    return plan.with_(threads=threads, steps=steps)


def update_counts_and_states(fitted: Fitted, strategy: Strategy, name: str, train: Store) -> list[str]:
    """Add the new data to the model's counts; or, if the strategy only learned an initial state, store that under
    `name` and leave the counts alone. Returns notes for the report."""
    tuning = next((component for component in component_strategies(strategy)
                   if isinstance(component, StateTuning)), None)
    if tuning is not None:
        fitted.states[name] = tuning.states.pop()
        return [f"nothing that the model said before has changed: with state='{name}' it begins where these data do "
                f"({sum(p.numel() for _, p in fitted.states[name].named_parameters()):,} numbers)"]
    if fitted.mixture is not None:
        fitted.mixture.counts.add(sequences(train))
    if fitted.counts is not None:
        fitted.counts = fitted.counts + np.bincount(np.asarray(train.tokens), minlength=len(fitted.counts))
    return []


def bits_per_unit(job: UpdateJob, exams: dict[str, Reservoir]) -> list[float]:
    """Bits per unit on each experience's held-out pieces, from its learned initial state if it has one."""
    bits = []
    for name, exam in exams.items():
        with job.fitted.from_state(name if name in job.fitted.states else None):
            bits.append(job.bits(exam))
    return bits
