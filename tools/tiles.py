"""Solve the tile sizes of the fused recurrences with OR-tools' CP-SAT: `python tools/tiles.py` prints the table that
`segue/kernels/tiles.py` keeps. Needs `the extra `tiles` (ortools)`; nothing else does."""

from __future__ import annotations

from segue.errors import require
from segue.kernels.tiles import BATCH, CACHE, GATES, IN_FLIGHT, MACHINES, MOST, WIDTHS, Machine, waste


def solve(machine: Machine, gates: int, width: int) -> tuple[int, int, int, int]:
    """The best (rows, forward, backward, span) under the constraints of `segue.kernels.tiles.satisfies`."""
    cp = require("ortools.sat.python.cp_model", "tiles")
    model = cp.CpModel()
    rows = model.new_int_var(1, MOST["rows"], "rows")
    span = model.new_int_var(1, MOST["span"], "span")
    model.add_modulo_equality(0, BATCH, rows)
    model.add_multiplication_equality(area := model.new_int_var(1, MOST["rows"] * MOST["span"], "area"), [rows, span])
    model.add(area * (gates + 1) * width * machine.size <= CACHE)
    panels, worth = [], []
    for columns, name in ((gates * width, "forward"), (width, "backward")):
        fitting = [p for p in range(1, MOST["panels"] + 1)
                   if waste(columns, p, machine.lanes) == waste(columns, 1, machine.lanes)]
        chosen = model.new_int_var_from_domain(cp.Domain.from_values(fitting), name)
        sums = model.new_int_var(1, machine.registers, f"{name} sums")
        model.add_multiplication_equality(sums, [rows, chosen])
        model.add(sums + chosen + 1 <= machine.registers)
        if name == "forward":
            model.add(sums >= min(IN_FLIGHT, columns // machine.lanes))
        per_load = model.new_int_var(0, 1000 * machine.registers, f"{name} worth")
        model.add_division_equality(per_load, 1000 * sums, rows + chosen)
        panels.append(chosen)
        worth.append(per_load)
    model.maximize(sum(worth) * 100 + span)
    solver = cp.CpSolver()
    solver.parameters.num_workers = 1
    assert solver.solve(model) == cp.OPTIMAL, (machine, gates, width)
    return tuple(solver.value(v) for v in (rows, *panels, span))  # type: ignore[return-value]


def main() -> None:
    for machine in MACHINES:
        for gates in GATES:
            line = [f"{(*machine[:2], gates, width)}: {solve(machine, gates, width)}" for width in WIDTHS]
            print("    " + ", ".join(line[:3]) + ",\n    " + ", ".join(line[3:6]) + ",\n    " + line[6] + ",")


if __name__ == "__main__":
    main()
