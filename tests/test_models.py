"""Whole stacks keep the decoding contract, mixed ones included, and so does whatever else can be decoded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from weights import shake

from segue.errors import SegueError
from segue.models import Decodable, Output, Stack, StackConfig, expand_pattern
from segue.models.base import Decoding
from segue.models.compiled import compile_model
from segue.testing import ContractBroken, check_model
from segue.testing.decoding import TableModel, TableState

OPTIONS: dict[str, dict[str, Any]] = {
    "attention": {"heads": 2}, "mamba": {"states": 3}, "gla": {"heads": 2, "gate_rank": 3},
    "block-recurrent": {"heads": 2, "block": 3, "memory": 2}, "longvq": {"keys": 4, "codes": 3, "window": 4},
    "s4": {"states": 4},
}


def stack(pattern: str, **switches: Any) -> Stack:
    torch.manual_seed(0)
    values = {"vocabulary": 17, "width": 8, "options": OPTIONS, "hidden": 12, **switches}
    model = Stack(StackConfig(mixers=expand_pattern(pattern), **values))
    shake(model, 0.1)
    return model


STACKS: dict[str, dict[str, Any]] = {
    "attention*2": {},
    "mamba*3+attention": {},
    "lstm+gla": {"tied": False},
    "gru+mamba+elman": {"channel": "none"},
    "gla+attention+jordan": {"channel": "mlp", "activation": "relu2", "embed_norm": True},
    "attention+gru": {"options": {"attention": {"heads": 2, "window": 4}}},
}
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt-2": {"norm": "layer", "channel": "mlp", "activation": "gelu_tanh", "bias": True, "learned_positions": 64,
              "options": {"attention": {"heads": 2, "positions": "none", "qkv_bias": True, "out_bias": True}}},
    "gpt-neox": {"norm": "layer", "channel": "mlp", "activation": "gelu", "bias": True, "parallel": True, "tied": False,
                 "options": {"attention": {"heads": 2, "rotary_fraction": 0.5, "qkv_bias": True, "out_bias": True}}},
    "qwen": {"options": {"attention": {"heads": 4, "kv_heads": 2, "head_width": 4, "qk_norm": True}}},
    "bloom": {"embed_norm": True, "options": {"attention": {"heads": 2, "positions": "alibi"}}},
}


@pytest.mark.parametrize("pattern", STACKS)
def test_contract(pattern: str) -> None:
    assert check_model(stack(pattern, **STACKS[pattern]), examples=3)


@pytest.mark.parametrize("family", FAMILIES)
def test_contract_of_families(family: str) -> None:
    assert check_model(stack("attention*2", **FAMILIES[family]), examples=2)


def test_contract_of_a_whole_prompt() -> None:
    model = stack("attention+attention", options={"attention": {"heads": 2, "prefix": 3}})
    assert check_model(model, examples=4, prompt=3, only="trees")
    assert check_model(model, examples=4, prompt=3, only="ragged")
    assert check_model(compile_model(model, threads=1), examples=6, prompt=3)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*STACKS, *FAMILIES])
def test_contract_at_long_lengths(name: str) -> None:
    model = stack(name, **STACKS[name]) if name in STACKS else stack("attention*2", **FAMILIES[name])
    check_model(model, examples=30, seed=1)


class Wrapped:
    """A model behind the protocol only, as an engine or an adapter is."""

    def __init__(self, model: Stack) -> None:
        self.model, self.vocabulary, self.path = model, model.vocabulary, "a test"

    def init_state(self, batch: int, history: int = 0) -> Decoding:
        return self.model.init_state(batch, history)

    def extend(self, tokens: Tensor, state: Decoding, parents: Tensor | None = None,
               at: Tensor | None = None) -> Output:
        return self.model.extend(tokens, state, parents, at)


def test_contract_of_any_decodable() -> None:
    model = Wrapped(stack("mamba+attention"))
    assert isinstance(model, Decodable)
    result = check_model(model, examples=3)
    assert set(result) >= {"any life", "at", "trees"} and "packed" not in result and max(result.values()) < 1e-4


@pytest.mark.parametrize("name", ["mamba*3+attention", "lstm+gla", "attention+gru", "hyena+jordan+s4",
                                  "longvq+block-recurrent", "linear-attention+lightnet+jrt", *FAMILIES])
def test_contract_of_the_compiled_engine(name: str) -> None:
    model = stack("attention*2", **FAMILIES[name]) if name in FAMILIES else stack(name, **STACKS.get(name, {}))
    assert check_model(compile_model(model, threads=1), examples=6)


def test_the_compiled_engine_refuses_unknown_nodes() -> None:
    model = compile_model(stack("gru"), threads=1)
    for at in ([[3]], [[-1]], [[0], [0]]):
        with pytest.raises(SegueError, match="asked for of 3 nodes in 1 rows"):
            model.extend(torch.zeros(1, 3, dtype=torch.long), model.init_state(1), at=torch.tensor(at))


class IgnoresAt(Wrapped):
    def extend(self, tokens: Tensor, state: Decoding, parents: Tensor | None = None,
               at: Tensor | None = None) -> Output:
        output = self.model.extend(tokens, state, parents)
        return output if at is None else Output(output.logits[:, : at.shape[1]], output.hidden)


class DependsOnTheBatch(Wrapped):
    def extend(self, tokens: Tensor, state: Decoding, parents: Tensor | None = None,
               at: Tensor | None = None) -> Output:
        output = self.model.extend(tokens, state, parents, at)
        return Output(output.logits - 0.01 * output.logits.mean(0, keepdim=True), output.hidden)


class TakesTreesForChains(Wrapped):
    def extend(self, tokens: Tensor, state: Decoding, parents: Tensor | None = None,
               at: Tensor | None = None) -> Output:
        self.model.extend(tokens, state, parents, at)
        pending = state.pending  # type: ignore[attr-defined]
        output = self.model.extend(tokens, state, None, at)
        state.pending = pending  # type: ignore[attr-defined]
        return output


@pytest.mark.parametrize("broken, message, only", [
    (IgnoresAt, "logits of nodes", "at"), (DependsOnTheBatch, "row|at once", ""),
    (TakesTreesForChains, "tree", "tree")])
def test_the_checker_catches_broken_models(broken: type[Wrapped], message: str, only: str) -> None:
    with pytest.raises(ContractBroken, match=message):
        check_model(broken(stack("gru+attention")), examples=20, shrink=False, only=only)


class SharesHistory(TableState):
    """Forks of one row share the list of what they go back to."""

    def select(self, rows: Tensor) -> TableState:
        chosen = SharesHistory(self.context[rows], self.positions[rows], self.history)
        chosen.past = [self.past[row] for row in rows.tolist()]
        return chosen


def test_the_checker_catches_forks_that_share_history(monkeypatch: pytest.MonkeyPatch) -> None:
    check_model(TableModel(), only="select")  # type: ignore[arg-type]
    monkeypatch.setattr("segue.testing.decoding.TableState", SharesHistory)
    with pytest.raises(ContractBroken, match="after rewind"):
        check_model(TableModel(), only="select", shrink=False)  # type: ignore[arg-type]


class SharesALayer(Stack):
    """A block that is never run: its parameters do not learn."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__(config)
        self.extra = nn.Linear(3, 3)


def test_the_checker_catches_parameters_without_gradient() -> None:
    with pytest.raises(ContractBroken, match="no gradient reaches"):
        check_model(SharesALayer(stack("gru").config), examples=2)


def test_patterns_expand_to_mixer_lists() -> None:
    assert expand_pattern("mamba*3+attention") == ["mamba"] * 3 + ["attention"]
    assert expand_pattern("gru + gla", 3) == ["gru", "gla", "gru"]
    for pattern, message in (("", "mixer ''"), ("nothing", "mixer 'nothing'"), ("gru+", "mixer ''"),
                             ("mamba*", "whole COUNT"), ("mamba*0", "whole COUNT"), ("mamba*-1", "whole COUNT"),
                             ("mamba*x", "whole COUNT"), ("mamba*²", "whole COUNT"), ("gru*2*2", "whole COUNT")):
        with pytest.raises(SegueError, match=message):
            expand_pattern(pattern)


@pytest.mark.parametrize("switches, message", [
    ({"channel": "both"}, "channel 'both'"), ({"activation": "tanh", "channel": "mlp"}, "activation 'tanh'"),
    ({"norm": "batch"}, "norm 'batch'"), ({"width": 9}, "not divisible"),
    ({"options": {"attention": {"head": 2}}}, "unexpected keyword argument 'head'"),
    ({"options": {"attn": {}}}, "unknown mixers")])
def test_contradictory_configs_are_refused(switches: dict, message: str) -> None:
    with pytest.raises(SegueError, match=message):
        stack("attention", **switches)


def test_unknown_entries_of_a_config_are_refused() -> None:
    values = stack("gru").config.to_dict()
    with pytest.raises(SegueError, match="unknown entries"):
        StackConfig.from_dict({**values, "flux": 1})
    with pytest.raises(SegueError, match="incomplete"):
        StackConfig.from_dict({"width": 4})


def test_a_stack_that_is_not_causal_only_scores() -> None:
    model = stack("bidirectional+attention", options={"attention": {"heads": 2}})
    assert model(torch.zeros(2, 5, dtype=torch.long)).logits.shape == (2, 5, 17)
    with pytest.raises(SegueError, match="looks ahead"):
        model.init_state(1)


@torch.no_grad()
@pytest.mark.parametrize("pattern", ["attention", "gru", "mamba"])
def test_a_state_takes_over_any_number_of_rows(pattern: str) -> None:
    model = stack(pattern)
    state = model.init_state(3)
    model.extend(torch.tensor([[1, 2], [3, 4], [5, 6]]), state)
    state.commit()
    loaded = model.init_state(2, history=2)
    loaded.load(state.tensors())
    token = torch.tensor([[1], [2], [3]])
    expected = model.extend(token, state).logits
    for _ in range(2):
        torch.testing.assert_close(model.extend(token, loaded).logits, expected)
        loaded.commit()
        loaded.rewind(1)
