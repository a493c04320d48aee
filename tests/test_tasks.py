"""Synthetic tasks: their answers are right, their draws repeat, and a model learns from them by the one loop."""

from __future__ import annotations

import pytest
import torch

from segue.errors import SegueError
from segue.mixers import Layout
from segue.models import Stack, StackConfig
from segue.models.automata import (
    DFA,
    alternating_group,
    compose,
    counter,
    generators,
    is_even,
    random_dfa,
    symmetric_group,
    transpositions,
    word_problem,
)
from segue.objectives import Batch
from segue.tasks import TASKS, Reachability, Scratchpad, Task
from segue.tasks.automata import dyck, tracking
from segue.tasks.listops import SYMBOLS, value
from segue.training.learn import accuracy, learn, minibatches, random_windows


@pytest.mark.parametrize("name", TASKS)
def test_task_batches_depend_on_the_seed_and_stay_in_the_vocabulary(name: str) -> None:
    task: Task = TASKS[name]
    for length in (task.shortest, 32):
        batch = task.test(5, length)
        assert batch.tokens.shape[0] == 5 and batch.tokens.shape == batch.targets.shape
        assert int(batch.tokens.min()) >= 0 and int(batch.tokens.max()) < task.vocabulary
        assert int(batch.targets.max()) < task.vocabulary and bool((batch.targets >= 0).any(1).all())
        repeated = task.test(5, length)
        assert torch.equal(batch.tokens, repeated.tokens) and torch.equal(batch.targets, repeated.targets)
    batches = task.batches(4, (task.shortest, 20), seed=1)
    assert torch.equal(batches(3).tokens, batches(3).tokens)
    assert batches(3).tokens.shape != batches(4).tokens.shape or not torch.equal(batches(3).tokens, batches(4).tokens)


def test_rows_of_a_table_and_windows_of_a_text() -> None:
    rows = torch.arange(12).view(6, 2)
    draw = minibatches(Batch(rows, rows + 100), 50, seed=3)
    assert torch.equal(draw(4).tokens, draw(4).tokens) and not torch.equal(draw(4).tokens, draw(5).tokens)
    assert torch.equal(draw(4).targets, draw(4).tokens + 100)
    assert set(draw(4).tokens[:, 0].tolist()) == set(rows[:, 0].tolist())
    result = random_windows(torch.arange(40), 30, 5, torch.Generator().manual_seed(0))
    assert result.shape == (30, 6) and bool((result.diff() == 1).all()) and len(result[:, 0].unique()) > 5


def test_a_delayed_cue_is_the_last_target() -> None:
    batch = TASKS["delayed-cue"].test(20, 9)
    assert torch.equal(batch.targets[:, -1], batch.tokens[:, 0]) and bool((batch.targets[:, :-1] < 0).all())
    assert int(batch.tokens[:, 1:].min()) > int(batch.tokens[:, 0].max())


def test_copy_targets_are_the_source() -> None:
    batch = TASKS["copy"].test(4, 12)
    is_target = batch.targets >= 0
    assert is_target.sum(1).tolist() == [5] * 4
    assert torch.equal(batch.targets[is_target].view(4, 5), batch.tokens[:, :5])


def test_an_automaton_follows_its_table() -> None:
    dfa = random_dfa(5, 3, seed=1)
    word = torch.randint(3, (4, 20))
    for row, states in zip(word, dfa.run(word)):
        state = 0
        for symbol, expected in zip(row.tolist(), states.tolist()):
            state = int(dfa.delta[state, symbol])
            assert state == expected
    assert dfa.run(word[:, :0]).shape == (4, 0)
    with pytest.raises(SegueError, match="names states that it does not have"):
        DFA(torch.tensor([[0, 2], [1, 1]]))


def test_counter_targets_are_sums() -> None:
    word = torch.randint(5, (3, 30))
    assert torch.equal(counter(5, 5).run(word), word.cumsum(1) % 5)


def test_words_of_groups_are_products() -> None:
    three, five = symmetric_group(3), alternating_group(5)
    assert len(five) == 60 and all(map(is_even, five)) and len(transpositions(5)) == 11
    alphabet = generators(five, 6)
    dfa = word_problem(five, alphabet)
    word = torch.randint(6, (1, 40))
    product = five[0]
    for symbol, state in zip(word[0].tolist(), dfa.run(word)[0].tolist()):
        product = compose(product, alphabet[symbol])
        assert five[state] == product
    # Associative, and not commutative.
    table = word_problem(three).delta
    for a in range(6):
        for b in range(6):
            assert torch.equal(table[table[a, b]], table[a][table[b]])
    assert not torch.equal(table, table.T)


def test_tracking_targets_are_states_of_every_prefix() -> None:
    batch = tracking("sum", counter(4, 4)).test(3, 12)
    assert bool((batch.tokens[:, 0] == 4).all()) and bool((batch.targets[:, 0] == -1).all())
    assert torch.equal(batch.targets[:, 1:], batch.tokens[:, 1:].cumsum(1) % 4)


def test_dyck_words_nest() -> None:
    batch = dyck(kinds=3, depth=4).test(20, 60)
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist()):
        stack: list[int] = []
        for token, target in zip(tokens[1:], targets[1:]):
            if token < 3:
                stack.append(token)
            else:
                assert stack.pop() == token - 3
            assert len(stack) <= 4 and target == (stack[-1] if stack else 3)


@pytest.mark.parametrize(("policy", "steps"), [("none", [11]), ("dummy", [11]), ("log", [2, 4, 8, 11]),
                                               ("linear", list(range(1, 12)))])
def test_scratchpads_write_states(policy: str, steps: list[int]) -> None:
    pad, dfa = Scratchpad(policy), counter(5, 5)
    assert pad.steps(11) == steps
    length = pad.length(11)
    batch = pad.task("sum", dfa).test(4, length + (policy == "dummy"))
    sums = batch.tokens[:, -length:][:, 1:12].cumsum(1) % 5
    written = batch.targets[batch.targets >= 0].view(4, -1)
    assert torch.equal(written - 5, sums[:, torch.tensor(steps) - 1])
    assert torch.equal(batch.tokens[:, batch.tokens.shape[1] - len(steps) + 1 :], written[:, :-1])
    with pytest.raises(SegueError, match="unknown"):
        Scratchpad("square")


def test_search_targets_are_reachable_nodes() -> None:
    task, size = Reachability("search", 6).task("paths"), 6
    batch = task.test(40, 18)
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist()):
        edges = [divmod(token, size) for token in tokens[2:11]]
        assert len(set(edges)) == 9 and all(u != v for u, v in edges)
        target, reached = tokens[11] - 36, [tokens[12] - 42]
        for reachable in targets[12:17]:
            onward = sorted({v for u, v in edges if u in reached and v not in reached})
            assert reachable == (42 + onward[0] if onward else 48)
            reached += onward[:1]
        assert targets[17] == 49 + (target in reached) and targets[:12] == [-1] * 12 and tokens[13:] == targets[12:17]
    answers = Reachability("none", 6).task("paths").test(200, 12).targets
    assert bool((answers[:, :-1] == -1).all()) and 80 < int((answers[:, -1] == 50).sum()) < 120
    for vertices, length in ((4, 9), (12, 21)):
        reachable = Reachability("none", vertices).task("paths").test(4000, length).targets[:, -1]
        assert int((reachable == reachable.max()).sum()) == pytest.approx(2000, abs=130)  # four standard deviations
    with pytest.raises(SegueError, match="choose from none, dummy, search"):
        Reachability("depth")


def test_selective_copy_targets_skip_blanks() -> None:
    batch = TASKS["selective-copy"].test(4, 21)
    for tokens, targets in zip(batch.tokens, batch.targets):
        body = tokens[:16]
        assert torch.equal(body[body < 8], targets[targets >= 0]) and tokens[16] == 8


def test_recall_targets_are_the_values_of_keys() -> None:
    batch = TASKS["mqar"].test(4, 30)
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist()):
        value_by_key = dict(zip(tokens[:14:2], tokens[1:14:2]))
        assert len(value_by_key) == 7 and targets[:14] == [-1] * 14
        target_by_key = {token: target for token, target in zip(tokens, targets) if target >= 0}
        assert target_by_key == value_by_key


def test_induction_targets_are_the_last_successors() -> None:
    batch = TASKS["induction"].test(4, 40)
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist()):
        followed: dict[int, int] = {}
        for t, (token, target) in enumerate(zip(tokens, targets)):
            if t:
                followed[tokens[t - 1]] = token
            assert target == followed.get(token, -1)
        assert targets[-1] >= 0


def test_the_needle_is_in_the_haystack() -> None:
    batch = TASKS["needle"].test(20, 9)
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist()):
        assert targets == [-1] * 8 + [tokens[tokens.index(16) + 1]] and targets[-1] < 8 and tokens[-1] == 17


def test_list_values_equal_those_by_hand() -> None:
    for text, expected in (("[MAX 2 9 [MIN 4 7 ] 0 ]", 9), ("[MED 1 5 8 2 ]", 3), ("[SM 9 8 [MED 4 ] ]", 1), ("7", 7)):
        assert value(text.split()) == expected  # the first is the paper's example
    for malformed in ("[MAX 2 9", "[MAX ]", "2 ]", "[SUM 1 2 ]", "1 2", ""):
        with pytest.raises(SegueError, match=r"place|whole"):
            value(malformed.split())
    batch = TASKS["listops"].test(50, 40)
    lengths = (batch.tokens < len(SYMBOLS)).sum(1)
    assert int(lengths.max()) > 30
    for tokens, length, target in zip(batch.tokens.tolist(), lengths.tolist(), batch.targets[:, -1].tolist()):
        assert value([SYMBOLS[i] for i in tokens[-length:]]) == target


def test_a_model_learns_a_task() -> None:
    task = TASKS["copy"]
    torch.manual_seed(0)
    model = Stack(StackConfig(task.vocabulary, 32, ["attention"] * 2, {"attention": {"heads": 2}}, norm="layer"))
    before = accuracy(model, task.test(64, 9))
    learn(model, task.batches(32, (9, 9)), 200)
    assert before < 0.4 and accuracy(model, task.test(64, 9)) > 0.9


def test_pooling_is_the_running_mean_of_each_document() -> None:
    torch.manual_seed(0)
    options = {"attention": {"heads": 2}}
    unpooled = Stack(StackConfig(7, 8, ["attention"], options, tied=False)).double()
    pooled = Stack(StackConfig(7, 8, ["attention"], options, tied=False, pool="mean")).double()
    pooled.load_state_dict(unpooled.state_dict())
    tokens, starts = torch.randint(7, (2, 9)), torch.zeros(2, 9, dtype=torch.bool)
    starts[0, 4] = starts[1, 2] = starts[1, 7] = True
    layout = Layout.chain((2, 9), starts=starts)
    hidden, means = unpooled(tokens, layout).hidden, pooled(tokens, layout).hidden
    for row, heads in enumerate(([0, 4, 9], [0, 2, 7, 9])):
        for begin, end in zip(heads[:-1], heads[1:]):
            for at in range(begin, end):
                torch.testing.assert_close(means[row, at], hidden[row, begin : at + 1].mean(0), rtol=0, atol=1e-12)
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
