"""Speed of the mixers, forward alone and forward and backward, beside the peers that a user would pick, in one run.

    python benchmarks/mixers.py [--width 256] [--lengths 512 2048 8192 32768] [--tokens 4096] [--rounds 5]
                                [--only MIXER ...]
    python benchmarks/mixers.py --device cuda [--precision bfloat16] [--width 1024] [--lengths 2048 8192]
                                [--tokens 16384] [--rounds 5] [--tilings 2] [--only MIXER ...]

Rows of a batch are `--tokens` over the length, at least one. Rounds of all contenders alternate and the median counts,
so that a busy machine troubles all alike. Peers: torch's own modules for attention and the recurrences; x-transformers;
the torch forms that transformers' Mamba, Mamba-2, xLSTM, RWKV and gated DeltaNet take on CPUs; mambapy; and for kernels
alone, the same recurrence as torch operations, or as transformers has it. xLSTM is measured by its defaults, queries
and keys half as wide as ours, and with equal ones; its projections are dense, ours a convolution and small blocks. Both
delta rules have an output gate; the peer's memory decays, too. A peer that would need over 20 seconds for a step, to
judge by a shorter length, or more memory than there is, is left out: lengths below the requested ones are run once,
too, and not recorded. Needs the extra `bench`, mambapy and x-transformers; what is not installed is not measured. Rows
are kept in results/mixers.jsonl, the page is results/mixers.md: the latest of each, so that after `--only` it has rows
of several runs.

On a GPU, rows and page are results/mixers-gpu.*: milliseconds and the most memory of every contender, which is one row;
layers run under autocast, kernels on tensors of the precision. Kernels are beside fla-core's, called as they are, and
beside our torch form. The row of a contender that fails has its error. fla-core tries at most `--tilings` of a kernel,
since trying all takes minutes, and `--rounds 0` records nothing: run it for each of `--only`, side by side, before, and
Triton's cache on the disk has what the table needs.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from segue.kernels import fla
from segue.kernels.delta import delta
from segue.kernels.gla import gla, gla_reference
from segue.kernels.mlstm import EMPTY, mlstm
from segue.kernels.scan import linear_scan, linear_scan_reference, selective_scan, selective_scan_reference
from segue.kernels.ssd import split_projection, ssd
from segue.mixers import GRU, LSTM, MLSTM, Attention, DeltaNet, GatedLinearAttention, Mamba, Mamba2
from segue.training.recipe import describe_machine

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
    """By mixer: first ours, then the installed peers, on one input."""
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
        peer_inputs = [x.detach().transpose(1, 2).contiguous().requires_grad_() for x in (q, k, v, enter, forget)]
        table["mlstm, recurrence"]["transformers xLSTM"] = lambda: peer(*peer_inputs)
    return table


def time_once(run: Contender, backward: bool) -> float:
    begin = time.perf_counter()
    if backward:
        run().sum().backward()
    else:
        with torch.no_grad():
            run()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def timed(contenders: dict[str, Contender], backward: bool, rounds: int, slow: set[str]) -> dict[str, float]:
    """Median seconds of each contender that is not `slow`."""
    times_by_name: dict[str, list[float]] = {name: [] for name in contenders if name not in slow}
    for _ in range(rounds + 1):  # the first round warms up, but for those that one round of takes long
        for name, times in list(times_by_name.items()):
            if sum(times) < PATIENCE:
                try:
                    times.append(time_once(contenders[name], backward))
                except RuntimeError as error:
                    if name == "segue" or "allocate memory" not in str(error):
                        raise
                    del times_by_name[name]
    return {name: statistics.median(times[1:] or times) for name, times in times_by_name.items()}


def length_rows(length: int, width: int, tokens: int, rounds: int, slow: set[str], only: list[str],
                ) -> Iterator[dict[str, object]]:
    rows = max(1, tokens // length)
    for make in (layers, kernels):
        for name, contenders in make(rows, length, width).items():
            if only and name not in only:
                continue
            forward = timed(contenders, False, rounds, slow)
            slow |= contenders.keys() - forward.keys()
            both = timed(contenders, True, rounds, slow)
            growth = 4 * max(4 * length, tokens) / (rows * length)  # at most, at the next length
            slow |= {peer for peer, seconds in both.items() if peer != "segue" and seconds * growth > PATIENCE}
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
    (main_machine, _), *others = Counter(row["machine"] for row in cells.values()).most_common()
    marks = {main_machine: "", **{name: " " + "*" * (i + 1) for i, (name, _) in enumerate(others)}}
    elsewhere = "".join(f" Where {mark.strip()} stands: on {name}." for name, mark in marks.items() if mark)
    lines = ["# Speed of the mixers", "",
             f"`python benchmarks/mixers.py` on {main_machine}; float32, width {record[-1]['width']}. How many"
             " times as fast as the peer we are, forward / forward and backward, and our tokens per second in training."
             f" -: the peer would need over 20 seconds for a step, or more memory than there is.{elsewhere}", "",
             "| | beside | " + " | ".join(f"{length:,}" for length in lengths) + " |",
             "|---|---|" + "---|" * len(lengths)]
    for mixer, peer in dict.fromkeys((row["mixer"], row["peer"]) for row in record):
        shown = []
        for length in lengths:
            cell = cells.get((mixer, peer, length))
            ratio = "" if cell is None else f"{cell['forward']:.2f} / {cell['both']:.2f}" if "both" in cell else "-"
            shown.append(f"{ratio} ({cell['tokens_per_second']:,}/s){marks[cell['machine']]}" if cell else "")
        lines.append(f"| {mixer} | {peer} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


# --- on a GPU -------------------------------------------------------------------------------------------------------


def gpu_layers(rows: int, length: int, width: int, precision: torch.dtype) -> dict[str, dict[str, Contender]]:
    """As `layers`, made when they are run, under autocast."""
    x = torch.randn(rows, length, width, device="cuda", requires_grad=True)

    def contender(make: Callable[[int], nn.Module]) -> Contender:
        modules: list[nn.Module] = []

        def run() -> Tensor:
            if not modules:
                modules.append(make(width).cuda())
            with torch.autocast("cuda", precision, enabled=precision != torch.float32):
                y = modules[0](x)
            return y[0] if isinstance(y, tuple) else y

        return run

    return {name: {"segue": contender(ours)} | {peer: contender(make) for peer, make in theirs.items()}
            for name, ours, theirs in LAYERS}


def normal(*shape: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    return (scale * torch.randn(*shape, device="cuda")).to(dtype).requires_grad_()


def in_torch(run: Callable[..., tuple[Tensor, ...]], *inputs: Any) -> Contender:
    """Our own torch form of a kernel that fla-core would serve."""
    def plain() -> Tensor:
        with mock.patch.object(fla, "supports", return_value=False):
            return run(*inputs)[0]

    return plain


def fla_kernel(name: str, package: str, *inputs: Tensor, **options: Any) -> Tensor:
    """The output of fla-core's kernel, called as it is."""
    from importlib import import_module

    run = getattr(import_module(f"fla.ops.{package}"), name)
    return run(*inputs, scale=1.0, output_final_state=True, **options)[0]


def gpu_gla(rows: int, length: int, width: int, precision: torch.dtype) -> dict[str, Contender]:
    heads, keys, values = 4, width // 8, width // 4
    q = normal(rows, length, heads, keys, dtype=precision, scale=keys**-0.5)
    k = normal(rows, length, heads, keys, dtype=precision)
    v = normal(rows, length, heads, values, dtype=precision)
    g = nn.functional.logsigmoid(torch.randn(rows, length, heads, keys, device="cuda")).div(16).requires_grad_()
    state = torch.zeros(rows, heads, keys, values, device="cuda")
    linear = (q, k, v, g, state)
    return {"segue": lambda: gla(*linear)[0], "our torch form": in_torch(gla, *linear),
            "fla chunk_gla": lambda: fla_kernel("chunk_gla", "gla", q, k, v, g=g, initial_state=state)}


def gpu_delta(rows: int, length: int, width: int, precision: torch.dtype) -> dict[str, Contender]:
    heads, values = 4, width // 4
    unit = partial(nn.functional.normalize, dim=-1)
    q, k = (unit(normal(rows, length, heads, values, dtype=precision)).detach().requires_grad_() for _ in range(2))
    v, beta = normal(rows, length, heads, values, dtype=precision), torch.rand(rows, length, heads, device="cuda")
    beta = beta.to(precision).requires_grad_()
    memory = torch.zeros(rows, heads, values, values, device="cuda")
    return {"segue": lambda: delta(q, k[:, :, None], v[:, :, None], beta[:, :, None], memory)[0],
            "our torch form": lambda: in_torch(delta, q, k[:, :, None], v[:, :, None], beta[:, :, None], memory)(),
            "fla chunk_delta_rule": lambda: fla_kernel("chunk_delta_rule", "delta_rule", q, k, v, beta,
                                                       initial_state=memory)}


def gpu_mamba2(rows: int, length: int, width: int, precision: torch.dtype) -> dict[str, Contender]:
    heads, states, inner = 2 * width // 64, 64, 2 * width
    u = normal(rows, length, inner + 2 * states, dtype=precision, scale=states**-0.25)
    skip = normal(heads, dtype=torch.float32)
    dt = torch.rand(rows, length, heads, device="cuda").mul(0.1).requires_grad_()
    A = torch.rand(heads, device="cuda").add(1).neg()
    state = torch.zeros(rows, heads, states, 64, device="cuda")

    def by_fla(name: str, package: str, wide: bool = False) -> Tensor:
        v, k, q = split_projection(u, state)
        q, k = (x.repeat_interleave(heads, 2) for x in (q, k))
        g = dt * A
        g = g[..., None].expand(*g.shape, states).contiguous() if wide else g
        y = fla_kernel(name, package, q, k, v * dt[..., None].to(v.dtype), g=g, initial_state=state)
        return (y + v * skip[:, None].to(v.dtype)).flatten(2)

    return {"segue": lambda: ssd(u, dt, dt * A, skip, state)[0],
            "our torch form": lambda: in_torch(ssd, u, dt, dt * A, skip, state)(),
            "fla chunk_simple_gla": lambda: by_fla("chunk_simple_gla", "simple_gla"),
            "fla fused_chunk_simple_gla": lambda: by_fla("fused_chunk_simple_gla", "simple_gla"),
            "fla chunk_gla, a decay per channel": lambda: by_fla("chunk_gla", "gla", True)}


def gpu_selective_scan(rows: int, length: int, width: int) -> dict[str, Contender]:
    inner, states, dtype = 2 * width, 16, torch.float32
    x, D = normal(rows, length, inner, dtype=dtype), normal(inner, dtype=dtype)
    B, C = (normal(rows, length, states, dtype=dtype) for _ in range(2))
    dt = torch.rand(rows, length, inner, device="cuda").mul_(0.1).requires_grad_()
    decays = (-torch.rand(inner, states, device="cuda").add_(0.1)).requires_grad_()
    scan = (x, dt, decays, B, C, D, torch.zeros(rows, inner, states, device="cuda"))
    return {"segue": lambda: selective_scan(*scan)[0],
            "log2(T) passes of torch": lambda: selective_scan_reference(*scan)[0]}


def gpu_kernels(rows: int, length: int, width: int, precision: torch.dtype) -> dict[str, dict[str, Contender]]:
    """The kernels alone: as our mixers call them, fla-core's on the same tensors, and our torch forms."""
    return {"gla, kernel": gpu_gla(rows, length, width, precision),
            "deltanet, kernel": gpu_delta(rows, length, width, precision),
            "mamba2, kernel": gpu_mamba2(rows, length, width, precision),
            "selective scan, kernel": gpu_selective_scan(rows, length, width)}


def gpu_timed(run: Contender, backward: bool, rounds: int) -> tuple[float, int] | str:
    """Median milliseconds and the peak bytes beyond those allocated before; or the error's text."""
    times = []
    try:
        for _ in range(rounds + 2):  # two warm up: the first compiles
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            times.append(1e3 * time_once(run, backward))
            peak = torch.cuda.max_memory_allocated() - before
            if rounds == 0 or sum(times[1:]) > 2e3 or times[0] > 1e3 * PATIENCE:
                break
    except ImportError:
        raise
    except Exception as error:  # a peer's failure is a row of the table
        torch.cuda.empty_cache()
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:120] if str(error).strip() else ''}"
    return statistics.median(times[2:] or times[-1:]), peak


def on_gpu(args: argparse.Namespace) -> None:
    try:
        fla.limit_tuning(args.tilings)
    except ImportError as error:
        print(f"fla-core is not measured: {error}", flush=True)
    file = HERE / "mixers-gpu.jsonl"
    try:
        for row in gpu_rows(args, getattr(torch, args.precision)):
            if args.rounds:
                with open(file, "a") as handle:
                    handle.write(json.dumps(row | {"machine": describe_machine()}) + "\n")
    finally:  # a kernel that broke the GPU's memory ends the run: what was measured before stays
        if args.rounds and file.exists():
            record = {(r["mixer"], r["who"], r["length"], r["width"], r["precision"]): r
                      for r in map(json.loads, file.read_text().splitlines())}
            (HERE / "mixers-gpu.md").write_text(gpu_page(list(record.values())))


def gpu_rows(args: argparse.Namespace, precision: torch.dtype) -> Iterator[dict[str, object]]:
    slow: set[tuple[str, str, bool]] = set()  # the next length would take too long
    for length in args.lengths:
        rows = max(1, args.tokens // length)
        tables = (make(rows, length, args.width, precision) for make in (gpu_kernels, gpu_layers))
        for name, contender, run in ((name, contender, run) for table in tables for name, contenders in table.items()
                                     for contender, run in contenders.items()):
            if args.only and name not in args.only and name.removesuffix(", kernel") not in args.only:
                continue
            row: dict[str, object] = {"length": length, "rows": rows, "width": args.width, "mixer": name,
                                      "who": contender, "precision": args.precision}
            try:
                for pass_name, backward in (("forward", False), ("both", True)):
                    if (name, contender, backward) in slow:
                        continue
                    measured = gpu_timed(run, backward, args.rounds)
                    if isinstance(measured, str):
                        row |= {f"{pass_name}_failed": measured}
                    else:
                        row |= {pass_name: round(measured[0], 3), f"{pass_name}_mib": round(measured[1] / 2**20)}
                        slow |= {(name, contender, backward)} if measured[0] > 1e3 else set()
            except ImportError as error:
                print(f"{contender} is not measured: {error}", flush=True)
                continue
            print(row, flush=True)
            yield row
            torch.cuda.empty_cache()


def gpu_page(record: list[dict]) -> str:
    """Each mixer's contenders side by side."""
    lines = ["# Speed of the mixers on a GPU", "",
             f"`python benchmarks/mixers.py --device cuda` on {record[-1]['machine']}. Milliseconds of forward, of"
             " forward and backward, and the most memory of the latter beyond the inputs. -: not measured, since a"
             " shorter length took over a second.", "",
             "| | who | width | length | rows | precision | forward, ms | both, ms | memory, MiB | tokens/s |",
             "|---|---|---|---|---|---|---|---|---|---|"]
    for row in sorted(record, key=lambda r: (r["mixer"], r["width"], r["length"], r["precision"])):
        cells = [f"{row[pass_name]:.3f}" if pass_name in row else row.get(f"{pass_name}_failed", "-").replace("|", "/")
                 for pass_name in ("forward", "both")]
        rate = f"{row['rows'] * row['length'] / row['both'] * 1e3:,.0f}" if "both" in row else ""
        lines.append(f"| {row['mixer']} | {row['who']} | {row['width']} | {row['length']:,} | {row['rows']} | "
                     f"{row['precision']} | {cells[0]} | {cells[1]} | {row.get('both_mib', '')} | {rate} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["float32", "bfloat16", "float16"], help="cuda only (default: bfloat16)")
    for name in ("width", "tokens"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tilings", type=int, default=2, help="cuda only")
    parser.add_argument("--lengths", type=int, nargs="+")
    parser.add_argument("--only", nargs="*", default=[], metavar="MIXER")
    args = parser.parse_args()
    defaults = {"cpu": ("float32", 256, 4096, [512, 2048, 8192, 32768]),
                "cuda": ("bfloat16", 1024, 16384, [2048, 8192])}
    for name, value in zip(("precision", "width", "tokens", "lengths"), defaults[args.device]):
        setattr(args, name, getattr(args, name) or value)
    torch.manual_seed(0)
    logging.disable(logging.WARNING)
    HERE.mkdir(exist_ok=True)
    if args.device == "cuda":
        return on_gpu(args)
    file, slow = HERE / "mixers.jsonl", set[str]()
    machine = f"{describe_machine()}, {torch.get_num_threads()} threads"
    memory_limit = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 8 * 7
    # so that who needs more fails, and nobody else
    resource.setrlimit(resource.RLIMIT_DATA, (memory_limit, memory_limit))
    shorter = [512 * 4**k for k in range(8) if 512 * 4**k < min(args.lengths)]
    for length in shorter + args.lengths:
        rounds = 0 if length in shorter else args.rounds
        for row in length_rows(length, args.width, args.tokens, rounds, slow, args.only):
            if length in shorter:
                continue
            with open(file, "a") as handle:
                handle.write(json.dumps(row | {"machine": machine}) + "\n")
    record = {(r["mixer"], r["peer"], r["length"]): r for r in map(json.loads, file.read_text().splitlines())}
    (HERE / "mixers.md").write_text(page(list(record.values())))


if __name__ == "__main__":
    main()
