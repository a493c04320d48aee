"""Predict the next element: the sum of -log p(target) in nats."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.objectives.base import Batch, Loss

CHUNK = 1024  # rows of logits computed at a time: a whole batch of them would not fit in any cache
CPU_LOGITS, CPU_MIN_ROWS = 1 << 18, 128  # on a CPU: about so many logits at a time, but at least so many rows


class _HeadCrossEntropy(torch.autograd.Function):
    """Fused output projection and cross-entropy: computes the loss chunk by chunk, with gradients in the forward pass.

    The logits of a whole batch are the largest tensor in training a small model; here only one chunk exists at a time,
    and is overwritten with its own gradient.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, needs_grad: bool) -> Tensor:
        weight_used = weight.to(hidden.dtype)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if needs_grad else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_grad else None
        chunk = min(CHUNK, max(CPU_MIN_ROWS, CPU_LOGITS // len(weight))) if hidden.device.type == "cpu" else CHUNK
        for begin in range(0, hidden.shape[0], chunk):
            rows = slice(begin, begin + chunk)
            live, index = (targets[rows] >= 0)[:, None], targets[rows].clamp(min=0)[:, None]
            logits = (hidden[rows] @ weight_used.T).float()
            top, asked = logits.amax(-1, keepdim=True), logits.gather(1, index)
            mass = logits.sub_(top).exp_().sum(-1, keepdim=True)
            total += ((mass.log() + top - asked) * live).sum()
            if grad_hidden is None or grad_weight is None:
                continue
            slope = logits.mul_(live / mass).scatter_add_(1, index, -live.float()).to(hidden.dtype)
            torch.mm(slope, weight_used, out=grad_hidden[rows])
            if slope.dtype == grad_weight.dtype:
                grad_weight.addmm_(slope.T, hidden[rows])
            else:
                grad_weight += slope.T @ hidden[rows]
        if needs_grad:
            ctx.save_for_backward(grad_hidden, grad_weight)
            ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hidden, weight = ctx.saved_tensors
        return hidden * grads[0].to(hidden.dtype), (weight * grads[0]).to(ctx.weight_dtype), None, None


def head_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Scalar: the sum over rows of -log softmax(hidden @ weight.T)[target], nats; rows with target < 0 are ignored.

    hidden: (N, D). weight: (V, D). targets: (N,) long. Matrix products run in bfloat16 under autocast.
    """
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        hidden = hidden.to(torch.get_autocast_dtype(device))
    needs_grad = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    with torch.autocast(device, enabled=False):
        return _HeadCrossEntropy.apply(hidden, weight, targets, needs_grad)


class NextElement:
    """Cross-entropy of each element given all those before it."""

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        layout = batch.layout
        head = getattr(model, "head", None)
        if isinstance(head, nn.Linear) and head.bias is None:
            hidden = model.hidden(batch.tokens, layout)
            total = head_cross_entropy(hidden.flatten(0, 1), head.weight, batch.targets.flatten())
        else:
            logits = model(batch.tokens, layout).logits.float()
            total = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=-1, reduction="sum")
        return Loss(total, {"nats": total.detach()}, batch.count)


class EachStream:
    """Cross-entropy of the next id of every stream of a `segue.models.streams.MultiStream`: tokens and targets
    (B, T, Q), see `segue.models.streams.next_targets`."""

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        hidden = model.hidden(batch.tokens, batch.layout).flatten(0, 1)  # type: ignore[operator]
        heads: Any = model.heads
        total = torch.stack([head_cross_entropy(hidden, head.weight, targets.flatten())
                             for head, targets in zip(heads, batch.targets.unbind(-1))]).sum()
        return Loss(total, {"nats": total.detach()}, batch.count)
