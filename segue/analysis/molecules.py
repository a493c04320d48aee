"""How good sampled molecules are: valid, different, new (as in MOSES, Polykovskiy et al. 2020, and GuacaMol)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from segue.errors import SegueError, require


@dataclass(frozen=True)
class MoleculeQuality:
    """count: samples. valid: the share that RDKit can read. unique: of the valid ones, the share of different
    molecules. novel: of these, the share that is not among those learned from."""

    count: int
    valid: float
    unique: float
    novel: float


def molecule_quality(samples: Iterable[str], learned: Iterable[str] = ()) -> MoleculeQuality:
    """Shares of SMILES texts (extra `chemistry`); molecules are the same if their canonical SMILES are."""
    chem = require("rdkit.Chem", "chemistry")
    require("rdkit.RDLogger", "chemistry").DisableLog("rdApp.*")

    def canonical(smiles: str) -> str | None:
        molecule = chem.MolFromSmiles(smiles) if smiles else None
        return None if molecule is None else chem.MolToSmiles(molecule)

    found = [canonical(smiles) for smiles in samples]
    if not found:
        raise SegueError("there are no samples to judge: give at least one")
    valid = [smiles for smiles in found if smiles is not None]
    different = set(valid)
    old = {canonical(smiles) for smiles in learned} if different else set()
    return MoleculeQuality(len(found), len(valid) / len(found), len(different) / max(len(valid), 1),
                           len(different - old) / max(len(different), 1))
