"""Balancing Continuous Pre-Training and Instruction Fine-Tuning: Optimizing Instruction-Following in LLMs (2024, arXiv
2410.10739).

An instruction-tuned model that is pre-trained further on new data forgets its instructions. The paper's remedy:
continue pre-training its base model instead, and then add the instruction residual, instruct - base, weight by weight
(`segue.models.delta`). Here characters of Python's standard library are the text, a package the new data, and two
string functions in a new notation the instructions.

Compared at three lengths of continued training: the base plus residual, the tuned model trained further, the same with
5% replay of instruction rows, the base alone, and the base tuned again; by the share of requests answered exactly and
bits per character. The claim holds if at some length the residual answers clearly more requests than the tuned model
trained further and keeps at least half of what the base learned; it is refuted if it never answers clearly more, or if
5% replay is at least as good on both axes at every length.
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

NEW = WINDOWS  # the package of the new data
CONTEXT, ROWS, WIDTH, LETTERS = 32, 20, 64, 3
BASE, TUNE, LENGTHS = 900, 200, (60, 200, 500)
RATE, GENTLE = 3e-3, 5e-4  # learning rates: of the base, and of all later training
SKILLS: tuple[tuple[tuple[str, str], Callable[[str], str]], ...] = (  # notations in pre-training and as instruction
    (("U({})=", "large({})="), str.upper), (("T({})=", "double({})="), lambda word: word * 2))
DIRECT, RESTORED, REPLAY, BARE, AGAIN = ("instruct, learned on", "base, learned on, + residual",
                                         "instruct, learned on with 5% replay", "base, learned on",
                                         "base, learned on, tuned again")
OTHER = "gru"


def sample_request(form: int, rng: np.random.Generator) -> tuple[str, str]:
    """A random prompt and its answer. form: 0 for the notation of pre-training, 1 for that of the instructions."""
    forms, function = SKILLS[rng.integers(len(SKILLS))]
    word = "".join(rng.choice(list(string.ascii_lowercase), LETTERS))
    return forms[form].format(word), function(word) + "\n"


def sample_requests(rows: int, form: int, rng: np.random.Generator, most: int = CONTEXT) -> Batch:
    """Rows of up to `most` requests each, one after the other; only the answers are targets."""
    tokens, answer_masks = np.full((rows, CONTEXT + 1), ord("\n")), np.zeros((rows, CONTEXT + 1), bool)
    for row, answer_mask in zip(tokens, answer_masks):
        position = 1
        for _ in range(most):
            prompt, answer = sample_request(form, rng)
            line = np.frombuffer((prompt + answer).encode(), np.uint8)[: CONTEXT + 1 - position]
            row[position : position + len(line)] = line
            answer_mask[position + len(prompt) : position + len(line)] = True
            position += len(line)
    return Batch(torch.from_numpy(tokens)[:, :-1], torch.from_numpy(np.where(answer_masks, tokens, -1))[:, 1:])


def load_text(name: str) -> tuple[Tensor, Tensor]:
    """The characters of a package ("familiar": those of pre-training): training part, and the last tenth for
    testing."""
    text = torch.from_numpy(standard_library(*(FAMILIAR if name == "familiar" else (name,))).astype(np.int64))
    cut = len(text) * 9 // 10
    return text[:cut], text[cut:]


def sample_rows(text: Tensor, rows: int, generator: torch.Generator) -> Batch:
    windows = random_windows(text, rows, CONTEXT, generator)
    return Batch(windows[:, :-1], windows[:, 1:])


def batches(text: Tensor, form: int, num_requests: int, seed: int) -> Callable[[int], Batch]:
    """Step -> a batch of ROWS rows: `num_requests` rows of requests, the others random windows of the text."""
    def batch(step: int) -> Batch:
        rows = sample_rows(text, ROWS - num_requests, generator_of(seed, step))
        if not num_requests:
            return rows
        return Batch.join([rows, sample_requests(num_requests, form, np.random.default_rng([5, seed, step]))])

    return batch


class Snapshots(Strategy):
    """Saves the weights after the given numbers of steps."""

    def __init__(self, at: tuple[int, ...]) -> None:
        self.at, self.weights = at, dict[int, dict[str, Tensor]]()

    def after_step(self, run: loop.Run) -> None:
        if run.step + 1 in self.at:
            self.weights[run.step + 1] = {name: t.clone() for name, t in run.model.state_dict().items()}


@torch.no_grad()
def scores(model: Stack, new_text: Tensor, old_text: Tensor, requests: Batch, rows: int) -> dict[str, float]:
    """right: the share of requests that greedy decoding answers exactly; new, old: bits per character of the new and
    the familiar text, over `rows` rows each."""
    model.eval()
    predictions = model(requests.tokens).logits.argmax(-1)
    right = ((predictions == requests.targets) | (requests.targets < 0)).all(1).float().mean()
    bits = {name: element_nats(model, sample_rows(text, rows, torch.Generator().manual_seed(11))) / math.log(2)
            for name, text in (("new", new_text), ("old", old_text))}
    return {"right": float(right), **bits}


def run_seed(mixer: str, seed: int, lengths: tuple[int, ...], base_steps: int, tune: int, rows: int) -> list[Row]:
    """Train all arms of one seed; their rows of the table at every length, each measured on `rows` rows."""
    (old_text, old_test), (new_text, new_test) = load_text("familiar"), load_text(NEW)
    requests = sample_requests(rows, 1, np.random.default_rng([7, seed]), most=1)

    def make_model(weights: dict[str, Tensor] | None = None) -> Stack:
        torch.manual_seed(seed)
        model = Stack(StackConfig(ASCII, WIDTH, [mixer] * 2))
        if weights is not None:
            model.load_state_dict(weights)
        return model

    def train(start: dict[str, Tensor] | None, batch: Callable[[int], Batch], steps: int, rate: float,
              save_steps: tuple[int, ...] = ()) -> dict[int, dict[str, Tensor]]:
        """Weights by the number of steps (`save_steps`, else only the last), at a constant rate after a new warm-up."""
        snapshots = Snapshots(save_steps or (steps,))
        learn(make_model(start), batch, steps, rate=rate, seed=seed, strategy=snapshots, warmup=min(0.5, 20 / steps),
              cooldown=0.0)
        return snapshots.weights

    def evaluate(weights: dict[str, Tensor]) -> dict[str, float]:
        return scores(make_model(weights), new_test, old_test, requests, rows)

    base = train(None, batches(old_text, 0, ROWS // 2, seed), base_steps, RATE)[base_steps]
    instruct = train(base, batches(old_text, 1, ROWS // 2, seed + 1), tune, GENTLE)[tune]
    residual = Delta.between(make_model(instruct), make_model(base))
    longest = lengths[-1]
    trained = {BARE: train(base, batches(new_text, 1, 0, seed + 2), longest, GENTLE, lengths),
               DIRECT: train(instruct, batches(new_text, 1, 0, seed + 2), longest, GENTLE, lengths),
               REPLAY: train(instruct, batches(new_text, 1, ROWS // 20, seed + 2), longest, GENTLE, lengths)}
    table: list[Row] = [{"arm": name, "steps": 0, "scale": None, **evaluate(weights), "length": None, "cosine": None}
                        for name, weights in (("base", base), ("instruct", instruct))]
    for steps in lengths:
        for arm, weights_by_step in trained.items():
            table.append({"arm": arm, "steps": steps, "scale": None, **evaluate(weights_by_step[steps]), "length": None,
                          "cosine": None})
        change = Delta.between(make_model(trained[BARE][steps]), make_model(base))
        for scale in (0.5, 1.0, 1.5):
            model = make_model(trained[BARE][steps])
            (residual * scale).apply(model)
            table.append({"arm": RESTORED, "steps": steps, "scale": scale, **evaluate(model.state_dict()),
                          "length": change.norm / residual.norm, "cosine": change.cosine(residual)})
        tuned = train(trained[BARE][steps], batches(old_text, 1, ROWS // 2, seed + 1), tune, GENTLE)[tune]
        table.append({"arm": AGAIN, "steps": steps, "scale": None, **evaluate(tuned), "length": None, "cosine": None})
    return table


def measure(run: Run) -> list[Row]:
    lengths, base_steps, tune, rows = run.pick(((2,), 2, 2, 20), (LENGTHS, BASE, TUNE, 200))
    seeds = [run.seed + i for i in range(run.pick(1, 3))]
    runs = [*(("attention", seed) for seed in seeds), (OTHER, seeds[0])]
    jobs = {f"{mixer}, seed {seed}": partial(run_seed, mixer, seed, lengths, base_steps, tune, rows)
            for mixer, seed in runs}
    results = run.cells(jobs)
    table: list[Row] = []
    for mixer, tables in (("attention", [results[f"attention, seed {seed}"] for seed in seeds]),
                          (OTHER, [results[f"{OTHER}, seed {seeds[0]}"]])):
        for seed_rows in zip(*tables):
            row: Row = {"mixer": mixer, "arm": seed_rows[0]["arm"], "steps": seed_rows[0]["steps"],
                        "scale": seed_rows[0]["scale"]}
            for metric in ("right", "new", "old", "length", "cosine"):
                row[metric] = None if seed_rows[0][metric] is None else mean(seed_row[metric] for seed_row in seed_rows)
            table.append({**row, "right by seed": [seed_row["right"] for seed_row in seed_rows]})
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
    base_bits, reasons = rows["base", 0]["new"], []
    restores, keeps, replay_wins = [], [], []
    for steps in sorted({steps for _, steps in rows} - {0}):
        direct, restored, replay, bare = (rows[arm, steps] for arm in (DIRECT, RESTORED, REPLAY, BARE))
        kept_share = (base_bits - restored["new"]) / max(base_bits - bare["new"], 1e-9)
        restores.append(restored["right"] - direct["right"] >= 0.15)
        keeps.append(restores[-1] and base_bits > bare["new"] and kept_share >= 0.5)
        replay_wins.append(replay["right"] >= restored["right"] and replay["new"] <= restored["new"])
        reasons.append(f"after {steps} steps the residual has {restored['right']:.0%} right at {restored['new']:.2f} "
                       f"bits ({kept_share:.0%} of what the base gained), learning on directly {direct['right']:.0%} "
                       f"at {direct['new']:.2f}, with replay {replay['right']:.0%} at {replay['new']:.2f}")
    reason = "; ".join(reasons)
    if not any(restores):
        return "refuted", f"the residual restores too little: {reason}"
    if all(replay_wins):
        return "refuted", f"where instruction data is there, 5% of replay is better on both axes: {reason}"
    return ("confirmed" if any(keeps) else "inconclusive"), reason


def draw(figure: Figure, table: list[Row]) -> None:
    axes = figure.subplots(1, 2, sharey=True)
    for axis, mixer in zip(axes, ("attention", OTHER)):
        for index, arm in enumerate((DIRECT, RESTORED, REPLAY, BARE, AGAIN)):
            rows = [row for row in table if (row["mixer"], row["arm"]) == (mixer, arm) and row["scale"] in (None, 1)]
            axis.plot([row["new"] for row in rows], [row["right"] for row in rows], "o-", color=f"C{index}", label=arm)
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
