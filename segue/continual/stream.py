"""A stream of experiences: one strategy learns them in order, and after each the model is scored on all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from segue.analysis.probes import features_of
from segue.continual.buffer import labels_of
from segue.continual.gradients import row_nats
from segue.continual.metrics import ScoreMatrix
from segue.errors import SegueError
from segue.objectives import Batch, Objective
from segue.training.learn import learn
from segue.training.strategy import Strategy


@dataclass(frozen=True)
class Experience:
    """One experience of a stream: all its training and test rows, as two batches of rows of one length.

    classes: of its rows (empty if rows have none). check: validation rows for early stopping (see `learn_stream`;
    default: none).
    """

    name: str
    train: Batch
    test: Batch
    classes: tuple[int, ...] = ()
    check: Batch | None = None


def class_incremental(train: Batch, test: Batch, groups: Sequence[Sequence[int]],
                      share: Sequence[float] | None = None) -> list[Experience]:
    """One experience for each group of classes, rows in their order. A row's class is its last target that is one.

    share: for each group, the part of its training rows that is kept, the first of them (default: all), for streams in
    which one experience is much longer than another.
    """
    share = [1.0] * len(groups) if share is None else share
    if len(share) != len(groups) or not all(0 < fraction <= 1 for fraction in share):
        raise SegueError(f"shares are parts between 0 and 1, one for each of the {len(groups)} groups, not {share}")
    stream = []
    for group, fraction in zip(groups, share):
        classes = torch.tensor(list(group))
        of_train, of_test = (torch.isin(torch.tensor(labels_of(batch)), classes).nonzero()[:, 0]
                             for batch in (train, test))
        if not len(of_train) or not len(of_test):
            raise SegueError(f"there are no rows of the classes {list(group)} to learn from and to measure on")
        kept = of_train[: max(1, round(fraction * len(of_train)))]
        stream.append(Experience(f"classes {', '.join(map(str, group))}", train.rows(kept), test.rows(of_test),
                                 tuple(group)))
    return stream


def domain_incremental(domains: Mapping[str, np.ndarray], context: int, rows: int, held: float = 0.1,
                       check: float = 0.0, seed: int = 0) -> list[Experience]:
    """One experience for each domain, a sequence of ids (n,) by name. Its last part, the share `held` of it, is cut
    into test rows of `context` elements, the part before that, the share `check`, into validation rows; from the rest
    `rows` training rows are drawn at random, so that all domains take equally many steps.
    """
    def cut(ids: np.ndarray, begins: np.ndarray) -> Batch:
        row = torch.from_numpy(ids[begins[:, None] + np.arange(context + 1)].astype(np.int64))
        return Batch(row[:, :-1], row[:, 1:])

    stream, draw = [], np.random.default_rng(seed)
    for name, ids in domains.items():
        ends = [round(len(ids) * (1 - held - check)), round(len(ids) * (1 - held)), len(ids)]
        if min(ends[0], ends[2] - ends[1]) <= context or 0 < ends[1] - ends[0] <= context:
            raise SegueError(f"domain '{name}' of {len(ids)} elements has too few for rows of {context} in each of its "
                             "parts: give more of it, or a smaller context")
        train = cut(ids, draw.integers(ends[0] - context, size=rows))
        check_rows, test = (cut(ids, np.arange(a, b - context, context)) for a, b in zip(ends, ends[1:]))
        stream.append(Experience(name, train, test, check=check_rows if check else None))
    return stream


def cumulative(stream: Sequence[Experience], seed: int = 0) -> list[Experience]:
    """The joint-training upper bound of a stream: each experience with as many rows as before, sampled from all
    experiences so far. No strategy has access to that data."""
    joint, draw = [], np.random.default_rng(seed)
    for index, each in enumerate(stream):
        rows = Batch.join([earlier.train for earlier in stream[: index + 1]])
        chosen = draw.choice(len(rows.targets), len(each.train.targets), replace=False)
        joint.append(replace(each, train=rows.rows(torch.from_numpy(chosen))))
    return joint


Measure = Callable[[nn.Module, Experience, Sequence[int]], float]


@torch.no_grad()
def encode_features(model: nn.Module, experience: Experience) -> Experience:
    """Replace labelled rows by a frozen backbone's features of them, the input of a `Features` model, and their
    classes.
    """
    def encode(batch: Batch) -> Batch:
        features = features_of(model, batch.tokens, batch.targets.argmax(1))
        return Batch(features[:, None], torch.tensor(labels_of(batch))[:, None])

    return replace(experience, train=encode(experience.train), test=encode(experience.test),
                   check=None if experience.check is None else encode(experience.check))


def accuracy_over(model: nn.Module, batch: Batch, classes: Sequence[int] = ()) -> float:
    """Accuracy on the targets, with predictions limited to `classes` (empty: all)."""
    model.eval()
    batch = batch.to(next(model.parameters()).device)
    target_mask = batch.targets >= 0
    logits = model(batch.tokens, batch.layout).logits[target_mask]
    if classes:
        candidates = torch.tensor(sorted(classes), device=logits.device)
        predictions = candidates[logits[:, candidates].argmax(-1)]
    else:
        predictions = logits.argmax(-1)
    return float((predictions == batch.targets[target_mask]).float().mean())


def class_accuracy(model: nn.Module, experience: Experience, seen: Sequence[int]) -> float:
    """Class-incremental accuracy: predictions among all classes seen so far (before any: among all)."""
    return accuracy_over(model, experience.test, seen)


def task_accuracy(model: nn.Module, experience: Experience, seen: Sequence[int]) -> float:
    """Task-incremental accuracy: the experience is known, and predictions are among its own classes."""
    return accuracy_over(model, experience.test, experience.classes)


def element_nats(model: nn.Module, batch: Batch) -> float:
    """Mean nats per target."""
    return float(row_nats(model, batch, 64).sum()) / batch.count


def bits_per_element(model: nn.Module, experience: Experience, seen: Sequence[int]) -> float:
    """For sequences: the mean of -log2 p over the experience's test rows; lower is better."""
    return element_nats(model, experience.test) / math.log(2)


def ordered_batches(rows: Batch, size: int, seed: int = 0) -> Callable[[int], Batch]:
    """Batches of `size` rows as a pure function of the step: the first epoch in order, later ones shuffled. The last
    batch of an epoch may be smaller."""
    n = len(rows.targets)
    steps = -(-n // size)

    def batch(step: int) -> Batch:
        epoch, index = divmod(step, steps)
        order = np.random.default_rng([seed, epoch]).permutation(n) if epoch else np.arange(n)
        return rows.rows(torch.from_numpy(order[index * size : (index + 1) * size]))

    return batch


def learn_stream(model: nn.Module, stream: Sequence[Experience], strategy: Strategy,
                 objective: Objective | None = None, *, rows: int = 10, epochs: int = 1, rate: float = 3e-3,
                 seed: int = 0, measure: Measure = class_accuracy, named: str = "accuracy",
                 higher_is_better: bool = True, learned: Sequence[Experience] = (), **choices: Any) -> ScoreMatrix:
    """Train on the experiences one after the other, with one `Run` each and one strategy for all of them.

    With `patience` (a choice), an experience ends early when so many of the eight evaluations on its `check` rows were
    no better, with the weights that were best on them: on its own rows alone, as in arXiv 2305.04106, which does not
    measure forgetting.

    rows: of a step, in the order of the experience. epochs: passes over each; 1 is an online stream. rate, choices: as
    of `segue.training.learn`. measure: (model, experience, classes seen so far) -> the score on its test rows, named
    `named`. The matrix has a row before all learning and one after each experience. learned: experiences that the model
    learned before, by another call or strategy: measured too, the matrix's first columns.
    """
    classes = list(dict.fromkeys(c for each in learned for c in each.classes))
    everything = [*learned, *stream]
    scores = [[measure(model, each, classes) for each in everything]]
    for index, experience in enumerate(stream, len(learned)):
        steps = epochs * -(-len(experience.train.targets) // rows)
        batches = ordered_batches(experience.train, rows, seed)
        check = experience.check if choices.get("patience") else None
        held_out = None if check is None else partial(element_nats, batch=check)
        learn(model, batches, steps, rate=rate, seed=seed + 1000 * index, objective=objective, strategy=strategy,
              held_out=held_out, **choices)
        classes += [c for c in experience.classes if c not in classes]
        scores.append([measure(model, each, classes) for each in everything])
    return ScoreMatrix(np.array(scores), [each.name for each in everything],
                       ["before", *(each.name for each in stream)], named, higher_is_better)
