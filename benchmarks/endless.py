"""A million tokens said one after the other: what a token costs, and what the process holds, after each tenth of them.

    python benchmarks/endless.py [--tokens 1000000] [--width 64] [--layers 2] [NAME ...]

The state of a recurrent model has a constant size, so the last tenth must cost what the first does. The tokens are
drawn at random: what a model says by itself, untrained, soon runs in a circle. Beside them, how far the last logits of
the compiled engine are from those of torch, which read the same tokens in pieces: what a million steps in float32 add
up to. Attention is there up to --attention tokens, as what grows. The page is results/endless.md.
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


def held() -> float:
    """MiB of memory that the process has in use now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def say(model: Stack, tokens: np.ndarray) -> tuple[list[float], list[float], np.ndarray]:
    """Microseconds per token and MiB after each tenth of tokens (N,); the last logits (VOCABULARY,)."""
    engine = compile_model(model, threads=1)
    state = engine.init_state(1)
    engine.step(tokens[:1], engine.init_state(1))  # what is compiled or loaded at first is not what a token costs
    taken, memory = [], []
    for tenth in np.array_split(tokens[:, None], 10):
        begin = time.perf_counter()
        for token in tenth:
            logits = engine.step(token, state)
        taken.append(1e6 * (time.perf_counter() - begin) / len(tenth))
        memory.append(held())
    return taken, memory, logits[0].copy()


@torch.no_grad()
def read(model: Stack, tokens: np.ndarray) -> np.ndarray:
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
    given = parser.parse_args()
    lines = [f"# {given.tokens:,} tokens, one after the other", "",
             f"`python benchmarks/endless.py` on {describe_machine()}, one thread; {given.layers} layers of width "
             f"{given.width}, {VOCABULARY} tokens, float32, the compiled engine", "",
             "|  | tokens | µs a token, first tenth | last tenth | MiB after the first tenth | at the end | "
             "logits differ from torch's by |", f"|---|{'---:|' * 6}"]
    print("\n".join(lines))
    for name in given.names or SUBJECTS:
        torch.manual_seed(0)
        model = Stack(StackConfig(VOCABULARY, given.width, [name] * given.layers)).eval()
        count = given.attention if name == "attention" else given.tokens
        tokens = np.random.default_rng(0).integers(0, VOCABULARY, count)
        taken, memory, said = say(model, tokens)
        apart = np.abs(said - read(model, tokens)).max() / np.abs(said).max()
        lines.append(f"| {name} | {count:,} | {taken[0]:.0f} | {taken[-1]:.0f} | {memory[0]:.0f} | {memory[-1]:.0f} | "
                     f"{100 * apart:.4f}% |")
        print(lines[-1], flush=True)
    if not given.names:
        (Path(__file__).parent / "results" / "endless.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
