"""A fitted model that writes in any order, by masked diffusion: it fills gaps, and goes on block by block."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from segue.decoding.continuation import as_text, between, prime_object
from segue.decoding.diffusion import fill, go_on
from segue.decoding.generate import Continuation
from segue.errors import SegueError
from segue.models import Stack
from segue.training.evaluate import Scored, bound
from segue.verbs.fitted import Fitted

BLOCK = 32
CHOICES = ("n", "decoder", "gap", "block", "steps", "seed", "temperature")


class Diffused(Fitted):
    """A model that was fitted with objective diffusion. Its likelihoods are bounds, and it has no next element: what
    goes token by token (drafts, searches, the server) is not for it."""

    objective = "diffusion"
    model: Stack

    def decodable(self, weights: str = "float32") -> Any:
        raise SegueError("this model was fitted by diffusion, and writes in any order: it can continue and evaluate, "
                         "but not go token by token; fit another one with objective next")

    def scheduled(self, schedule: Any) -> Any:
        return self.decodable()

    def speed_up(self, data: Any, minutes: float | None = None, **options: Any) -> Any:
        return self.decodable()

    def scores(self, store: Any, weights: str, ranks: Any = None) -> tuple[Scored, str]:
        if weights != "float32":
            return self.decodable()
        return bound(self.model, store, self.context), f"{self.model.path}, upper bound"

    def continue_(self, prime: Any = "", n: int | None = None, decoder: str | None = None, gap: Any = None,
                  block: int | None = None, steps: int | None = None, seed: int = 0, temperature: float = 1.0,
                  **options: Any) -> Any:
        """Fill the gaps of `prime`, and go on behind it.

        prime: an object of the kind, a path to one, or a list of these. gap: what stands in it for an element to be
        filled in (a letter, an item). n: elements to add, `block` at a time (default: 256, or 0 where there are gaps);
        decoder: a name in `segue.decoding.diffusion.SAMPLERS` (default: first-hitting), steps: of it. temperature: 0
        takes the likeliest. Where there are gaps, an answer is the whole sequence.
        """
        if given := [name for name, value in options.items() if value not in (None, "none", (), "float32")]:
            raise SegueError(f"'{given[0]}' means nothing to a model that writes in any order: it takes "
                             f"{', '.join(CHOICES)}")
        items = self.kind.storage == "items"
        many = isinstance(prime, (list, tuple)) and \
            (not items or any(isinstance(each, (list, tuple)) for each in prime))
        begin = time.perf_counter()
        rows = [self.row(each, gap) for each in (prime if many else [prime])]
        n = (256 if gap is None else 0) if n is None else n
        choices: dict[str, Any] = {"sampler": decoder or "first-hitting", "steps": steps, "seed": seed,
                                   "temperature": temperature}
        units = n  # which words of bases are several of
        n = -(-n // int(self.codec.weights().max())) if self.codec.counted else n
        passes, adds = 0, [list[int]() for _ in rows]
        if gap is not None:
            filled = fill(self.model, rows, **choices)
            rows, passes = [each.tokens for each in filled], filled[0].passes
            entropies = [each.entropy for each in filled]
        if n:
            block = min(BLOCK, max(1, self.context // 2)) if block is None else block
            more = go_on(self.model, rows, n, block, self.context, eos=self.codec.eos, **choices)
            adds, passes = [each.tokens for each in more], passes + more[0].passes
            entropies = [each.entropy for each in more] if gap is None else entropies
        elif gap is None:
            raise SegueError("there is nothing to write: give n, or say what stands for a gap")
        answers = []
        for row, added, entropy in zip(rows, adds, entropies):
            whole = self.codec.decode([*row, *added])
            tokens = added if gap is None else [*row, *added]
            answer = Continuation(tokens, "length" if len(added) == n else "stop", self.model.path, choices["sampler"],
                                  produced=len(added), passes=passes, rows=len(rows),
                                  seconds={"total": time.perf_counter() - begin},
                                  remark=f"the entropy of what was drawn is {entropy:.2f} nats an element")
            answer.value, answer.whole = self.codec.decode(tokens), whole
            if self.codec.counted and (over := self.codec.units(added) - units) > 0:
                answer.value, answer.whole = answer.value[:-over], whole[:-over]
            answer.text = as_text(answer.value, between(self.codec))
            answer.writer = lambda value, path: self.kind.write([value], path)
            answers.append(answer)
        return answers if many else answers[0]

    def row(self, prime: Any, gap: Any) -> list[int]:
        """The ids of a prime, with masks at its gaps."""
        if isinstance(prime, Path):
            prime = prime_object(self.kind, prime, self.codec)
        if prime is None or len(prime) == 0:
            return []
        if gap is None:
            return self.codec.prompt(prime_object(self.kind, prime, self.codec)).tolist()
        if isinstance(prime, (str, bytes)):
            sign = gap.encode() if isinstance(prime, bytes) and isinstance(gap, str) else gap
            if not isinstance(sign, type(prime)) or not sign:
                raise SegueError(f"gap {gap!r} is not of what the prime is made of: give a letter that stands in it")
            parts = prime.split(sign)  # type: ignore[arg-type]
        else:
            ends = [i for i, item in enumerate(prime) if str(item) == str(gap)]
            parts = [prime[a + 1 : b] for a, b in zip([-1, *ends], [*ends, len(prime)])]
        if len(parts) == 1:
            raise SegueError(f"there is no gap: {gap!r} does not stand in {as_text(prime)[:60]!r}")
        ids: list[int] = []
        for number, part in enumerate(parts):
            ids += [self.model.vocabulary - 1] * (number > 0)
            ids += self.codec.encode(prime_object(self.kind, part, self.codec)).tolist() if len(part) else []
        return ids
