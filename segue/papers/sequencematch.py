"""SequenceMatch: Imitation Learning for Autoregressive Sequence Modelling with Backtracking (Cundy & Ermon 2023, arXiv
2306.05426).

Errors of a model that generates by itself compound. The task: running sums, x_t = (x_{t-1} + a_t) mod 10, of digits
that the prompt gives. One sum in twenty of the training data is wrong, so that however long a model is trained by
maximum likelihood, most digits are right and few whole answers. From one base model that knows most sums, six arms
train on: maximum likelihood (also four times as long), behaviour cloning with backspaces, occupancy matching without
and with backspaces, and unlikelihood of the model's own errors. The verdict compares the share of whole right answers.

Cloning and matching have one optimum, the data distribution, wrong sums and all: they can differ only where the model
cannot represent it or is not trained out. Of matching's terms those with V cancel in the mean, but for noise and
truncated rollouts, so that what it adds to maximum likelihood is above all the squared rewards.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from segue.decoding import generate
from segue.models import Stack, StackConfig
from segue.models.compiled import CompiledModel, compile_model
from segue.objectives import Batch, Mixed, NextElement, Objective, OccupancyMatching, RolloutUnlikelihood, generator_of
from segue.papers.base import Claim, Row, Run, Verdict, dump_weights, load_weights
from segue.training.learn import StopWhenAccurate, learn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUMS, ROWS = 24, 32
WRONG = 0.05  # of the sums to learn from
MARK, EOS, BACK, VOCABULARY = 10, 11, 12, 13
PLAIN, LONGER = "maximum likelihood", "maximum likelihood, as long"
CLONED, MATCHED, BOTH = "cloned backspaces", "matched", "matched, with backspaces"
UNLIKELY = "unlikelihood of own errors"
RATE = 3e-3  # of the arms
# Steps of LONGER, relative to the others: what maximum likelihood does in the time of matching with backspaces where
# torch generates the rollouts. The compiled engine is faster (two to three times the time of maximum likelihood), so
# that LONGER has more than equal time.
LONG = 4


def sample_sums(rows: int, generator: torch.Generator, wrong: float = 0.0) -> Batch:
    """Rows of the digits a_t, a mark, x_0, the sums x_t and EOS; only sums and EOS are targets. wrong: the share of
    sums that are wrong; later sums continue from them."""
    digits = torch.randint(10, (rows, SUMS), generator=generator)
    first = torch.randint(10, (rows, 1), generator=generator)
    slips = torch.randint(1, 10, (rows, SUMS), generator=generator) * \
        (torch.rand(rows, SUMS, generator=generator) < wrong)
    answers = (first + (digits + slips).cumsum(1)) % 10
    whole = torch.cat([digits, torch.full((rows, 1), MARK), first, answers, torch.full((rows, 1), EOS)], 1)
    targets = whole[:, 1:].clone()
    targets[:, : 1 + SUMS] = -1
    return Batch(whole[:, :-1], targets)


def build(width: int, layers: int) -> Stack:
    """Layers of attention, of which those above the second see two positions: what the model was to predict, and what
    was generated. Embeddings begin large, or digits five apart collapse before their sums are learned."""
    stack = Stack(StackConfig(VOCABULARY, width, ["attention", "attention", "attention:near"][:layers],
                              {"attention:near": {"window": 2}} if layers > 2 else {}, tied=False))
    with torch.no_grad():
        stack.embedding.weight *= 50
    return stack


def add_layer(small: Stack) -> Stack:
    """The model with a third layer, whose output begins at zero."""
    stack = build(small.config.width, 3)
    stack.load_state_dict(small.state_dict(), strict=False)
    with torch.no_grad():
        for name, weight in stack.blocks[2].named_parameters():
            if name.endswith("out.weight"):
                weight.zero_()
    return stack


def compile_now(model: Stack) -> CompiledModel:
    """The model with its weights as they are now, for generation by the compiled engine."""
    return compile_model(model, threads=1)


def make_objective(arm: str, c: float, noise: float) -> Objective:
    """The arm's objective. Those of matching alternate at random with one without rollouts, which take most of the
    time."""
    cloned = OccupancyMatching("none", eos=EOS, backspace=BACK, noise=noise)
    matching = OccupancyMatching(c=c, eos=EOS, backspace=BACK, noise=noise, decode=compile_now)
    table: dict[str, Objective] = {
        PLAIN: NextElement(), LONGER: NextElement(), UNLIKELY: RolloutUnlikelihood(eos=EOS, decode=compile_now),
        CLONED: cloned,
        MATCHED: Mixed([(OccupancyMatching(c=c, eos=EOS, decode=compile_now), 1.0), (NextElement(), 1.0)]),
        BOTH: Mixed([(matching, 1.0), (cloned, 1.0)])}
    return table[arm]


def score_answers(model: Stack, rows: Batch, seed: int) -> dict[str, float]:
    """Generate answers at temperature 1, with at most twice as many actions as needed, and score them: the share of
    whole right answers, the right digits before the first error (valid), the share of wrong digits, and backspaces an
    answer (taken back), also those that took back an error (well taken)."""
    prompts, truth = rows.tokens[:, : 2 + SUMS].tolist(), rows.targets[:, 1 + SUMS : -1].tolist()
    answers = generate(compile_now(model), prompts, 2 * (SUMS + 1), "sample", "none", eos=EOS, backspace=BACK,
                       seed=seed, batch=250)
    whole, valid, taken, well, wrong, written = 0, 0, 0, 0, 0, 0
    for answer, prompt, right in zip(answers, prompts, truth):
        whole += answer.tokens == right and answer.finish == "stop"
        valid += next((i for i, (a, b) in enumerate(zip(answer.tokens, right)) if a != b),
                      min(len(answer.tokens), len(right)))
        left: list[int] = []
        for action in answer.actions or []:
            if action == BACK and left:
                taken += 1
                well += not is_right_sum(prompt, left)
                left.pop()
            elif action not in (BACK, EOS):
                left.append(action)
                written += 1
                wrong += not is_right_sum(prompt, left)
    count = len(answers)
    return {"whole": whole / count, "valid": valid / count, "wrong": wrong / max(written, 1),
            "taken back": taken / count, "well taken": well / max(taken, 1),
            "actions": sum(answer.produced for answer in answers) / count}


def is_right_sum(prompt: list[int], answer: list[int]) -> bool:
    """Whether the answer's last digit is the sum of the one before and the given one."""
    before = [prompt[-1], *answer][-2]
    return len(answer) <= SUMS and answer[-1] == (before + prompt[len(answer) - 1]) % 10


def training_batches(seed: int) -> Callable[[int], Batch]:
    """A function of the step: training rows with wrong sums."""
    rows = sample_sums(20_000, torch.Generator().manual_seed(seed), WRONG)
    return lambda step: rows.rows(torch.randint(20_000, (ROWS,), generator=generator_of(seed, step)))


def train_base(seed: int, width: int, right: float, steps: int) -> dict[str, Any]:
    """Train the base model of two layers until the share `right` of digits is right; its weights and steps."""
    torch.manual_seed(seed)
    small = build(width, 2)
    check = sample_sums(60, torch.Generator().manual_seed(-1 - seed))
    first = learn(small, training_batches(seed), steps, rate=3e-3, seed=seed, strategy=StopWhenAccurate(check, right),
                  cooldown=0.0)
    return {"weights": dump_weights(small), "steps": first.step}


def train_arm(base: dict[str, Any], arm: str, seed: int, width: int, steps: int, prompts: int, c: float, noise: float,
              test: int) -> dict[str, float]:
    """Train an arm from the base model on and score its answers."""
    torch.manual_seed(seed)
    small = build(width, 2)
    load_weights(small, base["weights"])
    model, batches = add_layer(small), training_batches(seed)
    learn(model, lambda step: batches(base["steps"] + step), steps * (LONG if arm == LONGER else 1), rate=RATE,
          seed=seed, objective=make_objective(arm, c, noise))
    return score_answers(model, sample_sums(prompts, torch.Generator().manual_seed(test)), seed)


def measure(run: Run) -> list[Row]:
    width, right, steps = run.pick(16, 64), run.pick(0.0, 0.94), run.pick((4, 2), (600, 200))
    prompts, noise = run.pick(4, 1000), 0.2
    weights = run.pick((0.01,), (0.003, 0.03))
    seeds, tuned = [run.seed + i for i in range(run.pick(1, 3))], run.seed + 100
    base = run.cells({f"base {seed}": partial(train_base, seed, width, right, steps[0]) for seed in (tuned, *seeds)})
    pilots = run.cells({f"tuning, c {weight:g}": partial(train_arm, base[f"base {tuned}"], BOTH, tuned, width, steps[1],
                                                         prompts // 4, weight, noise, 99) for weight in weights})
    c = max((cell["whole"], -weight) for cell, weight in zip(pilots.values(), weights))[1] * -1
    slow_first = (LONGER, UNLIKELY, BOTH, MATCHED, CLONED, PLAIN)
    cells = run.cells({f"{arm} {seed}, c {c:g}": partial(train_arm, base[f"base {seed}"], arm, seed, width, steps[1],
                                                         prompts, c, noise, 98)
                       for arm in slow_first for seed in seeds})
    run.note(f"{SUMS} running sums of digits, 20,000 rows with {WRONG:.0%} of the sums wrong, each row going on from "
             f"what it says; two layers of attention of width {width}, stopped when {right:.0%} of the digits behind "
             "right ones are right; then a third layer that adds nothing yet and sees what the two meant to say and "
             f"what was said; from there {steps[1]} steps of each arm (AdamW at {RATE:g}), {LONG} times as many of "
             f"'{LONGER}'")
    run.note("matching at every other step, by a coin, and what it is built on (maximum likelihood, cloning) at the "
             "rest: its rollouts take most of the time")
    run.note("tried before, on other prompts: two or three plain layers, which do not learn within the steps to tell "
             "wrong digits from right ones (of those taken back a tenth and less was wrong); no wrong sums to learn "
             "from, where maximum likelihood soon has every answer right; 30% of noise and a rate of 0.002, where 44% "
             "of what cloned backspaces took back was wrong")
    run.note(f"{prompts} prompts, sampled at temperature 1, at most {2 * (SUMS + 1)} actions; 'wrong': of the digits "
             "said, those that are not the sum of the one before; 'well taken': of the digits taken back, those that "
             "were wrong")
    run.note(f"c = {c:g} is the best of {', '.join(f'{weight:g}' for weight in weights)} with a base model and prompts "
             "of their own: " + ", ".join(f"{cell['whole']:.1%}" for cell in pilots.values()))
    table: list[Row] = []
    for arm in (PLAIN, LONGER, CLONED, MATCHED, BOTH, UNLIKELY):
        runs = [cells[f"{arm} {seed}, c {c:g}"] for seed in seeds]
        whole = [result["whole"] for result in runs]
        means = {name: round(float(np.mean([result[name] for result in runs])), 4)
                 for name in ("valid", "wrong", "taken back", "well taken", "actions")}
        table.append({"arm": arm, "all right": round(float(np.mean(whole)), 4), "least": min(whole), "most": max(whole),
                      **means})
    return table


RULE = (
    "Share of 1,000 answers that are right in every digit, three seeds. Void (inconclusive) unless backspaces were "
    "learned at all: at least half of what cloned backspaces take back was wrong. Confirmed if matching with "
    "backspaces is at least 5 points above maximum likelihood of as many steps in the mean, its worst seed above the "
    "other's best, at least 1 point above cloned backspaces, and what it takes back was wrong more than three times as "
    "often as what maximum likelihood says. Refuted if cloned backspaces come within that 1 point of it or above, so "
    "that matching is not needed, or if maximum likelihood is as good in the same time (four times the steps); else "
    "inconclusive. c is chosen with another base model on other prompts.")


def judge(table: list[Row]) -> tuple[Verdict, str]:
    rows = {row["arm"]: row for row in table}
    plain, longer, cloned, matching = (rows[arm] for arm in (PLAIN, LONGER, CLONED, BOTH))
    reason = (f"all right: {matching['all right']:.1%} with matching and backspaces ({matching['least']:.1%} to "
              f"{matching['most']:.1%}), {plain['all right']:.1%} with maximum likelihood ({plain['least']:.1%} to "
              f"{plain['most']:.1%}) and {longer['all right']:.1%} with {LONG} times the steps, "
              f"{cloned['all right']:.1%} with cloned backspaces, {rows[MATCHED]['all right']:.1%} with matching "
              f"alone; taken back rightly {matching['well taken']:.0%}, wrong without {plain['wrong']:.1%}")
    if cloned["well taken"] < 0.5:
        return "inconclusive", f"backspaces were not learned ({cloned['well taken']:.0%} of them right); {reason}"
    if cloned["all right"] > matching["all right"] - 0.01 or longer["all right"] >= matching["all right"]:
        return "refuted", reason
    if matching["all right"] >= plain["all right"] + 0.05 and matching["least"] > plain["most"] \
            and matching["well taken"] > 3 * plain["wrong"]:
        return "confirmed", reason
    return "inconclusive", reason


def draw(figure: Figure, table: list[Row]) -> None:
    right, taken = figure.subplots(1, 2, sharey=True)
    names, places = [row["arm"] for row in table], range(len(table))
    colours = ["#52606d", "#9aa5b1", "#e0a13c", "#7fb3d5", "#2f6fb3", "#c0504d"]
    means = [100 * row["all right"] for row in table]
    away = [[100 * (row["all right"] - row["least"]) for row in table],
            [100 * (row["most"] - row["all right"]) for row in table]]
    right.barh(places, means, xerr=away, color=colours, capsize=3)
    right.set_yticks(list(places), names)
    right.invert_yaxis()
    right.set(xlabel="% of answers all right (bars: seeds)", title=f"{SUMS} running sums")
    taken.barh(places, [row["taken back"] for row in table], color="#d9dee4")
    taken.barh(places, [row["taken back"] * row["well taken"] for row in table], color=colours)
    taken.set(xlabel="per answer (coloured: of wrong digits)", title="Backspaces")


CLAIM = Claim(
    "sequencematch",
    "A model that matches its own states to those of the data, and may take tokens back, writes better than one of "
    "maximum likelihood.",
    RULE, measure, judge, draw,
    {"OpenWebText, MAUVE (from memory, not verified)": "0.85 to 0.91",
     "perplexity (from memory, not verified)": "6.99 to 7.13",
     "arithmetic (from memory, not verified)": "some points above maximum likelihood; loss and backspace help"})
