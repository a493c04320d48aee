"""Models: stacks of mixers, and everything else that can be decoded."""

from __future__ import annotations

from segue.models.base import Decodable, Output
from segue.models.depth import DepthSchedule, Scheduled
from segue.models.point_process import History, PointProcess, PointProcessConfig
from segue.models.seq2seq import EncoderDecoder, EncoderDecoderConfig
from segue.models.stack import Stack, StackConfig, expand_pattern

__all__ = ["Decodable", "DepthSchedule", "EncoderDecoder", "EncoderDecoderConfig", "History", "Output",
           "PointProcess", "PointProcessConfig", "Scheduled", "Stack", "StackConfig", "expand_pattern"]
