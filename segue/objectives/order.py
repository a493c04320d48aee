"""Learning sets: train on each document's elements in the order that the model finds easiest (Vinyals et al. 2015,
arXiv 1511.06391).

An element must keep its meaning in any order: a position in the input, or a word tagged with its position. Orders are
drawn from q(order) = prod p(next | elements so far) / Z, Z being the total probability of the remaining elements. This
is not the posterior p(order | set), unless the model gives all probability to remaining elements (every Z is 1).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from segue.errors import SegueError, check_choice
from segue.objectives.base import Batch, Loss, content_rng
from segue.objectives.next_element import NextElement

MODES = ("fixed", "uniform", "max", "sample")
MAX_ORDERS = 720  # at most this many orders are tried exhaustively (6!)


class Sets:
    """The documents of a batch as sets: the predicted elements of each, without the end token, which stays last.

    row, first, size: (D,) long, each set's row, first position and number of elements. elements: (D, n) long, padded
    with -1.
    """

    def __init__(self, batch: Batch, eos: int | None = None) -> None:
        self.batch, found = batch, []
        for row, span in batch.documents():
            targets = batch.targets[row, span].tolist()
            first = next(place for place, target in enumerate(targets) if target >= 0)
            if min(targets[first:]) < 0:
                raise SegueError("a document asks for elements with others between them: a set is asked for in one run")
            elements = targets[first:-1] if targets[-1] == eos else targets[first:]
            found.append((row, span.start + first, len(elements), len(targets) - first - len(elements), elements))
        device, n = batch.targets.device, max((len(each[-1]) for each in found), default=0)
        table = [[*elements, *[-1] * (n - len(elements))] for *_, elements in found]
        self.row, self.first, self.size, self.ended = torch.tensor([each[:4] for each in found], device=device,
                                                                   dtype=torch.long).reshape(-1, 4).T
        self.elements = torch.tensor(table, device=device, dtype=torch.long).reshape(len(found), n)

    @property
    def real(self) -> Tensor:
        """(D, n) bool: True for elements, False for padding."""
        return torch.arange(self.elements.shape[1], device=self.size.device) < self.size[:, None]

    def arrange(self, order: Tensor) -> Batch:
        """The batch with each set rearranged. order: (D, n) long, indices into the given order."""
        tokens, targets = self.batch.tokens.clone(), self.batch.targets.clone()
        written = tokens if tokens.dim() == 2 else tokens[..., 0]  # see `Batch.pointing`
        placed = self.elements.gather(1, order)
        place = torch.arange(order.shape[1], device=order.device).expand(order.shape)
        row, at = self.row[:, None].expand(order.shape), self.first[:, None] + place
        real, read = self.real, place + 1 < (self.size + self.ended)[:, None]
        targets[row[real], at[real]] = placed[real]
        written[row[read], at[read] + 1] = placed[read].to(tokens.dtype)
        return replace(self.batch, tokens=tokens, targets=targets)

    def score_orders(self, model: nn.Module, order: Tensor) -> Tensor:
        """(D,) log-probability of each set's elements in this order, including the end token."""
        batch = self.arrange(order)
        with torch.no_grad():
            logits = model(batch.tokens, batch.layout).logits
            chances = logits.gather(2, batch.targets.clamp(min=0)[..., None])[..., 0] - logits.logsumexp(-1)
        places = torch.arange(batch.targets.shape[1], device=chances.device)
        own = (places >= self.first[:, None]) & (places < (self.first + self.size + self.ended)[:, None])
        return torch.where(own, chances[self.row], 0.0).sum(1)

    def sample_order(self, model: nn.Module, noise: Tensor) -> Tensor:
        """Sample an order of each set, element by element, from the model's probabilities of the remaining elements.
        noise: (D, n) float64 uniform numbers in [0, 1). Needs one forward pass over the row prefixes for each element.
        """
        count, n = self.elements.shape
        index = torch.arange(n, device=noise.device)
        order, left = index.repeat(count, 1), self.real
        same = (self.elements[:, :, None] == self.elements[:, None]) & (index[:, None] > index)  # (D, later, earlier)
        for step in range(n):
            live = step < self.size
            end = int((self.first + step)[live].max()) + 1
            batch = self.arrange(order).map(lambda x, end=end: x[:, :end])
            with torch.no_grad():
                logits = model(batch.tokens, batch.layout).logits
            scores = logits[self.row, (self.first + step).clamp(max=end - 1)].double()
            scores = scores.gather(1, self.elements.clamp(min=0))
            once = left & ~(same & left[:, None]).any(2)  # the first remaining of equal elements stands for all of them
            weights = scores.masked_fill(~once, -torch.inf).softmax(-1).nan_to_num().cumsum(1)
            chosen = (weights <= (noise[:, step] * weights[:, -1])[:, None]).sum(1).clamp(max=n - 1)
            order[:, step] = torch.where(live, chosen, step)
            left = left & (index != chosen[:, None])
        return order


class OrderSearch:
    """Maximum likelihood of each document's elements in an order chosen by `mode`.

    mode: "fixed", the given order; "uniform", a uniformly random order each time; "max", the likeliest order, found by
        trying all; "sample", an order sampled from the model (see `Sets.sample_order`). Start with some "uniform"
        steps, otherwise "sample" and "max" settle on whatever order the untrained model prefers.
    orders: the allowed orders as indices into the given order ([0, 1, 2], [2, 1, 0]); default: all. Of given orders
        "fixed" takes the first, and "sample" draws one in proportion to its likelihood.
    eos: the end token, which stays last.
    """

    def __init__(self, mode: str = "sample", orders: Sequence[Sequence[int]] | None = None, eos: int | None = None,
                 ) -> None:
        check_choice("mode", mode, MODES)
        if orders is not None and not (orders and all(sorted(one) == list(range(len(one))) for one in orders)):
            raise SegueError(f"orders {orders} are not orders of places, such as [[0, 1, 2], [2, 1, 0]]")
        self.mode, self.orders, self.eos = mode, orders, eos

    def _candidates(self, sets: Sets) -> list[Tensor]:
        """Candidate orders, a list of (D, n), one order of each set in each; sets with fewer orders repeat theirs."""
        n, device = sets.elements.shape[1], sets.size.device
        sizes = sets.size.tolist()
        if self.orders is None:
            if math.factorial(max(sizes, default=0)) > MAX_ORDERS:
                raise SegueError(f"a set of {max(sizes)} elements has too many orders to try: say which, or choose "
                                 "mode 'sample'")
            allowed = {size: list(itertools.permutations(range(size))) for size in set(sizes)}
        elif any(len(one) != size for one in self.orders for size in sizes):
            raise SegueError(f"orders of {sorted({len(one) for one in self.orders})} places for sets of "
                             f"{sorted(set(sizes))} elements: they must be equal")
        else:
            allowed = {size: [tuple(one) for one in self.orders] for size in set(sizes)}
        padded = {size: torch.tensor([[*one, *range(size, n)] for one in those], device=device)
                  for size, those in allowed.items()}
        return [torch.stack([padded[size][number % len(padded[size])] for size in sizes])
                for number in range(max(map(len, allowed.values()), default=0))]

    def order(self, model: nn.Module, sets: Sets) -> Tensor:
        """(D, n) long: the order to train on for each set, as indices into the given order."""
        n = sets.elements.shape[1]
        noise = torch.zeros(sets.elements.shape, dtype=torch.float64)
        for row, elements, size in zip(noise, sets.elements.tolist(), sets.size.tolist()):
            row[:size] = torch.from_numpy(content_rng(*elements[:size]).random(size))
        noise = noise.to(sets.size.device)
        given = torch.arange(n, device=noise.device).expand(noise.shape)
        if self.mode == "fixed":
            return given if self.orders is None else self._candidates(sets)[0]
        if self.orders is None and self.mode == "uniform":
            return torch.where(sets.real, noise, 2.0 + given).argsort(1)
        if self.orders is None and self.mode == "sample":
            return sets.sample_order(model, noise)
        every = torch.stack(self._candidates(sets), 1)  # (D, K, n)
        if self.mode == "uniform":
            which = (noise[:, 0] * every.shape[1]).long()
        else:
            totals = torch.stack([sets.score_orders(model, order) for order in every.unbind(1)], 1)
            weights = totals.double().softmax(1).cumsum(1)
            which = totals.argmax(1) if self.mode == "max" else \
                (weights <= noise[:, :1] * weights[:, -1:]).sum(1).clamp(max=every.shape[1] - 1)
        return every[torch.arange(len(every), device=which.device), which]

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        sets = Sets(batch, self.eos)
        return NextElement()(model, sets.arrange(self.order(model, sets)))
