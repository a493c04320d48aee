"""Which columns of a table hold DNA, RNA or protein sequences, or one base each."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise, zip_longest
from typing import Any

import numpy as np

from segue.kinds.codecs import NUCLEOTIDES, RESIDUES
from segue.kinds.frame import LONG_WORD, ROWS, Look

COLUMNS = {"sequence", "seq", "dna", "protein", "peptide", "cdr3", "sequences", "dna_sequence", "protein_sequence",
           "aa_sequence"}
CAPITALISED = re.compile(r"[A-Z][a-z]{2,}")
SITES = {"site", "recognition_site", "recognition_sequence", "recognition sequence", "recognition site"}
CUTS = re.compile(r"\^|\(-?\d+/-?\d+\)")
BASE_WORD = re.compile(r"[ACGTUN]{6,}|[acgtun]{6,}")  # shorter than a `LONG_WORD`, and yet no other word
LEAST = 20  # columns of one letter each at least that are a sequence
SHORT = 5  # residues at least of a peptide
TWENTY = RESIDUES[:20]


def sequence_column(table: Look) -> str | None:
    """The column of a table with sequences: one with a usual name, or one of long words of letters, or of shorter words
    of bases; None if there is none."""
    for usual_names in (COLUMNS, SITES) if table.headed else ():
        named = (name for name in table.names if name.lower() in usual_names)
        if name_found := next((name for name in named if not _are_names(table.column(name))), None):
            return name_found
    for name in table.names[:ROWS]:
        cells = table.column(name)
        letters = [join_kmers(cell) if isinstance(cell, str) else "" for cell in cells]
        if len(cells) > 1 and (all(map(LONG_WORD.fullmatch, letters)) or are_peptides(letters) or
                               (len(set(letters)) > 3 and all(map(BASE_WORD.fullmatch, letters)))):
            return name
    return None


def _are_names(cells: Sequence[Any]) -> bool:
    """Whether most cells are capitalised names (Grand Rapids), in a column called site, say."""
    return 2 * sum(isinstance(cell, str) and CAPITALISED.match(cell) is not None for cell in cells) > len(cells)


def are_peptides(cells: Sequence[str]) -> bool:
    """Whether these are peptides and not words: many different ones, of the twenty residues only."""
    residues = set("".join(cells))
    return len(cells) >= LEAST and residues <= set(TWENTY) and len(residues) > 14 and \
        2 * len(set(cells)) > len(cells) and min(map(len, cells)) >= SHORT


def base_columns(table: Look) -> list[str]:
    """Adjacent columns of a table, `LEAST` or more, that hold one base each; [] if there are none."""
    if len(table.rows) < 2 or len(table.names) < LEAST:
        return []
    columns = islice(zip_longest(*table.rows), len(table.names))
    held = ["".join(cell if isinstance(cell, str) and len(cell) == 1 else "?" for cell in cells if cell).upper()
            for cells in columns]
    single = [bool(letters) and set(letters) <= set(NUCLEOTIDES) for letters in held]
    for start, end in _runs(single):
        letters = "".join(held[start:end]).encode()
        if end - start >= LEAST and 20 * len(letters.translate(None, b"ACGTUN-")) <= len(letters):
            return table.names[start:end]
    return []


def _runs(marked: list[bool]) -> Iterator[tuple[int, int]]:
    """The (begin, end) of each run of True."""
    edges = np.flatnonzero(np.diff([False, *marked, False]))
    return zip(edges[::2].tolist(), edges[1::2].tolist())


def join_kmers(cell: str) -> str:
    """The letters of a cell: overlapping k-mers, each shifted by one letter, are joined into one sequence; the marks of
    where a restriction site is cut, as in G^AATTC or GGATG(9/13), are removed."""
    cell = CUTS.sub("", cell)
    words = cell.split()
    if len(words) > 1 and len(words[0]) > 1 and all(a[1:] == b[:-1] for a, b in pairwise(words)):
        return words[0] + "".join(word[-1] for word in words[1:])
    return cell.strip()
