"""HPCR: Holistic Proxy-based Contrastive Replay for Online Continual Learning (Lin et al. 2023, arXiv 2309.15038;
extends PCR, CVPR 2023, arXiv 2304.04408).

A stream of classes is read once, ten rows at a time together with ten replayed ones. PCR contrasts a row only with the
proxies of the classes in its batch; HPCR adds a periodic scale of the loss and distillation from answers stored with
old rows.

Compared on scikit-learn's digits, by final accuracy and forgetting: replay with a linear and a cosine head, PCR, PCR
with each component of HPCR, HPCR as published and HPCR tuned; other backbones and CLINC150's intents are reported
beside. The claim holds if PCR clearly beats replay with the same head and forgets less, and tuned HPCR beats PCR.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import torch

from segue.continual import Combined, LossScale, ProxyDistillation, Replay, ScoreMatrix, Strategy, class_incremental
from segue.continual.stream import learn_stream
from segue.errors import SegueError
from segue.models import HEADS, Classifier, Stack, StackConfig
from segue.objectives import Batch, ClassLoss, ProxyReplay
from segue.papers.base import Claim, Row, Run, Verdict, seed_bars
from segue.papers.corpora import clinc150, handwritten_digits

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 64
SETTINGS = {"alpha": 0.1, "beta": 0.5, "period": 500, "rows": 0}
"""The published settings. rows: the batch size from which rows are also contrasted with each other (0: never)."""
RATES = (0.03, 0.1, 0.3)
GRID = [SETTINGS, *(dict(zip(SETTINGS, values)) for values in product((0.001, 0.01), (0.02, 0.1), (50, 500), (0, 2)))]
TUNING = (1000, 1001)  # seeds on which settings are chosen; no result comes from them


@dataclass(frozen=True)
class Arm:
    """objective: "softmax" over the classes seen so far, or "proxies" of the classes in the batch. rows: always
    contrast rows with each other too. scale: the periodic loss scale. alpha, beta: the two distillation terms."""

    head: str = "cosine"
    objective: str = "proxies"
    rows: bool = False
    scale: bool = False
    alpha: bool = False
    beta: bool = False


ER, PCR, HPCR = "ER, cosine head", "PCR", "HPCR"
ARMS = {
    "ER": Arm("linear", "softmax"), ER: Arm(objective="softmax"), PCR: Arm(), "PCR + rows": Arm(rows=True),
    "PCR + scale": Arm(scale=True), "PCR + scores": Arm(alpha=True), "PCR + relations": Arm(beta=True),
    HPCR: Arm(scale=True, alpha=True, beta=True)}
TUNED = "HPCR, tuned"
READERS = ("attention", "lstm", "mamba")  # beside the GRU of all arms


@dataclass(frozen=True)
class Data:
    """A stream's data. classes: their number. group: classes per experience. capacity: rows in the replay buffer.
    vocabulary: number of ids, or 0 for rows of eight real numbers per step."""

    train: Batch
    tune: Batch
    test: Batch
    classes: int
    group: int
    capacity: int
    vocabulary: int = 0


@cache
def load_digits(small: bool) -> Data:
    """Handwritten digits (scikit-learn), read line by line: 8 steps of 8 pixels. Of every five digits the first is for
    testing and the second for tuning."""
    if small:
        pixels, names = torch.rand(50, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(50) // 5
    else:
        pixels, names = handwritten_digits()
    targets = torch.full((len(names), 8), -1)
    targets[:, -1] = names
    whole, part = Batch(pixels - 0.5, targets), torch.arange(len(names)) % 5
    return Data(whole.rows(part > 1), whole.rows(part == 1), whole.rows(part == 0), 10, 2, 50)


@cache
def load_intents(folder: Path | None) -> Data:
    """Queries to an assistant (CLINC150) as words: 60 intents with 40 training queries each."""
    if folder is None:
        synthetic = [(f"word{c} to {i}", f"intent {c}") for c in range(10) for i in range(4)]
        parts = {name: synthetic for name in ("train", "val", "test")}
    else:
        parts = clinc150(folder)
    all_kinds = sorted({kind for _, kind in parts["train"]})
    count = min(60, len(all_kinds))
    kinds = [all_kinds[i * len(all_kinds) // count] for i in range(count)]
    ids = {word: 1 + i for i, word in enumerate(sorted({w for text, _ in parts["train"] for w in split_words(text)}))}

    def table(part: str, most: int) -> Batch:
        chosen = [(text, kind) for kind in kinds
                  for text in [text for text, intent in parts[part] if intent == kind][:most]]
        return Batch.labelled([[ids.get(word, 0) for word in split_words(text)] for text, _ in chosen],
                              [kinds.index(kind) for _, kind in chosen], length=20)

    return Data(table("train", 40), table("val", 10), table("test", 20), count, 5, 300, 1 + len(ids))


def split_words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def make_strategy(arm: Arm, capacity: int, seed: int, settings: dict[str, Any]) -> Strategy:
    """Replay with the components of the arm."""
    replay: Strategy = Replay(capacity, seed=seed)
    if arm.alpha or arm.beta:
        replay = ProxyDistillation(settings["alpha"] * arm.alpha, settings["beta"] * arm.beta, capacity=capacity,
                                   seed=seed)
    return Combined(replay, LossScale(period=settings["period"])) if arm.scale else replay


def learn_classes(arm: Arm, data: Data, test: Batch, mixer: str, seed: int, rate: float,
                  settings: dict[str, Any]) -> ScoreMatrix:
    """Train on the stream once, in the seed's class order."""
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(data.classes, generator=draw).split(data.group)
    train = data.train.rows(torch.randperm(len(data.train.targets), generator=draw))
    torch.manual_seed(seed)
    reading: dict[str, Any] = {"vocabulary": data.vocabulary or data.classes, "inputs": 0 if data.vocabulary else 8}
    backbone = Stack(StackConfig(width=WIDTH, mixers=[mixer], channel="mlp", norm="layer", tied=False, **reading))
    model = Classifier(backbone, HEADS[arm.head](WIDTH, data.classes), "mean" if data.vocabulary else "")
    objective = ClassLoss("seen") if arm.objective == "softmax" else ProxyReplay(2 if arm.rows else settings["rows"])
    stream = class_incremental(train, test, [group.tolist() for group in order])
    return learn_stream(model, stream, make_strategy(arm, data.capacity, seed, settings), objective, rate=rate,
                        state_rate=rate, seed=seed, sgd=True, warmup=0.0, cooldown=0.0, clip=0.0)


def score(arm: str, kind: str, folder: Path | None, mixer: str, seed: int, rate: float, settings: dict[str, Any],
          tuning: bool = False) -> list[float]:
    """Accuracy over all classes at the end, and mean forgetting of all experiences but the last. A run that diverges
    has an accuracy of 0."""
    data = load_intents(folder) if kind == "intents" else load_digits(kind == "noise")
    try:
        matrix = learn_classes(ARMS[arm], data, data.tune if tuning else data.test, mixer, seed, rate, settings)
    except SegueError as error:
        if "diverged" not in str(error):
            raise
        return [0.0, 1.0]
    return [matrix.average, mean(matrix.forgetting(name) for name in matrix.names[:-1])]


@dataclass(frozen=True)
class Line:
    """A row of the table. grid: the settings that are tuned. tuning, seeds: of class orders and starts, to choose the
    rate and settings by, and to measure with."""

    stream: str
    reader: str
    arm: str
    tuning: Sequence[int]
    seeds: Sequence[int]
    grid: Sequence[dict[str, Any]] = (SETTINGS,)


def measure(run: Run) -> list[Row]:
    folder, stream, rates = run.dataset("clinc150"), run.pick("noise", "digits"), run.pick(RATES[1:2], RATES)
    seeds, tuning = range(run.seed, run.seed + run.pick(1, 5)), TUNING[: run.pick(1, 2)]
    lines = [Line(stream, "gru", arm, tuning, seeds) for arm in ARMS]
    lines += [Line(stream, "gru", TUNED, tuning, seeds, run.pick(GRID[:2], GRID))]
    lines += [Line(stream, reader, arm, tuning, seeds)
              for reader in run.pick(READERS[-1:], READERS) for arm in (ER, PCR)]
    lines += [Line("intents", "gru", arm, tuning[:1], seeds[:3]) for arm in ("ER", ER, PCR, HPCR)]

    def job(line: Line, seed: int, rate: float, settings: dict[str, Any],
            tuning: bool) -> tuple[str, Callable[[], Any]]:
        arm = HPCR if line.arm == TUNED else line.arm
        name = f"{'tune' if tuning else 'test'} {line.stream} {line.reader} {arm} {rate} {settings} {seed}"
        return name, partial(score, arm, line.stream, folder, line.reader, seed, rate, settings, tuning)

    def tried(line: Line) -> list[tuple[float, dict[str, Any], list[str]]]:
        return [(rate, settings, [job(line, seed, rate, settings, True)[0] for seed in line.tuning])
                for settings in line.grid for rate in rates]

    results = run.cells(dict(job(line, seed, rate, settings, True) for line in lines if len(tried(line)) > 1
                             for settings in line.grid for rate in rates for seed in line.tuning))
    best = [max(tried(line), key=lambda choice: mean(results[name][0] for name in choice[2]))[:2]
            if len(tried(line)) > 1 else tried(line)[0][:2] for line in lines]
    results = run.cells(dict(job(line, seed, *choice, False) for line, choice in zip(lines, best)
                             for seed in line.seeds))
    table: list[Row] = []
    for line, (rate, settings) in zip(lines, best):
        right, forgotten = zip(*(results[job(line, seed, rate, settings, False)[0]] for seed in line.seeds))
        table.append({"stream": line.stream, "reader": line.reader, "arm": line.arm, "accuracy": mean(right),
                      "forgetting": mean(forgotten), "by seed": list(right), "rate": rate,
                      "settings": ", ".join(f"{name} {value:g}" for name, value in settings.items())})
    run.note("digits: scikit-learn's, as 8 steps of 8 pixels, 5 experiences of 2 classes in a random order, 50 rows "
             "kept; intents: 60 of CLINC150, word by word, 12 experiences of 5, 300 rows kept; both read once, 10 new "
             "and 10 old rows a step, no augmented views; one GRU layer of width 64 unless another reader is named")
    run.note("plain gradient descent; each arm's rate is the best of three on two class orders of its own (intents: "
             "one) and on rows kept for that; 'tuned' chooses alpha, beta, period and rows there too, the other arms "
             "have the published 0.1, 0.5, 500 and none; temperature 0.09")
    run.note("tried since, on lines of MNIST's digits, 1,000 rows an experience and more, 50 kept, at a rate of 0.1, "
             "on four seeds and the rows to tune on: PCR +11.5, +4.4, -3.2 and +4.0 points from replay with the same "
             "head")
    run.note("rows: the other rows of the batch are compared too; scale: the loss's goes from 0.56 to 1.8 and back; "
             "scores, relations: the two distillation terms")
    return table


def judge(table: list[Row]) -> tuple[Verdict, str]:
    row = {row["arm"]: row for row in table if row["stream"] == "digits" and row["reader"] == "gru"}
    er, pcr, hpcr = row[ER], row[PCR], row[TUNED]
    wins = sum(b - a >= 0.05 for a, b in zip(er["by seed"], pcr["by seed"]))
    gain, further = pcr["accuracy"] - er["accuracy"], hpcr["accuracy"] - pcr["accuracy"]
    reason = (f"on digits PCR is right {pcr['accuracy']:.1%} of the time and forgets {pcr['forgetting']:.1%}, replay "
              f"with the same head {er['accuracy']:.1%} and {er['forgetting']:.1%}; PCR is 5 points ahead in {wins} of "
              f"{len(er['by seed'])} seeds; HPCR, tuned, is {100 * further:+.1f} points from PCR, with the published "
              f"settings {100 * (row[HPCR]['accuracy'] - pcr['accuracy']):+.1f}")
    if gain <= 0 or further <= 0:
        return "refuted", reason
    holds = wins >= 4 and pcr["forgetting"] < er["forgetting"] and further >= 0.01
    return ("confirmed" if holds else "inconclusive"), reason


def draw(figure: Figure, table: list[Row]) -> None:
    arms, others = figure.subplots(1, 2, width_ratios=(3, 2))
    rows = [row for row in table if row["stream"] != "intents" and row["reader"] == "gru"]
    seed_bars(arms, rows, "accuracy", [f"forgets {row['forgetting']:.0%}" for row in rows])
    arms.set(xlabel="accuracy over all classes at the end (dots: seeds)", title="Digits, read once", xlim=(0, 1))
    rest = [row for row in table if row not in rows]
    groups = list(dict.fromkeys((row["stream"], row["reader"]) for row in rest))
    for colour, arm in enumerate(dict.fromkeys(row["arm"] for row in rest)):
        shown = {(row["stream"], row["reader"]): row["accuracy"] for row in rest if row["arm"] == arm}
        others.bar([groups.index(group) + 0.2 * colour - 0.3 for group in shown], list(shown.values()), 0.2, label=arm)
    others.set_xticks(range(len(groups)), ["\n".join(group) for group in groups], fontsize=8)
    others.set(title="Other readers, other rows", ylim=(0, 1))
    others.legend(fontsize=7)


CLAIM = Claim(
    slug="hpcr",
    statement="In a stream of classes that is read once, comparing a row with the proxies of the classes in its batch "
              "alone makes replay right more often and forget less; stored answers and a moving scale add to that.",
    rule="on digits in 5 paired seeds, every arm at its own tuned rate: confirmed if PCR is at least 5 points above "
         "replay with the same cosine head in at least 4 seeds, with lower mean forgetting, and HPCR with tuned "
         "alpha, beta, period and rows at least 1 point above PCR in the mean; refuted if PCR is not above that replay "
         "in the mean, or tuned HPCR not above PCR; else inconclusive. Other readers and the intents are told beside.",
    measure=measure, judge=judge, draw=draw,
    paper={"gain of HPCR": "2.1 to 4.7 points over the best baseline (a summary; its tables could not be read)",
           "PCR": "split CIFAR-10, buffers of 100, 200, 500, 1,000: about 45, 50, 56, 59% (unverified)"},
)
