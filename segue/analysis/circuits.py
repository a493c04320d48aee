"""Circuits of a trained stack: the OV circuits of its heads from the weights alone, and the direct effect of each
component's write to the residual stream on data (Gould et al. 2023, arXiv 2312.09230).

Components are named by layer, from 1: "layer 2 head 3", "layer 2 mamba" where a mixer is not split into heads, "layer 2
channel"; besides them there is "embedding".
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
    """An ordered class of elements: Monday to Sunday, 0 to 99, the notes of a scale.

    ids: in order. cyclic: the first is the successor of the last (days of the week); else the last has none.
    """

    name: str
    ids: tuple[int, ...]
    cyclic: bool = False

    def pairs(self, step: int = 1) -> list[tuple[int, int]]:
        """Each id with the one `step` places after it, where there is one."""
        n = len(self.ids)
        return [(self.ids[i], self.ids[(i + step) % n]) for i in range(n) if self.cyclic or 0 <= i + step < n]


def adds_up(config: StackConfig) -> bool:
    """Whether the final norm reads, at each position, the sum of what all components write there."""
    return not config.post_norm and not config.pool and config.cross is None


def _check(model: Stack, linear: bool = False) -> None:
    """Raise SegueError for a model whose residual stream is not the sum of its components' writes; linear: or whose
    logits are not linear in that sum, up to the scale of the norm."""
    if not isinstance(model, Stack):
        raise SegueError(f"only a native stack shows what its parts write, not a {type(model).__name__}: convert the "
                         "folder, or give the network of the mixture")
    if not adds_up(model.config) or (linear and model.config.transform):
        raise SegueError("a part has a direct effect where its write is added to the others' and read by the last norm "
                         "and the head alone: this model has post_norm, pool, transform or cross-attention")


@torch.no_grad()
def matrices(model: Stack, tokens: Tensor) -> list[Tensor | None]:
    """For each layer the matrix (B, H, T, T) that it applies to its values on `tokens` (B, T); None for layers that are
    not linear in their values."""
    layout = Layout.of(tokens)
    found: list[Tensor | None] = []

    def mix(initial: Parts, mixer: Mixer, y: Tensor) -> Tensor:
        found.append(mixer.matrix(y) if mixer.linear_in_values else None)
        return mixer.run(y, layout, initial)

    x = model.embed(tokens, layout.positions)
    for block in model.blocks:
        x = block(x, partial(mix, block.initial_parts(x)))
    return found


def _split_heads(mixer: Any, y: Tensor, layout: Layout, initial: Parts) -> tuple[Tensor, dict[str, Tensor]]:
    """A mixer's write for y (B, T, D), and its summands: one for each head, and the bias, where the mixer ends in a
    linear map `out` of its concatenated heads; none otherwise."""
    out, calls = getattr(mixer, "out", None), list[tuple[Tensor, Tensor]]()
    if not (mixer.linear_in_values and isinstance(out, nn.Linear) and getattr(mixer, "heads", 0)):
        return mixer.run(y, layout, initial), {}
    hook = out.register_forward_hook(lambda module, inputs, output: calls.append((inputs[0], output)))
    try:
        write = mixer.run(y, layout, initial)
    finally:
        hook.remove()
    if len(calls) != 1 or not torch.equal(calls[0][1], write):
        return write, {}
    heads = zip(calls[0][0].chunk(mixer.heads, -1), out.weight.chunk(mixer.heads, 1))
    summands = {f"head {h}": F.linear(z, weight) for h, (z, weight) in enumerate(heads, 1)}
    return write, summands if out.bias is None else summands | {"bias": out.bias.expand_as(write)}


@torch.no_grad()
def writes(model: Stack, tokens: Tensor, heads: bool = True) -> dict[str, Tensor]:
    """(B, T, D) by component: its write to the residual stream. Their sum is the input of the final norm.

    tokens: as the model reads them. heads: split mixers into heads, where they end in a linear map of the heads.
    """
    _check(model)
    model.eval()
    layout = Layout.of(tokens)
    x = model.embed(tokens, layout.positions)
    by_component, mixed = {"embedding": x}, list[tuple[Tensor, dict[str, Tensor]]]()

    def mix(initial: Parts, mixer: Mixer, y: Tensor) -> Tensor:
        mixer.check_layout(layout)
        mixed.append(_split_heads(mixer, y, layout, initial) if heads else (mixer.run(y, layout, initial), {}))
        return mixed[-1][0]

    for index, (name, block) in enumerate(zip(model.config.mixers, model.blocks), 1):
        before, x = x, block(x, partial(mix, block.initial_parts(x)))
        mixer_write, summands = mixed.pop()
        by_component |= {f"layer {index} {part}": write for part, write in (summands or {name: mixer_write}).items()}
        if block.channel is not None:
            by_component[f"layer {index} channel"] = x - before - mixer_write
    return by_component


@torch.no_grad()
def direct_effects(model: Stack, tokens: Tensor, targets: Tensor, heads: bool = True,
                   means: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """(M,) nats by component, at each of the M positions with a target: the increase of the loss where its write to the
    final residual stream is replaced by its mean, all other writes unchanged (direct mean ablation).

    targets: (B, T), -1 for none. means: (D,) by component (see `mean_writes`; default: over positions with targets).
    """
    mask = targets >= 0
    by_component = {name: write[mask] for name, write in writes(model, tokens, heads).items()}
    residual = torch.stack(list(by_component.values())).sum(0)

    def loss(x: Tensor) -> Tensor:
        logits = model.head(model.finish(x[None], Layout.of(x[None])))[0]
        return F.cross_entropy(logits, targets[mask], reduction="none")

    before = loss(residual)
    return {name: loss(residual - write + (write.mean(0) if means is None else means[name])) - before
            for name, write in by_component.items()}


def mean_writes(model: Stack, tokens: Tensor) -> dict[str, Tensor]:
    """(D,) by component: the mean of its writes over all positions."""
    return {name: write.flatten(0, 1).mean(0) for name, write in writes(model, tokens).items()}


def _unscaled_norm(norm: Any, x: Tensor) -> Tensor:
    """The linear part of a norm: without its division by the standard deviation, and without its bias."""
    centred = x - x.mean(-1, keepdim=True) if isinstance(norm, nn.LayerNorm) else x
    return centred * norm.weight


@torch.no_grad()
def direct_logits(model: Stack, component_writes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """(..., V) by component, of writes (..., D): its contribution to the logits, with the final norm's scale on their
    sum. They sum to the model's logits; "norm bias" is the contribution of the final norm's bias, if it has one."""
    _check(model, linear=True)
    norm: Any = model.norm
    residual = torch.stack(list(component_writes.values())).sum(0)
    centred = residual - residual.mean(-1, keepdim=True) if isinstance(norm, nn.LayerNorm) else residual
    scale = (centred.square().mean(-1, keepdim=True) + norm.eps).rsqrt()
    logits = {name: model.head(_unscaled_norm(norm, write) * scale) for name, write in component_writes.items()}
    if isinstance(norm, nn.LayerNorm) and norm.bias is not None:
        logits["norm bias"] = model.head(norm.bias).expand_as(next(iter(logits.values())))
    return logits


@torch.no_grad()
def effective_inputs(model: Stack, ids: Sequence[int], embedding: bool = False) -> Tensor:
    """(M, D): the context-free representation of elements that later layers' heads read: the first channel mixer's
    output for an element's embedding (`embedding`: plus the embedding; without a channel mixer the embedding alone)."""
    _check(model)
    x = model.embedding(torch.tensor(list(ids), device=model.head.weight.device))
    x = x if model.embed_norm is None else model.embed_norm(x)
    block = model.blocks[0]
    if block.channel is None or block.channel_norm is None:
        return x
    write = block.channel(block.channel_norm(x))
    return x + write if embedding else write


@torch.no_grad()
def ov_circuit(model: Stack, layer: int, inputs: Tensor) -> Tensor:
    """(H, M, V): the contribution of each head of a layer to the logits where it attends to nothing but one of `inputs`
    (M, D), such as `effective_inputs`; up to the positive scale of the final norm, and without biases.

    layer: from 1; its mixer must be linear in its values. Gates are computed from the element itself.
    """
    _check(model, linear=True)
    block, x = model.blocks[layer - 1], inputs[:, None]
    mixer = block.mixer
    if not mixer.linear_in_values:
        raise SegueError(f"layer {layer}, {model.config.mixers[layer - 1]}, is not linear in its values: it has no OV "
                         "circuit")
    x = block.mixer_norm(x)
    values = mixer.values(x)  # (M, H, 1, E)
    baseline = mixer.output(torch.zeros_like(values), x)
    by_head = []
    for head in range(values.shape[1]):
        masked = torch.zeros_like(values)
        masked[:, head] = values[:, head]
        by_head.append((mixer.output(masked, x) - baseline)[:, 0])
    return model.head(_unscaled_norm(model.norm, torch.stack(by_head)))


def head_hits(model: Stack, orders: Sequence[Order], step: int = 1, embedding: bool = False) -> dict[str, Tensor]:
    """(P,) bool by head: whether its OV circuit maps the first of each pair to the second, above all other elements of
    their class. The mean is the head's score as a successor head (step=1) or as a copying head (step=0).

    Pairs are those of `Order.pairs(step)`, class after class; chance level is 1 over the size of the class. Layers that
    are not linear in their values have no scores.
    """
    by_head: dict[str, list[Tensor]] = {}
    for order in orders:
        sources, targets = torch.tensor(order.pairs(step)).T
        ids, inputs = torch.tensor(order.ids), effective_inputs(model, sources.tolist(), embedding)
        target_index = (ids == targets[:, None]).long().argmax(1)
        for layer, block in enumerate(model.blocks, 1):
            if block.mixer.linear_in_values:
                predicted = ov_circuit(model, layer, inputs)[..., ids].argmax(-1)
                for head, hits in enumerate(predicted == target_index, 1):
                    by_head.setdefault(f"layer {layer} head {head}", []).append(hits)
    return {name: torch.cat(hits) for name, hits in by_head.items()}


def induction_scores(model: Stack, length: int = 32, rows: int = 16, seed: int = 0) -> dict[str, float]:
    """By head: on a random sequence that is repeated once, the mean share of attention from an element's second
    occurrence to the element after its first one (Olsson et al. 2022, arXiv 2209.11895). length: of the sequence."""
    generator = torch.Generator().manual_seed(seed)
    once = torch.randint(model.vocabulary, (rows, length), generator=generator)
    tokens, second = torch.cat([once, once], 1).to(model.head.weight.device), torch.arange(length, 2 * length - 1)
    by_head: dict[str, float] = {}
    for layer, matrix in enumerate(matrices(model, tokens), 1):
        if matrix is not None:
            share = matrix.abs() / matrix.abs().sum(-1, keepdim=True).clamp(min=1e-12)
            scores = share[:, :, second, second - length + 1].mean((0, 2))
            by_head |= {f"layer {layer} head {head}": float(score) for head, score in enumerate(scores, 1)}
    return by_head
