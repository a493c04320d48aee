"""Fused head-wise recurrences beside the plain loop over time and torch's own fused modules, in one run.

    python benchmarks/flashrnn.py [--cells lstm gru] [--heads 48 1] [--length 1024] [--rows 16] [--rounds 3]
                                  [--device cuda] [--markdown FILE]

The sizes are FlashRNN's: a width of 768 as N heads of D units, 16 rows, 1,024 steps; forward and backward, float32,
inputs projected before (the modules of torch, which project inside, have one head of the full width, and are timed
beside a projection and our kernel). Rounds of all alternate, and the median counts.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.files import write_text
from segue.kernels.rnn import CELLS, empty_state, recurrence, recurrence_reference
from segue.training.recipe import machine

WIDTH = 768
PEERS: dict[str, Callable[..., nn.RNNBase]] = {"elman": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


def seconds(steps: dict[str, Callable[[], Tensor]], rounds: int, device: str) -> dict[str, float]:
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds + 1):  # the first round warms up
        for name, step in steps.items():
            begin = time.perf_counter()
            step().sum().backward()
            if device == "cuda":
                torch.cuda.synchronize()
            taken[name].append(time.perf_counter() - begin)
    return {name: statistics.median(times[1:]) for name, times in taken.items()}


def measure(cell: str, heads: int, given: argparse.Namespace) -> dict[str, float]:
    rows, length, device = given.rows, given.length, given.device
    gates, width = CELLS[cell].gates, WIDTH // heads
    x, weight, bias = (torch.randn(shape, device=device).mul_(scale).requires_grad_() for shape, scale in (
        ((rows, length, heads, gates, width), 1.0), ((heads, gates, width, width), width**-0.5),
        ((heads, gates, width), 1.0)))
    state = empty_state(cell, (rows, heads, width), x)
    steps = {"ours": lambda: recurrence(cell, x, weight, bias, state)[0],
             "loop": lambda: recurrence_reference(cell, x, weight, bias, state)[0]}
    if cell in PEERS and heads == 1:
        module = PEERS[cell](WIDTH, WIDTH, batch_first=True, device=device)
        into = torch.randn(rows, length, WIDTH, device=device, requires_grad=True)
        project = nn.Linear(WIDTH, gates * WIDTH, device=device)
        steps["torch"] = lambda: module(into)[0]
        steps["projected"] = lambda: recurrence(
            cell, F.linear(into, project.weight, project.bias).unflatten(2, x.shape[2:]), weight, bias, state)[0]
    return seconds(steps, given.rounds, device)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cells", nargs="+", default=list(CELLS), choices=list(CELLS))
    parser.add_argument("--heads", nargs="+", type=int, default=[48, 24, 12, 6, 3, 1])
    for name, value in (("rows", 16), ("length", 1024), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--markdown", type=Path, help="write the table here, too")
    given = parser.parse_args()
    torch.manual_seed(0)
    name = torch.cuda.get_device_name() if given.device == "cuda" else f"{machine()}, {torch.get_num_threads()} threads"
    lines = [f"{name}; torch {torch.__version__}, float32; {given.rows} rows of {given.length} steps, forward and "
             "backward", "",
             "| cell | heads x units | tokens/s | plain loop | times the loop | torch's module | times the module |",
             "|---|---:|---:|---:|---:|---:|---:|"]
    print("\n".join(lines))
    tokens = given.rows * given.length
    for cell in given.cells:
        for heads in given.heads:
            took = measure(cell, heads, given)
            beside = "| | |" if "torch" not in took else (
                f"| {tokens / took['torch']:,.0f} | {took['torch'] / took['projected']:.2f} |")
            lines.append(f"| {cell} | {heads} x {WIDTH // heads} | {tokens / took['ours']:,.0f} | "
                         f"{tokens / took['loop']:,.0f} | {took['loop'] / took['ours']:.1f} {beside}")
            print(lines[-1], flush=True)
    if given.markdown:
        write_text(given.markdown, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
