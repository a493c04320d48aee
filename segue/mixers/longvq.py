"""LongVQ: gated attention over structured memory, whose keys are those of a codebook: node by node nearby, summed up by
code beyond (Liu et al. 2024, arXiv 2404.11163), in the shape of Mega (Ma et al. 2022, arXiv 2209.10655) and
Transformer-VQ (Lingle 2023, arXiv 2309.16354)."""

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
"""Nodes of a block in training, at least: gradients node by node are then cheaper than those of sums by code."""


class Codebook(nn.Module):
    """S codes that follow the keys by k-means with moving averages of sums and counts, in training only. The first
    batch seen in training gives the first codes: keys that are far from each other. A code that stands for less than
    one key of a batch, on average, is dead, and moves to one of the keys that are furthest from their codes: keys move
    as they learn, and would leave all codes but a few behind."""

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
        """(S, Z)."""
        return self.sums / self.counts.clamp(min=0.01)[:, None]

    def nearest(self, keys: Tensor) -> Tensor:
        """(..., Z) -> (...) long, in float32 at least, since rounding would flip codes."""
        codes = self.codes.to(torch.promote_types(self.sums.dtype, torch.float32))
        return (keys.to(codes.dtype) @ codes.mT - codes.square().sum(-1) / 2).argmax(-1)

    @torch.no_grad()
    def learn(self, keys: Tensor) -> None:
        """Move towards keys (N, Z), those of all processes: one step of k-means."""
        together = torch.distributed.is_available() and torch.distributed.is_initialized()
        if not bool(self.begun):
            apart = torch.full_like(keys[:, 0], math.inf)
            for code in self.sums:
                code.copy_(keys[apart.argmax()])
                apart = torch.minimum(apart, (keys - code.to(keys.dtype)).square().sum(-1))
            self.begun.fill_(True)
            if together:
                torch.distributed.broadcast(self.sums, 0)
        nearest = self.nearest(keys)
        missed = (keys - self.codes[nearest].to(keys.dtype)).square().sum(-1)
        belongs = F.one_hot(nearest, len(self.sums)).to(self.sums.dtype)
        new = torch.cat([belongs.T @ keys.to(self.sums.dtype), belongs.sum(0)[:, None]], 1)
        if together:
            torch.distributed.all_reduce(new)
        self.sums.lerp_(new[:, :-1], 1 - self.decay)
        self.counts.lerp_(new[:, -1], 1 - self.decay)
        dead = torch.nonzero(self.counts < 1)[: len(keys), 0]
        self.sums[dead] = keys[missed.topk(len(dead)).indices].to(self.sums.dtype)
        self.counts[dead] = 1.0
        if together:
            torch.distributed.broadcast(self.sums, 0)


class QuantisedAttention(Recurrence):
    """Softmax attention to the codes nearest to the keys; while a node is less than `window` back, a bias by distance
    is added. Beyond, keys of one code weigh the same, so what has left the window is a count and a sum of values per
    code: time is linear in the length, the state of constant size. In training each key has the gradient that its code
    would have if no other key shared it (straight through).

    Queries and keys are of norm sqrt(Z), so that exponentials are finite without subtracting a maximum.

    Inputs q, k (B, N, Z), v (B, N, E) and the keys' codes (B, N) long. State: of the last `window` nodes the values and
    codes (-1: none), and of all before them the sums of values, and their count, by code (B, S, E + 1), float32 at
    least; all of the document that goes on.
    """

    learnable_tensors = ()

    def __init__(self, width: int, value_width: int, codes: int, window: int, decay: float, causal: bool) -> None:
        super().__init__()
        self.window, self.value_width = window, value_width
        self.bias = nn.Parameter(torch.zeros(window))
        self.bias_ahead = None if causal else nn.Parameter(torch.zeros(window))
        self.codebook = Codebook(codes, width, decay)

    def initial(self, batch: int, like: Tensor) -> Tensors:
        wide = torch.promote_types(like.dtype, torch.float32)
        return (like.new_zeros(batch, self.window, self.value_width),
                torch.full((batch, self.window), -1, device=like.device),
                like.new_zeros(batch, len(self.codebook.counts), self.value_width + 1, dtype=wide))

    def scan(self, inputs: Tensors, state: Tensors, starts: Tensor | None = None,
             lengths: Tensor | None = None) -> tuple[Tensor, Tensors]:
        if not inputs[0].shape[1]:
            return inputs[2], state
        sums, w, n = state[2], self.window, inputs[0].shape[1]
        valued, code, document = self._prepend_state(inputs, state, starts)
        y = self._attend_in_blocks(inputs[0], inputs[1], valued, code, document, sums, self.bias)

        taken = torch.full_like(code[:, 0], n) if lengths is None else lengths
        owner = document.gather(1, (taken + w - 1)[:, None]).clamp(min=0)
        index = torch.arange(n + w, device=code.device)
        old = (index < taken[:, None]) & (document == owner)
        sums = sums * (owner == 0)[..., None] + self._sum_by_code(code, valued, old)
        recent = taken[:, None] + index[:w]
        v, code = (gather_nodes(x, recent) for x in (valued[..., :-1], code.where(document == owner, -1)))
        return (y[..., :-1] / y[..., -1:]).to(inputs[2].dtype), (v.to(state[0].dtype), code, sums)

    def attend_both_ways(self, inputs: Tensors, layout: Layout) -> Tensor:
        """What is read where nodes see all of their document: what each way sums up, less the nodes themselves, which
        both count."""
        assert self.bias_ahead is not None
        if not inputs[0].shape[1]:
            return inputs[2]
        ways = []
        for bias, side, turn in ((self.bias, layout, False), (self.bias_ahead, layout.mirrored(), True)):
            turned = tuple(x.flip(1) for x in inputs) if turn else inputs
            fresh = self.initial(len(inputs[0]), inputs[0])
            valued, code, document = self._prepend_state(turned, fresh, side.starts)
            y = self._attend_in_blocks(turned[0], turned[1], valued, code, document, fresh[2], bias)
            ways.append(y.flip(1) if turn else y)
        q, k, v, codes = inputs
        scores = (q * self._quantise(k, codes)).sum(-1, keepdim=True) / math.sqrt(q.shape[-1]) + self.bias_ahead[0]
        own = scores.to(ways[0].dtype).exp()
        y = ways[0] + ways[1] - own * F.pad(v, (0, 1), value=1.0)
        return (y[..., :-1] / y[..., -1:]).to(v.dtype)

    def distance_biases(self, apart: Tensor) -> Tensor:
        """Of keys so far back, (...) long, or ahead where negative: 0 from the window on."""
        index = apart.abs().clamp(max=self.window - 1)
        bias = self.bias[index]
        if self.bias_ahead is not None:
            bias = bias.where(apart >= 0, self.bias_ahead[index])
        return bias.where(apart.abs() < self.window, 0.0)

    def _prepend_state(self, inputs: Tensors, state: Tensors, starts: Tensor | None) -> Tensors:
        """Values and a one beside each, which sum up the weights, codes and documents (-1: none) of the line: the nodes
        that the state keeps one by one, then those of the inputs."""
        v, code = (torch.cat([old.to(new.dtype), new], 1) for old, new in zip(state, inputs[2:]))
        document = torch.zeros_like(inputs[3]) if starts is None else starts.long().cumsum(1)
        document = F.pad(document, (self.window, 0)).where(code >= 0, -1)
        return torch.cat([v, torch.ones_like(v[..., :1])], -1).to(state[2].dtype), code, document

    def _quantise(self, k: Tensor, code: Tensor) -> Tensor:
        """The keys' codes, in training with the keys' own gradient."""
        codes = self.codebook.codes.to(k.dtype)[code.clamp(min=0)]
        return straight_through(codes, k) if self.training else codes

    def _sum_by_code(self, code: Tensor, valued: Tensor, which: Tensor) -> Tensor:
        """(..., N) codes and (..., N, E + 1) -> (..., S, E + 1), the sums over `which` nodes (..., N) of each code."""
        hot = F.one_hot(code.clamp(min=0), len(self.codebook.counts)).to(valued.dtype) * which[..., None]
        return hot.mT @ valued

    def _attend_in_blocks(self, q: Tensor, k: Tensor, valued: Tensor, code: Tensor, document: Tensor, sums: Tensor,
                bias: Tensor) -> Tensor:
        """Unnormalised outputs (B, N, E + 1) of queries and keys (B, N, Z), which are the line's nodes from `window`
        on. Each block of them sees the line from `window` nodes before it to its end, node by node, with a bias
        (window,) by distance, and what is before that by code."""
        w, n = self.window, q.shape[1]
        k = F.pad(k, (0, 0, w, 0))
        size = min(n, max(w, MIN_TRAINING_BLOCK) if self.training else w)
        blocks, pad = -(-n // size), -n % size
        q = F.pad(q, (0, 0, 0, pad)).unflatten(1, (blocks, size)) / math.sqrt(q.shape[-1])
        k, valued = (F.pad(x, (0, 0, 0, pad)) for x in (k, valued))
        code, document = (F.pad(x, (0, pad), value=-1) for x in (code, document))
        nodes = torch.arange(w + size, device=q.device)
        near = torch.arange(blocks, device=q.device)[:, None] * size + nodes
        apart = w + nodes[:size, None] - nodes
        mine, theirs = document[:, w:].unflatten(1, (blocks, size))[..., None], document[:, near][..., None, :]
        seen = (mine == theirs) & (theirs >= 0) & (apart >= 0)
        scores = (q @ self._quantise(k, code)[:, near].mT).to(sums.dtype)
        scores = scores + torch.where(apart < w, bias[apart.clamp(0, w - 1)], 0.0).to(sums.dtype)
        y = scores.masked_fill(~seen, -math.inf).exp() @ valued[:, near]

        # Sums before each block, of the document of the last node that left.
        k, code, valued, theirs = (x[:, : (blocks - 1) * size].unflatten(1, (blocks - 1, size))
                                   for x in (k, code, valued, document))
        owner = F.pad(theirs[..., -1], (1, 0)).cummax(1).values
        left = theirs == owner[:, 1:, None]
        adds = self._sum_by_code(code, valued, left)
        keeps = (owner[:, 1:] == owner[:, :-1]).to(sums.dtype)[..., None, None].expand_as(adds)
        before = torch.cat([sums[:, None], linear_scan(keeps, adds, sums)], 1)
        weights = (q @ self.codebook.codes.to(k.dtype).mT).to(sums.dtype).exp()  # (B, blocks, size, S)
        weights = weights * (mine == owner[..., None, None])
        y = y + weights @ before
        if self.training and blocks > 1:
            y = y + _StraightThrough.apply(k, q, weights, code.clamp(min=0), valued * left[..., None], keeps)
        return y.flatten(1, 2)[:, :n]


class _StraightThrough(torch.autograd.Function):
    """Zeros (B, blocks, C, E + 1) with the gradient for keys k (B, blocks - 1, C, Z) of sums by code: what each key's
    own value, weighted by exp(q . code), would gain if the key's code moved. q (B, blocks, C, Z), weights exp(q . code)
    (B, blocks, C, S), code (B, blocks - 1, C), valued (B, blocks - 1, C, E + 1), keeps (B, blocks - 1, S, E + 1).

    Slopes (B, S, Z, E + 1) of all later queries are summed up block by block, so that this too is linear in the length.
    """

    @staticmethod
    def forward(ctx: Any, k: Tensor, q: Tensor, weights: Tensor, code: Tensor, valued: Tensor, keeps: Tensor) -> Tensor:
        ctx.save_for_backward(q, weights, code, valued, keeps)
        return weights.new_zeros(*weights.shape[:3], valued.shape[-1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        q, weights, code, valued, keeps = ctx.saved_tensors
        row, found = torch.arange(len(q), device=q.device)[:, None], []
        slopes = weights.new_zeros(len(q), weights.shape[-1], q.shape[-1], grad.shape[-1])
        for block in reversed(range(code.shape[1])):
            if block + 1 < code.shape[1]:
                slopes = slopes * keeps[:, block + 1, :, None]
            pairs = weights[:, block + 1, :, :, None] * q[:, block + 1, :, None].to(weights.dtype)
            slopes = slopes + (pairs.flatten(2).mT @ grad[:, block + 1]).unflatten(1, slopes.shape[1:3])
            found.append((slopes[row, code[:, block]] @ valued[:, block, :, :, None])[..., 0])
        return torch.stack(found[::-1], 1).to(q.dtype), None, None, None, None, None


class LongVQ(Mixer):
    """u (H - x), with an update gate u and what x and the attention give together, H. The block adds x, which makes
    u H + (1 - u) x of it, as Mega has it (of the normed x, where the norm stands in front).

    width: model width D. keys: Z, width of queries and keys (default: D / 4). expand: width of values relative to D.
    codes: S, of the codebook; window: nodes back that are seen one by one, with a bias. states: decays per channel of
    the structured memory, a moving average that queries, keys and gates are read off. decay: of the codebook's
    averages, per step of training; slower codes (0.99 in Transformer-VQ) stay behind keys that learn fast.
    commitment: weight of a loss that draws keys to their codes, the mean square of what is between their numbers (1e-4
    in Transformer-VQ). Keys are of one length and dead codes come back to them, so that it can be left out.
    causal: False reads all of a document: the attention looks both ways, with biases of its own for what lies ahead,
    and the structured memory is the sum of two averages, one from each end, as Mega's.
    """

    linear_in_values = True

    def __init__(self, width: int, keys: int | None = None, expand: int = 2, codes: int = 64, window: int = 64,
                 states: int = 4, decay: float = 0.9, commitment: float = 0.0, causal: bool = True) -> None:
        super().__init__(width)
        self.causal, self.commitment = causal, commitment
        self.commitment_error: Tensor | None = None  # of the latest training batch: mean square of keys less codes
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
        # Handed out once and dropped: a model that holds on to a graph cannot be deep-copied.
        error, self.commitment_error = self.commitment_error, None
        return None if error is None else self.commitment * error

    def _structured_memory(self, x: Tensor, layout: Layout, parts: Parts) -> Tensor:
        """The structured memory (B, N, D)."""
        average = self.average((x,), layout, parts.get("average"))
        if self.average_ahead is not None:
            average = average + self.average_ahead((x.flip(1),), layout.mirrored(), None).flip(1)
        return F.silu(average + self.skip * x)

    def _project(self, x: Tensor, memory: Tensor) -> Tensors:
        both = F.silu(self.shared(memory))[..., None, :] * self.scale + self.shift
        q, k = F.rms_norm(both, both.shape[-1:], eps=1e-6).unbind(-2)
        return q, k, F.silu(self.v(x)), self.attention.codebook.nearest(k)

    def run(self, x: Tensor, layout: Layout, parts: Parts) -> Tensor:
        memory = self._structured_memory(x, layout, parts)
        inputs = self._project(x, memory)
        y = self.attention(inputs, layout, parts.get("attention")) if self.causal else \
            self.attention.attend_both_ways(inputs, layout)
        if self.training:
            if self.commitment:
                self.commitment_error = (inputs[1] - self.attention.codebook.codes[inputs[3]]).square().mean()
            self.attention.codebook.learn(inputs[1].flatten(0, 1))
        return self._gate(y, memory, x)

    def _gate(self, y: Tensor, memory: Tensor, x: Tensor) -> Tensor:
        width = self.width
        reset, update, plain = self.gates(memory).split([y.shape[-1], width, width], -1)
        return torch.sigmoid(update) * (F.silu(plain + self.join(F.silu(reset) * y)) - x)

    def lower(self, program: Program, source: View, into: View) -> None:
        if not self.causal:
            raise SegueError("a LongVQ that looks ahead has no form for the compiled CPU engine")
        keys, values, width = self.shared.out_features, self.v.out_features, self.width
        memory, shared, q, k, v, y, gates, plain, less = (program.register(name, size) for name, size in (
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
        for part, rows in ((gates, slice(values + width)), (plain, slice(values + width, None))):
            program.linear(memory, part, self.gates.weight[rows], self.gates.bias[rows])
        program.multiply(y, gates[:values], "silu")
        program.linear(y, plain, self.join.weight, add=True)
        program.map(plain, plain, "silu")
        program.map(source, less, scale=-1.0)
        program.add(less, plain)
        program.multiply(plain, gates[values:], "sigmoid")
        program.add(plain, into)

    def _memory_of(self, x: Tensor) -> Tensor:
        return self._structured_memory(x, Layout.of(x), {})

    def matrix(self, x: Tensor) -> Tensor:
        q, _, _, code = self._project(x, self._memory_of(x))
        index = torch.arange(x.shape[1], device=x.device)
        apart = index[:, None] - index
        scores = q @ self.attention.codebook.codes[code].mT / math.sqrt(q.shape[-1])
        scores = scores + self.attention.distance_biases(apart)
        return (scores.masked_fill(apart < 0, -math.inf) if self.causal else scores).softmax(-1)[:, None]

    def values(self, x: Tensor) -> Tensor:
        return F.silu(self.v(x))[:, None]

    def output(self, mixed: Tensor, x: Tensor) -> Tensor:
        return self._gate(mixed[:, 0], self._memory_of(x), x)
