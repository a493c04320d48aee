"""Fill-in-the-middle with several gaps (ProtMamba and Prot-xLSTM: Schmidinger et al. 2024, arXiv 2411.04165): the
contents of the gaps are moved to the end, gap by gap, so that a causal model has both sides of each gap as context."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from segue.errors import SegueError

Span = tuple[int, int]  # from the first element to behind the last


def draw_spans(length: int, draw: np.random.Generator, most: int = 5, share: float = 0.2) -> list[Span]:
    """Draw gaps of a sequence: their number is Poisson with mean 1, at most `most`; they begin anywhere, and each is
    from 1 element to less than `share` of the distance to the next gap (or the end) long. They do not overlap."""
    begins = np.sort(draw.choice(length, min(int(draw.poisson(1.0)), most, length), replace=False)).tolist()
    return [(begin, begin + int(draw.integers(1, max(2, int(share * (end - begin))))))
            for begin, end in zip(begins, [*begins[1:], length])]


def fill_in_middle(ids: Sequence[int], spans: Sequence[Span], masks: Sequence[int], end: int,
                   ) -> tuple[list[int], list[int]]:
    """Move the gaps of a sequence to its end: the sequence with one mask for each gap, then `end`, then each mask
    followed by the contents of its gap. Also returns the position of each id in the original sequence, for
    `Layout.chain` (a mask has its gap's position, `end` the sequence's length).

    masks: mask ids, at least as many as there are gaps; neither they nor `end` may occur in a sequence.
    """
    if len(spans) > len(masks):
        raise SegueError(f"{len(spans)} gaps and {len(masks)} masks: give a mask for each")
    shown, filled, at = list[tuple[int, int]](), list[tuple[int, int]](), 0  # ids with their positions
    for mask, (begin, behind) in zip(masks, spans):
        if not at <= begin < behind <= len(ids):
            raise SegueError(f"gaps {list(spans)} of {len(ids)} elements: they lie in order, apart, and are not empty")
        shown += [*((ids[i], i) for i in range(at, begin)), (mask, begin)]
        filled += [(mask, begin), *((ids[i], i) for i in range(begin, behind))]
        at = behind
    whole = [*shown, *((ids[i], i) for i in range(at, len(ids))), (end, len(ids)), *filled]
    return [token for token, _ in whole], [position for _, position in whole]


def restore_gaps(tokens: Sequence[int], masks: Sequence[int], end: int) -> list[int]:
    """Put the gap contents after `end` back in place of their masks: the inverse of `fill_in_middle`."""
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
