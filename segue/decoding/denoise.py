"""Answers written all at once: a model that was trained for it (see `segue.objectives.Sundae`) starts from noise and
rewrites the whole answer a few times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from segue.decoding.loop import evaluating
from segue.errors import SegueError
from segue.mixers.state import Layout
from segue.models.base import pad_rows
from segue.models.stack import Stack


@dataclass
class Rewritten:
    """tokens of an answer; score: the mean natural log-probability that the model gives each of them at the end."""

    tokens: list[int]
    score: float


@torch.inference_mode()
def denoise(model: Stack, prompts: Sequence[Sequence[int]], lengths: Sequence[Sequence[int]], steps: int = 10,
            temperature: float = 0.0, seed: int = 0, elements: int | None = None) -> list[Rewritten]:
    """The best answer to each prompt of any of the lengths that may be tried for it.

    model: one that reads both ways. lengths: for each prompt at least one. steps: passes over all answers. temperature:
    0 takes the likeliest element everywhere; above, elements are drawn, but for the last pass. elements: see `Sundae`.
    """
    if len(lengths) != len(prompts) or not all(map(len, lengths)) or min(map(min, lengths), default=1) < 1 or steps < 1:
        raise SegueError(f"{len(prompts)} prompts, {len(lengths)} lists of lengths and {steps} steps: give for each "
                         "prompt at least one length to try, of at least one element, and take at least one step")
    tries = [(number, length) for number, each in enumerate(lengths) for length in each]
    ends = [len(prompts[number]) + length for number, length in tries]
    where = model.embedding.weight.device
    tokens = pad_rows([[*prompts[number], *[0] * length] for number, length in tries]).to(where)
    index = torch.arange(tokens.shape[1], device=where)
    first, end = (torch.tensor(x, device=where)[:, None] for x in ([len(prompts[number]) for number, _ in tries], ends))
    asked, starts = (index >= first) & (index < end), index == end  # the padding is a document of its own
    generator = torch.Generator().manual_seed(seed)
    count = int(asked.sum())
    said = torch.randint(elements or model.vocabulary, (count,), generator=generator).to(where)
    layout = Layout.chain((len(tries), len(index)), starts=starts, device=where)

    def logits(said: Tensor) -> Tensor:
        return model(tokens.masked_scatter(asked, said), layout).logits[asked][:, :elements].float()

    with evaluating(model):
        for step in range(steps):
            found = logits(said)
            if temperature and step < steps - 1:
                chances = (found / temperature).softmax(-1).cpu()
                said = torch.multinomial(chances, 1, generator=generator)[:, 0].to(where)
            else:
                said = found.argmax(-1)
        chances = logits(said).log_softmax(-1).gather(1, said[:, None])[:, 0]
    best: list[Rewritten | None] = [None] * len(prompts)
    pieces = [length for _, length in tries]
    for (number, _), text, each in zip(tries, said.split(pieces), chances.split(pieces)):
        answer, before = Rewritten(text.tolist(), float(each.mean())), best[number]
        if before is None or answer.score > before.score:
            best[number] = answer
    return [answer for answer in best if answer is not None]
