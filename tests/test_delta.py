"""Differences of weights: vocabularies of other tokens, TIES and DARE against plain loops, closed forms, the verb."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import segue
from segue import SegueError, cli
from segue.kinds import KINDS
from segue.kinds.codecs import ByteCodec
from segue.models import Stack, StackConfig
from segue.models.adapters import LoRA
from segue.models.delta import Delta, align_vocabulary, movable_parameters, sum_deltas, ties
from segue.verbs.fitted import Fitted, Report
from segue.verbs.merge import merge


def stack(vocabulary: int, seed: int, mixer: str = "gru", tied: bool = True) -> Stack:
    torch.manual_seed(seed)
    return Stack(StackConfig(vocabulary, 8, [mixer], tied=tied)).double()


@pytest.mark.parametrize(("mixer", "tied"), [("attention", True), ("mamba", False), ("gru", True)])
def test_deltas_map_embeddings_by_token(mixer: str, tied: bool) -> None:
    have, expected = ["a", "b", "<end>"], ["<chat>", "b", "a", "<end>", "<pad>"]
    base, tuned = stack(3, 0, mixer, tied), stack(5, 1, mixer, tied)
    wide = align_vocabulary(movable_parameters(base), have, expected)
    assert not wide["embedding.weight"][[0, 4]].any()
    residual = Delta.between(tuned, wide)
    restored = stack(5, 2, mixer, tied)
    with torch.no_grad():
        for name, parameter in movable_parameters(restored).items():
            parameter.copy_(wide[name])
    residual.apply(restored)  # nothing was learned on the base: the tuned model comes back
    ids = torch.tensor([[1, 2, 0, 3]])
    torch.testing.assert_close(restored(ids).logits, tuned(ids).logits, rtol=0, atol=1e-12)
    (residual * -1.0).apply(restored)
    assert not restored.embedding.weight[0].any()
    torch.testing.assert_close(restored.embedding.weight[[2, 1, 3]], base.embedding.weight)
    back = align_vocabulary(wide, expected, have)
    assert all(torch.equal(back[name], value) for name, value in movable_parameters(base).items())
    with pytest.raises(SegueError, match="for 2 tokens"):
        align_vocabulary(movable_parameters(base), ["a", "b"], expected)


def test_tokens_of_equal_text_keep_their_order() -> None:
    rows = {"head.weight": torch.arange(3.0)[:, None]}
    results = align_vocabulary(rows, ["x", "x", "y"], ["y", "x", "x", "x"])["head.weight"]
    assert results[:, 0].tolist() == [2, 0, 1, 0]


values = st.lists(st.floats(-3, 3).map(lambda x: round(x, 1)), min_size=6, max_size=6)


@given(st.lists(values, min_size=1, max_size=4), st.sampled_from([0.34, 0.5, 1.0]))
def test_ties_equals_trim_elect_and_mean(deltas: list[list[float]], keep: float) -> None:
    parts = [Delta({"a": torch.tensor(row[:4], dtype=torch.float64), "b": torch.tensor(row[4:], dtype=torch.float64)})
             for row in deltas]
    trimmed = []
    for row in deltas:
        threshold = sorted(map(abs, row), reverse=True)[round(keep * 6) - 1]
        trimmed.append([x if abs(x) >= threshold else 0.0 for x in row])
    expected = []
    for column in zip(*trimmed):
        sign = np.sign(np.sum(column))
        agreeing = [x for x in column if x and np.sign(x) == sign]
        expected.append(np.mean(agreeing) if agreeing else 0.0)
    merged = ties(parts, keep)
    np.testing.assert_allclose(torch.cat([merged.tensors["a"], merged.tensors["b"]]), expected, atol=1e-12)
    np.testing.assert_allclose(sum_deltas(parts).tensors["b"], np.sum(deltas, 0)[4:], atol=1e-12)


def test_ties_accepts_small_and_complex_weights() -> None:
    assert Delta({"a": torch.tensor([1.0, -3.0])}).trim(0.2).tensors["a"].tolist() == [0, -3]
    parts = torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(0))
    merged = ties([Delta({"a": torch.view_as_complex(part)}) for part in parts], 1.0).tensors["a"]
    expected = ties([Delta({"a": part}) for part in parts], 1.0).tensors["a"]
    torch.testing.assert_close(torch.view_as_real(merged), expected)


def test_dropped_weights_keep_the_mean() -> None:
    delta = Delta({"a": torch.ones(200, 200)})
    result = delta.drop(0.9).tensors["a"]
    assert {round(x, 4) for x in result.unique().tolist()} == {0.0, 10.0}
    assert result.mean() == pytest.approx(1, abs=0.1) and torch.equal(result, delta.drop(0.9).tensors["a"])
    assert torch.equal(delta.drop(0.0).tensors["a"], delta.tensors["a"])
    for bad_call in (lambda: delta.drop(1.0), lambda: delta.trim(0.0)):
        with pytest.raises(SegueError, match="cannot be"):
            bad_call()


@given(st.integers(0, 1000), st.floats(0, 1.5))
@settings(max_examples=20)
def test_deltas_of_quadratic_losses_add_up(seed: int, scale: float) -> None:
    """Learning the instructions, then the data, by gradient steps on losses |x - m|^2 / 2 that go on for as long: each
    step shrinks the way left by 1 - rate, so the sum of both ways from the base is not the sequence, unless the steps
    are small against it; in closed form for steps that go a part p of the way."""
    draw = np.random.default_rng(seed)
    base, data, instructions = draw.normal(size=(3, 4))
    p = 1e-3
    learned, tuned = base + p * (data - base), base + p * (instructions - base)
    sequential = learned + p * (instructions - learned)
    model = nn.Module()
    model.x = nn.Parameter(torch.tensor(learned))
    delta = Delta.between({"x": torch.tensor(tuned)}, {"x": torch.tensor(base)})
    (delta * scale).apply(model)
    # The sum misses the sequence by p^2 (data - base), and at scale 0 nothing is added.
    expected = sequential + p**2 * (data - base) + (scale - 1) * p * (instructions - base)
    np.testing.assert_allclose(model.x.detach().numpy(), expected, atol=1e-12)


def test_buffers_and_integers_are_unchanged() -> None:
    first, second = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    second.running_mean.fill_(3)
    delta = Delta.between(second, first)
    assert set(delta.tensors) == {"weight", "bias"}
    delta.apply(first)
    assert not first.running_mean.any()


def test_an_adapter_is_merged_before_a_residual_is_added() -> None:
    base, tuned, learned = (stack(5, seed, "attention") for seed in (0, 1, 0))
    adapter = LoRA(2, 4.0, seed=3)
    adapter.attach(learned)
    with torch.no_grad():
        for part in adapter.layers.values():
            part.b.normal_()
    moved = {f"{name}.weight": part.delta.detach().clone() for name, part in adapter.layers.items()}
    adapter.merge()
    residual = Delta.between(tuned, base)
    residual.apply(learned)
    assert len(moved) > 2
    for name, value in movable_parameters(learned).items():
        torch.testing.assert_close(value, movable_parameters(tuned)[name] + moved.get(name, 0.0), rtol=0, atol=1e-12)


def test_merge_restores_instructions_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    for seed, name in enumerate(("base", "asked", "new")):
        torch.manual_seed(seed)
        Fitted(Stack(StackConfig(257, 8, ["gru"])), ByteCodec(), KINDS["text"], Report({}), 16).save(tmp_path / name)
    places = [str(tmp_path / "new"), "--plus", str(tmp_path / "asked"), "--minus", str(tmp_path / "base"), "--out"]
    with pytest.raises(SystemExit) as end:
        cli.main(["merge", *places, str(tmp_path / "merged")])
    assert end.value.code == 0 and "cosine" in capsys.readouterr().out
    names = ("merged", "new", "asked", "base")
    merged, new, instructed, base = (movable_parameters(segue.load(tmp_path / name).model) for name in names)
    for name, value in merged.items():
        torch.testing.assert_close(value, new[name] + instructed[name] - base[name], rtol=0, atol=1e-6)
    assert isinstance(segue.load(tmp_path / "merged").continue_("the", n=3).text, str)
    for extra_arguments, message in ((["--how", "mean"], "choose sum, ties, dare"),
                                     (["--set", "keep=0.5"], "unexpected keyword")):
        with pytest.raises(SystemExit) as end:
            cli.main(["merge", *places, str(tmp_path / "x"), *extra_arguments])
        assert end.value.code == 2 and message in capsys.readouterr().err and not (tmp_path / "x").exists()
    def full(path: Path, *_: object) -> None:
        raise SegueError(f"cannot write {path}: No space left on device")

    before = {path: path.read_bytes() for path in (tmp_path / "merged").rglob("*") if path.is_file()}
    with monkeypatch.context() as patch:
        patch.setattr("segue.verbs.fitted.save_tensors", full)
        for output in ("x", "merged"):
            with pytest.raises(SystemExit):
                cli.main(["merge", *places, str(tmp_path / output)])
            assert "No space left" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
    assert before == {path: path.read_bytes() for path in (tmp_path / "merged").rglob("*") if path.is_file()}
    Fitted(Stack(StackConfig(257, 8, ["lstm"])), ByteCodec(), KINDS["text"], Report({}), 16).save(tmp_path / "base")
    with pytest.raises(SystemExit):
        cli.main(["merge", *places, str(tmp_path / "x")])
    assert "one shape" in capsys.readouterr().err


def test_counts_beside_the_networks_add_up(tmp_path: Path) -> None:
    segue.fit(["one two\n" * 20] * 9, steps=1, quiet=True, out=tmp_path / "base", width=16, depth=1)
    base, new, tuned, bare = (segue.load(tmp_path / "base") for _ in range(4))
    bare.mixture = bare.memory = None
    bare.save(tmp_path / "base")  # over one that had both
    assert segue.load(tmp_path / "base").mixture is None and segue.load(tmp_path / "base").memory is None
    for model in (new, tuned):
        model.folder = None
    new.update(["five six\n" * 9] * 9, steps=1, quiet=True)
    tuned.update(["nine ten\n" * 9] * 9, steps=1, quiet=True)
    sizes = [model.mixture.counts.tables.stream.size for model in (base, new, tuned)]  # type: ignore[union-attr]
    merged, report = merge(new, [tuned], base)
    assert merged.mixture is not None and "those of all" in report.counts
    assert merged.mixture.counts.tables.stream.size == sizes[1] + sizes[2] - sizes[0]
    reloaded = segue.load(merged.save(tmp_path / "merged"))
    assert reloaded.mixture is not None and reloaded.evaluate(["nine ten\n"]).bits_per_unit == pytest.approx(
        merged.evaluate(["nine ten\n"]).bits_per_unit, rel=1e-4)
    other = segue.fit(["six ten\n" * 20] * 9, steps=1, quiet=True, width=16, depth=1)
    merged, report = merge(new, [tuned], other)
    assert merged.mixture is None and "do not go on" in report.counts
    tuned.mixture = None
    merged, report = merge(new, [tuned], base)
    assert merged.mixture is None and "not all models" in report.counts


def test_a_merged_model_can_be_updated(tmp_path: Path) -> None:
    model = segue.fit(["one two\n" * 9] * 9, steps=1, quiet=True, mix=False, width=16, depth=1)
    merged, _ = merge(model, [model], model)
    merged.save(tmp_path / "merged")
    merged.folder = None
    merged.update(["five six\n" * 9] * 9, steps=1, quiet=True)
    assert model.memory is not None and list(model.memory.exams) == ["first data"], "the merged model shares its memory"
    assert segue.load(tmp_path / "merged").update(["five six\n" * 9] * 9, steps=1, quiet=True).steps == 1
    again, _ = merge(merged, [merged], merged)
    assert again.update(["six"] * 9, steps=1, quiet=True).matrix.names == ["first data", "update 1", "update 2"]
    merged.report.values.clear()
    with pytest.raises(SegueError, match="holds no plan"):
        merged.update(["five six\n" * 9] * 9, steps=1, quiet=True)
