"""Training speed of every mixer, forward and backward, beside the peer a user would pick, in one run.

    python benchmarks/mixers.py [--width 256] [--length 256] [--rows 8] [--rounds 5] [--json FILE]

Rounds of ours and of the peer alternate, and the median counts, so that a busy machine troubles both alike. Peers:
torch's own modules for attention and the recurrences, the Mamba blocks of transformers in the torch form they take on
CPUs, the plain loop over time for gated linear attention and the complex scan; and for the selective scan alone, the
same recurrence as log2(T) passes of torch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from segue.kernels.gla import gla, gla_reference
from segue.kernels.scan import linear_scan, linear_scan_reference, selective_scan, selective_scan_reference
from segue.mixers import GRU, LSTM, Attention, GatedLinearAttention, Mamba, Mamba2
from segue.training.recipe import machine

Step = Callable[[], None]


def training(function: Callable[..., Tensor], *inputs: Tensor) -> Step:
    def step() -> None:
        function(*inputs).sum().backward()

    return step


def peers(rows: int, length: int, width: int) -> dict[str, tuple[Step, str, Step]]:
    x = torch.randn(rows, length, width, requires_grad=True)
    table: dict[str, tuple[Step, str, Step]] = {}

    class Torch(nn.MultiheadAttention):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            mask = nn.Transformer.generate_square_subsequent_mask(length)
            return super().forward(x, x, x, attn_mask=mask, is_causal=True, need_weights=False)[0]

    table["attention"] = (training(Attention(width), x), "torch nn.MultiheadAttention",
                          training(Torch(width, 4, bias=False, batch_first=True), x))
    for name, ours, theirs in (("lstm", LSTM, nn.LSTM), ("gru", GRU, nn.GRU)):
        module = theirs(width, width, batch_first=True)
        table[name] = (training(ours(width), x), f"torch nn.{theirs.__name__}",
                       training(lambda x, module=module: module(x)[0], x))  # type: ignore[misc]
    try:
        from transformers import Mamba2Config, MambaConfig
        from transformers.models.mamba.modeling_mamba import MambaMixer
        from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

        peer = MambaMixer(MambaConfig(hidden_size=width, state_size=16), layer_idx=0)
        table["mamba"] = (training(Mamba(width), x), "transformers MambaMixer", training(peer, x))
        config = Mamba2Config(hidden_size=width, num_heads=width // 32, head_dim=64, state_size=64, n_groups=1,
                              chunk_size=64, num_hidden_layers=1)
        table["mamba2"] = (training(Mamba2(width), x), "transformers Mamba2Mixer",
                           training(Mamba2Mixer(config, layer_idx=0), x))
    except ImportError:
        print("transformers is not installed: no peer for mamba and mamba2")

    def inputs(*shapes: tuple[int, ...]) -> list[Tensor]:
        return [torch.randn(*shape, requires_grad=True) for shape in shapes]

    inner, states = 2 * width, 16
    u, B, C, D = inputs((rows, length, inner), (rows, length, states), (rows, length, states), (inner,))
    dt = torch.rand(rows, length, inner).mul_(0.1).requires_grad_()
    A, h = -torch.rand(inner, states).add_(0.1), torch.zeros(rows, inner, states)
    scan = (u, dt, A.requires_grad_(), B, C, D, h)
    table["selective scan"] = (training(lambda *x: selective_scan(*x)[0], *scan), "the same in torch",
                               training(lambda *x: selective_scan_reference(*x)[0], *scan))
    decay = torch.polar(torch.rand(1, 1, width), torch.rand(1, 1, width)).requires_grad_()
    wave = (decay, torch.randn(rows, length, width, dtype=torch.complex64, requires_grad=True),
            torch.zeros(rows, width, dtype=torch.complex64))
    table["linear scan, complex"] = (training(lambda *x: linear_scan(*x).real, *wave), "a loop over time in torch",
                                     training(lambda *x: linear_scan_reference(*x).real, *wave))
    q, k, v = inputs(*[(rows, length, 4, width // 8)] * 2, (rows, length, 4, width // 4))
    g = torch.rand_like(q).mul(-0.1).requires_grad_()
    linear = (q, k, v, g, torch.zeros(rows, 4, width // 8, width // 4))
    table["gla, recurrence"] = (training(lambda *x: gla(*x)[0], *linear), "a loop over time in torch",
                                training(lambda *x: gla_reference(*x)[0], *linear))
    table["gla"] = (training(GatedLinearAttention(width), x), "our attention", training(Attention(width), x))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("width", 256), ("length", 256), ("rows", 8), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.manual_seed(0)
    tokens, results = given.rows * given.length, []
    print(f"{machine()}, {torch.get_num_threads()} threads; torch {torch.__version__}, float32; {given.rows} rows of "
          f"{given.length} tokens, width {given.width}\n")
    print("| forward and backward | tokens/s | peer | its tokens/s | ratio |\n|---|---:|---|---:|---:|")
    for name, (ours, peer, theirs) in peers(given.rows, given.length, given.width).items():
        taken: tuple[list[float], list[float]] = [], []
        for _ in range(given.rounds + 1):  # the first round warms up
            for times, step in zip(taken, (ours, theirs)):
                begin = time.perf_counter()
                step()
                times.append(time.perf_counter() - begin)
        mine, other = (tokens / statistics.median(times[1:]) for times in taken)
        results.append({"name": name, "tokens_per_second": mine, "peer": peer, "peer_tokens_per_second": other})
        print(f"| {name} | {mine:,.0f} | {peer} | {other:,.0f} | {mine / other:.2f} |", flush=True)
    if given.json:
        given.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
