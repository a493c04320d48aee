"""Progress for long work: one rich bar on a terminal, silence when output is piped or `quiet` is asked for. And reports
that print as the command line shows them."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import RenderableType


class Meter(Protocol):
    def __call__(self, done: float, note: str = "") -> None: ...


@contextmanager
def progress(title: str, total: float, quiet: bool = False) -> Iterator[Meter]:
    """Yield a function to call with how much is done (of `total`) and a short note, e.g. the current loss."""
    if quiet or not sys.stderr.isatty():
        yield lambda done, note="": None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
               TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total, note="")
        yield lambda done, note="": bar.update(task, completed=done, note=note)


class Shown:
    """A report with a `__rich__` form, of which `print` gives the text."""

    def __rich__(self) -> RenderableType:
        raise NotImplementedError

    def __str__(self) -> str:
        from rich.console import Console

        text = io.StringIO()
        console = Console(file=text, force_terminal=False, force_jupyter=False, width=120, no_color=True)
        console.print(self, markup=False, highlight=False)
        return text.getvalue().rstrip()
