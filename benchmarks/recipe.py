"""The trials behind the recipe: trainings of equal processor time, each with one entry of its plan changed.

    python benchmarks/recipe.py --seconds 60 --data input.txt genome.fna log.csv -- rate=0.02 rows*2 size*0.5
    python benchmarks/recipe.py                               # write results/recipe.md from all tries made so far

A try is an entry of `segue.training.recipe.Plan` (several: with commas) at a value of its own or times a factor; size
is the recipe's own constant, parameters per root of the compute, vocabulary the codec's. Each has one thread and the
same processor time, so a longer step means fewer of them. Bits per unit on held-out data, of the network alone. A row
is printed for each, and kept in results/recipe.jsonl.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from stacks import HERE, cell

from segue.cli import parse_settings
from segue.training import recipe

RECORD = HERE / "recipe.jsonl"
BASE = "as it stands"


def measure_try(path: str, seconds: float, changes: str, seed: int) -> dict[str, Any]:
    """The cell of a data set and a try; "width=128,rows*2" changes two entries."""
    values, factors = dict[str, Any](), dict[str, float]()
    for change in changes.split(",") if changes != BASE else []:
        name, sign, value = change.partition("*")
        if sign:
            factors[name] = float(value)
        else:
            values |= parse_settings([change])
    size = recipe.SIZE_FACTOR
    recipe.SIZE_FACTOR = size * factors.pop("size", 1.0)
    try:
        return cell(path, seconds, seed, factors, **values) | {"try": changes, "seed": seed}
    finally:
        recipe.SIZE_FACTOR = size


def table(rows: list[dict[str, Any]]) -> str:
    tries = sorted({row["try"] for row in rows}, key=lambda name: (name != BASE, name))
    columns = list(dict.fromkeys((row["data"], row["unit"], row["seconds"]) for row in rows))
    lines = ["# Tries behind the recipe", "",
             f"Printed by `benchmarks/recipe.py`: one thread each, {recipe.describe_machine()}. Held-out bits per unit "
             "of networks alone, the mean over seeds where there are several (their number behind it). First row: the "
             "recipe's own plan; the others: what was changed, and the bits saved (-) or lost (+) by it in the same "
             "processor time.",
             "", "| | " + " | ".join(f"{data}, {seconds:g} s, per {unit}" for data, unit, seconds in columns) + " |",
             "|---|" + "---|" * len(columns)]

    def mean(name: str, column: tuple[str, str, float]) -> tuple[float, int]:
        bits_by_seed = {row["seed"]: row["bits"] for row in rows
                        if row["try"] == name and (row["data"], row["unit"], row["seconds"]) == column}
        return sum(bits_by_seed.values()) / max(len(bits_by_seed), 1), len(bits_by_seed)

    for name in tries:
        cells = []
        for column in columns:
            bits, seeds = mean(name, column)
            shown = f"{bits:.3f}" if name == BASE else f"{bits - mean(BASE, column)[0]:+.3f}"
            cells.append("" if not seeds else shown + (f" ({seeds})" if seeds > 1 else ""))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    base = {(row["data"], row["seconds"]): row for row in rows if row["try"] == BASE}
    return "\n".join([*lines, "", "The recipe's own plans: " + "; ".join(
        f"{data}, {seconds:g} s: {row['depth']} x {row['width']}, {row['steps']:,} steps of {row['rows']} rows of "
        f"{row['context']}" for (data, seconds), row in base.items()) + ".", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tries", nargs="*", metavar="TRY", help="NAME=VALUE or NAME*FACTOR, several with commas")
    parser.add_argument("--data", nargs="+", default=[], metavar="PATH")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for path in args.data:
        for changes in args.tries or [BASE]:
            row = measure_try(path, args.seconds, changes, args.seed)
            print(row, flush=True)
            with open(RECORD, "a") as handle:
                handle.write(json.dumps(row) + "\n")
    (HERE / "recipe.md").write_text(table([json.loads(line) for line in Path(RECORD).read_text().splitlines()]))


if __name__ == "__main__":
    main()
