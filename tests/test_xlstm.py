"""The mLSTM's memory in all its forms, against plain loops, the unstabilised equations and the peer's own kernels."""

from __future__ import annotations

from functools import partial

import gradients
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gradients import agree
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from weights import shake

from segue.errors import SegueError
from segue.kernels.mlstm import EMPTY, mlstm, mlstm_reference
from segue.mixers import MLSTM, SLSTM, Layout
from segue.mixers.xlstm import BlockLinear
from segue.models import Stack, StackConfig
from segue.models.equivariant import Equivariant, mirror
from segue.objectives.infill import draw_spans, fill_in_middle, restore_gaps

EXAMPLES = settings(max_examples=15, deadline=None, derandomize=True, database=None)
with_gradients = partial(gradients.with_gradients, given=2)  # what is third, a maximum, has none


def random_inputs(rows: int, length: int, heads: int, keys: int, values: int, seed: int,
                  spread: float = 1.0) -> list[Tensor]:
    """q, k, v, gates whose inputs reach +-20 * spread, and an empty memory."""
    g = torch.Generator().manual_seed(seed)
    normal = partial(torch.randn, generator=g, dtype=torch.float64)
    gates = [20 * spread * (2 * torch.rand(rows, length, heads, generator=g, dtype=torch.float64) - 1) for _ in "if"]
    return [normal(rows, length, heads, keys), normal(rows, length, heads, keys) / keys**0.5,
            normal(rows, length, heads, values), *gates,
            torch.zeros(rows, heads, keys, values + 1, dtype=torch.float64),
            torch.full((rows, heads), EMPTY, dtype=torch.float64)]


@given(st.integers(1, 3), st.sampled_from([1, 2, 63, 64, 65, 130]), st.integers(1, 3), st.integers(1, 5),
       st.integers(1, 5), st.booleans(), st.booleans(), st.integers(0, 99))
@EXAMPLES
def test_chunks_equal_the_loop(rows: int, length: int, heads: int, keys: int, values: int, packed: bool, carried: bool,
                               seed: int) -> None:
    """Parallel inside chunks == step by step, gates up to +-20, with documents and from a given memory."""
    inputs = random_inputs(rows, length, heads, keys, values, seed)
    g = torch.Generator().manual_seed(seed)
    if carried:
        inputs[5:] = mlstm_reference(*random_inputs(rows, 5, heads, keys, values, seed + 1))[1:]
    starts = torch.rand(rows, length, generator=g) < 0.1 if packed else None
    agree(with_gradients(mlstm, inputs, starts), with_gradients(mlstm_reference, inputs, starts), 1e-10)
    agree([mlstm(*inputs, starts)[2]], [mlstm_reference(*inputs, starts)[2]], 1e-10)


def test_the_memory_is_that_at_each_length() -> None:
    inputs = random_inputs(4, 100, 2, 3, 4, 0)
    inputs[5:] = mlstm_reference(*random_inputs(4, 5, 2, 3, 4, 1))[1:]
    lengths = torch.tensor([0, 1, 70, 100])
    _, memory, m = mlstm(*inputs, None, lengths)
    for row, length in enumerate(lengths.tolist()):
        cut = [x[row : row + 1, :length] for x in inputs[:5]] + [x[row : row + 1] for x in inputs[5:]]
        agree([memory[row : row + 1], m[row : row + 1]], list(mlstm_reference(*cut)[1:]), 1e-12)


def test_the_stabiliser_changes_nothing() -> None:
    """y_t = sum f...f i k v q / max(|sum f...f i k q|, 1), without any maximum taken off."""
    q, k, v, i, f, memory, m = random_inputs(2, 90, 2, 3, 4, 2, spread=0.3)
    y, _, _ = mlstm(q, k, v, i, f, memory, m, eps=0.0)
    joined = F.pad(v, (0, 1), value=1.0)
    for t in range(90):
        memory = f[:, t].sigmoid()[..., None, None] * memory + (
            i[:, t].exp()[..., None] * k[:, t])[..., None] * joined[:, t, :, None]
        read = (q[:, t, :, None] @ memory)[:, :, 0]
        agree([y[:, t]], [read[..., :-1] / read[..., -1:].abs().clamp(min=1.0)], 1e-10)


def test_parity_with_the_native_kernels_of_transformers() -> None:
    """The slow path's steps; its chunks call a tensor method that torch does not have."""
    peer = pytest.importorskip("transformers.models.xlstm.modeling_xlstm", reason="transformers is not installed")
    if not hasattr(peer, "mlstm_recurrent_sequence_native"):
        pytest.skip("transformers uses the package xlstm here")
    q, k, v, i, f, memory, m = random_inputs(2, 70, 2, 4, 4, 3)
    y, _, _ = mlstm(q, k * 4**-0.5, v, i, f, memory, m, eps=0.0)
    heads_first = [x.transpose(1, 2) for x in (q, k, v, i, f)]
    steps = peer.mlstm_recurrent_sequence_native(*heads_first, eps=0.0, dtype_state=torch.float64)
    agree([y], [steps.transpose(1, 2)], 1e-10)


def test_block_projections_equal_one_matrix() -> None:
    layer, x = BlockLinear(12, 3, 2).double(), torch.randn(2, 5, 12, dtype=torch.float64)
    agree([torch.cat([y.flatten(2) for y in layer(x).unbind(-2)], -1)], [x @ layer.dense().T], 1e-12)


def slstm_by_loops(mixer: SLSTM, x: Tensor) -> Tensor:
    """(T, D), head by head and step by step, without a stabiliser."""
    taps, (heads, d) = mixer.convolution.weight.shape[1], mixer.recurrence.shape
    line = F.pad(x, (0, 0, taps - 1, 0))
    convolved = F.silu(torch.stack([(line[t : t + taps] * mixer.convolution.weight.T).sum(0) for t in range(len(x))])
                       + mixer.convolution.bias)
    outputs = []
    for n in range(heads):
        h = c = total = torch.zeros(d, dtype=x.dtype)
        part = slice(n * d, (n + 1) * d)
        lines = []
        for t in range(len(x)):
            i, f = (mixer.gates.weight[n, g] @ convolved[t, part] for g in range(2))
            z, o = (mixer.inputs.weight[n, g] @ x[t, part] for g in range(2))
            recurrent = mixer.recurrence.weight_hh[n] @ h + mixer.recurrence.bias_hh[n]
            i, f, z, o = (a + b for a, b in zip((i, f, z, o), recurrent))
            c, total = f.sigmoid() * c + i.exp() * z.tanh(), f.sigmoid() * total + i.exp()
            h = o.sigmoid() * c / total
            lines.append((h - h.mean()) / (h.var(unbiased=False) + 1e-5).sqrt() * mixer.norm.weight[part])
        outputs.append(torch.stack(lines))
    return torch.cat(outputs, 1)


def test_slstm_equals_loops() -> None:
    torch.manual_seed(0)
    mixer = SLSTM(12, heads=3).double()
    mixer.recurrence.weight_hh.data.normal_()
    x = torch.randn(2, 40, 12, dtype=torch.float64)
    agree([mixer(x)], [torch.stack([slstm_by_loops(mixer, row) for row in x])], 1e-10)


@pytest.mark.parametrize("positions", ["none", "rotary"])
def test_mlstm_equals_loops(positions: str) -> None:
    torch.manual_seed(0)
    mixer = MLSTM(8, heads=2, expand=1, positions=positions, theta=100.0).double()
    shake(mixer, 0.2)
    x = torch.randn(1, 20, 8, dtype=torch.float64)
    u, z = (x[0] @ mixer.into.weight.T).chunk(2, -1)
    line = F.pad(u, (0, 0, 3, 0))
    convolved = F.silu(torch.stack([(line[t : t + 4] * mixer.convolution.weight.T).sum(0) for t in range(20)])
                       + mixer.convolution.bias)
    q, k = (convolved @ mixer.qk.dense().T).chunk(2, -1)
    v = u @ mixer.v.dense().T
    i, f = (torch.cat([q, k, v], -1) @ mixer.gates.weight.T + mixer.gates.bias).chunk(2, -1)
    if positions == "rotary":  # after the gates; features i and i + 2 of a head are one complex number
        turn = torch.exp(1j * torch.arange(20, dtype=x.dtype)[:, None] * torch.tensor([1.0, 0.1], dtype=x.dtype))
        q, k = (torch.cat([part for y in z.split(4, -1) for part in torch.view_as_real(
            torch.complex(y[:, :2], y[:, 2:]) * turn).unbind(-1)], -1) for z in (q, k))
    mixed = []
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        memory, total, lines = torch.zeros(4, 4, dtype=x.dtype), torch.zeros(4, dtype=x.dtype), []
        for t in range(20):
            write = i[t, head].exp() * k[t, part] / 2
            memory = f[t, head].sigmoid() * memory + torch.outer(write, v[t, part])
            total = f[t, head].sigmoid() * total + write
            h = q[t, part] @ memory / (q[t, part] @ total).abs().clamp(min=1.0)
            lines.append((h - h.mean()) / (h.var(unbiased=False) + 1e-5).sqrt() * mixer.norm.weight[part])
        mixed.append(torch.stack(lines))
    expected = ((torch.cat(mixed, 1) + mixer.skip * convolved) * F.silu(z)) @ mixer.out.weight.T
    agree([mixer(x)[0]], [expected], 1e-4)  # the constant in the normaliser's denominator


@given(length=st.integers(1, 60), seed=st.integers(0, 10**6))
@EXAMPLES
def test_fill_in_the_middle_round_trips(length: int, seed: int) -> None:
    """The inverse gives the sequence, no element is lost or doubled, and each keeps its position."""
    masks, end, ids = [100, 101, 102, 103, 104], 99, list(range(length))
    spans = draw_spans(length, np.random.default_rng(seed))
    assert len(spans) <= 5 and all(0 <= a < b <= length for a, b in spans)
    assert all(b <= c for (_, b), (c, _) in zip(spans, spans[1:]))
    tokens, positions = fill_in_middle(ids, spans, masks, end)
    assert restore_gaps(tokens, masks, end) == ids
    assert sorted(element for element in tokens if element < end) == ids
    assert all(token == place for token, place in zip(tokens, positions) if token < end)
    assert tokens[tokens.index(end) + 1 :][:1] == masks[: min(1, len(spans))]


def test_malformed_fillings_are_refused() -> None:
    assert fill_in_middle([5, 6, 7, 8], [(1, 3)], [9], 4) == ([5, 9, 8, 4, 9, 6, 7], [0, 1, 3, 4, 1, 1, 2])
    for spans in ([(1, 1)], [(2, 3), (1, 2)], [(3, 5)]):
        with pytest.raises(SegueError, match="in order"):
            fill_in_middle([5, 6, 7, 8], spans, [9, 10], 4)
    for tokens in ([5, 9, 8], [5, 9, 8, 4], [5, 9, 8, 4, 6, 9, 7], [5, 8, 4, 9, 7]):
        with pytest.raises(SegueError, match="each mask in order"):
            restore_gaps(tokens, [9], 4)


def test_gate_biases_start_as_in_the_paper() -> None:
    mixer = MLSTM(8, heads=4)
    assert torch.allclose(mixer.gates.bias[4:], torch.tensor([3.0, 4.0, 5.0, 6.0]))
    assert not SLSTM(8, heads=2).recurrence.weight_hh.any()
    assert torch.allclose(SLSTM(8, heads=2, depth=0.5).recurrence.bias_hh[:, 1, [0, -1]], torch.tensor([5.0, -7.0]))


def test_indivisible_widths_are_refused() -> None:
    with pytest.raises(SegueError, match="12 must be divisible by 5 heads"):
        MLSTM(6, heads=5)
    with pytest.raises(SegueError, match="width 8 must be divisible by 3 blocks"):
        SLSTM(8, heads=3)


@pytest.mark.parametrize("mixers", [["slstm", "mlstm"], ["mlstm", "attention"], ["bidirectional"]])
def test_reverse_complement_equivariance(mixers: list[str]) -> None:
    """f(reverse complement of x) is the reverse complement of f(x), for elements and for classes of rows."""
    torch.manual_seed(0)
    partner, tokens = torch.tensor([3, 2, 1, 0]), torch.randint(4, (2, 40))
    stack = Stack(StackConfig(4, 16, mixers, tied=False)).double()
    model = Equivariant(stack, partner)
    mirrored = model(mirror(tokens, partner)).logits
    agree([mirrored], [model(tokens).logits.flip(1)[..., partner]], 1e-12)
    assert not torch.equal(stack(tokens).logits, model(tokens).logits)
    pooled = Equivariant(Stack(StackConfig(4, 16, mixers, tied=False, pool="mean")).double(), partner, classes=True)
    agree([pooled(mirror(tokens, partner)).logits], [pooled(tokens).logits], 1e-12)
    assert torch.equal(mirror(mirror(tokens, partner), partner), tokens)


def test_models_that_cannot_be_mirrored_are_refused() -> None:
    stack = Stack(StackConfig(4, 16, ["slstm"]))
    with pytest.raises(SegueError, match="no involution"):
        Equivariant(stack, torch.tensor([1, 2, 3, 0]))
    starts = torch.zeros(1, 8, dtype=torch.bool)
    with pytest.raises(SegueError, match="one document a row"):
        Equivariant(stack, torch.tensor([3, 2, 1, 0]))(torch.zeros(1, 8, dtype=torch.long),
                                                       Layout.chain((1, 8), starts=starts))
