"""Sequence Parallelism: Long Sequence Training from System Perspective (Li et al. 2021, arXiv 2105.13120).

Sequence parallelism (every rank holds all weights and a share of the elements; ring self-attention) against tensor
parallelism (all elements, a share of the heads and hidden features), for two layers of BERT on 1, 2 and 4 ranks: bytes
held on a rank by batch size, bytes sent for a layer, the ranks that each can use, and the loss of masked language
modelling on Wikipedia, which must not depend on the number of ranks; a ring that loses its last hop is the control.
"""

from __future__ import annotations

import copy
import gzip
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from segue.analysis.memory import saved_memory
from segue.errors import SegueError
from segue.mixers.layout import Layout
from segue.models import Stack, StackConfig
from segue.objectives import Batch, NextElement
from segue.papers.base import Claim, Row, Run, Verdict
from segue.parallel import (
    Communicator,
    Counted,
    TensorParallel,
    context_parallel,
    launch,
    simulate,
    stored_scores_attention,
    sum_gradients,
    tensor_parallel,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, HEADS, LAYERS, VOCABULARY, MASK = 128, 4, 2, 257, 256
COPIES = 4 * 4  # bytes of a weight, its gradient, and the two averages of Adam
LENGTH = 512
TIMES = (8, 16, 32, 64, 128)  # elements of a batch, in multiples of the width
STEPS, ROWS, RATE = 10, 2, 1e-3
LAYER, MLP, ATTENTION, SAVED = "all bytes, model", "all bytes, MLPs", "all bytes, attentions", "saved bytes, model"
SENT, APART, LOST, MOST = "bytes sent, one layer", "loss difference", "loss difference, a hop lost", "most ranks"


def build_bert(width: int, seed: int = 0) -> Stack:
    """Two layers of BERT: bidirectional attention, learned positions, post-norm, biases."""
    torch.manual_seed(seed)
    options = {"attention": {"heads": HEADS, "causal": False, "positions": "none", "qkv_bias": True, "out_bias": True}}
    return Stack(StackConfig(VOCABULARY, width, ["attention"] * LAYERS, options, "mlp", activation="gelu", norm="layer",
                             bias=True, learned_positions=LENGTH, post_norm=True, embed_norm=True, transform=True))


def measure_memory(scheme: str, ranks: int, width: int, times: int) -> dict[str, int]:
    """Bytes on the first rank in a forward pass over `times` * width elements: activations saved for backward by the
    whole model (no head), and these with weights and optimiser state, of the model, its MLPs and its attentions."""
    length = min(LENGTH, times * width)
    rows, whole = times * width // length, build_bert(width)

    def body(comm: Communicator) -> dict[str, int]:
        stack = copy.deepcopy(whole)
        model = context_parallel(stack, comm, "contiguous") if scheme == "sequence" else tensor_parallel(stack, comm)
        tokens = torch.zeros(rows, length // (ranks if scheme == "sequence" else 1), dtype=torch.long)
        x, layout = torch.zeros(*tokens.shape, width, requires_grad=True), Layout.of(tokens)
        mix = partial(model.mix, layout=layout) if isinstance(model, TensorParallel) else \
            partial(model.mix, layout=layout, whole=model.layouts(tokens)[1])
        mixers = [block.mixer for block in model.stack.blocks]
        channels = [block.channel for block in model.stack.blocks if block.channel is not None]

        def bytes_of(modules: Sequence[nn.Module], run: Callable[[], Any]) -> tuple[int, int]:
            weights = [p for module in modules for p in module.parameters()]
            return saved_memory(run, weights), COPIES * sum(p.numel() for p in weights)

        saved, persistent = bytes_of([model.stack], lambda: model.hidden(tokens, layout))
        mlps = bytes_of(channels, lambda: [channel(x + 0) for channel in channels])  # x + 0: each has its own
        attentions = bytes_of(mixers, lambda: [mix(mixer, x + 0) for mixer in mixers])
        return {SAVED: saved, LAYER: saved + persistent, MLP: sum(mlps), ATTENTION: sum(attentions)}

    return simulate(ranks, body)[0]


@cache
def load_text(folder: Path | None) -> Tensor:
    """Wikipedia as byte ids; a repeated made-up line where there is no folder."""
    raw = b"the cat sat on the mat. " * 400
    if folder is not None:
        raw = gzip.decompress((folder / "wiki.valid.tokens.gz").read_bytes())
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8).long()


def train_on_rank(comm: Communicator, stack: Stack, folder: Path | None, steps: int, broken: bool, seed: int,
                  ) -> list[float]:
    """Train masked language modelling on this rank; the loss of each step, nats an element, the same on all ranks."""
    stack, data = copy.deepcopy(stack), load_text(folder)
    model = context_parallel(stack, Lossy(comm) if broken else comm, "contiguous")
    optimiser = torch.optim.AdamW(stack.parameters(), RATE)
    generator, losses = torch.Generator().manual_seed(seed), []
    for _ in range(steps):
        positions = torch.randint(len(data) - LENGTH, (ROWS, 1), generator=generator) + torch.arange(LENGTH)
        masked = torch.rand(positions.shape, generator=generator) < 0.15
        batch = Batch(data[positions].masked_fill(masked, MASK), data[positions].masked_fill(~masked, -1))
        loss = NextElement()(model, batch.map(model.share)).total / batch.count
        optimiser.zero_grad()
        loss.backward()
        total = nn.Parameter(torch.zeros(()))
        total.grad = loss.detach()
        sum_gradients(comm, [*stack.parameters(), total])
        optimiser.step()
        losses.append(float(total.grad))
    return losses


class Lossy:
    """A communicator that zeroes what arrives at the last hop of each ring: the control that must fail."""

    def __init__(self, inner: Communicator) -> None:
        self.inner, self.rank, self.size, self.hops = inner, inner.rank, inner.size, 0

    def exchange(self, sends: Any, receives: Any) -> Callable[[], None]:
        wait, self.hops = self.inner.exchange(sends, receives), self.hops + bool(receives)
        lost = self.hops % (self.size - 1) == 0

        def drop_last_hop() -> None:
            wait()
            for tensor, _ in receives if lost else ():
                tensor.zero_()

        return drop_last_hop


def measure_traffic(scheme: str, ranks: int, width: int) -> float:
    """Mean bytes that a rank sends for one layer, forward and backward, over one row."""
    whole = build_bert(width)

    def body(comm: Communicator) -> float:
        counted, stack = Counted(comm), copy.deepcopy(whole)
        if scheme == "sequence, as published":
            q, k, v = (torch.randn(1, HEADS, LENGTH // ranks, width // HEADS, requires_grad=True) for _ in range(3))
            stored_scores_attention(q, k, v, counted).sum().backward()
            return counted.sent.total()
        model = context_parallel(stack, counted, "contiguous", "kv") if scheme == "sequence" else \
            tensor_parallel(stack, counted)
        tokens = torch.zeros(1, LENGTH // (ranks if scheme == "sequence" else 1), dtype=torch.long)
        model.hidden(tokens, Layout.of(tokens)).sum().backward()
        return counted.sent.total() / LAYERS

    return sum(simulate(ranks, body)) / ranks


def check_ranks(ranks: int, width: int) -> dict[str, bool]:
    """Whether each scheme can split the model over so many ranks."""
    stack = build_bert(width)

    def can_split(make: Callable[[Stack, Communicator], object]) -> bool:
        try:
            simulate(ranks, lambda comm: make(stack, comm))
        except SegueError:
            return False
        return True

    return {"sequence": can_split(context_parallel), "tensor": can_split(tensor_parallel)}


def loss_curve(ranks: int, folder: Path | None, width: int, steps: int, broken: bool, processes: bool, seed: int,
               ) -> list[float]:
    """The loss of each step on so many ranks; processes: separate ones (gloo), otherwise threads of this one."""
    stack = build_bert(width, seed)
    if processes:
        return launch(ranks, train_on_rank, stack, folder, steps, broken, seed)[0]
    return simulate(ranks, lambda comm: train_on_rank(comm, stack, folder, steps, broken, seed))[0]


def measure(run: Run) -> list[Row]:
    folder, width, steps = run.dataset("wikitext-2-valtest"), run.pick(32, WIDTH), run.pick(2, STEPS)
    times = run.pick((16, 32), TIMES)
    jobs: dict[str, Any] = {}
    for ranks in (1, 2, 4):
        for scheme in ("sequence", "tensor"):
            for elements in times:
                jobs[f"{scheme} {ranks} {elements}"] = partial(measure_memory, scheme, ranks, width, elements)
    for scheme in ("sequence", "sequence, as published", "tensor"):
        jobs[f"{scheme} sends"] = partial(measure_traffic, scheme, 4, width)
    for ranks in (1, 2, 4, 8):
        jobs[f"curve {ranks}"] = partial(loss_curve, ranks, folder, width, steps, False,
                                         ranks == 4 and run.scale != "smoke", run.seed)
        jobs[f"runs {ranks}"] = partial(check_ranks, ranks, width)
    jobs["curve broken"] = partial(loss_curve, 4, folder, width, steps, True, False, run.seed)
    results = run.cells(jobs)
    table: list[Row] = []

    def row(what: str, ranks: int, elements: int | None, sequence: float | None, tensor: float | None) -> None:
        table.append({"what": what, "ranks": ranks, "elements / H": elements, "sequence": sequence, "tensor": tensor})

    for what in (SAVED, LAYER, MLP, ATTENTION):
        for ranks in (1, 2, 4):
            for elements in times:
                row(what, ranks, elements,
                    *(results[f"{scheme} {ranks} {elements}"][what] for scheme in ("sequence", "tensor")))
    row(SENT, 4, None, results["sequence sends"], results["tensor sends"])
    row(f"{SENT}, as published", 4, None, results["sequence, as published sends"], results["tensor sends"])

    def max_difference(losses: list[float]) -> float:
        return max(abs(a - b) for a, b in zip(losses, results["curve 1"], strict=True))

    for ranks in (2, 4, 8):
        row(APART, ranks, None, max_difference(results[f"curve {ranks}"]), None)
    row(LOST, 4, None, max_difference(results["curve broken"]), None)
    most_ranks = {scheme: max(n for n in (1, 2, 4, 8) if results[f"runs {n}"][scheme])
                  for scheme in ("sequence", "tensor")}
    row(MOST, 8, None, most_ranks["sequence"], most_ranks["tensor"])
    run.note(f"{LAYERS} layers of BERT, H = {width}, {HEADS} heads, rows of {LENGTH}, fused attention in both schemes; "
             f"bytes of the first rank: what autograd keeps, and with it {COPIES} bytes a weight (itself, its "
             "gradient, Adam's averages); the head is left out, since Megatron cuts the vocabulary too")
    run.note(f"{steps} steps of AdamW on masked bytes of Wikipedia, {ROWS} rows of {LENGTH}; 4 ranks are processes, 2 "
             "and 8 threads of one; ranks beyond the heads are refused by tensor parallelism")
    run.note("as published: scores stored, gradients of all keys and values summed on every rank; ours keeps their "
             "log-sum-exp and sends each gradient to its owner")
    return table


def crossing(table: list[Row], what: str, ranks: int) -> float:
    """Elements, in widths, from which cutting the sequence is lighter; inf where it never is."""
    rows = [row for row in table if row["what"] == what and row["ranks"] == ranks]
    excess = [(row["elements / H"], row["sequence"] - row["tensor"]) for row in rows]
    for (a, x), (b, y) in zip(excess, excess[1:]):
        if x > 0 >= y:
            return a + (b - a) * x / (x - y)
    return 0.0 if excess[0][1] <= 0 else float("inf")


def judge(table: list[Row]) -> tuple[Verdict, str]:
    def rows_of(what: str) -> list[Row]:
        return [row for row in table if row["what"] == what]

    saved = {(row["ranks"], row["elements / H"]): row for row in rows_of(SAVED)}
    reductions = {scheme: [saved[n, at][scheme] / saved[2 * n, at][scheme] for n, at in saved if (2 * n, at) in saved]
                  for scheme in ("sequence", "tensor")}
    mlp, attention = ([crossing(table, what, n) for n in (2, 4)] for what in (MLP, ATTENTION))
    difference, control, (most_ranks,) = (
        max(row["sequence"] for row in rows_of(APART)), rows_of(LOST)[0]["sequence"], rows_of(MOST))
    reason = (f"doubling the ranks cuts what is kept by {min(reductions['sequence']):.2f} at least, in tensor "
              f"parallelism by {max(reductions['tensor']):.2f} at most; MLPs cross at {min(mlp):.0f} to {max(mlp):.0f} "
              f"H, attentions at {min(attention):.0f} to {max(attention):.0f} H; losses differ by {difference:.1e}, "
              f"with a hop lost by {control:.1e}; tensor parallelism takes {most_ranks['tensor']} ranks")
    heavier = any(row["sequence"] > row["tensor"] for row in rows_of(LAYER) if row["elements / H"] >= 64)
    if heavier or most_ranks["tensor"] > HEADS or most_ranks["sequence"] <= HEADS or difference > 1e-5:
        return "refuted", reason
    holds = min(reductions["sequence"]) >= 1.8 and max(reductions["tensor"]) <= 1.6 and control > 1e-5 and \
        all(16 <= x <= 64 for x in mlp) and all(8 <= x <= 32 for x in attention)
    return ("confirmed" if holds else "inconclusive"), reason


def draw(figure: Figure, table: list[Row]) -> None:
    for axes, what, expected in zip(figure.subplots(1, 3), (MLP, ATTENTION, LAYER), (32, 16, None)):
        for color, ranks in enumerate((1, 2, 4)):
            rows = [row for row in table if row["what"] == what and row["ranks"] == ranks]
            elements = [row["elements / H"] for row in rows]
            axes.plot(elements, [row["sequence"] / 1e6 for row in rows], "o-", color=f"C{color}", markersize=3,
                      label=f"{ranks}, sequence")
            if ranks > 1:
                axes.plot(elements, [row["tensor"] / 1e6 for row in rows], "s:", color=f"C{color}", markersize=3,
                          label=f"{ranks}, tensor")
        if expected is not None:
            axes.axvline(expected, color="gray", linewidth=0.8)
        axes.set(xscale="log", yscale="log", xlabel="elements of a batch / H", title=what)
    figure.axes[0].set_ylabel("MB on a rank")
    figure.axes[0].legend(fontsize=7, title="ranks")


CLAIM = Claim(
    slug="sequence-parallelism",
    statement="Cutting the sequence over ranks, with attention in a ring, divides what training keeps by the ranks, is "
              "lighter than cutting heads and features from some batch size on, is not limited by heads, and is exact.",
    rule="bytes on a rank, 2 layers of BERT, H = 128, 4 heads, 8 H to 128 H elements, 1, 2 and 4 ranks. Refuted if the "
         "model is heavier than under tensor parallelism at 64 H elements or more, if tensor parallelism takes more "
         "ranks than heads or cutting the sequence does not, or if ten steps on 2, 4 or 8 ranks give other losses than "
         "one process (1e-5). Confirmed if besides doubling the ranks cuts what is kept by 1.8 at least, under tensor "
         "parallelism by 1.6 at most, the two cross within a factor 2 of 32 H elements for the MLPs and of 16 H for "
         "the attentions (the paper's derivation, weights counted), and losing one hop changes the losses; else "
         "inconclusive",
    measure=measure, judge=judge, draw=draw,
    paper={"largest batch, BERT Base, 64 ranks against tensor parallelism's 12": "13.7 times",
           "longest sequence": "3.0 times", "crossing": "32 H elements for the MLP, 16 times the heads' widths for "
           "attention (from memory, derived anew)", "communication": "equal to tensor parallelism's"},
)
