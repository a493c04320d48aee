"""Hypernetworks: weights of any module from a vector of the task, and learning tasks one after the other by them."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from segue.continual import Combined, Experience, learn_stream
from segue.continual.hypernetwork import Grow, OutputMAS, OutputMatching, inferred_accuracy, known_task_accuracy
from segue.errors import SegueError
from segue.models import HEADS, Classifier, Perceptron, Stack, StackConfig
from segue.models.hypernetwork import GENERATORS, ChunkedLSTM, ChunkedMLP, Generated
from segue.objectives import Batch, NextElement
from segue.training.learn import learn


def target() -> Classifier:
    torch.manual_seed(0)
    return Classifier(Perceptron(64, (32,)), HEADS["linear"](32, 10))


def small() -> nn.Module:
    torch.manual_seed(0)
    return Classifier(Perceptron(3, (4,)), HEADS["linear"](4, 2))


def test_sizes_equal_hypnettorchs() -> None:
    """A ChunkedHMLP of hypnettorch 0.0.4 for the same target reports 10,168 parameters."""
    made = ChunkedMLP(target(), tasks=5, chunk=256, hidden=(32, 32))
    assert made.size == 2410 and sum(p.numel() for p in made.parameters()) == 10_168
    assert made.parameter_ratio == pytest.approx(10_168 / 5 / 2410)
    for generator, count in ((ChunkedMLP(target(), 5, 64, (64, 64)), 9752), (ChunkedLSTM(target(), 5, 64, 24), 5976)):
        assert sum(p.numel() for p in generator.parameters()) == count


@settings(max_examples=10, deadline=None)
@given(st.sampled_from(sorted(GENERATORS)), st.integers(1, 30), st.integers(1, 3), st.integers(0, 99))
def test_chunks_equal_a_loop(name: str, chunk: int, tasks: int, seed: int) -> None:
    """An LSTM step by step, an MLP chunk by chunk, cut where the target ends."""
    torch.manual_seed(seed)
    generator = GENERATORS[name](small(), tasks, chunk, task_width=3, chunk_width=2).double()
    assert generator.size == 26 and len(generator.chunks) == math.ceil(26 / chunk)
    for task in range(tasks):
        pieces = []
        state = None
        for vector in generator.chunks:
            x = torch.cat([generator.tasks[task], vector])
            if isinstance(generator, ChunkedLSTM):
                cell = nn.LSTMCell(5, generator.cell.hidden_size).double()
                cell.load_state_dict({key.removesuffix("_l0"): t for key, t in generator.cell.state_dict().items()})
                state = cell(x[None], state)
                x = state[0][0]
            else:
                assert isinstance(generator, ChunkedMLP)
                for layer in generator.layers:
                    x = (layer.weight @ x + layer.bias).clamp(min=0)
            pieces.append(generator.out.weight @ x + generator.out.bias)
        numbers = generator.offset + generator.scale * torch.cat(pieces)[:26]
        result = generator(task)
        torch.testing.assert_close(torch.cat([result[key].flatten() for key in generator.shapes]), numbers)
        assert {key: t.shape for key, t in result.items()} == {k: p.shape for k, p in small().named_parameters()}


def test_chunks_without_carried_state_are_independent() -> None:
    independent_chunks, carried = (ChunkedLSTM(small(), 2, 4, 6, carry=carry).double() for carry in (False, True))
    carried.load_state_dict(independent_chunks.state_dict())
    for generator, independent in ((independent_chunks, True), (carried, False)):
        before = generator.generate_flat(torch.tensor([0, 1]))
        moved = copy.deepcopy(generator)
        with torch.no_grad():
            moved.chunks[2] += 1
        same = (moved.generate_flat(torch.tensor([0, 1])) - before).abs().amax(0) < 1e-12
        assert same[:8].all() and not same[8:12].any()
        assert bool(same[12:].all()) is independent


def test_generated_weights_start_with_the_modules_spread() -> None:
    model = Stack(StackConfig(11, 32, ["gru", "attention"]))
    for generator in (ChunkedMLP(model, 4, 512, (64, 64)), ChunkedLSTM(model, 4, 512, 64)):
        weights = [generator(task) for task in range(4)]
        for name, p in model.named_parameters():
            if p.numel() > 2000:
                results = torch.stack([weight[name] for weight in weights]).std()
                assert 0.5 < float(results / p.std()) < 2, name
            if name.endswith("norm.weight"):
                assert abs(weights[0][name].mean().item() - 1) < 0.2


@pytest.mark.parametrize("units", [1, 5])
def test_growth_leaves_generated_weights_unchanged(units: int) -> None:
    torch.manual_seed(1)
    generator = ChunkedLSTM(small(), 3, 4, 6).double()
    with torch.no_grad():
        for p in generator.parameters():
            p += torch.randn_like(p)
    before, count = generator.generate_flat(torch.arange(3)), generator.cell.weight_hh_l0.numel()
    generator.grow(units)
    torch.testing.assert_close(generator.generate_flat(torch.arange(3)), before, atol=1e-12, rtol=0)
    assert generator.cell.hidden_size == 6 + units and generator.cell.weight_hh_l0.numel() > count
    generator.generate_flat(torch.arange(3)).square().sum().backward()
    assert generator.out.weight.grad[:, 6:].abs().min() > 0  # what was added can be learned
    with pytest.raises(SegueError, match="cannot grow"):
        generator.grow(0)


def batch(seed: int, task: int, kind: str = "vectors", rows: int = 60) -> Batch:
    """Two classes, separated by another feature in each task; or the next element by another shift."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "vectors":
        x = torch.randn(rows, 1, 3, generator=generator)
        return Batch(x, (x[..., task] > 0).long())
    first = torch.randint(7, (rows, 1), generator=generator)
    row = (first + (1 + 2 * task) * torch.arange(7)) % 7
    return Batch(row[:, :-1], row[:, 1:])


def stream(kind: str = "vectors") -> list[Experience]:
    return [Experience(f"task {t}", batch(t, t, kind, 200), batch(50 + t, t, kind)) for t in range(3)]


def generated(name: str, tasks: int = 3, seed: int = 0, **options: Any) -> Generated:
    torch.manual_seed(seed)
    model = small()
    return Generated(model, GENERATORS[name](model, tasks, 8, **options))


@pytest.mark.parametrize("name", sorted(GENERATORS))
def test_tasks_are_not_forgotten_where_outputs_match(name: str) -> None:
    results = {}
    for beta in (0.0, 1.0):
        tasks = stream()
        model = generated(name)
        matrix = learn_stream(model, tasks, OutputMatching(beta), NextElement(), rows=50, epochs=20, rate=0.02,
                              measure=known_task_accuracy(tasks))
        results[beta] = matrix.average
        assert all(matrix.scores[t + 1, t] > 0.85 for t in range(3))
        if beta:
            assert matrix.average > 0.85
            assert 0.3 < inferred_accuracy(model, tasks[2].test, 3) <= 1
    assert results[0.0] < results[1.0] - 0.1


def probed(model: Generated, strategy: OutputMatching, steps: int, rate: float = 0.01) -> None:
    kind = next(model.parameters()).dtype

    def rows(step: int) -> Batch:
        return batch(step, strategy.learned).map(lambda x: x.to(kind) if x.is_floating_point() else x)

    learn(model, rows, steps, rate=rate, objective=NextElement(), strategy=strategy)


@pytest.mark.parametrize("name", sorted(GENERATORS))
def test_the_penalty_starts_flat_and_freezes_when_huge(name: str) -> None:
    model, strategy = generated(name).double(), OutputMatching(1e6)
    probed(model, strategy, 3)
    before = model.generator.generate_flat(torch.tensor([0])).detach()
    slopes: list[float] = []

    class Look(OutputMatching):
        def loss_term(self, run: Any, rows: Batch) -> Tensor | None:
            term = super().loss_term(run, rows)
            assert term is not None
            if run.step == 0:
                assert float(term.detach()) < 1e-20  # torch's LSTM rounds otherwise where no gradient is wanted
                slopes.extend(float(g.abs().max()) for g in torch.autograd.grad(
                    term, list(model.generator.parameters()), retain_graph=True, allow_unused=True) if g is not None)
            return term

    look = Look(1e6)
    look.load_state(*strategy.state())
    probed(model, look, 20, rate=1e-5)
    assert slopes and max(slopes) < 1e-6
    after = model.generator.generate_flat(torch.tensor([0, 1])).detach()
    assert (after[0] - before[0]).abs().max() < 1e-4


def test_the_penalty_equals_its_equation_on_all_or_some_tasks() -> None:
    model, strategy = generated("mlp"), OutputMatching(0.5)
    for _ in range(2):
        probed(model, strategy, 2)

    class Look(OutputMatching):
        def loss_term(self, run: Any, rows: Batch) -> Tensor | None:
            term = super().loss_term(run, rows)
            if run.step == 2:
                now = model.generator.generate_flat(torch.arange(3))
                saved = copy.deepcopy(model.generator)
                saved.load_state_dict({**saved.state_dict(), **self.saved_generator})
                moved = [(now[t] - saved.generate_flat(torch.tensor([t]))[0]).square().sum() for t in range(2)]
                expected = 0.5 * sum(moved) / 2 if not self.sample else 0.5 * moved[chosen(run)]
                assert term is not None and float(term) > 0
                torch.testing.assert_close(term, expected)
            return term

    def chosen(run: Any) -> int:
        return int(torch.randperm(2, generator=run.generator())[0])

    for sample in (0, 1):
        look = Look(0.5, sample)
        look.load_state({}, {"learned": 2})
        probed(model, look, 4)


def test_importance_penalties_apply_to_the_generator() -> None:
    tasks, results = stream(), {}
    for strength in (0.0, 3.0):
        model = generated("mlp")
        strategy = OutputMAS(strength)
        matrix = learn_stream(model, tasks, strategy, NextElement(), rows=50, epochs=12, rate=0.02,
                              measure=known_task_accuracy(tasks))
        results[strength] = matrix.scores[3, 0] - matrix.scores[1, 0]
        assert strategy.tasks == 3 and strategy.importance["generator.tasks"].abs().sum(1).min() > 0
    assert results[3.0] > results[0.0]


def test_a_cell_grows_where_a_task_is_hard() -> None:
    model, tasks = generated("lstm", units=4), stream()
    strategy = Grow(threshold=1e-6, units=3)
    learn_stream(model, tasks, Combined(OutputMatching(0.1), strategy), NextElement(), rows=20, epochs=1,
                 measure=known_task_accuracy(tasks))
    assert isinstance(model.generator, ChunkedLSTM) and model.generator.cell.hidden_size == 10
    assert len(strategy.ends) == 3 and strategy.state()[1]["ends"] == strategy.ends


@pytest.mark.parametrize("mixers", [["gru"], ["attention"], ["mamba"]])
def test_stacks_of_mixers_are_targets(mixers: list[str]) -> None:
    """Rows that go on by another shift in each task."""
    torch.manual_seed(0)
    model = Stack(StackConfig(7, 16, mixers, channel="none"))
    generated = Generated(model, ChunkedLSTM(model, 3, 128, 32))
    tasks = stream("elements")[:2]
    matrix = learn_stream(generated, tasks, OutputMatching(0.1), NextElement(), rows=50, epochs=15, rate=0.02,
                          measure=known_task_accuracy(tasks))
    assert matrix.scores[1, 0] > 0.7 and matrix.average > 0.7
    assert all(not p.requires_grad for p in model.parameters())


def test_errors_name_the_remedy() -> None:
    normed = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    for call, message in ((lambda: ChunkedMLP(small(), 0), "give 1 or more of each"),
                          (lambda: Generated(target(), ChunkedMLP(small(), 2)), "made for another target"),
                          (lambda: Generated(normed, ChunkedMLP(normed, 2)), "batch normalisation"),
                          (lambda: generated("mlp").choose(3), "no task 3"),
                          (lambda: OutputMatching(-1), "give 0 or more"),
                          (lambda: Grow(0), "threshold above 0"),
                          (lambda: learn(small(), lambda step: batch(0, 0), 1, strategy=OutputMatching()),
                           "are not generated"),
                          (lambda: learn(generated("mlp"), lambda step: batch(0, 0), 1, strategy=Grow()),
                           "no cell to grow")):
        with pytest.raises(SegueError, match=message):
            call()
