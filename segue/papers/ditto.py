"""Learning to Break the Loop: Analyzing and Mitigating Repetitions for Neural Text Generation (Xu et al. 2022, arXiv
2206.02369).

DITTO trains a model on sentences repeated many times, with the target that each repetition is a little less likely than
the one before; the model then stops repeating itself. Here: a small character model of TinyShakespeare that is first
trained to copy, since a model that cannot copy has no reason to loop. Its loops are a few words long and never reach
the end of a line, so the repeated units in training are one to eight words.

From one base model, three arms train on: maximum likelihood (the control), DITTO and token unlikelihood. Compared are
repetition in greedy text (rep-12), perplexity, and how the probability of a line grows as it is repeated (TP). The
claim holds if the base reinforces repetition, and DITTO removes that, halves rep-12 and hardly changes perplexity.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from segue.analysis.texts import reinforcement, repetition
from segue.decoding import generate
from segue.models import Stack, StackConfig, expand_pattern
from segue.objectives import Batch, DecayedRepetition, Mixed, NextElement, Objective, TokenUnlikelihood, generator_of
from segue.papers.base import Claim, Row, Run, Verdict
from segue.training.learn import learn, random_windows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONTEXT, ROWS, TIMES = 128, 16, 5
FAR = 20  # limit of the picture's axis: per cent of perplexity above the control
NGRAM, PROMPT, SAID = 12, 50, 200
START, CONTROL = "before", "maximum likelihood"
DITTO = "decayed repetition"
UNLIKELY = "unlikelihood"
WORDS = 8  # longest repeated unit
CLIP = 0.1  # of the gradient's norm, as in the official runs: else steps of maximum likelihood, whose gradients are
# larger, outweigh the others
CONTROLS = [{"rate": rate} for rate in (5e-4, 1e-3)]
DECAYS = [{"coin": coin, "gamma": gamma, "rate": 1e-3} for coin in (0.5, 0.25, 0.1) for gamma in (0.5, 0.8)]
UNLIKELIHOODS = [{"weight": weight, "rate": 1e-3} for weight in (1.0, 3.0)]


def characters(path: Path | None) -> tuple[Tensor, int, tuple[int, int]]:
    """The text as ids, the id of the newline, and the ids that end a word. path None: synthetic text."""
    synthetic = "".join(f"the {a} of {b}\nand then {b}\n" for a in "abcdefgh" * 9 for b in "mnopqrstu")
    text = synthetic if path is None else (path / "input.txt").read_text(encoding="utf-8")
    alphabet = sorted(set(text))
    newline, space = map(alphabet.index, "\n ")
    return torch.tensor([alphabet.index(letter) for letter in text]), newline, (newline, space)


def repeat_rows(rows: Tensor, generator: torch.Generator) -> Tensor:
    """Rows that repeat their first 8 to 39 elements to the end."""
    period = torch.randint(8, 40, (len(rows), 1), generator=generator)
    return rows.gather(1, torch.arange(rows.shape[1]) % period)


def sample_copies(vocabulary: int, rows: int, generator: torch.Generator) -> Tensor:
    return repeat_rows(torch.randint(vocabulary, (rows, CONTEXT + 1), generator=generator), generator)


def batches(text: Tensor, vocabulary: int, seed: int, pieces: int = 0, strings: int = 0) -> Callable[[int], Batch]:
    """Step -> a batch of text, of which `pieces` rows repeat a piece of it and `strings` rows a random string."""
    def batch(step: int) -> Batch:
        generator = generator_of(seed, step)
        rows = random_windows(text, ROWS - strings, CONTEXT, generator)
        rows[:pieces] = repeat_rows(rows[:pieces], generator)
        rows = torch.cat([rows, sample_copies(vocabulary, strings, generator)])
        return Batch(rows[:, :-1], rows[:, 1:])

    return batch


def build(vocabulary: int, width: int, seed: int) -> Stack:
    torch.manual_seed(seed)
    return Stack(StackConfig(vocabulary, width, expand_pattern("gru+attention"),
                             {"attention": {"positions": "none"}}))


def train_base(text: Tensor, vocabulary: int, seed: int, width: int, steps: tuple[int, int]) -> Stack:
    """Train a model to copy, then on the text."""
    model = build(vocabulary, width, seed)
    learn(model, batches(text, vocabulary, seed, strings=ROWS), steps[0], rate=3e-3, seed=seed)
    learn(model, batches(text, vocabulary, seed + 500, pieces=ROWS // 5), steps[1], rate=3e-3, seed=seed)
    return model


def objective(arm: str, ends: tuple[int, int], setting: dict[str, float]) -> Objective:
    if arm == DITTO:
        return Mixed([(DecayedRepetition(ends, setting["gamma"], together=WORDS), setting["coin"]),
                      (NextElement(), 1 - setting["coin"])])
    return TokenUnlikelihood(setting["weight"]) if arm == UNLIKELY else NextElement()


def sample_lines(text: Tensor, newline: int, count: int) -> list[tuple[list[int], list[int]]]:
    """(the line before, a line) of which TIMES copies fit into the context."""
    ends = (text == newline).nonzero()[:, 0].tolist()
    lines = [(text[a + 1 : b].tolist(), text[b:c].tolist()) for a, b, c in zip(ends, ends[1:], ends[2:])]
    fit = [(before, line) for before, line in lines if before and len(line) >= 8
           and len(before) + TIMES * len(line) <= CONTEXT]
    return fit[:: max(1, len(fit) // count)][:count]


@torch.no_grad()
def evaluate(model: Stack, text: Tensor, vocabulary: int, newline: int, count: int) -> dict[str, Any]:
    """Perplexity, repetition, reinforcement and copying accuracy on held-out text."""
    model.eval()
    draw = torch.Generator().manual_seed(7)
    rows = random_windows(text, 2 * count, CONTEXT, draw)
    nats = NextElement()(model, Batch(rows[:, :-1], rows[:, 1:])).total / rows[:, 1:].numel()
    prompts = [row[:PROMPT].tolist() for row in random_windows(text, count, CONTEXT, draw)]
    texts = [answer.tokens for answer in generate(model, prompts, SAID, "greedy", batch=count)]
    curves = reinforcement(model, sample_lines(text, newline, count), TIMES)
    copied = sample_copies(vocabulary, count, draw)
    right = (model(copied[:, :-1]).logits.argmax(-1) == copied[:, 1:])[:, CONTEXT // 2 :]
    return {"perplexity": math.exp(float(nats)), "rep-12": float(np.mean([repetition(text, NGRAM) for text in texts])),
            "TP": curves.chance, "IP": curves.risen, "WR": curves.chosen, "copied": float(right.float().mean())}


def run_arms(data: Path | None, seed: int, width: int, steps: tuple[int, int, int], count: int, piece: str,
             settings: list[tuple[str, dict[str, float]]]) -> list[dict[str, Any]]:
    """Train one base model, then an arm from it for each of `settings`; evaluate each on a part of the text, "tune" or
    "test"."""
    text, newline, ends = characters(data)
    vocabulary = int(text.max()) + 1
    train, tune, test = text.tensor_split([len(text) * 90 // 100, len(text) * 95 // 100])
    model, scores = train_base(train, vocabulary, seed, width, steps[:2]), []
    begin = {name: weight.clone() for name, weight in model.state_dict().items()}
    for arm, setting in settings:
        model.load_state_dict(begin)
        if arm != START:
            learn(model, batches(train, vocabulary, seed + 1000), steps[2], rate=setting["rate"], seed=seed,
                  objective=objective(arm, ends, setting), clip=CLIP)
        scores.append(evaluate(model, tune if piece == "tune" else test, vocabulary, newline, count))
    return scores


def choose(tried: list[tuple[dict[str, float], dict[str, Any]]], control: dict[str, Any]) -> dict[str, float]:
    """The setting with the lowest perplexity among those that halve rep-12; if none does, with the lowest rep-12."""
    halved = [(scores["perplexity"], place) for place, (_, scores) in enumerate(tried)
              if scores["rep-12"] <= 0.5 * control["rep-12"]]
    fallback = [(scores["rep-12"], place) for place, (_, scores) in enumerate(tried)]
    return tried[min(halved or fallback)[1]][0]


def measure(run: Run) -> list[Row]:
    data = run.dataset("tiny-shakespeare")
    width, steps, count = run.pick(16, 96), run.pick((2, 2, 2), (120, 400, 150)), run.pick(4, 64)
    seeds = [run.seed + i for i in range(run.pick(1, 3))]
    some = run.pick(1, None)
    grid = [(arm, setting) for arm, settings in ((CONTROL, CONTROLS), (DITTO, DECAYS), (UNLIKELY, UNLIKELIHOODS))
            for setting in settings[:some]]
    halves = [grid[0::2], grid[1::2]]
    tried = run.cells({f"tuning, part {part}": partial(run_arms, data, run.seed + 100, width, steps, count, "tune",
                                                       half) for part, half in enumerate(halves)}).values()
    looks = [(arm, setting, scores) for half, cell in zip(halves, tried) for (arm, setting), scores in zip(half, cell)]
    plain, control = min(((setting, scores) for arm, setting, scores in looks if arm == CONTROL),
                         key=lambda pair: pair[1]["perplexity"])
    chosen = {arm: choose([(setting, scores) for name, setting, scores in looks if name == arm], control)
              for arm in (DITTO, UNLIKELY)}
    final: list[tuple[str, dict[str, float]]] = [(START, {}), (CONTROL, plain), *chosen.items()]
    cells = run.cells({f"seed {seed}, {chosen}": partial(run_arms, data, seed, width, steps, count, "test", final)
                       for seed in seeds}).values()
    run.note("a GRU, which knows what came before, and a layer of attention without positions, which finds it again, "
             f"width {width}: {steps[0]} steps on repeated random strings, so that it can copy, {steps[1]} on text, "
             f"of which one row in five is a piece said over and over, then {steps[2]} of each arm (AdamW, gradients "
             f"clipped at {CLIP:g})")
    run.note("tried before: that fifth as random strings too (it copied those alone: TP rose by a fifth only); no such "
             "clipping, and whole lines said over and over (TP did not fall, rep-12 stayed at 0.92: what it said in "
             "circles was shorter than a line); up to 8 words with a coin of 0.5 (one seed, tuning text: rep-12 0.04, "
             "perplexity 28% above the control)")
    run.note(f"greedy continuations of {SAID} characters behind {PROMPT}; 'copied': of random strings that repeat "
             "themselves, the share of characters that the model names")
    table: list[Row] = []
    for arm, setting, scores in sorted(looks, key=lambda look: look[0]):
        table.append(row("tuning", arm, setting, [scores], [control]))
    for place, (arm, setting) in enumerate(final):
        table.append(row("test", arm, setting, [cell[place] for cell in cells], [cell[1] for cell in cells]))
    return table


def row(piece: str, arm: str, setting: dict[str, float], looks: list[dict[str, Any]],
        control: list[dict[str, Any]]) -> Row:
    def mean(name: str) -> Any:
        return np.round(np.mean([scores[name] for scores in looks], 0), 4).tolist()

    ratio = np.mean([math.log(scores["perplexity"] / other["perplexity"]) for scores, other in zip(looks, control)])
    return {"text": piece, "arm": arm, "setting": ", ".join(f"{name} {value:g}" for name, value in setting.items()),
            "rep-12": mean("rep-12"), "perplexity": mean("perplexity"), "to control": round(math.exp(float(ratio)), 4),
            "TP": mean("TP"), "IP": mean("IP"), "WR": mean("WR"), "copied": mean("copied")}


RULE = (
    "On test text, means over three seeds. Void (inconclusive) unless the model that all arms go on from believes more "
    "in a line the more often it was said: TP_4 at least 1.5 times TP_0 and WR_4 at least 0.2 above WR_0. Confirmed if "
    "with decayed repetition TP falls (TP_4 below TP_0, and no step up of more than 0.01), rep-12 of greedy text is at "
    "most half the control's, and perplexity at most 2% above it. Refuted if perplexity is more than 5% above the "
    "control's at every setting that halves rep-12 (if any), of those tried on the tuning text and the one on test "
    "text, or if unlikelihood has both the lower rep-12 and the lower perplexity; else inconclusive. Settings are "
    "chosen on the tuning text, with a base model of another seed: the control's rate by perplexity, the others' by "
    "perplexity among those that halve rep-12, or by rep-12 where none does.")


def judge(table: list[Row]) -> tuple[Verdict, str]:
    start, control, ditto, unlikely = (next(row for row in table if (row["text"], row["arm"]) == ("test", arm))
                                       for arm in (START, CONTROL, DITTO, UNLIKELY))
    tp, wr = start["TP"], start["WR"]
    reason = (f"before: TP {tp[0]:.2f} to {tp[-1]:.2f}, WR {wr[0]:.2f} to {wr[-1]:.2f}; control: TP "
              f"{control['TP'][0]:.2f} to {control['TP'][-1]:.2f}, rep-12 {control['rep-12']:.2f}; decayed repetition "
              f"({ditto['setting']}): TP {ditto['TP'][0]:.2f} to {ditto['TP'][-1]:.2f}, rep-12 {ditto['rep-12']:.2f}, "
              f"perplexity {ditto['to control'] - 1:+.1%}; unlikelihood: rep-12 {unlikely['rep-12']:.2f}, perplexity "
              f"{unlikely['to control'] - 1:+.1%}")
    if tp[-1] < 1.5 * tp[0] or wr[-1] - wr[0] < 0.2:
        return "inconclusive", f"the model does not reinforce itself; {reason}"
    tuned = min((row for row in table if (row["text"], row["arm"]) == ("tuning", CONTROL)),
                key=lambda row: row["perplexity"])
    halving = [row for row, other in [(row, tuned) for row in table if row["text"] == "tuning"] + [(ditto, control)]
               if row["arm"] == DITTO and row["rep-12"] <= 0.5 * other["rep-12"]]
    if halving and all(row["to control"] > 1.05 for row in halving):
        return "refuted", reason
    if unlikely["rep-12"] < ditto["rep-12"] and unlikely["to control"] < ditto["to control"]:
        return "refuted", reason
    falls = ditto["TP"][-1] < ditto["TP"][0] and all(b <= a + 0.01 for a, b in zip(ditto["TP"], ditto["TP"][1:]))
    if falls and ditto["rep-12"] <= 0.5 * control["rep-12"] and ditto["to control"] <= 1.02:
        return "confirmed", reason
    return "inconclusive", reason


def draw(figure: Figure, table: list[Row]) -> None:
    curves, trade = figure.subplots(1, 2)
    colours = {START: "#c3ccd5", CONTROL: "#52606d", DITTO: "#2f6fb3", UNLIKELY: "#c0504d"}
    for line in table:
        colour = colours[line["arm"]]
        if line["text"] == "test":
            curves.plot(range(len(line["TP"])), line["TP"], "o-", color=colour, label=line["arm"])
        if line["arm"] == START:
            continue
        trade.plot(min(100 * (line["to control"] - 1), FAR), line["rep-12"], "o" if line["text"] == "test" else ".",
                   color=colour, markersize=10 if line["text"] == "test" else 7,
                   alpha=1 if line["text"] == "test" else 0.5)
    curves.set(xlabel="how often the line was said before", ylabel="probability of its characters (TP)",
               title="A line said again", ylim=(0, None), xticks=range(TIMES))
    curves.legend(fontsize=8)
    trade.axvspan(-2, 2, color="#2f6fb3", alpha=0.1)
    trade.set(xlabel="perplexity, % above the control (band: 2%)", ylabel="rep-12 of greedy text",
              title=f"Every setting (small: tuning; up to {FAR}%)", ylim=(0, 1.02))


CLAIM = Claim(
    "ditto",
    "A model that learns to believe less in a sentence each time it is said again turns in circles far less, at no "
    "cost in perplexity.",
    RULE, measure, judge, draw,
    {"Wikitext-103, greedy, repeated 4-grams (from memory, not verified)": "44.2% to 22.0%",
     "perplexity (from memory, not verified)": "25.7 to 24.3",
     "repeated sentences (from memory, not verified)": "14.5% to 2.9%"})
