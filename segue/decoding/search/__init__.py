"""Searches over several hypotheses, and the table of their names for recipes."""

from __future__ import annotations

from segue.decoding.search.base import Hypothesis, Options, Search, SearchResult, search
from segue.decoding.search.beam import Beam
from segue.decoding.search.conditional import ConditionalBeam
from segue.decoding.search.contrastive import Contrastive
from segue.decoding.search.diverse import DiverseBeam
from segue.decoding.search.exact import Exact
from segue.decoding.search.foresight import Foresight, foresee
from segue.decoding.search.tree import Tree

SEARCHES: dict[str, type[Options]] = {"beam": Beam, "diverse-beam": DiverseBeam, "conditional-beam": ConditionalBeam,
                                      "contrastive": Contrastive, "exact": Exact, "tree": Tree}

__all__ = [
                                      "SEARCHES",
                                      "Beam",
                                      "ConditionalBeam",
                                      "Contrastive",
                                      "DiverseBeam",
                                      "Exact",
                                      "Foresight",
                                      "Hypothesis",
                                      "Options",
                                      "Search",
                                      "SearchResult",
                                      "Tree",
                                      "foresee",
                                      "search",
]
