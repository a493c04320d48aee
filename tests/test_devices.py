"""Models run on any device: the same code on a pretended one refuses tensors that meet on two (see `pretend`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pretend import Mixed, pretended, there
from test_mixers import SUBJECTS, VARIANTS

import segue
from segue.errors import SegueError
from segue.mixers import Layout, Mixer
from segue.verbs.devices import place

pytestmark = pytest.mark.filterwarnings("ignore:CUDA is not available", "ignore:User provided device_type")
SIZE: dict[str, Any] = {"width": 32, "depth": 2, "context": 32, "rows": 4, "quiet": True}
TEXT = [f"the quick brown fox number {i} jumps over the lazy dog. " * 2 for i in range(60)]


def test_the_pretended_device_is_as_strict_as_a_real_one() -> None:
    with pretended() as cuda:
        x = torch.zeros(3, 2, device=cuda)
        assert (x + 1).device.type == x[0].device.type == torch.ones(2).to(x).device.type == "cuda"
        assert x.cpu().device.type == torch.ones(2).device.type == "cpu" and there(x.new_zeros(2))
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


def live(mixer: Mixer, width: int, least: int) -> None:
    """A short life of a mixer on the device of its weights: learning, documents, pieces, a tree, rows that come and go.
    """
    device = next(mixer.parameters()).device
    x = torch.randn(2, least + 9, width).to(device).requires_grad_()
    mixer(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.device.type == device.type for p in mixer.parameters())
    starts = torch.zeros(2, x.shape[1], dtype=torch.bool, device=device)
    starts[:, 0] = starts[0, 4] = True
    if mixer.resettable and not least:
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
        live(mixer, 8, 4 if mixer.needs_whole_prompt else 0)


def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for name in ("no-such", "meta"):
        with pytest.raises(SegueError, match=f"device '{name}' "):
            place(name)
        with pytest.raises(SegueError, match=f"device '{name}' "):
            segue.load(tmp_path, name)
    with pytest.raises(SegueError, match="is not to be had"):
        segue.fit(TEXT, steps=1, device="cuda:99", **SIZE)
