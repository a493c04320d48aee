"""Policy gradients: generalised advantage estimation (Schulman et al. 2016, arXiv 1506.02438) and the clipped loss of
PPO (2017, arXiv 1707.06347). With a state space model that resets its state: Lu et al. 2023, arXiv 2303.03982.

A rollout is a batch of rows of steps, in which one episode follows another. Training uses whole rows, so that a
recurrent model reads them exactly as it did while acting.
"""

from __future__ import annotations

import torch
from torch import Tensor


def advantages(rewards: Tensor, values: Tensor, ends: Tensor, discount: float = 0.99, trace: float = 0.95) -> Tensor:
    """Generalised advantage estimates (B, T): the sum, from each step to the end of its episode, of the temporal
    differences r + discount V' - V, discounted by discount * trace for each step.

    rewards: (B, T). values: (B, T + 1), estimated values of the steps and of the state after the rollout. ends: (B, T)
    bool, True at the last step of an episode, after which the value is 0. trace: lambda of the paper.
    """
    found, last = [], torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        on = 1.0 - ends[:, t].to(rewards)
        last = rewards[:, t] + discount * on * values[:, t + 1] - values[:, t] + discount * trace * on * last
        found.append(last)
    return torch.stack(found[::-1], 1)


def clipped_policy(logs: Tensor, before: Tensor, gains: Tensor, clip: float = 0.2) -> Tensor:
    """PPO's clipped surrogate loss: the mean of -min(ratio * gain, clamp(ratio, 1 - clip, 1 + clip) * gain), which
    stops rewarding a policy for moving farther than `clip` from the one that collected the rollout.

    logs, before: log-probabilities of the actions taken, under the current and the collecting policy. gains: their
    advantages, usually normalised to mean 0 and deviation 1. All of one shape.
    """
    ratio = (logs - before).exp()
    return -torch.minimum(ratio * gains, ratio.clamp(1 - clip, 1 + clip) * gains).mean()
