"""Constraints: what may follow is ruled by a callback, a regular expression or a JSON schema.

A constraint is a processor: it sees the path it is asked about, so it works with every decoder, with drafts, in beams
and in batches, and a draft that breaks the rule is simply not accepted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from segue.decoding.sampling import Array, Prefix, only
from segue.errors import SegueError, require

if TYPE_CHECKING:
    from segue.kinds.codecs import Codec


class LegalNext:
    """legal(said) -> the token ids that may follow the tokens said after the prompt (none: anything may)."""

    def __init__(self, legal: Callable[[list[int]], Iterable[int] | None]) -> None:
        self.legal = legal

    def __call__(self, scores: Array, prefix: Prefix) -> Array:
        allowed = self.legal(prefix.said)
        return scores if allowed is None else only(scores, np.fromiter(allowed, np.int64))


class EachOnce:
    """Every token at most once, those of the prompt included, and the end only when nothing else is left: tours and
    orders, of a pointer network say (`segue.models.pointer`). end: the id that ends an answer."""

    def __init__(self, end: int = 0) -> None:
        self.end = end

    def __call__(self, scores: Array, prefix: Prefix) -> Array:
        last = scores[self.end]
        scores = scores.copy()
        scores[[self.end, *prefix.tokens]] = -np.inf
        if not (scores > -np.inf).any():
            scores[self.end] = last
        return scores


class Pattern:
    """The answer matches a regular expression as a whole: every token keeps a match in reach, and the end token may
    only come where there is one. Cut at its limit of tokens, an answer is the beginning of a match. Automata by
    outlines-core (extra `constrain`)."""

    def __init__(self, codec: Codec, regex: str) -> None:
        outlines = require("outlines_core", extra="constrain")
        if codec.eos is None:
            raise SegueError("a pattern needs a codec with an end token, to say when the answer is whole")
        spelled: dict[bytes, list[int]] = {}
        for token in range(codec.size):
            value = codec.decode([token])
            if isinstance(value, list):
                raise SegueError("a pattern is of text: constrain items with a callback (LegalNext)")
            if text := value.encode() if isinstance(value, str) else value:
                spelled.setdefault(text, []).append(token)
        try:
            index = outlines.Index(regex, outlines.Vocabulary(codec.eos, spelled))
        except Exception as error:  # whatever the library thinks of the expression
            reason = " ".join(str(error).split())[:120]
            raise SegueError(f"no answer can match the pattern {regex!r} ({reason})") from error
        eos = codec.eos

        @lru_cache(maxsize=1 << 16)
        def allowed(state: int) -> Array:
            found = set(index.get_allowed_tokens(state) or ()) - {eos}
            return np.array(sorted(found | ({eos} if index.is_final_state(state) else set())), np.int64)

        self._allowed, self._next, self._first = allowed, index.get_next_state, index.get_initial_state()
        self._states: dict[tuple[int, ...], int] = {(): self._first}

    def __call__(self, scores: Array, prefix: Prefix) -> Array:
        return only(scores, self._allowed(self._state(tuple(prefix.said))))

    def _state(self, said: tuple[int, ...]) -> int:
        """The automaton's state behind `said`; mostly one step from one that is known."""
        known = len(said)
        while said[:known] not in self._states:
            known -= 1
        state = self._states[said[:known]]
        for at in range(known, len(said)):
            after = self._next(state, said[at])
            if after is None:
                raise SegueError(f"token {at} of the answer breaks the pattern: was it chosen by something else?")
            state = after
        if len(self._states) > 512:
            self._states = {(): self._first}
        self._states[said] = state
        return state


def schema(codec: Codec, what: str | dict[str, Any]) -> Pattern:
    """The answer is a JSON text of this schema (a dictionary, or JSON)."""
    require("outlines_core", extra="constrain")
    from outlines_core import json_schema

    try:
        return Pattern(codec, json_schema.build_regex_from_schema(what if isinstance(what, str) else json.dumps(what)))
    except SegueError:
        raise
    except Exception as error:
        raise SegueError(f"this JSON schema cannot be followed: {' '.join(str(error).split())[:160]}") from error
