"""Automata compiled to the weights of a transformer that runs them on a scratchpad of states, one per symbol (Merrill &
Sabharwal 2023, arXiv 2310.07923): nothing is learned."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.errors import SegueError
from segue.mixers.saturated import SaturatedAttention
from segue.mixers.state import Layout, State, check_rows, gather_nodes
from segue.models.automata import DFA
from segue.models.base import Decoding, Output, check_tokens


class AutomatonTransformer(nn.Module):
    """Two layers of saturated attention and one ReLU network; satisfies `segue.models.base.Decodable`.

    Tokens: symbols 0 ... S - 1, states S ... S + Q - 1, then `start`, `accept` and `reject`. Behind the start and n
    symbols it writes the n + 1 states that the automaton is in, the first one included, and whether it accepts.
    """

    def __init__(self, symbols: int, states: int) -> None:
        super().__init__()
        self.symbols, self.states = symbols, states
        self.start, self.accept, self.reject = (symbols + states + i for i in range(3))
        # A residual vector holds the token, a one, two inverse counts, the symbol that was looked up, and the answer.
        self.one = self.vocabulary
        self.counts = self.one + 1
        self.found = self.counts + 2
        self.answer = self.found + symbols + 1
        width = self.answer + self.vocabulary
        self.embedding = nn.Embedding(self.vocabulary, width)
        self.count = SaturatedAttention(width, heads=2, head_width=4)
        self.look_up = SaturatedAttention(width, heads=1, head_width=max(4, symbols + 1))
        self.into = nn.Linear(width, states * (symbols + 1) + 1)
        self.from_ = nn.Linear(self.into.out_features, width, bias=False)
        self.head = nn.Linear(width, self.vocabulary, bias=False)

    @property
    def vocabulary(self) -> int:
        return self.symbols + self.states + 3

    def transcript(self, dfa: DFA, word: Tensor) -> tuple[Tensor, Tensor]:
        """What is to be written behind a `word` (B, T), (B, T + 2), and the whole row that leads there, but for the
        answer."""
        first = torch.zeros(word.shape[0], 1, dtype=torch.long)
        states = torch.cat([first, dfa.run(word)], 1)
        assert dfa.accepting is not None
        answer = torch.where(dfa.accepting[states[:, -1:]], self.accept, self.reject)
        written = torch.cat([self.symbols + states, answer], 1)
        return written, torch.cat([first + self.start, word, written[:, :-1]], 1)

    @property
    def path(self) -> str:
        return f"torch {str(self.embedding.weight.dtype).removeprefix('torch.')}"

    def _run(self, tokens: Tensor, layout: Layout, state: State | None) -> Output:
        check_tokens(tokens, self.vocabulary)
        x = self.embedding(tokens)
        for index, attention in enumerate((self.count, self.look_up)):
            x = x + attention.run(x, layout, {} if state is None else state.layers[index])
        x = x + self.from_(F.relu(self.into(x)))
        return Output(self.head(x), x)

    def forward(self, tokens: Tensor, layout: Layout | None = None) -> Output:
        return self._run(tokens, layout or Layout.chain((tokens.shape[0], tokens.shape[1])), None)

    def init_state(self, batch: int, history: int = 0) -> State:
        like = self.embedding.weight.detach()
        layers = [attention.parts(batch, like, history) for attention in (self.count, self.look_up)]
        return State(layers, torch.zeros(batch, dtype=torch.long))

    def extend(self, tokens: Tensor, state: Decoding, parents: Tensor | None = None,
               at: Tensor | None = None) -> Output:
        assert isinstance(state, State)
        check_rows(tokens.shape[0], state)
        layout = state.layout(tokens.shape[1], parents)
        output = self._run(tokens, layout, state)
        state.pending = layout
        return output if at is None else Output(gather_nodes(output.logits, at), output.hidden)


@torch.no_grad()
def compile_dfa(dfa: DFA, dtype: torch.dtype = torch.float64) -> AutomatonTransformer:
    """The weights that run `dfa`. Keys of neighbouring positions n differ by about n^-4 / 2: exact up to some thousand
    symbols in float64, some forty in float32."""
    if dfa.accepting is None:
        raise SegueError("this automaton says not which states accept: give DFA(delta, accepting)")
    model = AutomatonTransformer(dfa.symbols, dfa.states).to(dtype).requires_grad_(False)
    for parameter in model.parameters():
        parameter.zero_()
    S, Q, V, one = dfa.symbols, dfa.states, model.vocabulary, model.one
    symbols, states = range(S), range(S, S + Q)
    model.embedding.weight[:, :V] = torch.eye(V)
    model.embedding.weight[:, one] = 1

    # Head 0 finds 1 / (p + 1) at position p: the start's share of all tokens. Head 1 finds the start's share of itself
    # and the states, which behind the k-th state is 1 / (k + 2): that of the symbol to be read next.
    q, k, v = model.count.qkv.weight.unflatten(0, (3, 2, 4))
    q[:, 0, one], q[:, 1, one] = 1, -1
    k[0, 0, one], k[0, 1, one] = 1, -1
    for token in (model.start, *states):
        k[1, 0, token], k[1, 1, token] = 1, -1
    for token in symbols:
        k[1, 0, token], k[1, 1, token] = -1, 1
    for token in (model.accept, model.reject):
        k[1, 0, token], k[1, 1, token] = -1, 1
    v[:, 0, model.start] = 1
    for head in range(2):
        model.count.out.weight[model.counts + head, 4 * head] = 1

    # Look up the token whose own share is the one wanted, by the hash of (share, 1). The one after the last symbol is
    # the first state: the word is at its end.
    q, k, v = model.look_up.qkv.weight.unflatten(0, (3, 1, -1))
    for weight, count in ((q, model.counts + 1), (k, model.counts)):
        weight[0, :4, count] = torch.tensor([1.0, 0, -1, 0], dtype=dtype)
        weight[0, :4, one] = torch.tensor([0, 1.0, 0, -1], dtype=dtype)
    for token in symbols:
        v[0, token, token] = 1
    for token in states:
        v[0, S, token] = 1
    for found in range(S + 1):
        model.look_up.out.weight[model.found + found, found] = 1

    # A table: one unit for each pair of a state and what was found; and one that answers symbols with the first state.
    outcome = torch.where(dfa.accepting, model.accept, model.reject)
    for state in range(Q):
        for found in range(S + 1):
            unit = state * (S + 1) + found
            model.into.weight[unit, S + state] = model.into.weight[unit, model.found + found] = 1
            model.into.bias[unit] = -1
            then = S + int(dfa.delta[state, found]) if found < S else int(outcome[state])
            model.from_.weight[model.answer + then, unit] = 1
    for token in (*symbols, model.start):
        model.into.weight[-1, token] = 1
    model.from_.weight[model.answer + S, -1] = 1
    model.head.weight[:, model.answer :] = torch.eye(V)
    return model
