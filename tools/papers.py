"""Write docs/papers.md, from the table of papers and the reports in benchmarks/results/claims.

    segue reproduce SLUG --scale cpu --out benchmarks/results/claims
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


def page() -> str:
    lines = [INTRODUCTION, row("paper", "parts", "claim", "measured here", "the paper's figures", "verdict", "command"),
             row(*["---"] * 7)]
    planned = ["", "Planned, without a claim yet:", ""]
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
        found: list[dict[str, Any] | None] = [*reports(slug)] or [None]
        for report in found:
            scale = report["scale"] if report else "cpu" if "cpu" in said.scales else "gpu"
            command = f"`segue reproduce {slug} --scale {scale}`"
            if report is None:
                lines.append(row(title, parts, cell(said.statement), "", cell(figures), "not run yet", command))
                continue
            files = f"../benchmarks/results/claims/{slug}-{scale}"
            verdicts.append(report["verdict"])
            ours = f"{cell(report['reason'])} ([{report['seconds']:,.0f} s on {cell(report['machine'])}]({files}.json))"
            lines.append(row(title, parts, cell(said.statement), ours, cell(figures),
                             f"[{report['verdict']}]({files}.png)", command))
    counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in sorted(set(verdicts)))
    return "\n".join([*lines, "", f"Verdicts so far: {counts}.", *planned]) + "\n"


if __name__ == "__main__":
    write_text(PAGE, page())
