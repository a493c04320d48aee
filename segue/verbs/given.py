"""What the verbs are given: data in any form, known letters, a dial of minutes or steps; and what to say of data that
a model does not know."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from segue.data import Data, of, read
from segue.errors import SegueError
from segue.kinds import Codec
from segue.kinds.codecs import ItemCodec


def unknown(codec: Codec, data: Data) -> float:
    """Which share of the data's items the codec has no token for."""
    known = set(items) if (items := getattr(codec, "items", None)) is not None else None
    if known is None or not data.total:
        return 0.0
    return sum(count for item, count in data.vocabulary.items() if item not in known) / data.total


def known_ids(codec: Codec, known: Any) -> list[int]:
    """The ids of letters, or of items (a list, or words of a text), and of the end, since blanks say how many they are.
    """
    if not codec.elementwise:
        raise SegueError("known letters need a codec of one token a letter, which this is not: choose another with "
                         "codec=, for text segue.kinds.ByteCodec()")
    given = known.split() if isinstance(codec, ItemCodec) and isinstance(known, str) else known
    ids = codec.encode(given if isinstance(given, (str, bytes, list)) else str(given)).tolist()
    if not ids or codec.unk in ids:
        raise SegueError(f"known={known!r} names nothing that there is: give letters, or items, of the sequences")
    return sorted({*ids, *([] if codec.eos is None else [codec.eos])})


def none_known(data: Data) -> SegueError:
    return SegueError(f"the model knows none of these {data.total:,} {data.kind.unit}s: give data of the sort it was "
                      "fitted on, or name the columns (who=, what=)")


def said_unknown(share: float, data: Data) -> str:
    return f"{share:.1%} of the {data.kind.unit}s are unknown to the model"


def said_as(name: str, options: dict[str, Any]) -> str:
    return f"with {name}={json.dumps(options[name])}" if name in options else f"without {name}="


def dial(minutes: float | None, steps: int | None, default: float) -> float | None:
    """The minutes of a run, or None where it has a number of steps; `default` where neither is given."""
    if minutes is not None and steps is not None:
        raise SegueError("give minutes or steps, not both")
    if (minutes is not None and not 0 < minutes < math.inf) or (steps is not None and steps < 1):
        raise SegueError(f"the dial must be more than 0, not {minutes if steps is None else steps}")
    return default if minutes is None and steps is None else minutes


def as_data(data: Any, kind: str | None = None, **reading: Any) -> Data:
    """A `Data`, a path, a list of paths that exist (read with these options), or objects in memory."""
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
