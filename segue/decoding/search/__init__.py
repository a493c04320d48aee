"""Searches: keep several hypotheses and say which to extend. Names for recipes."""

from __future__ import annotations

from segue.decoding.search.base import Hypothesis, Search, search
from segue.decoding.search.beam import Beam

SEARCHES: dict[str, type[Beam]] = {"beam": Beam}

__all__ = ["SEARCHES", "Beam", "Hypothesis", "Search", "search"]
