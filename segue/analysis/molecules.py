"""Validity, uniqueness and novelty of sampled molecules (as in MOSES, Polykovskiy et al. 2020, and GuacaMol)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from segue.errors import SegueError, require


@dataclass(frozen=True)
class MoleculeQuality:
    """count: samples. valid: the share that RDKit can read. unique: different molecules over valid samples. novel: of
    the different molecules, the share that is not in the training set."""

    count: int
    valid: float
    unique: float
    novel: float


def molecule_quality(samples: Iterable[str], training: Iterable[str] = ()) -> MoleculeQuality:
    """Quality of SMILES strings (extra `chemistry`); molecules are equal if their canonical SMILES are."""
    chem = require("rdkit.Chem", "chemistry")
    require("rdkit.RDLogger", "chemistry").DisableLog("rdApp.*")

    def canonical(smiles: str) -> str | None:
        molecule = chem.MolFromSmiles(smiles) if smiles else None
        return None if molecule is None else chem.MolToSmiles(molecule)

    parsed = [canonical(smiles) for smiles in samples]
    if not parsed:
        raise SegueError("there are no samples to judge: give at least one")
    valid = [smiles for smiles in parsed if smiles is not None]
    unique = set(valid)
    known = {canonical(smiles) for smiles in training} if unique else set()
    return MoleculeQuality(len(parsed), len(valid) / len(parsed), len(unique) / max(len(valid), 1),
                           len(unique - known) / max(len(unique), 1))
