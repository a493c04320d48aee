"""LongVQ: Long Sequence Modeling with Vector Quantization on Structured Memory (Liu et al. 2024, arXiv 2404.11163).

The same gated block over a moving average, with different attentions in it: over all keys, over a codebook of 32 or 4
keys, within a window, linear, or none. Compared are recall of key-value pairs from beyond the window, how time grows
with length, and nats per note on Bach's chorales.

The claim holds if the codebook of 32 recalls almost as well as all keys and clearly better than the others, costs
nearly linear time, and loses little on the chorales; it is refuted if linear attention does as well or nothing is
saved.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segue.kernels.gla import gla
from segue.mixers import LongVQ
from segue.mixers.attention import attend
from segue.mixers.layout import Layout
from segue.mixers.state import Parts
from segue.models import Stack, StackConfig
from segue.objectives import Batch, generator_of
from segue.papers import corpora
from segue.papers.base import Claim, Row, Run, Verdict
from segue.training.learn import accuracy, learn, random_windows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAIRS, KEYS, WINDOW, LENGTH = 8, 16, 16, 64
BLANK = 2 * KEYS
PITCHES, BARS = 128, 256


class Exact(LongVQ):
    """Softmax attention to all that is less than `window` nodes back, with the same bias, every score written out."""

    def run(self, x: Tensor, layout: Layout, parts: Parts) -> Tensor:
        memory = self._structured_memory(x, layout, {})
        q, k, v, _ = self._project(x, memory)
        index, window = torch.arange(x.shape[1]), self.attention.window
        apart = index[:, None] - index
        y, _ = attend(q[:, None], k[:, None], v[:, None], (apart >= 0) & (apart < window),
                      self.attention.bias[apart.clamp(0, window - 1)])
        return self._gate(y[:, 0], memory, x)


class Linear(LongVQ):
    """Linear attention with features elu + 1."""

    def run(self, x: Tensor, layout: Layout, parts: Parts) -> Tensor:
        memory = self._structured_memory(x, layout, {})
        q, k, v, _ = (y[:, :, None] for y in self._project(x, memory))
        v = F.pad(v, (0, 1), value=1.0)
        y, _ = gla(F.elu(q) + 1, F.elu(k) + 1, v, None, v.new_zeros(len(v), 1, q.shape[-1], v.shape[-1]))
        return self._gate((y[..., :-1] / y[..., -1:])[:, :, 0], memory, x)


class Alone(LongVQ):
    """No attention: each node has its own value."""

    def run(self, x: Tensor, layout: Layout, parts: Parts) -> Tensor:
        return self._gate(F.silu(self.v(x)), self._structured_memory(x, layout, {}), x)


FULL, CODES, FEW = "all keys", "codebook of 32", "codebook of 4"
NEAR, LINEAR, NONE = "nearby only", "linear attention", "no attention"
ARMS: dict[str, tuple[type[LongVQ], dict[str, Any]]] = {
    FULL: (Exact, {"window": 1 << 14}),
    CODES: (LongVQ, {"codes": 32, "window": WINDOW}),
    FEW: (LongVQ, {"codes": 4, "window": WINDOW}),
    NEAR: (Exact, {"window": WINDOW}),
    LINEAR: (Linear, {"window": 1}),
    NONE: (Alone, {"window": 1}),
}


def make_model(arm: str, vocabulary: int) -> Stack:
    stack = Stack(StackConfig(vocabulary, 64, ["longvq"] * 2))
    kind, options = ARMS[arm]
    for block in stack.blocks:
        block.mixer = kind(64, keys=32, **options)
    return stack


def recall(rows: int, generator: torch.Generator) -> Batch:
    """Pairs of a key and a value, blanks, and then the keys again, more than twice the window later, each of which asks
    for its value."""
    keys = torch.rand(rows, KEYS, generator=generator).argsort(1)[:, :PAIRS]
    values = torch.randint(KEYS, 2 * KEYS, (rows, PAIRS), generator=generator)
    tokens, targets = torch.full((rows, LENGTH), BLANK), torch.full((rows, LENGTH), -1)
    tokens[:, : 2 * PAIRS] = torch.stack([keys, values], 2).flatten(1)
    first = 2 * PAIRS + 2 * WINDOW
    places = first + torch.rand(rows, LENGTH - first, generator=generator).argsort(1)[:, :PAIRS]
    return Batch(tokens.scatter(1, places, keys), targets.scatter(1, places, values))


def score_recall(arm: str, seed: int, steps: int, tests: int) -> float:
    """Accuracy at recall, on fresh rows."""
    torch.manual_seed(seed)
    model = make_model(arm, BLANK + 1)
    learn(model, lambda step: recall(32, generator_of(seed, step)), steps, rate=0.01,
          seed=seed, cooldown=1.0, muon=True)
    return accuracy(model, recall(tests, torch.Generator().manual_seed(-1 - seed)))


def load_chorales(folder: Path | None) -> tuple[Tensor, Tensor]:
    """Training and validation pieces, the four voices in turn, one step a quarter note; without a folder, noise."""
    if folder is None:
        noise = np.random.default_rng(0).integers(40, 80, (2, 4, 300))
        train, valid = ([torch.tensor(piece) for piece in part] for part in noise)
    else:
        train, valid = ([torch.tensor(piece[::4]).flatten().clamp(min=0) for piece in corpora.chorales(folder, name)]
                        for name in ("train", "valid"))
    return torch.cat(train), torch.cat(valid)


def score_music(arm: str, seed: int, steps: int, folder: Path | None) -> float:
    """Nats per note of the validation pieces, in rows of 256."""
    train, valid = load_chorales(folder)
    torch.manual_seed(seed)
    model = make_model(arm, PITCHES)

    def batch(step: int) -> Batch:
        line = random_windows(train, 8, BARS, generator_of(seed, step))
        return Batch(line[:, :-1], line[:, 1:])

    learn(model, batch, steps, rate=0.01, seed=seed, cooldown=1.0, muon=True)
    rows = valid[: (len(valid) - 1) // BARS * BARS + 1]
    with torch.no_grad():
        logits = model(rows[:-1].view(-1, BARS)).logits
    return F.cross_entropy(logits.flatten(0, 1), rows[1:]).item()


def cost(arm: str, lengths: tuple[int, ...]) -> list[float]:
    """Seconds of forward and backward of one mixer at each length, the best of two."""
    torch.manual_seed(0)
    kind, options = ARMS[arm]
    mixer, seconds = kind(64, keys=32, **options), []  # in training, so with all that the codebook costs there
    for length in (lengths[0], *lengths):  # the first one warms up
        x, best = torch.randn(1, length, 64), float("inf")
        for _ in range(2):
            begin = time.perf_counter()
            mixer(x).square().mean().backward()
            best = min(best, time.perf_counter() - begin)
        seconds.append(best)
    return seconds[1:]


def measure(run: Run) -> list[Row]:
    steps = run.pick(2, 400)
    folder = run.dataset("jsb-chorales")
    singers = range(run.seed, run.seed + run.pick(1, 3))
    jobs = {f"far {arm}": partial(score_recall, arm, run.seed, steps, run.pick(8, 512)) for arm in ARMS}
    jobs |= {f"music {arm} {seed}": partial(score_music, arm, seed, run.pick(2, 300), folder)
             for arm in (FULL, CODES) for seed in singers}
    done = run.cells(jobs)
    nats = {arm: mean(done[f"music {arm} {seed}"] for seed in singers) for arm in (FULL, CODES)}
    lengths = run.pick((32, 64), (1024, 2048, 4096, 8192))
    slopes = {}
    for arm in (FULL, CODES):
        seconds = run.cell(f"cost {arm}", partial(cost, arm, lengths))
        slopes[arm] = float(np.polyfit(np.log(lengths), np.log(seconds), 1)[0])
    run.note(f"{steps} steps of 32 rows of {LENGTH} elements, two blocks of width 64, one seed (chorales: mean of "
             f"{len(singers)}); what is asked for lies more than {2 * WINDOW} elements back, the window is {WINDOW}")
    run.note(f"cost: exponent of the time of forward and backward between {lengths[0]:,} and {lengths[-1]:,} elements; "
             "attention to all keys writes its scores out")
    run.note("tried on seed 100, 32 codes, after a first run on seed 0 in which they recalled 26% (all keys 100%, "
             "linear 47%): codes whose gradient all their keys share are no straight-through estimate, and gave way to "
             "one (91%); averages over 100 steps stay behind keys that learn in 400, and were made to span 10 (100%)")
    run.note("a run with one seed on the chorales was inconclusive: +2.4% nats. On seed 100 and the test pieces, where "
             "no verdict looks, it was +1.0% (+1.5% with embeddings normalised, which did not help either arm and are "
             "not used here): seeds differ by as much as the bound, so their mean is taken")
    run.note("tried since, on seed 100 and the test pieces: 32 codes +2.7%, with a loss of 0.1 that draws keys to "
             "their codes +2.5%, 128 codes +2.2%; 32 codes without that loss are kept")
    run.note("before this run keys within the window were exact, and the block's gate left x out (u H in place of "
             "u H + (1 - u) x): confirmed then, with +1.2% nats on the chorales, 96.7% recalled by 32 codes and 46.9% "
             "by linear attention. As published, keys are those of the codebook in the window too, and nearby notes of "
             "music are told apart less well")
    return [{"attention": arm, "recall": done[f"far {arm}"], "nats per note": nats.get(arm),
             "cost exponent": slopes.get(arm)} for arm in ARMS]


def judge(table: list[Row]) -> tuple[Verdict, str]:
    row = {row["attention"]: row for row in table}
    right = {name: row[name]["recall"] for name in ARMS}
    rival = max((LINEAR, NEAR, NONE), key=right.__getitem__)
    lost = row[CODES]["nats per note"] / row[FULL]["nats per note"] - 1
    slope, full = row[CODES]["cost exponent"], row[FULL]["cost exponent"]
    reason = (f"far recall: {right[CODES]:.1%} with 32 codes, {right[FULL]:.1%} with all keys, {right[FEW]:.1%} with 4 "
              f"codes, at most {right[rival]:.1%} otherwise ({rival}); chorales {lost:+.1%} nats; time grows as length "
              f"to the {slope:.2f} against {full:.2f}")
    if right[FULL] < 0.95:
        return "inconclusive", "attention to all keys did not learn the task; " + reason
    if right[LINEAR] >= right[CODES] - 0.02 or slope >= full - 0.1:
        return "refuted", reason
    if (right[CODES] >= right[FULL] - 0.05 and right[CODES] >= right[rival] + 0.1 and right[FEW] <= right[CODES] - 0.2
            and lost <= 0.02 and slope <= 1.25 and full >= 1.6):
        return "confirmed", reason
    return "inconclusive", reason


def draw(figure: Figure, table: list[Row]) -> None:
    far_back, notes = figure.subplots(1, 2, width_ratios=[2, 1])
    far_back.bar([row["attention"].replace(" ", "\n") for row in table], [row["recall"] for row in table])
    far_back.axhline(1 / KEYS, color="grey", linestyle=":", label="chance")
    far_back.set(ylabel="accuracy", ylim=(0, 1.05), title=f"Recall from more than {2 * WINDOW} elements back")
    far_back.legend()
    rows = [row for row in table if row["nats per note"] is not None]
    notes.bar([f"{row['attention']}\ntime as\nlength^{row['cost exponent']:.2f}" for row in rows],
              [row["nats per note"] for row in rows])
    notes.set(ylabel="nats per note", title="Chorales, held out")


CLAIM = Claim(
    slug="longvq",
    statement="Attention over a codebook of keys keeps the accuracy of full attention at linear cost, where linear "
              "attention over the same memory does not.",
    rule="valid if attention to all keys recalls at least 95%. Confirmed if the codebook of 32 is within 5 points of "
         "it and at least 10 above linear, nearby and no attention, a codebook of 4 is at least 20 points below, "
         "held-out nats on the chorales are within 2% of those of all keys, and time grows as length to the power 1.25 "
         "at most, against at least 1.6; refuted if linear attention comes within 2 points of the codebook, or the "
         "exponents differ by less than 0.1; else inconclusive.",
    measure=measure, judge=judge, draw=draw,
    paper={"Long Range Arena": "better than Transformers, convolutions and state spaces on six tasks of 1K to 16K "
                               "(figures not at hand)"},
)
