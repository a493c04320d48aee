"""The Expressive Power of Transformers with Chain of Thought (Merrill & Sabharwal 2023, arXiv 2310.07923).

The paper proves; here its construction is run, and the learnable counterpart is tried: an automaton compiled to weights
is exact with one state written per symbol, and a transformer trained on words of a non-solvable group (A5) learns them
with a scratchpad of linear length only.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from segue.models import Stack, StackConfig
from segue.models.automata import DFA, random_dfa
from segue.models.construction import compile_dfa
from segue.papers.base import Claim, Row, Run, Verdict
from segue.tasks import TASKS, Scratchpad
from segue.tasks.automata import POLICIES
from segue.training.learn import answer_accuracy, learn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SYMBOLS = 16
CONTROL = "contains ab, none"
# Reads six letters; has seen nothing, has just seen an a, has seen an a followed by a b.
CONTAINS_AB = DFA(torch.tensor([[1, 0, 0, 0, 0, 0], [1, 2, 0, 0, 0, 0], [2, 2, 2, 2, 2, 2]]))


def compiled(automata: int, length: int, precision: str) -> float:
    """The share of right tokens (states and answer) over all prefixes of random words, as random automata compiled."""
    right, asked = 0, 0
    for seed in range(automata):
        generator = torch.Generator().manual_seed(seed)
        states, symbols = (int(torch.randint(2, limit + 1, (), generator=generator)) for limit in (8, 4))
        dfa = random_dfa(states, symbols, seed)
        model = compile_dfa(dfa, getattr(torch, precision))
        word = torch.randint(symbols, (1, length), generator=generator)
        wanted, tokens = model.transcript(dfa, word)
        found = model(tokens).logits.argmax(-1)[:, length:]
        right, asked = right + int((found == wanted).sum()), asked + wanted.numel()
    return right / asked


def trained(name: str, steps: int, rows: int, seed: int) -> float:
    """Share of right answers, the model reading its own scratchpad."""
    if name == CONTROL:
        task, length = Scratchpad("none").task(name, CONTAINS_AB), Scratchpad("none").length(SYMBOLS)
    else:
        task, length = TASKS[f"a5-words-{name}"], Scratchpad(name).length(SYMBOLS)
    torch.manual_seed(seed)
    model = Stack(StackConfig(task.vocabulary, 64, ["attention"] * 2, channel="mlp", norm="layer"))
    learn(model, task.batches(rows, (length, length), seed), steps, rate=2e-3, seed=seed)
    return answer_accuracy(model, task.test(512, length, seed))


def measure(run: Run) -> list[Row]:
    steps, rows = run.pick(2, 1000, 2000), run.pick(8, 64, 128)
    automata, length = run.pick(2, 50), run.pick(20, 512)
    names = ("linear", "dummy", "log", "none", CONTROL)  # the slow ones first
    jobs = {f"trained {name}": partial(trained, name, steps, rows, run.seed) for name in names}
    jobs |= {f"compiled {precision}": partial(compiled, automata, length, precision)
             for precision in ("float64", "float32")}
    done = run.cells(jobs)
    table: list[Row] = [{"what": f"trained on words of A5, {SYMBOLS} symbols", "scratchpad": policy,
                         "written": len(Scratchpad(policy).steps(SYMBOLS)) - 1, "right": done[f"trained {policy}"]}
                        for policy in POLICIES]
    table.append({"what": "trained on 'contains ab', the control", "scratchpad": "none", "written": 0,
                  "right": done[f"trained {CONTROL}"]})
    table += [{"what": f"{automata} automata compiled, {precision}", "scratchpad": "linear", "written": length + 1,
               "right": done[f"compiled {precision}"]} for precision in ("float64", "float32")]
    run.note(f"trained: two layers of width 64 with rotary attention, {steps} steps of {rows} rows; right is the share "
             "of answers, the model reading what it wrote itself; chance is 1.7%, in the control about 60%")
    run.note("what is expressible need not be learned, nor what is not learned inexpressible: the trained arms are "
             "consistent with the theorems, they cannot prove them")
    return table


def judge(table: list[Row]) -> tuple[Verdict, str]:
    words = {row["scratchpad"]: row["right"] for row in table if row["what"].startswith("trained on words")}
    control = next(row["right"] for row in table if "control" in row["what"])
    exact, rough = (next(row["right"] for row in table if row["what"].endswith(precision))
                    for precision in ("float64", "float32"))
    reason = (f"with a linear scratchpad {words['linear']:.1%} right, logarithmic {words['log']:.1%}, dummy tokens "
              f"{words['dummy']:.1%}, none {words['none']:.1%}; the control {control:.1%}; compiled automata "
              f"{exact:.2%} in float64, {rough:.2%} in float32")
    if exact < 1 or max(words["none"], words["dummy"]) >= 0.6 or words["linear"] < 0.6:
        return "refuted", reason
    if words["linear"] >= 0.9 and max(words["none"], words["dummy"]) <= 0.25 and control >= 0.95 \
            and words["log"] <= words["none"] + 0.2 and rough < 1:
        return "confirmed", reason
    return "inconclusive", reason


def draw(figure: Figure, table: list[Row]) -> None:
    panel, exact = figure.subplots(1, 2, width_ratios=[2, 1], sharey=True)
    rows = [row for row in table if row["what"].startswith("trained")]
    names = [row["scratchpad"] if "A5" in row["what"] else "control,\nnone" for row in rows]
    for axes, bars in ((panel, list(zip(names, (row["right"] for row in rows)))),
                       (exact, [(row["what"].split(", ")[1], row["right"]) for row in table[len(rows):]])):
        drawn = axes.bar(*zip(*bars))
        axes.bar_label(drawn, [f"{value:.1%}" for _, value in bars], fontsize="small")
    panel.set(title=f"Trained: words of {SYMBOLS} symbols", xlabel="scratchpad", ylabel="right answers", ylim=(0, 1.1))
    exact.set(title=f"Compiled: {table[-1]['written'] - 1} symbols", ylabel="right tokens")


CLAIM = Claim(
    slug="cot-expressivity",
    statement="A linear number of intermediate steps lets a transformer simulate every finite automaton; none, "
              "meaningless or logarithmically many do not reach words of a non-solvable group.",
    rule="confirmed if 50 random automata compiled to weights write every state of words of 512 symbols and the answer "
         "right in float64 (and not in float32, which shows that the test can fail), and of transformers trained on "
         f"words of A5 of {SYMBOLS} symbols the one with a linear scratchpad is right at least 90% of the time, those "
         "with none and with dummy tokens at most 25%, the logarithmic one at most 20 points above none, and the "
         "star-free control without a scratchpad at least 95%; refuted if a compiled automaton errs in float64, or "
         "none or dummy reaches 60%, or linear stays below 60%; else inconclusive.",
    measure=measure, judge=judge, draw=draw,
    paper={"theorems": "no experiments; linear steps give all regular languages, none stay in TC0, logarithmically "
                       "many in L"},
    scales=("smoke", "cpu", "gpu"),
)
