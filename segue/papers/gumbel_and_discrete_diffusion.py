"""Masked discrete diffusion and Gumbel draws: D3PM (Austin et al. 2021, arXiv 2107.03006), SEDD (Lou et al. 2024,
arXiv 2310.16834) and MDLM (Sahoo et al. 2024, arXiv 2406.07524).

Three transformers of the same size learn the characters of Shakespeare's plays: left to right, by masked diffusion and
by uniform diffusion. Compared are bits per character of held-out text (exact, or the diffusion bound), and of the
middle third, where masked diffusion sees both sides. A toy with a known Zipf distribution then shows what float32
Gumbel noise does to a sampler of many steps.

The claim holds if masked diffusion lies between the other two and near left-to-right, infills better, and float32 draws
tokens of measurably too low surprisal; it is refuted if uniform noise is no worse than masks.
"""

from __future__ import annotations

import math
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from segue.decoding.diffusion import fill
from segue.kernels.gumbel import gumbel_max
from segue.models import Stack, StackConfig
from segue.models.diffusion import AbsorbingProcess, Denoiser, NoiseSchedule, UniformProcess
from segue.models.stack import both_ways
from segue.objectives import Batch, NextElement, Objective
from segue.objectives.diffusion import MaskedDiffusion, ScoreEntropy, StepwiseDiffusion, any_order_nll
from segue.papers.base import Claim, Row, Run, Verdict
from segue.training.learn import learn
from segue.training.recipe import is_bfloat16_fast

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LETTERS = " abcdefghijklmnopqrstuvwxyz"
SYMBOLS, BEYOND = len(LETTERS), len(LETTERS)  # the id after the symbols: the mask, or the start token
LENGTH, KNOTS = 64, 8
SCHEDULE = NoiseSchedule("cosine")
ATTENTION = {"heads": 4, "theta": 50.0, "qk_norm": True}
MIDDLE = slice(LENGTH // 3, LENGTH - LENGTH // 3)
LEFT_TO_RIGHT, MASKED, UNIFORM = "left to right", "masked diffusion", "uniform diffusion"
BITS, INFILLED, ENTROPY = "bits per character", "bits per character of the middle third", "nats per drawn token"
WORDS, CHAIN, PART = 4096, 2000, 10  # the toy: words, steps; the first 1/PART of the steps is run


def load_text(folder: Path | None) -> tuple[Tensor, Tensor]:
    """Training symbols (the first nine tenths) and test symbols (the last twentieth). folder None: synthetic ones."""
    text = "now is the winter of our discontent " * 200 if folder is None else \
        (folder / "input.txt").read_text(encoding="utf-8")
    plain = re.sub(r"[^a-z]+", " ", text.lower().replace("'", ""))
    ids = torch.tensor([LETTERS.index(letter) for letter in plain])
    return ids[: int(0.9 * len(ids))], ids[int(0.95 * len(ids)) :]


def sample_batch(text: Tensor, rows: int, seed: int, step: int, shifted: bool) -> Batch:
    begins = torch.from_numpy(np.random.default_rng((seed, step)).integers(0, len(text) - LENGTH, (rows, 1)))
    return make_batch(text[begins + torch.arange(LENGTH)], shifted)


def make_batch(rows: Tensor, shifted: bool) -> Batch:
    """Rows as inputs and targets; `shifted`: inputs are moved right behind the start token."""
    begin = torch.full_like(rows[:, :1], BEYOND)
    return Batch(torch.cat([begin, rows[:, :-1]], 1) if shifted else rows, rows)


def make_model(arm: str, width: int) -> Stack:
    size = SYMBOLS + (KNOTS if arm == UNIFORM else 1)
    config = StackConfig(size, width, ["attention"] * 4, {"attention": ATTENTION})
    return Stack(config if arm == LEFT_TO_RIGHT else both_ways(config))


def make_objective(arm: str) -> Objective:
    if arm == LEFT_TO_RIGHT:
        return NextElement()
    return MaskedDiffusion(SCHEDULE) if arm == MASKED else ScoreEntropy(UniformProcess(SYMBOLS), SCHEDULE)


@torch.no_grad()
def bits_per_symbol(arm: str, model: Stack, rows: Tensor, draws: int, hidden: slice = slice(None)) -> Tensor:
    """Bits per symbol of the hidden part of each row, (B,). Left to right: exact, given what is on its left. Diffusion:
    upper bounds; for masks over random orders, given what is known on both sides."""
    where = torch.zeros_like(rows, dtype=torch.bool)
    where[:, hidden] = True
    if arm == LEFT_TO_RIGHT:
        logs = model(make_batch(rows, True).tokens).logits.log_softmax(-1).gather(2, rows[..., None])[..., 0]
        nats = -(logs * where).sum(1)
    elif arm == MASKED:
        nats = any_order_nll(Denoiser(model, AbsorbingProcess(SYMBOLS)), rows, where, BEYOND, draws)
    else:
        bound, times = StepwiseDiffusion(UniformProcess(SYMBOLS), SCHEDULE), rows.repeat_interleave(draws, 0)
        nats = torch.stack([bound(model, make_batch(part, False)).total for part in times.split(draws)]) / draws
    return nats.double() / where.sum(1) / math.log(2)


def run_arm(folder: Path | None, arm: str, seed: int, width: int, steps: int, rows: int, tests: int, draws: int,
            ) -> dict[str, Any]:
    """Train one arm; bits per character of test rows and of their middle thirds with standard errors, and one
    infilling."""
    train, test = load_text(folder)
    torch.manual_seed(seed)
    model = make_model(arm, width)
    draw = partial(sample_batch, train, rows, seed, shifted=arm == LEFT_TO_RIGHT)
    learn(model, draw, steps, rate=0.02, seed=seed, objective=make_objective(arm), muon=True, cooldown=1.0,
          precision="bfloat16" if is_bfloat16_fast(1) else "float32")
    model.eval()
    begins = torch.linspace(0, len(test) - LENGTH, tests).long()
    whole = test[begins[:, None] + torch.arange(LENGTH)]
    torch.manual_seed(seed)
    result: dict[str, Any] = {}
    for what, hidden in ((BITS, slice(None)), (INFILLED, MIDDLE)):
        if what == BITS or arm != UNIFORM:
            bits = torch.cat([bits_per_symbol(arm, model, part, draws, hidden) for part in whole.split(64)])
            result[what], result[f"{what}, error"] = float(bits.mean()), float(bits.std()) / math.sqrt(len(bits))
    if arm == MASKED:
        gap = whole[tests // 2].clone()
        gap[MIDDLE] = BEYOND
        text = "".join(LETTERS[i] for i in fill(model, [gap.tolist()], seed=seed)[0].tokens)
        result["sample"] = f"{text[: MIDDLE.start]}[{text[MIDDLE]}]{text[MIDDLE.stop :]}"
    return result


def sample_surprisal(double: bool, seed: int, positions: int) -> dict[str, float]:
    """Sample words by their exact Zipf probabilities in the first steps of a long chain; sums of their surprisal."""
    dtype = torch.float64 if double else torch.float32
    process, grid = AbsorbingProcess(WORDS), NoiseSchedule().grid(CHAIN)
    chances = 1 / torch.arange(1, WORDS + 1, dtype=torch.float64)
    log_p = (chances / chances.sum()).log()
    nats, generator = [], torch.Generator().manual_seed(seed)
    for count in torch.ones(positions).split(64):
        x = torch.full((len(count),), process.elements)
        for step in range(CHAIN, CHAIN - CHAIN // PART, -1):
            free = x == process.elements
            before = process.posterior(log_p.to(dtype).expand(int(free.sum()), -1), x[free], grid[step], grid[step - 1])
            x[free] = gumbel_max(before, generator, dtype)
        nats.append(-log_p[x[x < process.elements]])
    surprisal = torch.cat(nats)
    return {"sum": float(surprisal.sum()), "squares": float(surprisal.square().sum()), "count": len(surprisal)}


def pool_surprisals(parts: list[dict[str, float]]) -> tuple[float, float]:
    """Mean and standard error of the surprisal over the words of several cells."""
    total, squares, count = (sum(part[name] for part in parts) for name in ("sum", "squares", "count"))
    mean = total / count
    return mean, math.sqrt((squares / count - mean**2) / count)


def measure(run: Run) -> list[Row]:
    folder = run.dataset("tiny-shakespeare")
    width, steps, rows, tests, draws, positions, parts = run.pick((16, 3, 4, 4, 2, 64, 1),
                                                                  (128, 600, 32, 512, 8, 7000, 2))
    cells: dict[str, Any] = {arm: partial(run_arm, folder, arm, run.seed, width, steps, rows, tests, draws)
                             for arm in (LEFT_TO_RIGHT, MASKED, UNIFORM)}
    precisions = {"float64": True, "float32": False}
    for part in range(parts):
        cells |= {f"{name} {part}": partial(sample_surprisal, double, 1000 * run.seed + part, positions)
                  for name, double in precisions.items()}
    done = run.cells(cells)
    table: list[Row] = []
    for arm in (LEFT_TO_RIGHT, MASKED, UNIFORM):
        table += [{"arm": arm, "measure": what, "value": done[arm][what], "standard error": done[arm][f"{what}, error"]}
                  for what in (BITS, INFILLED) if what in done[arm]]
    for name in precisions:
        mean, error = pool_surprisals([done[f"{name} {part}"] for part in range(parts)])
        table.append({"arm": name, "measure": ENTROPY, "value": mean, "standard error": error})
    run.note(f"Shakespeare's plays in {SYMBOLS} symbols (real text), rows of {LENGTH}: {steps} steps of {rows} rows "
             f"for each of three stacks of 4 layers of attention, width {width}, by Muon at 0.02; about a minute each")
    run.note("chosen on text between the parts to learn from and to test on, by masked diffusion's bound after 200 "
             "steps: rates 0.005 and 0.02 came to 3.62 and 3.53 bits with log-linear noise (a longer warm-up "
             "to 3.54), cosine noise to 3.42, and to 3.25 with normalised queries and keys and rotary frequencies for "
             "short rows; all three have these")
    run.note(f"{tests} rows of the last twentieth of the plays. Left to right is exact; the others are upper bounds: "
             f"masked diffusion over random orders ({draws} draws a row), uniform diffusion by a chain of 1,000 steps; "
             "it alone is told the time, and its scores are read off what it says each element was")
    run.note(f"the middle third: masked diffusion sees both sides of it, left to right its left. Filled in: "
             f"{done[MASKED]['sample']}")
    run.note(f"a toy (not real data): words of {WORDS:,} with chances 1 / rank, drawn in the first {CHAIN // PART} of "
             f"{CHAIN:,} steps, where each step writes least, from {positions * parts:,} positions in each precision")
    return table


def judge(table: list[Row]) -> tuple[Verdict, str]:
    value = {(row["arm"], row["measure"]): row["value"] for row in table}
    error = {(row["arm"], row["measure"]): row["standard error"] for row in table}
    ordered, masked, uniform = (value[arm, BITS] for arm in (LEFT_TO_RIGHT, MASKED, UNIFORM))
    gain = value[LEFT_TO_RIGHT, INFILLED] - value[MASKED, INFILLED]
    lower = value["float64", ENTROPY] - value["float32", ENTROPY]
    errors = lower / math.hypot(error["float64", ENTROPY], error["float32", ENTROPY])
    reason = (f"bits per character: left to right {ordered:.3f}, masked diffusion at most {masked:.3f} "
              f"({masked / ordered:.2f} times), uniform at most {uniform:.3f}; of the middle third masked diffusion "
              f"needs {gain:.3f} less than left to right; float32 draws {lower:.2f} nats below float64, {errors:.1f} "
              "standard errors")
    if uniform <= masked:
        return "refuted", reason
    if ordered < masked <= 1.35 * ordered and gain >= 0.1 and errors > 5:
        return "confirmed", reason
    return "inconclusive", reason


def draw(figure: Figure, table: list[Row]) -> None:
    for axes, what, title in zip(figure.subplots(1, 3, width_ratios=(3, 2, 2)), (BITS, INFILLED, ENTROPY),
                                 ("A text: bits per character", "Its middle third", "Rare words: nats per draw")):
        rows = [row for row in table if row["measure"] == what]
        colours = {LEFT_TO_RIGHT: "#52606d", MASKED: "#2f6fb3", UNIFORM: "#7a5195", "float64": "#2f6fb3",
                   "float32": "#c8553d"}
        bars = axes.bar([row["arm"].replace(" diffusion", "\ndiffusion").replace(" to", "\nto") for row in rows],
                        [row["value"] for row in rows], yerr=[2 * row["standard error"] for row in rows], capsize=3,
                        color=[colours[row["arm"]] for row in rows])
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
        axes.tick_params(axis="x", labelsize=7)
        axes.set_title(title, fontsize=9)
        axes.margins(y=0.15)


CLAIM = Claim(
    slug="gumbel-and-discrete-diffusion",
    statement="Masked diffusion comes near to a model from left to right in likelihood, ahead of uniform noise; it "
              "fills gaps better, since it sees both sides; and samplers of many steps miss rare tokens in float32.",
    rule="confirmed if bits per character are lowest from left to right, then with masks, then with uniform noise, "
         "masks at most 1.35 times left to right; if masked diffusion's bound of the middle third, given both sides, "
         "is at least 0.1 bits per character below what left to right gives it; and if the surprisal of tokens drawn "
         "in the first tenth of 2,000 steps from 4,096 words by Zipf's law is lower in float32 than in float64 by more "
         "than 5 standard errors. Refuted if uniform noise is no worse than masks. Else inconclusive.",
    measure=measure, judge=judge, draw=draw,
    paper={"LM1B, test perplexity (not verified)": "left to right 22.3, SEDD at most 32.8, MDLM at most 27.0",
           "OpenWebText, test perplexity (not verified)": "17.5, at most 24.1, at most 23.2",
           "time for 64 samples in 5,000 and 10,000 steps": "SEDD 127 and 229 s, MDLM 114 and 207, cached 40 and 60"},
)
