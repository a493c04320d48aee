"""Write docs/papers.md, from the table of papers and the reports in benchmarks/results/claims.

    segue reproduce SLUG --scale cpu --out benchmarks/results/claims  # or gpu
    python tools/papers.py

Commit the report, its picture and the page together: a test compares the page with what this makes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from segue.files import read_json, write_text
from segue.papers import PAPERS, Paper, claim
from segue.papers.base import SCALES, Claim

ROOT = Path(__file__).resolve().parents[1]
REPORTS = ROOT / "benchmarks" / "results" / "claims"
PAGE = ROOT / "docs" / "papers.md"

INTRODUCTION = """\
# The papers

What Segue takes from the literature, and what became of each paper's headline claim when it was run here. The rule of
each verdict was written before the first run; where one was made stricter after it, the report's notes say so and what
the first rule would have said. *Inconclusive* and *refuted* are answers too, and the section says why. The title in a
section leads to the paper's file. This page is written by `python tools/papers.py` from the reports in
`benchmarks/results/claims`.
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


def where(report: dict[str, Any]) -> str:
    return " on a GPU" if report["scale"] == "gpu" else ""


def verdict_of(report: dict[str, Any]) -> str:
    return f"{report['verdict']}{where(report)}"


def measured(report: dict[str, Any]) -> str:
    """What a run found, and what it took."""
    computing = f" ({report['processor']:,.0f} s of processor time)" if report.get("processor") else ""
    links = f"[picture]({files(report)}.png), [report]({files(report)}.json)"
    return (f"{report['verdict'].capitalize()}{where(report)} ({links}): "
            f"{cell(report['reason'])}. Took {report['seconds']:,.0f} s{computing} on {cell(report['machine'])}.")


def section(slug: str, paper: Paper, claimed: Claim, runs: list[dict[str, Any]]) -> list[str]:
    """A paper's parts and claim, our figures beside its own, the verdicts and the commands."""
    source = f" ({paper.source})" if paper.source else ""
    scales = [report["scale"] for report in runs] or ["cpu" if "cpu" in claimed.scales else "gpu"]
    figures = "<br>".join(f"{cell(what)}: {cell(figure)}" for what, figure in claimed.paper.items()) or "none"
    return [f"## {slug}", "", f"[{paper.title}](../segue/papers/{paper.module}.py){source}", "",
            f"**Claim.** {claimed.statement}", "", f"**Rule.** {claimed.rule[0].upper()}{claimed.rule[1:]}", "",
            row("measured here", "the paper's own figures"), row("---", "---"),
            row("<br>".join(map(measured, runs)) or "not run yet", figures), "",
            "Parts: " + ", ".join(f"`{part}`" for part in paper.parts) + ". Command: " +
            ", ".join(f"`segue reproduce {slug} --scale {scale}`" for scale in scales), ""]


def page() -> str:
    index = [row("paper", "verdict", "command"), row(*["---"] * 3)]
    sections: list[str] = []
    planned: list[str] = []
    verdicts: list[str] = []
    for slug, paper in PAPERS.items():
        if not paper.module:
            planned.append(f"- {paper.title}" + (f" ({paper.source})" if paper.source else ""))
            continue
        runs = reports(slug)
        verdicts += [report["verdict"] for report in runs]
        index.append(row(f"[{cell(paper.title)}](#{slug})", ", ".join(map(verdict_of, runs)) or "not run yet",
                         f"`segue reproduce {slug}`"))
        sections += section(slug, paper, claim(slug), runs)
    counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in sorted(set(verdicts)))
    if planned:
        planned = ["Planned, without a claim yet:", "", *planned, ""]
    return "\n".join([INTRODUCTION, f"Verdicts so far: {counts}.", "", *index, "", *planned, *sections])


if __name__ == "__main__":
    write_text(PAGE, page())
