"""An Interdisciplinary Comparison of Sequence Modeling Methods for Next-Element Prediction (Tax, Teinemaa & van Zelst
2018, arXiv 1811.00062; Software and Systems Modeling 2020).

Predict the next activity of a case, or its end, on two event logs (Receipt and Sepsis): a directly-follows graph, state
merging (ALERGIA), all-k-order Markov (AKOM), Witten-Bell counts, an HMM and a GRU, all by the Brier score averaged over
classes and over all prefixes, the empty one included. The verdict needs the GRU ahead of AKOM and both interpretable
models (graph, ALERGIA) clearly behind it. AKOM at orders 4 and 12, with and without a start symbol, is reported too.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from segue.analysis.metrics import evaluate
from segue.data import read
from segue.models import Stack, StackConfig
from segue.models.classical import HMM, StateMerging, directly_follows
from segue.models.counts import CountModel
from segue.models.predict import DecodablePredictor, SequencePredictor
from segue.papers.base import Claim, Row, Run, Verdict
from segue.training.batches import Arrays, Batches
from segue.training.evaluate import score
from segue.training.loop import Run as Training
from segue.training.recipe import Plan

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOGS = {"Receipt": "receipt_phase.txt.gz", "Sepsis": "sepsis.txt.gz"}
METHODS = ("directly-follows graph", "ALERGIA", "AKOM", "Witten-Bell", "HMM", "GRU")
INTERPRETABLE = ("directly-follows graph", "ALERGIA")
ORDERS, ALPHAS = range(1, 9), (0.005, 0.05, 0.5, 1.0)
PAPER = {
    "finding": "neural networks and all-k-order Markov models are the most accurate, interpretable models less so "
               "(no table could be compared: its released scorer differs from its text)",
}
Log = tuple[list[np.ndarray], int]
Fitted = TypeVar("Fitted", CountModel, StateMerging)


def read_log(path: Path) -> Log:
    """Cases as arrays of ids, each with the end symbol last, and the number of symbols, the end included."""
    cases = [record.object for record in read(path, kind="cases")]
    ids = {activity: index for index, activity in enumerate(sorted({a for case in cases for a in case}))}
    return [np.array([*(ids[a] for a in case), len(ids)], np.int32) for case in cases], len(ids) + 1


def make_up_log() -> Log:
    """80 cases of an invented process, for the smoke scale: a review that may loop, then one of two ends."""
    rng, log = random.Random(0), []
    for _ in range(80):
        case = [0, 1]
        while rng.random() < 0.5:
            case += [2, 1]
        log.append(np.array([*case, 3 if len(case) > 4 else 4, 5], np.int32))
    return log, 6


def split_cases(cases: list[np.ndarray], seed: int) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """A random split into training, validation and test cases: a third is for testing, a fifth of the rest for
    validation."""
    order = np.random.default_rng(seed).permutation(len(cases))
    train, test = order[: 2 * len(order) // 3], order[2 * len(order) // 3 :]
    cut = len(train) // 5
    return [cases[i] for i in train[cut:]], [cases[i] for i in train[:cut]], [cases[i] for i in test]


def fit_best(make: Callable[[Any], Fitted], choices: Iterable[Any], train: list[np.ndarray],
             validation: list[np.ndarray]) -> Fitted:
    """The model of the setting with the lowest Brier score on validation cases, refitted on all training cases."""
    chosen = min(choices, key=lambda choice: evaluate(make(choice).fit(train), validation).brier)
    return make(chosen).fit(train + validation)


def train_gru(train: list[np.ndarray], validation: list[np.ndarray], size: int, epochs: int, seed: int,
              ) -> SequencePredictor:
    """A recurrent network of 64 units, trained with early stopping on the validation cases."""
    start = size
    rows, longest = 16, max(map(len, train + validation))

    def stream(cases: list[np.ndarray]) -> Arrays:
        return Arrays([np.concatenate([[start], case]) for case in cases])

    per_epoch = -(-sum(map(len, train)) // (rows * longest))
    plan = Plan(size + 1, "gru", width=64, depth=1, context=longest, rows=rows, steps=max(10, epochs * per_epoch),
                muon=False, rate=0.005, table_rate=0.005, vector_rate=0.005, decay=0.01, patience=5, measure=epochs,
                seed=seed)
    torch.manual_seed(seed)
    model = Stack(StackConfig(size + 1, 64, ["gru"], channel="none", tied=False, dropout=0.1))
    batches = Batches(stream(train), plan.context, plan.rows, seed)
    run = Training(model, batches, plan, held_out=lambda _: score(model, stream(validation)).mean)
    run.train(quiet=True)
    batches.close()
    return DecodablePredictor(model, start, size)


def compare(log: Path | None, method: str, seed: int, epochs: int, restarts: int) -> dict[str, Any]:
    """One method's test scores on one split, and the settings it chose."""
    cases, size = read_log(log) if log is not None else make_up_log()
    train, validation, test = split_cases(cases, seed)
    train_all, chosen = train + validation, ""
    model: SequencePredictor
    if method == "directly-follows graph":
        model = directly_follows(train_all, size)
    elif method == "ALERGIA":
        model = merged = fit_best(lambda alpha: StateMerging(size, alpha, end=size - 1), ALPHAS, train, validation)
        chosen = f"{merged.states} states"
    elif method == "HMM":
        model = HMM(size, size, restarts=restarts, seed=seed).fit(train_all)
        chosen = f"{size} states"
    elif method == "GRU":
        model = train_gru(train, validation, size, epochs, seed)
    else:
        smoothing = "none" if method == "AKOM" else "witten-bell"
        model = counts = fit_best(lambda order: CountModel(size, order, smoothing), ORDERS, train, validation)
        chosen = f"order {counts.order}"
    return asdict(evaluate(model, test)) | {"chosen": chosen}


def score_akom(log: Path | None, order: int, start: bool, seed: int) -> float:
    """Brier score of AKOM of this order, with or without a start symbol."""
    cases, size = read_log(log) if log is not None else make_up_log()
    train, validation, test = split_cases(cases, seed)
    return evaluate(CountModel(size, order, "none", start=start).fit(train + validation), test).brier


def measure(run: Run) -> list[Row]:
    seeds = range(run.seed, run.seed + run.pick(1, 3))
    folder = run.dataset("process-logs-next-element")
    logs = {"made up": None} if folder is None else {name: folder / file for name, file in LOGS.items()}
    epochs, restarts = run.pick(2, 40), run.pick(2, 10)
    jobs: dict[str, Any] = {
        f"{name} {method} {seed}": partial(compare, log, method, seed, epochs, restarts)
        for name, log in logs.items() for method in METHODS for seed in seeds}
    last, deep_orders = list(logs.items())[-1], [(order, start) for start in (True, False) for order in (4, 12)]
    jobs |= {f"deep {order} {start} {seed}": partial(score_akom, last[1], order, start, seed)
             for order, start in deep_orders for seed in seeds}
    results = run.cells(jobs)
    table: list[Row] = []
    for name in logs:
        reference = mean(results[f"{name} AKOM {seed}"]["brier"] for seed in seeds)
        for method in METHODS:
            splits = [results[f"{name} {method} {seed}"] for seed in seeds]
            brier = mean(split["brier"] for split in splits)
            table.append({"log": name, "method": method, "Brier": brier, "to AKOM": brier / reference,
                          "accuracy": mean(split["accuracy"] for split in splits),
                          "bits": mean(split["bits"] for split in splits), "classes": splits[0]["classes"],
                          "chosen": ", ".join(sorted({split["chosen"] for split in splits}))})
    for order, start in deep_orders:
        brier = mean(results[f"deep {order} {start} {seed}"] for seed in seeds)
        table.append({"log": last[0], "method": f"AKOM, order {order}, {'with' if start else 'without'} start symbol",
                      "Brier": brier})
    run.note("mean of 3 random splits of the cases (two thirds, one third); AKOM's order and ALERGIA's alpha (of "
             f"{ALPHAS}) are those best on a fifth of what is learned from; the Petri-net miners of the paper are not "
             "among the methods here")
    run.note("second attempt: in the first, which was confirmed, ALERGIA kept its usual alpha of 0.05 while AKOM was "
             "tuned; on another split (seed 100) the cases set aside of Receipt gave it 1.16 of AKOM's score with that "
             "alpha and 1.07 with 1.0. The rule has not changed")
    return table


def judge(table: list[Row]) -> tuple[Verdict, str]:
    ratio = {(row["log"], row["method"]): row["to AKOM"] for row in table if "to AKOM" in row}
    logs = list(dict.fromkeys(log for log, _ in ratio))
    gru = [ratio[log, "GRU"] for log in logs]
    readable = {(log, method): ratio[log, method] for log in logs for method in INTERPRETABLE}
    deep = {row["method"]: row["Brier"] for row in table if "start symbol" in row["method"]}
    rise = {start: deep[f"AKOM, order 12, {start} start symbol"] / deep[f"AKOM, order 4, {start} start symbol"] - 1
            for start in ("with", "without")}
    worst = min(readable, key=lambda key: readable[key])
    reason = (f"the GRU's Brier score is {' and '.join(f'{r:.3f}' for r in gru)} of AKOM's ({', '.join(logs)}); "
              f"the best readable model ({worst[1]} on {worst[0]}) has {readable[worst]:.2f} of it; from order 4 to 12 "
              f"AKOM loses {rise['without']:.0%} without a start symbol and {rise['with']:.0%} with one")
    if min(readable.values()) <= 1.02 or max(gru) > 1:
        return "refuted", reason
    if max(gru) <= 0.97 and min(readable.values()) >= 1.1:
        return "confirmed", reason
    return "inconclusive", reason


def draw(figure: Figure, table: list[Row]) -> None:
    logs: dict[str, list[Row]] = defaultdict(list)
    for row in table:
        if "to AKOM" in row:
            logs[row["log"]].append(row)
    for axes, (name, rows) in zip(figure.subplots(1, len(logs), sharey=True, squeeze=False)[0], logs.items()):
        bars = axes.barh([row["method"] for row in rows], [row["Brier"] for row in rows])
        axes.bar_label(bars, [f"{row['Brier']:.4f}" for row in rows], padding=2)
        axes.axvline(next(row["Brier"] for row in rows if row["method"] == "AKOM"), color="grey", linestyle=":")
        axes.set(title=f"{name} ({rows[0]['classes']} classes)", xlabel="Brier score (lower is better)")
        axes.margins(x=0.25)
        axes.locator_params(axis="x", nbins=5)


CLAIM = Claim(
    slug="next-element",
    statement="Neural networks and all-k-order Markov models predict the next activity best; models that people can "
              "read (directly-follows graphs, automata) are less accurate.",
    rule="confirmed if on both logs the GRU's Brier score is at most 0.97 of AKOM's and every readable model's at "
         "least 1.1 of it (means of 3 splits; AKOM's order chosen on cases set aside); refuted if a readable model "
         "comes within 2% of AKOM on either log, or the GRU is worse than AKOM on either; else inconclusive.",
    measure=measure, judge=judge, draw=draw, paper=PAPER,
)
