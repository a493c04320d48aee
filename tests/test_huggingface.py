"""Hugging Face folders: native conversion both ways, the adapter, tokenizers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
transformers = pytest.importorskip("transformers")
transformers.utils.logging.disable_progress_bar()

from segue.errors import SegueError  # noqa: E402
from segue.models import StackConfig  # noqa: E402
from segue.models.huggingface import from_huggingface, to_huggingface  # noqa: E402
from segue.models.stack import Stack  # noqa: E402

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
    theirs = tiny(*MODELS[name])
    theirs.save_pretrained(tmp_path)
    ours, info = from_huggingface(tmp_path)
    tokens = torch.randint(61, (3, 90))
    with torch.no_grad():
        expected = theirs(tokens).logits
        found = ours(tokens).logits
        # As a decoder: a prompt, then one by one.
        state, parts = ours.init_state(3), []
        for piece in (tokens[:, :80], *tokens[:, 80:].split(1, 1)):
            parts.append(ours.extend(piece, state).logits)
            state.commit()
    assert (found - expected).abs().max() < 1e-4, (found - expected).abs().max()
    assert (torch.cat(parts, 1) - expected).abs().max() < 1e-4
    assert info.ends == [1] and info.begin == 0
    assert (ours.head.weight is ours.embedding.weight) == bool(theirs.config.tie_word_embeddings)


@pytest.mark.parametrize("name", ["gpt2", "llama biases, wide heads", "gpt_neox", "mamba", "qwen3 yarn"])
def test_native_logits_in_bfloat16(name: str, tmp_path: Path) -> None:
    theirs = tiny(*MODELS[name]).to(torch.bfloat16)
    theirs.save_pretrained(tmp_path)
    ours, _ = from_huggingface(tmp_path, dtype=torch.bfloat16)
    exact, _ = from_huggingface(tmp_path, dtype=torch.float32)
    tokens = torch.randint(61, (2, 40))
    with torch.no_grad():
        reference, expected, found = exact(tokens).logits, theirs(tokens).logits, ours(tokens).logits
    assert found.dtype == torch.bfloat16
    # Both stray from the exact result by the same rounding.
    assert (found - reference).abs().mean() < 1.5 * (expected - reference).abs().mean() + 1e-3


@pytest.mark.parametrize("name", ["llama", "llama llama3", "qwen3"])
def test_native_logits_far_beyond_the_trained_length(name: str, tmp_path: Path) -> None:
    theirs = tiny(*MODELS[name])
    theirs.save_pretrained(tmp_path)
    ours, _ = from_huggingface(tmp_path)
    tokens = torch.randint(61, (1, 2000))
    with torch.no_grad():
        assert (ours(tokens).logits - theirs(tokens).logits).abs().max() < 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_export_round_trip(name: str, tmp_path: Path) -> None:
    """Folder -> stack -> folder: transformers finds the same model in both."""
    theirs = tiny(*MODELS[name])
    theirs.save_pretrained(tmp_path / "a")
    stack, _ = from_huggingface(tmp_path / "a")
    to_huggingface(stack, tmp_path / "b", positions=128, begin=0, ends=[1])
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "b").eval()
    assert type(again) is type(theirs) or name.startswith("mistral without")  # without a window it is a Llama
    tokens = torch.randint(61, (2, 60))
    with torch.no_grad():
        assert (again(tokens).logits - theirs(tokens).logits).abs().max() < 1e-4
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
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    tokens = torch.randint(40, (2, 50))
    with torch.no_grad():
        assert (theirs(tokens).logits - stack(tokens).logits).abs().max() < 1e-4


def test_export_refuses_what_fits_no_family(tmp_path: Path) -> None:
    for options in ({"mixers": ["gla"]}, {"mixers": ["attention", "mamba"]}, {"mixers": ["attention"], "norm": "layer"},
                    {"mixers": ["attention"], "options": {"attention": {"causal": False}}},
                    {"mixers": ["attention"], "options": {"attention": {"positions": "alibi"}}}):
        with pytest.raises(SegueError, match="fits none of the families"):
            to_huggingface(Stack(StackConfig(vocabulary=10, width=16, **options)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_shards_old_names_and_computed_buffers(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    theirs = tiny("GPT2", GPT2)
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    tokens = torch.randint(61, (1, 30))
    with torch.no_grad():
        expected = theirs(tokens).logits
    assert (from_huggingface(tmp_path)[0](tokens).logits - expected).abs().max() < 1e-4
    # As the oldest folders are: no prefix, with the causal mask among the weights.
    whole: dict[str, torch.Tensor] = {}
    for shard in tmp_path.glob("model-*.safetensors"):
        whole |= {key.removeprefix("transformer."): tensor for key, tensor in load_file(shard).items()}
        shard.unlink()
    (tmp_path / "model.safetensors.index.json").unlink()
    whole["h.0.attn.bias"] = torch.ones(1, 1, 96, 96).tril()
    save_file(whole, tmp_path / "model.safetensors")
    assert (from_huggingface(tmp_path)[0](tokens).logits - expected).abs().max() < 1e-4


def test_old_rotary_settings(tmp_path: Path) -> None:
    """Folders written before rope_parameters: rope_theta and rope_scaling, rotary_pct and rotary_emb_base."""
    for name, old in (("llama", {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.0}}),
                      ("gpt_neox", {"rotary_pct": 0.5, "rotary_emb_base": 500})):
        folder = tmp_path / name
        tiny(*MODELS[name]).save_pretrained(folder)
        values = json.loads((folder / "config.json").read_text())
        del values["rope_parameters"]
        (folder / "config.json").write_text(json.dumps(values | old))
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        tokens = torch.randint(61, (1, 30))
        with torch.no_grad():
            assert (from_huggingface(folder)[0](tokens).logits - theirs(tokens).logits).abs().max() < 1e-4


def broken(folder: Path, **changes: Any) -> Path:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | changes))
    return folder


def test_what_has_no_native_form_is_refused(tmp_path: Path) -> None:
    theirs = tiny("Llama", LLAMA)
    cases = [({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rotary scaling 'dynamic'"),
             ({"hidden_act": "quick_gelu"}, "activation 'quick_gelu'"), ({"model_type": "bloom"}, "no native form"),
             ({"architectures": ["LlamaForSequenceClassification"]}, "not a causal language model"),
             ({"hidden_size": None}, "as its 'hidden_size'"), ({"num_attention_heads": 0}, "positive whole number"),
             ({"intermediate_size": 49}, "has shape"), ({"mlp_bias": True}, "has no tensor"),
             ({"num_hidden_layers": 1}, "does not explain"), ({"hidden_size": "wide"}, "gives 'wide'"),
             ({"rope_parameters": {"rope_type": "linear"}}, "does not describe"), ({"vocab_size": 60}, "has shape")]
    for index, (changes, message) in enumerate(cases):
        folder = tmp_path / str(index)
        theirs.save_pretrained(folder)
        with pytest.raises(SegueError, match=message):
            from_huggingface(broken(folder, **changes))


def test_broken_folders_are_one_clear_line(tmp_path: Path) -> None:
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
