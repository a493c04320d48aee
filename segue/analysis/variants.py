"""Variant effect scores by a model of DNA (or protein): the log-likelihood ratio of the alternative and the reference.

With k-mer tokens the score depends on the variant's offset in its k-mer, and on the strand that is read. Scores are
averaged over all offsets and both strands (GENERator, arXiv 2502.07272, uses only the first offset).
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

Variant = tuple[int, str, str]  # position, from 0; reference; alternative


def read_variants(path: str | Path) -> list[tuple[str, Variant]]:
    """The variants of a VCF file, each with the name of its sequence; several alternatives give as many variants.
    Symbolic alternatives (<DEL>, *, breakends) are left out."""
    with opened(Path(path)) as handle:
        lines = handle.read().decode("utf-8", "replace").splitlines()
    found, records = [], 0
    for number, line in enumerate(lines, 1):
        if line.startswith("#") or not line.strip():
            continue
        records += 1
        cells = line.split("\t")
        if len(cells) < 5 or not cells[1].isdigit() or not cells[3].isalpha():
            raise SegueError(f"{path}, line {number}: not a line of a VCF file (CHROM, POS, ID, REF and ALT, with tabs "
                             "between); export it again")
        found += [(cells[0], (int(cells[1]) - 1, cells[3].upper(), alternative.upper()))
                  for alternative in cells[4].split(",") if alternative.isalpha()]
    if not found:
        raise SegueError(f"{path}: of {records} variants none says by letters what stands there instead")
    return found


class LetterLikelihood:
    """log P(target | context) of letters, nats, under a model over letters or k-mers. It is exact for any number of
    letters: an incomplete last k-mer has the total probability of all k-mers that begin with it.

    model: a stack, or anything `Decodable`. rows: batch size.
    """

    def __init__(self, model: Any, codec: LetterCodec | KmerCodec, rows: int = 32) -> None:
        if not isinstance(codec, LetterCodec | KmerCodec):
            raise SegueError("letters are scored under codecs of letters or of words of k of them: fit with one")
        self.model, self.codec, self.rows = model, codec, rows
        self.k = codec.k if isinstance(codec, KmerCodec) else 1

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """(N,) of N pairs (context, target); k-mers are aligned to the end of the context."""
        encoded = [self._encode(context, target) for context, target in pairs]
        total = np.zeros(len(encoded))
        order = sorted(range(len(encoded)), key=lambda i: -len(encoded[i][0]))
        for start in range(0, len(order), self.rows):
            batch = order[start : start + self.rows]
            logits = self._logits(pad_rows([encoded[i][0] for i in batch]))
            for row, i in enumerate(batch):
                ids, first, (low, high) = encoded[i]
                log_probs = logits[row, first - 1 : len(ids)].double().log_softmax(-1)
                targets = torch.tensor(ids[first:], dtype=torch.long)
                total[i] = float(log_probs[: len(targets)].gather(1, targets[:, None]).sum())
                if high > low:
                    total[i] += float(log_probs[len(targets), low:high].logsumexp(0))
        return total

    def _encode(self, context: str, target: str) -> tuple[list[int], int, tuple[int, int]]:
        """Ids of both, the number of context ids, and the range [low, high) of k-mers that complete the target's last
        one, empty where it is complete."""
        whole, completions = len(target) // self.k * self.k, (0, 0)
        prompt = [self.codec.bos, *self.codec.prompt(context).tolist()]
        ids = self.codec.encode(target[:whole]).tolist()
        if rest := target[whole:]:
            assert isinstance(self.codec, KmerCodec)
            if set(rest) <= set(self.codec.bases.letters):
                count = len(self.codec.bases.letters) ** (self.k - len(rest))
                lowest = self.codec.encode(rest + self.codec.bases.letters[0] * (self.k - len(rest)))[0]
                completions = (int(lowest), int(lowest) + count)
            else:
                ids += self.codec.encode(rest).tolist()
        return prompt + ids, len(prompt), completions

    @torch.no_grad()
    def _logits(self, ids: Tensor) -> Tensor:
        if isinstance(self.model, nn.Module):
            return self.model(ids.to(next(self.model.parameters()).device)).logits.cpu()
        state = self.model.init_state(len(ids))
        return self.model.extend(ids.to(state.positions.device), state).logits.cpu()


def variant_scores(model: Any, codec: LetterCodec | KmerCodec, sequence: str, variants: Sequence[Variant], *,
                   before: int = 1500, behind: int = 0, strands: bool = True, rows: int = 32) -> np.ndarray:
    """(N,) log P(alternative) - log P(reference), nats: negative where the model prefers the reference.

    variants: position (from 0), reference and alternative, of any lengths. before: bases of context at most. behind:
    bases after the variant that are scored with either allele. strands: average over both strands (of DNA). Scores are
    averaged over all k offsets of the variant in its k-mer.
    """
    likelihood, rna = LetterLikelihood(model, codec, rows), "U" in sequence.upper() and "T" not in sequence.upper()
    pairs: list[tuple[str, str]] = []
    for number, (position, reference, alternative) in enumerate(variants, 1):
        end = position + len(reference)
        if not 0 <= position <= len(sequence) or sequence[position:end] != reference:
            raise SegueError(f"variant {number}: {reference!r} does not stand at position {position + 1:,} of the "
                             f"sequence, but {sequence[position:end]!r}")
        most = max(before, behind)
        left, right = sequence[max(0, position - most) : position], sequence[end : end + most]
        for reverse in (False, True)[: 1 + strands]:
            context, after = (left[max(0, len(left) - before) :], right[:behind]) if not reverse else \
                (reverse_complement(right[:before], rna), reverse_complement(left, rna)[:behind])
            for offset in range(likelihood.k):
                cut = max(0, len(context) - offset)
                for allele in (reference, alternative):
                    bases = reverse_complement(allele, rna) if reverse else allele
                    pairs.append((context[:cut], context[cut:] + bases + after))
    scores = likelihood(pairs).reshape(len(variants), -1, 2)
    return (scores[..., 1] - scores[..., 0]).mean(1)
