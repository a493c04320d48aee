"""How much the prompt influences a model at each step of its answer (after 2023, arXiv 2304.04052).

Below, `answer_mask` (B, T) bool marks the nodes whose next element belongs to the answer: the first of a row is step 0,
and so on. The prompts are those of the layout.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from segue.errors import SegueError
from segue.mixers.layout import Layout
from segue.models.stack import Stack


def by_step(values: Tensor, answer_mask: Tensor) -> Tensor:
    """(B, T) values -> (S,): their mean at each step over the rows that have it."""
    step = (answer_mask.long().cumsum(1) - 1)[answer_mask]
    return torch.bincount(step, values[answer_mask].double()) / torch.bincount(step)


def _prompt(layout: Layout) -> Tensor:
    if layout.prompt is None:
        raise SegueError("the layout does not say what the prompts are: give `prompt`")
    return layout.prompt


@torch.no_grad()
def prompt_mass(model: Stack, tokens: Tensor, layout: Layout, answer_mask: Tensor) -> Tensor:
    """(S,): the share of attention that goes to the prompt, mean over rows, layers and heads. A layer's additional
    attention to the prompt alone is not counted, as its share is always 1."""
    if model.config.post_norm:
        raise SegueError("the attention of a model with norms behind the sums cannot be looked at here")
    prompt, inputs = _prompt(layout), list[Tensor]()
    hooks = [block.mixer_norm.register_forward_hook(lambda norm, args, out: inputs.append(out))
             for block in model.blocks]
    try:
        model(tokens, layout)
    finally:
        for hook in hooks:
            hook.remove()
    mass = torch.zeros(tokens.shape, device=tokens.device)
    for block, x in zip(model.blocks, inputs):
        weights = getattr(block.mixer, "weights", None)
        if weights is None:
            raise SegueError(f"a {type(block.mixer).__name__} has no attention weights to look at")
        mass = mass + (weights(x, layout) * prompt[:, None, None]).sum(-1).mean(1)
    return by_step(mass / len(model.blocks), answer_mask)


@torch.no_grad()
def prompt_sensitivity(model: Any, tokens: Tensor, layout: Layout, answer_mask: Tensor, places: Tensor | None = None,
                       swaps: int = 4, seed: int = 0) -> Tensor:
    """(S,) nats: KL divergence of the next element's distribution before from that after one element of the prompt is
    replaced by a random one of the rows' prompts, given the same answer so far; mean over rows and `swaps`.

    places: (B, T) bool, what may be replaced (default: all of the prompt).
    """
    places = _prompt(layout) if places is None else places
    generator = torch.Generator().manual_seed(seed)
    before = model(tokens, layout).logits.log_softmax(-1)
    pool, divergence = tokens[places].cpu(), torch.zeros(tokens.shape, device=tokens.device)
    for _ in range(swaps):
        place = torch.multinomial(places.double().cpu(), 1, generator=generator)
        other = pool[torch.randint(len(pool), place.shape, generator=generator)]
        swapped = tokens.scatter(1, place.to(tokens.device), other.to(tokens.device))
        after = model(swapped, layout).logits.log_softmax(-1)
        divergence = divergence + torch.where(before > -torch.inf, before.exp() * (before - after), 0.0).sum(-1)
    return by_step(divergence / swaps, answer_mask)
