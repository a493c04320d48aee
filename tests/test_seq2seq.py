"""Encoder-decoders keep the decoding contract, so whatever decodes a stack decodes them: native ones of any mixers, and
those of Hugging Face folders, against transformers itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from segue.decoding import generate
from segue.errors import SegueError
from segue.mixers.cross import CrossAttention, Source
from segue.mixers.state import Layout
from segue.models import Decodable, EncoderDecoder, EncoderDecoderConfig, StackConfig, expand_pattern
from segue.objectives import Batch, NextElement
from segue.serving.engine import Engine, News, Request
from segue.testing import check_model
from segue.training.learn import learn

V, WIDTH = 11, 8
OPTIONS: dict[str, dict[str, Any]] = {
    "attention": {"heads": 2}, "attention:both": {"heads": 2, "causal": False}, "mamba": {"states": 3},
    "gla": {"heads": 2, "gate_rank": 3}, "bidirectional": {"mixer": "gru"}, "hydra": {"heads": 2},
}


def model(decoder: str = "attention*2", encoder: str = "attention:both*2", shared: bool = True, restart: bool = True,
          cross: dict[str, Any] | None = None, **switches: Any) -> EncoderDecoder:
    torch.manual_seed(0)
    values = {"vocabulary": V, "width": WIDTH, "hidden": 12, "options": OPTIONS, **switches}
    ours = EncoderDecoder(EncoderDecoderConfig(
        StackConfig(mixers=expand_pattern(encoder), **values),
        StackConfig(mixers=expand_pattern(decoder), cross=cross or {"heads": 2}, **values), shared, restart))
    for parameter in ours.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return ours.eval()


MODELS: dict[str, dict[str, Any]] = {
    "attention*2": {},
    "mamba+attention": {"encoder": "hydra+attention:both", "shared": False, "cross": {"heads": 4, "kv_heads": 2}},
    "gru+gla": {"encoder": "bidirectional", "tied": False, "cross": {"heads": 2, "bias": True}},
    "gla*2": {"encoder": "gru", "restart": False, "channel": "none"},
    "attention": {"learned_positions": 80, "norm": "layer", "channel": "mlp", "bias": True, "embed_norm": True,
                  "options": {"attention": {"heads": 2, "positions": "none"},
                              "attention:both": {"heads": 2, "causal": False, "positions": "none"}}},
}


@pytest.mark.parametrize("name", MODELS)
def test_contract(name: str) -> None:
    ours = model(name, **MODELS[name])
    assert isinstance(ours, Decodable)
    found = check_model(ours, examples=4, prompt=5, longest=14)
    assert {"forward", "trees", "join", "any life", "gradients", "dtypes", "config"} <= set(found)


def test_encoders_that_cannot_reset_read_each_length_by_itself() -> None:
    options = {**OPTIONS, "reformer": {"heads": 2}}
    ours = model("gru", "reformer", options=options)
    assert not ours.encoder.resettable
    check_model(ours, examples=3, prompt=5, longest=12, only="ragged")


PROMPTS = [[3, 1, 4, 1, 5, V], [2, 7, V], [1, 8, 2, 8, 1, 8, 2, V, 4, 5]]


def test_padding_and_what_is_forked_change_nothing() -> None:
    ours = model().double()
    source, real = torch.tensor([[1, 2, 3, 0, 0, 0], [1, 2, 3, 4, 5, 6]]), torch.tensor([3, 6])
    other = source.clone()
    other[0, 3:] = 9  # behind the source
    torch.testing.assert_close(ours.encode(other, real)[0, :3], ours.encode(source, real)[0, :3], rtol=0, atol=0)
    alone = ours.encode(source[:1, :3], real[:1])
    torch.testing.assert_close(ours.encode(source, real)[0, :3], alone[0])
    cross = CrossAttention(WIDTH, heads=2).double()
    x, memory = torch.randn(2, 4, WIDTH).double(), torch.randn(2, 6, WIDTH).double()
    y = cross.run(x, Layout(source[:, :4], source=(memory, real)), None)
    memory[0, 3:] = 1e3
    torch.testing.assert_close(cross.run(x, Layout(source[:, :4], source=(memory, real)), None), y, rtol=0, atol=0)


def test_forks_share_the_source() -> None:
    k = torch.randn(2, 1, 5, 3)
    source = Source(k, k, torch.tensor([5, 2]))
    forked = source.select(torch.tensor([0, 0, 0]))
    assert forked.k.data_ptr() == k.data_ptr() and forked.k.shape[0] == 3 and forked.mask is None
    beams = source.select(torch.tensor([0, 0, 1, 1]))
    again = beams.select(torch.tensor([1, 0, 3, 3]))
    assert again.k.data_ptr() == beams.k.data_ptr()
    swapped = beams.select(torch.tensor([2, 0]))
    assert torch.equal(swapped.k, k[[1, 0]]) and swapped.lengths.tolist() == [2, 5]
    joined = beams.join([source])
    assert joined.select(torch.tensor([0, 5])).k.data_ptr() != joined.k.data_ptr()  # not one origin


def greedy(ours: Any, prompt: list[int], n: int) -> list[int]:
    """Token by token through the training form."""
    said: list[int] = []
    for _ in range(n):
        said.append(int(ours(torch.tensor([prompt + said])).logits[0, -1].argmax()))
    return said


@pytest.mark.parametrize("name", ["attention*2", "mamba+attention", "gru+gla"])
def test_every_decoder(name: str) -> None:
    ours = model(name, **MODELS[name]).double()
    plain = generate(ours, PROMPTS, 8, logprobs=True)
    assert [answer.tokens for answer in plain] == [greedy(ours, prompt, 8) for prompt in PROMPTS]
    for draft in ("lookup", "trie", "both"):  # they also propose begin, which the prompt holds: it is never taken
        for options in ({}, {"temperature": 1.3, "seed": 3}):
            alone = generate(ours, PROMPTS, 24, **options)
            drafted = generate(ours, PROMPTS, 24, draft=draft, adaptive=False, **options)
            assert [answer.tokens for answer in drafted] == [answer.tokens for answer in alone]
        assert sum(answer.accepted for answer in drafted) + sum(answer.drafted for answer in drafted) > 0
    for decoder, options in {"beam": {"num_beams": 3}, "diverse-beam": {"num_beams": 4, "num_beam_groups": 2},
                             "exact": {"budget": 60}, "tree": {"budget": 40}, "contrastive": {"top_k": 3}}.items():
        together = generate(ours, PROMPTS, 5, decoder, eos=0, **options)
        for prompt, answer in zip(PROMPTS, together):
            assert V not in answer.tokens and answer.tokens == generate(ours, [prompt], 5, decoder, eos=0,
                                                                        **options)[0].tokens
    wide = generate(ours, PROMPTS[:1], 2, "beam", num_beams=V)[0]  # so wide a beam sees every answer of two tokens
    best = generate(ours, PROMPTS[:1], 2, "exact", budget=10_000)[0]
    assert best.proven and best.tokens == wide.tokens


def test_requests_join_a_running_batch() -> None:
    ours = model("mamba+attention", **MODELS["mamba+attention"])
    expected = [answer.tokens for answer in generate(ours, PROMPTS, 12)]
    engine, heard = Engine(ours, piece=4), [list[News]() for _ in PROMPTS]
    try:
        engine.warm()
        with pytest.raises(SegueError, match="one begin"):
            engine.submit(Request([1, 2]), print)
        for prompt, news in zip(PROMPTS, heard):
            engine.submit(Request(prompt, 12), news.append)
        while not all(news and news[-1].finish for news in heard):
            assert not any(one.error for news in heard for one in news)
    finally:
        engine.close()
    assert [[token for one in news for token in one.tokens] for news in heard] == expected


def test_what_cannot_be_read_is_refused() -> None:
    ours = model()
    for prompt, what in (([1, 2], "one begin"), ([1, V, 2, V], "one begin"), ([V, 1], "empty source")):
        with pytest.raises(SegueError, match=what):
            ours.extend(torch.tensor([prompt]), ours.init_state(1))
        with pytest.raises(SegueError, match=what):
            generate(ours, [prompt], 2)
    assert ours.prompt([1, 2], [3]) == [1, 2, V, 3]
    state = ours.init_state(1)
    ours.extend(torch.tensor([[1, 2, V, 3]]), state)
    for counts in (1, 2):  # a piece of the source, and all of it but not begin
        with pytest.raises(SegueError, match="pieces"):
            state.commit(counts=torch.tensor([counts]))
    state.commit()
    with pytest.raises(SegueError, match="source and begin stay"):
        state.rewind(2)
    state.rewind(1)
    with pytest.raises(SegueError, match="read no source"):
        state.join([ours.init_state(1)])
    with pytest.raises(SegueError, match="chain"):
        ours.extend(torch.tensor([[1, 2, V, 3]]), ours.init_state(1), torch.tensor([[-1, 0, 1, 1]]))
    with pytest.raises(SegueError, match="causal"):
        model("attention:both")
    with pytest.raises(SegueError, match="per row"):
        ours(torch.tensor([[1, V, 2]]), Layout.chain((1, 3), starts=torch.tensor([[False, False, True]])))


def test_saved_and_loaded(tmp_path: Path) -> None:
    ours = model("gru+gla", **MODELS["gru+gla"])
    ours.save(tmp_path / "model")
    again = EncoderDecoder.load(tmp_path / "model")
    tokens = torch.tensor([PROMPTS[0]])
    assert again.config == ours.config and torch.equal(again(tokens).logits, ours(tokens).logits)
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(SegueError, match=r"config\.json"):
        EncoderDecoder.load(tmp_path / "model")


def test_it_learns_to_reverse() -> None:
    """The one objective and the one loop, unchanged."""
    def batch(step: int) -> Batch:
        draw = torch.Generator().manual_seed(step)
        sources = [torch.randint(1, V, (int(torch.randint(2, 5, (), generator=draw)),), generator=draw).tolist()
                   for _ in range(48)]
        return Batch.pairs([(source, [*source[::-1], 0]) for source in sources], V)

    torch.manual_seed(0)
    values: dict[str, Any] = {"vocabulary": V, "width": 32, "options": {**OPTIONS, "attention": {"heads": 4}}}
    ours = EncoderDecoder(EncoderDecoderConfig(
        StackConfig(mixers=["bidirectional"], **values), StackConfig(mixers=["gru"], **values)))
    first = batch(0)
    assert first.targets[0].tolist()[: len(first.tokens[0])].count(-1) >= 2
    both = NextElement()(ours, first).total, torch.nn.functional.cross_entropy(
        ours(first.tokens).logits.flatten(0, 1), first.targets.flatten(), ignore_index=-1, reduction="sum")
    torch.testing.assert_close(*both)
    run = learn(ours, batch, 150, rate=1e-2)
    assert run.curve[-1]["loss"] < 0.5 * both[0].item() / first.count
    test = batch(10_000)
    said = ours.eval()(test.tokens).logits.argmax(-1)
    asked = test.targets >= 0
    assert float((said == test.targets)[asked].float().mean()) > 0.9
