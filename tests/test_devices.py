"""Models run on any device: the same code on a pretended one refuses tensors that meet on two (see `pretend`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pretend import Mixed, is_on_device, pretended
from test_mixers import SUBJECTS, VARIANTS

import segue
from segue.decoding.denoise import denoise
from segue.errors import SegueError
from segue.mixers import Layout, Mixer
from segue.models import Stack, StackConfig
from segue.models.cloze import ClozeModel
from segue.models.counts import BlendedCounts
from segue.models.mixture import Mixture
from segue.models.predict import DecodablePredictor
from segue.models.stack import both_ways
from segue.verbs.devices import place

pytestmark = pytest.mark.filterwarnings("ignore:CUDA is not available", "ignore:User provided device_type")
SIZE: dict[str, Any] = {"width": 16, "depth": 1, "context": 16, "rows": 2, "measure": 1, "quiet": True}
TEXT = [f"fox number {i} jumps over the lazy dog. " for i in range(24)]


def test_the_pretended_device_is_as_strict_as_a_real_one() -> None:
    with pretended() as cuda:
        x = torch.zeros(3, 2, device=cuda)
        assert (x + 1).device.type == x[0].device.type == torch.ones(2).to(x).device.type == "cuda"
        assert x.cpu().device.type == torch.ones(2).device.type == "cpu" and is_on_device(x.new_zeros(2))
        assert (x + torch.tensor(2.0)).device.type == "cuda"  # one number may lie anywhere
        assert x[torch.tensor([0, 1])].shape == (2, 2)  # and so may places
        with pytest.raises(Mixed):
            x + torch.ones(2)
        with pytest.raises(Mixed):
            torch.cat([x, torch.ones(1, 2)])
        with pytest.raises(Mixed):
            x.gather(0, torch.zeros(1, 2, dtype=torch.long))
        with pytest.raises(Mixed):
            torch.rand(3, device=cuda, generator=torch.Generator())
        with pytest.raises(TypeError):
            x.numpy()
        layer = torch.nn.Linear(2, 2).to(cuda)
        layer(x).sum().backward()
        assert layer.weight.grad is not None and layer.weight.grad.device.type == "cuda"


def run_life(mixer: Mixer, width: int, shortest: int) -> None:
    """A short life of a mixer on the device of its weights: learning, documents, pieces, a tree, rows that come and go.
    """
    device = next(mixer.parameters()).device
    x = torch.randn(2, shortest + 9, width).to(device).requires_grad_()
    mixer(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.device.type == device.type for p in mixer.parameters())
    starts = torch.zeros(2, x.shape[1], dtype=torch.bool, device=device)
    starts[:, 0] = starts[0, 4] = True
    if mixer.resettable and not shortest:
        mixer(x, Layout.chain((2, x.shape[1]), starts=starts)).sum().backward()
    if not mixer.causal:
        return
    with torch.no_grad():
        state = mixer.init_state(2, history=3)
        mixer.extend(x[:, :-4], state)
        state.commit()
        mixer.extend(x[:, -4:-1], state, torch.tensor([[-1, 0, 0], [-1, -1, 1]], device=device))
        state.commit(torch.tensor([[0, 2], [1, -1]], device=device))
        state.rewind(torch.tensor([1, 0], device=device))
        mixer.extend(x[:, -3:], state)
        state.commit(counts=torch.tensor([1, 3], device=device))
        state = state.select(torch.tensor([1, 0, 0], device=device)).join([mixer.init_state(1, history=3)])
        state.restore(state.snapshot())
        loaded = mixer.init_state(4)
        loaded.load(state.tensors())
        assert mixer.extend(x[:, -1:].repeat(2, 1, 1)[:, :1], state).device.type == device.type
        state.commit()


@pytest.mark.parametrize("name", [*SUBJECTS, *VARIANTS])
def test_mixers_stay_on_their_device(name: str) -> None:
    with pretended() as cuda:
        mixer = (SUBJECTS | VARIANTS)[name](8).to(cuda)
        run_life(mixer, 8, 4 if mixer.needs_whole_prompt else 0)


def test_fitted_models_stay_on_their_device(tmp_path: Path) -> None:
    with pretended() as cuda:
        fitted = segue.fit(TEXT, out=tmp_path / "m", steps=2, mixer="attention+gru", mix=False, ema=0.9, device=cuda,
                           **{**SIZE, "depth": 2})
        assert fitted.device.type == "cpu" and "on cuda" in fitted.report["held_out"]["path"]
        for strategy in ("ewc + replay", "gem", "lora"):
            fitted.update(TEXT[:12], strategy, steps=1, quiet=True, device=cuda)
            assert fitted.device.type == "cpu"
        fitted = segue.load(tmp_path / "m", cuda)
        assert fitted.device.type == "cuda" and all(is_on_device(p) for p in fitted.model.parameters())
        assert fitted.embed(TEXT[:2]).vectors.shape == (2, 16)
        for decoder in ("greedy", "sample", "lookup", "beam"):
            assert fitted.continue_(["fox", "the dog"], 3, decoder)
        fitted.prefer([("fox ", "jumps", "number")] * 4, 1, quiet=True, device=cuda)
        assert fitted.evaluate(TEXT[:2], device="cpu").elements and fitted.device.type == "cuda"


@pytest.mark.parametrize("objective", ["diffusion", "cloze", "occupancy"])
def test_objectives_stay_on_their_device(objective: str) -> None:
    with pretended() as cuda:
        fitted = segue.fit(TEXT, steps=1, mix=False, objective=objective, device=cuda, **SIZE).to(cuda)
        assert fitted.continue_("fox", 2)


def test_models_of_times_stay_on_their_device(tmp_path: Path) -> None:
    (tmp_path / "e.csv").write_text("who,what,when\n" + "".join(
        f"u{i % 5},{'abc'[i % 3]},{60 * i + i % 7}\n" for i in range(60)))
    data = segue.read(tmp_path / "e.csv", kind="events", who="who", what="what", when="when")
    with pretended() as cuda:
        fitted = segue.fit(data, steps=1, objective="timed", device=cuda, **SIZE).to(cuda)
        assert fitted.continue_(tmp_path / "e.csv", 2).items is not None


def test_predictors_and_token_states_take_tensors_of_the_device() -> None:
    counts = BlendedCounts(9, 64).fit([[i % 7, 1, 2, 3] for i in range(30)])
    with pretended() as cuda, torch.no_grad():
        stack = Stack(StackConfig(9, 8, ["gru"])).to(cuda)
        predictor = DecodablePredictor(stack, 8, 8)
        assert predictor.next([1, 2]).shape == (8,) and predictor.predictions([1, 2]).shape == (2, 8)
        for model in (ClozeModel(stack, 6), Mixture(stack, counts)):
            state = model.init_state(2, 4)
            model.extend(torch.tensor([[1, 2], [3, 0]], device=cuda), state)
            state.commit(counts=torch.tensor([2, 1], device=cuda))
            model.extend(torch.tensor([[1, 2], [3, 0]], device=cuda), state)
            state.commit(torch.tensor([[0, 1], [0, -1]], device=cuda))
            state.rewind(torch.tensor([1, 0], device=cuda))
            assert state.select(torch.tensor([1, 0, 0], device=cuda)).positions.tolist() == [2, 3, 3]


def test_answers_are_denoised_on_the_device_of_the_model() -> None:
    with pretended() as cuda:
        model = Stack(both_ways(StackConfig(7, 8, ["attention"]))).to(cuda)
        assert len(denoise(model, [[1, 2], [3]], [[2, 3], [1]], steps=2, temperature=1.0)) == 2


def test_a_missing_device_is_refused(tmp_path: Path) -> None:
    for name in ("no-such", "meta"):
        with pytest.raises(SegueError, match=f"device '{name}' "):
            place(name)
        with pytest.raises(SegueError, match=f"device '{name}' "):
            segue.load(tmp_path, name)
    with pytest.raises(SegueError, match="is not to be had"):
        segue.fit(TEXT, steps=1, device="cuda:99", **SIZE)
