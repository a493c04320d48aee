"""Balancing Continuous Pre-Training and Instruction Fine-Tuning: Optimizing Instruction-Following in LLMs (2024, arXiv
2410.10739).

A model that is to learn new data after it was taught to follow instructions forgets those. The paper's way: let its
base learn the data, and add what the instructions had changed, instruct - base, weight by weight
(`segue.models.delta`).
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable
from functools import partial
from statistics import mean
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from segue.continual import Strategy
from segue.continual.stream import element_nats
from segue.models import Stack, StackConfig
from segue.models.delta import Delta
from segue.objectives import Batch, generator_of
from segue.papers.base import Claim, Row, Run, Verdict
from segue.papers.corpora import ASCII, FAMILIAR, WINDOWS, standard_library
from segue.training import loop
from segue.training.learn import learn, random_windows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NEW = WINDOWS  # the package that is learned on
CONTEXT, ROWS, WIDTH, LETTERS = 32, 20, 64, 3
BASE, TUNE, LENGTHS = 900, 200, (60, 200, 500)
RATE, GENTLE = 3e-3, 5e-4  # of the base, and of all that comes later
SKILLS: tuple[tuple[tuple[str, str], Callable[[str], str]], ...] = (  # as the base knew it, and by instruction
    (("U({})=", "large({})="), str.upper), (("T({})=", "double({})="), lambda word: word * 2))
DIRECT, RESTORED, REPLAY, BARE, AGAIN = ("instruct, learned on", "base, learned on, + residual",
                                         "instruct, learned on with 5% replay", "base, learned on",
                                         "base, learned on, tuned again")
OTHER = "gru"


def request(form: int, draw: np.random.Generator) -> tuple[str, str]:
    """What is asked in a form (0: as the base knew it, 1: by instruction), and the answer."""
    forms, function = SKILLS[draw.integers(len(SKILLS))]
    word = "".join(draw.choice(list(string.ascii_lowercase), LETTERS))
    return forms[form].format(word), function(word) + "\n"


def requests(rows: int, form: int, draw: np.random.Generator, most: int = CONTEXT) -> Batch:
    """Rows of at most so many requests, one behind the other, of which the answers are asked for."""
    tokens, answers = np.full((rows, CONTEXT + 1), ord("\n")), np.zeros((rows, CONTEXT + 1), bool)
    for row, mark in zip(tokens, answers):
        at = 1
        for _ in range(most):
            asked, answer = request(form, draw)
            line = np.frombuffer((asked + answer).encode(), np.uint8)[: CONTEXT + 1 - at]
            row[at : at + len(line)] = line
            mark[at + len(asked) : at + len(line)] = True
            at += len(line)
    return Batch(torch.from_numpy(tokens)[:, :-1], torch.from_numpy(np.where(answers, tokens, -1))[:, 1:])


def text_of(name: str) -> tuple[Tensor, Tensor]:
    """The characters of a package: to learn from, and the last tenth."""
    text = torch.from_numpy(standard_library(*(FAMILIAR if name == "familiar" else (name,))).astype(np.int64))
    cut = len(text) * 9 // 10
    return text[:cut], text[cut:]


def rows_of(text: Tensor, rows: int, generator: torch.Generator) -> Batch:
    found = random_windows(text, rows, CONTEXT, generator)
    return Batch(found[:, :-1], found[:, 1:])


def batches(text: Tensor, form: int, asked: int, seed: int) -> Callable[[int], Batch]:
    """Rows of a text, of which some are requests."""
    def batch(step: int) -> Batch:
        rows = rows_of(text, ROWS - asked, generator_of(seed, step))
        if not asked:
            return rows
        return Batch.join([rows, requests(asked, form, np.random.default_rng([5, seed, step]))])

    return batch


class Snapshots(Strategy):
    """The weights after some numbers of steps."""

    def __init__(self, at: tuple[int, ...]) -> None:
        self.at, self.kept = at, dict[int, dict[str, Tensor]]()

    def after_step(self, run: loop.Run) -> None:
        if run.step + 1 in self.at:
            self.kept[run.step + 1] = {name: t.clone() for name, t in run.model.state_dict().items()}


@torch.no_grad()
def scores(model: Stack, fresh: Tensor, known: Tensor, asked: Batch, rows: int) -> dict[str, float]:
    """right: of requests, the share that is answered exactly, greedily; new, old: bits per character of so many
    rows."""
    model.eval()
    guess = model(asked.tokens).logits.argmax(-1)
    right = ((guess == asked.targets) | (asked.targets < 0)).all(1).float().mean()
    bits = {name: element_nats(model, rows_of(text, rows, torch.Generator().manual_seed(11))) / math.log(2)
            for name, text in (("new", fresh), ("old", known))}
    return {"right": float(right), **bits}


def whole(mixer: str, seed: int, lengths: tuple[int, ...], base_steps: int, tune: int, rows: int) -> list[Row]:
    """All arms of one seed, at every length, measured on so many rows."""
    (familiar, old), (fresh, new) = text_of("familiar"), text_of(NEW)
    asked = requests(rows, 1, np.random.default_rng([7, seed]), most=1)

    def made(weights: dict[str, Tensor] | None = None) -> Stack:
        torch.manual_seed(seed)
        model = Stack(StackConfig(ASCII, WIDTH, [mixer] * 2))
        if weights is not None:
            model.load_state_dict(weights)
        return model

    def taught(start: dict[str, Tensor] | None, draw: Callable[[int], Batch], steps: int, rate: float,
               at: tuple[int, ...] = ()) -> dict[int, dict[str, Tensor]]:
        """Weights after so many steps, the rate warmed up anew and then level."""
        kept = Snapshots(at or (steps,))
        learn(made(start), draw, steps, rate=rate, seed=seed, strategy=kept, warmup=min(0.5, 20 / steps), cooldown=0.0)
        return kept.kept

    def look(weights: dict[str, Tensor]) -> dict[str, float]:
        return scores(made(weights), new, old, asked, rows)

    base = taught(None, batches(familiar, 0, ROWS // 2, seed), base_steps, RATE)[base_steps]
    instruct = taught(base, batches(familiar, 1, ROWS // 2, seed + 1), tune, GENTLE)[tune]
    residual = Delta.between(made(instruct), made(base))
    last = lengths[-1]
    learned = {BARE: taught(base, batches(fresh, 1, 0, seed + 2), last, GENTLE, lengths),
               DIRECT: taught(instruct, batches(fresh, 1, 0, seed + 2), last, GENTLE, lengths),
               REPLAY: taught(instruct, batches(fresh, 1, ROWS // 20, seed + 2), last, GENTLE, lengths)}
    table: list[Row] = [{"arm": name, "steps": 0, "scale": None, **look(weights), "length": None, "cosine": None}
                        for name, weights in (("base", base), ("instruct", instruct))]
    for steps in lengths:
        for arm, kept in learned.items():
            table.append({"arm": arm, "steps": steps, "scale": None, **look(kept[steps]), "length": None,
                          "cosine": None})
        moved = Delta.between(made(learned[BARE][steps]), made(base))
        for scale in (0.5, 1.0, 1.5):
            model = made(learned[BARE][steps])
            (residual * scale).apply(model)
            table.append({"arm": RESTORED, "steps": steps, "scale": scale, **look(model.state_dict()),
                          "length": moved.norm / residual.norm, "cosine": moved.cosine(residual)})
        tuned = taught(learned[BARE][steps], batches(familiar, 1, ROWS // 2, seed + 1), tune, GENTLE)[tune]
        table.append({"arm": AGAIN, "steps": steps, "scale": None, **look(tuned), "length": None, "cosine": None})
    return table


def measure(run: Run) -> list[Row]:
    lengths, base_steps, tune, rows = run.pick(((2,), 2, 2, 20), (LENGTHS, BASE, TUNE, 200))
    seeds = [run.seed + i for i in range(run.pick(1, 3))]
    wanted = [*(("attention", seed) for seed in seeds), (OTHER, seeds[0])]
    jobs = {f"{mixer}, seed {seed}": partial(whole, mixer, seed, lengths, base_steps, tune, rows)
            for mixer, seed in wanted}
    cells = run.cells(jobs)
    table: list[Row] = []
    for mixer, tables in (("attention", [cells[f"attention, seed {seed}"] for seed in seeds]),
                          (OTHER, [cells[f"{OTHER}, seed {seeds[0]}"]])):
        for each in zip(*tables):
            row: Row = {"mixer": mixer, "arm": each[0]["arm"], "steps": each[0]["steps"], "scale": each[0]["scale"]}
            for what in ("right", "new", "old", "length", "cosine"):
                row[what] = None if each[0][what] is None else mean(one[what] for one in each)
            table.append({**row, "right by seed": [one["right"] for one in each]})
    run.note(f"characters of the running Python's standard library: {', '.join(FAMILIAR)} with two skills (upper case "
             f"and twice, of {LETTERS} letters) in one form for {base_steps:,} steps, then {tune} that teach to do "
             f"them by instruction, half of the rows text in both; then up to {lengths[-1]} of {NEW}; two layers, "
             f"width {WIDTH}, {ROWS} rows of {CONTEXT} a step, AdamW at {RATE:g}, later {GENTLE:g}, warmed up anew and "
             f"then level; {len(seeds)} seeds of attention, one of {OTHER}, which is told beside")
    run.note("right: of 200 requests by instruction, the share that is answered exactly (greedy); new, old: bits per "
             "character of the last tenth of the new package and of the familiar ones; length: how far the base moved "
             "as it learned on, in lengths of the residual; cosine: of the two. 'Tuned again' pays for the instruction "
             "data and its steps a second time")
    run.note("pilots of one seed: instructions that put words elsewhere were not learned in 200 steps (0% right), so "
             "they are new names in the old form; with 600 steps of the base, after 60 of the new package the "
             "residual had 48% right at 2.88 bits, learning on directly 18% at 2.65, with replay 82% at 2.65")
    return table


def judge(table: list[Row]) -> tuple[Verdict, str]:
    rows = {(row["arm"], row["steps"]): row for row in table
            if row["mixer"] == "attention" and row["scale"] in (None, 1)}
    before, told = rows["base", 0]["new"], []
    restores, keeps, beaten = [], [], []
    for steps in sorted({steps for _, steps in rows} - {0}):
        direct, restored, replay, bare = (rows[arm, steps] for arm in (DIRECT, RESTORED, REPLAY, BARE))
        part = (before - restored["new"]) / max(before - bare["new"], 1e-9)
        restores.append(restored["right"] - direct["right"] >= 0.15)
        keeps.append(restores[-1] and before > bare["new"] and part >= 0.5)
        beaten.append(replay["right"] >= restored["right"] and replay["new"] <= restored["new"])
        told.append(f"after {steps} steps the residual has {restored['right']:.0%} right at {restored['new']:.2f} bits "
                    f"({part:.0%} of what the base gained), learning on directly {direct['right']:.0%} at "
                    f"{direct['new']:.2f}, with replay {replay['right']:.0%} at {replay['new']:.2f}")
    reason = "; ".join(told)
    if not any(restores):
        return "refuted", f"the residual restores too little: {reason}"
    if all(beaten):
        return "refuted", f"where instruction data is there, 5% of replay is better on both axes: {reason}"
    return ("confirmed" if any(keeps) else "inconclusive"), reason


def draw(figure: Figure, table: list[Row]) -> None:
    axes = figure.subplots(1, 2, sharey=True)
    for axis, mixer in zip(axes, ("attention", OTHER)):
        for at, arm in enumerate((DIRECT, RESTORED, REPLAY, BARE, AGAIN)):
            rows = [row for row in table if (row["mixer"], row["arm"]) == (mixer, arm) and row["scale"] in (None, 1)]
            axis.plot([row["new"] for row in rows], [row["right"] for row in rows], "o-", color=f"C{at}", label=arm)
            for row in rows:
                axis.annotate(str(row["steps"]), (row["new"], row["right"]), (3, 3), textcoords="offset points",
                              fontsize=6)
        for row in table:
            if row["mixer"] == mixer and row["steps"] == 0:
                axis.plot(row["new"], row["right"], "k^")
                axis.annotate(row["arm"], (row["new"], row["right"]), (3, -9), textcoords="offset points", fontsize=7)
        axis.set(xlabel="bits per character of the new package", title=f"{mixer} (numbers: steps)", ylim=(-0.05, 1.05))
    axes[0].set(ylabel="requests answered exactly")
    axes[1].legend(fontsize=7)


CLAIM = Claim(
    slug="cpt-ift",
    statement="A base that learned new data follows instructions again when the difference of the instruction-tuned "
              "model and the old base is added to its weights, and keeps what it learned, which the tuned model that "
              "learns the data itself does not.",
    rule="mean of three seeds of attention, at the paper's scale of 1: refuted if at no length of learning the "
         "residual has at least 15 points more requests right than the tuned model that learned on; or if that model "
         "with 5% of instruction rows in its batches has at every length no fewer right and no more bits on the new "
         "data than the residual. Else confirmed if at some length it has those 15 points and at least half of the "
         "bits that the base gained; else inconclusive.",
    measure=measure, judge=judge, draw=draw,
    paper={"LLaMA-3 and Qwen": "the tuned model loses instructions as it learns on; base and residual recover most of "
                               "them at about 1/2000 of the compute of tuning again (no figures could be read)"},
)
