"""Context parallelism: long sequences over several processes, by ring attention and by passing on recurrent states."""

from segue.parallel.blocks import BACKENDS, BlockAttention
from segue.parallel.communicate import (
    Communicator,
    Counted,
    Links,
    Processes,
    Throttled,
    all_gather,
    all_reduce,
    launch,
    simulate,
)
from segue.parallel.context import ContextParallel, context_parallel, sum_gradients
from segue.parallel.ring import ring_attention, stored_scores_attention
from segue.parallel.schedule import Block, Message, RingSchedule, Step, pick_rotation
from segue.parallel.shard import ContextShard
from segue.parallel.tensor import TensorParallel, tensor_parallel

__all__ = ["BACKENDS", "Block", "BlockAttention", "Communicator", "ContextParallel", "ContextShard", "Counted", "Links",
           "Message", "Processes", "RingSchedule", "Step", "TensorParallel", "Throttled", "all_gather", "all_reduce",
           "context_parallel", "launch", "pick_rotation", "ring_attention", "simulate", "stored_scores_attention",
           "sum_gradients", "tensor_parallel"]
