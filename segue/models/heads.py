"""Draft heads for speculative decoding, which predict several tokens ahead from a frozen base's last hidden state.

Medusa (Cai et al. 2024, arXiv 2401.10774): each head sees that hidden state alone. Hydra (Ankner et al. 2024, arXiv
2402.05109): head k also sees the tokens drafted before its own. Hydra++ first runs a causal attention layer over all
hidden states so far, whose output is initially zero, so that it starts as Hydra.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.errors import SegueError
from segue.mixers import Mixer
from segue.mixers.layout import Layout
from segue.mixers.state import Parts, State
from segue.models.stack import Block, Stack, StackConfig

__all__ = ["DraftHeads", "HeadsConfig", "TabulatedHeads"]

MAX_TABLE_BYTES = 1 << 26  # size up to which table look-ups are faster than the products they replace


@dataclass(frozen=True)
class HeadsConfig:
    """Config of draft heads.

    vocabulary, width: of the base. heads: K, tokens drafted after the one that the base itself predicts. layers:
    residual blocks per head. sequential: head k sees the k tokens before its own (Hydra), or none (Medusa). window: if
    above 0, an attention layer over this many positions comes first (Hydra++). attention_heads: of that layer.
    """

    vocabulary: int
    width: int
    heads: int = 4
    layers: int = 1
    sequential: bool = True
    window: int = 0
    attention_heads: int = 4

    def __post_init__(self) -> None:
        if min(self.vocabulary, self.width, self.heads, self.layers, self.attention_heads) < 1 or self.window < 0:
            raise SegueError(f"draft heads cannot be made by {self}: sizes are at least 1, the window at least 0")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Head(nn.Module):
    """u = R z + SiLU(L z), then u + SiLU(L u) block by block, then the output layer: (..., inputs) -> (..., V).

    L is initially zero. R is the identity if the width does not change (Medusa), else it initially selects the first
    `width` inputs: so all heads start as their output layer on the hidden state.
    """

    def __init__(self, inputs: int, width: int, vocabulary: int, layers: int) -> None:
        super().__init__()
        self.skip = nn.Linear(inputs, width, bias=False) if inputs != width else None
        self.blocks = nn.ModuleList(nn.Linear(width if layer else inputs, width) for layer in range(layers))
        self.out = nn.Linear(width, vocabulary)
        if self.skip is not None:
            nn.init.eye_(self.skip.weight)
        for block in self.blocks:
            nn.init.zeros_(block.weight)  # type: ignore[arg-type]
            nn.init.zeros_(block.bias)  # type: ignore[arg-type]

    def forward(self, z: Tensor) -> Tensor:
        return self.rest((z if self.skip is None else self.skip(z)) + F.silu(self.blocks[0](z)))

    def rest(self, u: Tensor) -> Tensor:
        """Run the remaining blocks and the output layer on the first block's output u."""
        for block in self.blocks[1:]:
            u = u + F.silu(block(u))
        return self.out(u)


class DraftHeads(nn.Module):
    """Head k = 1 .. K predicts token x_{t+1+k} from the base's hidden state h_t (after its last norm, so its own head
    predicts x_{t+1} from it) and, if `sequential`, from x_{t+1} .. x_{t+k}.

    embedding, output: (V, D), the base's own tables. The first is used and never trained, the second initialises the
    heads' output layers: an untrained head predicts what the base's own head does.
    """

    embedding: Tensor

    def __init__(self, config: HeadsConfig, embedding: Tensor, output: Tensor) -> None:
        super().__init__()
        shape = (config.vocabulary, config.width)
        if tuple(embedding.shape) != shape or tuple(output.shape) != shape:
            raise SegueError(f"draft heads of {shape} do not fit a base of {tuple(embedding.shape)}: "
                             "were they made for another model?")
        self.config = config
        self.register_buffer("embedding", embedding.detach(), persistent=False)
        self.heads = nn.ModuleList(Head(config.width * (1 + k * config.sequential), config.width, config.vocabulary,
                                        config.layers) for k in range(1, config.heads + 1))
        self.block: Block | None = None
        if config.window:
            self.shape = StackConfig(config.vocabulary, config.width, ["attention"], {"attention": {
                "heads": config.attention_heads, "window": config.window}})
            self.block = Block(self.shape, "attention")
            for branch in (self.block.mixer, self.block.channel):
                nn.init.zeros_(branch.out.weight)  # type: ignore[union-attr, arg-type]
        self.to(output.device, output.dtype)
        with torch.no_grad():
            for head in self.heads:
                head.out.weight.copy_(output)  # type: ignore[union-attr, operator]
                head.out.bias.zero_()  # type: ignore[union-attr, operator]

    @classmethod
    def for_base(cls, base: Any, **choices: Any) -> DraftHeads:
        """Create untrained heads for a base, which must be a `Stack` over ids. choices: fields of `HeadsConfig`."""
        if not isinstance(base, Stack) or base.config.inputs or base.config.pool:
            raise SegueError(f"a {type(base).__name__} cannot have draft heads: a native model of ids can")
        config = HeadsConfig(base.config.vocabulary, base.config.width, **choices)
        return cls(config, base.embedding.weight, base.head.weight)

    def init_state(self, batch: int) -> State:
        """Return the initial state of the attention layer, for `condition`."""
        mixer = self.attention.mixer
        return State([mixer.parts(batch, self.embedding, 0)],
                     torch.zeros(batch, dtype=torch.long, device=self.embedding.device))

    @property
    def attention(self) -> Block:
        """The attention layer; a SegueError where there is none."""
        if self.block is None:
            raise SegueError("these heads see the last hidden state alone: they have no state")
        return self.block

    def condition(self, hidden: Tensor, layout: Layout | None = None, state: State | None = None) -> Tensor:
        """Return the heads' input (B, N, D) from the base's hidden states (B, N, D): these, or the attention over them.

        layout: of training rows. state: in decoding, `hidden` follows it and is left pending in it.
        """
        hidden = hidden.to(self.embedding)  # its device and type
        if self.block is None:
            return hidden
        if state is not None:
            layout = state.pending = state.layout(hidden.shape[1])
        elif layout is None:
            layout = Layout.of(hidden)
        parts = {} if state is None else state.layers[0]

        def mix(mixer: Mixer, y: Tensor, layout: Layout = layout, parts: Parts = parts) -> Tensor:
            return mixer.run(y, layout, parts)

        return self.block(hidden, mix)

    def logits(self, k: int, condition: Tensor, tokens: Tensor) -> Tensor:
        """Return head k's logits (..., V). condition: (..., D), from the method of that name. tokens: (..., k) long,
        those before the predicted one, ignored unless `sequential`; the leading axes of both are broadcast."""
        if not self.config.sequential:
            return self.heads[k - 1](condition)
        drafted = F.embedding(tokens, self.embedding).flatten(-2)
        return self.heads[k - 1](torch.cat([condition.expand(*drafted.shape[:-1], -1), drafted], -1))


class TabulatedHeads:
    """A faster `DraftHeads.logits` of sequential heads: the first layers' product with each token's embedding is looked
    up in a table, and their product with the hidden state is one for all heads. Weights are read when this is created,
    and gradients flow to them. embedding: rows of the table (default: the whole vocabulary); tokens index them.
    """

    def __init__(self, heads: DraftHeads, embedding: Tensor | None = None) -> None:
        width, embedding = heads.config.width, heads.embedding if embedding is None else embedding
        self.heads, self.tables = heads, list[Tensor]()
        self.offsets = len(embedding) * torch.arange(heads.config.heads, device=embedding.device)
        device = embedding.device.type  # under autocast, weights are cast before they are concatenated
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else embedding.dtype
        products, biases = [], []
        for head in heads.heads:
            first = head.blocks[0]  # type: ignore[index]
            weights: Any = (head.skip.weight, first.weight)  # type: ignore[union-attr]
            joined = torch.cat([weight.to(dtype) for weight in weights])
            hidden_weight, *token_weights = joined.split(width, 1)
            self.tables.append(torch.cat([embedding @ slot.mT for slot in token_weights]).to(embedding))  # (k V, 2 D)
            products.append(hidden_weight)
            biases.append(F.pad(first.bias, (width, 0)))  # type: ignore[union-attr]
        self.product, self.bias = torch.cat(products), torch.cat(biases)

    @staticmethod
    def is_worthwhile(config: HeadsConfig, size: int) -> bool:
        """Return whether the tables, at `size` bytes per number, are small enough to be faster than products."""
        table_bytes = config.heads * (config.heads + 1) * config.vocabulary * config.width * size
        return config.sequential and table_bytes <= MAX_TABLE_BYTES

    def project_condition(self, condition: Tensor) -> tuple[Tensor, ...]:
        """Return, per head, the condition's (..., D) contribution to its first layers (..., 2 D)."""
        return F.linear(condition, self.product, self.bias).chunk(self.heads.config.heads, -1)

    def logits(self, k: int, projected: Tensor, tokens: Tensor) -> Tensor:
        """See `DraftHeads.logits`. projected: (..., 2 D), the entry of head k in the result of `project_condition`."""
        drafted = F.embedding_bag((tokens + self.offsets[:k]).flatten(0, -2), self.tables[k - 1], mode="sum")
        skip, inner = (projected + drafted.view(*tokens.shape[:-1], -1)).chunk(2, -1)
        return self.heads.heads[k - 1].rest(skip + F.silu(inner))  # type: ignore[operator]
