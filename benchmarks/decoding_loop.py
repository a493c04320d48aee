"""What decoding costs beside the model: the loop's own time per token, samplers, and the drafters' operations.

    python benchmarks/decoding_loop.py

The model here is a stand-in that answers at once, so everything that is measured is overhead.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segue.decoding import generate
from segue.decoding.draft import PromptLookup, Tip, TrieDraft
from segue.models.base import Output
from segue.training.recipe import describe_machine


class StatelessState:
    """A state that holds nothing."""

    def __init__(self, batch: int) -> None:
        self.batch, self.positions = batch, torch.zeros(batch, dtype=torch.long)

    def commit(self, path: Tensor | None = None, counts: Tensor | None = None) -> None: ...

    def select(self, rows: Tensor) -> StatelessState:
        return StatelessState(len(rows))


class InstantModel:
    """A model with constant scores and no cost."""

    path = "nothing"

    def __init__(self, vocabulary: int, batch: int) -> None:
        self.vocabulary = vocabulary
        self.scores = torch.randn(batch, 1, vocabulary, generator=torch.Generator().manual_seed(0)) * 3

    def init_state(self, batch: int, history: int = 0) -> Any:
        return StatelessState(batch)

    def extend(self, tokens: Tensor, state: Any, parents: Tensor | None = None, at: Tensor | None = None) -> Output:
        scores = self.scores[: tokens.shape[0]]
        n = tokens.shape[1] if at is None else at.shape[1]
        return Output(scores if n == 1 else scores.expand(-1, n, -1), scores)


class SteppingModel(InstantModel):
    """The same with `step`, as engines have it."""

    def step(self, tokens: np.ndarray, state: Any) -> np.ndarray:
        return self.scores[: len(tokens), 0].numpy()


def per_token(model: Any, batch: int, n: int = 1000, **options: Any) -> float:
    """Microseconds for each pass of the loop (a token for every row)."""
    prompts = [[row, 1, 2] for row in range(batch)]
    generate(model, prompts, 20, **options)
    best = min(generate(model, prompts, n, **options)[0].seconds["total"] for _ in range(3))
    return 1e6 * best / n


def main() -> None:
    torch.set_num_threads(1)
    print(describe_machine())
    print(f"\n{'microseconds a pass':34}{'V 2,000':>10}{'V 50,000':>10}{'V 2,000, 8 rows':>17}")
    settings: dict[str, dict[str, Any]] = {
        "greedy": {}, "greedy, log-probabilities": {"logprobs": True}, "sample": {"decoder": "sample"},
        "sample, top-k 50": {"decoder": "sample", "top_k": 50},
        "sample, top-p 0.9": {"decoder": "sample", "top_p": 0.9},
        "sample, repetition penalty": {"decoder": "sample", "repetition_penalty": 1.2}}
    for model_class in (SteppingModel, InstantModel):
        for name, options in settings.items():
            row = [per_token(model_class(vocabulary, batch), batch, 2_000_000 // vocabulary + 100, **options)
                   for vocabulary, batch in ((2000, 1), (50_000, 1), (2000, 8))]
            label = name if model_class is SteppingModel else f"{name}, by extend"
            print(f"{label:34}{row[0]:10.1f}{row[1]:10.1f}{row[2]:17.1f}")

    words = (np.random.default_rng(0).zipf(1.3, 200_000) % 5000).tolist()
    trie, lookup = TrieDraft(), PromptLookup()
    begin = time.perf_counter()
    trie.warm([words[start : start + 100] for start in range(0, 100_000, 100)])
    trie_seconds = time.perf_counter() - begin
    begin = time.perf_counter()
    lookup.observe(0, words[:100_000], prompt=True)
    lookup_seconds = time.perf_counter() - begin
    trie.observe(0, words[:2000], prompt=True)
    times, nodes = [], 0
    for token in words[100_000:101_000]:
        trie.observe(0, [token])
        begin = time.perf_counter()
        nodes += len(trie.propose([Tip(0, 64, 12)])[0])
        times.append(time.perf_counter() - begin)
    print(f"\nA Zipf text of 5,000 words: to count a token in the trie {10 * trie_seconds:.1f} us, in the lookup "
          f"{10 * lookup_seconds:.1f} us;\nto retrieve {nodes / 1000:.0f} nodes of {len(trie.answers):,}: median "
          f"{1e6 * np.median(times):.0f} us, mean {1e6 * np.mean(times):.0f} us")


if __name__ == "__main__":
    main()
