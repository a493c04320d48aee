"""The one native model: embed, a stack of blocks (a mixer and a channel mixer each), norm, head.

Models differ only in the names of their mixers and in the options of their config, which cover the GPT-2, Llama, Qwen,
GPT-NeoX and Mamba families.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from segue.errors import SegueError, check_choice
from segue.kernels.dropout import Dropout
from segue.mixers import MIXERS, Mixer
from segue.mixers.cross import make_cross_attention
from segue.mixers.layout import Layout, can_check_values, check_rows, gather_nodes
from segue.mixers.regions import RegionLabels
from segue.mixers.state import Carry, Part, Parts, State
from segue.mixers.traits import Traits
from segue.models.base import Decoding, Output, check_tokens

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
}


MAX_LAYERS = 1000  # of a pattern; a larger count is taken for a mistake


def both_ways(config: StackConfig) -> StackConfig:
    """The config of the same stack read in both directions: attention is made non-causal, any other causal mixer is
    paired with its mirror image (`segue.mixers.bidirectional`), and bidirectional mixers are left as they are."""
    names, options = list[str](), dict(config.options)
    for name in config.mixers:
        base = name.partition(":")[0]
        kind, own = MIXERS[base], config.options.get(name, {})
        if kind.causal and "causal" in inspect.signature(kind).parameters:
            options[name] = {**own, "causal": False}
        elif kind.causal:
            options.pop(name, None)
            name = f"bidirectional:{name}"
            options[name] = {"mixer": base, **own}
        names.append(name)
    return replace(config, mixers=names, options=options)


def expand_pattern(pattern: str, depth: int | None = None) -> list[str]:
    """'mamba*3+attention' -> one mixer name per layer; the pattern is repeated until `depth` layers (default: once)."""
    names: list[str] = []
    for term in pattern.replace(" ", "").split("+"):
        name, star, times = term.partition("*")
        if name.partition(":")[0] not in MIXERS or name.endswith(":"):
            raise SegueError(f"mixer '{name}' in pattern '{pattern}' is unknown: "
                             f"choose from {', '.join(sorted(MIXERS))}")
        if star and not (times.isdecimal() and int(times)):
            raise SegueError(f"'{term}' in pattern '{pattern}': write NAME*COUNT with a positive whole COUNT")
        if len(names) + int(times or 1) > MAX_LAYERS:
            raise SegueError(f"'{pattern}' has more than {MAX_LAYERS:,} layers: write fewer")
        names += [name] * int(times or 1)
    return names if depth is None else [names[i % len(names)] for i in range(depth)]


@dataclass(frozen=True)
class StackConfig:
    """Everything that makes a stack, as plain values (this is the saved `config.json`).

    vocabulary: V. width: D. mixers: one name per layer, with a label where layers of one mixer differ
        ("attention:local"). options: keyword arguments of each mixer, by name with label.
    channel: "glu" (gated), "mlp" or "none". hidden: width inside the channel mixer (default: 8/3 D gated, 4 D plain).
    activation: see ACTIVATIONS. norm: "rms" or "layer". bias: biases in the channel mixer.
    learned_positions: how many learned absolute positions are added to the embedding (0: none).
    parallel: mixer and channel mixer both read the block's input (GPT-NeoX). tied: the head is the embedding.
    embed_norm: normalise the embedding before the first block. dropout: on each branch, in training only.
    inputs: C, where the elements are vectors of C real numbers instead of ids (a linear map embeds them).
    shared: layers of one name (with label) are one block, applied again and again (ALBERT, Lan et al. 2020).
    post_norm: norms come after the sum, norm(x + branch(x)), and none after the last block (Vaswani et al. 2017, BERT);
        default: before each branch, x + branch(norm(x)).
    transform: a dense layer of width D, the activation and a norm precede the head, which then has biases (BERT, Devlin
        et al. 2019; BERT4Rec). The stack's hidden vectors are the outputs of this transform.
    pool: "mean" replaces each hidden vector by the mean of those of the document up to there; at the last element that
        is the mean of all, as a classifier needs. "" (default): no pooling.
    tables: further embeddings, the number of rows by name. Elements are then (B, T, 1 + tables) long, an id and a row
        of each table; their embeddings are summed, with learned positions if there are any, before `embed_norm`
        (Recformer: Li et al. 2023, arXiv 2305.13731: word, position, type of token, position of the item).
    cross: keyword arguments of a cross-attention in each block, between mixer and channel mixer, to the source that the
        layout brings (see `segue.models.seq2seq`), by position where it names a mixer (see `segue.mixers.cross`); the
        id V then begins a target. With an entry "gate", "soft" or "xor" or one of them for each block, mixer output a
        and cross-attention c are combined in one branch instead, the latter only within regions: (a + g c) / 2 or, for
        "xor", ((1 - g) a + g c) / 2, with g = 1 in regions and else 0 (Theme Transformer, 2021, arXiv 2111.04093). None
        (default): no cross-attention.
    regions: the ids that open and close a region (see `segue.mixers.regions`), or None.
    traits: attributes of ids, by name (see `segue.mixers.traits`), for attention with an option of that name.
    """

    vocabulary: int
    width: int
    mixers: list[str]
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    channel: str = "glu"
    hidden: int | None = None
    activation: str = "silu"
    norm: str = "rms"
    norm_eps: float = 1e-6
    bias: bool = False
    learned_positions: int = 0
    parallel: bool = False
    tied: bool = True
    embed_norm: bool = False
    dropout: float = 0.0
    inputs: int = 0
    pool: str = ""
    shared: bool = False
    post_norm: bool = False
    transform: bool = False
    tables: dict[str, int] = field(default_factory=dict)
    cross: dict[str, Any] | None = None
    regions: list[int] | None = None
    traits: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def hidden_width(self) -> int:
        """The width inside the channel mixer."""
        default = math.ceil(self.width * 8 / 3 / 32) * 32 if self.channel == "glu" else 4 * self.width
        return self.hidden or default

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> StackConfig:
        names = {f.name for f in fields(cls)}
        if unknown := set(values) - names:
            raise SegueError(f"the model's config has unknown entries {sorted(unknown)}: "
                             "was it written by a newer segue?")
        try:
            return cls(**values)
        except TypeError as error:
            raise SegueError(f"the model's config is incomplete: {error}") from error


def check_config(config: StackConfig) -> None:
    """Raise SegueError for a config with unknown values or options that exclude each other."""
    if config.channel not in ("glu", "mlp", "none") or config.activation not in ACTIVATIONS:
        raise SegueError(f"channel '{config.channel}' with activation '{config.activation}' is unknown: "
                         f"choose glu, mlp or none, and one of {', '.join(ACTIVATIONS)}")
    check_choice("norm", config.norm, ("rms", "layer"))
    if unknown := {name for name in config.options if name.partition(":")[0] not in MIXERS}:
        raise SegueError(f"options of unknown mixers {sorted(unknown)}: choose from {', '.join(sorted(MIXERS))}")
    if config.pool not in ("", "mean") or (config.inputs and config.tied):
        raise SegueError(f"pool '{config.pool}', inputs {config.inputs}, tied {config.tied} do not fit: pool is "
                         "'' or 'mean', and a model of real vectors has an untied head")
    if config.parallel and config.post_norm:
        raise SegueError("parallel branches read one normed input: leave parallel or post_norm out")
    if config.tables and (config.inputs or config.cross is not None or min(config.tables.values()) < 1):
        raise SegueError(f"tables {config.tables} stand beside an embedding of ids, with rows in each: leave "
                         "inputs and cross out")
    if config.regions is not None and (len(config.regions) != 2 or config.inputs or config.tables or
                                       not all(0 <= region < config.vocabulary for region in config.regions)):
        raise SegueError(f"regions {config.regions} are two of the model's ids, of what opens one and what closes "
                         "it: leave inputs and tables out")
    if config.traits and (config.inputs or config.tables):
        raise SegueError("ids have traits: leave inputs and tables out")
    if config.cross is not None and (config.parallel or config.inputs):
        raise SegueError("cross-attention stands between mixer and channel mixer, in a model of ids: leave "
                         "parallel and inputs out")


class ChannelMixer(nn.Module):
    """Position-wise network: gated (Shazeer 2020) or plain."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        gated = config.channel == "glu"
        self.gated, hidden = gated, config.hidden_width
        self.activation = ACTIVATIONS[config.activation]
        self.into = nn.Linear(config.width, hidden * (1 + gated), bias=config.bias)
        self.out = nn.Linear(hidden, config.width, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.into(x)
        if self.gated:
            gate, y = y.chunk(2, -1)
            return self.out(self.activation(gate) * y)
        return self.out(self.activation(y))


def make_norm(config: StackConfig) -> nn.Module:
    """The normalisation layer of the config's `norm`."""
    return (nn.RMSNorm if config.norm == "rms" else nn.LayerNorm)(config.width, eps=config.norm_eps)


class Transform(nn.Module):
    """A dense layer, the activation and a norm before the head (`StackConfig.transform`)."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.dense, self.norm = nn.Linear(config.width, config.width), make_norm(config)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.activation(self.dense(x)))


def cross_attention_gates(config: StackConfig) -> list[str]:
    """The gate of each block's cross-attention: "soft", "xor", or "" for a cross-attention after the mixer."""
    gate = (config.cross or {}).get("gate", "")
    gates = [gate] * len(config.mixers) if isinstance(gate, str) else list(gate)
    if len(gates) != len(config.mixers) or not set(gates) <= {"", "soft", "xor"}:
        raise SegueError(f"gate {gate!r} is none of '', soft and xor, nor one of them for each of the "
                         f"{len(config.mixers)} blocks")
    if any(gates) and config.regions is None:
        raise SegueError("gated cross-attention needs regions: give regions, the ids that open and close one")
    return gates


class LearnedState(nn.Module):
    """A learned offset to the initial state of a block's mixers (see `segue.models.adapters.InitialState`).

    parts: of a fresh state; the learnable tensors of its carries get offsets. rank: matrices (K, E) get the low-rank
    offset scale * sum_r k_r v_r^T, with k ~ N(0, 1) and v ~ N(0, scale^2) initially; with rank 0, or a rank as high as
    the matrix's, matrices get scale times a full matrix, initially 0, as vectors do. seed: of k and v.
    """

    def __init__(self, parts: Mapping[str, Part], rank: int, scale: float, seed: int) -> None:
        super().__init__()
        self.scale, draw = scale, torch.Generator().manual_seed(seed)
        self.tables = nn.ParameterDict()
        for name, part in parts.items():
            if not isinstance(part, Carry):
                continue
            for index, tensor in enumerate(part.state):
                free, shape = part.recurrence.learnable_tensors, tensor.shape[1:]
                if (free is not None and index not in free) or not tensor.is_floating_point():
                    continue
                if len(shape) > 1 and 0 < rank < min(shape[-2:]):
                    k = torch.randn(*shape[:-1], rank, generator=draw)
                    v = torch.randn(*shape[:-2], rank, shape[-1], generator=draw) * scale
                    self.tables[f"{name}:{index}:k"], self.tables[f"{name}:{index}:v"] = k.to(tensor), v.to(tensor)
                else:
                    self.tables[f"{name}:{index}"] = torch.zeros_like(tensor[0])

    def offset(self, name: str) -> Tensor | None:
        """The offset of one tensor of the state, for one row; None if there is none."""
        if name in self.tables:
            return self.scale * self.tables[name]
        if f"{name}:k" not in self.tables:
            return None
        return self.scale * (self.tables[f"{name}:k"] @ self.tables[f"{name}:v"])

    def apply_to(self, parts: Mapping[str, Part], like: Tensor) -> None:
        """Add the offsets to the carries of a fresh state."""
        for name, part in parts.items():
            if not isinstance(part, Carry):
                continue
            initial, state = part.recurrence.learnable_initial(part.state[0].shape[0], like), list(part.state)
            for index, old in enumerate(state):
                offset = self.offset(f"{name}:{index}")
                state[index] = initial[index] if offset is None else old + offset.to(old.dtype)
            part.state = part.replay_state = tuple(state)


class Block(nn.Module):
    """x + mixer(norm(x)), x + cross-attention(norm(x)) where there is one, then x + channel(norm(x)); or mixer and
    channel mixer from the same x (`parallel`); or norms after the sums (`post_norm`); or mixer and cross-attention
    in one branch (`gate`)."""

    def __init__(self, config: StackConfig, mixer: str, index: int = 0) -> None:
        super().__init__()
        self.mixer_norm = make_norm(config)
        try:
            self.mixer = MIXERS[mixer.partition(":")[0]](config.width, **config.options.get(mixer, {}))
        except TypeError as error:
            raise SegueError(f"options of mixer '{mixer}': {error}") from error
        options = {} if config.cross is None else {k: v for k, v in config.cross.items() if k != "gate"}
        self.gate = cross_attention_gates(config)[index]
        self.cross_norm = make_norm(config) if config.cross is not None and not self.gate else None
        self.cross = make_cross_attention(config.width, options) if config.cross is not None else None
        self.channel_norm = make_norm(config) if config.channel != "none" else None
        self.channel = ChannelMixer(config) if config.channel != "none" else None
        self.parallel, self.post_norm, self.drop = config.parallel, config.post_norm, Dropout(config.dropout)
        self.begins: list[LearnedState] = nn.ModuleList()  # type: ignore[assignment]  # set by adapters
        self.recomputable = all(module.recomputable for module in self.modules() if isinstance(module, Mixer))

    def _gated_mix(self, mix: Callable[[Mixer, Tensor], Tensor], labels: Tensor | None, x: Tensor) -> Tensor:
        """Mixer and, within regions, cross-attention. The factor 1/2 stays where a gate is 0, to keep the scale."""
        assert self.cross is not None and labels is not None
        inside = (labels > 0)[..., None]
        mixed, attended = mix(self.mixer, x), mix(self.cross, x).masked_fill(~inside, 0.0)
        return (mixed.masked_fill(inside, 0.0) if self.gate == "xor" else mixed).add(attended) / 2

    def forward(self, x: Tensor, mix: Callable[[Mixer, Tensor], Tensor], labels: Tensor | None = None) -> Tensor:
        """x: (B, N, D). mix: applies a mixer to normed x. labels: `Layout.labels`, needed by gates."""
        if self.channel is not None and self.channel_norm is not None and self.parallel:
            return x + self.drop(mix(self.mixer, self.mixer_norm(x))) + self.drop(self.channel(self.channel_norm(x)))

        def add(x: Tensor, branch: Callable[[Tensor], Tensor], norm: nn.Module) -> Tensor:
            return norm(x + self.drop(branch(x))) if self.post_norm else x + self.drop(branch(norm(x)))

        x = add(x, partial(self._gated_mix, mix, labels) if self.gate else partial(mix, self.mixer), self.mixer_norm)
        if self.cross is not None and self.cross_norm is not None:
            x = add(x, partial(mix, self.cross), self.cross_norm)
        if self.channel is None or self.channel_norm is None:
            return x
        return add(x, self.channel, self.channel_norm)

    def parts(self, batch: int, like: Tensor, history: int) -> dict[str, Part]:
        """The parts of a fresh state, with learned initial states applied."""
        parts = self.mixer.parts(batch, like, history)
        if self.cross is not None:
            parts |= self.cross.parts(batch, like, history)
        for begin in self.begins:
            begin.apply_to(parts, like)
        return parts

    def initial_parts(self, x: Tensor) -> Parts:
        """The parts that the training form starts from, for whole rows x (B, N, D): none, unless initial states are
        learned."""
        return self.parts(x.shape[0], x, 0) if len(self.begins) else {}


def running_mean(x: Tensor, layout: Layout) -> Tensor:
    """(B, N, D) -> (B, N, D), at each node the mean over its document up to and including it."""
    total = x.to(torch.promote_types(x.dtype, torch.float32)).cumsum(1)
    count = torch.arange(1, x.shape[1] + 1, device=x.device).expand(x.shape[:2])
    if layout.starts is not None:  # less what was summed before the document began
        begin = torch.where(layout.starts, count - 1, 0).cummax(1).values
        before = gather_nodes(F.pad(total, (0, 0, 1, 0)), begin)
        total, count = total - before, count - begin
    return (total / count[..., None]).to(x.dtype)


def has_constant_state(model: Any) -> bool:
    """Whether the model is a stack whose state has constant size, so that it carries the whole past of a document."""
    return isinstance(model, Stack) and all(block.mixer.constant_state for block in model.blocks)


class HiddenModel(Protocol):
    """What `OnePassModel` builds on: a method that computes hidden vectors, and a head that turns them into logits."""

    @property
    def head(self) -> nn.Linear: ...
    def hidden(self, tokens: Tensor, layout: Layout, state: State | None = None) -> Tensor: ...


class OnePassModel:
    """Mixin with `forward` and `extend` for models that compute the hidden vectors of a layout in one pass
    (`hidden`)."""

    def forward(self: HiddenModel, tokens: Tensor, layout: Layout | None = None) -> Output:
        """The training form: tokens (B, T) long, or (B, T, V) rows of weights of ids; `layout` for packed documents
        (default: one document a row)."""
        if layout is None:
            layout = Layout.of(tokens)
        hidden = self.hidden(tokens, layout)
        return Output(self.head(hidden), hidden)

    def extend(self: HiddenModel, tokens: Tensor, state: Decoding, parents: Tensor | None = None,
               at: Tensor | None = None, starts: Tensor | None = None, layout: Layout | None = None) -> Output:
        """The decoding form; see `Decodable.extend`. starts: (B, N) bool, a new document begins at these nodes.
        layout: replaces parents and starts, with the nodes' positions and what they attend to."""
        assert isinstance(state, State)
        check_rows(tokens.shape[0], state)
        layout = state.layout(tokens.shape[1], parents, None, starts) if layout is None else layout
        hidden = self.hidden(tokens, layout, state)
        state.pending = layout
        return Output(self.head(hidden if at is None else gather_nodes(hidden, at)), hidden)


class Stack(OnePassModel, nn.Module):
    """A language model over element ids. Satisfies `segue.models.base.Decodable`.

    needs_whole_prompt: whether it reads prompts as a whole; None: if one of its mixers does.
    """

    needs_whole_prompt: bool | None = None

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        check_config(config)
        self.config = config
        self.embedding = nn.Linear(config.inputs, config.width) if config.inputs else \
            nn.Embedding(config.vocabulary, config.width)
        self.begin_embedding = nn.Parameter(torch.empty(config.width)) if config.cross is not None else None
        self.position_embedding = nn.Embedding(config.learned_positions, config.width) \
            if config.learned_positions else None
        tables = nn.ModuleList(nn.Embedding(rows, config.width) for rows in config.tables.values())
        self.tables: list[nn.Embedding] = tables  # type: ignore[assignment]
        self.embed_norm = make_norm(config) if config.embed_norm else None
        self.regions = RegionLabels(*config.regions) if config.regions is not None else None
        self.traits = Traits(config.traits, config.vocabulary) if config.traits else None
        blocks: list[Block] = []
        for index, name in enumerate(config.mixers):
            first = config.mixers.index(name)
            blocks.append(blocks[first] if config.shared and first < index else Block(config, name, index))
        self.blocks: list[Block] = nn.ModuleList(blocks)  # type: ignore[assignment]
        self.checkpointing = False  # store recomputable blocks' inputs only, and the rest anew in the backward pass
        self.norm = nn.Identity() if config.post_norm else make_norm(config)
        self.transform = Transform(config) if config.transform else None
        self.head = nn.Linear(config.width, config.vocabulary, bias=config.transform)
        if config.tied:
            self.head.weight = self.embedding.weight
        self.drop = Dropout(config.dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Embeddings of deviation 0.02; branches that write to the residual stream are scaled down by its length."""
        for table in (self.embedding, self.position_embedding, *self.tables):
            if isinstance(table, nn.Embedding):
                nn.init.normal_(table.weight, std=0.02)
        if self.begin_embedding is not None:
            nn.init.normal_(self.begin_embedding, std=0.02)
        if not self.config.tied:
            nn.init.normal_(self.head.weight, std=0.02)
        if self.config.transform:
            nn.init.zeros_(self.head.bias)
        writes = 1 + (self.config.channel != "none") + (self.config.cross is not None)
        for block in dict.fromkeys(self.blocks):
            for module in (block.mixer, block.cross, block.channel):
                out = getattr(module, "out", None)
                if isinstance(out, nn.Linear):
                    out.weight.data /= math.sqrt(writes * len(self.blocks))

    @property
    def vocabulary(self) -> int:
        return self.config.vocabulary

    @property
    def resettable(self) -> bool:
        """Whether documents may be packed into one row."""
        return all(block.mixer.resettable and not len(block.begins) for block in self.blocks)

    @property
    def path(self) -> str:
        weight = self.embedding.weight
        return f"torch {str(weight.dtype).removeprefix('torch.')} on {weight.device.type}"

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        can_check = can_check_values()
        if self.config.tables and tokens.shape[2:] != (1 + len(self.config.tables),):
            raise SegueError(f"elements of this model are an id and a row of each of the tables "
                             f"{', '.join(self.config.tables)}, not {tuple(tokens.shape[2:])} numbers")
        table_rows = tokens[..., 1:].unbind(-1) if self.config.tables else ()
        tokens = tokens[..., 0] if self.config.tables else tokens
        weighted = tokens.is_floating_point() and not self.config.inputs
        if can_check and tokens.device.type == "cpu" and not self.config.inputs and not weighted:
            check_tokens(tokens, self.config.vocabulary + (self.begin_embedding is not None))
        if weighted:  # rows of weights instead of ids: a one-hot row is an id
            x = (tokens @ self.embedding.weight).to(self.embedding.weight.dtype)
        elif self.begin_embedding is None:
            x = self.embedding(tokens)
        else:
            begins = tokens == self.config.vocabulary
            x = torch.where(begins[..., None], self.begin_embedding, self.embedding(tokens.masked_fill(begins, 0)))
        if self.position_embedding is not None:
            limit = self.position_embedding.num_embeddings
            if can_check and positions.numel() and int(positions.max()) >= limit:
                raise SegueError(f"position {int(positions.max())} is beyond the {limit} learned positions of "
                                 "this model: give a shorter prompt or ask for fewer tokens")
            x = x + self.position_embedding(positions)
        for table, index in zip(self.tables, table_rows):
            if can_check and index.device.type == "cpu":
                check_tokens(index, table.num_embeddings)
            x = x + table(index)
        return self.drop(x if self.embed_norm is None else self.embed_norm(x))

    def run_block(self, index: int, x: Tensor, layout: Layout, state: State | None = None) -> Tensor:
        """Run block `index` on (B, N, D); with a state, its nodes are left pending there."""
        block = self.blocks[index]
        block.mixer.check_layout(layout)
        if len(block.begins) and layout.starts is not None:
            raise SegueError("under a learned initial state nothing begins inside a row: give it one document per row")
        parts: Parts = block.initial_parts(x) if state is None else state.layers[index]

        def mix(mixer: Mixer, y: Tensor) -> Tensor:
            return mixer.run(y, layout, parts)

        if self.checkpointing and block.recomputable and state is None and torch.is_grad_enabled():
            return checkpoint(block, x, mix, layout.labels, use_reentrant=False)
        return block(x, mix, layout.labels)

    def finish(self, x: Tensor, layout: Layout) -> Tensor:
        """Apply what follows the last block: the norm, then pooling and transform if configured."""
        x = self.norm(x)
        x = running_mean(x, layout) if self.config.pool else x
        return x if self.transform is None else self.transform(x)

    def hidden(self, tokens: Tensor, layout: Layout, state: State | None = None) -> Tensor:
        """Hidden vectors (B, N, D) after the last norm, pooled if the config says so, of ids (B, N) long, rows of
        weights over ids (B, N, V), real vectors (B, N, C), or ids and rows of tables (B, N, 1 + tables) long."""
        x = self.embed(tokens, layout.positions)
        if self.regions is not None:
            carry = None if state is None else state.layers[0]["regions"]
            assert carry is None or isinstance(carry, Carry)
            layout = replace(layout, labels=self.regions.label(tokens, layout, carry))
        if self.traits is not None:
            carry = None if state is None else state.layers[0]["sums"]
            assert carry is None or isinstance(carry, Carry)
            layout = replace(layout, traits=self.traits.look_up(tokens, layout, carry))
        for index in range(len(self.blocks)):
            x = self.run_block(index, x, layout, state)
        return self.finish(x, layout)

    def init_state(self, batch: int, history: int = 0) -> State:
        if self.config.pool or self.config.inputs or self.config.tables:
            raise SegueError("this model reads whole sequences (pool, tables or real inputs): it cannot continue them")
        return self.new_state(batch, history)

    def check_causal(self, why: str) -> None:
        """Raise SegueError "mixer NAME looks ahead" + why if one does."""
        for name, block in zip(self.config.mixers, self.blocks):
            if not block.mixer.causal:
                raise SegueError(f"mixer '{name}' looks ahead{why}")

    def new_state(self, batch: int, history: int = 0) -> State:
        """`init_state` without the check for real inputs, for models around the stack that embed the elements
        themselves."""
        self.check_causal(": this model cannot continue, only score whole sequences")
        weight = self.embedding.weight.detach()
        layers = [block.parts(batch, weight, history) for block in self.blocks]
        if self.regions is not None:
            layers[0]["regions"] = Carry(self.regions, self.regions.initial(batch, weight), history)
        if self.traits is not None:
            layers[0]["sums"] = Carry(self.traits, self.traits.initial(batch, weight), history)
        return State(layers, torch.zeros(batch, dtype=torch.long, device=weight.device))

    @property
    def layout_form(self) -> Stack:
        """See `segue.models.base.layout_form`."""
        return self

    @property
    def max_positions(self) -> int | None:
        """See `segue.models.base.max_positions`."""
        tables = [self.position_embedding, *(getattr(block.mixer, "places", None) for block in self.blocks)]
        return min((table.num_embeddings for table in tables if isinstance(table, nn.Embedding)), default=None)
