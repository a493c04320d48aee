"""Scores of variants by a model of DNA (or protein): how much likelier the changed sequence is than the given one.

With words of k bases a variant may stand at any of k places of a word, and the score depends on that place, and on the
strand that is read. Scores are means over both (GENERator, arXiv 2502.07272, takes only the first place of a word).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from segue.errors import SegueError
from segue.kinds.codecs import KmerCodec, LetterCodec
from segue.kinds.nucleotides import reverse_complement
from segue.kinds.packed import opened
from segue.models.base import pad_rows

Variant = tuple[int, str, str]  # position, from 0; what stands there; what would stand there instead


def read_variants(path: str | Path) -> list[tuple[str, Variant]]:
    """The variants of a VCF file, each with the name of its sequence; several alternatives are as many variants. What
    gives no letters (<DEL>, *, breakends) is left out."""
    with opened(Path(path)) as handle:
        lines = handle.read().decode("utf-8", "replace").splitlines()
    found, told = [], 0
    for number, line in enumerate(lines, 1):
        if line.startswith("#") or not line.strip():
            continue
        told += 1
        cells = line.split("\t")
        if len(cells) < 5 or not cells[1].isdigit() or not cells[3].isalpha():
            raise SegueError(f"{path}, line {number}: not a line of a VCF file (CHROM, POS, ID, REF and ALT, with tabs "
                             "between); export it again")
        found += [(cells[0], (int(cells[1]) - 1, cells[3].upper(), each.upper())) for each in cells[4].split(",")
                  if each.isalpha()]
    if not found:
        raise SegueError(f"{path}: of {told} variants none says by letters what stands there instead")
    return found


class LetterLikelihood:
    """log P of letters behind others, nats, under a model over letters or over words; exact for any number of them: of
    a word of which only the beginning is asked for, all words that begin so are taken together.

    model: a stack, or anything that is `Decodable`. rows: read together.
    """

    def __init__(self, model: Any, codec: LetterCodec | KmerCodec, rows: int = 32) -> None:
        if not isinstance(codec, LetterCodec | KmerCodec):
            raise SegueError("letters are scored under codecs of letters or of words of k of them: fit with one")
        self.model, self.codec, self.rows = model, codec, rows
        self.k = codec.k if isinstance(codec, KmerCodec) else 1

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """pairs: (N) of what stands before, of which words end where it ends, and what is asked for."""
        made = [self._row(before, asked) for before, asked in pairs]
        found = np.zeros(len(made))
        order = sorted(range(len(made)), key=lambda i: -len(made[i][0]))
        for at in range(0, len(order), self.rows):
            some = order[at : at + self.rows]
            logits = self._logits(pad_rows([made[i][0] for i in some]))
            for row, i in enumerate(some):
                ids, first, (low, high) = made[i]
                chances = logits[row, first - 1 : len(ids)].double().log_softmax(-1)
                words = torch.tensor(ids[first:], dtype=torch.long)
                found[i] = float(chances[: len(words)].gather(1, words[:, None]).sum())
                if high > low:
                    found[i] += float(chances[len(words), low:high].logsumexp(0))
        return found

    def _row(self, before: str, asked: str) -> tuple[list[int], int, tuple[int, int]]:
        """The ids to read, how many of them are not asked for, and the words [low, high) that end it."""
        whole, bounds = len(asked) // self.k * self.k, (0, 0)
        context = [self.codec.bos, *self.codec.prompt(before).tolist()]
        ids = self.codec.encode(asked[:whole]).tolist()
        if rest := asked[whole:]:
            assert isinstance(self.codec, KmerCodec)
            if set(rest) <= set(self.codec.bases.letters):
                size = len(self.codec.bases.letters) ** (self.k - len(rest))
                code = self.codec.encode(rest + self.codec.bases.letters[0] * (self.k - len(rest)))[0]
                bounds = (int(code), int(code) + size)
            else:
                ids += self.codec.encode(rest).tolist()
        return context + ids, len(context), bounds

    @torch.no_grad()
    def _logits(self, ids: Tensor) -> Tensor:
        if isinstance(self.model, nn.Module):
            return self.model(ids.to(next(self.model.parameters()).device)).logits.cpu()
        state = self.model.init_state(len(ids))
        return self.model.extend(ids.to(state.positions.device), state).logits.cpu()


def variant_scores(model: Any, codec: LetterCodec | KmerCodec, sequence: str, variants: Sequence[Variant], *,
                   before: int = 1500, behind: int = 0, strands: bool = True, rows: int = 32) -> np.ndarray:
    """(N,) log P(alternative) - log P(reference), nats: below 0 where the model likes the reference better.

    variants: position (from 0), reference and alternative, of any lengths. before: bases of context at most. behind:
    so many bases behind the variant are scored too, under either allele. strands: the mean of both strands (of DNA).
    All k places of the variant in a word are averaged over.
    """
    likelihood = LetterLikelihood(model, codec, rows)
    pairs: list[tuple[str, str]] = []
    for number, (at, reference, alternative) in enumerate(variants, 1):
        if not 0 <= at <= len(sequence) or sequence[at : at + len(reference)] != reference:
            raise SegueError(f"variant {number}: {reference!r} does not stand at position {at + 1:,} of the "
                             f"sequence, but {sequence[at : at + len(reference)]!r}")
        left, right = sequence[max(0, at - before) : at], sequence[at + len(reference) :][: max(before, behind)]
        for backward in (False, True)[: 1 + strands]:
            context, after = (left[-before:], right[:behind]) if not backward else \
                (reverse_complement(right[:before]), reverse_complement(left)[:behind])
            for place in range(likelihood.k):
                cut = max(0, len(context) - place)
                for allele in (reference, alternative):
                    said = reverse_complement(allele) if backward else allele
                    pairs.append((context[:cut], context[cut:] + said + after))
    scores = likelihood(pairs).reshape(len(variants), -1, 2)
    return (scores[..., 1] - scores[..., 0]).mean(1)
