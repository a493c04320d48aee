"""What parts of a stack carry: OV circuits, writes to the residual stream, their direct effects, features."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from weights import shake

from segue.analysis.circuits import (
    Order,
    direct_effects,
    direct_logits,
    effective_inputs,
    head_hits,
    induction_scores,
    matrices,
    mean_writes,
    ov_circuit,
    writes,
)
from segue.analysis.features import fit_autoencoder, index_group_maps, steered
from segue.analysis.probes import shuffled_probe
from segue.errors import SegueError
from segue.models import Stack, StackConfig
from segue.papers.successor_heads import (
    ITEMS,
    LISTS,
    NEXT,
    ORDERS,
    SAME,
    SPANS,
    held_out_pairs,
    read_words,
    sample_batch,
)

MIXERS = ("attention", "gla", "mamba", "mamba2", "deltanet", "mlstm", "lstm", "lightnet", "block-recurrent")
V = 11


def random_stack(mixers: list[str], seed: int = 0, width: int = 16, **choices: Any) -> Stack:
    torch.manual_seed(seed)
    options = {"attention": {"heads": 4, "kv_heads": 2, "qkv_bias": True, "out_bias": True}}
    model = Stack(StackConfig(V, width, mixers, {k: v for k, v in options.items() if k in mixers}, **choices)).double()
    shake(model, 0.2)
    return model.eval()


def shifted(width: int = 8) -> Stack:
    """One layer whose first head writes the next of `width` elements, in a cycle, and whose second writes noise."""
    model = Stack(StackConfig(width, width, ["attention"], {"attention": {"heads": 2, "head_width": width}},
                              channel="mlp", hidden=width, activation="relu", tied=False))
    eye = torch.eye(width)
    with torch.no_grad():
        for weight in (model.embedding.weight, model.head.weight, model.blocks[0].channel.into.weight,
                       model.blocks[0].channel.out.weight):
            weight.copy_(eye)
        mixer = model.blocks[0].mixer
        mixer.qkv.weight[-2 * width :].copy_(torch.cat([eye, torch.randn(width, width)]))
        mixer.out.weight.copy_(torch.cat([eye.roll(1, 0), torch.randn(width, width)], 1))
    return model


def test_only_the_built_successor_head_is_found() -> None:
    torch.manual_seed(0)
    model = shifted(24)
    hits = head_hits(model, [Order("days", tuple(range(24)), cyclic=True)])
    assert hits["layer 1 head 1"].all() and hits["layer 1 head 2"].float().mean() < 0.3
    assert not head_hits(model, [Order("days", tuple(range(24)))], step=0)["layer 1 head 1"].any()  # and copies nothing
    line = head_hits(model, [Order("first", (3, 4, 5)), Order("second", (9, 8, 7))])["layer 1 head 1"]
    assert line.tolist() == [True, True, False, False]
    # Steering: what a head says of a direction exchanged for another is what it says of the other.
    x = effective_inputs(model, range(24))
    moved = steered(x[:1], x[0], x[5], 1.0)
    torch.testing.assert_close(ov_circuit(model, 1, moved)[0], ov_circuit(model, 1, x[5:6])[0])


def test_random_weights_score_at_chance() -> None:
    hits = torch.cat([torch.cat(list(head_hits(random_stack(["attention"] * 2, seed), [Order("all", tuple(range(V)),
                                                                                             True)]).values()))
                      for seed in range(12)]).double()
    assert abs(float(hits.mean()) - 1 / V) < 4 * (1 / V * (1 - 1 / V) / len(hits)) ** 0.5


def test_successor_pairs_stop_or_wrap_at_the_class_end() -> None:
    assert Order("letters", (4, 2, 9)).pairs() == [(4, 2), (2, 9)]
    assert Order("days", (4, 2, 9), cyclic=True).pairs() == [(4, 2), (2, 9), (9, 4)]
    assert Order("letters", (4, 2, 9)).pairs(0) == [(4, 4), (2, 2), (9, 9)]
    assert Order("letters", (4, 2, 9)).pairs(-1) == [(2, 4), (9, 2)]


SHAPES = st.fixed_dictionaries({
    "channel": st.sampled_from(["glu", "mlp", "none"]), "norm": st.sampled_from(["rms", "layer"]),
    "parallel": st.booleans(), "embed_norm": st.booleans(), "tied": st.booleans()})


@settings(max_examples=25, deadline=None)
@given(choices=SHAPES, mixers=st.lists(st.sampled_from(MIXERS), min_size=1, max_size=2), heads=st.booleans(),
       seed=st.integers(0, 99))
def test_writes_and_direct_logits_sum_to_the_model(choices: dict[str, Any], mixers: list[str], heads: bool,
                                                   seed: int) -> None:
    model = random_stack(mixers, seed, **choices)
    tokens = torch.randint(V, (2, 9), generator=torch.Generator().manual_seed(seed))
    written, expected = writes(model, tokens, heads=heads), model(tokens).logits
    total = torch.stack(list(written.values())).sum(0)
    torch.testing.assert_close(model.head(model.norm(total)), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(torch.stack(list(direct_logits(model, written).values())).sum(0), expected, rtol=1e-9,
                               atol=1e-9)
    if heads and mixers[0] == "attention":
        assert {f"layer 1 head {i}" for i in (1, 2, 3, 4)} < set(written) and "layer 1 attention" not in written
    if not heads and mixers[0] == "attention":
        assert "layer 1 attention" in written and "layer 1 head 1" not in written
    if mixers[0] in ("lstm", "block-recurrent"):
        assert f"layer 1 {mixers[0]}" in written


@pytest.mark.parametrize("mixer", ["attention", "gla", "mamba2"])
def test_direct_effects_equal_ablation_of_the_last_write(mixer: str) -> None:
    """The direct effect of a part that only the last norm reads is its whole effect: removing it from a plain pass
    costs that much."""
    model = random_stack(["lstm", mixer], channel="none")
    tokens = torch.randint(V, (3, 8), generator=torch.Generator().manual_seed(1))
    targets = tokens.roll(-1, 1)
    targets[:, -3:] = -1
    out, heads = model.blocks[1].mixer.out, model.blocks[1].mixer.heads
    effects = direct_effects(model, tokens, targets)

    def loss(change: Any = None) -> Tensor:
        hook = out.register_forward_pre_hook(lambda module, inputs: change(inputs[0]) if change else None)
        scores = model(tokens).logits[targets >= 0]
        hook.remove()
        return F.cross_entropy(scores, targets[targets >= 0], reduction="none")

    for head in range(heads):
        def without(z: Tensor, head: int = head) -> Tensor:
            parts = list(z.chunk(heads, -1))
            parts[head] = parts[head][targets >= 0].mean(0).expand_as(parts[head])
            return torch.cat(parts, -1)

        torch.testing.assert_close(effects[f"layer 2 head {head + 1}"], loss(without) - loss(), rtol=0, atol=1e-9)
    means = mean_writes(model, tokens)
    assert means["layer 1 lstm"].shape == (16,)
    other = direct_effects(model, tokens, targets, means=means)
    assert not torch.allclose(other["layer 2 head 1"], effects["layer 2 head 1"])


def naive_circuit(model: Any, family: str, layer: int, ids: Tensor) -> Tensor:
    """(H, M, V), from transformers' weights by their original names."""
    body = model.transformer if family == "gpt2" else model.gpt_neox if family == "gpt_neox" else model.model
    if family == "gpt2":
        first, block, x = body.h[0], body.h[layer], body.wte(ids)
        x = block.ln_1(first.mlp(first.ln_2(x)))
        width, heads = x.shape[-1], model.config.n_head
        v = x @ block.attn.c_attn.weight[:, 2 * width :] + block.attn.c_attn.bias[2 * width :]
        out, norm = block.attn.c_proj.weight.T, body.ln_f
    elif family == "gpt_neox":
        first, block, x = body.layers[0], body.layers[layer], body.embed_in(ids)
        x = block.input_layernorm(first.mlp(first.post_attention_layernorm(x)))
        heads = model.config.num_attention_heads
        v = block.attention.query_key_value(x).unflatten(-1, (heads, 3, -1))[:, :, 2].flatten(1)
        out, norm = block.attention.dense.weight, body.final_layer_norm
    else:
        first, block, x = body.layers[0], body.layers[layer], body.embed_tokens(ids)
        x = block.input_layernorm(first.mlp(first.post_attention_layernorm(x)))
        heads, shared = model.config.num_attention_heads, model.config.num_key_value_heads
        v = block.self_attn.v_proj(x).unflatten(-1, (shared, -1)).repeat_interleave(heads // shared, 1).flatten(1)
        out, norm = block.self_attn.o_proj.weight, body.norm
    outputs = torch.stack([z @ w.T for z, w in zip(v.chunk(heads, -1), out.chunk(heads, 1))])
    outputs = outputs if family == "llama" else outputs - outputs.mean(-1, keepdim=True)
    return (outputs * norm.weight) @ model.get_output_embeddings().weight.T


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_circuits_of_converted_folders_equal_their_weights(family: str, tmp_path: Path) -> None:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    transformers = pytest.importorskip("transformers")
    from segue.models.huggingface import from_huggingface

    common = {"vocab_size": 31, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2,
              "num_attention_heads": 4}
    options_by_family: dict[str, Any] = {"gpt2": {"vocab_size": 31, "n_embd": 32, "n_layer": 2, "n_head": 4,
                                                  "n_positions": 32},
                                         "llama": common | {"num_key_value_heads": 2}, "gpt_neox": common}[family]
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **options_by_family, bos_token_id=0, eos_token_id=1)
    reference = transformers.AutoModelForCausalLM.from_config(config).double().eval()
    shake(reference, 0.2)
    reference.save_pretrained(tmp_path)
    actual, ids = from_huggingface(tmp_path, torch.float64)[0], torch.arange(31)
    for layer in (0, 1):
        results = ov_circuit(actual, layer + 1, effective_inputs(actual, ids.tolist()))
        tolerance = 1e-5 if family == "llama" else 1e-9  # their RMS norm computes in float32
        torch.testing.assert_close(results, naive_circuit(reference, family, layer, ids), rtol=tolerance,
                                   atol=tolerance)
    tokens = torch.randint(31, (2, 7))  # forced attention: alone, an element reads itself, and what a head adds is this
    written = writes(actual, tokens[:, :1])
    read = actual.blocks[0].mixer
    single = read.output(torch.zeros(2, 4, 1, read.head_width, dtype=torch.float64), tokens[:, :1, None].double())
    heads = torch.stack([written[f"layer 1 head {h}"] for h in (1, 2, 3, 4)]).sum(0)
    x = actual.blocks[0].mixer_norm(actual.embed(tokens[:, :1], torch.zeros(2, 1, dtype=torch.long)))
    torch.testing.assert_close(heads, read(x) - single, rtol=1e-9, atol=1e-9)


def test_a_circuit_equals_the_logits_of_a_single_element() -> None:
    """Attention is one-hot where there is one element: a head's direct logits are its circuit at the last norm's scale,
    also of mixers that are no attention."""
    for mixer in ("attention", "gla", "mamba2", "deltanet"):
        model = random_stack([mixer], channel="none", norm="layer")
        tokens = torch.arange(V)[:, None]
        logits = direct_logits(model, writes(model, tokens))
        circuit = ov_circuit(model, 1, effective_inputs(model, range(V)))
        if mixer == "attention":
            for head in range(4):
                ratio = logits[f"layer 1 head {head + 1}"][:, 0] / circuit[head]
                torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-6, atol=1e-6)
        assert torch.isfinite(circuit).all() and circuit.shape[1:] == (V, V)


def test_induction_is_read_off_the_matrices() -> None:
    model = random_stack(["attention", "lstm", "gla"])
    results = induction_scores(model, length=5, rows=3, seed=2)
    once = torch.randint(V, (3, 5), generator=torch.Generator().manual_seed(2))
    layer, _, other = matrices(model, torch.cat([once, once], 1))
    assert layer is not None and other is not None
    for name, matrix in (("layer 1", layer), ("layer 3", other)):
        for head in range(matrix.shape[1]):
            row = matrix[:, head].abs()
            expected = sum(row[b, i, i - 4] / row[b, i].sum() for b in range(3) for i in range(5, 9)) / 12
            assert results[f"{name} head {head + 1}"] == pytest.approx(float(expected))
    assert not any(name.startswith("layer 2") for name in results)


def test_models_without_a_sum_of_writes_are_refused() -> None:
    with pytest.raises(SegueError, match="post_norm"):
        writes(random_stack(["attention"], post_norm=True), torch.zeros(1, 3, dtype=torch.long))
    with pytest.raises(SegueError, match="not linear in its values"):
        ov_circuit(random_stack(["lstm"]), 1, torch.zeros(1, 16).double())
    with pytest.raises(SegueError, match="native stack"):
        writes(torch.nn.Linear(2, 2), torch.zeros(1, 3))  # type: ignore[arg-type]


def test_a_sparse_autoencoder_recovers_the_dictionary() -> None:
    torch.manual_seed(0)
    expected = F.normalize(torch.randn(24, 16), dim=-1)
    x = (torch.rand(3000, 24) < 0.08).float() * (1 + torch.rand(3000, 24)) @ expected
    model = fit_autoencoder(x, features=48, sparsity=0.1, steps=1500, rate=3e-3)
    cosines = expected @ F.normalize(model.directions, dim=-1).T
    assert float((cosines.amax(1) > 0.8).float().mean()) > 0.9
    assert float((model(x) - x).square().sum() / x.square().sum()) < 0.1
    torch.testing.assert_close(model.directions.norm(dim=-1), torch.ones(48))
    by_hand = (x[:2] @ model.into.weight.T + model.into.bias).clamp(min=0) @ model.directions + model.offset
    torch.testing.assert_close(model(x[:2]), by_hand)


def test_parts_of_vectors_can_be_exchanged() -> None:
    draw = torch.Generator().manual_seed(0)
    order, kind = (torch.randn(count, 24, generator=draw, dtype=torch.float64) for count in (8, 3))
    index, group = torch.arange(8).repeat(3), torch.arange(3).repeat_interleave(8)
    x = order[index] + kind[group] + 0.01 * torch.randn(24, 24, generator=draw, dtype=torch.float64)
    is_kept = torch.arange(24) != 13  # index 5 of group 1 is never seen
    first, second = index_group_maps(x[is_kept], index[is_kept], group[is_kept])
    composed = x[5] @ first + x[9] @ second  # index 5 of group 0, and index 1 of group 1
    assert int((x - composed).norm(dim=1).argmin()) == 13
    assert float((x[13] - composed).norm()) < 0.2 * float(x[13].norm())
    with pytest.raises(SegueError, match="of its own"):
        index_group_maps(x, index, group * 0)


def test_a_shuffled_probe_finds_nothing() -> None:
    torch.manual_seed(0)
    labels = torch.arange(300) % 3
    x = F.one_hot(labels, 8).float() + 0.1 * torch.randn(300, 8)
    real, shuffled = shuffled_probe("linear", (x[:200], labels[:200]), (x[200:], labels[200:]), times=5, rate=0.05)
    assert real > 0.95 and len(set(shuffled)) > 1 and max(shuffled) < 0.8


def test_training_lists_exclude_held_out_pairs() -> None:
    unknown, following = held_out_pairs(3), dict(pair for order in ORDERS for pair in order.pairs())
    assert len(unknown) == round(0.15 * len(following))
    batch, kinds = sample_batch(40, read_words(None), unknown, 5)
    pairs = []
    for row, at in (kinds == LISTS).nonzero().tolist():
        assert batch.tokens[row, at] == NEXT
        first = next(int(i) for i in batch.tokens[row, :at].flip(0) if i < ITEMS)
        pairs.append((first, int(batch.targets[row, at])))
    assert len(pairs) > 100 and all(following[first] == second for first, second in pairs)
    assert not unknown & set(pairs)
    spans = (kinds == SPANS).nonzero().tolist()
    assert spans
    for row, at in spans:  # what is asked for stands as far in front of the mark as this place behind it
        mark = int((batch.tokens[row, :at] == SAME).nonzero()[-1])
        begins = [begin for begin in range(mark) if batch.tokens[row, begin : begin + at - mark].tolist()
                  == batch.tokens[row, mark + 1 : at + 1].tolist()]
        assert any(batch.tokens[row, begin + at - mark] == batch.targets[row, at] for begin in begins)
