"""Serving a model: the batching engine, the OpenAI-compatible API in front of it, and a web page."""

from __future__ import annotations

from segue.serving.engine import Engine, Overloaded, Request, Ticket

__all__ = ["Engine", "Overloaded", "Request", "Ticket"]
