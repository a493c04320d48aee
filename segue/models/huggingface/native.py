"""Hugging Face folders of known families as native stacks, and native stacks as such folders.

A family is one entry of FAMILIES: a conversion of its config in both directions, and a table that maps its tensors to
those of a stack. An option that a stack does not have is a SegueError that names it (the adapter then runs the folder).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segue.errors import SegueError
from segue.files import atomic_folder, write_json
from segue.models.huggingface.files import WHOLE, Weights, read_config
from segue.models.stack import Stack, StackConfig

Config = dict[str, Any]

ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh",
               "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu", "relu2": "relu2"}
# Buffers that older checkpoints carry along; they are computed, not learned.
COMPUTED = re.compile(r"\.(attn\.(bias|masked_bias)|attention\.(bias|masked_bias)|rotary_emb\.inv_freq)$")

# Options of our mixers that some family has too; a stack with any other set cannot be written.
OPTIONS = {"attention": {"heads", "kv_heads", "head_width", "positions", "theta", "rotary_fraction", "scaling",
                         "causal", "window", "qkv_bias", "out_bias", "qk_norm", "norm_eps"},
           "mamba": {"states", "taps", "expand", "rank", "bias"}}


@dataclass(frozen=True)
class Weight:
    """The conversion between one tensor of a stack (`ours`) and one or more of a family's (`theirs`)."""

    ours: str
    theirs: tuple[str, ...]
    read: Callable[[list[Tensor]], Tensor] = lambda tensors: torch.cat(tensors) if len(tensors) > 1 else tensors[0]
    write: Callable[[Tensor], list[Tensor]] = lambda tensor: [tensor]


@dataclass(frozen=True)
class Family:
    """A family of models.

    architecture: their class in transformers. prefix: of the names of all their tensors except the head's. read: their
    config -> ours. write: ours -> theirs, for a stack of this family. weights: the table of tensors for a stack's
    config. fold: (config, layer) -> factors on queries and keys, which are multiplied into the weights since a stack
    has no option for them. head: the name of the head's weight.
    """

    architecture: str
    prefix: str
    read: Callable[[Config], StackConfig]
    write: Callable[[StackConfig], Config]
    weights: Callable[[StackConfig], Iterator[Weight]]
    fold: Callable[[Config, int], tuple[float, float]] = lambda values, layer: (1.0, 1.0)
    head: str = "lm_head.weight"


@dataclass
class Info:
    """What config.json says beyond the stack's config. positions: the longest sequence the model was made for, or None.
    begin: the id that begins a text, or None. ends: ids that end one. config: all of config.json."""

    family: str
    positions: int | None
    begin: int | None
    ends: list[int]
    config: Config = field(repr=False)

    @classmethod
    def of(cls, values: Config) -> Info:
        ends = values.get("eos_token_id")
        ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
        positions = values.get("max_position_embeddings", values.get("n_positions"))
        return cls(values["model_type"], positions, values.get("bos_token_id"), ends, values)


def expect(values: Config, model: str, **expected: Any) -> None:
    """Raise SegueError for config entries that differ from those that a stack can do; missing ones are as expected."""
    for name, value in expected.items():
        if values.get(name, value) != value:
            raise SegueError(f"a {model} with {name} = {values[name]!r} has no native form here")


def size_of(values: Config, name: str) -> int:
    """The entry `name` of a config, which must be a positive whole number."""
    value = values.get(name)
    if not isinstance(value, int) or value < 1:
        raise SegueError(f"config.json of this {values['model_type']} gives {value!r} as its '{name}', which must be a "
                         "positive whole number")
    return value


def activation(values: Config, name: str, default: str) -> str:
    """Our name of the activation that the config has as `name`."""
    hf_name = values.get(name) or default
    if hf_name not in ACTIVATIONS:
        raise SegueError(f"activation '{hf_name}' has no native form here")
    return ACTIVATIONS[hf_name]


def read_rope(values: Config) -> tuple[Config, float]:
    """The rotary settings of a config, in the format of any version of transformers, as options of our attention, and
    the factor on queries and keys."""
    settings = dict(values.get("rope_parameters") or values.get("rope_scaling") or {})
    if settings and all(isinstance(value, dict) for value in settings.values()):
        raise SegueError("rotary settings that differ by layer have no native form here")
    kind = settings.get("rope_type", settings.get("type", "default"))
    options: Config = {"theta": float(settings.get("rope_theta") or values.get("rope_theta")
                                      or values.get("rotary_emb_base") or 10_000)}
    factor: Any = settings.get("factor")
    original_length: Any = values.get("original_max_position_embeddings") or values.get("max_position_embeddings")
    original_length = settings.get("original_max_position_embeddings", original_length)
    match kind:
        case "default":
            return options, 1.0
        case "linear":
            return options | {"scaling": {"kind": "linear", "factor": float(factor)}}, 1.0
        case "llama3":
            scaling = {"kind": "llama3", "factor": float(factor), "length": int(original_length),
                       "low": float(settings["low_freq_factor"]), "high": float(settings["high_freq_factor"])}
            return options | {"scaling": scaling}, 1.0
        case "yarn":
            factor = factor or values["max_position_embeddings"] / original_length
            gain = settings.get("attention_factor")
            if gain is None:
                mscale, mscale_all = settings.get("mscale"), settings.get("mscale_all_dim")
                gain = yarn_gain(factor)
                if mscale and mscale_all:
                    gain = yarn_gain(factor, mscale) / yarn_gain(factor, mscale_all)
            scaling = {"kind": "yarn", "factor": float(factor), "length": int(original_length),
                       "low": float(settings.get("beta_slow") or 1), "high": float(settings.get("beta_fast") or 32),
                       "whole": bool(settings.get("truncate", True))}
            return options | {"scaling": scaling}, float(gain)
    raise SegueError(f"rotary scaling '{kind}' has no native form here")


def yarn_gain(factor: float, scale: float = 1.0) -> float:
    """YaRN's factor on the rotated queries and keys."""
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def rope_settings(options: Config) -> Config:
    """The rotary settings for a config.json, from options of our attention: the inverse of `read_rope`."""
    scaling = dict(options.get("scaling") or {"kind": "default"})
    kind, length = str(scaling.pop("kind")), scaling.pop("length", None)
    names: dict[str, str] = {"llama3": {"low": "low_freq_factor", "high": "high_freq_factor"},
             "yarn": {"low": "beta_slow", "high": "beta_fast", "whole": "truncate"}}.get(kind, {})
    settings: Config = {names.get(name) or name: value for name, value in scaling.items()}
    if length is not None:
        settings["original_max_position_embeddings"] = length
    if kind == "yarn":
        settings["attention_factor"] = 1.0  # the stack's weights hold it
    return {"rope_type": kind, "rope_theta": options.get("theta", 10_000.0)} | settings


def linear(ours: str, theirs: str, bias: bool) -> Iterator[Weight]:
    """The weights of a linear map that exists on both sides."""
    yield Weight(f"{ours}.weight", (f"{theirs}.weight",))
    if bias:
        yield Weight(f"{ours}.bias", (f"{theirs}.bias",))


def joined(ours: str, theirs: list[str], sizes: list[int], bias: bool) -> Iterator[Weight]:
    """The weights of several of their projections of one input, of output `sizes`, which are one of ours."""
    for part in ("weight", "bias") if bias else ("weight",):
        yield Weight(f"{ours}.{part}", tuple(f"{name}.{part}" for name in theirs),
                     write=lambda tensor: [x.contiguous() for x in tensor.split(sizes)])


def geometry(config: StackConfig, mixer: str) -> tuple[int, int, int]:
    """The number of query heads, of key-value heads and of features per head of an attention layer."""
    options = config.options.get(mixer, {})
    heads = options.get("heads", 4)
    return heads, options.get("kv_heads") or heads, options.get("head_width") or config.width // heads


# -- Llama and its kin: Mistral, Qwen2, Qwen3 ------------------------------------------------------------------------

def read_llama(values: Config) -> StackConfig:
    model = values["model_type"]
    expect(values, model, pretraining_tp=1)
    width, layers = size_of(values, "hidden_size"), size_of(values, "num_hidden_layers")
    heads = size_of(values, "num_attention_heads")
    options, _ = read_rope(values)
    options |= {"heads": heads, "kv_heads": values.get("num_key_value_heads") or heads,
                "head_width": values.get("head_dim") or (128 if model == "qwen3" else width // heads)}
    bias = bool(values.get("attention_bias", False)) and model in ("llama", "qwen3")
    options |= {"qkv_bias": bias or model == "qwen2", "out_bias": bias}
    eps = float(values.get("rms_norm_eps", 1e-6))
    if model == "qwen3":
        options |= {"qk_norm": True, "norm_eps": eps}
    mixers, window = ["attention"] * layers, values.get("sliding_window", 4096 if model == "mistral" else None)
    table = {"attention": options}
    if model == "mistral" and window is not None:
        options["window"] = window
    if model in ("qwen2", "qwen3") and values.get("use_sliding_window") and window is not None:
        kinds = values.get("layer_types") or ["sliding_attention" if i >= values.get("max_window_layers", 28)
                                              else "full_attention" for i in range(layers)]
        if unknown := set(kinds) - {"sliding_attention", "full_attention"}:
            raise SegueError(f"layers of type {sorted(unknown)} have no native form here")
        mixers = ["attention:local" if kind == "sliding_attention" else "attention" for kind in kinds]
        table["attention:local"] = options | {"window": window}
        table = {name: table[name] for name in sorted(set(mixers))}
    return StackConfig(size_of(values, "vocab_size"), width, mixers, table, "glu", size_of(values, "intermediate_size"),
                       activation(values, "hidden_act", "silu"), "rms", eps, bool(values.get("mlp_bias", False)),
                       tied=bool(values.get("tie_word_embeddings", False)))


def write_llama(config: StackConfig) -> Config:
    kinds = sorted(set(config.mixers))
    options = config.options.get(kinds[0], {})
    all_options = [config.options.get(kind, {}) for kind in kinds]
    windows = [other.get("window") for other in all_options]
    same_options = all({**other, "window": None} == {**options, "window": None} for other in all_options)
    if len({*windows} - {None}) > 1 or not same_options:
        raise SegueError("layers of attention with different options fit no family")
    qkv, out, qk_norm = (bool(options.get(name)) for name in ("qkv_bias", "out_bias", "qk_norm"))
    if qk_norm and options.get("norm_eps", 1e-6) != config.norm_eps:
        raise SegueError("query-key norms with an epsilon of their own fit no family")
    mixed_windows = len({*windows}) > 1
    model = "qwen3" if qk_norm else "qwen2" if mixed_windows or qkv > out else "mistral" if windows[0] else "llama"
    allowed = {"qwen3": qkv == out and not config.bias, "qwen2": qkv and not out and not config.bias,
               "mistral": not (qkv or out or config.bias), "llama": qkv == out}
    if not allowed[model] or options.get("rotary_fraction", 1.0) != 1.0:
        raise SegueError(f"this mixture of biases, windows and norms does not fit a {model}")
    heads, kv_heads, head_width = geometry(config, kinds[0])
    values: Config = {"hidden_act": write_activation(config), "rms_norm_eps": config.norm_eps, "head_dim": head_width,
                      "num_attention_heads": heads, "num_key_value_heads": kv_heads, "hidden_size": config.width,
                      "num_hidden_layers": len(config.mixers), "intermediate_size": config.hidden_width,
                      "rope_parameters": rope_settings(options)}
    if model in ("llama", "qwen3"):
        values["attention_bias"] = qkv
    if model == "llama":
        values["mlp_bias"] = config.bias
    window = next((span for span in windows if span), None)
    if model == "mistral" or (window and model in ("qwen2", "qwen3")):
        values["sliding_window"] = window
    if window and model in ("qwen2", "qwen3"):
        values |= {"use_sliding_window": True, "max_window_layers": 0, "layer_types": [
            "sliding_attention" if config.options[name].get("window") else "full_attention" for name in config.mixers]}
    return {"model_type": model, **values}


def llama_weights(config: StackConfig) -> Iterator[Weight]:
    yield Weight("embedding.weight", ("embed_tokens.weight",))
    for i, mixer in enumerate(config.mixers):
        options = config.options.get(mixer, {})
        heads, kv_heads, head_width = geometry(config, mixer)
        ours, theirs = f"blocks.{i}", f"layers.{i}"
        yield Weight(f"{ours}.mixer_norm.weight", (f"{theirs}.input_layernorm.weight",))
        yield from joined(f"{ours}.mixer.qkv", [f"{theirs}.self_attn.{x}_proj" for x in "qkv"],
                          [heads * head_width, kv_heads * head_width, kv_heads * head_width],
                          options.get("qkv_bias", False))
        yield from linear(f"{ours}.mixer.out", f"{theirs}.self_attn.o_proj", options.get("out_bias", False))
        if options.get("qk_norm"):
            yield Weight(f"{ours}.mixer.q_norm.weight", (f"{theirs}.self_attn.q_norm.weight",))
            yield Weight(f"{ours}.mixer.k_norm.weight", (f"{theirs}.self_attn.k_norm.weight",))
        yield Weight(f"{ours}.channel_norm.weight", (f"{theirs}.post_attention_layernorm.weight",))
        yield from joined(f"{ours}.channel.into", [f"{theirs}.mlp.gate_proj", f"{theirs}.mlp.up_proj"],
                          [config.hidden_width] * 2, config.bias)
        yield from linear(f"{ours}.channel.out", f"{theirs}.mlp.down_proj", config.bias)
    yield Weight("norm.weight", ("norm.weight",))


def fold_rope(values: Config, layer: int) -> tuple[float, float]:
    gain = read_rope(values)[1]
    return gain, gain


# -- GPT-2 -----------------------------------------------------------------------------------------------------------

def read_gpt2(values: Config) -> StackConfig:
    expect(values, "gpt2", add_cross_attention=False)
    width, heads = size_of(values, "n_embd"), size_of(values, "n_head")
    options = {"heads": heads, "positions": "none", "qkv_bias": True, "out_bias": True}
    return StackConfig(size_of(values, "vocab_size"), width, ["attention"] * size_of(values, "n_layer"),
                       {"attention": options}, "mlp", values.get("n_inner") or 4 * width,
                       activation(values, "activation_function", "gelu_new"), "layer",
                       float(values.get("layer_norm_epsilon", 1e-5)), True, size_of(values, "n_positions"),
                       tied=bool(values.get("tie_word_embeddings", True)))


def write_gpt2(config: StackConfig) -> Config:
    options = config.options.get("attention", {})
    heads, kv_heads, head_width = geometry(config, "attention")
    if kv_heads != heads or head_width * heads != config.width or options.get("window") or options.get("qk_norm") or \
            not (options.get("qkv_bias") and options.get("out_bias") and config.bias):
        raise SegueError("a GPT-2 has plain attention heads and biases everywhere; this stack does not")
    return {"model_type": "gpt2", "n_embd": config.width, "n_head": heads, "n_layer": len(config.mixers),
            "n_inner": config.hidden_width, "n_positions": config.learned_positions,
            "activation_function": write_activation(config), "layer_norm_epsilon": config.norm_eps}


def gpt2_weights(config: StackConfig) -> Iterator[Weight]:
    def transposed(ours: str, theirs: str) -> Iterator[Weight]:  # GPT-2 keeps its matrices as (input, output)
        yield Weight(f"{ours}.weight", (f"{theirs}.weight",), lambda tensors: tensors[0].T.contiguous(),
                     lambda tensor: [tensor.T.contiguous()])
        yield Weight(f"{ours}.bias", (f"{theirs}.bias",))

    yield Weight("embedding.weight", ("wte.weight",))
    yield Weight("position_embedding.weight", ("wpe.weight",))
    for i in range(len(config.mixers)):
        ours, theirs = f"blocks.{i}", f"h.{i}"
        yield from linear(f"{ours}.mixer_norm", f"{theirs}.ln_1", True)
        yield from transposed(f"{ours}.mixer.qkv", f"{theirs}.attn.c_attn")
        yield from transposed(f"{ours}.mixer.out", f"{theirs}.attn.c_proj")
        yield from linear(f"{ours}.channel_norm", f"{theirs}.ln_2", True)
        yield from transposed(f"{ours}.channel.into", f"{theirs}.mlp.c_fc")
        yield from transposed(f"{ours}.channel.out", f"{theirs}.mlp.c_proj")
    yield from linear("norm", "ln_f", True)


def fold_gpt2(values: Config, layer: int) -> tuple[float, float]:
    gain = 1.0 if values.get("scale_attn_weights", True) else math.sqrt(values["n_embd"] // values["n_head"])
    return (gain / (layer + 1) if values.get("scale_attn_by_inverse_layer_idx") else gain), 1.0


# -- GPT-NeoX (Pythia) -----------------------------------------------------------------------------------------------

def read_neox(values: Config) -> StackConfig:
    width, heads = size_of(values, "hidden_size"), size_of(values, "num_attention_heads")
    options, _ = read_rope(values)
    fraction: Any = (values.get("rope_parameters") or {}).get("partial_rotary_factor", values.get("rotary_pct", 0.25))
    rotated = int(width // heads * fraction)
    if rotated % 2:
        raise SegueError(f"a gpt_neox that rotates an odd number of features ({rotated}) has no native form here")
    bias = bool(values.get("attention_bias", True))
    options |= {"heads": heads, "rotary_fraction": fraction, "qkv_bias": bias, "out_bias": bias}
    return StackConfig(size_of(values, "vocab_size"), width, ["attention"] * size_of(values, "num_hidden_layers"),
                       {"attention": options}, "mlp", size_of(values, "intermediate_size"),
                       activation(values, "hidden_act", "gelu"), "layer", float(values.get("layer_norm_eps", 1e-5)),
                       True, parallel=bool(values.get("use_parallel_residual", True)),
                       tied=bool(values.get("tie_word_embeddings", False)))


def write_neox(config: StackConfig) -> Config:
    options = config.options.get("attention", {})
    heads, kv_heads, head_width = geometry(config, "attention")
    bias = bool(options.get("qkv_bias"))
    if kv_heads != heads or head_width * heads != config.width or options.get("window") or options.get("qk_norm") or \
            bias != bool(options.get("out_bias")) or not config.bias:
        raise SegueError("a GPT-NeoX has plain attention heads and a channel mixer with biases; this stack does not")
    fraction = options.get("rotary_fraction", 1.0)
    return {"model_type": "gpt_neox", "hidden_size": config.width, "num_attention_heads": heads,
            "num_hidden_layers": len(config.mixers), "intermediate_size": config.hidden_width,
            "hidden_act": write_activation(config), "layer_norm_eps": config.norm_eps, "attention_bias": bias,
            "use_parallel_residual": config.parallel, "rotary_pct": fraction,
            "rope_parameters": rope_settings(options) | {"partial_rotary_factor": fraction}}


def neox_weights(config: StackConfig) -> Iterator[Weight]:
    heads, _, head_width = geometry(config, "attention")
    bias = bool(config.options.get("attention", {}).get("qkv_bias"))

    def regroup(x: Tensor, outer: int, inner: int) -> Tensor:  # theirs is head by head, ours all queries first
        return x.unflatten(0, (outer, inner, head_width)).transpose(0, 1).flatten(0, 2).contiguous()

    yield Weight("embedding.weight", ("embed_in.weight",))
    for i in range(len(config.mixers)):
        ours, theirs = f"blocks.{i}", f"layers.{i}"
        yield from linear(f"{ours}.mixer_norm", f"{theirs}.input_layernorm", True)
        for part in ("weight", "bias") if bias else ("weight",):
            yield Weight(f"{ours}.mixer.qkv.{part}", (f"{theirs}.attention.query_key_value.{part}",),
                         lambda tensors: regroup(tensors[0], heads, 3), lambda tensor: [regroup(tensor, 3, heads)])
        yield from linear(f"{ours}.mixer.out", f"{theirs}.attention.dense", bias)
        yield from linear(f"{ours}.channel_norm", f"{theirs}.post_attention_layernorm", True)
        yield from linear(f"{ours}.channel.into", f"{theirs}.mlp.dense_h_to_4h", True)
        yield from linear(f"{ours}.channel.out", f"{theirs}.mlp.dense_4h_to_h", True)
    yield from linear("norm", "final_layer_norm", True)


# -- Mamba -----------------------------------------------------------------------------------------------------------

def read_mamba(values: Config) -> StackConfig:
    expect(values, "mamba", hidden_act="silu")
    width = size_of(values, "hidden_size")
    rank: Any = values.get("time_step_rank", "auto")
    options: Config = {"states": values.get("state_size", 16), "taps": values.get("conv_kernel", 4),
               "expand": values.get("expand", 2), "rank": math.ceil(width / 16) if rank == "auto" else rank,
               "bias": bool(values.get("use_bias", False))}
    if options["expand"] != int(options["expand"]):
        raise SegueError(f"a mamba that expands {options['expand']} times has no native form here")
    return StackConfig(size_of(values, "vocab_size"), width, ["mamba"] * size_of(values, "num_hidden_layers"),
                       {"mamba": options}, "none", norm="rms", norm_eps=float(values.get("layer_norm_epsilon", 1e-5)),
                       tied=bool(values.get("tie_word_embeddings", True)))


def write_mamba(config: StackConfig) -> Config:
    options = config.options.get("mamba", {})
    return {"model_type": "mamba", "hidden_size": config.width, "num_hidden_layers": len(config.mixers),
            "state_size": options.get("states", 16), "conv_kernel": options.get("taps", 4),
            "expand": options.get("expand", 2), "time_step_rank": options.get("rank") or math.ceil(config.width / 16),
            "use_bias": bool(options.get("bias")), "use_conv_bias": True, "layer_norm_epsilon": config.norm_eps}


def mamba_weights(config: StackConfig) -> Iterator[Weight]:
    bias = bool(config.options.get("mamba", {}).get("bias"))
    yield Weight("embedding.weight", ("embeddings.weight",))
    for i in range(len(config.mixers)):
        ours, theirs = f"blocks.{i}.mixer", f"layers.{i}.mixer"
        yield Weight(f"blocks.{i}.mixer_norm.weight", (f"layers.{i}.norm.weight",))
        yield from linear(f"{ours}.into", f"{theirs}.in_proj", bias)
        yield Weight(f"{ours}.convolution.weight", (f"{theirs}.conv1d.weight",),
                     lambda tensors: tensors[0].squeeze(1), lambda tensor: [tensor.unsqueeze(1)])
        yield Weight(f"{ours}.convolution.bias", (f"{theirs}.conv1d.bias",))
        yield from linear(f"{ours}.select", f"{theirs}.x_proj", False)
        yield from linear(f"{ours}.step", f"{theirs}.dt_proj", True)
        yield Weight(f"{ours}.scan.A_log", (f"{theirs}.A_log",))
        yield Weight(f"{ours}.scan.D", (f"{theirs}.D",))
        yield from linear(f"{ours}.out", f"{theirs}.out_proj", bias)
    yield Weight("norm.weight", ("norm_f.weight",))


FAMILIES: dict[str, Family] = {
    "gpt2": Family("GPT2LMHeadModel", "transformer.", read_gpt2, write_gpt2, gpt2_weights, fold_gpt2),
    "gpt_neox": Family("GPTNeoXForCausalLM", "gpt_neox.", read_neox, write_neox, neox_weights, fold_rope,
                       "embed_out.weight"),
    "llama": Family("LlamaForCausalLM", "model.", read_llama, write_llama, llama_weights, fold_rope),
    "mamba": Family("MambaForCausalLM", "backbone.", read_mamba, write_mamba, mamba_weights),
    "mistral": Family("MistralForCausalLM", "model.", read_llama, write_llama, llama_weights, fold_rope),
    "qwen2": Family("Qwen2ForCausalLM", "model.", read_llama, write_llama, llama_weights, fold_rope),
    "qwen3": Family("Qwen3ForCausalLM", "model.", read_llama, write_llama, llama_weights, fold_rope),
}


def from_huggingface(folder: str | Path, dtype: torch.dtype = torch.float32) -> tuple[Stack, Info]:
    """A native stack with the weights of a local Hugging Face folder, and the rest of its config.

    Reads config.json and safetensors itself: transformers is not needed, and no code of the folder runs. dtype: of the
    weights. A family or an option without a native form is a SegueError (`HuggingFaceModel` runs those).
    """
    values = read_config(folder)
    family = FAMILIES.get(values["model_type"])
    if family is None:
        raise SegueError(f"model_type '{values['model_type']}' has no native form here, only {', '.join(FAMILIES)}")
    architectures = values.get("architectures") or [family.architecture]
    if family.architecture not in architectures and not any(name.endswith("Model") for name in architectures):
        raise SegueError(f"{folder} holds a {architectures[0]}, not a causal language model ({family.architecture})")
    try:
        config = family.read(values)
        gains = [family.fold(values, layer) for layer in range(len(config.mixers))]
    except (TypeError, ValueError, KeyError, ZeroDivisionError) as error:
        raise SegueError(f"{Path(folder) / 'config.json'} does not describe a {values['model_type']} ({error!r})") \
            from error
    return load(family, config, Weights(folder), gains, dtype), Info.of(values)


def load(family: Family, config: StackConfig, weights: Weights, gains: list[tuple[float, float]],
         dtype: torch.dtype) -> Stack:
    """A stack of this config with the folder's weights. gains: the factors on queries and keys of each layer.
    SegueError where tensors are missing, unused or of another shape."""
    tensors, tied = read_tensors(family, config, weights, dtype)
    config = StackConfig.from_dict(config.to_dict() | {"tied": tied})
    with torch.device("meta"):
        stack = Stack(config)
    for name, parameter in stack.state_dict().items():
        if name not in tensors or tensors[name].shape != parameter.shape:
            problem = "is missing" if name not in tensors else f"has shape {tuple(tensors[name].shape)}"
            raise SegueError(f"{weights.folder}: the weights of '{name}' {problem}, not {tuple(parameter.shape)}: "
                             "they do not fit config.json")
    for layer, (queries, keys) in enumerate(gains):
        if (queries, keys) != (1.0, 1.0):
            fold(stack.blocks[layer].mixer, f"blocks.{layer}.mixer", tensors, queries, keys)
    stack.load_state_dict(tensors, assign=True)
    if tied:
        stack.head.weight = stack.embedding.weight
    return stack.requires_grad_(True).eval()


def read_tensors(family: Family, config: StackConfig, weights: Weights, dtype: torch.dtype,
                 ) -> tuple[dict[str, Tensor], bool]:
    """The folder's weights by the names of a stack's, and whether head and embedding are tied: where the config says
    so, unless the folder holds a different head."""
    prefix = family.prefix if any(name.startswith(family.prefix) for name in weights) else ""
    tensors: dict[str, Tensor] = {}
    used: set[str] = set()
    for weight in family.weights(config):
        names = [prefix + name for name in weight.theirs]
        if weight.ours.endswith("convolution.bias") and names[0] not in weights:
            channels = tensors[weight.ours.replace(".bias", ".weight")].shape[0]
            tensors[weight.ours] = torch.zeros(channels, dtype=dtype)
            continue
        used.update(names)
        tensors[weight.ours] = weight.read([weights[name] for name in names]).to(dtype)
    head = next((name for name in (family.head, "lm_head.weight") if name in weights), None)
    tied = config.tied or head is None
    if head is not None:
        used.add(head)
        tensors["head.weight"] = weights[head].to(dtype)
        tied = tied and torch.equal(tensors["head.weight"], tensors["embedding.weight"])
    if unused := [name for name in weights if name not in used and not COMPUTED.search(name)]:
        raise SegueError(f"{weights.folder} has {len(unused)} tensors that its config.json does not explain "
                         f"('{sorted(unused)[0]}', ...)")
    if tied:
        tensors["head.weight"] = tensors["embedding.weight"]
    return tensors, tied


def fold(mixer: Any, name: str, tensors: dict[str, Tensor], queries: float, keys: float) -> None:
    """Multiply factors on queries and keys (in rotary attention: on the rotated features) into the weights of the mixer
    called `name` in `tensors`."""
    rotated = 2 * len(mixer.frequencies) if mixer.positions == "rotary" else mixer.head_width
    gain = torch.ones(2, mixer.head_width)
    gain[0, :rotated], gain[1, :rotated] = queries, keys
    if mixer.q_norm is not None:
        for index, norm in enumerate(("q_norm", "k_norm")):
            key = f"{name}.{norm}.weight"
            tensors[key] = (tensors[key] * gain[index]).to(tensors[key].dtype)
        return
    rows = torch.cat([gain[0].repeat(mixer.heads), gain[1].repeat(mixer.kv_heads),
                      torch.ones(mixer.kv_heads * mixer.head_width)])
    for part in ("weight", "bias"):
        if (tensor := tensors.get(f"{name}.qkv.{part}")) is not None:
            tensors[f"{name}.qkv.{part}"] = (tensor * rows.view(-1, *[1] * (tensor.dim() - 1))).to(tensor.dtype)


def write_activation(config: StackConfig) -> str:
    """The name that transformers has for our activation."""
    return {"gelu_tanh": "gelu_pytorch_tanh"}.get(config.activation, config.activation)


def family_of(config: StackConfig) -> Config:
    """The config.json of a stack, in the family that it fits; a SegueError if it fits none."""
    kinds = {name.partition(":")[0] for name in config.mixers}
    options = [config.options.get(name, {}) for name in config.mixers]
    rotary = all(o.get("positions", "rotary") == "rotary" for o in options)
    plain = all(o.get("causal", True) and not {key for key, value in o.items() if value}
                - OPTIONS.get(name.partition(":")[0], set()) for name, o in zip(config.mixers, options))
    values: Config = {}
    standard = not (config.embed_norm or config.post_norm or config.transform or config.inputs or config.pool
                    or config.tables) and config.cross is None
    if standard and plain:
        shape = (config.norm, config.channel)
        if kinds == {"mamba"} and shape == ("rms", "none") and not config.learned_positions:
            values = write_mamba(config)
        elif kinds == {"attention"} and rotary and shape == ("rms", "glu") and not config.parallel and \
                not config.learned_positions:
            values = write_llama(config)
        elif set(config.mixers) == {"attention"} and rotary and shape == ("layer", "mlp") and \
                not config.learned_positions:
            values = write_neox(config)
        elif set(config.mixers) == {"attention"} and shape == ("layer", "mlp") and config.learned_positions and \
                not config.parallel and options[0].get("positions") == "none":
            values = write_gpt2(config)
    if not values:
        raise SegueError(f"a stack of {'+'.join(sorted(kinds))} with these options, {config.norm} norms and channel "
                         f"'{config.channel}' fits none of the families {', '.join(FAMILIES)}")
    family = FAMILIES[values["model_type"]]
    return values | {"architectures": [family.architecture], "vocab_size": config.vocabulary,
                     "tie_word_embeddings": config.tied}


def to_huggingface(stack: Stack, folder: str | Path, positions: int = 4096, begin: int | None = None,
                   ends: list[int] | None = None) -> None:
    """Write a stack as a Hugging Face folder (config.json, model.safetensors) that transformers loads.

    positions: the longest sequence, for config.json only (no effect on outputs). begin, ends: ids that begin and end a
    text. A stack that fits no family is a SegueError. Replaces the folder, atomically.
    """
    from safetensors.torch import save_file

    values = family_of(stack.config)
    family = FAMILIES[values["model_type"]]
    state = {name: tensor.detach().cpu() for name, tensor in stack.state_dict().items()}
    dtype = str(stack.embedding.weight.dtype).removeprefix("torch.")
    values |= {"dtype": dtype, "torch_dtype": dtype, "bos_token_id": begin, "pad_token_id": None,
               "eos_token_id": ends[0] if ends and len(ends) == 1 else ends or None}
    if values["model_type"] not in ("gpt2", "mamba"):
        values["max_position_embeddings"] = positions
    tensors: dict[str, Tensor] = {} if stack.config.tied else {family.head: state["head.weight"].contiguous()}
    for weight in family.weights(stack.config):
        for name, tensor in zip(weight.theirs, weight.write(state[weight.ours])):
            tensors[family.prefix + name] = tensor.contiguous()
    with atomic_folder(folder) as temporary:
        write_json(temporary / "config.json", values)
        save_file(tensors, temporary / WHOLE, {"format": "pt"})
