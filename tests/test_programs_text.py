"""Text models: one contract for our own stacks, scripts and endpoints."""

from __future__ import annotations

import pytest
import torch

from segue.errors import SegueError
from segue.kinds.codecs import ByteCodec, ItemCodec
from segue.models import Stack, StackConfig
from segue.programs import Counted, Endpoint, Local, Scripted, TextModel

WORDS = ItemCodec(["a", "b", "c", "."])


def local(codec: ByteCodec | ItemCodec) -> TextModel:
    torch.manual_seed(0)
    return Local(Stack(StackConfig(codec.size, 16, ["gru"])).eval().requires_grad_(False), codec)


@pytest.mark.parametrize("codec", [ByteCodec(), WORDS], ids=["bytes", "words"])
def test_a_prompt_gets_the_same_reply_alone_and_among_others(codec: ByteCodec | ItemCodec) -> None:
    model, prompts = local(codec), ["a b", "c", "a b c a b c"]
    together = model.write(prompts, most=6)
    assert [reply.text for reply in together] == [model.write([prompt], most=6)[0].text for prompt in prompts]
    assert all(reply.logprob is not None and reply.logprob < 0 for reply in together)


def test_draws_are_fixed_by_the_seed_and_differ_within_a_call() -> None:
    model = local(WORDS)
    drawn = [reply.text for reply in model.write(["a"] * 8, most=8, temperature=1.0, seed=3)]
    assert drawn == [reply.text for reply in model.write(["a"] * 8, most=8, temperature=1.0, seed=3)]
    assert len(set(drawn)) > 1


def test_a_reply_ends_before_its_stop_string() -> None:
    full = local(WORDS).write(["a"], most=12, temperature=1.0, seed=5)[0].text.split()
    cut = local(WORDS).write(["a"], most=12, temperature=1.0, seed=5, stop=[full[-1]])[0]
    assert cut.finish == "stop" and cut.text.split() == full[: full.index(full[-1])]


def test_scripts_and_budgets() -> None:
    script = Scripted(["one. two", "three"])
    counted = Counted(script, limit=2)
    assert [reply.text for reply in counted.write(["p", "q"], stop=["."])] == ["one", "three"]
    assert counted.calls == 2 and script.asked == ["p", "q"]
    with pytest.raises(SegueError, match="budget of 2"):
        counted.write(["r"])
    with pytest.raises(SegueError, match="no reply left for call 3"):
        script.write(["r"])


def test_an_endpoint_that_is_not_there_is_told() -> None:
    pytest.importorskip("openai")
    with pytest.raises(SegueError, match="did not answer as 'x': Connection error"):
        Endpoint("x", "http://127.0.0.1:9/v1").write(["p"])
