"""S5, LRU, GSS, Mamba-2 and Hyena against their equations written out, and against peers."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from gradients import with_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from weights import shake

from segue.errors import SegueError
from segue.kernels.scan import linear_scan
from segue.kernels.ssd import ssd, ssd_reference
from segue.mixers import GSS, LRU, S5, Hyena, Layout, Mamba2, Mixer, hippo
from segue.testing import check_mixer

EXAMPLES = settings(max_examples=15, deadline=None, derandomize=True, database=None)


def perturbed(mixer: Mixer) -> Mixer:
    """In float64, with no parameter at its first value."""
    generator = torch.Generator().manual_seed(0)
    for parameter in mixer.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return mixer.double().eval()


def packed(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.rand(rows, length, generator=torch.Generator().manual_seed(seed)) < 0.15


VARIANTS = {
    "s5, blocks": lambda width: S5(width, states=6, blocks=3),
    "lru, slow": lambda width: LRU(width, states=3, radii=(0.9, 0.999), phase=0.3),
    "mamba2, one head": lambda width: Mamba2(width, states=3, head_width=16, taps=2),
    "mamba2, groups": lambda width: Mamba2(width, states=4, head_width=2, groups=4, expand=1, bias=True),
    "hyena, three gates": lambda width: Hyena(width, order=3, hidden=4, taps=2, horizon=20),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_contract_of_variants(name: str) -> None:
    assert check_mixer(VARIANTS[name], examples=3)


# Diagonal systems of many inputs and outputs.


def diagonal_by_loop(mixer: S5 | LRU, x: Tensor, starts: Tensor) -> Tensor:
    a, b, c = mixer.recurrence.decay(), mixer.inputs(), torch.view_as_complex(mixer.C)
    outputs = []
    for row in range(len(x)):
        h = torch.zeros_like(a)
        for t in range(x.shape[1]):
            h = (0 if starts[row, t] else a * h) + b @ x[row, t].to(b.dtype)
            outputs.append((c @ h).real + mixer.D * x[row, t])
    return torch.stack(outputs).view_as(x)


@torch.no_grad()
@pytest.mark.parametrize("mixer", [S5(6, states=4), LRU(6, states=5)], ids=["s5", "lru"])
def test_diagonal_systems_equal_their_loop(mixer: S5 | LRU) -> None:
    perturbed(mixer)
    x, starts = torch.randn(2, 50, 6, dtype=torch.float64), packed(2, 50)
    y = mixer(x, Layout.chain((2, 50), starts=starts))
    torch.testing.assert_close(y, diagonal_by_loop(mixer, x, starts), rtol=0, atol=1e-12)


@torch.no_grad()
def test_a_new_s5_equals_the_real_hippo_system() -> None:
    """x' = A x + B u with the dense normal matrix of HiPPO-LegS, its input held over each step."""
    torch.manual_seed(0)
    mixer, states = S5(3, states=4, steps=(0.05, 0.05)).double(), 8
    a, _ = hippo.transition("legs", states)
    p = hippo.low_rank_correction("legs", states)
    a, v = a + p.T @ p, hippo.dplr("legs", states)[3]
    complex_b = torch.view_as_complex(mixer.B)
    b = 2 * (v @ complex_b).real  # the other half of each pair adds as much
    step = torch.linalg.matrix_exp(a * 0.05)
    input_map = torch.linalg.solve(a, step - torch.eye(states, dtype=torch.float64)) @ b
    x, h = torch.randn(1, 30, 3, dtype=torch.float64), torch.zeros(states, dtype=torch.float64)
    state = mixer.init_state(1)
    for t in range(30):
        h = step @ h + input_map @ x[0, t]
        mixer.extend(x[:, t : t + 1], state)
        state.commit()
    results = torch.view_as_complex(state.tensors()["0.recurrence.0"])[0]
    torch.testing.assert_close(results, v.mH @ h.to(v.dtype), rtol=0, atol=1e-6)  # the parameters are drawn in float32


@torch.no_grad()
def test_lru_equals_an_s5_of_the_same_eigenvalues() -> None:
    torch.manual_seed(0)
    lru, s5 = LRU(4, states=3).double(), S5(4, states=3).double()
    s5.recurrence.rate.data, s5.recurrence.step.data = lru.recurrence.nu.data, torch.zeros(3, dtype=torch.float64)
    s5.recurrence.frequency.data = lru.recurrence.theta.exp()
    gain = s5.recurrence.discrete()[1]
    s5.B.data, s5.C.data, s5.D.data = torch.view_as_real(lru.inputs() / gain[:, None]), lru.C.data, lru.D.data
    x = torch.randn(2, 40, 4, dtype=torch.float64)
    torch.testing.assert_close(s5(x), lru(x), rtol=0, atol=1e-12)


@torch.no_grad()
def test_lru_eigenvalues_start_between_the_radii() -> None:
    lru = LRU(8, states=4000, radii=(0.6, 0.9), phase=1.0)
    decay = lru.recurrence.decay()
    # All states are of one size where inputs are independent: the powers of a decay add up to it.
    powers = (decay.abs()[:, None] ** (2 * torch.arange(400))).sum(1)
    torch.testing.assert_close(lru.gamma.exp().square() * powers, torch.ones(4000), rtol=1e-4, atol=1e-4)
    assert float(decay.abs().min()) >= 0.6 and float(decay.abs().max()) <= 0.9
    assert float(decay.angle().min()) >= 0 and 0.99 < float(decay.angle().max()) <= 1.0
    # Evenly over the ring's area: half of it lies beyond the radius where half the area is.
    half = math.sqrt((0.6**2 + 0.9**2) / 2)
    assert abs(float((decay.abs() > half).double().mean()) - 0.5) < 0.05


Element = tuple[complex, complex, bool]


def after(first: Element, second: Element) -> Element:
    """The operator with resets: the earlier element is dropped where the later one begins an episode."""
    (a, b, c), (a2, b2, c2) = first, second
    return (a2, b2, True) if c2 else (a2 * a, a2 * b + b2, c)


@given(st.integers(1, 40), st.integers(0, 99))
@EXAMPLES
def test_resets_compose_in_any_order(length: int, seed: int) -> None:
    """Elements of a scan with resets may be bracketed at random; the carried state is the element before the first."""
    g = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(1, length, 1, generator=g, dtype=torch.complex128) for _ in range(2))
    starts, h = packed(1, length, seed), torch.randn(1, 1, generator=g, dtype=torch.complex128)
    elements: list[Element] = [(1, complex(h[0, 0]), False)]
    elements += [(complex(a[0, t, 0]), complex(b[0, t, 0]), bool(starts[0, t])) for t in range(length)]
    while len(elements) > 1:
        at = int(torch.randint(len(elements) - 1, (), generator=g))
        elements[at : at + 2] = [after(elements[at], elements[at + 1])]
    assert abs(elements[0][1] - complex(linear_scan(a, b, h, starts)[0, -1, 0])) < 1e-10


@pytest.mark.parametrize("mixer", [S5(4), LRU(4), Mamba2(4, states=3, head_width=4)], ids=["s5", "lru", "mamba2"])
def test_packed_episodes_equal_separate_ones_with_gradients(mixer: Mixer) -> None:
    perturbed(mixer)
    x, ends = torch.randn(1, 60, 4, dtype=torch.float64), (17, 40, 60)
    starts = torch.zeros(1, 60, dtype=torch.bool)
    starts[0, [0, *ends[:-1]]] = True

    def gradients(y: Tensor) -> list[Tensor]:
        return [y, *torch.autograd.grad(y.square().sum(), list(mixer.parameters()))]

    together = gradients(mixer(x, Layout.chain((1, 60), starts=starts)))
    separate = gradients(torch.cat([mixer(x[:, begin:end]) for begin, end in zip((0, *ends), ends)], 1))
    for a, b in zip(together, separate):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10 * max(1.0, float(b.detach().abs().max())))


def test_blocks_must_divide_the_states() -> None:
    with pytest.raises(SegueError, match="blocks"):
        S5(8, states=5, blocks=2)


# State space duality.


def ssd_inputs(rows: int, length: int, groups: int, heads: int, states: int, width: int, seed: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    normal = partial(torch.randn, generator=g, dtype=torch.float64)
    return [normal(rows, length, heads * width + 2 * groups * states), normal(rows, length, heads),
            -3 * normal(rows, length, heads).abs(), normal(heads), normal(rows, heads, states, width)]


def close(actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * max(1.0, float(b.detach().abs().max())))


@pytest.mark.parametrize("form", ["compiled", "plain"])
@given(st.integers(1, 3), st.sampled_from([1, 2, 63, 64, 65, 150]),
       st.sampled_from([(1, 1), (1, 3), (1, 5), (2, 2), (3, 1)]), st.sampled_from([(4, 3), (16, 32), (20, 17)]),
       st.booleans(), st.sampled_from([torch.float64, torch.float32]), st.integers(0, 99))
@EXAMPLES
def test_ssd_equals_its_reference(form: str, rows: int, length: int, heads: tuple[int, int], size: tuple[int, int],
                                  starting: bool, dtype: torch.dtype, seed: int) -> None:
    inputs = ssd_inputs(rows, length, heads[0], heads[0] * heads[1], *size, seed)
    starts, tolerance = packed(rows, length, seed) if starting else None, 1e-10 if dtype == torch.float64 else 2e-4
    lengths = torch.randint(length + 1, (rows,), generator=torch.Generator().manual_seed(seed))
    typed_inputs = [x.to(dtype) for x in inputs]
    with pytest.MonkeyPatch.context() as patch:
        if form == "plain":
            patch.setattr("segue.kernels.compiled.COMPILED_FROM", 10**9)
        close(with_gradients(ssd, typed_inputs, starts),
              [x.to(dtype) for x in with_gradients(ssd_reference, inputs, starts)], tolerance)
        final = ssd(*typed_inputs, starts, lengths)[1]
    for row in range(rows):
        upto = [x[row : row + 1, : lengths[row]] for x in inputs[:3]]
        begun = None if starts is None else starts[row : row + 1, : lengths[row]]
        expected = ssd_reference(*upto, inputs[3], inputs[4][row : row + 1], begun)[1]
        close([final[row : row + 1]], [expected.to(dtype)], tolerance)


def test_ssd_with_total_decay_clears_its_state() -> None:
    inputs = [x.float() for x in ssd_inputs(1, 70, 1, 1, 2, 3, 0)]
    inputs[2] *= 0
    inputs[2][0, 33] = -1e4  # no bound holds for decays here
    actual, expected = with_gradients(ssd, inputs), with_gradients(ssd_reference, inputs)
    assert all(x.isfinite().all() for x in actual)
    close(actual, expected, 1e-4)


def test_ssd_does_not_depend_on_the_number_of_threads() -> None:
    inputs, before, result = [x.float() for x in ssd_inputs(2, 130, 1, 6, 5, 7, 0)], torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            result.append(with_gradients(ssd, inputs))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*result))


def test_ssd_in_bfloat16_keeps_decays_and_states_in_float32() -> None:
    u, write, g, skip, state = (x.float() for x in ssd_inputs(2, 400, 1, 2, 4, 5, 0))
    g = g * 0.003
    y, final = ssd(u.bfloat16(), write, g, skip, state)
    assert y.dtype == torch.bfloat16 and final.dtype == torch.float32
    expected = ssd_reference(u.bfloat16().float(), write, g, skip, state)
    close([final], [expected[1]], 1e-5)
    close([y.float()], [expected[0]], 0.01)


@torch.no_grad()
def test_mamba2_equals_its_loop() -> None:
    mixer = Mamba2(4, states=3, head_width=2, groups=2)
    perturbed(mixer)
    x, inner = torch.randn(1, 12, 4, dtype=torch.float64), 8
    gate, u, dt = mixer.into(x[0]).split(mixer.widths, -1)
    line = F.pad(u, (0, 0, 3, 0))
    taps = [line[tap : tap + 12] * mixer.convolution.weight[:, tap] for tap in range(4)]
    u = F.silu(sum(taps) + mixer.convolution.bias)
    dt, a = F.softplus(dt + mixer.step_bias), -mixer.scan.A_log.exp()
    h, outputs = torch.zeros(4, 3, 2, dtype=torch.float64), []
    for t in range(12):
        values, b, c = u[t, :inner].view(4, 2), u[t, inner : inner + 6].view(2, 3), u[t, inner + 6 :].view(2, 3)
        y = torch.zeros(4, 2, dtype=torch.float64)
        for head in range(4):
            h[head] = (dt[t, head] * a[head]).exp() * h[head] + dt[t, head] * torch.outer(b[head // 2], values[head])
            y[head] = c[head // 2] @ h[head] + mixer.scan.D[head] * values[head]
        y = (y.view(8) * F.silu(gate[t])).view(2, 4)
        y = y / (y.square().mean(1, keepdim=True) + 1e-5).sqrt()
        outputs.append(mixer.out(y.view(8) * mixer.scale))
    torch.testing.assert_close(mixer(x)[0], torch.stack(outputs), rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("groups", [1, 2])
def test_mamba2_equals_that_of_transformers(groups: int) -> None:
    pytest.importorskip("transformers")
    from transformers import Mamba2Config
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    config = Mamba2Config(hidden_size=16, num_heads=4, head_dim=8, expand=2, state_size=6, n_groups=groups,
                          chunk_size=16, num_hidden_layers=1, use_bias=False, layer_norm_epsilon=1e-5)
    torch.manual_seed(0)
    peer = Mamba2Mixer(config, layer_idx=0).eval()
    mixer = Mamba2(16, states=6, head_width=8, groups=groups).eval()
    shake(peer, 0.05)
    names = {"into.weight": "in_proj.weight", "convolution.weight": "conv1d.weight", "convolution.bias": "conv1d.bias",
             "scan.A_log": "A_log", "scan.D": "D", "step_bias": "dt_bias", "scale": "norm.weight",
             "out.weight": "out_proj.weight"}
    reference = peer.state_dict()
    mixer.load_state_dict({name: reference[other].view(mixer.state_dict()[name].shape)
                           for name, other in names.items()})
    x = torch.randn(2, 50, 16)
    torch.testing.assert_close(mixer(x), peer(x), rtol=0, atol=1e-5)


# The gated state space.


@torch.no_grad()
def test_gss_equals_its_loop() -> None:
    mixer = GSS(6, states=4, narrow=3, wide=5)
    perturbed(mixer)
    x, modes = torch.randn(1, 25, 6, dtype=torch.float64), mixer.recurrence.modes
    eigenvalues, step = torch.complex(-modes.decay.exp(), modes.frequency), modes.steps.log.exp()
    decay = (eigenvalues * step).exp()
    gain = torch.complex(modes.weight[0], modes.weight[1]) * (decay - 1) / eigenvalues  # the input is held over a step
    h, outputs = torch.zeros_like(decay), []
    for t in range(25):
        u, gate = F.gelu(mixer.into(x[0, t])).split([3, 5])
        h = decay * h + u
        outputs.append(mixer.out(mixer.widen(2 * (gain * h).sum(0).real) * gate))
    torch.testing.assert_close(mixer(x)[0], torch.stack(outputs), rtol=0, atol=1e-12)


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(SegueError, match="head_width"):
        Mamba2(8, head_width=5)


# Hyena.


@torch.no_grad()
@pytest.mark.parametrize("order", [2, 3])
def test_hyena_equals_its_sums(order: int) -> None:
    mixer = Hyena(4, order=order, hidden=5, horizon=10)
    perturbed(mixer)
    x, length = torch.randn(1, 15, 4, dtype=torch.float64), 15
    filters = []
    for t in range(length):
        lag = t / 10
        waves = [2 * math.pi * lag * f for f in (1e-4, 1.0)]
        y = torch.tensor([lag, *map(math.cos, waves), *(-math.sin(w) for w in waves)], dtype=torch.float64)
        for layer, frequency in zip(mixer.filters.layers, mixer.filters.frequencies):
            y = torch.sin(frequency * layer(y))
        rates = math.log(100) / torch.linspace(1.5, 0.3, 4 * order, dtype=torch.float64)
        filters.append(mixer.filters.last(y) * torch.exp(-rates * lag))
    u = F.pad(mixer.into(x[0]), (0, 0, 2, 0))
    short = mixer.convolution
    u = sum(u[tap : tap + length] * short.weight[:, tap] for tap in range(3)) + short.bias
    *gates, z = u.chunk(order + 1, -1)
    for index, gate in enumerate(gates):
        part = slice(4 * index, 4 * index + 4)
        mixed = torch.zeros_like(z)
        for t in range(length):
            for s in range(t + 1):
                mixed[t] += filters[t - s][part] * z[s]
        z = gate * (mixed + mixer.skip[part] * z)
    torch.testing.assert_close(mixer(x)[0], mixer.out(z), rtol=0, atol=1e-12)


def test_hyena_refuses_resets() -> None:
    with pytest.raises(SegueError, match="one document per row"):
        Hyena(4)(torch.randn(1, 8, 4), Layout.chain((1, 8), starts=packed(1, 8)))


def test_filters_reach_beyond_the_length_they_were_made_for() -> None:
    mixer = Hyena(4, horizon=16)
    with torch.no_grad():
        short, long = mixer.kernels(20)[0], mixer.kernels(200)[0]
    torch.testing.assert_close(short, long[:20])
    assert long.isfinite().all()
