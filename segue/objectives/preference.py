"""Direct preference optimisation from pairs of a better and a worse answer (DPO; Rafailov et al. 2023, arXiv
2305.18290), with a maximum-likelihood term on the better one, which keeps a small model from making both less likely
(SPaR: Cheng et al. 2024, arXiv 2412.11605)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.errors import SegueError
from segue.models.base import pad_rows
from segue.objectives.base import Batch, Loss

Ids = Sequence[int]


def answer_likelihoods(model: nn.Module, batch: Batch) -> Tensor:
    """(B,) log-likelihood of each row's targets, in nats."""
    scores = model(batch.tokens, batch.layout).logits
    scores = (scores if scores.dtype == torch.float64 else scores.float()).log_softmax(-1)
    each = scores.gather(-1, batch.targets.clamp(min=0)[..., None])[..., 0]
    return each.masked_fill(batch.targets < 0, 0.0).sum(-1)


def preference_loss(better: Tensor, worse: Tensor, beta: float = 0.1) -> Tensor:
    """(P,): -log sigmoid(beta (better - worse)), nats. better, worse: (P,) log-ratios of each answer to the reference
    model, log p - log p_reference, summed over its elements."""
    return -F.logsigmoid(beta * (better - worse))


def preference_batch(pairs: Sequence[tuple[Ids, Ids, Ids]]) -> Batch:
    """Rows for `Preference`: prompt and better answer of each pair, then prompt and worse answer of each, right-padded.

    pairs: ids of prompt (not empty: at least a begin token), better answer and worse answer, including end tokens where
    there are any. Only the answers are targets.
    """
    if not all(len(prompt) for prompt, _, _ in pairs):
        raise SegueError("an empty prompt asks for nothing: begin it with the codec's begin token")
    rows = [(list(prompt), list(answer)) for which in (1, 2) for prompt, answer in
            ((pair[0], pair[which]) for pair in pairs)]
    return Batch(pad_rows([[*prompt, *answer[:-1]] for prompt, answer in rows]),
                 pad_rows([[*[-1] * (len(prompt) - 1), *answer] for prompt, answer in rows], -1))


class Preference:
    """The mean over pairs of `preference_loss` + likelihood * (nats per element of the better answer).

    The first half of a batch's rows holds the better answers, the second half the worse ones to the same prompts in the
    same order (`preference_batch`); only answers are targets. The total is that mean times the number of targets, so
    that a training step minimises the mean. Not a sum over rows: they are compared in pairs.

    reference: the model before training; it is frozen. beta: in 1/nats, the smaller, the farther the model may move
    from the reference. likelihood: weight of the maximum-likelihood term (0: plain DPO).
    terms: "preference" and "nats" as they enter the total; "agree": the share of pairs with the better answer ahead.
    """

    compares_rows: ClassVar[bool] = True

    def __init__(self, reference: nn.Module, beta: float = 0.1, likelihood: float = 0.1) -> None:
        if beta <= 0 or likelihood < 0:
            raise SegueError(f"beta must be above 0, not {beta}, and likelihood not below it, not {likelihood}")
        self.reference = reference.eval().requires_grad_(False)
        self.beta, self.likelihood = beta, likelihood

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        if len(batch.tokens) % 2:
            raise SegueError(f"{len(batch.tokens)} rows are no pairs: give better answers and then as many worse ones")
        now = answer_likelihoods(model, batch)
        with torch.no_grad():
            then = answer_likelihoods(self.reference.to(batch.tokens.device), batch)
        better, worse = (now - then).chunk(2)
        preference = preference_loss(better, worse, self.beta).mean() * batch.count
        lengths = (batch.targets >= 0).sum(-1).chunk(2)[0].clamp(min=1)
        nats = (-now.chunk(2)[0] / lengths).mean() * batch.count
        agree = (better > worse).float().mean() * batch.count
        return Loss(preference + self.likelihood * nats, {"preference": preference.detach(), "nats": nats.detach(),
                                                          "agree": agree.detach()}, batch.count)
