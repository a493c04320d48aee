"""Order-Independence Without Fine Tuning (McIlroy-Young et al. 2024, arXiv 2406.06581): Set-Based Prompting.

A small model learns which values belong to which keys, and answers multiple-choice questions: which of four options
belongs to the key. One key in five is unreadable, and in training the answer stood first more often than not, so that
the model goes by the order where it does not know. It is trained on ordered questions alone, as pretrained models are;
at test time every question is asked in all 24 orders, as an ordered prompt, as a set (mask and positions), with the
mask or the positions alone, and as a set after some tuning on sets. The verdict needs sets to give one answer to all
orders, ordered prompts and each half of the method not to, and little loss of accuracy."""

from __future__ import annotations

import itertools
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from segue.analysis.metrics import order_sensitivity
from segue.decoding import SetPrompt
from segue.decoding.prompt import set_placements
from segue.models import Stack, StackConfig
from segue.models.base import pad_rows
from segue.objectives import Batch
from segue.papers.base import Claim, Row, Run, Verdict
from segue.training.learn import learn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KEYS = VALUES = 64
CLASSES, WORDS = 16, 8
"""A value belongs to a key if both are of one class: their numbers are the same modulo CLASSES."""
WORD = KEYS + VALUES
ASK, UNKNOWN, END, ANSWER = range(WORD + WORDS, WORD + WORDS + 4)
VOCABULARY = WORD + WORDS + 4
OPTIONS, FIRST, UNREADABLE = 4, 0.55, 0.2
ROUNDING = 1e-3
"""A changed answer whose two best scores are nearer than this counts as a tie, not as an effect of the order."""
POSITIONS: dict[str, dict[str, Any]] = {
    "rotary": {},
    "learned": {"options": {"attention": {"positions": "none"}}, "learned_positions": 32},
}
ORDERED, SETS, MASK, PLACES, TUNED = "ordered", "sets", "mask alone", "positions alone", "sets, tuned"
ARMS = (ORDERED, SETS, MASK, PLACES, TUNED)
Question = tuple[list[int], list[list[int]], int]  # key part, options, index of the right option


def sample_questions(rows: int, random: np.random.Generator, first: float = 1 / OPTIONS) -> list[Question]:
    """Random questions. first: how often the right option is the first one. An option is a value and one or two
    words."""
    questions: list[Question] = []
    for _ in range(rows):
        classes = random.permutation(CLASSES)[:OPTIONS]
        values = KEYS + classes + CLASSES * random.integers(VALUES // CLASSES, size=OPTIONS)
        words = WORD + random.integers(WORDS, size=(OPTIONS, 2))
        right = 0 if random.random() < first else int(random.integers(1, OPTIONS))
        options = [[value, *some[: random.integers(1, 3)]] for value, some in zip(values.tolist(), words.tolist())]
        key = int(classes[right] + CLASSES * random.integers(KEYS // CLASSES))
        questions.append(([ASK, UNKNOWN if random.random() < UNREADABLE else key], options, right))
    return questions


def make_prompt(question: Question, order: tuple[int, ...]) -> SetPrompt:
    """The question with its options in this order."""
    key, options, _ = question
    return SetPrompt([key, [options[place] for place in order], [ANSWER]], canonical=False)


def make_batch(prompts: list[SetPrompt], arm: str, truth: list[int] | None = None) -> Batch:
    """Padded prompts, masked and placed as the arm has it, with their answers as targets of the last elements."""
    tokens, places = pad_rows(prompts, END), set_placements(prompts)
    targets = torch.full_like(tokens, -1)
    for row, prompt in enumerate(prompts):
        targets[row, len(prompt) - 1] = 0 if truth is None else truth[row]
    if arm in (ORDERED, MASK):
        places[..., 0] = torch.arange(tokens.shape[1])
    if arm in (ORDERED, PLACES):
        places[..., 1:] = 0
    return Batch(tokens, targets, sets=None if arm == ORDERED else places)


def sample_batch(rows: int, seed: int, arm: str, step: int) -> Batch:
    """A training batch."""
    questions = sample_questions(rows, np.random.default_rng((seed, step)), FIRST)
    return make_batch([make_prompt(question, tuple(range(OPTIONS))) for question in questions], arm,
                      [options[right][0] for _, options, right in questions])


@torch.no_grad()
def answer_orders(model: Stack, questions: list[Question], orders: list[tuple[int, ...]], arm: str,
                  ) -> tuple[np.ndarray, np.ndarray, float]:
    """The answer to each question in each order and its lead over the next best, both (N, orders), and the largest
    difference of any score between orders."""
    model.eval()
    answered, ahead, apart = [], [], 0.0
    for start in range(0, len(questions), 64):
        chunk = questions[start : start + 64]
        prompts = [make_prompt(question, order) for question in chunk for order in orders]
        data = make_batch(prompts, arm)
        last = torch.tensor([len(prompt) - 1 for prompt in prompts])
        hidden = model.hidden(data.tokens, data.layout)[torch.arange(len(prompts)), last]
        scores: Tensor = model.head(hidden).unflatten(0, (len(chunk), len(orders)))
        best = scores.topk(2, -1)
        answered.append(best.indices[..., 0].numpy())
        ahead.append((best.values[..., 0] - best.values[..., 1]).numpy())
        apart = max(apart, float((scores.amax(1) - scores.amin(1)).max()))
    return np.concatenate(answered), np.concatenate(ahead), apart


def score_arms(positions: str, seed: int, steps: int, tuning: int, rows: int, tests: int, width: int) -> list[Row]:
    """Train one model with these positions; the rows of all arms."""
    torch.manual_seed(seed)
    model = Stack(StackConfig(VOCABULARY, width, ["attention"] * 4, **POSITIONS[positions]))
    questions = sample_questions(tests, np.random.default_rng((seed, 1 << 40)))
    truth = np.array([options[right][0] for _, options, right in questions])
    orders = list(itertools.permutations(range(OPTIONS)))
    learn(model, partial(sample_batch, rows, seed, ORDERED), steps, rate=1e-3, seed=seed, cooldown=0.5)
    table = []
    for arm in ARMS:
        if arm == TUNED:
            learn(model, partial(sample_batch, rows, seed + 1, SETS), tuning, rate=3e-4, seed=seed, cooldown=0.5)
        answered, ahead, apart = answer_orders(model, questions, orders, SETS if arm == TUNED else arm)
        sensitivity = order_sensitivity(answered, truth)
        moved = answered != answered[:, :1]
        ties = moved & (np.minimum(ahead, ahead[:, :1]) < ROUNDING)
        table.append({"positions": positions, "arm": arm, "mean": sensitivity.mean, "best": sensitivity.best,
                      "worst": sensitivity.worst, "changed": float((moved & ~ties).any(1).mean()),
                      "ties": int(ties.any(1).sum()), "apart": apart})
    return table


def measure(run: Run) -> list[Row]:
    run.note(f"questions drawn at random, one in five with its key blotted out; the right option was the first in "
             f"{FIRST:.0%} of the training rows; best and worst: right in some order, right in every order; the "
             "paper's data (CSQA, MMLU) need a pretrained model")
    steps, tuning, rows, tests, width = run.pick((3, 2, 8, 4, 16), (1000, 200, 64, 1000, 128))
    tables = run.cells({positions: partial(score_arms, positions, run.seed, steps, tuning, rows, tests, width)
                        for positions in POSITIONS})
    return [row for table in tables.values() for row in table]


def judge(table: list[Row]) -> tuple[Verdict, str]:
    verdicts, reasons = [], []
    for positions in POSITIONS:
        arms = {row["arm"]: row for row in table if row["positions"] == positions}
        plain, sets, tuned = arms[ORDERED], arms[SETS], arms[TUNED]
        reasons.append(
            f"{positions}: answers change with the order in {plain['changed']:.1%} ordered, {sets['changed']:.1%} as "
            f"sets (scores by {sets['apart']:.0e}), {arms[MASK]['changed']:.1%} by the mask alone, "
            f"{arms[PLACES]['changed']:.1%} by positions alone; accuracy {sets['mean']:.1%} as sets, "
            f"{plain['worst']:.1%} to {plain['best']:.1%} ordered, mean {plain['mean']:.1%}; {tuned['mean']:.1%} after "
            "tuning with sets")
        if sets["changed"] > 0 or sets["mean"] < plain["worst"]:
            verdicts.append("refuted")
        elif plain["changed"] >= 0.05 and abs(sets["mean"] - plain["mean"]) <= 0.1 and arms[MASK]["changed"] > 0 \
                and arms[PLACES]["changed"] > 0:
            verdicts.append("confirmed")
        else:
            verdicts.append("inconclusive")
    worst: Verdict = "refuted" if "refuted" in verdicts else \
        "confirmed" if set(verdicts) == {"confirmed"} else "inconclusive"
    return worst, "; ".join(reasons)


def draw(figure: Figure, table: list[Row]) -> None:
    left, right = figure.subplots(1, 2)
    places = np.arange(len(ARMS))
    for index, positions in enumerate(POSITIONS):
        rows = [next(row for row in table if (row["positions"], row["arm"]) == (positions, arm)) for arm in ARMS]
        at, mean = places + 0.2 * (2 * index - 1), np.array([row["mean"] for row in rows])
        reach = np.array([[row["mean"] - row["worst"], row["best"] - row["mean"]] for row in rows]).T
        left.errorbar(at, mean, reach, fmt="o", capsize=4, label=f"{positions} positions")
        bars = right.bar(at, [100 * row["changed"] for row in rows], 0.38, label=f"{positions} positions")
        right.bar_label(bars, [f"{100 * row['changed']:.0f}" if row["changed"] else "0" for row in rows])
    left.set(title="Right answers: mean over 24 orders,\nright in every order, right in some", ylim=(0, 1.05))
    right.set(title="Answers that change with the order, %")
    left.legend(frameon=False, fontsize="small")
    for axes in (left, right):
        axes.set_xticks(places, [arm.replace(" ", "\n", 1) for arm in ARMS], fontsize="small")


CLAIM = Claim(
    slug="set-based-prompting",
    statement="A trained model's answer becomes independent of the order of marked parts of its prompt, without "
              "fine-tuning and at little cost in accuracy, when these share their positions and do not see each other.",
    rule="confirmed if, of 1,000 questions in all 24 orders of their options, no answer of the set-based prompt "
         "changes (but for ties within rounding) while at least 5% of the ordered prompt's do, its accuracy is no "
         "lower than that of the ordered prompt in its worst orders (right in every order) and within 10 points of "
         "the mean over orders, and the mask alone and the positions alone still change answers, all this with rotary "
         "and with learned positions; refuted if an answer changes beyond rounding or the accuracy is below the worst "
         "orders'; else inconclusive. Besides: the same after 200 steps of tuning with sets.",
    measure=measure, judge=judge, draw=draw,
    paper={"answers that change": "none, by proof; on CSQA and MMLU with GPT-2, Llama-2, Llama-3, Mistral",
           "accuracy": "within or near the range of the best and the worst of two orders, for most models"},
)
