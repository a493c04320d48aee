"""A small classifier that predicts, from a model's hidden state, an attribute of the complete text: q(A | prefix, next
token), trained on prefixes labelled by the texts that they became (Yoshida et al. 2023, arXiv 2311.08817)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.decoding.search.base import Hypothesis
from segue.errors import SegueError
from segue.mixers.positions import sinusoids
from segue.models.base import Decodable, init_prompt_state, pad_rows

POSITION_FEATURES = 16
BATCH_TEXTS = 16  # read at once


class Foresight(nn.Module):
    """q(A | prefix, next token) = sigmoid(w . gelu(W h + e[token]) + b), where h is the hidden state at the prefix' end
    with sinusoids of the answer's length so far appended (models of relative positions hardly encode it), each
    component standardised.

    dim: of h. vocabulary: of the model. width: of the hidden layer.
    report: after `foresee`, `loss` and `base`, in nats: its log loss on held-out texts, and that of a constant guess.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, dim: int, vocabulary: int, width: int = 64) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("deviation", torch.ones(dim))
        self.read, self.next, self.out = nn.Linear(dim, width), nn.Embedding(vocabulary, width), nn.Linear(width, 1)
        nn.init.normal_(self.next.weight, std=0.1)
        self.report: dict[str, float] = {}

    def forward(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """h (M, H) as `hidden` and next tokens (M, K) -> logits (M, K) of A."""
        projected = self.read((hidden - self.mean) / self.deviation)
        return self.out(F.gelu(projected[:, None] + self.next(tokens)))[..., 0]

    def attribute(self, living: Sequence[Hypothesis], tokens: np.ndarray) -> np.ndarray:
        """The `attribute` of a conditional beam search (see `search.conditional`)."""
        hidden = torch.stack([hypothesis.hidden[-1] for hypothesis in living if hypothesis.hidden is not None])
        hidden = _with_positions(hidden.to(self.mean), torch.tensor([len(hypothesis.tokens) for hypothesis in living]))
        with torch.inference_mode():
            logits = self(hidden, torch.from_numpy(tokens).to(hidden.device))
        return F.logsigmoid(logits.double()).cpu().numpy()


def foresee(model: Decodable, texts: Sequence[Sequence[int]], labels: Sequence[bool],
            prompts: int | Sequence[int] = 1, width: int = 64, steps: int = 400, rate: float = 3e-3,
            batch: int = 256, seed: int = 0) -> Foresight:
    """Train a `Foresight` to predict a label of complete texts.

    texts: token ids, with prompts and, where there is one, the stop token; samples of the model, or data. labels:
        whether each has the attribute. prompts: length of the prompt, at least 1; one for all or one for each. steps,
        rate, batch: of AdamW, over pairs of a prefix and its next token.
    A tenth of the texts calibrates it (scale and shift of its logits), another tenth tests it (`report`).
    """
    prompt_lengths = [prompts] * len(texts) if isinstance(prompts, int) else list(prompts)
    if not len(labels) == len(prompt_lengths) == len(texts) >= 10 or len(set(map(bool, labels))) < 2:
        raise SegueError(f"to foresee an attribute takes at least 10 texts, some with it and some without, each with a "
                         f"label and a prompt: these are {len(texts)} texts, {len(labels)} labels of "
                         f"{len(set(map(bool, labels)))} sorts, {len(prompt_lengths)} prompts")
    if any(not 1 <= begin < len(text) for begin, text in zip(prompt_lengths, texts)):
        raise SegueError("each text needs a prompt of at least one token, and at least one token behind it")
    hidden, tokens, owner = _prefixes(model, texts, prompt_lengths)
    target = torch.tensor([float(label) for label in labels], device=hidden.device)[owner]
    fold = torch.from_numpy(np.random.default_rng(seed).permutation(len(texts)) % 10).to(hidden.device)[owner]
    is_training, is_calibration, is_test = fold > 1, fold == 0, fold == 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        foresight = Foresight(hidden.shape[1], model.vocabulary, width).to(hidden.device)
        foresight.mean = hidden[is_training].mean(0)
        foresight.deviation = hidden[is_training].std(0, correction=0).clamp(min=1e-6)
        optimiser = torch.optim.AdamW(foresight.parameters(), rate, weight_decay=0.01)
        training_rows = is_training.nonzero()[:, 0].cpu()
        for _ in range(steps):
            batch_rows = training_rows[torch.randint(len(training_rows), (batch,))].to(hidden.device)
            loss = F.binary_cross_entropy_with_logits(foresight(hidden[batch_rows], tokens[batch_rows])[:, 0],
                                                      target[batch_rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    with torch.no_grad():
        logits = foresight(hidden, tokens)[:, 0]
        scale, shift = _platt_scaling(logits[is_calibration], target[is_calibration])
        foresight.out.weight *= scale
        foresight.out.bias.mul_(scale).add_(shift)
        base_rate = target[~is_test].mean().expand(int(is_test.sum()))
        foresight.report = {
            "loss": float(F.binary_cross_entropy_with_logits(scale * logits[is_test] + shift, target[is_test])),
            "base": float(F.binary_cross_entropy(base_rate, target[is_test]))}
    return foresight.eval().requires_grad_(False)


def _prefixes(model: Decodable, texts: Sequence[Sequence[int]],
              prompt_lengths: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """For every prefix of every text, from the prompt on: h (M, H), the next token (M, 1), the text's index (M,)."""
    hidden, tokens, owner = [], [], []
    for offset in range(0, len(texts), BATCH_TEXTS):
        group = range(offset, min(offset + BATCH_TEXTS, len(texts)))
        table = pad_rows([texts[number] for number in group])
        with torch.inference_mode():
            state = init_prompt_state(model, [texts[number][: prompt_lengths[number]] for number in group])
            table = table.to(state.positions.device)
            last = torch.tensor([[len(texts[number]) - 1] for number in group], device=table.device)
            states = model.extend(table, state, None, last).hidden  # `last` only: the logits are not needed
        for row, number in enumerate(group):
            start, end = prompt_lengths[number], len(texts[number])
            hidden.append(_with_positions(states[row, start - 1 : end - 1].float(), torch.arange(end - start)))
            tokens.append(table[row, start:end, None])
            owner.append(torch.full((end - start,), number, device=table.device))
    return torch.cat(hidden).clone(), torch.cat(tokens), torch.cat(owner)


def _with_positions(hidden: Tensor, lengths: Tensor) -> Tensor:
    """(M, D) hidden states and (M,) lengths of the answer so far -> (M, D + POSITION_FEATURES)."""
    return torch.cat([hidden, sinusoids(lengths[None], POSITION_FEATURES, hidden.dtype)[0].to(hidden.device)], 1)


def _platt_scaling(logits: Tensor, target: Tensor) -> tuple[float, float]:
    """The maximum-likelihood scale and shift of logits (Platt 1999), by Newton's method, regularised towards (1, 0)."""
    features = torch.stack([logits, torch.ones_like(logits)], 1).double()
    start = torch.tensor([1.0, 0.0], dtype=torch.float64, device=logits.device)
    weights = start.clone()
    for _ in range(20):
        q = torch.sigmoid(features @ weights)
        gradient = features.T @ (q - target) + weights - start
        hessian = features.T @ (features * (q * (1 - q))[:, None]) + torch.eye(2).to(features)
        weights = weights - torch.linalg.solve(hessian, gradient)
    scale, shift = weights.tolist()
    return max(scale, 0.0), shift
