"""The scoreboard of sequence mixers: what each of them learns to track and to recall, at equal size and equal training.

One small model per mixer and task, alike but for the mixer, learns from the same examples in the same number of steps;
it is then asked at the length it was trained on and at twice that.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
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
from segue.progress import progress
from segue.tasks import TASKS
from segue.training.learn import accuracy, learn
from segue.training.recipe import cores, machine

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import RenderableType

SYNTHETIC = ("parity", "modular-count", "s5-words", "copy", "selective-copy", "mqar", "induction", "needle", "listops")
DEPTH, ROWS, LENGTH, PARAMETERS = 2, 32, 32, 60_000
TEST_ROWS = 256
VARIANTS: dict[str, dict[str, Any]] = {
    "mamba:signed": {"eigenvalues": (-1, 1)},
    "deltanet:signed": {"eigenvalues": (-1, 1)},
    "deltanet:products": {"eigenvalues": (-1, 1), "householders": 2},
    "linear-attention:taylor": {"features": "taylor"},
    "linear-attention:favor": {"features": "favor"},
}
"""Options that change what a mixer can do, as mixers of their own."""


@dataclass
class Score:
    """accuracy, longer: on fresh rows of the trained length and of twice that. parameters: of the model."""

    mixer: str
    task: str
    accuracy: float
    longer: float
    parameters: int
    seconds: float


@dataclass
class Scoreboard:
    """Every mixer on every task. chance: accuracy of a guess, by task. length: the longest row of the training."""

    scores: list[Score]
    chance: dict[str, float]
    steps: int
    rows: int
    length: int
    seed: int
    machine: str
    picture: str | None = None

    @property
    def mixers(self) -> list[str]:
        """The best in the mean over the tasks first."""
        def average(mixer: str) -> float:
            return mean(score.accuracy + score.longer for score in self.scores if score.mixer == mixer)

        return sorted(dict.fromkeys(score.mixer for score in self.scores), key=average, reverse=True)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        found = {(score.mixer, score.task): score for score in self.scores}
        table = Table("mixer", *self.chance, box=None)
        for mixer in self.mixers:
            table.add_row(mixer, *(f"{100 * found[mixer, task].accuracy:.0f} / {100 * found[mixer, task].longer:.0f}"
                                   for task in self.chance))
        table.add_row("a guess", *(f"{100 * chance:.0f}" for chance in self.chance.values()))
        sizes = [score.parameters for score in self.scores]
        lines = [f"accuracy in percent, at length {self.length} / {2 * self.length}; {DEPTH} layers, {min(sizes):,} to "
                 f"{max(sizes):,} parameters, {self.steps:,} steps of {self.rows} rows, seed {self.seed}; "
                 f"{self.machine}"] + ([f"picture: {self.picture}"] if self.picture else [])
        return Group(table, *map(Text, lines))

    def draw(self, figure: Figure) -> None:
        """Two heat maps: at the length of the training, and at twice that."""
        found = {(score.mixer, score.task): score for score in self.scores}
        panels = figure.subplots(1, 2, sharey=True)
        for panel, what in zip(panels, ("accuracy", "longer")):
            shown = [[100 * getattr(found[mixer, task], what) for task in self.chance] for mixer in self.mixers]
            image = panel.imshow(shown, cmap="viridis", vmin=0, vmax=100, aspect="auto")
            for row, line in enumerate(shown):
                for column, value in enumerate(line):
                    panel.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=8,
                               color="black" if value > 60 else "white")
            panel.set_xticks(range(len(self.chance)), self.chance, rotation=40, ha="right")
            panel.set_yticks(range(len(self.mixers)), self.mixers)
            panel.set_title(f"accuracy (%) at the trained length, {self.length}" if what == "accuracy" else
                            f"at twice that, {2 * self.length}")
        figure.colorbar(image, ax=panels, shrink=0.6)


def contestants() -> list[str]:
    """Every causal mixer by name, and those whose options change what they can do."""
    names = []
    for name, mixer in MIXERS.items():
        if mixer.causal and not mixer.needs_whole_prompt:
            names += [name, *(variant for variant in VARIANTS if variant.partition(":")[0] == name)]
    return names


def size(config: StackConfig) -> int:
    return sum(p.numel() for p in Stack(config).parameters())


def equal_size(mixer: str, vocabulary: int, parameters: int) -> StackConfig:
    """The widest model of at most so many parameters, what is left given to its channel mixers."""
    def config(width: int, hidden: int | None = None) -> StackConfig:
        options = {mixer: VARIANTS[mixer]} if mixer in VARIANTS else {}
        return StackConfig(vocabulary, width, [mixer] * DEPTH, options, hidden=hidden)

    width = 16
    while size(config(width + 8)) <= parameters:
        width += 8
    hidden = Stack(config(width)).blocks[0].channel.out.in_features  # type: ignore[union-attr]
    return config(width, hidden + max(0, parameters - size(config(width))) // (3 * width * DEPTH))


def seconds_per_step(mixer: str, task: str, parameters: int, length: int, rows: int) -> float:
    """Measured on the longest rows, after one step to warm up."""
    model = Stack(equal_size(mixer, TASKS[task].vocabulary, parameters))
    batches = TASKS[task].batches(rows, (length, length))
    learn(model, batches, 1)
    begin = time.perf_counter()
    learn(model, batches, 2)
    return (time.perf_counter() - begin) / 2


def train(mixer: str, task: str, steps: int, parameters: int, length: int, rows: int, seed: int) -> dict[str, Any]:
    """One cell of the board."""
    torch.manual_seed(seed)
    config, begin = equal_size(mixer, TASKS[task].vocabulary, parameters), time.perf_counter()
    torch.manual_seed(seed)  # building models to find the size has drawn numbers
    model = Stack(config)
    shortest = max(TASKS[task].shortest, length // 4)
    learn(model, TASKS[task].batches(rows, (shortest, length), seed), steps, seed=seed)
    return {"accuracy": accuracy(model, TASKS[task].test(TEST_ROWS, length, seed)),
            "longer": accuracy(model, TASKS[task].test(TEST_ROWS, 2 * length, seed)),
            "parameters": sum(p.numel() for p in model.parameters()), "seconds": time.perf_counter() - begin}


def scoreboard(tasks: str = "synthetic", minutes: float = 30.0, steps: int | None = None,
               mixers: Sequence[str] | None = None, parameters: int = PARAMETERS, length: int = LENGTH,
               rows: int = ROWS, seed: int = 0, out: str | Path | None = None, quiet: bool = False) -> Scoreboard:
    """Train every causal mixer on every task, all alike.

    tasks: "synthetic" for the usual nine, or names from TASKS with commas between. minutes: for all of it together;
    from how fast the mixers are it follows how many steps each of them gets, the same for all. steps: that number
    itself. mixers: names (default: all that are causal). out: a folder for the board, its picture and what is done:
    run again with the same settings, it goes on where it was.
    """
    if not 0 < minutes < math.inf:
        raise SegueError(f"minutes must be more than 0, not {minutes}")
    names = list(SYNTHETIC) if tasks == "synthetic" else tasks.split(",")
    if unknown := [name for name in names if name not in TASKS]:
        raise SegueError(f"task '{unknown[0]}' is unknown: choose 'synthetic' or from {', '.join(TASKS)}")
    chosen = list(mixers or contestants())
    if unknown := [name for name in chosen if name not in contestants()]:
        raise SegueError(f"mixer '{unknown[0]}' has no place on the board: choose from {', '.join(contestants())}")
    folder = None if out is None else Path(out)
    cells = Cells(None if folder is None else folder / "scoreboard.cells.json")
    workers, setting = cores(), (parameters, length, rows, seed)
    pairs = [(mixer, task) for mixer in chosen for task in names]
    with progress("scoreboard", total=len(pairs), quiet=quiet) as meter:
        if steps is None:
            def share() -> int:
                each = sum(seconds_per_step(mixer, names[0], *setting[:3]) for mixer in chosen)
                return max(1, int(60 * minutes * workers / (len(names) * each)))

            about = (minutes, *setting, *names, *chosen)
            steps = cells.compute({f"steps of {' '.join(map(str, about))}": share}, 1)[0]
        assert steps is not None
        cells.meter = meter
        done = cells.compute({" ".join(map(str, (*pair, steps, *setting))): partial(train, *pair, steps, *setting)
                              for pair in pairs}, workers)
    scores = [Score(*pair, **found) for pair, found in zip(pairs, done)]
    board = Scoreboard(scores, {name: TASKS[name].chance for name in names}, steps, rows, length, seed, machine())
    if folder is not None:
        picture = folder / "scoreboard.png"
        write_picture(picture, board.draw, (14, 2.5 + 0.28 * len(chosen)))
        board.picture = str(picture)
        write_json(folder / "scoreboard.json", board.to_dict())
    return board
