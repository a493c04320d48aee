"""Data-parallel training (`torchrun --nproc-per-node N -m segue fit ...`): each process takes a share of every batch's
rows and gradients are summed, so that the result equals that of a single process up to rounding."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from segue import parallel


def join_group() -> None:
    """Join the group that torchrun set up, if it did: gloo on CPUs, nccl on GPUs."""
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=timedelta(minutes=30))
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))


def rank() -> int:
    """The rank of this process; 0 for a single one."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Wait for all processes."""
    if world_size() > 1:
        dist.barrier()


def sum_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Sum `grad` over processes in one message. A parameter without a gradient on some process counts as zero there."""
    if world_size() > 1:
        parallel.sum_gradients(parallel.Processes(), parameters)


def total(value: Tensor) -> Tensor:
    """The sum of a scalar over processes."""
    if world_size() > 1:
        value = value.clone()
        dist.all_reduce(value)
    return value
