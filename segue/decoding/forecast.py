"""Forecasts: many sampled continuations of measured numbers, summarised by quantiles at each moment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from segue.analysis.forecast import SHARE
from segue.decoding.generate import generate
from segue.decoding.sampling import Array, Prefix, keep_only
from segue.errors import SegueError
from segue.files import write_picture
from segue.kinds.codecs import decimal, element, parted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from segue.kinds.codecs import Codec
    from segue.kinds.times import Clock
    from segue.models.base import Decodable

DEFAULT_SAMPLES = 100
LEVELS = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)  # of the quantiles in a report
BATCH_ROWS = 128  # samples decoded together
PICTURE_SUFFIXES = (".png",)
MAX_TEXT_COLUMNS, MAX_PANELS = 8, 12  # columns shown in a text and in a picture
PAST_FACTOR = 3  # a picture shows this many times the forecast's length of the past


class ColumnTurns:
    """A processor that makes numbers come column by column (`Codec.turns`), with no missing value and no end."""

    def __init__(self, turns: Sequence[np.ndarray]) -> None:
        self.turns = [ids[:-1] for ids in turns]
        self.column = {id: column for column, ids in enumerate(turns) for id in ids.tolist()}

    def after(self, ids: Sequence[int]) -> int:
        """The column whose turn it is after these ids."""
        return (self.column.get(ids[-1], -1) + 1) % len(self.turns)

    def __call__(self, scores: Array, prefix: Prefix) -> Array:
        return keep_only(scores, self.turns[self.after(prefix.tokens)])


class RowCells:
    """A processor that makes the cells of a table's row come in order, each column once, then the end (see
    `CellCodec.cells`)."""

    def __init__(self, cells: Sequence[np.ndarray], end: int) -> None:
        self.cells, self.end = cells, np.array([end])
        self.column = {id: column for column, ids in enumerate(cells) for id in ids.tolist()}

    def __call__(self, scores: Array, prefix: Prefix) -> Array:
        used = [self.column[id] for id in prefix.tokens if id in self.column]
        remaining = (column for column in range(used[-1] + 1 if used else 0, len(self.cells)) if column not in used)
        return keep_only(scores, next((self.cells[column] for column in remaining), self.end))


def sample_forecasts(model: Decodable, codec: Codec, prompts: Sequence[Sequence[int]], steps: int,
                     samples: int = DEFAULT_SAMPLES, seed: int = 0, **options: Any) -> np.ndarray:
    """(P, K, steps, C) numbers of C columns: K samples of the moments that follow each prompt of ids. Where a prompt
    ends within a moment, that is the first, and its known columns are nan. options: of sampling, see `generate`."""
    rule = ColumnTurns(turns := codec.turns())
    if not turns:
        raise SegueError("only measured numbers are forecast: give a model of series")
    if steps < 1 or samples < 1:
        raise SegueError(f"{samples} samples of {steps} moments are none: give 1 or more of each")
    numbers = np.full(codec.size, np.nan)
    for ids in turns:
        numbers[ids] = [parted(codec.token(id))[1] for id in ids.tolist()]
    num_known = [rule.after(prompt) for prompt in prompts]
    rows = [prompt for prompt in prompts for _ in range(samples)]
    limits = [steps * len(turns) - count for count in num_known for _ in range(samples)]
    answers = generate(model, rows, limits, "sample", "none", seed=seed, batch=BATCH_ROWS,
                       **{**options, "processors": (rule, *options.get("processors", ()))})
    draws = np.full((len(prompts), samples, steps * len(turns)), np.nan)
    for index, answer in enumerate(answers):
        row = index // samples
        draws[row, index % samples, num_known[row] :] = numbers[answer.tokens]
    return draws.reshape(len(prompts), samples, steps, len(turns))


@dataclass
class Forecast:
    """K samples of the next H moments.

    draws: (K, H, C) numbers of C columns. columns: their names in the codec's elements; called: their names for people.
    past: (T, C), what came before. writer: writes elements in the kind's own format. clock: the times of the past,
    where they are known.
    """

    columns: list[str]
    called: list[str]
    draws: np.ndarray
    past: np.ndarray
    seed: int
    path: str
    prime: list[str] = field(default_factory=list)
    writer: Callable[..., None] | None = field(default=None, repr=False)
    clock: Clock | None = None

    @property
    def times(self) -> list[str]:
        """The times of the forecast moments if the past's are known, else their numbers from 1."""
        steps = self.draws.shape[1]
        if self.clock is None or len(self.clock.times) != len(self.past):
            return [str(h + 1) for h in range(steps)]
        return self.clock.format(self.clock.after(steps))

    def quantile(self, level: float) -> np.ndarray:
        """(H, C) quantiles of the samples; nan where the value was known."""
        forecast = np.isfinite(self.draws[0])
        quantiles = np.quantile(np.where(forecast, self.draws, 0.0), level, axis=0)
        return np.where(forecast, quantiles, np.nan)

    @property
    def value(self) -> list[str]:
        """The medians as elements."""
        return [element(column, number) for moment in self.quantile(0.5).tolist()
                for column, number in zip(self.columns, moment) if np.isfinite(number)]

    @property
    def whole(self) -> list[str]:
        """The prime followed by the medians."""
        return [*self.prime, *self.value]

    @property
    def text(self) -> str:
        """A table with a row for each moment: each column's median and 80% interval (first eight columns, 4 digits)."""
        low, median, high = map(self.quantile, ((1 - SHARE) / 2, 0.5, (1 + SHARE) / 2))

        def short(value: float) -> str:
            return np.format_float_positional(value, precision=4, unique=False, fractional=False, trim="-")

        def cell(h: int, c: int) -> str:
            return "" if np.isnan(median[h, c]) else \
                f"{short(median[h, c])} ({short(low[h, c])} to {short(high[h, c])})"

        columns = range(min(len(self.columns), MAX_TEXT_COLUMNS))
        rows = [["step" if self.clock is None else self.clock.name, *self.called[:MAX_TEXT_COLUMNS]]]
        rows += [[time, *(cell(h, c) for c in columns)] for h, time in enumerate(self.times)]
        widths = [max(map(len, column)) for column in zip(*rows)]
        return "\n".join("  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in rows)

    @property
    def note(self) -> str:
        count, steps, columns = self.draws.shape
        hidden = columns - MAX_TEXT_COLUMNS
        hidden_note = f"; {hidden} more columns are in --json and --out" if hidden > 0 else ""
        return (f"{steps} moments behind {len(self.past)}: the median of {count} samples and the interval of "
                f"{SHARE:.0%} of them, seed {self.seed}; {self.path}{hidden_note}")

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; null where the value was known."""

        def plain(values: np.ndarray) -> list[float | None]:
            return [float(decimal(value)) if np.isfinite(value) else None for value in values.tolist()]

        quantiles = {level: self.quantile(level) for level in LEVELS}
        return {"samples": len(self.draws), "seed": self.seed, "path": self.path, "times": self.times, "columns": {
            column: {"median": plain(quantiles[0.5][:, c]), "mean": plain(self.draws[:, :, c].mean(0)),
                     "quantiles": {f"{level:g}": plain(found[:, c]) for level, found in quantiles.items()}}
            for c, column in enumerate(self.called)}}

    def save(self, path: str | Path) -> None:
        """Write a picture (.png), or the past followed by the medians in the kind's own format."""
        if Path(path).suffix.lower() in PICTURE_SUFFIXES:
            write_picture(path, self.draw, (9, 1 + 2.2 * min(len(self.columns), MAX_PANELS)))
        elif self.writer is None:
            raise SegueError(f"cannot write {path}: only forecasts of a fitted model know their file format")
        elif self.clock is not None and len(self.whole) == (len(self.past) + len(self.times)) * len(self.columns):
            moments = [*self.clock.format(self.clock.times), *self.times]
            self.writer(self.whole, path, **{self.clock.name: np.repeat(np.array(moments), len(self.columns))})
        else:
            self.writer(self.whole, path)

    def draw(self, figure: Figure) -> None:
        """Plot, for each of the first twelve columns, the end of the past, the median and 50, 80 and 90% intervals."""
        steps = self.draws.shape[1]
        past = self.past[-max(PAST_FACTOR * steps, 24) :]
        before, after = np.arange(len(past)) - len(past) + 1, np.arange(1, steps + 1)
        panels = np.atleast_1d(figure.subplots(min(len(self.columns), MAX_PANELS), 1, sharex=True))
        for c, (panel, column) in enumerate(zip(panels, self.called)):
            panel.plot(before, past[:, c], color="0.3", linewidth=1, label="past")
            for low, high in ((0.05, 0.95), (0.1, 0.9), (0.25, 0.75)):
                panel.fill_between(after, self.quantile(low)[:, c], self.quantile(high)[:, c], color="C0", alpha=0.2,
                                   linewidth=0, label=f"{high - low:.0%}")
            panel.plot(after, self.quantile(0.5)[:, c], color="C0", label="median")
            panel.set_ylabel(column)
        panels[0].legend(fontsize="small", loc="lower left", bbox_to_anchor=(0, 1), ncols=5, frameon=False)
        panels[-1].set_xlabel("moments from the last one known" if self.clock is None else
                              f"moments from {self.clock.format(self.clock.times)[-1]}")
