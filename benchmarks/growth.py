"""How the cost of the lighter attentions grows with the length: the exponent of a power law fitted to seconds and to
bytes at the peak, forward and backward, of one layer over one sequence.

    python benchmarks/growth.py [--width 64] [--shortest 2048] [--longest 32768] [--rounds 3] [NAME ...]

At most 1.1 is what a cost linear in the length may show; full attention is beside, up to 8,192 elements. The process is
told to keep freed memory (glibc's MALLOC_MMAP_MAX_ and MALLOC_TRIM_THRESHOLD_): else pieces above 32 MB are fresh pages
each time, and what grows is the kernel's part (up to twice the time at 32,768). A row is printed for each; without
names the page results/growth.md is written.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segue.analysis.memory import peak_memory
from segue.mixers import MIXERS
from segue.training.recipe import describe_machine

SUBJECTS: dict[str, tuple[str, dict[str, Any]]] = {
    "full": ("attention", {}),
    "window": ("attention", {"window": 256}),
    "block": ("attention", {"block": 256}),
    "longformer": ("attention", {"window": 256, "global_tokens": 4, "positions": "alibi"}),
    "bigbird": ("attention", {"block": 64, "look_back": 1, "global_tokens": 64, "random_blocks": 3}),
    "relative, window": ("attention", {"window": 256, "relative": 256, "positions": "none"}),
    "span": ("attention", {"span": 256, "ramp": 32}),
    "reformer": ("reformer", {}),
    "linformer": ("linformer", {"rank": 64}),
    "block-recurrent": ("block-recurrent", {"block": 256}),
    "longvq": ("longvq", {"window": 64}),
    "lightnet": ("lightnet", {"toeplitz": 4}),
    "jrt": ("jrt", {"key_width": 8}),
    "hydra": ("hydra", {}),
}


def measure(name: str, length: int, width: int, rounds: int) -> tuple[float, int]:
    """Seconds (median) and bytes of forward and backward."""
    mixer, options = SUBJECTS[name]
    layer = MIXERS[mixer](width, **options, **({"length": length} if mixer == "linformer" else {}))
    x = torch.randn(1, length, width, requires_grad=True)

    def step() -> None:
        layer(x).sum().backward()

    times = []
    for _ in range(rounds + 1):  # the first warms up
        begin = time.perf_counter()
        step()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:]), peak_memory(step)


KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}


def main() -> None:
    if not os.environ.keys() >= KEEP_MEMORY.keys():  # read by the allocator when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | KEEP_MEMORY)
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(SUBJECTS)} (default: all, and the page is written)")
    for name, value in (("width", 64), ("shortest", 2048), ("longest", 32768), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    torch.manual_seed(0)
    lengths = [n for n in (2**i for i in range(7, 25)) if args.shortest <= n <= args.longest]
    lines = ["# How cost grows with the length", "",
             f"`python benchmarks/growth.py` on {describe_machine()}, {torch.get_num_threads()} threads; float32, one "
             f"sequence, width {args.width}, forward and backward", "",
             f"|  | {' | '.join(f'{n:,}' for n in lengths)} | time grows as | memory grows as |",
             f"|---|{'---:|' * (len(lengths) + 2)}"]
    print("\n".join(lines))
    for name in args.names or SUBJECTS:
        measured = [n for n in lengths if name != "full" or n <= 8192]
        measurements = [measure(name, n, args.width, args.rounds) for n in measured]
        cells = [f"{1000 * seconds:.0f} ms, {size / 2**20:.0f} MiB" for seconds, size in measurements]
        powers = [f"T^{np.polyfit(np.log(measured), np.log(values), 1)[0]:.2f}" for values in zip(*measurements)]
        lines.append(f"| {name} | {' | '.join([*cells, *[''] * (len(lengths) - len(measured)), *powers])} |")
        print(lines[-1], flush=True)
    if not args.names:
        (Path(__file__).parent / "results" / "growth.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
