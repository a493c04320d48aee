"""Fast weights and linear attention against naive loops, explicit products and peers; and states tracked for ever."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from segue.errors import SegueError
from segue.kernels.delta import delta, delta_matrix, delta_reference, normalise_qk
from segue.kernels.gla import gla, gla_reference
from segue.kernels.scan import linear_scan, selective_scan
from segue.mixers import DeltaNet, Layout, LinearAttention, Mamba
from segue.mixers.delta import MIN_KEY_NORM
from segue.mixers.linear import FEATURES
from segue.models.automata import DFA, counter, symmetric_group, transpositions, word_problem

EXAMPLES = settings(max_examples=15, deadline=None, derandomize=True)
LONG = 100_000


def delta_inputs(batch: int, n: int, steps: int, heads: int = 2, keys: int = 4, values: int = 3,
                 seed: int = 0) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    normal = partial(torch.randn, generator=g, dtype=torch.float64)
    k = torch.nn.functional.normalize(normal(batch, n, steps, heads, keys), dim=-1)
    beta = 2 * torch.rand(batch, n, steps, heads, generator=g, dtype=torch.float64)
    return [normal(batch, n, heads, keys), k, normal(batch, n, steps, heads, values), beta,
            normal(batch, heads, keys, values)]


def gradients(outputs: tuple[Tensor, ...], inputs: list[Tensor]) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(7)
    loss = sum((y * torch.randn(y.shape, generator=g, dtype=y.dtype)).sum() for y in outputs)
    return torch.autograd.grad(loss, inputs)  # type: ignore[arg-type]


@EXAMPLES
@given(n=st.integers(1, 80), steps=st.integers(1, 3), packed=st.booleans(), seed=st.integers(0, 99))
def test_chunked_delta_equals_the_loop(n: int, steps: int, packed: bool, seed: int) -> None:
    inputs = [x.requires_grad_() for x in delta_inputs(2, n, steps, seed=seed)]
    g = torch.Generator().manual_seed(seed)
    starts = torch.rand(2, n, generator=g) < 0.1 if packed else None
    expected, actual = delta_reference(*inputs, starts), delta(*inputs, starts)
    for a, b in zip((*actual, *gradients(actual, inputs)), (*expected, *gradients(expected, inputs))):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    lengths = torch.randint(n + 1, (2,), generator=g)
    _, final = delta(*inputs, starts, lengths)
    for row, length in enumerate(lengths.tolist()):
        cut = [x[row : row + 1, :length] for x in inputs[:4]] + [inputs[4][row : row + 1]]
        after = delta_reference(*cut, None if starts is None else starts[row : row + 1, :length])[1]
        torch.testing.assert_close(final[row : row + 1], after, rtol=1e-9, atol=1e-9)


def test_delta_equals_a_product_of_householder_matrices() -> None:
    q, k, v, beta, state = delta_inputs(1, 45, 2, heads=1)
    product = torch.eye(4, dtype=torch.float64)
    for key, strength in zip(k.reshape(-1, 4), beta.flatten()):
        product = (torch.eye(4) - strength * key[:, None] * key) @ product
    torch.testing.assert_close(delta(q, k, 0 * v, beta, state)[1][0, 0], product @ state[0, 0])
    assert float(torch.linalg.matrix_norm(product, 2)) <= 1 + 1e-12


def test_the_matrix_of_delta_equals_its_output() -> None:
    q, k, v, beta, state = delta_inputs(2, 21, 3)
    y = (delta_matrix(q, k, beta) @ v.permute(0, 3, 2, 1, 4)).sum(2).transpose(1, 2)
    torch.testing.assert_close(y, delta_reference(q, k, v, beta, 0 * state)[0])


def test_delta_agrees_with_transformers() -> None:
    peer = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")
    inputs = [x.float() for x in delta_inputs(2, 150, 1, keys=8, values=8)]
    q, k, v, beta, state = inputs
    expected = peer.torch_chunk_gated_delta_rule(q * 8**0.5, k[:, :, 0], v[:, :, 0], 0 * beta[:, :, 0], beta[:, :, 0],
                                                 initial_state=state, output_final_state=True)
    for a, b in zip(delta(*inputs), expected):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-5)


@EXAMPLES
@given(n=st.integers(1, 80), packed=st.booleans(), seed=st.integers(0, 99))
def test_chunked_linear_attention_equals_the_loop(n: int, packed: bool, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(2, n, 2, width, generator=g, dtype=torch.float64) for width in (4, 4, 3))
    state = torch.randn(2, 2, 4, 3, generator=g, dtype=torch.float64)
    starts = torch.rand(2, n, generator=g) < 0.1 if packed else None
    for a, b in zip(gla(q, k, v, None, state, starts), gla_reference(q, k, v, None, state, starts)):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    lengths = torch.randint(n + 1, (2,), generator=g)
    for row, length in enumerate(lengths.tolist()):
        cut = [x[row : row + 1, :length] for x in (q, k, v)]
        after = gla_reference(*cut, None, state[row : row + 1],
                              None if starts is None else starts[row : row + 1, :length])[1]
        torch.testing.assert_close(gla(q, k, v, None, state, starts, lengths)[1][row : row + 1], after)


@pytest.mark.parametrize("features", FEATURES)
def test_linear_attention_weighs_by_features(features: str) -> None:
    torch.manual_seed(0)
    mixer, x = LinearAttention(8, heads=2, features=features).double(), torch.randn(2, 40, 8, dtype=torch.float64)
    q, k, v = (y.unflatten(-1, (2, -1)) for y in mixer.qkv(x).split(mixer.widths, dim=-1))
    expected = torch.zeros(2, 40, 2, 4, dtype=torch.float64)
    for i in range(40):
        weights = [(mixer.features(q[:, i]) * mixer.features(k[:, j])).sum(-1, keepdim=True) for j in range(i + 1)]
        expected[:, i] = sum(w * v[:, j] for j, w in enumerate(weights)) / sum(weights)
    torch.testing.assert_close(mixer(x), mixer.out(expected.flatten(2)))


def test_random_features_approximate_the_exponential() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 50, 6, dtype=torch.float64) / 2  # larger ones take too many draws for a fair mean
    s = (q * k).sum(-1) / math.sqrt(6)
    taylor = FEATURES["taylor"](6)
    torch.testing.assert_close((taylor(q) * taylor(k)).sum(-1), 1 + s + s**2 / 2)
    draws = [FEATURES["favor"](6).double() for _ in range(2000)]
    estimates = torch.stack([(favor(q) * favor(k)).sum(-1) for favor in draws])
    error = estimates.std(0) / math.sqrt(len(draws))
    assert bool(((estimates.mean(0) - s.exp()).abs() < 5 * error).all())
    directions = draws[0].directions[:6]
    torch.testing.assert_close(directions @ directions.T, torch.diag(directions.square().sum(1)), atol=1e-5, rtol=0)


def test_sums_are_kept_in_float32() -> None:
    """In bfloat16 a sum of ones stops at 256."""
    mixer = LinearAttention(8, heads=2).bfloat16()
    state = mixer.init_state(1)
    with torch.no_grad():
        for x in torch.randn(1, 600, 8).bfloat16().split(100, 1):
            mixer.extend(x, state)
            state.commit()
    keys = state.tensors()["0.recurrence.0"]
    assert keys.dtype == torch.float32 and float(keys[..., -1].mean()) > 300


# States tracked for ever, by weights set by hand.


def word(dfa: DFA) -> tuple[Tensor, Tensor]:
    symbols = torch.randint(dfa.symbols, (1, LONG), generator=torch.Generator().manual_seed(0))
    return symbols[0], dfa.run(symbols)[0]


def test_parity_needs_a_negative_factor() -> None:
    bits, parity = word(counter(2))
    signs = linear_scan(1.0 - 2.0 * bits[None, :, None], torch.zeros(1, LONG, 1), torch.ones(1, 1))
    assert torch.equal((signs[0, :, 0] < 0).long(), parity)
    # And in Mamba's own terms: a one takes a long step, which in (-1, 1) turns the sign, and in (0, 1) forgets.
    ones, zeros = torch.ones(1, LONG, 1), torch.zeros(1, LONG, 1)
    for low, tracked in ((-1.0, True), (0.0, False)):
        y, _ = selective_scan(zeros, 1e3 * bits[None, :, None].float(), -torch.ones(1, 1), zeros, ones,
                              torch.zeros(1), torch.ones(1, 1, 1), low=low)
        assert torch.equal((y[0, :, 0] < 0).long(), parity) == tracked
        assert float(y[0, -1].abs()) == float(tracked)


def test_counting_to_three_takes_two_reflections() -> None:
    symbols, total = word(counter(3, 3))
    # Reflections across lines at angles a and b make a rotation by 2 (b - a): of a third of a turn per count.
    angle = symbols * math.pi / 3
    k = torch.stack([torch.stack([torch.ones(LONG), torch.zeros(LONG)], -1),
                     torch.stack([angle.cos(), angle.sin()], -1)], 1)[None, :, :, None]
    q = torch.tensor([1.0, 0.0]).expand(1, LONG, 1, 2)
    y, _ = delta(q, k, torch.zeros_like(k), torch.full((1, LONG, 2, 1), 2.0), torch.eye(2)[None, None])
    turns = torch.atan2(-y[0, :, 0, 1], y[0, :, 0, 0]) * 3 / (2 * math.pi)
    assert torch.equal(turns.round().long() % 3, total)


def test_swaps_take_one_reflection() -> None:
    group, alphabet = symmetric_group(3), transpositions(3)
    symbols, products = word(word_problem(group, alphabet))
    keys, strengths = torch.zeros(len(alphabet), 3), torch.zeros(len(alphabet))
    for index, permutation in enumerate(alphabet):
        moved = [i for i in range(3) if permutation[i] != i]
        if moved:
            keys[index, moved], strengths[index] = torch.tensor([1.0, -1.0]) / math.sqrt(2), 2.0
    k, beta = keys[symbols][None, :, None, None], strengths[symbols][None, :, None, None]
    q = torch.arange(3.0).expand(1, LONG, 1, 3)
    y, _ = delta(q, k, torch.zeros_like(k), beta, torch.eye(3)[None, None])
    # What began at place i is now where the product sends it.
    assert torch.equal(y[0, :, 0].round().long(), torch.tensor(group)[products])


def test_reflections_preserve_the_norm() -> None:
    mixer = DeltaNet(16, heads=2, eigenvalues=(-1, 1), householders=2)
    with torch.no_grad():
        x = torch.randn(1, 5000, 16)
        q, k, v, beta = mixer._project(x, Layout.of(x), {})
        assert float(beta.min()) > 0 and float(beta.max()) < 2
        k = normalise_qk(q, k, MIN_KEY_NORM)[1]
        final = delta(q, k, 0 * v, torch.full_like(beta, 2.0), torch.eye(8).expand(1, 2, -1, -1))[1]
    torch.testing.assert_close(final @ final.mT, torch.eye(8).expand(1, 2, -1, -1), rtol=0, atol=1e-3)


def test_bad_options_are_refused() -> None:
    for make in (lambda: DeltaNet(16, eigenvalues=(-2, 1)), lambda: Mamba(16, eigenvalues=(0.5, 1))):
        with pytest.raises(SegueError, match="eigenvalues from"):
            make()
    with pytest.raises(SegueError, match="divisible"):
        DeltaNet(10, heads=4)
    with pytest.raises(SegueError, match="one of elu"):
        LinearAttention(16, features="cosine")
