"""Checkers of the contracts of codecs and kinds."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from segue.data import MEMORY, Data, read
from segue.errors import SegueError
from segue.kinds.base import Kind, Problems, Record, head_of
from segue.kinds.codecs import Codec
from segue.kinds.packed import bare


def check_codec(codec: Codec, objects: Iterable[Any]) -> None:
    """Assert the contract of a codec on these objects (all within its alphabet, none with an unknown item).

    Round trip, exact or (`Codec.exact`) to the nearest that can be said; ids are int32 within the vocabulary, free of
    specials and the caller's own; one by one equals many at once; units add up to the objects' lengths; specials weigh
    and decode to nothing; every token is readable; saved and loaded it does the same; an id outside the vocabulary is a
    SegueError.
    """
    objects = list(objects)
    specials = {id for id in (codec.bos, codec.eos, codec.unk, codec.pad) if id is not None}
    assert all(0 <= id < codec.size for id in specials), "a special lies outside the vocabulary"
    weights = codec.weights()
    assert weights.shape == (codec.size,) and weights.dtype == np.int64, f"weights are {weights.dtype} {weights.shape}"
    assert not any(weights[id] for id in specials - {codec.unk}), "a special weighs something"
    assert not codec.encode_many([]), "encode_many of nothing gives something"
    many = codec.encode_many(objects)
    for obj, ids in zip(objects, many, strict=True):
        assert ids.dtype == np.int32 and ids.ndim == 1, f"ids are {ids.dtype} with {ids.ndim} axes"
        assert np.array_equal(ids, codec.encode(obj)), "encode and encode_many differ"
        assert not len(ids) or (ids.min() >= 0 and ids.max() < codec.size), "an id lies outside the vocabulary"
        assert not specials & set(ids.tolist()), "encode put in a special"
        decoded = codec.decode(ids)
        assert decoded == obj or (not codec.exact and np.array_equal(codec.encode(decoded), ids)), \
            f"round trip failed on {obj!r:.200}"
        assert codec.decode(ids.tolist()) == decoded, "decode takes arrays only"
        assert codec.units(ids) == len(obj), f"units {codec.units(ids)} of an object of {len(obj)}"
        for label, ids_around in (("prompt", codec.prompt(obj)), ("surrounded", codec.surrounded(obj))):
            assert codec.decode(ids_around) == decoded, f"what {label} puts around an object stands for something"
        copy = ids.copy()
        codec.encode(obj)[:] = 0
        assert np.array_equal(copy, codec.encode(obj)), "what encode gave is the codec's own memory"
        if codec.elementwise:
            assert len(ids) == len(obj), "an elementwise codec makes one token of one element"
        framed = [id for id in (codec.bos, *ids.tolist(), codec.eos) if id is not None]
        assert codec.decode(framed) == decoded and codec.units(framed) == len(obj), "begin or end stands for something"
        if framed:
            varied = codec.varied(np.array(framed), np.random.default_rng(0))
            assert len(varied) == len(framed) and codec.decode(varied) == decoded, "varied says something else"
    for id in range(min(codec.size, 5000)):
        text = codec.token(id)
        assert isinstance(text, str) and text and text.isprintable(), f"token {id} reads {text!r}"
    for invalid in (-1, codec.size):
        try:
            codec.decode([invalid])
        except SegueError:
            continue
        raise AssertionError(f"decode took the id {invalid}")
    with tempfile.TemporaryDirectory() as folder:
        codec.save(folder)
        again = Codec.load(folder)
        assert again == codec and again.size == codec.size, "another codec came back"
        assert (again.bos, again.eos, again.unk, again.pad) == (codec.bos, codec.eos, codec.unk, codec.pad)
        assert np.array_equal(again.weights(), weights), "the loaded codec weighs differently"
        for ids, expected in zip(many, again.encode_many(objects)):
            assert np.array_equal(ids, expected), "the loaded codec encodes differently"
            assert again.decode(ids) == codec.decode(ids), "the loaded codec decodes differently"


def check_kind(kind: Kind, files: Iterable[str | Path], seed: int = 0, mutations: int = 30, **options: Any) -> None:
    """Assert the contract of a kind on these good files (`options` go to `read`).

    Records have the right form and come twice the same, also from a saved data set; the codec is exact on them, and one
    by one equals all at once, channels beside their elements; `numbers` tells of every id; what `write` wrote is read
    back; `show` gives text; damaged forms of the files (cut, changed, emptied, filled with NUL) give records or a
    one-line SegueError, never anything else.
    """
    object_type = {"bytes": bytes, "letters": str, "items": list}[kind.storage]
    generator = random.Random(seed)
    with tempfile.TemporaryDirectory() as temporary:
        for number, file in enumerate(map(Path, files)):
            assert 0.0 <= kind.sniff(bare(file), head_of(file)) <= 1.0
            problems = Problems()
            records = list(kind.read(file, problems, **options))
            assert records and not problems, f"{file}: {problems[:1]}"
            again = list(kind.read(file, **options))
            _same(records, again, "a second reading")
            for record in records:
                assert isinstance(record.object, object_type) and len(record.object), \
                    f"'{record.name}' is not {object_type.__name__}"
                assert record.name, "a record without a name"
                for name, values in record.channels.items():
                    assert len(values) == len(record.object), f"channel '{name}' of '{record.name}' is not aligned"
            data = read(file, kind=kind.name, **options)
            _same(records, data, "data")
            data.save(Path(temporary) / f"data{number}")
            _same(records, Data.open(Path(temporary) / f"data{number}"), "a saved data set")
            codec = data.codec()
            check_codec(codec, [record.object for record in records[:50]])
            if (numbers := kind.numbers(codec)) is not None:
                assert numbers.ndim == 2 and len(numbers) == codec.size, "numbers are not told of every id"
                assert np.isfinite(numbers).any(0).all() and not np.isinf(numbers).any(), "a column of no numbers"
            for boundary, (begin, end) in ((False, (None, None)), (True, (codec.bos, codec.eos))):
                for record, sequence in zip(records, data.encode(codec, boundary=boundary), strict=True):
                    framed = [id for id in (begin, *codec.encode(record.object).tolist(), end) if id is not None]
                    assert sequence.ids.tolist() == framed, f"'{record.name}' is encoded differently among others"
                    inside = slice(int(begin is not None), len(framed) - int(end is not None))
                    for name, values in sequence.channels.items():
                        assert np.array_equal(values[inside], record.channels[name]), \
                            f"channel '{name}' of '{record.name}' has moved"
            written = Path(temporary) / f"written{number}{'.txt' if kind.several else bare(file).suffix}"
            objects = [record.object for record in records[: 20 if kind.several else 1]]
            kind.write(objects, written)
            read_back = [record.object for record in kind.read(written)]
            assert read_back == objects or object_type is bytes, "what was written is read differently"
            if kind.several:
                kind.write([Record(each, name=f"record{i}") for i, each in enumerate(objects)], written)
                read_back = [record.object for record in kind.read(written)]
                assert read_back == objects, "what was written as records is read differently"
            assert isinstance(kind.show(objects[0]), str)
            content = file.read_bytes()[: 1 << 16]
            damaged = Path(temporary) / f"damaged{number}{''.join(file.suffixes)}"
            for _ in range(mutations):
                damaged.write_bytes(damage(content, generator))
                survives(damaged, kind.name, **options)


def _same(records: list[Record], others: Iterable[Record], what: str) -> None:
    for a, b in zip(records, others, strict=True):
        assert a.object == b.object and a.name == b.name, f"{what} differs at '{a.name}'"
        assert a.channels.keys() == b.channels.keys() and all(
            np.array_equal(values, b.channels[name], equal_nan=True) for name, values in a.channels.items()), \
            f"{what} has other channels at '{a.name}'"


def damage(data: bytes, generator: random.Random) -> bytes:
    """A file gone wrong in one of the ways files do."""
    mutation = generator.randrange(7)
    position = generator.randrange(len(data) + 1)
    if mutation == 0:
        return data[:position]
    if mutation == 1:
        return b"\0" * len(data)
    if mutation == 2:
        return data[:position] + generator.randbytes(generator.randrange(1, 9)) + data[position + 4 :]
    if mutation == 3:
        return data[position:]
    if mutation == 4:
        lines = data.split(b"\n")
        generator.shuffle(lines)
        return b"\n".join(lines)
    if mutation == 5:
        changed = bytearray(data)
        for _ in range(20):
            if changed:
                changed[generator.randrange(len(changed))] = generator.randrange(256)
        return bytes(changed)
    old, new = [b"\n", b",", b">", b"\t", b" ", b'"'], [b"", b"\r", b"\n\n", b'"']
    return data.replace(generator.choice(old), generator.choice(new))


def survives(path: str | Path, kind: str | None = None, memory: int = MEMORY, **options: Any) -> bool:
    """Read a file, whatever is in it: True if it gave data, False for a one-line SegueError. Anything else escapes."""
    try:
        data = read(path, kind=kind, memory=memory, **options)
    except SegueError as error:
        message = str(error)
        assert message and "\n" not in message, f"not one line: {message!r}"
        return False
    assert len(data) and data.total
    data.describe()
    for record in data:
        assert len(record.object)
    return True
