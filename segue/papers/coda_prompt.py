"""CODA-Prompt: COntinual Decomposed Attention-based Prompting for Rehearsal-Free Continual Learning (Smith et al. 2023,
arXiv 2211.13218), beside L2P (Wang et al. 2022, arXiv 2112.08654) and DualPrompt (arXiv 2204.04799).

Classes arrive in experiences, no data is stored, and the backbone is frozen: only prompts and a linear head learn. L2P
and DualPrompt select prompts by keys that the task's loss does not train; CODA-Prompt sums components weighted by
attention to the frozen backbone's features of the row, so the loss trains all of it. The rows are pieces of 15 Python
packages, to be told apart in 5 experiences of 3, on a language model pre-trained on the standard library.

Compared by final accuracy and forgetting: CODA-P, DualPrompt, L2P, a linear head on frozen features, fine-tuning and
CODA-P on all classes at once. The claim holds if CODA-P beats DualPrompt and the linear head and forgets hardly more
than DualPrompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from segue.continual import Experience, Freeze, Prompting, Strategy, class_incremental, learn_stream
from segue.continual.stream import class_accuracy, encode_features
from segue.models import Classifier, CodaPrompts, DualPrompts, Features, Pools, Prompted, PromptSource
from segue.models.classify import LinearHead
from segue.objectives import Batch, ClassLoss
from segue.papers.base import Claim, Row, Run, Verdict, seed_bars
from segue.papers.corpora import (
    CHARACTERS,
    DEPTH,
    PACKAGES,
    VOCABULARY,
    WIDTH,
    labelled_codec,
    labelled_rows,
    labelled_texts,
    load_backbone,
    pretrain,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TASKS, ROWS, LENGTH = 5, 10, 8  # experiences, rows of a step, vectors of a prompt
EPOCHS, HEAD_EPOCHS = 20, 100  # of arms that run the backbone at every step, and of a head on precomputed features
HEAD_RATE = 3e-3  # of a head that is trained together with prompts or backbone
TUNING = 1000  # the seed (class order and initialisation) on which rates are chosen
LINEAR, FINE, L2P, DUAL, CODA, JOINT = "linear head", "FT++", "L2P", "DualPrompt", "CODA-P", "CODA-P, all at once"
PROMPTS = (L2P, DUAL, CODA, JOINT)
ARMS = (LINEAR, FINE, *PROMPTS)
SIZE, OTHERS = 25, (5, 50)  # total slots or components
RATES = {LINEAR: (1e-3, 3e-3), **dict.fromkeys((FINE, L2P, DUAL, CODA), (3e-4, 1e-3, 3e-3))}


def pretraining_rows(small: bool) -> Batch:
    """Pieces of the pre-training text, whose features have the mean and deviation that queries are standardised by."""
    texts = labelled_texts("code", None, small).text
    draw = np.random.default_rng(0)
    pieces = []
    for _ in range(8 if small else 500):
        text = texts[int(draw.integers(len(texts)))]
        at = int(draw.integers(max(1, len(text) - CHARACTERS)))
        pieces.append(text[at : at + CHARACTERS])
    ids = labelled_codec("code", None, small).encode_many(pieces)
    rows = [row.tolist() for row in ids if len(row)]
    return Batch.labelled(rows, [0] * len(rows), 40).as_prompts()


class StandardisedHead(LinearHead):
    """A linear head on (features - centre) / spread, both (D,) and fixed."""

    centre: torch.Tensor
    spread: torch.Tensor

    def __init__(self, classes: int, centre: torch.Tensor, spread: torch.Tensor) -> None:
        super().__init__(WIDTH, classes)
        self.register_buffer("centre", centre)
        self.register_buffer("spread", spread)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return super().forward((features - self.centre) / self.spread)


def make_prompts(arm: str, size: int) -> PromptSource:
    """The prompts of an arm. size: total slots or components."""
    layers = range(DEPTH)
    if arm == L2P:
        return Pools(layers, WIDTH, size, LENGTH, min(5, size))
    if arm == DUAL:
        return DualPrompts(layers[:1], layers[1:], WIDTH, 6, 20)
    return CodaPrompts(layers, WIDTH, size if arm == JOINT else size // TASKS, LENGTH)


def score(arm: str, size: int, weights: str, small: bool, seed: int, rate: float, epochs: int,
          tuning: bool = False) -> list[float]:
    """Train one arm: final accuracy over all classes, and mean forgetting of all experiences but the last."""
    parts = {part: rows.as_prompts() for part, rows in labelled_rows("code", None, small).items()}
    classes, group = labelled_texts("code", None, small).classes, labelled_texts("code", None, small).group
    stack, rows = load_backbone(weights, seed).eval(), pretraining_rows(small)
    prompted = Prompted(stack, make_prompts(arm, size))
    prompted.standardise_queries(rows.tokens, rows.layout)
    head = StandardisedHead(classes, prompted.centre.clone(), prompted.spread.clone())
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(classes, generator=draw).split(classes if arm == JOINT else group)
    train = parts["train"].rows(torch.randperm(len(parts["train"].targets), generator=draw))
    stream = class_incremental(train, parts["tune" if tuning else "test"], [part.tolist() for part in order])
    strategy: Strategy = Prompting() if arm in PROMPTS else Freeze((), old_classes=True)
    model = Classifier(prompted if arm in PROMPTS else stack.requires_grad_(arm == FINE), head, "mean")
    if arm == LINEAR:
        stream = [encode_features(model, experience) for experience in stream]
        model = Classifier(Features(), head)
    matrix = learn_stream(model, stream, strategy, ClassLoss("new"), rows=ROWS, epochs=epochs, rate=rate, seed=seed,
                          table_rate=rate if arm == LINEAR else HEAD_RATE, cooldown=1.0, measure=accuracy_so_far)
    return [matrix.average, mean([matrix.forgetting(name) for name in matrix.names[:-1]] or [0.0])]


def accuracy_so_far(model: torch.nn.Module, experience: Experience, seen: Sequence[int]) -> float:
    """Accuracy among all classes seen so far; 0, without measuring, for an experience still to come."""
    return class_accuracy(model, experience, seen) if set(experience.classes) <= set(seen) else 0.0


def measure(run: Run) -> list[Row]:
    small = run.scale == "smoke"
    base = run.cell("backbone", partial(pretrain, "code", None, small, run.pick(2, 500)))
    seeds = range(run.seed, run.seed + run.pick(1, 3))

    def job(arm: str, size: int, seed: int, rate: float, tuning: bool = False) -> tuple[str, Any]:
        epochs = run.pick(1, HEAD_EPOCHS if arm == LINEAR else EPOCHS)
        return f"{'tune' if tuning else 'test'} {arm} {size} {seed} {rate}", partial(
            score, arm, size, base["weights"], small, seed, rate, epochs, tuning)

    best = {arm: rates[-1] for arm, rates in RATES.items()}
    if not small:
        tuning = run.cells(dict(job(arm, SIZE, TUNING, rate, True) for arm, rates in RATES.items() for rate in rates))
        best = {arm: max(rates, key=lambda rate: tuning[job(arm, SIZE, TUNING, rate, True)[0]][0])
                for arm, rates in RATES.items()}
    lines = [(arm, SIZE, seeds[:1] if arm == JOINT else seeds) for arm in ARMS]
    lines += [(arm, size, seeds[:1]) for arm in (L2P, CODA) for size in OTHERS]
    jobs = {(arm, size, seed): job(arm, size, seed, best[CODA if arm == JOINT else arm])
            for arm, size, arm_seeds in lines for seed in arm_seeds}
    results = run.cells(dict(jobs.values()))
    table: list[Row] = []
    for arm, size, arm_seeds in lines:
        right, forgotten = zip(*(results[jobs[arm, size, seed][0]] for seed in arm_seeds))
        table.append({"arm": arm, "components": size if arm in (L2P, CODA, JOINT) else None, "accuracy": mean(right),
                      "forgetting": mean(forgotten), "by seed": list(right),
                      "rate": best[CODA if arm == JOINT else arm]})
    run.note(f"rows: {CHARACTERS} characters of one of {len(PACKAGES)} packages (their longest file), {TASKS} "
             "experiences of 3 packages in a random order, 30 rows of each to learn from, 25 from other blocks of the "
             "file to measure on")
    run.note(f"backbone: {DEPTH} layers of attention, width {WIDTH}, {VOCABULARY} byte pairs, pre-trained here as a "
             f"causal language model of Python's standard library ({base['bits']:.2f} bits per token at the end), "
             "frozen; the head reads the mean hidden vector, and so does the query, without a prompt, both less the "
             "mean and over the deviation of 500 rows of the standard library")
    run.note(f"{EPOCHS} epochs of {ROWS} rows a step (a head alone: {HEAD_EPOCHS}), AdamW, each arm's rate the best "
             f"on a class order and rows kept for that, of {RATES[LINEAR]} and {RATES[CODA]}, where the head above "
             f"what learns has {HEAD_RATE}; all arms mask past classes in training; L2P: {SIZE} "
             f"slots of {LENGTH} rows, the 5 nearest, CODA-P: {SIZE} components of {LENGTH}, both in all layers; "
             "DualPrompt: 6 rows for all in the first layer, experts of 20 in the others")
    run.note("chosen on the class order and the rows kept for tuning: these packages and byte pairs instead of the "
             "standard library's own packages by the character, where no arm was right more than 19% of the time; "
             "queries and features told from what all rows have in common, and a small rate for prompts: with 0.01 "
             "for head and prompts CODA-P was right 20 to 25%, with 0.001 for prompts 27%, a head alone after as many "
             "epochs 27%, after ten times as many 36%")
    return table


def judge(table: list[Row]) -> tuple[Verdict, str]:
    row = {(row["arm"], row["components"]): row for row in table}
    coda, dual, linear = row[CODA, SIZE], row[DUAL, None], row[LINEAR, None]
    over_dual, over_linear = coda["accuracy"] - dual["accuracy"], coda["accuracy"] - linear["accuracy"]
    grown = {arm: row[arm, OTHERS[1]]["accuracy"] - row[arm, OTHERS[0]]["accuracy"] for arm in (CODA, L2P)}
    reason = (f"CODA-P is right {coda['accuracy']:.1%} of the time and forgets {coda['forgetting']:.1%}, DualPrompt "
              f"{dual['accuracy']:.1%} and {dual['forgetting']:.1%}, L2P {row[L2P, SIZE]['accuracy']:.1%}, a linear "
              f"head on the frozen backbone {linear['accuracy']:.1%}; from {OTHERS[0]} to {OTHERS[1]} components "
              f"CODA-P gains {100 * grown[CODA]:+.1f} points, L2P with as many slots {100 * grown[L2P]:+.1f}")
    if over_linear <= 0:
        return "refuted", reason
    holds = over_dual >= 0.02 and over_linear >= 0.02 and coda["forgetting"] <= dual["forgetting"] + 0.01
    return ("confirmed" if holds else "inconclusive"), reason


def draw(figure: Figure, table: list[Row]) -> None:
    arms, sizes = figure.subplots(1, 2, width_ratios=(3, 2))
    rows = [row for row in table if row["components"] in (None, SIZE)]
    seed_bars(arms, rows, "accuracy", [f"forgets {row['forgetting']:.0%}" for row in rows])
    arms.set(xlabel="accuracy over all classes at the end (dots: seeds)", title="15 packages, 3 at a time")
    for arm in (L2P, CODA):
        points = sorted((row["components"], row["accuracy"]) for row in table if row["arm"] == arm)
        sizes.plot(*zip(*points), "o-", label=arm)
    sizes.set(xlabel="slots or components", ylabel="accuracy", title="More of them", xscale="log")
    sizes.minorticks_off()
    sizes.set_xticks(counts := sorted((SIZE, *OTHERS)), map(str, counts))
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
