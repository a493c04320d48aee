"""The table of papers, the claim harness, and every claim at smoke scale."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from segue.errors import SegueError
from segue.papers import PAPERS, claim, reproduce
from segue.papers.base import Claim, Row, Run, run_claim

ROOT = Path(__file__).resolve().parents[1]
REPORTS = sorted((ROOT / "benchmarks" / "results" / "claims").glob("*-[cg]pu.json"))
CLAIMS = [slug for slug, paper in PAPERS.items() if paper.module]


def test_the_table_is_whole() -> None:
    assert len(PAPERS) == 68  # 66 systems and two reference pages
    assert len({paper.title for paper in PAPERS.values()}) == len(PAPERS)
    with pytest.raises(SegueError, match="did you mean lookahead"):
        claim("lookahed")
    with pytest.raises(SegueError, match="planned"):
        claim("drakes")


@pytest.mark.parametrize("slug", CLAIMS)
def test_every_claim_runs_at_smoke_scale(slug: str, tmp_path: Path) -> None:
    report = reproduce(slug, "smoke", out=tmp_path, quiet=True)
    assert report.verdict is None and report.table and report.rule
    saved = json.loads((tmp_path / f"{slug}-smoke.json").read_text())
    assert saved["table"] == report.table
    assert (tmp_path / f"{slug}-smoke.png").read_bytes().startswith(b"\x89PNG")
    columns = set().union(*report.table)
    assert all(set(row) <= columns for row in report.table)


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: path.stem)
def test_a_committed_report_is_what_its_claim_says_today(path: Path) -> None:
    """The rule was not bent after the run, and the verdict follows from the table by it."""
    report = json.loads(path.read_text(encoding="utf-8"))
    told = claim(report["slug"])
    assert path.stem == f"{told.slug}-{report['scale']}" and path.with_suffix(".png").exists()
    assert (report["statement"], report["rule"], report["paper"]) == (told.statement, told.rule, dict(told.paper))
    assert told.judge(report["table"]) == (report["verdict"], report["reason"])


def test_the_page_of_papers_is_current() -> None:
    page = runpy.run_path(str(ROOT / "tools" / "papers.py"))["page"]()
    assert page == (ROOT / "docs" / "papers.md").read_text(encoding="utf-8"), "run python tools/papers.py"


def counting(calls: list[str]) -> Claim:
    def measure(run: Run) -> list[Row]:
        def compute(name: str) -> float:
            calls.append(name)
            if name == "b" and calls.count("b") == 1:
                raise KeyboardInterrupt
            return 0.1 + len(name)

        return [{"name": name, "value": run.cell(name, lambda n=name: compute(n))} for name in ("a", "b")]

    return Claim("toy", "A toy.", "confirmed if a equals b", measure,
                 lambda table: ("confirmed" if table[0]["value"] == table[1]["value"] else "refuted", "by value"),
                 lambda figure, table: None, scales=("cpu",))


def test_an_interrupted_claim_goes_on(tmp_path: Path) -> None:
    calls: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        run_claim(counting(calls), out=tmp_path, quiet=True)
    report = run_claim(counting(calls), out=tmp_path, quiet=True)
    assert calls == ["a", "b", "b"]
    assert report.verdict == "confirmed"
    with pytest.raises(SegueError, match="runs at scale cpu"):
        run_claim(counting(calls), "smoke")


def review(lstm: float, elman: float, sides: float, saved: float) -> list[Row]:
    rows = [("lag 100", "LSTM of 1997, no forgetting", lstm), ("lag 100", "LSTM, forget bias 1", 0.25),
            ("lag 100", "LSTM, forget bias 0", 0.25), ("lag 100", "Elman, uniform", elman),
            ("hidden character", "BLSTM", 0.3 + sides), ("hidden character", "LSTM", 0.3),
            ("text", "Elman", 3.0), ("text", "LSTM", 3.0 - saved), ("text", "Kneser-Ney 5-gram", 2.0)]
    return [{"task": task, "model": model, "value": value} for task, model, value in rows]


@pytest.mark.parametrize(("values", "verdict"), [
    ((1.0, 0.25, 0.2, 0.3), "confirmed"), ((1.0, 0.97, 0.2, 0.3), "refuted"), ((1.0, 0.25, -0.1, 0.3), "refuted"),
    ((1.0, 0.25, 0.2, -0.1), "refuted"), ((0.8, 0.25, 0.2, 0.3), "inconclusive"),
    ((1.0, 0.25, 0.05, 0.3), "inconclusive")])
def test_the_rule_of_the_recurrent_review(values: tuple[float, float, float, float], verdict: str) -> None:
    # With the 1997 network no better than the others, the best LSTM is what counts.
    assert claim("rnn-review").judge(review(*values))[0] == verdict


def logs(gru: float, graph: float) -> list[Row]:
    rows: list[Row] = [{"log": log, "method": method, "Brier": 0.02 * r, "to AKOM": r} for log in ("A", "B")
                       for method, r in (("AKOM", 1.0), ("GRU", gru), ("directly-follows graph", graph),
                                         ("ALERGIA", 1.3))]
    return rows + [{"log": "B", "method": f"AKOM, order {k}, {way} start symbol", "Brier": 0.02}
                   for k in (4, 12) for way in ("with", "without")]


@pytest.mark.parametrize(("gru", "graph", "verdict"), [
    (0.9, 1.2, "confirmed"), (1.01, 1.2, "refuted"), (0.9, 1.01, "refuted"), (0.99, 1.2, "inconclusive"),
    (0.9, 1.05, "inconclusive")])
def test_the_rule_of_next_element(gru: float, graph: float, verdict: str) -> None:
    assert claim("next-element").judge(logs(gru, graph))[0] == verdict


@pytest.mark.parametrize(("reset", "leaky", "gru", "loop", "gain", "verdict"), [
    (0.99, 0.8, 0.99, 4.0, 0.3, "confirmed"), (0.99, 0.99, 0.99, 4.0, 0.3, "refuted"),
    (0.96, 0.8, 0.98, 4.0, 0.3, "refuted"), (0.99, 0.8, 0.99, 2.0, 0.3, "inconclusive"),
    (0.99, 0.8, 0.99, 4.0, 0.1, "inconclusive"), (0.97, 0.8, 0.97, 4.0, 0.3, "inconclusive")])
def test_the_rule_of_resettable_s5(reset: float, leaky: float, gru: float, loop: float, gain: float,
                                   verdict: str) -> None:
    rows = [("recall", "S5, resetting", reset), ("recall", "S5, no reset", leaky), ("recall", "GRU, resetting", gru),
            ("repeat previous", "S5, resetting", gain - 0.5), ("repeat previous", "no memory", -0.5)]
    for span, times in ((128, 0.5), (1024, loop), (4096, 9.0)):  # short sequences do not count
        rows += [(f"step of {span}", "S5, resetting", 1.0), (f"step of {span}", "GRU, loop in Python", times)]
    table = [{"task": task, "model": model, "value": value} for task, model, value in rows]
    assert claim("s5-rl").judge(table)[0] == verdict


@pytest.mark.parametrize(("best", "attention", "lookup", "lru", "verdict"), [
    (0.8, 0.7, 0.9, 0.7, "confirmed"), (0.7, 0.8, 0.9, 0.7, "refuted"), (0.8, 0.7, 0.6, 0.7, "refuted"),
    (0.72, 0.7, 0.9, 0.7, "inconclusive"), (0.8, 0.7, 0.9, 0.85, "inconclusive")])
def test_the_rule_of_mamba_360(best: float, attention: float, lookup: float, lru: float, verdict: str) -> None:
    long = {"attention": attention, "s4d": 0.3, "lru": 0.3, "hyena": 0.3, "mamba": best}
    recall = {"attention": lookup, "s4d": 0.1, "lru": lru, "hyena": 1.0, "mamba": 1.0}  # which are not invariant
    table = [{"mixer": mixer, "task": task, "accuracy": recall[mixer] if task == "recall" else long[mixer]}
             for mixer in long for task in ("listops", "digits", "delayed cue", "recall")]
    assert claim("mamba-360").judge(table)[0] == verdict
