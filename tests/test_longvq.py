"""LongVQ against softmax attention written out, and its codebook against k-means by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from weights import shake

from segue.errors import SegueError
from segue.mixers import Layout, LongVQ
from segue.mixers.average import ExponentialAverage
from segue.mixers.longvq import Codebook
from segue.models import Stack, StackConfig
from segue.models.stack import both_ways
from segue.tasks import TASKS
from segue.testing import check_mixer, check_model
from segue.training.learn import learn


def mixer(codes: int = 5, window: int = 4) -> LongVQ:
    torch.manual_seed(0)
    longvq = LongVQ(8, keys=3, expand=1, codes=codes, window=window, states=2).double().eval()
    shake(longvq, 0.2)
    return longvq


def by_loops(mixer: LongVQ, x: Tensor) -> Tensor:
    """One row x (T, D): the moving average step by step, then every weight of every query."""
    a = torch.sigmoid(mixer.average.rate)
    h, memory = torch.zeros_like(a), []
    for t in range(len(x)):
        h = a * h + (1 - a) * x[t, :, None]
        memory.append(F.silu((h * mixer.average.weight).sum(-1) + mixer.skip * x[t]))
    memory = torch.stack(memory)
    q, k, v, _ = mixer._project(x, memory)
    codes, w = mixer.attention.codebook.codes, mixer.attention.window
    rows = []
    for i in range(len(x)):
        scores = []
        for j in range(i + 1):
            nearest = codes[(codes - k[j]).square().sum(-1).argmin()]
            in_window = i - j < w
            bias = mixer.attention.bias[i - j] if in_window else 0.0
            scores.append(q[i] @ nearest / math.sqrt(3) + bias)
        rows.append(torch.stack(scores).softmax(0) @ v[: i + 1])
    reset, update, candidate = mixer.gates(memory).split([v.shape[1], x.shape[1], x.shape[1]], -1)
    new = F.silu(candidate + mixer.join(F.silu(reset) * torch.stack(rows)))
    update = torch.sigmoid(update)
    return update * new + (1 - update) * x - x  # less what the block adds


@torch.no_grad()
@pytest.mark.parametrize("codes, window", [(5, 4), (1, 3), (5, 1), (3, 50)])
def test_longvq_equals_loops(codes: int, window: int) -> None:
    model, x = mixer(codes, window), torch.randn(2, 23, 8, dtype=torch.float64)
    for row in range(2):
        assert (model(x)[row] - by_loops(model, x[row])).abs().max() < 1e-10


@pytest.mark.parametrize("window, packed", [(4, False), (4, True), (1, True), (50, False)])
def test_straight_through_gradients_equal_written_out_weights(window: int, packed: bool) -> None:
    """In training, against every weight written out with keys K + constant(C - K)."""
    attention = mixer(5, window).attention.train()
    q, k, v = (torch.randn(2, 23, width, dtype=torch.float64, requires_grad=True) for width in (3, 3, 8))
    code, codes = attention.codebook.nearest(k), attention.codebook.codes
    starts = torch.zeros(2, 23, dtype=torch.bool)
    starts[0, [7, 9]] = starts[1, 16] = packed
    y, _ = attention.scan((q, k, v, code), attention.initial(2, q), starts)
    separate, document = torch.arange(23)[:, None] - torch.arange(23), starts.long().cumsum(1)
    quantised = k + (codes[code] - k).detach()
    window_bias = torch.where(separate < window, attention.bias[separate.clamp(0, window - 1)], 0.0)
    scores = q @ quantised.mT / math.sqrt(3) + window_bias
    visible = (separate >= 0) & (document[:, :, None] == document[:, None])
    expected_output = scores.masked_fill(~visible, -math.inf).softmax(-1) @ v
    pull, expected = torch.randn_like(y), (q, k, v, attention.bias)
    assert (y - expected_output).abs().max() < 1e-12
    for actual, reference in zip(*(torch.autograd.grad((x * pull).sum(), expected) for x in (y, expected_output))):
        assert (actual - reference).abs().max() < 1e-12


@torch.no_grad()
def test_a_codebook_of_all_keys_is_exact() -> None:
    """A code for every key: softmax attention to the keys themselves, whatever the window."""
    x = torch.randn(1, 16, 8, dtype=torch.float64)
    index = torch.arange(16)
    separate = index[:, None] - index
    for window in (2, 16):
        model = mixer(16, window)
        q, k, v, _ = model._project(x, memory := model._memory_of(x))
        model.attention.codebook.sums.copy_(k[0])
        scores = (q @ k.mT)[0] / math.sqrt(3) + model.attention.distance_biases(separate)
        read = scores.masked_fill(separate < 0, -math.inf).softmax(-1) @ v
        assert (model(x) - model._gate(read, memory, x)).abs().max() < 1e-10


@pytest.mark.parametrize("codes, window", [(1, 3), (2, 60)])
def test_contract_of_variants(codes: int, window: int) -> None:
    assert check_mixer(lambda width: LongVQ(width, keys=4, expand=1, codes=codes, window=window, states=2), examples=2)


@pytest.mark.parametrize("window, packed, training", [(4, False, True), (4, True, True), (1, True, False),
                                                      (50, False, True)])
def test_two_way_longvq_equals_written_out_weights(window: int, packed: bool, training: bool) -> None:
    """Against every weight written out; in training with keys K + constant(C - K), gradients too."""
    torch.manual_seed(0)
    model = LongVQ(8, keys=3, expand=1, codes=5, window=window, causal=False).double().train(training)
    attention, book = model.attention, model.attention.codebook
    for bias in (attention.bias, attention.bias_ahead):
        bias.data.normal_()
    q, k, v = (torch.randn(2, 23, width, dtype=torch.float64, requires_grad=True) for width in (3, 3, 8))
    starts = torch.zeros(2, 23, dtype=torch.bool)
    starts[0, [7, 9]] = starts[1, 16] = packed
    y = attention.attend_both_ways((q, k, v, book.nearest(k)), Layout.chain((2, 23), starts=starts if packed else None))
    separate, document = torch.arange(23)[:, None] - torch.arange(23), starts.long().cumsum(1)
    quantised = book.codes[book.nearest(k)]
    quantised = k + (quantised - k).detach() if training else quantised
    window_bias = separate.abs().clamp(max=window - 1)
    window_bias = torch.where(separate < 0, attention.bias_ahead[window_bias],
                              attention.bias[window_bias]).where(separate.abs() < window, 0.0)
    scores = (q @ quantised.mT / math.sqrt(3)
              + window_bias).masked_fill(document[:, :, None] != document[:, None], -math.inf)
    expected_output = scores.softmax(-1) @ v
    assert (y - expected_output).abs().max() < 1e-12
    if training:
        pull, expected = torch.randn_like(y), (q, k, v, attention.bias, attention.bias_ahead)
        actual, reference = (torch.autograd.grad((x * pull).sum(), expected) for x in (y, expected_output))
        assert all((a - b).abs().max() < 1e-12 for a, b in zip(actual, reference))


def test_two_way_longvq_is_symmetric_under_reversal() -> None:
    assert check_mixer(lambda width: LongVQ(width, keys=4, expand=1, codes=3, window=2, causal=False), examples=2)
    model = LongVQ(8, window=3, causal=False).double().eval().requires_grad_(False)
    x = torch.randn(1, 12, 8, dtype=torch.float64)
    assert (model.output(model.matrix(x) @ model.values(x), x) - model(x)).abs().max() < 1e-12
    mirror = LongVQ(8, window=3, causal=False).double().eval()
    mirror.load_state_dict(model.state_dict())
    for bias_back, bias_ahead in ((mirror.attention.bias, mirror.attention.bias_ahead),
                                  (mirror.average.rate, mirror.average_ahead.rate),
                                  (mirror.average.weight, mirror.average_ahead.weight)):
        bias_back.data, bias_ahead.data = bias_ahead.data, bias_back.data
    assert (mirror(x.flip(1)).flip(1) - model(x)).abs().max() < 1e-12
    assert both_ways(StackConfig(9, 8, ["longvq"])).options == {"longvq": {"causal": False}}


def test_commitment_draws_keys_to_their_codes() -> None:
    torch.manual_seed(0)
    model, x = LongVQ(8, codes=3, commitment=0.5).train(), torch.randn(2, 9, 8)
    assert model.penalty() is None
    q, k, v, code = model._project(x, model._memory_of(x))
    between = k - model.attention.codebook.codes[code]
    model(x)
    penalty = model.penalty()
    torch.testing.assert_close(penalty, 0.5 * between.square().mean())
    penalty.backward()
    assert model.penalty() is None
    assert model.shared.weight.grad.abs().sum() > 0 and model.v.weight.grad is None


@torch.no_grad()
def test_the_codebook_equals_moving_k_means() -> None:
    torch.manual_seed(0)
    book, keys = Codebook(3, 2, decay=0.9).double(), torch.randn(20, 2, dtype=torch.float64)
    first = [keys[0]]  # then, twice, the key furthest from those chosen
    for _ in range(2):
        first.append(max(keys, key=lambda key: min((key - other).square().sum() for other in first)))
    first = torch.stack(first)
    book.learn(keys)
    nearest = [int((first - key).square().sum(-1).argmin()) for key in keys]
    for code in range(3):
        own_keys = keys[[i for i in range(20) if nearest[i] == code]]
        total, count = 0.9 * first[code] + 0.1 * own_keys.sum(0), 0.9 + 0.1 * len(own_keys)
        assert (book.codes[code] - total / count).abs().max() < 1e-12
    assert book.nearest(book.codes).tolist() == [0, 1, 2]


@torch.no_grad()
def test_unused_codes_move_to_the_keys() -> None:
    torch.manual_seed(0)
    book, corners = Codebook(4, 2), torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    book.learn(0.01 * torch.randn(40, 2) + 30)
    for _ in range(300):
        book.learn(corners.repeat(10, 1) + 0.01 * torch.randn(40, 2))
    assert sorted(book.nearest(corners).tolist()) == [0, 1, 2, 3]


def test_checkpointing_learns_the_same() -> None:
    """Neither codes nor gradients depend on whether activations are recomputed."""
    tokens, outcomes = torch.arange(80).view(2, 40) % 11, []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        stack = Stack(StackConfig(11, 8, ["longvq", "gru"], {"longvq": {"window": 4, "codes": 5}})).double()
        stack.checkpointing = checkpointing
        for _ in range(2):
            stack.zero_grad()
            stack(tokens).logits.square().sum().backward()
        outcomes.append([*stack.buffers(), *(p.grad for p in stack.parameters() if p.grad is not None)])
    for a, b in zip(*outcomes, strict=True):
        assert torch.equal(a, b)


@torch.no_grad()
def test_only_training_moves_the_codebook() -> None:
    model, x = mixer(), torch.randn(1, 9, 8, dtype=torch.float64)
    before = model.attention.codebook.codes.clone()
    model(x)
    model.train()(x[:, :0])
    assert torch.equal(model.attention.codebook.codes, before)
    model.train()(x)
    assert not torch.equal(model.attention.codebook.codes, before)


@torch.no_grad()
@pytest.mark.parametrize("states", [1, 2])
def test_stepwise_averages_equal_the_convolution(states: int) -> None:
    torch.manual_seed(0)
    average, x = ExponentialAverage(3, states).double(), torch.randn(2, 30, 3, dtype=torch.float64)
    full = average((x,), Layout.chain((2, 30)))
    h = average.initial(2, x)
    for t in range(30):
        y, h = average.scan((x[:, t : t + 1],), h)
        assert (y[:, 0] - full[:, t]).abs().max() < 1e-12
    assert (average.scan((x,), average.initial(2, x))[1][0] - h[0]).abs().max() < 1e-12


def test_an_empty_codebook_is_refused() -> None:
    with pytest.raises(SegueError, match="at least one code"):
        LongVQ(8, codes=0)


@pytest.mark.parametrize("names", [["longvq", "lstm"], ["mamba", "longvq", "attention"]])
def test_longvq_in_mixed_stacks_decodes_exactly(names: list[str]) -> None:
    """After training, which moves the codes, every decoding form still agrees with the whole."""
    torch.manual_seed(0)
    options = {"longvq": {"codes": 4, "window": 3}, "mamba": {"states": 2}, "attention": {"heads": 2}}
    task = TASKS["copy"]
    config = StackConfig(task.vocabulary, 8, names, {name: options[name] for name in names if name in options})
    model = Stack(config)
    learn(model, task.batches(4, (9, 9)), 3)
    check_model(model, examples=3, longest=12, shrink=False, only="any life")
