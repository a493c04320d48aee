"""Checkers of the contracts of codecs and kinds."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from segue.data import MEMORY, read
from segue.errors import SegueError
from segue.kinds.base import Kind, Problems, Record, head_of
from segue.kinds.codecs import Codec
from segue.kinds.packed import bare


def check_codec(codec: Codec, objects: Iterable[Any]) -> None:
    """Assert the contract of a codec on these objects (all within its alphabet, none with an unknown item).

    Round trip, exact or (`Codec.exact`) to the nearest that can be said; ids are int32 within the vocabulary and free
    of specials; one by one equals many at once; units add up to the objects' lengths; specials decode to nothing; every
    token is readable; saved and loaded it does the same; an id outside the vocabulary is a SegueError.
    """
    objects = list(objects)
    specials = {id for id in (codec.bos, codec.eos, codec.unk, codec.pad) if id is not None}
    assert all(0 <= id < codec.size for id in specials), "a special lies outside the vocabulary"
    many = codec.encode_many(objects)
    for obj, ids in zip(objects, many, strict=True):
        assert ids.dtype == np.int32 and ids.ndim == 1, f"ids are {ids.dtype} with {ids.ndim} axes"
        assert np.array_equal(ids, codec.encode(obj)), "encode and encode_many differ"
        assert not len(ids) or (ids.min() >= 0 and ids.max() < codec.size), "an id lies outside the vocabulary"
        assert not specials & set(ids.tolist()), "encode put in a special"
        said = codec.decode(ids)
        assert said == obj or (not codec.exact and np.array_equal(codec.encode(said), ids)), \
            f"round trip failed on {obj!r:.200}"
        assert codec.decode(ids.tolist()) == said, "decode takes arrays only"
        assert codec.units(ids) == len(obj), f"units {codec.units(ids)} of an object of {len(obj)}"
        if codec.elementwise:
            assert len(ids) == len(obj), "an elementwise codec makes one token of one element"
        framed = [id for id in (codec.bos, *ids.tolist(), codec.eos) if id is not None]
        assert codec.decode(framed) == said and codec.units(framed) == len(obj), "begin or end stands for something"
    for id in range(min(codec.size, 5000)):
        text = codec.token(id)
        assert isinstance(text, str) and text and text.isprintable(), f"token {id} reads {text!r}"
    for wrong in (-1, codec.size):
        try:
            codec.decode([wrong])
        except SegueError:
            continue
        raise AssertionError(f"decode took the id {wrong}")
    with tempfile.TemporaryDirectory() as folder:
        codec.save(folder)
        again = Codec.load(folder)
        assert again == codec and again.size == codec.size, "another codec came back"
        assert (again.bos, again.eos, again.unk, again.pad) == (codec.bos, codec.eos, codec.unk, codec.pad)
        for ids, same in zip(many, again.encode_many(objects)):
            assert np.array_equal(ids, same), "the loaded codec encodes differently"


def check_kind(kind: Kind, files: Iterable[str | Path], seed: int = 0, mutations: int = 30, **options: Any) -> None:
    """Assert the contract of a kind on these good files (`options` go to `read`).

    Records have the right form and come twice the same; the codec is exact on them; what `write` wrote is read back;
    `show` gives text; damaged forms of the files (cut, changed, emptied, filled with NUL) give records or a one-line
    SegueError, never anything else.
    """
    form = {"bytes": bytes, "letters": str, "items": list}[kind.storage]
    generator = random.Random(seed)
    with tempfile.TemporaryDirectory() as temporary:
        for number, file in enumerate(map(Path, files)):
            assert 0.0 <= kind.sniff(bare(file), head_of(file)) <= 1.0
            problems = Problems()
            records = list(kind.read(file, problems, **options))
            assert records and not problems, f"{file}: {problems[:1]}"
            again = list(kind.read(file, **options))
            assert [r.object for r in again] == [r.object for r in records], "a second reading differs"
            for record in records:
                assert isinstance(record.object, form) and len(record.object), f"'{record.name}' is not {form.__name__}"
                assert record.name, "a record without a name"
                for name, values in record.channels.items():
                    assert len(values) == len(record.object), f"channel '{name}' of '{record.name}' is not aligned"
            data = read(file, kind=kind.name, **options)
            assert [record.object for record in data] == [record.object for record in records]
            check_codec(data.codec(), [record.object for record in records[:50]])
            written = Path(temporary) / f"written{number}{'.txt' if kind.several else bare(file).suffix}"
            objects = [record.object for record in records[: 20 if kind.several else 1]]
            kind.write(objects, written)
            back = [record.object for record in kind.read(written)]
            assert back == objects or form is bytes, "what was written is read differently"
            if kind.several:
                kind.write([Record(each, name=f"record{i}") for i, each in enumerate(objects)], written)
                back = [record.object for record in kind.read(written)]
                assert back == objects, "what was written as records is read differently"
            assert isinstance(kind.show(objects[0]), str)
            whole = file.read_bytes()[: 1 << 16]
            damaged = Path(temporary) / f"damaged{number}{''.join(file.suffixes)}"
            for _ in range(mutations):
                damaged.write_bytes(damage(whole, generator))
                survives(damaged, kind.name, **options)


def damage(data: bytes, generator: random.Random) -> bytes:
    """A file gone wrong in one of the ways files do."""
    way = generator.randrange(7)
    at = generator.randrange(len(data) + 1)
    if way == 0:
        return data[:at]
    if way == 1:
        return b"\0" * len(data)
    if way == 2:
        return data[:at] + generator.randbytes(generator.randrange(1, 9)) + data[at + 4 :]
    if way == 3:
        return data[at:]
    if way == 4:
        lines = data.split(b"\n")
        generator.shuffle(lines)
        return b"\n".join(lines)
    if way == 5:
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
