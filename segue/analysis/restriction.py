"""Restriction sites: where enzymes bind and cut DNA, on both strands, and what windows of it they could cut out.

Positions count from 0. A cut at p lies before base p of the strand that is given. Methylation is not considered.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segue.errors import SegueError, require
from segue.kinds.nucleotides import MASKS, masks, reverse_complement
from segue.kinds.packed import opened

COLUMNS = ("name", "site", "fst5", "fst3", "scd5", "scd3", "suppliers")


@dataclass(frozen=True)
class Enzyme:
    """site: what it binds to, in IUPAC codes. cuts: of each cut, how many bases behind the site's beginning the strand
    of the site is cut, and the other one; none where that is unknown. sold: whether anyone sells it."""

    name: str
    site: str
    cuts: tuple[tuple[int, int], ...] = ()
    sold: bool = True

    @property
    def palindromic(self) -> bool:
        return self.site == reverse_complement(self.site)

    @property
    def information(self) -> float:
        """Bits by which the site differs from any sequence: 2 - log2 of the bases allowed, over its places."""
        return float(sum(2 - np.log2(int(mask).bit_count()) for mask in masks(self.site)))


def _made(name: str, sites: str, ends: Sequence[int | None], sold: bool) -> list[Enzyme]:
    """One for each of the sites, which | stands between. ends: of up to two cuts, the bases from the site's beginning,
    and on the other strand from its end."""
    pairs = [(five, three) for five, three in zip(ends[::2], ends[1::2]) if five is not None and three is not None]
    return [Enzyme(name, site, tuple((five, len(site) + three) for five, three in pairs), sold)
            for site in sites.upper().split("|")]


def read_enzymes(path: str | Path) -> list[Enzyme]:
    """Enzymes of a table with a header (tab-separated: name, site, fst5, fst3 and, if need be, scd5, scd3, suppliers,
    as Biopython names them), or of REBASE's own emboss_e file (name, site, its length, number of cuts, blunt, c1 to
    c4). An enzyme with several sites comes once for each."""
    path = Path(path)
    with opened(path) as handle:
        lines = handle.read().decode("utf-8", "replace").splitlines()
    lines = [line for line in lines if line.strip() and line[0] != "#"]
    head = lines[0].split("\t") if lines else []
    table = {"name", "site", "fst5", "fst3"} <= set(head)
    found = []
    for number, line in enumerate(lines[1:] if table else lines, 1 + table):
        cells = line.split("\t")
        try:
            if table:
                row = dict(zip(head, cells, strict=True))
                sides = [int(row[name]) if row.get(name) else None for name in COLUMNS[2:6]]
                found += _made(row["name"], row["site"], sides, bool(row.get("suppliers", "?")))
            else:
                name, site, length, count = cells[0], cells[1].upper(), int(cells[2]), int(cells[3])
                if length != len(site):
                    raise ValueError(f"'{site}' is not of length {length}")
                ends = [end + (end < 0) for end in map(int, cells[5 : 5 + count])]  # there is no 0, -1 comes before 1
                found.append(Enzyme(name, site, tuple(zip(ends[::2], ends[1::2]))))
            if not masks(found[-1].site).all() or not found[-1].site:
                raise ValueError(f"'{found[-1].site}' is no site in IUPAC codes")
        except (ValueError, KeyError, IndexError) as error:
            raise SegueError(f"{path}, line {number}: not an enzyme with its site and cuts ({error}); give a table of "
                             f"{', '.join(COLUMNS)}, or REBASE's emboss_e file") from error
    if not found:
        raise SegueError(f"{path}: there are no enzymes in this file")
    return found


def known_enzymes() -> list[Enzyme]:
    """All enzymes that Biopython knows (extra `biology`)."""
    table = require("Bio.Restriction.Restriction_Dictionary", "biology").rest_dict
    return [each for name, row in table.items()
            for each in _made(name, row["site"], [row[end] for end in COLUMNS[2:6]], bool(row["suppl"]))]


def panel(enzymes: Iterable[Enzyme], length: int = 6, plain: bool = False) -> list[Enzyme]:
    """Sold enzymes of palindromic sites of this length that cut once, one of those that bind and cut alike
    (isoschizomers, whose features would be the same). plain: sites without ambiguous codes alone."""
    merged: dict[tuple[str, tuple[tuple[int, int], ...]], Enzyme] = {}
    for each in sorted(enzymes, key=lambda enzyme: enzyme.name):
        if each.sold and each.palindromic and len(each.site) == length and len(each.cuts) == 1 and \
                not (plain and set(each.site) - set("ACGT")):
            merged.setdefault((each.site, each.cuts), each)
    return list(merged.values())


class SiteScanner:
    """Finds the sites of many enzymes at once, by masks of four bits: a site matches where every base of the sequence
    is among those allowed. A base that is not known (N) matches only where any is allowed."""

    def __init__(self, enzymes: Sequence[Enzyme]) -> None:
        self.enzymes = list(enzymes)

    def sites(self, sequence: str | np.ndarray, circular: bool = False) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each enzyme where its sites begin, sorted: those on the strand given, and those on the other one (none of
        palindromic sites, which are on both). circular: sites may reach over the end to the beginning."""
        bases = masks(sequence)
        if circular and len(bases):
            bases = np.resize(bases, len(bases) + max(len(each.site) for each in self.enzymes) - 1)
        fits = {mask: (bases & np.uint8(15 - mask) == 0) & (bases > 0) for mask in {*MASKS.values()}}
        found: dict[str, np.ndarray] = {}
        length = len(sequence)

        def where(site: str) -> np.ndarray:
            if site not in found:
                places = sorted(enumerate(masks(site).tolist()), key=lambda each: each[1].bit_count())  # fewest first
                count = max(0, len(bases) - len(site) + 1)
                (first, mask), *others = places
                at = np.flatnonzero(fits[mask][first : first + count])
                for place, mask in others:
                    at = at[fits[mask][at + place]]
                found[site] = at[at < length]
            return found[site]

        empty = np.zeros(0, np.int64)
        return [(where(each.site), empty if each.palindromic else where(reverse_complement(each.site)))
                for each in self.enzymes]

    def cuts(self, sequence: str | np.ndarray, circular: bool = False) -> list[np.ndarray]:
        """For each enzyme where the strand given is cut, sorted; in a linear sequence only where both strands are cut
        within it."""
        found, length = [], len(sequence)
        for each, (ahead, back) in zip(self.enzymes, self.sites(sequence, circular)):
            n, places = len(each.site), [np.zeros(0, np.int64)]
            for top, bottom in each.cuts:
                for given, other in ((ahead + top, ahead + bottom), (back + n - bottom, back + n - top)):
                    inside = (given > 0) & (given < length) & (other > 0) & (other < length)
                    places.append(given % max(1, length) if circular else given[inside])
            found.append(np.unique(np.concatenate(places)))
        return found


@dataclass(frozen=True)
class Cut:
    """enzyme: its number. top, bottom: where the strands are cut. overhang: the bases between, as they stand on the
    strand given; its 5' ends hang over where top comes before bottom."""

    enzyme: int
    top: int
    bottom: int
    overhang: str

    def joins(self, other: Cut) -> bool:
        """Whether what the two cuts lay open anneals, so that what lies between can be cut out and the rest be
        joined, or another piece that was cut out likewise be put there."""
        return self.top != self.bottom and self.overhang == other.overhang and \
            (self.top < self.bottom) == (other.top < other.bottom)


def excisable(cuts: Sequence[Cut], apart: float) -> bool:
    """Whether two different enzymes that cut once each could cut out a piece of at least `apart` bases and leave ends
    that can be joined. cuts: all there are."""
    count: dict[int, int] = {}
    for cut in cuts:
        count[cut.enzyme] = count.get(cut.enzyme, 0) + 1
    once = [cut for cut in cuts if count[cut.enzyme] == 1]
    return any(abs(a.top - b.top) >= apart and a.joins(b) for i, a in enumerate(once) for b in once[:i])


class Windows:
    """Windows of one length in a long sequence, and the sites that lie wholly in each.

    begins: (W,) where they begin. scanner: of palindromic sites that are cut once and inside (see `panel`).
    """

    def __init__(self, sequence: str, begins: np.ndarray, length: int, scanner: SiteScanner) -> None:
        if not all(each.palindromic and len(each.cuts) == 1 and min(each.cuts[0]) >= 0 and
                   max(each.cuts[0]) <= len(each.site) for each in scanner.enzymes):
            raise SegueError("windows are for enzymes that cut once, inside of a palindromic site: see panel")
        self.sequence, self.begins, self.length, self.scanner = sequence, np.asarray(begins), length, scanner
        self.places = [ahead for ahead, _ in scanner.sites(sequence)]
        ends = self.begins + length
        ranges = [(np.searchsorted(at, self.begins), np.searchsorted(at, ends - len(each.site), "right"))
                  for each, at in zip(scanner.enzymes, self.places)]
        self.first, self.last = (np.stack(side, 1) for side in zip(*ranges))  # (W, E) into the places of each

    @property
    def counts(self) -> np.ndarray:
        """(W, E) sites of each enzyme in each window."""
        return self.last - self.first

    def cuts(self, window: int) -> list[Cut]:
        """All cuts in a window, by place in the whole sequence."""
        found = []
        for enzyme in np.flatnonzero(self.first[window] < self.last[window]).tolist():
            top, bottom = self.scanner.enzymes[enzyme].cuts[0]
            for at in self.places[enzyme][self.first[window, enzyme] : self.last[window, enzyme]].tolist():
                hung = self.sequence[at + min(top, bottom) : at + max(top, bottom)]
                found.append(Cut(enzyme, at + top, at + bottom, hung))
        return found

    def excisable(self) -> np.ndarray:
        """(W,) bool, see `excisable`, of pieces of at least a third of a window."""
        able = np.zeros(len(self.begins), bool)
        for window in np.flatnonzero((self.counts == 1).sum(1) > 1).tolist():
            able[window] = excisable(self.cuts(window), self.length / 3)
        return able

    def texts(self) -> list[str]:
        return [self.sequence[at : at + self.length] for at in self.begins.tolist()]

    def features(self) -> dict[str, np.ndarray]:
        """(W, n) by group. counts: of each enzyme. places: where its first and its last site begins, as a part of the
        window (-1: nowhere). totals: sites, enzymes that cut, and that cut once, and the sites' information in bits.
        """
        counts = self.counts
        places = np.full((2, *counts.shape), -1.0)
        for enzyme, at in enumerate(self.places):
            some = np.flatnonzero(counts[:, enzyme])
            for side, index in enumerate((self.first[some, enzyme], self.last[some, enzyme] - 1)):
                places[side, some, enzyme] = (at[index] - self.begins[some]) / self.length
        bits = np.array([each.information for each in self.scanner.enzymes])
        totals = np.stack([counts.sum(1), (counts > 0).sum(1), (counts == 1).sum(1), counts @ bits], 1)
        return {"counts": counts.astype(float), "places": np.concatenate([*places], 1), "totals": totals}


def kmer_counts(texts: Sequence[str], k: int, letters: str = "ACGT") -> np.ndarray:
    """(N, len(letters) ** k) how often each word stands in each text, at any place; words with other letters count
    nothing. Columns in the order of the letters, first letter first."""
    size, table = len(letters), np.full(256, -1, np.int64)
    table[np.frombuffer(letters.encode(), np.uint8)] = np.arange(size)
    counts = np.zeros((len(texts), size**k), np.int64)
    for row, text in enumerate(texts):
        ids = table[np.frombuffer(text.encode("ascii", "replace"), np.uint8)]
        if len(ids) >= k:
            words = np.lib.stride_tricks.sliding_window_view(ids, k)
            words = words[(words >= 0).all(1)]
            counts[row] = np.bincount(words @ size ** np.arange(k - 1, -1, -1), minlength=size**k)
    return counts


def composition(texts: Sequence[str]) -> np.ndarray:
    """(N, 5): the parts of A, C, G and T, and of C and G together."""
    parts = kmer_counts(texts, 1) / np.array([[max(1, len(text))] for text in texts])
    return np.column_stack([parts, parts[:, 1] + parts[:, 2]])


def site_filters(sites: Sequence[str], letters: str = "ACGT") -> np.ndarray:
    """(F, width, len(letters)) bool: what each site allows at each place, all False behind its end."""
    allowed = np.zeros((len(sites), max(map(len, sites)), len(letters)), bool)
    bits = masks(letters)
    for row, site in enumerate(sites):
        allowed[row, : len(site)] = masks(site)[:, None] & bits > 0
    return allowed



def regions(begins: np.ndarray, length: int, block: int, shares: Sequence[float], seed: int = 0,
            ) -> tuple[np.ndarray, np.ndarray]:
    """Which part each window falls to, (W,) from 0 on, and which block it lies in: the sequence is cut in blocks and
    whole blocks are dealt out by chance, so that no window of one part overlaps one of another. Windows over an edge
    fall to none (-1). shares: of each part, 1 in all."""
    begins = np.asarray(begins)
    of, count = begins // block, int(begins.max()) // block + 1
    edges = np.round(np.cumsum(shares) * count).astype(int)
    part = np.searchsorted(edges, np.random.default_rng(seed).permutation(count), "right")
    return np.where((begins + length - 1) // block == of, part[of], -1), of
