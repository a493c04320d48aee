"""Continual learning: strategies are hooks around the one training loop (`segue.training.strategy.Strategy`)."""

from __future__ import annotations

from segue.continual.buffer import Buffer, Reservoir
from segue.continual.memory import Memory
from segue.continual.metrics import ScoreMatrix
from segue.continual.replay import Replay
from segue.continual.stream import Experience, class_incremental, learn_stream
from segue.training.strategy import Strategy

STRATEGIES: dict[str, type[Strategy]] = {"naive": Strategy, "replay": Replay}

__all__ = ["STRATEGIES", "Buffer", "Experience", "Memory", "Replay", "Reservoir", "ScoreMatrix", "Strategy",
           "class_incremental", "learn_stream"]
