"""LongVQ: gated attention with vector-quantised keys, node by node nearby and summed per code beyond (Liu et al. 2024,
arXiv 2404.11163), built like Mega (Ma et al. 2022, arXiv 2209.10655) and Transformer-VQ (Lingle 2023, arXiv
2309.16354)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn

from segue.errors import SegueError
from segue.kernels.gumbel import straight_through
from segue.kernels.scan import linear_scan
from segue.mixers.average import ExponentialAverage
from segue.mixers.base import Mixer
from segue.mixers.layout import Layout, gather_nodes
from segue.mixers.state import Parts, Recurrence, Tensors

if TYPE_CHECKING:
    from segue.kernels.cpu.program import Program, View

MIN_TRAINING_BLOCK = 256
"""Smallest block in training, in nodes: up to this size, gradients node by node are cheaper than of sums per code."""


class Codebook(nn.Module):
    """S codes that track the keys by online k-means: moving averages of sums and counts, updated in training only.

    The first training batch initialises the codes with keys that are far from each other. A code that on average
    stands for less than one key of a batch is dead and is moved to one of the keys furthest from their codes; without
    this, keys that move as they learn would leave all but a few codes unused.

    codes: S. width: Z, of keys. decay: of the moving averages, per training step.
    """

    sums: Tensor
    counts: Tensor
    begun: Tensor

    def __init__(self, codes: int, width: int, decay: float = 0.9) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("sums", torch.randn(codes, width))
        self.register_buffer("counts", torch.ones(codes))
        self.register_buffer("begun", torch.zeros((), dtype=torch.bool))

    @property
    def codes(self) -> Tensor:
        """The codes (S, Z)."""
        return self.sums / self.counts.clamp(min=0.01)[:, None]

    def nearest(self, keys: Tensor) -> Tensor:
        """Return the index of the nearest code of keys (..., Z): (...) long. Computed in float32 or wider, because
        rounding would flip codes."""
        codes = self.codes.to(torch.promote_types(self.sums.dtype, torch.float32))
        return (keys.to(codes.dtype) @ codes.mT - codes.square().sum(-1) / 2).argmax(-1)

    @torch.no_grad()
    def learn(self, keys: Tensor) -> None:
        """Take one step of k-means towards keys (N, Z), in place; keys of all processes count."""
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if not bool(self.begun):
            distance = torch.full_like(keys[:, 0], math.inf)
            for code in self.sums:
                code.copy_(keys[distance.argmax()])
                distance = torch.minimum(distance, (keys - code.to(keys.dtype)).square().sum(-1))
            self.begun.fill_(True)
            if distributed:
                torch.distributed.broadcast(self.sums, 0)
        nearest = self.nearest(keys)
        error = (keys - self.codes[nearest].to(keys.dtype)).square().sum(-1)
        assignment = F.one_hot(nearest, len(self.sums)).to(self.sums.dtype)
        batch_sums = torch.cat([assignment.T @ keys.to(self.sums.dtype), assignment.sum(0)[:, None]], 1)
        if distributed:
            torch.distributed.all_reduce(batch_sums)
        self.sums.lerp_(batch_sums[:, :-1], 1 - self.decay)
        self.counts.lerp_(batch_sums[:, -1], 1 - self.decay)
        dead = torch.nonzero(self.counts < 1)[: len(keys), 0]
        self.sums[dead] = keys[error.topk(len(dead)).indices].to(self.sums.dtype)
        self.counts[dead] = 1.0
        if distributed:
            torch.distributed.broadcast(self.sums, 0)


class QuantisedAttention(Recurrence):
    """Softmax attention whose keys are replaced by their nearest codes; linear time, state of constant size.

    Nodes less than `window` back are attended one by one, with a bias by distance. Beyond, keys of one code have equal
    weight, so a count and a sum of values per code suffice. In training each key has the gradient that its code would
    have if no other key shared it (straight-through). Queries and keys have norm sqrt(Z), so that exponentials are
    finite without subtracting a maximum.

    Inputs: q, k (B, N, Z), v (B, N, E) and the keys' codes (B, N) long. State: values (B, window, E) and codes
    (B, window) of the last nodes (-1: none), and, for all nodes before them, sums of values and counts per code
    (B, S, E + 1), float32 or wider; all of the current document.
    """

    learnable_tensors = ()

    def __init__(self, width: int, value_width: int, codes: int, window: int, decay: float, causal: bool) -> None:
        super().__init__()
        self.window, self.value_width = window, value_width
        self.bias = nn.Parameter(torch.zeros(window))
        self.bias_ahead = None if causal else nn.Parameter(torch.zeros(window))
        self.codebook = Codebook(codes, width, decay)

    def initial(self, batch: int, like: Tensor) -> Tensors:
        dtype = torch.promote_types(like.dtype, torch.float32)
        return (like.new_zeros(batch, self.window, self.value_width),
                torch.full((batch, self.window), -1, device=like.device),
                like.new_zeros(batch, len(self.codebook.counts), self.value_width + 1, dtype=dtype))

    def scan(self, inputs: Tensors, state: Tensors, starts: Tensor | None = None,
             lengths: Tensor | None = None) -> tuple[Tensor, Tensors]:
        if not inputs[0].shape[1]:
            return inputs[2], state
        sums, w, n = state[2], self.window, inputs[0].shape[1]
        valued, code, document = self._prepend_state(inputs, state, starts)
        y = self._attend_in_blocks(inputs[0], inputs[1], valued, code, document, sums, self.bias)

        count = torch.full_like(code[:, 0], n) if lengths is None else lengths
        current = document.gather(1, (count + w - 1)[:, None]).clamp(min=0)
        index = torch.arange(n + w, device=code.device)
        has_left_window = (index < count[:, None]) & (document == current)
        sums = sums * (current == 0)[..., None] + self._sum_by_code(code, valued, has_left_window)
        recent = count[:, None] + index[:w]
        v, code = (gather_nodes(x, recent) for x in (valued[..., :-1], code.where(document == current, -1)))
        return (y[..., :-1] / y[..., -1:]).to(inputs[2].dtype), (v.to(state[0].dtype), code, sums)

    def attend_both_ways(self, inputs: Tensors, layout: Layout) -> Tensor:
        """Attend to the whole document: add the sums of both directions, and subtract each node's own term, which both
        of them count. Inputs as of `scan`; returns (B, N, E)."""
        assert self.bias_ahead is not None
        if not inputs[0].shape[1]:
            return inputs[2]
        outputs = []
        for bias, side_layout, backwards in ((self.bias, layout, False), (self.bias_ahead, layout.mirrored(), True)):
            ordered = tuple(x.flip(1) for x in inputs) if backwards else inputs
            initial = self.initial(len(inputs[0]), inputs[0])
            valued, code, document = self._prepend_state(ordered, initial, side_layout.starts)
            y = self._attend_in_blocks(ordered[0], ordered[1], valued, code, document, initial[2], bias)
            outputs.append(y.flip(1) if backwards else y)
        q, k, v, codes = inputs
        scores = (q * self._quantise(k, codes)).sum(-1, keepdim=True) / math.sqrt(q.shape[-1]) + self.bias_ahead[0]
        own_weight = scores.to(outputs[0].dtype).exp()
        y = outputs[0] + outputs[1] - own_weight * F.pad(v, (0, 1), value=1.0)
        return (y[..., :-1] / y[..., -1:]).to(v.dtype)

    def distance_biases(self, distance: Tensor) -> Tensor:
        """Return the score biases (...) of keys `distance` nodes back, (...) long, or ahead where it is negative; they
        are 0 outside the window."""
        index = distance.abs().clamp(max=self.window - 1)
        bias = self.bias[index]
        if self.bias_ahead is not None:
            bias = bias.where(distance >= 0, self.bias_ahead[index])
        return bias.where(distance.abs() < self.window, 0.0)

    def _prepend_state(self, inputs: Tensors, state: Tensors, starts: Tensor | None) -> Tensors:
        """Return values with a column of ones (which sums up the weights), codes and document numbers (-1: none) of the
        nodes in the state's window followed by those of the inputs."""
        v, code = (torch.cat([old.to(new.dtype), new], 1) for old, new in zip(state, inputs[2:]))
        document = torch.zeros_like(inputs[3]) if starts is None else starts.long().cumsum(1)
        document = F.pad(document, (self.window, 0)).where(code >= 0, -1)
        return torch.cat([v, torch.ones_like(v[..., :1])], -1).to(state[2].dtype), code, document

    def _quantise(self, k: Tensor, code: Tensor) -> Tensor:
        """Return the codes in place of the keys, in training with the keys' own gradient."""
        codes = self.codebook.codes.to(k.dtype)[code.clamp(min=0)]
        return straight_through(codes, k) if self.training else codes

    def _sum_by_code(self, code: Tensor, valued: Tensor, mask: Tensor) -> Tensor:
        """Sum values (..., N, E + 1) per code (..., N) over the nodes chosen by the mask `which` (..., N):
        (..., S, E + 1)."""
        one_hot = F.one_hot(code.clamp(min=0), len(self.codebook.counts)).to(valued.dtype) * mask[..., None]
        return one_hot.mT @ valued

    def _attend_in_blocks(self, q: Tensor, k: Tensor, valued: Tensor, code: Tensor, document: Tensor, sums: Tensor,
                          bias: Tensor) -> Tensor:
        """Return unnormalised outputs (B, N, E + 1) for queries and keys (B, N, Z). `valued`, `code` and `document`
        start with the state's window (see `_prepend_state`). Queries of a block attend node by node, with a bias
        (window,) by distance, from `window` nodes before the block to its end, and by sums per code before that."""
        w, n = self.window, q.shape[1]
        k = F.pad(k, (0, 0, w, 0))
        size = min(n, max(w, MIN_TRAINING_BLOCK) if self.training else w)
        blocks, pad = -(-n // size), -n % size
        q = F.pad(q, (0, 0, 0, pad)).unflatten(1, (blocks, size)) / math.sqrt(q.shape[-1])
        k, valued = (F.pad(x, (0, 0, 0, pad)) for x in (k, valued))
        code, document = (F.pad(x, (0, pad), value=-1) for x in (code, document))
        nodes = torch.arange(w + size, device=q.device)
        window_index = torch.arange(blocks, device=q.device)[:, None] * size + nodes
        distance = w + nodes[:size, None] - nodes
        q_document = document[:, w:].unflatten(1, (blocks, size))[..., None]
        k_document = document[:, window_index][..., None, :]
        visible = (q_document == k_document) & (k_document >= 0) & (distance >= 0)
        scores = (q @ self._quantise(k, code)[:, window_index].mT).to(sums.dtype)
        scores = scores + torch.where(distance < w, bias[distance.clamp(0, w - 1)], 0.0).to(sums.dtype)
        y = scores.masked_fill(~visible, -math.inf).exp() @ valued[:, window_index]

        # Sums per code before each block's window, over the document of the last node that left the window.
        k, code, valued, document = (x[:, : (blocks - 1) * size].unflatten(1, (blocks - 1, size))
                                     for x in (k, code, valued, document))
        current = F.pad(document[..., -1], (1, 0)).cummax(1).values
        left_window = document == current[:, 1:, None]
        adds = self._sum_by_code(code, valued, left_window)
        keeps = (current[:, 1:] == current[:, :-1]).to(sums.dtype)[..., None, None].expand_as(adds)
        before = torch.cat([sums[:, None], linear_scan(keeps, adds, sums)], 1)
        weights = (q @ self.codebook.codes.to(k.dtype).mT).to(sums.dtype).exp()  # (B, blocks, size, S)
        weights = weights * (q_document == current[..., None, None])
        y = y + weights @ before
        if self.training and blocks > 1:
            y = y + _StraightThrough.apply(k, q, weights, code.clamp(min=0), valued * left_window[..., None], keeps)
        return y.flatten(1, 2)[:, :n]


class _StraightThrough(torch.autograd.Function):
    """Return zeros (B, blocks, C, E + 1) whose backward pass gives keys k (B, blocks - 1, C, Z) their gradient through
    the sums per code: how each key's own value, weighted by exp(q . code), would change if the key's code moved.

    q (B, blocks, C, Z), weights exp(q . code) (B, blocks, C, S), code (B, blocks - 1, C), valued (B, blocks - 1, C,
    E + 1), keeps (B, blocks - 1, S, E + 1). Slopes (B, S, Z, E + 1) over all later queries are accumulated block by
    block, so the backward pass is linear in the length as well.
    """

    @staticmethod
    def forward(ctx: Any, k: Tensor, q: Tensor, weights: Tensor, code: Tensor, valued: Tensor, keeps: Tensor) -> Tensor:
        ctx.save_for_backward(q, weights, code, valued, keeps)
        return weights.new_zeros(*weights.shape[:3], valued.shape[-1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        q, weights, code, valued, keeps = ctx.saved_tensors
        row, key_grads = torch.arange(len(q), device=q.device)[:, None], []
        slopes = weights.new_zeros(len(q), weights.shape[-1], q.shape[-1], grad.shape[-1])
        for block in reversed(range(code.shape[1])):
            if block + 1 < code.shape[1]:
                slopes = slopes * keeps[:, block + 1, :, None]
            pairs = weights[:, block + 1, :, :, None] * q[:, block + 1, :, None].to(weights.dtype)
            slopes = slopes + (pairs.flatten(2).mT @ grad[:, block + 1]).unflatten(1, slopes.shape[1:3])
            key_grads.append((slopes[row, code[:, block]] @ valued[:, block, :, :, None])[..., 0])
        return torch.stack(key_grads[::-1], 1).to(q.dtype), None, None, None, None, None


class LongVQ(Mixer):
    """Vector-quantised attention in a Mega block: returns u (H - x), with an update gate u and a candidate H made from
    x and the attention's output. The residual connection adds x, which gives Mega's u H + (1 - u) x (of the normalised
    x, where a norm stands in front).

    width: model width D. keys: Z, width of queries and keys (default: D / 4). expand: width of values relative to D.
    codes: S, size of the codebook. window: how many nodes back are attended one by one, with a bias. states: decays per
    channel of the structured memory, the moving average from which queries, keys and gates are computed. decay: of the
    codebook's averages, per training step; slower codes (0.99 in Transformer-VQ) lag behind keys that learn fast.
    commitment: weight of a loss that pulls keys towards their codes, the mean squared difference (1e-4 in
    Transformer-VQ); it can be left out, since keys have a fixed norm and dead codes are moved back to them.
    causal: False sees the whole document: the attention looks both ways, with biases of its own for later nodes, and
    the structured memory is the sum of two averages, one from each end, as in Mega.
    """

    linear_in_values = True
    recomputable = False  # in training the codes learn from each pass

    def __init__(self, width: int, keys: int | None = None, expand: int = 2, codes: int = 64, window: int = 64,
                 states: int = 4, decay: float = 0.9, commitment: float = 0.0, causal: bool = True) -> None:
        super().__init__(width)
        self.causal, self.commitment = causal, commitment
        self.commitment_error: Tensor | None = None  # of the latest training batch: mean square of keys minus codes
        if codes < 1 or window < 1:
            raise SegueError(f"LongVQ needs at least one code and a window of one node, not {codes} and {window}")
        keys, values = keys or max(1, width // 4), expand * width
        self.average = ExponentialAverage(width, states)
        self.average_ahead = None if causal else ExponentialAverage(width, states)
        self.skip = nn.Parameter(torch.ones(width))
        self.shared = nn.Linear(width, keys)
        self.scale = nn.Parameter(1 + 0.02 * torch.randn(2, keys))
        self.shift = nn.Parameter(torch.zeros(2, keys))
        self.v = nn.Linear(width, values)
        self.gates = nn.Linear(width, values + 2 * width)
        self.join = nn.Linear(values, width, bias=False)
        self.attention = QuantisedAttention(keys, values, codes, window, decay, causal)

    def state_parameters(self) -> list[nn.Parameter]:
        return [average.rate for average in (self.average, self.average_ahead) if average is not None]

    def penalty(self) -> Tensor | None:
        # Returned once and dropped: a model that holds on to an autograd graph cannot be deep-copied.
        error, self.commitment_error = self.commitment_error, None
        return None if error is None else self.commitment * error

    def _structured_memory(self, x: Tensor, layout: Layout, parts: Parts) -> Tensor:
        """Return the structured memory (B, N, D): SiLU of the moving average plus a skip connection."""
        average = self.average((x,), layout, parts.get("average"))
        if self.average_ahead is not None:
            average = average + self.average_ahead((x.flip(1),), layout.mirrored(), None).flip(1)
        return F.silu(average + self.skip * x)

    def _project(self, x: Tensor, memory: Tensor) -> Tensors:
        """Return queries, keys, values and the keys' codes."""
        shared = F.silu(self.shared(memory))[..., None, :] * self.scale + self.shift
        q, k = F.rms_norm(shared, shared.shape[-1:], eps=1e-6).unbind(-2)
        return q, k, F.silu(self.v(x)), self.attention.codebook.nearest(k)

    def run(self, x: Tensor, layout: Layout, parts: Parts) -> Tensor:
        memory = self._structured_memory(x, layout, parts)
        inputs = self._project(x, memory)
        y = self.attention(inputs, layout, parts.get("attention")) if self.causal else \
            self.attention.attend_both_ways(inputs, layout)
        if self.training and x.numel():
            if self.commitment:
                self.commitment_error = (inputs[1] - self.attention.codebook.codes[inputs[3]]).square().mean()
            self.attention.codebook.learn(inputs[1].flatten(0, 1))
        return self._gate(y, memory, x)

    def _gate(self, y: Tensor, memory: Tensor, x: Tensor) -> Tensor:
        width = self.width
        reset, update, candidate = self.gates(memory).split([y.shape[-1], width, width], -1)
        return torch.sigmoid(update) * (F.silu(candidate + self.join(F.silu(reset) * y)) - x)

    def lower(self, program: Program, source: View, into: View) -> None:
        if not self.causal:
            raise SegueError("a LongVQ that looks ahead has no form for the compiled CPU engine")
        keys, values, width = self.shared.out_features, self.v.out_features, self.width
        memory, shared, q, k, v, y, gates, candidate, negated = (program.register(name, size) for name, size in (
            ("memory", width), ("shared", keys), ("q", keys), ("k", keys), ("v", values), ("y", values),
            ("gates", values + width), ("plain", width), ("less", width)))
        self.average.lower(program, source, memory, self.skip)
        program.map(memory, memory, "silu")
        program.linear(memory, shared, self.shared.weight, self.shared.bias, activation="silu")
        for part, scale, shift in zip((q, k), self.scale, self.shift):
            program.map(shared, part, scale=scale, shift=shift)
            program.norm(part, part, "rms", None, None, 1e-6)
        program.linear(source, v, self.v.weight, self.v.bias, activation="silu")
        program.quantised(q, k, v, y, self.attention.codebook.codes, self.attention.bias)
        for part, rows in ((gates, slice(values + width)), (candidate, slice(values + width, None))):
            program.linear(memory, part, self.gates.weight[rows], self.gates.bias[rows])
        program.multiply(y, gates[:values], "silu")
        program.linear(y, candidate, self.join.weight, add=True)
        program.map(candidate, candidate, "silu")
        program.map(source, negated, scale=-1.0)
        program.add(negated, candidate)
        program.multiply(candidate, gates[values:], "sigmoid")
        program.add(candidate, into)

    def _memory_of(self, x: Tensor) -> Tensor:
        return self._structured_memory(x, Layout.of(x), {})

    def matrix(self, x: Tensor) -> Tensor:
        q, _, _, code = self._project(x, self._memory_of(x))
        index = torch.arange(x.shape[1], device=x.device)
        distance = index[:, None] - index
        scores = q @ self.attention.codebook.codes[code].mT / math.sqrt(q.shape[-1])
        scores = scores + self.attention.distance_biases(distance)
        return (scores.masked_fill(distance < 0, -math.inf) if self.causal else scores).softmax(-1)[:, None]

    def values(self, x: Tensor) -> Tensor:
        return F.silu(self.v(x))[:, None]

    def output(self, mixed: Tensor, x: Tensor) -> Tensor:
        return self._gate(mixed[:, 0], self._memory_of(x), x)
