"""What a prompt can force: searches against brute force, gradients, bounds of an attention head."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from weights import shake

import segue
from segue.analysis.control import (
    Control,
    attention_bounds,
    backoff,
    brute_force,
    cover,
    gcg,
    gcg_shared,
    greedy_backward,
    k_epsilon,
)
from segue.errors import SegueError
from segue.mixers.attention import attend
from segue.models import Stack, StackConfig

V = 7
PATTERNS = ("attention", "mamba", "gru", "gla+attention")


def sharp(pattern: str, seed: int = 0, vocabulary: int = V) -> Stack:
    """A random stack whose prediction depends on all it has read."""
    torch.manual_seed(seed)
    model = Stack(StackConfig(vocabulary, 16, pattern.split("+"), tied=seed % 2 == 0))
    shake(model, 0.5)
    return model.eval()


@settings(max_examples=8, deadline=None)
@given(pattern=st.sampled_from(PATTERNS), seed=st.integers(0, 50), begin=st.booleans())
def test_searches_find_only_what_brute_force_finds(pattern: str, seed: int, begin: bool) -> None:
    model = sharp(pattern, seed)
    task = Control(model, [1, 2], begin=[3] if begin else ())
    exact = {k: brute_force(task, k) for k in (0, 1, 2)}
    assert set(exact[0]) <= set(exact[1]) <= set(exact[2]) and len(exact[0]) == 1
    front = [3] if begin else []
    for target, control in exact[2].items():
        logits = model(torch.tensor([[*front, *control, 1, 2]])).logits[0, -1]
        assert int(logits.argmax()) == target
    by_hand = {int(model(torch.tensor([[*front, *u, 1, 2]])).logits[0, -1].argmax()) for k in range(3)
               for u in itertools.product(range(V), repeat=k)}
    assert by_hand == set(exact[2])
    for target in range(V):
        single_token = greedy_backward(task, target, 1)
        assert single_token.reached == (target in exact[1])
        for attempt in (single_token, greedy_backward(task, target, 2),
                        gcg(task, target, 2, steps=4, candidates=16, top=4)):
            assert not attempt.reached or target in exact[2]
            scores = model(torch.tensor([[*front, *attempt.control, 1, 2]])).logits[0, -1].detach().log_softmax(-1)
            assert float(-scores[target]) == pytest.approx(attempt.loss, abs=1e-4)
            assert attempt.reached == (int(scores.argmax()) == target)
    covered = cover(task, 2, steps=6, candidates=32)
    assert set(covered) <= set(exact[2]) and len(covered) > 0


@pytest.mark.parametrize("pattern", PATTERNS)
def test_one_hot_gradients_equal_central_differences(pattern: str) -> None:
    model = sharp(pattern, 2).double()
    task, control, target = Control(model, [4, 5], begin=[0]), torch.tensor([1, 6]), 3
    results = task.gradient(control, lambda chances: -chances[target])
    rows = torch.nn.functional.one_hot(task.rows(control[None]), V).double()
    for place, token in itertools.product(range(2), range(V)):
        ends = []
        for step in (1e-5, -1e-5):
            moved = rows.clone()
            moved[0, 1 + place, token] += step
            ends.append(-float(model(moved).logits[0, -1].detach().log_softmax(-1)[target]))
        assert float(results[place, token]) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("pattern", [*PATTERNS, "jrt"])
def test_control_gradients_equal_those_of_the_scores(pattern: str) -> None:
    """Of models that read their prompt both ways too: control and state are their prompt."""
    task, captured = Control(sharp(pattern), [4, 5]), list[torch.Tensor]()

    def loss(chances: torch.Tensor) -> torch.Tensor:
        captured.append(chances.detach())
        return -chances[3]

    assert task.gradient(torch.tensor([1, 6]), loss).shape == (2, V)
    first, chance = task.scores(torch.tensor([[1, 6]]), 3)
    assert int(captured[0].argmax()) == int(first[0])
    torch.testing.assert_close(captured[0][3], chance[0], rtol=1e-4, atol=1e-4)


def test_gcg_never_worsens_and_respects_allowed_ids() -> None:
    model = sharp("attention", 4)
    task = Control(model, [1], allowed=[2, 5])
    results = [gcg(task, 0, 3, steps=steps, candidates=6, top=2, patience=2) for steps in (0, 1, 2, 4, 12)]
    losses = [step.loss for step in results]
    assert losses == sorted(losses, reverse=True) or results[-1].reached
    assert set(gcg(task, 0, 3, steps=4).control) <= {2, 5}
    assert {i for u in brute_force(task, 2).values() for i in u} <= {2, 5}
    started = gcg(task, 0, 3, steps=0, start=[5, 2])
    assert started.control[1:] == (5, 2)
    # From the best there is it goes nowhere: all it looks at is one swap away.
    every = torch.tensor(list(itertools.product(range(V), repeat=2)))
    out = min(set(range(V)) - set(brute_force(brute_task := Control(model, [1]), 2)))
    best, looked = every[brute_task.scores(every, out)[1].argmax()], list[torch.Tensor]()
    score = brute_task.scores
    brute_task.scores = lambda controls, target=0: looked.append(controls) or score(controls, target)  # type: ignore
    assert gcg(brute_task, out, 2, steps=6, candidates=20, start=best.tolist(),
               patience=9).control == tuple(best.tolist())
    assert len(looked) == 7 and int((torch.cat(looked) != best).sum(1).max()) == 1


@pytest.mark.parametrize("pattern", ["attention", "gru"])
def test_one_control_serves_many_states(pattern: str) -> None:
    model = sharp(pattern, 5)
    tasks, targets = [Control(model, state) for state in ([1], [2, 4], [6])], [3, 0, 3]

    def loss(control: tuple[int, ...]) -> float:
        log_probs = [model(torch.tensor([[*control, *task.state]])).logits[0, -1].detach().log_softmax(-1)
                     for task in tasks]
        return -sum(float(scores[target]) for scores, target in zip(log_probs, targets)) / 3

    best = min(loss((token,)) for token in range(V))
    assert gcg_shared(tasks, targets, 1, steps=1, candidates=200, top=V).loss == pytest.approx(best, abs=1e-4)
    results = [gcg_shared(tasks, targets, 2, steps=steps, candidates=8, top=3, examples=2) for steps in (0, 2, 6)]
    assert [step.loss for step in results] == sorted((step.loss for step in results), reverse=True)
    assert results[-1].loss == pytest.approx(loss(results[-1].control), abs=1e-4)
    for task, target, reached in zip(tasks, targets, results[-1].reached):
        assert reached == (int(task.scores(torch.tensor([results[-1].control]))[0]) == target)
    with pytest.raises(SegueError, match="a target for each"):
        gcg_shared(tasks, targets[:2], 1)


def test_backoff_takes_the_shortest_control() -> None:
    model = sharp("mamba", 3)
    task = Control(model, [1, 2])
    exact = [set(brute_force(task, k)) for k in (0, 1, 2)]
    for target in range(V):
        result = backoff(task, target, greedy=2, swaps=(3, 4), steps=8, candidates=64)
        shortest = next((k for k in (0, 1, 2) if target in exact[k]), 3)
        assert len(result.control) >= shortest or not result.reached
        if target in exact[1]:
            assert result.reached and len(result.control) == shortest
    assert result.tried > 0


def test_epsilon_never_grows_with_k() -> None:
    assert k_epsilon([0, 2, None, 1], 3) == [0.75, 0.5, 0.25, 0.25]
    with pytest.raises(SegueError, match="no pairs"):
        k_epsilon([], 2)
    with pytest.raises(SegueError, match="no state"):
        Control(sharp("gru"), [])


def test_folders_of_transformers_are_searched_by_scores(tmp_path: Path) -> None:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    pytest.importorskip("transformers")
    from segue.models.huggingface import adapt, to_huggingface

    torch.manual_seed(1)
    model = Stack(StackConfig(V, 16, ["attention"] * 2, norm="rms"))
    shake(model, 0.5)
    to_huggingface(model.eval(), tmp_path / "model")
    reference, actual = Control(adapt(tmp_path / "model"), [1, 2]), Control(model, [1, 2])
    exact = [brute_force(task, 2) for task in (actual, reference)]
    assert exact[0] == exact[1]
    lengths: list[list[int | None]] = [[], []]
    for reached_lengths, task in zip(lengths, (actual, reference)):
        reached_lengths += [len(u.control) if u.reached else None for u in
                            (backoff(task, target, greedy=2, swaps=()) for target in range(V))]
    assert k_epsilon(lengths[0], 2) == k_epsilon(lengths[1], 2)
    blind, guided = (gcg(task, 3, 4, steps=1, candidates=8) for task in (reference, actual))
    assert blind.how == "random swaps, k = 4" and guided.how == "gcg, k = 4"
    with pytest.raises(SegueError, match="no gradient"):
        reference.gradient(torch.tensor([1]), lambda chances: chances[0])


def test_models_of_every_kind_are_searched() -> None:
    for kind, records, text in (("dna", ["ACGTTGCA" * 8] * 12, "ACG"), ("text", ["the cat sat\n" * 6] * 12, "the")):
        model = segue.fit(records, kind=kind, steps=3, mixer="gla", width=16, depth=1, quiet=True, mix=False)
        task = Control(model.model, model.codec.encode(text).tolist())
        reached = brute_force(task, 1)
        assert len(reached) >= 1 and all(0 <= target < model.codec.size for target in reached)


Head = tuple[Any, ...]


def some_head(seed: int) -> Head:
    """Weights (E, D), imposed rows, control rows, and whether imposed ones look back only."""
    draw = torch.Generator().manual_seed(seed)
    sizes = ((2, 9), (1, 6), (1, 7), (1, 5))
    width, size, n, k = (int(torch.randint(low, high, (), generator=draw)) for low, high in sizes)
    scale = float(torch.rand((), generator=draw)) * 1.5
    queries, keys, values = (scale * torch.randn(size, width, generator=draw, dtype=torch.float64) for _ in range(3))
    x = torch.randn(n, width, generator=draw, dtype=torch.float64)
    u = torch.randn(k, width, generator=draw, dtype=torch.float64) * float(torch.rand((), generator=draw))
    return queries, keys, values, x, u, bool(seed % 2)


def reached_rows(head: Head) -> torch.Tensor:
    """(n, E): the imposed rows after attention with this control, by plain softmaxes."""
    queries, keys, values, x, u, causal = head
    k, both = len(u), torch.cat([u, x])
    rows = []
    for i in range(len(x)):
        visible = both[: k + i + 1] if causal else both
        weights = (visible @ keys.T @ (queries @ x[i]) / queries.shape[0] ** 0.5).softmax(0)
        rows.append(weights @ (visible @ values.T))
    return torch.stack(rows)


def test_bounds_never_exclude_reached_rows_unlike_the_printed_form() -> None:
    """The theorem as printed (inequality turned round, the queries' norm for the values') excludes reached rows."""
    excluded = printed = rows = 0
    for seed in range(1000):
        head = some_head(seed)
        queries, keys, values, x, u, causal = head
        longest = float(u.norm(dim=-1).max())
        bounds = attention_bounds(queries, keys, values, x, len(u), longest, causal)
        y = reached_rows(head)
        uncontrolled = reached_rows((queries, keys, values, x, u[:0], causal))
        torch.testing.assert_close(bounds.uncontrolled, uncontrolled)
        excluded += int(bounds.excludes(y).sum())
        along = (y * uncontrolled).sum(-1) / uncontrolled.square().sum(-1)
        across = (y - along[:, None] * uncontrolled).norm(dim=-1)
        printed_bound = float(torch.linalg.matrix_norm(queries, 2)) * longest
        printed += int((across <= (1 - bounds.least) * printed_bound).sum())
        rows += len(y)
    assert rows > 3000 and excluded == 0 and printed > 100


def test_bounds_exclude_unreachable_rows() -> None:
    """Rows far away, or at right angles and too long, cannot be reached; those at the edge can."""
    queries, keys, values, x, u, _ = some_head(1)
    bounds = attention_bounds(queries, keys, values, x, 2, 0.01)
    distant = -1e3 * bounds.uncontrolled
    assert bounds.excludes(distant).all() and not bounds.excludes(bounds.uncontrolled).any()
    assert (bounds.least < bounds.most).all() and (bounds.most < 1).all()
    y = attend(*(z[None, None] for z in (x @ queries.T, x @ keys.T, x @ values.T)))[0][0, 0]
    torch.testing.assert_close(bounds.uncontrolled, y)
