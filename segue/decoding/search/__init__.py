"""Searches: keep several hypotheses and say which to extend. Names for recipes."""

from __future__ import annotations

from segue.decoding.search.base import Found, Hypothesis, Options, Search, search
from segue.decoding.search.beam import Beam
from segue.decoding.search.diverse import DiverseBeam
from segue.decoding.search.exact import Exact

SEARCHES: dict[str, type[Options]] = {"beam": Beam, "diverse-beam": DiverseBeam, "exact": Exact}

__all__ = ["SEARCHES", "Beam", "DiverseBeam", "Exact", "Found", "Hypothesis", "Options", "Search", "search"]
