"""What makes a model smaller or its training lighter, as options of the one model and the one loop."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import segue
from segue.errors import SegueError
from segue.mixers import Attention
from segue.models import Stack, StackConfig, expand_pattern
from segue.objectives import Batch, Distillation, NextElement
from segue.testing import check_model, check_strategy
from segue.training.checkpoint import load_into, weights_of
from segue.training.learn import learn
from segue.training.pruning import Prune
from segue.training.recipe import Plan
from segue.verbs.fit import build

TOKENS = torch.randint(7, (4, 20), generator=torch.Generator().manual_seed(0))
BATCH = Batch(TOKENS[:, :-1], TOKENS[:, 1:])


def stack(pattern: str = "attention*3", seed: int = 0, **choices: object) -> Stack:
    torch.manual_seed(seed)
    return Stack(StackConfig(7, 16, expand_pattern(pattern), **choices))  # type: ignore[arg-type]


def bytes_kept(model: nn.Module) -> int:
    """Of all that the forward pass keeps for the backward pass, each storage once."""
    size_by_storage: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        size_by_storage[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = NextElement()(model, BATCH).total
    del loss
    return sum(size for pointer, size in size_by_storage.items() if pointer not in weights)


def test_shared_layers_are_one_block() -> None:
    shared, separate = stack("attention+gru", shared=True), stack("attention*2+gru+attention", shared=True)
    count = sum(p.numel() for p in shared.parameters())
    unrolled = stack("attention*2+gru+attention")
    assert count == sum(p.numel() for p in separate.parameters()) < sum(p.numel() for p in unrolled.parameters())
    assert separate.blocks[0] is separate.blocks[1] is separate.blocks[3]
    assert separate.blocks[2] is not separate.blocks[0]
    unrolled.load_state_dict(separate.state_dict())  # every layer has its name, with the same weights
    assert torch.equal(unrolled(TOKENS).logits, separate(TOKENS).logits)
    assert check_model(separate, examples=3)


def test_shared_layers_are_saved_once(tmp_path: Path) -> None:
    model, other = stack("attention*3", shared=True), stack("attention*3", seed=1, shared=True)
    weights = weights_of(model)
    assert sum(w.numel() for w in weights.values()) == sum(p.numel() for p in model.parameters())
    load_into(other, weights, tmp_path)
    assert torch.equal(model(TOKENS).logits, other(TOKENS).logits)


@pytest.mark.parametrize("pattern", ["attention*2", "lstm+attention", "mamba*2"])
def test_recomputing_blocks_changes_no_gradient(pattern: str) -> None:
    """Dropout included, to the bit; and less is kept."""
    grads = []
    for checkpointing in (False, True):
        model = stack(pattern, dropout=0.2).train()
        model.checkpointing = checkpointing
        torch.manual_seed(1)
        NextElement()(model, BATCH).total.backward()
        grads.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads))


def test_recomputing_blocks_stores_less() -> None:
    stored, light = stack("attention*6"), stack("attention*6")
    light.checkpointing = True
    assert bytes_kept(light) < 0.65 * bytes_kept(stored)


def test_models_that_cannot_recompute_are_refused() -> None:
    with pytest.raises(SegueError, match="cannot recompute"):
        learn(nn.Linear(2, 2), lambda step: BATCH, 1, checkpointing=True)


@pytest.mark.parametrize("muon", [False, True])
def test_pruned_weights_are_the_smallest_and_stay_zero(muon: bool) -> None:
    model = stack("attention*2")
    zero_shares: list[float] = []
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and "embedding" not in name]

    class Watched(Prune):
        def after_step(self, run: object) -> None:
            super().after_step(run)  # type: ignore[arg-type]
            zero_shares.append(float(sum((p == 0).sum() for p in matrices)) / sum(p.numel() for p in matrices))

    run = learn(model, lambda step: BATCH, 30, muon=muon, strategy=Watched(0.6, every=3))
    assert zero_shares == sorted(zero_shares) and abs(zero_shares[-1] - 0.6) < 1e-3 and zero_shares[0] < 0.2
    assert abs(zero_shares[9] - 0.6 * (1 - (1 - 10 / 21) ** 3)) < 0.01  # the cubic schedule
    assert run.curve[-1]["loss"] < run.curve[0]["loss"] and bool((model.embedding.weight != 0).all())


def test_pruning_survives_a_kill() -> None:
    check_strategy(lambda: Prune(0.5, every=2))


def test_distillation_equals_its_formula() -> None:
    teacher, student = stack(seed=1), stack()
    student_logits, teacher_logits = (model(BATCH.tokens).logits.double().flatten(0, 1) for model in (student, teacher))
    p, q = (teacher_logits / 3).softmax(-1), (student_logits / 3).softmax(-1)
    separate = (p * (p.log() - q.log())).sum()
    expected = 0.7 * F.cross_entropy(student_logits, BATCH.targets.flatten(), reduction="sum") + 0.3 * 9 * separate
    loss = Distillation(teacher, 0.3, 3.0)(student, BATCH)
    assert abs(float(loss.total.detach()) - float(expected.detach())) < 1e-3
    assert set(loss.terms) == {"nats", "distillation"}
    loss.total.backward()
    assert all(p.grad is None for p in teacher.parameters())


def test_a_distilled_student_approaches_its_teacher() -> None:
    teacher, student = stack(seed=1), stack("gru")
    nowhere = Distillation(teacher, 1.0)

    def separate() -> float:
        return float(nowhere(student, BATCH).terms["distillation"])

    before = separate()
    learn(student, lambda step: BATCH, 40, objective=nowhere)
    assert separate() < 0.3 * before


def test_a_teacher_of_other_elements_is_refused() -> None:
    with pytest.raises(SegueError, match="same codec"):
        Distillation(Stack(StackConfig(9, 8, ["gru"])))(stack(), BATCH)


def test_mixer_penalties_are_in_the_loss() -> None:
    """A head that pays for its reach looks less far, shared layers and gradient accumulation included."""
    spans = []
    for price in (0.0, 1.0):
        options = {"attention": {"span": 16, "ramp": 4, "span_penalty": price}}
        model = stack("attention*2", options=options, shared=True)
        learn(model, lambda step: BATCH, 15, rate=0.02, accumulate=2)
        mixer = model.blocks[0].mixer
        assert isinstance(mixer, Attention) and mixer.learned_span is not None
        spans.append(float(mixer.learned_span.detach().mean()))
    assert spans[1] < spans[0] - 0.05


def test_every_saving_is_available_from_fit(tmp_path: Path) -> None:
    """`segue fit --set ...`: a teacher, then a shared, recomputed, pruned student of it with local layers."""
    lines = [f"{a} times {b} is {a * b}\n" for a in range(12) for b in range(12)]
    small = {"steps": 6, "width": 32, "quiet": True, "mix": False}
    segue.fit(lines, out=tmp_path / "teacher", depth=2, **small)
    student = segue.fit(lines, out=tmp_path / "student", mixer="attention*2+attention:local*2",
                        teacher=str(tmp_path / "teacher"),
                        options={"attention:local": {"block": 8, "relative": 8}}, shared=True, checkpointing=True,
                        prune=0.5, **small)
    assert len(set(student.model.blocks)) == 2 and len(student.model.blocks) == 4
    weight = student.model.blocks[0].mixer.qkv.weight
    assert 0.2 < float((weight == 0).float().mean()) < 0.9
    reloaded = segue.load(tmp_path / "student")
    tokens, tokens_reloaded = (model.continue_("3 times", n=5, decoder="greedy").tokens
                               for model in (student, reloaded))
    assert tokens == tokens_reloaded
    for bad_options in ({"prune": 1.0}, {"distil": 2.0}):
        with pytest.raises(SegueError, match="part of a whole"):
            build(Plan(9).with_(**bad_options))
