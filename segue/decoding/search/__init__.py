"""Searches: keep several hypotheses and say which to extend. Names for recipes."""

from __future__ import annotations

from segue.decoding.search.base import Hypothesis, Search, search
from segue.decoding.search.beam import Beam
from segue.decoding.search.diverse import DiverseBeam

SEARCHES: dict[str, type[Beam]] = {"beam": Beam, "diverse-beam": DiverseBeam}

__all__ = ["SEARCHES", "Beam", "DiverseBeam", "Hypothesis", "Search", "search"]
