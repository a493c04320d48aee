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
from segue.papers.base import Claim, Report, Row, Run, run_claim

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
DIGITS, CONVOLUTION = {"stream": "digits", "reader": "gru"}, {"trunk": "convolution"}
SHORT, ATTENTION = {"tokens": "6-mer, context of 1-mers"}, {"model": "attention"}
GREEDY: Change = ATTENTION | {"what": "recall of greedy"}, {"reached": 0.9}
SHUFFLED: Change = {"model": "attention, shuffled", "what": "elements reached"}, {"reached": 1.0}
CURVED = {"cosines": [0.4, 0.3, 0.2, 0.1], "forward": 0.7, "top order": 0.4, "rank, 1 turns": 0.4, "rank, 8 turns": 0.2}
SPARSE = "sparse (window 32 + 1 global)"
ADAPTIVE, FORWARD = ({"arm": arm, "features": "pretrained"} for arm in ("both, adaptive", "forward alone"))
SUCCESSION = {"score": 0.8, "second": 0.1, "wins": 0.9, "effect": 1.0, "effect on spans": 0.1, "numbers": 0.9,
              "days": 0.9, "months": 0.9, "letters": 0.9}
DAMAGED: list[Change] = [({"task": "instances", "test": f"{how} 40%", "arm": "tune"}, {"accuracy": 0.04})
                         for how in ("noise", "occlusion")]
AHEAD = {"by seed": [0.7, 0.75, 0.74, 0.7, 0.6]}  # by 5 points in four of five seeds
OTHERWISE: list[tuple[str, list[Change], str]] = [
    ("aggressive-decoding", [({"decoding": "GAD"}, {"different answers": 1})], "refuted"),
    ("aggressive-decoding", [({"task": "German to English"}, {"ratio": 2.0})], "inconclusive"),
    *[("bert4rec", [({"data": "few users", "arm": "causal"}, {"NDCG@10": 0.28}), (where, {"NDCG@10": value})], verdict)
      for where, value, verdict in (
          ({"data": "MovieLens"}, 0.001, "confirmed"),
          ({"data": "few users", "arm": "cloze", "steps": 1600}, 0.25, "refuted"),
          ({"data": "few users", "arm": "causal", "steps": 400}, 0.3, "refuted"),
          ({"data": "few users", "arm": "cloze", "steps": 160}, 0.19, "refuted"),
          ({"data": "many users", "arm": "one mask"}, 0.1, "refuted"), ({"data": "few users"}, 0.14, "inconclusive"))],
    *[("bib", [({"arm": "gradient ascent on an MLP"}, {"median": 0.3}), (ADAPTIVE, {"median": 0.7}),
               (where, values)], verdict) for where, values, verdict in (
        (ADAPTIVE, {}, "confirmed"), (FORWARD, {"median": 0.6, "variance": 0.05}, "confirmed"),
        (FORWARD, {"median": 0.6}, "inconclusive"), (FORWARD, {"median": 0.74}, "inconclusive"),
        (ADAPTIVE | {"features": "random"}, {"median": 0.68}, "inconclusive"),
        ({"arm": "gradient ascent on an MLP"}, {"median": 0.75}, "refuted"),
        ({"arm": "both, half each", "features": "pretrained"}, {"median": 0.71}, "refuted"))],
    ("bio-xlstm", [({"model": "mLSTM", "given": n}, {"gap": n / 100}) for n in (1, 4, 8)], "confirmed"),
    ("bio-xlstm", [({"model": "mLSTM"}, {"gap": 0.03})], "inconclusive"),
    *[("bio-xlstm", [where_changed], "refuted") for where_changed in (
        ({"model": "mLSTM", "given": 8}, {"gap": 0.01}), ({"model": "none"}, {"accuracy": 1.0}),
        ({"model": "parameter sharing"}, {"error": 1e-5}))],
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
    *[("continual-few-shot", [*DAMAGED, (where, changes)], verdict) for where, changes, verdict in (
        ({"task": "base"}, {}, "confirmed"), ({"task": "many", "arm": "tune"}, {"accuracy": 0.25}, "inconclusive"),
        ({"rows": "motifs", "task": "long", "arm": "tune + replay"}, {"over tune": 0.04}, "inconclusive"),
        ({"task": "instances", "test": "clean", "arm": "tune + replay"}, {"over tune": 0.1}, "inconclusive"),
        ({"rows": "strokes", "task": "long", "arm": "tune + replay"}, {"over tune": 0.01}, "inconclusive"),
        ({"task": "long", "arm": "tune + replay"}, {"over tune": 0.01}, "refuted"))],
    ("cot-expressivity", [({"scratchpad": "dummy"}, {"right": 0.7})], "refuted"),
    ("cot-expressivity", [({"scratchpad": "log"}, {"right": 0.5})], "inconclusive"),
    ("cpt-ift", [({"arm": "instruct, learned on with 5% replay"}, {"right": 0.0})], "confirmed"),
    ("cpt-ift", [({"arm": "instruct, learned on with 5% replay"}, {"new": 3.0})], "confirmed"),
    ("cpt-ift", [({"arm": "instruct, learned on with 5% replay"}, {"right": 0.0}),
                 ({"arm": "base, learned on, + residual"}, {"new": 2.9})], "inconclusive"),
    ("cpt-ift", [({"arm": "base, learned on, + residual"}, {"right": 0.1})], "refuted"),
    *[("curved-contrastive", [({"system": "curved", "mixer": "attention"}, CURVED | changes)], verdict)
      for changes, verdict in (
          ({}, "confirmed"), ({"spearman": 0.19}, "inconclusive"), ({"forward": 0.64}, "inconclusive"),
          ({"cosines": [0.4, 0.3, 0.31, 0.1]}, "inconclusive"), ({"rank, 8 turns": 0.33}, "inconclusive"),
          ({"forward, 95%": [0.49, 0.9]}, "refuted"), ({"top order, 95%": [0.16, 0.9]}, "refuted"))],
    ("curved-contrastive", [({"system": "curved", "mixer": "attention"}, CURVED),
                            ({"system": "curved, no marks"}, {"forward": 0.51})], "inconclusive"),
    ("cycle-prompt", [({"arm": "cycle, another's translation"}, {"pass@1": 0.8})], "refuted"),
    ("cycle-prompt", [({"arm": "likeliest of 10"}, {"pass@1": 0.83})], "refuted"),
    ("cycle-prompt", [({"arm": "zero-shot"}, {"pass@1": 0.76})], "inconclusive"),
    ("cycle-prompt", [({"arm": "cycle"}, {"right to wrong": 0.03})], "inconclusive"),
    ("cycle-prompt", [({"arm": "cycle, 20% noise"}, {"pass@1": 0.76})], "inconclusive"),
    ("ditto", [({"text": "test", "arm": "decayed repetition"},
                {"rep-12": 0.2, "to control": 1.01, "TP": [0.4, 0.3, 0.2, 0.2, 0.2]})], "confirmed"),
    ("ditto", [({"text": "test", "arm": "unlikelihood"}, {"rep-12": 0.1, "to control": 1.0})], "refuted"),
    ("drakes", [({"arm": "fine-tuned"}, {"true score": 0.8})], "confirmed"),
    ("drakes", [({"arm": "SMC on the pretrained model"}, {"entropy": 8.0})], "confirmed"),
    ("drakes", [({"arm": "SMC on the pretrained model"}, {"entropy": 8.0}),
                ({"arm": "fine-tuned"}, {"true score": 0.44})], "refuted"),
    ("drakes", [({"arm": "fine-tuned"}, {"true score": 0.8, "entropy": 8.2})], "inconclusive"),
    ("drakes", [({"arm": "fine-tuned"}, {"true score": 0.8, "distance": 0.6})], "inconclusive"),
    ("drakes", [({"arm": "fine-tuned"}, {"true score": 0.8}), ({"arm": "no divergence"}, {"entropy": 2.0})],
     "inconclusive"),
    *[("faster-lighter", [(where, {"value": value})], verdict) for where, value, verdict in (
        ({"part": "digits", "arm": SPARSE}, 0.9, "refuted"), ({"part": "digits", "arm": SPARSE}, 0.94, "inconclusive"),
        ({"arm": SPARSE, "measure": "seconds", "length": 4096}, 0.01, "refuted"),
        ({"arm": "low rank (Linformer, 32)", "measure": "MiB", "length": 4096}, 30.0, "refuted"),
        ({"part": "digits", "arm": "full"}, 0.999, "inconclusive"), ({"part": "digits"}, 0.3, "inconclusive"),
        ({"arm": "half the width, taught"}, 0.9, "inconclusive"),
        ({"arm": "half the weights pruned"}, 0.9, "inconclusive"),
        ({"part": "general", "measure": "memory"}, 0.7, "inconclusive"))],
    ("flashrnn", [({"what": "speed"}, {"times the loop": 6.0, "times torch's module": 0.9})], "confirmed"),
    ("flashrnn", [({"what": "parity", "model": "Mamba"}, {"tested": 0.9})], "refuted"),
    ("generator", [({"tokens": "BPE"}, {"recovery": 0.35}), (SHORT, {"recovery": 0.3})], "confirmed"),
    ("generator", [({"tokens": "BPE"}, {"recovery": 0.35})], "inconclusive"),
    ("generator", [({"tokens": "BPE"}, {"recovery": 0.4}), (SHORT, {"recovery": 0.3})], "inconclusive"),
    ("generator", [({"tokens": "BPE"}, {"recovery": 0.35}), ({"tokens": "1-mer"}, {"recovery": 0.4})], "inconclusive"),
    ("generator", [({"genome": "repeats"}, {"recovery": 0.25}),  # too few steps teach none
                   ({"genome": "repeats", "tokens": "6-mer"}, {"recovery": 0.29})], "inconclusive"),
    ("gsm-plus-plus", [({"task": "degree", "arm": "khop, mamba+attention"}, {"accuracy": 0.2}),
                       ({"task": "degree", "arm": "bfs, mamba+attention"}, {"accuracy": 0.95})], "confirmed"),
    ("gsm-plus-plus", [({"task": "degree", "arm": "khop, mamba+attention"}, {"accuracy": 0.6})], "inconclusive"),
    ("gsm-plus-plus", [({"task": "colours"}, {"accuracy": 0.3})], "inconclusive"),  # nothing counts well
    ("gsm-plus-plus", [({"arm": "random dfs, mamba+attention"}, {"accuracy": 0.97})], "inconclusive"),
    ("gsm-plus-plus", [({"task": "connectivity", "arm": "khop, mamba+attention"}, {"accuracy": 0.96})], "inconclusive"),
    ("gsm-plus-plus", [({"task": "connectivity"}, {"accuracy": 0.6})], "inconclusive"),  # hardly learned
    ("gsm-plus-plus", [({"task": "degree", "arm": "node, mamba+attention"}, {"accuracy": 0.95})], "refuted"),
    ("gsm-plus-plus", [({"task": "colours", "arm": "node, attention+attention"}, {"accuracy": 0.95})], "refuted"),
    ("gsm-plus-plus", [({"task": "connectivity", "arm": "dfs, mamba+attention"}, {"accuracy": 0.9})], "refuted"),
    ("gsm-plus-plus", [({"task": "connectivity", "arm": "khop, mamba+attention"}, {"accuracy": 1.0})], "refuted"),
    ("gumbel-and-discrete-diffusion",
     [({"arm": "masked diffusion", "measure": "bits per character of the middle third"}, {"value": 1.5})],
     "confirmed"),
    ("gumbel-and-discrete-diffusion", [({"arm": "uniform diffusion"}, {"value": 2.5})], "refuted"),
    ("hpcr", [(DIGITS | {"arm": "PCR"}, AHEAD)], "confirmed"),
    ("hpcr", [(DIGITS | {"arm": "PCR"}, AHEAD | {"forgetting": 0.3})], "inconclusive"),
    ("hpcr", [(DIGITS | {"arm": "PCR"}, AHEAD), (DIGITS | {"arm": "HPCR, tuned"}, {"accuracy": 0.685})],
     "inconclusive"),
    ("hpcr", [(DIGITS | {"arm": "HPCR, tuned"}, {"accuracy": 0.67})], "refuted"),
    ("hpcr", [(DIGITS | {"arm": "PCR"}, {"accuracy": 0.63})], "refuted"),
    ("hydra-heads", [({"heads": "medusa"}, {"chain": 2.3})], "refuted"),
    ("hydra-heads", [({"heads": "medusa, as large"}, {"chain": 2.3})], "refuted"),
    ("hydra-heads", [({"heads": "hydra, hidden state unseen"}, {"chain": 2.5})], "refuted"),
    ("hydra-heads", [({"heads": "hydra"}, {"same texts": 0.99})], "refuted"),
    ("hydra-heads", [({"heads": "medusa"}, {"chain": 2.0})], "inconclusive"),
    ("hydra-heads", [({"heads": "hydra"}, {"head 3": 0.25, "head 4": 0.25})], "inconclusive"),
    ("hydra-mixers", [({"mixer": f"{name}, aligned"}, {"nats": 1.4}) for name in ("low-rank", "toeplitz", "attention")],
     "confirmed"),
    ("hydra-mixers", [({"mixer": f"attention, {kind}"}, {"nats": 1.6}) for kind in ("free", "aligned")],
     "inconclusive"),
    ("hypernetworks", [({"arm": "LSTM, chunks of 64"}, {"final": 0.95})], "confirmed"),
    ("hypernetworks", [({"arm": "LSTM, state not carried"}, {"final": 0.95})], "refuted"),
    *[("icl-functions", [({"what": "attention", "prompt": prompt}, {"error": error})], verdict)
      for prompt, error, verdict in (
          ("prompt", 0.65, "refuted"), ("shuffled", 0.1, "refuted"), ("prompt", 0.3, "inconclusive"),
          ("shuffled", 0.5, "inconclusive"), ("25% wrong", 1.7, "inconclusive"), ("50% wrong", 2.3, "inconclusive"))],
    ("just-read-twice", [({"model": "prompt read both ways"}, {"accuracy": 0.5}), ({"model": "causal"},
                                                                                   {"accuracy": 0.5})], "refuted"),
    ("just-read-twice", [({"model": "prompt read both ways"}, {"accuracy": 0.6}), ({"model": "causal"},
                                                                                   {"accuracy": 0.5})], "inconclusive"),
    ("lightnet", [({"model": "GLA, two scans"}, {"ms at 64 x 64": 1000.0})], "confirmed"),
    ("lightnet", [({"model": "LightNet"}, {"accuracy": 0.5})], "refuted"),
    ("lightnet", [({"model": "LightNet"}, {"accuracy": 0.68}), ({"model": "GLA, two scans"}, {"accuracy": 0.7})],
     "inconclusive"),
    *[("lina-speech", [({"arm": "state of rank 1", "tunes": 20}, {"bits": bits, "by place": [1.8] * 8} | changes)],
       verdict) for bits, changes, verdict in (
          (1.95, {}, "confirmed"), (2.08, {}, "inconclusive"), (1.95, {"share": 0.01}, "inconclusive"),
          (1.95, {"weights kept": False}, "refuted"), (1.95, {"by place": [1.0] * 4 + [2.3] * 4}, "refuted"))],
    ("longvq", [({"attention": "linear attention"}, {"recall": 1.0})], "refuted"),
    ("longvq", [({"attention": "codebook of 32"}, {"nats per note": 1.48})], "confirmed"),
    ("lookahead", [({"trie": "warm", "mode": "hier"}, {"different answers": 1})], "refuted"),
    ("lookahead", [({"trie": "shuffled"}, {"tokens per pass": 1.2})], "inconclusive"),
    ("lssl", [({"model": "random", "lag or rate": 400}, {"value": 0.5})], "confirmed"),
    ("lssl", [({"model": "legs"}, {"value": 0.5})], "refuted"),
    *[("magic-word", [*changes, *([GREEDY, SHUFFLED] if both else [])], verdict) for changes, both, verdict in (
        ([], True, "confirmed"), ([GREEDY], False, "inconclusive"), ([SHUFFLED], False, "inconclusive"),
        ([(ATTENTION | {"what": "recall of gcg"}, {"reached": 0.7})], True, "inconclusive"),
        ([(ATTENTION | {"what": "false members"}, {"reached": 1})], True, "inconclusive"),
        ([(ATTENTION | {"what": "lower half, k up to 4"}, {"reached": 0.0})], True, "inconclusive"),
        ([(ATTENTION | {"what": "true"}, {"by k": [0.8, 0.9]})], True, "inconclusive"),
        ([(ATTENTION | {"what": "true"}, {"by k": [0.88, 0.9]})], True, "refuted"),
        ([(ATTENTION | {"what": "uniform"}, {"reached": 0.95})], True, "refuted"))],
    ("making-the-most", [({"measure": "at least as likely"}, {"value": 0.4})], "refuted"),
    ("making-the-most", [({"arm": "windows of 32 told by the last one"}, {"value": 1.9})], "inconclusive"),
    ("making-the-most", [*[({"part": "windows", "arm": arm}, {"value": nats}) for arm, nats in (
        ("windows of 32 alone", 1.9), ("windows of 32 told by the last one", 1.85), ("context of 128", 1.8))],
                         ({"measure": "nats more where both found one"}, {"value": 0.1})], "confirmed"),
    ("mamba-360", [({"mixer": "attention", "task": "digits"}, {"accuracy": 0.9})], "refuted"),
    ("mamba-360", [({"mixer": "attention", "task": "recall"}, {"accuracy": 0.6}),
                   ({"mixer": "lru", "task": "recall"}, {"accuracy": 0.7})], "refuted"),
    ("mamba-360", [({"mixer": "attention", "task": "digits"}, {"accuracy": 0.45})], "inconclusive"),
    ("mamba-360", [({"mixer": "lru", "task": "recall"}, {"accuracy": 0.95})], "inconclusive"),
    ("mamba-360", [({"mixer": "mamba", "task": "recall"}, {"accuracy": 1.0})], "confirmed"),  # it is not invariant
    ("mamba-360", [({"task": "listops"}, {"accuracy": 0.15})], "inconclusive"),
    ("mamba-360", [({"task": "recall"}, {"accuracy": 0.2})], "inconclusive"),
    ("masformer", [({"part": "recall", "layers": "2 full at the bottom"}, {"accuracy": 0.85})], "refuted"),
    ("masformer", [({"part": "recall", "layers": "all local"}, {"accuracy": 0.95})], "refuted"),
    ("masformer", [({"part": "recall", "layers": "all full"}, {"accuracy": 0.9})], "inconclusive"),
    ("masformer", [({"part": "recall", "layers": "2 full at the bottom"}, {"accuracy": 0.95})], "inconclusive"),
    ("masformer", [({"part": "recall", "layers": "2 full at the bottom"}, {"pairs": 0.7})], "inconclusive"),
    ("music-transformer", [({"part": "chorales", "arm": "sinusoids + relative"}, {"nats": 2.015})], "refuted"),
    ("music-transformer", [({"part": "memory", "arm": "looked up"}, {"MiB": 32.0})], "refuted"),
    ("music-transformer", [({"part": "chorales", "arm": "sinusoids + relative", "seed": 1}, {"nats": 1.98})],
     "inconclusive"),
    ("music-transformer", [({"part": "memory", "arm": "looked up"}, {"MiB": 160.0})], "inconclusive"),
    ("negative-eigenvalues", [({"task": "sum mod 3", "model": "Mamba, [-1, 1]"}, {"best at 40": 1.0})], "refuted"),
    ("negative-eigenvalues", [({"task": "parity", "model": "Mamba, [-1, 1]"}, {"worst": 0.9})], "inconclusive"),
    ("next-element", [({"log": "Receipt", "method": "ALERGIA"}, {"to AKOM": 1.2})], "confirmed"),
    ("next-element", [({"log": "Receipt", "method": "ALERGIA"}, {"to AKOM": 1.2}),
                      ({"method": "GRU"}, {"to AKOM": 0.99})], "inconclusive"),
    ("next-element", [({"method": "GRU"}, {"to AKOM": 1.01})], "refuted"),
    ("next-element", [({"method": "directly-follows graph"}, {"to AKOM": 1.01})], "refuted"),
    ("order-matters", [({"system": "P = 0, 0 glimpses"}, {"seed 1": 0.99, "seed 2": 0.99})], "refuted"),
    ("order-matters", [({"system": "sets easier in order"}, {"seed 1": 0.2, "seed 2": 0.2})], "refuted"),
    ("order-matters", [({"system": "as 5 1 3 4 2"}, {"mean": 175.0}),
                       ({"system": "sets easier in order"}, {"seed 1": 0.2, "seed 2": 0.2, "seed 3": 0.2})],
     "inconclusive"),
    *[("order-matters", [({"system": system}, {"mean": mean})], "inconclusive") for system, mean in (
        ("P = 5, 0 glimpses", 0.7), ("P = 0, 1 glimpses", 0.7), ("head last, 500 samples", 4.5),
        ("head last, 20,000 samples", 1.5), ("search over both", 190.0), ("as 5 1 3 4 2", 195.0))],
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
    ("rnn-review", [({"task": "lag 100", "model": "LSTM of 1997, no forgetting"}, {"value": 0.2}),
                    ({"task": "lag 100", "model": "LSTM, forget bias 1"}, {"value": 1.0})], "confirmed"),  # the best
    ("rnn-review", [({"task": "lag 100", "model": "Elman, uniform"}, {"value": 0.97})], "refuted"),
    ("rnn-review", [({"model": "BLSTM"}, {"value": 0.4})], "refuted"),
    ("rnn-review", [({"task": "text", "model": "LSTM"}, {"value": 2.3})], "refuted"),
    ("rnn-review", [({"task": "lag 100", "model": "LSTM of 1997, no forgetting"}, {"value": 0.8})], "inconclusive"),
    ("rnn-review", [({"model": "BLSTM"}, {"value": 0.55})], "inconclusive"),
    ("s4", [({"model": "S4D, random"}, {"accuracy": 0.9})], "refuted"),
    ("s4", [({"model": "S4D, random"}, {"accuracy": 0.8})], "inconclusive"),
    ("s5-rl", [({"task": "step of 128", "model": "GRU, loop in Python"}, {"value": 0.1})], "confirmed"),  # too short
    ("s5-rl", [({"task": "recall", "model": "S5, no reset"}, {"value": 1.0})], "refuted"),
    ("s5-rl", [({"task": "recall", "model": "S5, resetting"}, {"value": 0.96})], "refuted"),
    ("s5-rl", [({"task": "step of 1024", "model": "GRU, loop in Python"}, {"value": 15.0})], "inconclusive"),
    ("s5-rl", [({"task": "repeat previous", "model": "no memory"}, {"value": 0.9})], "inconclusive"),
    ("s5-rl", [({"task": "recall", "model": f"{name}, resetting"}, {"value": 0.97}) for name in ("S5", "GRU")],
     "inconclusive"),
    ("seq-star", [({"stream": "code", "arm": "SEQ"}, {"probe after": 0.4})], "inconclusive"),
    ("seq-star", [({"stream": "code", "arm": "SEQ"}, {"first": 0.4})], "inconclusive"),
    ("seq-star", [({"stream": "code", "arm": "P+W+FixBC+Cos (SEQ*)"}, {"A_T": 0.36})], "inconclusive"),
    ("seq-star", [({"stream": "code", "arm": "P+W+FixBC+Cos (SEQ*)"}, {"cost to SEQ": 0.11})], "inconclusive"),
    ("seq-star", [({"stream": "code", "arm": "EWC"}, {"A_T": 0.3})], "inconclusive"),
    ("seq-star", [({"stream": "code", "arm": "SEQ"}, {"probe after": 0.23})], "refuted"),
    ("seq-star", [({"stream": "code", "arm": "SEQ"}, {"probe after": 0.4, "first": 0.25})], "refuted"),
    ("seq-star", [({"stream": "code", "arm": "P+W+FixBC+Cos (SEQ*)"}, {"A_T": 0.16})], "refuted"),
    *[("sequence-parallelism", [(where, changes)], verdict) for where, changes, verdict in (
        ({"what": "saved bytes, model", "ranks": 4, "elements / H": 8}, {"sequence": 6e6}, "inconclusive"),
        ({"what": "saved bytes, model", "ranks": 4, "elements / H": 8}, {"tensor": 7e6}, "inconclusive"),
        ({"what": "all bytes, MLPs", "ranks": 4}, {"sequence": 0}, "inconclusive"),
        ({"what": "loss difference, a hop lost"}, {"sequence": 1e-6}, "inconclusive"),
        ({"what": "loss difference"}, {"sequence": 1e-3}, "refuted"),
        ({"what": "most ranks"}, {"tensor": 8}, "refuted"), ({"what": "most ranks"}, {"sequence": 4}, "refuted"),
        ({"what": "all bytes, model", "ranks": 4, "elements / H": 64}, {"tensor": 1}, "refuted"))],
    ("sequencematch", [({"arm": "matched, with backspaces"}, {"all right": 0.9, "least": 0.9})], "confirmed"),
    ("sequencematch", [({"arm": "cloned backspaces"}, {"well taken": 0.4})], "inconclusive"),
    ("sharp", [(CONVOLUTION | {"arm": "SHARP"}, {"accuracy": 0.87})], "confirmed"),
    ("sharp", [(CONVOLUTION | {"arm": "SHARP"}, {"accuracy": 0.8})], "inconclusive"),
    ("sharp", [(CONVOLUTION | {"arm": "SHARP"}, {"accuracy": 0.87}),
               (CONVOLUTION | {"arm": "SHARP without freezing"}, {"accuracy": 0.8})], "inconclusive"),
    ("sharp", [(CONVOLUTION | {"arm": "SHARP"}, {"accuracy": 0.87}),
               (CONVOLUTION | {"arm": "SHARP without replay"}, {"accuracy": 0.83})], "inconclusive"),
    ("sharp", [(CONVOLUTION | {"arm": "SHARP without freezing"}, {"accuracy": 0.7})], "refuted"),
    ("sharp", [(CONVOLUTION | {"arm": "SHARP without replay"}, {"accuracy": 0.62})], "refuted"),
    ("skipdecode", [({"arm": "2x"}, {"nats": 2.14})], "confirmed"),
    ("skipdecode", [({"arm": "2x"}, {"nats": 2.19})], "refuted"),
    ("skipdecode", [({"arm": "full"}, {"nats": 1.9})], "refuted"),
    *[("skipdecode", [({"arm": "2x"}, {"nats": 2.14}), ({"arm": f"2x, {name}"}, {"nats": 2.1})], "refuted")
      for name in ("bottom layers", "constant depth")],
    ("skipdecode", [({"arm": "2x"}, {"nats": 2.14}), ({"arm": "full"}, {"before": 2.05})], "inconclusive"),
    ("skipdecode", [({"arm": "2x"}, {"nats": 2.14}), ({"arm": "2x, no warm-up"}, {"nats": 2.13})], "inconclusive"),
    ("skipdecode", [({"arm": "2x"}, {"nats": 2.14, "times": 1.3})], "inconclusive"),
    ("skipdecode", [({"arm": "2x"}, {"nats": 2.14, "calls": 0.51})], "inconclusive"),
    ("spar", [({"arm": "interfering"}, {"greedy": 0.69, "drawn": 0.56})], "refuted"),
    ("spar", [({"arm": "interfering"}, {"greedy": 0.69})], "inconclusive"),
    ("spar", [({"arm": "refined"}, {"drawn": 0.53})], "inconclusive"),
    *[("successor-heads", [({"model": f"attention, seed {i}"}, SUCCESSION | changes) for i in range(3)], verdict)
      for changes, verdict in (
          ({}, "confirmed"), ({"score": 0.45}, "refuted"), ({"second": 0.3}, "inconclusive"),
          ({"wins": 0.7}, "inconclusive"), ({"effect on spans": 0.5}, "inconclusive"),
          ({"effect on spans": 1.1}, "refuted"), ({"succession": 0.8, "score": 0.1}, "inconclusive"),
          ({"days": 0.1, "months": 0.1, "letters": 0.1}, "inconclusive"))],
    ("theme-transformer", [({"arm": "gated"}, {"late": 2.5})], "confirmed"),
    ("theme-transformer", [({"arm": "cross-attention"}, {"theme nats": 1.0})], "refuted"),
    ("theme-transformer", [({"arm": "gated"}, {"shuffled": 1.075})], "refuted"),
    *[("theme-transformer", [({"arm": "gated"}, {"late": 2.5}), ({"arm": arm}, values)], "inconclusive")
      for arm, values in (("cross-attention", {"theme nats": 1.1}), ("contrast", {"f1": 0.7}),
                          ("edit distance", {"f1": 0.8}))],
    *[("tokenring", [({"links": links, "method": "queries go round (TokenRing)"}, {"to the ring": value})], verdict)
      for links, value, verdict in (
          ("full duplex", 0.8, "inconclusive"), ("full duplex, 4 queries a key", 1.2, "inconclusive"),
          ("half duplex", 1.2, "inconclusive"), ("full duplex", 0.97, "refuted"), ("half duplex", 0.8, "refuted"))],
    ("tokenring", [({"links": "half duplex"}, {"error": 1e-3})], "refuted"),
    ("vif-rag", [({"arm": "one function keeps a case"}, {"always true": 1})], "refuted"),
    ("vif-rag", [({"arm": "verified instructions"}, {"greedy": 0.36})], "refuted"),
    *[("vif-rag", [({"arm": "verified instructions"}, {what: value})], "inconclusive") for what, value in (
        ("greedy", 0.44), ("drawn", 0.37), ("greedy with passages", 0.43), ("answers", 0.97))],
    *[("vif-rag", [({"arm": "one function keeps a case"}, {what: value})], "inconclusive")
      for what, value in (("after", 0.96), ("recall", 0.7))],
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


def test_a_printed_report_has_each_value_below_its_name() -> None:
    table: list[Row] = [{"part": "text", "bits": 1.23456}, {"part": "digits", "accuracy": 0.5, "by seed": [0.4, 0.6]},
                        {"part": "times", "bits": None, "seconds": {"short": 0.1}}]
    report = Report("toy", "cpu", 0, "A toy.", "none", table, {}, None, "", [], "a machine", 1.0)
    lines = [[cell.strip() for cell in line[1:-1].replace("┃", "│").split("│")] for line in str(report).splitlines()
             if line[:1] in ("┃", "│")]
    assert lines == [["part", "bits", "accuracy", "by seed", "seconds"], ["text", "1.235", "", "", ""],
                     ["digits", "", "0.5", "0.4, 0.6", ""], ["times", "", "", "", "short: 0.1"]]


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
