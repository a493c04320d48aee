"""The program: what one decoding step of a stack does, as a table of operations over registers.

A register is a (nodes, width) float32 matrix in scratch memory; an operation is one row of integers: its code, its
operands, sizes, and addresses of weights. Mixers lower themselves by calling the builder's methods, and a new mixer
needs no more than that, or one new operation in `ops/`.

`Mixer.lower(program, source, into)` adds the mixer's output for the register `source` to the register `into`:

- `program.register(name, width)` gives room for what lies between, `view[a:b]` some of its columns. Registers of one
  name are shared by all layers, so write before you read; `source` and registers passed on are only read.
- weights are given as tensors (`self.into.weight`, or anything computed from parameters: `-self.A_log.exp()`), and
  copied once: what can be folded into a weight costs nothing later.
- memory is the operations' own affair: those in the second group take room for it, and trees, commits, forks and
  roll-back follow. What `scan`, `modes`, `low_rank`, `dense`, `quantised`, `matrix` and `prefixed` read must stay as it
  is until the end of the step.

| to | say |
| --- | --- |
| project | `linear(x, y, weight, bias, add=, activation=, gated=)`, `norm(x, y, "rms", "layer" or "l2", ..., groups)` |
| act on numbers | `map(x, y, activation, scale, shift, limit)`, `multiply(y, by, activation)`, `add(x, y, weight)` |
| make features of them | `polynomial(x, y, weight)`, `exponential(x, y, directions)`, `turn(x, y, frequencies)` |
| look a few tokens back | `convolve(x, y, weight, bias, activation)` |
| look far back, by fixed filters (Hyena) | `filter(x, y, taps)` |
| attend | `attend(q, k, v, y, ...)` |
| attend, to codes beyond a window (LongVQ) | `quantised(q, k, v, y, codes, bias)` |
| remember numbers, real or complex (LRU, S5, gated averages) | `diagonal(decay, x, y)` |
| remember complex modes of each channel (S4D, DSS) | `modes(u, y, a, c, d)` |
| ... that see one number of each other (S4) | `low_rank(u, y, a, away, seen, b, c, d)` |
| remember by a dense matrix for each channel (LSSL) | `dense(u, y, a, b, c, d)` |
| remember by a selective scan (Mamba) | `scan(u, dt, b, c, gate, y, a, d)` |
| remember a few vectors, from block to block | `recall(q, y, ...)` |
| remember a matrix (linear attention, GLA, Mamba-2, mLSTM, DeltaNet) | `matrix(q, k, v, y, heads, decay, write, ...)` |
| ... that reads its prompt ahead | `prefixed(q, k, v, keys, values, y, heads)`; `mark_prompt` marks its nodes |
| ... with exponential gates (mLSTM) | before it `stabilise(forget, write, floor)` |
| remember nonlinearly (LSTM, GRU, Elman, Jordan, sLSTM, with heads) | `recur(gates, y, kind, weight, bias, heads)` |

Mamba-2, with decay exp(-dt exp(A)) and write strength dt per head, and keys that all heads share:

    program.linear(source, dt, step.weight, step.bias, activation="softplus")
    program.map(dt, decay, "exp", scale=-A_log.exp())
    program.matrix(C, B, u, y, heads, decay, write=dt, groups=1)

Activations: none, silu, gelu, gelu_tanh, relu, relu2, sigmoid, tanh, exp, softplus, log_sigmoid, elu1 (elu + 1),
reciprocal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from segue.kernels.cpu.simd import GROUP, INTEGER, LANES, MANY, TILE, UNROLL

# Operations.
(EMBED, NORM, ANGLES, LINEAR, STORE, ATTEND, CONVOLVE, SCAN, DECAY, DIAGONAL, MODES, MATRIX, NORMALISE, STABILISE,
 RECUR, MAP, MULTIPLY, ADD, MOVE, PICK, POLYNOMIAL, TURN, FILTER, LOW_RANK, DENSE,
 QUANTISED, PREFIXED, RECALL, MARK_PROMPT, EXPONENTIAL) = range(30)
COLUMNS = 32

# Activations, norms and the cells of nonlinear recurrences.
(NONE, SILU, GELU, GELU_TANH, RELU, RELU2, SIGMOID, TANH, EXP, SOFTPLUS, LOG_SIGMOID, ELU1, RECIPROCAL) = range(13)
ACTIVATIONS = {"none": NONE, "silu": SILU, "gelu": GELU, "gelu_tanh": GELU_TANH, "relu": RELU, "relu2": RELU2,
               "sigmoid": SIGMOID, "tanh": TANH, "exp": EXP, "softplus": SOFTPLUS, "log_sigmoid": LOG_SIGMOID,
               "elu1": ELU1, "reciprocal": RECIPROCAL}
RMS, LAYER, L2 = range(3)
NORMS = {"rms": RMS, "layer": LAYER, "l2": L2}
LSTM, GRU, ELMAN, SLSTM, JORDAN = range(5)
CELLS = {"lstm": (LSTM, 4, 2), "gru": (GRU, 3, 1), "elman": (ELMAN, 1, 1), "slstm": (SLSTM, 4, 3),
         "jordan": (JORDAN, 1, 2)}
"""By name: code, gates, memories as wide as the hidden state (the LSTM with exponential gates has one more, which does
not begin as zero)."""

# What one call needs to know, as integers: counts, and addresses of the arrays that `segue.models.compiled` fills.
(OPERATIONS, COUNT, SCRATCH, LOCAL, LOCAL_BYTES, CACHE, CAPACITY, BEFORE, AFTER, SLOTS, KEEP, LOGITS,
 NODES, BATCH, TOKEN, ROW, PARENT, POSITION, FIRST, LENGTH, CHAIN, ORDER, LEVEL, LEVELS, WANT, WANTED,
 PATH, STEPS, TEAM, BARRIER, PROMPT, WORK) = range(32)
JOB = 32
BLOCK_BYTES = 1 << 24


def padded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


@dataclass(frozen=True)
class View:
    """Columns `column` to `column + width` of a register that begins at `offset` (in floats per node)."""

    offset: int
    column: int
    width: int
    stride: int

    def __getitem__(self, columns: slice) -> View:
        start, stop, _ = columns.indices(self.width)
        return View(self.offset, self.column + start, stop - start, self.stride)

    @property
    def columns(self) -> tuple[int, int, int]:
        return self.offset, self.column, self.stride


CONSTANT = -1  # the offset of a view that is no register but one vector for every node, whose address is its column


class Program:
    """The builder. `weights`: "float32", or "int8" for the matrices (one scale per output, symmetric)."""

    def __init__(self, weights: str = "float32") -> None:
        self.int8 = weights == "int8"
        self.rows: list[list[int]] = []
        self.arrays: list[np.ndarray] = []  # what the operations point into
        self.matrices: list[tuple[list[int], int, Tensor, bool]] = []  # row, column, weights, gated: packed at the end
        self.block = aligned((0,), np.uint8)  # what is left of the latest block for matrices
        self.names: dict[tuple, View] = {}
        self.floats_per_node = 0  # of all registers
        self.floats_per_position = 0  # of the key-value caches of all layers
        self.caches: list[tuple[int, int, int, int]] = []  # offset, heads, key width, value width
        self.reach: int | None = 0  # how many positions back those are read; None: all
        self.floats_per_state = 0  # of the recurrent states of all layers
        self.states: list[tuple[int, int]] = []  # offset, size
        self.large: set[int] = set()  # the offsets of those that a chain does not keep for each node, see `repeat`
        self.initial: list[float] = []  # what each of them is filled with when it is fresh
        self.local = 0  # floats of its own that an operation asks for in each thread
        self.weight_bytes = 0  # read by every step
        self.widest = 0  # floats that the inputs of a matrix, as bytes, or the weights of codes take
        self.widest_row = 0  # floats of a row that each thread makes for itself, see `linear.make_rows`
        self.vocabulary, self.logit_stride = 0, 0

    # Registers, states, weights.

    def register(self, name: str, width: int) -> View:
        """The register of that name and width: the same one each time, so that layers share their scratch memory."""
        if (name, width) not in self.names:
            # Tiles are written whole, and the micro-kernel may read up to UNROLL floats past a row's end.
            stride = padded(width, TILE)
            self.names[name, width] = View(self.floats_per_node, 0, width, stride)
            self.floats_per_node += stride
        return self.names[name, width]

    def state(self, size: int, initial: float = 0.0) -> int:
        """Room for `size` floats of recurrent state per row, which begin as `initial`; gives its offset."""
        offset, size = self.floats_per_state, padded(size, LANES)
        self.states.append((offset, size))
        self.initial.append(initial)
        self.floats_per_state += size
        return offset

    def repeat(self, offset: int, *inputs: View) -> None:
        """The state at `offset` is large: of a chain only the last is written, and to commit a part of the chain is to
        repeat the operation. So nobody may write to its inputs any more: other layers get other registers."""
        self.large.add(offset)
        input_offsets = {view.offset for view in inputs}
        self.names = {name: view for name, view in self.names.items() if view.offset not in input_offsets}

    def keep(self, array: Tensor | np.ndarray, whole: bool = True) -> int:
        """The address of a float32 array, which the program keeps alive (a tensor's memory is shared, not copied).
        whole: every step reads all of it."""
        array = np.ascontiguousarray(plain(array), np.float32)
        self.arrays.append(array)
        self.weight_bytes += whole * array.nbytes
        return array.ctypes.data

    def _vector(self, values: Tensor | np.ndarray | None, width: int) -> int:
        """The address of a vector that may be read up to a tile past its end; 0 for none."""
        if values is None:
            return 0
        flat = np.zeros(padded(width, TILE), np.float32)
        flat[:width] = plain(values).reshape(-1)
        return self.keep(flat)

    def constant(self, values: Tensor | np.ndarray) -> View:
        """An operand that is the same for every node: one vector, read as (width,)."""
        width = int(np.prod(values.shape))
        return View(CONSTANT, self._vector(values, width), width, 0)

    def _operand(self, values: View | Tensor | None, width: int) -> View:
        """A register, a vector that is the same for every node, or ones."""
        if isinstance(values, View):
            return values
        return self.constant(np.ones(width, np.float32) if values is None else values)

    def _allocate(self, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
        """Zeros in a large block of memory, since the system gives only large blocks large pages."""
        size = padded(int(np.prod(shape)) * dtype.itemsize, 64)
        if size > self.block.size:
            self.block = aligned((max(size, BLOCK_BYTES),), np.uint8)
            self.arrays.append(self.block)
        memory, self.block = self.block[:size], self.block[size:]
        return memory[: int(np.prod(shape)) * dtype.itemsize].view(dtype).reshape(shape)

    def _sizes(self, weight: Tensor, gated: bool = False) -> tuple[int, int]:
        """Steps of the inner loop and number of tiles of (out, in) weights."""
        outputs, inner = weight.shape
        tiles = padded(outputs // 2, LANES) // LANES if gated else padded(outputs, TILE) // TILE
        return padded(-(-inner // GROUP) if self.int8 else inner, UNROLL), tiles

    def _bytes(self, k: int, parts: int = 1) -> View:
        """A register for a matrix's inputs as bytes, in `parts` of k words each, with what `quantise` leaves behind."""
        if not (self.int8 and INTEGER):
            return View(0, 0, 0, 0)
        self.widest = max(self.widest, k + 2)
        return self.register("bytes", parts * (k + 2))

    def _pack(self, weight: Tensor, gated: bool) -> tuple[np.ndarray, int]:
        """Pack (out, in) weights as (tile, in, TILE outputs), int8 ones as (tile, in / GROUP, TILE, GROUP); gives them,
        and the address of their scales (0: they are float32). Gated: half a tile from the first half of the outputs,
        half from the second."""
        matrix = plain(weight).astype(np.float32, copy=False)
        outputs, inner = matrix.shape
        if gated:
            half = padded(outputs // 2, LANES)
            halves = np.zeros((2, half, inner), np.float32)
            halves[:, : outputs // 2] = matrix.reshape(2, -1, inner)
            matrix = halves.reshape(2, -1, LANES, inner).swapaxes(0, 1).reshape(-1, inner)
            outputs = matrix.shape[0]
        k, tiles = self._sizes(weight, gated)
        scales, group = 0, GROUP if self.int8 else 1
        if self.int8:
            scale_values = np.abs(matrix).max(axis=1, initial=0) / 127
            scale_values[scale_values == 0] = 1
            scales = self._vector(scale_values, outputs)
            matrix = np.rint(matrix / scale_values[:, None]).astype(np.int8)
        packed = self._allocate((tiles, k, TILE, group), matrix.dtype)
        padded_matrix = np.zeros((tiles * TILE, k * group), matrix.dtype)
        padded_matrix[:outputs, :inner] = matrix
        if self.int8 and INTEGER:
            padded_matrix.view(np.uint8)[:] += 128  # as an unsigned byte: 128 more
        packed[:] = padded_matrix.reshape(-1, TILE, k, group).swapaxes(1, 2)
        return packed, scales

    def step_bytes(self, context: int) -> int:
        """What a step of one row reads and writes: weights, states before and after it, keys and values of so many."""
        return self.weight_bytes + 4 * (2 * self.floats_per_state + context * self.floats_per_position)

    def emit(self, code: int, *columns: int | View) -> list[int]:
        row = [code]
        for column in columns:
            row += column.columns if isinstance(column, View) else [int(column)]
        self.rows.append(row + [0] * (COLUMNS - len(row)))
        return self.rows[-1]

    # Operations, in the order of their codes.

    def embed(self, into: View, table: Tensor, positions: Tensor | None = None) -> None:
        self.emit(EMBED, into, into.width, *(0 if x is None else self.keep(x, whole=False) for x in (table, positions)))

    def norm(self, source: View, into: View, kind: str, weight: Tensor | None, bias: Tensor | None, epsilon: float,
             groups: int = 1) -> None:
        """RMS ("rms") or layer ("layer") normalisation of `groups` equal parts of a row, by the same weight; "l2" makes
        each part's length 1 (x / max(|x|, epsilon))."""
        width = source.width // groups
        self.emit(NORM, source, into, width, groups, NORMS[kind], self._vector(weight, width),
                  self._vector(bias, width), bits(epsilon))

    def angles(self, frequencies: Tensor, restart: bool = False, prefix: int = 0) -> View:
        """A register with the cosines, then the sines, of each node's position times these frequencies. restart:
        positions begin at 0 again behind the prompt (see `attend`)."""
        values = np.ascontiguousarray(plain(frequencies), np.float64)
        key = f"angles {restart} {prefix} {values.tobytes().hex()}"
        is_known = (key, 2 * len(values)) in self.names
        into = self.register(key, 2 * len(values))
        if not is_known and len(values):
            self.arrays.append(values)
            self.emit(ANGLES, into, len(values), values.ctypes.data, restart, prefix)
        return into

    def linear(self, source: View, into: View, weight: Tensor, bias: Tensor | None = None, add: bool = False,
               activation: str = "none", gated: bool = False) -> None:
        """into = activation(weight source + bias), or into += that. Gated: activation(first half) * second half."""
        outputs = weight.shape[0]
        k, tiles = self._sizes(weight, gated)
        if gated and bias is not None:
            pairs = np.zeros((2, tiles * LANES), np.float32)
            pairs[:, : outputs // 2] = plain(bias).reshape(2, -1)
            bias_at = self._vector(pairs.reshape(2, -1, LANES).swapaxes(0, 1), tiles * TILE)
        else:
            bias_at = self._vector(bias, outputs)
        row = self.emit(LINEAR, source, into, 0, 0, bias_at, k, tiles, add, ACTIVATIONS[activation], gated, 0,
                        source.width, self._bytes(k))
        self.matrices.append((row, 7, weight, gated))

    def head(self, source: View, weight: Tensor) -> None:
        """Logits of the wanted nodes, to memory outside the registers."""
        self.top = source
        k, tiles = self._sizes(weight)
        self.vocabulary, self.logit_stride = weight.shape[0], tiles * TILE
        outside = View(0, 0, weight.shape[0], self.logit_stride)
        row = self.emit(LINEAR, source, outside, 0, 0, 0, k, tiles, 0, NONE, 0, 1, source.width, self._bytes(k))
        row[27:30] = self.register("top", source.width).columns
        self.widest_row = max(self.widest_row, padded(source.width, TILE) + LANES)
        self.matrices.append((row, 7, weight, False))

    def cache(self, heads: int, key: int, value: int, reach: int | None = None) -> int:
        """The offset of a new cache of keys and values this wide (in floats, each a multiple of its alignment) per head
        and position, of which the latest `reach` positions are read (None: all)."""
        offset = self.floats_per_position
        self.caches.append((offset, heads, key, value))
        self.floats_per_position += heads * (key + value)
        self.reach = None if reach is None or self.reach is None else max(reach, self.reach)
        return offset

    def attend(self, q: View, k: View, v: View, into: View, heads: int, kv_heads: int, window: int | None,
               frequencies: Tensor | None, slopes: Tensor | None, block: int | None = None, back: int = 0,
               ahead: bool = False, alone: bool = False, restart: bool = False, prefix: int = 0) -> None:
        """Softmax attention to the cached keys and to the node's own ancestors. Rotates q in place.

        window: fewer than so many positions away; or block, back: in the same block of positions, or one of `back`
        before. ahead: the prompt is seen by all. alone: nothing else is. restart: angles are of positions that begin at
        0 again behind the prompt. prefix: so many first positions are the prompt (0: as the state says).
        """
        width = q.width // heads
        key, value = padded(width, UNROLL), padded(width, TILE)
        reach = None if ahead or alone or prefix else block * (back + 1) if block else window
        offset = self.cache(kv_heads, key, value, reach)
        rotated = 0 if frequencies is None else 2 * len(frequencies)
        angles = q if frequencies is None else self.angles(frequencies, restart, prefix)
        sizes = (heads, kv_heads, width, key, value, offset)
        self.emit(STORE, q, k, v, angles, *sizes, rotated, bits(width**-0.5))
        self.emit(ATTEND, q, into, *sizes, window or 0, self._vector(slopes, heads), block or 0, back, ahead, alone,
                  prefix)

    def mark_prompt(self, source: View, into: View, table: Tensor, prefix: int = 0) -> None:
        """into = source + table[1] at nodes of the prompt (see `attend`), + table[0] at all others."""
        self.emit(MARK_PROMPT, source, into, into.width, self.keep(table), prefix)

    def recall(self, source: View, into: View, heads: int, block: int, names: Tensor, norm: nn.LayerNorm,
               project: Tensor, update: nn.Linear, gate: Tensor) -> None:
        """Attention to a memory of a few vectors, by queries of `source`; see `segue.mixers.block_recurrent`. At the
        end of each `block` of nodes it looks at itself and at the block, whose keys and values are those of the latest
        `attend`, and moves. names: (vectors, width). project: (4 width, width), to what the memory looks with at itself
        and at the block, and to its keys and values. gate: (width,), how much of the memory stays."""
        vectors, width = names.shape
        self.reach = None
        offset, _, key, value = self.caches[-1]
        padded_width, pair_width = padded(width, TILE), padded(2 * width, TILE)
        query_weights, key_value_weights = project[: 2 * width], project[2 * width :]
        first = np.zeros((vectors, pair_width), np.float32)
        first[:, : 2 * width] = plain(norm(names) @ key_value_weights.mT)
        steps, update_steps = self._sizes(query_weights)[0], self._sizes(update.weight)[0]
        buffers = vectors * (2 * (padded_width + pair_width) + update_steps + 2)
        self.local = max(self.local, buffers + 3 * padded(max(block, vectors), TILE))
        row = self.emit(RECALL, source, into, heads, heads, width // heads, key, value, offset, 0, 0, 0, 0, 0, 0,
                        self._vector(update.bias, width), vectors, block, width, self.keep(names),
                        self._vector(norm.weight, width), self._vector(norm.bias, width), bits(norm.eps),
                        self._vector(gate, width), self.keep(first), self.state(vectors * (padded_width + pair_width)),
                        steps, update_steps)
        self.matrices += [(row, 13 + 2 * index, weight, False) for index, weight in enumerate(
            (query_weights, key_value_weights, update.weight))]

    def convolve(self, source: View, into: View, weight: Tensor, bias: Tensor | None = None,
                 activation: str = "silu") -> None:
        """Short causal depthwise convolution (weight (width, taps)) along the node's own path, then an activation."""
        width, taps = weight.shape
        padded_width = padded(width, LANES)
        offset = self.state((taps - 1) * padded_width)
        bias_at = self._vector(np.zeros(width, np.float32) if bias is None else bias, width)
        self.emit(CONVOLVE, source, into, padded_width, taps, self._lines(weight), bias_at, offset,
                  ACTIVATIONS[activation])

    def _lines(self, values: Tensor, whole: bool = True) -> int:
        """The address of values (width, n) as n lines of whole vectors, with one number per channel."""
        rows = np.zeros((values.shape[1], padded(values.shape[0], LANES)), np.float32)
        rows[:, : values.shape[0]] = plain(values).T
        return self.keep(rows, whole)

    def _blocks(self, values: Tensor) -> int:
        """The address of values (width, n) as (width / LANES, n, LANES): those of LANES channels lie together."""
        width, n = values.shape
        rows = np.zeros((padded(width, LANES), n), np.float32)
        rows[:width] = plain(values)
        blocks = self._allocate((len(rows) // LANES, n, LANES), rows.dtype)
        blocks[:] = rows.reshape(-1, LANES, n).swapaxes(1, 2)
        self.weight_bytes += blocks.nbytes
        return blocks.ctypes.data

    def scan(self, u: View, dt: View, b: View, c: View, gate: View, into: View, a: Tensor, d: Tensor,
             low: float = 0.0) -> None:
        """Selective scan (a (width, states), negative, with factors from `low` to 1), step sizes softplus(dt), its
        output times SiLU(gate)."""
        width, states = a.shape
        padded_width = padded(width, LANES)
        offset = self.state(states * padded_width)
        self.map(dt, dt, "softplus")
        self.emit(SCAN, u, dt, b, c, gate, into, padded_width, states, self._blocks(a), self._vector(d, width), offset,
                  self.keep(np.array([low, 1 - low], np.float32)))
        self.repeat(offset, u, dt, b, c)

    def decay(self, gate: View, temperature: float, floor: float) -> None:
        """In place: exp(max(log sigmoid(gate) / temperature, floor))."""
        self.emit(DECAY, gate, gate.width, bits(temperature), bits(floor))

    def diagonal(self, decay: View | Tensor, source: View, into: View, complex: bool = False) -> None:
        """h = decay h + source, number by number, and into = h.

        decay: a register, one decay per node, or a vector for all of them. complex: each of the three holds the real
        parts of its numbers, then the imaginary ones; a complex vector as `decay` says so itself.
        """
        if isinstance(decay, Tensor) and decay.is_complex():
            decay, complex = torch.cat([decay.real, decay.imag]), True
        width = into.width // (2 if complex else 1)
        offset = self.state(padded(width, LANES) * (2 if complex else 1))
        self.emit(DIAGONAL, self._operand(decay, into.width), source, into, width, complex, offset)

    def modes(self, u: View, into: View, a: Tensor, c: Tensor, d: Tensor | None = None) -> None:
        """Each channel's own complex modes: h_n = a_n h_n + u, into = Re(sum of c_n h_n) + d u.

        a, c: (width, modes), complex. What a method has besides (input weights, step sizes, a factor 2 for conjugate
        pairs) is a factor of `c`. d: (width,).
        """
        self._modes(MODES, u, into, [(a, c)], d)

    def low_rank(self, u: View, into: View, a: Tensor, away: Tensor, seen: Tensor, b: Tensor, c: Tensor,
                 d: Tensor | None = None) -> None:
        """Each channel's own complex modes, less what one number tells of all of them: h = a h + b u - away t with
        t = Re(sum of seen h), into = Re(sum of c h) + d u. a, away, seen, b, c: (width, modes), complex. d: (width,).
        """
        self._modes(LOW_RANK, u, into, [(seen,), (a, b, away, c)], d)

    def _modes(self, code: int, u: View, into: View, factors: Sequence[Sequence[Tensor]], d: Tensor | None) -> None:
        """factors: what is read together, mode by mode, one group of them after the other."""
        width, modes = factors[0][0].shape
        table = torch.cat([torch.view_as_real(torch.stack([x.resolve_conj() for x in group], 2)).flatten(1)
                           for group in factors], 1)
        skip = self._vector(torch.zeros(width) if d is None else d, width)
        offset = self.state(2 * modes * padded(width, LANES))
        self.emit(code, u, into, width, modes, self._blocks(table), skip, offset)
        self.repeat(offset, u)

    def dense(self, u: View, into: View, a: Tensor, b: Tensor, c: Tensor, d: Tensor | None = None) -> None:
        """Each channel's own state by its own matrix: h = a h + b u, into = c h + d u, where the first outputs of all
        channels come before all second ones. a: (width, states, states). b: (width, states). c: (outputs, width,
        states). d: (outputs * width,)."""
        outputs, width, states = c.shape
        padded_states = padded(states, MANY)
        a, b, c = (nn.functional.pad(x, (0, 0, 0, padded_states - states))
                   for x in (a, b[..., None], c.permute(1, 2, 0)))
        self.local = max(self.local, (padded_states + 1) * LANES)
        skip = (torch.zeros(outputs, width) if d is None else d.reshape(outputs, width)).T
        offset = self.state(padded_states * padded(width, LANES))
        a = a.unflatten(1, (-1, MANY)).transpose(2, 3)  # MANY numbers of the new state at once, from one old one
        self.emit(DENSE, u, into, width, states, outputs, self._blocks(a.flatten(1)), self._blocks(b.flatten(1)),
                  self._blocks(c.mT.flatten(1)), self._blocks(skip), offset)
        self.repeat(offset, u)

    def filter(self, source: View, into: View, taps: Tensor) -> None:
        """into = the sum of what was at `source` along the node's own path, taps (lags, width) times itself, the node
        before it, and so on. All of the past is kept."""
        lags, width = taps.shape
        value = padded(width, TILE)
        offset = self.cache(1, 0, value, lags)
        self.emit(FILTER, source, into, 1, 1, 0, 0, value, offset, width, lags, self._lines(taps.T, whole=False))

    def quantised(self, q: View, k: View, v: View, into: View, codes: Tensor, bias: Tensor) -> None:
        """Softmax attention of one head, without a maximum taken off, to all of the path, whose keys are the nearest of
        `codes` (codes, key); the bias of the distance is added to the scores of the last len(bias) nodes."""
        key, value, window = q.width, v.width, len(bias)
        value_room, key_room = padded(value, TILE), padded(key, TILE)
        line = value_room + key_room + TILE  # of each node v, its code and its number
        offset = self.cache(1, 0, line)
        codes_room = padded(len(codes), LANES)
        self.widest = max(self.widest, codes_room)
        memory = self.state(codes_room * (value_room + 1))
        self.emit(QUANTISED, q, k, v, into, 1, 1, 0, 0, line, offset, key, value, window, len(codes),
                  self.keep(codes), self.keep(codes.square().sum(1) / 2), self.keep(bias), bits(key**-0.5), memory)
        self.repeat(memory, q, k, v)

    def matrix(self, q: View, k: View, v: View, into: View, heads: int, decay: View | Tensor | None = None,
               write: View | None = None, delta: bool = False, steps: int = 1, groups: int | None = None,
               scale: float = 1.0, floor: View | Tensor | None = None, epsilon: float | None = None) -> None:
        """A matrix as memory, one per head: S = decay S + write k v^T, into = scale q S.

        q: (groups * key); k: (steps * groups * key); v: (steps * heads * value); `groups` (default: heads) of heads
        share queries and keys. decay: factors, not logarithms, one per head or one per head and key feature; a register
        or a vector. write: (steps * heads), how strongly each head writes. delta: write k (v - k S')^T instead, where
        S' is the memory after it decayed. steps: so many writes for one node, of which the first decays and the last is
        followed by the reading (a product of Householder matrices). floor, epsilon: either of them divides into by
        max(|scale q n|, floor) + epsilon, where n = decay n + write k; floor is (heads).
        """
        groups = groups or heads
        key, value = q.width // groups, v.width // (heads * steps)
        factors, strength = self._operand(decay, heads), self._operand(write, steps * heads)
        featured = factors.width != heads
        if factors.width not in (heads, heads * key) or k.width != steps * groups * key:
            raise ValueError(f"{heads} heads with keys of {key} cannot have {factors.width} decays, {k.width} keys")
        offset = self.state(heads * key * padded(value, LANES))
        self.emit(MATRIX, q, k, v, factors, strength, into, heads, groups, key, value, steps, featured, delta,
                  bits(scale), offset)
        self.repeat(offset, q, k, v, factors, strength)
        if floor is None and epsilon is None:
            return
        if delta or steps > 1:
            raise ValueError("a memory with the delta rule has no normaliser")
        least = self._operand(torch.zeros(heads) if floor is None else floor, heads)
        self.emit(NORMALISE, q, k, factors, strength, into, least, heads, groups, key, value, featured, bits(scale),
                  bits(epsilon or 0.0), self.state(heads * key))

    def prefixed(self, q: View, k: View, v: View, keys: View, values: View, into: View, heads: int,
                 prefix: int = 0) -> None:
        """A matrix memory and its normaliser, as of `matrix`, to which the first node of a call adds the `keys` and
        `values` of all of the prompt in it (see `attend`): what a node reads ahead. In a tree each adds its own."""
        key, value = q.width // heads, v.width // heads
        memories = self.state(heads * key * padded(value, LANES)), self.state(heads * key)
        self.emit(PREFIXED, q, k, v, keys, values, into, heads, key, value, prefix, *memories)
        for memory in memories:
            self.repeat(memory, q, k, v, keys, values)

    def stabilise(self, forget: View, write: View, floor: View, initial: float = 0.0) -> None:
        """Exponential gates whose common factor is taken out, per head: forget and write hold logarithms and become
        factors, with the running maximum m = max(forget + m, write) taken off, and floor = exp(-m). In place.

        initial: the first m (-inf: the first write is never damped).
        """
        self.emit(STABILISE, forget, write, floor, forget.width, self.state(forget.width, initial))

    def recur(self, inputs: View, into: View, kind: str, weight: Tensor, bias: Tensor | None, heads: int = 1,
              floor: float = 0.0, decay: float = 0.0) -> None:
        """A nonlinear recurrence over `inputs`, the gates' share of the input (gates * hidden, gate by gate).

        kind, and its gates: "lstm" (input, forget, cell, output), "gru" (reset, update, new), "elman" (tanh), "jordan"
        (tanh; the state's shares add up, each `decay` times what it was a node before), "slstm" (as the LSTM;
        exponential input gate, normaliser at least `floor`). weight: (gates * hidden, hidden) from the
        state; with heads (heads, gates * hidden / heads, hidden / heads), each head from its own part of the state.
        bias: as the weight without its last axis, added to the state's share.
        """
        code, _, memories = CELLS[kind]
        blocks = weight.reshape(heads, -1, weight.shape[-1])
        hidden, outputs = heads * weight.shape[-1], padded(blocks.shape[1], TILE)
        blocks = nn.functional.pad(blocks, (0, 0, 0, outputs - blocks.shape[1])).flatten(0, 1)
        if bias is not None:
            bias = nn.functional.pad(bias.reshape(heads, -1), (0, outputs - bias.numel() // heads))
        k, tiles = self._sizes(blocks)
        before, share = self.register("before", hidden), self.register("share", heads * outputs)
        padded_hidden = padded(hidden, TILE)
        offset = self.state(memories * padded_hidden)
        top = self.state(padded_hidden, -math.inf) if kind == "slstm" else 0
        row = self.emit(RECUR, inputs, into, before, share, 0, 0, self._vector(bias, heads * outputs), k,
                        tiles // heads, hidden, code, heads, bits(floor), offset, top, self._bytes(k, heads),
                        bits(decay))
        self.matrices.append((row, 13, blocks, False))

    # Number by number. A vector (a tensor) may stand where a register does not change from node to node.

    def map(self, source: View, into: View, activation: str = "none", scale: Tensor | float | None = None,
            shift: Tensor | float | None = None, limit: float = math.inf) -> None:
        """into = activation(scale * source + shift), where into may be source. scale, shift: numbers or vectors.
        limit: what is activated is kept within +-limit."""
        vectors = [values if values is None or isinstance(values, Tensor) else torch.full((into.width,), float(values))
                   for values in (scale, shift)]
        self.emit(MAP, source, into, into.width, *(self._vector(v, into.width) for v in vectors),
                  ACTIVATIONS[activation], bits(limit))

    def multiply(self, values: View, by: View | Tensor, activation: str = "none") -> None:
        """values *= activation(by). Where `by` is narrower (one number per head), each of its numbers serves as many
        neighbouring values."""
        by = self._operand(by, values.width)
        if values.width % by.width:
            raise ValueError(f"{by.width} numbers cannot each serve as many of {values.width} values")
        self.emit(MULTIPLY, values, by, by.width, values.width // by.width, ACTIVATIONS[activation])

    def add(self, source: View | Tensor, into: View, weight: Tensor | None = None) -> None:
        """into += source, or weight * source (weight: (width,))."""
        self.emit(ADD, self._operand(source, into.width), into, into.width, self._vector(weight, into.width))

    # Features.

    def polynomial(self, source: View, into: View, weight: Tensor, groups: int = 1) -> None:
        """into = weight * [1, x_i, x_i x_j for i <= j] for each of `groups` equal parts x of a row."""
        size = len(weight)
        self.emit(POLYNOMIAL, source, into, source.width // groups, groups, self._vector(weight, size), size)

    def exponential(self, source: View, into: View, directions: Tensor, groups: int = 1) -> None:
        """Positive random features, into = exp(directions x - |x|^2 / 2) / sqrt(M), of each of `groups` equal parts of
        a row, which are divided by K^(1/4) before. directions: (M, K)."""
        size, width = directions.shape
        self.emit(EXPONENTIAL, source, into, width, groups, self.keep(directions), size)

    def turn(self, source: View, into: View, frequencies: Tensor, groups: int = 1) -> None:
        """into = [x cos, x sin] for each of `groups` equal parts x of a row, the angles the node's position times
        `frequencies`, one for each number of x."""
        self.emit(TURN, source, into, self.angles(frequencies), source.width // groups, groups)

    def _fuse_norms(self) -> None:
        """Let products norm their own inputs: a norm of a row takes less than waiting for the threads that would share
        the rows, and than fetching them from each other. The register of the norm is written as before.

        Not where the product writes what is normed, or the norm works in place: other threads may still have to read
        it.
        """
        rows: list[list[int]] = []
        for row in self.rows:
            last = rows[-1] if rows else row
            if (row[0] == LINEAR and last[0] == NORM and last[8] == 1 and last[4:7] == row[1:4]
                    and last[1] != last[4] and (row[15] or last[1] != row[4])):
                rows.pop()
                row[20:27] = [last[9] + 1, *last[1:4], *last[10:13]]
                self.widest_row = max(self.widest_row, padded(row[16], TILE) + LANES)
            rows.append(row)
        self.rows = rows

    def _divide_by_heads(self) -> None:
        """Let each thread compute the queries, keys and values of its own heads, where these are whole tiles: it need
        not wait for the others before it attends."""
        for row, after in zip(self.rows, self.rows[1:]):
            if row[0] == LINEAR and after[0] == STORE and {after[1], after[4], after[7]} == {row[4]}:
                wide, narrow = after[13] * after[15], after[14] * after[15]
                in_order = (after[2], after[5], after[8]) == (0, wide, wide + narrow)
                if in_order and wide % TILE == narrow % TILE == 0 and not row[14]:
                    row[30:32] = [wide // TILE, narrow // TILE]

    def finish(self) -> None:
        """Pack the matrices and make the tables: of the step, and of what commits do over all layers."""
        self._fuse_norms()
        self._divide_by_heads()
        for row, column, weight, gated in self.matrices:
            packed, scales = self._pack(weight, gated)
            row[column], row[column + 1] = packed.ctypes.data, scales
            self.weight_bytes += 0 if row[0] == RECALL else packed.nbytes  # those are read once a block
        self.matrices.clear()
        step, self.rows = self.rows, []
        moves = [self.emit(MOVE, heads, heads, 0, key, value, offset) for offset, heads, key, value in self.caches]
        picks = [self.emit(PICK, offset, size) for offset, size in self.states]
        self.rows = step
        self.table, self.moves, self.picks, self.small_picks, self.repeats = (np.array(rows, np.int64) for rows in (
            step, moves, picks, [row for row in picks if row[1] not in self.large],
            [row for row in step if row[0] in (SCAN, MODES, LOW_RANK, DENSE, QUANTISED, MATRIX, PREFIXED)]))

    def read(self, view: View, scratch: np.ndarray, nodes: int) -> np.ndarray:
        """What a run over `nodes` left in a register."""
        whole = scratch[view.offset * nodes : (view.offset + view.stride) * nodes].reshape(nodes, view.stride)
        return whole[:, view.column : view.column + view.width]


def bits(value: float) -> int:
    """A float64 as the integer with the same bits."""
    return int(np.array([value], np.float64).view(np.int64)[0])


def plain(values: Tensor | np.ndarray) -> np.ndarray:
    """The numbers of a tensor of any float type, on any device; memory is shared where that is possible."""
    if isinstance(values, np.ndarray):
        return values
    values = values.detach().cpu()
    return values.numpy() if values.dtype in (torch.float32, torch.float64) else values.float().numpy()


def aligned(shape: Sequence[int], dtype: np.dtype | type) -> np.ndarray:
    """Zeros that begin at a multiple of 64 bytes, a cache line."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)
