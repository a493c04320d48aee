"""From a model to continuations: choosing tokens, drafting and verifying, searching."""

from __future__ import annotations

from segue.decoding.accept import ACCEPTORS
from segue.decoding.continuation import Delta, continue_objects, stream_objects
from segue.decoding.cost import Cost
from segue.decoding.draft import DRAFTERS
from segue.decoding.generate import Continuation, Piece, generate, stream
from segue.decoding.prompt import SetPrompt
from segue.decoding.recipes import DECODERS, Recipe
from segue.decoding.sampling import Sampling
from segue.decoding.search import SEARCHES

__all__ = ["ACCEPTORS", "DECODERS", "DRAFTERS", "SEARCHES", "Continuation", "Cost", "Delta", "Piece", "Recipe",
           "Sampling", "SetPrompt", "continue_objects", "generate", "stream", "stream_objects"]
