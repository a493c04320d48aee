"""Strategies: the contract on several mixers, and each method against its plain reference."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import segue
from segue.continual import (
    AGEM,
    DER,
    EWC,
    GEM,
    MAS,
    MIR,
    SI,
    SLNID,
    STRATEGIES,
    AdapterTuning,
    Combined,
    DERpp,
    LocalMAS,
    LwF,
    Replay,
    Strategy,
    TaskFree,
    class_incremental,
    learn_stream,
    strategy_named,
)
from segue.continual.buffer import Buffer
from segue.continual.compose import Plateau
from segue.continual.experts import ExpertGate
from segue.continual.gradients import gradient, row_gradients, row_nats, total_nats, trainable_parameters, virtual_step
from segue.continual.importance import fisher, representation, squared_length
from segue.continual.project import nonnegative, project
from segue.continual.replay import interference, retrieve_earlier, retrieve_interfered
from segue.continual.sparsity import activations, inhibition
from segue.continual.stream import Experience, class_accuracy, encode_features, task_accuracy
from segue.errors import SegueError
from segue.models import Classifier, Output, Perceptron, Stack, StackConfig
from segue.models.classify import LinearHead
from segue.objectives import Batch, Distillation, GroupedClasses, Loss, NextElement
from segue.testing import check_strategy
from segue.training.learn import learn
from segue.training.loop import Run

V = 11


def stack(*mixers: str) -> Stack:
    torch.manual_seed(0)
    return Stack(StackConfig(V, 16, list(mixers or ["lstm"]), channel="mlp"))


def rows(n: int = 12, length: int = 7, seed: int = 0, classes: int = 0) -> Batch:
    """Rows to continue; or, with classes, rows whose last element determines the target there."""
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(V, (n, length), generator=draw)
    if not classes:
        return Batch(tokens[:, :-1], tokens[:, 1:])
    targets = torch.full_like(tokens, -1)
    targets[:, -1] = tokens[:, -1] % classes
    return Batch(tokens, targets)


CASES: dict[str, Callable[[], Strategy]] = {
    **STRATEGIES, "mir": partial(MIR, candidates=6), "mir + gss": lambda: MIR(candidates=6, update="gss", capacity=5),
    "hardest": lambda: Replay(update="hardest", capacity=5), "balanced": lambda: Replay(update="balanced", capacity=5),
    "ewc": partial(EWC, 10.0, keep=0.5, rows=5), "mas + replay": lambda: Combined(MAS(rows=5), Replay(capacity=5)),
    "lora + lwf": lambda: Combined(AdapterTuning(rank=2), LwF()),
    "task-free": lambda: TaskFree(MAS(update="hardest", rows=4), window=2, mean=2.45, variance=1.0),
}


@pytest.mark.parametrize("name", CASES)
def test_every_strategy_keeps_the_contract(name: str) -> None:
    others = [case for case in CASES if case != "state"]  # which needs a state of constant size
    mixer = "mamba" if name == "state" else ("attention", "mamba", "lstm")[others.index(name) % 3]
    check_strategy(CASES[name], model=lambda: stack(mixer), stops=[1 + list(CASES).index(name) % 5])


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_every_strategy_keeps_the_contract_on_three_mixers(name: str) -> None:
    check_strategy(CASES[name], model=lambda: stack("attention", "mamba", "lstm"))


def test_a_strategy_that_loses_its_experiences_fails_the_contract() -> None:
    class Lost(EWC):
        def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
            super().load_state({k: v for k, v in tensors.items() if not k.startswith("importance")}, values)

    with pytest.raises(segue.testing.ContractBroken, match="second experience"):
        check_strategy(lambda: Lost(1e4), model=stack)


# -- what is computed on the side

def test_row_gradients_equal_those_of_single_rows_and_leave_no_state() -> None:
    model, batch = stack("mamba"), rows(5)
    model.train()
    before = torch.get_rng_state()
    results = list(row_gradients(model, batch))
    mean = [torch.stack(gradients).sum(0) / batch.count for gradients in zip(*results)]
    for a, b in zip(mean, gradient(model, batch, NextElement())):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(row_nats(model, batch).sum(), total_nats(model, batch))
    assert model.training and torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None for p in model.parameters())


def network(classes: int = 4) -> Classifier:
    torch.manual_seed(0)
    return Classifier(Perceptron(6, [9, 8]), LinearHead(8, classes)).double()


def vectors(n: int = 10, classes: int = 4, seed: int = 0) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    return Batch(torch.randn(n, 1, 6, generator=draw, dtype=torch.float64),
                 torch.randint(classes, (n, 1), generator=draw))


@pytest.mark.parametrize("of", [total_nats, squared_length])
def test_vectorised_row_gradients_equal_the_loop(of: Callable[[nn.Module, Batch], Tensor]) -> None:
    model, batch = network(), vectors()
    slow, fast = (list(row_gradients(model, batch, of, vectorised)) for vectorised in (False, True))
    for a, b in zip(slow, fast, strict=True):
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y, atol=1e-6, rtol=1e-6)


def test_a_virtual_step_is_undone_bit_for_bit() -> None:
    model, batch = stack(), rows()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with virtual_step(model, gradient(model, batch, NextElement()), 0.5):
        assert float(total_nats(model, batch).detach()) != float(total_nats(stack(), batch).detach())
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert torch.equal(interference(model, batch, rows(seed=1), NextElement(), 0.0), torch.zeros(12))
    step, harm = 1e-3, interference(network(), vectors(), vectors(seed=1), NextElement(), 1e-3)
    new, per_row = gradient(network(), vectors(), NextElement()), row_gradients(network(), vectors(seed=1))
    slopes = torch.stack([-sum((a * b).sum() for a, b in zip(new, row)) for row in per_row])
    torch.testing.assert_close(harm.double() / step, slopes, atol=1e-2, rtol=1e-2)


# -- importance

class Linear(nn.Module):
    """F = W x."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))

    def forward(self, tokens: Tensor, layout: Any) -> Output:
        y = tokens @ self.weight.T
        return Output(y, y)


def run_of(model: nn.Module, **fields: Any) -> Any:
    return SimpleNamespace(model=model, device=torch.device("cpu"), past=None, **fields)


def test_mas_of_a_linear_map_has_its_closed_form() -> None:
    model = Linear()
    x = torch.randn(8, 1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    batch = Batch(x, torch.zeros(8, 1, dtype=torch.long))
    y = x[:, 0] @ model.weight.detach().T
    expected = (2 * y[:, :, None] * x[:, 0, None, :]).abs().mean(0)
    for vectorised in (False, True):
        results = MAS(vectorised=vectorised).estimate(run_of(model), batch)["weight"]
        torch.testing.assert_close(results, expected)
    of_the_mean = (2 * y[:, :, None] * x[:, 0, None, :]).mean(0).abs()
    assert float((expected - of_the_mean).min()) >= 0 and float((expected - of_the_mean).max()) > 0.1


def test_local_mas_is_mas_of_each_layer_by_itself() -> None:
    model, batch = network(), vectors()
    results = LocalMAS().estimate(run_of(model), batch)
    x = batch.tokens[:, 0]
    for name in ("backbone.layers.0", "backbone.layers.2"):
        layer = model.get_submodule(name)
        total = [torch.autograd.grad(layer(row).square().sum(), [layer.weight, layer.bias]) for row in x]
        torch.testing.assert_close(results[f"{name}.weight"], torch.stack([a.abs() for a, _ in total]).mean(0).float(),
                                   check_dtype=False)
        torch.testing.assert_close(results[f"{name}.bias"], torch.stack([b.abs() for _, b in total]).mean(0).float(),
                                   check_dtype=False)
        x = torch.relu(layer(x)).detach()
    assert not results["head.weight"].any()  # no linear layer of its own


def test_fisher_is_a_sum_over_rows_and_not_over_the_batch() -> None:
    model, batch = network(), vectors()
    expected = torch.zeros_like(model.head.weight)
    for i in range(10):
        scores = model(batch.tokens[i : i + 1], None).logits[0, 0]
        g = torch.autograd.grad(scores.log_softmax(-1)[batch.targets[i, 0]], model.head.weight)[0]
        expected += g.square() / 10
    torch.testing.assert_close(fisher(model, batch)["head.weight"], expected)


def test_hidden_vectors_are_taken_before_the_final_norm() -> None:
    model, batch = stack("attention", "lstm"), rows()
    hidden = representation(model, batch)
    torch.testing.assert_close(model.norm(hidden), model(batch.tokens, batch.layout).hidden)
    normed = model(batch.tokens, batch.layout).hidden.square().sum(-1)
    lengths = hidden.square().sum(-1)
    assert float((normed.std() / normed.mean()).detach()) < 1e-3 < float((lengths.std() / lengths.mean()).detach())


@pytest.mark.parametrize("kind", [EWC, MAS, LocalMAS, SI])
def test_the_quadratic_penalty_has_its_closed_form(kind: type[Any]) -> None:
    stream = class_incremental(rows(60, classes=4), rows(20, seed=1, classes=4), [(0, 1), (2, 3)])
    model, strategy = stack(), kind(3.0, rows=8)
    learn_stream(model, stream[:1], strategy, rows=10, rate=0.01)
    assert not strategy.reference and min(float(v.min()) for v in strategy.importance.values()) >= 0
    anchors = {name: p.detach().clone() for name, p in trainable_parameters(model).items()}
    terms = []

    class Watched(kind):  # type: ignore[misc, valid-type]
        def loss_term(self, run: Run, batch: Batch) -> Tensor | None:
            term = super().loss_term(run, batch)
            terms.append((term.detach(), sum((3.0 * self.importance[name] * (p - anchors[name]) ** 2).sum().detach()
                                             for name, p in trainable_parameters(run.model).items())))
            return term

    resumed = Watched(3.0, rows=8)
    resumed.load_state(*strategy.state())
    learn_stream(model, stream[1:], resumed, rows=10, rate=0.01)
    for term, reference in terms:
        torch.testing.assert_close(term, reference)
    assert float(terms[0][0]) == 0 < float(terms[-1][0])
    assert any(bool((resumed.importance[name] > value).any()) for name, value in strategy.importance.items())


@pytest.mark.parametrize("kind", [EWC, MAS, LocalMAS, SI])
def test_a_strong_penalty_holds_the_weights_that_matter(kind: type[Any]) -> None:
    stream = class_incremental(rows(80, classes=4), rows(20, seed=1, classes=4), [(0, 1), (2, 3)])

    def moved(strength: float) -> float:
        model, strategy = stack(), kind(strength)
        learn_stream(model, stream[:1], strategy, rows=10, rate=0.01)
        before = {name: p.detach().clone() for name, p in trainable_parameters(model).items()}
        importance = dict(strategy.importance)
        learn_stream(model, stream[1:], strategy, rows=10, rate=0.01)
        return sum(float((importance[name] * (p.detach() - before[name]).square()).sum())
                   for name, p in trainable_parameters(model).items())

    assert moved(1e4) < 0.3 * moved(0.0)


def test_si_on_a_quadratic_bowl() -> None:
    """Gradient descent in small steps on h x^2 / 2 from 1 down to x: the importance is h/2 (1 - x^2) / ((1 - x)^2)."""
    class Bowl(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.x = nn.Parameter(torch.ones(2, dtype=torch.float64))

    def bowl(model: nn.Module, batch: Batch) -> Loss:
        total = (torch.tensor([1.0, 3.0]) * model.x.square() / 2).sum()  # type: ignore[operator]
        return Loss(total, {"nats": total.detach()}, 1)

    model, strategy = Bowl(), SI(damping=1e-12)
    batch = Batch(torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 1, dtype=torch.long))
    learn(model, lambda step: batch, 200, rate=1e-3, objective=bowl, strategy=strategy, sgd=True, clip=0.0, warmup=0.0)
    x = model.x.detach()
    expected = torch.tensor([1.0, 3.0]) / 2 * (1 - x.square()) / (1 - x).square()
    torch.testing.assert_close(strategy.importance["x"], expected, rtol=5e-3, atol=0)


def test_importances_grow_with_the_head() -> None:
    strategy, batch = EWC(10.0, rows=8), vectors(20, classes=2)
    model = network(2).float()
    batch = Batch(batch.tokens.float(), batch.targets)
    learn(model, lambda step: batch, 3, strategy=strategy)
    small = strategy.importance["head.weight"]
    model.grow(4)
    learn(model, lambda step: batch, 3, strategy=strategy)
    assert strategy.importance["head.weight"].shape == (4, 8)
    assert bool((strategy.importance["head.weight"][:2] >= small).all())


# -- distillation and stored scores

def test_lwf_distills_the_previous_model() -> None:
    model, teacher, batch = stack(), stack(), rows(seed=3)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    strategy = LwF(2.0, temperature=3.0)
    assert strategy.before_experience(run_of(teacher)) is None and strategy.loss_term(run_of(model), batch) is None
    strategy.after_experience(run_of(teacher))
    strategy.before_experience(run_of(teacher))
    now, then = model(batch.tokens).logits / 3, teacher(batch.tokens).logits / 3
    separate = (then.softmax(-1) * (then.log_softmax(-1) - now.log_softmax(-1))).sum(-1).mean()
    torch.testing.assert_close(strategy.loss_term(run_of(model), batch), 2.0 * 9 * separate)
    assert Distillation(teacher, 1.0)(teacher, batch).total.abs() < 1e-4


def test_der_keeps_scores_and_bounds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = stack(), rows(8)
    run = run_of(model, generator=lambda: torch.Generator().manual_seed(0))
    der, both = DER(alpha=0.3, capacity=20), strategy_named("der++:alpha=0.3,beta=0.7,capacity=20")
    for strategy in (der, both):
        strategy.offer(run, batch)  # type: ignore[attr-defined]
    rows_kept = der.buffer.rows(torch.arange(8))
    torch.testing.assert_close(der.buffer.payload["scores"], model(rows_kept.tokens).logits)
    assert float(der.loss_term(run, batch).detach()) < 1e-10  # nothing has moved yet
    other = stack("attention")
    moved = run_of(other, generator=run.generator)
    scores, old = other(batch.tokens).logits, model(batch.tokens).logits
    square = 0.3 * (scores - old).square().mean()
    torch.testing.assert_close(der.loss_term(moved, batch), square)
    nats_of_all = F.cross_entropy(scores.flatten(0, 1), batch.targets.flatten())
    torch.testing.assert_close(both.loss_term(moved, batch), square + 0.7 * nats_of_all)
    monkeypatch.setattr("segue.continual.distil.VALUES", 3 * 6 * V)
    small = DER(capacity=20)
    small.offer(run, batch)
    assert len(small.buffer) == 3


# -- projection

@settings(max_examples=60, deadline=None, derandomize=True)
@given(k=st.integers(1, 6), seed=st.integers(0, 10_000))
def test_the_active_set_solution_equals_brute_force(k: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    g = draw.normal(size=(k, k + 2))
    a, b = g @ g.T + 1e-6 * np.eye(k), draw.normal(size=k)
    best = np.inf
    for size in range(k + 1):
        for free in itertools.combinations(range(k), size):
            v, index = np.zeros(k), list(free)
            if index:
                v[index] = np.linalg.solve(a[np.ix_(index, index)], -b[index])
            if (v >= 0).all():
                best = min(best, v @ a @ v / 2 + b @ v)
    v = nonnegative(a, b)
    assert (v >= 0).all() and v @ a @ v / 2 + b @ v == pytest.approx(best, abs=1e-9)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(k=st.integers(1, 5), seed=st.integers(0, 10_000))
def test_a_projected_gradient_violates_no_constraint_and_is_nearest(k: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    g, constraints = (torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in ((9,), (k, 9)))
    results = project(g, constraints)
    assert float((constraints @ results).min()) >= -1e-7
    if bool((constraints @ g >= 0).all()):
        assert results is g
    if k == 1 and float(constraints[0] @ g) < 0:  # A-GEM's closed form
        r = constraints[0]
        torch.testing.assert_close(results, g - (g @ r) / (r @ r) * r, atol=1e-6, rtol=1e-6)
    leaned = project(g, constraints, margin=0.5)
    assert leaned is g or float((constraints @ leaned).min()) >= -1e-7
    for _ in range(20):  # any other allowed direction is farther off
        other = project(results + 0.1 * torch.randn(9, generator=draw, dtype=torch.float64), constraints)
        assert float((other - g).norm()) >= float((results - g).norm()) - 1e-6


@pytest.mark.parametrize("kind", [AGEM, GEM])
def test_projected_gradients_do_not_oppose_those_of_old_rows(kind: type[GEM]) -> None:
    stream = class_incremental(rows(90, classes=6), rows(20, seed=1, classes=6), [(0, 1), (2, 3), (4, 5)])
    bent = []

    class Watched(kind):  # type: ignore[misc, valid-type]
        def after_backward(self, run: Run) -> None:
            before = [p.grad.clone() for p in trainable_parameters(run.model).values() if p.grad is not None]
            super().after_backward(run)
            for old in self.earlier(run):
                new = [p.grad for p in trainable_parameters(run.model).values()]
                product = sum(float((a * b).sum()) for a, b in zip(new, gradient(run.model, old, run.objective)))
                assert product >= -1e-5
                bent.append(any(not torch.equal(a, b) for a, b in zip(before, new)))

    strategy = Watched(capacity=12)
    learn_stream(stack("mamba"), stream, strategy, rows=10, rate=0.01)
    assert any(bent)
    counts = strategy.buffer.payload["experience"].unique().tolist()
    assert counts == [0, 1, 2] and strategy.learned == 3


# -- buffers

def total_cosine(g: Tensor) -> float:
    unit = g / g.norm(dim=1, keepdim=True)
    return float((unit @ unit.T).sum() - len(g))


class Product(nn.Module):
    """Scores whose cross-entropy has each row's vector, up to a factor, as its gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))

    def forward(self, tokens: Tensor, layout: Any) -> Output:
        first = tokens @ self.weight
        return Output(torch.stack([first, torch.zeros_like(first)], -1), tokens)


def test_gss_spreads_gradients_better_than_a_reservoir_and_nearly_as_well_as_can_be() -> None:
    result: dict[str, list[float]] = {"reservoir": [], "gss": []}
    best, sets = [], torch.tensor(list(itertools.combinations(range(30), 4)))
    for seed in range(8):
        draw = torch.Generator().manual_seed(seed)
        angles = torch.where(torch.rand(30, generator=draw) < 0.8, 0.3 * torch.randn(30, generator=draw),
                             6.28 * torch.rand(30, generator=draw))
        points = torch.stack([angles.cos(), angles.sin()], 1)
        batch = Batch(points[:, None], torch.zeros(30, 1, dtype=torch.long))
        for update, scores in result.items():
            buffer = Buffer(4, update, seed)
            for at in range(30):
                buffer.offer(batch.rows(slice(at, at + 1)), model=Product())
            scores.append(total_cosine(buffer.rows(torch.arange(4)).tokens[:, 0]))
        best.append(float(points[sets].sum(1).square().sum(-1).min()) - 4)
    random, gss, optimal = (float(np.mean(x)) for x in (result["reservoir"], result["gss"], best))
    assert gss < random - 0.6 * (random - optimal)


def test_a_reservoir_of_rows_gives_every_row_the_same_chance() -> None:
    counts, batch = np.zeros(20), Batch(torch.arange(20)[:, None], torch.zeros(20, 1, dtype=torch.long))
    for seed in range(2000):
        buffer = Buffer(5, seed=seed)
        for at in (0, 7, 14):
            buffer.offer(batch.rows(slice(at, at + 7)))
        counts[buffer.rows(torch.arange(5)).tokens[:, 0].numpy()] += 1
    assert ((counts - 500) ** 2 / 500).sum() < 43.8  # 99.9% of the chi-square distribution with 19 degrees of freedom


@settings(max_examples=25, deadline=None, derandomize=True)
@given(update=st.sampled_from(["reservoir", "balanced", "hardest", "gss"]), capacity=st.integers(1, 9),
       sizes=st.lists(st.integers(1, 8), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_a_buffer_is_bounded_keeps_rows_intact_and_resumes(update: str, capacity: int, sizes: list[int],
                                                           seed: int) -> None:
    batch, model = vectors(sum(sizes), seed=seed), network()
    batch = Batch(batch.tokens, batch.targets, channels={"number": torch.arange(sum(sizes))[:, None]})
    buffer, copied, at = Buffer(capacity, update, seed), Buffer(capacity, update, seed), 0
    for size in sizes:
        new = batch.rows(slice(at, at + size))
        at += size
        for offered_to in (buffer, copied):
            stay = offered_to.offer(new, lambda contents: {"first": contents.tokens[:, 0, 0]}, model)
            assert len(stay) <= min(size, capacity)
        resumed = Buffer(capacity, update, seed)
        resumed.load_state(*copied.state())
        copied = resumed
    assert len(buffer) == min(capacity, buffer.seen) and buffer.seen == sum(sizes)
    contents = buffer.rows(torch.arange(len(buffer)))
    number = contents.channels["number"][:, 0]
    assert len(number.unique()) == len(buffer)
    torch.testing.assert_close(contents.tokens, batch.tokens[number])
    torch.testing.assert_close(buffer.payload["first"], batch.tokens[number, 0, 0])
    assert torch.equal(copied.rows(torch.arange(len(copied))).channels["number"][:, 0], number)


def test_buffer_policies_keep_the_rows_they_promise() -> None:
    imbalanced = Batch(torch.arange(90)[:, None], torch.tensor([0] * 80 + [1] * 6 + [2] * 4)[:, None])
    buffer = Buffer(9, "balanced")
    for at in range(0, 90, 10):
        buffer.offer(imbalanced.rows(slice(at, at + 10)))
    assert buffer.rows(torch.arange(9)).targets[:, 0].bincount().tolist() == [3, 3, 3]
    model, batch = network(), vectors(40)
    hard = Buffer(5, "hardest")
    for at in range(0, 40, 8):
        hard.offer(batch.rows(slice(at, at + 8)), model=model)
    kept_nats = row_nats(model, hard.rows(torch.arange(5)))
    torch.testing.assert_close(kept_nats.sort().values, row_nats(model, batch).sort().values[-5:])
    with pytest.raises(SegueError, match="needs the model"):
        hard.offer(batch)
    with pytest.raises(SegueError, match="choose from reservoir, balanced, first, hardest, gss"):
        Buffer(5, "oldest")


def test_mir_takes_the_rows_of_most_interference() -> None:
    stream = rows(30, classes=4)
    buffer, model = Buffer(20), stack()
    buffer.offer(stream)
    run = run_of(model, objective=NextElement(), generator=lambda: torch.Generator().manual_seed(3))
    new = rows(6, seed=5, classes=4)
    chosen = retrieve_interfered(run, new, buffer, 4, candidates=12, rate=0.5)
    candidates = buffer.draw(12, run.generator())
    harm = interference(model, new, buffer.rows(candidates), NextElement(), 0.5)
    assert set(chosen.tolist()) == set(candidates[harm.argsort(descending=True)[:4]].tolist())
    assert len(retrieve_interfered(run, new, buffer, 15, candidates=12)) == 15  # nothing to choose from
    buffer = Buffer(20)
    buffer.offer(stream, lambda contents: {"experience": torch.arange(len(contents.targets)) % 2})
    buffer.notes["experience"] = 1
    chosen = retrieve_interfered(run, new, buffer, 4, candidates=12, rate=0.5, among=retrieve_earlier)
    assert len(chosen) == 4 and not buffer.payload["experience"][chosen].any()


# -- activations

def test_slnid_has_its_closed_form() -> None:
    h = torch.rand(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    everyone = (h.sum(1).square() - h.square().sum(1)).mean()
    torch.testing.assert_close(inhibition(h, float("inf")), everyone)
    torch.testing.assert_close(inhibition(h, float("inf"), torch.full((7,), 0.5, dtype=torch.float64)),
                               everyone * float(np.exp(-1)))
    naive = sum(np.exp(-((i - j) ** 2) / 8) * h[:, i] * h[:, j] for i in range(7) for j in range(7) if i != j).mean()
    torch.testing.assert_close(inhibition(h, 2.0), naive)


@pytest.mark.parametrize("make", [lambda: stack("mamba"), lambda: stack("attention"), lambda: network(5).float()])
def test_slnid_makes_representations_sparse(make: Callable[[], nn.Module]) -> None:
    model = make()
    batch = rows(20, classes=4) if isinstance(model, Stack) else \
        Batch(vectors(20).tokens.float(), vectors(20).targets)

    def overlap(strategy: Strategy) -> float:
        learner = make()
        learn(learner, lambda step: batch, 15, rate=0.01, strategy=strategy)
        with activations(learner) as layers, torch.no_grad():
            learner(batch.tokens, batch.layout)
        return sum(float(inhibition(h.flatten(0, -2), h.shape[-1] / 6)) for h in layers)

    assert overlap(SLNID(0.3)) < 0.5 * overlap(Strategy())
    strategy = SLNID(0.3, rows=6)
    learn(make(), lambda step: batch, 2, strategy=strategy)
    assert all(bool((a >= 0).all()) and bool((a > 0).any()) for a in strategy.importance)


# -- boundaries

def test_a_plateau_is_reported_once_until_the_next_peak() -> None:
    is_plateau = Plateau(window=3, mean=0.5, variance=0.01)
    losses = [2.0, 1.0, 0.4, 0.35, 0.3, 0.3, 0.3, 0.3, 1.5, 1.4, 0.4, 0.3, 0.3, 0.3]
    assert [at for at, loss in enumerate(losses) if is_plateau(loss)] == [4, 12]


def test_task_free_learning_finds_boundaries() -> None:
    class Counted(MAS):
        boundaries = 0

        def after_experience(self, run: Run) -> None:
            self.boundaries += 1
            super().after_experience(run)

    inner = Counted(update="hardest", rows=10)
    strategy = TaskFree(inner, window=4, mean=0.4, variance=0.05)
    stream = class_incremental(rows(1200, classes=4), rows(20, seed=1, classes=4), [(0, 1), (2, 3)])
    joined = Batch.join([experience.train for experience in stream])
    learn(stack(), lambda step: joined.rows(slice(10 * step, 10 * step + 10)), 115, rate=0.02, strategy=strategy,
          cooldown=0.0)
    assert inner.boundaries == len(strategy.boundaries) >= 2
    assert strategy.boundaries[0] < 60 < strategy.boundaries[-1]
    assert inner.importance


# -- streams

def test_a_class_incremental_stream_has_the_requested_classes_and_scores() -> None:
    train, test = rows(120, classes=6), rows(60, seed=1, classes=6)
    stream = class_incremental(train, test, [(0, 1), (2, 3), (4, 5)], share=[1.0, 0.5, 1.0])
    labels_by_experience = [experience.train.targets[:, -1] for experience in stream]
    assert all(bool(torch.isin(labels, torch.tensor(experience.classes)).all())
               for labels, experience in zip(labels_by_experience, stream))
    all_tokens = class_incremental(train, test, [(2, 3)])[0].train.tokens
    assert torch.equal(stream[1].train.tokens, all_tokens[: len(stream[1].train.tokens)])
    assert len(stream[1].train.tokens) == round(len(all_tokens) / 2)
    with pytest.raises(SegueError, match="no rows of the classes"):
        class_incremental(train, test, [(7, 8)])
    naive, replay = (learn_stream(stack(), stream, strategy, rows=10, rate=0.03, epochs=4)
                     for strategy in (Strategy(), Replay(capacity=60)))
    assert naive.steps == ["before", *naive.names] and naive.scores.shape == (4, 3)
    assert naive.backward_transfer < -0.4 and replay.backward_transfer > naive.backward_transfer + 0.2
    assert replay.average > naive.average + 0.2
    assert naive.scores[1, 1] == naive.scores[1, 2] == 0  # classes not seen yet are not named


def two_tasks(mixer: str, strategy: Strategy) -> np.ndarray:
    """How much is right of two tasks, one learned after the other."""
    stream = class_incremental(rows(160, 4, classes=4), rows(60, 4, seed=1, classes=4), [(0, 1), (2, 3)])
    return learn_stream(stack(mixer), stream, strategy, rows=10, rate=0.02, epochs=2).scores


@cache
def two_tasks_unaided(mixer: str) -> np.ndarray:
    return two_tasks(mixer, Strategy())


@pytest.mark.parametrize("mixer", ["attention", "mamba", "lstm"])
@pytest.mark.parametrize("make", [Replay, partial(MIR, candidates=30), partial(DER, alpha=1.0),
                                  partial(DERpp, alpha=1.0)])
def test_rehearsal_forgets_less_on_every_mixer(mixer: str, make: Callable[[], Strategy]) -> None:
    assert two_tasks(mixer, make())[-1, 0] > two_tasks_unaided(mixer)[-1, 0] + 0.2


def test_task_accuracy_uses_only_the_classes_of_the_task() -> None:
    model, batch = network(), vectors(30)
    groups = [(0, 1), (2, 3)]
    scores = model(batch.tokens, None).logits[:, 0]
    nats_by_hand = sum(-scores[i, list(groups[int(y) // 2])].log_softmax(-1)[int(y) % 2] for i, y in
                       enumerate(batch.targets[:, 0]))
    torch.testing.assert_close(GroupedClasses(groups)(model, batch).total, nats_by_hand.float(), check_dtype=False)
    experience = class_incremental(batch, batch, groups)[1]
    both = scores[torch.isin(batch.targets[:, 0], torch.tensor([2, 3]))][:, 2:].argmax(-1) + 2
    expected = float((both == experience.test.targets[:, 0]).float().mean())
    assert task_accuracy(model, experience, range(4)) == pytest.approx(expected)
    with pytest.raises(SegueError, match="share a class"):
        GroupedClasses([(0, 1), (1, 2)])


# -- experts

def test_expert_gates_route_rows_to_their_experience() -> None:
    draw = torch.Generator().manual_seed(0)
    centres = torch.randn(4, 12, generator=draw)

    def points(n: int) -> Batch:
        labels = torch.arange(n) % 4
        return Batch((centres[labels] + 0.3 * torch.randn(n, 12, generator=draw))[:, None], labels[:, None])

    stream = class_incremental(points(160), points(80), [(0, 1), (2, 3)])
    torch.manual_seed(0)
    gate = ExpertGate(lambda: Classifier(Perceptron(12, [16]), LinearHead(16, 4)), code=3)
    with pytest.raises(SegueError, match="no experts yet"):
        gate.route(stream[0].test)
    related = [gate.learn(experience, 40, rate=0.02, gate_steps=150) for experience in stream]
    assert related[0] == {} and related[1][stream[0].name] < 0.5
    for index, experience in enumerate(stream):
        assert float((gate.route(experience.test) == index).float().mean()) > 0.9
        assert float(gate.probabilities(experience.test)[:, index].mean().detach()) > 0.6
        assert class_accuracy(gate, experience, range(4)) > 0.9
    same = gate.learn(stream[1], 2, gate_steps=150)  # the same once more: closely related to itself
    assert same[stream[1].name] > max(0.5, same[stream[0].name])
    few = gate.learn(replace(stream[0], train=stream[0].train.rows(slice(0, 3))), 2, gate_steps=5)
    assert np.isfinite(list(few.values())).all(), "an experience of a few rows has nothing held out from its gate"


def test_features_of_an_experience_include_its_check_rows() -> None:
    batch = Batch(torch.arange(24).view(4, 6) % 7, torch.full((4, 6), -1).index_fill(1, torch.tensor([5]), 2))
    test, check = (batch.rows(slice(begin, begin + 2)) for begin in (0, 2))
    experience = encode_features(stack(), Experience("one", batch, test, (2,), check))
    assert experience.check is not None and experience.classes == (2,)
    assert torch.equal(torch.cat([experience.test.tokens, experience.check.tokens]), experience.train.tokens)


# -- by name, and in an update

def test_strategies_are_parsed_from_text_and_mistakes_named() -> None:
    combined = strategy_named("ewc:strength=7,rows=5 + replay:share=0.25,update=balanced")
    assert isinstance(combined, Combined) and combined.name == "ewc+replay"
    assert strategy_named("freeze:parts=embedding|blocks.0").parts == ["embedding", "blocks.0"]  # type: ignore[attr-defined]
    assert combined.strategies[0].strength == 7 and combined.strategies[1].share == 0.25  # type: ignore[attr-defined]
    for text, message in (("magic", "choose from naive, replay"), ("ewc:power=3", "with strength, keep"),
                          ("ewc:strength=strong", "no number"), ("naive:x=1", "no settings"),
                          ("gss:share=2", "between 0"), ("mir:among=old", "choose from uniform, earlier"),
                          ("mir:candidates=0", "1 or more"), ("si:damping=0", "above 0"), ("der:rows=-1", "0 or more"),
                          ("der++:beta=-1", "0 or more"), ("agem:rows=-1", "0 or more")):
        with pytest.raises(SegueError, match=message):
            strategy_named(text)


@pytest.fixture(scope="module")
def fitted_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fitted") / "model"
    segue.fit(["abcab" * 8 + str(i) for i in range(60)], steps=30, out=folder, quiet=True, vocabulary=259, width=32,
              depth=1, heads=2, context=16, rows=8, threads=1, precision="float32", mix=False)
    return folder


@pytest.mark.parametrize("name", ["gss:capacity=6", "ewc:strength=1e4", "si", "der++:capacity=9",
                                  "mas:rows=8 + replay"])
def test_an_update_saves_the_state_of_a_named_strategy(fitted_folder: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(fitted_folder, folder)
    report = segue.load(folder).update([("xyzx" * 9) + str(i) for i in range(60)], strategy=name, steps=4, quiet=True)
    assert np.isfinite(report.matrix.scores).all()
    file = folder / "memory" / "strategy.safetensors"
    reloaded = segue.load(folder)
    assert file.exists() == (reloaded.memory.strategy is not None)
    if name.startswith(("ewc", "mas", "si")):
        key, tensors, _ = reloaded.memory.strategy
        assert key == report.strategy and sum(t.numel() for t in tensors.values()) == \
            sum(p.numel() for p in trainable_parameters(reloaded.model).values())
        reloaded.update(["qrs" * 9] * 40, strategy=name, steps=2, quiet=True)
        later = reloaded.memory.strategy[1]
        assert any(bool((later[part] > tensors[part]).any()) for part in tensors)
        reloaded.update(["qrs" * 9] * 40, strategy="naive", steps=1, quiet=True)
        assert not file.exists()  # what it weighed is not what the model knows now
    else:
        assert not file.exists()  # the pieces that the model keeps are enough
