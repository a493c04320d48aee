"""fla's kernels under our contracts, and our Triton scans: what maps onto them on any machine, the kernels on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gradients import agree
from gradients import with_gradients as on_cpu
from interpreted import interpret
from torch import Tensor

from segue.kernels import delta as delta_module
from segue.kernels import fla
from segue.kernels import scan as scan_module
from segue.kernels import ssd as ssd_module
from segue.kernels.delta import delta, delta_reference, normalise_qk
from segue.kernels.gla import gla, gla_reference
from segue.kernels.scan import linear_scan, linear_scan_reference, selective_scan, selective_scan_reference
from segue.kernels.ssd import ssd, ssd_reference
from segue.mixers import MIXERS

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use")
FLA = pytest.mark.skipif(not fla._installed(), reason="fla-core is not installed")
ROWS, HEADS = 3, 2


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gla_inputs(length: int, keys: int, values: int, gated: bool = True) -> list[Tensor]:
    q, k = (normal(ROWS, length, HEADS, keys, seed=seed) * keys**-0.5 for seed in (0, 1))
    v, state = normal(ROWS, length, HEADS, values, seed=2), normal(ROWS, HEADS, keys, values, seed=3)
    g = F.logsigmoid(normal(ROWS, length, HEADS, keys, seed=4)).clamp(-5)
    return [q, k, v, *([g] if gated else []), state]


def delta_inputs(length: int, keys: int, values: int, writes: int) -> list[Tensor]:
    q, k = normal(ROWS, length, HEADS, keys, seed=0), normal(ROWS, length, writes, HEADS, keys, seed=1)
    q, k = normalise_qk(q, k, 1e-6)
    beta = 1.6 * torch.sigmoid(normal(ROWS, length, writes, HEADS, seed=4))
    return [q, k, normal(ROWS, length, writes, HEADS, values, seed=2), beta, normal(ROWS, HEADS, keys, values, seed=3)]


def ssd_inputs(length: int, keys: int, values: int, heads: int = 4, groups: int = 2) -> list[Tensor]:
    u = normal(ROWS, length, heads * values + 2 * groups * keys, seed=0) * keys**-0.25
    write = F.softplus(normal(ROWS, length, heads, seed=1))
    return [u, write, -write, normal(heads, seed=2), normal(ROWS, heads, keys, values, seed=3)]


def unforgetting_attention(q: Tensor, k: Tensor, v: Tensor, state: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    """Linear attention that never forgets."""
    run = gla if len(others) == 2 else gla_reference
    return run(q, k, v, None, state, *others)


def documents(length: int) -> Tensor:
    """Starts at the first place of one row, at the last of another, in a crowd, and none in the third."""
    starts = torch.zeros(ROWS, length, dtype=torch.bool)
    starts[0, 0] = starts[1, -1] = True
    starts[1, length // 3 : length // 3 + 2] = True
    return starts


# --- what maps onto the kernels, with loops in their place ----------------------------------------------------------


def pieces(rule: Any) -> Any:
    """A kernel of fla's form from a loop over one document at a time."""

    def kernel(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        *sequences, state, edges = inputs
        assert state.dtype == torch.float32 and all(x.shape[-1] == fla.LEAST for x in sequences[:3])
        if edges is None:
            return rule(*sequences, state)
        assert len(state) == len(edges) - 1 and all(len(x) == 1 for x in sequences)
        assert (edges.diff() > 0).all() and edges[-1] == sequences[0].shape[1]
        results = [rule(*(x[:, a:b] for x in sequences), state[i : i + 1])
                   for i, (a, b) in enumerate(zip(edges, edges[1:]))]
        return torch.cat([y for y, _ in results], 1), torch.cat([final for _, final in results])

    return kernel


def simple_rule(q: Tensor, k: Tensor, v: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
    *g, state = rest
    return gla_reference(q, k, v, g[0][..., None].expand_as(k) if g else None, state)


def delta_rule(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    return delta_reference(q, k[:, :, None], v[:, :, None], beta[:, :, None], state)


@pytest.fixture
def loops(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """All calls go to fla, whose kernels are replaced by loops."""
    monkeypatch.setattr(fla, "supports", lambda kernel, v, keys: v.shape[1] > 1)
    for module in (delta_module, ssd_module):
        monkeypatch.setattr(module, "runs_compiled", lambda *_: False)
    for name, rule in (("_gla", gla_reference), ("_simple_gla", simple_rule), ("_delta", delta_rule)):
        monkeypatch.setattr(fla, name, pieces(rule))
    yield


CASES = {"gla": (gla, gla_reference, lambda length: gla_inputs(length, 24, 40)),
         "linear": (unforgetting_attention, unforgetting_attention,
                    lambda length: gla_inputs(length, 16, 5, gated=False)),
         "delta": (delta, delta_reference, lambda length: delta_inputs(length, 24, 40, 1)),
         "three steps": (delta, delta_reference, lambda length: delta_inputs(length, 8, 16, 3)),
         "ssd": (ssd, ssd_reference, lambda length: ssd_inputs(length, 24, 40))}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("length", [1, 2, 19])
@pytest.mark.parametrize("packed", [False, True])
def test_documents_steps_and_widths_map_onto_a_kernel(name: str, length: int, packed: bool, loops: None) -> None:
    run, reference, make = CASES[name]
    inputs, starts = [x.float() for x in make(length)], documents(length) if packed else None
    agree(on_cpu(lambda *x: run(*x, starts, None), inputs), on_cpu(lambda *x: reference(*x, starts), inputs), 2e-5)


@pytest.mark.parametrize("name", CASES)
def test_elements_past_the_length_do_not_matter(name: str, loops: None) -> None:
    run, reference, make = CASES[name]
    inputs, lengths, starts = [x.float() for x in make(19)], torch.tensor([0, 7, 19]), documents(19)
    y, final = run(*inputs, starts, lengths)
    for row, end in enumerate(lengths):
        single = [x[row : row + 1] if x.dim() > 1 else x for x in inputs]
        single = [x[:, :end] if x.dim() > 2 and x.shape[1] == 19 else x for x in single]
        expected = reference(*single, starts[row : row + 1, :end])
        agree([y[row : row + 1, :end], final[row : row + 1]], list(expected), 2e-5)


def test_a_length_that_forgets_its_least_is_kept_by_the_delta_rule(loops: None) -> None:
    inputs = [x.float() for x in delta_inputs(19, 24, 40, 1)]
    inputs[1] = 3 * inputs[1]
    q, k = normalise_qk(*inputs[:2], 0.01)
    agree(list(delta(*inputs, None, None, 0.01)), list(delta_reference(q, k, *inputs[2:])), 2e-5)


@pytest.mark.parametrize("kernel", ["gla", "linear", "delta", "ssd"])
@pytest.mark.parametrize("spoilt", [False, True])
def test_a_wrong_kernel_is_detected(kernel: str, spoilt: bool, loops: None, monkeypatch: pytest.MonkeyPatch) -> None:
    if spoilt:
        name = {"gla": "_gla", "delta": "_delta"}.get(kernel, "_simple_gla")
        real = getattr(fla, name)
        monkeypatch.setattr(fla, name, lambda q, *x: real(torch.cat([q[..., :32], 0 * q[..., 32:]], -1), *x))
    arguments = (kernel, 2, 64, 64, torch.bfloat16, torch.device("cpu"))
    if spoilt:
        with pytest.warns(UserWarning, match=f"fla's kernel of '{kernel}' is off by"):
            assert not fla._matches_reference.__wrapped__(*arguments)
    else:
        assert fla._matches_reference.__wrapped__(*arguments)


def test_fla_supports_its_sizes_only() -> None:
    v = torch.zeros(1, 64, 2, 16, dtype=torch.bfloat16)
    assert not fla.supports("gla", v, 16)  # not on a GPU


# --- scans ----------------------------------------------------------------------------------------------------------


def scan_inputs(length: int, inner: int, states: int) -> list[Tensor]:
    u, dt = normal(ROWS, length, inner, seed=0), F.softplus(normal(ROWS, length, inner, seed=1) - 2)
    A, B, C = -normal(inner, states, seed=2).exp(), *(normal(ROWS, length, states, seed=seed) for seed in (3, 4))
    return [u, dt, A, B, C, normal(inner, seed=5), normal(ROWS, inner, states, seed=6)]


def linear_inputs(length: int, width: int, steady: bool) -> list[Tensor]:
    """steady: one decay for all rows and steps."""
    shape = (1, 1) if steady else (ROWS, length)
    return [torch.tanh(normal(*shape, width, 2, seed=0)), normal(ROWS, length, width, 2, seed=1),
            normal(ROWS, width, 2, seed=2)]


@pytest.mark.parametrize(("length", "inner", "states", "packed", "low"), [
    (1, 3, 1, True, 0.0), (7, 33, 5, True, -1.0), (70, 3, 3, True, 0.0), (64, 3, 4, False, -1.0)])
def test_the_triton_selective_scan_equals_the_reference(length: int, inner: int, states: int, packed: bool, low: float,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU through Triton's interpreter, in float64; over more than a span of steps."""
    interpret(monkeypatch)
    from segue.kernels.triton import scan as kernels

    inputs, starts = scan_inputs(length, inner, states), documents(length) if packed else None
    expected = on_cpu(lambda *x: selective_scan_reference(*x, starts, low), inputs)
    monkeypatch.setattr(scan_module, "runs_compiled", lambda *_, **__: True)
    monkeypatch.setattr(scan_module, "_selective", lambda x: (kernels.forward, kernels.backward))
    agree(on_cpu(lambda *x: selective_scan(*x, starts, low), inputs), expected, 1e-10)
    monkeypatch.setattr(scan_module, "_linear", lambda x: (kernels.linear, kernels.linear_backward))
    for steady in (False, True):
        inputs = linear_inputs(length, inner, steady)
        expected = on_cpu(lambda *x: linear_scan_reference(*x, starts), inputs)
        agree(on_cpu(lambda *x: linear_scan(*x, starts), inputs), expected, 1e-10)


# --- on a GPU -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quick() -> None:
    fla.limit_tuning(1)


def on_gpu(run: Any, inputs: list[Tensor], dtype: torch.dtype, wide: int, *others: Any) -> list[Tensor]:
    """Outputs and gradients, on the CPU in float64; the last `wide` inputs (gates, state) stay in float32."""
    kinds = [dtype] * (len(inputs) - wide) + [torch.float32] * wide
    gpu_inputs = [x.to("cuda", kind).requires_grad_() for x, kind in zip(inputs, kinds)]
    outputs = run(*gpu_inputs, *(x if x is None else x.cuda() for x in others))
    generator = torch.Generator().manual_seed(5)
    loss = sum((y.double() * torch.randn(y.shape, generator=generator, dtype=torch.float64).cuda()).sum()
               for y in outputs)
    results = [*outputs, *torch.autograd.grad(loss, gpu_inputs)]
    assert outputs[0].dtype == dtype
    return [x.detach().double().cpu() for x in results]


def is_close(actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """By the root of mean squares, which is what rounding in half precision does."""
    for index, (a, b) in enumerate(zip(actual, expected, strict=True)):
        error = float((a - b).detach().norm() / b.detach().norm().clamp_min(1e-6))
        assert a.shape == b.shape and error <= tolerance, f"{index}: {error:.2g}"


def spied(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of fla's kernels that are called from now on."""
    called: list[str] = []
    for kernel in ("_gla", "_simple_gla", "_delta"):
        real = getattr(fla, kernel)
        monkeypatch.setattr(fla, kernel, lambda *x, real=real, kernel=kernel: (called.append(kernel), real(*x))[1])
    return called


WIDE = {"gla": 2, "linear": 1, "delta": 2, "three steps": 2, "ssd": 4}
SIZED = {"gla": lambda length, keys, values: gla_inputs(length, keys, values),
         "linear": lambda length, keys, values: gla_inputs(length, keys, values, gated=False),
         "delta": lambda length, keys, values: delta_inputs(length, keys, values, 1),
         "three steps": lambda length, keys, values: delta_inputs(length, keys, values, 3),
         "ssd": lambda length, keys, values: ssd_inputs(length, keys, values)}


@GPU
@FLA
@pytest.mark.parametrize(("length", "keys", "values", "packed"), [
    (33, 64, 64, False), (513, 64, 64, True), (100, 24, 40, True), (100, 128, 256, True)])
@pytest.mark.parametrize("name", CASES)
def test_fla_kernels(name: str, length: int, keys: int, values: int, packed: bool, quick: None,
                     monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16, against loops of what bfloat16 made of the inputs."""
    called = spied(monkeypatch)
    run, reference, _ = CASES[name]
    inputs = SIZED[name](length, keys, values)
    rounded = [x.bfloat16().double() if index < len(inputs) - WIDE[name] else x for index, x in enumerate(inputs)]
    starts = documents(length) if packed else None
    expected = on_cpu(lambda *x: reference(*x, starts), rounded)
    is_close(on_gpu(run, rounded, torch.bfloat16, WIDE[name], starts, None), expected, 4e-2)
    assert called


@GPU
@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize(("length", "inner", "states", "packed", "low"), [
    (2, 40, 16, True, 0.0), (33, 64, 16, False, -1.0), (513, 100, 16, True, -1.0), (513, 96, 10, True, 0.0)])
def test_the_selective_scan(length: int, inner: int, states: int, packed: bool, low: float,
                            monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, starts = scan_inputs(length, inner, states), documents(length) if packed else None
    expected = on_cpu(lambda *x: selective_scan_reference(*x, starts, low), inputs)
    monkeypatch.setattr(scan_module, "selective_scan_reference", None)  # the kernels, nothing else
    is_close(on_gpu(lambda *x: selective_scan(*x, low), inputs, torch.float32, 0, starts), expected, 1e-5)
    for steady in (False, True):
        inputs = linear_inputs(length, inner, steady)
        expected = on_cpu(lambda *x: linear_scan_reference(*x, starts), inputs)
        is_close(on_gpu(lambda *x: (linear_scan(*x),), inputs, torch.float32, 0, starts), expected, 1e-5)


@GPU
@FLA
@pytest.mark.parametrize("name", ["gla", "ssd"])
def test_fla_kernels_in_float32_where_tf32_is_welcome(name: str, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    run, reference, _ = CASES[name]
    inputs = SIZED[name](100, 64, 64)
    expected = on_cpu(reference, inputs)
    for welcome, tolerance in ((False, 1e-4), (True, 1e-2)):
        monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", welcome)
        assert fla.supports(name, torch.zeros(1, 2, 1, 16, device="cuda"), 16) == welcome
        is_close(on_gpu(run, inputs, torch.float32, 0, None, None), expected, tolerance)


@GPU
@FLA
@pytest.mark.parametrize("name", CASES)
def test_short_long_and_ended_rows(name: str, quick: None) -> None:
    run, reference, _ = CASES[name]
    lengths = torch.tensor([0, 40, 100])
    for length in (1, 100):
        inputs = [x.float() for x in SIZED[name](length, 64, 64)]
        half = [x.cuda().bfloat16() if index < len(inputs) - WIDE[name] else x.cuda() for index, x in enumerate(inputs)]
        exact = [x.double().cpu() for x in half]
        ends = lengths.clamp(max=length)
        y, final = run(*half, None, ends.cuda())
        for row, end in enumerate(ends.tolist()):
            single = [x[row : row + 1] if x.dim() > 1 else x for x in exact]
            single = [x[:, :end] if x.dim() > 2 and x.shape[1] == length and index < len(inputs) - 1 else x
                      for index, x in enumerate(single)]
            expected = reference(*single, None)
            is_close([y[row, :end].double().cpu(), final[row].double().cpu()], [expected[0][0], expected[1][0]], 4e-2)


@GPU
@FLA
@pytest.mark.parametrize("name", ["gla", "deltanet", "mamba2"])
def test_mixers_reach_the_kernels_under_autocast(name: str, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    mixer, x, called = MIXERS[name](256), torch.randn(2, 100, 256), spied(monkeypatch)
    with torch.no_grad():
        expected = mixer(x)
        assert not called
        with torch.autocast("cuda", torch.bfloat16):
            y = mixer.cuda()(x.cuda())
    assert called
    is_close([y.double().cpu()], [expected.double()], 5e-2)
