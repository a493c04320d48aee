"""The Expressive Power of Transformers with Chain of Thought (Merrill & Sabharwal 2023, arXiv 2310.07923).

The paper proves theorems; here its constructions are run, and the learnable counterpart is trained. Random automata are
compiled to transformer weights that write one state per symbol, random Turing machines to weights that write one token
per step, and both must be exact in float64. Transformers are then trained on words of the non-solvable group A5 with
scratchpads of linear, logarithmic and no length, with meaningless (dummy) tokens, and on a star-free language as the
control.

The claim holds if the compiled automata are exact, only the linear scratchpad learns A5, and the control is learned
without one. At scale gpu lengths, depths and DeltaNet are varied as well.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from segue.models import Stack, StackConfig
from segue.models.automata import DFA, random_dfa
from segue.models.construction import compile_dfa, compile_turing
from segue.models.turing import palindrome_machine, random_machine
from segue.papers.base import Claim, Row, Run, Verdict
from segue.tasks import Scratchpad
from segue.tasks.automata import A5_WORDS
from segue.training.learn import answer_accuracy, learn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SYMBOLS = 16
OPTIONS: dict[str, dict[str, Any]] = {"attention": {}, "deltanet": {"eigenvalues": (-1, 1), "householders": 2}}
EXPRESSIBLE = ("what is expressible need not be learned, nor what is not learned inexpressible: the trained arms are "
               "consistent with the theorems, they cannot prove them")
CONTROL = "contains ab, none"
# Over six letters. States: nothing seen yet; the last letter was an a; "ab" was seen.
CONTAINS_AB = DFA(torch.tensor([[1, 0, 0, 0, 0, 0], [1, 2, 0, 0, 0, 0], [2, 2, 2, 2, 2, 2]]))


def check_automata(automata: int, length: int, precision: str) -> float:
    """The share of tokens (states and answers) that compiled random automata get right on random words."""
    right, total = 0, 0
    for seed in range(automata):
        generator = torch.Generator().manual_seed(seed)
        states, symbols = (int(torch.randint(2, limit + 1, (), generator=generator)) for limit in (8, 4))
        dfa = random_dfa(states, symbols, seed)
        model = compile_dfa(dfa, getattr(torch, precision))
        word = torch.randint(symbols, (1, length), generator=generator)
        targets, tokens = model.transcript(dfa, word)
        predicted = model(tokens).logits.argmax(-1)[:, length:]
        right, total = right + int((predicted == targets).sum()), total + targets.numel()
    return right / total


def check_machines(machines: int, limit: int, precision: str) -> float:
    """The same for compiled Turing machines: one that recognises palindromes, and random ones of one and two tapes."""
    right, total = 0, 0
    for seed in range(machines):
        draw = np.random.default_rng(seed)
        states, symbols, tapes = int(draw.integers(2, 7)), int(draw.integers(2, 5)), 1 + seed % 2
        machine = random_machine(states, symbols, tapes, seed) if seed else palindrome_machine()
        word = draw.integers(machine.symbols, size=draw.integers(20)).tolist() if seed else [1, 2, 2, 1] * 8
        model = compile_turing(machine, dtype=getattr(torch, precision))
        targets = model.expected_output(*machine.run(word, limit))
        row = torch.tensor([model.prompt(word) + targets[:-1]])
        predicted = model(row).logits[0, len(word) :].argmax(-1)
        right, total = right + int((predicted == torch.tensor(targets)).sum()), total + len(targets)
    return right / total


def train(policy: str, steps: int, rows: int, seed: int, symbols: int = SYMBOLS, depth: int = 2,
          mixer: str = "attention", device: str = "cpu") -> float:
    """Train a model with a scratchpad; the share of right answers when it reads the scratchpad that it wrote itself."""
    pad, dfa = (Scratchpad("none"), CONTAINS_AB) if policy == CONTROL else (Scratchpad(policy), A5_WORDS)
    task, length = pad.task(policy, dfa), pad.length(symbols)
    torch.manual_seed(seed)
    model = Stack(StackConfig(task.vocabulary, 64, [mixer] * depth, {mixer: OPTIONS[mixer]}, channel="mlp",
                              norm="layer")).to(device)
    learn(model, task.batches(rows, (length, length), seed), steps, rate=2e-3, seed=seed)
    return answer_accuracy(model, task.test(min(512, 8 * rows), length, seed))


def automata_cells(run: Run) -> dict[str, Any]:
    automata, length = run.pick(2, 50), run.pick(20, 512)
    return {f"compiled {precision}": partial(check_automata, automata, length, precision)
            for precision in ("float64", "float32")}


def count_written_states(policy: str, symbols: int = SYMBOLS) -> int:
    """The number of states written between a word and its answer."""
    return len(Scratchpad(policy).steps(symbols)) - 1


def measure(run: Run) -> list[Row]:
    steps, rows = run.pick(2, 1000), run.pick(8, 64)
    automata, length = run.pick(2, 50), run.pick(20, 512)
    names = ("linear", "dummy", "log", "none", CONTROL)  # the slow ones first
    jobs = {f"trained {name}": partial(train, name, steps, rows, run.seed) for name in names}
    machines, limit = run.pick(2, 50), run.pick(20, 500)
    jobs |= {f"Turing {precision}": partial(check_machines, machines, limit, precision)
             for precision in ("float64", "float32")}
    done = run.cells(jobs | automata_cells(run))
    table: list[Row] = [{"what": f"trained on words of A5, {SYMBOLS} symbols", "scratchpad": policy,
                         "written": count_written_states(policy), "right": done[f"trained {policy}"]}
                        for policy in ("none", "dummy", "log", "linear")]
    table.append({"what": "trained on 'contains ab', the control", "scratchpad": "none", "written": 0,
                  "right": done[f"trained {CONTROL}"]})
    table += [{"what": f"{automata} automata compiled, {precision}", "scratchpad": "linear", "written": length + 1,
               "right": done[f"compiled {precision}"]} for precision in ("float64", "float32")]
    table += [{"what": f"{machines} Turing machines compiled (no say), {precision}", "scratchpad": "every step",
               "written": limit, "right": done[f"Turing {precision}"]} for precision in ("float64", "float32")]
    run.note(f"trained: two layers of width 64 with rotary attention, {steps} steps of {rows} rows; right is the share "
             "of answers, the model reading what it wrote itself; chance is 1.7%, in the control about 60%")
    run.note("Turing machines: one that looks for palindromes, in a word of 32 letters, and random ones of one and two "
             f"tapes, with 2 to 6 states and 2 to 4 symbols; at most {limit} steps of each")
    run.note(EXPRESSIBLE)
    return table


def grid() -> list[tuple[str, int, int, str]]:
    """(scratchpad, symbols, layers, mixer) of each training run at scale gpu, the slow ones first."""
    arms = [(policy, symbols, 2, "attention") for symbols in (64, 32, 16, 8)
            for policy in ("linear", "root", "log", "none")]
    deep = [(policy, symbols, 4, "attention") for symbols in (32, 16) for policy in ("log", "none")]
    return [("none", 16, 8, "attention"), *deep, ("none", 16, 2, "deltanet"), ("none", 8, 2, "deltanet"), *arms,
            ("dummy", SYMBOLS, 2, "attention"), (CONTROL, SYMBOLS, 2, "attention")]


def measure_grid(run: Run) -> list[Row]:
    steps, longer, rows = run.pick(2, 1000), run.pick(2, 1500), run.pick(8, 256)
    jobs = {" ".join(map(str, arm)): partial(train, arm[0], longer if arm[1] > SYMBOLS else steps, rows, run.seed,
                                             *arm[1:], device=run.device) for arm in grid()}
    done = run.cells(jobs | automata_cells(run))
    table: list[Row] = [{"what": "control" if policy == CONTROL else "words of A5", "mixer": mixer, "symbols": symbols,
                         "layers": layers, "scratchpad": "none" if policy == CONTROL else policy,
                         "written": 0 if policy == CONTROL else count_written_states(policy, symbols),
                         "right": done[f"{policy} {symbols} {layers} {mixer}"]}
                        for policy, symbols, layers, mixer in sorted(grid(), key=lambda arm: (arm[3], arm[1:3]))]
    length = run.pick(20, 512)
    table += [{"what": f"compiled, {precision}", "mixer": "attention", "symbols": length, "layers": 2,
               "scratchpad": "linear", "written": length + 1, "right": done[f"compiled {precision}"]}
              for precision in ("float64", "float32")]
    run.note(f"trained: layers of width 64 with rotary attention, or DeltaNet with two steps in [-1, 1], {steps} steps "
             f"({longer} of more than {SYMBOLS} symbols) of {rows} rows, all at one rate; right is the share of "
             "answers, the model reading what it wrote itself; root writes the state after each of about sqrt n equal "
             f"parts of the word; dummy tokens at {SYMBOLS} only")
    run.note(EXPRESSIBLE)
    return table


def judge(table: list[Row]) -> tuple[Verdict, str]:
    words = {row["scratchpad"]: row["right"] for row in table if row["what"].startswith("trained on words")}
    control = next(row["right"] for row in table if "control" in row["what"])
    exact, rough = (next(row["right"] for row in table if row["what"].endswith(f"automata compiled, {precision}"))
                    for precision in ("float64", "float32"))
    machines = [f"{row['right']:.2%}" for row in table if "Turing" in row["what"]]
    reason = (f"with a linear scratchpad {words['linear']:.1%} right, logarithmic {words['log']:.1%}, dummy tokens "
              f"{words['dummy']:.1%}, none {words['none']:.1%}; the control {control:.1%}; compiled automata "
              f"{exact:.2%} in float64, {rough:.2%} in float32")
    reason += f"; Turing machines {' and '.join(machines)}" if machines else ""
    if exact < 1 or max(words["none"], words["dummy"]) >= 0.6 or words["linear"] < 0.6:
        return "refuted", reason
    if words["linear"] >= 0.9 and max(words["none"], words["dummy"]) <= 0.25 and control >= 0.95 \
            and words["log"] <= words["none"] + 0.2 and rough < 1:
        return "confirmed", reason
    return "inconclusive", reason


def format_shares(rows: Iterable[Row]) -> str:
    """E.g. "98% of 16, 97% of 32": right answers by number of symbols."""
    return ", ".join(f"{row['right']:.0%} of {row['symbols']}" for row in rows)


def judge_grid(table: list[Row]) -> tuple[Verdict, str]:
    words = [row for row in table if row["what"] == "words of A5" and row["mixer"] == "attention"]
    long = [row for row in words if row["symbols"] >= SYMBOLS]
    by = {policy: [row for row in long if row["scratchpad"] == policy] for policy in
          ("none", "dummy", "log", "root", "linear")}
    control, exact, rough = (next(row["right"] for row in table if row["what"].endswith(what))
                             for what in ("control", "float64", "float32"))
    best = {policy: max(row["right"] for row in rows) for policy, rows in by.items()}
    without = max(best["none"], best["dummy"])
    recurrent = [row for row in table if row["mixer"] != "attention"]
    reason = (f"answers right with a linear scratchpad: {format_shares(by['linear'])} symbols; with sqrt n states "
              f"{format_shares(by['root'])}; at best {best['log']:.1%} with log n and {without:.1%} with none or dummy "
              f"tokens, to 8 layers; DeltaNet without any {format_shares(recurrent)}; the control {control:.1%}; "
              f"compiled automata {exact:.2%} in float64, {rough:.2%} in float32")
    first = next(row["right"] for row in by["linear"] if row["symbols"] == SYMBOLS)
    if exact < 1 or without >= 0.6 or first < 0.6:
        return "refuted", reason
    if min(row["right"] for row in by["linear"]) >= 0.9 and without <= 0.25 and control >= 0.95 \
            and best["log"] <= without + 0.2 and rough < 1:
        return "confirmed", reason
    return "inconclusive", reason


def draw_grid(figure: Figure, table: list[Row]) -> None:
    panel = figure.subplots()
    lines: dict[tuple[str, int, str], list[Row]] = {}
    for row in table:
        if row["what"] == "words of A5":
            lines.setdefault((row["scratchpad"], row["layers"], row["mixer"]), []).append(row)
    for (policy, layers, mixer), rows in lines.items():
        panel.plot([row["symbols"] for row in rows], [row["right"] for row in rows],
                   "o-" if layers == 2 and mixer == "attention" else "s:",
                   label=f"{policy}, {layers} layers" + (f" of {mixer}" if mixer != "attention" else ""))
    panel.axhline(0.9, color="grey", linestyle=":")
    panel.set(title="Words of A5: what is written before the answer", xlabel="symbols", ylabel="right answers",
              ylim=(-0.02, 1.05), xscale="log")
    panel.minorticks_off()
    panel.set_xticks(sizes := sorted({row["symbols"] for rows in lines.values() for row in rows}), map(str, sizes))
    panel.legend(fontsize="small")


def draw(figure: Figure, table: list[Row]) -> None:
    panel, exact = figure.subplots(1, 2, width_ratios=[5, 4], sharey=True)
    rows = [row for row in table if row["what"].startswith("trained")]
    names = [row["scratchpad"] if "A5" in row["what"] else "control,\nnone" for row in rows]
    for axes, bars in ((panel, list(zip(names, (row["right"] for row in rows)))),
                       (exact, [(f"{'Turing' if 'Turing' in row['what'] else 'automata'}\n{row['what'][-7:]}",
                                 row["right"]) for row in table[len(rows):]])):
        drawn = axes.bar(*zip(*bars))
        axes.bar_label(drawn, [f"{value:.1%}" for _, value in bars], fontsize="small")
        axes.tick_params(axis="x", labelsize="small")
    panel.set(title=f"Trained: words of {SYMBOLS} symbols", xlabel="scratchpad", ylabel="right answers", ylim=(0, 1.1))
    exact.set(title="Compiled", ylabel="right tokens")


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

CLAIM = replace(CLAIM, gpu=replace(
    CLAIM,
    rule="confirmed if the compiled automata are right in float64 as at scale cpu (and not in float32), and of "
         "transformers trained on words of A5 of 16, 32 and 64 symbols those of two layers with a linear scratchpad "
         "are right at least 90% of the time at each length, all without one, of two to eight layers, and with dummy "
         "tokens at most 25%, the best with a logarithmic one at most 20 points above those, and the control at least "
         "95%; refuted if a compiled automaton errs in float64, or one without a scratchpad or with dummy tokens "
         "reaches 60%, or linear stays below 60% at 16 symbols; else inconclusive. Words of 8 symbols, sqrt n states "
         "and DeltaNet beside them have no say.",
    measure=measure_grid, judge=judge_grid, draw=draw_grid))
