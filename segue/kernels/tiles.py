"""Tile sizes of the fused recurrences on a CPU, chosen by integer constraints (FlashRNN's ConstrINT, arXiv 2412.07752).

A step of a head multiplies a few rows of states by its recurrent weights. The register tile holds `rows` x `panels`
vectors of sums; the backward pass accumulates the gradient of the weights over `span` steps. `satisfies` states the
constraints and `score` the objective; `python tools/tiles.py` solves them with OR-tools' CP-SAT and prints `SOLVED`.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch

BATCH = 16  # rows of a batch that tiles should divide: what FlashRNN pads to
CACHE = 1 << 19  # bytes for the gradients and states of a span: half of a second-level cache of 1 MiB
IN_FLIGHT = 8  # fused multiply-adds that must be independent: four cycles of latency, two units
LEAST = 64  # rows and steps of a span whose product outweighs reading and writing the gradient of the weights
MOST = {"rows": 8, "panels": 3, "span": 64}
WIDTHS = (16, 32, 64, 128, 256, 512, 768)
GATES = (1, 3, 4)


class Machine(NamedTuple):
    """A vector unit: its number of registers, the numbers in a register, and the bytes of a number."""

    registers: int
    lanes: int
    size: int


MACHINES = (Machine(32, 16, 4), Machine(32, 8, 8), Machine(16, 8, 4), Machine(16, 4, 8))
"""AVX-512 and half of it in float64; AVX2 (and NEON in pairs), and the same in float64."""


class Tiles(NamedTuple):
    """rows of a batch per task; vectors of columns of a register tile, `panels` of a head and `across` of all its
    gates; steps per span; lanes, the numbers of a vector."""

    rows: int
    panels: int
    across: int
    span: int
    lanes: int


def vectors(width: int, lanes: int) -> int:
    """The number of vectors that hold a head's units."""
    return -(-width // lanes)


def satisfies(machine: Machine, gates: int, width: int, rows: int, panels: int, span: int) -> bool:
    """The constraints: sums, a vector of weights per panel and a broadcast fit the registers; tiles divide the batch
    and the head; as many sums are in flight as can be; the span fits the cache, or is so short that it need not."""
    columns = vectors(width, machine.lanes)
    held = span * rows * (gates + 1) * columns * machine.lanes * machine.size
    return (rows * panels + panels + 1 <= machine.registers and BATCH % rows == 0 and columns % panels == 0
            and rows * panels >= IN_FLIGHT // (1 if columns > 1 else 2) and (held <= CACHE or span * rows <= LEAST))


def score(rows: int, panels: int, span: int) -> int:
    """The objective to maximise: first multiply-adds per loaded number, then long spans."""
    return 1000 * (1000 * rows * panels // (rows + panels)) + span


SOLVED: dict[tuple[int, int, int, int], tuple[int, int, int]] = {
    (32, 16, 1, 16): (8, 1, 64), (32, 16, 1, 32): (8, 2, 64), (32, 16, 1, 64): (8, 2, 64), (32, 16, 1, 128): (8, 2, 64),
    (32, 16, 1, 256): (8, 2, 32), (32, 16, 1, 512): (8, 2, 16), (32, 16, 1, 768): (8, 3, 10),
    (32, 16, 3, 16): (8, 1, 64), (32, 16, 3, 32): (8, 2, 64), (32, 16, 3, 64): (8, 2, 64), (32, 16, 3, 128): (8, 2, 32),
    (32, 16, 3, 256): (8, 2, 16), (32, 16, 3, 512): (8, 2, 8), (32, 16, 3, 768): (8, 3, 8),
    (32, 16, 4, 16): (8, 1, 64), (32, 16, 4, 32): (8, 2, 64), (32, 16, 4, 64): (8, 2, 51), (32, 16, 4, 128): (8, 2, 25),
    (32, 16, 4, 256): (8, 2, 12), (32, 16, 4, 512): (8, 2, 8), (32, 16, 4, 768): (8, 3, 8),
    (32, 8, 1, 16): (8, 2, 64), (32, 8, 1, 32): (8, 2, 64), (32, 8, 1, 64): (8, 2, 64), (32, 8, 1, 128): (8, 2, 32),
    (32, 8, 1, 256): (8, 2, 16), (32, 8, 1, 512): (8, 2, 8), (32, 8, 1, 768): (8, 3, 8),
    (32, 8, 3, 16): (8, 2, 64), (32, 8, 3, 32): (8, 2, 64), (32, 8, 3, 64): (8, 2, 32), (32, 8, 3, 128): (8, 2, 16),
    (32, 8, 3, 256): (8, 2, 8), (32, 8, 3, 512): (8, 2, 8), (32, 8, 3, 768): (8, 3, 8),
    (32, 8, 4, 16): (8, 2, 64), (32, 8, 4, 32): (8, 2, 51), (32, 8, 4, 64): (8, 2, 25), (32, 8, 4, 128): (8, 2, 12),
    (32, 8, 4, 256): (8, 2, 8), (32, 8, 4, 512): (8, 2, 8), (32, 8, 4, 768): (8, 3, 8),
    (16, 8, 1, 16): (4, 2, 64), (16, 8, 1, 32): (4, 2, 64), (16, 8, 1, 64): (4, 2, 64), (16, 8, 1, 128): (4, 2, 64),
    (16, 8, 1, 256): (4, 2, 64), (16, 8, 1, 512): (4, 2, 32), (16, 8, 1, 768): (4, 3, 21),
    (16, 8, 3, 16): (4, 2, 64), (16, 8, 3, 32): (4, 2, 64), (16, 8, 3, 64): (4, 2, 64), (16, 8, 3, 128): (4, 2, 64),
    (16, 8, 3, 256): (4, 2, 32), (16, 8, 3, 512): (4, 2, 16), (16, 8, 3, 768): (4, 3, 16),
    (16, 8, 4, 16): (4, 2, 64), (16, 8, 4, 32): (4, 2, 64), (16, 8, 4, 64): (4, 2, 64), (16, 8, 4, 128): (4, 2, 51),
    (16, 8, 4, 256): (4, 2, 25), (16, 8, 4, 512): (4, 2, 16), (16, 8, 4, 768): (4, 3, 16),
    (16, 4, 1, 16): (4, 2, 64), (16, 4, 1, 32): (4, 2, 64), (16, 4, 1, 64): (4, 2, 64), (16, 4, 1, 128): (4, 2, 64),
    (16, 4, 1, 256): (4, 2, 32), (16, 4, 1, 512): (4, 2, 16), (16, 4, 1, 768): (4, 3, 16),
    (16, 4, 3, 16): (4, 2, 64), (16, 4, 3, 32): (4, 2, 64), (16, 4, 3, 64): (4, 2, 64), (16, 4, 3, 128): (4, 2, 32),
    (16, 4, 3, 256): (4, 2, 16), (16, 4, 3, 512): (4, 2, 16), (16, 4, 3, 768): (4, 3, 16),
    (16, 4, 4, 16): (4, 2, 64), (16, 4, 4, 32): (4, 2, 64), (16, 4, 4, 64): (4, 2, 51), (16, 4, 4, 128): (4, 2, 25),
    (16, 4, 4, 256): (4, 2, 16), (16, 4, 4, 512): (4, 2, 16), (16, 4, 4, 768): (4, 3, 16),
}
"""(registers, lanes, gates, width) -> rows, panels, span."""


@cache
def tiles_for(dtype: torch.dtype, gates: int, width: int) -> Tiles:
    """The tiles for this machine: those of the widest solved head that is no wider, and narrow ones below that."""
    from segue.kernels.cpu import simd

    machine = MACHINES[2 * (not simd.WIDE) + (dtype == torch.float64)]
    solved = max((w for w in WIDTHS if w <= width), default=WIDTHS[0])
    rows, panels, span = SOLVED[(*machine[:2], gates, solved)]
    columns, most = vectors(width, machine.lanes), (machine.registers - 1) // (rows + 1)
    across = max(p for p in range(1, min(MOST["panels"], most) + 1) if gates * columns % p == 0)
    return Tiles(rows, panels if columns % panels == 0 else 1, across, span, machine.lanes)
