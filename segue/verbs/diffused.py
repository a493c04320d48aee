"""A fitted model that writes in any order, by masked diffusion: it fills gaps, and continues block by block."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segue.analysis.blanks import blank_scores
from segue.data import Data
from segue.decoding.continuation import as_text, item_separator, prime_object
from segue.decoding.diffusion import fill, go_on
from segue.decoding.generate import Continuation
from segue.errors import SegueError
from segue.models import Stack
from segue.objectives.masked import isin
from segue.training.evaluate import Evaluation, Scored, score_bound
from segue.verbs.fitted import Fitted
from segue.verbs.inputs import known_ids

BLOCK = 32  # elements that are added at once
BLANK_SEQUENCES = 200  # on which the accuracy at blanks is measured
CHOICES = ("n", "decoder", "gap", "known", "block", "steps", "seed", "temperature")


class Diffused(Fitted):
    """A model fitted with objective "diffusion". Its likelihoods are bounds, and it does not predict a next element, so
    nothing that decodes token by token (drafts, searches, the server) works with it."""

    objective = "diffusion"
    model: Stack

    @property
    def known(self) -> list[int]:
        """Ids that are never hidden: those of fit's known=, and the end token; none without known=."""
        return list(self.report.get("plan", {}).get("known", []))

    def decodable(self, weights: str = "float32") -> Any:
        raise SegueError("this model was fitted by diffusion, and writes in any order: it can continue and evaluate, "
                         "but not go token by token; fit another one with objective next")

    def scheduled(self, schedule: Any) -> Any:
        return self.decodable()

    def speed_up(self, data: Any, minutes: float | None = None, **options: Any) -> Any:
        return self.decodable()

    def score_store(self, store: Any, weights: str, ranks: Any = None) -> tuple[Scored, str]:
        if weights != "float32":
            return self.decodable()
        given_ids = f", given {self.describe_ids(self.known)}" if self.known else ""
        scored = score_bound(self.model, store, self.context, known=self.known)
        return scored, f"{self.model.path}, upper bound{given_ids}"

    def describe_ids(self, ids: Sequence[int]) -> str:
        """The tokens of ids as text, without the end token."""
        tokens = [self.codec.token(id) for id in ids if id != self.codec.eos]
        return ("" if self.kind.storage == "letters" else " ").join(tokens)

    def score_data(self, data: Data, weights: str = "float32", unknown: float = 0.0) -> Evaluation:
        """Like `Fitted.score_data`. With known letters, the baselines are for the others alone, and a note says how
        many of those are predicted correctly if all are hidden at once."""
        result = super().score_data(data, weights, unknown)
        if not self.known:
            return result
        store, free = data.encode(self.codec), self.codec.size - len(self.known)
        result.baselines = {"uniform": math.log2(free) * result.elements / max(1, result.units)}
        if self.counts is not None:
            counts = np.delete(self.counts + 0.5, self.known)
            cost = np.insert(np.log2(counts.sum() / counts), np.array(self.known) - np.arange(len(self.known)), 0.0)
            result.baselines["unigram"] = \
                float(sum(cost[sequence.ids[1:]].sum() for sequence in store)) / max(1, result.units)
        rows = [sequence.ids[1:] for sequence in store if len(sequence.ids) > 2][:BLANK_SEQUENCES]
        scores = blank_scores(self.fill_blanks(rows), rows, self.known)
        result.notes.append(f"with only {self.describe_ids(self.known)} to be seen, {scores.pooled:.1%} of the blanks "
                            f"are right at the first guess (mean over sequences {scores.mean:.1%}; identity "
                            f"{scores.identity:.1%})")
        return result

    def fill_blanks(self, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Rows with all but the known ids hidden and filled in greedily, in one pass over each piece of `context`
        ids."""
        mask, filled_rows = self.model.vocabulary - 1, []
        allowed = ~isin(torch.arange(mask), self.known)
        for row in rows:
            hidden = np.where(np.isin(row, self.known), row, mask).tolist()
            pieces = [hidden[at : at + self.context] for at in range(0, len(hidden), self.context)]
            filled = fill(self.model, pieces, "confidence", 1, temperature=0.0, allowed=allowed)
            filled_rows.append(np.array([id for piece in filled for id in piece.tokens]))
        return filled_rows

    def continue_(self, prime: Any = "", n: int | None = None, decoder: str | None = None, gap: Any = None,
                  block: int | None = None, steps: int | None = None, seed: int = 0, temperature: float = 1.0,
                  known: Any = None, **options: Any) -> Any:
        """Fill the gaps of `prime`, and continue it.

        prime: an object of the kind, a path to one, or a list of these.
        gap: the letter or item that marks an element to fill in. With gaps, an answer is the whole sequence. For a
            model with known letters, which only fills gaps, the default is "_".
        n: elements to add, `block` at a time (default: 256, or 0 with gaps).
        decoder: a name in `segue.decoding.diffusion.SAMPLERS` (default: first-hitting); steps: its steps.
        temperature: 0 always takes the likeliest.
        known: letters or items that no gap may be filled with, besides those the model was fitted with.
        """
        if unsupported := [name for name, value in options.items() if value not in (None, "none", (), "float32")]:
            raise SegueError(f"'{unsupported[0]}' means nothing to a model that writes in any order: it takes "
                             f"{', '.join(CHOICES)}")
        items = self.kind.storage == "items"
        is_list = isinstance(prime, (list, tuple)) and \
            (not items or any(isinstance(item, (list, tuple)) for item in prime))
        begin = time.perf_counter()
        excluded = [*self.known, *([] if known is None else known_ids(self.codec, known))]
        gap = "_" if gap is None and self.known else gap
        if self.known and n:
            raise SegueError("this model was fitted with known letters, and fills gaps alone: leave n out")
        rows = [self.prime_ids(item, gap) for item in (prime if is_list else [prime])]
        n = (256 if gap is None else 0) if n is None else n
        choices: dict[str, Any] = {"sampler": decoder or "first-hitting", "steps": steps, "seed": seed,
                                   "temperature": temperature}
        units = n  # base units; a token of a k-mer codec has several
        n = -(-n // int(self.codec.weights().max())) if self.codec.counted else n
        passes, added_ids = 0, [list[int]() for _ in rows]
        if gap is not None:
            end = [self.codec.eos] if self.known and self.codec.eos is not None else []  # never hidden in training
            allowed = ~isin(torch.arange(self.model.vocabulary - 1), excluded) if excluded else None
            filled = fill(self.model, [row + end for row in rows], allowed=allowed, **choices)
            rows = [item.tokens[: len(item.tokens) - len(end)] for item in filled]
            passes = filled[0].passes
            entropies = [item.entropy for item in filled]
        if n:
            block = min(BLOCK, max(1, self.context // 2)) if block is None else block
            continuations = go_on(self.model, rows, n, block, self.context, eos=self.codec.eos, **choices)
            added_ids, passes = [item.tokens for item in continuations], passes + continuations[0].passes
            entropies = [item.entropy for item in continuations] if gap is None else entropies
        elif gap is None:
            raise SegueError("there is nothing to write: give n, or say what stands for a gap")
        answers = []
        for row, added, entropy in zip(rows, added_ids, entropies):
            full_object = self.codec.decode([*row, *added])
            tokens = added if gap is None else [*row, *added]
            answer = Continuation(tokens, "length" if len(added) == n else "stop", self.model.path, choices["sampler"],
                                  produced=len(added), passes=passes, rows=len(rows),
                                  seconds={"total": time.perf_counter() - begin},
                                  remark=f"the entropy of what was drawn is {entropy:.2f} nats an element")
            answer.value, answer.whole = self.codec.decode(tokens), full_object
            if self.codec.counted and (excess := self.codec.units(added) - units) > 0:
                answer.value, answer.whole = answer.value[:-excess], full_object[:-excess]
            answer.text = as_text(answer.value, item_separator(self.codec))
            answer.writer = lambda value, path: self.kind.write([value], path)
            answers.append(answer)
        return answers if is_list else answers[0]

    def prime_ids(self, prime: Any, gap: Any) -> list[int]:
        """The ids of a prime, with masks at its gaps."""
        if isinstance(prime, Path):
            prime = prime_object(self.kind, prime, self.codec, self.reading)
        if prime is None or len(prime) == 0:
            return []
        if gap is None:
            return self.codec.prompt(prime_object(self.kind, prime, self.codec, self.reading)).tolist()
        if isinstance(prime, (str, bytes)):
            marker = gap.encode() if isinstance(prime, bytes) and isinstance(gap, str) else gap
            if not isinstance(marker, type(prime)) or not marker:
                raise SegueError(f"gap {gap!r} is not of what the prime is made of: give a letter that stands in it")
            parts = prime.split(marker)  # type: ignore[arg-type]
        else:
            gap_places = [i for i, item in enumerate(prime) if str(item) == str(gap)]
            parts = [prime[a + 1 : b] for a, b in zip([-1, *gap_places], [*gap_places, len(prime)])]
        if len(parts) == 1:
            raise SegueError(f"there is no gap: {gap!r} does not stand in {as_text(prime)[:60]!r}")
        ids: list[int] = []
        for number, part in enumerate(parts):
            ids += [self.model.vocabulary - 1] * (number > 0)
            ids += self.codec.encode(prime_object(self.kind, part, self.codec)).tolist() if len(part) else []
        return ids
