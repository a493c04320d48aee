"""CODA-Prompt: COntinual Decomposed Attention-based Prompting for Rehearsal-Free Continual Learning (Smith et al. 2023,
arXiv 2211.13218), beside L2P (Wang et al. 2022, arXiv 2112.08654) and DualPrompt (arXiv 2204.04799).

Classes come one experience after the other, nothing is stored, and the backbone is frozen: only prompts and a linear
head learn. L2P and DualPrompt choose prompts by keys that the loss of the task does not train; CODA-Prompt sums
components, each weighted by how it attends to what the frozen backbone makes of the row.
"""

from __future__ import annotations

import base64
import math
import sysconfig
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load, save

from segue.continual import Experience, Freeze, Prompting, class_incremental, learn_stream
from segue.continual.buffer import labels_of
from segue.continual.stream import class_accuracy
from segue.models import (
    HEADS,
    Classifier,
    CodaPrompts,
    DualPrompts,
    Features,
    Pools,
    Prompted,
    Prompts,
    Stack,
    StackConfig,
)
from segue.objectives import Batch, ClassLoss, generator_of
from segue.papers.base import Claim, Row, Run, Verdict
from segue.training.learn import learn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, DEPTH, CONTEXT, VOCABULARY = 96, 3, 128, 128  # characters beyond ASCII are one
WINDOW, BLOCK = 64, 1024  # characters of a row, and of the blocks that rows are cut from
PACKAGES = ("asyncio", "concurrent", "ctypes", "email", "http", "idlelib", "importlib", "json", "logging",
            "multiprocessing", "tkinter", "unittest", "urllib", "wsgiref", "xml")
PIECES = {"train": 128, "tune": 40, "test": 60}  # rows of each package
TASKS, ROWS, LENGTH = 5, 32, 8
EPOCHS, HEAD_EPOCHS = 4, 100  # of what reads the rows at every step, and of a head on features
TUNING = 1000  # the seed of the class order and start that rates are chosen by
LINEAR, FINE, L2P, DUAL, CODA, JOINT = "linear head", "FT++", "L2P", "DualPrompt", "CODA-P", "CODA-P, all at once"
ARMS = (LINEAR, FINE, L2P, DUAL, CODA, JOINT)
SIZE, OTHERS = 25, (5, 50)  # slots or components in all
RATES = {LINEAR: (1e-2, 1e-1), FINE: (3e-4, 1e-3), L2P: (3e-3, 1e-2), DUAL: (3e-3, 1e-2), CODA: (3e-3, 1e-2)}


def files(names: tuple[str, ...] | None) -> list[list[str]]:
    """The Python files of the standard library, tests left out: of each of these packages, or of no package of
    PACKAGES."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = [path for path in sorted(root.rglob("*.py"))
             if not {"test", "tests", "idle_test", "site-packages", "dist-packages", "encodings", "pydoc_data"}
             & set(path.relative_to(root).parts)]
    groups = [[path for path in found if path.relative_to(root).parts[0] == name] for name in names] if names else \
        [[path for path in found if path.relative_to(root).parts[0] not in PACKAGES]]
    return [[path.read_text("utf-8", "replace") for path in group] for group in groups]


def ids(text: str) -> torch.Tensor:
    codes = np.frombuffer(text.encode("ascii", "replace"), np.uint8)
    return torch.from_numpy(codes.astype(np.int64))


@cache
def windows(small: bool) -> dict[str, Batch]:
    """Rows of each part, a package each: blocks of its files take turns in being to learn from, to tune and to test."""
    draw = np.random.default_rng(0)
    rows: dict[str, list[torch.Tensor]] = {"train": [], "tune": [], "test": []}
    labels: dict[str, list[int]] = {part: [] for part in rows}
    for number, texts in enumerate(files(PACKAGES)):
        text = ids("".join(texts))
        blocks = draw.permutation(len(text) // BLOCK)
        for turn, (part, count) in enumerate(PIECES.items()):
            for _ in range(4 if small else count):
                own = blocks[turn::3]
                at = int(own[draw.integers(len(own))]) * BLOCK + int(draw.integers(BLOCK - WINDOW))
                rows[part].append(text[at : at + WINDOW])
                labels[part].append(number)
    made = {}
    for part, each in rows.items():
        targets = torch.full((len(each), WINDOW), -1)
        targets[:, -1] = torch.tensor(labels[part])
        made[part] = Batch(torch.stack(each), targets)
    return made


def stack() -> Stack:
    return Stack(StackConfig(VOCABULARY, WIDTH, ["attention"] * DEPTH))


def pretrained(steps: int) -> dict[str, Any]:
    """A causal language model of all other files: its weights, and its last loss in bits per character."""
    tokens = ids("".join(files(None)[0]))

    def rows(step: int) -> Batch:
        at = torch.randint(len(tokens) - CONTEXT - 1, (32, 1), generator=generator_of(0, step))
        row = tokens[at + torch.arange(CONTEXT + 1)]
        return Batch(row[:, :-1], row[:, 1:])

    torch.manual_seed(0)
    model = stack()
    run = learn(model, rows, steps, muon=True, rate=0.01, table_rate=0.01, vector_rate=0.01, cooldown=1.0)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name != "head.weight"}
    return {"weights": base64.b64encode(save(weights)).decode(), "bits": run.curve[-1]["loss"] / math.log(2)}


def source(arm: str, size: int) -> Prompts:
    """size: slots or components in all."""
    layers = range(DEPTH)
    if arm == L2P:
        return Pools(layers, WIDTH, size, LENGTH, min(5, size))
    if arm == DUAL:
        return DualPrompts(layers[:1], layers[1:], WIDTH, 6, 20)
    return CodaPrompts(layers, WIDTH, size if arm == JOINT else size // TASKS, LENGTH)


def score(arm: str, size: int, weights: str, small: bool, seed: int, rate: float, epochs: int,
          tuning: bool = False) -> list[float]:
    """Accuracy over all classes at the end, and mean forgetting of all experiences but the last."""
    torch.manual_seed(seed)
    found, backbone = windows(small), stack()
    backbone.load_state_dict(load(base64.b64decode(weights)), strict=False)
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(PACKAGES), generator=draw).split(len(PACKAGES) // (1 if arm == JOINT else TASKS))
    train = found["train"].rows(torch.randperm(len(found["train"].targets), generator=draw))
    stream = class_incremental(train, found["tune" if tuning else "test"], [group.tolist() for group in order])
    head = HEADS["linear"](WIDTH, len(PACKAGES))
    if arm == LINEAR:
        backbone.eval()
        stream = [Experience(each.name, read(backbone, each.train), read(backbone, each.test), each.classes)
                  for each in stream]
        model, strategy = Classifier(Features(), head), Freeze((), old_classes=True)
    elif arm == FINE:
        model, strategy = Classifier(backbone, head, "mean"), Freeze((), old_classes=True)
    else:
        model, strategy = Classifier(Prompted(backbone, source(arm, size)), head, "mean"), Prompting()
    matrix = learn_stream(model, stream, strategy, ClassLoss("new"), rows=ROWS, epochs=epochs, rate=rate, seed=seed,
                          cooldown=1.0, measure=so_far)
    return [matrix.average, mean([matrix.forgetting(name) for name in matrix.names[:-1]] or [0.0])]


@torch.no_grad()
def read(backbone: Stack, batch: Batch) -> Batch:
    """Rows of features, as the frozen backbone gives them, once and for all."""
    features = torch.cat([backbone.hidden(part.tokens, part.layout).mean(1) for at in range(0, len(batch.targets), 256)
                          for part in (batch.rows(slice(at, at + 256)),)])
    return Batch(features[:, None], torch.tensor(labels_of(batch))[:, None])


def so_far(model: torch.nn.Module, experience: Experience, seen: Sequence[int]) -> float:
    """Accuracy among all classes seen so far; 0, unmeasured, for an experience still to come."""
    return class_accuracy(model, experience, seen) if set(experience.classes) <= set(seen) else 0.0


def measure(run: Run) -> list[Row]:
    small = run.scale == "smoke"
    base = run.cell("backbone", partial(pretrained, run.pick(2, 200)))
    seeds = range(run.seed, run.seed + run.pick(1, 3))

    def job(arm: str, size: int, seed: int, rate: float, tuning: bool = False) -> tuple[str, Any]:
        epochs = run.pick(1, HEAD_EPOCHS if arm == LINEAR else EPOCHS)
        return f"{'tune' if tuning else 'test'} {arm} {size} {seed} {rate}", partial(
            score, arm, size, base["weights"], small, seed, rate, epochs, tuning)

    best = {arm: rates[-1] for arm, rates in RATES.items()}
    if not small:
        tried = run.cells(dict(job(arm, SIZE, TUNING, rate, True) for arm, rates in RATES.items() for rate in rates))
        best = {arm: max(rates, key=lambda rate: tried[job(arm, SIZE, TUNING, rate, True)[0]][0])
                for arm, rates in RATES.items()}
    lines = [(arm, SIZE, seeds[:1] if arm == JOINT else seeds) for arm in ARMS]
    lines += [(arm, size, seeds[:2]) for arm in (L2P, CODA) for size in OTHERS]
    jobs = {(arm, size, seed): job(arm, size, seed, best[CODA if arm == JOINT else arm])
            for arm, size, used in lines for seed in used}
    found = run.cells(dict(jobs.values()))
    table: list[Row] = []
    for arm, size, used in lines:
        right, forgotten = zip(*(found[jobs[arm, size, seed][0]] for seed in used))
        table.append({"arm": arm, "components": size if arm in (L2P, CODA, JOINT) else None, "accuracy": mean(right),
                      "forgetting": mean(forgotten), "by seed": list(right),
                      "rate": best[CODA if arm == JOINT else arm]})
    run.note(f"rows: {WINDOW} characters of one of {len(PACKAGES)} packages of Python's standard library, {TASKS} "
             f"experiences of 3 packages in a random order, {PIECES['train']} rows of each to learn from, "
             f"{PIECES['test']} from other blocks of its files to measure on")
    run.note(f"backbone: {DEPTH} layers of attention, width {WIDTH}, pre-trained here as a causal language model of "
             f"the rest of the library ({base['bits']:.2f} bits per character at the end), frozen; the head reads the "
             "mean hidden vector, and so does the query, without a prompt")
    run.note(f"{EPOCHS} epochs of {ROWS} rows a step (a head alone: {HEAD_EPOCHS}), AdamW, each arm's rate the better "
             f"of two on a class order and rows kept for that; all arms mask past classes in training; L2P: {SIZE} "
             f"slots of {LENGTH} rows, the 5 nearest, CODA-P: {SIZE} components of {LENGTH}, both in all layers; "
             "DualPrompt: 6 rows for all in the first layer, experts of 20 in the others")
    return table


def judge(table: list[Row]) -> tuple[Verdict, str]:
    row = {(row["arm"], row["components"]): row for row in table}
    coda, dual, linear = row[CODA, SIZE], row[DUAL, None], row[LINEAR, None]
    over, above = coda["accuracy"] - dual["accuracy"], coda["accuracy"] - linear["accuracy"]
    grown = {arm: row[arm, OTHERS[1]]["accuracy"] - row[arm, OTHERS[0]]["accuracy"] for arm in (CODA, L2P)}
    reason = (f"CODA-P is right {coda['accuracy']:.1%} of the time and forgets {coda['forgetting']:.1%}, DualPrompt "
              f"{dual['accuracy']:.1%} and {dual['forgetting']:.1%}, L2P {row[L2P, SIZE]['accuracy']:.1%}, a linear "
              f"head on the frozen backbone {linear['accuracy']:.1%}; from {OTHERS[0]} to {OTHERS[1]} components "
              f"CODA-P gains {100 * grown[CODA]:+.1f} points, L2P with as many slots {100 * grown[L2P]:+.1f}")
    if above <= 0:
        return "refuted", reason
    good = over >= 0.02 and above >= 0.02 and coda["forgetting"] <= dual["forgetting"] + 0.01
    return ("confirmed" if good else "inconclusive"), reason


def draw(figure: Figure, table: list[Row]) -> None:
    arms, sizes = figure.subplots(1, 2, width_ratios=(3, 2))
    rows = [row for row in table if row["components"] in (None, SIZE)]
    for at, row in enumerate(rows):
        arms.barh(at, row["accuracy"], color=f"C{at}", alpha=0.6)
        arms.plot(row["by seed"], [at] * len(row["by seed"]), "k.", markersize=4)
        arms.text(0.005, at, f"forgets {row['forgetting']:.0%}", va="center", fontsize=7)
    arms.set_yticks(range(len(rows)), [row["arm"] for row in rows], fontsize=8)
    arms.invert_yaxis()
    arms.set(xlabel="accuracy over all classes at the end (dots: seeds)", title="15 packages, 3 at a time")
    for arm in (L2P, CODA):
        found = sorted((row["components"], row["accuracy"]) for row in table if row["arm"] == arm)
        sizes.plot(*zip(*found), "o-", label=arm)
    sizes.set(xlabel="slots or components", ylabel="accuracy", title="More of them", xscale="log")
    sizes.legend()


CLAIM = Claim(
    slug="coda-prompt",
    statement="On a frozen backbone and without stored data, prompts that are summed from components by attention, and "
              "so trained by the task's loss, learn classes one experience after the other better than prompts that "
              "are chosen by keys.",
    rule="15 packages in 5 experiences, mean of 3 seeds, each arm at its own rate: confirmed if CODA-P ends at least 2 "
         "points above DualPrompt and 2 above a linear head on the frozen backbone, and forgets at most 1 point more "
         "than DualPrompt; refuted if it is not above the linear head; else inconclusive. What more components or "
         "slots bring is told beside.",
    measure=measure, judge=judge, draw=draw,
    paper={"gain over DualPrompt": "up to 4.5 points of average accuracy (abstract)",
           "CIFAR-100, 10 tasks, reproduced by LibContinual": "CODA-P 86.2, DualPrompt 83.2, L2P 83.6",
           "ImageNet-R, 10 tasks": "CODA-P 75.5, DualPrompt 71.3, deep L2P++ 71.7 (unverified)"},
)
