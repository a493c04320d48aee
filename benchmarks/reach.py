"""What a fitted model predicts far from where a text begins: with attention to all of the past, and to as much of it as
the rows of training had, which is what decoders run.

    python benchmarks/reach.py FILE [--minutes 1] [--tokens 4096]

The first nine tenths of FILE are learned by `segue fit`; the first `--tokens` of the rest are read in pieces, as a
prompt is, and the nats of each token averaged by its place. The table is printed, and written to results/reach.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

import segue
from segue.models import Stack
from segue.models.base import Decodable
from segue.models.bounded import bound_attention
from segue.training.recipe import describe_machine

PIECE = 64


@torch.no_grad()
def nats(model: Decodable, tokens: np.ndarray) -> np.ndarray:
    """Nats (N - 1,) of tokens (N,), each given all before it."""
    state, losses = model.init_state(1), []
    for start in range(0, len(tokens) - 1, PIECE):
        targets = torch.from_numpy(tokens[start + 1 : start + 1 + PIECE]).long()
        piece = torch.from_numpy(tokens[start : start + PIECE]).long()[None]
        logits = model.extend(piece, state).logits[0, : len(targets)]
        losses.append(-logits.double().log_softmax(-1).gather(1, targets[:, None])[:, 0].numpy())
        state.commit()
    return np.concatenate(losses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--tokens", type=int, default=4096)
    args = parser.parse_args()
    text = args.file.read_text(encoding="utf-8")
    model = segue.fit([text[: 9 * len(text) // 10]], minutes=args.minutes, quiet=True)
    assert isinstance(model.model, Stack) and model.mixture is not None
    tokens = model.codec.encode(text[9 * len(text) // 10 :])[: args.tokens]
    bounded = bound_attention(model.model, model.context)
    forms: dict[str, Decodable] = {
        "network, all of the past": model.model, f"network, the latest {model.context}": bounded,
        "with counts, all of the past": model.mixture.with_network(model.model),
        f"with counts, the latest {model.context} (what `continue` runs)": model.mixture.with_network(bounded)}
    edges = [1, model.context, *(model.context * 2**k for k in range(1, 12) if model.context * 2**k < len(tokens)),
             len(tokens)]
    lines = ["# Far from the beginning", "",
             f"`python benchmarks/reach.py {args.file.name} --minutes {args.minutes:g}` on {describe_machine()}: "
             f"{len(model.model.config.mixers)} layers of {model.model.config.mixers[0]}, rows of {model.context} "
             f"tokens; nats a token by its place in {len(tokens):,} tokens that were held out", "",
             "| | " + " | ".join(f"{a:,} to {b:,}" for a, b in zip(edges, edges[1:])) + " |",
             f"|---|{'---:|' * (len(edges) - 1)}"]
    for name, form in forms.items():
        losses = nats(form, tokens)
        lines.append(f"| {name} | " + " | ".join(f"{losses[a:b].mean():.3f}" for a, b in zip(edges, edges[1:])) + " |")
    print("\n".join(lines))
    (Path(__file__).parent / "results" / "reach.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
