"""The program: what one decoding step of a stack does, as a table of operations over registers.

A register is a (nodes, width) float32 matrix in scratch memory; an operation is one row of integers: its code, its
operands, sizes, and addresses of weights. Mixers lower themselves by calling the builder's methods (see
`Mixer.lower`), and a new mixer needs no more than that, or one new operation in `ops.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, float32, float64

from segue.kernels.cpu.simd import LANES, TILE, UNROLL

# Operations.
EMBED, NORM, ANGLES, LINEAR, STORE, ATTEND, CONVOLVE, SCAN, DECAY, GLA, RECUR, GATE, ADD, GATHER, MOVE, PICK = range(16)
COLUMNS = 32

# Activations.
NONE, SILU, GELU, GELU_TANH, RELU, RELU2 = range(6)
ACTIVATIONS = {"none": NONE, "silu": SILU, "gelu": GELU, "gelu_tanh": GELU_TANH, "relu": RELU, "relu2": RELU2}

# What one call needs to know, as integers: counts, and addresses of the arrays that `segue.models.compiled` fills.
(OPERATIONS, COUNT, SCRATCH, LOCAL, LOCAL_BYTES, CACHE, CAPACITY, BEFORE, AFTER, SLOTS, KEEP, LOGITS,
 NODES, BATCH, TOKEN, ROW, PARENT, POSITION, FIRST, LENGTH, CHAIN, ORDER, LEVEL, LEVELS, WANT, WANTED,
 PATH, STEPS, TEAM, BARRIER, STALLS) = range(31)
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
        self.floats_per_state = 0  # of the recurrent states of all layers
        self.states: list[tuple[int, int]] = []  # offset, size
        self.weight_bytes = 0  # read by every step
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

    def state(self, size: int) -> int:
        """Room for `size` floats of recurrent state per row; gives its offset."""
        offset, size = self.floats_per_state, padded(size, LANES)
        self.states.append((offset, size))
        self.floats_per_state += size
        return offset

    def keep(self, array: Tensor | np.ndarray) -> int:
        """The address of a float32 array, which the program keeps alive (a tensor's memory is shared, not copied)."""
        array = np.ascontiguousarray(plain(array), np.float32)
        self.arrays.append(array)
        return array.ctypes.data

    def _vector(self, values: Tensor | np.ndarray | None, width: int) -> int:
        """The address of a vector that may be read up to a tile past its end; 0 for none."""
        if values is None:
            return 0
        flat = np.zeros(padded(width, TILE), np.float32)
        flat[:width] = plain(values).reshape(-1)
        return self.keep(flat)

    def _room(self, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
        """Zeros in a large block of memory, since the system gives only large blocks large pages."""
        size = padded(int(np.prod(shape)) * dtype.itemsize, 64)
        if size > self.block.size:
            self.block = aligned((max(size, BLOCK_BYTES),), np.uint8)
            self.arrays.append(self.block)
        room, self.block = self.block[:size], self.block[size:]
        return room[: int(np.prod(shape)) * dtype.itemsize].view(dtype).reshape(shape)

    @staticmethod
    def _sizes(weight: Tensor, gated: bool = False) -> tuple[int, int]:
        """Padded inner size and number of tiles of (out, in) weights."""
        outputs, inner = weight.shape
        tiles = padded(outputs // 2, LANES) // LANES if gated else padded(outputs, TILE) // TILE
        return padded(inner, UNROLL), tiles

    def _pack(self, weight: Tensor, gated: bool) -> tuple[int, int]:
        """Pack (out, in) weights as (tile, in, TILE outputs); gives their address, and that of their scales (0: they
        are float32). Gated: half a tile from the first half of the outputs, half from the second."""
        matrix = plain(weight).astype(np.float32, copy=False)
        outputs, inner = matrix.shape
        if gated:
            half = padded(outputs // 2, LANES)
            paired = np.zeros((2, half, inner), np.float32)
            paired[:, : outputs // 2] = matrix.reshape(2, -1, inner)
            matrix = paired.reshape(2, -1, LANES, inner).swapaxes(0, 1).reshape(-1, inner)
            outputs = matrix.shape[0]
        k, tiles = self._sizes(weight, gated)
        scales = 0
        if self.int8:
            largest = np.abs(matrix).max(axis=1, initial=0) / 127
            largest[largest == 0] = 1
            scales = self._vector(largest, outputs)
            matrix = np.rint(matrix / largest[:, None]).astype(np.int8)
        packed = self._room((tiles, k, TILE), matrix.dtype)
        whole = np.zeros((tiles * TILE, k), matrix.dtype)
        whole[:outputs, :inner] = matrix
        packed[:] = whole.reshape(-1, TILE, k).swapaxes(1, 2)
        self.weight_bytes += packed.nbytes
        return packed.ctypes.data, scales

    def emit(self, code: int, *columns: int | View) -> list[int]:
        row = [code]
        for column in columns:
            row += column.columns if isinstance(column, View) else [int(column)]
        self.rows.append(row + [0] * (COLUMNS - len(row)))
        return self.rows[-1]

    # Operations, in the order of their codes.

    def embed(self, into: View, table: Tensor, positions: Tensor | None = None) -> None:
        self.emit(EMBED, into, into.width, self.keep(table), 0 if positions is None else self.keep(positions))

    def norm(self, source: View, into: View, kind: str, weight: Tensor | None, bias: Tensor | None, epsilon: float,
             groups: int = 1) -> None:
        """RMS ("rms") or layer ("layer") normalisation of `groups` equal parts of a row, by the same weight."""
        width = source.width // groups
        self.emit(NORM, source, into, width, groups, kind == "layer", self._vector(weight, width),
                  self._vector(bias, width), bits(epsilon))

    def angles(self, frequencies: Tensor) -> View:
        """A register with the cosines, then the sines, of each node's position times these frequencies."""
        turns = np.ascontiguousarray(plain(frequencies), np.float64)
        key = "angles " + turns.tobytes().hex()
        known = (key, 2 * len(turns)) in self.names
        into = self.register(key, 2 * len(turns))
        if not known and len(turns):
            self.arrays.append(turns)
            self.emit(ANGLES, into, len(turns), turns.ctypes.data)
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
        row = self.emit(LINEAR, source, into, 0, 0, bias_at, k, tiles, add, ACTIVATIONS[activation], gated, 0)
        self.matrices.append((row, 7, weight, gated))

    def head(self, source: View, weight: Tensor) -> None:
        """Logits of the wanted nodes, to memory outside the registers."""
        self.top = source
        top = self.register("top", source.width)
        self.emit(GATHER, source, top, source.width)
        k, tiles = self._sizes(weight)
        self.vocabulary, self.logit_stride = weight.shape[0], tiles * TILE
        outside = View(0, 0, weight.shape[0], self.logit_stride)
        row = self.emit(LINEAR, top, outside, 0, 0, 0, k, tiles, 0, NONE, 0, 1)
        self.matrices.append((row, 7, weight, False))

    def attend(self, q: View, k: View, v: View, into: View, heads: int, kv_heads: int, window: int | None,
               frequencies: Tensor | None, slopes: Tensor | None) -> None:
        """Softmax attention to the cached keys and to the node's own ancestors. Rotates q in place."""
        width = q.width // heads
        key, value = padded(width, UNROLL), padded(width, TILE)
        offset = self.floats_per_position
        self.caches.append((offset, kv_heads, key, value))
        self.floats_per_position += kv_heads * (key + value)
        turned = 0 if frequencies is None else 2 * len(frequencies)
        angles = q if frequencies is None else self.angles(frequencies)
        sizes = (heads, kv_heads, width, key, value, offset)
        self.emit(STORE, q, k, v, angles, *sizes, turned, bits(width**-0.5))
        self.emit(ATTEND, q, into, *sizes, window or 0, self._vector(slopes, heads))

    def convolve(self, source: View, into: View, weight: Tensor, bias: Tensor) -> None:
        """Short causal depthwise convolution (weight (width, taps)) along the node's own path, then SiLU."""
        width, taps = weight.shape
        wide = padded(width, LANES)
        offset = self.state((taps - 1) * wide)
        rows = np.zeros((taps, wide), np.float32)
        rows[:, :width] = plain(weight).T
        self.emit(CONVOLVE, source, into, wide, taps, self.keep(rows), self._vector(bias, width), offset)

    def scan(self, u: View, dt: View, b: View, c: View, gate: View, into: View, a: Tensor, d: Tensor) -> None:
        """Selective scan (a (width, states), negative), step sizes softplus(dt), its output times SiLU(gate)."""
        width, states = a.shape
        wide = padded(width, LANES)
        rows = np.zeros((states, wide), np.float32)
        rows[:, :width] = plain(a).T
        self.emit(SCAN, u, dt, b, c, gate, into, wide, states, self.keep(rows), self._vector(d, width),
                  self.state(states * wide))

    def decay(self, gate: View, temperature: float, floor: float) -> None:
        """In place: exp(max(log sigmoid(gate) / temperature, floor))."""
        self.emit(DECAY, gate, gate.width, bits(temperature), bits(floor))

    def gla(self, q: View, k: View, v: View, decay: View, into: View, heads: int) -> None:
        """Gated linear attention, q scaled by its width to the power -1/2."""
        key, value = q.width // heads, v.width // heads
        offset = self.state(heads * key * padded(value, LANES))
        self.emit(GLA, q, k, v, decay, into, heads, key, value, offset, bits(key**-0.5))

    def recur(self, inputs: View, into: View, kind: str, weight: Tensor, bias: Tensor | None) -> None:
        """LSTM or GRU over `inputs` (the gates' share of the input); weight (gates * hidden, hidden) from the state."""
        hidden = weight.shape[1]
        k, tiles = self._sizes(weight)
        before, share = self.register("before", hidden), self.register("share", weight.shape[0])
        wide = padded(hidden, TILE)
        row = self.emit(RECUR, inputs, into, before, share, 0, 0, self._vector(bias, weight.shape[0]), k, tiles,
                        hidden, kind == "lstm", self.state(wide * (1 + (kind == "lstm"))))
        self.matrices.append((row, 13, weight, False))

    def gate(self, values: View, gate: View) -> None:
        """values *= SiLU(gate)."""
        self.emit(GATE, values, gate, values.width)

    def add(self, source: View, into: View) -> None:
        self.emit(ADD, source, into, source.width)

    def finish(self) -> None:
        """Pack the matrices and make the tables: of the step, and of what commits do over all layers."""
        for row, column, weight, gated in self.matrices:
            row[column], row[column + 1] = self._pack(weight, gated)
        self.matrices.clear()
        step, self.rows = self.rows, []
        for offset, heads, key, value in self.caches:
            self.emit(MOVE, heads, heads, 0, key, value, offset)
        moves, self.rows = self.rows, []
        for offset, size in self.states:
            self.emit(PICK, offset, size)
        self.bookkeeping = {MOVE: np.array(moves, np.int64), PICK: np.array(self.rows, np.int64)}
        self.table, self.rows = np.array(step, np.int64), step

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
    return values.numpy() if values.dtype in (float32, float64) else values.float().numpy()


def aligned(shape: Sequence[int], dtype: np.dtype | type) -> np.ndarray:
    """Zeros that begin at a multiple of 64 bytes, a cache line."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)
