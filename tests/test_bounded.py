"""Stacks whose attention looks back no farther than in training: as with a window, by the same weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from weights import shake

import segue
from segue.decoding import generate
from segue.models import Stack, StackConfig
from segue.models.base import needs_whole_prompt
from segue.models.bounded import bound_attention
from segue.models.compiled import accelerate
from segue.models.depth import DepthSchedule, Scheduled
from segue.models.stack import has_constant_state

STACKS = {"attention": {}, "grouped": {"kv_heads": 2}, "no positions": {"positions": "none"}}


def stack_of(*mixers: str, **options: object) -> Stack:
    torch.manual_seed(0)
    return Stack(StackConfig(29, 32, list(mixers), {"attention": {"heads": 4, **options}} if "attention" in mixers
                             else {})).double().eval()


@pytest.mark.parametrize("options", STACKS.values(), ids=STACKS)
@pytest.mark.parametrize("mixers", [("attention", "attention"), ("gru", "attention")], ids="+".join)
def test_bounded_attention_equals_a_window(mixers: tuple[str, ...], options: dict[str, object]) -> None:
    stack = stack_of(*mixers, **options)
    copied, windowed = bound_attention(stack, 7), stack_of(*mixers, **options, window=7)
    tokens = torch.randint(29, (2, 40))
    before, state = stack(tokens).logits, copied.init_state(2)
    result = []
    for part in tokens.split([5, 1, 20, 14], 1):
        result.append(copied.extend(part, state).logits)
        state.commit()
    assert torch.equal(copied(tokens).logits, windowed(tokens).logits)
    torch.testing.assert_close(torch.cat(result, 1), windowed(tokens).logits, rtol=0, atol=1e-12)
    assert torch.equal(stack(tokens).logits, before)  # left alone
    torch.testing.assert_close(copied(tokens[:, :7]).logits, before[:, :7], rtol=0, atol=1e-12)
    assert not torch.allclose(copied(tokens).logits[:, 30:], before[:, 30:])
    assert all(a is b for a, b in zip(stack.parameters(), copied.parameters(), strict=True))
    assert has_constant_state(copied) and not has_constant_state(stack)


def test_mixers_without_unbounded_attention_stay_unchanged() -> None:
    for stack in (stack_of("attention", window=5), stack_of("attention", positions="alibi"), stack_of("gru"),
                  stack_of("attention", relative=9)):
        assert bound_attention(stack, 3) is stack


@torch.no_grad()
@pytest.mark.parametrize("mixer", ["jrt", "palm", "attention"])
def test_a_stack_that_learned_without_prompts_reads_them_as_its_rows(mixer: str) -> None:
    options = {"heads": 2, **({"prompt": True} if mixer == "attention" else {})}
    torch.manual_seed(0)
    stack = Stack(StackConfig(29, 16, [mixer, "gru"], {mixer: options})).double().eval()
    shake(stack, 0.3)
    prompts = [torch.randint(29, (n,)).tolist() for n in (9, 4)]
    reader = bound_attention(stack, 30)
    assert needs_whole_prompt(stack) and not needs_whole_prompt(reader) and not needs_whole_prompt(accelerate(reader))
    all_layers = Scheduled(reader, DepthSchedule((2,)))
    for network in (reader, all_layers, accelerate(bound_attention(stack.float(), 30))):
        for prompt, answer in zip(prompts, generate(network, prompts, 6)):
            logits = stack(torch.tensor([prompt + answer.tokens])).logits[0, len(prompt) - 1 : -1]
            assert logits.argmax(-1).tolist() == answer.tokens
    fixed = Stack(StackConfig(29, 16, ["jrt", "attention"], {"jrt": {"heads": 2, "prefix": 3}}))
    assert needs_whole_prompt(bound_attention(fixed, 30))


def test_a_fitted_model_continues_within_its_context(tmp_path: Path) -> None:
    text = "".join(f"{i} men went to mow, went to mow a meadow. " for i in range(300))
    model = segue.fit([text[at : at + 400] for at in range(0, len(text), 400)], steps=5, width=32, depth=2, context=32,
                      mix=False, quiet=True)
    prime = text[:150]
    answer = model.continue_(prime, n=60, heal=False)
    prompt = [model.codec.bos, *model.codec.encode(prime).tolist()]
    window = bound_attention(model.model, 32)
    for network in (window, accelerate(window)):
        assert generate(network, [prompt], 60, eos=model.codec.eos)[0].tokens == answer.tokens
