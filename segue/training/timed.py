"""Training rows of events in time, and their scores: likelihood of times and types, prediction errors, goodness of
fit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from segue.errors import SegueError
from segue.models.hawkes import Hawkes, TimedEvents
from segue.models.point_process import PointProcess
from segue.objectives import Batch
from segue.objectives.events import history_of
from segue.training.batches import Store
from segue.training.evaluate import scoring_windows


class EventStore:
    """A store of types whose channels are the gaps that a point process learns from: `gap`, since the event before (0
    at the first of a sequence), and `until`, to the next one (0 at the last); float64, in the unit of the data.

    store: encoded without boundaries, with a channel `time`, or else `gap`.
    """

    def __init__(self, store: Store) -> None:
        self.tokens, self.offsets = np.asarray(store.tokens), np.asarray(store.offsets)
        firsts, lasts = self.offsets[:-1][np.diff(self.offsets) > 0], self.offsets[1:][np.diff(self.offsets) > 0] - 1
        if "time" in store.channels:
            times = np.asarray(store.channels["time"], dtype=np.float64)
            gap = np.diff(times, prepend=times[:1])
        elif "gap" in store.channels:
            gap = np.array(store.channels["gap"], dtype=np.float64)
        else:
            raise SegueError("these events have no times: name the column that says when (when=), or learn their types "
                             "alone")
        gap[firsts] = 0.0
        if len(gap) and gap.min() < 0:
            raise SegueError("the times of a sequence go back: give its events in the order of time")
        until = np.append(gap[1:], 0.0)[: len(gap)]
        until[lasts] = 0.0
        self.channels = {"gap": gap, "until": until}

    @property
    def lengths(self) -> np.ndarray:
        """(len,) int64: events of each sequence."""
        return np.diff(self.offsets)

    @property
    def gaps(self) -> np.ndarray:
        """All gaps between two events."""
        inside = np.ones(len(self.tokens), dtype=bool)
        inside[self.offsets[:-1][np.diff(self.offsets) > 0]] = False
        return self.channels["gap"][inside]

    def sequences(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Types and times since the first event, of each sequence that has one."""
        for begin, end in zip(self.offsets[:-1].tolist(), self.offsets[1:].tolist()):
            if end > begin:
                yield self.tokens[begin:end].astype(np.int64), self.channels["gap"][begin:end].cumsum()


def event_batch(sequences: Iterable[tuple[np.ndarray, np.ndarray]]) -> Batch:
    """A batch for a point process with one row for each sequence of types (n,) and times (n,): inputs are all events
    but the last, targets all but the first; padded at the end."""
    data = TimedEvents.of(sequences)
    gaps = np.diff(data.times, axis=1)
    gap = np.concatenate([np.zeros((len(gaps), 1)), gaps[:, :-1]], 1)
    return Batch(torch.from_numpy(np.maximum(data.types[:, :-1], 0)), torch.from_numpy(data.types[:, 1:]),
                 channels={"gap": torch.from_numpy(gap), "until": torch.from_numpy(gaps)})


@dataclass(frozen=True)
class EventScores:
    """Scores of a process that predicts each of `events` events from those before.

    time, type: mean nats of an event's time (a density per unit of the data's time) and of its type given the time.
    rmse: of the expected time to the next event, in that unit. error: share of wrongly predicted types. misfit: the
    Kolmogorov-Smirnov distance of the expected numbers of events in the gaps from Exp(1), their distribution under the
    true model. None: not computed, or not predicted by the method.
    """

    events: int
    time: float | None
    type: float | None
    rmse: float | None = None
    error: float | None = None
    misfit: float | None = None

    @property
    def nats(self) -> float:
        return (self.time or 0.0) + (self.type or 0.0)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def exponential_misfit(residuals: np.ndarray) -> float:
    """The Kolmogorov-Smirnov distance of the distribution of residuals (n,) from Exp(1)."""
    expected, n = -np.expm1(-np.sort(residuals)), len(residuals)
    return float(max((np.arange(1, n + 1) / n - expected).max(), (expected - np.arange(n) / n).max()))


@torch.no_grad()
def score_process(model: PointProcess, batches: Iterable[Batch], points: int = 20, grid: int = 48,
                  seed: int = 0) -> EventScores:
    """Scores of the model over all targets of the batches. points: samples of the integral of an intensity, drawn with
    `seed`. grid: points in time at which predictions and residuals are computed (0: leave these out; they take longer
    than the likelihood)."""
    model.eval()
    device = next(model.parameters()).device
    events, errors = 0, 0
    nats, square = np.zeros(2), 0.0
    residuals: list[np.ndarray] = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for batch in (batch.to(device) for batch in batches):
            history, gaps, scored = history_of(batch), batch.channels["until"], batch.targets >= 0
            events += int(scored.sum())
            nats -= [float(part.double().sum()) for part in model.terms(history, gaps, batch.targets, points)]
            if grid:
                mean, kind = model.predict(history, grid)
                square += float((mean.double() - gaps)[scored].square().sum())
                errors += int((kind != batch.targets)[scored].sum())
                residuals.append(model.residuals(history, gaps, grid)[scored].cpu().double().numpy())
    if not events:
        raise SegueError("there is nothing to score: every sequence has fewer than two events")
    time, kind_nats = (float(part) / events for part in nats)
    if not grid:
        return EventScores(events, time, kind_nats)
    return EventScores(events, time, kind_nats, math.sqrt(square / events), errors / events,
                       exponential_misfit(np.concatenate(residuals)))


def score_hawkes(model: Hawkes, data: TimedEvents, longest: float) -> EventScores:
    """Scores of a classical process on whole sequences. longest: upper limit of predicted gaps."""
    live = data.has_predecessor
    time, kind = model.log_likelihood(data)
    mean, likely = model.predict(data, longest)
    following, gaps = live[:, 1:], np.diff(data.times, axis=1)
    events = int(live.sum())
    return EventScores(events, -float(time.sum()) / events, -float(kind.sum()) / events,
                       float(np.sqrt(np.square(mean[:, :-1] - gaps)[following].mean())),
                       float((likely[:, :-1] != data.types[:, 1:])[following].mean()),
                       exponential_misfit(model.residuals(data)[live]))


def window_batches(store: EventStore, context: int, rows: int = 16, overlap: float = 0.5) -> Iterator[Batch]:
    """Batches in which each event but the first of a sequence is a target once, after up to `context` earlier events;
    see `segue.training.evaluate.scoring_windows`."""
    predicted = np.diff(store.offsets) - 1
    table = scoring_windows(store.offsets, predicted, context, overlap)
    table, tokens = table[np.argsort(-table[:, 2], kind="stable")], store.tokens.astype(np.int64)
    for at in range(0, len(table), rows):
        part = table[at : at + rows]
        column = np.arange(int(part[:, 2].max()))
        index = np.minimum(part[:, 1, None] + column, len(store.tokens) - 2)
        live = (column < part[:, 2, None]) & (column >= part[:, 3, None])
        yield Batch(torch.from_numpy(tokens[index]), torch.from_numpy(np.where(live, tokens[index + 1], -1)),
                    channels={name: torch.from_numpy(values[index]) for name, values in store.channels.items()})
