"""Sets as answers: the order that a model is taught is one of those asked for, drawn or chosen as it says."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from weights import shake

from segue.errors import SegueError
from segue.models import PointerConfig, PointerNetwork, SetConfig, Stack, StackConfig
from segue.objectives import Batch, NextElement, OrderSearch
from segue.objectives.order import MODES, Sets
from segue.tasks import GEOMETRY
from segue.testing import check_objective
from segue.training.learn import learn

V, BEGIN = 8, 7


def model(mixer: str = "gru") -> Stack:
    torch.manual_seed(0)
    actual = Stack(StackConfig(V, 8, [mixer], {"attention": {"heads": 2}}, hidden=12)).double().eval()
    shake(actual, 0.4)
    return actual


def batch_of(*answers: list[int]) -> Batch:
    """The begin token, then the elements, all targets."""
    return Batch.pairs([([], answer) for answer in answers], BEGIN)


def likelihood(actual: Any, elements: list[int]) -> float:
    return -float(NextElement()(actual, batch_of(elements)).total.detach())


def stepwise(model: Stack, elements: list[int]) -> float:
    """q of an order by its definition: each element among those left."""
    q = 1.0
    for step, element in enumerate(elements):
        chances = model(torch.tensor([[BEGIN, *elements[:step]]])).logits[0, -1].detach().softmax(-1)
        q *= float(chances[element] / chances[sorted(set(elements[step:]))].sum())
    return q


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "max"])
def test_contract(mode: str) -> None:
    check_objective(OrderSearch(mode))
    check_objective(OrderSearch(mode, eos=3))


@pytest.mark.parametrize("mixer", ["gru", "attention"])
def test_sampled_orders_follow_the_models_distribution(mixer: str) -> None:
    actual, elements, draws = model(mixer), [4, 1, 6, 3], 4000
    sets = Sets(batch_of(*[elements] * draws))
    noise = torch.rand(draws, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    results = sets.elements.gather(1, sets.sample_order(actual, noise))
    orders = list(itertools.permutations(elements))
    counts = torch.tensor([float((results == torch.tensor(order)).all(1).sum()) for order in orders])
    expected = draws * torch.tensor([stepwise(actual, list(order)) for order in orders])
    assert int(counts.sum()) == draws and float(expected.sum()) == pytest.approx(draws)
    score = float(((counts - expected).square() / expected).sum())
    assert score < 23 + 4 * math.sqrt(2 * 23)  # chi-square of 23 degrees of freedom


def test_equal_elements_count_as_one_choice() -> None:
    actual, draws = model(), 4000
    sets = Sets(batch_of(*[[2, 5, 2]] * draws))
    noise = torch.rand(draws, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    order = sets.sample_order(actual, noise)
    assert bool((order.sort(1).values == torch.arange(3)).all())
    results = sets.elements.gather(1, order)
    for expected in ([2, 2, 5], [2, 5, 2], [5, 2, 2]):
        share = float((results == torch.tensor(expected)).all(1).double().mean())
        assert share == pytest.approx(stepwise(actual, expected), abs=0.03)


@pytest.mark.parametrize("eos", [None, 0])
def test_the_likeliest_order_equals_brute_force(eos: int | None) -> None:
    actual, end = model(), [] if eos is None else [eos]
    for elements in ([4, 1, 6, 3], [2, 5], [3, 1, 2]):
        best = max(likelihood(actual, [*order, *end]) for order in itertools.permutations(elements))
        loss = OrderSearch("max", eos=eos)(actual, batch_of([*elements, *end], [5, 4, *end]))
        other = max(likelihood(actual, [*order, *end]) for order in itertools.permutations([5, 4]))
        assert float(loss.total.detach()) == pytest.approx(-best - other, abs=1e-5)  # totals are float32
    allowed = [[0, 1, 2], [2, 0, 1]]
    loss = OrderSearch("max", allowed)(actual, batch_of([3, 1, 2]))
    assert float(loss.total.detach()) == pytest.approx(-max(likelihood(actual, [3, 1, 2]),
                                                            likelihood(actual, [2, 3, 1])))


def orders_taken(objective: OrderSearch, actual: Any, batch: Batch, draws: int) -> list[tuple[int, ...]]:
    """The orders that an objective takes, step by step."""
    result = []
    for step in range(draws):
        torch.manual_seed(step)
        sets = Sets(batch, objective.eos)
        arranged = sets.arrange(objective.order(actual, sets))
        assert torch.equal(arranged.tokens[0, 1:], arranged.targets[0, :-1])
        result.append(tuple(arranged.targets[0].tolist()))
    return result


def test_modes_over_given_orders() -> None:
    actual, batch, allowed = model(), batch_of([3, 1, 2]), [[0, 1, 2], [2, 0, 1]]
    for mode in MODES:
        assert set(orders_taken(OrderSearch(mode, allowed), actual, batch, 60)) <= {(3, 1, 2), (2, 3, 1)}
    assert set(orders_taken(OrderSearch("fixed", allowed[::-1]), actual, batch, 3)) == {(2, 3, 1)}
    chances = torch.tensor([likelihood(actual, [3, 1, 2]), likelihood(actual, [2, 3, 1])]).softmax(0)
    for mode, share in (("sample", float(chances[0])), ("uniform", 0.5)):
        result = orders_taken(OrderSearch(mode, allowed), actual, batch, 300)
        assert result.count((3, 1, 2)) / 300 == pytest.approx(share, abs=0.09)
    assert len(set(orders_taken(OrderSearch("uniform"), actual, batch, 100))) == 6
    ended = orders_taken(OrderSearch("uniform", eos=0), actual, batch_of([3, 1, 2, 0]), 50)
    assert {order[-1] for order in ended} == {0} and len(set(ended)) == 6


def test_malformed_orders_are_refused() -> None:
    bad_calls: list[tuple[dict[str, Any], str]] = [
        ({"mode": "best"}, "unknown"), ({"orders": [[0, 2]]}, "not orders"), ({"orders": []}, "not orders")]
    for options, message in bad_calls:
        with pytest.raises(SegueError, match=message):
            OrderSearch(**options)
    with pytest.raises(SegueError, match="must be equal"):
        OrderSearch("max", [[0, 1]])(model(), batch_of([1, 2, 3]))
    with pytest.raises(SegueError, match="too many orders"):
        OrderSearch("max")(model(), batch_of([1, 2, 3, 4, 5, 6, 1]))
    batch = batch_of([1, 2, 3])
    batch.targets[0, 1] = -1
    with pytest.raises(SegueError, match="one run"):
        OrderSearch("uniform")(model(), batch)


def test_a_pointer_network_learns_sets_by_order_search() -> None:
    """The two largest of four numbers, in a random order: the search finds an order that can be predicted."""
    def draw(step: int) -> Batch:
        generator = torch.Generator().manual_seed(step)
        values = torch.rand(32, 4, 1, generator=generator)
        answers = (1 + values[..., 0].topk(2, 1).indices).tolist()
        mixed = [[a, b] if step % 2 else [b, a] for a, b in answers]
        return Batch.pointing(list(zip(values.numpy(), mixed)))

    def loss(objective: Any) -> float:
        torch.manual_seed(0)
        actual = PointerNetwork(PointerConfig(SetConfig(1, 16, 2), StackConfig(1, 16, ["gru"]), 1))
        for name, steps in (("uniform", 20), (objective, 60)):
            learn(actual, draw, steps, rate=1e-2, objective=OrderSearch(name, eos=0))
        tests = draw(10_000)
        return float(OrderSearch("max", eos=0)(actual, tests).total.detach()) / 32

    assert loss("sample") < loss("fixed") - 0.1
    sets: Tensor = Sets(GEOMETRY["sorting"].test(2, 3), 0).elements
    assert sets.shape == (2, 3) and bool((sets > 0).all())
