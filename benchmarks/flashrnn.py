"""Fused head-wise recurrences beside plain loops over time and torch's own fused modules, in one run.

    python benchmarks/flashrnn.py [--cells lstm gru] [--heads 48 1] [--length 1024] [--rows 16] [--rounds 3]
                                  [--device cuda] [--processor] [--markdown FILE]

The sizes are FlashRNN's: a width of 768 as N heads of D units, 16 rows, 1,024 steps; forward and backward, float32.
`segue.papers.flashrnn.timings` says what is timed, and how. The loop that indexes and writes is timed at 128 steps,
since its backward pass grows with the square of the length, and ours beside it. `--processor` counts the processor's
time with one thread instead of the clock's, for a machine that others use, too. The table is printed, and `--markdown`
writes it.

Every implementation must multiply by the recurrent weights, once forward and twice backward. "at most" is how many
times as fast as the loop those products alone would be, at the speed of a large matrix product of torch on the same
threads.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch

from segue.files import write_text
from segue.kernels.rnn import CELLS
from segue.papers.flashrnn import WIDTH, timings
from segue.training.recipe import describe_machine

SHORT = 128


def peak(device: str, clock: Callable[[], float]) -> float:
    """Multiply-adds per second of a large matrix product, the best of some."""
    size = 1024 if device == "cpu" else 8192
    x, best = torch.randn(size, size, device=device), math.inf
    for _ in range(20):
        begin = clock()
        torch.mm(x, x)
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, clock() - begin)
    return size**3 / best


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cells", nargs="+", default=list(CELLS), choices=list(CELLS))
    parser.add_argument("--heads", nargs="+", type=int, default=[48, 24, 12, 6, 3, 1])
    for name, value in (("rows", 16), ("length", 1024), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--processor", action="store_true", help="one thread, processor time")
    parser.add_argument("--markdown", type=Path, help="write the table here, too")
    args = parser.parse_args()
    torch.manual_seed(0)
    if args.processor:
        torch.set_num_threads(1)
    clock = time.process_time if args.processor else time.perf_counter
    name = torch.cuda.get_device_name() if args.device == "cuda" else \
        f"{describe_machine()}, {torch.get_num_threads()} threads"
    name += ", processor time" if args.processor else ""
    peak_speed = peak(args.device, clock)
    lines = [f"{name}; torch {torch.__version__}, float32; {args.rows} rows of {args.length} steps, forward and "
             f"backward; a large product: {peak_speed / 1e9:.0f} billion multiply-adds a second", "",
             "| cell | heads x units | tokens/s | plain loop, tokens/s | times that | at most | times one that "
             f"writes ({SHORT} steps) | times torch's module | torch's module, tokens/s |",
             "|---|---:|---:|---:|---:|---:|---:|---:|---:|"]
    print("\n".join(lines))
    tokens = args.rows * args.length
    for cell in args.cells:
        for heads in args.heads:
            seconds = timings(cell, heads, args.rows, args.length, args.rounds, args.device, clock)
            short_seconds = timings(cell, heads, args.rows, SHORT, args.rounds, args.device, clock)
            module_ratio = f"{seconds['module'] / seconds['projected']:.2f}" if "module" in seconds else ""
            module_speed = f"{tokens / seconds['module']:,.0f}" if "module" in seconds else ""
            least = tokens * 3 * CELLS[cell].gates * WIDTH * (WIDTH // heads) / peak_speed
            lines.append(f"| {cell} | {heads} x {WIDTH // heads} | {tokens / seconds['ours']:,.0f} | "
                         f"{tokens / seconds['loop']:,.0f} | {seconds['loop'] / seconds['ours']:.1f} | "
                         f"{seconds['loop'] / least:.1f} | "
                         f"{short_seconds['writing'] / short_seconds['ours']:.1f} | {module_ratio} | {module_speed} |")
            print(lines[-1], flush=True)
    if args.markdown:
        write_text(args.markdown, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
