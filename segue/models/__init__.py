"""Models: stacks of mixers, and everything else that can be decoded."""

from __future__ import annotations

from segue.models.base import Decodable, Output
from segue.models.classify import HEADS, ClassHead, Classifier, Features
from segue.models.depth import DepthSchedule, Scheduled
from segue.models.perceptron import Perceptron
from segue.models.point_process import History, PointProcess, PointProcessConfig
from segue.models.pointer import PointerConfig, PointerNetwork, SetConfig
from segue.models.seq2seq import EncoderDecoder, EncoderDecoderConfig
from segue.models.sparse import Masked, SparseNetwork
from segue.models.stack import Stack, StackConfig, expand_pattern

__all__ = ["HEADS", "ClassHead", "Classifier", "Decodable", "DepthSchedule", "EncoderDecoder", "EncoderDecoderConfig",
           "Features", "History", "Masked", "Output", "Perceptron", "PointProcess", "PointProcessConfig",
           "PointerConfig", "PointerNetwork", "Scheduled", "SetConfig", "SparseNetwork", "Stack", "StackConfig",
           "expand_pattern"]
