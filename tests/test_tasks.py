"""Synthetic tasks: their answers are right, their draws repeat, and a model learns from them by the one loop."""

from __future__ import annotations

import pytest
import torch

from segue.errors import SegueError
from segue.mixers import Layout
from segue.models import Stack, StackConfig
from segue.tasks import TASKS, Task
from segue.training.learn import accuracy, learn


@pytest.mark.parametrize("name", TASKS)
def test_draws_are_a_function_of_the_seed_within_the_vocabulary(name: str) -> None:
    task: Task = TASKS[name]
    for length in (task.shortest, 32):
        batch = task.test(5, length)
        assert batch.tokens.shape[0] == 5 and batch.tokens.shape == batch.targets.shape
        assert int(batch.tokens.min()) >= 0 and int(batch.tokens.max()) < task.vocabulary
        assert int(batch.targets.max()) < task.vocabulary and bool((batch.targets >= 0).any(1).all())
        again = task.test(5, length)
        assert torch.equal(batch.tokens, again.tokens) and torch.equal(batch.targets, again.targets)
    batches = task.batches(4, (task.shortest, 20), seed=1)
    assert torch.equal(batches(3).tokens, batches(3).tokens)
    assert batches(3).tokens.shape != batches(4).tokens.shape or not torch.equal(batches(3).tokens, batches(4).tokens)


def test_copy_asks_for_what_was_read() -> None:
    batch = TASKS["copy"].test(4, 12)
    asked = batch.targets >= 0
    assert asked.sum(1).tolist() == [5] * 4
    assert torch.equal(batch.targets[asked].view(4, 5), batch.tokens[:, :5])


def test_learning_a_task() -> None:
    task = TASKS["copy"]
    torch.manual_seed(0)
    model = Stack(StackConfig(task.vocabulary, 32, ["attention"] * 2, {"attention": {"heads": 2}}, norm="layer"))
    before = accuracy(model, task.test(64, 9))
    learn(model, task.batches(32, (9, 9)), 200)
    assert before < 0.4 and accuracy(model, task.test(64, 9)) > 0.9


def test_pooling_is_the_mean_of_each_document_so_far() -> None:
    torch.manual_seed(0)
    options = {"attention": {"heads": 2}}
    plain = Stack(StackConfig(7, 8, ["attention"], options, tied=False)).double()
    pooled = Stack(StackConfig(7, 8, ["attention"], options, tied=False, pool="mean")).double()
    pooled.load_state_dict(plain.state_dict())
    tokens, starts = torch.randint(7, (2, 9)), torch.zeros(2, 9, dtype=torch.bool)
    starts[0, 4] = starts[1, 2] = starts[1, 7] = True
    layout = Layout.chain((2, 9), starts=starts)
    hidden, means = plain(tokens, layout).hidden, pooled(tokens, layout).hidden
    for row, heads in enumerate(([0, 4, 9], [0, 2, 7, 9])):
        for begin, end in zip(heads[:-1], heads[1:]):
            for at in range(begin, end):
                torch.testing.assert_close(means[row, at], hidden[row, begin : at + 1].mean(0), rtol=0, atol=1e-6)
    with pytest.raises(SegueError, match="cannot continue"):
        pooled.init_state(1)


def test_real_vectors_as_elements() -> None:
    model = Stack(StackConfig(3, 8, ["lstm"], tied=False, inputs=5))
    assert model(torch.randn(2, 6, 5)).logits.shape == (2, 6, 3)
    with pytest.raises(SegueError, match="untied"):
        Stack(StackConfig(3, 8, ["lstm"], inputs=5))


def test_a_grid_is_refused_by_mixers_of_one_axis() -> None:
    model = Stack(StackConfig(7, 8, ["attention"], {"attention": {"heads": 2}}))
    tokens = torch.randint(7, (1, 6))
    with pytest.raises(SegueError, match="1 sequence axes, not 2"):
        model(tokens, Layout.chain((1, 6), grid=(2, 3)))
    with pytest.raises(SegueError, match="a grid of 2 x 2 has 4 places, but there are 6"):
        Layout.chain((1, 6), grid=(2, 2))
