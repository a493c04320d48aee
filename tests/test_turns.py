"""Directed distances between turns: pairs worked by hand, sums kept as turns come, orders by plain loops."""

from __future__ import annotations

from collections import Counter
from itertools import permutations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from segue import SegueError
from segue.analysis.turns import LateInteraction, TurnEncoder, chain_scores, greedy_curving, towards
from segue.data.pairs import relative_distances
from segue.models import Stack, StackConfig
from segue.models.base import pad_rows, padding_starts
from segue.objectives import Batch, CosineRegression
from segue.training.learn import learn


def test_pairs_of_a_dialogue_of_seven_turns() -> None:
    results = relative_distances([list("abcdefg"), list("xyz")])  # the second is shorter than a window
    assert len(results) == 3 * 12  # three windows of 4 in order, 4 reversed, 4 random
    first = results[:12]
    assert [(pair.before, pair.after, pair.odd, pair.cosine) for pair in first[::3]] == [
        (0, 1, True, 0.8), (0, 2, False, 0.6), (0, 3, True, 0.4), (0, 4, False, 0.2)]
    assert [(pair.before, pair.after, pair.odd, pair.cosine) for pair in first[1::3]] == [
        (1, 0, True, 0), (2, 0, False, 0), (3, 0, True, 0), (4, 0, False, 0)]
    for d, pair in enumerate(first[2::3], 1):
        assert pair.cosine == 0 and (pair.before == 0 or pair.after == d)
    assert results[12].before == 1 and results[24].before == 2
    assert results == relative_distances([list("abcdefg"),
                                          list("xyz")]) != relative_distances([list("abcdefg")], seed=1)
    assert len(relative_distances([list("abcde")])) == 12 and not relative_distances([list("abcd")])
    with pytest.raises(SegueError, match="2 or more"):
        relative_distances([list("abc")], 1)


def test_random_negatives_have_four_kinds_equally_often() -> None:
    results = relative_distances([list(range(500))])[2::3]
    kinds = Counter((pair.odd, pair.before == at // 4) for at, pair in enumerate(results))
    assert all(count == pytest.approx(len(results) / 4, rel=0.15) for count in kinds.values()) and len(kinds) == 4


@given(st.integers(1, 7), st.integers(0, 100))
@settings(deadline=None, max_examples=20)
def test_incremental_sums_equal_the_whole_history(turns: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    odd_turns, even_turns = torch.randn(2, turns, 6, generator=draw, dtype=torch.float64)
    candidates = torch.randn(9, 6, generator=draw, dtype=torch.float64)
    interaction = LateInteraction(candidates)
    for n in range(1, turns + 1):
        # Turn i (from 1) of n lies n + 1 - i before the candidate.
        expected = sum(candidates @ ((odd_turns if (n + 1 - i) % 2 else even_turns)[i - 1]) for i in range(1, n + 1))
        torch.testing.assert_close(interaction.add(odd_turns[n - 1], even_turns[n - 1]), expected, atol=1e-6, rtol=0)
    places = LateInteraction(candidates)
    places.add(odd_turns[0], even_turns[0])
    remaining = places.cut(0.34)
    assert len(remaining) == 3 and set(remaining.tolist()) == set((candidates @ odd_turns[0]).topk(3).indices.tolist())
    torch.testing.assert_close(places.scores, (candidates @ odd_turns[0])[remaining])
    with pytest.raises(SegueError, match="cannot go on"):
        places.cut(0)


@given(st.integers(1, 4), st.integers(0, 100))
@settings(deadline=None, max_examples=20)
def test_goal_order_scores_equal_loops(goals: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    before, after = F.normalize(torch.randn(2, goals, 5, generator=draw, dtype=torch.float64), dim=-1)
    history = torch.randn(3, 5, generator=draw, dtype=torch.float64)
    greedy_order = greedy_curving(history, after)
    orders, chains = chain_scores(before @ after.mT)
    _, curved = chain_scores(before @ after.mT, greedy_order)
    assert [tuple(order) for order in orders.tolist()] == list(permutations(range(goals)))
    for order, chain, curve in zip(orders.tolist(), chains, curved):
        expected_chain = sum(float(before[order[k]] @ after[order[k + 1]]) for k in range(goals - 1))
        assert float(chain) == pytest.approx(expected_chain)
        kappa = [sum(float(turn @ after[goal]) for turn in history) for goal in order]
        expected_curve = sum(k / (goals - 1) * kappa[k] for k in range(1, goals))
        assert float(curve) == pytest.approx(expected_chain + kappa[0] - expected_curve)
    torch.testing.assert_close(chain_scores(before @ after.mT, torch.zeros(goals).double())[1], chains)


def pair_batch(rows: list[list[int]], expected: list[float]) -> Batch:
    tokens, lengths = pad_rows(rows), torch.tensor([*map(len, rows)])
    target_ids = torch.full(tokens.shape, -1)
    target_ids[torch.arange(len(rows)), lengths - 1] = 0
    cosine = torch.zeros(tokens.shape)
    cosine[: len(expected), 0] = torch.tensor(expected)
    return Batch(tokens, target_ids, padding_starts(lengths, tokens.shape[1]), {"cosine": cosine})


@pytest.mark.parametrize(("mixer", "options"), [("attention", {"causal": False}), ("gru", {}), ("mamba", {})])
def test_every_backbone_learns_the_direction_of_time(mixer: str, options: dict[str, bool]) -> None:
    torch.manual_seed(0)
    model = Stack(StackConfig(10 + TurnEncoder.marks(), 16, [mixer], {mixer: options}, pool="mean"))
    encoder = TurnEncoder(model, 10)
    texts = [[1, 2, 3], [4, 5], [6, 7, 8, 9]]
    first, second = ([texts[i] for i in indices] for indices in ((0, 1, 1, 2), (1, 2, 0, 1)))
    batch = pair_batch([*(encoder.before_row(text, True) for text in first), *map(encoder.after_row, second)],
                       [0.8, 0.8, 0.0, 0.0])
    loss = CosineRegression()(model, batch)
    with torch.no_grad():  # as sentence-transformers has it: the mean over pairs of the squared error of the cosine
        cosines = (encoder.before(first, True) * encoder.after(second)).sum(1)
        expected = (cosines - torch.tensor([0.8, 0.8, 0.0, 0.0])).square().mean()
    torch.testing.assert_close(loss.total.detach() / loss.count, expected, atol=1e-5, rtol=1e-4)
    learn(model, lambda step: batch, 80, rate=5e-3, objective=CosineRegression())
    model.eval()
    assert float(encoder.before([texts[0]], True)[0] @ encoder.after([texts[1]])[0]) > \
        float(encoder.before([texts[1]], True)[0] @ encoder.after([texts[0]])[0]) + 0.3
    assert towards(texts[:2], texts[2], encoder).tolist() == [1, 0]
    blind = TurnEncoder(model, None)
    torch.testing.assert_close(blind.before(texts, True), blind.after(texts))


def test_marks_and_lengths() -> None:
    encoder = TurnEncoder(None, 10, longest=2)
    assert encoder.after_row([1, 2, 3]) == [10, 1, 2]
    assert encoder.before_row([1, 2, 3], True) == [13, 11, 1, 2] and encoder.before_row([1], False) == [12, 11, 1]
    assert TurnEncoder(None, 10, speakers=False).before_row([1], True) == [11, 1] and TurnEncoder.marks(False) == 2
    with pytest.raises(SegueError, match="no pairs"):
        CosineRegression()(Stack(StackConfig(5, 8, ["gru"], pool="mean")), pair_batch([[1], [2], [3]], [0.0]))
