"""What the recipe was chosen by: trainings on the standard library's source, one row of a table each.

    python benchmarks/recipe.py --steps 500 rate=0.01 width=256 depth=4     # one try, added to the table
    python benchmarks/recipe.py --table                                     # write results/recipe.md from all tries

Settings are entries of `segue.training.recipe.Plan`, and `vocabulary` of the BPE codec. A try has a fixed number of
steps, so its score does not depend on what else the machine is doing; its speed is given beside it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
from pathlib import Path

import torch

import segue
from segue.cli import settings
from segue.data import Data, TokenStore
from segue.demo import standard_library
from segue.kinds import Codec
from segue.training import Batches, Plan, Run
from segue.training.evaluate import score
from segue.training.recipe import machine
from segue.verbs.fit import build

HERE = Path(__file__).parent / "results"
BASE = {"vocabulary": 2048, "width": 256, "depth": 4, "heads": 4, "context": 256, "rows": 16, "threads": 2,
        "precision": "bfloat16", "measure": 4}


def corpora(paths: list[str] | None) -> tuple[str, Data, Data]:
    if paths:
        return " ".join(Path(p).name for p in paths), *segue.read(*paths).split(0.05)
    train, held = standard_library()
    return "standard library", segue.read(*map(str, train), kind="text"), segue.read(*map(str, held), kind="text")


def stores(paths: list[str] | None, vocabulary: int) -> tuple[str, TokenStore, TokenStore]:
    name, train, held = corpora(paths)
    folder = Path(tempfile.gettempdir()) / f"segue-recipe-{name.replace(' ', '-')}-{vocabulary}"
    if not (folder / "codec").exists():
        options = {"vocabulary": vocabulary} if train.kind.name in ("text", "code") else {}
        train.codec(**options).save(folder / "codec")
    codec = Codec.load(folder / "codec")
    return name, train.encode(codec, folder / "train"), held.encode(codec, folder / "held")


def attempt(choices: dict, paths: list[str] | None, seed: int) -> dict:
    name, train, held = stores(paths, choices["vocabulary"])
    plan = Plan(**{**choices, "vocabulary": train.size, "seed": seed})
    run = Run(build(plan), Batches(train, plan.context, plan.rows, seed), plan)
    begin, cpu = time.perf_counter(), time.process_time()
    run.train(quiet=True)
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    run.batches.close()
    scored = score(run.model, held, plan.context, precision=plan.precision)
    return {"data": name, "bits": round(float(scored.nats.sum()) / math.log(2) / int(held.units.sum()), 4),
            "parameters": sum(p.numel() for p in run.model.parameters()), "steps": plan.steps,
            "tokens": plan.steps * plan.tokens_per_step, "seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1),
            "load": round(os.getloadavg()[0], 1),
            "settings": {k: v for k, v in choices.items() if BASE.get(k) != v and k != "steps"}, "seed": seed}


def table() -> str:
    rows = [json.loads(line) for line in (HERE / "recipe.jsonl").read_text().splitlines()]
    lines = ["# Tries behind the recipe", "",
             "Held-out bits per unit of networks alone, on the split of the demo (standard library) or a twentieth "
             "held out (others). Short tries compare settings; they are not the score of the default. "
             "Base settings, where a row says nothing else: "
             + ", ".join(f"{k} {v}" for k, v in BASE.items()) + ". Regenerate this page: `python benchmarks/recipe.py "
             f"--table`. Machine: {machine()}.", "",
             "| data | steps | tokens | parameters | what differs | bits | processor seconds |",
             "|---|---|---|---|---|---|---|"]
    for row in rows:
        what = ", ".join(f"{k} {v}" for k, v in row["settings"].items()) or "(base)"
        tokens, parameters = row["tokens"] / 1e6, row["parameters"] / 1e6
        lines.append(f"| {row['data']} | {row['steps']:,} | {tokens:.2f} M | {parameters:.2f} M | {what} | "
                     f"{row['bits']:.3f} | {row['cpu_seconds']:.0f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("choices", nargs="*", metavar="NAME=VALUE")
    parser.add_argument("--data", nargs="*")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", action="store_true", help="write the page from the tries made so far")
    given = parser.parse_intermixed_args()
    HERE.mkdir(exist_ok=True)
    if not given.table:
        choices = {**BASE, "steps": given.steps, **settings(given.choices)}
        torch.set_num_threads(int(choices["threads"]))
        row = attempt(choices, given.data, given.seed)
        with open(HERE / "recipe.jsonl", "a") as handle:
            handle.write(json.dumps(row) + "\n")
        print(row)
    (HERE / "recipe.md").write_text(table())


if __name__ == "__main__":
    main()
