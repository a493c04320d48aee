"""Models: stacks of mixers, and everything else that can be decoded."""

from __future__ import annotations

from segue.models.base import Decodable, Output
from segue.models.stack import Stack, StackConfig, expand_pattern

__all__ = ["Decodable", "Output", "Stack", "StackConfig", "expand_pattern"]
