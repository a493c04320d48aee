"""Write docs/papers.md, from the table of papers and the reports in benchmarks/results/claims.

    segue reproduce SLUG --scale cpu --out benchmarks/results/claims  # or gpu
    python tools/papers.py

Commit the report, its picture and the page together: a test compares the page with what this makes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from segue.files import read_json, write_text
from segue.papers import PAPERS, claim
from segue.papers.base import SCALES

ROOT = Path(__file__).resolve().parents[1]
REPORTS = ROOT / "benchmarks" / "results" / "claims"
PAGE = ROOT / "docs" / "papers.md"

INTRODUCTION = """\
# The papers

What Segue takes from the literature, and what became of each paper's headline claim when it was run here. The rule of
each verdict stands in the paper's file (follow its title) and was written before the first run; where one was made
stricter after it, the report's notes say so and what the first rule would have said. *Inconclusive* and *refuted* are
answers too, and the words beside them say why. A verdict links to its picture, the machine to the whole report. This
page is written by `python tools/papers.py` from those reports.
"""


def cell(text: str) -> str:
    """Text that stays within one cell of a Markdown table."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def reports(slug: str) -> list[dict[str, Any]]:
    """The reports of a claim, one for each scale at which it was run."""
    paths = [REPORTS / f"{slug}-{scale}.json" for scale in SCALES if scale != "smoke"]
    return [read_json(path) for path in paths if path.exists()]


def files(report: dict[str, Any]) -> str:
    return f"../benchmarks/results/claims/{report['slug']}-{report['scale']}"


def measured(report: dict[str, Any]) -> str:
    where = "on a GPU: " if report["scale"] == "gpu" else ""
    computing = f" ({report['processor']:,.0f} s of processor time)" if report.get("processor") else ""
    return (f"{where}{cell(report['reason'])} ([{report['seconds']:,.0f} s{computing} on {cell(report['machine'])}]"
            f"({files(report)}.json))")


def judged(report: dict[str, Any]) -> str:
    where = " on a GPU" if report["scale"] == "gpu" else ""
    return f"[{report['verdict']}]({files(report)}.png){where}"


def page() -> str:
    lines = [INTRODUCTION, row("paper", "parts", "claim", "measured here", "the paper's figures", "verdict", "command"),
             row(*["---"] * 7)]
    planned: list[str] = []
    verdicts: list[str] = []
    for slug, paper in PAPERS.items():
        source = f" ({paper.source})" if paper.source else ""
        if not paper.module:
            planned.append(f"- {paper.title}{source}")
            continue
        said = claim(slug)
        title = f"[{cell(paper.title)}](../segue/papers/{paper.module}.py){source}"
        parts = ", ".join(f"`{part}`" for part in paper.parts)
        figures = "; ".join(f"{what}: {figure}" for what, figure in said.paper.items()) or "none"
        found = reports(slug)
        verdicts += [report["verdict"] for report in found]
        scales = [report["scale"] for report in found] or ["cpu" if "cpu" in said.scales else "gpu"]
        lines.append(row(title, parts, cell(said.statement), "<br>".join(map(measured, found)), cell(figures),
                         "<br>".join(map(judged, found)) or "not run yet",
                         "<br>".join(f"`segue reproduce {slug} --scale {scale}`" for scale in scales)))
    counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in sorted(set(verdicts)))
    if planned:
        planned = ["", "Planned, without a claim yet:", "", *planned]
    return "\n".join([*lines, "", f"Verdicts so far: {counts}.", *planned]) + "\n"


if __name__ == "__main__":
    write_text(PAGE, page())
