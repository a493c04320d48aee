"""Continual few-shot tasks: what is drawn, what is damaged, and tuning as a function of the weights."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.continual import CORRUPTIONS, Episodes, InnerLoop, Recent, mean_interval, tuned
from segue.continual.episodes import live_mask
from segue.errors import SegueError
from segue.models import Classifier, Features, Perceptron, SparseNetwork, Stack, StackConfig
from segue.models.classify import LinearHead, NeighbourHead, PrototypeHead
from segue.objectives import Batch, ClassLoss, target_features

quick = settings(max_examples=25, deadline=None, derandomize=True)


def table(classes: int = 30, rows: int = 24, length: int = 3, seed: int = 0) -> Batch:
    """Vectors of 4 numbers; a row's class, rows in no order."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat_interleave(rows)[torch.randperm(classes * rows, generator=draw)]
    means = torch.randn(classes, 4, generator=draw)
    targets = torch.full((len(labels), length), -1)
    targets[:, -1] = labels
    return Batch(means[labels][:, None] + 0.3 * torch.randn(len(labels), length, 4, generator=draw), targets)


# Episodes.

@quick
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.booleans())
def test_episodes_equal_a_loop(groups: int, change: int, ways_per_set: int, shot: int, targets: int,
                               instances: bool) -> None:
    rows = table()
    labels = rows.targets[:, -1]
    draw = Episodes(rows, groups * change, change, ways_per_set, shot, targets, instances)
    episode = draw(3)
    assert episode.classes == ways_per_set * groups and len(episode.sets) == groups * change
    numbers_by_class: dict[int, set[int]] = {}
    for index, (subset, numbers) in enumerate(zip(episode.sets, episode.rows)):
        first = ways_per_set * (index // change)
        assert subset.targets[:, -1].tolist() == [first + c for c in range(ways_per_set) for _ in range(shot)]
        assert torch.equal(subset.tokens, rows.tokens[numbers])
        for new, number in zip(subset.targets[:, -1].tolist(), numbers.tolist()):
            numbers_by_class.setdefault(new, set()).add(number)
    asked_for = episode.test.targets[:, -1]
    assert asked_for.tolist() == [c for c in range(episode.classes) for _ in range(change * targets)]
    kinds = {new: {int(labels[i]) for i in numbers} for new, numbers in numbers_by_class.items()}
    assert all(len(of) == 1 for of in kinds.values())
    if instances:
        assert len(set.union(*kinds.values())) == 1  # one class, each row one of its own
        assert all(len(numbers) == 1 for numbers in numbers_by_class.values())
        assert len(set.union(*numbers_by_class.values())) == episode.classes
        assert all(numbers_by_class[int(new)] == {int(row)} for new, row in zip(asked_for, episode.test_rows))
    else:
        assert len(set.union(*kinds.values())) == episode.classes
        assert all(len(numbers) == change * shot for numbers in numbers_by_class.values())  # fresh rows in every set
        assert not set(episode.test_rows.tolist()) & set.union(*numbers_by_class.values())
        assert len(set(episode.test_rows.tolist())) == len(episode.test_rows)
        assert all({int(labels[row])} == kinds[int(new)] for new, row in zip(asked_for, episode.test_rows))
    repeated = draw(3)
    assert torch.equal(repeated.test_rows, episode.test_rows)
    assert not torch.equal(draw(4).test.tokens, episode.test.tokens)


def test_impossible_episodes_are_refused() -> None:
    with pytest.raises(SegueError, match="multiple"):
        Episodes(table(), 5, 2)
    with pytest.raises(SegueError, match="needs 40 classes of 2 rows"):
        Episodes(table(), 40, 1, 1, 1, 1)
    with pytest.raises(SegueError, match="needs 1 classes of 25 rows"):
        Episodes(table(), 25, 1, 1, instances=True)
    with pytest.raises(SegueError, match="two or more"):
        mean_interval([0.5])


def test_an_interval_equals_that_by_hand() -> None:
    middle, half = mean_interval([0.2, 0.4, 0.6, 0.8])
    assert middle == pytest.approx(0.5) and half == pytest.approx(1.96 * (0.2 / 3) ** 0.5 / 2)


# Damage.

@quick
@given(st.sampled_from(sorted(CORRUPTIONS)), st.booleans(), st.floats(0, 1), st.integers(0, 99))
def test_corruption_keeps_its_share_and_its_row(corruption: str, ids: bool, share: float, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    ends = torch.randint(1, 21, (40,), generator=draw)
    tokens = torch.randint(1, 1000, (40, 20) if ids else (40, 20, 3), generator=draw)
    targets = torch.where(torch.arange(20) == ends[:, None] - 1, 1, -1)
    batch = Batch(tokens if ids else tokens.float(), targets)
    hard = CORRUPTIONS[corruption](batch, share, draw)
    moved, is_live = hard.tokens != batch.tokens, live_mask(batch)
    assert is_live.sum(1).tolist() == ends.tolist() and hard.tokens.dtype == batch.tokens.dtype
    assert torch.equal(hard.targets, targets) and not moved[~is_live].any()
    if corruption == "noise":
        assert abs(float(moved[is_live].float().mean()) - share) < 0.1
        corrupted_values = hard.tokens[is_live].flatten(1) if not ids else hard.tokens[is_live][:, None]
        original_values = batch.tokens[is_live].flatten(1) if not ids else batch.tokens[is_live][:, None]
        assert all(set(a.tolist()) <= set(b.tolist())
                   for a, b in zip(corrupted_values.T, original_values.T))  # each of its own channel
    else:
        hit = moved if ids else moved.all(-1)
        assert hit.sum(1).tolist() == [round(float(torch.tensor(share) * n)) for n in ends]
        for row in hit:  # one stretch
            places = row.nonzero()[:, 0].tolist()
            assert all(b - a == 1 for a, b in pairwise(places))
        assert not hard.tokens[hit].any()


def test_clean_instances_are_their_own_nearest_neighbours() -> None:
    draw = Episodes(table(rows=20), 10, 1, 2, 1, 1, instances=True)
    for number in range(5):
        episode = draw(number)
        model = Classifier(Features(), NeighbourHead(4, episode.classes, nearest=1))
        for subset in episode.sets:
            model.head.add_examples(*target_features(model, subset))
        features, labels = target_features(model, episode.test)
        assert torch.equal(model.head(features).argmax(-1), labels)


@quick
@given(st.integers(0, 99))
def test_prototypes_ignore_the_order_of_sets(seed: int) -> None:
    episode = Episodes(table().map(lambda x: x.double() if x.is_floating_point() else x), 6, 3, 3)(seed)
    model = Classifier(Features(), PrototypeHead(4, episode.classes).double())
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed)).tolist()
    for index in order:
        model.head.add_examples(*target_features(model, episode.sets[index]))
    joined = Batch.join(episode.sets)
    features, labels = target_features(model, joined)
    means = torch.stack([features[labels == label].mean(0) for label in range(episode.classes)])
    torch.testing.assert_close(model.head.means, means, atol=1e-6, rtol=0)  # type: ignore[union-attr]


# Tuning.

def learner(backbone: str = "perceptron", classes: int = 6) -> Classifier:
    torch.manual_seed(0)
    backbones: Any = {"perceptron": lambda: Perceptron(4, [8, 8]),
                      "sparse": lambda: SparseNetwork(4, [8, 8], density=0.6)}
    net = backbones[backbone]() if backbone in backbones else \
        Stack(StackConfig(classes, 8, [backbone], inputs=4, tied=False, channel="none", dropout=0.5))
    return Classifier(net, LinearHead(8, classes))


@pytest.mark.parametrize("backbone", ["perceptron", "sparse", "gru", "mamba", "attention"])
def test_tuning_equals_gradient_descent_on_a_copy(backbone: str) -> None:
    episode = Episodes(table(), 2, 1, 3)(0)
    model = learner(backbone)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    inner = InnerLoop(model, steps=3, rate=0.1)
    results = tuned(inner, episode.sets)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    by_sgd = copy.deepcopy(model).eval()
    sgd = torch.optim.SGD(by_sgd.parameters(), lr=0.1)
    for rows in episode.sets:
        for _ in range(3):
            sgd.zero_grad()
            loss = ClassLoss("all")(by_sgd, rows)
            (loss.total / loss.count).backward()
            sgd.step()
    for name, weight in by_sgd.named_parameters():
        torch.testing.assert_close(results[name], weight.detach(), atol=1e-6, rtol=1e-5)
    scores = inner.scores(results, episode.test)
    torch.testing.assert_close(scores, by_sgd(episode.test.tokens).logits[episode.test.targets >= 0],
                               atol=1e-5, rtol=1e-4)
    single = torch.cat([inner.scores(results, episode.test.rows(slice(i, i + 1))) for i in range(len(scores))])
    torch.testing.assert_close(single, scores, atol=1e-5, rtol=1e-4)  # no statistics of the test


def test_replay_of_nothing_is_tuning_and_of_everything_is_joint_training() -> None:
    episode = Episodes(table(), 6, 2, 2)(1)
    inner = InnerLoop(learner(), steps=4, rate=0.3)
    tuned_only = tuned(inner, episode.sets)
    for other in (tuned(inner, episode.sets, recall=0, queue=6), tuned(inner, episode.sets, recall=5, queue=0)):
        assert all(torch.equal(tuned_only[name], other[name]) for name in tuned_only)
    # With all sets kept and brought back, the last set's steps are steps on all rows.
    joined = Batch.join(episode.sets)
    weights = tuned(inner, episode.sets[:-1], recall=99, queue=6, seed=3)
    joint = inner.learn(weights, joined)
    results = tuned(inner, episode.sets, recall=99, queue=6, seed=3)
    for name in joint:
        torch.testing.assert_close(results[name], joint[name], atol=1e-6, rtol=1e-5)
    rows = target_features(inner.model, joined)[1]
    losses = [float(F.cross_entropy(inner.scores(w, joined), rows)) for w in (tuned_only, results)]
    assert losses[1] < 0.8 * losses[0]


def test_meta_gradients_reach_the_learning_rates() -> None:
    episode = Episodes(table().map(lambda x: x.double() if x.is_floating_point() else x), 2, 1, 3)(0)
    inner = InnerLoop(learner().double(), steps=2, rate=0.2, learned=True).double()

    def after(rates: torch.Tensor) -> torch.Tensor:
        inner.log_rates.data.copy_(rates)
        weights = inner.start()
        for rows in episode.sets:
            weights = inner.learn(weights, rows)
        return inner.loss(weights, episode.test)

    rates = inner.log_rates.detach().clone()
    result, = torch.autograd.grad(after(rates), inner.log_rates)
    for place in ((0, 0), (1, 3)):
        step = torch.zeros_like(rates)
        step[place] = 1e-5
        slope = (after(rates + step) - after(rates - step)) / 2e-5
        torch.testing.assert_close(result[place], slope.detach(), atol=1e-7, rtol=1e-4)
    assert result.shape == (2, len(inner.start()))
    inner.log_rates.data.copy_(rates)
    slopes = torch.autograd.grad(inner.loss(inner.learn(inner.start(), episode.sets[0]), episode.test),
                                 list(inner.model.parameters()), allow_unused=True)
    assert sum(slope is not None and bool(slope.abs().sum() > 0) for slope in slopes) > 3  # and the weights with them
    with pytest.raises(SegueError, match="one or more"):
        InnerLoop(learner(), steps=0)


# The queue.

@quick
@given(st.integers(0, 4), st.lists(st.integers(1, 5), min_size=1, max_size=8))
def test_a_queue_keeps_whole_experiences(experiences: int, sizes: list[int]) -> None:
    queue, offered = Recent(experiences), []
    for number, size in enumerate(sizes):
        rows = table().rows(torch.arange(size) + number)
        queue.offer(rows, {"mark": torch.full((size, 2), float(number))})
        offered.append(rows)
    expected_rows = offered[max(0, len(offered) - experiences):] if experiences else []
    assert len(queue) == sum(len(rows.targets) for rows in expected_rows) and queue.seen == sum(sizes)
    if expected_rows:
        assert torch.equal(queue.batch.tokens, Batch.join(expected_rows).tokens)  # type: ignore[union-attr]
        assert torch.equal(queue.payload["mark"][:, 0].long(), queue.payload["experience"])
    other = Recent(experiences)
    other.load_state(*copy.deepcopy(queue.state()))
    extra = table().rows(torch.arange(3))
    for either in (queue, other):
        either.offer(extra, {"mark": torch.zeros(3, 2)})
    assert len(queue) == len(other)
    if experiences:
        assert torch.equal(queue.payload["experience"], other.payload["experience"])


def test_a_queue_samples_classes_evenly() -> None:
    targets = torch.tensor([0] * 20 + [1] * 3 + [2] * 7)[:, None]
    queue = Recent(1)
    queue.offer(Batch(torch.zeros(30, 1, 1), targets))
    classes = queue.rows(queue.draw(9, torch.Generator().manual_seed(0))).targets[:, 0]
    assert classes.bincount().tolist() == [3, 3, 3]
    classes = queue.draw(99, torch.Generator().manual_seed(0))
    assert sorted(classes.tolist()) == list(range(30))
    with pytest.raises(SegueError, match="0 or more"):
        Recent(-1)
