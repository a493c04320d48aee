"""Fast kernels agree with their naive references, forward and backward."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from gradients import agree, with_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from segue.kernels import compiled
from segue.kernels.convolution import (
    long_convolution,
    long_convolution_reference,
    short_convolution,
    short_convolution_reference,
)
from segue.kernels.dropout import Dropout
from segue.kernels.gla import FLOOR, gla, gla_reference
from segue.kernels.norm import gated_norm, gated_norm_reference
from segue.kernels.scan import (
    diagonal_kernel,
    diagonal_scan,
    diagonal_scan_reference,
    linear_scan,
    linear_scan_reference,
    selective_scan,
    selective_scan_reference,
)

EXAMPLES = settings(max_examples=15, deadline=None, derandomize=True, database=None)
KINDS = [torch.float64, torch.float32]
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-4, torch.complex128: 1e-11, torch.complex64: 2e-4}


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """No compiled loops."""
    monkeypatch.setattr(compiled, "COMPILED_FROM", 10**9)


def test_short_rows_are_compiled_only_for_large_training_batches() -> None:
    large, small = torch.zeros(32, 8, 4), torch.zeros(4, 8, 4)
    assert not compiled.runs_compiled(large) and compiled.runs_compiled(torch.zeros(1, 32, 4))
    large, small = large.requires_grad_(), small.requires_grad_()
    assert compiled.runs_compiled(large) and not compiled.runs_compiled(small)
    with torch.no_grad():
        assert not compiled.runs_compiled(large)


def test_the_exponential_of_the_empty_state_is_zero() -> None:
    from numba import njit

    from segue.kernels.cpu import simd

    run = njit(lambda x: simd.exp(x))
    assert [run(np.float32(x)) for x in (-1e30, -88, -np.inf)] == [0, 0, 0] and np.isnan(run(np.float32(np.nan)))
    for x in np.linspace(-87, 88, 50, dtype=np.float32):
        assert run(x) == pytest.approx(np.exp(np.float64(x)), rel=3e-7)


def linear_inputs(rows: int, length: int, shape: tuple[int, ...], dtype: torch.dtype, seed: int,
                  same: tuple[bool, bool] = (False, False)) -> list[Tensor]:
    """same: whether all rows, and all nodes, have the same decays."""
    g = torch.Generator().manual_seed(seed)
    a = torch.rand(*(1 if s else n for s, n in zip(same, (rows, length))), *shape, generator=g, dtype=torch.float64)
    a = a * 2 - 1  # signed
    if dtype.is_complex:
        a = a * torch.exp(6j * torch.rand(a.shape, generator=g, dtype=torch.float64))
    a = a.masked_fill(torch.rand(a.shape, generator=g) < 0.1, 0.0)
    wide = torch.promote_types(dtype, torch.float64)
    b = torch.randn(rows, length, *shape, generator=g, dtype=wide)
    initial = torch.randn(rows, *shape, generator=g, dtype=wide)
    return [x.to(dtype) for x in (a, b, initial)]


def selective_inputs(rows: int, length: int, inner: int, states: int, dtype: torch.dtype, seed: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    normal = partial(torch.randn, generator=g, dtype=torch.float64)
    values = (normal(rows, length, inner), normal(rows, length, inner).abs() * 0.3, -normal(inner, states).abs(),
              normal(rows, length, states), normal(rows, length, states), normal(inner), normal(rows, inner, states))
    return [x.to(dtype) for x in values]


def plain_selective(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, h: Tensor,
                    starts: Tensor | None, low: float = 0.0) -> tuple[Tensor, Tensor]:
    outputs = []
    for t in range(u.shape[1]):
        if starts is not None:
            h = h * ~starts[:, t, None, None]
        factor = low + (1 - low) * (dt[:, t, :, None] * A).exp()
        h = factor * h + (dt[:, t] * u[:, t])[..., None] * B[:, t, None]
        outputs.append((h * C[:, t, None]).sum(-1) + D * u[:, t])
    return (torch.stack(outputs, 1) if outputs else u), h


def some_starts(packed: bool, rows: int, length: int, seed: int) -> Tensor | None:
    return torch.rand(rows, length, generator=torch.Generator().manual_seed(seed)) < 0.1 if packed else None


@given(st.integers(1, 3), st.integers(0, 70), st.sampled_from([(), (3,), (2, 5)]), st.integers(0, 99),
       st.sampled_from(list(TOLERANCE)), st.booleans(), st.tuples(st.booleans(), st.booleans()))
@EXAMPLES
def test_linear_scan_equals_its_reference(rows: int, length: int, shape: tuple[int, ...], seed: int,
                                          dtype: torch.dtype, packed: bool, same: tuple[bool, bool]) -> None:
    inputs = linear_inputs(rows, length, shape, dtype, seed, same)
    starts = some_starts(packed, rows, length, seed)
    if length:
        agree(with_gradients(linear_scan, inputs, starts), with_gradients(linear_scan_reference, inputs, starts),
              TOLERANCE[dtype])
    else:
        assert linear_scan(*inputs, starts).shape == inputs[1].shape


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("same", [(False, False), (True, True)])
def test_linear_scan_in_plain_torch(plain: None, dtype: torch.dtype, same: tuple[bool, bool]) -> None:
    for length in (1, 2, 3, 17, 64, 65):
        inputs, starts = linear_inputs(2, length, (3,), dtype, length, same), some_starts(True, 2, length, length)
        agree(with_gradients(linear_scan, inputs, starts), with_gradients(linear_scan_reference, inputs, starts), 1e-12)


def test_linear_scan_accepts_conjugates_and_views() -> None:
    a, b, h = linear_inputs(2, 40, (6,), torch.complex64, 0)
    inputs = [a.conj(), torch.view_as_complex(torch.view_as_real(b).flip(1)), h[:, ::2].repeat(1, 2)]
    agree(with_gradients(linear_scan, inputs), with_gradients(linear_scan_reference, inputs), 2e-4)


@given(st.integers(1, 3), st.sampled_from([0, 1, 31, 32, 33, 64, 65, 100]), st.sampled_from([1, 5, 64, 70, 130]),
       st.integers(1, 6), st.booleans(), st.sampled_from([0.0, -1.0]), st.integers(0, 99),
       st.sampled_from([torch.float64, torch.float32]))
@EXAMPLES
def test_selective_scan_equals_its_reference(rows: int, length: int, inner: int, states: int, packed: bool,
                                             low: float, seed: int, dtype: torch.dtype) -> None:
    inputs = selective_inputs(rows, length, inner, states, dtype, seed)
    starts = some_starts(packed, rows, length, seed)
    expected = with_gradients(plain_selective, inputs, starts, low) if length else [inputs[0], inputs[-1]]
    if not length:
        return agree(list(selective_scan(*inputs, starts, low)), expected, 0.0)
    agree(with_gradients(selective_scan, inputs, starts, low), expected, TOLERANCE[dtype])
    agree(with_gradients(selective_scan_reference, inputs, starts, low), expected, TOLERANCE[dtype])


def test_selective_scan_accepts_views_and_long_steps() -> None:
    """Inputs are slices of projections; a step size may be so large that the state is wiped."""
    inputs = selective_inputs(2, 80, 64, 4, torch.float64, 0)
    u, dt, A, B, C, D, h = inputs
    dt = dt * torch.where(torch.rand(dt.shape) < 0.05, 1e4, 1.0)
    views = [torch.cat([x, x], -1)[..., : x.shape[-1]] for x in (u, dt)]
    both = torch.cat([B, C], -1)
    arguments = [*views, A, both[..., :4], both[..., 4:], D, h]
    agree(with_gradients(selective_scan, arguments, None), with_gradients(plain_selective, arguments, None), 1e-9)


def diagonal_inputs(rows: int, length: int, width: int, states: int, dtype: torch.dtype, seed: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    u, weights, state = (torch.randn(*shape, generator=g, dtype=torch.float64)
                         for shape in ((rows, length, width), (2, states, width), (rows, 2, states, width)))
    size, turn = (torch.rand(states, width, generator=g, dtype=torch.float64) for _ in range(2))
    decay = torch.stack([size * (7 * turn).cos(), size * (7 * turn).sin()])
    return [x.to(dtype) for x in (u, decay, weights, state)]


def plain_diagonal(u: Tensor, decay: Tensor, weights: Tensor, state: Tensor, starts: Tensor | None = None,
                   lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
    h, a, w = torch.complex(state[:, 0], state[:, 1]), torch.complex(*decay), torch.complex(*weights)
    outputs, final = [], h
    for t in range(u.shape[1]):
        if starts is not None:
            h = h * ~starts[:, t, None, None]
        h = a * h + u[:, t, None]
        outputs.append((w * h).sum(1).real)
        final = h if lengths is None else torch.where((t < lengths)[:, None, None], h, final)
    return (torch.stack(outputs, 1) if outputs else u), torch.stack([final.real, final.imag], 1)


@given(st.integers(1, 3), st.sampled_from([0, 1, 31, 32, 33, 64, 65, 100]), st.sampled_from([1, 5, 64, 70]),
       st.integers(1, 5), st.booleans(), st.booleans(), st.integers(0, 99),
       st.sampled_from([torch.float64, torch.float32]))
@EXAMPLES
def test_diagonal_scan_equals_its_reference(rows: int, length: int, width: int, states: int, packed: bool,
                                            ragged: bool, seed: int, dtype: torch.dtype) -> None:
    inputs, g = diagonal_inputs(rows, length, width, states, dtype, seed), torch.Generator().manual_seed(seed)
    starts = torch.rand(rows, length, generator=g) < 0.1 if packed else None
    lengths = torch.randint(0, length + 1, (rows,), generator=g) if ragged else None
    real = torch.arange(length) < (torch.full((rows,), length) if lengths is None else lengths)[:, None]

    def run(function: Any) -> list[Tensor]:
        def within(*inputs: Tensor) -> tuple[Tensor, Tensor]:
            y, final = function(*inputs, starts, lengths)
            return y * real[..., None], final

        return with_gradients(within, inputs) if length else list(within(*inputs))

    agree(run(diagonal_scan), run(plain_diagonal), TOLERANCE[dtype])
    agree(run(diagonal_scan_reference), run(plain_diagonal), TOLERANCE[dtype])


@pytest.mark.parametrize("length", [1, 7, 31, 32, 100])
def test_diagonal_kernel_equals_a_sum_of_powers(length: int) -> None:
    _, decay, weights, _ = diagonal_inputs(1, 1, 5, 3, torch.float64, length)
    a, w = torch.complex(*decay), torch.complex(*weights)
    expected = torch.stack([(w * a**power).sum(0).real for power in range(length)])
    assert (diagonal_kernel(decay, weights, length) - expected).abs().max() < 1e-12


def test_selective_scan_gradcheck() -> None:
    inputs = [x.requires_grad_() for x in selective_inputs(2, 34, 3, 2, torch.float64, 1)]
    starts = torch.zeros(2, 34, dtype=torch.bool)
    starts[0, 20] = starts[1, 0] = True
    assert torch.autograd.gradcheck(lambda *x: selective_scan(*x, starts), inputs, fast_mode=True)


def test_scans_without_gradient_keep_no_states() -> None:
    with torch.no_grad():
        inputs = selective_inputs(1, 64, 64, 4, torch.float32, 1)
        y, final = selective_scan(*inputs)
    expected = plain_selective(*inputs, None)
    agree([y, final], list(expected), 1e-4)
    assert y.grad_fn is None


def test_scans_from_several_threads_agree() -> None:
    inputs = selective_inputs(3, 90, 70, 4, torch.float32, 2)
    y = selective_scan(*inputs)[0]
    with ThreadPoolExecutor(8) as pool:
        for other in pool.map(lambda _: selective_scan(*inputs)[0], range(40)):
            assert torch.equal(other, y)


def test_scans_do_not_depend_on_the_number_of_threads() -> None:
    inputs, before = selective_inputs(5, 90, 130, 4, torch.float32, 2), torch.get_num_threads()
    result = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            result.append(with_gradients(selective_scan, inputs, None))
    finally:
        torch.set_num_threads(before)
    for other in result[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result[0][:-1], other[:-1]))


def gla_inputs(rows: int, length: int, heads: int, keys: int, values: int, seed: int, decay: float) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    normal = partial(torch.randn, generator=g, dtype=torch.float64)
    gates = (-normal(rows, length, heads, keys).abs() * decay).clamp(min=FLOOR)
    return [normal(rows, length, heads, keys), normal(rows, length, heads, keys), normal(rows, length, heads, values),
            gates, normal(rows, heads, keys, values)]


@given(st.integers(1, 3), st.integers(0, 150), st.integers(1, 2), st.sampled_from([1, 4, 7]), st.sampled_from([1, 5]),
       st.booleans(), st.sampled_from([0.05, 1.0, 100.0]), st.integers(0, 99),
       st.sampled_from([torch.float64, torch.float32]))
@EXAMPLES
def test_gla_equals_its_reference(rows: int, length: int, heads: int, keys: int, values: int, packed: bool,
                                  decay: float, seed: int, dtype: torch.dtype) -> None:
    inputs = [x.to(dtype) for x in gla_inputs(rows, length, heads, keys, values, seed, decay)]
    generator = torch.Generator().manual_seed(seed)
    starts = torch.rand(rows, length, generator=generator) < 0.1 if packed else None
    if not length:
        return agree(list(gla(*inputs, starts)), [inputs[2], inputs[4]], 0.0)
    agree(with_gradients(gla, inputs, starts), with_gradients(gla_reference, inputs, starts), 10 * TOLERANCE[dtype])
    lengths = torch.randint(0, length + 1, (rows,), generator=generator)
    final = gla(*inputs, starts, lengths)[1]
    for row, count in enumerate(lengths.tolist()):
        cut = [x[row : row + 1, :count] for x in inputs[:4]]
        begun = None if starts is None else starts[row : row + 1, :count]
        agree([final[row : row + 1]], [gla_reference(*cut, inputs[4][row : row + 1], begun)[1]], TOLERANCE[dtype])


@pytest.mark.parametrize("form", ["parameters", "autocast"])
def test_bfloat16_scans_keep_decays_and_states_in_float32(form: str) -> None:
    """A long memory is as good in bfloat16 as its inputs allow: rounding does not add up in the state."""
    length = 400
    q, k, v, g, state = (x.float() for x in gla_inputs(2, length, 1, 4, 5, 0, 0.003))
    u, dt, A, B, C, D, h = (x.float() for x in selective_inputs(2, length, 16, 4, torch.float64, 0))
    dt = dt * 0.01
    with torch.autocast("cpu", torch.bfloat16, enabled=form == "autocast"):
        low = [x.bfloat16() for x in (q, k, v)]
        y, final = gla(*low, g, state)
        expected = gla_reference(*(x.float() for x in low), g, state)
        assert final.dtype == torch.float32 and y.dtype == torch.bfloat16
        agree([y.float(), final], list(expected), 0.02)
        low = [x.bfloat16() for x in (u, B, C)]
        y, final = selective_scan(low[0], dt, A, low[1], low[2], D, h)
        expected = plain_selective(low[0].float(), dt, A, low[1].float(), low[2].float(), D, h, None)
        assert final.dtype == torch.float32 and y.dtype == torch.bfloat16
        agree([y.float(), final], list(expected), 0.01)


@EXAMPLES
@given(batch=st.integers(1, 3), length=st.integers(0, 40), taps=st.integers(1, 50), both=st.booleans())
def test_long_convolution_equals_the_naive_sum(batch: int, length: int, taps: int, both: bool) -> None:
    u, kernel = torch.randn(batch, length, 3, dtype=torch.float64), torch.randn(taps, 3, dtype=torch.float64)
    back = torch.randn(2 * taps // 3 + 1, 3, dtype=torch.float64) if both else None
    torch.testing.assert_close(long_convolution(u, kernel, back), long_convolution_reference(u, kernel, back),
                               rtol=0, atol=1e-11)


@EXAMPLES
@given(rows=st.integers(1, 3), length=st.sampled_from([0, 1, 31, 70, 258]), width=st.sampled_from([1, 5, 259]),
       taps=st.integers(1, 5), packed=st.booleans(), silu=st.booleans(), dtype=st.sampled_from(KINDS))
def test_short_convolution_equals_its_loop(rows: int, length: int, width: int, taps: int, packed: bool, silu: bool,
                                           dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(taps)
    x, weight, bias, window = (torch.randn(*shape, generator=g, dtype=torch.float64) for shape in (
        (rows, length, width + 3), (width, taps), (width,), (rows, taps - 1, width)))
    inputs, starts = [x[..., 1:-2], weight, bias, window], some_starts(packed, rows, length, taps)  # a slice of x
    line, expected = torch.cat([window, inputs[0]], 1), []
    for t in range(length):
        visible = line[:, t : t + taps].clone()
        if starts is not None:
            for row in range(rows):
                for k in range(taps - 1):  # from the nearest back: nothing before a start is seen
                    if t - k >= 0 and starts[row, t - k]:
                        visible[row, : taps - 1 - k] = 0
        y = (visible * weight.T).sum(1) + bias
        expected.append(y * torch.sigmoid(y) if silu else y)
    if not length:
        return agree([short_convolution(*inputs, starts, silu)], [inputs[0]], 0.0)
    agree([short_convolution_reference(*inputs, starts, silu)], [torch.stack(expected, 1)], 1e-12)
    typed_inputs = [x.to(dtype) for x in inputs]
    agree(with_gradients(short_convolution, typed_inputs, starts, silu),
          with_gradients(short_convolution_reference, inputs, starts, silu), TOLERANCE[dtype])


@EXAMPLES
@given(rows=st.integers(1, 3), length=st.sampled_from([1, 31, 32, 70]), groups=st.sampled_from([1, 3]),
       width=st.sampled_from([1, 5, 40]), gate_last=st.booleans(), with_skip=st.booleans(),
       dtype=st.sampled_from(KINDS))
def test_gated_norm_equals_its_formula(rows: int, length: int, groups: int, width: int, gate_last: bool,
                                       with_skip: bool, dtype: torch.dtype) -> None:
    g, features, gate_last = torch.Generator().manual_seed(width), groups * width, gate_last or with_skip
    y, both, residual, scale, skip = (torch.randn(*shape, generator=g, dtype=torch.float64) for shape in (
        (rows, length, features), (rows, length, 2 * features), (rows, length, features), (features,), (features,)))
    inputs = [y, both[..., features:], scale, *((residual, skip) if with_skip else ())]
    opens = inputs[1] * torch.sigmoid(inputs[1])
    v = (y if gate_last else y * opens).view(rows, length, groups, width)
    v = v - v.mean(-1, keepdim=True) if with_skip else v
    expected = (v / (v.square().mean(-1, keepdim=True) + 1e-5).sqrt()).flatten(2) * scale
    expected = (expected + skip * residual if with_skip else expected) * (opens if gate_last else 1)

    def run(form: Any) -> Any:
        return lambda y, gate, scale, *others: form(y, gate, scale, groups, 1e-5, gate_last, others or None)

    agree([run(gated_norm_reference)(*inputs)], [expected], 1e-12)
    typed_inputs = [x.to(dtype) for x in inputs]
    agree(with_gradients(run(gated_norm), typed_inputs), with_gradients(run(gated_norm_reference), inputs),
          (100 if width == 1 and with_skip else 10) * TOLERANCE[dtype])


def test_compiled_passes_accept_mixed_precision() -> None:
    """As under autocast: products of matrices are in bfloat16, parameters are not."""
    x, weight, bias = torch.randn(2, 40, 6).bfloat16(), torch.randn(6, 4), torch.randn(6)
    window = torch.zeros(2, 3, 6).bfloat16()
    inputs = [x, weight, bias, window]
    wide = [x.float() for x in inputs]
    agree(with_gradients(short_convolution, inputs, None, True), with_gradients(short_convolution_reference, wide, None,
                                                                                True), 0.02)
    y = short_convolution(*inputs)
    assert y.dtype == torch.float32 and short_convolution(x, weight.bfloat16(), bias, window).dtype == torch.bfloat16
    assert gated_norm(y, x, bias).dtype == torch.float32
    agree([gated_norm(y, x, bias)], [gated_norm_reference(y, x.float(), bias)], 1e-5)


@pytest.mark.parametrize("shape", [(0, 3), (7, 11, 13), (100, 401)])
@pytest.mark.parametrize("p", [0.0, 0.25, 1.0])
def test_dropout_keeps_its_share_and_mean(shape: tuple[int, ...], p: float) -> None:
    torch.manual_seed(0)
    drop, x = Dropout(p), torch.ones(shape, dtype=torch.float64, requires_grad=True)
    y = drop(x)
    assert set(y.flatten().tolist()) <= {0.0, 1 / (1 - p) if p < 1 else 0.0}
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())  # what is dropped learns nothing
    if x.numel() > 10_000:
        assert abs(float((y == 0).double().mean()) - p) < 0.01
    assert drop.eval()(x) is x or torch.equal(drop(x), x)
