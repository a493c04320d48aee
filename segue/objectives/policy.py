"""Learning from rewards: what actions brought beyond what was expected (Schulman et al. 2016, arXiv 1506.02438), and
proximal policy optimisation (2017, arXiv 1707.06347). With a state space that resets: Lu et al. 2023, arXiv 2303.03982.

A rollout is a batch: rows of steps, in which episodes end and others begin. What is learned from are whole rows, so
that a recurrence reads them as it did when they were played.
"""

from __future__ import annotations

import torch
from torch import Tensor


def advantages(rewards: Tensor, values: Tensor, ends: Tensor, discount: float = 0.99, trace: float = 0.95) -> Tensor:
    """Generalised advantage estimates (B, T): the sum of what surprised from each step to the end of its episode,
    r + discount V' - V, each step later counting discount * trace of the one before.

    rewards: (B, T). values: (B, T + 1), what each step was thought worth, and the one behind the rollout. ends: (B, T)
    bool, the step is the last of its episode, behind which nothing is worth anything.
    """
    found, last = [], torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        on = 1.0 - ends[:, t].to(rewards)
        last = rewards[:, t] + discount * on * values[:, t + 1] - values[:, t] + discount * trace * on * last
        found.append(last)
    return torch.stack(found[::-1], 1)


def clipped_policy(logs: Tensor, before: Tensor, gains: Tensor, clip: float = 0.2) -> Tensor:
    """The mean of -min(ratio * gain, clamp(ratio, 1 - clip, 1 + clip) * gain): a policy moves towards what gained more,
    but no farther from the one that played than `clip`.

    logs, before: log-probabilities of the actions that were taken, now and when they were. gains: their advantages,
    usually with mean 0 and deviation 1. All of one shape.
    """
    ratio = (logs - before).exp()
    return -torch.minimum(ratio * gains, ratio.clamp(1 - clip, 1 + clip) * gains).mean()
