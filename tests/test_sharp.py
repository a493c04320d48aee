"""Sparse layers whose units can stand still, entering a network half-way, and SHARP, which is made of both."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from segue.continual import Recent, Sharp, Strategy, class_incremental, learn_stream
from segue.continual.buffer import Buffer, dequantise_rows, first_of_class, labels_of, quantise_rows
from segue.continual.sharp import selection
from segue.continual.stream import Experience
from segue.errors import SegueError
from segue.models import Classifier, Masked, Output, Perceptron, SparseNetwork, Stack, StackConfig
from segue.models.classify import LinearHead, NeighbourHead
from segue.objectives import Batch, ClassLoss, SupCon, generator_of, target_features
from segue.objectives.contrastive import ACTIVATIONS, RECALLED
from segue.testing import check_strategy
from segue.training.learn import learn
from segue.training.loop import Run

quick = settings(max_examples=25, deadline=None, derandomize=True)
TRUNKS = ("", "gru", "mamba")
PLAN: dict[str, Any] = {"rows": 8, "epochs": 4, "rate": 3e-3, "warmup": 0.0, "cooldown": 0.0}


def network(trunk: str = "", widths: tuple[int, ...] = (24, 24, 16), **choices: Any) -> SparseNetwork:
    torch.manual_seed(0)
    below = Stack(StackConfig(12, 20, [trunk], tied=False)) if trunk else None
    return SparseNetwork(20, widths, trunk=below, **choices)


def classifier(net: SparseNetwork, classes: int = 8) -> Classifier:
    return Classifier(net, NeighbourHead(net.masked[-1].units, classes, cosine=True))


def stream(trunk: str = "", classes: int = 8, group: int = 2) -> list[Experience]:
    """Vectors around a class's mean, one at a time; or, for a trunk, rows of ids, of which most are the class's own."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(classes).repeat_interleave(16)
    if trunk:
        ids = torch.where(torch.rand(len(labels), 5, generator=draw) < 0.8, labels[:, None],
                          torch.randint(12, (len(labels), 5), generator=draw))
        rows = Batch(ids, F.pad(labels[:, None], (4, 0), value=-1))
    else:
        means = torch.randn(classes, 20, generator=draw)
        rows = Batch((means[labels] + 0.4 * torch.randn(len(labels), 20, generator=draw))[:, None], labels[:, None])
    rows = rows.rows(torch.randperm(len(labels), generator=draw))
    groups = [tuple(range(i, i + group)) for i in range(0, classes, group)]
    return class_incremental(rows.rows(slice(0, 96)), rows.rows(slice(96, None)), groups)


# Layers.

@quick
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 3), st.floats(0.05, 1), st.integers(1, 7))
def test_a_masked_layer_equals_a_sum_over_connections(inputs: int, units: int, kernel: int, density: float,
                                                      length: int) -> None:
    torch.manual_seed(0)
    layer = Masked(inputs, units, kernel, density).double()
    assert int(layer.connections.sum()) == max(1, round(density * inputs * units))
    layer.bias.data.normal_()
    x = torch.randn(2, length, inputs, dtype=torch.float64)
    expected = layer.bias.expand(2, length, units).clone()
    for unit, source in layer.connections.nonzero().tolist():
        for back in range(kernel or 1):
            weight = layer.weight[unit, source, kernel - 1 - back] if kernel else layer.weight[unit, source]
            expected[:, back:, unit] += weight * x[:, : length - back, source]
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("kernel", [0, 2])
@pytest.mark.parametrize("optimiser", ["adamw with decay", "momentum", "muon"])
def test_no_optimiser_moves_a_frozen_unit(kernel: int, optimiser: str) -> None:
    torch.manual_seed(0)
    layer, x = Masked(6, 8, kernel, 0.6), torch.randn(4, 3, 6)
    if optimiser == "muon":
        from segue.training.optimiser import Optimiser

        muon = Optimiser(layer, dict.fromkeys(("matrix", "weight", "table", "vector", "state"), 0.1), decay=0.1)
        step: Callable[[], Any] = partial(muon.step, 1.0)
    else:
        step = (torch.optim.AdamW(layer.parameters(), 0.1, weight_decay=0.5) if "decay" in optimiser else
                torch.optim.SGD(layer.parameters(), 0.1, momentum=0.9)).step
    still = torch.arange(8) < 4
    for turn in range(6):
        if turn == 3:  # the optimiser has momentum for them by now
            layer.freeze(still)
            before = layer(x).detach()
        layer.zero_grad()
        layer(x).square().sum().backward()
        assert turn < 3 or not layer.weight.grad[still].any()  # type: ignore[index]
        step()
    after = layer(x).detach()
    assert torch.equal(after[..., :4], before[..., :4])
    assert (after[..., 4:] != before[..., 4:]).any(-1).all()


@quick
@given(st.integers(1, 8), st.integers(1, 8), st.floats(0.1, 1), st.integers(0, 40), st.integers(0, 255))
def test_connections_are_removed_and_grown(inputs: int, units: int, density: float, count: int, bits: int) -> None:
    torch.manual_seed(0)
    layer = Masked(inputs, units, 0, density)
    targets = torch.tensor([bool(bits >> i & 1) for i in range(units)])
    before = layer.connections.clone()
    room = int((~before)[targets].sum())
    grown_count = layer.grow(count, targets, torch.Generator().manual_seed(0))
    new = layer.connections & ~before
    assert grown_count == int(new.sum()) == min(count, room) and bool((before <= layer.connections).all())
    assert not new[~targets].any() and not layer.weight[new].any()
    assert layer.drop(new) == grown_count and torch.equal(layer.connections, before)


@quick
@given(st.lists(st.floats(0, 10), min_size=1, max_size=12), st.floats(0.05, 1))
def test_active_units_are_the_fewest_of_the_share(activity: list[float], share: float) -> None:
    net = SparseNetwork(3, [len(activity)], early=0)
    net.choose([torch.tensor(activity, dtype=torch.float64)], share)
    chosen = net.masked[0].types.bool()
    values = torch.tensor(activity, dtype=torch.float64)
    if not sum(activity):
        assert not chosen.any()
        return
    assert float(values[chosen].sum()) >= share * sum(activity) - 1e-9
    assert float(values[chosen].sum() - values[chosen].min()) < share * sum(activity)
    assert float(values[chosen].min()) >= float(values[~chosen].max() if (~chosen).any() else 0)


def test_the_selection_share_follows_its_schedule() -> None:
    assert selection(1) == pytest.approx(0.5 * (1 + torch.cos(torch.tensor(torch.pi * 2 / 30)).item()))
    assert selection(29) == 0.4 and selection(99, 10, 0.5) == 0.5


# Half-way.

@pytest.mark.parametrize("trunk", TRUNKS)
@pytest.mark.parametrize("early", [0, 1, 2])
def test_a_network_continues_from_its_features(trunk: str, early: int) -> None:
    net, rows = network(trunk, early=early).eval(), stream(trunk)[0].train
    h = net.features(rows.tokens, rows.layout)
    assert torch.equal(net.forward_from(h), net.hidden(rows.tokens, rows.layout))
    for upto in range(4):
        assert torch.equal(net.forward_from(net.features(rows.tokens, rows.layout, upto), upto),
                           net.hidden(rows.tokens, rows.layout))
    # Rows that are recalled by their activations stand beside new ones, in any order, and give what they gave.
    old = torch.arange(len(h)) % 3 == 0
    channels = {RECALLED: old[:, None].expand(h.shape[:2]), ACTIVATIONS: torch.where(old[:, None, None], h, 7.0)}
    blank = torch.where(old.view(-1, *[1] * (rows.tokens.dim() - 1)), 0, rows.tokens)
    features, labels = target_features(classifier(net), Batch(blank, rows.targets, channels=channels))
    expected, names = target_features(classifier(net), rows)
    torch.testing.assert_close(features, expected)
    assert torch.equal(labels, names)
    assert all(not p.requires_grad for p in (net.trunk.parameters() if net.trunk else []))


def test_ids_without_a_trunk_are_one_hot() -> None:
    net, ids = network(), torch.arange(20)[None]
    rows = Batch(ids, ids)
    assert torch.equal(net.hidden(ids, rows.layout), net.hidden(torch.eye(20)[None], rows.layout))


def test_bad_options_are_refused() -> None:
    with pytest.raises(SegueError, match="at least one that is not early"):
        SparseNetwork(4, [8], early=1)
    with pytest.raises(SegueError, match="do not fit"):
        SparseNetwork(4, [8, 8], kernels=[3])
    with pytest.raises(SegueError, match="density"):
        Masked(4, 4, density=0.0)
    packed = Batch(torch.zeros(1, 3, 20), torch.zeros(1, 3).long(), starts=torch.tensor([[False, True, False]]))
    with pytest.raises(SegueError, match="each document a row"):
        network(kernels=[2, 0, 0]).hidden(packed.tokens, packed.layout)
    with pytest.raises(SegueError, match="rewires a sparse network"):
        learn_stream(Classifier(Perceptron(20, [8]), LinearHead(8, 8)), stream(), Sharp(), SupCon())
    with pytest.raises(SegueError, match="do not fit"):
        Sharp(phases=0)


# Bytes, and what is kept.

@quick
@given(st.integers(1, 20), st.integers(1, 3), st.floats(1e-3, 1e3), st.integers(0, 99))
def test_quantised_rows_err_by_half_a_step_at_most(rows: int, groups: int, scale: float, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    x = scale * torch.randn(rows, 2, 5, generator=draw, dtype=torch.float64)
    of = torch.randint(groups, (rows,), generator=draw)
    quantised = quantise_rows(x, of)
    assert quantised["codes"].dtype == torch.uint8
    for group in of.unique():
        group_rows = x[of == group]
        error = (dequantise_rows(quantised)[of == group] - group_rows).abs().max()
        assert float(error) <= float(group_rows.max() - group_rows.min()) / 510 * (1 + 1e-9)
    assert torch.equal(dequantise_rows(quantise_rows(torch.ones(2, 3), torch.zeros(2).long())), torch.ones(2, 3))


def test_the_buffer_keeps_the_first_rows_of_each_class() -> None:
    buffer = Buffer(5, lambda *arguments: first_of_class(*arguments, of_class=2))
    labels = torch.tensor([0, 0, 0, 1, 2, 1, 1, 2, 3])
    for part in labels.split(4):
        buffer.offer(Batch(torch.zeros(len(part), 1), part[:, None]))
    assert labels_of(buffer.batch) == [0, 0, 1, 2, 1]  # type: ignore[arg-type]


@quick
@given(st.integers(2, 5), st.integers(1, 20), st.booleans(), st.integers(0, 99))
def test_neighbours_use_the_units_of_each_class(classes: int, stored: int, cosine: bool, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    head = NeighbourHead(6, classes, nearest=3, capacity=30, cosine=cosine).double()
    x, y = (torch.randn(n, 6, generator=draw, dtype=torch.float64) for n in (stored, 7))
    labels = torch.randint(classes, (stored,), generator=draw)
    head.add_examples(x, labels)
    head.units[:] = torch.rand(classes, 6, generator=draw) < 0.7
    head.units[:, 0] = True
    votes = head(y)
    for row, query in enumerate(y):
        distances = []
        for other, label in zip(x, labels.tolist()):
            a, b = query[head.units[label]], other[head.units[label]]
            distances.append(float(1 - F.cosine_similarity(a, b, dim=0) if cosine else (a - b).square().sum()))
        nearest = torch.tensor(distances).argsort(stable=True)[:3]
        assert torch.equal(votes[row].floor(), labels[nearest].bincount(minlength=classes).double())


def test_a_head_forgets_classes_and_keeps_the_newest() -> None:
    head = NeighbourHead(1, 4, nearest=1, capacity=6)
    for number in range(9):  # 3 to 8 stay
        head.add_examples(torch.tensor([[float(number)]]), torch.tensor([number % 3]))
    head.forget([0])
    assert sorted(head.kept[head.labels >= 0][:, 0].tolist()) == [4, 5, 7, 8]
    head.add_examples(torch.tensor([[20.0], [21.0], [22.0]]), torch.tensor([3, 3, 3]))
    assert sorted(head.kept[head.labels >= 0][:, 0].tolist()) == [5, 7, 8, 20, 21, 22]  # the oldest went
    head.grow(5)
    assert head.units.shape == (5, 1) and bool(head.units.all())


# SHARP.

class Watched(Sharp):
    """After every experience: which edges there are, types, and what the units of each class make of fixed rows."""

    def __init__(self, rows: Batch, **choices: Any) -> None:
        super().__init__(**choices)
        self.rows, self.seen = rows, list[dict[str, Any]]()

    def after_experience(self, run: Run) -> None:
        super().after_experience(run)
        model, net, head = self.parts(run)
        with torch.no_grad():
            features = target_features(model, self.rows)[0]
        self.seen.append({
            "types": [(source.clone(), layer.types.clone()) for source, layer in zip(net.source_types(), net.masked)],
            "edges": [layer.connections.clone() for layer in net.masked], "made": features, "units": head.units.clone(),
            "votes": head(features), "classes": model.seen.nonzero()[:, 0].tolist()})


@pytest.mark.parametrize("recent", [0, 1, 2])
@pytest.mark.parametrize("trunk", [*TRUNKS, "conv"])
def test_experiences_outside_the_memory_are_frozen_bit_for_bit(trunk: str, recent: int) -> None:
    below = "" if trunk == "conv" else trunk
    net = network(below, widths=(40, 40, 40), **({"kernels": [2, 0, 2]} if trunk == "conv" else {}))
    data = stream(below)
    rows = Batch.join([experience.test for experience in data])
    strategy = Watched(rows, phases=3, recent=recent, per_class=6, period=5, seed=1)
    before = [int(layer.connections.sum()) for layer in net.masked]
    learn_stream(classifier(net), data, strategy, SupCon(), **PLAN, decay=0.1)
    moved = 0
    for index, now in enumerate(strategy.seen):
        for (source, target), edges in zip(now["types"], now["edges"]):
            for unit, other in edges.nonzero().tolist():  # what a unit reads is never younger than itself
                assert int(target[unit]) == 0 or int(source[other]) >= int(target[unit])
        assert [int(edges.sum()) for edges in now["edges"]] == before
        for cls in range(8):
            left_at = cls // 2 + recent  # the experience after which it left the memory
            if index > left_at:
                was = strategy.seen[left_at]
                units = was["units"][cls]
                assert torch.equal(now["units"][cls], units) and units.any()
                assert torch.equal(now["made"][:, units], was["made"][:, units])
            elif recent and index > cls // 2:
                moved += not torch.equal(now["made"], strategy.seen[cls // 2]["made"])
    assert not recent or moved
    assert [int((layer.types >= 2).sum()) > 0 for layer in net.masked] == [True] * 3


def test_early_layers_freeze_one_experience_before_late_ones() -> None:
    net = network()
    for layer in net.masked:
        layer.types[:5] = 0
    net.promote(1, 2)
    assert [int(layer.frozen.sum()) for layer in net.masked] == [19, 0, 0]
    assert [layer.types.unique().tolist() for layer in net.masked] == [[0, 2]] * 3
    net.promote(1, 2)
    assert [int(layer.frozen.sum()) for layer in net.masked] == [19, 19, 11]


def test_stored_features_equal_those_of_the_early_layers() -> None:
    net, data = network(widths=(40, 40, 40)), stream()
    strategy = Sharp(phases=2, recent=9, per_class=5, period=5, quantise=False)
    learn_stream(classifier(net), data, strategy, SupCon(), **PLAN)
    old = strategy.memory.payload["experience"] == 0
    stored = strategy.memory.payload["exact"][old]
    rows = data[0].train
    chosen = torch.tensor([i for c in (0, 1) for i in (rows.targets[:, -1] == c).nonzero()[:5, 0].tolist()])
    now = net.features(rows.rows(chosen).tokens, rows.rows(chosen).layout)[:, 0].detach()
    first_units = net.masked[0].types == net.masked[0].types.max()
    order = [stored[:, first_units].sum(1).argsort(), now[:, first_units].sum(1).argsort()]
    assert torch.equal(stored[order[0]][:, first_units], now[order[1]][:, first_units])
    # A vector for each row: of a byte each where it is quantised, with two numbers of its class's range.
    for quantise, size in ((True, 40 + 8), (False, 4 * 40)):
        strategy = Sharp(phases=1, per_class=5, quantise=quantise)
        learn_stream(classifier(network("gru", widths=(40, 16))), stream("gru")[:1], strategy, SupCon(), **PLAN)
        assert strategy.bytes == 10 * size


def test_a_full_network_warns() -> None:
    net = network(widths=(6, 6, 6), density=0.9)
    with pytest.warns(UserWarning, match="the network is full"):
        learn_stream(classifier(net), stream(), Sharp(phases=2, period=9, least=0.9, per_class=4), SupCon(), **PLAN)


class Plain(Strategy):
    """Replay of raw rows, the first of each class of each experience."""

    def __init__(self) -> None:
        self.memory, self.fresh = Recent(99), Buffer(99, lambda *arguments: first_of_class(*arguments, of_class=6))

    def before_step(self, run: Run, batch: Batch) -> Batch:
        self.fresh.offer(batch)
        sampled = self.memory.draw(len(batch.targets), run.generator())
        return Batch.join([batch, self.memory.rows(sampled)]) if len(sampled) else batch

    def after_experience(self, run: Run) -> None:
        self.memory.offer(self.fresh.batch)  # type: ignore[arg-type]
        self.fresh.clear()


def test_without_its_parts_sharp_equals_supcon_replay() -> None:
    net = network(density=1.0, early=0)
    perceptron = Perceptron(20, [24, 24, 16])
    for layer, masked in zip([layer for layer in perceptron.layers if isinstance(layer, nn.Linear)], net.masked):
        masked.weight.data.mul_(0.1)  # so that no unit is idle
        masked.bias.data.fill_(1.0)
        layer.load_state_dict({"weight": masked.weight.detach().clone(), "bias": masked.bias.detach().clone()})
    data = stream()
    model = classifier(net)
    learn_stream(model, data, Sharp(phases=1, recent=99, per_class=6, least=1.0, freeze=False, quantise=False),
                 SupCon(), **PLAN)
    assert all(bool((layer.types == 5).all()) for layer in net.masked)
    other, replay = Classifier(perceptron, NeighbourHead(16, 8, cosine=True)), Plain()
    learn_stream(other, data, replay, SupCon(), measure=lambda *_: 0.0, **PLAN)
    test = Batch.join([experience.test for experience in data])
    torch.testing.assert_close(target_features(model, test)[0], target_features(other, test)[0], atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        other.head.add_examples(*target_features(other, replay.memory.batch))  # type: ignore[arg-type]
        assert torch.equal(model(test.tokens).logits[:, -1].argmax(-1), other(test.tokens).logits[:, -1].argmax(-1))


class Reading(Classifier):
    """One that next elements can be learned with, so that the checker can."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(SparseNetwork(11, [12, 12, 8], kernels=[0, 2, 0]), NeighbourHead(8, 11, cosine=True))
        self.out = nn.Linear(8, 11)

    def forward(self, tokens: Tensor, layout: Any = None) -> Output:
        hidden = self.hidden(tokens, Batch(tokens, tokens).layout)
        return Output(self.out(hidden), hidden)


@pytest.mark.filterwarnings("ignore:the network is full")
@pytest.mark.parametrize("make", [lambda: Sharp(phases=2, per_class=2), lambda: Sharp(phases=3, recent=0, per_class=1)])
def test_sharp_keeps_the_contract_of_a_strategy(make: Callable[[], Sharp]) -> None:
    check_strategy(make, model=Reading)


@pytest.mark.parametrize("trunk", TRUNKS)
def test_sharp_learns_a_stream_without_forgetting(trunk: str) -> None:
    model = classifier(network(trunk, widths=(64, 64, 48)))
    matrix = learn_stream(model, stream(trunk), Sharp(3, per_class=8, period=6.0), SupCon(), **{**PLAN, "epochs": 6})
    assert matrix.average > 0.6  # by chance 0.125


def test_masked_layers_work_in_any_classifier() -> None:
    rows = stream("gru")[0].train
    model = Classifier(network("gru"), LinearHead(16, 8), "mean")
    before = copy.deepcopy(model.backbone.trunk).state_dict()  # type: ignore[union-attr]
    learn(model, lambda step: rows.rows(torch.randint(len(rows.targets), (16,), generator=generator_of(0, step))), 60,
          rate=0.02, objective=ClassLoss())
    is_target = rows.targets >= 0
    assert float((model.predict(rows.tokens)[is_target] == rows.targets[is_target]).float().mean()) > 0.9
    assert all(torch.equal(x, before[name]) for name, x in model.backbone.trunk.state_dict().items())  # type: ignore
