"""Claims: a paper's headline claim as an experiment that anyone can run.

A paper's file defines one `Claim`. Its decision rule is written down before the first run. `measure` runs the
experiment and returns a table, `judge` is a pure function from that table to a verdict, and `draw` plots the table.
Long experiments compute their table cell by cell (`Run.cell`): finished cells are saved in the output folder, so an
interrupted run resumes where it stopped and ends with the same table.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safetensors.torch import load, save
from torch import nn

from segue.cells import Cells
from segue.errors import SegueError
from segue.files import write_json, write_picture
from segue.progress import Shown, progress
from segue.training.recipe import cores, describe_machine

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.console import RenderableType

Scale = Literal["smoke", "cpu", "gpu"]
SCALES: tuple[Scale, ...] = ("smoke", "cpu", "gpu")
Verdict = Literal["confirmed", "refuted", "inconclusive"]
Row = dict[str, Any]
PROCESSES_PER_GPU = 10  # one process that trains a small model leaves the GPU idle between two kernels


@dataclass(frozen=True)
class Claim:
    """A paper's headline claim.

    statement: what the paper claims, in one sentence. rule: how the table decides the verdict, written before running.
    measure: runs the experiment and returns its table (a list of rows). judge: table -> verdict and reason, by the
    rule. draw: plots the table into a figure. paper: the paper's own numbers, by what they measure.
    scales: those at which it runs. gpu: the claim to run at scale gpu instead, where rule, table or picture differ.
    """

    slug: str
    statement: str
    rule: str
    measure: Callable[[Run], list[Row]]
    judge: Callable[[list[Row]], tuple[Verdict, str]]
    draw: Callable[[Figure, list[Row]], None]
    paper: Mapping[str, str] = field(default_factory=dict)
    scales: tuple[Scale, ...] = ("smoke", "cpu")
    gpu: Claim | None = None

    def at(self, scale: str) -> Claim:
        """The claim to run at this scale: `gpu` at scale "gpu" where there is one, else this one."""
        return self.gpu if scale == "gpu" and self.gpu is not None else self


@dataclass
class Report(Shown):
    """The result of a run. `verdict` is None at smoke scale, which only shows that the experiment runs end to end."""

    slug: str
    scale: Scale
    seed: int
    statement: str
    rule: str
    table: list[Row]
    paper: dict[str, str]
    verdict: Verdict | None
    reason: str
    notes: list[str]
    machine: str
    seconds: float
    processor: float = 0.0  # seconds, over all cores
    picture: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __rich__(self) -> RenderableType:
        """The report on a terminal: the statement, our table, the paper's own numbers, the rule and the verdict."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        columns = dict.fromkeys(name for row in self.table for name in row)  # rows of several parts differ in theirs
        ours = Table(*columns, title="measured here", title_justify="left")
        for row in self.table:
            ours.add_row(*(cell_text(row.get(name)) for name in columns))
        theirs = Table("figure", "paper", title="the paper's own figures", title_justify="left")
        for what, figure in self.paper.items():
            theirs.add_row(what, figure)
        lines = [f"rule: {self.rule}", f"verdict: {self.verdict or 'none'} ({self.reason})", *self.notes,
                 f"{self.scale} scale, seed {self.seed}, {self.seconds:g} s ({self.processor:g} s of processor time) "
                 f"on {self.machine}"]
        if self.picture is not None:
            lines.append(f"picture: {self.picture}")
        return Group(Text(f"{self.slug}: {self.statement}"), ours, *([theirs] if self.paper else []),
                     *map(Text, lines))


def cell_text(value: Any) -> str:
    """A value of a table's cell for people: four digits of a number, nothing for None."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(cell_text, value))
    if isinstance(value, dict):
        return "; ".join(f"{name}: {cell_text(part)}" for name, part in value.items())
    return "" if value is None else str(value)


class Run:
    """One run of a claim, as `measure` sees it: scale, seed, device, data folder, and the cells computed so far."""

    def __init__(self, claim: Claim, scale: Scale, seed: int, out: Path | None, data: Path | None) -> None:
        self.scale, self.seed, self.data = scale, seed, data
        self.device = "cuda" if scale == "gpu" else "cpu"
        self.notes: list[str] = []
        self.done = Cells(None if out is None else out / f"{claim.slug}-{scale}-{seed}.cells.json")

    def pick(self, smoke: Any, cpu: Any, gpu: Any = None) -> Any:
        """The value for this scale; `gpu` defaults to the value for cpu."""
        return {"smoke": smoke, "cpu": cpu, "gpu": cpu if gpu is None else gpu}[self.scale]

    def cell(self, name: str, compute: Callable[[], Any]) -> Any:
        """The JSON value that `compute()` returns; it is computed once and saved under `name`."""
        return self.cells({name: compute}, workers=1)[name]

    def cells(self, wanted: Mapping[str, Callable[[], Any]], workers: int | None = None) -> dict[str, Any]:
        """Compute many cells by name, in parallel processes of one thread each, and return their values by name.

        workers: number of processes (default: one per core, or PROCESSES_PER_GPU on a GPU). With more than one the
        functions must be picklable: module-level functions, or `functools.partial` of those."""
        most = PROCESSES_PER_GPU if self.device == "cuda" else cores()
        return self.done.compute(wanted, 1 if self.scale == "smoke" else workers or most)

    def note(self, text: str) -> None:
        """Add to the report what its reader must know, e.g. what was scaled down or replaced by a substitute."""
        self.notes.append(text)

    def dataset(self, name: str) -> Path | None:
        """The folder of a data set below `--data DIR`; None at smoke scale, where the claim generates synthetic data.

        Raises SegueError where the folder is missing."""
        if self.scale == "smoke":
            return None
        path = None if self.data is None else self.data / name
        if path is None or not path.is_dir():
            raise SegueError(f"this claim reads the data set '{name}': give the folder that holds it with --data DIR "
                             "(or SEGUE_DATA); --scale smoke needs none")
        return path


def run_claim(claim: Claim, scale: Scale = "cpu", seed: int = 0, out: str | Path | None = None,
              data: str | Path | None = None, quiet: bool = False) -> Report:
    """Run a claim and return its report; with `out`, also save the report, the picture and the cells there.

    Raises SegueError for a scale at which the claim does not run, and for "gpu" without a CUDA GPU.
    """
    if scale not in claim.scales:
        raise SegueError(f"'{claim.slug}' runs at scale {' or '.join(claim.scales)}, not {scale}")
    if scale == "gpu":
        import torch

        if not torch.cuda.is_available():
            raise SegueError("scale gpu needs a CUDA GPU, and torch sees none: use --scale cpu")
    claim = claim.at(scale)
    folder = None if out is None else Path(out)
    run = Run(claim, scale, seed, folder, None if data is None else Path(data))
    with progress(claim.slug, total=0, quiet=quiet) as meter:
        run.done.meter = meter
        table = claim.measure(run)
    verdict: Verdict | None = None
    reason = "smoke scale: only the wiring is shown, no verdict"
    if scale != "smoke":
        verdict, reason = claim.judge(table)
    report = Report(claim.slug, scale, seed, claim.statement, claim.rule, table, dict(claim.paper), verdict, reason,
                    run.notes, describe_machine(), run.done.seconds, run.done.processor)
    if folder is not None:
        picture = folder / f"{claim.slug}-{scale}.png"
        save_picture(claim, table, picture)
        report.picture = str(picture)
        # By name alone: the picture lies beside the report, and the folder may be moved.
        write_json(folder / f"{claim.slug}-{scale}.json", report.to_dict() | {"picture": picture.name})
    return report


def dump_weights(model: nn.Module) -> str:
    """The weights of a model as base64 text, so that a cell's JSON value can hold them; tied ones are saved once."""
    first = {tensor.data_ptr(): name for name, tensor in reversed(model.state_dict().items())}
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()
               if first[tensor.data_ptr()] == name}
    return base64.b64encode(save(tensors)).decode()


def load_weights(model: nn.Module, weights: str) -> None:
    """Load into a model of the same architecture what `dump_weights` returned."""
    unknown = model.load_state_dict(load(base64.b64decode(weights)), strict=False).unexpected_keys
    assert not unknown, f"weights of another model: {', '.join(unknown)}"


def seed_bars(axes: Axes, rows: Sequence[Row], value: str, labels: Sequence[str], name: str = "arm") -> None:
    """A bar for row[value] of each row, the first on top, named row[name], with a label inside and a dot for each value
    of row["by seed"]."""
    for at, (row, label) in enumerate(zip(rows, labels)):
        axes.barh(at, row[value], color=f"C{at}", alpha=0.6)
        axes.plot(row["by seed"], [at] * len(row["by seed"]), "k.", markersize=4)
        axes.text(0.01, at, label, va="center", fontsize=7)
    axes.set_yticks(range(len(rows)), [row[name] for row in rows], fontsize=8)
    axes.yaxis.set_inverted(True)


def save_picture(claim: Claim, table: list[Row], path: Path) -> None:
    write_picture(path, lambda figure: claim.draw(figure, table))
