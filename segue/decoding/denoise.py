"""Non-autoregressive decoding by iterated denoising (SUNDAE; see `segue.objectives.Sundae`): start from random tokens
and rewrite the whole answer a few times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from segue.decoding.loop import eval_mode
from segue.errors import SegueError
from segue.mixers.layout import Layout
from segue.models.base import pad_rows
from segue.models.stack import Stack


@dataclass
class DenoisedAnswer:
    """An answer's tokens; score: their mean natural log-probability under the model after the last step."""

    tokens: list[int]
    score: float


@torch.inference_mode()
def denoise(model: Stack, prompts: Sequence[Sequence[int]], lengths: Sequence[Sequence[int]], steps: int = 10,
            temperature: float = 0.0, seed: int = 0, elements: int | None = None) -> list[DenoisedAnswer]:
    """The best-scoring answer to each prompt over the candidate lengths given for it.

    model: a bidirectional stack. lengths: candidates for each prompt, at least one. steps: passes over all answers.
    temperature: 0 takes the likeliest element everywhere; above 0, all steps but the last sample. elements: see
    `Sundae`.
    """
    if len(lengths) != len(prompts) or not all(map(len, lengths)) or min(map(min, lengths), default=1) < 1 or steps < 1:
        raise SegueError(f"{len(prompts)} prompts, {len(lengths)} lists of lengths and {steps} steps: give for each "
                         "prompt at least one length to try, of at least one element, and take at least one step")
    candidates = [(number, length) for number, options in enumerate(lengths) for length in options]
    device = model.embedding.weight.device
    tokens = pad_rows([[*prompts[number], *[0] * length] for number, length in candidates]).to(device)
    index = torch.arange(tokens.shape[1], device=device)
    begin = torch.tensor([len(prompts[number]) for number, _ in candidates], device=device)[:, None]
    end = begin + torch.tensor([length for _, length in candidates], device=device)[:, None]
    in_answer, starts = (index >= begin) & (index < end), index == end  # the padding is a document of its own
    generator = torch.Generator().manual_seed(seed)
    count = int(in_answer.sum())
    current = torch.randint(elements or model.vocabulary, (count,), generator=generator).to(device)
    layout = Layout.chain((len(candidates), len(index)), starts=starts, device=device)

    def predict(answers: Tensor) -> Tensor:
        return model(tokens.masked_scatter(in_answer, answers), layout).logits[in_answer][:, :elements].float()

    with eval_mode(model):
        for step in range(steps):
            logits = predict(current)
            if temperature and step < steps - 1:
                probabilities = (logits / temperature).softmax(-1).cpu()
                current = torch.multinomial(probabilities, 1, generator=generator)[:, 0].to(device)
            else:
                current = logits.argmax(-1)
        logprobs = predict(current).log_softmax(-1).gather(1, current[:, None])[:, 0]
    best_answers: list[DenoisedAnswer | None] = [None] * len(prompts)
    sizes = [length for _, length in candidates]
    for (number, _), answer_tokens, answer_logprobs in zip(candidates, current.split(sizes), logprobs.split(sizes)):
        answer, incumbent = DenoisedAnswer(answer_tokens.tolist(), float(answer_logprobs.mean())), best_answers[number]
        if incumbent is None or answer.score > incumbent.score:
            best_answers[number] = answer
    return [answer for answer in best_answers if answer is not None]
