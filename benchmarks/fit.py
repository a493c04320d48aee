"""Training speed beside a plain loop over the transformers model of the same shape, in one run.

    python benchmarks/fit.py [--steps 12]      # prints the table and writes results/fit.md

The plain loop is what its users write: AdamW, the model's own loss, a batch padded to its longest sequence. Rounds of
the two alternate, and the median step counts, so that a busy machine troubles both alike. Tokens are those predicted;
padding is not counted. Long documents: rows are full for both. Short ones: lengths drawn from 20 to 200.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from segue.training import Arrays, Batches, Plan, Run
from segue.training.loop import autocast
from segue.training.recipe import cores, describe_machine, is_bfloat16_fast
from segue.verbs.fit import build

VOCABULARY, WIDTH, DEPTH, HEADS, HIDDEN, CONTEXT, ROWS = 2048, 256, 4, 4, 704, 256, 16


def segue_step(store: Arrays, precision: str, muon: bool, threads: int) -> Callable[[], int]:
    plan = Plan(VOCABULARY, width=WIDTH, depth=DEPTH, heads=HEADS, hidden=HIDDEN, context=CONTEXT, rows=ROWS,
                precision=precision, muon=muon, threads=threads)
    batches = Batches(store, CONTEXT, ROWS)
    run = Run(build(plan), batches, plan)
    run.model.train()

    def step() -> int:
        count = batches.make(run.step).count
        run.advance()
        return count

    return step


def transformers_step(store: Arrays, precision: str) -> Callable[[], int]:
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=HEADS,
        num_key_value_heads=HEADS, intermediate_size=HIDDEN, max_position_embeddings=CONTEXT,
        tie_word_embeddings=True, use_cache=False)).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    draw = np.random.default_rng(0)
    lengths = np.diff(store.offsets)

    def step() -> int:
        ids = torch.zeros(ROWS, CONTEXT, dtype=torch.long)
        mask = torch.zeros(ROWS, CONTEXT, dtype=torch.long)
        for row, document in enumerate(draw.integers(0, len(lengths), ROWS)):
            n = min(CONTEXT, int(lengths[document]))
            begin = int(store.offsets[document]) + int(draw.integers(0, lengths[document] - n + 1))
            ids[row, :n], mask[row, :n] = torch.from_numpy(store.tokens[begin : begin + n].astype(np.int64)), 1
        longest = int(mask.sum(1).max())
        ids, mask = ids[:, :longest], mask[:, :longest]
        with autocast(torch.device("cpu"), precision):
            loss = model(input_ids=ids, attention_mask=None if mask.all() else mask,
                         labels=ids.masked_fill(mask == 0, -100)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return int(mask.sum()) - ROWS

    return step


def race(runners: dict[str, Callable[[], int]], steps: int) -> dict[str, float]:
    """Median seconds per token of each, as tokens per second."""
    times: dict[str, list[float]] = {name: [] for name in runners}
    for index in range(steps + 2):
        for name, step in runners.items():
            begin = time.perf_counter()
            count = step()
            if index >= 2:
                times[name].append((time.perf_counter() - begin) / count)
    return {name: 1 / statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    args = parser.parse_args()
    threads = cores()
    torch.set_num_threads(threads)
    draw = np.random.default_rng(0)
    stores = {"long": Arrays([draw.integers(0, VOCABULARY, 5000) for _ in range(40)]),
              "short": Arrays([draw.integers(0, VOCABULARY, n) for n in draw.integers(20, 201, 2000)])}
    best = "bfloat16" if is_bfloat16_fast(threads) else "float32"
    precisions = list(dict.fromkeys(("float32", best)))
    lines = ["# Training beside a plain loop over transformers", "", "`python benchmarks/fit.py`", "",
             f"{DEPTH} blocks of width {WIDTH}, {ROWS} rows of {CONTEXT}, vocabulary {VOCABULARY:,}, on "
             f"{describe_machine()}. Tokens are those predicted, padding is not counted. Long documents "
             "fill the rows of both; of short ones (20 to 200 tokens) we pack several in a row, and the plain "
             "loop pads.", "",
             f"| documents | loop | tokens/s | {' | '.join(f'to transformers, {p}' for p in precisions)} |",
             "|---|---|---|" + "---|" * len(precisions)]
    for documents, store in stores.items():
        speeds = race({"transformers, float32": transformers_step(store, "float32"),
                       **({"transformers, bfloat16": transformers_step(store, best)} if best != "float32" else {}),
                       "segue, float32, AdamW": segue_step(store, "float32", False, threads),
                       f"segue as fit runs it ({best}, Muon)": segue_step(store, best, True, threads),
                       **({"segue, bfloat16, AdamW": segue_step(store, best, False, threads)} if best != "float32"
                          else {}),
                       }, args.steps)
        for name, speed in speeds.items():
            ratios = [f"{speed / speeds[f'transformers, {precision}']:.2f}x" for precision in precisions]
            lines.append(f"| {documents} | {name} | {speed:,.0f} | {' | '.join(ratios)} |")
    text = "\n".join(lines) + "\n"
    print(text)
    (Path(__file__).parent / "results" / "fit.md").write_text(text)


if __name__ == "__main__":
    main()
