"""Codecs: objects to token ids and back.

Every codec here but those of measured numbers is exact (`decode(encode(x)) == x`) on all objects of its alphabet; what
lies outside is a SegueError.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from segue.errors import SegueError
from segue.files import read_json, write_json, write_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# The letters of the bases and residues, in the order of their ids. "-" is a gap; "*" a stop.
BASES = "ACGT"
NUCLEOTIDES = "ACGTNRYSWKMBDHVU-"
RESIDUES = "ACDEFGHIKLMNPQRSTVWYUOBZJX*-"

PRINTABLE = "".join(map(chr, range(33, 127)))
SMILES_SIGN = re.compile(r"\[[!-Z\\^-~]{1,80}\]|Br|Cl|%[0-9]{2}|.")

END = "<end>"
UNKNOWN = "<unknown>"
MISSING = "?"  # in place of a cell that holds nothing


class Codec(ABC):
    """The contract of a codec.

    size: number of token ids, specials included. bos, eos, unk, pad: ids of specials, or None.
    elementwise: one token is one element of the object, so that channels stay aligned.
    exact: decode gives back the object; else the nearest that the codec can say, which has the same ids.
    counted: how long an answer may be is said in base units, since people count those (bases) and not tokens.
    dummy_prefix: a blank is put before a text, which a text of its own, decoded without what stood before, begins with.
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
        """(n,) int32 ids of an object."""

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> Any:
        """The object of ids; begin, end and padding stand for nothing."""

    @abstractmethod
    def token(self, id: int) -> str:
        """A token, readable."""

    @abstractmethod
    def weights(self) -> np.ndarray:
        """(size,) int64: how many base units (bytes, bases, residues, events) each token stands for; specials 0."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What `codec.json` holds: the keyword arguments that make this codec again."""

    def surrounded(self, obj: Any) -> np.ndarray:
        """Ids of a whole object with what the codec puts before and behind one, as an encoder reads it."""
        return self.encode(obj)

    def prompt(self, obj: Any) -> np.ndarray:
        """Ids of the beginning of an object that is to be continued."""
        return self.encode(obj)

    def turns(self) -> list[np.ndarray]:
        """Of measured numbers, column by column as they take turns: the ids of the numbers that can be said, rising,
        and last that of a missing one. Empty where elements are no numbers."""
        return []

    def varied(self, ids: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        """A row to learn from, as it might have been cut otherwise: ids of the same number. The row itself where a
        codec knows but one way."""
        return ids

    def encode_many(self, objects: Sequence[Any]) -> list[np.ndarray]:
        """Ids of many objects; codecs that can work on several cores at once do so."""
        return [self.encode(obj) for obj in objects]

    def lookup(self, elements: Sequence[Any] | None) -> np.ndarray | None:
        """Ids of all elements there are (the 256 bytes or letters, or `elements`; -1: none), so that many records are
        encoded at once; None where elements are not encoded one by one."""
        return None

    def spelling(self) -> np.ndarray:
        """(size, L) int16: the codes of the bytes or letters that each token is made of, -1 behind its end."""
        pieces = [self.decode([id]) for id in range(self.size)]
        if isinstance(pieces[0], list):
            raise SegueError("the tokens of this codec are whole items, not made of letters: choose another objective")
        data = [as_bytes(piece) for piece in pieces]
        table = np.full((self.size, max(map(len, data))), -1, dtype=np.int16)
        for id, piece in enumerate(data):
            table[id, : len(piece)] = np.frombuffer(piece, dtype=np.uint8)
        return table

    def units(self, ids: Iterable[int]) -> int:
        """How many base units these ids stand for."""
        if self._weights is None:
            self._weights = self.weights()
        return int(self._weights[self.checked(ids)].sum())

    def checked(self, ids: Iterable[int]) -> np.ndarray:
        """Ids as an int64 array; one outside the vocabulary is an error."""
        array = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids), dtype=np.int64).reshape(-1)
        if array.size and (array.min() < 0 or array.max() >= self.size):
            wrong = int(np.flatnonzero((array < 0) | (array >= self.size))[0])
            raise SegueError(
                f"token id {array[wrong]} at position {wrong} is outside the vocabulary of {self.size} tokens")
        return array

    def identity(self) -> str:
        """All that makes the codec what it is, as text."""
        return self.name + json.dumps(self.state(), sort_keys=True)

    def save(self, folder: str | Path) -> None:
        write_json(Path(folder) / "codec.json", {"codec": self.name, **self.state()})

    @classmethod
    def load(cls, folder: str | Path) -> Codec:
        """Load any codec that was saved in a folder."""
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
    """Bytes as they are, or a str as UTF-8; bytes that Python could not decode become what they were."""
    try:
        return obj.encode("utf-8", "surrogateescape") if isinstance(obj, str) else bytes(obj)
    except UnicodeEncodeError as error:
        raise SegueError(f"position {error.start + 1:,}: half of a surrogate pair, which is no character") from error


def shown(data: bytes) -> str:
    """Bytes as one readable line."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in data.decode("utf-8", "backslashreplace"))


class ByteCodec(Codec):
    """One token a byte, and one that ends a document: 257 tokens."""

    name = "byte"

    def __init__(self) -> None:
        self.size, self.bos, self.eos = 257, 256, 256

    def encode(self, obj: bytes | str) -> np.ndarray:
        return np.frombuffer(as_bytes(obj), dtype=np.uint8).astype(np.int32)

    def lookup(self, elements: Sequence[Any] | None) -> np.ndarray | None:
        return np.arange(256, dtype=np.int32) if elements is None else None

    def decode(self, ids: Iterable[int]) -> bytes:
        array = self.checked(ids)
        return array[array < 256].astype(np.uint8).tobytes()

    def token(self, id: int) -> str:
        return END if id == 256 else shown(bytes([id]))

    def weights(self) -> np.ndarray:
        return np.array([1] * 256 + [0], dtype=np.int64)

    def state(self) -> dict[str, Any]:
        return {}


def byte_letters() -> list[str]:
    """The printable stand-in for each byte that byte-level tokenizer files use (bytes without a glyph of their own are
    moved up to U+0100 and on, in order)."""
    kept = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    moved = iter(range(0x100, 0x200))
    return [chr(b) if b in kept else chr(next(moved)) for b in range(256)]


BYTES = {letter: byte for byte, letter in enumerate(byte_letters())}


def spelled(piece: str) -> bytes | None:
    """The bytes for which the letters of a byte-level piece stand; None where others are among them."""
    return bytes(map(BYTES.__getitem__, piece)) if BYTES.keys() >= set(piece) else None


@contextmanager
def _tokenizer_file(path: str | Path) -> Iterator[None]:
    """Names the file where the tokenizers library, which raises bare `Exception`, cannot use it."""
    try:
        yield
    except SegueError:
        raise
    except Exception as error:
        raise SegueError(f"{path} is not a tokenizer file of the tokenizers library ({error})") from error


class PieceCodec(Codec):
    """What codecs over a `tokenizer.json` share. tokenizer: of the `tokenizers` library. pieces: bytes by id."""

    elementwise = False
    pieces: list[bytes]

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.tokenizer = tokenizer

    def decode(self, ids: Iterable[int]) -> bytes:
        return b"".join([self.pieces[id] for id in self.checked(ids).tolist()])

    def weights(self) -> np.ndarray:
        return np.array([len(piece) for piece in self.pieces], dtype=np.int64)

    def identity(self) -> str:
        return super().identity() + self.tokenizer.to_str()

    def save(self, folder: str | Path) -> None:
        write_text(Path(folder) / "tokenizer.json", self.tokenizer.to_str(pretty=False))
        super().save(folder)


# A word with the blank before it; up to three digits; a run of signs; line ends with the indentation after; blanks.
WORDS = r" ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s*[\r\n][ \t]*|\s+(?!\S)|\s+"
NUMBER = re.compile(r"-?[0-9]+")
ESCAPED = re.compile("[\udc80-\udcff]+")
CHUNK = 1 << 15


class BPECodec(PieceCodec):
    """Byte-pair encoding over bytes: exact on any bytes, valid UTF-8 or not. Made by `train` or `from_tokenizer`.

    Valid UTF-8 goes through the `tokenizers` library; each byte that is not takes its own one-byte token. Begin and end
    of a document lie outside the tokenizer, so no text can spell them.
    """

    name = "bpe"

    def __init__(self, tokenizer: Tokenizer, end: int | None = None) -> None:
        """tokenizer: a byte-level BPE of the `tokenizers` library. end: the id that bounds documents (one more than the
        tokenizer has, if None)."""
        super().__init__(tokenizer)
        tokenizer.encode_special_tokens = True
        count = tokenizer.get_vocab_size(with_added_tokens=True)
        end = count if end is None else end
        self.bos = self.eos = end
        self.size = max(count, end + 1)
        added = tokenizer.get_added_tokens_decoder()
        self.pieces = []
        for id in range(self.size):
            piece = tokenizer.id_to_token(id) or ""
            data = None if id in added else spelled(piece)
            self.pieces.append(piece.encode() if data is None else data)
        self.pieces[end] = b""
        singles = [tokenizer.token_to_id(letter) for letter in BYTES]
        if None in singles:
            raise SegueError(f"this tokenizer has no token for byte {singles.index(None)}: it is not a byte-level BPE; "
                             "use its own library or train one here")
        self.single = np.array(singles, dtype=np.int32)  # the token of each byte by itself

    @classmethod
    def train(cls, texts: Iterable[bytes | str], vocabulary: int = 2048, pattern: str | None = WORDS) -> BPECodec:
        """Learn merges from texts until there are `vocabulary` tokens (257 at least), the end token included. pattern:
        the words that no merge goes beyond, a regular expression; None: texts are not cut, which suits sequences
        without blanks (DNA, proteins) and short lines."""
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

        if vocabulary < 257:
            raise SegueError(f"a BPE vocabulary of {vocabulary} is too small: at least 257 (bytes and the end); or "
                             "take the byte codec")
        tokenizer = Tokenizer(models.BPE())
        letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = letters if pattern is None else \
            pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), letters])
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=vocabulary - 1, show_progress=False, special_tokens=[],
                                      initial_alphabet=byte_letters())
        tokenizer.train_from_iterator((as_bytes(text).decode("utf-8", "replace") for text in texts), trainer)
        return cls(tokenizer)

    @classmethod
    def from_tokenizer(cls, path: str | Path, end: int | str | None = None) -> BPECodec:
        """Load a `tokenizer.json` written by anyone; `end` names its own end token ("<|endoftext|>") or id."""
        from tokenizers import Tokenizer

        with _tokenizer_file(path):
            tokenizer = Tokenizer.from_file(str(path))
        if isinstance(end, str):
            id = tokenizer.token_to_id(end)
            if id is None:
                raise SegueError(f"{path} has no token '{end}' to end a document with")
            end = id
        return cls(tokenizer, end)

    def encode(self, obj: bytes | str) -> np.ndarray:
        return self.encode_many([obj])[0]

    def encode_many(self, objects: Sequence[bytes | str]) -> list[np.ndarray]:
        texts: list[str] = []  # valid UTF-8, in pieces small enough to share among cores
        plans: list[list[int | bytes]] = []  # per object: an index into texts, or bytes that are not UTF-8
        for obj in objects:
            plan: list[int | bytes] = []
            text = as_bytes(obj).decode("utf-8", "surrogateescape")
            start = 0
            for wrong in ESCAPED.finditer(text):
                plan += self._chunks(text[start : wrong.start()], texts)
                plan.append(wrong.group().encode("utf-8", "surrogateescape"))
                start = wrong.end()
            plan += self._chunks(text[start:], texts)
            plans.append(plan)
        found = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False) if texts else []
        encoded = []
        for plan in plans:
            parts = [self.single[np.frombuffer(step, dtype=np.uint8)] if isinstance(step, bytes) else
                     np.array(found[step].ids, dtype=np.int32) for step in plan]
            encoded.append(np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32))
        return encoded

    @staticmethod
    def _chunks(text: str, texts: list[str]) -> list[int | bytes]:
        """Cut text before a line that is not indented, where merges hardly cross, about every CHUNK characters."""
        indices: list[int | bytes] = []
        start = 0
        while start < len(text):
            stop = len(text)
            if stop - start > 2 * CHUNK:
                stop = text.rfind("\n", start + CHUNK, start + 2 * CHUNK)
                while stop > 0 and text[stop + 1 : stop + 2].isspace():
                    stop = text.rfind("\n", start + CHUNK, stop)
                stop = stop + 1 if stop > 0 else start + 2 * CHUNK
            indices.append(len(texts))
            texts.append(text[start:stop])
            start = stop
        return indices

    def token(self, id: int) -> str:
        return END if id == self.eos else shown(self.pieces[id])

    def state(self) -> dict[str, Any]:
        return {"end": self.eos}

    @classmethod
    def restore(cls, folder: Path, values: dict[str, Any]) -> BPECodec:
        return cls.from_tokenizer(folder / "tokenizer.json", int(values["end"]))


class LetterCodec(Codec):
    """One token a letter of a fixed alphabet (bases, residues), and one that ends a sequence. letters: different ASCII
    letters, in the order of their ids."""

    name = "letters"

    def __init__(self, letters: str) -> None:
        if not letters or len(set(letters)) != len(letters) or not letters.isascii():
            raise SegueError(f"an alphabet is made of different ASCII letters, not {letters!r}")
        self.letters = letters
        self.size = len(letters) + 1
        self.bos = self.eos = len(letters)
        self.table = np.full(256, -1, dtype=np.int32)
        self.table[np.frombuffer(letters.encode(), dtype=np.uint8)] = np.arange(len(letters))
        self.back = np.frombuffer(letters.encode(), dtype=np.uint8)

    def encode(self, obj: str) -> np.ndarray:
        ids = self.table[np.frombuffer(obj.encode("ascii", "replace"), dtype=np.uint8)]
        if ids.size and ids.min() < 0:
            wrong = int(np.flatnonzero(ids < 0)[0])
            raise SegueError(f"position {wrong + 1}: {obj[wrong]!r} is not one of the letters {self.letters}")
        return ids

    def lookup(self, elements: Sequence[Any] | None) -> np.ndarray | None:
        return self.table if elements is None else None

    def decode(self, ids: Iterable[int]) -> str:
        array = self.checked(ids)
        return self.back[array[array < len(self.letters)]].tobytes().decode()

    def token(self, id: int) -> str:
        return END if id == self.eos else self.letters[id]

    def weights(self) -> np.ndarray:
        return np.array([1] * len(self.letters) + [0], dtype=np.int64)

    def state(self) -> dict[str, Any]:
        return {"letters": self.letters}


class KmerCodec(Codec):
    """Words of `k` bases (or other letters), without overlap; what is left over and words with any other letter are
    spelled letter by letter (the 6-mers of GENERator, arXiv 2502.07272, which has no letters and loses what is left).

    k: 2 to 10. letters: all that a sequence may hold. bases: those that words are made of, at most 4**10 words in all.
    Ids: the words, as numbers in base `len(bases)`, first letter first; then the single letters; then the end. Exact,
    whatever the length and wherever words begin.

    Words begin with a sequence. One that is to be continued has its words aligned with its end instead (`prompt`), so
    that the answer begins with a word; in training rows begin anywhere in a word (`varied`), so that a model knows
    both.
    """

    name = "kmer"
    elementwise = False
    counted = True

    def __init__(self, k: int, letters: str = NUCLEOTIDES, bases: str = BASES) -> None:
        self.single, self.bases = LetterCodec(letters), LetterCodec(bases)
        if not 1 < k <= 10 or len(bases) ** k > 4**10:
            raise SegueError(
                f"k = {k}: words of 2 to 10 bases, at most {4**10:,} different ones ({len(bases)}**k tokens); for "
                "single letters leave k out")
        if not set(bases) <= set(letters):
            raise SegueError(f"words of {bases} are made of other letters than {letters}: give both alike")
        self.k = k
        self.words = len(bases) ** k
        self.size = self.words + len(letters) + 1
        self.bos = self.eos = self.size - 1
        self.powers = len(bases) ** np.arange(k - 1, -1, -1, dtype=np.int64)

    def encode(self, obj: str, phase: int = 0) -> np.ndarray:
        """phase: so many letters are spelled before the first word."""
        letters = self.single.encode(obj) + self.words  # also checks the alphabet
        end = phase + max(0, len(obj) - phase) // self.k * self.k
        digits = self.bases.table[np.frombuffer(obj.encode(), dtype=np.uint8)[phase:end]].reshape(-1, self.k)
        pure = (digits >= 0).all(1)
        words = (digits @ self.powers).astype(np.int32)
        if not pure.all():
            width = np.where(pure, 1, self.k)
            out = np.empty(int(width.sum()), dtype=np.int32)
            at = np.cumsum(width) - width
            out[at[pure]] = words[pure]
            out[at[~pure][:, None] + np.arange(self.k)] = letters[phase:end].reshape(-1, self.k)[~pure]
            words = out
        return np.concatenate([letters[:phase], words, letters[end:]])

    def prompt(self, obj: str) -> np.ndarray:
        return self.encode(obj, len(obj) % self.k)

    def varied(self, ids: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        """The row read from another phase, drawn: it begins behind a begin, with the letters before the first word. One
        that is a whole sequence stays whole, and of the phases has those in which it is as long. A row of which too
        few ids would come (other letters cut its words) stays as it is."""
        begun, ended = bool(ids[0] == self.bos), len(ids) > 1 and bool(ids[-1] == self.eos)
        text = self.decode(ids)
        cut = not (begun and ended)
        phase = int(draw.integers(self.k if cut else len(text) % self.k + 1))
        if phase == 0 or (cut and ended):
            return ids
        new = np.concatenate([[self.bos], self.encode(text, phase), [self.eos] * ended])
        if cut:  # the last letters, less than a word, are those of a word that is cut off
            new = new[: len(new) - (len(text) - phase) % self.k]
        return new[: len(ids)].astype(ids.dtype) if len(new) >= len(ids) and (cut or len(new) == len(ids)) else ids

    def decode(self, ids: Iterable[int]) -> str:
        array = self.checked(ids)
        array = array[array < self.size - 1]
        word = array < self.words
        width = np.where(word, self.k, 1)
        out = np.empty(int(width.sum()), dtype=np.uint8)
        at = np.cumsum(width) - width
        digits = array[word][:, None] // self.powers % len(self.bases.letters)
        out[at[word][:, None] + np.arange(self.k)] = self.bases.back[digits]
        out[at[~word]] = self.single.back[array[~word] - self.words]
        return out.tobytes().decode()

    def token(self, id: int) -> str:
        return END if id == self.eos else self.decode([id])

    def weights(self) -> np.ndarray:
        return np.array([self.k] * self.words + [1] * len(self.single.letters) + [0], dtype=np.int64)

    def state(self) -> dict[str, Any]:
        return {"k": self.k, "letters": self.single.letters, "bases": self.bases.letters}


class SmilesCodec(Codec):
    """A token a sign of SMILES, as usual since Schwaller et al. 2018 (arXiv 1711.04810): the printable ASCII
    characters, then the `signs` of several, such as Cl, [nH] and %10; last the end. A sign that has no token is spelled
    in characters, so that every text of printable ASCII without blanks comes back."""

    name = "smiles"
    elementwise = False

    def __init__(self, signs: Sequence[str]) -> None:
        self.signs = list(signs)
        self.spellings = [*PRINTABLE, *self.signs]
        self.ids = {sign: id for id, sign in enumerate(self.spellings)}
        if len(self.ids) != len(self.spellings) or any(not SMILES_SIGN.fullmatch(sign) for sign in self.signs):
            raise SegueError("the signs of a SMILES codec are different ones, of several characters each")
        self.bos = self.eos = len(self.spellings)
        self.size = len(self.spellings) + 1

    def encode(self, obj: str) -> np.ndarray:
        ids: list[int] = []
        for sign in SMILES_SIGN.findall(obj):
            id = self.ids.get(sign)
            try:
                ids += [self.ids[letter] for letter in sign] if id is None else [id]
            except KeyError as error:
                raise SegueError(f"{obj[:60]!r}: {error.args[0]!r} is no printable ASCII character") from error
        if sum(map(len, (self.spellings[id] for id in ids))) != len(obj):
            raise SegueError(f"{obj[:60]!r} has a line end in it, which SMILES has not")
        return np.array(ids, dtype=np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        array = self.checked(ids)
        return "".join(self.spellings[id] for id in array[array != self.eos].tolist())

    def token(self, id: int) -> str:
        return END if id == self.eos else self.spellings[id]

    def weights(self) -> np.ndarray:
        return np.array([*map(len, self.spellings), 0], dtype=np.int64)

    def state(self) -> dict[str, Any]:
        return {"signs": self.signs}


class ItemCodec(Codec):
    """One token an item (str or int), most frequent first; then the unknown item; then the end.

    An item never seen (or seen fewer than `min_count` times) becomes the unknown item, which decodes as "<unknown>".
    """

    name = "items"

    def __init__(self, items: Sequence[str | int]) -> None:
        self.items = list(items)
        self.ids = {item: id for id, item in enumerate(self.items)}
        if len(self.ids) != len(self.items) or not all(isinstance(item, (str, int)) for item in self.items):
            raise SegueError("the items of a codec are different strings or whole numbers")
        self.unk = len(self.items)
        self.bos = self.eos = self.unk + 1
        self.size = self.unk + 2

    @classmethod
    def count(cls, counts: Mapping[Any, int], min_count: int = 1, vocabulary: int | None = None) -> ItemCodec:
        """Items by how often they were seen; ties in the order of the items. `vocabulary` bounds the number of tokens,
        the unknown item and the end included."""
        if vocabulary is not None and vocabulary < 3:
            raise SegueError(f"a vocabulary of {vocabulary} leaves no room for items: at least 3")
        order = sorted((item for item, n in counts.items() if n >= min_count), key=lambda item: (-counts[item], item))
        return cls(order if vocabulary is None else order[: vocabulary - 2])

    def encode(self, obj: Sequence[str | int]) -> np.ndarray:
        ids, unknown = self.ids, self.unk
        if self.items and not isinstance(self.items[0], str):  # numbers typed as text are meant as numbers
            obj = [int(item) if isinstance(item, str) and NUMBER.fullmatch(item) else item for item in obj]
        return np.fromiter((ids.get(item, unknown) for item in obj), dtype=np.int32, count=len(obj))

    def lookup(self, elements: Sequence[Any] | None) -> np.ndarray | None:
        return None if elements is None else self.encode(elements)

    def decode(self, ids: Iterable[int]) -> list[str | int]:
        array = self.checked(ids)
        return [UNKNOWN if id == self.unk else self.items[id] for id in array[array != self.eos].tolist()]

    def token(self, id: int) -> str:
        return END if id == self.eos else UNKNOWN if id == self.unk else str(self.items[id])

    def weights(self) -> np.ndarray:
        return np.array([1] * (len(self.items) + 1) + [0], dtype=np.int64)

    def state(self) -> dict[str, Any]:
        return {"items": self.items}


class TokenizerCodec(PieceCodec):
    """A `tokenizer.json` of any sort, used as its own model uses it: the codec of a Hugging Face folder.

    Unlike `BPECodec` it reads special tokens where a text spells them (chat marks), and puts in front of a text what
    the tokenizer puts there (`bos`; None for many). What is encoded must be UTF-8. Decoding gives the bytes of each
    token by itself, so pieces join; tokenizers that change the text (lower case, other blanks) do not give it back.
    """

    name = "tokenizer"

    def __init__(self, tokenizer: Tokenizer, size: int | None = None, eos: int | None = None) -> None:
        """size: of the model's vocabulary, which may be larger than the tokenizer's. eos: the id that ends a text."""
        super().__init__(tokenizer)
        count = tokenizer.get_vocab_size(with_added_tokens=True)
        self.size, self.eos = size or count, eos
        bare = tokenizer.encode("a", add_special_tokens=False).ids
        front = tokenizer.encode("a", add_special_tokens=True).ids
        while bare and front[-len(bare) :] != bare and front:
            front.pop()  # what is put behind a text is not asked for where it is to be continued
        front = front[: len(front) - len(bare)]
        if len(front) > 1:
            raise SegueError(f"this tokenizer puts {len(front)} tokens before a text, of which only one is supported")
        self.bos = front[0] if front else None
        sort, added = decoding_of(tokenizer), tokenizer.get_added_tokens_decoder()
        self.pieces = [self._piece(id, sort, added) for id in range(min(count, self.size))]
        self.pieces += [b""] * (self.size - len(self.pieces))
        # Tokenizers of this sort put a blank before a text; behind `bos` it is none of the text.
        self.dummy_prefix = sort == "blanks" and self.decode(bare)[:1] == b" "

    def _piece(self, id: int, sort: str, added: Mapping[int, Any]) -> bytes:
        """What a token stands for by itself; special ones for nothing."""
        piece = self.tokenizer.id_to_token(id) or ""
        if sort == "blanks" and (byte := re.fullmatch("<0x([0-9A-Fa-f]{2})>", piece)):
            return bytes.fromhex(byte[1])
        if id in added:
            return b"" if added[id].special else added[id].content.encode()
        if sort == "bytes" and (data := spelled(piece)) is not None:
            return data
        return piece.replace("\u2581", " ").encode() if sort == "blanks" else self.tokenizer.decode([id]).encode()

    @classmethod
    def from_file(cls, path: str | Path, size: int | None = None, eos: int | None = None) -> TokenizerCodec:
        from tokenizers import Tokenizer

        with _tokenizer_file(path):
            return cls(Tokenizer.from_file(str(path)), size, eos)

    def encode(self, obj: bytes | str) -> np.ndarray:
        return self._encode(obj, False)

    def surrounded(self, obj: bytes | str) -> np.ndarray:
        return self._encode(obj, True)

    def _encode(self, obj: bytes | str, around: bool) -> np.ndarray:
        try:
            text = as_bytes(obj).decode("utf-8")
        except UnicodeDecodeError as error:
            raise SegueError(f"byte {error.start:,} is not UTF-8, which is all that this tokenizer reads") from error
        return np.array(self.tokenizer.encode(text, add_special_tokens=around).ids, dtype=np.int32)

    def decode(self, ids: Iterable[int]) -> bytes:
        array = self.checked(ids)
        text = super().decode(array)
        behind = self.dummy_prefix and len(array) > 0 and array[0] == self.bos
        return text.removeprefix(b" ") if behind else text

    def token(self, id: int) -> str:
        return END if id == self.eos else shown(self.pieces[id]) or str(self.tokenizer.id_to_token(id))

    def state(self) -> dict[str, Any]:
        return {"size": self.size, "eos": self.eos}

    @classmethod
    def restore(cls, folder: Path, values: dict[str, Any]) -> TokenizerCodec:
        return cls.from_file(folder / "tokenizer.json", **values)


def decoding_of(tokenizer: Tokenizer) -> str:
    """How a tokenizer spells its tokens: "bytes" (stand-ins for bytes), "blanks" (U+2581 for a blank) or "words"."""
    decoder = json.loads(tokenizer.to_str()).get("decoder") or {}
    kinds = [step.get("type") for step in decoder.get("decoders", [decoder])]
    marks = [step.get("pattern", {}).get("String") for step in decoder.get("decoders", [decoder])]
    if "ByteLevel" in kinds:
        return "bytes"
    return "blanks" if "Metaspace" in kinds or "\u2581" in marks else "words"


SORTS = 24  # levels of a column up to which its numbers are of sorts rather than measured


class LevelCodec(Codec):
    """Measured numbers: each is one of the levels of its column, or missing. An element is a str: the number, "nan"
    where there is none; of several columns with the column before it ("temperature=21.5").

    levels: the numbers that can be said of each column, rising; a number becomes the nearest. Ids: the levels of the
    first column, its missing value, those of the next column; last the end. Numbers have seven digits. column: what the
    files called a column that is alone, and nameless here.
    """

    name = "levels"
    exact = False

    def __init__(self, levels: Mapping[str, Sequence[float]], column: str = "") -> None:
        self.column = column
        self.levels = {column: [float(decimal(level)) for level in rising] for column, rising in levels.items()}
        for column, rising in self.levels.items():
            if not rising or any(a >= b for a, b in zip(rising, rising[1:])) or not np.isfinite(rising).all():
                raise SegueError(f"the levels of column '{column}' are not rising numbers")
        self.between = {column: (np.array(rising[1:]) + rising[:-1]) / 2 for column, rising in self.levels.items()}
        sizes = [len(rising) + 1 for rising in self.levels.values()]
        self.starts = dict(zip(self.levels, np.cumsum([0, *sizes]).tolist()))
        self.elements = [element(column, level) for column, rising in self.levels.items()
                         for level in (*rising, np.nan)]
        self.bos = self.eos = len(self.elements)
        self.size = self.eos + 1

    def lookup(self, elements: Sequence[Any] | None) -> np.ndarray | None:
        return None if elements is None else self.encode(elements)

    def encode(self, obj: Sequence[str]) -> np.ndarray:
        columns, numbers = zip(*map(parted, obj)) if len(obj) else ((), ())
        ids = np.empty(len(obj), dtype=np.int32)
        for column in dict.fromkeys(columns):
            mine = np.array([each == column for each in columns])
            if column not in self.levels:
                raise SegueError(f"position {int(np.argmax(mine)) + 1:,}: there is no column '{column}' here; there "
                                 f"{'is' if len(self.levels) == 1 else 'are'} {', '.join(map(repr, self.levels))}")
            values = np.array(numbers)[mine]
            found = np.searchsorted(self.between[column], values)
            ids[mine] = self.starts[column] + np.where(np.isnan(values), len(self.levels[column]), found)
        return ids

    def decode(self, ids: Iterable[int]) -> list[str]:
        array = self.checked(ids)
        return [self.elements[id] for id in array[array != self.eos].tolist()]

    def token(self, id: int) -> str:
        return END if id == self.eos else self.elements[id]

    def turns(self) -> list[np.ndarray]:
        return [np.arange(self.starts[column], self.starts[column] + len(rising) + 1)
                for column, rising in self.levels.items()]

    def moved(self, ids: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        """The same course elsewhere: by chance all columns that are measured (of more than `SORTS` levels) a part of
        the way to their least or greatest level. Tomorrow's numbers may lie where few did."""
        way = draw.uniform(-1, 1)
        if draw.random() < 0.5:
            return ids
        found = ids.copy()
        for column, rising in self.levels.items():
            mine = (ids >= self.starts[column]) & (ids < self.starts[column] + len(rising))
            if len(rising) <= SORTS or not mine.any():
                continue
            values = np.array(rising)[ids[mine] - self.starts[column]]
            values = values + way * (rising[-1] - values.max() if way > 0 else values.min() - rising[0])
            found[mine] = self.starts[column] + np.searchsorted(self.between[column], values)
        return found

    def weights(self) -> np.ndarray:
        return np.array([1] * len(self.elements) + [0], dtype=np.int64)

    def state(self) -> dict[str, Any]:
        return {"levels": self.levels, **({"column": self.column} if self.column else {})}


def decimal(number: float) -> str:
    """A measured number as text: seven digits, as many as 32 bits hold; "nan" where there is none."""
    return f"{number:.7g}".replace("-0", "0") if number == 0 else f"{number:.7g}"


def element(column: str, number: float) -> str:
    """A measured number of a column; the column of a series that has but one is called nothing."""
    return f"{column}={decimal(number)}" if column else decimal(number)


def parted(text: str) -> tuple[str, float]:
    """The column and the number of an element."""
    column, _, number = str(text).rpartition("=")
    try:
        return column, float(number)
    except ValueError as error:
        raise SegueError(f"{text!r:.60} is no measured number: give numbers, or column=number") from error


class CellCodec(Codec):
    """Rows of a table: an element is a cell with its column before it ("age=39", "sex=female", "age=?" where there is
    none). columns: what each may say: numbers, rising, of which a cell becomes the nearest; or texts, of which an
    unknown one becomes missing. Ids: what the first column may say and that it is missing, those of the next column;
    last the end."""

    name = "cells"
    exact = False

    def __init__(self, columns: Mapping[str, Sequence[float] | Sequence[str]]) -> None:
        self.columns: dict[str, list[Any]] = {column: list(values) for column, values in columns.items()}
        self.elements: list[str] = []
        self.starts: dict[str, int] = {}
        self.between: dict[str, np.ndarray] = {}
        for column, values in self.columns.items():
            if "=" in column or not column.isprintable() or len(set(values)) < len(values):
                raise SegueError(f"column '{column}' has a name with =, or says a thing twice")
            self.starts[column] = len(self.elements)
            if values and not isinstance(values[0], str):
                self.between[column] = (np.array(values[1:]) + values[:-1]) / 2
            self.elements += [element(column, each) if column in self.between else f"{column}={each}"
                              for each in values] + [f"{column}={MISSING}"]
        self.ids = {each: id for id, each in enumerate(self.elements)}
        self.bos = self.eos = len(self.elements)
        self.size = self.eos + 1

    def encode(self, obj: Sequence[str]) -> np.ndarray:
        return np.fromiter((self.ids[each] if each in self.ids else self._nearest(each) for each in obj),
                           dtype=np.int32, count=len(obj))

    def _nearest(self, element: str) -> int:
        column, sign, cell = str(element).partition("=")
        if column not in self.columns or not sign:
            raise SegueError(f"{element!r:.60}: there is no column '{column}' here; there are "
                             f"{', '.join(self.columns)} (give column=value)")
        if column in self.between:
            with suppress(ValueError):
                if np.isfinite(number := float(cell)):
                    return self.starts[column] + int(np.searchsorted(self.between[column], number))
        return self.starts[column] + len(self.columns[column])

    def decode(self, ids: Iterable[int]) -> list[str]:
        array = self.checked(ids)
        return [self.elements[id] for id in array[array != self.eos].tolist()]

    def token(self, id: int) -> str:
        return END if id == self.eos else self.elements[id]

    def cells(self) -> list[np.ndarray]:
        """The ids of each column; the last that nothing is there."""
        return [np.arange(start, start + len(self.columns[column]) + 1) for column, start in self.starts.items()]

    def numbers(self) -> np.ndarray:
        """(size, C): what the ids say in numbers: a column for each of numbers, and for each thing that another says
        one of 1 (it does) and 0; nan elsewhere."""
        sides = []
        for column, ids in zip(self.columns, self.cells()):
            if column in self.between:
                said = [np.append(self.columns[column], np.nan)]
            else:
                said = list(np.eye(len(ids))[: len(ids) - 1])
            for each in said:
                sides.append(np.full(self.size, np.nan))
                sides[-1][ids] = each
        return np.stack(sides, 1) if sides else np.zeros((self.size, 0))

    def weights(self) -> np.ndarray:
        return np.array([1] * len(self.elements) + [0], dtype=np.int64)

    def state(self) -> dict[str, Any]:
        return {"columns": self.columns}


class IdCodec(Codec):
    """Token ids as they are, for a model that came without a tokenizer: objects are lists of whole numbers. size: of
    the model's vocabulary. eos: the id that ends a text, if one does."""

    name = "ids"

    def __init__(self, size: int, eos: int | None = None) -> None:
        self.size, self.eos = size, eos

    def encode(self, obj: Sequence[int | str]) -> np.ndarray:
        try:
            typed = (str(item).split() for item in obj)  # "5 6, 7" is cut at its comma alone
            return self.checked([int(number) for numbers in typed for number in numbers]).astype(np.int32)
        except ValueError as error:
            raise SegueError(f"this model came without a tokenizer, so it knows token ids only, not {str(obj)[:60]!r}: "
                             f"give whole numbers below {self.size}") from error

    def decode(self, ids: Iterable[int]) -> list[int]:
        return self.checked(ids).tolist()

    def token(self, id: int) -> str:
        return END if id == self.eos else str(id)

    def weights(self) -> np.ndarray:
        weights = np.ones(self.size, dtype=np.int64)
        if self.eos is not None:
            weights[self.eos] = 0
        return weights

    def state(self) -> dict[str, Any]:
        return {"size": self.size, "eos": self.eos}


CODECS: dict[str, type[Codec]] = {codec.name: codec for codec in (
    ByteCodec, BPECodec, TokenizerCodec, LetterCodec, KmerCodec, SmilesCodec, ItemCodec, LevelCodec, CellCodec,
    IdCodec)}
