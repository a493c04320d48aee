"""The chunked Triton kernels of flash-linear-attention (Yang & Zhang 2024; package `fla-core`) for gated linear
attention, the delta rule and state space duality on GPUs, with the interfaces of `segue.kernels.gla`, `delta`, `ssd`.

fla keeps the states between chunks in the dtype of the values, and multiplies float32 in TF32 at best. So half
precision always uses these kernels, float32 only if `torch.backends.cuda.matmul.allow_tf32` is set, and never for the
delta rule, which fla has in half precision only. The last state is float32.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from segue.kernels.compiled import has_triton

MOST_KEYS = 256  # fla's delta rule has no wider keys
LEAST = 64  # a width on the kernels' side: with narrower keys, some of fla's were wrong on an H100
Pair = tuple[Tensor, Tensor]


def supports(kernel: str, v: Tensor, keys: int) -> bool:
    """Whether fla's kernel "gla", "linear", "ssd" or "delta" takes values v (B, T, H, ...) with keys of this width."""
    tf32 = torch.backends.cuda.matmul.allow_tf32 and kernel != "delta"
    kinds = (torch.bfloat16, torch.float16, *((torch.float32,) if tf32 else ()))
    return (v.device.type == "cuda" and v.dtype in kinds and v.shape[1] > 1 and v.numel() > 0
            and 0 < keys <= MOST_KEYS and not torch.compiler.is_compiling() and _installed()
            and _matches_reference(kernel, v.shape[-2], _pad_widths(keys), _pad_widths(v.shape[-1]), v.dtype, v.device))


def gla(q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, state: Tensor, starts: Tensor | None) -> Pair:
    """As `segue.kernels.gla.gla_reference`."""
    q, k = q.to(v.dtype), k.to(v.dtype)
    if g is None:
        return _by_documents(_simple_gla, (q, k, v), (), state, starts)
    return _by_documents(_gla, (q, k, v, g.float()), (), state, starts)


def ssd(q: Tensor, k: Tensor, v: Tensor, g: Tensor, state: Tensor, starts: Tensor | None) -> Pair:
    """As `segue.kernels.ssd`, with q, k: (B, T, G, K), each shared by H / G heads; v: (B, T, H, E), times the write
    strength; g: (B, T, H)."""
    q, k = (x.to(v.dtype).repeat_interleave(v.shape[2] // x.shape[2], 2) for x in (q, k))
    return _by_documents(_simple_gla, (q, k, v), (g.float(),), state, starts)


def delta(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: Tensor, starts: Tensor | None) -> Pair:
    """As `segue.kernels.delta.delta_reference`: M steps per token become M tokens, of which the last has the query."""
    many = k.shape[2]
    q = _pad(q[:, :, None], (0, 0, 0, 0, many - 1, 0)).flatten(1, 2)
    k, v, beta = (x.flatten(1, 2) for x in (k, v, beta))
    starts = None if starts is None else F.pad(starts[..., None], (0, many - 1)).flatten(1)
    y, final = _by_documents(_delta, (q.to(v.dtype), k.to(v.dtype), v), (beta.to(v.dtype),), state, starts)
    return y[:, many - 1 :: many], final


def _by_documents(kernel: Callable[..., Pair], wide: tuple[Tensor, ...], narrow: tuple[Tensor, ...], state: Tensor,
                  starts: Tensor | None) -> Pair:
    """Run a kernel over rows in which documents start.

    kernel: takes `wide` (B, T, H, X), `narrow` (B, T, H), states (N, H, K, E) and edges. With edges (N + 1,) there is
    one row, with a document from each edge to the next, and a state for each; None: each row is a document. Widths are
    padded with zeros to powers of two of at least LEAST.
    """
    (rows, length), (keys, values) = wide[0].shape[:2], state.shape[2:]
    wide = tuple(_pad(x, (0, _pad_widths(x.shape[-1]) - x.shape[-1])) for x in wide)
    state = _pad(state.float(), (0, _pad_widths(values) - values, 0, _pad_widths(keys) - keys))
    if starts is None:
        y, final = kernel(*wide, *narrow, state, None)
    else:
        begins = starts.clone()
        begins[:, 0] = True
        first = begins.flatten().nonzero()[:, 0]
        row = first // length
        carries = (first % length == 0) & ~starts[row, 0]  # only what begins its row and is no start goes on
        y, final = kernel(*(x.flatten(0, 1)[None] for x in (*wide, *narrow)),
                          torch.where(carries[:, None, None, None], state[row], 0.0),
                          F.pad(first, (0, 1), value=rows * length))
        y = y[0].unflatten(0, (rows, length))
        final = final[torch.searchsorted(row, torch.arange(rows, device=row.device), right=True) - 1]
    return y[..., :values], final[..., :keys, :values]


def _pad_widths(width: int) -> int:
    return max(LEAST, 1 << (width - 1).bit_length())


def _pad(x: Tensor, by: tuple[int, ...]) -> Tensor:
    """Pad with zeros, without a copy where nothing is added."""
    return F.pad(x, by) if any(by) else x


def _gla(q: Tensor, k: Tensor, v: Tensor, g: Tensor, state: Tensor, edges: Tensor | None) -> Pair:
    from fla.ops.gla import chunk_gla

    return chunk_gla(q, k, v, g, scale=1.0, initial_state=state, output_final_state=True, cu_seqlens=edges)


def _simple_gla(q: Tensor, k: Tensor, v: Tensor, *rest: Tensor | None) -> Pair:
    """rest: g or nothing, the states, the edges."""
    from fla.ops.simple_gla import chunk_simple_gla, fused_chunk_simple_gla

    *g, state, edges = rest
    # With decays, the gradient of the one that is not fused is wrong on Hopper with Triton 3.4 to 3.7.0.
    run = fused_chunk_simple_gla if g else chunk_simple_gla
    return run(q, k, v, g=g[0] if g else None, scale=1.0, initial_state=state, output_final_state=True,
               cu_seqlens=edges)


def _delta(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: Tensor, edges: Tensor | None) -> Pair:
    from fla.ops.delta_rule import chunk_delta_rule

    return chunk_delta_rule(q, k, v, beta, scale=1.0, initial_state=state, output_final_state=True, cu_seqlens=edges)


@cache
def _installed() -> bool:
    found = find_spec("fla")
    return found is not None and found.origin is not None and has_triton()


@cache
def _matches_reference(kernel: str, heads: int, keys: int, values: int, kind: torch.dtype,
                       device: torch.device) -> bool:
    """Whether a kernel agrees with the plain loop on this machine at these sizes, gradients included: some versions of
    Triton's compiler were seen to make wrong kernels without any error."""
    from segue.kernels.delta import delta_reference
    from segue.kernels.gla import gla_reference

    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(2, 80, heads, *shape, generator=generator, device=device)

    def ours(q: Tensor, k: Tensor, v: Tensor, gate: Tensor) -> Pair:
        if kernel == "delta":
            return delta(q, k[:, :, None], v[:, :, None], gate[:, :, None], state, starts)
        if kernel == "ssd":
            return ssd(q, k, v, gate, state, starts)
        return gla(q, k, v, None if kernel == "linear" else gate, state, starts)

    def loop(q: Tensor, k: Tensor, v: Tensor, gate: Tensor) -> Pair:
        if kernel == "delta":
            return delta_reference(q, k[:, :, None], v[:, :, None], gate[:, :, None], state, starts)
        wide = gate[..., None].expand_as(k) if kernel == "ssd" else gate
        return gla_reference(q, k, v, None if kernel == "linear" else wide, state, starts)

    def answers(run: Callable[..., Pair], inputs: list[Tensor]) -> list[Tensor]:
        given = [x.detach().requires_grad_() for x in inputs]
        y, final = run(*given)
        loss = (y.float() * weights).sum()
        return [y.detach(), final.detach(), *torch.autograd.grad(loss, given, materialize_grads=True)]

    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        gate = torch.sigmoid(normal()).to(kind) if kernel == "delta" else F.logsigmoid(
            normal(*[keys] * (kernel != "ssd")))
        q, k = (F.normalize(normal(keys), dim=-1).to(kind) for _ in range(2))
        weights, state = normal(values), normal(keys, values)[:, 0]
        starts = torch.zeros(2, 80, dtype=torch.bool, device=device)
        starts[1, 33] = True
        inputs = [q, k, normal(values).to(kind), gate]
        found, expected = answers(ours, inputs), answers(loop, [x.float() for x in inputs])
    off = max(float((a.float() - b).norm() / b.norm().clamp(min=1e-6)) for a, b in zip(found, expected))
    if not off <= 0.05:  # not a number is wrong, too
        warnings.warn(f"fla's kernel of '{kernel}' is off by {off:.0%} on this GPU with {heads} heads of {keys} and "
                      f"{values}: torch does it, slower", stacklevel=2)
    return off <= 0.05


def limit_tuning(most: int) -> None:
    """Let fla try at most so many tilings of each kernel when it first runs: trying all takes minutes."""
    import fla.ops.delta_rule
    import fla.ops.gla
    import fla.ops.simple_gla  # noqa: F401
    from triton.runtime.autotuner import Autotuner
    from triton.runtime.jit import KernelInterface

    for module in [module for name, module in sys.modules.items() if name.startswith("fla.")]:
        for kernel in vars(module).values():
            found: Any = kernel
            while isinstance(found, KernelInterface):
                if isinstance(found, Autotuner):
                    found.configs = sorted(found.configs, key=lambda c: (c.num_warps != 4, c.num_stages))[:most]
                found = getattr(found, "fn", None)
