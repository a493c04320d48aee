"""The contract of a codec: objects to token ids and back."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from segue.errors import SegueError
from segue.files import read_json, write_json

END = "<end>"
UNKNOWN = "<unknown>"
MISSING = "?"  # in place of a cell that holds nothing


class Codec(ABC):
    """The contract of a codec.

    size: the number of token ids, special tokens included. bos, eos, unk, pad: the ids of special tokens, or None.
    elementwise: each token stands for exactly one element of the object, so that channels stay aligned with tokens.
    exact: `decode(encode(x)) == x`; otherwise decoding gives the nearest object the codec can represent, and encoding
        that gives the same ids again.
    counted: users give lengths in base units (bases), not in tokens.
    dummy_prefix: encoding puts a space in front of a text; decoding the ids of a whole text leaves it in.
    """

    name: ClassVar[str] = ""
    elementwise: ClassVar[bool] = True
    exact: ClassVar[bool] = True
    counted: ClassVar[bool] = False
    size: int
    bos: int | None = None
    eos: int | None = None
    unk: int | None = None
    pad: int | None = None
    dummy_prefix: bool = False
    _weights: np.ndarray | None = None

    @abstractmethod
    def encode(self, obj: Any) -> np.ndarray:
        """The token ids of an object, (n,) int32."""

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> Any:
        """The object that ids stand for; begin, end and padding tokens are skipped."""

    @abstractmethod
    def token(self, id: int) -> str:
        """A token as readable text."""

    @abstractmethod
    def weights(self) -> np.ndarray:
        """(size,) int64: how many base units (bytes, bases, residues, events) each token stands for; 0 for special
        tokens."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """The keyword arguments that rebuild this codec, as `codec.json` holds them."""

    def surrounded(self, obj: Any) -> np.ndarray:
        """The ids of a whole object with the special tokens around it, as an encoder model reads it."""
        return self.encode(obj)

    def prompt(self, obj: Any) -> np.ndarray:
        """The ids of a prompt: the beginning of an object that is to be continued."""
        return self.encode(obj)

    def turns(self) -> list[np.ndarray]:
        """For measured numbers, one array of ids for each column, in the order in which columns alternate: the levels
        in ascending order, then the missing value. Empty where elements are not numbers."""
        return []

    def varied(self, ids: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        """Subword regularisation: the ids of a training row under another, randomly drawn segmentation of the same
        length. The row itself where a codec has only one segmentation."""
        return ids

    def encode_many(self, objects: Sequence[Any]) -> list[np.ndarray]:
        """The ids of many objects, on several cores where the codec supports it."""
        return [self.encode(obj) for obj in objects]

    def lookup(self, elements: Sequence[Any] | None) -> np.ndarray | None:
        """A table from element to id, so that many records are encoded by one indexing operation: over the 256 byte
        values, or over `elements` where these are given; -1 where an element has no id. None where tokens are not
        elementwise."""
        return None

    def spelling(self) -> np.ndarray:
        """(size, L) int16: the bytes or letters that each token is made of, padded with -1."""
        pieces = [self.decode([id]) for id in range(self.size)]
        if isinstance(pieces[0], list):
            raise SegueError("the tokens of this codec are whole items, not made of letters: choose another objective")
        data = [as_bytes(piece) for piece in pieces]
        table = np.full((self.size, max(map(len, data))), -1, dtype=np.int16)
        for id, piece in enumerate(data):
            table[id, : len(piece)] = np.frombuffer(piece, dtype=np.uint8)
        return table

    def units(self, ids: Iterable[int]) -> int:
        """The number of base units these ids stand for."""
        if self._weights is None:
            self._weights = self.weights()
        return int(self._weights[self.checked(ids)].sum())

    def checked(self, ids: Iterable[int]) -> np.ndarray:
        """Ids as an int64 array; an id outside the vocabulary is a SegueError."""
        array = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids), dtype=np.int64).reshape(-1)
        if array.size and (array.min() < 0 or array.max() >= self.size):
            wrong = int(np.flatnonzero((array < 0) | (array >= self.size))[0])
            raise SegueError(
                f"token id {array[wrong]} at position {wrong} is outside the vocabulary of {self.size} tokens")
        return array

    def identity(self) -> str:
        """A text that is equal for equal codecs."""
        return self.name + json.dumps(self.state(), sort_keys=True)

    def save(self, folder: str | Path) -> None:
        write_json(Path(folder) / "codec.json", {"codec": self.name, **self.state()})

    @classmethod
    def load(cls, folder: str | Path) -> Codec:
        """Load the codec that `save` wrote into a folder, of whatever class."""
        from segue.kinds.codecs import CODECS  # which knows all codecs, and so imports this module

        path = Path(folder) / "codec.json"
        values = read_json(path)
        kind = CODECS.get(str(values.pop("codec", None))) if isinstance(values, dict) else None
        if kind is None:
            raise SegueError(f"{path} does not name a codec known here ({', '.join(CODECS)}): was it written by a "
                             "newer segue?")
        try:
            return kind.restore(Path(folder), values)
        except (TypeError, ValueError, KeyError) as error:
            raise SegueError(f"{path} does not describe a '{kind.name}' codec ({error}): copy the folder again") \
                from error

    @classmethod
    def restore(cls, folder: Path, values: dict[str, Any]) -> Codec:
        return cls(**values)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.identity() == other.identity()

    def __hash__(self) -> int:
        return hash((type(self), self.size))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.size} tokens)"


def as_bytes(obj: Any) -> bytes:
    """Bytes unchanged, or a str encoded as UTF-8 (surrogate escapes become the bytes they stand for)."""
    try:
        return obj.encode("utf-8", "surrogateescape") if isinstance(obj, str) else bytes(obj)
    except UnicodeEncodeError as error:
        raise SegueError(f"position {error.start + 1:,}: half of a surrogate pair, which is no character") from error


def shown(data: bytes) -> str:
    """Bytes as one line of readable text."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in data.decode("utf-8", "backslashreplace"))
