"""`fit`: train a model on data within a budget of time or steps. A call that was killed is resumed by repeating it, and
ends with the same weights."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from segue.continual import Memory
from segue.data import Data, TokenStore
from segue.data.options import option_names
from segue.errors import SegueError
from segue.files import read_json, workspace, write_json, write_picture
from segue.kinds import Codec, ItemCodec
from segue.kinds.nucleotides import variation
from segue.mixers import MIXERS
from segue.models import Stack, StackConfig, expand_pattern
from segue.models.cloze import ClozeModel
from segue.models.stack import both_ways
from segue.objectives import ANY_ORDER, BOTH_WAYS, Distillation, Objective, objective_named
from segue.training import distributed
from segue.training.batches import Batches, Store
from segue.training.evaluate import score, score_bound
from segue.training.loop import CHECKPOINT, Run, isolated_torch, parallel_form
from segue.training.pruning import Prune
from segue.training.recipe import (
    Facts,
    Plan,
    bfloat16_pays,
    choose_plan,
    cores,
    describe_machine,
    describe_plan,
    most_steps,
)
from segue.verbs import mixed
from segue.verbs.devices import place
from segue.verbs.fitted import Fitted, Report, fitted_class, load
from segue.verbs.forecast import choose_combination
from segue.verbs.inputs import as_data, known_ids, training_minutes, unknown_share

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MINUTES = 2.0  # the default budget
HELD_OUT = 0.05  # share of the data that is measured on
CODEC_OPTIONS = ("vocabulary", "tokenizer", "k", "min_count")  # go to the codec, not to the plan
MOST_CROWDING = 4.0  # times as long as on a core of its own
LEAST_TRAINING_SHARE = 0.25  # of the time budget, however long reading and measuring took


def fit(data: Any, *, out: str | Path | None = None, minutes: float | None = None, steps: int | None = None,
        mixer: str | None = None, seed: int = 0, held_out: Any = None, codec: Codec | None = None,
        quiet: bool = False, save_seconds: float = 15.0, kind: str | None = None, device: str | None = None,
        mix: bool = True, objective: str = "next", known: Any = None, split: str | None = None,
        **choices: Any) -> Fitted:
    """Train a model of sequences and return it, on the CPU.

    data: a `Data`, a path or paths, or a list of objects in memory.
    out: folder for the checkpoints and then the model. The same call with the same folder resumes an unfinished run, or
        loads the finished model.
    minutes: budget of wall-clock time, everything included (default: 2). steps: optimiser steps, instead of minutes.
    mixer: pattern of sequence mixers, e.g. "mamba*3+attention" (default: the recipe chooses).
    seed: fixes everything random.
    held_out: data of the same kind to measure on (default: a twentieth of `data`, split off by hash).
    codec: default: made from the training data.
    save_seconds: time between checkpoints.
    kind: of the data; default: recognised from the files.
    device: torch device to train on (default: a GPU if there is one); see `segue.verbs.devices`.
    mix: also count the training data and mix the counts with the network (`segue.models.mixture`), if there is enough
        data to learn how.
    objective: a name in `segue.objectives.OBJECTIVES` that needs only sequences. "cloze" trains a bidirectional model,
        which continues a text by predicting a mask at its end; "diffusion" a model that fills gaps and writes in any
        order; "timed" a model of when events happen and which (see `segue.verbs.timed`).
    known: for diffusion, letters or items that are always visible; the model fills in all others given these.
    split: how to hold out the twentieth, a way of `Data.split` such as "cluster" (default: the kind's own).
    choices: any entry of `segue.training.recipe.Plan` (width, depth, context, rate ...), and the options of the kind's
        codec (e.g. vocabulary).

    Raises SegueError if there is too little data, or if `out` holds something else.
    """
    begin = time.monotonic(), time.process_time()
    minutes = training_minutes(minutes, steps, MINUTES)
    distributed.join_group()
    if out is None and distributed.world_size() > 1:
        raise SegueError("several processes need a folder they share: give out=")
    if minutes is not None and distributed.world_size() > 1:
        raise SegueError("several processes cannot tell how many steps some minutes are: give steps= (--steps)")
    data, folder = as_data(data, kind), None if out is None else Path(out)
    if mixer is not None:
        choices["mixer"] = mixer
    if not isinstance(mix, bool):
        raise SegueError(f"mix cannot be {mix!r}: it is true or false")
    if held_out is not None and split is not None:
        raise SegueError("held_out is data to measure on, and split a way to hold some out: give one of them")
    held_out = None if held_out is None else as_data(held_out, data.kind.name, **data.reading or {})
    codec_names = {*CODEC_OPTIONS, *option_names(data.kind.codec)}
    codec_options = {name: choices.pop(name) for name in codec_names & choices.keys()}
    arguments_class: type[FitArguments] = FitArguments
    if objective == "timed":
        from segue.verbs.timed import TimedArguments as arguments_class
    arguments = arguments_class(data, minutes, steps, seed, choices, codec, codec_options, held_out, split, objective,
                                known, mix)
    request = arguments.to_request()
    if folder is not None and (finished := load_if_finished(folder, request)) is not None:
        if not quiet and distributed.rank() == 0:
            print(f"{folder} holds the model of this very call already: nothing is left to do", file=sys.stderr)
        return finished

    with workspace(None if folder is None else folder / "training", hold=distributed.rank() == 0) as work:
        with remove_on_failure(work):
            if distributed.rank() == 0:
                arguments.prepare(work, request)
            distributed.barrier()
            job, torch_device = arguments.make_job(work), place(device)
            plan, reason, seconds = load_or_make_plan(
                work, job, begin, {**job.choices, "objective": objective, "seed": seed,
                                   **({} if steps is None else {"steps": steps})}, torch_device)
            model = job.build(plan).to(torch_device)
            parallel_form(model, plan, job.objective)  # raises before the first step if it cannot
        line = describe_plan(plan, reason)
        if not quiet and distributed.rank() == 0:
            print(line, file=sys.stderr)
        vary = variation(job.codec, bool(choices.get("strands")))
        with closing(Batches(job.source, plan.context, plan.rows, plan.seed, model.resettable, vary)) as batches:
            run = Run(model, batches, plan, objective=job.objective, strategy=Prune(plan.prune) if plan.prune else None,
                      folder=None if folder is None else work, key=request_hash(request),
                      held_out=job.held_out_scorer(plan), save_seconds=save_seconds, seconds=seconds,
                      most_steps=most_steps(int(job.train.lengths.sum()), plan))
            run.train(quiet=quiet)
        report = make_report(run, plan, job.train, request, line)
        if data.kind.unit == "event" and isinstance(job.codec, ItemCodec):
            report.values["repeats"] = repeat_share(job.train, len(job.codec.items))
        report.values |= {"reading": data.reading} if data.reading else {}
        fitted = job.to_fitted(model.eval(), run.plan, report)
        if distributed.rank() == 0:
            if job.counts_data is not None and job.codec.turns() and \
                    (combination := choose_combination(fitted, job.arguments.train_and_held_out()[1])):
                fitted.report.values["combination"] = asdict(combination)
            fitted.report.values["held_out"] = job.score_held_out(fitted)
            if folder is not None:
                write_model_folder(fitted, run, folder, work)
        distributed.barrier()
        return fitted.to("cpu")


def write_model_folder(fitted: Fitted, run: Run, folder: Path, work: Path) -> None:
    """Save the model and the learning curve, then remove the checkpoint folder `work`."""
    fitted.save(folder)
    write_picture(folder / "learning-curve.png", partial(draw_curve, run.curve, fitted.kind.unit), (7, 4))
    with suppress(FileNotFoundError):  # an earlier run moved it and was then killed
        os.replace(work / "log.jsonl", folder / "log.jsonl")
    (work / "request.json").unlink()  # first: without it the folder does not count as unfinished
    shutil.rmtree(work)


@dataclass
class FitArguments:
    """The arguments of `fit`, checked when the object is made. (`segue.verbs.timed` has a subclass for events in time.)

    codec: the codec to use, from the caller or the teacher; None: made from the training data.
    """

    data: Data
    minutes: float | None
    steps: int | None
    seed: int
    choices: dict[str, Any]
    codec: Codec | None
    codec_options: dict[str, Any]
    held_out: Data | None
    split: str | None
    objective: str
    known: Any
    mix: bool
    teacher: Fitted | None = field(default=None, init=False)

    boundary: ClassVar[bool] = True  # whether a token marks the begin and the end of each document

    def __post_init__(self) -> None:
        self.mix = self.mix and self.objective not in ANY_ORDER
        check_choices(self.codec, self.objective, self.choices)
        objective_named(self.objective, known=() if self.known is None else (0,))
        if self.choices.get("teacher"):
            self.teacher = open_teacher(self.choices["teacher"], self.objective)
            self.codec = self.codec or self.teacher.codec

    def to_request(self) -> dict[str, Any]:
        """Everything that decides the result, as plain JSON; stored with the run to recognise the same call."""
        codec = self.codec_options if self.codec is None else {"given": str(self.codec), "size": self.codec.size}
        return json.loads(json.dumps({
            "data": self.data.fingerprint, "minutes": self.minutes, "steps": self.steps, "seed": self.seed,
            "choices": self.choices, "codec": codec,
            **({} if self.held_out is None else {"held_out": self.held_out.fingerprint}), **self.optional_settings()},
            default=str))

    def optional_settings(self) -> dict[str, Any]:
        """Entries of the request that are left out while they have their defaults."""
        return {**({} if self.mix else {"mix": False}),
                **({} if self.objective == "next" else {"objective": self.objective}),
                **({} if self.known is None else {"known": self.known}),
                **({} if self.split is None else {"split": self.split})}

    def train_and_held_out(self) -> tuple[Data, Data]:
        """Training and held-out data."""
        if self.held_out is not None:
            return self.data, self.held_out
        return self.data.split(HELD_OUT, by=self.split)

    def prepare(self, work: Path, request: Mapping[str, Any]) -> None:
        """Write the request, the codec and the encoded data into `work`, unless they are there."""
        train, held = self.train_and_held_out()
        if train.total < 2 or held.total < 1:
            raise SegueError("there is too little data to learn from and to measure on: give more sequences")
        write_json(work / "request.json", request)
        if not (work / "codec" / "codec.json").exists():
            try:
                new_codec = self.codec if self.codec is not None else train.codec(**self.codec_options)
            except TypeError as error:
                raise SegueError(f"{self.data.kind.name} takes no such option for its codec ({error}): leave it out") \
                    from error
            new_codec.save(work / "codec")
        codec = Codec.load(work / "codec")
        train.encode(codec, work / "train", self.boundary)
        held.encode(codec, work / "held", self.boundary)

    def make_job(self, work: Path) -> FitJob:
        """Open what `prepare` wrote, and choose the objective and the training rows."""
        codec = Codec.load(work / "codec")
        train, held = (TokenStore.open(work / name) for name in ("train", "held"))
        known = [] if self.known is None else known_ids(codec, self.known)
        objective = objective_named(self.objective, codec.eos, codec.spelling, known) if self.teacher is None else \
            Distillation(self.teacher.model, self.choices.get("distil", Plan.distil))
        counts_data = None
        if self.mix and distributed.world_size() == 1:
            counts_data = mixed.split_documents(train, codec.size, self.seed)
        advised = mixed.make_advisor(self.data.kind, codec, 2, []) is not None
        reserve = 0.0 if counts_data is None or self.minutes is None else \
            mixed.reserved_seconds(train, held, codec.size, self.minutes, advised)
        return FitJob(arguments=self, codec=codec, train=train, held=held,
                      source=train if counts_data is None else counts_data.store, objective=objective,
                      choices=self.choices | ({"known": known} if known else {}), reserve=reserve,
                      counts_data=counts_data)


@dataclass(kw_only=True)
class FitJob:
    """A prepared fit, with the steps that depend on the type of model.

    train, held: the encoded data. source: what training rows are made from. choices: entries of the plan that the user
    chose. reserve: seconds of the budget needed after the last step. counts_data: what the counts beside the network
    are fitted on; None: there are none.
    """

    arguments: FitArguments
    codec: Codec
    train: TokenStore
    held: TokenStore
    source: Store
    objective: Objective
    choices: dict[str, Any]
    reserve: float
    counts_data: mixed.CountsData | None = None

    def build(self, plan: Plan) -> Any:
        """A new network for the plan, initialised from its seed."""
        return build(plan)

    def held_out_scorer(self, plan: Plan) -> Callable[[Any], float]:
        """A function from the model to its score on held-out data, used during training."""
        return held_out_scorer(self.held, plan)

    def to_fitted(self, model: Any, plan: Plan, report: Report) -> Fitted:
        """Wrap the trained network with its token counts, its replay memory, and the count model that it is mixed with
        or compared to."""
        counts = np.bincount(np.asarray(self.train.tokens), minlength=self.codec.size)
        memory = Memory(plan.context, plan.seed)
        memory.learned("first data", self.train, self.held)
        mixture = None if self.counts_data is None else \
            mixed.fit_mixture(model, self.counts_data, plan.context, plan.seed, plan.precision, self.arguments.minutes,
                              self.arguments.data.kind, self.codec)
        ngram = mixed.fit_ngram_baseline(self.train, self.codec.size) if mixture is None else None
        return fitted_class(plan.objective)(model, self.codec, self.arguments.data.kind, report, plan.context, counts,
                                            memory=memory, mixture=mixture, ngram=ngram)

    def score_held_out(self, fitted: Fitted) -> dict[str, Any]:
        """The evaluation on held-out data for the report, on a sample of them if the time budget is short."""
        held_out = self.arguments.train_and_held_out()[1]
        elements = mixed.elements_to_score(self.codec.size, self.arguments.minutes)
        data = subsample(held_out, elements / len(self.held.tokens))
        scores = fitted.score_data(data, unknown=unknown_share(self.codec, data))
        if len(data) < len(held_out):
            scores.notes.append(f"a sample of the {len(held_out):,} held-out documents: evaluate scores all")
        return scores.to_dict()


@contextmanager
def remove_on_failure(work: Path) -> Iterator[None]:
    """Empty the folder `work` if the body raises, so that files of a refused setting do not block a corrected call.
    Does nothing if there were files in it before, or a training has begun."""
    was_empty = not any(work.iterdir())
    try:
        yield
    except Exception:
        if was_empty and not (work / CHECKPOINT).exists() and distributed.rank() == 0:
            shutil.rmtree(work, ignore_errors=True)
            with suppress(OSError):
                work.parent.rmdir()
        raise


def check_choices(codec: Any, objective: str, choices: Mapping[str, Any]) -> None:
    """Raise a SegueError for choices that are wrong whatever the data."""
    if not (codec is None or isinstance(codec, Codec)):
        raise SegueError(f"codec is a Codec, not {codec!r}: leave it out, or choose with vocabulary, tokenizer, k or "
                         "min_count")
    if isinstance(mixer := choices.get("mixer"), str) and objective not in BOTH_WAYS:
        check_causal(mixer)
    Plan(vocabulary=1).with_(**choices)


def check_causal(mixer: str) -> None:
    """Raise a SegueError if a mixer of the pattern is not causal."""
    for name in expand_pattern(mixer):
        if not MIXERS[name.partition(":")[0]].causal:
            raise SegueError(f"mixer '{name}' looks ahead: a model fitted with it could not continue a sequence; "
                             "choose a causal one (docs/mixers.md)")


def open_teacher(folder: str | Path, objective: str) -> Fitted:
    """Load the model to distil from; a SegueError if it or the objective does not allow it."""
    if objective != "next":
        raise SegueError(f"a teacher is an objective of its own: leave it, or objective '{objective}', out")
    teacher = load(folder)
    if not isinstance(teacher.model, Stack):
        raise SegueError(f"{folder} holds a model of another sort ({type(teacher.model).__name__}): only one that fit "
                         "wrote with objective next can teach")
    return teacher


def make_report(run: Run, plan: Plan, train: TokenStore, request: Mapping[str, Any], choice: str) -> Report:
    """The report of a finished training run of which `plan` was the first plan; the held-out evaluation is added later.
    """
    tokens = run.step * plan.tokens_per_step
    return Report({
        "request": request, "choice": choice, "plan": run.plan.to_dict(), "planned_steps": plan.steps,
        "steps": run.step, "tokens": tokens,
        "seconds": round(run.elapsed, 2), "tokens_per_s": round(tokens / max(run.elapsed, 1e-9)),
        "precision": plan.precision, "machine": describe_machine(), "processes": distributed.world_size(),
        "train_units": int(train.units.sum()), "train_documents": len(train), "curve": run.curve})


def repeat_share(store: TokenStore, items: int) -> float:
    """The share of items (ids below `items`) that occurred earlier in the same sequence."""
    tokens = np.asarray(store.tokens, np.int64)
    pairs = np.repeat(np.arange(len(store)), np.diff(store.offsets)) * (items + 1) + np.minimum(tokens, items)
    pairs = pairs[tokens < items]
    return round(1 - len(np.unique(pairs)) / max(len(pairs), 1), 4)


def request_hash(request: Mapping[str, Any]) -> str:
    """A hash of the request, stored in checkpoints to identify the run that they belong to."""
    return hashlib.blake2b(json.dumps(request, sort_keys=True).encode(), digest_size=12).hexdigest()


def load_if_finished(folder: Path, request: dict[str, Any]) -> Fitted | None:
    """The model in `folder` if this very request made it; None if nothing finished is there.

    Raises SegueError if the folder belongs to another request or to something else.
    """
    if folder.exists() and not folder.is_dir():
        raise SegueError(f"{folder} is a file: choose another place for the model")
    request_path, report_path = folder / "training" / "request.json", folder / "report.json"
    if request_path.exists():
        if read_json(request_path) != request:
            raise SegueError(f"{folder} holds an unfinished fit of other data or settings "
                             f"({describe_difference(read_json(request_path), request)}): choose another folder, or "
                             "remove it")
        return None
    if report_path.exists():
        if read_json(report_path).get("request") != request:
            raise SegueError(f"{folder} holds a model of other data or settings "
                             f"({describe_difference(read_json(report_path).get('request') or {}, request)}): choose "
                             "another folder, or remove it")
        return load(folder)
    # A folder that holds only `training` belongs to a fit that was killed before it wrote anything.
    if folder.exists() and any(entry != request_path.parent for entry in folder.iterdir()):
        raise SegueError(f"{folder} is not empty and holds no model: choose another place")
    return None


def describe_difference(stored: Mapping[str, Any], requested: Mapping[str, Any]) -> str:
    """The entries in which two requests differ, in words."""
    names = [name for name in sorted({*stored, *requested}) if stored.get(name) != requested.get(name)]
    return ", ".join({"data": "the data", "held_out": "the held-out data"}.get(
        n, f"{n} {stored.get(n)} there, {requested.get(n)} here") for n in names[:3])


def subsample(data: Data, share: float) -> Data:
    """An evenly spread share of the documents; all of them if it is 1 or more."""
    spans = data.spans()
    if share >= 1:
        return data
    return data.view(spans[np.unique(np.linspace(0, len(spans) - 1, math.ceil(share * len(spans))).astype(int))])


def load_or_make_plan(work: Path, job: FitJob, begin: tuple[float, float], choices: Mapping[str, Any],
                      device: torch.device) -> tuple[Plan, str, float | None]:
    """The plan of this run, the reason for it, and the seconds that training may take (None: no time budget): read from
    `work`, or chosen, timed and written there.

    begin: when the time budget began, as `time.monotonic` and `time.process_time`. Where other programs take the cores,
    what comes after the last step takes as much longer as what came before the first did.
    """
    path, minutes = work / "plan.json", job.arguments.minutes
    if distributed.rank() == 0 and not path.exists():
        facts = gather_facts(job.train, job.codec, minutes, choices, device)
        plan, reason = choose_plan(facts, **choices)
        training_seconds = None
        if minutes is not None:
            threads, seconds = measure_step_time(job.source, plan, device, minutes, job.objective,
                                                 fixed="threads" in choices, make=job.build)
            now, crowding = time.monotonic(), crowding_since(*begin)
            deadline = max(begin[0] + 60 * minutes - crowding * job.reserve, now + 60 * LEAST_TRAINING_SHARE * minutes)
            steps = min(steps_before(deadline, seconds), most_steps(facts.tokens, plan))
            plan, reason = choose_plan(facts, **{**choices, "threads": threads, "steps": steps})
            reason += f", {1000 * seconds:.3g} ms a step"
            training_seconds = deadline - time.monotonic()
        write_json(path, {"plan": plan.to_dict(), "why": reason, "seconds": training_seconds})
    distributed.barrier()
    values = read_json(path)
    return Plan.from_dict(values["plan"]), values["why"], values.get("seconds")


def gather_facts(train: Any, codec: Codec, minutes: float | None, choices: Mapping[str, Any],
                 device: torch.device) -> Facts:
    """The facts that the plan is chosen by. The floating-point operations per second are a rough guess for the device.
    """
    threads = int(choices.get("threads") or cores())
    bfloat16 = choices.get("precision") == "bfloat16" or \
        ("precision" not in choices and bfloat16_pays(device))
    flops = 3e13 if device.type == "cuda" else (1.5e11 if bfloat16 else 5e10) * threads
    return Facts(int(train.lengths.sum()), int(train.lengths.max()), codec.size, threads, flops,
                 "bfloat16" if bfloat16 else "float32", None if minutes is None else minutes * 60,
                 16_384 if device.type == "cuda" else 512,  # fewer tokens a step leave a GPU waiting for launches
                 max(1, len(codec.turns())),
                 max(mixed.find_seasons(codec, mixed.document_tokens(train)), default=1) if codec.turns() else 1)


def crowding_since(wall: float, cpu: float) -> float:
    """How many times as long as on a core of its own this process has taken since these times, between 1 and
    MOST_CROWDING."""
    return min(MOST_CROWDING, max(1.0, (time.monotonic() - wall) / max(1e-9, time.process_time() - cpu)))


def steps_before(deadline: float, seconds: float) -> int:
    """How many steps of `seconds` each fit before the deadline (as `time.monotonic`), with 7% left for checkpoints and
    held-out scores."""
    return max(1, int(0.93 * (deadline - time.monotonic()) / seconds))


def build(plan: Plan) -> Stack | ClozeModel:
    """A new model for the plan, initialised from its seed."""
    mixers = expand_pattern(plan.mixer)
    if len(mixers) < plan.depth:
        mixers = expand_pattern(plan.mixer, plan.depth)
    shared = {"heads": plan.heads, "qk_norm": plan.qk_norm}
    options = dict(plan.options)
    for name in set(mixers):
        parameters = inspect.signature(MIXERS[name.partition(":")[0]]).parameters
        options[name] = {key: value for key, value in shared.items() if key in parameters} | plan.options.get(name, {})
    bidirectional = plan.objective in BOTH_WAYS  # its mask is one more id
    with torch.random.fork_rng():
        torch.manual_seed(plan.seed)
        config = StackConfig(plan.vocabulary + bidirectional, plan.width, mixers, options=options, channel=plan.channel,
                             hidden=plan.hidden, activation=plan.activation, norm=plan.norm, dropout=plan.dropout,
                             shared=plan.shared, transform=plan.objective == "cloze")
        model = Stack(both_ways(config) if bidirectional else config)
    if bidirectional and not model.resettable:
        raise SegueError(f"a mixer of '{plan.mixer}' cannot keep the documents of a row apart, as objective "
                         f"{plan.objective} must: choose another one (docs/mixers.md)")
    return ClozeModel(model, plan.context + 1) if plan.objective == "cloze" else model


def measure_step_time(store: Any, plan: Plan, device: torch.device, minutes: float, objective: Objective | None = None,
                      fixed: bool = False, make: Callable[[Plan], Any] = build) -> tuple[int, float]:
    """The number of threads to train with, and the seconds that a step takes with them.

    Takes the median over a few steps of a throwaway model, after two warm-up steps. This uses a fortieth of the time
    budget, or up to a tenth if steps are slow. Both the plan's threads and, unless they are `fixed`, one fewer are
    tried: if another program occupies a core, the threads that wait for it cost far more than that core adds.
    """
    budget = min(2.0, 0.025 * 60 * minutes)
    model = make(plan).to(device)
    fixed = fixed or plan.threads == 1 or device.type != "cpu" or distributed.world_size() > 1
    candidates = []
    with closing(Batches(store, plan.context, plan.rows, plan.seed, model.resettable)) as batches:
        run = Run(model, batches, plan, objective=objective)
        run.model.train()
        for threads in (plan.threads,) if fixed else (plan.threads - 1, plan.threads):
            times: list[float] = []
            with isolated_torch(threads):
                begin = time.monotonic()
                while (spent := time.monotonic() - begin) < budget or (len(times) < 5 and spent < 4 * budget):
                    start = time.monotonic()
                    run.advance()
                    times.append(time.monotonic() - start)
            candidates.append((float(np.median(times[min(2, len(times) - 1):])), threads))
    seconds, threads = min(candidates)
    return threads, seconds


def held_out_scorer(held: TokenStore, plan: Plan) -> Callable[[Any], float]:
    """A function from the model to its held-out nats per element, on a sample that costs about 3% of the run."""
    budget = 0.09 * plan.steps * plan.tokens_per_step / plan.measure
    limit = int(max(2048, min(65536, budget)))
    if plan.objective == "cloze":  # reads one row per element
        limit //= 8
    scoring = partial(score_bound, known=plan.known) if plan.objective in ANY_ORDER else score

    def measure(model: Any) -> float:
        return scoring(model, held, plan.context, rows=plan.rows, limit=limit, overlap=0.0,
                       precision=plan.precision).mean

    return measure


def draw_curve(curve: list[dict[str, float]], unit: str, figure: Figure) -> None:
    """Draw the learning curve."""
    axes = figure.add_subplot()
    steps = [entry["step"] for entry in curve]
    axes.plot(steps, [entry["loss"] / math.log(2) for entry in curve], marker=".", label="training")
    if all("held_out" in entry for entry in curve):
        axes.plot(steps, [entry["held_out"] / math.log(2) for entry in curve], marker=".", label="held out")
    axes.set_xlabel("steps")
    axes.set_ylabel(f"bits per element ({unit} sequences)")
    axes.legend()
    axes.grid(alpha=0.3)
