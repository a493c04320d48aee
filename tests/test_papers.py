"""The table of papers, the claim harness, and every claim at smoke scale."""

from __future__ import annotations

import json
import pkgutil
import runpy
import time
from pathlib import Path
from typing import Any

import pytest

from segue.errors import SegueError
from segue.papers import PAPERS, Paper, claim, reproduce
from segue.papers.base import Claim, Row, Run, run_claim

ROOT = Path(__file__).resolve().parents[1]
REPORTS = sorted((ROOT / "benchmarks" / "results" / "claims").glob("*-[cg]pu.json"))
CLAIMS = [slug for slug, paper in PAPERS.items() if paper.module]


def test_the_table_of_papers_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(PAPERS) == 68  # 66 systems and two reference pages
    assert len({paper.title for paper in PAPERS.values()}) == len(PAPERS)
    for part in {part for paper in PAPERS.values() for part in paper.parts}:
        pkgutil.resolve_name(f"segue.{part.partition(' ')[0]}")
    with pytest.raises(SegueError, match="did you mean lookahead"):
        claim("lookahed")
    monkeypatch.setitem(PAPERS, "soon", Paper("Soon", "2030"))
    with pytest.raises(SegueError, match="planned"):
        claim("soon")


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
def test_committed_reports_agree_with_their_claims(path: Path) -> None:
    """The rule was not bent after the run, and the verdict follows from the table by it."""
    report = json.loads(path.read_text(encoding="utf-8"))
    current_claim = claim(report["slug"]).at(report["scale"])
    assert path.stem == f"{current_claim.slug}-{report['scale']}" and path.with_suffix(".png").exists()
    assert (report["statement"], report["rule"],
            report["paper"]) == (current_claim.statement, current_claim.rule, dict(current_claim.paper))
    assert current_claim.judge(report["table"]) == (report["verdict"], report["reason"])


# What would have to be found for another verdict: rows of a committed table by their columns, and what they then say.
Change = tuple[dict[str, Any], dict[str, Any]]
OTHERWISE: list[tuple[str, list[Change], str]] = [
    ("aggressive-decoding", [({"decoding": "GAD"}, {"different answers": 1})], "refuted"),
    ("aggressive-decoding", [({"task": "German to English"}, {"ratio": 2.0})], "inconclusive"),
    ("bio-xlstm", [({"model": "mLSTM", "given": n}, {"gap": n / 100}) for n in (1, 4, 8)], "confirmed"),
    ("bio-xlstm", [({"model": "mLSTM"}, {"gap": 0.03})], "inconclusive"),
    ("central-dogma", [({"arm": "language pairs only"}, {"length": 70.0})], "confirmed"),
    ("central-dogma", [({"arm": "DNA and protein pairs"}, {"composition": 90.0})], "refuted"),
    ("cl-llm-survey", [({"arm": "EWC"}, {"forgetting": 0.1, "new": 2.0})], "refuted"),
    ("cl-llm-survey", [({"arm": "re-warmed, replay 25%"}, {"forgetting": 0.25})], "inconclusive"),
    ("cl-thesis", [({"strategy": "MIR", "rows kept": 100}, {"accuracy": 0.9}),
                   ({"stream": "imbalanced", "strategy": "GSS"}, {"accuracy": 0.6}),
                   ({"stream": "tasks", "strategy": "naive"}, {"accuracy": 0.6})], "confirmed"),
    ("cl-thesis", [({"stream": "imbalanced", "strategy": "GSS"}, {"accuracy": 0.1})], "refuted"),
    ("coda-prompt", [({"arm": "CODA-P", "components": 25}, {"accuracy": 0.5})], "confirmed"),
    ("coda-prompt", [({"arm": "CODA-P", "components": 25}, {"accuracy": 0.1})], "refuted"),
    ("code-ood-cl", [({"arm": "EWC"}, {"forgetting by seed": [0.05, 0.05, 0.05]})], "confirmed"),
    ("code-ood-cl", [({"arm": "EWC"}, {"at learning": 3.0})], "refuted"),
    ("cot-expressivity", [({"scratchpad": "dummy"}, {"right": 0.7})], "refuted"),
    ("cot-expressivity", [({"scratchpad": "log"}, {"right": 0.5})], "inconclusive"),
    ("ditto", [({"text": "test", "arm": "decayed repetition"},
                {"rep-12": 0.2, "to control": 1.01, "TP": [0.4, 0.3, 0.2, 0.2, 0.2]})], "confirmed"),
    ("ditto", [({"text": "test", "arm": "unlikelihood"}, {"rep-12": 0.1, "to control": 1.0})], "refuted"),
    ("flashrnn", [({"what": "speed"}, {"times the loop": 6.0, "times torch's module": 0.9})], "confirmed"),
    ("flashrnn", [({"what": "parity", "model": "Mamba"}, {"tested": 0.9})], "refuted"),
    ("gumbel-and-discrete-diffusion",
     [({"arm": "masked diffusion", "measure": "bits per character of the middle third"}, {"value": 1.5})],
     "confirmed"),
    ("gumbel-and-discrete-diffusion", [({"arm": "uniform diffusion"}, {"value": 2.5})], "refuted"),
    ("hydra-mixers", [({"mixer": f"{name}, aligned"}, {"nats": 1.4}) for name in ("low-rank", "toeplitz", "attention")],
     "confirmed"),
    ("hydra-mixers", [({"mixer": f"attention, {kind}"}, {"nats": 1.6}) for kind in ("free", "aligned")],
     "inconclusive"),
    ("hypernetworks", [({"arm": "LSTM, chunks of 64"}, {"final": 0.95})], "confirmed"),
    ("hypernetworks", [({"arm": "LSTM, state not carried"}, {"final": 0.95})], "refuted"),
    ("just-read-twice", [({"model": "prompt read both ways"}, {"accuracy": 0.5}), ({"model": "causal"},
                                                                                   {"accuracy": 0.5})], "refuted"),
    ("just-read-twice", [({"model": "prompt read both ways"}, {"accuracy": 0.6}), ({"model": "causal"},
                                                                                   {"accuracy": 0.5})], "inconclusive"),
    ("lightnet", [({"model": "GLA, two scans"}, {"ms at 64 x 64": 1000.0})], "confirmed"),
    ("lightnet", [({"model": "LightNet"}, {"accuracy": 0.5})], "refuted"),
    ("longvq", [({"attention": "linear attention"}, {"recall": 1.0})], "refuted"),
    ("longvq", [({"attention": "codebook of 32"}, {"nats per note": 1.48})], "confirmed"),
    ("lookahead", [({"trie": "warm", "mode": "hier"}, {"different answers": 1})], "refuted"),
    ("lookahead", [({"trie": "shuffled"}, {"tokens per pass": 1.2})], "inconclusive"),
    ("lssl", [({"model": "random", "lag or rate": 400}, {"value": 0.5})], "confirmed"),
    ("lssl", [({"model": "legs"}, {"value": 0.5})], "refuted"),
    ("making-the-most", [({"measure": "at least as likely"}, {"value": 0.4})], "refuted"),
    ("making-the-most", [({"arm": "windows of 32 told by the last one"}, {"value": 1.9})], "inconclusive"),
    ("negative-eigenvalues", [({"task": "sum mod 3", "model": "Mamba, [-1, 1]"}, {"best at 40": 1.0})], "refuted"),
    ("negative-eigenvalues", [({"task": "parity", "model": "Mamba, [-1, 1]"}, {"worst": 0.9})], "inconclusive"),
    ("partial-attention-lm", [({"model": "language model"}, {"sensitivity, time 4": 0.9})], "refuted"),
    ("partial-attention-lm", [({"model": "PALM"}, {"cross-entropy": 2.4})], "inconclusive"),
    ("peptide", [({"arm": "family, K1", "method": "network"}, {"blanks": 60.0})], "refuted"),
    ("peptide", [({"arm": "random, K1", "method": "network"}, {"blanks": 12.0})], "inconclusive"),
    ("playlists", [({"data": "made up", "arm": "autoencoder", "question": name}, {"accuracy": 0.4})
                   for name in ("genre", "content")], "confirmed"),
    ("playlists", [({"data": "made up", "arm": "autoencoder", "question": "length"}, {"accuracy": 0.05})], "refuted"),
    ("prompt-tpp",
     [({"stream": name, "arm": "prompts and base"}, {"forgetting": [0.0] * seeds, "new window": [0.0] * seeds})
      for name, seeds in (("Hawkes, made up", 5), ("MathOverflow", 3))],
     "confirmed"),
    ("prompt-tpp", [({"stream": "Hawkes, made up", "arm": "prompts and base"}, {"forgetting": [0.0] * 5})],
     "inconclusive"),
    ("recformer", [({"data": "MovieLens", "arm": "text"}, {"warm": 0.08, "cold": 0.02})], "confirmed"),
    ("recformer", [({"data": "MovieLens", "arm": "text"}, {"cold": 0.0})], "refuted"),
    ("s4", [({"model": "S4D, random"}, {"accuracy": 0.9})], "refuted"),
    ("s4", [({"model": "S4D, random"}, {"accuracy": 0.8})], "inconclusive"),
    ("sequencematch", [({"arm": "matched, with backspaces"}, {"all right": 0.9, "least": 0.9})], "confirmed"),
    ("sequencematch", [({"arm": "cloned backspaces"}, {"well taken": 0.4})], "inconclusive"),
]


@pytest.mark.parametrize(("slug", "changes", "verdict"), OTHERWISE,
                         ids=[f"{slug}, {verdict}" for slug, _, verdict in OTHERWISE])
def test_a_rule_can_come_to_each_verdict(slug: str, changes: list[Change], verdict: str) -> None:
    table = json.loads((ROOT / "benchmarks" / "results" / "claims" / f"{slug}-cpu.json").read_text("utf-8"))["table"]
    for conditions, replacements in changes:
        rows = [row for row in table if all(row.get(name) == value for name, value in conditions.items())]
        assert rows
        for row in rows:
            row.update(replacements)
    assert claim(slug).judge(table)[0] == verdict



def test_the_page_of_papers_is_current() -> None:
    page = runpy.run_path(str(ROOT / "tools" / "papers.py"))["page"]()
    assert page == (ROOT / "docs" / "papers.md").read_text(encoding="utf-8"), "run python tools/papers.py"


def counting(calls: list[str]) -> Claim:
    def measure(run: Run) -> list[Row]:
        def compute(name: str) -> float:
            calls.append(name)
            until = time.process_time() + 0.08 * (name == "a")
            while time.process_time() < until:
                pass
            if name == "b" and calls.count("b") == 1:
                raise KeyboardInterrupt
            return 0.1 + len(name)

        return [{"name": name, "value": run.cell(name, lambda n=name: compute(n))} for name in ("a", "b")]

    return Claim("toy", "A toy.", "confirmed if a equals b", measure,
                 lambda table: ("confirmed" if table[0]["value"] == table[1]["value"] else "refuted", "by value"),
                 lambda figure, table: None, scales=("cpu",))


def test_an_interrupted_claim_resumes(tmp_path: Path) -> None:
    calls: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        run_claim(counting(calls), out=tmp_path, quiet=True)
    report = run_claim(counting(calls), out=tmp_path, quiet=True)
    assert calls == ["a", "b", "b"]
    assert report.verdict == "confirmed"
    assert report.processor >= 0.1, "what was computed before the interrupt counts"
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
    return rows + [{"log": "B", "method": f"AKOM, order {k}, {presence} start symbol", "Brier": 0.02}
                   for k in (4, 12) for presence in ("with", "without")]


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
        rows += [(f"step of {span}", model, seconds) for model, seconds in (
            ("S5, resetting", 1.0), ("GRU, resetting", 1.0), ("GRU, loop in Python", times))]
    table = [{"task": task, "model": model, "value": value} for task, model, value in rows]
    assert claim("s5-rl").judge(table)[0] == verdict


@pytest.mark.parametrize(("best", "attention", "lookup", "lru", "verdict"), [
    (0.8, 0.7, 0.9, 0.7, "confirmed"), (0.7, 0.8, 0.9, 0.7, "refuted"), (0.8, 0.7, 0.6, 0.7, "refuted"),
    (0.72, 0.7, 0.9, 0.7, "inconclusive"), (0.8, 0.7, 0.9, 0.85, "inconclusive"), (0.15, 0.3, 0.9, 0.7, "inconclusive"),
    (0.7, 0.8, 0.2, 0.1, "inconclusive")])
def test_the_rule_of_mamba_360(best: float, attention: float, lookup: float, lru: float, verdict: str) -> None:
    long = {"attention": attention, "s4d": 0.3, "lru": 0.3, "hyena": 0.3, "mamba": best}
    recall = {"attention": lookup, "s4d": 0.1, "lru": lru, "hyena": 1.0, "mamba": 1.0}  # which are not invariant
    table = [{"mixer": mixer, "task": task, "accuracy": recall[mixer] if task == "recall" else long[mixer]}
             for mixer in long for task in ("listops", "digits", "delayed cue", "recall")]
    assert claim("mamba-360").judge(table)[0] == verdict


def recalled(full: float, mixed: float, local: float, pairs: float) -> list[Row]:
    rows = [("all full", full, 1.0), ("2 full at the bottom", mixed, pairs), ("1 full at the bottom", 0.9, 0.3),
            ("all local", local, 0.1), ("all full, then 2 full at the bottom", 0.9, pairs)]
    text: list[Row] = [{"part": "novels", "layers": name, "accuracy": None, "nats": 2.0} for name, *_ in rows]
    return text + [{"part": "recall", "layers": name, "accuracy": accuracy, "pairs": part, "steps": 100}
                   for name, accuracy, part in rows]


@pytest.mark.parametrize(("values", "verdict"), [
    ((1.0, 0.99, 0.05, 0.56), "confirmed"), ((1.0, 0.85, 0.05, 0.56), "refuted"), ((1.0, 0.99, 0.95, 0.56), "refuted"),
    ((0.9, 0.99, 0.05, 0.56), "inconclusive"), ((1.0, 0.95, 0.05, 0.56), "inconclusive"),
    ((1.0, 0.99, 0.05, 0.7), "inconclusive")])
def test_the_rule_of_masformer(values: tuple[float, float, float, float], verdict: str) -> None:
    assert claim("masformer").judge(recalled(*values))[0] == verdict


@pytest.mark.parametrize(("change", "verdict"), [
    ({}, "confirmed"), ({"2x": 1.04}, "refuted"), ({"2x": 1.025}, "inconclusive"), ({"full": 0.92}, "refuted"),
    ({"before": 0.96}, "inconclusive"), ({"2x, bottom layers": 1.0}, "refuted"), ({"times": 1.3}, "inconclusive"),
    ({"2x, constant depth": 1.0}, "refuted"), ({"2x, no warm-up": 1.0}, "inconclusive"),
    ({"calls": 0.51}, "inconclusive")])
def test_the_rule_of_skipdecode(change: dict[str, float], verdict: str) -> None:
    nats = {"full": 1.0, "2x": 1.02, "2x, no warm-up": 1.03, "2x, bottom layers": 1.021, "2x, constant depth": 1.021}
    rows: list[Row] = [{"arm": arm, "nats": change.get(arm, nats_of_arm), "before": change.get("before", 1.5),
                        "calls": change.get("calls", 0.5), "times": change.get("times", 1.5)}
                       for arm, nats_of_arm in nats.items()]
    assert claim("skipdecode").judge(rows)[0] == verdict


@pytest.mark.parametrize(("gaps", "looked_up", "verdict"), [
    ((0.2, 0.1), 64.0, "confirmed"), ((0.2, 0.05), 64.0, "inconclusive"), ((0.02, 0.01), 64.0, "refuted"),
    ((0.2, 0.1), 10.0, "inconclusive"), ((0.2, 0.1), 1.0, "refuted")])
def test_the_rule_of_the_music_transformer(gaps: tuple[float, float], looked_up: float, verdict: str) -> None:
    rows: list[Row] = [{"part": "chorales", "arm": arm, "seed": seed, "nats": 1.0 - saved}
                       for seed, gap in enumerate(gaps)
                       for arm, saved in (("sinusoids", 0.0), ("sinusoids + relative", gap))]
    rows += [{"part": "memory", "arm": form, "length": n, "MiB": n * size} for n in (128, 256)
             for form, size in (("skewed", 1.0), ("looked up", looked_up))]
    assert claim("music-transformer").judge(rows)[0] == verdict


@pytest.mark.parametrize(("change", "verdict"), [
    ({}, "confirmed"), ({"sparse": 0.70}, "refuted"), ({"sparse": 0.83}, "inconclusive"),
    ({"sparse seconds": 0.1}, "refuted"), ({"low MiB": 5.0}, "refuted"), ({"full": 0.95}, "inconclusive"),
    ({"taught": 0.5}, "inconclusive"), ({"pruned": 0.8}, "inconclusive"), ({"memory": 0.9}, "inconclusive")])
def test_the_rule_of_faster_and_lighter(change: dict[str, float], verdict: str) -> None:
    from segue.papers.faster_lighter import FULL, KERNEL, LOW, SPARSE

    value = {"full": 0.86, "sparse": 0.85, "low": 0.8, "kernel": 0.84, "full seconds": 1.0, "sparse seconds": 0.5,
             "low seconds": 0.4, "kernel seconds": 0.3, "full MiB": 9.0, "sparse MiB": 3.0, "low MiB": 1.0,
             "kernel MiB": 2.0, "taught": 0.9, "pruned": 0.9, "memory": 0.5} | change
    rows: list[Row] = []
    for key, arm in (("full", FULL), ("sparse", SPARSE), ("low", LOW), ("kernel", KERNEL)):
        rows += [{"part": task, "arm": arm, "measure": "accuracy", "length": 64, "value": value[key]}
                 for task in ("digits", "ListOps")]
        rows += [{"part": "cost", "arm": name, "measure": measure, "length": 512, "value": value[f"{key} {measure}"]}
                 for name in ([arm, "full, unfused"] if arm == FULL else [arm]) for measure in ("seconds", "MiB")]
    rows += [{"part": "general", "arm": "blocks recomputed", "measure": measure, "length": 64, "value": number}
             for measure, number in (("memory", value["memory"]), ("seconds", 1.3))]
    pupils = {"full": 0.9, "half the weights pruned": value["pruned"], "half the width": 0.85,
              "half the width, taught": value["taught"]}
    rows += [{"part": f"general {seed}", "arm": arm, "measure": "accuracy", "length": 64, "value": number}
             for seed in range(3) for arm, number in pupils.items()]
    assert claim("faster-lighter").judge(rows)[0] == verdict


def heads(medusa: float, large: float, hydra: float, unseen: float, gain: float, same: float) -> list[Row]:
    chains = {"medusa": medusa, "medusa, as large": large, "hydra": hydra, "hydra, hidden state unseen": unseen}
    return [{"heads": name, "chain": chain, "same texts": same, "head 3": 0.3 + gain * (name == "hydra"),
             "head 4": 0.2 + gain * (name == "hydra")} for name, chain in chains.items()]


@pytest.mark.parametrize(("values", "verdict"), [
    ((1.6, 1.7, 2.4, 1.9, 0.3, 1.0), "confirmed"), ((2.2, 1.7, 2.4, 1.9, 0.3, 1.0), "refuted"),
    ((1.6, 2.3, 2.4, 1.9, 0.3, 1.0), "refuted"), ((1.6, 1.7, 2.4, 2.4, 0.3, 1.0), "refuted"),
    ((1.6, 1.7, 2.4, 1.9, 0.3, 0.99), "refuted"), ((2.0, 1.7, 2.4, 1.9, 0.3, 1.0), "inconclusive"),
    ((1.6, 1.7, 2.4, 1.9, 0.1, 1.0), "inconclusive")])
def test_the_rule_of_hydra_heads(values: tuple[float, float, float, float, float, float], verdict: str) -> None:
    assert claim("hydra-heads").judge(heads(*values))[0] == verdict


def stream_of_digits(pcr: float, tuned: float, forgotten: float, ahead: int) -> list[Row]:
    arms = {"ER, cosine head": (0.6, 0.3), "PCR": (pcr, forgotten), "HPCR": (0.6, 0.1), "HPCR, tuned": (tuned, 0.1)}
    return [{"stream": "digits", "reader": "gru", "arm": arm, "accuracy": accuracy, "forgetting": lost,
             "by seed": [0.7 if arm == "PCR" and seed < ahead else 0.6 for seed in range(5)]}
            for arm, (accuracy, lost) in arms.items()]


@pytest.mark.parametrize(("pcr", "tuned", "forgotten", "ahead", "verdict"), [
    (0.70, 0.72, 0.1, 4, "confirmed"), (0.70, 0.72, 0.1, 3, "inconclusive"), (0.70, 0.72, 0.3, 5, "inconclusive"),
    (0.70, 0.705, 0.1, 5, "inconclusive"), (0.70, 0.70, 0.1, 5, "refuted"), (0.60, 0.72, 0.1, 5, "refuted")])
def test_the_rule_of_hpcr(pcr: float, tuned: float, forgotten: float, ahead: int, verdict: str) -> None:
    assert claim("hpcr").judge(stream_of_digits(pcr, tuned, forgotten, ahead))[0] == verdict


def packages(after: float, first: float, star: float, cost: float) -> list[Row]:
    rows = [("SEQ", 0.2, 1.0), ("P+W+FixBC+Cos (SEQ*)", star, cost), ("EWC", 0.25, 1.0),
            ("random backbone, P+W+FixBC+Cos (SEQ*)", 0.1, cost)]
    return [{"stream": "code", "arm": arm, "A_T": accuracy, "first": first, "probe before": 0.5, "probe after": after,
             "cost to SEQ": spent} for arm, accuracy, spent in rows]


@pytest.mark.parametrize(("after", "first", "star", "cost", "verdict"), [
    (0.45, 0.6, 0.41, 0.09, "confirmed"), (0.40, 0.6, 0.41, 0.09, "inconclusive"),
    (0.45, 0.4, 0.41, 0.09, "inconclusive"), (0.45, 0.6, 0.39, 0.09, "inconclusive"),
    (0.45, 0.6, 0.41, 0.11, "inconclusive"), (0.24, 0.6, 0.41, 0.09, "refuted"),
    (0.45, 0.6, 0.20, 0.09, "refuted"), (0.40, 0.29, 0.41, 0.09, "refuted")])
def test_the_rule_of_seq_star(after: float, first: float, star: float, cost: float, verdict: str) -> None:
    assert claim("seq-star").judge(packages(after, first, star, cost))[0] == verdict


@pytest.mark.parametrize(("change", "verdict"), [
    ({}, "confirmed"), ({"smc": 0.72}, "refuted"), ({"smc": 0.72, "smc entropy": 8.0}, "confirmed"),
    ({"tuned": 0.44, "smc entropy": 8.0}, "refuted"), ({"entropy": 8.2}, "inconclusive"),
    ({"free": 2.0}, "inconclusive"), ({"distance": 0.7}, "inconclusive")])
def test_the_rule_of_drakes(change: dict[str, float], verdict: str) -> None:
    from segue.papers.drakes import BEFORE, FREE, SMC, TARGET, TUNED

    value = {"tuned": 0.71, "entropy": 9.0, "distance": 0.5, "smc": 0.6, "smc entropy": 9.0, "free": 0.1} | change
    rows = {BEFORE: (0.45, 0.5, 10.0, 0.82), TARGET: (0.8, 0.85, 9.0, 0.0), FREE: (0.82, 0.99, value["free"], 0.99),
            TUNED: (value["tuned"], 0.8, value["entropy"], value["distance"]),
            SMC: (value["smc"], 0.7, value["smc entropy"], 0.5)}
    table: list[Row] = [{"arm": arm, "seed": 0, "true score": true, "proxy": proxy, "entropy": entropy,
                         "distance": distance} for arm, (true, proxy, entropy, distance) in rows.items()]
    assert claim("drakes").judge(table)[0] == verdict


@pytest.mark.parametrize(("change", "verdict"), [
    ({}, "confirmed"), ({"random": 0.58}, "inconclusive"), ({"mlp": 0.7}, "refuted"), ({"both": 0.61}, "refuted"),
    ({"forward": 0.64}, "inconclusive"), ({"forward": 0.59}, "inconclusive"),
    ({"forward": 0.59, "variance": 0.02}, "confirmed")])
def test_the_rule_of_bib(change: dict[str, float], verdict: str) -> None:
    from segue.papers.bib import ADAPTIVE, ASCENT, BACKWARD, BOTH, FORWARD, PRETRAINED, RANDOM

    value = {"forward": 0.55, "backward": 0.5, "both": 0.57, "adaptive": 0.6, "random": 0.4, "mlp": 0.3,
             "variance": 0.01} | change
    names = [(FORWARD, PRETRAINED, "forward"), (BACKWARD, PRETRAINED, "backward"), (BOTH, PRETRAINED, "both"),
             (ADAPTIVE, PRETRAINED, "adaptive"), (ADAPTIVE, RANDOM, "random"), (ASCENT, "", "mlp")]
    table: list[Row] = [{"arm": arm, "features": features, "seed": seed, "median": value[key],
                         "variance": value["variance"] if key == "forward" else 0.015}
                        for seed in range(5) for arm, features, key in names]
    assert claim("bib").judge(table)[0] == verdict


def short_streams(kind: str, fall: float, gain: float, same: float, hard: float) -> list[Row]:
    rows = [("base", "clean", 0.6, 0.1), ("many", "clean", 0.6 - fall, 0.1), ("long", "clean", 0.2, gain),
            ("instances", "clean", 0.5, same), ("instances", "noise 40%", hard, 0.1),
            ("instances", "occlusion 40%", hard, 0.1)]
    return [{"rows": kind, "task": task, "test": test, "arm": arm, "accuracy": accuracy, "over tune": over,
             "gain +-": 0.02} for task, test, accuracy, over in rows for arm in ("tune", "tune + replay")]


@pytest.mark.parametrize(("values", "verdict"), [
    ((0.2, 0.1, 0.2, 0.2), "confirmed"), ((0.05, 0.1, 0.2, 0.2), "inconclusive"),
    ((0.2, 0.04, 0.2, 0.2), "inconclusive"), ((0.2, 0.1, 0.1, 0.2), "inconclusive"),
    ((0.2, 0.1, 0.2, 0.3), "inconclusive"), ((0.2, 0.02, 0.2, 0.2), "refuted")])
def test_the_rule_of_continual_few_shot(values: tuple[float, float, float, float], verdict: str) -> None:
    judge = claim("continual-few-shot").judge
    table = short_streams("motifs", *values)
    assert judge(table + short_streams("strokes", *values))[0] == verdict
    other = short_streams("strokes", *((0.2, 0.0, 0.2, 0.2) if verdict != "refuted" else (0.2, 0.1, 0.2, 0.2)))
    assert judge(table + other)[0] == "inconclusive"


def sparse_arms(sharp: float, raw: float, loose: float, single: float) -> list[Row]:
    arms = {"SHARP": sharp, "replay of inputs, all classes": raw, "SHARP without freezing": loose,
            "SHARP without replay": single, "fine-tuning": 0.2}
    return [{"trunk": "convolution", "arm": arm, "accuracy": accuracy, "forgetting": 0.1}
            for arm, accuracy in arms.items()]


@pytest.mark.parametrize(("values", "verdict"), [
    ((0.8, 0.82, 0.6, 0.7), "confirmed"), ((0.8, 0.84, 0.6, 0.7), "inconclusive"),
    ((0.8, 0.82, 0.75, 0.7), "inconclusive"), ((0.8, 0.82, 0.6, 0.77), "inconclusive"),
    ((0.8, 0.82, 0.8, 0.7), "refuted"), ((0.8, 0.82, 0.6, 0.8), "refuted")])
def test_the_rule_of_sharp(values: tuple[float, float, float, float], verdict: str) -> None:
    assert claim("sharp").judge(sparse_arms(*values))[0] == verdict


def graph_arms(degree: tuple[float, float, float], colours: tuple[float, float],
               connectivity: tuple[float, float, float, float]) -> list[Row]:
    hybrid, attention, mamba = "mamba+attention", "attention+attention", "mamba+mamba"
    values = {"degree": dict(zip((f"node, {hybrid}", f"khop, {hybrid}", f"bfs, {hybrid}"), degree)),
              "colours": dict(zip((f"node, {mamba}", f"node, {attention}"), colours)),
              "connectivity": dict(zip((f"dfs, {hybrid}", f"node, {attention}", f"khop, {hybrid}",
                                        f"random dfs, {hybrid}"), connectivity)) | {f"node, {mamba}": 0.5}}
    chance = {"degree": 0.2, "colours": 0.15, "connectivity": 0.5}
    return [{"task": task, "arm": arm, "accuracy": value, "chance": chance[task], "by seed": [value]}
            for task, arms in values.items() for arm, value in arms.items()]


@pytest.mark.parametrize("values, verdict", [
    (((0.3, 0.9, 0.4), (0.8, 0.3), (0.95, 0.8, 0.6, 0.55)), "confirmed"),
    (((0.3, 0.2, 0.9), (0.8, 0.3), (0.8, 0.8, 0.6, 0.55)), "confirmed"),
    (((0.3, 0.4, 0.4), (0.8, 0.3), (0.95, 0.8, 0.6, 0.55)), "inconclusive"),  # a small lead on degrees
    (((0.3, 0.9, 0.4), (0.3, 0.2), (0.95, 0.8, 0.6, 0.55)), "inconclusive"),  # nothing counts well
    (((0.3, 0.9, 0.4), (0.8, 0.3), (0.95, 0.8, 0.6, 0.94)), "inconclusive"),  # random clusters do as well
    (((0.3, 0.9, 0.4), (0.8, 0.3), (0.95, 0.8, 0.78, 0.55)), "inconclusive"),  # k-hop is hardly worse
    (((0.3, 0.9, 0.4), (0.8, 0.3), (0.69, 0.6, 0.52, 0.5)), "inconclusive"),  # connectivity is hardly learned
    (((0.9, 0.8, 0.4), (0.8, 0.3), (0.95, 0.8, 0.6, 0.55)), "refuted"),
    (((0.3, 0.9, 0.4), (0.3, 0.8), (0.95, 0.8, 0.6, 0.55)), "refuted"),
    (((0.3, 0.9, 0.4), (0.8, 0.3), (0.75, 0.8, 0.6, 0.55)), "refuted"),
    (((0.3, 0.9, 0.4), (0.8, 0.3), (0.95, 0.8, 0.85, 0.55)), "refuted")])
def test_the_rule_of_graph_sequences(values: tuple[Any, Any, Any], verdict: str) -> None:
    assert claim("gsm-plus-plus").judge(graph_arms(*values))[0] == verdict
