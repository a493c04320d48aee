"""Learn a low-rank adapter beside the model, and merge it at the end. The rank bounds what an experience may change,
and the model stays an ordinary one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from segue.errors import SegueError
from segue.models.adapters import LoRA
from segue.objectives import Batch
from segue.training.loop import Run
from segue.training.strategy import Strategy


class AdapterTuning(Strategy):
    """Each experience trains only a new `LoRA` (Hu et al. 2021, arXiv 2106.09685), by AdamW, and merges it into the
    weights at its end.

    rank, alpha: see `LoRA`. targets: parts of the names of the layers that get one, separated by "|" (default: all
    linear layers but the head). seed: of the adapters' initial values. Embeddings, norms and the head are not trained:
    the model must know the elements already.
    """

    name = "lora"
    about = "adapter"

    def __init__(self, rank: int = 8, alpha: float = 16.0, targets: str = "", seed: int = 0) -> None:
        self.rank, self.alpha, self.seed = rank, alpha, seed
        self.targets = [target for target in targets.split("|") if target]
        self.learned = 0  # experiences
        self.adapter = LoRA(rank, alpha)

    def prepare(self, run: Run) -> None:
        self.adapter = LoRA(self.rank, self.alpha, self.targets, self.seed + self.learned)
        self.adapter.attach(run.model)

    def after_experience(self, run: Run) -> None:
        self.learned += 1
        self.adapter.merge()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {"learned": self.learned}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        self.learned = values["learned"]


class OLoRA(AdapterTuning):
    """O-LoRA (Wang et al. 2023, arXiv 2310.14152): the rows of each new A are kept orthogonal to those of all earlier
    ones, so that a new experience changes the weights on other input directions.

    Adds `strength` * sum over layers and earlier experiences of sum |A_earlier A^T|, and `shrink` * the sum over layers
    of the norms of A and B, to the loss per element. It protects what adapters learned, not what full training did.
    Stores the earlier A, rank x inputs numbers for each layer and experience.
    """

    name = "o-lora"

    def __init__(self, strength: float = 0.5, shrink: float = 0.0, rank: int = 8, alpha: float = 16.0,
                 targets: str = "", seed: int = 0) -> None:
        super().__init__(rank, alpha, targets, seed)
        if strength < 0 or shrink < 0:
            raise SegueError(f"strength {strength} and shrink {shrink} are 0 or more")
        self.strength, self.shrink = strength, shrink
        self.earlier: dict[str, Tensor] = {}  # layer -> (k, in), the rows of all A so far

    def loss_term(self, run: Run, batch: Batch) -> Tensor | None:
        layers = self.adapter.layers
        terms = [self.strength * overlap(layers[name].a, rows.to(layers[name].a))
                 for name, rows in self.earlier.items() if name in layers]
        terms += [self.shrink * (layer.a.norm() + layer.b.norm()) for layer in layers.values() if self.shrink]
        return torch.stack(terms).sum() if terms else None

    def after_experience(self, run: Run) -> None:
        for name, layer in self.adapter.layers.items():
            a = layer.a.detach().cpu().clone()
            self.earlier[name] = torch.cat([self.earlier[name], a]) if name in self.earlier else a
        super().after_experience(run)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return dict(self.earlier), super().state()[1]

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        super().load_state(tensors, values)
        self.earlier = dict(tensors)


def overlap(a: Tensor, earlier: Tensor) -> Tensor:
    """Scalar: the sum of |a earlier^T| over all pairs of rows, (r, n) and (k, n); 0 where all are orthogonal."""
    return (earlier @ a.T).abs().sum()
