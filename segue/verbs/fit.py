"""`fit`: from data and one dial to a fitted model; killed at any moment, the same call goes on to the same weights."""

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
from segue.data.options import named
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
from segue.training.evaluate import bound, score
from segue.training.loop import Run, deterministic, reader_of
from segue.training.pruning import Prune
from segue.training.recipe import Facts, Plan, bfloat16_pays, choose, cores, describe, machine, most_steps
from segue.verbs import mixed
from segue.verbs.devices import place
from segue.verbs.fitted import Fitted, Report, fitted_by, load
from segue.verbs.forecast import combination
from segue.verbs.given import as_data, dial, known_ids, unknown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MINUTES = 2.0
HELD_OUT = 0.05
CODEC_OPTIONS = ("vocabulary", "tokenizer", "k", "min_count")  # of the codecs of common kinds: no choices of a plan
LEARNING = 0.25  # of the dial at least, however long reading and measuring took


def fit(data: Any, *, out: str | Path | None = None, minutes: float | None = None, steps: int | None = None,
        mixer: str | None = None, seed: int = 0, held_out: Any = None, codec: Codec | None = None,
        quiet: bool = False, save_seconds: float = 15.0, kind: str | None = None, device: str | None = None,
        mix: bool = True, objective: str = "next", known: Any = None, split: str | None = None,
        **choices: Any) -> Fitted:
    """Learn a model of sequences.

    data: a `Data`, a path or paths, or a list of objects in memory. out: the model's folder, and while it is being
    made the checkpoint's; the same call on the same folder resumes, or, when all is done, loads. minutes: of wall
    clock, everything included (default: 2); or steps: of the optimiser. mixer: pattern of sequence mixers, e.g.
    "mamba*3+attention" (default: the recipe's choice). seed: fixes everything random. held_out: data to measure on, of
    the same kind (default: a twentieth of `data`, split off by hash). codec: made from the training data if None.
    save_seconds: between checkpoints. kind: of the data, found from the files if None. device: of torch, on which all
    of this runs (default: a GPU if there is one); the model that is given back is on the CPU, see
    `segue.verbs.devices`. mix: count the training data too and mix the two (`segue.models.mixture`), where there is
    enough to learn how. objective: the network's, a name in `segue.objectives.OBJECTIVES` that needs nothing but the
    sequences; "cloze" makes one that reads both ways, and goes on by a mask behind the end; "diffusion" one
    that fills gaps and writes in any order; "timed" one that learns when events come beside which (see
    `segue.verbs.timed`). known: letters or items that can be read wherever they stand, for diffusion: the model fills
    in all others, given those. split: the way of `Data.split` by which the twentieth is held out, such as "cluster"
    (default: the kind's own). choices: any entry of `segue.training.recipe.Plan` (width, depth, context, rate ...), and
    the kind's own options for its codec (e.g. vocabulary).

    Raises SegueError where the data are too few to learn from, or `out` holds something else.
    """
    begin = time.monotonic()
    minutes = dial(minutes, steps, MINUTES)
    distributed.join()
    if out is None and distributed.world() > 1:
        raise SegueError("several processes need a folder they share: give out=")
    if minutes is not None and distributed.world() > 1:
        raise SegueError("several processes cannot tell how many steps some minutes are: give steps= (--steps)")
    data, folder = as_data(data, kind), None if out is None else Path(out)
    if mixer is not None:
        choices["mixer"] = mixer
    if held_out is not None and split is not None:
        raise SegueError("held_out is data to measure on, and split a way to hold some out: give one of them")
    codec_options = {name: choices.pop(name) for name in {*CODEC_OPTIONS, *named(data.kind.codec)} & choices.keys()}
    sort: type[Asked] = Asked
    if objective == "timed":
        from segue.verbs.timed import TimedAsked as sort
    asked = sort(data, minutes, seed, choices, codec, codec_options, held_out, split, objective, known, mix)
    request = json.loads(json.dumps({
        "data": data.fingerprint, "minutes": minutes, "steps": steps, "seed": seed, "choices": asked.choices,
        "codec": codec_options if asked.given is None else {"given": str(asked.given), "size": asked.given.size},
        **asked.settings()}, default=str))
    if folder is not None and (done := finished(folder, request)) is not None:
        if not quiet and distributed.rank() == 0:
            print(f"{folder} holds the model of this very call already: nothing is left to do", file=sys.stderr)
        return done

    with workspace(None if folder is None else folder / "training", hold=distributed.rank() == 0) as work:
        with removed_if_refused(work):
            if distributed.rank() == 0:
                asked.prepare(work, request)
            distributed.barrier()
            job, where = asked.open(work), place(device)
            plan, why = planned(work, job, begin, {**job.choices, "objective": objective, "seed": seed,
                                                   **({} if steps is None else {"steps": steps})}, where)
            model = job.build(plan).to(where)
            reader_of(model, plan, job.teaching)  # refused before the first step
        line = describe(plan, why)
        if not quiet and distributed.rank() == 0:
            print(line, file=sys.stderr)
        vary = variation(job.codec, bool(choices.get("strands")))
        with closing(Batches(job.source, plan.context, plan.rows, plan.seed, model.resettable, vary)) as batches:
            run = Run(model, batches, plan, objective=job.teaching, strategy=Prune(plan.prune) if plan.prune else None,
                      folder=None if folder is None else work, key=key_of(request), held_out=job.in_passing(plan),
                      save_seconds=save_seconds)
            run.train(quiet=quiet)
        report = report_of(run, plan, job.train, request, line)
        if data.kind.unit == "event" and isinstance(job.codec, ItemCodec):
            report.values["repeats"] = repeats(job.train, len(job.codec.items))
        report.values |= {"reading": data.reading} if data.reading else {}
        fitted = job.completed(model.eval(), plan, report)
        if distributed.rank() == 0:
            if job.parts is not None and job.codec.turns() and \
                    (found := combination(fitted, job.asked.held_data()[1])):
                fitted.report.values["combination"] = asdict(found)
            fitted.report.values["held_out"] = job.scores(fitted)
            if folder is not None:
                keep(fitted, run, folder, work)
        distributed.barrier()
        return fitted.to("cpu")


def keep(fitted: Fitted, run: Run, folder: Path, work: Path) -> None:
    """Write the model's folder, and remove what a killed fit would go on from."""
    fitted.save(folder)
    write_picture(folder / "learning-curve.png", partial(draw_curve, run.curve, fitted.kind.unit), (7, 4))
    with suppress(FileNotFoundError):  # moved already, before a kill just here
        os.replace(work / "log.jsonl", folder / "log.jsonl")
    (work / "request.json").unlink()  # first: without it nothing is unfinished, whatever else stays
    shutil.rmtree(work)


@dataclass
class Asked:
    """What `fit` was asked for; what cannot be done is refused when it is made. Here of a model of tokens; as
    `segue.verbs.timed` has it, of one of events in time.

    Fields are as the arguments of `fit`; given: the codec to use, from the caller or the teacher.
    """

    data: Data
    minutes: float | None
    seed: int
    choices: dict[str, Any]
    given: Codec | None
    codec_options: dict[str, Any]
    held_out: Any
    split: str | None
    objective: str
    known: Any
    mix: bool
    teacher: Fitted | None = field(default=None, init=False)

    boundary: ClassVar[bool] = True  # whether begins and ends of documents are tokens

    def __post_init__(self) -> None:
        self.mix = self.mix and self.objective not in ANY_ORDER
        check_choices(self.given, self.objective, self.choices)
        objective_named(self.objective, known=() if self.known is None else (0,))
        if self.choices.get("teacher"):
            self.teacher = open_teacher(self.choices["teacher"], self.objective)
            self.given = self.given or self.teacher.codec

    def settings(self) -> dict[str, Any]:
        """What a request says beside what all say."""
        return {**({} if self.mix else {"mix": False}),
                **({} if self.objective == "next" else {"objective": self.objective}),
                **({} if self.known is None else {"known": self.known}),
                **({} if self.split is None else {"split": self.split})}

    def held_data(self) -> tuple[Data, Data]:
        """Training and held-out data."""
        if self.held_out is not None:
            return self.data, as_data(self.held_out, self.data.kind.name, **self.data.reading or {})
        return self.data.split(HELD_OUT, by=self.split)

    def prepare(self, work: Path, request: Mapping[str, Any]) -> None:
        """Write the codec and the tokens, once; they are mapped from there."""
        train, held = self.held_data()
        if train.total < 2 or held.total < 1:
            raise SegueError("there is too little data to learn from and to measure on: give more sequences")
        write_json(work / "request.json", request)
        if not (work / "codec" / "codec.json").exists():
            try:
                made = self.given if self.given is not None else train.codec(**self.codec_options)
            except TypeError as error:
                raise SegueError(f"{self.data.kind.name} takes no such option for its codec ({error}): leave it out") \
                    from error
            made.save(work / "codec")
        codec = Codec.load(work / "codec")
        train.encode(codec, work / "train", self.boundary)
        held.encode(codec, work / "held", self.boundary)

    def open(self, work: Path) -> Job:
        """Map what `prepare` wrote, and choose what to learn from and by."""
        codec = Codec.load(work / "codec")
        train, held = (TokenStore.open(work / name) for name in ("train", "held"))
        known = [] if self.known is None else known_ids(codec, self.known)
        teaching = objective_named(self.objective, codec.eos, codec.spelling, known) if self.teacher is None else \
            Distillation(self.teacher.model, self.choices.get("distil", Plan.distil))
        parts = mixed.part(train, codec.size, self.seed) if self.mix and distributed.world() == 1 else None
        advised = mixed.advisor(self.data.kind, codec, 2, []) is not None
        reserve = 0.0 if parts is None or self.minutes is None else \
            mixed.reserve(train, held, codec.size, self.minutes, advised)
        return Job(asked=self, codec=codec, train=train, held=held, source=train if parts is None else parts.store,
                   teaching=teaching, choices=self.choices | ({"known": known} if known else {}), reserve=reserve,
                   parts=parts)


@dataclass(kw_only=True)
class Job:
    """A fit that is prepared, and what depends on the sort of model. train, held: the tokens. source: what rows are
    made of. teaching: the objective. choices: for the plan. reserve: seconds of the dial that are needed after the last
    step. parts: how the counts beside the network are fitted, if there are any."""

    asked: Asked
    codec: Codec
    train: TokenStore
    held: TokenStore
    source: Store
    teaching: Objective
    choices: dict[str, Any]
    reserve: float
    parts: mixed.Parts | None = None

    def build(self, plan: Plan) -> Any:
        """The network of a plan, its weights fixed by the seed."""
        return build(plan)

    def in_passing(self, plan: Plan) -> Callable[[Any], float]:
        """The held-out score while training."""
        return in_passing(self.held, plan)

    def completed(self, model: Any, plan: Plan, report: Report) -> Fitted:
        """The network with what a fitted model keeps beside it: token counts, pieces to replay, what it is mixed with
        or measured against."""
        counts = np.bincount(np.asarray(self.train.tokens), minlength=self.codec.size)
        memory = Memory(plan.context, plan.seed)
        memory.learned("first data", self.train, self.held)
        mixture = None if self.parts is None else \
            mixed.mix(model, self.parts, plan.context, plan.seed, plan.precision, self.asked.minutes,
                      self.asked.data.kind, self.codec)
        ngram = mixed.classical(self.train, self.codec.size) if mixture is None else None
        return fitted_by(plan.objective)(model, self.codec, self.asked.data.kind, report, plan.context, counts,
                                         memory=memory, mixture=mixture, ngram=ngram)

    def scores(self, fitted: Fitted) -> dict[str, Any]:
        """The held-out score, for the report."""
        every = self.asked.held_data()[1]
        unseen = sample(every, mixed.scored(self.codec.size, self.asked.minutes) / len(self.held.tokens))
        scores = fitted.scored(unseen, strange=unknown(self.codec, unseen))
        if len(unseen) < len(every):
            scores.notes.append(f"a sample of the {len(every):,} held-out documents: evaluate scores all")
        return scores.to_dict()


@contextmanager
def removed_if_refused(work: Path) -> Iterator[None]:
    """Remove what was begun in `work` for a setting that is refused: it must not stand in the way of the right one."""
    fresh = not any(work.iterdir())
    try:
        yield
    except Exception:
        if fresh and distributed.rank() == 0:
            shutil.rmtree(work, ignore_errors=True)
            with suppress(OSError):
                work.parent.rmdir()
        raise


def check_choices(codec: Any, objective: str, choices: Mapping[str, Any]) -> None:
    """Refuse what `fit` was asked for, where that can be told without the data."""
    if not (codec is None or isinstance(codec, Codec)):
        raise SegueError(f"codec is a Codec, not {codec!r}: leave it out, or choose with vocabulary, tokenizer, k or "
                         "min_count")
    if isinstance(mixer := choices.get("mixer"), str) and objective not in BOTH_WAYS:
        check_causal(mixer)
    Plan(vocabulary=1).with_(**choices)


def check_causal(mixer: str) -> None:
    """Refuse a pattern of mixers of which one looks ahead."""
    for name in expand_pattern(mixer):
        if not MIXERS[name.partition(":")[0]].causal:
            raise SegueError(f"mixer '{name}' looks ahead: a model fitted with it could not continue a sequence; "
                             "choose a causal one (docs/mixers.md)")


def open_teacher(folder: str | Path, objective: str) -> Fitted:
    """The model whose predictions are to be learned, in place of the objective."""
    if objective != "next":
        raise SegueError(f"a teacher is an objective of its own: leave it, or objective '{objective}', out")
    teacher = load(folder)
    if not isinstance(teacher.model, Stack):
        raise SegueError(f"{folder} holds a model of another sort ({type(teacher.model).__name__}): only one that fit "
                         "wrote with objective next can teach")
    return teacher


def report_of(run: Run, plan: Plan, train: TokenStore, request: Mapping[str, Any], choice: str) -> Report:
    """What a finished training did; the held-out score comes to it later."""
    tokens = run.step * plan.tokens_per_step
    return Report({
        "request": request, "choice": choice, "plan": plan.to_dict(), "steps": run.step, "tokens": tokens,
        "seconds": round(run.elapsed, 2), "tokens_per_s": round(tokens / max(run.elapsed, 1e-9)),
        "precision": plan.precision, "machine": machine(), "processes": distributed.world(),
        "train_units": int(train.units.sum()), "train_documents": len(train), "curve": run.curve})


def repeats(store: TokenStore, items: int) -> float:
    """The share of items, the ids below `items`, that their sequence had already."""
    tokens = np.asarray(store.tokens, np.int64)
    pairs = np.repeat(np.arange(len(store)), np.diff(store.offsets)) * (items + 1) + np.minimum(tokens, items)
    pairs = pairs[tokens < items]
    return round(1 - len(np.unique(pairs)) / max(len(pairs), 1), 4)


def key_of(request: Mapping[str, Any]) -> str:
    """A hash that names a request: a checkpoint belongs to it."""
    return hashlib.blake2b(json.dumps(request, sort_keys=True).encode(), digest_size=12).hexdigest()


def finished(folder: Path, request: dict[str, Any]) -> Fitted | None:
    """What is in `folder` already: the model of this very call, or an error where it is of another."""
    if folder.exists() and not folder.is_dir():
        raise SegueError(f"{folder} is a file: choose another place for the model")
    plan, report = folder / "training" / "request.json", folder / "report.json"
    if plan.exists():
        if read_json(plan) != request:
            raise SegueError(f"{folder} holds an unfinished fit of other data or settings "
                             f"({difference(read_json(plan), request)}): choose another folder, or remove it")
        return None
    if report.exists():
        if read_json(report).get("request") != request:
            raise SegueError(f"{folder} holds a model of other data or settings "
                             f"({difference(read_json(report).get('request') or {}, request)}): choose another folder, "
                             "or remove it")
        return load(folder)
    # A folder of nothing but `training` is that of a fit which was killed before it wrote anything.
    if folder.exists() and any(each != plan.parent for each in folder.iterdir()):
        raise SegueError(f"{folder} is not empty and holds no model: choose another place")
    return None


def difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """In what two requests differ, for an error."""
    names = [name for name in sorted({*there, *here}) if there.get(name) != here.get(name)]
    return ", ".join(f"{n} {there.get(n)} there, {here.get(n)} here" if n != "data" else "the data" for n in names[:3])


def sample(data: Data, share: float) -> Data:
    """That share of the documents, spread evenly; all of them where it is 1 or more."""
    spans = data.spans()
    if share >= 1:
        return data
    return data.view(spans[np.unique(np.linspace(0, len(spans) - 1, math.ceil(share * len(spans))).astype(int))])


def planned(work: Path, job: Job, begin: float, choices: Mapping[str, Any], device: torch.device) -> tuple[Plan, str]:
    """The plan of this run, and why: read where it stands already, else chosen, measured and written before the first
    step. begin: when the dial began to run, of `time.monotonic`."""
    path, minutes = work / "plan.json", job.asked.minutes
    if distributed.rank() == 0 and not path.exists():
        facts = facts_of(job.train, job.codec, minutes, choices, device)
        plan, why = choose(facts, **choices)
        if minutes is not None:
            threads, seconds = pace(job.source, plan, device, minutes, job.teaching, "threads" in choices,
                                    job.build)
            deadline = max(begin + 60 * minutes - job.reserve, time.monotonic() + 60 * LEARNING * minutes)
            steps = min(steps_until(deadline, seconds), most_steps(facts.tokens, plan))
            plan, why = choose(facts, **{**choices, "threads": threads, "steps": steps})
            why += f", {1000 * seconds:.3g} ms a step"
        write_json(path, {"plan": plan.to_dict(), "why": why})
    distributed.barrier()
    values = read_json(path)
    return Plan.from_dict(values["plan"]), values["why"]


def facts_of(train: Any, codec: Codec, minutes: float | None, choices: Mapping[str, Any],
             device: torch.device) -> Facts:
    """What the plan is chosen by; floating-point operations a second are a guess, by what such devices do."""
    threads = int(choices.get("threads") or cores())
    bfloat16 = choices.get("precision") == "bfloat16" or \
        ("precision" not in choices and bfloat16_pays(device))
    flops = 3e13 if device.type == "cuda" else (1.5e11 if bfloat16 else 5e10) * threads
    return Facts(int(train.lengths.sum()), int(train.lengths.max()), codec.size, threads, flops,
                 "bfloat16" if bfloat16 else "float32", None if minutes is None else minutes * 60,
                 16_384 if device.type == "cuda" else 512,  # a GPU's steps begin at the time that starting them takes
                 max(1, len(codec.turns())),
                 max(mixed.seasons(codec, mixed.documents(train)), default=1) if codec.turns() else 1)


def steps_until(deadline: float, seconds: float) -> int:
    """How many steps of so many seconds are done by then (of `time.monotonic`), with some time left for checkpoints and
    the held-out score."""
    return max(1, int(0.93 * (deadline - time.monotonic()) / seconds))


def build(plan: Plan) -> Stack | ClozeModel:
    """The model of a plan, its weights fixed by the seed."""
    mixers = expand_pattern(plan.mixer)
    if len(mixers) < plan.depth:
        mixers = expand_pattern(plan.mixer, plan.depth)
    shared = {"heads": plan.heads, "qk_norm": plan.qk_norm}
    options = dict(plan.options)
    for name in set(mixers):
        takes = inspect.signature(MIXERS[name.partition(":")[0]]).parameters
        options[name] = {key: value for key, value in shared.items() if key in takes} | plan.options.get(name, {})
    two = plan.objective in BOTH_WAYS  # and the mask is one id more
    with torch.random.fork_rng():
        torch.manual_seed(plan.seed)
        config = StackConfig(plan.vocabulary + two, plan.width, mixers, options=options, channel=plan.channel,
                             hidden=plan.hidden, activation=plan.activation, norm=plan.norm, dropout=plan.dropout,
                             shared=plan.shared, transform=plan.objective == "cloze")
        model = Stack(both_ways(config) if two else config)
    if two and not model.resettable:
        raise SegueError(f"a mixer of '{plan.mixer}' cannot keep the documents of a row apart, as objective "
                         f"{plan.objective} must: choose another one (docs/mixers.md)")
    return ClozeModel(model, plan.context + 1) if plan.objective == "cloze" else model


def pace(store: Any, plan: Plan, device: torch.device, minutes: float, objective: Objective | None = None,
         fixed: bool = False, make: Callable[[Plan], Any] = build) -> tuple[int, float]:
    """The threads that a step is to have, and the seconds it takes with them.

    Measured on a throwaway copy, the median of a few steps after two to warm up: a fortieth of the dial, or a tenth
    where steps are that long. With the plan's threads, and unless they are `fixed` with one fewer too: where another
    program holds a core, threads that wait for the one on it cost many times what it adds.
    """
    most = min(2.0, 0.025 * 60 * minutes)
    model = make(plan).to(device)
    fixed = fixed or plan.threads == 1 or device.type != "cpu" or distributed.world() > 1
    found = []
    with closing(Batches(store, plan.context, plan.rows, plan.seed, model.resettable)) as batches:
        run = Run(model, batches, plan, objective=objective)
        run.model.train()
        for threads in (plan.threads,) if fixed else (plan.threads - 1, plan.threads):
            times: list[float] = []
            with deterministic(threads):
                begin = time.monotonic()
                while (spent := time.monotonic() - begin) < most or (len(times) < 5 and spent < 4 * most):
                    start = time.monotonic()
                    run.advance()
                    times.append(time.monotonic() - start)
            found.append((float(np.median(times[min(2, len(times) - 1):])), threads))
    seconds, threads = min(found)
    return threads, seconds


def in_passing(held: TokenStore, plan: Plan) -> Callable[[Any], float]:
    """The held-out score while training: a sample that costs about 3% of the run."""
    budget = 0.09 * plan.steps * plan.tokens_per_step / plan.measure
    limit = int(max(2048, min(65536, budget)))
    if plan.objective == "cloze":  # which reads a row for each element
        limit //= 8
    scoring = partial(bound, known=plan.known) if plan.objective in ANY_ORDER else score

    def measure(model: Any) -> float:
        return scoring(model, held, plan.context, rows=plan.rows, limit=limit, overlap=0.0,
                     precision=plan.precision).mean

    return measure


def draw_curve(curve: list[dict[str, float]], unit: str, figure: Figure) -> None:
    """The learning curve as a picture."""
    axes = figure.add_subplot()
    steps = [entry["step"] for entry in curve]
    axes.plot(steps, [entry["loss"] / math.log(2) for entry in curve], marker=".", label="training")
    if all("held_out" in entry for entry in curve):
        axes.plot(steps, [entry["held_out"] / math.log(2) for entry in curve], marker=".", label="held out")
    axes.set_xlabel("steps")
    axes.set_ylabel(f"bits per element ({unit} sequences)")
    axes.legend()
    axes.grid(alpha=0.3)
