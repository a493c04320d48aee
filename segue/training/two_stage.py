"""Two-stage finetuning against a frozen index of items (Recformer: Li et al. 2023, arXiv 2305.13731): first the index
is made again at the beginning of each epoch, then it stays as it was when it was best, and the model goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from segue.analysis.items import ItemIndex
from segue.objectives import Batch
from segue.objectives.contrastive import AllItems
from segue.training.learn import learn
from segue.training.loop import Run
from segue.training.strategy import Strategy


class ReencodeItems(Strategy):
    """Makes an index again before the first step, and every `every` steps."""

    name = "re-encode"

    def __init__(self, index: ItemIndex, every: int) -> None:
        self.index, self.every = index, every

    def before_step(self, run: Run, batch: Batch) -> Batch:
        if run.step % self.every == 0:
            self.index.refresh(run.model)
        return batch

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {"vectors": self.index.unique_vectors}, {}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        self.index.unique_vectors = tensors["vectors"]


def two_stage(model: nn.Module, index: ItemIndex, batches: Callable[[int], Batch], steps: tuple[int, int], epoch: int,
              measure: Callable[[nn.Module], float], patience: tuple[int, int] = (5, 3), every: int = 1,
              seed: int = 0, **choices: Any) -> tuple[Run, Run]:
    """Learn which items come next, and leave in `model` and `index` the best of both; what was done, stage by stage.

    batches: histories, each with the number of the item that came next as the target at the place that the vector is
        read off. steps: at most so many, of each stage. epoch: steps after which the index is made again in the first.
    measure: the model with the index as it stands on validation data, lower is better; looked at every `every` epochs,
        `patience` times in vain of each stage. choices: of `learn`, for both.
    """
    best: list[tuple[float, Tensor]] = []

    def looked(net: nn.Module) -> float:
        score = measure(net)
        if not best or score < best[0][0]:
            best[:] = [(score, index.unique_vectors.clone())]
        return score

    objective, look = AllItems(index), every * epoch
    index.refresh(model)
    first = learn(model, batches, steps[0], seed=seed, objective=objective, strategy=ReencodeItems(index, epoch),
                  held_out=looked, measure=max(1, steps[0] // look), patience=patience[0], **choices)
    index.unique_vectors = best[0][1]

    def later(step: int) -> Batch:
        return batches(steps[0] + step)

    second = learn(model, later, steps[1], seed=seed, objective=objective, held_out=measure,
                   measure=max(1, steps[1] // look), patience=patience[1], **choices)
    return first, second
