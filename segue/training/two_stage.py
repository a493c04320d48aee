"""Two-stage fine-tuning against an index of item vectors (Recformer: Li et al. 2023, arXiv 2305.13731). In the first
stage the items are re-encoded at the beginning of each epoch; in the second the best index is frozen, and only the
model is trained on."""

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
    """Re-encodes an item index with the current model before the first step, and every `every` steps."""

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
    """Train a model to predict the next item; `model` and `index` end with the best weights and vectors. Returns the
    training runs of the two stages.

    batches: histories of items; the target, at the position whose hidden state is the user's vector, is the index of
        the next item. steps: maximum number of steps of each stage. epoch: steps between two re-encodings of the index,
        in the first stage.
    measure: validation score of the model with the current index, lower is better; taken every `every` epochs.
        patience: measurements without improvement after which each stage stops. choices: passed to `learn`, in both.
    """
    best_state: list[tuple[float, Tensor]] = []

    def record_best(net: nn.Module) -> float:
        score = measure(net)
        if not best_state or score < best_state[0][0]:
            best_state[:] = [(score, index.unique_vectors.clone())]
        return score

    objective, interval = AllItems(index), every * epoch
    index.refresh(model)
    first = learn(model, batches, steps[0], seed=seed, objective=objective, strategy=ReencodeItems(index, epoch),
                  held_out=record_best, measure=max(1, steps[0] // interval), patience=patience[0], **choices)
    index.unique_vectors = best_state[0][1]

    def later(step: int) -> Batch:
        return batches(steps[0] + step)

    second = learn(model, later, steps[1], seed=seed, objective=objective, held_out=measure,
                   measure=max(1, steps[1] // interval), patience=patience[1], **choices)
    return first, second
