"""Codecs keep what they are given, exactly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.data import of
from segue.errors import SegueError
from segue.kinds import KINDS, BPECodec, ByteCodec, Codec, ItemCodec, KmerCodec, LetterCodec
from segue.kinds.codecs import CODECS, NUCLEOTIDES, RESIDUES, as_bytes
from segue.testing import check_codec, check_kind

PROSE = "It was the best of times, it was the worst of times; naïve façade, 日本語, ünïcödé 🎵🎶.\n    x(y)\n" * 30


@pytest.fixture(scope="module")
def bpe() -> BPECodec:
    return BPECodec.train([PROSE, PROSE.upper()], vocabulary=400)


def test_byte_codec_round_trips() -> None:
    check_codec(ByteCodec(), [b"", b"hello", bytes(range(256)), PROSE.encode()])
    assert ByteCodec().decode(ByteCodec().encode("né")) == "né".encode()


class GivesItsMemory(ByteCodec):
    def encode(self, obj: bytes | str) -> np.ndarray:
        cached = self.__dict__.setdefault("known", {})
        return cached.setdefault(obj, super().encode(obj))


class WeighsTheEnd(ByteCodec):
    def weights(self) -> np.ndarray:
        return np.ones(257, dtype=np.int64)


class SaysMore(ByteCodec):
    def prompt(self, obj: bytes | str) -> np.ndarray:
        return self.encode(b" " + as_bytes(obj))


class ShortensRows(ByteCodec):
    def varied(self, ids: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        return ids[:-1]


@pytest.mark.parametrize("broken, message", [(GivesItsMemory, "own memory"), (WeighsTheEnd, "weighs something"),
                                             (SaysMore, "what prompt puts"), (ShortensRows, "varied")])
def test_broken_codecs_fail_the_contract(broken: type[Codec], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_codec(broken(), [b"hello"])


def test_a_broken_element_table_fails_the_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_bytes(b"hello")
    monkeypatch.setattr(ByteCodec, "lookup", lambda self, elements: np.roll(np.arange(256, dtype=np.int32), 1))
    with pytest.raises(AssertionError, match="differently among others"):
        check_kind(KINDS["text"], [tmp_path / "a.txt"])


def test_bpe(bpe: BPECodec) -> None:
    assert 300 < bpe.size <= 400
    check_codec(bpe, [b"", PROSE.encode(), bytes(range(256)), b"\xff\xfe\x00 ok \xc3", b"<end>", "🎵".encode()[:3]])
    assert len(bpe.encode(PROSE)) < len(PROSE) / 3


@settings(max_examples=150, deadline=None)
@given(data=st.one_of(st.binary(max_size=400), st.text(max_size=200).map(str.encode),
                      st.lists(st.one_of(st.text(max_size=8).map(str.encode), st.binary(max_size=3))).map(b"".join)))
def test_bpe_round_trips_any_bytes(bpe: BPECodec, data: bytes) -> None:
    assert bpe.decode(bpe.encode(data)) == data
    assert bpe.units(bpe.encode(data)) == len(data)


def test_bpe_of_long_text_does_not_depend_on_the_batch(bpe: BPECodec) -> None:
    lines = (PROSE * 40).encode()
    unbroken = b"x" * 200_000 + "é".encode() * 40_000
    noise = np.random.default_rng(0).integers(0, 256, 100_000, dtype=np.uint8).tobytes()
    check_codec(bpe, [lines, unbroken, noise])


def test_bpe_training_is_reproducible(bpe: BPECodec) -> None:
    assert BPECodec.train([PROSE, PROSE.upper()], vocabulary=400) == bpe


def test_tokenizers_of_other_tools_load(tmp_path: Path, bpe: BPECodec) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    other = Tokenizer(models.BPE())
    other.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    other.decoder = decoders.ByteLevel()
    other.train_from_iterator([PROSE], trainers.BpeTrainer(
        vocab_size=350, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    other.save(str(tmp_path / "tokenizer.json"))
    codec = BPECodec.from_tokenizer(tmp_path / "tokenizer.json", "<|endoftext|>")
    assert codec.eos == other.token_to_id("<|endoftext|>") and codec.size == other.get_vocab_size()
    assert codec.encode(PROSE).tolist() == other.encode(PROSE).ids
    check_codec(codec, [PROSE.encode(), b"\xff\xfe", b"a <|endoftext|> that is only text"])
    with pytest.raises(SegueError, match="no token"):
        BPECodec.from_tokenizer(tmp_path / "tokenizer.json", "<eos>")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(SegueError, match="is not a tokenizer"):
        BPECodec.from_tokenizer(tmp_path / "bad.json")
    words = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    words.save(str(tmp_path / "words.json"))
    with pytest.raises(SegueError, match="not a byte-level BPE"):
        BPECodec.from_tokenizer(tmp_path / "words.json")


def test_letter_codec_round_trips() -> None:
    check_codec(LetterCodec(NUCLEOTIDES), ["", "ACGT", "ACGTNRYSWKMBDHVU-" * 3])
    check_codec(LetterCodec(RESIDUES), ["", "MKTAYIAKQR*", RESIDUES])
    assert LetterCodec(NUCLEOTIDES).encode("ACGT").tolist() == [0, 1, 2, 3]
    with pytest.raises(SegueError, match="position 3: 'é'"):
        LetterCodec(NUCLEOTIDES).encode("ACé")


@settings(max_examples=100, deadline=None)
@given(k=st.integers(2, 6), text=st.one_of(st.text("ACGT", max_size=60), st.text(NUCLEOTIDES, max_size=60)))
def test_kmers_of_any_length_and_ambiguity(k: int, text: str) -> None:
    codec = KmerCodec(k)
    assert codec.size == 4 ** k + len(NUCLEOTIDES) + 1
    ids = codec.encode(text)
    assert codec.decode(ids) == text and codec.units(ids) == len(text)
    if not set(text) - set("ACGT"):
        assert len(ids) == len(text) // k + len(text) % k


def test_kmer_codec_round_trips() -> None:
    check_codec(KmerCodec(6), ["", "ACGTAC", "ACGTACG", "NNNNNNACGTAC", "ACGTACGTACGTAN"])
    assert KmerCodec(3).encode("AACTTT").tolist() == [1, 63]
    for k in (0, 1, 11):
        with pytest.raises(SegueError, match="words of 2 to 10"):
            KmerCodec(k)


def test_item_codec_round_trips() -> None:
    codec = ItemCodec.count({"b": 5, "a": 5, "c": 9, "rare": 1}, min_count=2)
    assert codec.items == ["c", "a", "b"] and codec.size == 5
    check_codec(codec, [[], ["a", "b", "c", "a"]])
    check_codec(ItemCodec([7, 3, -2]), [[7, 7, -2], [3]])
    assert ItemCodec([7, 3, -2]).encode(["-2", "7", "x"]).tolist() == [2, 0, 3]
    assert codec.decode(codec.encode(["a", "never seen"])) == ["a", "<unknown>"]
    assert codec.units(codec.encode(["a", "never seen"])) == 2
    assert ItemCodec.count({"a": 3, "b": 2, "c": 1}, vocabulary=4).items == ["a", "b"]


def test_items_may_have_any_name() -> None:
    names = ["", " ", "<unknown>", "<end>", "a,b", "é\n", "1"]
    codec = ItemCodec(names)
    assert codec.decode(codec.encode(names)) == names


@pytest.mark.parametrize("content, message", [
    ("", "not readable JSON"), ("[1]", "does not name a codec"), ('{"codec": "pickle"}', "does not name a codec"),
    ('{"codec": "letters"}', "does not describe"), ('{"codec": "letters", "letters": 5}', "does not describe"),
    ('{"codec": "letters", "letters": "AA"}', "different ASCII letters"),
    ('{"codec": "kmer", "k": "x"}', "does not describe"),
    ('{"codec": "bpe"}', "does not describe"), ('{"codec": "bpe", "end": 300}', "not a tokenizer file"),
    ('{"codec": "items", "items": [1, 1]}', "different strings"),
    ('{"codec": "items", "items": [[]]}', "does not describe"),
    ('{"codec": "byte", "run": "rm"}', "does not describe"), ('{"codec": ["byte"]}', "does not name a codec")])
def test_a_broken_codec_file_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "codec.json").write_text(content)
    with pytest.raises(SegueError, match=message):
        Codec.load(tmp_path)


def test_a_missing_codec_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SegueError, match=r"codec\.json is missing"):
        Codec.load(tmp_path)


def test_every_codec_is_in_the_table(tmp_path: Path) -> None:
    for name, codec in CODECS.items():
        assert codec.name == name
    KmerCodec(4).save(tmp_path)
    assert json.loads((tmp_path / "codec.json").read_text())["codec"] == "kmer"


def test_kinds_choose_codecs_by_the_data() -> None:
    small = of(["short text"])
    assert isinstance(small.codec(), ByteCodec)
    assert isinstance(of([PROSE]).codec(vocabulary=300), BPECodec)
    assert of([PROSE]).codec(vocabulary=300).size == 300
    with pytest.raises(SegueError, match="whole number"):
        of([PROSE]).codec(vocabulary="many")
    dna = of(["ACGTN"], kind="dna")
    assert isinstance(dna.codec(), LetterCodec) and isinstance(dna.codec(k=3), KmerCodec)
    assert of([[1, 2, 2]]).codec().items == [2, 1]
    with pytest.raises(SegueError, match="takes"):
        dna.codec(vocabulary=5)
    assert set(KINDS) >= {"text", "code", "dna", "protein", "events", "cases"}


def test_a_bpe_vocabulary_too_small_is_refused() -> None:
    with pytest.raises(SegueError, match="too small"):
        BPECodec.train([PROSE], vocabulary=100)
