"""Automata compiled to weights are the automata, in one pass, token by token, and as a draft tree."""

from __future__ import annotations

import pytest
import torch

from segue.errors import SegueError
from segue.mixers.saturated import SaturatedAttention
from segue.mixers.state import Layout
from segue.models import Stack, StackConfig
from segue.models.automata import DFA, counter, random_dfa
from segue.models.base import Decodable
from segue.models.construction import AutomatonTransformer, compile_dfa
from segue.objectives import Batch
from segue.tasks import TASKS, Scratchpad
from segue.training.learn import accuracy, answer_accuracy


def errors(model: AutomatonTransformer, dfa: DFA, length: int) -> int:
    """Wrong tokens behind random words; every prefix of a word is among what is asked."""
    word = torch.randint(dfa.symbols, (2, length), generator=torch.Generator().manual_seed(length))
    written, tokens = model.transcript(dfa, word)
    return int((model(tokens).logits.argmax(-1)[:, length:] != written).sum())


def test_compiled_automata_are_right_in_float64() -> None:
    for seed in range(50):
        dfa = random_dfa(2 + seed % 7, 1 + seed % 4, seed)
        model = compile_dfa(dfa)
        assert [errors(model, dfa, length) for length in (0, 1, 2, 7, 60)] == [0] * 5
        if seed < 4:
            assert errors(model, dfa, 512) == 0


def test_float32_is_too_coarse_for_long_words() -> None:
    dfa = random_dfa(6, 3)
    model = compile_dfa(dfa, torch.float32)
    assert errors(model, dfa, 30) == 0 and errors(model, dfa, 400) > 0


def test_written_token_by_token() -> None:
    dfa = random_dfa(5, 3, seed=2)
    model = compile_dfa(dfa)
    assert isinstance(model, Decodable)
    word = torch.randint(3, (4, 25))
    written, tokens = model.transcript(dfa, word)
    state, read, said = model.init_state(4), tokens[:, :26], []
    while len(said) < written.shape[1]:
        said.append(model.extend(read, state).logits[:, -1].argmax(-1))
        state.commit()
        read = said[-1][:, None]
    assert torch.equal(torch.stack(said, 1), written)


def test_saturated_attention_keeps_its_forms() -> None:
    torch.manual_seed(0)
    mixer, x = SaturatedAttention(8, heads=2, head_width=4).double(), torch.randn(2, 9, 8, dtype=torch.float64)
    y = mixer(x)
    torch.testing.assert_close(mixer.output(mixer.matrix(x) @ mixer.values(x), x), y)
    state = mixer.init_state(2)
    mixer.extend(x[:, :6], state)
    state.commit()
    tree = mixer.extend(x[:, [6, 0, 7]], state, torch.tensor([[-1, -1, 0]] * 2))
    torch.testing.assert_close(tree[:, [0, 2]], y[:, 6:8])
    starts = torch.zeros(2, 9, dtype=torch.bool)
    starts[:, 4] = True
    torch.testing.assert_close(mixer(x, Layout.chain((2, 9), starts=starts))[:, 4:], mixer(x[:, 4:]))
    weights = mixer.matrix(torch.ones(1, 5, 8, dtype=torch.float64))  # all alike: all weigh the same
    torch.testing.assert_close(weights[0, 0], torch.ones(5, 5).tril().div(torch.arange(1, 6)[:, None]).double())


def test_layer_norm_hashes_ratios() -> None:
    def phi(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.layer_norm(torch.stack([x, y, -x, -y], -1), (4,), eps=0.0) / 2

    index, position = torch.randint(1, 200, (2, 1000)).double()
    one = torch.ones_like(index)
    torch.testing.assert_close(phi(index / position, 1 / position), phi(index, one), rtol=0, atol=1e-12)
    other = torch.randint(1, 200, (1000,)).double()
    same = (phi(index, one) * phi(other, one)).sum(-1)
    assert torch.equal(same > 1 - 1e-12, index == other)


def test_an_automaton_must_say_what_it_accepts() -> None:
    with pytest.raises(SegueError, match="which states accept"):
        compile_dfa(counter(3))


def test_answers_of_a_model_that_reads_what_it_wrote() -> None:
    """One that repeats its own mistakes is scored lower than by the right scratchpad."""
    class Adds(torch.nn.Module):
        """Sums modulo 5 from the scratchpad alone: the state before, plus the symbol; the first is off by one."""

        def init_state(self, batch: int) -> Adds:
            self.read = torch.zeros(batch, 0, dtype=torch.long)
            return self

        def extend(self, tokens: torch.Tensor, state: object) -> object:
            self.read = torch.cat([self.read, tokens], 1)
            return self(self.read)

        def commit(self) -> None: ...

        def forward(self, tokens: torch.Tensor, layout: object = None) -> object:
            n, guess = 6, torch.zeros_like(tokens)
            guess[:, n] = tokens[:, 1] + 1 if self.wrong else tokens[:, 1]
            for t in range(n + 1, tokens.shape[1]):
                guess[:, t] = tokens[:, t] - 5 + tokens[:, t - n + 1]
            return type("Output", (), {"logits": torch.nn.functional.one_hot(5 + guess % 5, 12).float()})

    batch = Scratchpad("linear").task("sum", counter(5, 5)).test(20, 12)
    for wrong, written in ((False, 1.0), (True, 5 / 6)):
        model = Adds()
        model.wrong = wrong
        assert accuracy(model, batch) == pytest.approx(written)
        assert answer_accuracy(model, batch) == float(not wrong)
    stack = Stack(StackConfig(68, 16, ["attention"]))
    assert isinstance(TASKS["a5-words-log"].test(8, 12), Batch)
    assert 0 <= answer_accuracy(stack, TASKS["a5-words-log"].test(8, 12)) <= 1
