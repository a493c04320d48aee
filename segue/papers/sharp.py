"""SHARP: Sparsity and Hidden Activation RePlay for Neuro-Inspired Continual Learning (Gurbuz et al. 2023, arXiv
2305.18563).

A sparse network learns classes experience by experience. It replays hidden activations of the last experience alone;
its older units are frozen and read only units that are at least as old. Arms: SHARP, SHARP without freezing, without
replay, fine-tuning, and replay of raw inputs of all classes in as many bytes as SHARP keeps. Data: digits (MNIST) in
five experiences of two classes, read by a fixed random trunk (a convolution; a GRU beside). Settings are chosen on a
class order and rows of their own; the verdict compares accuracy and forgetting of the arms at equal memory."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import torch

from segue.analysis.probes import features_of
from segue.continual import Sharp, class_incremental, learn_stream
from segue.models import Classifier, SparseNetwork, Stack, StackConfig
from segue.models.classify import NeighbourHead
from segue.objectives import Batch, SupCon
from segue.papers.base import Claim, Row, Run, Verdict, seed_bars
from segue.papers.corpora import MNIST_SIDE as SIDE
from segue.papers.corpora import mnist

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRUNK, CLASSES, GROUP = 256, 10, 2
WIDTHS = (256, 256, 128)
KEPT, EXAMPLES = 100, 25  # rows of a class that SHARP keeps for an experience, and for good
ROWS, EPOCHS, PHASES, PERIOD = 64, 16, 8, 10.0
RATES, LEASTS = (1e-3, 3e-3), (0.5, 0.7, 0.9)
TUNING = 1000  # the seed of the class order and start that rates are chosen by


@dataclass(frozen=True)
class Arm:
    """sparse: 60% of the connections are pruned and regrown in phases. recent: experiences that are replayed. freeze:
    see `Sharp`. raw: inputs are replayed, not activations, in as many bytes as SHARP keeps in all."""

    sparse: bool = True
    recent: int = 1
    freeze: bool = True
    raw: bool = False


BARE, RAW, SHARP, LOOSE, ALONE = ("fine-tuning", "replay of inputs, all classes", "SHARP", "SHARP without freezing",
                                  "SHARP without replay")
ARMS = {BARE: Arm(False, 0, False), RAW: Arm(False, CLASSES, False, True), SHARP: Arm(), LOOSE: Arm(freeze=False),
        ALONE: Arm(recent=0)}
OTHER = "gru"  # a trunk beside the convolution


def memory_bytes() -> int:
    """Bytes that SHARP keeps at the end: quantised activations of an experience's rows with their ranges, the head's
    examples in 32 bits, and a bit for each unit and class."""
    activations, examples = GROUP * KEPT * (WIDTHS[0] + 8), CLASSES * EXAMPLES * WIDTHS[-1] * 4
    return activations + examples + CLASSES * WIDTHS[-1] // 8


@cache
def load_features(folder: Path | None, trunk: str) -> dict[str, Batch]:
    """Features of digits (the 10,000 of MNIST's test) by a random fixed trunk that reads them line by line: 4,000 for
    training, 1,000 of the second half to choose settings on (tune), and the last 2,000 for the test."""
    pixels, classes = mnist(folder)
    torch.manual_seed(0)
    fixed = SparseNetwork(SIDE, [TRUNK], early=0, density=1.0, kernels=[SIDE]) if trunk == "convolution" else \
        Stack(StackConfig(CLASSES, TRUNK, [trunk], inputs=SIDE, channel="none", tied=False, norm="layer"))
    features = features_of(fixed, pixels.view(-1, SIDE, SIDE) - 0.5, rows=500)[:, None]
    whole, quarter = Batch(features, classes[:, None]), len(classes) // 4
    parts = {"train": slice(0, min(4000, 2 * quarter)), "tune": slice(2 * quarter, 2 * quarter + min(1000, quarter)),
             "test": slice(-min(2000, quarter), None)}
    return {name: whole.rows(part) for name, part in parts.items()}


def score_arm(name: str, folder: Path | None, trunk: str, seed: int, rate: float, least: float, epochs: int,
              part: str) -> dict[str, Any]:
    """Train an arm on the stream of a seed's class order and score it on `part`. rate, least: its settings."""
    arm, features = ARMS[name], load_features(folder, trunk)
    order = torch.randperm(CLASSES, generator=torch.Generator().manual_seed(seed)).split(GROUP)
    stream = class_incremental(features["train"], features[part], [group.tolist() for group in order])
    torch.manual_seed(seed)
    network = SparseNetwork(TRUNK, WIDTHS, 0 if arm.raw else 1, 0.4 if arm.sparse else 1.0)
    inputs = memory_bytes() // (CLASSES * SIDE**2)
    kept, examples = (inputs, inputs) if arm.raw else (KEPT, EXAMPLES)
    model = Classifier(network, NeighbourHead(WIDTHS[-1], CLASSES, 5, CLASSES * examples, cosine=True))
    strategy = Sharp(PHASES, arm.recent, kept, examples, PERIOD, least, arm.freeze, seed=seed) if arm.sparse else \
        Sharp(1, arm.recent, kept, examples, least=1.0, freeze=False, quantise=not arm.raw, seed=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the network is full")
        matrix = learn_stream(model, stream, strategy, SupCon(), rows=ROWS, epochs=epochs, rate=rate, seed=seed,
                              warmup=0.0, cooldown=0.0)
    return {"accuracy": matrix.average, "forgetting": mean(matrix.forgetting(name) for name in matrix.names[:-1]),
            "on the way": [float(row[: 1 + index].mean()) for index, row in enumerate(matrix.scores[1:])],
            "units": mean(float((layer.types > 0).float().mean()) for layer in network.masked)}


def measure(run: Run) -> list[Row]:
    folder, epochs = run.dataset("mnist-t10k"), run.pick(1, EPOCHS)
    rates, leasts = run.pick(RATES[:1], RATES), run.pick(LEASTS[:1], LEASTS)
    seeds = range(run.seed, run.seed + run.pick(1, 3))

    def job(arm: str, trunk: str, seed: int, choice: tuple[float, float], part: str) -> tuple[str, Any]:
        return f"{part} {trunk} {arm} {choice} {seed}", partial(
            score_arm, arm, folder, trunk, seed, *choice, epochs, part)

    grid = {arm: [(rate, least) for rate in rates for least in (leasts if ARMS[arm].sparse else (1.0,))]
            for arm in (BARE, RAW, SHARP)}
    tuning = run.cells(dict(job(arm, "convolution", TUNING, choice, "tune") for arm in grid for choice in grid[arm]))
    chosen = {arm: max(grid[arm], key=lambda choice: tuning[job(arm, "convolution", TUNING, choice, "tune")[0]]
                       ["accuracy"]) for arm in grid}
    chosen |= {LOOSE: chosen[SHARP], ALONE: chosen[SHARP]}
    lines = [("convolution", arm, seeds) for arm in ARMS] + [(OTHER, arm, seeds[:1]) for arm in (BARE, RAW, SHARP)]
    cells = run.cells(dict(job(arm, trunk, seed, chosen[arm], "test") for trunk, arm, used in lines for seed in used))
    table: list[Row] = []
    for trunk, arm, used in lines:
        results = [cells[job(arm, trunk, seed, chosen[arm], "test")[0]] for seed in used]
        examples = CLASSES * EXAMPLES * WIDTHS[-1] * 4
        size = memory_bytes() if ARMS[arm].recent else examples + ARMS[arm].sparse * CLASSES * WIDTHS[-1] // 8
        table.append({"trunk": trunk, "arm": arm, "accuracy": mean(result["accuracy"] for result in results),
                      "forgetting": mean(result["forgetting"] for result in results), "bytes": size,
                      "units in use": mean(result["units"] for result in results), "rate": chosen[arm][0],
                      "least": chosen[arm][1], "by seed": [result["accuracy"] for result in results],
                      "on the way": [mean(values) for values in zip(*(result["on the way"] for result in results))]})
    run.note("digits: the 10,000 of MNIST's test at 14 x 14, read line by line by a random trunk that never learns (a "
             f"convolution over 14 lines, or a GRU), {TRUNK} features; 4,000 to learn from, 1,000 to choose settings "
             "on, 2,000 to measure on; 5 experiences of 2 classes in a random order")
    run.note(f"network: layers of {WIDTHS}, the first one early, 40% of the connections, dense for fine-tuning and "
             f"replay of inputs; {epochs} epochs of {ROWS} rows in {PHASES} phases, as many old rows a step, SupCon "
             f"at 0.1, 5 nearest neighbours; rates {RATES} and, for SHARP, least shares {LEASTS} chosen on a class "
             "order and rows kept for that; SHARP without freezing and without replay has SHARP's")
    run.note("on the tuning slice SHARP was tried with some ten settings, replay of inputs with two, fine-tuning with "
             "one")
    run.note(f"SHARP keeps {KEPT} rows of each class of the last experience as {WIDTHS[0]} bytes and {EXAMPLES} "
             f"examples of every class as {WIDTHS[-1]} numbers: {memory_bytes():,} bytes in all, for which replay of "
             f"inputs keeps {memory_bytes() // (CLASSES * SIDE**2)} rows of every class as pixels, and makes its "
             "examples of them anew")
    return table


def judge(table: list[Row]) -> tuple[Verdict, str]:
    row = {row["arm"]: row for row in table if row["trunk"] == "convolution"}
    sharp, raw, loose, alone = (row[arm]["accuracy"] for arm in (SHARP, RAW, LOOSE, ALONE))
    reason = (f"SHARP is right {sharp:.1%} of the time over all classes, replay of inputs at equal bytes {raw:.1%}, "
              f"without freezing {loose:.1%}, without replay {alone:.1%}, fine-tuning {row[BARE]['accuracy']:.1%}; it "
              f"forgets {row[SHARP]['forgetting']:.1%}, without freezing {row[LOOSE]['forgetting']:.1%}")
    if loose >= sharp or alone >= sharp:
        return "refuted", reason
    holds = sharp >= raw - 0.03 and sharp - loose >= 0.10 and sharp - alone >= 0.05
    return ("confirmed" if holds else "inconclusive"), reason


def draw(figure: Figure, table: list[Row]) -> None:
    final, curves = figure.subplots(1, 2, width_ratios=(3, 2))
    rows = [row for row in table if row["trunk"] == "convolution"]
    labels = [f"forgets {row['forgetting']:.0%}, {row['bytes'] / 1000:.0f} kB" for row in rows]
    seed_bars(final, rows, "accuracy", labels)
    for at, row in enumerate(rows):
        curves.plot(range(1, 1 + len(row["on the way"])), row["on the way"], "o-", markersize=3, color=f"C{at}")
    for row in table:
        if row["trunk"] != "convolution":
            at = [one["arm"] for one in rows].index(row["arm"])
            curves.plot(range(1, 1 + len(row["on the way"])), row["on the way"], ":", color=f"C{at}")
    final.set(xlabel="accuracy over all classes at the end (dots: seeds)", title="Digits, two classes at a time",
              xlim=(0, 1))
    curves.set(xlabel="experiences learned", title=f"Dotted: {OTHER} below", ylim=(0, 1))


CLAIM = Claim(
    slug="sharp",
    statement="A sparse network that freezes and rewires its units learns classes one experience after the other by "
              "replaying activations of the last experience alone, as well as replay of inputs of all classes.",
    rule="on digits in 5 experiences of 2 classes, mean of 3 seeds, accuracy over all classes at the end: refuted if "
         "SHARP without freezing, or without replay, is as good as SHARP; confirmed if SHARP is at most 3 points below "
         "replay of inputs of all past classes at equal bytes, at least 10 above itself without freezing, and at least "
         "5 above itself without replay; else inconclusive. Fine-tuning and another trunk are told beside.",
    measure=measure, judge=judge, draw=draw,
    paper={"against replay of inputs": "ahead on MNIST, Fashion-MNIST, EMNIST, CIFAR-10 and CIFAR-100 (its tables "
                                       "could not be read)",
           "memory": "the last episode alone, 25 rows of a class for digits, 100 to 200 for CIFAR"},
)
