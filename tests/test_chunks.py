"""The compiled chunks, short convolutions and blocks: the same as the plain torch forms, in values and gradients."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from typing import Any

import gradients
import pytest
import torch
import torch.nn.functional as F
from gradients import agree
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from segue.kernels import blocks as block_module
from segue.kernels import delta as delta_module
from segue.kernels import mlstm as mlstm_module
from segue.kernels.blocks import block_product
from segue.kernels.cpu import simd, threads
from segue.kernels.cpu.products import MOST_PANELS
from segue.kernels.delta import delta, delta_reference, normalise_qk
from segue.kernels.mlstm import EMPTY, mlstm, mlstm_reference
from segue.mixers import MIXERS
from segue.mixers.convolution import ShortConvolution, WindowRecurrence

EXAMPLES = settings(max_examples=12, deadline=None, derandomize=True, database=None)
with_gradients = partial(gradients.with_gradients, given=2)  # what is third, a maximum, has none
MLSTM: Any = mlstm
DELTA: Any = delta
LOOP: Any = mlstm_reference
LENGTHS = st.sampled_from([32, 63, 64, 65, 150])


def strided(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Numbers that do not lie side by side, as a projection that was split leaves them."""
    wide = torch.randn(*shape[:2], 2 * shape[2], *shape[3:], generator=torch.Generator().manual_seed(seed))
    return wide.to(dtype)[:, :, shape[2] :]


def documents(rows: int, length: int, packed: bool, seed: int) -> Tensor | None:
    g = torch.Generator().manual_seed(seed)
    return torch.rand(rows, length, generator=g) < 0.05 if packed else None


def memory_inputs(rows: int, length: int, heads: int, keys: int, values: int, seed: int, fresh: bool,
                  dtype: torch.dtype = torch.float64) -> list[Tensor]:
    q, k, v = (strided(rows, length, heads, n, seed=seed + i, dtype=dtype) for i, n in enumerate((keys, keys, values)))
    i, f = (3 * strided(rows, length, heads, seed=seed + n, dtype=dtype) for n in (3, 4))
    memory, m = strided(rows, heads, keys, values + 1, seed=seed, dtype=dtype), strided(rows, 1, heads, seed=seed)[:, 0]
    if fresh:
        memory, m = torch.zeros_like(memory), torch.full_like(m, EMPTY)
    return [q, k * keys**-0.5, v, i, f + 1, memory, m.to(dtype)]


def delta_inputs(rows: int, length: int, writes: int, heads: int, keys: int, values: int, seed: int,
                 dtype: torch.dtype = torch.float64) -> list[Tensor]:
    q = strided(rows, length, heads, keys, seed=seed, dtype=dtype)
    k, v = (strided(rows, length * writes, heads, n, seed=seed + n, dtype=dtype).unflatten(1, (length, writes))
            for n in (keys, values))
    beta = 2 * torch.sigmoid(strided(rows, length * writes, heads, seed=seed + 9, dtype=dtype))
    state = strided(rows, heads, keys, values, seed=seed + 8, dtype=dtype)
    return [q, F.normalize(k, dim=-1), v, beta.unflatten(1, (length, writes)), state]


@given(LENGTHS, st.sampled_from([(3, 5), (16, 8), (20, 40)]), st.booleans(), st.booleans(), st.integers(0, 99))
@EXAMPLES
def test_chunked_mlstm_equals_its_loop(length: int, widths: tuple[int, int], packed: bool, fresh: bool,
                                       seed: int) -> None:
    inputs, starts = memory_inputs(2, length, 3, *widths, seed, fresh), documents(2, length, packed, seed)
    agree(with_gradients(mlstm, inputs, starts), with_gradients(mlstm_reference, inputs, starts), 1e-9)
    agree([MLSTM(*inputs, starts)[2]], [LOOP(*inputs, starts)[2]], 1e-12)


@given(LENGTHS, st.integers(1, 3), st.sampled_from([(3, 5), (16, 8), (20, 40)]), st.booleans(), st.integers(0, 99))
@EXAMPLES
def test_chunked_delta_rule_equals_its_loop(length: int, writes: int, widths: tuple[int, int], packed: bool,
                                            seed: int) -> None:
    inputs, starts = delta_inputs(2, length, writes, 2, *widths, seed), documents(2, length, packed, seed)
    agree(with_gradients(delta, inputs, starts), with_gradients(delta_reference, inputs, starts), 1e-9)
    inputs[1] = 3 * inputs[1]
    inputs[0][:, 3], inputs[1][:, 5] = 0, 1e-3 * inputs[1][:, 5]  # too short to be made longer

    def chunked(q: Tensor, k: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
        return delta_reference(*normalise_qk(q, k, 0.01), *others)

    agree(with_gradients(lambda *x: DELTA(*x, starts, None, 0.01), inputs),
          with_gradients(chunked, inputs, starts), 1e-9)


@pytest.mark.parametrize("packed", [False, True])
def test_torch_forms_equal_the_compiled_ones(packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over several chunks, with rows that end early: the plain forms are what GPUs and bfloat16 states take."""
    starts, lengths = documents(3, 150, packed, 3), torch.tensor([0, 70, 150])
    mlstm_inputs, rule_inputs = memory_inputs(3, 150, 2, 8, 6, 1, False), delta_inputs(3, 150, 2, 2, 8, 6, 1)

    def both() -> list[Tensor]:
        ends = (MLSTM(*mlstm_inputs, starts, lengths), DELTA(*rule_inputs, starts, lengths))
        y, memory, m = ends[0]
        live = (torch.arange(150) < lengths[:, None])[..., None, None]
        return [y * live, memory, m, ends[1][0] * live, ends[1][1]]

    compiled = both()
    gradients = with_gradients(mlstm, mlstm_inputs, starts) + with_gradients(delta, rule_inputs, starts)
    for module in (mlstm_module, delta_module):
        monkeypatch.setattr(module, "runs_compiled", lambda *_: False)
    agree(compiled, both(), 1e-10)
    agree(gradients, with_gradients(mlstm, mlstm_inputs, starts) + with_gradients(delta, rule_inputs, starts), 1e-9)


def test_nodes_past_the_length_have_no_gradient() -> None:
    lengths, live = torch.tensor([40, 100]), torch.arange(100) < torch.tensor([[40], [100]])
    for function, inputs in ((MLSTM, memory_inputs(2, 100, 2, 8, 8, 0, False)),
                             (DELTA, delta_inputs(2, 100, 1, 2, 8, 8, 0))):
        results = with_gradients(function, inputs, None, lengths)
        assert all(not x[~live].any() for x in results[2:] if x.shape[1] == 100)
        single = function(*[x[:1, :40] if x.shape[1] == 100 else x[:1] for x in inputs])[:2]
        agree([results[0][:1, :40], results[1][:1]], list(single), 1e-12)


def test_low_precision_is_computed_in_float32() -> None:
    """float32 to its own rounding; bfloat16 inputs are computed in float32 and come back as they were."""
    inputs = memory_inputs(1, 200, 2, 32, 32, 0, True)
    rule = delta_inputs(1, 200, 1, 2, 32, 32, 0)
    for function, given_ in ((MLSTM, inputs), (DELTA, rule)):
        exact = with_gradients(function, given_)
        agree([x.double() for x in with_gradients(function, [x.float() for x in given_])], exact, 2e-4)
        mixed_inputs = [x.bfloat16() if index < 3 else x.float() for index, x in enumerate(given_)]
        y = function(*mixed_inputs)[0]
        assert y.dtype == torch.bfloat16
        wide = function(*[x.float() for x in mixed_inputs])[0]
        assert (y.float() - wide).abs().max() <= 0.01 * wide.abs().max()


def test_large_gates_stay_finite() -> None:
    q, k, v, _, _, memory, m = memory_inputs(1, 130, 1, 4, 4, 0, True, torch.float32)
    for i, f in ((300.0, -300.0), (-300.0, 300.0), (300.0, 300.0), (-300.0, -300.0)):
        gates = [torch.full((1, 130, 1), x) for x in (i, f)]
        assert all(x.isfinite().all() for x in with_gradients(mlstm, [q, k, v, *gates, memory, m]))


@given(st.sampled_from([32, 33, 64, 70]), st.integers(1, 200), st.integers(1, 5), st.booleans(), st.integers(0, 99))
@EXAMPLES
def test_the_short_convolution_equals_its_sum(length: int, width: int, taps: int, packed: bool, seed: int) -> None:
    layer = ShortConvolution(width, taps).double()
    torch.nn.init.normal_(layer.bias)
    x, window, starts = strided(2, length, width, seed=seed), strided(2, taps - 1, width, seed=seed), documents(
        2, length, packed, seed)

    def run(scan: Any) -> list[Tensor]:
        def of(x: Tensor, window: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
            y, (last,) = scan(layer, (x,), (window,), starts)
            return y, last

        layer.zero_grad()
        results = with_gradients(of, [x, window])
        y, _ = of(x, window)
        (y * y).sum().backward()
        return [*results, layer.weight.grad.clone(), layer.bias.grad.clone()]  # type: ignore[union-attr]

    agree(run(ShortConvolution.scan), run(WindowRecurrence.scan), 1e-12)


@pytest.mark.parametrize(("blocks", "outputs", "width"), [(16, 2, 4), (16, 1, 4), (4, 3, 16), (2, 2, 24), (3, 2, 5)])
def test_block_products_equal_sums(blocks: int, outputs: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = [strided(2, 270, blocks * width, seed=1), strided(blocks, outputs, width, width, seed=2)]

    def run(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        return block_product(x, weight)

    results = with_gradients(run, inputs, given=1)
    assert bool(block_module._blocks_per_vector(*inputs)) == (width != 5 and width <= MOST_PANELS * simd.LANES // 2)
    monkeypatch.setattr(block_module, "_blocks_per_vector", lambda *_: 0)
    agree(results, with_gradients(run, inputs, given=1), 1e-12)


@pytest.mark.parametrize("name", ["mamba2", "mlstm", "deltanet"])
def test_not_a_number_stays_in_its_row(name: str) -> None:
    """Rows share the buffers of a thread, and the last chunk fills a part of them."""
    torch.manual_seed(0)
    mixer, clean, threads = MIXERS[name](32), torch.randn(1, 70, 32), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        x = torch.cat([torch.full_like(clean, torch.nan), clean]).requires_grad_()
        y, single = mixer(x)[1], mixer(clean.requires_grad_())[0]
        grads = torch.autograd.grad(y.sum(), x)[0][1], torch.autograd.grad(single.sum(), clean)[0][0]
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(y, single)
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("actual", [False, True])
def test_threads_cover_all_parts_once(actual: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch's threads and with our own."""
    if actual:
        monkeypatch.setattr(threads, "_team", lambda: None)
    before, covered = torch.get_num_threads(), list[int]()
    torch.set_num_threads(3)
    try:
        for count in (0, 1, 2, 10):
            covered.clear()
            threads.parallel_for(lambda begin, end: covered.extend(range(begin, end)), count)
            assert sorted(covered) == list(range(count))
        with pytest.raises(ZeroDivisionError):
            threads.parallel_for(lambda begin, end: 1 / (end - 10), 10)
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_starts_its_own_threads() -> None:
    """Those of torch do not live on in it: waiting for them would never end."""
    code = """
import os, torch
from segue.kernels.cpu import threads
torch.set_num_threads(2)
seen = []
for process in range(2):
    threads.parallel_for(lambda begin, end: seen.append(end - begin), 4)
    if process == 0 and (child := os.fork()):
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
os._exit(sum(seen) != 8)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
