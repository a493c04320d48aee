"""LightNet against its equations: softmax weights per key channel, cosines of places, averages along each axis."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from weights import shake

from segue.errors import SegueError
from segue.mixers import Layout, LightNet
from segue.models import Stack, StackConfig
from segue.testing import check_mixer, check_model


def mixer(**options: object) -> LightNet:
    torch.manual_seed(0)
    lightnet = LightNet(12, heads=2, gate_rank=4, **options).double()  # type: ignore[arg-type]
    shake(lightnet, 0.2)
    return lightnet


def averaged(mixer: LightNet, x: Tensor, grid: tuple[int, ...]) -> Tensor:
    """x (T, D) plus the moving averages along each axis, place by place."""
    if mixer.placed is None:
        return x
    total, field = torch.zeros_like(x), x.view(*grid, -1)
    for axis, average in enumerate(mixer.averages[: len(grid)]):
        a = torch.sigmoid(average.rate)  # type: ignore[arg-type]
        for t, place in enumerate(torch.cartesian_prod(*map(torch.arange, grid)).view(-1, len(grid)).tolist()):
            for back in range(place[axis] + 1):
                source = [*place[:axis], place[axis] - back, *place[axis + 1 :]]
                kernel = (average.weight * (1 - a) * a**back).sum(-1)
                total[t] += kernel * field[tuple(source)]
    return x + mixer.placed(total)


def by_loops(mixer: LightNet, x: Tensor, grid: tuple[int, ...], theta: float = 10_000.0) -> Tensor:
    """One row x (T, D): weights exp(k) over their sum per channel, times the cosine of the difference of places."""
    heads, n = mixer.heads, len(x)
    places = torch.cartesian_prod(*map(torch.arange, grid)).view(n, -1).tolist()
    x = averaged(mixer, x, grid)
    q, k, v = mixer.qkv(x).view(n, 3, heads, -1).unbind(1)
    width = q.shape[-1]
    share = math.ceil(width / max(1, mixer.rotated_axes))
    out = torch.zeros_like(v)
    for i in range(n):
        visible = range(i + 1) if mixer.causal else range(n)
        for h in range(heads):
            weights = torch.stack([k[j, h] for j in visible]).softmax(0)
            for row, j in enumerate(visible):
                score = 0.0
                for c in range(width):
                    axis = c // share
                    separate = places[i][axis] - places[j][axis] if mixer.rotated_axes and axis < len(grid) else 0
                    cosine = math.cos(separate * theta ** (-(c % share) / share))
                    score = score + F.silu(q[i, h, c]) * weights[row, c] * cosine
                out[i, h] += score * v[j, h]
    return mixer.out(mixer.norm(out).flatten(1) * F.silu(mixer.gate(x)))


@torch.no_grad()
@pytest.mark.parametrize("options, grid", [
    ({}, (9,)),
    ({"axes": 0}, (9,)),
    ({"toeplitz": 2}, (9,)),
    ({"causal": False}, (9,)),
    ({"causal": False, "axes": 2, "toeplitz": 2}, (3, 4)),
    ({"causal": False, "axes": 3, "toeplitz": 1}, (2, 3, 2)),
    ({"causal": False, "axes": 3, "toeplitz": 1}, (3, 2)),
])
def test_lightnet_equals_loops(options: dict, grid: tuple[int, ...]) -> None:
    model, x = mixer(**options), torch.randn(2, math.prod(grid), 12, dtype=torch.float64)
    layout = Layout.chain((2, math.prod(grid)), grid=grid if len(grid) > 1 else None)
    for row in range(2):
        assert (model(x, layout)[row] - by_loops(model, x[row], grid)).abs().max() < 1e-10


@pytest.mark.parametrize("options", [{"axes": 0}, {"causal": False, "toeplitz": 2}, {"causal": False, "axes": 2}])
def test_contract_of_variants(options: dict) -> None:
    assert check_mixer(lambda width: LightNet(width, heads=2, gate_rank=4, **options), examples=3)


@torch.no_grad()
def test_without_places_the_order_does_not_matter() -> None:
    model, x = mixer(causal=False, axes=0), torch.randn(1, 10, 12, dtype=torch.float64)
    order = torch.randperm(10)
    assert (model(x[:, order]) - model(x)[:, order]).abs().max() < 1e-12
    placed = mixer(causal=False)
    assert (placed(x[:, order]) - placed(x)[:, order]).abs().max() > 1e-3


@torch.no_grad()
def test_the_last_causal_node_equals_the_two_way_one() -> None:
    x = torch.randn(1, 10, 12, dtype=torch.float64)
    assert (mixer()(x)[:, -1] - mixer(causal=False)(x)[:, -1]).abs().max() < 1e-12


@torch.no_grad()
def test_large_keys_and_long_streams_stay_finite() -> None:
    model = mixer().float()
    model.qkv.weight[12:24] *= 1000
    state = model.init_state(1)
    for _ in range(4):
        assert model.extend(torch.randn(1, 500, 12), state).isfinite().all()
        state.commit()


def test_bad_grids_are_refused() -> None:
    with pytest.raises(SegueError, match="one axis"):
        LightNet(8, axes=2)
    flat = Layout.chain((1, 6), grid=(2, 3))
    with pytest.raises(SegueError, match="takes 1 sequence axes"):
        LightNet(8)(torch.randn(1, 6, 8), flat)
    flat.starts = torch.zeros(1, 6, dtype=torch.bool)
    with pytest.raises(SegueError, match="one document per row"):
        LightNet(8, causal=False, axes=2)(torch.randn(1, 6, 8), flat)


@pytest.mark.parametrize("names", [["lightnet", "gru"], ["mamba", "attention", "lightnet"]])
def test_lightnet_in_mixed_stacks_decodes_exactly(names: list[str]) -> None:
    torch.manual_seed(0)
    options = {"lightnet": {"heads": 2, "gate_rank": 2, "toeplitz": 2}, "mamba": {"states": 2},
               "attention": {"heads": 2}}
    model = Stack(StackConfig(6, 8, names, {name: options[name] for name in names if name in options}))
    check_model(model, examples=3, longest=12, shrink=False, only="any life")
