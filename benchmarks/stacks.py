"""Which sequence mixer learns most in a given time? Small trainings on data of several kinds, one table.

    python benchmarks/stacks.py --seconds 120 input.txt genome.fna log.csv
    python benchmarks/stacks.py --seconds 120 --stacks attention gla -- input.txt

Every cell has the same processor time on one thread (so a busy machine troubles none), the same split, the recipe's
plan for that data and time, and another mixer. Bits per unit on held-out data, of the network alone. A row is printed
for each cell, and kept in results/stacks.jsonl; the page is results/stacks.md.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import segue
from segue.models import expand_pattern
from segue.training import Batches, Run
from segue.training.evaluate import score
from segue.training.recipe import Facts, choose_plan, describe_machine, is_bfloat16_fast
from segue.verbs.fit import build, held_out_scorer
from segue.verbs.fitted import has_constant_state

HERE = Path(__file__).parent / "results"
STACKS = ("attention", "lstm", "gru", "mamba", "gla", "gla+attention")


def cell(path: str, seconds: float, seed: int = 0, factors: dict[str, float] | None = None, **choices: Any,
         ) -> dict[str, Any]:
    """Train for so many seconds of one processor by the recipe's plan, with `choices` instead of its own and entries
    multiplied by `factors`; score what is held out."""
    data = segue.read(path)
    train, test = data.split(0.05)
    codec = train.codec(**{"vocabulary": choices.pop("vocabulary")} if "vocabulary" in choices else {})
    store, test_store = train.encode(codec), test.encode(codec)
    precision = "bfloat16" if is_bfloat16_fast(1) else "float32"
    plan, _ = choose_plan(Facts(int(store.lengths.sum()), int(store.lengths.max()), codec.size, 1, 1.5e11, precision,
                                seconds), seed=seed, **choices)
    entries = plan.to_dict()
    plan = plan.with_(**{name: type(entries[name])(entries[name] * factor) for name, factor in (factors or {}).items()})

    with closing(Batches(store, plan.context, plan.rows, seed)) as batches:
        trial = Run(build(plan), batches, plan)
        trial.model.train()
        trial.advance()
        begin = time.process_time()
        trial.advance()
        trial.advance()
        step_seconds = (time.process_time() - begin) / 2
    plan, model = replace(plan, steps=max(4, int(seconds / step_seconds))), build(plan)
    with closing(Batches(store, plan.context, plan.rows, seed)) as batches:
        # The best weights by these scores are kept, as by fit.
        run = Run(model, batches, plan, held_out=held_out_scorer(test_store, plan))
        run.train(quiet=True)
    evaluation = score(model, test_store, None if has_constant_state(model) else plan.context)
    return {"data": f"{data.kind.name}: {Path(path).name}", "unit": data.kind.unit, "stack": plan.mixer,
            "seconds": seconds,
            "bits": round(float(evaluation.nats.sum()) / math.log(2) / int(test_store.units.sum()), 4),
            "steps": plan.steps, "taken": run.step, "rows": plan.rows, "context": plan.context, "width": plan.width,
            "depth": plan.depth,
            "tokens_per_second": round(plan.tokens_per_step / step_seconds),
            "parameters": sum(p.numel() for p in model.parameters())}


def shape(row: dict) -> str:
    return f"{row['depth']} x {row['width']}"


def table(rows: list[dict]) -> str:
    stacks = list(dict.fromkeys(row["stack"] for row in rows))
    lines = ["# Which mixer learns most in a given time", "",
             f"One thread each, {describe_machine()}. Held-out bits per unit of the network alone (tokens/s in "
             "training). Regenerate: see `benchmarks/stacks.py`. Where a data set has two shapes for a time, the "
             "larger is an earlier recipe's.", "",
             "| data | seconds | blocks x width | " + " | ".join(stacks) + " |", "|---|---|---|" + "---|" * len(stacks)]
    for key in sorted({(row["data"], row["seconds"], shape(row)) for row in rows}):
        cells = {row["stack"]: row for row in rows if (row["data"], row["seconds"], shape(row)) == key}
        best = min(cell["bits"] for cell in cells.values())
        shown = [f"{'**' if c['bits'] == best else ''}{c['bits']:.3f}{'**' if c['bits'] == best else ''} "
                 f"({c['tokens_per_second']:,})" if (c := cells.get(stack)) else "" for stack in stacks]
        lines.append(f"| {key[0]}, per {next(iter(cells.values()))['unit']} | {key[1]:g} | {key[2]} | "
                     + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", metavar="PATH")
    parser.add_argument("--stacks", nargs="*", default=list(STACKS))
    parser.add_argument("--seconds", type=float, default=120.0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    HERE.mkdir(exist_ok=True)
    record = HERE / "stacks.jsonl"
    for stack in args.stacks:
        expand_pattern(stack)
    for path in args.data:
        for stack in args.stacks:
            row = cell(path, args.seconds, mixer=stack)
            print(row, flush=True)
            with open(record, "a") as handle:
                handle.write(json.dumps(row) + "\n")
    rows = {(r["data"], r["stack"], r["seconds"], shape(r)): r
            for r in map(json.loads, record.read_text().splitlines())}
    (HERE / "stacks.md").write_text(table(list(rows.values())))


if __name__ == "__main__":
    main()
