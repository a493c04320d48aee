"""Genetic codes: from codons to residues."""

from __future__ import annotations

import numpy as np

from segue.errors import SegueError

ORDER = "TCAG"
STANDARD = "FFLLSSSSYY**CC*WLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG"  # TTT, TTC, TTA, TTG, TCT ...
# By NCBI's number: what differs from the standard code, and the codons that genes begin with.
CODES: dict[int, tuple[dict[str, str], tuple[str, ...]]] = {
    1: ({}, ("TTG", "CTG", "ATG")),
    2: ({"AGA": "*", "AGG": "*", "ATA": "M", "TGA": "W"}, ("ATT", "ATC", "ATA", "ATG", "GTG")),  # of vertebrates
    3: ({"ATA": "M", "CTT": "T", "CTC": "T", "CTA": "T", "CTG": "T", "TGA": "W"}, ("ATA", "ATG", "GTG")),  # of yeast
    4: ({"TGA": "W"}, ("TTA", "TTG", "CTG", "ATT", "ATC", "ATA", "ATG", "GTG")),  # mycoplasmas
    5: ({"AGA": "S", "AGG": "S", "ATA": "M", "TGA": "W"}, ("TTG", "ATT", "ATC", "ATA", "ATG", "GTG")),  # invertebrates
    6: ({"TAA": "Q", "TAG": "Q"}, ("ATG",)),  # ciliates
    11: ({}, ("TTG", "CTG", "ATT", "ATC", "ATA", "ATG", "GTG")),  # bacteria, plastids
}
CODONS = [a + b + c for a in ORDER for b in ORDER for c in ORDER]
BASE = np.full(256, -1)
for _place, _letters in enumerate(("Tt", "Cc", "Aa", "Gg")):
    BASE[[ord(letter) for letter in _letters]] = _place
BASE[[ord("U"), ord("u")]] = 0


def codons_of(code: int = 1) -> dict[str, str]:
    """The residue of each of the 64 codons, "*" for a stop. code: by NCBI's number."""
    if code not in CODES:
        raise SegueError(f"genetic code {code} is not here: choose from {', '.join(map(str, CODES))}, or take "
                         "Biopython")
    return dict(zip(CODONS, STANDARD)) | CODES[code][0]


def translate(letters: str, code: int = 1, gene: bool = False) -> str:
    """The protein of a stretch of DNA or RNA, read from its first base; a part of a codon at its end says nothing.

    code: the genetic code, by NCBI's number (1 standard, 11 bacteria and plastids, 4 mycoplasmas, 2, 3, 5 mitochondria,
    6 ciliates). gene: a whole gene, which begins with any codon that genes begin with, read as M, and ends before its
    first stop. A codon with a letter other than the four bases is X. Introns and selenocysteine (a stop that is none)
    are not known here.
    """
    residues = np.frombuffer("".join(codons_of(code).values()).encode() + b"X", np.uint8)
    digits = BASE[np.frombuffer(letters.encode("ascii", "replace"), np.uint8)[: len(letters) // 3 * 3]].reshape(-1, 3)
    numbers = np.where((digits >= 0).all(1), digits @ np.array([16, 4, 1]), 64)
    protein = residues[numbers].tobytes().decode()
    if not gene:
        return protein
    if len(numbers) and numbers[0] < 64 and CODONS[int(numbers[0])] in CODES[code][1]:
        protein = "M" + protein[1:]
    return protein.partition("*")[0]
