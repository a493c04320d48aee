"""Restriction sites: where enzymes bind and cut DNA, on both strands, and which windows they could excise.

Positions count from 0. A cut at p lies before base p of the given strand. Methylation is not considered.
"""

from __future__ import annotations

from collections import Counter
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
    """site: the recognition site, in IUPAC codes. cuts: for each cut, its offsets in bases from the site's beginning on
    the site's strand and on the other one; empty if unknown. sold: whether it is commercially available."""

    name: str
    site: str
    cuts: tuple[tuple[int, int], ...] = ()
    sold: bool = True

    @property
    def palindromic(self) -> bool:
        return self.site == reverse_complement(self.site)

    @property
    def information(self) -> float:
        """The information content of the site in bits: the sum over its positions of 2 - log2(number of allowed bases).
        """
        return float(sum(2 - np.log2(int(mask).bit_count()) for mask in masks(self.site)))


def _from_row(name: str, sites: str, offsets: Sequence[int | None], sold: bool) -> list[Enzyme]:
    """One enzyme for each of the sites, which are separated by |. offsets: of up to two cuts, from the site's beginning
    on its strand, and from its end on the other."""
    pairs = [(five, three) for five, three in zip(offsets[::2], offsets[1::2])
             if five is not None and three is not None]
    return [Enzyme(name, site, tuple((five, len(site) + three) for five, three in pairs), sold)
            for site in sites.upper().split("|")]


def read_enzymes(path: str | Path) -> list[Enzyme]:
    """Enzymes of a table with a header (tab-separated: name, site, fst5, fst3 and optionally scd5, scd3, suppliers, as
    Biopython names them), or of REBASE's emboss_e file (name, site, its length, number of cuts, blunt, c1 to c4). An
    enzyme with several sites is listed once for each."""
    path = Path(path)
    with opened(path) as handle:
        lines = handle.read().decode("utf-8", "replace").splitlines()
    lines = [line for line in lines if line.strip() and line[0] != "#"]
    header = lines[0].split("\t") if lines else []
    has_header = {"name", "site", "fst5", "fst3"} <= set(header)
    enzymes = list[Enzyme]()
    for number, line in enumerate(lines[1:] if has_header else lines, 1 + has_header):
        cells = line.split("\t")
        try:
            if has_header:
                row = dict(zip(header, cells, strict=True))
                offsets = [int(row[name]) if row.get(name) else None for name in COLUMNS[2:6]]
                enzymes += _from_row(row["name"], row["site"], offsets, bool(row.get("suppliers", "?")))
            else:
                enzymes.append(_from_rebase(cells))
            if not masks(enzymes[-1].site).all() or not enzymes[-1].site:
                raise ValueError(f"'{enzymes[-1].site}' is no site in IUPAC codes")
        except (ValueError, KeyError, IndexError) as error:
            raise SegueError(f"{path}, line {number}: not an enzyme with its site and cuts ({error}); give a table of "
                             f"{', '.join(COLUMNS)}, or REBASE's emboss_e file") from error
    if not enzymes:
        raise SegueError(f"{path}: there are no enzymes in this file")
    return enzymes


def _from_rebase(cells: Sequence[str]) -> Enzyme:
    """The enzyme of a line of REBASE's emboss_e file."""
    name, site, length, count = cells[0], cells[1].upper(), int(cells[2]), int(cells[3])
    if length != len(site):
        raise ValueError(f"'{site}' is not of length {length}")
    offsets = [offset + (offset < 0) for offset in map(int, cells[5 : 5 + count])]  # the file has no 0: -1, then 1
    return Enzyme(name, site, tuple(zip(offsets[::2], offsets[1::2])))


def known_enzymes() -> list[Enzyme]:
    """All enzymes that Biopython knows (extra `biology`)."""
    table = require("Bio.Restriction.Restriction_Dictionary", "biology").rest_dict
    return [enzyme for name, row in table.items()
            for enzyme in _from_row(name, row["site"], [row[column] for column in COLUMNS[2:6]], bool(row["suppl"]))]


def panel(enzymes: Iterable[Enzyme], length: int = 6, plain: bool = False) -> list[Enzyme]:
    """Sold enzymes with a palindromic site of this length and one cut, one of each set with the same site and cut
    (their features would be equal). plain: only sites without ambiguous codes."""
    unique: dict[tuple[str, tuple[tuple[int, int], ...]], Enzyme] = {}
    for enzyme in sorted(enzymes, key=lambda enzyme: enzyme.name):
        if enzyme.sold and enzyme.palindromic and len(enzyme.site) == length and len(enzyme.cuts) == 1 and \
                not (plain and set(enzyme.site) - set("ACGT")):
            unique.setdefault((enzyme.site, enzyme.cuts), enzyme)
    return list(unique.values())


class SiteScanner:
    """Finds the sites of many enzymes, by four-bit masks of bases: a site matches where every base of the sequence is
    among those it allows. An unknown base (N) matches only where all are allowed."""

    def __init__(self, enzymes: Sequence[Enzyme]) -> None:
        self.enzymes = list(enzymes)

    def sites(self, sequence: str | np.ndarray, circular: bool = False) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each enzyme the sorted starts of its sites on the given strand, and on the other one (empty for
        palindromic sites, which are on both). circular: sites may span the end and the beginning."""
        bases = masks(sequence)
        if circular and len(bases):
            bases = np.resize(bases, len(bases) + max(len(enzyme.site) for enzyme in self.enzymes) - 1)
        matches = {mask: (bases & np.uint8(15 - mask) == 0) & (bases > 0) for mask in {*MASKS.values()}}
        cache: dict[str, np.ndarray] = {}
        length = len(sequence)

        def starts_of(site: str) -> np.ndarray:
            if site not in cache:
                rarest_first = sorted(enumerate(masks(site).tolist()), key=lambda pair: pair[1].bit_count())
                count = max(0, len(bases) - len(site) + 1)
                (first, mask), *others = rarest_first
                starts = np.flatnonzero(matches[mask][first : first + count])
                for position, mask in others:
                    starts = starts[matches[mask][starts + position]]
                cache[site] = starts[starts < length]
            return cache[site]

        empty = np.zeros(0, np.int64)
        return [(starts_of(enzyme.site), empty if enzyme.palindromic else starts_of(reverse_complement(enzyme.site)))
                for enzyme in self.enzymes]

    def cuts(self, sequence: str | np.ndarray, circular: bool = False) -> list[np.ndarray]:
        """For each enzyme the sorted cuts of the given strand; in a linear sequence only where both strands are cut
        within it."""
        by_enzyme, length = [], len(sequence)
        for enzyme, (forward, reverse) in zip(self.enzymes, self.sites(sequence, circular)):
            n, positions = len(enzyme.site), [np.zeros(0, np.int64)]
            for top, bottom in enzyme.cuts:
                for cut, opposite in ((forward + top, forward + bottom), (reverse + n - bottom, reverse + n - top)):
                    inside = (cut > 0) & (cut < length) & (opposite > 0) & (opposite < length)
                    positions.append(cut % max(1, length) if circular else cut[inside])
            by_enzyme.append(np.unique(np.concatenate(positions)))
        return by_enzyme


@dataclass(frozen=True)
class Cut:
    """enzyme: its index. top, bottom: positions of the cuts of the given and the other strand. overhang: the bases
    between, on the given strand; a 5' overhang if top is before bottom."""

    enzyme: int
    top: int
    bottom: int
    overhang: str

    def joins(self, other: Cut) -> bool:
        """Whether the sticky ends of the two cuts anneal, so that the piece between them can be excised and the rest
        ligated, or the piece replaced."""
        return self.top != self.bottom and self.overhang == other.overhang and \
            (self.top < self.bottom) == (other.top < other.bottom)


def excisable(cuts: Sequence[Cut], min_length: float) -> bool:
    """Whether two enzymes that cut once each excise a piece of at least `min_length` bases and leave compatible ends.
    cuts: all cuts of all enzymes."""
    count = Counter(cut.enzyme for cut in cuts)
    single = [cut for cut in cuts if count[cut.enzyme] == 1]
    return any(abs(a.top - b.top) >= min_length and a.joins(b) for i, a in enumerate(single) for b in single[:i])


class Windows:
    """Windows of one length in a long sequence, and the sites that lie completely in each.

    begins: (W,), starts of the windows. scanner: of enzymes with a palindromic site and one cut inside it (`panel`).
    """

    def __init__(self, sequence: str, begins: np.ndarray, length: int, scanner: SiteScanner) -> None:
        if not all(enzyme.palindromic and len(enzyme.cuts) == 1 and min(enzyme.cuts[0]) >= 0 and
                   max(enzyme.cuts[0]) <= len(enzyme.site) for enzyme in scanner.enzymes):
            raise SegueError("windows are for enzymes that cut once, inside of a palindromic site: see panel")
        self.sequence, self.begins, self.length, self.scanner = sequence, np.asarray(begins), length, scanner
        self.starts = [forward for forward, _ in scanner.sites(sequence)]  # of the sites of each enzyme
        ends = self.begins + length
        ranges = [(np.searchsorted(starts, self.begins), np.searchsorted(starts, ends - len(enzyme.site), "right"))
                  for enzyme, starts in zip(scanner.enzymes, self.starts)]
        self.first, self.last = (np.stack(bound, 1) for bound in zip(*ranges))  # (W, E), slices of `starts`

    @property
    def counts(self) -> np.ndarray:
        """(W, E): number of sites of each enzyme in each window."""
        return self.last - self.first

    def cuts(self, window: int) -> list[Cut]:
        """All cuts in a window, at positions in the whole sequence."""
        cuts = []
        for enzyme in np.flatnonzero(self.first[window] < self.last[window]).tolist():
            top, bottom = self.scanner.enzymes[enzyme].cuts[0]
            for start in self.starts[enzyme][self.first[window, enzyme] : self.last[window, enzyme]].tolist():
                overhang = self.sequence[start + min(top, bottom) : start + max(top, bottom)]
                cuts.append(Cut(enzyme, start + top, start + bottom, overhang))
        return cuts

    def excisable(self) -> np.ndarray:
        """(W,) bool: `excisable` pieces of at least a third of the window."""
        found = np.zeros(len(self.begins), bool)
        for window in np.flatnonzero((self.counts == 1).sum(1) > 1).tolist():
            found[window] = excisable(self.cuts(window), self.length / 3)
        return found

    def texts(self) -> list[str]:
        return [self.sequence[begin : begin + self.length] for begin in self.begins.tolist()]

    def features(self) -> dict[str, np.ndarray]:
        """Features (W, n) by group. counts: sites of each enzyme. places: starts of its first and its last site, as
        fractions of the window (-1: none). totals: sites, enzymes that cut, enzymes that cut once, and the information
        of the sites in bits."""
        counts = self.counts
        places = np.full((2, *counts.shape), -1.0)
        for enzyme, starts in enumerate(self.starts):
            cut = np.flatnonzero(counts[:, enzyme])
            for side, index in enumerate((self.first[cut, enzyme], self.last[cut, enzyme] - 1)):
                places[side, cut, enzyme] = (starts[index] - self.begins[cut]) / self.length
        bits = np.array([enzyme.information for enzyme in self.scanner.enzymes])
        totals = np.stack([counts.sum(1), (counts > 0).sum(1), (counts == 1).sum(1), counts @ bits], 1)
        return {"counts": counts.astype(float), "places": np.concatenate([*places], 1), "totals": totals}


def kmer_counts(texts: Sequence[str], k: int, letters: str = "ACGT") -> np.ndarray:
    """(N, len(letters) ** k): counts of each overlapping k-mer in each text, without k-mers of other letters. Columns
    in the order of the letters, the first letter most significant."""
    size, table = len(letters), np.full(256, -1, np.int64)
    table[np.frombuffer(letters.encode(), np.uint8)] = np.arange(size)
    counts = np.zeros((len(texts), size**k), np.int64)
    for row, text in enumerate(texts):
        ids = table[np.frombuffer(text.encode("ascii", "replace"), np.uint8)]
        if len(ids) >= k:
            kmers = np.lib.stride_tricks.sliding_window_view(ids, k)
            kmers = kmers[(kmers >= 0).all(1)]
            counts[row] = np.bincount(kmers @ size ** np.arange(k - 1, -1, -1), minlength=size**k)
    return counts


def composition(texts: Sequence[str]) -> np.ndarray:
    """(N, 5): the shares of A, C, G and T, and the GC content."""
    shares = kmer_counts(texts, 1) / np.array([[max(1, len(text))] for text in texts])
    return np.column_stack([shares, shares[:, 1] + shares[:, 2]])


def site_filters(sites: Sequence[str], letters: str = "ACGT") -> np.ndarray:
    """(F, width, len(letters)) bool: the letters that each site allows at each position, all False behind its end."""
    allowed = np.zeros((len(sites), max(map(len, sites)), len(letters)), bool)
    bits = masks(letters)
    for row, site in enumerate(sites):
        allowed[row, : len(site)] = masks(site)[:, None] & bits > 0
    return allowed


def regions(begins: np.ndarray, length: int, block: int, shares: Sequence[float], seed: int = 0,
            ) -> tuple[np.ndarray, np.ndarray]:
    """A split of windows without overlap between its parts: the part of each window, (W,) from 0, and its block, (W,).
    The sequence is cut into blocks of `block` bases, which are assigned to parts at random; windows across the edge of
    a block are in no part (-1). shares: of the parts, summing to 1."""
    begins = np.asarray(begins)
    block_of, count = begins // block, int(begins.max()) // block + 1
    edges = np.round(np.cumsum(shares) * count).astype(int)
    part = np.searchsorted(edges, np.random.default_rng(seed).permutation(count), "right")
    return np.where((begins + length - 1) // block == block_of, part[block_of], -1), block_of
