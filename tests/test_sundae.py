"""Step-unrolled denoising against naive loops, and what a model taught by it writes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.decoding.denoise import denoise
from segue.errors import SegueError
from segue.models import Stack, StackConfig
from segue.objectives import Batch, MaskedElements, Sundae
from segue.objectives.masked import RandomMask, mask_some, masked_batches, targets_in_place
from segue.training.learn import learn


def stack(vocabulary: int = 7, width: int = 16) -> Stack:
    torch.manual_seed(0)
    return Stack(StackConfig(vocabulary, width, ["attention"] * 2, {"attention": {"heads": 2, "causal": False}}))


def pairs(rows: int, seed: int) -> Batch:
    """A source of four elements, followed by the successor of each."""
    source = torch.randint(7, (rows, 4), generator=torch.Generator().manual_seed(seed))
    tokens = torch.cat([source, (source + 1) % 7], 1)
    return Batch(tokens, torch.where(torch.arange(8) < 4, -1, tokens))


def test_one_step_without_noise_equals_an_autoencoder() -> None:
    model, batch = stack().double().eval(), pairs(5, 0)
    expected = F.cross_entropy(model(batch.tokens).logits[:, 4:].detach().flatten(0, 1), batch.tokens[:, 4:].flatten(),
                               reduction="sum")
    loss = Sundae(steps=1, rate=0.0)(model, batch)
    assert loss.count == 20 and math.isclose(float(loss.total.detach()), float(expected), rel_tol=1e-6)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 3), st.sampled_from([None, 0.0, 0.4, 1.0]), st.integers(0, 99))
def test_the_loss_equals_a_loop(steps: int, rate: float | None, seed: int) -> None:
    """The same draws, row by row and step by step."""
    model, batch = stack().eval(), pairs(3, seed)
    torch.manual_seed(seed)
    result = Sundae(steps, rate)(model, batch)
    torch.manual_seed(seed)
    rates = [float(x) for x in torch.rand(3, 1)] if rate is None else [rate] * 3
    noise, uniform = torch.randint(7, (12,)), torch.rand(3, 8)
    corrupted = batch.tokens.clone()
    for row in range(3):
        for place in range(4, 8):
            if uniform[row, place] < rates[row]:
                corrupted[row, place] = noise[row * 4 + place - 4]
    total = 0.0
    for _ in range(steps):
        chances = torch.stack([model(corrupted[row : row + 1]).logits[0].softmax(-1) for row in range(3)]).detach()
        total -= sum(math.log(chances[row, place, batch.tokens[row, place]])
                     for row in range(3) for place in range(4, 8)) / steps
        corrupted[:, 4:] = torch.multinomial(chances[:, 4:].reshape(12, 7), 1).view(3, 4)
    assert math.isclose(float(result.total.detach()), total, rel_tol=1e-4)


def test_samples_have_no_gradient_and_sources_stay() -> None:
    model, batch = stack(), pairs(4, 1)
    inputs: list[torch.Tensor] = []
    forward = model.forward
    model.forward = lambda tokens, layout=None: (inputs.append(tokens), forward(tokens, layout))[1]  # type: ignore
    Sundae(3, rate=1.0)(model, batch).total.backward()
    assert len(inputs) == 3 and all(torch.equal(tokens[:, :4], batch.tokens[:, :4]) for tokens in inputs)
    assert not torch.equal(inputs[0], inputs[1]) and all(p.grad is not None for p in model.parameters())


def test_a_trained_model_generates_from_noise() -> None:
    """All of a text at once; of several lengths the one that the model is surest of."""
    model = stack(width=32)
    learn(model, lambda step: pairs(32, 1000 + step), 150, rate=0.02, objective=Sundae(), muon=True)
    sources = [row[:4] for row in pairs(20, 0).tokens.tolist()]
    answers = denoise(model, sources, [[4]] * 20, steps=6)
    assert sum(answer.tokens == [(x + 1) % 7 for x in source] for answer, source in zip(answers, sources)) >= 18
    tried = denoise(model, sources, [[3, 4, 5]] * 20, steps=6)
    assert all(answer.score >= other.score - 0.1 for answer, other in zip(tried, answers))  # one of them has length 4
    drawn = denoise(model, sources[:3], [[4]] * 3, steps=6, temperature=0.5, seed=3)
    assert [answer.tokens for answer in drawn] == \
        [answer.tokens for answer in denoise(model, sources[:3], [[4]] * 3, steps=6, temperature=0.5, seed=3)]


def test_bad_requests_are_refused() -> None:
    for steps, rate in ((0, None), (1, 1.5)):
        with pytest.raises(SegueError, match="rate"):
            Sundae(steps, rate)
    for lengths in ([], [[]], [[0]]):
        with pytest.raises(SegueError, match="lengths"):
            denoise(stack(), [[1, 2]], lengths)


# From a masked language model.


def counting(rows: int, seed: int) -> Batch:
    """Texts that count on from anywhere, as for the next element."""
    begin = torch.randint(7, (rows, 1), generator=torch.Generator().manual_seed(seed))
    text = (begin + torch.arange(9)) % 7
    return Batch(text[:, :-1], text[:, 1:])


def continued(rows: int, seed: int) -> Batch:
    """Pairs: three elements of such a text, and the five that follow."""
    text = counting(rows, seed).tokens
    return Batch(text, torch.where(torch.arange(8) < 3, -1, text))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 999), st.sampled_from([0.0, 0.15, 0.6, 1.0]))
def test_masked_elements_are_the_targets(seed: int, share: float) -> None:
    in_place = targets_in_place(counting(4, seed))
    batch = mask_some(in_place, 7, RandomMask(share), torch.Generator().manual_seed(seed))
    hidden = batch.targets >= 0
    assert bool(hidden.any(1).all()) and not bool(hidden[:, 0].any())  # the first element is given
    assert torch.equal(batch.targets[hidden], in_place.targets[hidden])
    assert torch.equal(batch.tokens[~hidden], in_place.tokens[~hidden])
    if share in (0.0, 1.0):
        assert hidden.sum(1).tolist() == [8 if share else 1] * 4


def test_masked_elements_follow_the_bert_shares() -> None:
    unmasked = Batch(torch.full((200, 100), 3), torch.full((200, 100), 3))
    batch = mask_some(unmasked, 7, RandomMask(0.15), torch.Generator().manual_seed(1))
    hidden = batch.targets >= 0
    assert abs(float(hidden.float().mean()) - 0.15) < 0.01
    frequencies = batch.tokens[hidden].bincount(minlength=8) / hidden.sum()
    assert abs(float(frequencies[7]) - 0.8) < 0.03 and abs(float(frequencies[3]) - 0.1 - 0.1 / 7) < 0.02
    assert float(frequencies[[0, 1, 2, 4, 5, 6]].min()) > 0.005


@pytest.mark.parametrize("mixer, options", [("attention", {"heads": 2, "causal": False}), ("hydra", {"states": 8}),
                                            pytest.param("bidirectional", {}, marks=pytest.mark.slow)])
def test_a_masked_language_model_continues_as_sundae(mixer: str, options: dict[str, object]) -> None:
    """It has the pairs' language before it has seen one, and writes without its mask."""
    def build() -> Stack:
        torch.manual_seed(0)
        return Stack(StackConfig(8, 32, [mixer] * 2, {mixer: options}))

    masked, fresh = build(), build()
    learn(masked, masked_batches(lambda step: counting(32, step), mask=7, policy=RandomMask(0.4)), 60, rate=0.02,
          objective=MaskedElements(), muon=True)
    nats = {}
    for name, model in (("masked", masked), ("fresh", fresh)):
        run = learn(model, lambda step: continued(32, 5000 + step), 24, rate=0.01, objective=Sundae(elements=7),
                    muon=True)
        nats[name] = run.curve[-1]["loss"]
    assert nats["masked"] < 0.8 * nats["fresh"], nats
    sources = [[(first + i) % 7 for i in range(3)] for first in range(7)]
    answers = denoise(masked, sources, [[5]] * 7, elements=7)
    assert sum(answer.tokens == [(source[0] + i) % 7 for i in range(3, 8)]
               for answer, source in zip(answers, sources)) >= 6
    forward = masked.forward

    def fond_of_masks(*arguments: Any) -> Any:
        output = forward(*arguments)
        return replace(output, logits=output.logits.index_fill(-1, torch.tensor([7]), 99.0))

    masked.forward = fond_of_masks  # type: ignore[method-assign]
    assert all(7 not in answer.tokens for answer in denoise(masked, sources, [[5]] * 7, elements=7))
