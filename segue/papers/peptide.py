"""Peptide Sequencing Via Protein Language Models (2024, arXiv 2408.00892).

Only some amino acids of a protein can be read where they stand; a language model that reads both ways fills in the
rest. Here on resistance proteins, of which many are alleles of one gene: split at random and split by family, beside
the commonest residue and a lookup of the most similar protein.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from segue.analysis.blanks import PatternLookup, blank_scores
from segue.data import Data, of, read
from segue.kinds.codecs import LetterCodec
from segue.models import Stack, StackConfig
from segue.models.base import padded, padding, without
from segue.models.stack import both_ways
from segue.objectives import Batch, MaskedElements
from segue.objectives.masked import LetterMask, mask_some
from segue.papers.base import Claim, Row, Run, Verdict
from segue.training.learn import learn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LETTERS = "ACDEFGHIKLMNPQRSTVWYX"  # what U, O, B, Z and J stand for is X
CODEC = LetterCodec(LETTERS)
MASK = CODEC.size - 1  # no protein has an end here
KNOWN = {"K1": "KCYM", "K2": "KCYMRHWST"}
ARMS = {"random, K1": ("content", "K1"), "family, K1": ("cluster", "K1"), "random, K2": ("content", "K2")}
TESTED = 0.1
HIT = 0.5  # a lookup has found something where half of all letters that can be read in either are the same in both
SHORTEST, LONGEST = 30, 300  # residues

Rows = list[np.ndarray]


def proteins(path: Path | None, seed: int = 0) -> Data:
    """Different proteins of 30 to 300 residues; where there is no path made up, alleles of a few genes."""
    if path is None:
        draw = np.random.default_rng(seed)
        genes = draw.integers(0, 20, (24, 40))
        alleles = [np.where(draw.random(40) < 0.03, draw.integers(0, 20, 40), gene) for gene in genes for _ in range(5)]
        return of([CODEC.decode(ids) for ids in alleles], kind="protein")
    table = str.maketrans("UOBZJ", "XXXXX", "*-")
    found = {letters.translate(table) for letters in read(path).objects()}
    return of(sorted(letters for letters in found if SHORTEST <= len(letters) <= LONGEST), kind="protein")


def divided(path: Path | None, by: str, seed: int) -> tuple[Rows, Rows]:
    """Ids to learn from and to be tested on."""
    train, test = proteins(path, seed).split(TESTED, by=by, seed=seed)
    return [CODEC.encode(each) for each in train.objects()], [CODEC.encode(each) for each in test.objects()]


def batches(rows: Rows, known: Sequence[int], count: int, seed: int) -> Callable[[int], Batch]:
    """So many proteins a step, in a new order each epoch, all but the known residues masked and asked for."""
    def draw(step: int) -> Batch:
        epoch, at = divmod(step, max(1, len(rows) // count))
        order = np.random.default_rng((seed, epoch)).permutation(len(rows))[at * count : (at + 1) * count]
        return mask_some(batch_of([rows[i] for i in order]), MASK, LetterMask(tuple(known)), unmasked=0.0)

    return draw


def batch_of(rows: Rows) -> Batch:
    """Whole rows, all asked for in place; X is not."""
    ids = padded([row.tolist() for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    asked = (torch.arange(ids.shape[1]) < lengths[:, None]) & (ids != CODEC.letters.index("X"))
    return Batch(ids, ids.masked_fill(~asked, -1), padding(lengths, ids.shape[1]))


@torch.no_grad()
def guesses(model: Stack, rows: Rows, known: Sequence[int]) -> Rows:
    """Rows with their blanks filled in by the likeliest residues, in one pass."""
    answers = []
    unsaid = [*known, CODEC.letters.index("X"), MASK]
    for at in range(0, len(rows), 16):
        part = rows[at : at + 16]
        batch = mask_some(batch_of(part), MASK, LetterMask(tuple(known)), unmasked=0.0)
        best: Tensor = without(model(batch.tokens, batch.layout).logits, unsaid).argmax(-1)
        filled = torch.where(batch.tokens == MASK, best, batch.tokens).numpy()
        answers += [each[: len(row)] for each, row in zip(filled, part)]
    return answers


def network(width: int, depth: int) -> Stack:
    """Blocks of attention that see both ways, with learned positions as in ProtBert beside rotary ones."""
    return Stack(both_ways(StackConfig(MASK + 1, width, ["attention"] * depth, {"attention": {"heads": 4}},
                                       norm="layer", learned_positions=LONGEST)))
