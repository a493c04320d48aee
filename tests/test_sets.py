"""Prompts with parts that have no order: no decoder can tell how they were ordered, on any attention."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from weights import amplify

from segue.analysis.metrics import order_sensitivity
from segue.decoding import SetPrompt, generate, stream
from segue.decoding.continuation import continue_objects
from segue.decoding.prompt import layout_with_sets, set_placements
from segue.decoding.search import foresee
from segue.errors import SegueError
from segue.kinds.codecs import ByteCodec
from segue.mixers import MIXERS, Attention
from segue.mixers.layout import Layout
from segue.mixers.saturated import SaturatedAttention
from segue.models import Stack, StackConfig
from segue.models.compiled import compile_model
from segue.objectives import Batch, NextElement
from segue.papers import set_based_prompting
from segue.testing import check_claim, check_mixer

V = 13
A, PARTS, D = [1, 2, 3, 4], [[5, 6], [7, 8, 9, 10], [11]], [12, 3, 1]
ORDERS = list(itertools.permutations(range(3)))
STRUCTURES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "learned": ({"positions": "none"}, {"learned_positions": 64}),
    "rotary": ({}, {}),
    "alibi": ({"positions": "alibi"}, {}),
    "sinusoidal": ({"positions": "sinusoidal"}, {}),
    "learned in the mixer": ({"positions": "learned", "length": 64}, {}),
    "grouped heads": ({"kv_heads": 2, "qk_norm": True}, {}),
    "relative": ({"positions": "none", "relative": 6}, {"learned_positions": 64}),
    "window": ({"window": 4}, {}),
    "blocks and first ones": ({"block": 3, "look_back": 1, "global_tokens": 2}, {}),
    "spans": ({"span": 6, "ramp": 3}, {}),
}


def stack(structure: str = "rotary", dtype: torch.dtype = torch.float64, layers: int = 4) -> Stack:
    torch.manual_seed(0)
    options, config = STRUCTURES[structure]
    model = Stack(StackConfig(V, 64, ["attention"] * layers, {"attention": options}, **config)).to(dtype).eval()
    amplify(model, 2.5)
    return model.requires_grad_(False)


def prompt(order: tuple[int, ...] = (0, 1, 2), canonical: bool = False) -> SetPrompt:
    return SetPrompt([A, [PARTS[part] for part in order], D], canonical)


def logits(model: Any, set_prompt: SetPrompt, layout: Layout | None = None) -> Tensor:
    """(V,) what follows a prompt."""
    return model(torch.tensor([list(set_prompt)]), layout or layout_with_sets([set_prompt])).logits[0, -1]


def test_set_positions_follow_the_paper() -> None:
    set_prompt = prompt((2, 0, 1))
    assert list(set_prompt) == [*A, 11, 5, 6, 7, 8, 9, 10, *D] and set_prompt[-1] == 1 and set_prompt[:2] == [1, 2]
    layout = layout_with_sets([set_prompt, [1, 2]])
    assert layout is not None
    assert layout.positions[0].tolist() == [0, 1, 2, 3, 4, 4, 5, 4, 5, 6, 7, 8, 9, 10]
    owner = [0] * 4 + [1, 2, 2, 3, 3, 3, 3] + [0] * 3
    for query, key in itertools.product(range(14), repeat=2):
        separate = owner[query] and owner[key] and owner[query] != owner[key]
        assert bool(layout.follows[0, query, key]) == (key <= query and not separate)
    assert torch.equal(layout.follows[1], torch.ones(14, 14, dtype=torch.bool).tril())
    several = SetPrompt([[], [[1], [2, 3]], [4], [[5], []], [6], [[7], [8]], [], [[9], [1]], [2]], False)
    assert [place[1:] for place in several.placements] == [
        (0, 1, 0), (0, 1, 1), (1, 1, 1), (2, 0, 0), (3, 0, 0), (4, 0, 0), (5, 2, 0), (5, 2, 1), (6, 3, 0), (6, 3, 1),
        (7, 0, 0)]
    assert list(prompt((2, 0, 1), True)) == list(prompt((1, 2, 0), True)) != list(prompt((1, 2, 0)))


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-11)])
def test_logits_do_not_depend_on_the_order_of_parts(structure: str, dtype: torch.dtype, tolerance: float) -> None:
    model = stack(structure, dtype)
    logits_by_order = torch.stack([logits(model, prompt(order)) for order in ORDERS])
    assert (logits_by_order - logits_by_order[0]).abs().max() < tolerance * logits_by_order.abs().max().clamp(min=1)


@pytest.mark.parametrize("structure", ["learned", "rotary", "alibi"])
def test_mask_or_positions_alone_leave_the_order_visible(structure: str) -> None:
    model = stack(structure)
    chain = Layout.chain((1, len(prompt())))
    for make_layout in (lambda layout: Layout(chain.positions, sets=layout.sets),
                        lambda layout: Layout(layout.positions)):
        logits_by_order = torch.stack([logits(model, prompt(order), make_layout(layout_with_sets([prompt(order)])))
                                       for order in ORDERS])
        assert (logits_by_order - logits_by_order[0]).abs().max() > 0.1


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_set_of_one_part_equals_the_plain_prompt_bit_for_bit(structure: str) -> None:
    model, plain_prompt = stack(structure, torch.float32), [*A, *PARTS[1], *D]
    set_prompt = SetPrompt([A, [PARTS[1]], D])
    assert set_prompt.is_ordered and list(set_prompt) == plain_prompt
    of_set, of_plain = generate(model, [set_prompt, plain_prompt], 20, logprobs=True)
    assert of_set.tokens == of_plain.tokens and of_set.logprobs == of_plain.logprobs
    # and through the mask too, but for rounding
    masked = Layout(torch.arange(len(plain_prompt))[None], sets=set_placements([set_prompt])[..., 1:].clone().fill_(1))
    assert torch.allclose(logits(model, set_prompt, masked), logits(model, set_prompt), atol=1e-3)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_part_reads_only_itself_and_the_beginning(structure: str) -> None:
    model, set_prompt = stack(structure), prompt((1, 2, 0))
    hidden = model(torch.tensor([list(set_prompt)]), layout_with_sets([set_prompt])).hidden[0]
    start = len(A)
    for part in (1, 2, 0):
        single = model(torch.tensor([[*A, *PARTS[part]]])).hidden[0, len(A) :]
        assert (hidden[start : start + len(PARTS[part])] - single).abs().max() < 1e-10 * single.abs().max()
        start += len(PARTS[part])


def greedy_reference(model: Any, set_prompt: SetPrompt, n: int) -> list[int]:
    """Greedy, all read again for every token."""
    pieces, tokens = list(set_prompt.pieces), []
    for _ in range(n):
        full = SetPrompt([*pieces[:-1], [*pieces[-1], *tokens]], set_prompt.canonical)
        tokens.append(int(logits(model, full).argmax()))
    return tokens


@pytest.mark.parametrize("structure", STRUCTURES)
def test_cached_generation_equals_the_full_forward(structure: str) -> None:
    model = stack(structure)
    several = SetPrompt([A, PARTS, [4], [[9, 2], [3]], D])
    plain_prompt = [*A, 7]
    answers = generate(model, [prompt(), plain_prompt, several, [5]], 20)
    assert answers[0].tokens == greedy_reference(model, prompt(), 20)
    assert answers[1].tokens == generate(model, [plain_prompt], 20)[0].tokens
    assert answers[2].tokens == greedy_reference(model, several, 20)
    for order in ORDERS[1:]:
        assert generate(model, [prompt(order)], 20)[0].tokens == answers[0].tokens


def test_a_window_holds_more_nodes_than_positions() -> None:
    """A cache that keeps `window` nodes would have dropped parts that are still near."""
    model = stack("window", layers=2)
    parts = [[token, 2, 7] for token in range(V)] * 2
    set_prompt = SetPrompt([list(range(V)) * 6, parts, [1]])
    answer = generate(model, [set_prompt, [3] * 90], 20)
    assert answer[0].tokens == greedy_reference(model, set_prompt, 20)
    assert answer[1].tokens == generate(model, [[3] * 90], 20)[0].tokens
    state = model.init_state(1)
    model.extend(torch.tensor([list(set_prompt)]), state, layout=layout_with_sets([set_prompt]))
    state.commit()
    for token in range(260):
        model.extend(torch.tensor([[token % V]]), state)
        state.commit()
    assert state.layers[0]["cache"].longest < 2 * (4 + len(set_prompt)) + 64  # and yet stays bounded


WAYS: dict[str, dict[str, Any]] = {
    "greedy": {}, "sample": {"decoder": "sample", "temperature": 0.8, "repetition_penalty": 1.1},
    "trie": {"draft": "trie"}, "lookup": {"draft": "lookup", "adaptive": False}, "both, sampled": {
        "decoder": "sample", "draft": "both", "adaptive": False},
    "beam": {"decoder": "beam", "num_beams": 3}, "diverse": {"decoder": "diverse-beam", "num_beams": 4,
                                                             "num_beam_groups": 2},
    "exact": {"decoder": "exact", "budget": 40}, "tree": {"decoder": "tree", "budget": 30},
    "contrastive": {"decoder": "contrastive", "top_k": 3},
}


@pytest.mark.parametrize("decoder", WAYS)
def test_every_decoder_ignores_the_order_of_parts(decoder: str) -> None:
    """The same answers in every order, next to plain prompts, whose answers do not change."""
    model, options, plain_prompts = stack(layers=2), WAYS[decoder], [[1, 2, 3], [4] * 9]
    n = 4 if decoder == "exact" else 15
    expected = generate(model, plain_prompts, n, seed=3, **options)
    first: list[int] | None = None
    for order in ORDERS[:4]:
        answers = generate(model, [*plain_prompts, prompt(order)], n, seed=3, **options)
        assert [answer.tokens for answer in answers[:2]] == [answer.tokens for answer in expected]
        first = answers[2].tokens if first is None else first
        assert answers[2].tokens == first and len(first) > 0
    if "draft" in options:
        drafted = generate(model, [prompt()] * 3, 60, seed=3, **options)
        undrafted = generate(model, [prompt()] * 3, 60, seed=3, **options | {"draft": "none"})
        assert [a.tokens for a in drafted] == [a.tokens for a in undrafted]
        assert decoder == "trie" or sum(answer.accepted for answer in drafted)


def test_conditional_beams_and_streams() -> None:
    model = stack(layers=2)
    foresight = foresee(model, [[token] * 9 for token in range(V)] * 2, [token > 6 for token in range(V)] * 2,
                        prompts=1, steps=20)
    answers = {tuple(generate(model, [prompt(order)], 6, "conditional-beam", attribute=foresight.attribute)[0].tokens)
               for order in ORDERS[:3]}
    assert len(answers) == 1
    streamed = [token for piece in stream(model, [prompt()], 9) for token in piece.tokens]
    assert streamed == generate(model, [prompt()], 9)[0].tokens


def test_canonical_order_gives_equal_bits() -> None:
    model = stack(dtype=torch.float32)
    answers = [generate(model, [prompt(order, canonical=True), [1, 2]], 30, logprobs=True)[0] for order in ORDERS]
    assert len({tuple(answer.logprobs or ()) for answer in answers}) == 1
    shared = generate(model, [prompt(order, canonical=True) for order in ORDERS], 5)
    assert len({tuple(answer.tokens) for answer in shared}) == 1


@pytest.mark.parametrize("structure", ["rotary", "alibi", "grouped heads"])
def test_the_compiled_engine_falls_back_to_torch_for_sets(structure: str) -> None:
    uncompiled = stack(structure, torch.float32, 2)
    model = compile_model(uncompiled)
    assert generate(model, [[1, 2]], 3)[0].path.startswith("cpu kernels")
    answer = generate(model, [prompt(), [1, 2]], 12)[0]
    assert answer.path == "torch float32 on cpu" and answer.tokens == generate(uncompiled, [prompt()], 12)[0].tokens


@pytest.mark.parametrize("name", sorted(set(MIXERS) - {"attention"}))
def test_other_mixers_refuse_sets(name: str) -> None:
    options = {name: {"prefix": 3}} if name == "jrt" else {}
    if MIXERS[name].causal:
        model = Stack(StackConfig(V, 64, ["attention", name], options)).requires_grad_(False)
        with pytest.raises(SegueError, match="cannot read parts without their order"):
            generate(model, [prompt()], 3)
        assert generate(model, [SetPrompt([A, [D], D])], 3)[0].tokens == generate(model, [[*A, *D, *D]], 3)[0].tokens
    else:
        mixer = MIXERS[name](64)
        with pytest.raises(SegueError, match="cannot read parts without their order"):
            mixer.check_layout(Layout(torch.zeros(1, 3, dtype=torch.long), sets=torch.zeros(1, 3, 2, dtype=torch.long)))


def test_bad_sets_give_one_line_errors() -> None:
    for pieces, message in (([A, PARTS], "its last run is not empty"), ([A, PARTS, []], "its last run is not empty"),
                            (["which", "ab", "it is"], "is a list of parts")):
        with pytest.raises(SegueError, match=message):
            SetPrompt(pieces)
    with pytest.raises(SegueError, match="cannot read parts without their order"):
        Attention(8, causal=False)(torch.zeros(1, 14, 8), layout_with_sets([prompt()]))
    with pytest.raises(SegueError, match="cannot read parts without their order"):
        Attention(8, prefix=2)(torch.zeros(1, 14, 8), layout_with_sets([prompt()]))
    with pytest.raises(SegueError, match="outside the model's vocabulary"):
        generate(stack(), [SetPrompt([[99], PARTS, D])], 2)
    with pytest.raises(SegueError, match="reads a prompt in its order only"):
        from segue.testing.decoding import TableModel

        generate(TableModel(V), [prompt()], 2)
    model = stack()
    state = model.init_state(1)
    model.extend(torch.tensor([list(prompt())]), state, layout=layout_with_sets([prompt()]))
    with pytest.raises(SegueError, match="ends within a set"):
        state.commit(counts=torch.tensor([11]))
    state.commit()
    with pytest.raises(SegueError, match="cannot rewind"):
        state.snapshot().rewind(4)
    with pytest.raises(SegueError, match="cannot rewind"):
        state.select(torch.tensor([0])).join([model.init_state(1)]).rewind(torch.tensor([4, 0]))
    state.rewind(3)
    assert state.positions.tolist() == [8]


@pytest.mark.parametrize("options", [{}, {"window": 3}, {"positions": "alibi", "kv_heads": 2}, {"relative": 3},
                                     {"span": 4, "ramp": 2}])
def test_attention_keeps_the_contract_of_sets(options: dict[str, Any]) -> None:
    check_mixer(lambda width: Attention(width, **options), only="sets", examples=3)


def test_saturated_attention_keeps_the_contract_of_sets() -> None:
    check_mixer(lambda width: SaturatedAttention(width, 2, 4), only="sets", examples=8)


def test_training_with_sets_follows_the_same_mask() -> None:
    """Also when packed after another document; gradients do not depend on the order of the parts."""
    model = stack("rotary").requires_grad_(True)
    grads = []
    for order in ORDERS[:3]:
        set_prompt = prompt(order)
        tokens = torch.tensor([list(set_prompt), [*range(V), 0]])
        targets = torch.full_like(tokens, -1)
        targets[0, -1] = targets[1, 4] = 5
        batch = Batch(tokens, targets, sets=set_placements([set_prompt, [0] * 14]))
        model.zero_grad()
        NextElement()(model, batch).total.backward()
        grads.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    assert all((grad - grads[0]).abs().max() < 1e-9 * grads[0].abs().max() for grad in grads)
    with_set, without_set = batch.rows(slice(0, 1)), Batch(tokens[1:], targets[1:])
    both = Batch.join([with_set, without_set])
    assert torch.equal(both.sets, batch.sets) and torch.equal(batch.map(lambda x: x[:1]).sets, batch.sets[:1])
    assert torch.allclose(model(both.tokens, both.layout).logits[1], model(without_set.tokens).logits[0])


def test_set_prompts_of_objects_join_with_spaces() -> None:
    torch.manual_seed(1)
    model = Stack(StackConfig(ByteCodec().size, 32, ["attention"] * 2)).eval().requires_grad_(False)
    texts = ["Which?", [" the cat", " a dog", " it"], " Answer:"]
    first, second = continue_objects(model, ByteCodec(),
                                     [SetPrompt(texts), SetPrompt([texts[0], texts[1][::-1], texts[2]])], 9)
    assert first.value == second.value and first.tokens == second.tokens
    assert first.whole.startswith(b"Which?") and first.whole.endswith(b" Answer:" + first.value)


def test_set_prompts_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import segue
    from segue.cli import main

    texts = [f"the {i} cats sat on the mat and slept. " * 3 for i in range(20)]
    segue.fit(texts, out=str(tmp_path / "model"), steps=2, quiet=True, mixer="attention", width=32, depth=1,
              mix=False)
    outputs = []
    for parts in ([" cat", " dog"], [" dog", " cat"]):
        (tmp_path / "parts.json").write_text(json.dumps(["the", parts, " sat"]))
        with pytest.raises(SystemExit, match="0"):
            main(["continue", str(tmp_path / "model"), "--parts", str(tmp_path / "parts.json"), "-n", "6", "--json"])
        outputs.append(json.loads(capsys.readouterr().out))
    assert outputs[0]["tokens"] == outputs[1]["tokens"] and outputs[0]["path"].startswith("torch")


def test_order_sensitivity_counts_changed_answers() -> None:
    result = order_sensitivity(np.array([[1, 1, 1], [2, 3, 2], [4, 4, 5]]), np.array([1, 2, 6]))
    assert (result.mean, result.best, result.worst, result.changed) == pytest.approx((5 / 9, 2 / 3, 1 / 3, 2 / 3))


# Hugging Face.

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", {"vocab_size": V, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96}),
    "llama": ("Llama", {"vocab_size": V, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
                        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 96}),
    "gpt_neox": ("GPTNeoX", {"vocab_size": V, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
                             "num_attention_heads": 4, "max_position_embeddings": 96}),
    "mistral": ("Mistral", {"vocab_size": V, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
                            "num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 4}),
}


def adapted(name: str, folder: Path) -> tuple[Any, Any]:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.disable_progress_bar()
    from segue.models.huggingface import adapt

    torch.manual_seed(0)
    architecture, options = ARCHITECTURES[name]
    config = getattr(transformers, f"{architecture}Config")(**options, bos_token_id=0, eos_token_id=1,
                                                            pad_token_id=None)
    reference = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in reference.parameters():
        parameter.data.normal_(std=0.3)
    reference.save_pretrained(folder)
    return reference.double(), adapt(folder, torch.float64)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox"])
def test_sets_on_models_of_transformers(name: str, tmp_path: Path) -> None:
    peer, model = adapted(name, tmp_path)
    plain_prompt = [3, 1, 4, 1, 5]
    first = None
    for order in ORDERS:
        answers = generate(model, [prompt(order), plain_prompt, prompt(order)[:3]], 20, logprobs=True)
        first = answers[0] if first is None else first
        assert answers[0].tokens == first.tokens
        assert answers[0].logprobs == pytest.approx(first.logprobs, abs=1e-10)
        assert answers[1].tokens == generate(model, [plain_prompt], 20)[0].tokens
    drafted = generate(model, [prompt(), plain_prompt], 20, draft="lookup", adaptive=False)
    assert drafted[0].tokens == first.tokens
    beams = {tuple(generate(model, [prompt(order)], 8, "beam", num_beams=3)[0].tokens) for order in ORDERS}
    assert len(beams) == 1
    # against transformers alone: everything read again for every token, with the mask and the positions written out
    tokens: list[int] = []
    for token in first.tokens:
        full = SetPrompt([A, PARTS, [*D, *tokens]], False)
        layout = layout_with_sets([full])
        mask = torch.zeros(1, 1, len(full), len(full), dtype=torch.float64).masked_fill(
            ~layout.follows[:, None], torch.finfo(torch.float64).min)
        with torch.no_grad():
            scores = peer(torch.tensor([list(full)]), attention_mask=mask, position_ids=layout.positions).logits
        assert int(scores[0, -1].argmax()) == token
        tokens.append(token)


def test_models_with_their_own_positions_refuse_sets(tmp_path: Path) -> None:
    _, model = adapted("mistral", tmp_path)
    assert len(generate(model, [A], 3)[0].tokens) == 3
    with pytest.raises(SegueError, match="with positions of its own"):
        generate(model, [prompt()], 3)


# The claim.

def test_the_claim_runs_at_smoke_scale() -> None:
    check_claim(set_based_prompting.CLAIM)


def test_the_claims_batches_equal_generate() -> None:
    """What the claim reads in one batch is what `generate` reads, ordered and as sets."""
    torch.manual_seed(0)
    model = Stack(StackConfig(set_based_prompting.VOCABULARY, 32, ["attention"] * 2)).eval().requires_grad_(False)
    amplify(model, 2.5)
    questions = set_based_prompting.sample_questions(6, np.random.default_rng(0))
    orders = [(0, 1, 2, 3), (3, 1, 0, 2)]
    for arm in ("ordered", "sets"):
        first_tokens, ahead, separate = set_based_prompting.answer_orders(model, questions, orders, arm)
        prompts = [set_based_prompting.make_prompt(question, order) for question in questions for order in orders]
        results = generate(model, [list(prompt) if arm == "ordered" else prompt for prompt in prompts], 1)
        assert first_tokens.flatten().tolist() == [answer.tokens[0] for answer in results]
        assert ahead.min() > 0 and (separate < 1e-4) == (arm == "sets")


def test_the_verdict_follows_its_rule() -> None:
    def row(arm: str, changed: float, mean: float = 0.7, worst: float = 0.6) -> dict[str, Any]:
        return {"arm": arm, "changed": changed, "mean": mean, "worst": worst, "best": 0.9, "ties": 0, "apart": 1e-5}

    table = [row(arm, changed) | {"positions": positions} for positions in ("rotary", "learned") for arm, changed in (
        ("ordered", 0.2), ("sets", 0.0), ("mask alone", 0.1), ("positions alone", 0.1), ("sets, tuned", 0.0))]
    assert set_based_prompting.judge(table)[0] == "confirmed"
    for place, change, verdict in ((6, {"changed": 0.001}, "refuted"), (1, {"mean": 0.59}, "refuted"),
                                   (0, {"changed": 0.04}, "inconclusive"), (1, {"mean": 0.81}, "inconclusive"),
                                   (2, {"changed": 0.0}, "inconclusive"), (8, {"changed": 0.0}, "inconclusive")):
        changed = [cells | (change if number == place else {}) for number, cells in enumerate(table)]
        assert set_based_prompting.judge(changed)[0] == verdict
