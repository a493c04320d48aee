"""Constrained decoding: a callback, a regular expression or a JSON schema says which tokens may follow.

A constraint is a processor: it sees the prefix whose next token is chosen, so it works with every decoder, with drafts,
in beams and in batches; a draft that breaks it is simply not accepted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from segue.decoding.sampling import Array, Prefix, keep_only
from segue.errors import SegueError, require

if TYPE_CHECKING:
    from segue.kinds.codecs import Codec

MAX_CACHED_STATES = 512  # of a pattern's automaton, by prefix


class LegalNext:
    """Allows the token ids that legal(generated) returns, given the tokens generated after the prompt (None: all)."""

    def __init__(self, legal: Callable[[list[int]], Iterable[int] | None]) -> None:
        self.legal = legal

    def __call__(self, scores: Array, prefix: Prefix) -> Array:
        allowed = self.legal(prefix.generated)
        return scores if allowed is None else keep_only(scores, np.fromiter(allowed, np.int64))


class EachOnce:
    """Allows every token at most once, the prompt included, and the end token only when no other is left: for tours and
    permutations, such as a pointer network's (`segue.models.pointer`). end: the id that ends an answer."""

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
    """Makes the whole answer match a regular expression: only tokens after which a match is still possible are allowed,
    and the end token only after a match. An answer cut at its token limit is the beginning of a match. The automaton is
    outlines-core's (extra `constrain`)."""

    def __init__(self, codec: Codec, regex: str) -> None:
        outlines = require("outlines_core", extra="constrain")
        if codec.eos is None:
            raise SegueError("a pattern needs a codec with an end token, to say when the answer is whole")
        tokens_by_text: dict[bytes, list[int]] = {}
        for token in range(codec.size):
            value = codec.decode([token])
            if isinstance(value, list):
                raise SegueError("a pattern is of text: constrain items with a callback (LegalNext)")
            if text := value.encode() if isinstance(value, str) else value:
                tokens_by_text.setdefault(text, []).append(token)
        try:
            index = outlines.Index(regex, outlines.Vocabulary(codec.eos, tokens_by_text))
        except Exception as error:  # whatever the library thinks of the expression
            reason = " ".join(str(error).split())[:120]
            raise SegueError(f"no answer can match the pattern {regex!r} ({reason})") from error
        eos = codec.eos

        @lru_cache(maxsize=1 << 16)
        def allowed(state: int) -> Array:
            allowed_tokens = set(index.get_allowed_tokens(state) or ()) - {eos}
            return np.array(sorted(allowed_tokens | ({eos} if index.is_final_state(state) else set())), np.int64)

        self._allowed, self._next, self._first = allowed, index.get_next_state, index.get_initial_state()
        self._states: dict[tuple[int, ...], int] = {(): self._first}

    def __call__(self, scores: Array, prefix: Prefix) -> Array:
        return keep_only(scores, self._allowed(self._state(tuple(prefix.generated))))

    def _state(self, tokens: tuple[int, ...]) -> int:
        """The automaton's state after these tokens; mostly one step from a cached state."""
        cached = len(tokens)
        while tokens[:cached] not in self._states:
            cached -= 1
        state = self._states[tokens[:cached]]
        for i in range(cached, len(tokens)):
            next_state = self._next(state, tokens[i])
            if next_state is None:
                raise SegueError(f"token {i} of the answer breaks the pattern: was it chosen by something else?")
            state = next_state
        if len(self._states) > MAX_CACHED_STATES:
            self._states = {(): self._first}
        self._states[tokens] = state
        return state


def json_schema_pattern(codec: Codec, schema: str | dict[str, Any]) -> Pattern:
    """Makes the answer a JSON text that follows a schema (a dictionary, or JSON)."""
    require("outlines_core", extra="constrain")
    from outlines_core import json_schema

    try:
        text = schema if isinstance(schema, str) else json.dumps(schema)
        return Pattern(codec, json_schema.build_regex_from_schema(text))
    except SegueError:
        raise
    except Exception as error:
        raise SegueError(f"this JSON schema cannot be followed: {' '.join(str(error).split())[:160]}") from error
