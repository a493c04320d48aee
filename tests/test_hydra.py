"""Hydra and the classes of matrices beside it, against their definitions entry by entry."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from weights import shake

from segue.errors import SegueError
from segue.mixers import Hydra, Layout, MatrixMixer, Mixer
from segue.mixers.hydra import MERGES
from segue.mixers.matrix import STRUCTURES
from segue.models import Stack, StackConfig
from segue.tasks import TASKS
from segue.testing import check_mixer
from segue.training.learn import accuracy, learn


def shaken(mixer: Mixer) -> Mixer:
    shake(mixer, 0.1)
    return mixer.double()


def hydra_by_loops(mixer: Hydra, x: Tensor) -> Tensor:
    """Row x (T, D): the state of each direction node by node, each node's own weight, the joined directions normed and
    gated."""
    heads, n = mixer.heads, len(x)
    gate, mixed, dt = mixer.into(x).split(mixer.widths, -1)
    kernel, convolved = mixer.convolution.weight, torch.zeros_like(mixed)
    for t in range(n):
        for tap in range(7):
            if 0 <= (at := t + tap - (6 if mixer.merge == "forward" else 3)) < n:
                convolved[t] += mixed[at] * kernel[:, tap]
    v, *bc = F.silu(convolved).split(mixer.inner, -1)
    v = v.view(n, heads, -1)
    directions = []
    for direction, steps in enumerate(dt.chunk(mixer.ways, -1)):
        b, c, steps = bc[2 * direction], bc[2 * direction + 1], F.softplus(steps + mixer.step)
        state, results = torch.zeros(heads, v.shape[-1], b.shape[-1], dtype=x.dtype), {}
        for t in reversed(range(n)) if direction else range(n):
            if mixer.merge == "quasiseparable":  # what the node before saw, by that node's own c
                before = t + 1 if direction else t - 1
                results[t] = state @ c[before] if 0 <= before < n else state.sum(-1) * 0
            decay = (-steps[t] * mixer.A_log.exp()).exp()
            state = decay[:, None, None] * state + (steps[t, :, None] * v[t])[..., None] * b[t]
            if mixer.merge != "quasiseparable":
                results[t] = state @ c[t]
        directions.append(torch.stack([results[t] for t in range(n)]))
    if mixer.merge == "multiply":
        y = directions[0] * directions[1]
    elif mixer.join is not None:
        y = mixer.join(torch.cat([direction.flatten(1) for direction in directions], -1)).view_as(v)
    else:
        y = torch.stack(directions).sum(0)
    y = y + (v.flatten(1) @ mixer.diagonal.weight.T + mixer.diagonal.bias)[..., None] * v
    return mixer.out(mixer.norm(y.flatten(1)) * F.silu(gate))


@torch.no_grad()
@pytest.mark.parametrize("merge", MERGES)
def test_hydra_equals_loops(merge: str) -> None:
    torch.manual_seed(0)
    mixer, x = shaken(Hydra(8, heads=2, states=3, merge=merge)), torch.randn(2, 37, 8, dtype=torch.float64)
    assert isinstance(mixer, Hydra)
    for row in range(2):
        assert (mixer(x)[row] - hydra_by_loops(mixer, x[row])).abs().max() < 1e-10


@pytest.mark.parametrize("merge", MERGES[1:])
def test_contract_of_merges(merge: str) -> None:
    assert check_mixer(lambda width: Hydra(width, heads=2, states=3, merge=merge), examples=4)


@torch.no_grad()
def test_hydras_matrix_is_quasiseparable_with_a_free_diagonal() -> None:
    """Blocks off the diagonal have rank S at most; adding two ways ties the diagonal to them, here it is free."""
    torch.manual_seed(0)
    mixer, x = shaken(Hydra(8, heads=2, states=3)), torch.randn(1, 20, 8, dtype=torch.float64)
    matrix = mixer.matrix(x)[0]
    for block in (matrix[:, 10:, :10], matrix[:, :10, 10:]):
        assert int(torch.linalg.matrix_rank(block).max()) == 3
    assert isinstance(mixer, Hydra)
    off = matrix - torch.diag_embed(matrix.diagonal(dim1=1, dim2=2))
    mixer.diagonal.bias += 5.0
    moved = mixer.matrix(x)[0]
    assert torch.equal(moved - torch.diag_embed(moved.diagonal(dim1=1, dim2=2)), off)
    assert ((moved - matrix).diagonal(dim1=1, dim2=2) - 5.0).abs().max() < 1e-12


@torch.no_grad()
def test_hydra_is_symmetric_under_reversal() -> None:
    """With the ways' parameters exchanged and the convolution mirrored."""
    torch.manual_seed(0)
    mixer, x = Hydra(8, heads=2, states=3).double(), torch.randn(1, 15, 8, dtype=torch.float64)
    y = mixer(x)
    inner = mixer.inner[0]
    bc = torch.arange(4 * 3).view(2, 6).flip(0).flatten()  # b and c of the other way
    mixed = torch.cat([torch.arange(inner), inner + bc])
    order = torch.cat([torch.arange(inner), inner + mixed, sum(mixer.widths[:2]) + torch.tensor([2, 3, 0, 1])])
    mixer.into.weight.copy_(mixer.into.weight[order])
    mixer.convolution.weight.copy_(mixer.convolution.weight[mixed].flip(1))
    assert (mixer(x.flip(1)).flip(1) - y).abs().max() < 1e-12


CLASSES = [(name, aligned) for name in STRUCTURES for aligned in (True, False) if name != "dense" or not aligned]


@pytest.mark.parametrize("structure, aligned", CLASSES)
def test_contract_of_classes(structure: str, aligned: bool) -> None:
    assert check_mixer(lambda width: MatrixMixer(width, structure, aligned, 64, heads=2, features=2), examples=3)


def entry(mixer: MatrixMixer, structure: str, p: Tensor, i: int, j: int) -> Tensor:
    """Entry (i, j) of the matrix of one head, before the identity, from the numbers p (T, P)."""
    n, d = len(p), mixer.features
    q, k = p[:, :d], p[:, d : 2 * d]
    if structure == "dense":
        return p[i, j] / math.sqrt(n)
    if structure == "toeplitz":
        return p[abs(i - j), int(j > i)] / (2 * math.sqrt(n))
    if structure == "vandermonde":
        turn = 2 * math.pi * 1e-3
        return ((turn * q[i] * j).cos() - (turn * k[j] * i).cos()).sum() / math.sqrt(2 * n * d)
    if structure == "cauchy":
        return (1 / (q[i].exp() + k[j].exp() + 2 * mixer.shift[0]
                     + 1e-8)).sum() / math.sqrt(n * d)  # type: ignore[index]
    if structure == "low-rank":
        return q[i] @ k[j] / math.sqrt(n * d)
    if structure == "attention":
        return (q[i] @ k.T / math.sqrt(d)).softmax(0)[j]
    if i == j and structure == "quasiseparable":
        return p[i, -1]
    if j > i and structure == "semiseparable":
        return torch.zeros((), dtype=p.dtype)
    part = p[:, 2 * d + 1 : 4 * d + 2] if j > i else p[:, : 2 * d + 1]
    between = part[i:j, -1] if j > i else part[j + 1 : i + 1, -1]
    decay = (F.logsigmoid(between) / 16).sum().exp()
    return part[i, :d] @ part[j, d : 2 * d] * decay / math.sqrt(n * d)


@torch.no_grad()
@pytest.mark.parametrize("structure, aligned", CLASSES)
def test_matrix_classes_equal_their_entries(structure: str, aligned: bool) -> None:
    torch.manual_seed(0)
    mixer, x = shaken(MatrixMixer(8, structure, aligned, 12, heads=1, features=2)), torch.randn(1, 9, 8).double()
    assert isinstance(mixer, MatrixMixer)
    p = mixer._project(x, Layout.chain((1, 9)))[1][0] if mixer.numbers is None else mixer.numbers[:9]
    expected = torch.stack([torch.stack([entry(mixer, structure, p, i, j) for j in range(9)]) for i in range(9)])
    assert (mixer.matrix(x)[0, 0] - expected - torch.eye(9)).abs().max() < 1e-12


@torch.no_grad()
@pytest.mark.parametrize("structure", [name for name, aligned in CLASSES if aligned and name != "attention"])
def test_aligned_classes_extend(structure: str) -> None:
    """The leading block of an aligned matrix does not change with what comes later, but for its scale."""
    torch.manual_seed(0)
    mixer, x = shaken(MatrixMixer(8, structure, heads=2, features=2, taps=1)), torch.randn(1, 9, 8).double()
    eye = torch.eye(6)
    short, long = mixer.matrix(x[:, :6]) - eye, mixer.matrix(x)[..., :6, :6] - eye
    if structure == "quasiseparable":  # whose diagonal is not scaled
        short, long = (y - torch.diag_embed(y.diagonal(dim1=2, dim2=3)) for y in (short, long))
    assert (short * math.sqrt(6) - long * math.sqrt(9)).abs().max() < 1e-12


def test_unsupported_uses_of_a_class_are_refused() -> None:
    for options, message in (({"structure": "dense"}, "no aligned form"), ({"structure": "circulant"}, "is unknown"),
                             ({"heads": 3}, "not divisible by 3")):
        with pytest.raises(SegueError, match=message):
            MatrixMixer(8, **options)  # type: ignore[arg-type]
    with pytest.raises(SegueError, match="longer than"):
        MatrixMixer(8, "low-rank", False, 4)(torch.randn(1, 5, 8))
    with pytest.raises(SegueError, match="merge"):
        Hydra(8, merge="sum")
    packed = Layout.chain((1, 8), starts=torch.arange(8)[None] % 4 == 0)
    assert MatrixMixer(8, "low-rank", False, 4)(torch.randn(1, 8, 8), packed).shape == (1, 8, 8)


@pytest.mark.parametrize("pattern", ["hydra+attention", "gru+hydra+matrix"])
def test_hydra_in_mixed_stacks_learns_to_look_ahead(pattern: str) -> None:
    """A tagger whose target at every place is the last element of the sequence."""
    torch.manual_seed(0)
    options = {"hydra": {"heads": 2, "states": 4}, "matrix": {"heads": 2}, "attention": {"heads": 2, "causal": False}}
    names = pattern.split("+")
    model = Stack(StackConfig(4, 16, names, {name: options[name] for name in names if name in options}))

    def batches(step: int):  # type: ignore[no-untyped-def]
        batch = TASKS["copy"].batches(16, (9, 9))(step)
        tokens = batch.tokens % 4
        return type(batch)(tokens, tokens[:, -1:].expand(-1, 9))

    learn(model, batches, 100, rate=0.01)
    assert accuracy(model, batches(1000)) > 0.9
