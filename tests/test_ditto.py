"""Repetitions: what is repeated, what it costs, the coin between objectives, and how loops are measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from segue.analysis.texts import reinforcement, repetition
from segue.errors import SegueError
from segue.models import Stack, StackConfig
from segue.objectives import Batch, DecayedRepetition, Loss, Mixed, NextElement, TokenUnlikelihood
from segue.objectives.repetition import repeat_sentence
from segue.testing import check_objective
from segue.testing.decoding import TableModel
from segue.training.loop import Run
from segue.training.recipe import Plan

END = 0


class Said(nn.Module):
    """A model whose scores are a parameter: (T, V) for every row."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits_ = nn.Parameter(logits)

    def forward(self, tokens: Tensor, layout: object = None):  # type: ignore[no-untyped-def]
        from segue.models.base import Output

        return Output(self.logits_.expand(len(tokens), -1, -1)[:, : tokens.shape[1]], self.logits_)


def rows(*texts: Sequence[int]) -> Batch:
    tokens = torch.tensor(texts)
    return Batch(tokens[:, :-1], tokens[:, 1:])


def test_repeated_batches_equal_those_by_hand() -> None:
    """Parity check 1: a sentence of two tokens (its separator and one more), three copies of it."""
    text = [5, END, 3, 4, END, 7, END, 6]  # the sentences: 3 4, then 7
    repeated, period, weight = DecayedRepetition(END).repeat(rows([*text, 9]))
    assert repeated.tokens.tolist() == [[3, 4, END, 7, END, 7, END, 7]]
    assert repeated.targets.tolist() == [[4, END, 7, END, 7, END, 7, END]]
    assert period.tolist() == [[0, 0, 0, 2, 2, 2, 2, 2]]
    torch.testing.assert_close(weight, torch.tensor([[0, 0, 0, 8 / 5, 8 / 5, 8 / 5, 8 / 5, 8 / 5]]))
    # Probabilities of the targets at each place; all others share the rest.
    p = torch.tensor([0.2, 0.5, 0.6, 0.5, 0.3, 0.1, 0.9, 0.7], dtype=torch.float64)
    scores = ((1 - p) / 9).log()[:, None].repeat(1, 10)
    scores[torch.arange(8), repeated.targets[0]] = p.log()
    loss = DecayedRepetition(END, gamma=0.5)(Said(scores), rows([*text, 9]))
    pairs = [(0.5, 0.5), (0.3, 0.6), (0.1, 0.5), (0.9, 0.3), (0.7, 0.1)]
    assert float(loss.total.detach()) == pytest.approx(sum(-math.log(1 - abs(a - 0.5 * b)) for a, b in pairs) / 5 * 8)
    assert loss.count == 8
    excess = DecayedRepetition(END, gamma=0.5, excess=True)(Said(scores), rows([*text, 9])).total.detach()
    assert float(excess) == pytest.approx(sum(-math.log(1 - max(a - 0.5 * b, 0)) for a, b in pairs) / 5 * 8)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.integers(0, 99), st.integers(1, 3))
def test_a_sentence_is_repeated_with_the_one_before_it(text: list[int], seed: int, together: int) -> None:
    row = torch.tensor(text)
    result = repeat_sentence(row, END, np.random.default_rng(seed), together)
    ends = [i for i, token in enumerate(text) if token == END]
    choices = [(text[a + 1 : b], text[b:c]) for a, b in zip(ends, ends[1:]) for c in ends
               if c > b and text[b:c].count(END) <= together]
    choices = [(before, repeated_part) for before, repeated_part in choices
               if len(repeated_part) > 1 and len(before) + 2 * len(repeated_part) <= len(text)]
    if result is None:
        assert not choices
        return
    repeated_part = row[result.places].tolist()
    assert len(repeated_part) == len(text) + 1
    assert repeated_part in [(before + sentence * len(text))[: len(text) + 1] for before, sentence in choices]
    assert repeated_part[result.begin : -result.period] == repeated_part[result.begin + result.period :]
    assert 1 <= repeated_part[result.begin : result.begin + result.period].count(END) <= together


def test_repeated_batches_depend_on_the_step() -> None:
    text = torch.randint(0, 5, (1, 60))
    batch, objective, result = Batch(text, text.roll(-1, 1)), DecayedRepetition(END), set()
    for seed in range(12):
        torch.manual_seed(seed)
        torch.rand(seed)  # what was drawn before in this step changes nothing
        result.add(tuple(objective.repeat(batch)[0].tokens[0].tolist()))
        torch.manual_seed(seed)
        assert tuple(objective.repeat(batch)[0].tokens[0].tolist()) in result
    assert len(result) > 3


def test_gradients() -> None:
    """Parity check 2: they equal those of the function, and the earlier probability gets none."""
    torch.manual_seed(0)
    chance = torch.rand(2, 9, dtype=torch.float64, requires_grad=True)
    period = torch.tensor([[0] * 4 + [3] * 5, [0] * 9])
    objective = DecayedRepetition(END, gamma=0.5)
    before = chance.detach().clone()

    def penalty(x: Tensor) -> Tensor:  # of one time against fixed chances of the time before
        shifted = before.gather(1, (torch.arange(9) - period).clamp(min=0))
        return -(1 - (x - 0.5 * shifted).abs()).log() * (period > 0)

    assert torch.autograd.gradcheck(penalty, chance)
    expected, = torch.autograd.grad(penalty(chance).sum(), chance)
    actual, = torch.autograd.grad((objective.penalty(chance, period) * (period > 0)).sum(), chance)
    torch.testing.assert_close(actual, expected)
    assert not actual[0, :4].any() and actual[0, 4:].all()  # places 1 to 3 are only ever compared with


def test_a_decaying_model_has_no_gradient() -> None:
    """Parity check 3: p_t = gamma * p_{t - l} is a minimum of value 0."""
    first, gamma = torch.tensor([0.9, 0.4, 0.7], dtype=torch.float64), 0.5
    chance = torch.cat([first * gamma**n for n in range(4)])[None].requires_grad_()
    period = torch.tensor([[0] * 3 + [3] * 9])
    loss = (DecayedRepetition(END, gamma).penalty(chance, period) * (period > 0)).sum()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    for step in (1e-3, -1e-3):
        moved = (chance + step * torch.rand_like(chance)).detach()
        assert float((DecayedRepetition(END, gamma).penalty(moved, period) * (period > 0)).sum()) > 1e-4


def test_without_decay_the_loss_equals_unlikelihood() -> None:
    """Parity check 4."""
    chance, period = torch.rand(3, 8, dtype=torch.float64), torch.full((3, 8), 2)
    torch.testing.assert_close(DecayedRepetition(END, 0.0, excess=True).penalty(chance, period), -(1 - chance).log())


def test_a_certain_repetition_has_a_finite_loss() -> None:
    loss = DecayedRepetition(END, 0.0).penalty(torch.ones(1, 4), torch.ones(1, 4, dtype=torch.long))
    assert bool((loss == -math.log(1e-20)).all() | torch.isclose(loss, torch.tensor(-math.log(1e-20))).all())


def test_token_unlikelihood_by_hand() -> None:
    torch.manual_seed(0)
    tokens, targets = torch.tensor([[2, 2, 4, 1, 3]]), torch.tensor([[2, 4, 1, 2, -1]])
    starts = torch.tensor([[False, False, False, True, False]])
    scores = torch.randn(5, 6, dtype=torch.float64)
    p = scores.softmax(-1)
    nats = -sum(p[i, t].log() for i, t in enumerate([2, 4, 1, 2]))
    candidates = [(1, 2), (2, 2), (2, 4), (3, 1)]  # 2 is right at place 0; 4 at place 1 is the answer; a document at 3
    expected = nats - 0.5 * sum((1 - p[i, c]).log() for i, c in candidates)
    loss = TokenUnlikelihood(0.5)(Said(scores), Batch(tokens, targets, starts))
    assert float(loss.total) == pytest.approx(float(expected))
    assert float(loss.terms["nats"]) == pytest.approx(float(nats))


@pytest.mark.parametrize("excess", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_the_contract(excess: bool, seed: int) -> None:
    check_objective(DecayedRepetition(range(8), 0.5, excess), seed=seed)
    check_objective(Mixed([(NextElement(), 1.0), (DecayedRepetition(range(8)), 1.0)]), seed=seed)


class Counted(NextElement):
    """Records the steps at which it is called."""

    def __init__(self, run: list[Run]) -> None:
        self.run, self.steps = run, list[int]()

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        self.steps.append(self.run[0].step)
        return super().__call__(model, batch)


def test_repetition_steps_depend_on_the_step_only(tmp_path: Path) -> None:
    def learn(steps: int, folder: Path | None, accumulate: int = 1) -> tuple[list[int], list[int], Run]:
        torch.manual_seed(0)
        plan = Plan(5, width=8, context=6, rows=4, steps=40, muon=False, seed=3, accumulate=accumulate)
        holder: list[Run] = []
        heads, tails = Counted(holder), Counted(holder)
        draw = torch.Generator().manual_seed(0)
        tokens = torch.randint(0, 5, (40, 4, 7), generator=draw)

        def batches(step: int) -> Batch:
            if step == steps:
                raise KeyboardInterrupt
            return Batch(tokens[step, :, :-1], tokens[step, :, 1:])

        holder.append(Run(Stack(StackConfig(5, 8, ["gru"])), batches, plan, folder=folder, key="coin",
                          objective=Mixed([(heads, 3.0), (tails, 1.0)]), save_seconds=0.0))
        with suppress(KeyboardInterrupt):
            holder[0].train(quiet=True)
        return heads.steps, tails.steps, holder[0]

    heads, tails, run = learn(40, None)
    assert sorted(heads + tails) == list(range(40)) and 4 <= len(tails) <= 16
    parted = learn(40, None, accumulate=2)  # both parts of a step see the same side
    assert parted[0] == [step for step in heads for _ in range(2)]
    learn(17, tmp_path)
    rest, others, resumed = learn(40, tmp_path)
    assert rest == [step for step in heads if step >= 17] and others == [step for step in tails if step >= 17]
    for a, b in zip(run.model.parameters(), resumed.model.parameters()):
        assert torch.equal(a, b)


def test_bad_shares_and_gamma_are_refused() -> None:
    with pytest.raises(SegueError, match="shares"):
        Mixed([(NextElement(), 0.0)])
    with pytest.raises(SegueError, match="gamma"):
        DecayedRepetition(END, 1.5)
    with pytest.raises(SegueError, match="together"):
        DecayedRepetition(END, together=0)


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 5))
def test_repetition_equals_ngram_counts(text: list[int], n: int) -> None:
    """Parity check 5: against plain sets and lists."""
    results = [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]
    assert repetition(text, n) == pytest.approx(1 - len(set(results)) / len(results) if results else 0.0)


def test_reinforcement_by_hand() -> None:
    model = TableModel(6, seed=1)
    texts: list[tuple[list[int], list[int]]] = [([3, 1], [0, 2, 4]), ([5], [0, 1])]
    chance, rises, wins = [], [], []
    for context, sentence in texts:
        p = np.exp(model.answer(context, sentence * 4)).reshape(4, len(sentence), -1)
        sentence_probs = p[:, range(len(sentence)), sentence]
        chance.append(sentence_probs)
        rises.append(sentence_probs > sentence_probs[0])
        wins.append(p.argmax(-1) == np.array(sentence))
    result = reinforcement(model, texts, 4)
    for actual, naive in ((result.chance, chance), (result.risen, rises), (result.chosen, wins)):
        np.testing.assert_allclose(actual, np.concatenate(naive, 1).mean(1))
    inner = reinforcement(model, texts, 4, slice(1, None))
    np.testing.assert_allclose(inner.chance,
                               np.concatenate([sentence_probs[:, 1:] for sentence_probs in chance], 1).mean(1))
