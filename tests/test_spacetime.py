"""Fields over films, the branch that controls them, and the autoencoder under them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from segue.decoding.flow import ClipRollout, euler
from segue.errors import SegueError
from segue.mixers import Attention
from segue.mixers.attention import attend
from segue.mixers.layout import Layout
from segue.models import (
    ControlBranch,
    FilmAutoencoder,
    FilmAutoencoderConfig,
    SpaceTimeConfig,
    SpatioTemporalDiT,
    StackConfig,
)
from segue.models.control import GUIDE, INSTRUCTION
from segue.models.film import edges, from_patches, to_patches
from segue.models.flow import EvenField, LayeredField, StackField
from segue.models.spacetime import SpaceTimeBlock
from segue.models.stack import both_ways
from segue.objectives import Batch, FlowMatching, Reconstruction
from segue.training.learn import learn

GRID = (3, 2, 4)
N = 24
OPTIONS = {"attention": {"heads": 2}, "s4nd": {"states": 4}, "hydra": {"states": 4}, "mamba": {"states": 4},
           "gla": {"heads": 2}, "mlstm": {"heads": 2}}


def film_model(space: str = "attention", time: str = "attention", pairs: int = 2, text: int = 5) -> SpatioTemporalDiT:
    torch.manual_seed(0)
    config = SpaceTimeConfig(3, 16, pairs, space, time, OPTIONS.get(space, {}), OPTIONS.get(time, {}), text, heads=2)
    model = SpatioTemporalDiT(config)
    torch.nn.init.normal_(model.head.weight)  # it is zero at first, and hides everything
    return model


def stirred(model: torch.nn.Module) -> None:
    """Weights as after some training: none is zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


def inputs(rows: int = 2, grid: tuple[int, ...] = GRID) -> tuple[Tensor, Tensor, Tensor, Layout]:
    generator = torch.Generator().manual_seed(0)
    n = int(torch.tensor(grid).prod())
    noisy = (torch.arange(n) >= n // grid[0]).expand(rows, n)
    return (torch.randn(rows, n, 3, generator=generator), torch.rand(rows, generator=generator), noisy,
            Layout.chain((rows, n), grid=grid))


@pytest.mark.parametrize("over_time", [False, True])
def test_mixing_along_an_axis_is_full_attention_with_a_mask(over_time: bool) -> None:
    block = film_model().blocks[int(over_time)]
    assert isinstance(block, SpaceTimeBlock) and isinstance(block.mixer, Attention) and block.over_time == over_time
    stirred(block)
    x, t, noisy, layout = inputs()
    hidden, scene = film_model().begin(x, t, noisy, layout, {})
    lines = scene.fold(hidden, over_time)
    results = scene.unfold(block.mixer.run(lines, Layout.of(lines), {}), over_time)
    frame, place = torch.arange(N) // 8, torch.arange(N) % 8
    which, position = (place, frame) if over_time else (frame, place)
    q, k, v = block.mixer.project(hidden, position.expand(2, N))
    expected = block.mixer.output(attend(q, k, v, (which[:, None] == which)[None, None])[0], hidden)
    torch.testing.assert_close(results, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("space", "time"), [("attention", "attention"), ("s4nd", "gru"), ("hydra", "mamba"),
                                             ("mlstm", "gla"), ("attention", "s4nd")])
def test_a_film_model_starts_as_a_model_of_single_frames(space: str, time: str) -> None:
    """Of each frame alone, with the blocks over space alone."""
    model = film_model(space, time)
    x, t, noisy, layout = inputs()
    conditions = {"text": torch.tensor([[1, 2], [3, -1]])}
    film = model(x, t, noisy, layout, conditions)
    for frame in range(3):
        part = slice(8 * frame, 8 * frame + 8)
        picture = Layout.chain((2, 8), grid=(1, 2, 4))
        single = model(x[:, part], t, noisy[:, part], picture, conditions)
        torch.testing.assert_close(single, film[:, part], atol=1e-5, rtol=0)
        hidden, at = model.begin(x[:, part], t, noisy[:, part], picture, conditions)
        for block in model.layers[::2]:
            hidden = model.run(block, hidden, at)
        torch.testing.assert_close(model.end(hidden, at), film[:, part], atol=1e-5, rtol=0)
    stirred(model)
    assert not torch.allclose(model(x, t, noisy, layout, conditions)[:, 8:16],
                              model(x[:, 8:16], t, noisy[:, 8:16], picture, conditions), atol=1e-3)


def test_known_frames_have_time_0() -> None:
    model = film_model()
    x, t, noisy, layout = inputs()
    nothing_noisy = torch.zeros_like(noisy)
    torch.testing.assert_close(model(x, t, nothing_noisy, layout), model(x, t * 0, ~nothing_noisy, layout))
    assert not torch.allclose(model(x, t, noisy, layout), model(x, t / 2, noisy, layout))
    first = model(x, t, noisy, layout)[:, :8]  # frames are apart at first, so the first one sees no other time
    assert torch.equal(first, model(x, t / 2, noisy, layout)[:, :8])


def test_text_conditions_change_only_their_rows() -> None:
    model = film_model()
    x, t, noisy, layout = inputs()
    conditional = model(x, t, noisy, layout, {"text": torch.tensor([[1, 2, -1], [-1, -1, -1]])})
    unconditional = model(x, t, noisy, layout)
    torch.testing.assert_close(conditional[1], unconditional[1], atol=1e-5, rtol=0)
    assert not torch.allclose(conditional[0], unconditional[0], atol=1e-3)
    with pytest.raises(SegueError, match="another one"):
        model(x, t, noisy, layout, {"text": torch.tensor([[5], [0]])})


def test_bad_films_are_refused() -> None:
    x, t, noisy, layout = inputs()
    with pytest.raises(SegueError, match="one film"):
        film_model()(x, t, noisy, Layout(layout.positions, starts=torch.zeros(2, N, dtype=torch.bool)))
    with pytest.raises(SegueError, match="unknown"):
        SpaceTimeConfig(3, 16, 1, space="attentoin")
    with pytest.raises(SegueError, match="at least 1"):
        SpaceTimeConfig(3, 16, 0)
    with pytest.raises(SegueError, match="options of mixer"):
        SpatioTemporalDiT(SpaceTimeConfig(3, 16, 1, space_options={"head": 2}))
    with pytest.raises(SegueError, match="'longvq' has no output map"):
        SpatioTemporalDiT(SpaceTimeConfig(3, 16, 1, time="longvq"))
    with pytest.raises(SegueError, match="something to go by"):
        ControlBranch(film_model())
    with pytest.raises(SegueError, match="1 and then 4"):
        FilmAutoencoder(FilmAutoencoderConfig()).posterior(torch.zeros(1, 4, 8, 8, 3))
    with pytest.raises(SegueError, match="squares of 4"):
        to_patches(torch.zeros(1, 1, 6, 8, 3), 4)


def bases() -> dict[str, LayeredField]:
    torch.manual_seed(0)
    return {"film": film_model(), "gru": StackField(both_ways(StackConfig(1, 16, ["gru"] * 2)), 3),
            "mamba": StackField(StackConfig(1, 16, ["mamba"] * 2, {"mamba": {"states": 4}}), 3),
            "even": EvenField(film_model())}


@pytest.mark.parametrize("name", ["film", "gru", "mamba", "even"])
def test_an_unconditioned_branch_equals_its_base(name: str) -> None:
    """Before training, and bit by bit after it; also in a batch in which other rows have conditions."""
    base = bases()[name].eval()
    x, t, noisy, layout = inputs()
    layout = Layout.of(x) if name in ("gru", "mamba") else layout
    before = base(x, t, noisy, layout)
    base_weights = {key: value.clone() for key, value in base.state_dict().items()}
    branch = ControlBranch(base, {"key": 3}, words=4, depth=2, heads=2, shown=5)
    keys, words = torch.tensor([[-1] * 8 + [2] * 16, [-1] * N]), torch.tensor([[-1, -1], [-1, -1]])
    bits = {"atol": 1e-6 if name == "gru" else 0.0, "rtol": 0.0}  # torch's GRU rounds by where its weights lie
    torch.testing.assert_close(branch(x, t, noisy, layout, {"key": keys, INSTRUCTION: words}), before, **bits)

    def batch(step: int) -> Batch:
        return Batch(x, torch.where(noisy, 0, -1), channels={"key": keys, INSTRUCTION: torch.tensor([[1, 0], [2, -1]])},
                     grid=layout.grid)

    learn(branch, batch, 3, rate=0.01, objective=FlowMatching(), muon=True, decay=0.1)
    assert all(torch.equal(value, base_weights[key]) for key, value in branch.base.state_dict().items())
    for mode in (branch.train(), branch.eval()):
        assert not mode.base.training
        for conditions in ({}, {"key": torch.tensor([-1, -1])}, {"key": keys - keys - 1, INSTRUCTION: words}):
            torch.testing.assert_close(mode(x, t, noisy, layout, conditions), before, **bits)
        pressed = mode(x, t, noisy, layout, {"key": keys})
        torch.testing.assert_close(pressed[1], before[1], **bits)
        assert not torch.allclose(pressed[0], before[0], atol=1e-5)
        guide = torch.cat([torch.zeros(1, N, 5), torch.ones(1, N, 5)])
        for conditions in ({INSTRUCTION: torch.tensor([[-1, -1], [3, -1]])}, {GUIDE: guide}):
            outputs = mode(x, t, noisy, layout, conditions)
            torch.testing.assert_close(outputs[0], before[0], **bits)
            assert not torch.allclose(outputs[1], before[1], atol=1e-5)
    torch.testing.assert_close(*(euler(model, x, noisy, layout, steps=2) for model in (base, branch)), **bits)
    with pytest.raises(SegueError, match="give 5 numbers for each element"):
        branch(x, t, noisy, layout, {GUIDE: guide[:, 1:]})


def test_a_base_may_learn_with_its_branch() -> None:
    base = bases()["gru"]
    x, t, noisy, _ = inputs()
    before = base(x, t, noisy, Layout.of(x)).detach()
    branch = ControlBranch(base, {"key": 2}, frozen=False)
    learn(branch, lambda step: Batch(x, torch.where(noisy, 0, -1), channels={"key": torch.tensor([0, 1])}), 2,
          objective=FlowMatching())
    assert not torch.equal(branch(x, t, noisy, Layout.of(x)), before)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 2), st.integers(1, 3), st.sampled_from([1, 2, 4]), st.integers(1, 3))
def test_patches_round_trip(frames: int, height: int, width: int, size: int, channels: int) -> None:
    x = torch.rand(2, frames, height * size, width * size, channels)
    cut = to_patches(x, size)
    assert cut.shape == (2, frames, height, width, size * size * channels) and torch.equal(from_patches(cut, size), x)
    assert torch.equal(cut[1, 0, height - 1, 0].view(size, size, channels), x[1, 0, -size:, :size])


def coder(**options: Any) -> FilmAutoencoder:
    torch.manual_seed(0)
    return FilmAutoencoder(FilmAutoencoderConfig(width=16, latents=3, gather=2, **options)).eval()


@pytest.mark.parametrize("frame", [0, 1, 3, 4, 5, 8])
def test_the_film_codec_is_causal(frame: int) -> None:
    model, film = coder(), torch.rand(2, 9, 16, 8, 3)
    other = film.clone()
    other[:, frame] += 1
    moment = -(-frame // 4)
    (a, grid), (b, _) = model.encode(film), model.encode(other)
    assert grid == (3, 2, 1) and a.shape == (2, 6, 12)
    same, later = slice(2 * moment), slice(2 * moment, None)
    assert torch.equal(a[:, same], b[:, same]) and not torch.equal(a[:, later], b[:, later])
    begun = 0 if moment == 0 else 1 + 4 * (moment - 1)  # the first frame that the moment shows
    x, y = model.decode(a, grid), model.decode(b, grid)
    assert x.shape == film.shape and torch.equal(x[:, :begun], y[:, :begun])
    assert torch.allclose(model.encode(film[:, :1])[0], a[:, :2], atol=1e-6)  # a picture is a film


def test_the_film_codec_learns_and_scales_elements() -> None:
    model = coder(stride=2)
    film = torch.rand(8, 3, 8, 8, 3).round()

    def batch(step: int) -> Batch:
        return Batch(film, torch.zeros(8, 3, dtype=torch.long))

    run = learn(model, batch, 40, rate=5e-3, objective=Reconstruction())
    assert run.curve[-1]["loss"] < 0.8 * run.curve[0]["loss"]
    model.calibrate(film)
    elements, grid = model.encode(film)
    flat = from_patches(elements.unflatten(1, grid), 2).flatten(0, 3)
    torch.testing.assert_close(flat.std(0), torch.ones(3), atol=0.05, rtol=0)
    expected = model.decode_latents(model.posterior(film)[0])
    torch.testing.assert_close(model.decode(elements, grid), expected, atol=1e-5, rtol=0)


def test_a_film_rollout_continues_clip_by_clip() -> None:
    codec, base = coder(), film_model(text=0)
    model = SpatioTemporalDiT(SpaceTimeConfig(codec.size, 16, 1, text=0)).eval()
    assert base.words is None
    calls = list[tuple[int, tuple[int, ...]]]()
    film = torch.rand(2, 2, 8, 8, 3)
    film_continued = ClipRollout(model, codec, block=8,
                                 steps=2)(film, 2, lambda clip, grid: calls.append((clip, grid)) or {})
    assert film_continued.shape == (2, 18, 8, 8, 3) and torch.equal(film_continued[:, :2], film)
    assert calls == [(0, (3, 1, 1)), (1, (3, 1, 1))]
    repeated = ClipRollout(model, codec, block=8, steps=2)(film_continued[:, :10], 1, seed=1)
    assert torch.equal(repeated, film_continued)
    with pytest.raises(SegueError, match="stride 4"):
        ClipRollout(model, codec, block=3)


def test_edge_guides_mark_changes() -> None:
    film = torch.zeros(1, 2, 8, 8, 3)
    film[0, 1, 2:5, 3:6, 1] = 0.5
    edge_film = edges(film)
    frame = torch.zeros(8, 8)
    frame[2:5, 2], frame[1, 3:6], frame[2:5, 5], frame[4, 3:6] = 0.5, 0.5, 0.5, 0.5
    assert not edge_film[0, 0].any() and all(torch.equal(edge_film[0, 1, ..., colour], frame) for colour in range(3))
    codec = coder()
    elements, grid = codec.encode(edges(torch.rand(2, 5, 8, 8, 3)))
    base = SpatioTemporalDiT(SpaceTimeConfig(codec.size, 16, 1))
    layout = Layout.chain((2, elements.shape[1]), grid=grid)
    noisy = torch.ones(elements.shape[:2], dtype=torch.bool)
    branch = ControlBranch(base, shown=codec.size)
    assert branch(elements, torch.rand(2), noisy, layout, {GUIDE: elements}).shape == elements.shape


def test_a_branch_learns_from_keys_and_guides() -> None:
    """Which of two numbers follows, over a base that has learned only that it is one of them; each row has one
    condition."""
    torch.manual_seed(0)
    base = StackField(both_ways(StackConfig(1, 16, ["gru"])), 1)
    noisy, layout = torch.tensor([[False, True]] * 64), Layout.chain((64, 2))
    high, pressed = torch.arange(64) % 2, torch.arange(64) < 32
    sign = (2.0 * high - 1)[:, None, None].expand(-1, 2, 1)
    conditions = {"key": torch.where(pressed, high, -1), GUIDE: sign.masked_fill(pressed[:, None, None], 0)}

    def batch(step: int) -> Batch:
        return Batch(sign * torch.tensor([[0.0], [1.0]]), torch.where(noisy, 0, -1), channels=conditions)

    learn(base, batch, 60, rate=1e-2, objective=FlowMatching())
    branch = ControlBranch(base, {"key": 2}, shown=1)
    learn(branch, batch, 80, rate=3e-2, objective=FlowMatching())
    samples = [euler(model, torch.zeros(64, 2, 1), noisy, layout, conditions)[:, 1, 0] for model in (base, branch)]
    accuracy = [(sample.sign() == sign[:, 0, 0]).float().view(2, 32).mean(1) for sample in samples]
    assert (accuracy[0] < 0.8).all() and (accuracy[1] > 0.8).all(), accuracy
