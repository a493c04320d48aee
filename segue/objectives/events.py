"""The likelihood of events in time: when the next one comes, and of which type."""

from __future__ import annotations

from torch import nn

from segue.models.point_process import History, PointProcess
from segue.objectives.base import Batch, Loss


def history_of(batch: Batch) -> History:
    """The history of events in a batch, whose channel `gap` (B, T) is the time since the previous event."""
    return History(batch.tokens, batch.channels["gap"], batch.starts)


class EventLikelihood:
    """Negative log-likelihood of a point process (`segue.models.point_process`), nats; terms "time" and "type".

    Batches have the channels `gap` (B, T), the time since the previous event, and `until` (B, T), the time to the next
    one, whose type is the target. points, rule: how the intensity is integrated, see `PointProcess.terms`. match:
    weight of the similarity between queries and chosen keys of a prompt pool (alpha of Xue et al. 2023, arXiv
    2310.04993).
    """

    def __init__(self, points: int = 5, rule: str = "uniform", match: float = 0.1) -> None:
        self.points, self.rule, self.match = points, rule, match

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        assert isinstance(model, PointProcess)
        time, kind = model.terms(history_of(batch), batch.channels["until"], batch.targets, self.points, self.rule)
        total = -(time.sum() + kind.sum())
        terms = {"nats": total.detach(), "time": -time.detach().sum(), "type": -kind.detach().sum()}
        if model.prompts is not None and batch.tokens.shape[1] >= model.prompts.prefix:
            total = total - self.match * model.prompts.match.mean() * batch.count
        return Loss(total, terms, batch.count)
