"""Continual learning: strategies are hooks around the one training loop (`segue.training.strategy.Strategy`)."""

from __future__ import annotations

from segue.continual.alternate import Alternate
from segue.continual.buffer import Reservoir
from segue.continual.memory import Memory
from segue.continual.metrics import ScoreMatrix
from segue.continual.replay import Replay
from segue.training.strategy import Strategy

STRATEGIES: dict[str, type[Strategy]] = {"naive": Strategy, "replay": Replay}

__all__ = ["STRATEGIES", "Alternate", "Memory", "Replay", "Reservoir", "ScoreMatrix", "Strategy"]
