"""The distance in turns between elements of a dialogue, from the cosine of two vectors of a bi-encoder, one encoded as
BEFORE and one as AFTER (curved contrastive learning: Erker et al. 2022, arXiv 2211.07591). It ranks next turns, replies
that lead to a goal, and orders of goals.

The cosine is directed: that of x before y is not that of y before x.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segue.analysis.embedding import embed
from segue.errors import SegueError


class TurnEncoder:
    """Encodes rows of ids as vectors, with special tokens in front that mark a row as BEFORE or AFTER.

    model: a `Stack` with pool "mean", or anything that `segue.analysis.embedding.embed` reads. pool: see there.
    mark: the first of the special tokens' ids, behind the model's other ids: AFTER, BEFORE, and with `speakers` also
        the prefix of BEFORE for an even distance (the same speaker) and for an odd one (another). None: no special
        tokens, so that the cosine has no direction.
    longest: ids of a row that are read at most.
    """

    def __init__(self, model: Any, mark: int | None, speakers: bool = True, longest: int = 64, pool: str = "last"
                 ) -> None:
        self.model, self.mark, self.speakers, self.longest, self.pool = model, mark, speakers, longest, pool

    @staticmethod
    def marks(speakers: bool = True) -> int:
        """How many special tokens there are."""
        return 4 if speakers else 2

    def after_row(self, ids: Sequence[int]) -> list[int]:
        return [*([] if self.mark is None else [self.mark]), *ids[: self.longest]]

    def before_row(self, ids: Sequence[int], odd: bool) -> list[int]:
        if self.mark is None:
            return self.after_row(ids)
        parity = [self.mark + 2 + odd] if self.speakers else []
        return [*parity, self.mark + 1, *ids[: self.longest]]

    def after(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """(N, D) unit vectors of rows as AFTER."""
        return self._vectors([self.after_row(row) for row in rows])

    def before(self, rows: Sequence[Sequence[int]], odd: bool) -> Tensor:
        """(N, D) unit vectors of rows as BEFORE. odd: whether the later turn is an odd number of turns away."""
        return self._vectors([self.before_row(row, odd) for row in rows])

    def _vectors(self, rows: list[list[int]]) -> Tensor:
        return F.normalize(torch.from_numpy(embed(self.model, [np.array(row) for row in rows], self.pool)), dim=-1)


class LateInteraction:
    """Scores of candidates for the next turn: the sum over the history of the cosines of its turns before each
    candidate. A new turn costs one encoding and one product; earlier turns cost nothing. As the parity of each
    distance changes with every new turn, the sums for both parities are kept.

    candidates: (C, D) their vectors as AFTER.
    """

    def __init__(self, candidates: Tensor) -> None:
        self.candidates, self.places = candidates, torch.arange(len(candidates))  # places: in the full list
        self.current, self.flipped = candidates.new_zeros(2, len(candidates))  # sums, and with every parity changed

    def add(self, odd: Tensor, even: Tensor) -> Tensor:
        """Append a turn to the history: its vectors (D,) as BEFORE at odd and at even distances. Returns `scores`."""
        self.current, self.flipped = self.flipped + self.candidates @ odd, self.current + self.candidates @ even
        return self.current

    @property
    def scores(self) -> Tensor:
        """(C,) of the candidates that remain."""
        return self.current

    def cut(self, share: float) -> Tensor:
        """Keep only the best share of the candidates; returns their places in the full list, (C',)."""
        if not 0 < share <= 1:
            raise SegueError(f"a share of {share} of the candidates cannot go on: give one above 0, up to 1")
        best = self.current.topk(max(1, round(share * len(self.current)))).indices.sort().values
        self.candidates, self.places = self.candidates[best], self.places[best]
        self.current, self.flipped = self.current[best], self.flipped[best]
        return self.places


def chain_scores(cosines: Tensor, curving: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Imaginary embedding chains: all orders (G!, G) of G goals and their scores (G!,), the sum of the cosines of each
    goal before the next.

    cosines: (G, G), of goal i before goal j. curving: (G,), similarity of each goal to the history (`greedy_curving`):
    that of the first goal is added, and that of the k-th is subtracted with weight (k - 1) / (G - 1).
    """
    goals = len(cosines)
    orders = torch.tensor(list(permutations(range(goals))))
    scores = cosines[orders[:, :-1], orders[:, 1:]].sum(1)
    if curving is not None:
        lateness = torch.arange(goals).to(cosines) / max(1, goals - 1)
        scores = scores + curving[orders[:, 0]] - (lateness * curving[orders]).sum(1)
    return orders, scores


def greedy_curving(history: Tensor, goals: Tensor) -> Tensor:
    """(G,) similarity of goals to a history: the sum over its turns, (H, D) as BEFORE, of the cosines with each goal,
    (G, D) as AFTER. The highest goal is the one to approach first."""
    return (history @ goals.mT).sum(0)


def towards(replies: Sequence[Sequence[int]], goal: Sequence[int], encoder: TurnEncoder, distance: int = 1) -> Tensor:
    """(N,) indices of replies, ranked by how well they lead to a goal `distance` turns after them."""
    cosines = encoder.before(replies, bool(distance % 2)) @ encoder.after([goal])[0]
    return cosines.argsort(descending=True, stable=True)
