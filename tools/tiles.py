"""Solve the tile sizes of the fused recurrences with OR-tools' CP-SAT: `python tools/tiles.py` prints the table that
`segue/kernels/tiles.py` keeps. Needs the extra `tiles` (ortools)."""

from __future__ import annotations

from segue.errors import require
from segue.kernels.tiles import BATCH, CACHE, GATES, IN_FLIGHT, LEAST, MACHINES, MOST, WIDTHS, Machine, vectors


def solve(machine: Machine, gates: int, width: int) -> tuple[int, int, int]:
    """The best (rows, panels, span) under the constraints of `segue.kernels.tiles.satisfies`."""
    cp = require("ortools.sat.python.cp_model", "tiles")
    model = cp.CpModel()
    rows, panels, span = (model.new_int_var(1, MOST[name], name) for name in ("rows", "panels", "span"))
    columns = vectors(width, machine.lanes)
    model.add_modulo_equality(0, BATCH, rows)
    model.add_modulo_equality(0, columns, panels)
    sums = model.new_int_var(1, machine.registers, "sums")
    model.add_multiplication_equality(sums, [rows, panels])
    model.add(sums + panels + 1 <= machine.registers)
    model.add(sums >= IN_FLIGHT // (1 if columns > 1 else 2))
    area = model.new_int_var(1, MOST["rows"] * MOST["span"], "area")
    model.add_multiplication_equality(area, [rows, span])
    short = model.new_bool_var("short")
    model.add(area <= LEAST).only_enforce_if(short)
    model.add(area * (gates + 1) * columns * machine.lanes * machine.size <= CACHE).only_enforce_if(~short)
    per_load = model.new_int_var(0, 1000 * machine.registers, "per load")
    model.add_division_equality(per_load, 1000 * sums, rows + panels)
    model.maximize(1000 * per_load + span)
    solver = cp.CpSolver()
    solver.parameters.num_workers = 1
    assert solver.solve(model) == cp.OPTIMAL, (machine, gates, width)
    return solver.value(rows), solver.value(panels), solver.value(span)


def main() -> None:
    for machine in MACHINES:
        for gates in GATES:
            line = [f"{(*machine[:2], gates, width)}: {solve(machine, gates, width)}" for width in WIDTHS]
            print("    " + ", ".join(line[:4]) + ",\n    " + ", ".join(line[4:]) + ",")


if __name__ == "__main__":
    main()
