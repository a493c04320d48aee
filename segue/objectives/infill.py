"""Filling in several gaps by going on (fill-in-the-middle as of ProtMamba and Prot-xLSTM: Schmidinger et al. 2024,
arXiv 2411.04165): what is missing is said behind the rest, gap by gap, so that a model that looks back alone knows both
sides of each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from segue.errors import SegueError

Span = tuple[int, int]  # from the first element to behind the last


def draw_spans(length: int, draw: np.random.Generator, most: int = 5, share: float = 0.2) -> list[Span]:
    """Gaps of a sequence: as many as a Poisson draw of mean 1 says, at most so many; their beginnings lie anywhere, and
    each is 1 to `share` of the way to the next one (or the end) long. They neither overlap nor are empty."""
    begins = np.sort(draw.choice(length, min(int(draw.poisson(1.0)), most, length), replace=False)).tolist()
    return [(begin, begin + int(draw.integers(1, max(2, int(share * (end - begin))))))
            for begin, end in zip(begins, [*begins[1:], length])]


def fill_in_middle(ids: Sequence[int], spans: Sequence[Span], masks: Sequence[int], end: int,
                   ) -> tuple[list[int], list[int]]:
    """The sequence with mask after mask in place of its gaps, `end`, and behind that each mask with what its gap holds;
    and the position of each of these ids in the sequence, for `Layout.chain` (of a mask that of its gap, of `end` the
    sequence's length).

    masks: their ids, as many as there are gaps at least; neither they nor `end` are ids of a sequence.
    """
    if len(spans) > len(masks):
        raise SegueError(f"{len(spans)} gaps and {len(masks)} masks: give a mask for each")
    shown, said, at = list[tuple[int, int]](), list[tuple[int, int]](), 0  # ids with their positions
    for mask, (begin, behind) in zip(masks, spans):
        if not at <= begin < behind <= len(ids):
            raise SegueError(f"gaps {list(spans)} of {len(ids)} elements: they lie in order, apart, and are not empty")
        shown += [*((ids[i], i) for i in range(at, begin)), (mask, begin)]
        said += [(mask, begin), *((ids[i], i) for i in range(begin, behind))]
        at = behind
    whole = [*shown, *((ids[i], i) for i in range(at, len(ids))), (end, len(ids)), *said]
    return [token for token, _ in whole], [position for _, position in whole]


def filled_in(tokens: Sequence[int], masks: Sequence[int], end: int) -> list[int]:
    """The sequence that such ids stand for, whoever said what is behind `end`: the inverse of `fill_in_middle`."""
    where = tokens.index(end) if end in tokens else -1
    gaps: dict[int, list[int]] = {}
    for token in tokens[where + 1 :] if where >= 0 else ():
        if token in masks:
            gap = gaps[token] = []
        elif not gaps:
            break
        else:
            gap.append(token)
    asked = [token for token in tokens[:where] if token in masks]
    if where < 0 or list(gaps) != asked:
        raise SegueError(f"behind {end} stand the gaps of masks {list(gaps)}, and those of {asked} are asked for: give "
                         "each mask in order, and what its gap holds behind it")
    return [each for token in tokens[:where] for each in (gaps[token] if token in masks else [token])]
