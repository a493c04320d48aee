"""Products with block-diagonal matrices: of small blocks, compiled on a CPU (`segue.kernels.cpu.blocks`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from segue.kernels.cpu.room import room
from segue.kernels.scan import _array, _lines, compiles


def block_product(x: Tensor, weight: Tensor) -> Tensor:
    """x: (B, T, N d). weight: (N, O, d, d), [block, output, out, in]. Returns (B, T, O, N d)."""
    n, _, width, _ = weight.shape
    per = _together(x, weight)
    if not per:
        return torch.einsum("...ni,noji->...onj", x.unflatten(-1, (n, width)), weight).flatten(-2)
    # Blocks that do not fill a vector lie together on the diagonal of one that does.
    blocks = torch.diag_embed(weight.unflatten(0, (-1, per)).permute(0, 4, 2, 3, 1), dim1=1, dim2=4)
    return _BlockProduct.apply(x, blocks.flatten(4, 5).flatten(1, 2))


def _together(x: Tensor, weight: Tensor) -> int:
    """How many blocks the compiled form takes together, 0 if it cannot."""
    if not compiles(x, weight):
        return 0
    from segue.kernels.cpu import products, simd

    lanes, width = simd.LANES * 4 // x.itemsize, weight.shape[2]
    per = max(1, lanes // width)
    whole = per * width % lanes == 0 and len(weight) % per == 0
    return per if whole and per * width <= products.MOST_PANELS * lanes else 0


class _BlockProduct(torch.autograd.Function):
    """weight: (G, d, O, d), [block, in, output, out], d whole vectors."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor) -> Tensor:
        from segue.kernels.cpu import blocks, threads

        rows, y = x.flatten(0, 1), room(x, *x.shape[:2], weight.shape[2], x.shape[2])
        threads.share(blocks.forward, -(-len(rows) // blocks.ROWS), _panels(weight), _lines(rows),
                      _array(weight), y.flatten(0, 1).numpy())
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        from segue.kernels.cpu import blocks, threads

        x, weight = ctx.saved_tensors
        rows, dx = x.flatten(0, 1), room(x, *x.shape)
        tasks = -(-len(rows) // (blocks.ROWS * blocks.SPANS))
        dweight = torch.zeros(tasks, *weight.shape, dtype=x.dtype)
        threads.share(blocks.backward, tasks, _panels(weight), _lines(rows),
                      _array(weight.permute(0, 2, 3, 1)), _array(dy.flatten(0, 1)), dx.flatten(0, 1).numpy(),
                      dweight.numpy())
        return dx, dweight.sum(0)


def _panels(weight: Tensor) -> int:
    from segue.kernels.cpu import simd

    return weight.shape[1] * weight.itemsize // (4 * simd.LANES)
