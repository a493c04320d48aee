"""Which part of a trained stack carries what: circuits of its heads from the weights alone, and the direct effect of
each write to the residual stream on data (Gould et al. 2023, arXiv 2312.09230).

A part is named by its layer, from 1 on: "layer 2 head 3", "layer 2 mamba" where a mixer is not split into heads,
"layer 2 channel"; besides them there is "embedding".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.errors import SegueError
from segue.mixers import Mixer
from segue.mixers.layout import Layout
from segue.mixers.state import Parts
from segue.models.stack import Stack, StackConfig


@dataclass(frozen=True)
class Order:
    """A class of elements that follow each other: Monday to Sunday, 0 to 99, the notes of a scale.

    ids: in order. cyclic: the first follows the last (of days, say); else the last has no successor.
    """

    name: str
    ids: tuple[int, ...]
    cyclic: bool = False

    def pairs(self, step: int = 1) -> list[tuple[int, int]]:
        """Each id with the one `step` places behind it, where there is one."""
        n = len(self.ids)
        return [(self.ids[i], self.ids[(i + step) % n]) for i in range(n) if self.cyclic or 0 <= i + step < n]


def adds_up(config: StackConfig) -> bool:
    """Whether the last norm reads, at each place, the sum of what all parts write there."""
    return not config.post_norm and not config.pool and config.cross is None


def _check(model: Stack, linear: bool = False) -> None:
    """Refuse a model whose residual stream is not the sum of what its parts write; linear: or whose logits are not
    linear in that, but for a norm's scale."""
    if not isinstance(model, Stack):
        raise SegueError(f"only a native stack shows what its parts write, not a {type(model).__name__}: convert the "
                         "folder, or give the network of the mixture")
    if not adds_up(model.config) or (linear and model.config.transform):
        raise SegueError("a part has a direct effect where its write is added to the others' and read by the last norm "
                         "and the head alone: this model has post_norm, pool, transform or cross-attention")


@torch.no_grad()
def matrices(model: Stack, tokens: Tensor) -> list[Tensor | None]:
    """For each layer the (B, H, T, T) matrix it applies to its values on `tokens` (B, T), or None where it has none."""
    layout = Layout.of(tokens)
    found: list[Tensor | None] = []

    def mix(begun: Parts, mixer: Mixer, y: Tensor) -> Tensor:
        found.append(mixer.matrix(y) if mixer.linear_in_values else None)
        return mixer.run(y, layout, begun)

    x = model.embed(tokens, layout.positions)
    for block in model.blocks:
        x = block(x, partial(mix, block.initial_parts(x)))
    return found


def _by_head(mixer: Any, y: Tensor, layout: Layout, begun: Parts) -> tuple[Tensor, dict[str, Tensor]]:
    """What a mixer writes for y (B, T, D), and its parts: each head's, where its last step is one linear map `out` of
    the heads side by side; a bias is a part of its own."""
    out, given = getattr(mixer, "out", None), list[tuple[Tensor, Tensor]]()
    if not (mixer.linear_in_values and isinstance(out, nn.Linear) and getattr(mixer, "heads", 0)):
        return mixer.run(y, layout, begun), {}
    hook = out.register_forward_hook(lambda module, inputs, output: given.append((inputs[0], output)))
    try:
        written = mixer.run(y, layout, begun)
    finally:
        hook.remove()
    if len(given) != 1 or not torch.equal(given[0][1], written):
        return written, {}
    heads = zip(given[0][0].chunk(mixer.heads, -1), out.weight.chunk(mixer.heads, 1))
    parts = {f"head {h}": F.linear(z, weight) for h, (z, weight) in enumerate(heads, 1)}
    return written, parts if out.bias is None else parts | {"bias": out.bias.expand_as(written)}


@torch.no_grad()
def writes(model: Stack, tokens: Tensor, layout: Layout | None = None, heads: bool = True) -> dict[str, Tensor]:
    """(B, T, D) by part: what each adds to the residual stream; together they are what the last norm reads.

    tokens: as the model reads them. heads: split mixers into heads, where they end in a linear map of them.
    """
    _check(model)
    model.eval()
    layout = Layout.of(tokens) if layout is None else layout
    x = model.embed(tokens, layout.positions)
    found, mixed = {"embedding": x}, list[tuple[Tensor, dict[str, Tensor]]]()

    def mix(begun: Parts, mixer: Mixer, y: Tensor) -> Tensor:
        mixer.check_layout(layout)
        mixed.append(_by_head(mixer, y, layout, begun) if heads else (mixer.run(y, layout, begun), {}))
        return mixed[-1][0]

    for index, (name, block) in enumerate(zip(model.config.mixers, model.blocks), 1):
        before, x = x, block(x, partial(mix, block.initial_parts(x)))
        written, parts = mixed.pop()
        found |= {f"layer {index} {part}": write for part, write in (parts or {name: written}).items()}
        if block.channel is not None:
            found[f"layer {index} channel"] = x - before - written
    return found


@torch.no_grad()
def direct_effects(model: Stack, tokens: Tensor, targets: Tensor, layout: Layout | None = None, heads: bool = True,
                   means: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """(M,) nats by part: how much the loss at each asked place grows where the part's write to the final residual
    stream is replaced by its mean over data, while all that other parts made of it stays (direct mean ablation).

    targets: (B, T), -1 where nothing is asked. means: (D,) by part (see `mean_writes`; default: over the asked places).
    """
    asked = targets >= 0
    at = {name: write[asked] for name, write in writes(model, tokens, layout, heads).items()}
    whole = torch.stack(list(at.values())).sum(0)

    def loss(x: Tensor) -> Tensor:
        scores = model.head(model.finish(x[None], Layout.of(x[None])))[0]
        return F.cross_entropy(scores, targets[asked], reduction="none")

    before = loss(whole)
    return {name: loss(whole - write + (write.mean(0) if means is None else means[name])) - before
            for name, write in at.items()}


def mean_writes(model: Stack, tokens: Tensor, layout: Layout | None = None, heads: bool = True) -> dict[str, Tensor]:
    """(D,) by part: the mean of what it writes over all places."""
    return {name: write.flatten(0, 1).mean(0) for name, write in writes(model, tokens, layout, heads).items()}


def _directions(norm: Any, x: Tensor) -> Tensor:
    """The linear part of a norm: all of it but its scale and its bias."""
    centred = x - x.mean(-1, keepdim=True) if isinstance(norm, nn.LayerNorm) else x
    return centred * norm.weight


@torch.no_grad()
def direct_logits(model: Stack, written: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """(..., V) by part, of writes (..., D): what each adds to the logits with the last norm's scale as it is. They sum
    to the model's logits; "norm bias" is the part of the last norm itself, where it has a bias."""
    _check(model, linear=True)
    norm: Any = model.norm
    whole = torch.stack(list(written.values())).sum(0)
    centred = whole - whole.mean(-1, keepdim=True) if isinstance(norm, nn.LayerNorm) else whole
    scale = (centred.square().mean(-1, keepdim=True) + norm.eps).rsqrt()
    found = {name: model.head(_directions(norm, write) * scale) for name, write in written.items()}
    if isinstance(norm, nn.LayerNorm) and norm.bias is not None:
        found["norm bias"] = model.head(norm.bias).expand_as(next(iter(found.values())))
    return found


@torch.no_grad()
def effective_inputs(model: Stack, ids: Sequence[int], embedding: bool = False) -> Tensor:
    """(M, D): what the heads of later layers read of an element whatever stands around it: the first channel mixer's
    write for its embedding (the embedding itself where there is none; both where `embedding`)."""
    _check(model)
    x = model.embedding(torch.tensor(list(ids), device=model.head.weight.device))
    x = x if model.embed_norm is None else model.embed_norm(x)
    block = model.blocks[0]
    if block.channel is None or block.channel_norm is None:
        return x
    written = block.channel(block.channel_norm(x))
    return x + written if embedding else written


@torch.no_grad()
def ov_circuit(model: Stack, layer: int, inputs: Tensor) -> Tensor:
    """(H, M, V): what each head of a layer adds to the logits where it reads nothing but one of `inputs` (M, D), say
    `effective_inputs`; up to the positive scale of the last norm, and without what all inputs share (its bias).

    layer: from 1. For every mixer that is linear in its values (a gate is that of the element itself).
    """
    _check(model, linear=True)
    block, x = model.blocks[layer - 1], inputs[:, None]
    mixer = block.mixer
    if not mixer.linear_in_values:
        raise SegueError(f"layer {layer}, {model.config.mixers[layer - 1]}, is not linear in its values: it has no OV "
                         "circuit")
    x = block.mixer_norm(x)
    values = mixer.values(x)  # (M, H, 1, E)
    nothing = mixer.output(torch.zeros_like(values), x)
    alone = []
    for head in range(values.shape[1]):
        only = torch.zeros_like(values)
        only[:, head] = values[:, head]
        alone.append((mixer.output(only, x) - nothing)[:, 0])
    return model.head(_directions(model.norm, torch.stack(alone)))


def head_hits(model: Stack, orders: Sequence[Order], step: int = 1, embedding: bool = False) -> dict[str, Tensor]:
    """(P,) bool by head: whether its OV circuit sends the first of each pair to the second, above all other elements
    of their class. The mean of them is the head's score: that of successor heads (step=1) or copying heads (step=0).

    Pairs are those of `Order.pairs(step)`, class after class; a guess is right once in so many as the class is large.
    Layers that are not linear in their values have no scores.
    """
    found: dict[str, list[Tensor]] = {}
    for order in orders:
        first, second = torch.tensor(order.pairs(step)).T
        ids, inputs = torch.tensor(order.ids), effective_inputs(model, first.tolist(), embedding)
        place = (ids == second[:, None]).long().argmax(1)
        for layer, block in enumerate(model.blocks, 1):
            if block.mixer.linear_in_values:
                best = ov_circuit(model, layer, inputs)[..., ids].argmax(-1)
                for head, hits in enumerate(best == place, 1):
                    found.setdefault(f"layer {layer} head {head}", []).append(hits)
    return {name: torch.cat(hits) for name, hits in found.items()}


def induction_scores(model: Stack, length: int = 32, rows: int = 16, seed: int = 0) -> dict[str, float]:
    """By head: the share of what an element of a repeated random sequence reads that comes from the element behind its
    first occurrence (Olsson et al. 2022, arXiv 2209.11895). length: of the sequence, read twice."""
    generator = torch.Generator().manual_seed(seed)
    once = torch.randint(model.vocabulary, (rows, length), generator=generator)
    tokens, again = torch.cat([once, once], 1).to(model.head.weight.device), torch.arange(length, 2 * length - 1)
    found: dict[str, float] = {}
    for layer, matrix in enumerate(matrices(model, tokens), 1):
        if matrix is not None:
            share = matrix.abs() / matrix.abs().sum(-1, keepdim=True).clamp(min=1e-12)
            scores = share[:, :, again, again - length + 1].mean((0, 2))
            found |= {f"layer {layer} head {head}": float(score) for head, score in enumerate(scores, 1)}
    return found
