"""One vector for each sequence: what it is made of, alone and among others, of every sort of model, in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from weights import shake

import segue
from segue import cli
from segue.analysis import embedding
from segue.analysis.embedding import embed, pieces
from segue.errors import SegueError
from segue.kinds import Record
from segue.mixers.layout import Layout
from segue.models import (
    HEADS,
    Classifier,
    EncoderDecoder,
    EncoderDecoderConfig,
    PointerConfig,
    PointerNetwork,
    SetConfig,
    Stack,
    StackConfig,
)
from segue.models.stack import both_ways

VOCABULARY = 11
MIXERS = ["attention", "mamba", "lstm", "attention+mamba"]


def stack(mixer: str, both: bool, seed: int = 0) -> Stack:
    torch.manual_seed(seed)
    options: dict[str, Any] = {"attention": {"heads": 2}, "mamba": {"states": 4}}
    names = mixer.split("+")
    config = StackConfig(VOCABULARY, 8, names, {name: options[name] for name in names if name in options})
    model = Stack(both_ways(config) if both else config).double().eval()
    shake(model, 0.1)
    return model


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("mixer", MIXERS)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 99), sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_vectors_do_not_depend_on_the_batch(mixer: str, both: bool, seed: int, sizes: list[int]) -> None:
    model, draw = stack(mixer, both), np.random.default_rng(seed)
    rows = [draw.integers(VOCABULARY - 1, size=n) for n in sizes]
    results = {pool: embed(model, rows, pool, begin=VOCABULARY - 1) for pool in embedding.POOLS}
    for index, row in enumerate(rows):
        tokens = torch.tensor([[VOCABULARY - 1, *row]])
        with torch.no_grad():
            hidden = model.hidden(tokens, Layout.of(tokens))[0, 1:].numpy()
        for pool, expected in (("mean", hidden.mean(0)), ("first", hidden[0]), ("last", hidden[-1]),
                               ("ends", np.concatenate([hidden[0], hidden[-1]]))):
            np.testing.assert_allclose(results[pool][index], expected, atol=2e-6)


@given(n=st.integers(1, 40), context=st.integers(1, 12))
def test_pieces_cover_each_element_once(n: int, context: int) -> None:
    results = list(pieces(n, context))
    assert [i for _, end, new in results for i in range(new, end)] == list(range(n))
    assert all(0 < end - first <= context for first, end, _ in results)
    assert all(new - first >= context // 2 for first, _, new in results[1:])


def test_long_rows_are_embedded_by_pieces_or_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "PIECE", 5)
    rows = [np.arange(17) % VOCABULARY, np.arange(3), np.arange(23) % 7]
    carried = stack("mamba", False)
    for pool in embedding.POOLS:  # a state knows all of the past, however the row is cut
        single_rows = [embed(carried, [row], pool, begin=1) for row in rows]
        np.testing.assert_allclose(embed(carried, rows, pool, 4, begin=1), np.concatenate(single_rows), atol=1e-6)
        tokens = torch.tensor([[1, *rows[0]]])
        with torch.no_grad():
            hidden = carried.hidden(tokens, Layout.of(tokens))[0, 1:].numpy()
        expected = {"mean": hidden.mean(0), "first": hidden[0], "last": hidden[-1],
                    "ends": np.concatenate([hidden[0], hidden[-1]])}
        np.testing.assert_allclose(single_rows[0][0], expected[pool], atol=1e-6)
    windowed, hidden = stack("attention", True), []
    for first, end, new in pieces(17, 6):
        tokens = torch.from_numpy(rows[0][first:end])[None]
        with torch.no_grad():
            hidden += list(windowed.hidden(tokens, Layout.of(tokens))[0, new - first :].numpy())
    np.testing.assert_allclose(embed(windowed, rows, "mean", 6)[0], np.mean(hidden, 0), atol=1e-6)
    np.testing.assert_allclose(embed(windowed, rows, "last", 6)[0], hidden[-1], atol=1e-6)


def test_encoder_decoders_embed_by_their_encoder() -> None:
    torch.manual_seed(0)
    side = StackConfig(VOCABULARY, 8, ["lstm"])
    model = EncoderDecoder(EncoderDecoderConfig(both_ways(side), side)).eval()
    rows = [np.arange(5), np.arange(2)]
    with torch.no_grad():
        expected = model.encoder.hidden(torch.arange(2)[None], Layout.chain((1, 2)))[0].mean(0)
    np.testing.assert_allclose(embed(model, rows)[1], expected, atol=1e-6)


def test_models_on_a_backbone_embed_as_the_backbone() -> None:
    model, rows = stack("lstm", False), [np.arange(5), np.arange(2)]
    np.testing.assert_array_equal(embed(Classifier(model, HEADS["linear"](8, 3)), rows), embed(model, rows))
    torch.manual_seed(0)
    points = PointerNetwork(PointerConfig(SetConfig(2, 8), StackConfig(1, 8, ["gru"]))).eval()
    points_of_row = np.random.default_rng(0).random((6, 2)).astype(np.float32)
    results = embed(points, [points_of_row, points_of_row[::-1], points_of_row[:3]])
    np.testing.assert_allclose(results[0], results[1], atol=1e-6)  # a set is read in no order
    assert np.abs(results[0] - results[2]).max() > 1e-4
    with pytest.raises(SegueError, match="no hidden vectors"):
        embed(object(), rows)


LINES = [" ".join(map(str, range(i % 7, 3 + i % 11))) + "\n" for i in range(60)]
PLAYED = {f"user {i}": [f"s{(i * k) % 9}" for k in range(3 + i % 5)] for i in range(60)}
SMALL: dict[str, Any] = {"steps": 2, "width": 16, "depth": 1, "quiet": True}


@pytest.mark.parametrize("options", [{"mixer": "mamba"}, {"mixer": "lstm", "objective": "cloze"},
                                     {"mixer": "attention", "objective": "diffusion"}])
def test_every_fitted_model_embeds(options: dict[str, str], tmp_path: Path) -> None:
    for data, new in ((LINES, ["1 2 3", ""]), (PLAYED, {"a": ["s1", "s2", "s4"], "b": ["s1"]})):
        model = segue.fit(data, out=tmp_path / data.__class__.__name__, **SMALL, **options)
        if isinstance(new, list) and model.objective == "diffusion":  # it learned no sign that begins a text
            with pytest.raises(SegueError, match=r"2: the sequence is empty"):
                model.embed(new)
            new = new[:1]
        result = model.embed(new)
        assert result.vectors.shape == (len(new), 16) and np.isfinite(result.vectors).all()
        reloaded = segue.load(tmp_path / data.__class__.__name__).embed(new)
        np.testing.assert_array_equal(result.vectors, reloaded.vectors)
        first_vector = model.embed(new[:1] if isinstance(new, list) else {"a": new["a"]}, pool="ends")
        assert first_vector.vectors.shape == (1, 32)


def test_timed_models_embed() -> None:
    def played(i: int) -> Record:
        return Record(["a", "b", "a", "c"][: 2 + i % 3], {"time": np.cumsum(np.arange(2 + i % 3) + 0.5)}, f"u{i}")

    model = segue.fit([played(i) for i in range(30)], objective="timed", **SMALL)
    result = model.embed([played(2), played(0), played(2)])
    assert result.names == ["u2", "u0", "u2"] and result.vectors.shape == (3, 16)
    np.testing.assert_allclose(result.vectors[0], result.vectors[2])
    delayed = Record(played(2).object, {"time": played(2).channels["time"] * 3}, "late")
    assert np.abs(model.embed([delayed]).vectors[0] - result.vectors[0]).max() > 1e-4


def test_vectors_are_written_to_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "new.fasta").write_text(">one\nMKVLAAGG\n>two\nMK\n>three\nMKVLAAGGWW\n")
    (tmp_path / "old.fasta").write_text("".join(f">p{i}\n{'MKVLAG'[i % 6:] * (2 + i % 4)}\n" for i in range(40)))
    segue.fit(tmp_path / "old.fasta", out=tmp_path / "model", mixer="lstm", **SMALL)

    def run(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as end:
            cli.main(["embed", str(tmp_path / "model"), str(tmp_path / "new.fasta"), *arguments])
        captured = capsys.readouterr()
        return int(end.value.code or 0), captured.out + captured.err

    code, output = run("--out", str(tmp_path / "vectors.npz"))
    assert code == 0 and "3 vectors of 16 numbers (mean)" in output
    with np.load(tmp_path / "vectors.npz", allow_pickle=False) as archive:
        assert [name.split(":")[-1] for name in archive["names"]] == ["one", "two", "three"]
        vectors = archive["vectors"]
    np.testing.assert_array_equal(vectors, segue.load(tmp_path / "model").embed(tmp_path / "new.fasta").vectors)
    assert run("--out", str(tmp_path / "v.parquet"), "--pool", "last")[0] == 0
    import pyarrow.parquet as parquet

    table = parquet.read_table(tmp_path / "v.parquet")
    assert table.column_names == ["name", "vector"] and len(table["vector"][0].as_py()) == 16
    for arguments, message in ((("--out", "vectors.pickle"), ".npz or .parquet"),
                               (("--out", str(tmp_path / "w.npz"), "--pool", "max"), "pool 'max' is unknown")):
        code, output = run(*arguments)
        assert code == 2 and message in output and not (tmp_path / "w.npz").exists()


def test_inputs_that_cannot_be_embedded_are_refused() -> None:
    model = segue.fit(PLAYED, mixer="lstm", **SMALL)
    with pytest.raises(SegueError, match="knows none of these"):
        model.embed({"a": ["x", "y"]})
    result = model.embed({"a": ["s1", "y"]})
    assert result.notes == ["50.0% of the events are unknown to the model"]
    with pytest.raises(SegueError, match="give at least one"):
        model.embed([])
    with pytest.raises(SegueError, match="sequence 2 is empty"):
        embed(stack("lstm", False), [np.arange(3), np.arange(0)])
