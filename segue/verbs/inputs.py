"""Checking and converting the arguments that several verbs share: data, known letters, minutes or steps."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from segue.data import Data, of, read
from segue.errors import SegueError
from segue.kinds import Codec
from segue.kinds.codecs import ItemCodec
from segue.training.recipe import same_type


def unknown_share(codec: Codec, data: Data) -> float:
    """The share of the data's items that the codec has no token for; 0 for codecs that can encode anything."""
    known = set(items) if (items := getattr(codec, "items", None)) is not None else None
    if known is None or not data.total:
        return 0.0
    return sum(count for item, count in data.vocabulary.items() if item not in known) / data.total


def known_ids(codec: Codec, known: Any) -> list[int]:
    """The ids of known letters, or of known items (a list, or the words of a string), and of the end token, which is
    known because the number of blanks gives the length."""
    if not codec.elementwise:
        raise SegueError("known letters need a codec of one token a letter, which this is not: choose another with "
                         "codec=, for text segue.kinds.ByteCodec()")
    elements = known.split() if isinstance(codec, ItemCodec) and isinstance(known, str) else known
    ids = codec.encode(elements if isinstance(elements, (str, bytes, list)) else str(elements)).tolist()
    if not ids or codec.unk in ids:
        raise SegueError(f"known={known!r} names nothing that there is: give letters, or items, of the sequences")
    return sorted({*ids, *([] if codec.eos is None else [codec.eos])})


def nothing_known_error(data: Data) -> SegueError:
    """The error for data none of whose items has a token in the codec."""
    return SegueError(f"the model knows none of these {data.total:,} {data.kind.unit}s: give data of the sort it was "
                      "fitted on, or name the columns (who=, what=)")


def describe_unknown(share: float, data: Data) -> str:
    """A note on the share of items that have no token."""
    return f"{share:.1%} of the {data.kind.unit}s are unknown to the model"


def describe_option(name: str, options: dict[str, Any]) -> str:
    """In words, whether an option was given, and with which value."""
    return f"with {name}={json.dumps(options[name])}" if name in options else f"without {name}="


def training_minutes(minutes: float | None, steps: int | None, default: float) -> float | None:
    """The time budget in minutes, `default` if neither is given, or None if the budget is a number of steps.

    Raises SegueError if both are given, or one is no number above 0.
    """
    for name, value, example in (("minutes", minutes, 2.5), ("steps", steps, 100)):
        if value is not None and not same_type(value, example):
            raise SegueError(f"{name} cannot be {value!r}: it is, for example, {example}")
    if minutes is not None and steps is not None:
        raise SegueError("give minutes or steps, not both")
    if (minutes is not None and not 0 < minutes < math.inf) or (steps is not None and steps < 1):
        raise SegueError(f"the dial must be more than 0, not {minutes if steps is None else steps}")
    return default if minutes is None and steps is None else minutes


def as_data(data: Any, kind: str | None = None, **reading: Any) -> Data:
    """Convert to `Data`: a `Data` itself, a path or a list of existing paths (read with `reading` as options), or
    objects in memory."""
    if isinstance(data, Data):
        return data
    if isinstance(data, Path) or (isinstance(data, str) and _exists(data)):
        return read(data, kind=kind, **reading)
    if isinstance(data, (list, tuple)) and data and all(isinstance(x, Path) or (isinstance(x, str) and _exists(x))
                                                        for x in data):
        return read(*data, kind=kind, **reading)
    return of(data, kind=kind)


def _exists(text: str) -> bool:
    try:
        return len(text) < 4096 and "\n" not in text and (Path(text).exists() or any(c in text for c in "*?["))
    except (OSError, ValueError):
        return False
