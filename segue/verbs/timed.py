"""`fit --objective timed`: models of when events happen and of which type, which can be evaluated and continued."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from segue.continual import Memory, Reservoir, Strategy
from segue.data import Data, TokenStore, read
from segue.errors import SegueError
from segue.files import read_json, write_json, write_text
from segue.kinds import KINDS, Codec, Kind, Record
from segue.kinds.times import shown
from segue.models.counts import CountModel
from segue.models.hawkes import Hawkes, TimedEvents
from segue.models.point_process import PointProcess, PointProcessConfig
from segue.objectives.events import EventLikelihood
from segue.progress import Shown
from segue.training import distributed
from segue.training.batches import Arrays
from segue.training.checkpoint import load_into, load_tensors, save_tensors, weights_of
from segue.training.recipe import Plan
from segue.training.timed import EventScores, EventStore, score_hawkes, score_process, window_batches
from segue.verbs.fit import FitArguments, FitJob, check_choices
from segue.verbs.fitted import FORMAT, Fitted, Report, check_config
from segue.verbs.inputs import describe_unknown, unknown_share
from segue.verbs.update import UpdateJob

if TYPE_CHECKING:
    from rich.console import RenderableType

DECAYS = (0.1, 1.0, 10.0)  # of the Hawkes baseline, per mean gap
CHANNELS = ("gap",)  # of events, kept for updates beside their types
MOST_HAWKES_NUMBERS = 30_000_000  # that fitting the baseline may hold in memory; beyond, it ignores the types


@dataclass
class TimedEvaluation(Shown):
    """Scores of the model, and of classical methods fitted on the same training data."""

    scores: dict[str, EventScores]
    sequences: int
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {"scores": {name: score.to_dict() for name, score in self.scores.items()},
                "sequences": self.sequences, "notes": self.notes}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TimedEvaluation:
        return cls({name: EventScores(**score) for name, score in values["scores"].items()}, values["sequences"],
                   values["notes"])

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table("", "log-likelihood", "time", "type", "time RMSE", "wrong types", "misfit", box=None)

        def number(value: float | None, form: str = ".3f") -> str:
            return "" if value is None else format(value, form)

        def likelihood(nats: float | None) -> str:
            return "" if nats is None else f"{-nats:.3f}"

        def rank(item: tuple[str, EventScores]) -> tuple[bool, float]:
            return item[1].time is None or item[1].type is None, item[1].nats

        for name, score in sorted(self.scores.items(), key=rank):
            total = None if score.time is None or score.type is None else score.nats
            table.add_row(Text(name), likelihood(total), likelihood(score.time), likelihood(score.type),
                          number(score.rmse, ".4g"), number(score.error, ".1%"), number(score.misfit))
        events = next(iter(self.scores.values())).events
        return Group(table, Text(
            f"{self.sequences:,} sequences, {events:,} events given those before: nats an event, of its time (per unit "
            "of time, a second where there are dates) and of its type given that; misfit: how far the expected number "
            "of events in each gap is from Exp(1), 0 is right"), *map(Text, self.notes))


class TimedReport(Report):
    """The report of a fit with objective timed."""

    @property
    def held_out(self) -> TimedEvaluation:
        return TimedEvaluation.from_dict(self.values["held_out"])


@dataclass
class TimedContinuation:
    """Events sampled from the model: items and their times. prime: the events before them."""

    items: list[Any]
    times: list[float]
    prime: Record
    kind: Kind
    expected: tuple[float, Any]  # mean time of the next event, and its likeliest item
    seed: int

    @property
    def text(self) -> str:
        width = max((len(shown(t)) for t in self.times), default=0)
        return "\n".join(f"{shown(t):>{width}}  {item}" for t, item in zip(self.times, self.items))

    @property
    def note(self) -> str:
        ended = "" if self.times else "; none came"
        return (f"{len(self.items)} events behind {len(self.prime)}, drawn with seed {self.seed}{ended}; the next one "
                f"is expected at {shown(self.expected[0])}, most likely {self.expected[1]}")

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"items": self.items, "times": self.times, "seed": self.seed,
                "expected": {"time": self.expected[0], "item": self.expected[1]}}

    def save(self, path: str | Path) -> None:
        """Write the prime and the new events in the kind's own format."""
        times = np.concatenate([self.prime.channels["time"], self.times])
        self.kind.write([Record([*self.prime.object, *self.items], {"time": times}, self.prime.name)], path)


class FittedProcess(Fitted):
    """A fitted point process with the codec and the kind of its events.

    model: a `segue.models.point_process.PointProcess`. rivals: by name, classical processes fitted on the same data, to
    compare to; one with a single type ignores types. ngram: a count model of the types.
    """

    def __init__(self, model: PointProcess, codec: Codec, kind: Kind, report: Report, context: int,
                 rivals: dict[str, Hawkes], ngram: CountModel | None = None, folder: Path | None = None,
                 memory: Memory | None = None) -> None:
        super().__init__(model, codec, kind, report, context, folder=folder, ngram=ngram,  # type: ignore[arg-type]
                         memory=memory)
        self.process, self.rivals = model.eval(), rivals

    def decodable(self, weights: str = "float32") -> Any:
        raise SegueError("this model tells times, not tokens alone: it takes continue and evaluate; for decoders, fit "
                         "the types without --objective timed")

    def update_job(self) -> TimedUpdateJob:
        return TimedUpdateJob(self)

    def speed_up(self, data: Any, minutes: float | None = None, **options: Any) -> Any:
        raise SegueError("a model of times draws each event by itself: there is nothing to draft")

    def evaluate(self, data: Any, weights: str = "float32",  # type: ignore[override]
                 state: str | None = None, device: str | None = None) -> TimedEvaluation:
        """Measure the log-likelihood of each event's time and type, prediction errors and goodness of fit on `data` (a
        `Data`, paths or objects with times), with classical processes on the same events."""
        if weights != "float32" or state is not None:
            raise SegueError("a model of times runs in float32 only, from its own beginning: leave weights and state "
                             "out")
        data = self.read(data)
        self.check_kind(data)
        share = unknown_share(self.codec, data)
        store = EventStore(data.encode(self.codec, boundary=False))
        longest = self.process.config.longest
        with self.on_device(device):
            scores = {"this model": score_process(self.process, window_batches(store, self.context))}
        typed_events = TimedEvents.of(store.sequences())
        for name, rival in self.rivals.items():
            ignores_types = len(rival.base) == 1 < self.codec.size
            events = TimedEvents(np.minimum(typed_events.types, 0), typed_events.times) if ignores_types else \
                typed_events
            result = score_hawkes(rival, events, longest)
            if ignores_types:
                result = EventScores(result.events, result.time, None, result.rmse, None, result.misfit)
            scores[name] = result
        if self.ngram is not None:
            scores[f"Kneser-Ney of order {self.ngram.order}"] = score_types(self.ngram, store)
        return TimedEvaluation(scores, len(store.lengths), [*([describe_unknown(share, data)] if share else []),
                                                            *self.reading_differences(data)])

    def continue_(self, prime: Any = None, n: int | None = None, decoder: str | None = None,
                  **options: Any) -> TimedContinuation:
        """Sample the events after `prime`.

        prime: a path to a file whose first sequence has times, or a `Record` with a channel `time`; the model reads its
        last `context` events. n: events (default: 10). decoder: "sample" or None. Options: seed (default: 0), and
        reading, options of the kind's `read` for a path.
        """
        seed, reading = options.pop("seed", 0), options.pop("reading", None) or {}
        if decoder not in (None, "sample") or options:
            unsupported = ", ".join(options) or f"decoder {decoder}"
            raise SegueError(f"a model of times draws what comes from n and seed alone: leave {unsupported} out")
        if n is not None and n < 1:
            raise SegueError(f"n must be 1 or more, not {n}")
        record = read_prime(prime, self.kind, self.reading | reading)
        times = np.asarray(record.channels["time"], dtype=np.float64)[-self.context :]
        types = torch.from_numpy(self.codec.encode(record.object).astype(np.int64))[None, -self.context :]
        gaps = torch.from_numpy(np.diff(times, prepend=times[:1]))[None]
        generator, count = torch.Generator().manual_seed(seed), 10 if n is None else n
        with torch.no_grad():
            history = self.process.observe(types.to(self.device), gaps.to(self.device), self.process.begin(1))
            mean_gap, likeliest = self.process.predict_next(history)
            sampled_gaps, sampled_types = self.process.sample(history, count, generator)
        elapsed = sampled_gaps[0].cpu().double().cumsum(0).numpy()
        finite = np.isfinite(elapsed)
        items = [self.item(int(id)) for id in sampled_types[0].cpu().numpy()[finite]]
        return TimedContinuation(items, (times[-1] + elapsed[finite]).tolist(),
                                 Record(record.object, {"time": np.asarray(record.channels["time"])}, record.name),
                                 self.kind, (float(times[-1] + mean_gap[0]), self.item(int(likeliest[0]))), seed)

    def item(self, id: int) -> Any:
        """The item with this id."""
        return next(iter(self.codec.decode([id])), self.codec.token(id))

    def write(self, folder: Path) -> None:
        """Write the files of `save`; rivals.safetensors holds the classical processes."""
        self.codec.save(folder / "codec")
        if self.memory is not None:
            self.memory.save(folder / "memory")
        if self.ngram is not None:
            self.ngram.save(folder, "ngram")
        save_tensors(folder / "model.safetensors", weights_of(self.process))
        save_tensors(folder / "rivals.safetensors", {
            f"{name}.{part}": torch.from_numpy(np.ascontiguousarray(getattr(rival, part)))
            for name, rival in self.rivals.items() for part in ("base", "excite", "decays")})
        write_json(folder / "config.json", {"format": FORMAT, "kind": self.kind.name, "context": self.context,
                                            "process": self.process.config.to_dict()})
        self.save_classes(folder)
        write_text(folder / "README.md", self.card())
        write_json(folder / "report.json", self.report.to_dict())

    def card(self) -> str:
        report, config = self.report.to_dict(), self.process.config
        size = sum(p.numel() for p in self.process.parameters())
        lines = [f"# A model of when {self.kind.name} come, and which", "",
                 f"- {size:,} parameters: {len(config.stack.mixers)} blocks "
                 f"({', '.join(dict.fromkeys(config.stack.mixers))}) of width {config.stack.width} over "
                 f"{config.stack.vocabulary:,} types, head {config.head}, mean gap {config.scale:g}.",
                 f"- Trained on {report['train_units']:,} events ({report['train_documents']:,} sequences): "
                 f"{report['steps']:,} steps, {report['seconds']:.0f} s, seed {report['plan']['seed']}, on "
                 f"{report['machine']}."]
        if held := report.get("held_out"):
            for name, score in held["scores"].items():
                event_scores = EventScores(**score)
                if event_scores.time is not None and event_scores.type is not None:
                    lines.append(f"- Held out, {name}: log-likelihood {-event_scores.nats:.3f} nats an event.")
        lines += ["", "```", "segue continue . --prime-file EVENTS.csv -n 10", "segue evaluate . FILES", "```", ""]
        return "\n".join(lines)


def score_types(model: CountModel, store: EventStore) -> EventScores:
    """Scores of a count model on the types alone, of every event but the first of each sequence."""
    nats, events, errors = 0.0, 0, 0
    for types, _ in store.sequences():
        probabilities = model.predictions(types)[1 : len(types)]
        nats -= float(np.log(probabilities[np.arange(len(probabilities)), types[1:]]).sum())
        errors += int((probabilities.argmax(1) != types[1:]).sum())
        events += len(types) - 1
    return EventScores(events, None, nats / events, None, errors / events)


def read_prime(prime: Any, kind: Kind, reading: dict[str, Any]) -> Record:
    """The events to continue, which must have times. reading: options of the kind's `read` for a path."""
    record = prime
    if isinstance(prime, Path) or (isinstance(prime, str) and Path(prime).exists()):
        data = read(prime, kind=kind.name, **reading)
        record = data[0]
    if not isinstance(record, Record) or not len(record) or "time" not in record.channels:
        raise SegueError("a model of times goes on from events with times: give a file that has them (--prime-file), "
                         "or a Record with a channel 'time'")
    return record


def fit_baselines(store: EventStore, types: int) -> dict[str, Hawkes]:
    """By name, classical processes fitted on the training data: Poisson, and Hawkes with kernels of three decays."""
    data, mean = TimedEvents.of(store.sequences()), float(store.gaps.mean())
    decays = [decay / mean for decay in DECAYS]
    baselines = {"Poisson": Hawkes.fit(data, types)}
    if data.types.size * types * len(decays) <= MOST_HAWKES_NUMBERS:
        return baselines | {"Hawkes": Hawkes.fit(data, types, decays)}
    return baselines | {
        "Hawkes (times alone)": Hawkes.fit(TimedEvents(np.minimum(data.types, 0), data.times), 1, decays)}


@dataclass
class TimedArguments(FitArguments):
    """The arguments of a fit with objective timed. A choice `head` selects the model of the time between events:
    "mixture" (fast, with an exact likelihood; the default), or the intensities "decay" or "query" (see
    `segue.models.point_process`)."""

    boundary = False

    def __post_init__(self) -> None:
        if self.known is not None or self.split is not None:
            raise SegueError("a model of times takes no known= and no split=: leave them out")
        if distributed.world_size() > 1:
            raise SegueError("a model of times is fitted by one process: start it without torchrun")
        check_times(self.data, "fit without --objective timed")
        if unsupported := [name for name in ("strands", "teacher", "distil", "prune") if self.choices.get(name)]:
            raise SegueError(f"a model of times takes no {unsupported[0]}: leave it out")
        if self.choices.setdefault("precision", "float32") != "float32":
            raise SegueError("a model of times learns in float32: leave precision out")
        self.head = self.choices.pop("head", "mixture")
        check_choices(self.codec, self.objective, self.choices)

    def optional_settings(self) -> dict[str, Any]:
        return {"objective": "timed", "head": self.head}

    def make_job(self, work: Path) -> TimedJob:
        codec, (train, held) = Codec.load(work / "codec"), (TokenStore.open(work / name) for name in ("train", "held"))
        events, exam = EventStore(train), EventStore(held)
        if not len(events.gaps) or not events.gaps.max() > 0 or not (exam.lengths > 1).any():
            raise SegueError("there is too little to learn from and to measure on: give more sequences, of two events "
                             "or more at different times")
        return TimedJob(arguments=self, codec=codec, train=train, held=held, source=events, objective=EventLikelihood(),
                        choices=self.choices, reserve=6 * (self.minutes or 0.0),  # a tenth of the time budget
                        head=self.head, events=events, exam=exam, rivals=fit_baselines(events, codec.size))


@dataclass(kw_only=True)
class TimedJob(FitJob):
    """A prepared fit of a point process. head: see `TimedArguments`. events, exam: the training and the held-out data
    as events. rivals: see `FittedProcess`."""

    head: str
    events: EventStore
    exam: EventStore
    rivals: dict[str, Hawkes]

    def build(self, plan: Plan) -> PointProcess:
        gaps, stack = self.events.gaps, super().build(plan).config
        with torch.random.fork_rng():
            torch.manual_seed(plan.seed)
            return PointProcess(PointProcessConfig(stack, self.head, float(gaps.mean()), float(gaps.max())))

    def held_out_scorer(self, plan: Plan) -> Callable[[Any], float]:
        return held_out_scorer(self.exam, plan)

    def to_fitted(self, model: PointProcess, plan: Plan, report: Report) -> FittedProcess:
        ngram = CountModel(self.codec.size, smoothing="kneser-ney").fit([t for t, _ in self.events.sequences()])
        memory = Memory(plan.context, plan.seed, CHANNELS)
        memory.learned("first data", self.events, self.exam)
        return FittedProcess(model, self.codec, self.arguments.data.kind, TimedReport(report.values), plan.context,
                             self.rivals, ngram, memory=memory)

    def score_held_out(self, fitted: Fitted) -> dict[str, Any]:
        return fitted.evaluate(self.arguments.train_and_held_out()[1], device=str(fitted.device)).to_dict()


def held_out_scorer(held: EventStore, plan: Plan) -> Callable[[Any], float]:
    """A function from a process to its nats per event on some of the held-out rows."""
    batches = list(window_batches(held, plan.context, plan.rows, 0.0))
    batches = batches[:: -(-len(batches) // 8)]
    return lambda model: score_process(model, batches, 5, 0).nats


class TimedUpdateJob(UpdateJob):
    """Updates of a point process: by the likelihood of times and types, which its bits are of too (of a time, a
    density, so that they may be below 0)."""

    boundary = False
    fitted: FittedProcess

    def refusal(self, strategy: Strategy) -> str:
        return "asks for scores of tokens alone, and this model tells times too: choose replay, mir, gss, ewc, si, " \
               "agem, gem, l2, lora, merge or naive" if strategy.asks_logits else ""

    def check(self, data: Data) -> None:
        super().check(data)
        check_times(data, "give events that have times")

    def open(self, folder: Path) -> EventStore:
        return EventStore(TokenStore.open(folder))

    def new_memory(self) -> Memory:
        return Memory(self.fitted.context, channels=CHANNELS)

    def objective(self, plan: Plan) -> EventLikelihood:
        return EventLikelihood()

    def held_out_scorer(self, held: EventStore, plan: Plan) -> Callable[[Any], float]:
        return held_out_scorer(held, plan)

    def bits(self, exam: Reservoir) -> float:
        pieces = EventStore(Arrays(exam.pieces))
        return score_process(self.fitted.process, window_batches(pieces, self.fitted.context), 5, 0).nats / math.log(2)


def check_times(data: Data, otherwise: str) -> None:
    """Raise a SegueError for data without times, with advice."""
    if data.kind.storage != "items" or not {"time", "gap"} & data.channels.keys():
        raise SegueError(f"no times to learn in this data of kind {data.kind.name}: name the column that says when "
                         f"(--read when=...), or {otherwise}")


def load_process(folder: Path, values: dict[str, Any]) -> FittedProcess:
    """Load what `FittedProcess.save` wrote; see `segue.load`."""
    try:
        kind, context = KINDS[values["kind"]], int(values["context"])
        config = PointProcessConfig.from_dict(dict(values["process"]))
        check_config(config.stack)
        model = PointProcess(config)
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise SegueError(f"{folder / 'config.json'} does not describe a model ({type(error).__name__}: {error})") \
            from error
    tensors, _ = load_tensors(folder / "model.safetensors")
    load_into(model, tensors, folder / "model.safetensors")
    codec = Codec.load(folder / "codec")
    if codec.size != config.stack.vocabulary:
        raise SegueError(f"{folder}: the codec has {codec.size} tokens, the model {config.stack.vocabulary}; "
                         "were the two copied from different models?")
    parts, _ = load_tensors(folder / "rivals.safetensors")
    arrays = {name: tensor.numpy() for name, tensor in parts.items()}
    rivals = {name: Hawkes(*(arrays[f"{name}.{part}"] for part in ("base", "excite", "decays")))
              for name in dict.fromkeys(key.rpartition(".")[0] for key in arrays)}
    report = read_json(folder / "report.json")
    if not isinstance(report, dict):
        raise SegueError(f"{folder / 'report.json'} is not a report")
    ngram = CountModel.load(folder, "ngram") if (folder / "ngram.safetensors").exists() else None
    memory = Memory.load(folder / "memory") if (folder / "memory").exists() else None
    return FittedProcess(model, codec, kind, TimedReport(report), context, rivals, ngram, folder, memory)
