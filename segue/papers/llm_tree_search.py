"""LLM Tree Search (Wilson 2024, arXiv 2410.19117).

The paper proposes to search a tree of completions by the model's own confidence, and reports no numbers. Here a small
model adds numbers, highest digit first, so that a missed carry misleads greedy decoding; and all decoders search a
Markov chain whose most likely answers are known.

Compared at an equal number of tokens read: greedy, best of n samples, beam, diverse beam, and tree search with mean,
max and best-first backup. The claim holds if the tree is clearly more accurate than greedy, no worse than the beam,
and its lists are more varied at no lower mean log-probability.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from segue.analysis.texts import distinct, log_likelihoods, repetition
from segue.decoding import Continuation, generate
from segue.decoding.sampling import Prefix, log_softmax
from segue.decoding.search.tree import REPETITION_NGRAM
from segue.models.stack import Stack, StackConfig
from segue.objectives import Batch
from segue.papers.base import Claim, Row, Run, Verdict
from segue.training.learn import StopWhenAccurate, learn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EQUALS, END, PLUS, ZERO = 0, 1, 2, 3  # ids; digits begin at ZERO
VOCABULARY, WORDS = ZERO + 10, 12
BUDGET, LIST = 64, 5
RIGHT = 0.94  # digits, of five an answer has: about three answers in four
TOGETHER = 64  # searches that run at once: each keeps the states of its tree
TREES: dict[str, dict[str, Any]] = {"tree, mean": {"backup": "mean"}, "tree, max": {"backup": "max"},
                                    "tree, best first": {"selection": "best-first"}}
ARMS = ("greedy", "best of n", "beam", "diverse beam", *TREES)


# --- the tasks -----------------------------------------------------------------------------------------------------


def sums(rows: int, digits: int, random: np.random.Generator) -> list[tuple[list[int], list[int]]]:
    """Pairs of a sum to do and its answer, the highest digit first."""
    pairs = []
    for a, b in random.integers(0, 10**digits, (rows, 2)).tolist():
        terms = [[ZERO + int(digit) for digit in f"{number:0{size}d}"]
                 for number, size in ((a, digits), (b, digits), (a + b, digits + 1))]
        pairs.append(([*terms[0], PLUS, *terms[1], EQUALS], terms[2]))
    return pairs


def batches(rows: int, digits: int, seed: int, step: int) -> Batch:
    """Sums with their answers; only those are asked for."""
    pairs = sums(rows, digits, np.random.default_rng((seed, step)))
    whole = torch.tensor([[*question, *answer, END] for question, answer in pairs])
    targets = whole[:, 1:].clone()
    targets[:, : 2 * digits + 1] = -1
    return Batch(whole[:, :-1], targets)


class Chain:
    """The exact distribution of a chain of words, as a processor: the next word depends on the last two, and some pairs
    say much about it where others say nothing."""

    def __init__(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        sharpness = random.choice([0.3, 3.0], (WORDS, WORDS, 1))
        self.logprobs = log_softmax(random.normal(size=(WORDS, WORDS, WORDS)) * sharpness)

    def __call__(self, scores: np.ndarray, prefix: Prefix) -> np.ndarray:
        return self.logprobs[prefix.tokens[-2], prefix.tokens[-1]]

    def likelihoods(self, prompt: list[int], answers: list[list[int]]) -> list[float]:
        whole = [[*prompt, *answer] for answer in answers]
        return [float(self.logprobs[words[:-2], words[1:-1], words[2:]].sum()) for words in whole]

    def mode(self, prompt: list[int], n: int) -> float:
        """The log-probability of the likeliest answer of n words, by dynamic programming."""
        best = np.zeros((WORDS, WORDS))  # of what follows two words
        for _ in range(n):
            best = (self.logprobs + best).max(2)
        return float(best[prompt[0], prompt[1]])


# --- decoders at equal cost ----------------------------------------------------------------------------------------


def answers(model: Any, prompts: list[list[int]], n: int, arm: str, budget: int, seed: int,
            likelihoods: Callable[[list[int], list[list[int]]], list[float]], **more: Any) -> list[list[Continuation]]:
    """At most LIST answers to each prompt, the highest mean log-probability first. n: tokens at most, of which all but
    the last are read."""
    rows = max(budget // (n - 1), 1)
    if arm in ("greedy", "best of n"):
        rows = rows if arm == "best of n" else 1
        samples = generate(model, [prompt for prompt in prompts for _ in range(rows)], n,
                           "sample" if arm == "best of n" else "greedy", seed=seed, batch=TOGETHER, **more)
        groups = []
        for number, prompt in enumerate(prompts):
            group = {tuple(answer.tokens): answer for answer in samples[number * rows : (number + 1) * rows]}
            for answer, total in zip(group.values(), likelihoods(prompt, [said(answer) for answer in group.values()])):
                answer.score = total / answer.produced
            groups.append(sorted(group.values(), key=lambda answer: -(answer.score or 0.0))[:LIST])
        return groups
    if arm in TREES:
        options = {"decoder": "tree", "budget": budget, "num_return_sequences": LIST, **TREES[arm]}
    else:
        options = {"decoder": arm.replace(" ", "-"), "num_beams": rows, "num_return_sequences": min(rows, LIST)}
    best = generate(model, prompts, n, batch=TOGETHER, **options, **more)
    return [[answer, *answer.others] for answer in best]


def said(answer: Continuation) -> list[int]:
    return answer.tokens + [END] * (answer.finish == "stop")


def evaluate_sums(model: Any, tests: list[tuple[list[int], list[int]]], arm: str, budget: int, seed: int
                  ) -> dict[str, float]:
    digits = len(tests[0][1])
    lists = answers(model, [question for question, _ in tests], digits + 1, arm, budget, seed,
                    partial(log_likelihoods, model), eos=END)
    right = [float(group[0].tokens == truth) for group, (_, truth) in zip(lists, tests)]
    scored = [(answer.score or 0.0, answer.tokens == truth) for group, (_, truth) in zip(lists, tests)
              for answer in group]
    return {"accuracy": mean(right), "mean log-prob": mean(group[0].score or 0.0 for group in lists),
            "list, mean log-prob": mean(answer.score or 0.0 for group in lists for answer in group),
            "list, distinct-2": mean(distinct([answer.tokens for answer in group], 2) for group in lists),
            "repeated": mean(repetition(group[0].tokens, REPETITION_NGRAM) for group in lists),
            "confidence and truth": rank_correlation(*zip(*scored)),
            "tokens read": mean(group[0].nodes or (digits if arm == "greedy" else budget) for group in lists)}


def rank_correlation(scores: Any, truth: Any) -> float:
    """Spearman's, of confidence with correctness; 0 where all are right or all are wrong."""
    if len(set(truth)) < 2 or len(set(scores)) < 2:
        return 0.0
    ranks = [np.searchsorted(np.sort(x), x, "left") + np.searchsorted(np.sort(x), x, "right")
             for x in (np.array(scores), np.array(truth, float))]
    return float(np.corrcoef(np.stack(ranks))[0, 1])


def share_of_modes(arm: str, budget: int, seed: int, count: int, n: int) -> float:
    """The share of prompts whose likeliest answer is found in the chain."""
    torch.manual_seed(seed)
    blank = Stack(StackConfig(WORDS, 8, ["gru"])).eval()  # whatever it says, the chain overrules it
    chain = Chain(seed)
    prompts = [list(divmod(number, WORDS)) for number in range(count)]
    lists = answers(blank, prompts, n, arm, budget, seed, chain.likelihoods, processors=(chain,))
    return mean(float(chain.likelihoods(prompt, [group[0].tokens])[0] > chain.mode(prompt, n) - 1e-6)
                for prompt, group in zip(prompts, lists))


# --- the measurement -----------------------------------------------------------------------------------------------


def run_seed(seed: int, scale: dict[str, int], budgets: tuple[int, ...]) -> list[dict[str, float]]:
    """One model, stopped while it still errs, under every arm at every budget."""
    digits = scale["digits"]
    torch.manual_seed(seed)
    stack = Stack(StackConfig(VOCABULARY, scale["width"], ["attention"] * scale["layers"]))
    learn(stack, partial(batches, scale["rows"], digits, seed), scale["steps"], rate=1e-3, seed=seed, cooldown=0.0,
          strategy=StopWhenAccurate(batches(200, digits, 10**6 + seed, 0), RIGHT))
    model, random = stack.eval(), np.random.default_rng(10**6 + seed)  # no training step draws from it
    choosing, tests = sums(scale["choosing"], digits, random), sums(scale["held"], digits, random)
    return [{"choosing": evaluate_sums(model, choosing, arm, budget, seed)["accuracy"],
             **evaluate_sums(model, tests, arm, budget, seed),
             "modes found": share_of_modes(arm, budget, seed, scale["modes"], scale["words"])}
            for budget in budgets for arm in ARMS]


def measure(run: Run) -> list[Row]:
    scale = run.pick(
        {"digits": 1, "width": 16, "layers": 1, "rows": 8, "steps": 5, "choosing": 2, "held": 3, "modes": 2,
         "words": 3},
        {"digits": 3, "width": 128, "layers": 4, "rows": 64, "steps": 1500, "choosing": 50, "held": 200, "modes": 60,
         "words": 6})
    seeds = range(run.seed, run.seed + run.pick(1, 3))
    budgets = (BUDGET, *run.pick((), (8, 16, 32, 128)))
    run.note("confidence is the mean log-probability of an answer's tokens; three seeds at 64 tokens, the first of "
             "them at the other budgets; the prompt is not counted")
    run.note(f"each model is stopped when it is right about {RIGHT:.0%} of the digits of 200 other sums behind right "
             "ones. Before, steps were the same for all: after 1,000 greedy was right 97.8% of the time (inconclusive: "
             "no room), after 750 38.7%, of the first seed 3.5% (refuted: a tenth of a point behind the beam)")
    done = run.cells({f"seed {seed}, {budgets if seed == run.seed else (BUDGET,)}":
                      partial(run_seed, seed, scale, budgets if seed == run.seed else (BUDGET,)) for seed in seeds})
    table = []
    for place, (budget, arm) in enumerate((budget, arm) for budget in budgets for arm in ARMS):
        cells = [arms[place] for arms in done.values() if place < len(arms)]
        table.append({"arm": arm, "budget": budget,
                      **{key: round(mean(cell[key] for cell in cells), 4) for key in cells[0]}})
    return sorted(table, key=lambda row: row["budget"])


RULE = (
    "Sums of two numbers of three digits, 200 of them, 64 tokens read for each, three seeds. The tree is the arm "
    "(mean, max or best first) with the best accuracy on 50 other sums. Refuted if the beam or the most confident of n "
    "samples is more accurate than the tree, or if its answers are likelier than the greedy ones and less accurate. "
    "Confirmed if the tree is at least 3 points more accurate than greedy and no less than the beam, and its lists of "
    "five have a higher distinct-2 than the beam's and no lower mean log-probability. Inconclusive otherwise, and if "
    "greedy accuracy is above 97% or below 5%, which leaves no room.")


def judge(table: list[Row]) -> tuple[Verdict, str]:
    rows = {row["arm"]: row for row in table if row["budget"] == BUDGET}
    greedy, beam, samples = rows["greedy"], rows["beam"], rows["best of n"]
    tree = max((rows[name] for name in TREES), key=lambda row: row["choosing"])
    reason = (f"accuracy at {BUDGET} tokens: greedy {greedy['accuracy']:.1%}, best of n {samples['accuracy']:.1%}, "
              f"beam {beam['accuracy']:.1%}, {tree['arm']} {tree['accuracy']:.1%}; lists: distinct-2 "
              f"{tree['list, distinct-2']:.3f} against {beam['list, distinct-2']:.3f} of the beam, mean log-prob "
              f"{tree['list, mean log-prob']:.3f} against {beam['list, mean log-prob']:.3f}; modes of the chain found: "
              f"greedy {greedy['modes found']:.0%}, beam {beam['modes found']:.0%}, tree {tree['modes found']:.0%}")
    if not 0.05 <= greedy["accuracy"] <= 0.97:
        return "inconclusive", reason
    misled = tree["mean log-prob"] > greedy["mean log-prob"] and tree["accuracy"] < greedy["accuracy"]
    if max(beam["accuracy"], samples["accuracy"]) > tree["accuracy"] or misled:
        return "refuted", reason
    if tree["accuracy"] >= greedy["accuracy"] + 0.03 and tree["list, distinct-2"] > beam["list, distinct-2"] \
            and tree["list, mean log-prob"] >= beam["list, mean log-prob"]:
        return "confirmed", reason
    return "inconclusive", reason


def draw(figure: Figure, table: list[Row]) -> None:
    left, right = figure.subplots(1, 2)
    for axes, key, title in ((left, "accuracy", "Sums done right"), (right, "modes found", "Modes of a chain found")):
        for arm in ARMS:
            rows = [row for row in table if row["arm"] == arm]
            axes.plot([row["budget"] for row in rows], [row[key] for row in rows], marker="o", label=arm,
                      linestyle="-" if arm in TREES else "--")
        axes.set_xscale("log", base=2)
        axes.set(xlabel="tokens read for an answer", title=title, ylim=(0, 1.03))
    left.legend(frameon=False, fontsize="small")


CLAIM = Claim(
    "llm-tree-search",
    "Searching a tree of completions by the model's own confidence gives better and more varied answers than "
    "committing token by token.",
    RULE, measure, judge, draw, {"figures": "none: the paper sets out the idea"})
