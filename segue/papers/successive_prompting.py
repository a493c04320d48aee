"""Successive Prompting for Decomposing Complex Questions (2022, arXiv 2212.04092; EMNLP 2022).

Complex questions about passages are answered directly, by a chain of thought, or successively: the model asks itself
one simple question at a time and answers it, by itself or with symbolic tools. One small decoder is trained on all of
these, with few complex problems and any number of simple ones, in the made-up language Ledger. The verdict needs
successive prompting ahead of the chain of thought, and more so with tools, by paired bootstrap intervals."""

from __future__ import annotations

from functools import partial
from random import Random
from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from segue.models.compiled import compile_model
from segue.papers.base import Claim, Row, Run, Verdict, seed_bars
from segue.programs import Local, SuccessivePrompting, SymbolicTools, Trace
from segue.tasks import Answers, small_decoder
from segue.tasks.ledger import CHAIN, CODEC, DECOMPOSE, DIRECT, DONE, SOLVE, STEP, Problem, problem, skills
from segue.training.learn import learn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POOL, ROWS, RATE = 300, 32, 3e-3
DIRECTLY, IN_CHAIN, STEPS, TOOLS = "direct", "chain of thought", "successive", "successive, with tools"
SIZES = {"3 to 5 events": (3, 5), "6 to 8 events": (6, 8)}


def train_solver(seed: int, steps: int) -> Local:
    """Train one decoder in all modes: complex questions from a pool of POOL problems, fresh simple ones at every
    step."""
    pool = [problem(Random(f"pool {seed} {index}")) for index in range(POOL)]
    begin, rest = steps // 5, {"echo": 0.1, "solve": 0.45, "direct": 0.15, "chain": 0.15, "decompose": 0.15}
    first = {"echo": 0.4, "solve": 0.3, "direct": 0.1, "chain": 0.1, "decompose": 0.1}
    task = Answers(CODEC, skills(lambda random: random.choice(pool)), {0: first, begin: rest})
    torch.manual_seed(seed)
    model = small_decoder(CODEC.size, taps=4)  # an event is four words and its sign
    learn(model, task.batches(ROWS, seed), steps, rate=RATE, seed=seed)
    return Local(compile_model(model.eval().requires_grad_(False), threads=1), CODEC, batch=128)


def answer_problems(model: Local, problems: list[Problem]) -> dict[str, list[str]]:
    """The answers of each way of prompting; and, as "lists", the solver's answers to the first simple question."""
    def answer(template: str, most: int) -> list[str]:
        prompts = [template.format(passage=problem.passage, question=problem.question) for problem in problems]
        return [reply.text for reply in model.write(prompts, most=most)]

    def answer_stepwise(tools: SymbolicTools | None) -> list[str]:
        program = SuccessivePrompting(model, tools=tools, decompose=DECOMPOSE, solve=SOLVE, step=STEP, done=DONE,
                                      limit=6, most=24)
        return [trace.answer
                for trace in program.run([Trace(problem.passage, problem.question) for problem in problems])]

    first = [SOLVE.format(passage=problem.passage, question=problem.chain[0][0]) for problem in problems]
    return {DIRECTLY: answer(DIRECT, 3), IN_CHAIN: [text.rpartition("|")[2].strip() for text in answer(CHAIN, 64)],
            STEPS: answer_stepwise(None), TOOLS: answer_stepwise(SymbolicTools()),
            "lists": [reply.text for reply in model.write(first, most=16)]}


def score_seed(seed: int, steps: int, counts: dict[str, int]) -> dict[str, Any]:
    """Train a model; by size of passage and way of prompting, whether each problem was answered rightly (1) or not
    (0)."""
    model, result = train_solver(seed, steps), dict[str, Any]()
    for size, count in counts.items():
        problems = [problem(Random(f"asked {seed} {size} {index}"), *SIZES[size]) for index in range(count)]
        answers = answer_problems(model, problems)
        lists = answers.pop("lists")
        result[size] = {arm: [int(answer == problem.answer) for answer, problem in zip(texts, problems)]
                        for arm, texts in answers.items()}
        result[size]["lists"] = [int(answer == problem.chain[0][1]) for answer, problem in zip(lists, problems)]
    return result


def bootstrap_lower(gains: np.ndarray) -> float:
    """The lower end of the 95% interval of a mean, by the bootstrap over paired differences (N,)."""
    draws = np.random.default_rng(0).integers(0, len(gains), (2000, len(gains)))
    return float(np.quantile(gains[draws].mean(1), 0.025))


def measure(run: Run) -> list[Row]:
    steps, counts = run.pick(4, 1200), dict(zip(SIZES, run.pick((6, 4), (200, 100))))
    seeds = range(run.seed, run.seed + run.pick(1, 2))
    cells = run.cells({f"seed {seed}": partial(score_seed, seed, steps, counts) for seed in seeds})
    table: list[Row] = []
    for size in SIZES:
        for arm in (DIRECTLY, IN_CHAIN, STEPS, TOOLS):
            right, chain = (np.array([cells[f"seed {seed}"][size][name] for seed in seeds]) for name in (arm, IN_CHAIN))
            gains = (right - chain).ravel()
            table.append({"passages": size, "asked": arm, "right": float(right.mean()),
                          "above the chain": float(gains.mean()), "at least": bootstrap_lower(gains),
                          "by seed": right.mean(1).tolist()})
        lists = mean(mean(cells[f"seed {seed}"][size]["lists"]) for seed in seeds)
        run.note(f"{size}: the list of a first step is right {lists:.1%} of the time, which bounds the steps behind it")
    run.note(f"one decoder of 0.35 million parameters a seed, {steps} steps of {ROWS} rows; direct answers, chains and "
             f"decompositions learn from {POOL} problems, the solver of simple questions from fresh ones, two fifths "
             "(then a tenth) of the rows are echoes; questions about other passages are asked, greedily")
    return table


def judge(table: list[Row]) -> tuple[Verdict, str]:
    row = {row["asked"]: row for row in table if row["passages"] == "3 to 5 events"}
    bare, tools = row[STEPS], row[TOOLS]
    reason = (f"right: {row[DIRECTLY]['right']:.1%} directly, {row[IN_CHAIN]['right']:.1%} by a chain of thought, "
              f"{bare['right']:.1%} successively ({bare['above the chain']:+.1%}, at least {bare['at least']:+.1%}), "
              f"{tools['right']:.1%} with tools ({tools['above the chain']:+.1%}, at least {tools['at least']:+.1%})")
    holds = bare["above the chain"] >= 0.05 and tools["above the chain"] >= 0.08
    return ("confirmed" if holds and min(bare["at least"], tools["at least"]) > 0 else "refuted"), reason


def draw(figure: Figure, table: list[Row]) -> None:
    for axes, size in zip(figure.subplots(1, 2, sharey=True), SIZES):
        rows = [row for row in table if row["passages"] == size]
        seed_bars(axes, rows, "right", [f"{row['right']:.0%}" for row in rows], "asked")
        axes.set(xlim=(0, 1), title=f"passages of {size}", xlabel="answers that are right (dots: seeds)")


CLAIM = Claim(
    slug="successive-prompting",
    statement="With the same few annotated chains and cheap simple questions, asking for one simple question after the "
              "other answers complex questions better than a chain of thought, and symbolic tools add to it.",
    rule="in the language Ledger, passages of 3 to 5 events, mean of 2 seeds on 200 new problems each: confirmed if "
         "successive prompting is right on at least 5 points more of the problems than a chain of thought, and with "
         "tools on at least 8 points more, the 95% intervals of both (paired bootstrap) above 0; else refuted. "
         "Direct answers and longer passages are told beside.",
    measure=measure, judge=judge, draw=draw,
    paper={"F1 on few-shot DROP": "about 5 points above the best model with the same supervision"},
)
