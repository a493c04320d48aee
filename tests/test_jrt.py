"""Prefix linear attention against its equations, and with parts its paper never joined it to."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from segue.decoding import generate
from segue.mixers import Layout, PrefixLinearAttention
from segue.mixers.linear import FEATURES
from segue.models import Stack, StackConfig
from segue.tasks import TASKS, read_twice
from segue.testing import check_model


def mixer(prefix: int = 0, **options: int) -> PrefixLinearAttention:
    torch.manual_seed(0)
    made = PrefixLinearAttention(8, heads=2, key_width=3, prefix=prefix, **options).double()
    for parameter in made.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return made


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
def test_the_features_are_the_beginning_of_the_exponential(d: int) -> None:
    a, b = torch.randn(2, 7, d, dtype=torch.float64)
    s = (a * b).sum(-1) / math.sqrt(d)
    taylor = FEATURES["taylor"](d)
    assert taylor(a).shape[-1] == taylor.size == 1 + d + d * (d + 1) // 2
    assert ((taylor(a) * taylor(b)).sum(-1) - (1 + s + s**2 / 2)).abs().max() < 1e-12


@torch.no_grad()
@pytest.mark.parametrize("prompt", [0, 4, 9])
def test_against_explicit_loops(prompt: int) -> None:
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
def test_with_mixers_the_paper_never_had(pattern: str) -> None:
    """Between recurrences and attention, with drafts as trees; the text of a draft is that of plain decoding."""
    torch.manual_seed(0)
    options = {"jrt": {"heads": 2, "key_width": 2, "prefix": 3}, "mamba": {"states": 2}, "attention": {"heads": 2}}
    names = pattern.split("+")
    model = Stack(StackConfig(6, 8, names, {name: options[name] for name in names if name in options}))
    check_model(model, examples=3, longest=12, prompt=3, shrink=False, only="any life")
    prompts = [[1, 2, 3, 1, 2, 3, 1, 2], [4, 5, 4, 5, 4, 5]]
    plain = generate(model, prompts, 12)
    assert [c.tokens for c in generate(model, prompts, 12, draft="lookup")] == [c.tokens for c in plain]


def test_intersection_has_one_answer_and_is_read_twice() -> None:
    batch = TASKS["intersection"].test(8, 39)
    for tokens, answer in zip(batch.tokens.tolist(), batch.targets[:, -1].tolist()):
        middle = tokens.index(65)
        one, other = set(tokens[1:middle]), set(tokens[middle + 1 : -1])
        assert one & other == {answer} and sorted(map(len, (one, other))) == [4, 32]
    twice = read_twice(batch)
    assert torch.equal(twice.tokens[:, :39], twice.tokens[:, 39:]) and twice.count == batch.count == 8
