"""Products with block-diagonal matrices; of small blocks they are compiled on a CPU (`segue.kernels.cpu.blocks`)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segue.kernels.compiled import as_array, as_lines, runs_compiled
from segue.kernels.cpu.buffers import pooled_empty


def block_product(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    """O products of x (B, T, N d) with block-diagonal matrices of N blocks, weight (N, O, d, d) [block, output, out,
    in]. Returns O tensors (B, T, N d): who takes one of them need not be given a gradient for all."""
    return block_products(x, weight, weight.new_zeros(0, x.shape[-1]))[0]


def block_products(x: Tensor, weight: Tensor, dense: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """The products of `block_product`, and the product of x with a few rows of a dense matrix (M, N d): (B, T, M)."""
    n, _, width, _ = weight.shape
    per = _blocks_per_vector(x, weight)
    if not per:
        y = torch.einsum("...ni,noji->...onj", x.unflatten(-1, (n, width)), weight).flatten(-2)
        return y.unbind(-2), F.linear(x, dense)
    # Blocks narrower than a vector are put together on the diagonal of one that fills it.
    blocks = torch.diag_embed(weight.unflatten(0, (-1, per)).permute(0, 4, 2, 3, 1), dim1=1, dim2=4)
    blocks = blocks.flatten(4, 5).flatten(1, 2)
    dense = dense.to(x.dtype)  # autocast may have changed its type
    *products, z = _BlockProducts.apply(x, blocks, F.pad(dense.T, (0, -len(dense) % _lanes(x))))
    return tuple(products), z[..., : len(dense)]


def _lanes(x: Tensor) -> int:
    from segue.kernels.cpu import simd

    return simd.LANES * 4 // x.itemsize


def _blocks_per_vector(x: Tensor, weight: Tensor) -> int:
    """How many blocks the compiled form puts into one, 0 if it cannot be used."""
    if not runs_compiled(x, weight):
        return 0
    from segue.kernels.cpu import products

    lanes, width = _lanes(x), weight.shape[2]
    per = max(1, lanes // width)
    whole = per * width % lanes == 0 and len(weight) % per == 0
    return per if whole and per * width <= products.MOST_PANELS * lanes else 0


class _BlockProducts(torch.autograd.Function):
    """weight: (G, d, O, d), [block, in, output, out], d whole vectors. dense: (G d, M), M whole vectors, too, or 0."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, dense: Tensor) -> tuple[Tensor, ...]:
        from segue.kernels.cpu import blocks, threads

        rows = x.flatten(0, 1)
        outputs = [pooled_empty(x, *x.shape) for _ in range(weight.shape[2])]
        z = x.new_empty(*x.shape[:2], dense.shape[1])
        threads.parallel_for(blocks.forward, -(-len(rows) // blocks.ROWS), weight.shape[1] // _lanes(x), as_lines(rows),
                             as_array(weight), as_array(dense), _addresses(outputs), z.flatten(0, 1).numpy())
        return *outputs, z

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        from segue.kernels.cpu import blocks, threads

        x, weight, dense = ctx.saved_tensors
        *doutputs, dz = (gradient.contiguous() for gradient in gradients)
        rows, dx = x.flatten(0, 1), pooled_empty(x, *x.shape)
        tasks = -(-len(rows) // (blocks.ROWS * blocks.SPANS))
        dweight, ddense = (torch.zeros(tasks, *w.shape, dtype=x.dtype) for w in (weight, dense))
        threads.parallel_for(blocks.backward, tasks, weight.shape[1] // _lanes(x), as_lines(rows),
                             *map(as_array, (weight.permute(0, 2, 3, 1), dense.T)), _addresses(doutputs),
                             as_array(dz.flatten(0, 1)), *(w.numpy() for w in (dx.flatten(0, 1), dweight, ddense)))
        return dx, dweight.sum(0), ddense.sum(0)


def _addresses(tensors: list[Tensor]) -> np.ndarray:
    """Where contiguous tensors lie, for loops over any number of them."""
    return np.array([tensor.data_ptr() for tensor in tensors])
