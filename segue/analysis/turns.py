"""How many turns one element of a sequence lies before another, from the cosine of two vectors of a bi-encoder, one as
BEFORE and one as AFTER (curved contrastive learning: Erker et al. 2022, arXiv 2211.07591). This says what comes next,
what leads to a goal, and in which order goals are met.

Time has a direction here: the cosine of x before y is not that of y before x.
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
    """A model that makes a vector of a row of ids, told by marks in front whether the row is BEFORE or AFTER.

    model: a `Stack` with pool "mean", or anything that `segue.analysis.embedding.embed` reads. pool: see there.
    mark: the first of the ids of the marks, behind the model's other ids: AFTER, BEFORE, and where `speakers`, what an
        even distance (the same speaker) and an odd one (another) put in front of BEFORE. None: no marks, so that time
        has no direction.
    longest: so many ids of a row are read.
    """

    def __init__(self, model: Any, mark: int | None, speakers: bool = True, longest: int = 64, pool: str = "last"
                 ) -> None:
        self.model, self.mark, self.speakers, self.longest, self.pool = model, mark, speakers, longest, pool

    @staticmethod
    def marks(speakers: bool = True) -> int:
        """How many ids the marks need."""
        return 4 if speakers else 2

    def after_row(self, ids: Sequence[int]) -> list[int]:
        return [*([] if self.mark is None else [self.mark]), *ids[: self.longest]]

    def before_row(self, ids: Sequence[int], odd: bool) -> list[int]:
        if self.mark is None:
            return self.after_row(ids)
        said = [self.mark + 2 + odd] if self.speakers else []
        return [*said, self.mark + 1, *ids[: self.longest]]

    def after(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """(N, D), of length 1."""
        return self._vectors([self.after_row(row) for row in rows])

    def before(self, rows: Sequence[Sequence[int]], odd: bool) -> Tensor:
        """(N, D), of length 1; odd: whether what comes is an odd number of turns away."""
        return self._vectors([self.before_row(row, odd) for row in rows])

    def _vectors(self, rows: list[list[int]]) -> Tensor:
        return F.normalize(torch.from_numpy(embed(self.model, [np.array(row) for row in rows], self.pool)), dim=-1)


class LateInteraction:
    """Scores of candidates for the next turn: the sum over the history of the cosines of its turns before each. A turn
    costs one encoding and one product, and the past none: whether a turn is an odd number of turns away changes with
    every new one, so both sums are kept.

    candidates: (C, D) their vectors as AFTER.
    """

    def __init__(self, candidates: Tensor) -> None:
        self.candidates, self.places = candidates, torch.arange(len(candidates))
        self.now, self.other = candidates.new_zeros(2, len(candidates))

    def add(self, odd: Tensor, even: Tensor) -> Tensor:
        """A turn is said; its vectors (D,) as BEFORE at an odd and at an even distance. Returns `scores`."""
        one, two = self.candidates @ odd, self.candidates @ even
        self.now, self.other = self.other + one, self.now + two
        return self.now

    @property
    def scores(self) -> Tensor:
        """(C,) of those that are left."""
        return self.now

    def cut(self, share: float) -> Tensor:
        """Go on with the best share only, before the last turn is there; returns their places, (C',)."""
        if not 0 < share <= 1:
            raise SegueError(f"a share of {share} of the candidates cannot go on: give one above 0, up to 1")
        best = self.now.topk(max(1, round(share * len(self.now)))).indices.sort().values
        self.candidates, self.places = self.candidates[best], self.places[best]
        self.now, self.other = self.now[best], self.other[best]
        return self.places


def chain_scores(cosines: Tensor, curving: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Imaginary embedding chains: all (G!, G) orders of G goals and their scores (G!,), the sum of the cosines of each
    goal before the next.

    cosines: (G, G), of goal i before goal j. curving: (G,), how near each is to the history (`greedy_curving`); with it
    the first goal should be near, and goals count against the order the more the later they come, (k - 1) / (G - 1).
    """
    goals = len(cosines)
    orders = torch.tensor(list(permutations(range(goals))))
    scores = cosines[orders[:, :-1], orders[:, 1:]].sum(1)
    if curving is not None:
        late = torch.arange(goals).to(cosines) / max(1, goals - 1)
        scores = scores + curving[orders[:, 0]] - (late * curving[orders]).sum(1)
    return orders, scores


def greedy_curving(history: Tensor, goals: Tensor) -> Tensor:
    """(G,) how near goals are to a history: the sum over its turns, (H, D) as BEFORE, of the cosines with each goal,
    (G, D) as AFTER. The goal to go for first is the highest."""
    return (history @ goals.mT).sum(0)


def towards(replies: Sequence[Sequence[int]], goal: Sequence[int], encoder: TurnEncoder, distance: int = 1) -> Tensor:
    """(N,) indices of replies, whoever wrote them, those first that lead to a goal so many turns behind them."""
    near = encoder.before(replies, bool(distance % 2)) @ encoder.after([goal])[0]
    return near.argsort(descending=True, stable=True)
