"""The scoreboard of sequence mixers: how well each learns tracking and recall tasks, at equal size and equal training.

For every mixer and task a small model, the same except for the mixer, is trained on the same examples for the same
number of steps, or until it solves the task. It is tested at the longest length of training and at twice that.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import torch

from segue.cells import Cells
from segue.errors import SegueError
from segue.files import write_json, write_picture
from segue.mixers import MIXERS
from segue.models import Stack, StackConfig
from segue.progress import Shown, progress
from segue.tasks import TASKS
from segue.training.learn import StopWhenAccurate, accuracy, learn
from segue.training.recipe import cores, describe_machine

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import RenderableType

TASK_SETTINGS = {"parity": (16, 600), "modular-count": (16, 600), "s5-words": (6, 1000), "copy": (13, 600),
                 "selective-copy": (16, 600), "mqar": (16, 600), "induction": (24, 600), "needle": (32, 600),
                 "listops": (12, 600)}
"""The nine standard tasks, each with the longest length in training and the maximal number of steps."""
DEFAULT_SETTING = (24, 600)  # of other tasks
DEPTH, ROWS, PARAMETERS, RATE = 2, 32, 40_000, 0.02
TEST_ROWS, SOLVED = 256, 0.99  # SOLVED: accuracy at which training stops
VARIANTS: dict[str, dict[str, Any]] = {
    "mamba:signed": {"eigenvalues": (-1, 1)},
    "deltanet:signed": {"eigenvalues": (-1, 1)},
    "deltanet:products": {"eigenvalues": (-1, 1), "householders": 2},
    "linear-attention:taylor": {"features": "taylor"},
    "linear-attention:favor": {"features": "favor"},
}
"""Options that change what a mixer can learn, listed as mixers of their own."""


@dataclass
class Score:
    """The result of one mixer on one task. accuracy, longer: on new rows of the trained length, and of twice that.
    steps: until the task was solved, at most all. parameters, width: of the model. seconds: of one core. failure: the
    reason if there is no score, else empty."""

    mixer: str
    task: str
    accuracy: float | None = None
    longer: float | None = None
    steps: int = 0
    parameters: int = 0
    width: int = 0
    seconds: float = 0.0
    failure: str = ""


@dataclass
class Scoreboard(Shown):
    """The results of every mixer on every task. lengths, steps, guess: by task, the longest length in training, the
    maximal number of steps, and the accuracy of always giving the most frequent answer."""

    scores: list[Score]
    lengths: dict[str, int]
    steps: dict[str, int]
    guess: dict[str, float]
    rows: int
    seed: int
    machine: str
    picture: str | None = None

    def above_guess(self, mixer: str, task: str, measure: str) -> float:
        """The "accuracy", or the one of "longer" rows, rescaled so that a guess is 0 and all right is 1."""
        value = getattr(self.score(mixer, task), measure)
        return 0.0 if value is None else max(0.0, (value - self.guess[task]) / (1 - self.guess[task]))

    def score(self, mixer: str, task: str) -> Score:
        return next(score for score in self.scores if (score.mixer, score.task) == (mixer, task))

    @property
    def mixers(self) -> list[str]:
        """All mixers, the best on average over tasks and lengths first."""
        def average(mixer: str) -> float:
            return mean(self.above_guess(mixer, task, what) for task in self.guess for what in ("accuracy", "longer"))

        return sorted(dict.fromkeys(score.mixer for score in self.scores), key=average, reverse=True)

    @property
    def summary(self) -> str:
        sizes = [score.parameters for score in self.scores if not score.failure] or [0]
        return (f"{DEPTH} layers, {min(sizes):,} to {max(sizes):,} parameters, at most {max(self.steps.values()):,} "
                f"steps of {self.rows} rows, seed {self.seed}; {sum(score.seconds for score in self.scores) / 60:,.0f} "
                f"core-minutes on {self.machine}")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table("mixer", *(f"{task} {length}" for task, length in self.lengths.items()), box=None)
        for mixer in self.mixers:
            row = [self.score(mixer, task) for task in self.lengths]
            table.add_row(mixer, *(f"{format_percent(score.accuracy)} / {format_percent(score.longer)}"
                                   for score in row))
        table.add_row("a guess", *map(format_percent, self.guess.values()))
        lines = ["accuracy in percent at the length beside the task's name, the longest of the training / at twice "
                 "that", self.summary]
        lines += [f"{score.mixer} on {score.task} failed: {score.failure}" for score in self.scores if score.failure]
        lines += [f"picture: {self.picture}"] if self.picture else []
        return Group(table, *map(Text, lines))

    def draw(self, figure: Figure) -> None:
        """Two heat maps: at the longest length of the training, and at twice that."""
        panels, mixers = figure.subplots(1, 2, sharey=True), self.mixers
        for panel, (measure, times) in zip(panels, (("accuracy", 1), ("longer", 2))):
            shares = [[100 * self.above_guess(mixer, task, measure) for task in self.lengths] for mixer in mixers]
            image = panel.imshow([*shares, [0] * len(self.lengths)], cmap="viridis", vmin=0, vmax=100, aspect="auto")
            for row, mixer in enumerate([*mixers, None]):
                for column, task in enumerate(self.lengths):
                    value = self.guess[task] if mixer is None else getattr(self.score(mixer, task), measure)
                    light = mixer is not None and shares[row][column] > 60
                    panel.text(column, row, format_percent(value), ha="center", va="center", fontsize=9,
                               color="black" if light else "white")
            panel.set_xticks(range(len(self.lengths)), [f"{task}\n{times * n}" for task, n in self.lengths.items()],
                             rotation=35, ha="right", rotation_mode="anchor")
            panel.set_yticks(range(len(mixers) + 1), [*mixers, "a guess"])
            panel.set_title("at the longest length of the training" if times == 1 else "at twice that length")
        figure.colorbar(image, ax=panels, shrink=0.6, label="on the way from a guess (0) to all right (100)")
        figure.suptitle("Accuracy in percent")


def format_percent(share: float | None) -> str:
    """A share in percent as text; a dash for None."""
    return "–" if share is None else f"{100 * share:.0f}"


def board_mixers() -> list[str]:
    """The names of all causal mixers, and of their VARIANTS. Others would read the answers, which in most tasks are
    later elements of the row."""
    names = []
    for name, mixer in MIXERS.items():
        if mixer.causal and not mixer.needs_whole_prompt:
            names += [name, *(variant for variant in VARIANTS if variant.partition(":")[0] == name)]
    return names


def parameter_count(config: StackConfig) -> int:
    """The number of parameters of a stack."""
    return sum(p.numel() for p in Stack(config).parameters())


def config_of_size(mixer: str, vocabulary: int, parameters: int) -> StackConfig:
    """The widest model with at most `parameters` parameters; those left over widen its channel mixers."""
    def config(width: int, hidden: int | None = None) -> StackConfig:
        options = {mixer: VARIANTS[mixer]} if mixer in VARIANTS else {}
        return StackConfig(vocabulary, width, [mixer] * DEPTH, options, hidden=hidden, tied=False, embed_norm=True)

    width = 16
    while parameter_count(config(width + 8)) <= parameters:
        width += 8
    spare = max(0, parameters - parameter_count(config(width)))
    return config(width, config(width).hidden_width + spare // (3 * width * DEPTH))


def run_cell(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Call the function; on an exception return {"failure": its text}, so that one bad cell does not end the others."""
    try:
        return function(*arguments)
    except Exception as error:
        return {"failure": " ".join(f"{type(error).__name__}: {error}".split())[:300]}


def measure_speed(mixer: str, task: str, length: int, parameters: int, rows: int) -> dict[str, float]:
    """Seconds of one core per training step on rows of `length` elements: the best of three after a warm-up."""
    model, seconds = Stack(config_of_size(mixer, TASKS[task].vocabulary, parameters)), []
    for _ in range(4):
        begin = time.process_time()
        learn(model, TASKS[task].batches(rows, (length, length)), 1, muon=True)
        seconds.append(time.process_time() - begin)
    return {"seconds": min(seconds[1:])}


def train_cell(mixer: str, task: str, length: int, steps: int, parameters: int, rows: int, seed: int) -> dict[str, Any]:
    """Train and test one mixer on one task; returns the fields of its `Score`."""
    begin = time.process_time()
    config = config_of_size(mixer, TASKS[task].vocabulary, parameters)
    torch.manual_seed(seed)  # finding the size has built models, which uses random numbers
    model = Stack(config)
    stop = StopWhenAccurate(TASKS[task].test(TEST_ROWS // 2, length, seed + 1), SOLVED, every=20)
    run = learn(model, TASKS[task].batches(rows, (TASKS[task].shortest, length), seed), steps, rate=RATE, muon=True,
                seed=seed, strategy=stop)
    return {"accuracy": accuracy(model, TASKS[task].test(TEST_ROWS, length, seed)),
            "longer": accuracy(model, TASKS[task].test(TEST_ROWS, 2 * length, seed)), "steps": run.step,
            "parameters": sum(p.numel() for p in model.parameters()), "width": config.width,
            "seconds": time.process_time() - begin}


def majority_accuracy(task: str, length: int, seed: int) -> float:
    """The accuracy of always giving the most frequent answer."""
    targets = TASKS[task].test(TEST_ROWS, length, seed).targets
    counts = torch.bincount(targets[targets >= 0])
    return float(counts.max() / counts.sum())


def scoreboard(tasks: str = "synthetic", minutes: float | None = None, steps: int | None = None,
               mixers: str | Sequence[str] | None = None, parameters: int = PARAMETERS, length: int | None = None,
               rows: int = ROWS, seed: int = 0, out: str | Path | None = None, quiet: bool = False) -> Scoreboard:
    """Train every causal mixer on every task in the same way; prints an estimate of the time first.

    tasks: "synthetic" for the nine standard tasks, or names from TASKS separated by commas. length, steps: the longest
    length in training, and the maximal number of steps (default: TASK_SETTINGS). minutes: scale the steps of all tasks
    by one factor so that everything takes about so long, judging by the measured speed. mixers: names, a list or with
    commas between (default: all causal ones). out: a folder for the results, the picture and the finished cells;
    repeating the call resumes there, and retries what failed.
    """
    if minutes is not None and not 0 < minutes < math.inf:
        raise SegueError(f"minutes must be more than 0, not {minutes}")
    for option, value in (("steps", steps), ("parameters", parameters), ("length", length), ("rows", rows)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise SegueError(f"{option} cannot be {value!r}: it is a whole number from 1 on")
    names = list(TASK_SETTINGS) if tasks == "synthetic" else tasks.split(",")
    if unknown := [name for name in names if name not in TASKS]:
        raise SegueError(f"task '{unknown[0]}' is unknown: choose 'synthetic' or from {', '.join(TASKS)}")
    chosen = mixers.split(",") if isinstance(mixers, str) else list(mixers or board_mixers())
    if unknown := [name for name in chosen if name not in board_mixers()]:
        raise SegueError(f"mixer '{unknown[0]}' has no place on the board: choose from {', '.join(board_mixers())}")
    lengths = {name: length or TASK_SETTINGS.get(name, DEFAULT_SETTING)[0] for name in names}
    max_steps = {name: steps or TASK_SETTINGS.get(name, DEFAULT_SETTING)[1] for name in names}
    folder = None if out is None else Path(out)
    cells, workers = Cells(None if folder is None else folder / "scoreboard.cells.json"), cores()
    cells.values = {name: value for name, value in cells.values.items() if "failure" not in value}
    pairs = [(mixer, task) for mixer in chosen for task in names]
    with progress("scoreboard", total=len(chosen) + len(pairs), quiet=quiet) as meter:
        cells.meter = meter
        longest = max(names, key=lengths.__getitem__)
        typical_length = max(TASKS[longest].shortest, lengths[longest] // 2)  # of the rows that a training draws
        setting = (longest, typical_length, parameters, rows)
        speed_cells = cells.compute({" ".join(map(str, ("speed", mixer, *setting))):
                                     partial(run_cell, measure_speed, mixer, *setting) for mixer in chosen}, 1)
        speeds = {mixer: cell.get("seconds", 0.0) for mixer, cell in zip(chosen, speed_cells.values())}
        if minutes is not None:
            factor = 60 * minutes * workers / max(1e-9, sum(max_steps.values()) * sum(speeds.values()))
            max_steps = {name: max(1, int(factor * n)) for name, n in max_steps.items()}
        jobs = {" ".join(map(str, job)): partial(run_cell, train_cell, *job) for job in (
            (mixer, task, lengths[task], max_steps[task], parameters, rows, seed) for mixer, task in pairs)}
        pending = [pair for name, pair in zip(jobs, pairs) if name not in cells.values]
        if pending and not quiet:
            estimate = sum(max_steps[task] * speeds[mixer] for mixer, task in pending) / workers / 60
            print(f"{len(pending):,} of {len(jobs):,} cells to do: about {estimate:,.1f} minutes, less what is solved "
                  f"early, on {workers} core{'s' * (workers > 1)}", file=sys.stderr)
        results = cells.compute(jobs, workers)
    board = Scoreboard([Score(*pair, **cell) for pair, cell in zip(pairs, results.values())], lengths, max_steps,
                       {name: majority_accuracy(name, lengths[name], seed) for name in names}, rows, seed,
                       describe_machine())
    if folder is not None:
        picture = folder / "scoreboard.png"
        write_picture(picture, board.draw, (17, 3 + 0.28 * len(chosen)))
        board.picture = str(picture)
        write_json(folder / "scoreboard.json", board.to_dict())
    return board
