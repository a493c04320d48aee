"""Text as bytes, as byte-pair encoding, and as any `tokenizer.json` cuts it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from segue.errors import SegueError
from segue.files import write_text
from segue.kinds.codecs.base import END, Codec, as_bytes, shown

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# A word with the space before it; up to three digits; punctuation; line ends with the indentation that follows; spaces.
WORDS = r" ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s*[\r\n][ \t]*|\s+(?!\S)|\s+"
ESCAPED = re.compile("[\udc80-\udcff]+")
CHUNK = 1 << 15  # characters that are encoded as one piece


class ByteCodec(Codec):
    """One token for each byte value, and one that ends a document: 257 tokens."""

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
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(b) if b in printable else chr(next(spare)) for b in range(256)]


BYTES = {letter: byte for byte, letter in enumerate(byte_letters())}


def spelled(piece: str) -> bytes | None:
    """The bytes that a byte-level piece stands for; None where it holds other characters than `byte_letters`."""
    return bytes(map(BYTES.__getitem__, piece)) if BYTES.keys() >= set(piece) else None


@contextmanager
def _tokenizer_file(path: str | Path) -> Iterator[None]:
    """Turns what the tokenizers library raises (a bare `Exception`) into a SegueError that names the file."""
    try:
        yield
    except SegueError:
        raise
    except Exception as error:
        raise SegueError(f"{path} is not a tokenizer file of the tokenizers library ({error})") from error


class PieceCodec(Codec):
    """Base class of the codecs over a `tokenizer.json`. tokenizer: of the `tokenizers` library. pieces: the bytes of
    each token id."""

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


class BPECodec(PieceCodec):
    """Byte-pair encoding over bytes: exact on any bytes, valid UTF-8 or not. Made by `train` or `from_tokenizer`.

    Valid UTF-8 goes through the `tokenizers` library; every other byte becomes its own one-byte token. The token that
    begins and ends a document lies outside the tokenizer's vocabulary, so no text can contain it.
    """

    name = "bpe"

    def __init__(self, tokenizer: Tokenizer, end: int | None = None) -> None:
        """tokenizer: a byte-level BPE of the `tokenizers` library. end: the id of the token between documents (None: a
        new one, after those of the tokenizer)."""
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
        """Learn merges from texts until there are `vocabulary` tokens (at least 257, the end token included). pattern:
        a regular expression of the words that merges stay within; None: merges may span anything, which suits sequences
        without spaces (DNA, proteins) and short lines."""
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


class TokenizerCodec(PieceCodec):
    """Any `tokenizer.json`, used as the model it came with uses it: the codec of a Hugging Face folder.

    Unlike `BPECodec` it recognises special tokens within a text (chat templates), and puts the tokenizer's own token in
    front of a text (`bos`; None for many). Input must be UTF-8. Decoding gives the bytes of each token by itself, so
    pieces can be joined; tokenizers that normalise text (lower case, white space) do not give it back unchanged.
    """

    name = "tokenizer"

    def __init__(self, tokenizer: Tokenizer, size: int | None = None, eos: int | None = None) -> None:
        """size: of the model's vocabulary, which may be larger than the tokenizer's. eos: the id that ends a text."""
        super().__init__(tokenizer)
        count = tokenizer.get_vocab_size(with_added_tokens=True)
        self.size, self.eos = size or count, eos
        bare = tokenizer.encode("a", add_special_tokens=False).ids
        prefix = tokenizer.encode("a", add_special_tokens=True).ids
        while bare and prefix[-len(bare) :] != bare and prefix:
            prefix.pop()  # tokens behind a text, which a prompt must not end with
        prefix = prefix[: len(prefix) - len(bare)]
        if len(prefix) > 1:
            raise SegueError(f"this tokenizer puts {len(prefix)} tokens before a text, of which only one is supported")
        self.bos = prefix[0] if prefix else None
        style, added = decoding_of(tokenizer), tokenizer.get_added_tokens_decoder()
        self.pieces = [self._piece(id, style, added) for id in range(min(count, self.size))]
        self.pieces += [b""] * (self.size - len(self.pieces))
        # Such tokenizers put a space before a text; after `bos` it does not belong to the text.
        self.dummy_prefix = style == "blanks" and self.decode(bare)[:1] == b" "

    def _piece(self, id: int, style: str, added: Mapping[int, Any]) -> bytes:
        """The bytes of a token by itself; none for special tokens."""
        piece = self.tokenizer.id_to_token(id) or ""
        if style == "blanks" and (byte := re.fullmatch("<0x([0-9A-Fa-f]{2})>", piece)):
            return bytes.fromhex(byte[1])
        if id in added:
            return b"" if added[id].special else added[id].content.encode()
        if style == "bytes" and (data := spelled(piece)) is not None:
            return data
        return piece.replace("\u2581", " ").encode() if style == "blanks" else self.tokenizer.decode([id]).encode()

    @classmethod
    def from_file(cls, path: str | Path, size: int | None = None, eos: int | None = None) -> TokenizerCodec:
        from tokenizers import Tokenizer

        with _tokenizer_file(path):
            return cls(Tokenizer.from_file(str(path)), size, eos)

    def encode(self, obj: bytes | str) -> np.ndarray:
        return self._encode(obj, False)

    def surrounded(self, obj: bytes | str) -> np.ndarray:
        return self._encode(obj, True)

    def _encode(self, obj: bytes | str, special_tokens: bool) -> np.ndarray:
        try:
            text = as_bytes(obj).decode("utf-8")
        except UnicodeDecodeError as error:
            raise SegueError(f"byte {error.start:,} is not UTF-8, which is all that this tokenizer reads") from error
        return np.array(self.tokenizer.encode(text, add_special_tokens=special_tokens).ids, dtype=np.int32)

    def decode(self, ids: Iterable[int]) -> bytes:
        array = self.checked(ids)
        text = super().decode(array)
        is_whole = self.dummy_prefix and len(array) > 0 and array[0] == self.bos
        return text.removeprefix(b" ") if is_whole else text

    def token(self, id: int) -> str:
        return END if id == self.eos else shown(self.pieces[id]) or str(self.tokenizer.id_to_token(id))

    def state(self) -> dict[str, Any]:
        return {"size": self.size, "eos": self.eos}

    @classmethod
    def restore(cls, folder: Path, values: dict[str, Any]) -> TokenizerCodec:
        return cls.from_file(folder / "tokenizer.json", **values)


def decoding_of(tokenizer: Tokenizer) -> str:
    """How a tokenizer writes its tokens: "bytes" (byte-level), "blanks" (SentencePiece, U+2581 for a space) or
    "words"."""
    decoder = json.loads(tokenizer.to_str()).get("decoder") or {}
    kinds = [step.get("type") for step in decoder.get("decoders", [decoder])]
    marks = [step.get("pattern", {}).get("String") for step in decoder.get("decoders", [decoder])]
    if "ByteLevel" in kinds:
        return "bytes"
    return "blanks" if "Metaspace" in kinds or "\u2581" in marks else "words"
