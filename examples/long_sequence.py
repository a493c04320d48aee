"""Train on a sequence that is cut over several processes: each holds all weights and a share of the elements.

    torchrun --nproc-per-node 2 examples/long_sequence.py [--length 4096] [--steps 20] [--mixer gla+attention]

The same with files, plan and checkpoints: torchrun --nproc-per-node 2 -m segue fit FILES --out DIR --steps 100 \\
    --set context=8192 --set sequence_parallel=true
"""

from __future__ import annotations

import argparse

import torch

from segue.models import Stack, StackConfig
from segue.models.stack import expand_pattern
from segue.objectives import Batch, NextElement
from segue.parallel import context_parallel, sum_gradients
from segue.training import distributed


def main(length: int = 4096, steps: int = 20, mixer: str = "gla+attention") -> list[float]:
    """Returns nats an element at each step."""
    distributed.join_group()  # gloo on CPUs, nccl on GPUs
    torch.manual_seed(0)
    stack = Stack(StackConfig(64, 64, expand_pattern(mixer)))  # alike on all processes
    model = context_parallel(stack)
    optimiser, losses = torch.optim.AdamW(stack.parameters(), 3e-3), []
    for step in range(steps):
        draw = torch.Generator().manual_seed(step)
        ids = torch.randint(64, (1, 1 + length // 2), generator=draw).repeat(1, 2)  # the second half is the first again
        batch = Batch(ids[:, :length], ids[:, 1 : length + 1])  # targets are made before the cut
        loss = NextElement()(model, batch.map(model.share))  # the sum over the elements of this process
        optimiser.zero_grad()
        (loss.total / batch.count).backward()
        sum_gradients(model.comm, list(stack.parameters()))
        optimiser.step()
        losses.append(float(distributed.total(loss.total.detach())) / batch.count)
        if distributed.rank() == 0:
            print(f"step {step}: {losses[-1]:.3f} nats an element, {length} elements over {model.comm.size} processes")
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--mixer", default="gla+attention")
    main(**vars(parser.parse_args()))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
