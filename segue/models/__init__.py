"""Models: stacks of mixers, and everything else that can be decoded."""

from __future__ import annotations

from segue.models.autoencoder import SequenceAutoencoder, SequenceAutoencoderConfig
from segue.models.base import Decodable, Output
from segue.models.classify import HEADS, ClassHead, Classifier, Features
from segue.models.control import ControlBranch
from segue.models.depth import DepthSchedule, Scheduled
from segue.models.film import FilmAutoencoder, FilmAutoencoderConfig
from segue.models.flow import EvenField, Flow, Guided, StackField
from segue.models.graphs import GraphSequence
from segue.models.perceptron import Perceptron
from segue.models.point_process import History, PointProcess, PointProcessConfig
from segue.models.pointer import PointerConfig, PointerNetwork, SetConfig
from segue.models.prompts import CodaPrompts, DualPrompts, Pools, Prefix, Prompted, PromptSource
from segue.models.seq2seq import EncoderDecoder, EncoderDecoderConfig
from segue.models.sif import SIFEmbedding, cooccurrence_vectors
from segue.models.spacetime import SpaceTimeConfig, SpatioTemporalDiT
from segue.models.sparse import Masked, SparseNetwork
from segue.models.stack import Stack, StackConfig, expand_pattern

__all__ = [
           "HEADS",
           "ClassHead",
           "Classifier",
           "CodaPrompts",
           "ControlBranch",
           "Decodable",
           "DepthSchedule",
           "DualPrompts",
           "EncoderDecoder",
           "EncoderDecoderConfig",
           "EvenField",
           "Features",
           "FilmAutoencoder",
           "FilmAutoencoderConfig",
           "Flow",
           "GraphSequence",
           "Guided",
           "History",
           "Masked",
           "Output",
           "Perceptron",
           "PointProcess",
           "PointProcessConfig",
           "PointerConfig",
           "PointerNetwork",
           "Pools",
           "Prefix",
           "PromptSource",
           "Prompted",
           "SIFEmbedding",
           "Scheduled",
           "SequenceAutoencoder",
           "SequenceAutoencoderConfig",
           "SetConfig",
           "SpaceTimeConfig",
           "SparseNetwork",
           "SpatioTemporalDiT",
           "Stack",
           "StackConfig",
           "StackField",
           "cooccurrence_vectors",
           "expand_pattern",
]
