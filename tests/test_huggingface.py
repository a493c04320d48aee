"""Hugging Face folders: native conversion both ways, the adapter, tokenizers."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
transformers = pytest.importorskip("transformers")
transformers.utils.logging.disable_progress_bar()

import segue  # noqa: E402
from segue.errors import SegueError  # noqa: E402
from segue.kinds import Codec, TokenizerCodec  # noqa: E402
from segue.models import StackConfig  # noqa: E402
from segue.models.huggingface import adapt, from_huggingface, to_huggingface  # noqa: E402
from segue.models.stack import Stack  # noqa: E402
from segue.testing import check_model  # noqa: E402

LLAMA3 = {"rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 32}

LLAMA: dict[str, Any] = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
                         "num_attention_heads": 4, "max_position_embeddings": 128}
SLIDING = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
GPT2: dict[str, Any] = {"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96}
MAMBA: dict[str, Any] = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", GPT2),
    "gpt2 scaled by layer, untied": ("GPT2", GPT2 | {"scale_attn_by_inverse_layer_idx": True, "n_inner": 40,
                                                     "tie_word_embeddings": False}),
    "gpt2 unscaled": ("GPT2", GPT2 | {"scale_attn_weights": False}),
    "llama": ("Llama", LLAMA),
    "llama tied, grouped": ("Llama", LLAMA | {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "llama biases, wide heads": ("Llama", LLAMA | {"attention_bias": True, "mlp_bias": True, "head_dim": 16}),
    "llama linear": ("Llama", LLAMA | {"rope_parameters": {"rope_type": "linear", "factor": 4.0,
                                                           "rope_theta": 5000.0}}),
    "llama llama3": ("Llama", LLAMA | {"rope_parameters": LLAMA3}),
    "llama yarn": ("Llama", LLAMA | {"rope_parameters": YARN}),
    "llama yarn, fractional": ("Llama", LLAMA | {"rope_parameters": YARN | {"truncate": False, "beta_fast": 20.0,
                                                                            "attention_factor": 1.3}}),
    "mistral": ("Mistral", LLAMA | {"num_key_value_heads": 2, "sliding_window": 7}),
    "mistral without window": ("Mistral", LLAMA | {"num_key_value_heads": 2, "sliding_window": None}),
    "qwen2": ("Qwen2", LLAMA | {"num_key_value_heads": 2}),
    "qwen2 half local": ("Qwen2", LLAMA | {"num_key_value_heads": 2, **SLIDING}),
    "qwen3": ("Qwen3", LLAMA | {"num_key_value_heads": 2, "head_dim": 16}),
    "qwen3 yarn": ("Qwen3", LLAMA | {"num_key_value_heads": 2, "head_dim": 16, "rope_parameters": YARN}),
    "gpt_neox": ("GPTNeoX", LLAMA),
    "gpt_neox sequential": ("GPTNeoX", LLAMA | {"use_parallel_residual": False, "attention_bias": False,
                                                "tie_word_embeddings": True}),
    "mamba": ("Mamba", MAMBA),
    "mamba biases": ("Mamba", MAMBA | {"use_bias": True, "use_conv_bias": False, "time_step_rank": 5,
                                       "tie_word_embeddings": False, "conv_kernel": 3}),
}


def tiny(name: str, options: dict[str, Any], seed: int = 0) -> Any:
    """A random model of transformers whose biases and norms are random too, and whose context matters."""
    torch.manual_seed(seed)
    config = getattr(transformers, f"{name}Config")(**options, bos_token_id=0, eos_token_id=1, pad_token_id=None)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for key, parameter in model.named_parameters():
        if parameter.dim() == 1 or "conv1d" in key:
            if not key.endswith(("A_log", ".D", "dt_proj.bias")):
                parameter.data += 0.2 * torch.randn_like(parameter)
        elif not key.endswith("A_log"):
            parameter.data.normal_(std=0.15)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_native_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    peer = tiny(*MODELS[name])
    peer.save_pretrained(tmp_path)
    native, info = from_huggingface(tmp_path)
    tokens = torch.randint(61, (3, 90))
    with torch.no_grad():
        expected = peer(tokens).logits
        results = native(tokens).logits
        # As a decoder: a prompt, then one by one.
        state, parts = native.init_state(3), []
        for piece in (tokens[:, :80], *tokens[:, 80:].split(1, 1)):
            parts.append(native.extend(piece, state).logits)
            state.commit()
    assert (results - expected).abs().max() < 1e-4, (results - expected).abs().max()
    assert (torch.cat(parts, 1) - expected).abs().max() < 1e-4
    assert info.ends == [1] and info.begin == 0
    assert (native.head.weight is native.embedding.weight) == bool(peer.config.tie_word_embeddings)


@pytest.mark.parametrize("name", ["gpt2", "llama biases, wide heads", "gpt_neox", "mamba", "qwen3 yarn"])
def test_native_logits_in_bfloat16(name: str, tmp_path: Path) -> None:
    peer = tiny(*MODELS[name]).to(torch.bfloat16)
    peer.save_pretrained(tmp_path)
    native, _ = from_huggingface(tmp_path, dtype=torch.bfloat16)
    exact, _ = from_huggingface(tmp_path, dtype=torch.float32)
    tokens = torch.randint(61, (2, 40))
    with torch.no_grad():
        reference, expected, result = exact(tokens).logits, peer(tokens).logits, native(tokens).logits
    assert result.dtype == torch.bfloat16
    # Both stray from the exact result by the same rounding.
    assert (result - reference).abs().mean() < 1.5 * (expected - reference).abs().mean() + 1e-3


@pytest.mark.parametrize("name", ["llama", "llama llama3", "qwen3"])
def test_native_logits_far_beyond_the_trained_length(name: str, tmp_path: Path) -> None:
    peer = tiny(*MODELS[name])
    peer.save_pretrained(tmp_path)
    native, _ = from_huggingface(tmp_path)
    tokens = torch.randint(61, (1, 2000))
    with torch.no_grad():
        assert (native(tokens).logits - peer(tokens).logits).abs().max() < 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_export_round_trip(name: str, tmp_path: Path) -> None:
    """Folder -> stack -> folder: transformers finds the same model in both."""
    peer = tiny(*MODELS[name])
    peer.save_pretrained(tmp_path / "a")
    stack, _ = from_huggingface(tmp_path / "a")
    to_huggingface(stack, tmp_path / "b", positions=128, begin=0, ends=[1])
    exported = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "b").eval()
    assert type(exported) is type(peer) or name.startswith("mistral without")  # without a window it is a Llama
    tokens = torch.randint(61, (2, 60))
    with torch.no_grad():
        assert (exported(tokens).logits - peer(tokens).logits).abs().max() < 1e-4
    stack_again, info = from_huggingface(tmp_path / "b")
    assert info.begin == 0 and info.ends == [1]
    for (key, a), (_, b) in zip(stack.state_dict().items(), stack_again.state_dict().items()):
        assert torch.equal(a, b), key


@pytest.mark.parametrize("options", [
    {"mixers": ["attention"] * 2, "options": {"attention": {"heads": 4, "kv_heads": 2}}},
    {"mixers": ["attention:local", "attention"], "options": {
        "attention:local": {"heads": 2, "window": 4, "qk_norm": True}, "attention": {"heads": 2, "qk_norm": True}}},
    {"mixers": ["mamba"] * 2, "channel": "none", "tied": False},
    {"mixers": ["attention"] * 2, "channel": "mlp", "norm": "layer", "bias": True, "learned_positions": 64,
     "activation": "gelu", "options": {"attention": {"positions": "none", "qkv_bias": True, "out_bias": True}}},
    {"mixers": ["attention"] * 2, "channel": "mlp", "norm": "layer", "bias": True, "parallel": True,
     "activation": "relu", "options": {"attention": {"rotary_fraction": 0.5}}},
], ids=["default", "local and global", "mamba", "gpt2", "neox"])
def test_export_of_our_own_stacks(options: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    stack = Stack(StackConfig(vocabulary=40, width=32, **options)).eval()
    to_huggingface(stack, tmp_path / "out")
    exported = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    tokens = torch.randint(40, (2, 50))
    with torch.no_grad():
        assert (exported(tokens).logits - stack(tokens).logits).abs().max() < 1e-4


def test_export_refuses_what_fits_no_family(tmp_path: Path) -> None:
    for options in ({"mixers": ["gla"]}, {"mixers": ["attention", "mamba"]}, {"mixers": ["attention"], "norm": "layer"},
                    {"mixers": ["attention"], "options": {"attention": {"causal": False}}},
                    {"mixers": ["attention"], "options": {"attention": {"positions": "alibi"}}},
                    *({"mixers": ["attention"], "options": {"attention": option}} for option in (
                        {"taps": 2}, {"relative": 4}, {"block": 4}, {"span": 4}, {"prompt": True})),
                    {"mixers": ["mamba"], "channel": "none", "options": {"mamba": {"eigenvalues": (-1.0, 1.0)}}},
                    {"mixers": ["attention"], "pool": "mean"}, {"mixers": ["attention"], "tables": {"kind": 3}}):
        with pytest.raises(SegueError, match="fits none of the families"):
            to_huggingface(Stack(StackConfig(vocabulary=10, width=16, **options)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_shards_old_names_and_computed_buffers_load(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    peer = tiny("GPT2", GPT2)
    peer.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    tokens = torch.randint(61, (1, 30))
    with torch.no_grad():
        expected = peer(tokens).logits
    assert (from_huggingface(tmp_path)[0](tokens).logits - expected).abs().max() < 1e-4
    # As the oldest folders are: no prefix, with the causal mask among the weights.
    tensors: dict[str, torch.Tensor] = {}
    for shard in tmp_path.glob("model-*.safetensors"):
        tensors |= {key.removeprefix("transformer."): tensor for key, tensor in load_file(shard).items()}
        shard.unlink()
    (tmp_path / "model.safetensors.index.json").unlink()
    tensors["h.0.attn.bias"] = torch.ones(1, 1, 96, 96).tril()
    save_file(tensors, tmp_path / "model.safetensors")
    assert (from_huggingface(tmp_path)[0](tokens).logits - expected).abs().max() < 1e-4


def test_old_rotary_settings_are_read(tmp_path: Path) -> None:
    """Folders written before rope_parameters: rope_theta and rope_scaling, rotary_pct and rotary_emb_base."""
    for name, old in (("llama", {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.0}}),
                      ("gpt_neox", {"rotary_pct": 0.5, "rotary_emb_base": 500})):
        folder = tmp_path / name
        tiny(*MODELS[name]).save_pretrained(folder)
        values = json.loads((folder / "config.json").read_text())
        del values["rope_parameters"]
        (folder / "config.json").write_text(json.dumps(values | old))
        peer = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        tokens = torch.randint(61, (1, 30))
        with torch.no_grad():
            assert (from_huggingface(folder)[0](tokens).logits - peer(tokens).logits).abs().max() < 1e-4


def broken(folder: Path, **changes: Any) -> Path:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | changes))
    return folder


def test_architectures_without_a_native_form_are_refused(tmp_path: Path) -> None:
    reference = tiny("Llama", LLAMA)
    cases = [({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rotary scaling 'dynamic'"),
             ({"hidden_act": "quick_gelu"}, "activation 'quick_gelu'"), ({"model_type": "bloom"}, "no native form"),
             ({"architectures": ["LlamaForSequenceClassification"]}, "not a causal language model"),
             ({"hidden_size": None}, "as its 'hidden_size'"), ({"num_attention_heads": 0}, "positive whole number"),
             ({"intermediate_size": 49}, "has shape"), ({"mlp_bias": True}, "has no tensor"),
             ({"num_hidden_layers": 1}, "does not explain"), ({"hidden_size": "wide"}, "gives 'wide'"),
             ({"rope_parameters": {"rope_type": "linear"}}, "does not describe"), ({"vocab_size": 60}, "has shape")]
    for index, (changes, message) in enumerate(cases):
        folder = tmp_path / str(index)
        reference.save_pretrained(folder)
        with pytest.raises(SegueError, match=message):
            from_huggingface(broken(folder, **changes))


def test_broken_folders_give_one_line_errors(tmp_path: Path) -> None:
    with pytest.raises(SegueError, match="is not a folder"):
        from_huggingface(tmp_path / "nothing")
    with pytest.raises(SegueError, match="is missing"):
        from_huggingface(tmp_path)
    folder = tmp_path / "model"
    tiny("Llama", LLAMA).save_pretrained(folder)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(SegueError, match="not a whole safetensors file"):
        from_huggingface(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(SegueError, match="has no safetensors"):
        from_huggingface(folder)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(SegueError, match="is a pickle"):
        from_huggingface(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
    with pytest.raises(SegueError, match="not in the folder"):
        from_huggingface(folder)
    (folder / "config.json").write_text("{}")
    with pytest.raises(SegueError, match="names no model_type"):
        from_huggingface(folder)


# The adapter.

LOCAL = LLAMA | {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4}
SMALL = {"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4}
OTHERS: dict[str, tuple[str, str, dict[str, Any]]] = {  # how each is run is measured; here is what it must come to
    "opt": ("edited", "OPT", {"vocab_size": 61, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2,
                              "num_attention_heads": 4, "max_position_embeddings": 96, "word_embed_proj_dim": 16}),
    "gptj": ("edited", "GPTJ", SMALL | {"rotary_dim": 4, "n_positions": 96}),
    "falcon": ("edited", "Falcon", {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2,
                                    "num_attention_heads": 4}),
    "phi": ("edited", "Phi", LLAMA),
    "gemma": ("edited", "Gemma", LLAMA | {"num_key_value_heads": 2, "head_dim": 8}),
    "bloom": ("copied", "Bloom", {"vocab_size": 61, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "gemma2": ("copied", "Gemma2", LOCAL),
    "rwkv": ("copied", "Rwkv", {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2,
                                "attention_hidden_size": 32}),
    "falcon_mamba": ("stepped", "FalconMamba", MAMBA),
    "recurrent_gemma": ("reread", "RecurrentGemma", LOCAL | {"num_hidden_layers": 3, "num_key_value_heads": 1,
                                                             "attention_window_size": 4, "lru_width": 32}),
}
MORE: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": ("edited", "GPT2", GPT2),
    "llama": ("edited", "Llama", LLAMA | {"num_key_value_heads": 2}),
    "gpt_neox": ("edited", "GPTNeoX", LLAMA),
    "gpt_bigcode": ("edited", "GPTBigCode", SMALL | {"n_positions": 96}),
    "codegen": ("edited", "CodeGen", SMALL | {"rotary_dim": 4, "n_positions": 96}),
    "stablelm": ("edited", "StableLm", LLAMA | {"num_key_value_heads": 4}),
    "starcoder2": ("edited", "Starcoder2", LLAMA | {"num_key_value_heads": 2, "sliding_window": None}),
    "cohere": ("edited", "Cohere", LLAMA),
    "olmo2": ("edited", "Olmo2", LLAMA),
    "falcon alibi": ("copied", "Falcon", OTHERS["falcon"][2] | {"alibi": True}),
    "mpt": ("copied", "Mpt", {"vocab_size": 61, "d_model": 32, "n_layers": 2, "n_heads": 4}),
    "gemma3": ("copied", "Gemma3Text", LOCAL | {"num_hidden_layers": 6}),
    "mistral": ("copied", "Mistral", LLAMA | {"num_key_value_heads": 2, "sliding_window": 4}),
    "mamba2": ("copied", "Mamba2", {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8,
                                    "num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 8}),
    "jamba": ("stepped", "Jamba", LLAMA | {"num_key_value_heads": 2, "attn_layer_period": 2, "attn_layer_offset": 1,
                                           "num_experts": 2, "use_mamba_kernels": False, "mamba_d_state": 4}),
}


def check_adapter(way: str, name: str, options: dict[str, Any], folder: Path) -> None:
    peer = tiny(name, options)
    peer.save_pretrained(folder)
    actual = adapt(folder)
    assert actual.way == way and actual.vocabulary == 61, (actual.way, actual.path)
    tokens = torch.randint(61, (2, 30))
    state, parts = actual.init_state(2), []
    with torch.no_grad():
        expected = peer(tokens).logits
    for piece in (tokens[:, :20], tokens[:, 20:26], *tokens[:, 26:].split(1, 1)):
        parts.append(actual.extend(piece, state).logits)
        state.commit()
    assert (torch.cat(parts, 1) - expected).abs().max() < 1e-4
    check_model(actual, examples=2, longest=10, shrink=False)


@pytest.mark.parametrize("name", OTHERS)
def test_adapter_keeps_the_contract(name: str, tmp_path: Path) -> None:
    check_adapter(*OTHERS[name], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_adapter_keeps_the_contract_of_more_architectures(name: str, tmp_path: Path) -> None:
    check_adapter(*MORE[name], tmp_path)


def test_adapter_rewinds_without_rereading(tmp_path: Path) -> None:
    tiny(*OTHERS["bloom"][1:]).save_pretrained(tmp_path)
    actual = adapt(tmp_path)
    tokens = torch.randint(61, (1, 40))
    state = actual.init_state(1, history=4)
    for piece in tokens.split(1, 1):
        expected = actual.extend(piece, state).logits
        state.commit()
    row = state.layers[0]["memory"].rows[0]
    assert len(row.marks) <= 3 and 40 - row.marks[0][0] >= 4
    state.rewind(4)
    row = state.layers[0]["memory"].rows[0]
    assert 30 < row.seen <= 36
    assert (actual.extend(tokens[:, 36:], state).logits[:, -1] - expected[:, 0]).abs().max() < 1e-4


def test_adapter_refuses(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    reference = tiny(*OTHERS["opt"][1:])
    reference.save_pretrained(folder)
    actual = adapt(folder)
    with pytest.raises(SegueError, match="beyond the 96 positions"):
        actual.extend(torch.zeros(1, 120, dtype=torch.long), actual.init_state(1))
    with pytest.raises(SegueError, match="cannot load"):
        adapt(broken(folder, model_type="nothing_known"))
    with pytest.raises(SegueError, match="brings its own code"):
        adapt(broken(folder, auto_map={"AutoModelForCausalLM": "modeling_x.X"}))
    reference.save_pretrained(folder)
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    remaining = {key: tensor for key, tensor in tensors.items() if "fc1" not in key}
    save_file(remaining, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(SegueError, match=r"do not fit its config.json: \d+ missing"):
        adapt(folder)
    (folder / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(SegueError, match="cannot load"):
        adapt(folder)


# Tokenizers, and the whole folder behind the verbs.

TEXT = ["def main(argument):\n    return argument + 1\n", "the cat sat on the mat, and the dog ate the hat. " * 3,
        "naïve café, 東京 and 🙂"]


def tokenizer_of(sort: str) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    if sort == "bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|end|>"], show_progress=False,
                                      initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    else:  # as Llama's
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                               decoders.Strip(" ", 1, 0)])
        trainer = trainers.BpeTrainer(vocab_size=400, show_progress=False, special_tokens=[
            "<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))])
    tokenizer.train_from_iterator(TEXT[:2], trainer)
    if sort != "bytes":
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


@pytest.mark.parametrize("sort", ["bytes", "blanks"])
def test_tokenizer_codec(sort: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(sort)
    codec = TokenizerCodec(tokenizer, size=512, eos=0 if sort == "bytes" else 2)
    assert codec.bos == (None if sort == "bytes" else 1) and codec.size == 512
    front = [] if codec.bos is None else [codec.bos]
    for text in TEXT:
        ids = codec.encode(text)
        assert [*front, *ids.tolist()] == tokenizer.encode(text).ids
        assert codec.decode([*front, *ids]).decode() == text
        # Pieces join, wherever they are cut.
        assert codec.decode([*front, *ids[:3]]) + codec.decode(ids[3:]) == text.encode()
        assert codec.units(ids) == len(text.encode()) + (sort != "bytes")
    assert codec.encode("<|end|>" if sort == "bytes" else "</s>").tolist()[-1] == codec.eos
    assert codec.decode([codec.eos]) == b"" and codec.token(codec.eos) == "<end>"
    codec.save(tmp_path)
    assert Codec.load(tmp_path) == codec
    with pytest.raises(SegueError, match="byte 1 is not UTF-8"):
        codec.encode(b"a\xff")


def folder_of(name: str, options: dict[str, Any], folder: Path, sort: str | None) -> Any:
    reference = tiny(name, options | {"vocab_size": 512})
    reference.save_pretrained(folder)
    if sort is not None:
        tokenizer_of(sort).save(str(folder / "tokenizer.json"))
    return reference


@pytest.mark.parametrize("name, options, sort, path", [
    ("GPT2", GPT2 | {"n_positions": 128}, "bytes", "float32"), ("Llama", LLAMA, "blanks", "float32"),
    ("Mamba", MAMBA, "bytes", "float32"), ("GPTNeoX", LLAMA, "bytes", "float32"),
    ("OPT", OTHERS["opt"][2], "bytes", "one pass over an edited cache"),
    ("Bloom", OTHERS["bloom"][2], "blanks", "path by path over copied caches"),
])
@pytest.mark.parametrize("draft", ["none", "trie"])
def test_greedy_answers_equal_those_of_transformers(name: str, options: dict[str, Any], sort: str,
                                                    path: str, draft: str, tmp_path: Path) -> None:
    reference = folder_of(name, options, tmp_path, sort)
    model = segue.load(tmp_path)
    tokenizer = tokenizer_of(sort)
    for prime in TEXT[:2]:
        answer = model.continue_(prime[:40], n=30, decoder="greedy", draft=draft)
        ids = tokenizer.encode(prime[:40]).ids
        with torch.no_grad():
            expected = reference.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                                          max_new_tokens=30, do_sample=False, pad_token_id=0)[0, len(ids):].tolist()
        expected = expected[: expected.index(1)] if 1 in expected else expected  # 1 ends a text
        assert answer.tokens == expected
        assert path in answer.path
        assert answer.whole.decode("utf-8", "replace").startswith(prime[:40])


def test_folder_without_a_tokenizer(tmp_path: Path) -> None:
    reference = folder_of("GPT2", GPT2, tmp_path, None)
    model = segue.load(tmp_path)
    answer = model.continue_([5, 6, 7], n=8, decoder="greedy")
    with torch.no_grad():
        expected = reference.generate(torch.tensor([[5, 6, 7]]), attention_mask=torch.ones(1, 3, dtype=torch.long),
                                      max_new_tokens=8, do_sample=False, pad_token_id=0)[0, 3:].tolist()
    assert answer.tokens == (expected[: expected.index(1)] if 1 in expected else expected)
    assert model.continue_("5 6, 7", n=8, decoder="greedy").tokens == answer.tokens
    with pytest.raises(SegueError, match="without a tokenizer"):
        model.continue_("hello there", n=8)


def test_verbs_of_a_folder(tmp_path: Path) -> None:
    """Both evaluate; native models save and update, others refuse with the reason."""
    test_file = tmp_path / "held.txt"
    test_file.write_text(TEXT[1])
    classes = tmp_path / "classes.csv"
    classes.write_text("text,label\n" + "".join(f"{'a b' if i % 2 else 'c d'} {i},{i % 2}\n" for i in range(12)))
    bits = {}
    for name in ("native", "adapted"):
        folder = tmp_path / name
        options = ("GPT2", GPT2) if name == "native" else OTHERS["opt"][1:]
        folder_of(*options, folder, "bytes")
        model = segue.load(folder)
        bits[name] = model.evaluate(test_file).to_dict()["bits_per_unit"]
        ids = torch.tensor([[1, *tokenizer_of("bytes").encode(test_file.read_text()).ids, 1]])
        peer = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        with torch.no_grad():
            nats = torch.nn.functional.cross_entropy(peer(ids[:, :-1]).logits[0], ids[0, 1:], reduction="sum")
        assert bits[name] == pytest.approx(float(nats) / math.log(2) / test_file.stat().st_size, rel=1e-3)
        with torch.no_grad():
            hidden = peer(ids[:, 1:-1], output_hidden_states=True).hidden_states[-1]
        vector = model.embed(test_file).vectors
        np.testing.assert_allclose(vector, hidden.mean(1), atol=1e-4)
        model.classify(classes, save=True, quiet=True)
        assert segue.load(folder).classify(new=classes, quiet=True).said[0][1] == "0"
        if name == "native":
            model.save(tmp_path / "saved")
            reloaded = segue.load(tmp_path / "saved")
            assert reloaded.continue_("the cat", n=9, decoder="greedy").tokens == \
                model.continue_("the cat", n=9, decoder="greedy").tokens
            texts, learned = [f"{TEXT[1]} {i}" for i in range(40)], tmp_path / "learned"
            for message, arguments in (("say where it goes", {}), ("no old data to replay", {"out": learned})):
                with pytest.raises(SegueError, match=message):
                    segue.load(folder).update(texts, steps=1, quiet=True, **arguments)
            segue.load(folder).update(texts, "naive", steps=2, out=learned, quiet=True)
            assert segue.load(learned).update(texts, steps=1, quiet=True).matrix.names == ["update 1", "update 2"]
            with pytest.raises(SegueError, match="no empty folder"):
                segue.load(folder).update(texts, "naive", steps=2, out=learned, quiet=True)
        else:
            for call in (lambda model=model: model.save(tmp_path / "no"), lambda model=model: model.update(test_file)):
                with pytest.raises(SegueError, match="transformers' own code"):
                    call()
    assert all(1 < value < 10 for value in bits.values()), bits
