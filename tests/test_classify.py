"""Classifiers over any backbone, their losses, what is frozen of them, and what a probe finds."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from segue.analysis.probes import PROBES, features_of, fitted_head, probe
from segue.continual import (
    Combined,
    Experience,
    Freeze,
    LossScale,
    Probing,
    ProxyDistillation,
    ScoreMatrix,
    class_incremental,
    learn_stream,
)
from segue.continual.buffer import reservoir_slot
from segue.continual.proxy import last_target_hidden
from segue.errors import SegueError
from segue.models import HEADS, Classifier, Features, Stack, StackConfig
from segue.models.classify import CosineHead, LinearHead, NeighbourHead, PrototypeHead
from segue.objectives import (
    Batch,
    ClassLoss,
    NextElement,
    ProxyReplay,
    SupCon,
    relation_distillation,
    score_distillation,
    supcon,
    target_features,
)
from segue.testing import check_strategy
from segue.training.learn import learn
from segue.training.optimiser import groups_of

BACKBONES = ("attention", "lstm", "mamba")
quick = settings(max_examples=25, deadline=None, derandomize=True)


def backbone(mixer: str = "gru", **choices: Any) -> Stack:
    torch.manual_seed(0)
    return Stack(StackConfig(12, 8, [mixer] * 2, **({"tied": False} | choices)))


def rows_of(classes: int, per_class: int, seed: int = 0) -> Batch:
    """Rows of 4 to 7 ids, of which most are the class's own number."""
    draw = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), per_class)
    rows = [np.where(draw.random(n) < 0.8, label, draw.integers(0, 12, n)).tolist()
            for label, n in zip(labels, draw.integers(4, 8, len(labels)))]
    return Batch.labelled(rows, labels.tolist())


# Models.

def test_rows_with_classes_are_right_padded() -> None:
    batch = Batch.labelled([[5, 6, 7], [8], [1, 2, 3, 4, 5]], [0, 1, 2], length=4)
    assert batch.tokens.tolist() == [[5, 6, 7, 0], [8, 0, 0, 0], [1, 2, 3, 4]]
    assert batch.targets.tolist() == [[-1, -1, 0, -1], [1, -1, -1, -1], [-1, -1, -1, 2]]


@pytest.mark.parametrize("pool", ["", "mean"])
@pytest.mark.parametrize("mixer", BACKBONES)
def test_padding_changes_nothing(mixer: str, pool: str) -> None:
    model = Classifier(backbone(mixer), LinearHead(8, 3), pool).eval().double()
    rows = [[3, 1, 4], [1, 5, 9, 2, 6], [5]]
    together = target_features(model, Batch.labelled(rows, [0, 1, 2], length=9))[0]
    single = torch.cat([target_features(model, Batch.labelled([row], [0]))[0] for row in rows])
    torch.testing.assert_close(together, single, atol=1e-12, rtol=0)
    if pool:
        hidden = model.backbone.hidden(torch.tensor([rows[1]]), Batch.labelled([rows[1]], [0]).layout)  # type: ignore
        torch.testing.assert_close(together[1], hidden[0].mean(0), atol=1e-6, rtol=0)


@pytest.mark.parametrize("head", ["linear", "cosine"])
@pytest.mark.parametrize("mixer", BACKBONES)
def test_a_classifier_learns_on_every_backbone(mixer: str, head: str) -> None:
    batch, test = rows_of(3, 20), rows_of(3, 10, seed=1)
    model = Classifier(backbone(mixer), HEADS[head](8, 3))
    learn(model, lambda step: batch, 40, rate=0.02, objective=ClassLoss())
    is_target = test.targets >= 0
    is_correct = model.predict(test.tokens, test.layout)[is_target] == test.targets[is_target]
    assert float(is_correct.float().mean()) > 0.8
    assert model.seen.all()


def test_next_element_loss_accepts_a_classifier() -> None:
    model, batch = Classifier(backbone(), LinearHead(8, 3)).eval(), rows_of(3, 4)
    class_loss = ClassLoss("all")(model, batch)
    torch.testing.assert_close(NextElement()(model, batch).total, class_loss.total)
    assert class_loss.count == 12


def test_predictions_are_among_seen_classes() -> None:
    model = Classifier(Features(), LinearHead(2, 4))
    x = torch.randn(50, 1, 2)
    with pytest.raises(SegueError, match="train"):
        model.predict(x)
    model.mark_seen(torch.tensor([1, -1, 3]))
    assert set(model.predict(x).flatten().tolist()) == {1, 3}
    assert set(model.predict(x, among=torch.tensor([True, False, True, False])).flatten().tolist()) <= {0, 2}
    with pytest.raises(SegueError, match="grow"):
        model.mark_seen([4])


@quick
@given(width=st.integers(1, 5), old=st.integers(1, 4), new=st.integers(0, 4), kind=st.sampled_from(list(HEADS)))
def test_growing_leaves_old_classes_unchanged(width: int, old: int, new: int, kind: str) -> None:
    torch.manual_seed(0)
    model = Classifier(Features(), HEADS[kind](width, old))
    features = torch.randn(12, width)
    if kind in ("prototype", "neighbours"):
        model.head.add_examples(features, torch.arange(12) % old)
    else:
        model.head.freeze([0])  # type: ignore[operator]
    model.mark_seen([old - 1])
    before = model(features[None]).logits
    model.grow(old + new)
    after = model(features[None]).logits
    assert after.shape[-1] == old + new == model.head.classes == len(model.seen)
    torch.testing.assert_close(after[..., :old], before, atol=1e-6, rtol=1e-5)
    assert model.seen.nonzero().tolist() == [[old - 1]]
    copy.deepcopy(model).load_state_dict(model.state_dict())
    if new:
        with pytest.raises(SegueError, match="cannot grow"):
            model.grow(old)


@quick
@given(rows=st.integers(1, 20), classes=st.integers(1, 5), seed=st.integers(0, 99))
def test_prototypes_equal_nearest_class_means(rows: int, classes: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    x, y, asked_for = draw.normal(size=(rows, 3)), draw.integers(0, classes, rows), draw.normal(size=(6, 3))
    for cosine in (False, True):
        head = PrototypeHead(3, classes, cosine).double()
        for part in np.array_split(np.arange(rows), 2):  # in pieces or at once
            head.add_examples(torch.tensor(x[part]), torch.tensor(y[part]))
        means = np.array([x[y == c].mean(0) if (y == c).any() else np.full(3, np.nan) for c in range(classes)])
        if cosine:
            means /= np.linalg.norm(means, axis=1, keepdims=True)
            expected = np.nanargmax(asked_for @ means.T, 1)
        else:
            expected = np.nanargmin(np.linalg.norm(asked_for[:, None] - means, axis=2), 1)
        assert head(torch.tensor(asked_for)).argmax(-1).tolist() == expected.tolist()


def test_nearest_neighbours_vote() -> None:
    head = NeighbourHead(1, 3, nearest=3, capacity=5)
    head.add_examples(torch.tensor([[0.0], [0.1], [1.0], [5.0], [5.1]]), torch.tensor([0, 0, 1, 2, 2]))
    assert head(torch.tensor([[0.3], [4.9]])).argmax(-1).tolist() == [0, 2]
    assert head(torch.tensor([[0.9]])).argmax(-1).tolist() == [0]  # two of three
    tie = NeighbourHead(1, 3, nearest=2)
    tie.add_examples(torch.tensor([[0.0], [1.0]]), torch.tensor([2, 1]))
    assert tie(torch.tensor([[0.4], [0.6]])).argmax(-1).tolist() == [2, 1]  # of equally many the nearer
    head.add_examples(torch.full((4, 1), 9.0), torch.full((4,), 1))  # the oldest four go
    assert head.labels.tolist() == [1, 1, 1, 1, 2]


@pytest.mark.parametrize("head", [lambda: HEADS["linear"](8, 4), lambda: HEADS["cosine"](8, 4)])
def test_frozen_rows_stay_bit_for_bit(head: Callable[[], Any]) -> None:
    model, batch = Classifier(backbone(), head()), rows_of(4, 5)
    model.head.freeze([1, 2])  # type: ignore[operator]
    before = copy.deepcopy(model.head.state_dict())
    learn(model, lambda step: batch, 5, rate=0.1, decay=0.1, objective=ClassLoss("all"))
    for name, tensor in model.head.state_dict().items():
        assert torch.equal(tensor[[1, 2]], before[name][[1, 2]])
        assert name == "frozen" or not torch.equal(tensor[[0, 3]], before[name][[0, 3]])
    assert "head.weight" in groups_of(model, muon=True)["table"]


def test_bad_classifiers_are_refused() -> None:
    for call, message in ((lambda: Classifier(backbone(), LinearHead(9, 3)), "width 9"),
                          (lambda: Classifier(backbone(), LinearHead(8, 3), "max"), "pool"),
                          (lambda: CosineHead(8, 3, 0.0), "temperature"),
                          (lambda: NeighbourHead(8, 3, 5, 4), "nearest"),
                          (lambda: LinearHead(8, 3).add_examples(torch.zeros(1, 8), torch.zeros(1)), "gradients"),
                          (lambda: ClassLoss("some"), "among"), (lambda: ProxyReplay(1), "samples"),
                          (lambda: SupCon(0.0), "temperature")):
        with pytest.raises(SegueError, match=message):
            call()


# Losses.

def random_features(rows: int, classes: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, width, generator=draw, dtype=torch.float64),
            torch.randint(classes, (rows,), generator=draw))


def as_batch(features: Tensor, labels: Tensor) -> Batch:
    return Batch(features[:, None], labels[:, None])


shapes = {"rows": st.integers(1, 12), "classes": st.integers(1, 6), "seed": st.integers(0, 999)}


@quick
@given(**shapes)
def test_proxy_replay_equals_a_double_loop_and_adjusted_softmax(rows: int, classes: int, seed: int) -> None:
    features, labels = random_features(rows, classes, 5, seed)
    torch.manual_seed(seed)
    model = Classifier(Features(), CosineHead(5, classes)).double()
    loss = ProxyReplay()(model, as_batch(features, labels))
    proxies, naive = model.head.weight.detach(), 0.0  # type: ignore[union-attr]

    def score(i: int, c: int) -> float:
        z, w = features[i], proxies[c]  # type: ignore[index]
        return float(z @ w / (z.norm() + 1e-6) / (w.norm() + 1e-6) / 0.09)

    for i in range(rows):
        below = sum(math.exp(score(i, int(labels[j])) - score(i, int(labels[i]))) for j in range(rows))
        naive += math.log(below)
    assert float(loss.total.detach()) == pytest.approx(naive, abs=1e-6)
    assert model.seen.nonzero()[:, 0].tolist() == labels.unique().tolist()

    scores = model.head(features).detach().requires_grad_()
    counts = F.one_hot(labels, classes).sum(0)
    adjusted = scores + counts.double().log()  # classes that are absent at -inf
    expected = torch.autograd.grad(F.cross_entropy(adjusted, labels, reduction="sum"), scores)[0]
    weight = torch.autograd.grad(loss.total, model.head.weight)[0]  # type: ignore[arg-type]
    weight_of_head = torch.autograd.grad((model.head(features) * expected).sum(), model.head.weight)[0]  # type: ignore[arg-type]
    torch.testing.assert_close(weight, weight_of_head, atol=1e-9, rtol=1e-7)


def naive_supcon(features: Tensor, labels: Tensor, temperature: float) -> float:
    unit, total = features / features.norm(dim=1, keepdim=True), 0.0
    for i in range(len(labels)):
        others = [j for j in range(len(labels)) if j != i]
        positives = [j for j in others if labels[j] == labels[i]]
        if positives:
            below = math.log(sum(math.exp(float(unit[i] @ unit[j]) / temperature) for j in others))
            total -= sum(float(unit[i] @ unit[p]) / temperature - below for p in positives) / len(positives)
    return total


@quick
@given(**shapes)
def test_supcon_equals_a_double_loop(rows: int, classes: int, seed: int) -> None:
    features, labels = random_features(rows, classes, 5, seed)
    total = supcon(features.requires_grad_(), labels, 0.2)
    assert float(total.detach()) == pytest.approx(naive_supcon(features.detach(), labels, 0.2), abs=1e-9)
    assert bool(torch.autograd.grad(total, features)[0].isfinite().all())
    head = Classifier(Features(), LinearHead(5, classes)).double()
    assert float(SupCon(0.2)(head, as_batch(features.detach(), labels)).total) == pytest.approx(float(total.detach()))


@quick
@given(**shapes)
def test_rows_among_proxies_equal_a_double_loop(rows: int, classes: int, seed: int) -> None:
    features, labels = random_features(rows, classes, 5, seed)
    torch.manual_seed(seed)
    model = Classifier(Features(), CosineHead(5, classes)).double()
    scores = model.head(features).detach()
    unit, naive = features / features.norm(dim=1, keepdim=True), 0.0
    for i in range(rows):
        compared = [float(scores[i, labels[j]]) for j in range(rows)]
        compared += [float(unit[i] @ unit[j]) / 0.09 for j in range(rows) if j != i]
        kinds = [*labels.tolist(), *(int(labels[j]) for j in range(rows) if j != i)]
        positives = [s for s, kind in zip(compared, kinds) if kind == int(labels[i])]
        naive += math.log(sum(map(math.exp, compared))) - sum(positives) / len(positives)
    batch = as_batch(features, labels)
    if rows > 1:
        assert float(ProxyReplay(samples=2)(model, batch).total.detach()) == pytest.approx(naive, abs=1e-6)
    below = ProxyReplay(samples=rows + 2)(model, batch).total
    assert torch.equal(below, ProxyReplay()(model, batch).total)  # too few rows for them


def test_class_loss_softmax_covers_the_chosen_classes() -> None:
    model = Classifier(Features(), LinearHead(3, 5)).double()
    features, labels = random_features(6, 2, 3, 0)
    scores = model.head(features)
    batch = as_batch(features, labels)
    for among, allowed in (("all", [0, 1, 2, 3, 4]), ("batch", [0, 1]), ("seen", [0, 1, 3])):
        model.mark_seen([3])
        expected = F.cross_entropy(scores[:, allowed], labels, reduction="sum")
        torch.testing.assert_close(ClassLoss(among)(model, batch).total, expected)
    fresh = Classifier(Features(), LinearHead(3, 5)).double().eval()
    ClassLoss("batch")(fresh, batch)
    assert not fresh.seen.any()  # a held-out score marks nothing


@quick
@given(rows=st.integers(1, 8), seed=st.integers(0, 99))
def test_distillation_terms_equal_their_formulas(rows: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    now, then = torch.randn(2, rows, 4, generator=draw, dtype=torch.float64)
    labels = torch.randint(4, (11,), generator=draw)
    columns = (now[:, labels] - then[:, labels]).square().mean()  # with repeats
    torch.testing.assert_close(score_distillation(now, then, labels), columns)
    assert float(score_distillation(torch.cat([then, now], 1), then, labels)) == 0  # a head that has grown since

    for features, equal in ((then, True), (now, False)):
        features = features.clone().requires_grad_()
        gradient = torch.autograd.grad(relation_distillation(features, then), features)[0]
        assert bool(gradient.isfinite().all())
        assert float(gradient.abs().max()) < 1e-9 or not equal
        assert equal or rows < 3 or float(gradient.abs().max()) > 1e-6


# Freezing and probing.

@pytest.mark.parametrize("make", [Freeze, lambda: Freeze(["embedding", "blocks.0"]), lambda: Freeze(warm_up=1)])
def test_freezing_keeps_the_contract_of_a_strategy(make: Callable[[], Freeze]) -> None:
    check_strategy(make)


@pytest.mark.parametrize("mixer", BACKBONES)
def test_a_frozen_backbone_and_old_rows_stay_bit_for_bit(mixer: str) -> None:
    model = Classifier(backbone(mixer, dropout=0.5), LinearHead(8, 4))
    strategy, batches = Freeze(old_classes=True), [rows_of(2, 6), rows_of(4, 6).rows(slice(12, 24))]
    features = features_of(model, batches[0].tokens)
    learn(model, lambda step: batches[0], 8, strategy=strategy, objective=ClassLoss("all"))
    assert torch.equal(features_of(model, batches[0].tokens), features)
    old = model.head.weight[:2].clone()  # type: ignore[index]
    learn(model, lambda step: batches[1], 8, strategy=strategy, objective=ClassLoss("all"))
    assert torch.equal(features_of(model, batches[0].tokens), features)
    assert torch.equal(model.head.weight[:2], old)  # type: ignore[index]
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_dropout_is_off_in_frozen_parts() -> None:
    captured: list[Tensor] = []

    class Watch(ClassLoss):
        def __call__(self, model: Any, batch: Batch) -> Any:
            captured.append(model.hidden(batch.tokens, batch.layout).detach())
            return super().__call__(model, batch)

    batch, model = rows_of(2, 6), Classifier(backbone(dropout=0.5), LinearHead(8, 2))
    strategy = Freeze(["backbone"], warm_up=1)
    learn(model, lambda step: batch, 3, objective=Watch(), strategy=strategy)
    assert not torch.equal(captured[0], captured[1])
    learn(model, lambda step: batch, 3, objective=Watch(), strategy=strategy, measure=3)
    assert torch.equal(captured[-1], captured[-2]) and torch.equal(captured[-1], captured[-3])


def test_bad_freezing_is_refused() -> None:
    batch = rows_of(2, 3)
    with pytest.raises(SegueError, match="no part 'tail'"):
        learn(Classifier(backbone(), LinearHead(8, 2)), lambda step: batch, 1, strategy=Freeze(["tail"]))
    with pytest.raises(SegueError, match="rows of old classes"):
        learn(backbone(), lambda step: batch, 1, strategy=Freeze(old_classes=True))
    with pytest.raises(SegueError, match="warm-up"):
        Freeze(warm_up=-1)


@pytest.mark.parametrize("mixer", BACKBONES)
def test_probes_read_frozen_features(mixer: str) -> None:
    train, test = rows_of(3, 30), rows_of(3, 15, seed=1)
    model = backbone(mixer).requires_grad_(False)

    def read(batch: Batch, pool: str = "") -> tuple[Tensor, Tensor]:
        return features_of(model, batch.tokens, batch.targets.argmax(1), pool, rows=7), batch.targets.amax(1)

    torch.testing.assert_close(read(train)[0], target_features(model, train)[0], atol=1e-5, rtol=0)
    for kind in PROBES:
        results = probe(kind, read(train, "mean"), read(test, "mean"), rate=0.05, epochs=30)
        assert results > 0.6, kind
    assert fitted_head("linear", *read(train), 3).weight.requires_grad is False  # type: ignore[union-attr]
    with pytest.raises(SegueError, match="unknown"):
        probe("quadratic", read(train), read(test))


def test_a_probe_reads_models_that_only_extend() -> None:
    stack, tokens = backbone("gru").eval(), torch.randint(12, (5, 6))

    class Extends:  # as a compiled engine, or a model behind an adapter
        init_state, extend = stack.init_state, stack.extend

    torch.testing.assert_close(features_of(Extends(), tokens), features_of(stack, tokens), atol=1e-5, rtol=0)


# Proxy-based replay as a whole.

@pytest.mark.parametrize("make", [
    ProxyDistillation, lambda: Combined(ProxyDistillation(capacity=5), LossScale(period=4), Freeze(["norm"]))])
def test_hpcr_parts_keep_the_contract_of_a_strategy(make: Callable[[], Any]) -> None:
    check_strategy(make)


def test_the_loss_scale_does_not_change_predictions() -> None:
    strategy = LossScale()
    assert strategy.factor(0) == pytest.approx(0.5625) and strategy.factor(250) == pytest.approx(1.8)
    assert strategy.factor(500) == pytest.approx(0.5625)
    assert strategy.factor(125) == pytest.approx((1.8 - 0.5625) * 0.5 * (1 - math.cos(2 * math.pi / 4)) + 0.5625)
    batch, weights = rows_of(3, 4), {}
    for name, scale in (("half", LossScale(0.5, 0.5)), ("whole", None)):
        model = Classifier(backbone(), CosineHead(8, 3, 1.0))
        torch.manual_seed(1)
        start = model.head.weight.data.uniform_(-0.5, 0.5).clone()  # type: ignore[union-attr]
        rate = 0.2 if name == "half" else 0.1
        run = learn(model, lambda step: batch, 1, sgd=True, rate=rate, state_rate=rate, warmup=0.0, cooldown=0.0,
                    clip=0.0, strategy=scale, objective=ProxyReplay())
        weights[name] = (model.head.weight.data - start, run.curve[-1]["loss"])  # type: ignore[union-attr]
        assert isinstance(run.objective, ProxyReplay), "the scale stays on the objective after its experience"
    torch.testing.assert_close(weights["half"][0], weights["whole"][0])  # half the loss at twice the rate
    assert weights["half"][1] == pytest.approx(weights["whole"][1])  # what is reported is not scaled


@pytest.mark.parametrize("mixer", BACKBONES)
def test_hpcr_learns_a_stream_on_every_backbone(mixer: str) -> None:
    stream = class_incremental(rows_of(4, 20), rows_of(4, 5, seed=1), [[2, 0], [1, 3]])
    strategy = ProxyDistillation(0.01, 0.1, capacity=20)
    model = Classifier(backbone(mixer), CosineHead(8, 4))
    matrix = learn_stream(model, stream, Combined(strategy, LossScale(period=8)), ProxyReplay(), rows=10, epochs=3,
                          rate=0.3, state_rate=0.3, sgd=True, warmup=0.0, cooldown=0.0)
    assert matrix.average > 0.6
    assert strategy.learned == 2 and len(strategy.buffer) == 20
    stored = strategy.buffer.payload
    assert stored["scores"].shape == (20, 4) and stored["features"].shape == (20, 8)


def test_stored_features_are_from_before_the_step() -> None:
    batch, model, strategy = rows_of(2, 5), Classifier(backbone(), CosineHead(8, 2)), ProxyDistillation(capacity=10)
    before = last_target_hidden(model.eval(), batch).detach()
    learn(model, lambda step: batch, 1, rate=0.1, strategy=strategy, objective=ProxyReplay())
    torch.testing.assert_close(strategy.buffer.payload["features"], before)
    assert float((last_target_hidden(model.eval(), batch) - before).detach().abs().max()) > 1e-3


def test_distillation_begins_with_the_second_experience() -> None:
    model, result = Classifier(backbone(), CosineHead(8, 2)), list[Tensor | None]()

    class Watched(ProxyDistillation):
        def loss_term(self, run: Any, batch: Batch) -> Tensor | None:
            result.append(super().loss_term(run, batch))
            return result[-1]

    strategy, batch = Watched(capacity=10), rows_of(2, 5)
    for _ in range(2):
        learn(model, lambda step: batch, 3, strategy=strategy, objective=ProxyReplay(), rate=0.1)
    assert result[:3] == [None] * 3
    assert all(term is not None and float(term.detach()) > 0 for term in result[3:])
    sampled = strategy.buffer.rows(strategy.drawn)  # type: ignore[arg-type]
    assert len(strategy.labels) == 20 and sampled.targets.shape[0] == 10


def test_buffer_rows_are_a_uniform_sample() -> None:
    counts, streams = np.zeros(12), 10_000
    for seed in range(streams):
        row_by_slot = {}
        for row in range(12):
            if (slot := reservoir_slot(seed, row, 3)) >= 0:
                row_by_slot[slot] = row
        counts[list(row_by_slot.values())] += 1
    expected = streams * 3 / 12
    assert ((counts - expected) ** 2 / expected).sum() < 31.3  # 99.9% of the chi-square distribution, 11 degrees


# SEQ* as a whole.

@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_precomputed_features_train_like_a_frozen_backbone(head: str) -> None:
    stream = class_incremental(rows_of(4, 10), rows_of(4, 5, seed=1), [[2, 0], [1, 3]])
    full_model = Classifier(backbone("lstm", dropout=0.5), HEADS[head](8, 4), "mean")
    single = Classifier(Features(), copy.deepcopy(full_model.head))  # type: ignore[arg-type]

    def read(batch: Batch) -> Batch:
        return Batch(features_of(full_model, batch.tokens, batch.targets.argmax(1))[:, None],
                     batch.targets.amax(1)[:, None])

    precomputed = [Experience(experience.name, read(experience.train), read(experience.test), experience.classes)
                   for experience in stream]
    first = learn_stream(full_model, stream, Freeze(["backbone"], old_classes=True), ClassLoss("all"),
                         epochs=3, rate=0.01)
    second = learn_stream(single, precomputed, Freeze((), old_classes=True), ClassLoss("all"), epochs=3, rate=0.01)
    torch.testing.assert_close(full_model.head.state_dict(), single.head.state_dict(), atol=1e-4, rtol=1e-3)
    np.testing.assert_allclose(first.scores, second.scores)


def test_joint_training_approaches_the_probe() -> None:
    train, test = rows_of(4, 25), rows_of(4, 25, seed=1)
    model, everything = Classifier(backbone(), CosineHead(8, 4), "mean"), [list(range(4))]
    matrix = learn_stream(model, class_incremental(train, test, everything), Freeze(["backbone"]), ClassLoss("all"),
                          epochs=30, rate=0.02)
    read = [(features_of(model, part.tokens, part.targets.argmax(1)), part.targets.amax(1)) for part in (train, test)]
    assert matrix.average == pytest.approx(probe("cosine", read[0], read[1], rate=0.02, epochs=60, rows=10), abs=0.08)


def test_probing_changes_no_weight() -> None:
    train, test = rows_of(4, 15), rows_of(4, 10, seed=1)
    stream, weights = class_incremental(train, test, [[0, 1], [2, 3]]), []
    for strategy in (Probing(train, test, epochs=30, rate=0.05), Freeze(warm_up=9)):
        model = Classifier(backbone(dropout=0.2), LinearHead(8, 4), "mean")
        matrix = learn_stream(model, stream, strategy, ClassLoss(), epochs=5, rate=0.02)
        weights.append(model.state_dict())
    torch.testing.assert_close(weights[0], weights[1], atol=0, rtol=0)
    watched = Probing(train, test, "prototype")
    learn_stream(model, stream, watched, ClassLoss())
    assert len(watched.accuracies) == 3 and all(0.25 < share_right <= 1 for share_right in watched.accuracies)
    assert matrix.average_so_far == pytest.approx(np.mean([matrix.scores[1, 0], matrix.scores[2].mean()]))
    check_strategy(lambda: Probing(as_labels(), as_labels()))
    with pytest.raises(SegueError, match="unknown"):
        Probing(train, test, "quadratic")


def as_labels() -> Batch:
    return rows_of(3, 4).map(lambda x: x.clamp(max=10))


def test_metrics_equal_those_by_hand() -> None:
    matrix = ScoreMatrix(np.array([[0.1, 0.1], [0.9, 0.2], [0.5, 0.7]]), ["a", "b"], ["before", "a", "b"],
                         "accuracy", True)
    assert matrix.average == pytest.approx(0.6) and matrix.average_so_far == pytest.approx((0.9 + 0.6) / 2)
    assert matrix.forgetting("a") == pytest.approx(0.4) and matrix.backward_transfer == pytest.approx(-0.4)
