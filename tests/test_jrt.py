"""Prefix linear attention against its equations, and with parts its paper never joined it to."""

from __future__ import annotations

import math
from queue import Queue

import pytest
import torch
from torch import Tensor
from weights import shake

from segue.analysis.texts import log_likelihoods
from segue.decoding import generate
from segue.errors import SegueError
from segue.mixers import Layout, PrefixLinearAttention
from segue.mixers.linear import FEATURES
from segue.models import Stack, StackConfig
from segue.objectives import Batch, PrefixAndNext
from segue.objectives.masked import LastMask
from segue.serving.engine import AnswerUpdate, Engine, Request
from segue.tasks import TASKS, read_twice
from segue.testing import check_model


def mixer(prefix: int = 0, **options: int) -> PrefixLinearAttention:
    torch.manual_seed(0)
    jrt = PrefixLinearAttention(8, heads=2, key_width=3, prefix=prefix, **options).double()
    shake(jrt, 0.05)
    return jrt


def by_loops(mixer: PrefixLinearAttention, x: Tensor, prompt: int) -> Tensor:
    """The equations of the paper, one row (T, D) whose first `prompt` nodes are its prompt, node by node."""
    taps, d, heads = mixer.convolution.weight.shape[1], mixer.features.width, mixer.heads
    line = torch.cat([x.new_zeros(taps - 1, x.shape[1]), x])
    u = torch.stack([(line[t : t + taps] * mixer.convolution.weight.T).sum(0) for t in range(len(x))])
    u = u + mixer.convolution.bias
    q, k, encoded = mixer.qk(u).view(len(x), 3, heads, d).unbind(1)
    v, values = mixer.v(u).view(len(x), 2, heads, -1).unbind(1)

    def weigh(a: Tensor, b: Tensor) -> Tensor:
        s = a @ b / math.sqrt(d)
        return 1 + s + s**2 / 2

    rows = []
    for i in range(len(x)):
        mixed = []
        for h in range(heads):
            pairs = [(weigh(q[i, h], k[j, h]), v[j, h]) for j in range(i + 1)]
            pairs += [(weigh(q[i, h], encoded[j, h]), values[j, h]) for j in range(prompt)]
            mixed.append(sum(w * value for w, value in pairs) / sum(w for w, _ in pairs))
        rows.append(mixer.out(torch.cat(mixed)))
    return torch.stack(rows)


@pytest.mark.parametrize("d", [1, 2, 5])
def test_features_are_the_taylor_series_of_exp(d: int) -> None:
    a, b = torch.randn(2, 7, d, dtype=torch.float64)
    s = (a * b).sum(-1) / math.sqrt(d)
    taylor = FEATURES["taylor"](d)
    assert taylor(a).shape[-1] == taylor.size == 1 + d + d * (d + 1) // 2
    assert ((taylor(a) * taylor(b)).sum(-1) - (1 + s + s**2 / 2)).abs().max() < 1e-12


@torch.no_grad()
@pytest.mark.parametrize("prompt", [0, 4, 9])
def test_jrt_equals_explicit_loops(prompt: int) -> None:
    """No prompt: causal linear attention. All of it: bidirectional besides."""
    x = torch.randn(1, 9, 8, dtype=torch.float64)
    assert (mixer(prompt)(x)[0] - by_loops(mixer(), x[0], prompt)).abs().max() < 1e-10
    marked = Layout.chain((1, 9), prompt=torch.arange(9)[None] < prompt)
    assert (mixer()(x, marked) - mixer(prompt)(x)).abs().max() < 1e-12


@torch.no_grad()
def test_prompts_of_different_lengths_then_steps() -> None:
    """Each row's prompt has its own length, is given at once with padding, and is followed step by step."""
    model, x, lengths = mixer(), torch.randn(3, 12, 8, dtype=torch.float64), torch.tensor([2, 7, 5])
    state = model.init_state(3)
    state.prompt = lengths
    outputs = model.extend(x[:, :7], state)
    state.commit(counts=lengths)
    for _ in range(3):
        after = torch.stack([x[row, at : at + 1] for row, at in enumerate(state.positions.tolist())])
        y = model.extend(after, state)
        state.commit()
        for row, at in enumerate(state.positions.tolist()):
            expected = by_loops(model, x[row, :at], int(lengths[row]))
            assert (y[row, 0] - expected[-1]).abs().max() < 1e-10
            assert (outputs[row, : lengths[row]] - expected[: lengths[row]]).abs().max() < 1e-10
    assert sum(tensor.numel() for tensor in state.tensors().values()) == 3 * (2 * 10 * 5 + 2 * 8 + 1)  # constant


@torch.no_grad()
def test_packed_documents_have_their_own_prompts() -> None:
    model, x = mixer(), torch.randn(1, 11, 8, dtype=torch.float64)
    starts = torch.zeros(1, 11, dtype=torch.bool)
    starts[0, [0, 4]] = True
    prompt = torch.tensor([[1, 1, 0, 0, 1, 1, 1, 1, 0, 0, 0]], dtype=torch.bool)
    y = model(x, Layout.chain((1, 11), starts=starts, prompt=prompt))[0]
    expected = torch.cat([by_loops(model, x[0, :4], 2), by_loops(model, x[0, 4:], 4)])
    assert (y - expected).abs().max() < 1e-10


@pytest.mark.parametrize("pattern", ["jrt+gru", "mamba+jrt+attention"])
def test_jrt_in_mixed_stacks_decodes_exactly(pattern: str) -> None:
    """Between recurrences and attention, with drafts as trees; the text of a draft is that of plain decoding."""
    torch.manual_seed(0)
    options = {"jrt": {"heads": 2, "key_width": 2, "prefix": 3}, "mamba": {"states": 2}, "attention": {"heads": 2}}
    names = pattern.split("+")
    model = Stack(StackConfig(6, 8, names, {name: options[name] for name in names if name in options}))
    check_model(model, examples=3, longest=12, prompt=3, shrink=False, only="any life")
    prompts = [[1, 2, 3, 1, 2, 3, 1, 2], [4, 5, 4, 5, 4, 5]]
    undrafted = generate(model, prompts, 12)
    assert [c.tokens for c in generate(model, prompts, 12, draft="lookup")] == [c.tokens for c in undrafted]


def decodable() -> Stack:
    torch.manual_seed(0)
    model = Stack(StackConfig(9, 16, ["jrt", "gru", "jrt"], {"jrt": {"heads": 2, "key_width": 3}})).double().eval()
    shake(model, 0.3)
    return model


PROMPTS = [[1, 5, 2, 7, 7, 3, 8], [4, 6], [2, 2, 8, 1, 3], [4, 6]]


@torch.no_grad()
def scores(model: Stack, prompt: list[int], answer: list[int]) -> Tensor:
    """(n, V) log-probabilities of each token of an answer, in one pass with the prompt marked."""
    tokens = torch.tensor([prompt + answer])
    layout = Layout.chain((1, tokens.shape[1]), prompt=torch.arange(tokens.shape[1])[None] < len(prompt))
    return model(tokens, layout).logits[0, len(prompt) - 1 : -1].log_softmax(-1)


def by_passes(model: Stack, prompt: list[int], n: int) -> list[int]:
    """Greedy, each token from a pass over everything."""
    tokens: list[int] = []
    for _ in range(n):
        tokens.append(int(scores(model, prompt, [*tokens, 0])[-1].argmax()))
    return tokens


def test_decoding_passes_the_end_of_the_prompt() -> None:
    """Prompts of different lengths, two of them the same, by the plain loop, with drafts, by a beam and an exact
    search; rows that leave and join."""
    model = decodable()
    expected = [by_passes(model, prompt, 6) for prompt in PROMPTS]
    assert [answer.tokens for answer in generate(model, PROMPTS, 6)] == expected
    assert [answer.tokens for answer in generate(model, PROMPTS, [6, 2, 4, 6])] == \
        [expected[0], expected[1][:2], expected[2][:4], expected[3]]
    assert [answer.tokens for answer in generate(model, PROMPTS, 6, draft="lookup")] == expected
    for options in ({"decoder": "beam", "num_beams": 3}, {"decoder": "exact", "budget": 200}):
        for prompt, answer in zip(PROMPTS, generate(model, PROMPTS, 4, logprobs=True, **options)):
            truth = scores(model, prompt, answer.tokens)[range(4), answer.tokens]
            torch.testing.assert_close(torch.tensor(answer.logprobs).to(truth), truth)
            assert math.isclose(log_likelihoods(model, prompt, [answer.tokens])[0], float(truth.sum()), rel_tol=1e-9)


def test_requests_that_join_a_running_batch_keep_their_prompts() -> None:
    model = decodable()
    engine = Engine(model, piece=3)
    try:
        queues = []
        for prompt in PROMPTS:
            queues.append(Queue[AnswerUpdate]())
            engine.submit(Request(prompt, 40), queues[-1].put)
        for prompt, news in zip(PROMPTS, queues):
            tokens: list[int] = []
            while True:
                new = news.get(timeout=60)
                assert new.error is None
                tokens += new.tokens
                if new.finish:
                    break
            assert tokens == by_passes(model, prompt, 40)
    finally:
        engine.close()


def test_restoring_a_snapshot_restores_its_prompts() -> None:
    state = decodable().init_state(2)
    state.prompt = torch.tensor([3, 5])
    snapshot = state.snapshot()
    other = state.select(torch.tensor([1, 1, 0]))
    assert other.join([decodable().init_state(1)]).prompt.tolist() == [5, 5, 3, 0]  # type: ignore[union-attr]
    other.restore(snapshot)
    assert other.prompt is not None and other.prompt.tolist() == [3, 5]


def test_the_intersection_task_has_one_answer() -> None:
    batch = TASKS["intersection"].test(8, 39)
    for tokens, answer in zip(batch.tokens.tolist(), batch.targets[:, -1].tolist()):
        middle = tokens.index(65)
        first_set, second_set = set(tokens[1:middle]), set(tokens[middle + 1 : -1])
        assert first_set & second_set == {answer} and sorted(map(len, (first_set, second_set))) == [4, 32]
    twice = read_twice(batch)
    assert torch.equal(twice.tokens[:, :39], twice.tokens[:, 39:]) and twice.count == batch.count == 8


@pytest.mark.parametrize("mixers", [["jrt", "gru"], ["mamba", "palm"]])
def test_the_prompt_loss_and_the_continuation_loss(mixers: list[str]) -> None:
    """Against each place by itself: in the prompt its masked last element, after it the next element."""
    torch.manual_seed(0)
    options = {"jrt": {"heads": 2, "key_width": 2}, "palm": {"heads": 2}, "mamba": {"states": 2}}
    model = Stack(StackConfig(7, 8, mixers, {name: options[name] for name in mixers if name in options})).double()
    ids, ends = torch.randint(6, (2, 9)), (4, 6)
    prompt = torch.arange(8) < torch.tensor(ends)[:, None]
    batch = Batch(ids[:, :-1], ids[:, 1:], prompt=prompt)
    loss = PrefixAndNext(6, 0.25, LastMask())(model, batch)
    ahead, inside = [], []
    for row, end in enumerate(ends):
        tokens = ids[row : row + 1, :-1].clone()
        tokens[0, end - 1] = 6
        logs = model(tokens, Layout.chain((1, 8), prompt=prompt[row : row + 1])).logits[0].log_softmax(-1)
        ahead += [-logs[t, ids[row, t + 1]] for t in range(end - 1, 8)]
        inside.append(-logs[end - 1, ids[row, end - 1]])
    expected = (torch.stack(ahead).mean() + 0.25 * torch.stack(inside).mean()) / 1.25
    torch.testing.assert_close(loss.total / batch.count, expected)  # as the training step divides
    torch.testing.assert_close(loss.terms["nats"] / batch.count, torch.stack(ahead).mean().detach())
    changed = Batch(batch.tokens, batch.targets.masked_fill(torch.arange(8) < 3, 0), prompt=prompt)
    torch.testing.assert_close(PrefixAndNext(6, 0.25, LastMask())(model, changed).total, loss.total)
    with pytest.raises(SegueError, match="what the prompts are"):
        PrefixAndNext(6)(model, Batch(batch.tokens, batch.targets))
