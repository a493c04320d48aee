"""Any decoder on any model: the committed page names all there are, and drafts change no token, wherever they run."""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from scripts import script
from test_decoding import WAYS, drafters, prompts_for

import segue
from segue.continual import STRATEGIES
from segue.decoding import ACCEPTORS, DECODERS, DRAFTERS, generate
from segue.errors import SegueError
from segue.kinds import KINDS
from segue.mixers import MIXERS
from segue.models import Stack, StackConfig
from segue.testing import ContractBroken, check_composition, write_samples
from segue.testing.decoding import Reread, TableModel
from segue.verbs.fitted import Fitted

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


@pytest.fixture(scope="module")
def tool() -> Any:
    return script("tools/decoders.py")


def test_the_page_has_every_name_and_no_mistake(tool: Any) -> None:
    page = (ROOT / "docs" / "composition.md").read_text(encoding="utf-8")
    assert "≠" not in page
    tables = re.findall(r"^\| model \|(.*?)\|\n\|[-|]+\|\n(.*?)\n\n", page, re.DOTALL | re.MULTILINE)
    assert len(tables) == 2
    for head, rows in tables:
        columns = [column.strip() for column in head.split("|")]
        assert {*DECODERS, *DRAFTERS, *(name for name in ACCEPTORS if name != "walk"), "sets"} <= set(columns)
        result = {row.split("|")[1].strip(" `"): row.split("|")[2:-1] for row in rows.split("\n")}
        assert {name for name in MIXERS if MIXERS[name].causal} | set(tool.TRANSFORMERS) <= set(result)
        assert all(len(cells) == len(columns) and all(cell.strip() for cell in cells) for cells in result.values())
    assert "·" not in page or "Not applicable:\n\n- " in page


@pytest.mark.parametrize("name", ["attention", "mixed"])  # mamba, attention and gru
def test_a_row_of_the_page_has_valid_cells(tool: Any, name: str) -> None:
    cells = tool.row(name, 8)
    assert all(isinstance(cells[column], str) or cells[column][0] in "=≈" for column in tool.COLUMNS), cells
    refused = {column for column in tool.COLUMNS if isinstance(cells[column], str)}
    assert refused == (set() if name == "attention" else {"sets"})
    assert {column for column in tool.COLUMNS if cells[column][0] == "≈"} == {
        f"acceptor {acceptor}" for acceptor in ACCEPTORS if acceptor != "walk"}


def test_the_page_tool_detects_a_wrong_model(tool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, expected = tool.native("gru")
    commit = type(model.init_state(1)).commit

    def forgetful(state: Any, path: Any = None, counts: Any = None) -> None:
        commit(state, None if path is None else path[:, :1], None if counts is None else counts.clamp(max=1))

    assert tool.answers(model, expected, "beam", 8)[1] and tool.answers(model, expected, "both", 8)[1]
    monkeypatch.setattr(type(model.init_state(1)), "commit", forgetful)
    assert not tool.answers(model, expected, "beam", 8)[1] and not tool.answers(model, expected, "both", 8)[1]


def test_reread_equals_its_model() -> None:
    torch.manual_seed(0)
    stack = Stack(StackConfig(7, 16, ["lstm"])).double().eval().requires_grad_(False)
    reread = Reread(lambda tokens: stack(tokens[None]), 7)
    for options in ({}, {"decoder": "beam", "num_beams": 3}, {"decoder": "sample", "draft": "both"}):
        expected = generate(stack, [[1, 2], [3]], 12, **options)  # type: ignore[arg-type]
        assert [a.tokens for a in generate(reread, [[1, 2], [3]], 12, **options)] == [a.tokens for a in expected]  # type: ignore[arg-type]
    table = TableModel(7)
    tokens = torch.tensor([[1, 2, 3, 4, 5]])
    parents = torch.tensor([[-1, 0, 0, 2, 1]])
    reread_table = Reread(lambda tokens: table.extend(tokens[None], table.init_state(1)), 7)
    for at in (None, torch.tensor([[4, 0]])):
        states = [model.init_state(1) for model in (table, reread_table)]
        actual, expected_output = (model.extend(tokens, state, parents, at)
                                   for model, state in zip((table, reread_table), states))
        assert torch.equal(actual.logits, expected_output.logits)
        for state in states:
            state.commit(torch.tensor([[0, 2, 3]]))
        assert torch.equal(table.extend(tokens, states[0]).logits, reread_table.extend(tokens, states[1]).logits)


@pytest.mark.slow
def test_a_hundred_thousand_tokens(tool: Any) -> None:
    """Every mixer, mixed stacks and models of transformers, hostile drafts, ragged batches, greedy and sampled, with
    processors: not one token differs in float64."""
    pytest.importorskip("transformers")
    rounds, emitted = itertools.cycle(WAYS.items()), dict.fromkeys(tool.MODELS, 0)
    for seed in itertools.count():
        for name in tool.MODELS:
            model, _ = tool.MODELS[name](name)
            name_of_way, options = next(rounds)
            prompts = prompts_for(seed, shortest=3)
            undrafted = generate(model, prompts, 60, seed=seed, **options)  # type: ignore[arg-type]
            expected = [answer.tokens for answer in undrafted]
            for drafter in drafters(expected, seed):
                drafted = generate(model, prompts, 60, draft=drafter, seed=seed, adaptive=False, **options)  # type: ignore[arg-type]
                assert [answer.tokens for answer in drafted] == expected, (name, name_of_way, seed,
                                                                           type(drafter).__name__)
                emitted[name] += sum(answer.produced for answer in drafted)
        if sum(emitted.values()) >= 100_000:
            break
    print(f"{sum(emitted.values()):,} tokens, at least {min(emitted.values()):,} of each of {len(emitted)} models")


# -- the whole house


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    pytest.importorskip("mido")
    return write_samples(tmp_path_factory.mktemp("samples"))


def test_every_kind_reads_all_its_samples(samples: dict[str, Path]) -> None:
    assert set(samples) == set(KINDS)
    for kind, path in samples.items():
        data = segue.read(path, kind=kind)
        assert len(data) and not data.problems, kind


@pytest.mark.parametrize("composition", [  # each kind, with parts that stand together nowhere else in the tests
    ("text", "s4d", "unlikelihood", "gem", "beam"), ("dna", "gla", "marginal", "o-lora", "draft: both"),
    ("molecule", "mlstm", "next", "lwf", "sample"), ("events", "hydra", "cloze", "replay", "greedy"),
    ("cases", "jordan", "occupancy", "state", "diverse-beam"), ("series", "lightnet", "next", "mas", "trie"),
    ("music", "mamba2", "next", "merge", "lookup"), ("graph", "lru", "diffusion", "agem", "beam"),
    ("picture", "longvq", "next", "der", "draft: depth"),
], ids=" x ".join)
def test_parts_work_together(samples: dict[str, Path], composition: tuple[str, ...]) -> None:
    assert script("tools/compositions.py").run(composition, samples) == ""


def test_incompatible_parts_are_refused(samples: dict[str, Path]) -> None:
    data = segue.read(samples["rows"])
    with pytest.raises(SegueError, match="looks ahead"):
        check_composition(data, mixer="hydra")
    with pytest.raises(SegueError, match="made of letters"):
        check_composition(data, objective="marginal")


def test_a_reloaded_model_that_differs_is_detected(samples: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    data, decodable = segue.read(samples["cases"]), Fitted.decodable

    def stale(self: Fitted, weights: str = "float32") -> Any:
        """An engine that is never made anew."""
        network = self.__dict__.setdefault("_first", decodable(self, weights))
        return network

    monkeypatch.setattr(Fitted, "decodable", stale)
    with pytest.raises(ContractBroken, match=r"update: a loaded model (continues|is evaluated) otherwise"):
        check_composition(data, decoder="sample", steps=20)


def test_the_page_of_compositions_has_every_part() -> None:
    tool = script("tools/compositions.py")
    page = (ROOT / "docs" / "learning-composition.md").read_text(encoding="utf-8")
    sizes = {name: len(parts) for name, parts in tool.FACTORS.items()}
    assert sizes["kind"] == len(KINDS) and sizes["mixer"] == len(MIXERS) and sizes["strategy"] == len(STRATEGIES)
    factors = list(sizes)
    totals = Counter((factors[i], factors[j]) for (i, _), (j, _) in tool.all_pairs())
    for first, second in itertools.combinations(sizes, 2):
        row = re.search(rf"^\| {first} and {second} \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", page, re.MULTILINE)
        assert row is not None and int(row[1]) == sum(int(row[i]) for i in (2, 3, 4)), (first, second)
        assert int(row[1]) == totals[first, second], f"{first} and {second}: run tools/compositions.py again"
