"""Checkers of what trains: objectives and continual-learning strategies."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from segue.models import Stack, StackConfig
from segue.objectives import Batch, Objective
from segue.testing.contract import ContractBroken
from segue.training.batches import Arrays, Batches
from segue.training.checkpoint import weights_of
from segue.training.loop import Run
from segue.training.recipe import Plan
from segue.training.strategy import Strategy

VOCABULARY = 11
STEPS = 6


def check_objective(objective: Objective, make: Callable[[], nn.Module] | None = None, seed: int = 0,
                    tolerance: float = 1e-6) -> None:
    """Check a training loss; `ContractBroken` says what fails.

    It counts the predicted elements; its total is a finite sum that reaches the parameters; its terms are detached
    and the same twice; rows add up (so gradient accumulation and several processes change nothing); what is not
    predicted (target -1) and comes after everything that is, changes nothing; packed documents count as apart.

    make: gives the model it is for, over 11 tokens (default: a small stack, in float64).
    """
    name = type(objective).__name__
    torch.manual_seed(seed)
    model = (make or _small)().double()
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, VOCABULARY, (3, 9), generator=draw)
    targets = torch.randint(0, VOCABULARY, (3, 9), generator=draw)
    targets[1, 6:] = -1
    batch = Batch(tokens, targets)

    def total(rows: Batch) -> Tensor:
        torch.manual_seed(seed)
        return objective(model, rows).total

    loss = objective(model, batch)
    _require(loss.count == batch.count == int((targets >= 0).sum()), name, f"it counts {loss.count} of {batch.count}")
    _require(loss.total.dim() == 0 and bool(loss.total.isfinite()), name, "the total is not one finite number")
    _require(bool(loss.terms) and not any(term.requires_grad for term in loss.terms.values()), name,
             "there are no terms, or they carry gradients")
    loss.total.backward()
    num_reached = sum(float(p.grad.abs().sum()) > 0 for p in model.parameters() if p.grad is not None)
    _require(num_reached > 0, name, "no gradient reaches the parameters")

    expected = total(batch)
    _check_close(name, "the total, asked twice,", total(batch), expected, tolerance)
    by_row = torch.stack([total(batch.rows(slice(i, i + 1))) for i in range(3)]).sum()
    _check_close(name, "the sum over the rows, each alone,", by_row, expected, tolerance)
    noise = tokens.clone()
    noise[1, 7:] = (noise[1, 7:] + 1) % VOCABULARY
    _check_close(name, "the total with other tokens behind the last prediction", total(Batch(noise, targets)), expected,
                 tolerance)

    starts = torch.zeros(1, 9, dtype=torch.bool)
    starts[0, [0, 4]] = True
    packed = total(Batch(tokens[:1], targets[:1], starts))
    separate = total(Batch(tokens[:1, :4], targets[:1, :4])) + total(Batch(tokens[:1, 4:], targets[:1, 4:]))
    _check_close(name, "the total of packed documents", packed, separate, tolerance)


def check_strategy(make: Callable[[], Strategy], seed: int = 0, model: Callable[[], nn.Module] | None = None,
                   stops: Sequence[int] = range(1, STEPS)) -> None:
    """Check a continual-learning strategy made by `make()`; `ContractBroken` says what fails.

    The same seed gives the same weights; a run killed after any step goes on to the same weights, bit for bit (so
    `state()` holds all it remembers, as tensors and plain values), in the first experience, in a later one, and in an
    update of a model that keeps old rows; weights stay finite; its batches keep the length of their rows; what it
    computes on the side leaves no gradients behind; what it put on the model or froze is as before when it is done.

    model: gives the model to learn with, over 11 tokens (default: a small stack). stops: steps of the first experience
    after which a run is killed.
    """
    name, learner = type(make()).__name__, model or _small
    expected, strategy = _weights(make(), seed, learner)
    _require(all(bool(w.isfinite().all()) for w in expected.values()), name, "weights are not finite any more")
    _check_same(name, "a second run with the same seed", _weights(make(), seed, learner)[0], expected)
    for stop in stops:
        _check_same(name, f"a run killed after step {stop} and resumed", _killed(make, seed, learner, stop), expected)
    tensors, values = strategy.state()
    _require(all(isinstance(tensor, Tensor) for tensor in tensors.values()), name, "state() holds more than tensors")
    try:
        plain = json.loads(json.dumps(values)) == values
    except (TypeError, ValueError):
        plain = False
    _require(plain, name, "the values of state() are not plain JSON values")
    saved = {key: tensor.clone() for key, tensor in tensors.items()}, json.dumps(values)

    def restore() -> Strategy:
        strategy_ = make()
        strategy_.load_state({key: tensor.clone() for key, tensor in saved[0].items()}, json.loads(saved[1]))
        return strategy_

    second, _ = _weights(strategy, seed + 1, learner)
    _require(all(bool(w.isfinite().all()) for w in second.values()), name, "a second experience breaks it")
    _check_same(name, "a second experience, by what state() kept of the first,",
                _weights(restore(), seed + 1, learner)[0],
                second)
    _check_same(name, "a second experience killed and resumed", _killed(restore, seed + 1, learner, STEPS // 2), second)
    past = [Batches(Arrays(_sequences(seed + 2)), 8, 4).make(step) for step in range(2)]
    _check_same(name, "an update killed and resumed", _killed(make, seed, learner, STEPS // 2, past),
                _weights(make(), seed, learner, past=past)[0])


def _killed(make: Callable[[], Strategy], seed: int, model: Callable[[], nn.Module], stop: int,
            past: Sequence[Batch] | None = None) -> dict[str, Tensor]:
    """The weights after a run that was killed after step `stop`, and resumed by objects made anew."""
    with tempfile.TemporaryDirectory() as folder:
        with suppress(_Stop):
            _weights(make(), seed, model, Path(folder), stop, past)
        return _weights(make(), seed, model, Path(folder), past=past)[0]


class _Stop(Exception):
    pass


class _Run(Run):
    """Stops, as a kill would, once the checkpoint of step `stop` is written; watches what the strategy does to rows."""

    stop: int | None = None

    def compute_gradients(self) -> float:
        if self.step == self.stop:
            raise _Stop
        original = self.batches(self.step)
        batch = self.strategy.before_step(self, original)
        _require(batch.tokens.shape[1] == original.tokens.shape[1], self.strategy.name,
                 f"before_step made rows of {batch.tokens.shape[1]} elements from rows of {original.tokens.shape[1]}")
        _require(all(p.grad is None for p in self.model.parameters()), self.strategy.name,
                 "there are gradients before the backward pass")
        return super().compute_gradients()


def _small() -> Stack:
    return Stack(StackConfig(VOCABULARY, 16, ["attention", "gru"]))


def _sequences(seed: int) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    return [draw.integers(0, VOCABULARY, 12).astype(np.int32) for _ in range(8)]


def _weights(strategy: Strategy, seed: int, model: Callable[[], nn.Module], folder: Path | None = None,
             stop: int | None = None, past: Sequence[Batch] | None = None) -> tuple[dict[str, Tensor], Strategy]:
    """The weights after an experience of a few steps."""
    plan = Plan(VOCABULARY, width=16, depth=2, context=8, rows=4, steps=STEPS, measure=1, muon=False, seed=seed)
    torch.manual_seed(0)
    batches = Batches(Arrays(_sequences(seed)), plan.context, plan.rows, plan.seed)
    learner = model()
    requires_grad_before = {name: p.requires_grad for name, p in learner.named_parameters()}
    run = _Run(learner, batches, plan, strategy=strategy, folder=folder, key="check", save_seconds=0.0, past=past)
    run.stop = stop
    try:
        run.train(quiet=True)
    finally:
        batches.close()
    requires_grad_after = {name: p.requires_grad for name, p in learner.named_parameters()}
    _require(requires_grad_after == requires_grad_before, strategy.name,
             "the model has other parameters, or others frozen, when it is done "
             f"({', '.join(sorted(dict(requires_grad_before.items() ^ requires_grad_after.items()))[:3])})")
    return {name: weight.clone() for name, weight in weights_of(run.model).items()}, strategy


def _require(condition: bool, name: str, message: str) -> None:
    if not condition:
        raise ContractBroken(f"{name}: {message}")


def _check_close(name: str, what: str, actual: Tensor, expected: Tensor, tolerance: float) -> None:
    error = float((actual - expected).detach().abs() / max(1.0, float(expected.detach().abs())))
    _require(error <= tolerance, name, f"{what} is off by {error:.1e} (relative), more than {tolerance:.0e}")


def _check_same(name: str, what: str, actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    different = [key for key in expected if not torch.equal(actual[key], expected[key])]
    _require(not different, name, f"{what} ends with other weights ({', '.join(different[:3])})")
