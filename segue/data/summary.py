"""The printed summary of a data set: some statistics and examples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from segue.kinds.codecs import shown

if TYPE_CHECKING:
    from rich.console import RenderableType

    from segue.data.records import Data

EXAMPLES, WIDTH = 3, 72  # number of examples, and characters of each
SHOWN = 1 << 16  # elements up to which an example that is no text is shown as a whole


def describe(data: Data) -> dict[str, Any]:
    """See `Data.describe`."""
    lengths = data.lengths
    quantiles = {"least": int(lengths.min()), "median": float(np.median(lengths)), "mean": float(lengths.mean()),
                 "most": int(lengths.max())} if len(lengths) else {}
    return {
        "kind": data.kind.name,
        "unit": data.kind.unit,
        "sequences": len(data),
        "total": data.total,
        "lengths": quantiles,
        "vocabulary": len(data.vocabulary),
        "most_frequent": {_label(data, element): n for element, n in list(data.vocabulary.items())[:20]},
        "channels": sorted(data.channels),
        "note": data.problems.description,
        "examples": _examples(data),
        "problems": [str(problem) for problem in data.problems],
        "problems_total": data.problems.total,
    }


def summary_table(data: Data) -> RenderableType:
    """See `Data.summary`."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    facts = describe(data)
    unit = facts["unit"]
    rows = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    rows.add_column(style="bold")
    rows.add_column(overflow="fold")
    rows.add_row("kind", facts["kind"])
    if facts["note"]:
        rows.add_row("read as", Text(facts["note"]))
    rows.add_row("sequences", f"{facts['sequences']:,}")
    rows.add_row(f"{unit}s", f"{facts['total']:,}")
    if lengths := facts["lengths"]:
        rows.add_row("lengths", f"{lengths['least']:,} to {lengths['most']:,}, median {lengths['median']:,.0f}, "
                                f"mean {lengths['mean']:,.1f}")
    frequent = "  ".join(f"{element} {count / max(1, facts['total']):.1%}"
                         for element, count in list(facts["most_frequent"].items())[:8])
    rows.add_row("vocabulary", Text(f"{facts['vocabulary']:,} different {unit}s: {frequent}"))
    if facts["channels"]:
        rows.add_row("channels", ", ".join(facts["channels"]))
    for i, (name, text) in enumerate(facts["examples"]):
        rows.add_row("examples" if i == 0 else "", Text.assemble((f"{name.rsplit('/', 1)[-1]}  ", "dim"), text))
    if data.problems.total:
        rows.add_row("problems", Text(f"{data.problems.total:,} stepped over", style="yellow"))
        for problem in data.problems[:5]:
            rows.add_row("", Text(str(problem)))
    return Group(rows)


def _label(data: Data, element: Any) -> str:
    if data.kind.storage != "bytes":
        return str(element)
    byte = bytes([element])
    return repr(byte)[1:] if element <= 32 else shown(byte)


def _examples(data: Data) -> list[list[str]]:
    """Name and beginning of a few records, evenly spread."""
    examples = []
    for i in sorted({int(i) for i in np.linspace(0, len(data) - 1, EXAMPLES)}) if len(data) else []:
        if data.kind.drawn:
            examples.append([data.name(i), "\n" + data.kind.show(data.object_of(data.values(i)))])
            continue
        values = data.values(i)
        begin = data.object_of(values[: 4 * WIDTH])
        # What is shown of an object that is no text counts its parts, so it is made from the whole object.
        is_complete = len(values) <= (4 * WIDTH if isinstance(begin, str) else SHOWN)
        if is_complete and len(values) > 4 * WIDTH:
            begin = data.object_of(values)
        text = " ".join((begin if isinstance(begin, str) else data.kind.show(begin)).split())
        is_cut = len(text) > WIDTH or not is_complete
        examples.append([data.name(i), text[:WIDTH] + ("…" if is_cut else "")])
    return examples
