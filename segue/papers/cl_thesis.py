"""Continual Learning in Neural Networks (Aljundi 2019, arXiv 1910.02718).

Three methods of the thesis are tested on MNIST digits, with a small MLP. Memory-aware synapses (MAS), without old data,
against fine-tuning and EWC over five permutations of the pixels, where the task is given at test time. On a stream of
two classes at a time, read once: a buffer selected by gradients (GSS) against a reservoir, also where one part of the
stream is eight times as long as the others; and replay of the rows that the new ones interfere with most (MIR) against
random replay.

The claim holds if GSS wins on the imbalanced stream (and loses little on the balanced one), MIR beats random replay at
some buffer size, and MAS is far above fine-tuning and not far below EWC.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from segue.continual import EWC, GSS, MAS, MIR, Replay, Strategy, class_incremental, learn_stream
from segue.continual.stream import Experience, class_accuracy, task_accuracy
from segue.errors import SegueError
from segue.models import Classifier, Perceptron
from segue.models.classify import LinearHead
from segue.objectives import Batch, GroupedClasses
from segue.papers.base import Claim, Row, Run, Verdict
from segue.papers.corpora import mnist

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GROUPS = [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]
ROWS = 1000  # rows of an experience
LONG = [1 / 8, 1 / 8, 1.0, 1 / 8, 1 / 8]  # the third experience is eight times as long as the others
RATES = [0.1, 0.3]
STRENGTHS = {"EWC": [10.0, 30.0, 100.0], "MAS": [0.03, 0.1, 0.3]}
SIZES = [50, 100, 200]
OLD, HARMED = "old at random", "MIR"  # replay only rows of earlier experiences, as MIR's released code does
ORDERS = [tuple(range(10 * k, 10 * k + 10)) for k in range(5)]  # the classes of each permutation task
TOLD_RATE, PASSES = 0.05, 8  # learning rate and epochs of the permutation tasks
TUNING = (1000, 1001)  # seeds on which rates and strengths are chosen; no result comes from them


def split_digits(folder: Path | None, seed: int) -> tuple[Batch, Batch, Batch]:
    """MNIST at 14 x 14 in training, validation and test rows, split at random by the seed."""
    pixels, classes = mnist(folder)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(classes)))
    rows, test, choose = Batch(pixels[order, None], classes[order, None]), len(order) // 5, len(order) // 10
    return rows.rows(slice(test + choose, None)), rows.rows(slice(test, test + choose)), rows.rows(slice(0, test))


def class_stream(folder: Path | None, seed: int, share: list[float]) -> tuple[list[Experience], list[Experience]]:
    """Two classes at a time, `share[i]` * ROWS rows in experience i: the stream evaluated on validation rows, and the
    same stream evaluated on test rows."""
    train, *measured = split_digits(folder, seed)
    choosing, testing = ([replace(experience, train=experience.train.rows(slice(0, round(ROWS * part))))
                          for experience, part in zip(class_incremental(train, rows, GROUPS), share)]
                         for rows in measured)
    return choosing, testing


def permutation_stream(folder: Path | None, seed: int) -> tuple[list[Experience], list[Experience]]:
    """Permuted MNIST: each task is all digits under its own permutation of the pixels, with ten classes of its own;
    evaluated on validation rows and on test rows, as in the class stream."""
    train, *measured = split_digits(folder, seed)
    draw = np.random.default_rng([seed, 1])
    streams: tuple[list[Experience], list[Experience]] = ([], [])
    for number, classes in enumerate(ORDERS):
        order = torch.from_numpy(draw.permutation(train.tokens.shape[-1]))
        size = min(ROWS, len(train.targets) // len(ORDERS))

        def task(rows: Batch, order: Tensor = order, first: int = classes[0]) -> Batch:
            return Batch(rows.tokens[..., order], rows.targets + first)

        train_rows = task(train.rows(slice(number * size, (number + 1) * size)))
        for stream, rows in zip(streams, measured):
            stream.append(Experience(f"order {number}", train_rows, task(rows), classes))
    return streams


def make_strategy(arm: str, size: int, strength: float) -> Strategy:
    factories: dict[str, Any] = {
        "naive": Strategy, "reservoir": partial(Replay, size), "GSS": partial(GSS, size),
        OLD: partial(Replay, size, retrieve="earlier"), HARMED: partial(MIR, size, among="earlier"),
        "EWC": partial(EWC, strength), "MAS": partial(MAS, strength)}
    return factories[arm]()


def run_arm(arm: str, stream: str, size: int, folder: Path | None, seed: int, rate: float, strength: float,
            passes: int) -> dict[str, float]:
    """Final accuracy on validation rows ("chosen") and on the test, and forgetting. A run that diverges has an accuracy
    of 0."""
    tasks = stream == "tasks"
    choosing, testing = permutation_stream(folder, seed) if tasks else \
        class_stream(folder, seed, LONG if stream == "imbalanced" else [1.0] * len(GROUPS))
    measure = task_accuracy if tasks else class_accuracy
    torch.manual_seed(seed)
    model = Classifier(Perceptron(testing[0].train.tokens.shape[-1], [100, 100]),
                       LinearHead(100, 10 * len(ORDERS) if tasks else 10))
    try:
        matrix = learn_stream(model, testing, make_strategy(arm, size, strength),
                              GroupedClasses(ORDERS) if tasks else None, rows=10, rate=rate, seed=seed,
                              measure=measure, epochs=passes if tasks else 1, sgd=True, clip=0.0,
                              warmup=0.0, cooldown=0.0)
    except SegueError as error:
        if "diverged" not in str(error):
            raise
        return {"chosen": 0.0, "accuracy": 0.0, "forgotten": 1.0}
    chosen = [measure(model, experience, range(10)) for experience in choosing]
    return {"chosen": float(np.mean(chosen)), "accuracy": matrix.average, "forgotten": -matrix.backward_transfer}


def measure(run: Run) -> list[Row]:
    folder, seeds = run.dataset("mnist-t10k"), range(run.seed, run.seed + run.pick(1, 5))
    passes, tuning = run.pick(1, PASSES), TUNING[: run.pick(1, 2)]
    lines: list[tuple[str, str, int]] = [("tasks", arm, 0) for arm in ("naive", "EWC", "MAS")]
    lines += [(stream, arm, 50) for stream in ("balanced", "imbalanced") for arm in ("naive", "reservoir", "GSS")]
    lines += [("balanced", arm, size) for size in SIZES for arm in (OLD, HARMED)]
    Setting = tuple[float, float]

    def job(line: tuple[str, str, int], setting: Setting, seed: int) -> tuple[str, Any]:
        stream, arm, size = line
        return f"{stream}, {arm}, {size} rows, {setting}, {seed}", partial(
            run_arm, arm, stream, max(size, 1), folder, seed, *setting, passes)

    def tried(line: tuple[str, str, int]) -> dict[Setting, Sequence[int]]:
        """(rate, strength) pairs to choose from, and the seeds on which they are compared."""
        stream, arm, _ = line
        if stream == "tasks":
            return {(TOLD_RATE, strength): tuning[:1] for strength in run.pick([1.0], STRENGTHS.get(arm, [0.0]))}
        return {(rate, 0.0): tuning for rate in run.pick(RATES[:1], RATES)}

    results = run.cells(dict(job(line, setting, seed) for line in lines for setting, by in tried(line).items()
                             for seed in by if len(tried(line)) > 1))
    best: dict[tuple[str, str, int], Setting] = {}
    for line in lines:
        settings = tried(line)
        best[line] = max(settings, key=lambda setting: sum(results[job(line, setting, seed)[0]]["chosen"]
                                                           for seed in settings[setting])) if len(settings) > 1 else \
            next(iter(settings))
    results = run.cells(dict(job(line, best[line], seed) for line in lines for seed in seeds))
    table: list[Row] = []
    for line in lines:
        runs = [results[job(line, best[line], seed)[0]] for seed in seeds]
        right = [result["accuracy"] for result in runs]
        table.append(dict(zip(("stream", "strategy", "rows kept"), line)) | {
            "accuracy": float(np.mean(right)), "error": float(np.std(right) / len(right) ** 0.5),
            "forgotten": float(np.mean([result["forgotten"] for result in runs])), "rate": best[line][0],
            "strength": best[line][1], "by seed": right})
    run.note(f"MNIST's 10,000 test digits at 14 x 14, dealt out anew by each of {len(seeds)} seeds: 2,000 to test, "
             "1,000 to choose settings by, the others to learn from; a network of 196-100-100 and a linear head, "
             "gradient descent, 10 new rows a step and 10 of the buffer, whose losses count alike")
    run.note(f"balanced: five experiences of two classes, {ROWS:,} rows each, one pass, rates {RATES}; imbalanced: the "
             f"third experience is eight times as long as each other one; '{OLD}' and MIR replay rows of earlier "
             "experiences alone, from the second one on, MIR those of 50 candidates that a step would harm most")
    run.note(f"tasks: {len(ORDERS)} orders of the pixels, told, a head of ten classes each, no old data, {ROWS:,} rows "
             f"in {passes} passes at a rate of {TOLD_RATE}; strengths {STRENGTHS}, chosen on one seed kept for that; "
             "rates on two")
    run.note("the second attempt. The first, on scikit-learn's digits, 230 rows an experience in one pass, was "
             "inconclusive: GSS +17.4 and -5.5 points; MIR -6.8, -10.6 and -15.3; MAS -0.4 on fine-tuning, which "
             "forgot 1 point and ended at 92%. What was not the paper's there: MIR chose among rows of the experience "
             "itself too; an experience had 23 steps, where MIR's released script has 100; and MAS had nothing to "
             "hold: the thesis learns a task in many passes, and tasks that differ more than two digits from two. "
             "Tried on other seeds (100 to 102) before this run: MIR at a rate of 0.1 +2.4 at 100 rows, +3.7 at 200, "
             "-0.9 at 50; "
             "tasks of two classes in five passes: fine-tuning 88%; orders of pixels, 10 passes: five of them, "
             "fine-tuning 67 to 69%, MAS 77 to 80%, EWC 81%, in a network of 256-256 70 and 82 to 83%; eight of them, "
             "62% and 73%")
    run.note("tried since on the same seeds and rows kept for choosing, at rates of 0.05, 0.1 and 0.3: GSS +11.5, +7.2 "
             "and +5.5 points on a reservoir where the stream is imbalanced (-7.4, -5.4 and -6.2 where not), so seeds "
             "differ by more than the bound; with three steps for each batch, as GSS's released script takes them, "
             "+7.2, +7.9 and +0.8 (-5.2, -0.8 and -1.5), but +3.6 with each arm at its best rate")
    return table


def judge(table: list[Row]) -> tuple[Verdict, str]:
    accuracy = {(row["stream"], row["strategy"], row["rows kept"]): 100 * row["accuracy"] for row in table}
    gain = accuracy["imbalanced", "GSS", 50] - accuracy["imbalanced", "reservoir", 50]
    cost = accuracy["balanced", "reservoir", 50] - accuracy["balanced", "GSS", 50]
    mir = {size: accuracy["balanced", HARMED, size] - accuracy["balanced", OLD, size] for size in SIZES}
    mas = accuracy["tasks", "MAS", 0] - accuracy["tasks", "naive", 0]
    apart = accuracy["tasks", "EWC", 0] - accuracy["tasks", "MAS", 0]
    holds = {"GSS": gain >= 5 and cost <= 8, "MIR": max(mir.values()) >= 2, "MAS": mas >= 15 and apart <= 5}
    mir_gains = ", ".join(f"{value:+.1f} at {size} rows" for size, value in mir.items())
    reason = (f"GSS {gain:+.1f} points on a reservoir where the stream is imbalanced, {-cost:+.1f} where it is "
              f"balanced; MIR {mir_gains}; MAS {mas:+.1f} on fine-tuning and {-apart:+.1f} on EWC; "
              f"holds: {', '.join(name for name, held in holds.items() if held) or 'none'}")
    if gain <= 0:
        return "refuted", reason
    return ("confirmed" if all(holds.values()) else "inconclusive"), reason


def draw(figure: Figure, table: list[Row]) -> None:
    panels = figure.subplots(1, 4, sharey=True, width_ratios=[4, 4, 4, 3])
    shown = [("balanced", 50), ("imbalanced", 50), ("balanced", None), ("tasks", 0)]
    titles = ["balanced, 50 rows", "imbalanced, 50 rows", "balanced, replay of earlier rows", "tasks told, no rows"]
    for axes, (stream, size), title in zip(panels, shown, titles):
        rows = [row for row in table if row["stream"] == stream
                and (row["rows kept"] == size if size is not None else True)
                and (stream != "balanced" or (row["strategy"] in (OLD, HARMED)) == (size is None))]
        names = [row["strategy"].removeprefix("old at ") + ("" if size is not None else f", {row['rows kept']}")
                 for row in rows]
        bars = axes.bar(range(len(rows)), [row["accuracy"] for row in rows], color=[f"C{i}" for i in range(len(rows))],
                        yerr=[row["error"] for row in rows])
        axes.bar_label(bars, fmt="%.2f", fontsize=7)
        axes.set_xticks(range(len(rows)), names, rotation=45, fontsize=7)
        axes.set_title(title, fontsize=8)
    panels[0].set(ylabel="final accuracy", ylim=(0, 1.05))


CLAIM = Claim(
    slug="cl-thesis",
    statement="Weights that matter to the output can be held so that little is forgotten without old data (MAS); a "
              "small buffer is better filled by gradients than at random where the stream is imbalanced (GSS), and "
              "better replayed where the new rows do harm (MIR).",
    rule="GSS holds if its buffer beats a reservoir by at least 5 points of final accuracy on the imbalanced stream "
         "and is at most 8 below it on the balanced one; MIR holds if it beats replay at random by at least 2 points "
         "at 50, 100 or 200 rows; MAS holds if with the tasks told it is at least 15 points above fine-tuning and at "
         "most 5 below EWC, each at its best strength. Confirmed if all three hold; refuted if GSS gains nothing on "
         "the imbalanced stream; else inconclusive.",
    measure=measure, judge=judge, draw=draw,
    paper={
        "MIR, CIFAR-10 in 5 parts, 20/50/100 rows a class": "replay 27.5/33.1/41.3, MIR 29.8/40.0/47.6",
        "MIR, MNIST in 5 parts, 500 rows": "replay 82.1, MIR 87.6",
        "GSS-greedy, MNIST in 5 parts": "0.78; gains chiefly where the stream is imbalanced",
    },
)
