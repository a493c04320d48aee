"""Data sets: views, splits, saving, and tokens that need not fit in memory."""

from __future__ import annotations

import io
import json
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.data import Data, TokenStore, of, read
from segue.errors import SegueError
from segue.kinds import ByteCodec, KmerCodec, LetterCodec, Record


def events(n: int = 200, seed: int = 0) -> Data:
    generator = np.random.default_rng(seed)
    records = []
    for i in range(n):
        length = int(generator.integers(1, 30))
        times = np.sort(generator.random(length) * 1000)
        records.append(Record([f"i{item}" for item in generator.integers(0, 50, length)],
                              {"time": times, "gap": np.diff(times, prepend=times[0])}, f"user{i}"))
    return of(records)


# -- in memory


def test_lists_of_every_sort_become_data() -> None:
    assert [r.object for r in of(["one", b"two"])] == [b"one", b"two"]
    assert [r.object for r in of("one")] == [b"one"]
    assert [r.object for r in of([[1, 2, 3], [4], []])] == [[1, 2, 3], [4], []]
    assert [r.object for r in of([["a"], ("b", "c")])] == [["a"], ["b", "c"]]
    assert [r.object for r in of([np.array([5, 6]), np.arange(2, dtype=np.uint8)])] == [[5, 6], [0, 1]]
    named = of({"ann": [1, 2], "bob": [3]})
    assert [r.name for r in named] == ["ann", "bob"] and named.kind.name == "events"
    frames = of({"ann": {"item": ["x", "y"], "time": [1.0, 2.0], "note": ["a", "b"]}})
    assert frames[0].object == ["x", "y"] and frames[0].channels["time"].tolist() == [1, 2]
    assert [r.object for r in of(["acgt n"], kind="dna")] == ["ACGTN"]
    wide = of([Record([1, 2], {"place": np.array([[1, 2], [3, 4]])}, "w"),
               Record([3], {"place": np.array([[5, 6]])}, "v")])
    assert wide[0].channels["place"].tolist() == [[1, 2], [3, 4]] and wide[1].channels["place"].tolist() == [[5, 6]]


@pytest.mark.parametrize("objects, options, message", [
    ([], {}, "no sequence in the list"), ([[1, "a"]], {}, "all strings or all whole numbers"),
    ([["a"], [1]], {}, "all strings or all whole numbers"), ([[1.5]], {}, "all strings or all whole numbers"),
    (["ACG!"], {"kind": "dna"}, "record '1': position 4: '!'"), (["a"], {"kind": "x"}, "there is no kind 'x'"),
    ([Record([1], {"t": np.zeros(2)}, "r")], {}, "channel 't' has 2 entries for 1"),
    ([Record([1], {"t": np.zeros(1)}), Record([1], {})], {}, "give all records the same"),
    ([Record([1], {"t": np.array(["x"])})], {}, "a channel holds numbers"),
    ([Record([1], {"t": np.array([1])}), Record([1], {"t": np.array([0.5])}, "r")], {}, "numbers that are no int64"),
    ({"a": {"x": [1]}}, {}, "none of its columns is called item"), ([5], {}, "is 5, not a sequence"),
    (pa.table({"item": ["x", "y"]}), {}, "a table is one sequence")])
def test_what_cannot_be_a_sequence_is_named(objects, options: dict, message: str) -> None:
    with pytest.raises(SegueError, match=message):
        of(objects, **options)


def test_data_report_counts_and_vocabulary() -> None:
    data = of(["aab", "b"])
    assert (len(data), data.total, data.lengths.tolist()) == (2, 4, [3, 1])
    assert data.vocabulary == {97: 2, 98: 2} and data[-1].object == b"b"
    assert data.values(0).tolist() == [97, 97, 98]
    assert list(data.objects()) == [b"aab", b"b"] and list(events().objects(50)) == [events()[i].object for i in
                                                                                     (0, 50, 100, 150)]
    with pytest.raises(IndexError):
        data[2]
    facts = json.loads(json.dumps(data.describe()))
    assert facts["kind"] == "text" and facts["total"] == 4 and facts["most_frequent"] == {"a": 2, "b": 2}
    assert of(["ACGT"], kind="dna").vocabulary == dict.fromkeys("ACGT", 1)
    assert of([["x", "y", "x"]]).vocabulary == {"x": 2, "y": 1}


def test_the_summary_prints(tmp_path: Path) -> None:
    from rich.console import Console

    (tmp_path / "[b]a.fa").write_text(">ok [/red]\nACGTACGTACGT\n>bad[/x]\nAC!\n")
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(read(tmp_path).summary())
    text = console.export_text()
    assert "dna" in text and "ACGTACGTACGT" in text and "1 stepped over" in text and "bad[/x]" in text


def test_the_note_on_a_table_is_reported_and_saved(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("userId,movieId,rating,timestamp\n1,7,4.5,10\n1,8,3,11\n")
    expected = "who=userId, what=movieId, when=timestamp (10 to 11); not read: rating"
    assert read(tmp_path / "a.csv").describe()["note"] == expected
    saved = read(tmp_path / "a.csv", also=["rating"]).save(tmp_path / "saved")
    assert Data.open(saved).problems.note == "who=userId, what=movieId, when=timestamp (10 to 11), also=rating"


# -- views


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(0, 3000), min_size=2, max_size=40), fraction=st.floats(0.05, 0.5),
       by=st.sampled_from([None, "name", "content", "position"]), seed=st.integers(0, 3))
def test_a_split_loses_and_repeats_nothing(lengths: list[int], fraction: float, by: str | None, seed: int) -> None:
    generator = np.random.default_rng(seed)
    data = of([Record(generator.integers(97, 110, n, dtype=np.uint8).tobytes(), name=f"r{i}")
               for i, n in enumerate(lengths)], kind="text")
    if data.total < 2:
        return
    try:
        train, test = data.split(fraction, by=by, seed=seed)
    except SegueError:
        assert by in ("name", "content") and len({r.object for r in data if r.object}) < 2
        return
    assert train.total + test.total == data.total and train.total and test.total
    spans = np.concatenate([train.spans(), test.spans()])
    covered = sorted(map(tuple, spans.tolist()))
    for record in range(len(data)):
        at = 0
        for _, start, stop in (span for span in covered if span[0] == record):
            assert start == at
            at = stop
        assert at == lengths[record]
    repeated = data.split(fraction, by=by, seed=seed)
    assert repeated[1].fingerprint == test.fingerprint != train.fingerprint


def test_a_split_keeps_most_of_the_data_for_training() -> None:
    for seed in range(8):
        train, test = of(["a" * 500]).split(0.05, seed=seed)
        assert train.total > 400 and test.total
        train, test = of([["a", "b"]] * 50 + [["c"]] * 3 + [["d"]], kind="cases").split(0.1, by="content", seed=seed)
        assert train.total >= 100 and 0 < test.total <= 4


def test_one_long_document_is_split_into_blocks() -> None:
    text = b"".join(b"line %d of a long book\n" % i for i in range(20000))
    train, test = of([text]).split(0.1)
    assert len(test) > 3 and 0.07 < test.total / len(text) < 0.15
    assert all(record.object.endswith(b"\n") for record in test), "cut at line ends"
    genome = of(["".join(np.random.default_rng(0).choice(list("ACGT"), 50000))], kind="dna")
    assert 0.07 < genome.split(0.1)[1].total / genome.total < 0.15


def test_few_short_sequences_are_not_split_within() -> None:
    reads = of([f"ACGT{'ACGT'[i % 4] * (1 + i // 4 % 4)}A" for i in range(60)], kind="dna")
    for part in reads.split(0.05):
        assert len(part) and {r.object for r in part} <= {r.object for r in reads}
    for part in of(["some words, one after the other, " * 9]).split(0.05):
        assert min(part.lengths) >= 16
    people = of({f"u{i}": list("abcd" * 7) for i in range(7)}, kind="events")
    for part in people.split(0.05):
        assert set(part.lengths) == {28}


def test_a_hash_split_is_stable_when_data_are_added() -> None:
    texts = [f"document number {i}" * (i % 5 + 1) for i in range(600)]
    small, large = of(texts[:400]).split(0.1), of(texts).split(0.1)
    held_small, held_large = ({r.object for r in part[1]} for part in (small, large))
    assert held_small <= held_large
    assert not held_large & {r.object for r in large[0]}


def test_a_split_keeps_equal_sequences_together() -> None:
    data = of(["ACGT" * 5, "GGGG"] * 30 + [f"{'ACGT' * i}A" for i in range(1, 40)], kind="dna")
    train, test = data.split(0.2)
    assert not {r.object for r in train} & {r.object for r in test}


def test_a_split_keeps_entities_together() -> None:
    data = events()
    train, test = data.split(0.2)
    assert not {r.name for r in train} & {r.name for r in test}
    assert 0.1 < test.total / data.total < 0.3


def test_split_by_time() -> None:
    data = events()
    train, test = data.split(0.25, by="time")
    last = max(r.channels["time"].max() for r in train)
    first = min(r.channels["time"].min() for r in test)
    assert last < first and abs(test.total / data.total - 0.25) < 0.01
    with pytest.raises(SegueError, match="carry no time"):
        of(["a"]).split(by="time")


@pytest.mark.parametrize("arguments, message", [
    ({"fraction": 0}, "between 0 and 1"), ({"fraction": 2}, "between 0 and 1"), ({"by": "colour"}, "cannot split by"),
    ({"by": "name"}, "have the same name")])
def test_bad_splits(arguments: dict, message: str) -> None:
    with pytest.raises(SegueError, match=message):
        of(["only one document"]).split(**arguments)


def test_select() -> None:
    data = of(["a", "b", "c"])
    assert [r.object for r in data.select([2, 0])] == [b"c", b"a"]
    assert [r.object for r in data.select([2, 0]).select([1])] == [b"a"]
    assert data.select([1]).vocabulary == {98: 1}


# -- on disk


@pytest.mark.parametrize("data", [events(), of(["text é", b"\xff raw"]), of(["ACGT", "NN"], kind="dna"),
                                  of([[1, -5], []])])
def test_saved_and_opened(tmp_path: Path, data: Data) -> None:
    data.save(tmp_path / "d")
    same = Data.open(tmp_path / "d")
    assert same.kind is data.kind and same.fingerprint == data.fingerprint and len(same) == len(data)
    for a, b in zip(data, same):
        assert (a.object, a.name) == (b.object, b.name)
        assert all(np.array_equal(a.channels[name], b.channels[name]) for name in data.channels)
    assert read(tmp_path / "d").total == data.total
    data.save(tmp_path / "d")
    same.save(tmp_path / "d")
    assert Data.open(tmp_path / "d").total == data.total
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d"], "nothing is left beside it"


def test_a_saved_view_holds_its_own_records(tmp_path: Path) -> None:
    train, test = events().split(0.3)
    test.save(tmp_path / "held")
    same = Data.open(tmp_path / "held")
    assert [r.object for r in same] == [r.object for r in test] and same.vocabulary == test.vocabulary
    assert len(Data.open(train.select([]).save(tmp_path / "none"))) == 0


def test_large_data_are_read_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segue.data.arrow.BATCH", 2000)
    for i in range(20):
        (tmp_path / f"{i:02}.txt").write_text(f"text {i} " * 200)
    small = read(tmp_path)
    mapped = read(tmp_path, memory=5000)
    assert mapped.keep is not None and small.keep is None
    assert mapped.fingerprint == small.fingerprint
    assert [r.object for r in mapped] == [r.object for r in small]
    folder = Path(mapped.keep.name)
    train = mapped.split(0.2)[0]
    del mapped
    assert train[0].object and folder.exists(), "a view keeps the file"
    train.save(tmp_path / "saved")
    del train
    assert not folder.exists(), "the temporary file goes with the data"


def test_other_folders_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    for write in (of(["a"]).save, lambda folder: of(["a"]).encode(ByteCodec(), folder)):
        with pytest.raises(SegueError, match="choose another place"):
            write(tmp_path)
    with pytest.raises(SegueError, match="cannot write"):
        of(["a"]).save("/proc/nowhere/x")
    assert (tmp_path / "thesis.txt").read_text() == "precious"


@pytest.mark.parametrize("spoil", ["records.arrow", "data.json", "cut", "kind", "version"])
def test_damaged_folders_are_named(tmp_path: Path, spoil: str) -> None:
    events(20).save(tmp_path / "d")
    meta = json.loads((tmp_path / "d/data.json").read_text())
    if spoil == "records.arrow":
        (tmp_path / "d/records.arrow").write_bytes(b"\0" * 100)
    elif spoil == "cut":
        content = (tmp_path / "d/records.arrow").read_bytes()
        (tmp_path / "d/records.arrow").write_bytes(content[:len(content) // 2])
    else:
        meta = {"data.json": {}, "kind": meta | {"kind": "x"}, "version": meta | {"format": "segue data 99"}}[spoil]
        (tmp_path / "d/data.json").write_text(json.dumps(meta))
    with pytest.raises(SegueError, match=str(tmp_path / "d")):
        read(tmp_path / "d")


def test_no_damage_to_a_saved_folder_causes_a_traceback(tmp_path: Path) -> None:
    generator = random.Random(0)
    wide = of([Record([1, 2], {"place": np.array([[1, 2], [3, 4]])}, "w")])
    for number, data in enumerate([events(20), of(["one", "two é"]), of(["ACGT"] * 5, kind="dna"), wide] * 15):
        folder = tmp_path / str(number)
        codec = data.codec()
        tokens = number % 3 == 0
        data.encode(codec, folder) if tokens else data.save(folder)
        file = generator.choice(sorted(folder.iterdir()))
        content = bytearray(file.read_bytes())
        for _ in range(generator.randrange(1, 5)):
            content[generator.randrange(len(content))] = generator.randrange(256)
        file.write_bytes(content[:generator.choice([len(content), len(content), generator.randrange(len(content))])])
        try:
            if tokens:
                assert [codec.decode(sequence.ids) for sequence in TokenStore.open(folder)]
            else:
                opened = Data.open(folder)
                opened.describe()
                opened.encode(opened.codec())
        except SegueError as error:
            assert "\n" not in str(error)


def test_a_killed_write_leaves_no_half_written_data(tmp_path: Path) -> None:
    events(30).save(tmp_path / "d")
    before = Data.open(tmp_path / "d").fingerprint
    script = textwrap.dedent(f"""
        import time
        from segue.data import of, records
        class Slow(records.Writer):
            def add(self, record):
                super().add(record)
                print("writing", flush=True)
                time.sleep(60)
        data = of([[i, i] for i in range(1000)]).select(range(1000))
        records.Writer = Slow
        data.save({str(tmp_path / "d")!r})
    """)
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=Path(__file__).parents[1])
    assert child.stdout is not None and child.stdout.readline()
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert Data.open(tmp_path / "d").fingerprint == before
    time.sleep(0.01)
    events(30).save(tmp_path / "d")
    assert [p.name for p in tmp_path.iterdir()] == ["d"], "what the killed one left is cleared"


def test_a_full_disk_is_one_error_line_and_keeps_the_old_data(tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk."""
    of(["small"]).save(tmp_path / "d")
    (tmp_path / "big.txt").write_text("a line of text\n" * 40_000)
    script = textwrap.dedent(f"""
        import resource, signal
        import segue.data as d
        from segue.errors import SegueError
        from segue.kinds import ByteCodec
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        file = {str(tmp_path / "big.txt")!r}
        data = d.read(file)
        for write in (lambda: data.save({str(tmp_path / "d")!r}),
                      lambda: data.encode(ByteCodec(), {str(tmp_path)!r} + "/t"),
                      lambda: d.read(file, memory=1000)):
            try:
                write()
            except SegueError as error:
                assert "cannot write" in str(error), error
            else:
                raise AssertionError("written")
    """)
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert out.returncode == 0, out.stderr
    assert Data.open(tmp_path / "d")[0].object == b"small"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["big.txt", "d"]


# -- tokens


@pytest.mark.parametrize("folder", [False, True])
def test_encoded_tokens_are_saved_and_sliced(tmp_path: Path, folder: bool) -> None:
    data = events()
    codec = data.codec()
    store = data.encode(codec, tmp_path / "t" if folder else None)
    assert len(store) == len(data) and store.tokens.dtype == np.uint8 and isinstance(store.tokens, np.memmap) == folder
    assert store.units.sum() == data.total and len(store.tokens) == data.total + 2 * len(data)
    for i in (0, 7, -1):
        sequence, record = store[i], data[i]
        assert sequence.ids.dtype == np.int32 and codec.decode(sequence.ids) == record.object
        assert sequence.ids[0] == codec.bos and sequence.ids[-1] == codec.eos and sequence.name == record.name
        assert sequence.channels["gap"].tolist() == [0, *record.channels["gap"], 0]
        assert sequence.channels["time"][0] == record.channels["time"][0]
    bare = data.encode(codec, boundary=False)
    assert len(bare.tokens) == data.total and np.array_equal(bare.lengths, data.lengths)
    with pytest.raises(IndexError):
        store[len(data)]


def test_parts_of_a_split_record_have_no_false_begin_or_end() -> None:
    data = of(["".join(np.random.default_rng(0).choice(list("ACGT"), 20000))], kind="dna")
    train, test = data.split(0.1)
    codec = data.codec()
    ids = np.concatenate([data.select([0]).encode(codec).tokens])
    assert (ids == codec.bos).sum() == 2
    framed = sum(int((part.encode(codec).tokens == codec.bos).sum()) for part in (train, test))
    assert framed == 2


def test_tokens_are_cached_until_data_or_codec_change(tmp_path: Path) -> None:
    data, codec = of(["abc", "de"]), ByteCodec()
    store = data.encode(codec, tmp_path / "t")
    stamp = (tmp_path / "t/tokens.bin").stat().st_ino
    assert data.encode(codec, tmp_path / "t").key == store.key
    assert (tmp_path / "t/tokens.bin").stat().st_ino == stamp
    other = of(["abc", "df"]).encode(codec, tmp_path / "t")
    assert codec.decode(other[1].ids) == b"df" and other.key != store.key
    assert TokenStore.open(tmp_path / "t").key == other.key
    (tmp_path / "t/tokens.bin").write_bytes(b"")
    with pytest.raises(SegueError, match="damaged tokens"):
        TokenStore.open(tmp_path / "t")
    of(["abc", "df"]).encode(codec, tmp_path / "t")
    assert TokenStore.open(tmp_path / "t").key == other.key


def test_a_record_that_a_codec_cannot_take_is_named() -> None:
    data = of([Record("ACGT", name="good"), Record("ACNT", name="odd")], kind="dna")
    with pytest.raises(SegueError, match="odd: position 3: 'N' is not one of the letters ACGT"):
        data.encode(LetterCodec("ACGT"))


def test_fingerprints_and_splits_do_not_depend_on_the_folder(tmp_path: Path) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        for i in range(30):
            (tmp_path / name / f"{i}.txt").write_text(f"text {i} " * (i + 1))
    original, moved = read(tmp_path / "here"), read(tmp_path / "there")
    assert original.fingerprint == moved.fingerprint
    assert [r.object for r in original.split(0.2)[1]] == [r.object for r in moved.split(0.2)[1]]


def test_channels_go_only_with_elements() -> None:
    data = of([Record("ACGTAC", {"quality": np.arange(6, dtype=np.uint8)}, "r")], kind="dna")
    assert data.encode(data.codec())[0].channels["quality"].tolist() == [0, 0, 1, 2, 3, 4, 5, 0]
    assert not data.encode(KmerCodec(3)).channels


@pytest.mark.slow
def test_a_corpus_larger_than_memory(tmp_path: Path) -> None:
    """A gigabyte is read, split, encoded and walked through by a process that may not hold 900 MB."""
    line = b"a line of text that is repeated many times over, number %09d\n"
    with open(tmp_path / "big.txt", "wb") as handle:
        for i in range(0, 17_000_000, 100_000):
            handle.write(b"".join(line % j for j in range(i, i + 100_000)))
    script = textwrap.dedent(f"""
        import resource
        from segue.data import read
        from segue.kinds import ByteCodec
        data = read({str(tmp_path / "big.txt")!r}, memory=1 << 26)
        train, held = data.split(0.1)
        store = train.encode(ByteCodec(), {str(tmp_path / "tokens")!r})
        assert store.units.sum() == train.total and train.total > 9e8
        total = sum(int(store[i].ids[:10].sum()) for i in range(len(store)))
        status = open("/proc/self/status").read()
        print(next(int(l.split()[1]) for l in status.splitlines() if l.startswith("RssAnon")) // 1024)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
    """)
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert out.returncode == 0, out.stderr
    assert int(out.stdout.split()[0]) < 900


def test_arrays_in_a_folder_are_read_beside_other_files(tmp_path: Path) -> None:
    waves = np.sin(np.arange(600) / 5).reshape(20, 30).round(3)
    np.savez(tmp_path / "waves.npz", x=waves, y=np.arange(20) % 2)
    (tmp_path / "notes.txt").write_text("Made by hand.\n")
    data = read(tmp_path)
    assert data.kind.name == "series" and len(data) == 20 and data.problems[0].file.endswith("notes.txt")
