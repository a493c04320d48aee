"""Efficiently Modeling Long Sequences with Structured State Spaces (Gu, Goel & Re 2021, arXiv 2111.00396).

Two of its statements. (1) The initial state matrix decides what a state space learns: S4D with HiPPO-LegS, with the
linear approximation (Lin), with random initial values, and a GRU of equal size classify pictures read pixel by pixel
(MNIST, at scale gpu CIFAR in grey). (2) It runs as a recurrence at constant cost per token: the time of one more token
after 1k to 16k, of S4 and of attention. The verdict needs the better HiPPO start well above random and no growth of
S4's cost with length."""

from __future__ import annotations

import io
import time
import zipfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from segue.errors import require
from segue.models.stack import Stack, StackConfig
from segue.objectives import Batch
from segue.papers.base import Claim, Row, Run, Verdict
from segue.papers.corpora import MNIST_SIDE, mnist
from segue.training.learn import accuracy, learn, minibatches

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLASSES = 10
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "S4D, HiPPO-LegS": ("s4d", {"init": "legs"}),
    "S4D, Lin": ("s4d", {"init": "lin"}),
    "S4D, random": ("s4d", {"init": "random"}),
    "GRU": ("gru", {}),
}
MORE = "one token more"
HIPPO, RANDOM = ("S4D, HiPPO-LegS", "S4D, Lin"), "S4D, random"


def load_cifar(folder: Path) -> tuple[Tensor, Tensor]:
    """As `mnist`: pictures of CIFAR-10 in grey, 32 x 32; first the archive's train/CLASS/N.jpg, then a quarter that is
    test/CLASS/N.jpg."""
    images = require("PIL.Image", "picture")
    with zipfile.ZipFile(folder / "cifar10-8000.zip") as archive:
        names = sorted((name for name in archive.namelist() if name.endswith(".jpg")),
                       key=lambda name: (not name.startswith("train/"), name))
        grey = [images.open(io.BytesIO(archive.read(name))).convert("L").tobytes() for name in names]
    pixels = torch.frombuffer(bytearray(b"".join(grey)), dtype=torch.uint8).view(len(names), -1)
    kinds = sorted({name.split("/")[1] for name in names})
    classes = torch.tensor([kinds.index(name.split("/")[1]) for name in names])
    return pixels.float() / 255, classes


def make_batch(pixels: Tensor, classes: Tensor) -> Batch:
    """Pixels (B, T) as inputs, with the class as the target of the last one."""
    targets = torch.full(pixels.shape, -1)
    targets[:, -1] = classes
    return Batch(pixels[..., None], targets)


def count_parameters(model: Stack) -> int:
    return sum(p.numel() for p in model.parameters())


def build_classifier(arm: str, width: int) -> Stack:
    mixer, options = ARMS[arm]
    return Stack(StackConfig(CLASSES, width, [mixer] * 2, {mixer: options}, channel="none", norm="layer", tied=False,
                             inputs=1, pool="mean"))


@dataclass(frozen=True)
class Lesson:
    """How a classifier is trained: `steps` of `rows` rows. The last of `parts` equal parts of the pictures is held out.
    width: of the state spaces' two layers."""

    steps: int
    rows: int
    parts: int = 5
    width: int = 64


def score_classifier(arm: str, seed: int, lesson: Lesson, read: Callable[[], tuple[Tensor, Tensor]], device: str,
                     ) -> dict[str, float]:
    """Train two layers on pictures read pixel by pixel; accuracy on the held-out ones. The GRU has as many parameters
    as a state space."""
    torch.manual_seed(seed)
    width, goal = lesson.width, count_parameters(build_classifier("S4D, HiPPO-LegS", lesson.width))
    if arm == "GRU":
        width = min(range(16, 2 * width, 4), key=lambda w: abs(count_parameters(build_classifier(arm, w)) - goal))
    pixels, classes = read()
    cut = len(pixels) - len(pixels) // lesson.parts
    batches = minibatches(make_batch(pixels[:cut], classes[:cut]), lesson.rows, seed)
    torch.manual_seed(seed)
    model = build_classifier(arm, width).to(device)
    run = learn(model, batches, lesson.steps, rate=5e-3, seed=seed, decay=0.01)
    pieces = [make_batch(*piece) for piece in zip(pixels[cut:].split(250), classes[cut:].split(250))]
    held_out = mean(accuracy(model, piece) for piece in pieces)
    return {"accuracy": held_out, "loss": run.curve[-1]["loss"], "parameters": count_parameters(model)}


@torch.no_grad()
def time_per_token(mixer: str, length: int, tokens: int, device: str) -> float:
    """Milliseconds (median) of one more token after `length` of them, in a model of two layers of width 64."""
    torch.manual_seed(0)
    model = Stack(StackConfig(256, 64, [mixer] * 2)).eval().to(device)
    state = model.init_state(1)
    for piece in torch.randint(256, (1, length), device=device).split(1024, 1):
        model.extend(piece, state)
        state.commit()
    taken = []
    for token in torch.randint(256, (tokens, 1, 1), device=device):
        if device == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        model.extend(token, state)
        state.commit()
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(1000 * (time.perf_counter() - begin))
    return median(taken)


def fit_exponent(points: list[tuple[float, float]]) -> float:
    """The exponent of a power law fitted to the points: the slope of a line through their logarithms."""
    x, y = (torch.tensor(values, dtype=torch.float64).log() for values in zip(*points))
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


def measure(run: Run) -> list[Row]:
    small = ("digits", "mnist-t10k", mnist)
    task, data, reader = run.pick(small, small, ("CIFAR", "cifar10-sample", load_cifar))
    read = partial(reader, run.dataset(data))
    lesson = run.pick(Lesson(2, 4), Lesson(400, 16), Lesson(600, 48, 4, 128))
    seeds = {arm: range(run.seed, run.seed + run.pick(1, 1 if arm == "GRU" else 3)) for arm in ARMS}
    jobs = {f"{arm} {seed}": partial(score_classifier, arm, seed, lesson, read, run.device)
            for arm in ARMS for seed in seeds[arm]}
    done = run.cells(jobs)
    table: list[Row] = []
    for arm in ARMS:
        runs = [done[f"{arm} {seed}"] for seed in seeds[arm]]
        table.append({"task": task, "model": arm, "length": run.pick(MNIST_SIDE**2, MNIST_SIDE**2, 1024),
                      "parameters": runs[0]["parameters"],
                      **{what: mean(f[what] for f in runs) for what in ("loss", "accuracy")},
                      "spread": max(f["accuracy"] for f in runs) - min(f["accuracy"] for f in runs)})
    for mixer, name in (("s4", "S4"), ("attention", "attention")):
        for length in run.pick((64, 128), (1024, 4096, 16384)):
            cost = run.cell(f"{mixer} {length}",
                            partial(time_per_token, mixer, length, run.pick(3, 60), run.device))
            table.append({"task": MORE, "model": name, "length": length, "milliseconds": cost})
    what = "sequential CIFAR in grey, from 8,000 of its 60,000 pictures: 6,000 to learn from" if task == "CIFAR" else \
        "sequential MNIST at 14 x 14 pixels, from the 10,000 test digits alone: 8,000 to learn from"
    run.note(f"{what} ({lesson.steps} steps of {lesson.rows}), 2,000 to measure; all arms with the same steps and "
             "rates, none tuned; 3 seeds, the GRU one; random means log-normal decays and frequencies")
    return table


def judge(table: list[Row], wanted: float = 0.05, most: float | None = None) -> tuple[Verdict, str]:
    """wanted: gain that confirms. most: exponent of S4's cost that refutes (default: attention's)."""
    right = {row["model"]: row["accuracy"] for row in table if row["task"] != MORE}
    best = max(HIPPO, key=right.__getitem__)
    gain = right[best] - right[RANDOM]
    lines: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in table:
        if row["task"] == MORE:
            lines[row["model"]].append((row["length"], row["milliseconds"]))
    growth = {model: fit_exponent(points) for model, points in lines.items()}
    what = "digits" if table[0]["task"] == "digits" else "pictures"
    reason = (f"{best} names {right[best]:.1%} of the held-out {what}, a random start {right[RANDOM]:.1%}, the GRU "
              f"{right['GRU']:.1%}; the cost of a token grows with exponent {growth['S4']:.2f} for S4 and "
              f"{growth['attention']:.2f} for attention")
    if gain <= 0.01 or growth["S4"] >= (growth["attention"] if most is None else most):
        return "refuted", reason
    return ("confirmed" if gain >= wanted and growth["S4"] < 0.1 else "inconclusive"), reason


def draw(figure: Figure, table: list[Row]) -> None:
    bars, cost = figure.subplots(1, 2)
    rows = [row for row in table if row["task"] != MORE]
    bars.barh([row["model"] for row in rows], [row["accuracy"] for row in rows],
              xerr=[row["spread"] / 2 for row in rows], color=["C0", "C0", "C1", "C2"])
    bars.axvline(1 / CLASSES, color="grey", linestyle=":")
    bars.set(xlabel="accuracy, held out", title="Pixel by pixel: " + table[0]["task"], xlim=(0, 1))
    bars.invert_yaxis()
    for model in ("S4", "attention"):
        points = [(row["length"], row["milliseconds"]) for row in table
                  if row["task"] == MORE and row["model"] == model]
        cost.plot(*zip(*points), marker="o", label=model)
    cost.set(xscale="log", xlabel="tokens before", ylabel="milliseconds for one more", title="Generation")
    cost.set_ylim(bottom=0)
    cost.legend()


CLAIM = Claim(
    slug="s4",
    statement="A state space learns long sequences if it begins with a HiPPO matrix, and generates at the same cost "
              "for every token however long the past.",
    rule="confirmed if, in mean over 3 seeds and after equal steps, the better of the two HiPPO starts (LegS, Lin) "
         "names at least 5 points more of the held-out digits than a random start, and the time of one token more "
         "grows with the length (1k to 16k) with an exponent below 0.1 for S4; refuted if the gain is at most 1 point "
         "or S4's time grows as fast as attention's; else inconclusive.",
    measure=measure, judge=judge, draw=draw,
    paper={"sequential MNIST": "99.63% (60,000 digits, long training)",
           "starts": "sequential CIFAR, 100,000 parameters: HiPPO 84.27%, others up to 15 points lower in validation",
           "generation": "60 times the tokens a second of a Transformer on WikiText-103"},
    scales=("smoke", "cpu", "gpu"),
)

CLAIM = replace(CLAIM, gpu=replace(
    CLAIM,
    rule="confirmed if, in mean over 3 seeds and after equal steps on sequential CIFAR with about 100,000 parameters, "
         "the better of the two HiPPO starts (LegS, Lin) names at least 8 points more of the held-out pictures than a "
         "random start, and the time of one token more grows with the length (1k to 16k) with an exponent below 0.1 "
         "for S4; refuted if the gain is at most 1 point or that exponent at least 0.5; else inconclusive. Attention "
         "beside it has no say: of one row a GPU reads its cache in no time.",
    judge=partial(judge, wanted=0.08, most=0.5)))
