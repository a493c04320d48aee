"""A million tokens decoded one after the other: the time of a token, and the process's memory, after each tenth.

    python benchmarks/endless.py [--tokens 1000000] [--attention 20000] [--width 64] [--layers 2] [NAME ...]

The state of a recurrent model has a constant size, so the last tenth must cost what the first does. The tokens are
drawn at random, since an untrained model's own answers soon run in a circle. Beside them, how far the last logits of
the compiled engine are from those of torch, which read the same tokens in pieces: what a million steps in float32 add
up to. Attention, whose state grows, gets --attention tokens. A row is printed for each mixer; without names the page
results/endless.md is written.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch

from segue.models import Stack, StackConfig
from segue.models.compiled import compile_model
from segue.training.recipe import describe_machine

SUBJECTS = ("lstm", "gru", "slstm", "mamba", "mamba2", "s5", "gla", "mlstm", "deltanet", "attention")
VOCABULARY, PIECE = 256, 2048


def resident_mib() -> float:
    """MiB of memory that the process has in use now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def time_engine(model: Stack, tokens: np.ndarray) -> tuple[list[float], list[float], np.ndarray]:
    """Microseconds per token and MiB after each tenth of tokens (N,); the last logits (VOCABULARY,)."""
    engine = compile_model(model, threads=1)
    state = engine.init_state(1)
    engine.step(tokens[:1], engine.init_state(1))  # what is compiled or loaded at first is not what a token costs
    times, memory = [], []
    for tenth in np.array_split(tokens[:, None], 10):
        begin = time.perf_counter()
        for token in tenth:
            logits = engine.step(token, state)
        times.append(1e6 * (time.perf_counter() - begin) / len(tenth))
        memory.append(resident_mib())
    return times, memory, logits[0].copy()


@torch.no_grad()
def logits_by_torch(model: Stack, tokens: np.ndarray) -> np.ndarray:
    """The last logits (VOCABULARY,) by torch, which reads tokens (N,) in pieces."""
    state = model.init_state(1)
    for piece in torch.from_numpy(tokens)[None].split(PIECE, 1):
        logits = model.extend(piece, state).logits
        state.commit()
    return logits[0, -1].numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(SUBJECTS)} (default: all, and the page is written)")
    for name, value in (("tokens", 10**6), ("attention", 20_000), ("width", 64), ("layers", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    lines = [f"# {args.tokens:,} tokens, one after the other", "",
             f"`python benchmarks/endless.py` on {describe_machine()}, one thread; {args.layers} layers of width "
             f"{args.width}, {VOCABULARY} tokens, float32, the compiled engine", "",
             "|  | tokens | µs a token, first tenth | last tenth | MiB after the first tenth | at the end | "
             "logits differ from torch's by |", f"|---|{'---:|' * 6}"]
    print("\n".join(lines))
    for name in args.names or SUBJECTS:
        torch.manual_seed(0)
        model = Stack(StackConfig(VOCABULARY, args.width, [name] * args.layers)).eval()
        count = args.attention if name == "attention" else args.tokens
        tokens = np.random.default_rng(0).integers(0, VOCABULARY, count)
        times, memory, logits = time_engine(model, tokens)
        difference = np.abs(logits - logits_by_torch(model, tokens)).max() / np.abs(logits).max()
        lines.append(f"| {name} | {count:,} | {times[0]:.0f} | {times[-1]:.0f} | {memory[0]:.0f} | {memory[-1]:.0f} | "
                     f"{100 * difference:.4f}% |")
        print(lines[-1], flush=True)
    if not args.names:
        (Path(__file__).parent / "results" / "endless.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
