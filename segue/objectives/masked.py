"""Predict hidden elements in place: masks, what is shown of them after a glance, and the loss at the rest.

Which elements are hidden (a `MaskPolicy`), what stands in their place (`mask_some`, as of masked language models, and
`mask_block`), glancing (`glance`, Qian et al. 2021, arXiv 2008.07905) and the loss are apart: batches are masked as
they are drawn, a pure function of the step; all chance is in the batch, none in the objective.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.errors import SegueError
from segue.models.base import mask_tokens, pad_rows, padding_starts
from segue.objectives.base import Batch, Loss, drawn, generator_of

REVEAL = "reveal"  # the channel that `glance` reads


def in_place(batch: Batch) -> Batch:
    """A batch that asks for each element one place before it (B, T), one document a row -> (B, T + 1), asked for where
    it stands; what lies behind its last target is a document of its own (see `segue.models.base.padding_starts`)."""
    targets = F.pad(batch.targets, (1, 0), value=-1)
    asked = targets >= 0
    starts = padding_starts(torch.where(asked, torch.arange(1, asked.shape[1] + 1, device=asked.device), 0).amax(1),
                     asked.shape[1])
    return Batch(torch.where(asked, targets, F.pad(batch.tokens, (0, 1))), targets, starts)


def isin(elements: Tensor, ids: Sequence[int]) -> Tensor:
    """Which elements are among these ids."""
    return torch.isin(elements, torch.tensor(list(ids), dtype=elements.dtype, device=elements.device))


class MaskPolicy(Protocol):
    """Chooses what is hidden: of the elements (B, T) bool that may be, at least one in each row that has any.

    elements: (B, T) long, what they are, for policies that go by that (`LetterMask`).
    """

    def __call__(self, asked: Tensor, generator: torch.Generator | None = None,
                 elements: Tensor | None = None) -> Tensor: ...


def shuffled(asked: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """(B, T): the place of each asked element in a random order of those of its row, from 0; others stand behind."""
    chance = torch.rand(asked.shape, generator=generator, dtype=torch.float64).to(asked.device)
    return chance.masked_fill(~asked, 2.0).argsort(1).argsort(1)


@dataclass(frozen=True)
class RandomMask:
    """So large a `share` of a row's elements, rounded, at least one and at most `most`, anywhere (BERT: Devlin et al.
    2019; BERT4Rec: Sun et al. 2019, arXiv 1904.06690)."""

    share: float = 0.15
    most: int | None = None

    def __call__(self, asked: Tensor, generator: torch.Generator | None = None,
                 elements: Tensor | None = None) -> Tensor:
        count = (self.share * asked.sum(1).double()).round().clamp(1, self.most)
        return asked & (shuffled(asked, generator) < count[:, None])


@dataclass(frozen=True)
class LastMask:
    """A row's last element alone: what a model that goes on by a mask behind the end is asked for."""

    def __call__(self, asked: Tensor, generator: torch.Generator | None = None,
                 elements: Tensor | None = None) -> Tensor:
        return asked & (asked.flip(1).cumsum(1).flip(1) == 1)


@dataclass(frozen=True)
class TailMask:
    """All from some element on: of n the first n - 1 - floor(n u) are kept, u uniform in [0, 1)."""

    def __call__(self, asked: Tensor, generator: torch.Generator | None = None,
                 elements: Tensor | None = None) -> Tensor:
        count = asked.sum(1)
        chance = torch.rand(len(count), generator=generator, dtype=torch.float64).to(count.device)
        return asked & (asked.cumsum(1) >= (count - (count * chance).long())[:, None])


@dataclass(frozen=True)
class LetterMask:
    """All elements but those of a `known` set of ids, which stay: no chance is in it. So a blank also says what is not
    there (peptides of which only some residues can be read, arXiv 2408.00892). A row of known ones alone hides
    nothing."""

    known: tuple[int, ...]

    def __call__(self, asked: Tensor, generator: torch.Generator | None = None,
                 elements: Tensor | None = None) -> Tensor:
        if elements is None:
            raise SegueError("a mask by letters needs the elements: give them as the third argument")
        return asked & ~isin(elements, self.known)


@dataclass(frozen=True)
class EitherMask:
    """Each row by one of several policies, drawn with these chances (which sum to 1)."""

    policies: tuple[MaskPolicy, ...]
    chances: tuple[float, ...]

    def __call__(self, asked: Tensor, generator: torch.Generator | None = None,
                 elements: Tensor | None = None) -> Tensor:
        drawn = torch.multinomial(torch.tensor(self.chances), len(asked), replacement=True, generator=generator)
        found = torch.stack([policy(asked, generator, elements) for policy in self.policies])
        return found[drawn.to(asked.device), torch.arange(len(asked), device=asked.device)]


WORD = "word"  # the channel that numbers the words of which elements are pieces


def whole_words(policy: MaskPolicy, asked: Tensor, words: Tensor, generator: torch.Generator | None = None,
                elements: Tensor | None = None) -> Tensor:
    """What a policy hides of words (B, T), numbers that stay the same along a word, with all pieces of each: it chooses
    among their first pieces."""
    before = F.pad(asked & True, (1, 0))[:, :-1] & (F.pad(words, (1, 0))[:, :-1] == words)
    first = asked & ~before
    hidden = policy(first, generator, elements)
    latest = torch.where(first, torch.arange(words.shape[1], device=words.device), 0).cummax(1).values
    return asked & hidden.gather(1, latest)


def mask_some(batch: Batch, mask: int, policy: MaskPolicy = RandomMask(), generator: torch.Generator | None = None,
              unmasked: float = 0.2) -> Batch:
    """Hide some of the elements that `targets` names in place, (B, T), and ask for those (BERT: Devlin et al. 2019).

    Where the batch has a channel "word" (B, T), whole words are hidden (`whole_words`). Of elements (B, T, 1 + tables)
    the id is masked, and nothing else.

    mask: the id of a mask, behind all others. policy: which are hidden. unmasked: so large a share of them, each by
    chance, has no mask in its place, but one half a random element, and one half itself (0: always a mask, BERT4Rec).
    """
    asked = batch.targets >= 0
    words = batch.channels.get(WORD)
    hidden = policy(asked, generator, batch.targets) if words is None else \
        whole_words(policy, asked, words, generator, batch.targets)
    beside = batch.tokens.dim() == 3
    ids = batch.tokens[..., 0] if beside else batch.tokens
    how = torch.rand(asked.shape, generator=generator, dtype=torch.float64).to(asked.device)
    random = torch.randint(mask, asked.shape, generator=generator).to(asked.device)
    tokens = torch.where(how >= unmasked, mask, torch.where(how >= unmasked / 2, random, ids))
    tokens = torch.where(hidden, tokens, ids)
    return replace(batch, tokens=torch.cat([tokens[..., None], batch.tokens[..., 1:]], -1) if beside else tokens,
                   targets=batch.targets.masked_fill(~hidden, -1))


def masked_some(batches: Callable[[int], Batch], mask: int, policy: MaskPolicy = RandomMask(), seed: int = 0,
                unmasked: float = 0.2) -> Callable[[int], Batch]:
    """Batches as for the next element -> batches for a masked language model (`mask_some`), masked anew each time."""
    def draw(step: int) -> Batch:
        generator = generator_of(seed + 1, step)  # not that of the rows
        return mask_some(in_place(batches(step)), mask, policy, generator, unmasked)

    return draw


def mask_block(batch: Batch, length: int, mask: int, generator: torch.Generator | None = None) -> Batch:
    """Of each row's answer a first part, of random length, is kept, and behind it stand `length` masks.

    batch: tokens (B, T), one document a row; targets name the answer in place, (B, T), -1 elsewhere (an unbroken run,
    at least one element; its end token belongs to it). mask: the id of a mask. What is kept: see `TailMask`. The masks
    may go beyond the answer's end; nothing is asked for there, and nothing of the row stands behind them. Rows are
    padded to one length (see `segue.models.base.padding_starts`).
    """
    begin = TailMask()(batch.targets >= 0, generator).long().argmax(1)
    end = begin + length
    n = int(end.max())

    def fit(x: Tensor, fill: int) -> Tensor:
        return F.pad(x, (0, max(0, n - x.shape[1])), value=fill)[:, :n]

    places = torch.arange(n, device=begin.device)
    hidden = places >= begin[:, None]
    tokens = fit(batch.tokens, mask).masked_fill(hidden, mask)
    targets = fit(batch.targets, -1).masked_fill(~hidden | (places >= end[:, None]), -1)
    return Batch(tokens, targets, padding_starts(end, n))


def reveal_order(batch: Batch, ratio: float, generator: torch.Generator | None = None) -> Batch:
    """Draw the order in which `glance` shows what is hidden: of a row of which the model gets c elements wrong, the
    first floor(ratio * c).

    The channel "reveal" (B, T) float64 holds for each hidden element how many must be wrong for it to be shown.
    """
    hidden = batch.targets >= 0
    rank = 1.0 + shuffled(hidden, generator).double()
    needed = rank / ratio if ratio > 0 else torch.full_like(rank, torch.inf)
    return replace(batch, channels={**batch.channels, REVEAL: needed})


def masked_blocks(batches: Callable[[int], Batch], length: int, mask: int, steps: int, seed: int = 0,
                  ratios: tuple[float, float] = (0.5, 0.3)) -> Callable[[int], Batch]:
    """Batches of whole answers, as for the next element (`Batch.pairs`) -> batches of masked blocks (`mask_block`) and
    what to show of them (`reveal_order`), the ratio going from the first of `ratios` to the second in `steps` steps."""
    def draw(step: int) -> Batch:
        generator = generator_of(seed + 1, step)
        ratio = ratios[0] + (ratios[1] - ratios[0]) * min(1.0, step / max(1, steps - 1))
        return reveal_order(mask_block(in_place(batches(step)), length, mask, generator), ratio, generator)

    return draw


def logits_at(model: nn.Module, batch: Batch, asked: Tensor) -> Tensor:
    """(count, V) float32 or float64 scores of the elements where `asked` (B, T) is True."""
    head = getattr(model, "head", None)
    if isinstance(head, nn.Linear):
        logits = head(model.hidden(batch.tokens, batch.layout)[asked])  # type: ignore[operator]
    else:
        logits = model(batch.tokens, batch.layout).logits[asked]
    return logits if logits.dtype == torch.float64 else logits.float()


@torch.no_grad()
def glance(model: nn.Module, batch: Batch) -> Batch:
    """The batch with some of what is hidden shown, the more the worse the model guesses it; see `reveal_order`.

    Chance (dropout) is left as it was found: what the model draws next is what it drew here.
    """
    hidden = batch.targets >= 0
    device = batch.tokens.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        guess = logits_at(model, batch, hidden).argmax(-1)
    wrong = torch.zeros_like(batch.targets)
    wrong[hidden] = (guess != batch.targets[hidden]).long()
    shown = hidden & (batch.channels[REVEAL] <= wrong.sum(1, keepdim=True))
    return replace(batch, tokens=torch.where(shown, batch.targets, batch.tokens),
                   targets=batch.targets.masked_fill(shown, -1))


class MaskedElements:
    """Cross-entropy of the elements that `targets` names, in place, after a glance if the batch has an order for it.

    smoothing: so much of each label is spread evenly over all elements (Szegedy et al. 2016). impossible: ids that
    nothing hidden can be, as the known ones of a `LetterMask`: left out of the softmax.
    """

    in_place: ClassVar[bool] = True  # targets are asked for where they stand

    def __init__(self, smoothing: float = 0.0, impossible: Sequence[int] = ()) -> None:
        if smoothing and impossible:
            raise SegueError("a label cannot be smoothed over ids that are impossible: leave one of the two out")
        self.smoothing, self.impossible = smoothing, list(impossible)

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        if REVEAL in batch.channels:
            batch = glance(model, batch)
        asked = batch.targets >= 0
        logs = mask_tokens(logits_at(model, batch, asked), self.impossible).log_softmax(-1)
        nats = -logs.gather(1, batch.targets[asked][:, None]).sum()
        total = (1 - self.smoothing) * nats - self.smoothing * logs.mean(-1).sum() if self.smoothing else nats
        return Loss(total, {"nats": nats.detach()}, batch.count)


class Cloze:
    """Cross-entropy of masked elements of each document, for a model that goes on by a mask behind the end
    (`segue.models.cloze`; BERT4Rec: Sun et al. 2019, arXiv 1904.06690). Batches are those of the next element.

    policy: what is masked in a document. ahead: the chance that instead it ends behind some element, and that one alone
    is masked, as when it is to be continued. All chance belongs to the document and the step.
    """

    def __init__(self, policy: MaskPolicy = RandomMask(0.2, 40), ahead: float = 0.5) -> None:
        self.policy, self.ahead, self.loss = policy, ahead, MaskedElements()

    def masked(self, batch: Batch, mask: int) -> Batch:
        """A row for each document, masked, and what is asked for there."""
        rows, wanted = list[list[int]](), list[list[int]]()
        for row, span in batch.documents():
            whole = in_place(Batch(batch.tokens[row, span].cpu()[None], batch.targets[row, span].cpu()[None]))
            asked, draw = whole.targets >= 0, drawn(*whole.tokens[0].tolist())
            generator = torch.Generator().manual_seed(int(draw.integers(1 << 62)))
            if draw.random() < self.ahead:
                end = int(draw.choice(asked[0].nonzero()[:, 0].numpy())) + 1
                hidden = LastMask()(asked[:, :end])
            else:
                end, hidden = asked.shape[1], self.policy(asked, generator, whole.targets)
            rows.append(whole.tokens[:, :end].masked_fill(hidden, mask)[0].tolist())
            wanted.append(whole.targets[:, :end].masked_fill(~hidden, -1)[0].tolist())
        tokens, lengths = pad_rows(rows), torch.tensor([len(ids) for ids in rows])
        return Batch(tokens, pad_rows(wanted, -1), padding_starts(lengths, tokens.shape[1])).to(batch.tokens.device)

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        mask = getattr(model, "mask", None)
        if not isinstance(mask, int):
            raise SegueError(f"a {type(model).__name__} has no mask: the cloze is for a ClozeModel")
        masked = self.masked(batch, mask)
        loss = self.loss(model, masked)
        return Loss(loss.total, {"nats": loss.terms["nats"] * (batch.count / max(1, masked.count))}, batch.count)
