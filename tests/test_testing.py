"""The checkers of objectives, strategies and claims: they pass what is right, and catch what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from segue.continual import Replay, Strategy
from segue.models import Stack, StackConfig
from segue.models.cloze import ClozeModel
from segue.objectives import OBJECTIVES, Batch, DecayedRepetition, Loss, NextElement
from segue.papers.base import Claim
from segue.testing import ContractBroken, check_claim, check_objective, check_strategy
from segue.training.loop import Run


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_keep_the_contract(name: str) -> None:
    torch.manual_seed(1)
    arguments = {"distillation": [Stack(StackConfig(11, 8, ["gru"])).double()],  # a teacher
                 "mixed": [[(NextElement(), 0.5), (DecayedRepetition(range(7)), 0.5)]],
                 "decayed-repetition": [range(7)]}  # so many separators that some sentence can be repeated
    makers = {"cloze": lambda: ClozeModel(Stack(StackConfig(12, 8, ["hydra"], {"hydra": {"states": 4}})), 9)}
    check_objective(OBJECTIVES[name](*arguments.get(name, [])), makers.get(name))


class Mean(NextElement):
    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        loss = super().__call__(model, batch)
        return Loss(loss.total / loss.count, loss.terms, loss.count)


class Everything(NextElement):
    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        loss = super().__call__(model, Batch(batch.tokens, batch.targets.clamp(min=0), batch.starts))
        return Loss(loss.total, loss.terms, batch.count)


class Unpacked(NextElement):
    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        return super().__call__(model, Batch(batch.tokens, batch.targets))


class Numb(NextElement):
    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        loss = super().__call__(model, batch)
        return Loss(loss.total.detach().requires_grad_(), loss.terms, loss.count)


@pytest.mark.parametrize(("broken", "message"), [(Mean, "each alone"), (Everything, "behind the last"),
                                                 (Unpacked, "packed"), (Numb, "gradient")])
def test_broken_objectives_fail_the_contract(broken: type[NextElement], message: str) -> None:
    with pytest.raises(ContractBroken, match=message):
        check_objective(broken())


@pytest.mark.parametrize("make", [Strategy, Replay])
def test_strategies_keep_the_contract(make: Callable[[], Strategy]) -> None:
    check_strategy(make)


class Forgetful(Strategy):
    """Remembers where it began, and loses it with a kill."""

    def before_experience(self, run: Run) -> None:
        self.start = {name: p.detach().clone() for name, p in run.model.named_parameters()}

    def loss_term(self, run: Run, batch: Batch) -> Tensor:
        return torch.stack([(p - self.start[name]).square().sum() for name, p in run.model.named_parameters()]).sum()


class Random(Strategy):
    """Draws from a generator of its own."""

    def __init__(self) -> None:
        self.generator = torch.Generator()
        self.generator.seed()

    def after_step(self, run: Run) -> None:
        with torch.no_grad():
            for p in run.model.parameters():
                p.add_(0.01 * torch.randn(p.shape, generator=self.generator))


class Short(Strategy):
    def before_step(self, run: Run, batch: Batch) -> Batch:
        return batch.map(lambda x: x[:, :-1])


class Chilly(Strategy):
    """Freezes a layer, and leaves it so."""

    def before_experience(self, run: Run) -> None:
        next(run.model.parameters()).requires_grad_(False)


@pytest.mark.parametrize(("broken", "message"), [(Forgetful, "killed"), (Random, "same seed"), (Short, "rows of"),
                                                 (Chilly, "others frozen")])
def test_broken_strategies_fail_the_contract(broken: type[Strategy], message: str) -> None:
    with pytest.raises(ContractBroken, match=message):
        check_strategy(broken)


VALID_CLAIM = Claim("toy", "A toy.", "confirmed if one is 1", lambda run: [{"one": run.cell("one", lambda: 1)}],
                    lambda table: ("confirmed" if table[0]["one"] == 1 else "refuted", "by its value"),
                    lambda figure, table: None)


def test_broken_claims_fail_the_contract() -> None:
    assert check_claim(VALID_CLAIM).table == [{"one": 1}]
    for broken, message in ((replace(VALID_CLAIM, rule=" "), "no rule"),
                            (replace(VALID_CLAIM, measure=lambda run: []), "empty"),
                            (replace(VALID_CLAIM, judge=lambda table: ("yes", "so")), "answers"),
                            (replace(VALID_CLAIM, judge=lambda table: (table[0].update(one=2), "inconclusive")[::-1]),
                             "pure")):
        with pytest.raises(ContractBroken, match=message):
            check_claim(broken)
