"""Speed of the mixers, forward alone and forward and backward, beside the peers that a user would pick, in one run.

    python benchmarks/mixers.py [--width 256] [--lengths 512 2048 8192 32768] [--tokens 4096] [--rounds 5]
                                [--only MIXER ...]

Rows of a batch are `--tokens` over the length, at least one. Rounds of all contenders alternate and the median counts,
so that a busy machine troubles all alike. Peers: torch's own modules for attention and the recurrences; x-transformers;
the torch forms that transformers' Mamba, Mamba-2, xLSTM, RWKV and gated DeltaNet take on CPUs; mambapy; and for kernels
alone, the same recurrence as torch operations, or as transformers has it. xLSTM is measured as it comes, with queries
and keys half as wide as ours, and with equal ones; its projections are dense, ours a convolution and small blocks.
Both delta rules have an output gate; the peer's memory fades, too. Who would need over 20 seconds for a step, as a
shorter length says, or more memory than there is, is left out: lengths below those asked for are run once, too, and not
recorded. Needs the extra `bench`, mambapy and x-transformers; what is not installed is not measured. Rows are kept in
results/mixers.jsonl, the page is results/mixers.md: the latest of each, so that after `--only` it has rows of several
runs.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from segue.kernels.gla import gla, gla_reference
from segue.kernels.mlstm import EMPTY, mlstm
from segue.kernels.scan import linear_scan, linear_scan_reference, selective_scan, selective_scan_reference
from segue.mixers import GRU, LSTM, MLSTM, Attention, DeltaNet, GatedLinearAttention, Mamba, Mamba2
from segue.training.recipe import machine

HERE = Path(__file__).parent / "results"
PATIENCE = 20.0  # seconds that a step may take
Contender = Callable[[], Tensor]


def torch_attention(width: int, heads: int = 4) -> nn.Module:
    class Plain(nn.Module):
        """Projections around `scaled_dot_product_attention`."""

        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
            y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            return self.out(y.transpose(1, 2).flatten(2))

    return Plain()


def x_transformers(width: int) -> nn.Module:
    from x_transformers.x_transformers import Attention as Peer

    return Peer(width, dim_head=64, heads=width // 64, causal=True, flash=True)


def mambapy(width: int) -> nn.Module:
    from mambapy.mamba import MambaBlock, MambaConfig

    return MambaBlock(MambaConfig(d_model=width, n_layers=1))


def transformers_mamba(width: int) -> nn.Module:
    from transformers import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer

    return MambaMixer(MambaConfig(hidden_size=width, state_size=16), layer_idx=0)


def transformers_mamba2(width: int) -> nn.Module:
    from transformers import Mamba2Config
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    return Mamba2Mixer(Mamba2Config(hidden_size=width, num_heads=width // 32, head_dim=64, state_size=64, n_groups=1,
                                    chunk_size=64, num_hidden_layers=1), layer_idx=0)


def transformers_xlstm(width: int, queries: float = 0.5) -> nn.Module:
    from transformers import xLSTMConfig
    from transformers.models.xlstm.modeling_xlstm import xLSTMLayer

    return xLSTMLayer(xLSTMConfig(hidden_size=width, num_hidden_layers=1, num_heads=4, mode="train",
                                  qk_dim_factor=queries, autocast_kernel_dtype="float32"))


def transformers_rwkv(width: int) -> nn.Module:
    from transformers import RwkvConfig
    from transformers.models.rwkv.modeling_rwkv import RwkvSelfAttention

    return RwkvSelfAttention(RwkvConfig(hidden_size=width, num_hidden_layers=1))


def transformers_deltanet(width: int) -> nn.Module:
    from transformers import Qwen3NextConfig
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

    return Qwen3NextGatedDeltaNet(Qwen3NextConfig(
        hidden_size=width, num_hidden_layers=1, layer_types=["linear_attention"], linear_num_value_heads=4,
        linear_num_key_heads=4, linear_key_head_dim=width // 4, linear_value_head_dim=width // 4), layer_idx=0)


LAYERS: list[tuple[str, Callable[[int], nn.Module], dict[str, Callable[[int], nn.Module]]]] = [
    ("attention", lambda width: Attention(width, positions="none"),
     {"torch SDPA": torch_attention, "x-transformers": x_transformers}),
    ("lstm", LSTM, {"torch nn.LSTM": lambda width: nn.LSTM(width, width, batch_first=True)}),
    ("gru", GRU, {"torch nn.GRU": lambda width: nn.GRU(width, width, batch_first=True)}),
    ("mamba", Mamba, {"transformers Mamba": transformers_mamba, "mambapy": mambapy}),
    ("mamba2", Mamba2, {"transformers Mamba-2": transformers_mamba2}),
    ("mlstm", lambda width: MLSTM(width, expand=1), {
        "transformers xLSTM, queries half as wide": transformers_xlstm,
        "transformers xLSTM, queries as wide": lambda width: transformers_xlstm(width, 1.0)}),
    ("gla", GatedLinearAttention, {"transformers RWKV": transformers_rwkv}),
    ("deltanet", lambda width: DeltaNet(width, gate=True),
     {"transformers gated DeltaNet": transformers_deltanet}),
]


def layers(rows: int, length: int, width: int) -> dict[str, dict[str, Contender]]:
    """By mixer: first ours, then what is installed of the peers, on one input."""
    x = torch.randn(rows, length, width, requires_grad=True)

    def contender(module: nn.Module) -> Contender:
        def run() -> Tensor:
            y = module(x)
            return y[0] if isinstance(y, tuple) else y

        return run

    table: dict[str, dict[str, Contender]] = {}
    for name, ours, theirs in LAYERS:
        table[name] = {"segue": contender(ours(width))}
        for peer, make in theirs.items():
            try:
                table[name][peer] = contender(make(width))
            except ImportError as error:
                print(f"{peer} is not measured: {error}")
    return table


def kernels(rows: int, length: int, width: int) -> dict[str, dict[str, Contender]]:
    """Recurrences alone, beside the same in torch."""

    def inputs(*shapes: tuple[int, ...]) -> list[Tensor]:
        return [torch.randn(*shape, requires_grad=True) for shape in shapes]

    inner, states = 2 * width, 16
    u, B, C, D = inputs((rows, length, inner), (rows, length, states), (rows, length, states), (inner,))
    dt = torch.rand(rows, length, inner).mul_(0.1).requires_grad_()
    A = (-torch.rand(inner, states).add_(0.1)).requires_grad_()
    scan = (u, dt, A, B, C, D, torch.zeros(rows, inner, states))
    decay = torch.polar(torch.rand(1, 1, width), torch.rand(1, 1, width)).requires_grad_()
    wave = (decay, torch.randn(rows, length, width, dtype=torch.complex64, requires_grad=True),
            torch.zeros(rows, width, dtype=torch.complex64))
    q, k, v = inputs(*[(rows, length, 4, width // 8)] * 2, (rows, length, 4, width // 4))
    g = torch.rand_like(q).mul(-0.1).requires_grad_()
    linear = (q, k, v, g, torch.zeros(rows, 4, width // 8, width // 4))
    table = {"selective scan": {"segue": lambda: selective_scan(*scan)[0],
                                "log2(T) passes of torch": lambda: selective_scan_reference(*scan)[0]},
             "linear scan, complex": {"segue": lambda: linear_scan(*wave).real,
                                      "a loop of torch": lambda: linear_scan_reference(*wave).real},
             "gla, recurrence": {"segue": lambda: gla(*linear)[0],
                                 "a loop of torch": lambda: gla_reference(*linear)[0]}}
    q, k, v = inputs(*[(rows, length, 4, width // 4)] * 3)
    enter, forget = inputs(*[(rows, length, 4)] * 2)
    memory = (torch.zeros(rows, 4, width // 4, width // 4 + 1), torch.full((rows, 4), EMPTY))
    table["mlstm, recurrence"] = {"segue": lambda: mlstm(q, k, v, enter, forget, *memory)[0]}
    try:
        from transformers.models.xlstm.modeling_xlstm import mlstm_chunkwise_native_autograd as peer
    except ImportError as error:
        print(f"transformers xLSTM is not measured: {error}")
    else:
        turned = [x.detach().transpose(1, 2).contiguous().requires_grad_() for x in (q, k, v, enter, forget)]
        table["mlstm, recurrence"]["transformers xLSTM"] = lambda: peer(*turned)
    return table


def once(run: Contender, backward: bool) -> float:
    begin = time.perf_counter()
    if backward:
        run().sum().backward()
    else:
        with torch.no_grad():
            run()
    return time.perf_counter() - begin


def timed(contenders: dict[str, Contender], backward: bool, rounds: int, slow: set[str]) -> dict[str, float]:
    """Median seconds of each that is not `slow`."""
    taken: dict[str, list[float]] = {name: [] for name in contenders if name not in slow}
    for _ in range(rounds + 1):  # the first round warms up, but for those that one round of takes long
        for name, times in list(taken.items()):
            if sum(times) < PATIENCE:
                try:
                    times.append(once(contenders[name], backward))
                except RuntimeError as error:
                    if name == "segue" or "allocate memory" not in str(error):
                        raise
                    del taken[name]
    return {name: statistics.median(times[1:] or times) for name, times in taken.items()}


def part(length: int, width: int, tokens: int, rounds: int, slow: set[str], only: list[str],
         ) -> Iterator[dict[str, object]]:
    rows = max(1, tokens // length)
    for make in (layers, kernels):
        for name, contenders in make(rows, length, width).items():
            if only and name not in only:
                continue
            forward = timed(contenders, False, rounds, slow)
            slow |= contenders.keys() - forward.keys()
            both = timed(contenders, True, rounds, slow)
            grown = 4 * max(4 * length, tokens) / (rows * length)  # at most, at the next length
            slow |= {peer for peer, seconds in both.items() if peer != "segue" and seconds * grown > PATIENCE}
            for peer in list(contenders)[1:]:
                row: dict[str, object] = {"length": length, "rows": rows, "width": width, "mixer": name, "peer": peer,
                                          "tokens_per_second": round(rows * length / both["segue"])}
                if peer in both:
                    row |= {"forward": round(forward[peer] / forward["segue"], 2),
                            "both": round(both[peer] / both["segue"], 2)}
                print(row, flush=True)
                yield row


def page(record: list[dict]) -> str:
    lengths = sorted({row["length"] for row in record})
    cells = {(row["mixer"], row["peer"], row["length"]): row for row in record}
    lines = ["# Speed of the mixers", "",
             f"`python benchmarks/mixers.py` on {record[-1]['machine']}; float32, width {record[-1]['width']}. How many"
             " times as fast as the peer we are, forward / forward and backward, and our tokens per second in training."
             " -: the peer would need over 20 seconds for a step, or more memory than there is.", "",
             "| | beside | " + " | ".join(f"{length:,}" for length in lengths) + " |",
             "|---|---|" + "---|" * len(lengths)]
    for mixer, peer in dict.fromkeys((row["mixer"], row["peer"]) for row in record):
        shown = []
        for length in lengths:
            cell = cells.get((mixer, peer, length))
            ratio = "" if cell is None else f"{cell['forward']:.2f} / {cell['both']:.2f}" if "both" in cell else "-"
            shown.append(f"{ratio} ({cell['tokens_per_second']:,}/s)" if cell else "")
        lines.append(f"| {mixer} | {peer} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("width", 256), ("tokens", 4096), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2048, 8192, 32768])
    parser.add_argument("--only", nargs="*", default=[], metavar="MIXER")
    given = parser.parse_args()
    torch.manual_seed(0)
    logging.disable(logging.WARNING)
    HERE.mkdir(exist_ok=True)
    file, slow = HERE / "mixers.jsonl", set[str]()
    here = f"{machine()}, {torch.get_num_threads()} threads"
    most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 8 * 7
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))  # so that who needs more fails, and nobody else
    shorter = [512 * 4**k for k in range(8) if 512 * 4**k < min(given.lengths)]
    for length in shorter + given.lengths:
        rounds = 0 if length in shorter else given.rounds
        for row in part(length, given.width, given.tokens, rounds, slow, given.only):
            if length in shorter:
                continue
            with open(file, "a") as handle:
                handle.write(json.dumps(row | {"machine": here}) + "\n")
    record = {(r["mixer"], r["peer"], r["length"]): r for r in map(json.loads, file.read_text().splitlines())}
    (HERE / "mixers.md").write_text(page(list(record.values())))


if __name__ == "__main__":
    main()
