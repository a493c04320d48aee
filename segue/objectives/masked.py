"""Masked-element losses: masking policies, glancing, and the cross-entropy of hidden elements in place.

The parts are separate: which elements are hidden (`MaskPolicy`), what replaces them (`mask_some`, as in masked language
models, and `mask_block`), glancing (`glance`, Qian et al. 2021, arXiv 2008.07905) and the loss. Batches are masked when
they are drawn, as a pure function of the step: the objective itself is deterministic.
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
from segue.objectives.base import Batch, Loss, content_rng, generator_of

REVEAL = "reveal"  # the channel with the order in which `glance` reveals hidden elements


def targets_in_place(batch: Batch) -> Batch:
    """Convert a next-element batch (B, T), one document a row, to one (B, T + 1) whose targets are aligned with the
    elements themselves. Padding after the last target becomes a separate document (see
    `segue.models.base.padding_starts`)."""
    targets = F.pad(batch.targets, (1, 0), value=-1)
    asked = targets >= 0
    starts = padding_starts(torch.where(asked, torch.arange(1, asked.shape[1] + 1, device=asked.device), 0).amax(1),
                            asked.shape[1])
    return Batch(torch.where(asked, targets, F.pad(batch.tokens, (0, 1))), targets, starts)


def isin(elements: Tensor, ids: Sequence[int]) -> Tensor:
    """Bool, of the shape of `elements`: which of them are among these ids."""
    return torch.isin(elements, torch.tensor(list(ids), dtype=elements.dtype, device=elements.device))


class MaskPolicy(Protocol):
    """Chooses the elements to hide, (B, T) bool, among the candidates `asked` (B, T) bool: at least one in each row
    that has candidates.

    elements: (B, T) long, their ids, for policies that depend on them (`LetterMask`).
    """

    def __call__(self, asked: Tensor, generator: torch.Generator | None = None,
                 elements: Tensor | None = None) -> Tensor: ...


def random_ranks(asked: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """(B, T): the rank, from 0, of each element of `asked` in a random order of its row; the others come last."""
    chance = torch.rand(asked.shape, generator=generator, dtype=torch.float64).to(asked.device)
    return chance.masked_fill(~asked, 2.0).argsort(1).argsort(1)


@dataclass(frozen=True)
class RandomMask:
    """A random `share` of a row's elements, rounded, at least one and at most `most` (BERT: Devlin et al. 2019;
    BERT4Rec: Sun et al. 2019, arXiv 1904.06690)."""

    share: float = 0.15
    most: int | None = None

    def __call__(self, asked: Tensor, generator: torch.Generator | None = None,
                 elements: Tensor | None = None) -> Tensor:
        count = (self.share * asked.sum(1).double()).round().clamp(1, self.most)
        return asked & (random_ranks(asked, generator) < count[:, None])


@dataclass(frozen=True)
class LastMask:
    """Only a row's last element, as when a masked model continues a sequence with a mask at its end."""

    def __call__(self, asked: Tensor, generator: torch.Generator | None = None,
                 elements: Tensor | None = None) -> Tensor:
        return asked & (asked.flip(1).cumsum(1).flip(1) == 1)


@dataclass(frozen=True)
class TailMask:
    """A random suffix: of n elements the first n - 1 - floor(n u) stay visible, u uniform in [0, 1)."""

    def __call__(self, asked: Tensor, generator: torch.Generator | None = None,
                 elements: Tensor | None = None) -> Tensor:
        count = asked.sum(1)
        chance = torch.rand(len(count), generator=generator, dtype=torch.float64).to(count.device)
        return asked & (asked.cumsum(1) >= (count - (count * chance).long())[:, None])


@dataclass(frozen=True)
class LetterMask:
    """All elements except those of a `known` set of ids; deterministic. A mask then also tells the model what the
    element is not (peptides of which only some residues can be read, arXiv 2408.00892). A row of known elements alone
    hides nothing."""

    known: tuple[int, ...]

    def __call__(self, asked: Tensor, generator: torch.Generator | None = None,
                 elements: Tensor | None = None) -> Tensor:
        if elements is None:
            raise SegueError("a mask by letters needs the elements: give them as the third argument")
        return asked & ~isin(elements, self.known)


@dataclass(frozen=True)
class EitherMask:
    """One of several policies for each row, drawn with these probabilities (which sum to 1)."""

    policies: tuple[MaskPolicy, ...]
    chances: tuple[float, ...]

    def __call__(self, asked: Tensor, generator: torch.Generator | None = None,
                 elements: Tensor | None = None) -> Tensor:
        choice = torch.multinomial(torch.tensor(self.chances), len(asked), replacement=True, generator=generator)
        hidden = torch.stack([policy(asked, generator, elements) for policy in self.policies])
        return hidden[choice.to(asked.device), torch.arange(len(asked), device=asked.device)]


WORD = "word"  # the channel with the number of the word that each element is a piece of


def whole_words(policy: MaskPolicy, asked: Tensor, words: Tensor, generator: torch.Generator | None = None,
                elements: Tensor | None = None) -> Tensor:
    """Apply a policy to whole words: it chooses among the first pieces of words, and all pieces of a chosen word are
    hidden. words: (B, T), the number of each element's word."""
    before = F.pad(asked & True, (1, 0))[:, :-1] & (F.pad(words, (1, 0))[:, :-1] == words)
    first = asked & ~before
    hidden = policy(first, generator, elements)
    latest = torch.where(first, torch.arange(words.shape[1], device=words.device), 0).cummax(1).values
    return asked & hidden.gather(1, latest)


def mask_some(batch: Batch, mask: int, policy: MaskPolicy = RandomMask(), generator: torch.Generator | None = None,
              unmasked: float = 0.2) -> Batch:
    """Hide some of the target elements (in place, (B, T)); only those stay targets (BERT: Devlin et al. 2019).

    If the batch has a channel "word" (B, T), whole words are hidden (`whole_words`). For tokens (B, T, 1 + tables) only
    the id is masked.

    mask: id of the mask, greater than all others. policy: which elements are hidden. unmasked: this share of the hidden
    ones is not replaced by the mask: half of them by a random element, half stay themselves (0: always the mask, as in
    BERT4Rec).
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


def masked_batches(batches: Callable[[int], Batch], mask: int, policy: MaskPolicy = RandomMask(), seed: int = 0,
                   unmasked: float = 0.2) -> Callable[[int], Batch]:
    """Turn next-element batches into batches for a masked language model (`mask_some`), with a new mask each step."""
    def draw(step: int) -> Batch:
        generator = generator_of(seed + 1, step)  # independent of the draws that chose the rows
        return mask_some(targets_in_place(batches(step)), mask, policy, generator, unmasked)

    return draw


def mask_block(batch: Batch, length: int, mask: int, generator: torch.Generator | None = None) -> Batch:
    """Keep a prefix of each row's answer, of random length (`TailMask`), followed by `length` masks.

    batch: tokens (B, T), one document a row; targets (B, T) hold the answer in place, -1 elsewhere (one contiguous run
    of at least one element, including its end token). mask: id of the mask. The masks may extend beyond the answer's
    end, where there are no targets; the rest of the row is dropped. Rows are padded to one length (see
    `segue.models.base.padding_starts`).
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
    """Draw the order in which `glance` reveals hidden elements: if the model gets c elements of a row wrong, the first
    floor(ratio * c) are revealed.

    The channel "reveal" (B, T) float64 holds, for each hidden element, how many must be wrong for it to be revealed.
    """
    hidden = batch.targets >= 0
    rank = 1.0 + random_ranks(hidden, generator).double()
    needed = rank / ratio if ratio > 0 else torch.full_like(rank, torch.inf)
    return replace(batch, channels={**batch.channels, REVEAL: needed})


def masked_blocks(batches: Callable[[int], Batch], length: int, mask: int, steps: int, seed: int = 0,
                  ratios: tuple[float, float] = (0.5, 0.3)) -> Callable[[int], Batch]:
    """Turn next-element batches of whole answers (`Batch.pairs`) into batches of masked blocks (`mask_block`) with a
    `reveal_order`, whose ratio goes linearly from the first of `ratios` to the second over `steps` steps."""
    def draw(step: int) -> Batch:
        generator = generator_of(seed + 1, step)
        ratio = ratios[0] + (ratios[1] - ratios[0]) * min(1.0, step / max(1, steps - 1))
        return reveal_order(mask_block(targets_in_place(batches(step)), length, mask, generator), ratio, generator)

    return draw


def logits_at(model: nn.Module, batch: Batch, asked: Tensor) -> Tensor:
    """(count, V) float32 or float64 logits at the positions where `asked` (B, T) is True."""
    head = getattr(model, "head", None)
    if isinstance(head, nn.Linear):
        logits = head(model.hidden(batch.tokens, batch.layout)[asked])  # type: ignore[operator]
    else:
        logits = model(batch.tokens, batch.layout).logits[asked]
    return logits if logits.dtype == torch.float64 else logits.float()


@torch.no_grad()
def glance(model: nn.Module, batch: Batch) -> Batch:
    """Reveal some of the hidden elements, the more the worse the model predicts them; see `reveal_order`.

    The random state is restored afterwards, so the next forward pass uses the same dropout masks as this one.
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
    """Cross-entropy of the targets at their own positions, after `glance` if the batch has a reveal order.

    smoothing: label smoothing, the share spread evenly over all elements (Szegedy et al. 2016). impossible: ids that no
    hidden element can have, such as the known ids of a `LetterMask`; they are left out of the softmax.
    """

    in_place: ClassVar[bool] = True  # targets are aligned with the elements, not with those before them

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
    """Cross-entropy of masked elements of each document, for a model that continues a sequence with a mask at its end
    (`segue.models.cloze`; BERT4Rec: Sun et al. 2019, arXiv 1904.06690). Takes next-element batches.

    policy: which elements of a document are masked. ahead: the probability that instead the document is cut at a random
    element and only its last element is masked, as in continuation. The draws depend on the document and the step.
    """

    def __init__(self, policy: MaskPolicy = RandomMask(0.2, 40), ahead: float = 0.5) -> None:
        self.policy, self.ahead, self.loss = policy, ahead, MaskedElements()

    def mask_documents(self, batch: Batch, mask: int) -> Batch:
        """A batch with one row for each document, masked, and the hidden elements as targets."""
        rows, wanted = list[list[int]](), list[list[int]]()
        for row, span in batch.documents():
            whole = targets_in_place(Batch(batch.tokens[row, span].cpu()[None], batch.targets[row, span].cpu()[None]))
            asked, draw = whole.targets >= 0, content_rng(*whole.tokens[0].tolist())
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
        masked = self.mask_documents(batch, mask)
        loss = self.loss(model, masked)
        return Loss(loss.total, {"nats": loss.terms["nats"] * (batch.count / max(1, masked.count))}, batch.count)
