"""Models whose outputs are positions in their input: pointer networks (Vinyals et al. 2015, arXiv 1506.03134), and
sets as input (Vinyals et al. 2015, arXiv 1511.06391).

An encoder turns the elements 1 ... n into a memory; slot 0, a learned vector, stands for the end. A decoder points at
one slot after another, and is fed the slot it pointed at, until it points at the end. Id 0 delimits an answer: as input
it starts one, as output it ends one. So output ids mean the same for sets of any size, and every decoder takes `eos=0`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.errors import SegueError
from segue.mixers.layout import Layout, check_rows, gather_nodes, length_mask
from segue.mixers.state import Carry, Recurrence, State, Tensors
from segue.models.base import Decoding, Output, check_tokens
from segue.models.seq2seq import SavedModel, encode_source
from segue.models.stack import Stack, StackConfig


@dataclass(frozen=True)
class SetConfig:
    """Config of an encoder that is invariant to the order of the elements. inputs: C real numbers per element.
    width: model width D. steps: P, number of reads of all elements (0: no summary, a control)."""

    inputs: int
    width: int
    steps: int = 5


@dataclass(frozen=True)
class PointerConfig:
    """Config of a pointer network.

    encoder: a stack of any mixers (`inputs` real numbers per element, or ids of its vocabulary), or a set encoder.
    decoder: a stack of causal mixers. Its vocabulary is 1, the delimiter: all its other inputs and outputs are
    elements. With a vocabulary of 1 + N it outputs indices 1 ... N from a fixed dictionary instead of pointers.
    glimpses: number of attention reads of the memory after the decoder's first block, each added to its hidden vector;
    later blocks, where there are any, carry what was read on to the next steps.
    """

    encoder: StackConfig | SetConfig
    decoder: StackConfig
    glimpses: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PointerConfig:
        try:
            encoder = values["encoder"]
            encoder_config = SetConfig(**encoder) if "steps" in encoder else StackConfig.from_dict(encoder)
            return cls(encoder_config, StackConfig.from_dict(values["decoder"]), values["glimpses"])
        except (KeyError, TypeError) as error:
            raise SegueError(f"this is no config of a pointer network ({type(error).__name__}: {error})") from error


class SetEncoder(nn.Module):
    """The Read and Process blocks of "Order Matters": a memory slot per element, independent of the others, and a
    summary of all of them by an LSTM whose only input is what it attends to (called Set2Set in graph networks)."""

    def __init__(self, config: SetConfig) -> None:
        super().__init__()
        self.width, self.steps = config.width, config.steps
        self.read = nn.Sequential(nn.Linear(config.inputs, config.width), nn.ReLU(),
                                  nn.Linear(config.width, config.width))
        self.cell = nn.LSTMCell(2 * config.width, config.width) if config.steps else None

    def process(self, memory: Tensor, real: Tensor) -> Tensor:
        """Return the summary q* (B, 2 D) of a memory (B, S, D); real: (B, S) bool, False at padding."""
        h = c = memory.new_zeros(len(memory), self.width)
        q = torch.cat([h, h], -1)
        for _ in range(self.steps):
            assert self.cell is not None
            h, c = self.cell(q, (h, c))
            scores = (memory @ h[..., None])[..., 0].masked_fill(~real, -torch.inf)
            q = torch.cat([h, (scores.softmax(-1)[:, None] @ memory)[:, 0]], -1)
        return q

    def forward(self, elements: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode elements (B, S, C), of which the first `lengths` (B,) are real: memory (B, S, D), summary (B, 2 D)."""
        memory = self.read(elements)
        return memory, self.process(memory, length_mask(lengths, elements.shape[1]))


class PointerHead(nn.Module):
    """Additive attention scores over a memory, u_j = v . tanh(W1 e_j + W2 d); masked slots have probability 0."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.memory, self.query = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.v = nn.Linear(width, 1, bias=False)

    def keys(self, memory: Tensor) -> Tensor:
        """Return the projected memory (..., S, D) for `forward`, shared by all queries."""
        return self.memory(memory)

    def forward(self, query: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        """Return logits (B, N, S) of queries (B, N, D) over keys (B, N or 1, S, D); mask: (B, N or 1, S) bool, True at
        slots that exist."""
        scores = self.v(torch.tanh(keys + self.query(query)[..., None, :]))[..., 0]
        return scores.masked_fill(~mask, -torch.inf)


class InputAttention(PointerHead):
    """Additive attention that returns the weighted memory: d' = sum of softmax(u)_j e_j."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.out = nn.Linear(width, width, bias=False)

    def blend(self, query: Tensor, keys: Tensor, mask: Tensor, memory: Tensor) -> Tensor:
        """Return the attended memory, projected (B, N, D). memory: (B, N or 1, S, D); else as `forward`."""
        weights = self(query, keys, mask).softmax(-1)
        if memory.shape[1] == 1:
            return self.out(weights @ memory[:, 0])
        return self.out((weights[..., None, :] @ memory)[..., 0, :])


@dataclass
class Memory:
    """The encoded form of R sets of at most S elements, and which of them each node of a call attends to.

    values: (R, 1 + S, D), slot 0 is the end, padding is zero. mask: (R, 1 + S) bool. summary: (R, D). keys:
    (R, 1 + S, D) for each scorer. which: (B, N) long, the set of each node; None: row b uses set b.
    """

    values: Tensor
    mask: Tensor
    summary: Tensor
    keys: tuple[Tensor, ...]
    which: Tensor | None = None

    def of(self, x: Tensor) -> Tensor:
        """Select a tensor of the sets (R, ...) for the nodes: (B, N or 1, ...)."""
        return x[:, None] if self.which is None else x[self.which]

    def at(self, slots: Tensor) -> Tensor:
        """Return the values (B, N, D) at slots (B, N) long."""
        return gather_nodes(self.values, slots) if self.which is None else self.values[self.which, slots]


class LastNamedSet(Recurrence):
    """Tracks the set that each row answers, the one named last. Inputs: (B, N) long, -1 where none is named. State:
    (B,) long, -1 before any."""

    def initial(self, batch: int, like: Tensor) -> Tensors:
        return (torch.full((batch,), -1, device=like.device),)

    def scan(self, inputs: Tensors, state: Tensors, starts: Tensor | None = None,
             lengths: Tensor | None = None) -> tuple[Tensor, Tensors]:
        named = torch.cat([state[0][:, None], inputs[0]], 1)
        changes = named >= 0 if starts is None else (named >= 0) | F.pad(starts, (1, 0))
        latest = torch.where(changes, torch.arange(named.shape[1], device=named.device), 0).cummax(1).values
        named = named.gather(1, latest)
        final = named[:, -1] if lengths is None else named.gather(1, lengths[:, None])[:, 0]
        return named[:, 1:], (final,)


class PointerNetwork(SavedModel):
    """An encoder, and a decoder that outputs pointers, or indices of a fixed dictionary.

    `forward`, for training, reads rows of elements, the delimiter and the target slots (`Batch.pointing`), so that
    objectives and strategies for any model apply. `read` returns the decoding form. The decoder starts from a summary
    of the elements: a stack's hidden vector at the last one, or a set encoder's q*.
    """

    format = "segue pointer network 1"
    config_class = PointerConfig

    def __init__(self, config: PointerConfig) -> None:
        super().__init__()
        encoder, decoder, width = config.encoder, config.decoder, config.decoder.width
        if encoder.width != width:
            raise SegueError(f"an encoder of width {encoder.width} and a decoder of {width} do not fit: both must be "
                             "equal")
        if decoder.inputs or decoder.pool or decoder.learned_positions or decoder.embed_norm \
                or decoder.cross is not None:
            raise SegueError("the decoder of a pointer network reads memories: leave inputs, pool, learned_positions, "
                             "embed_norm and cross out of its config")
        self.config, self.decoder = config, Stack(decoder)
        self.decoder.check_causal(": the decoder must be causal")
        if isinstance(encoder, SetConfig):
            self.encoder: Stack | SetEncoder = SetEncoder(encoder)
        else:
            self.encoder = Stack(encoder)
            self.encoder.register_module("head", None)  # its outputs are not used
        self.summary = nn.Linear(width * (2 if isinstance(encoder, SetConfig) else 1), width, bias=False)
        self.stop = nn.Parameter(torch.randn(width))
        self.glimpses = nn.ModuleList(InputAttention(width) for _ in range(config.glimpses))
        self.pointer = PointerHead(width) if decoder.vocabulary == 1 else None

    @property
    def inputs(self) -> int:
        """Real numbers per element; 0 where elements are ids."""
        return self.config.encoder.inputs

    def slots(self, elements: int) -> int:
        """Return how many indices it can output for sets padded to this many elements."""
        return elements if self.pointer is not None else self.config.decoder.vocabulary - 1

    def encode(self, elements: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode elements (B, S, C), of which the first `lengths` (B,) are real: memory (B, S, D), summary (B, D)."""
        if isinstance(self.encoder, SetEncoder):
            memory, summary = self.encoder(elements, lengths)
        else:
            memory = encode_source(self.encoder, elements if self.inputs else elements[..., 0], lengths)
            summary = memory[torch.arange(len(memory), device=memory.device), lengths - 1]
        return memory, self.summary(summary)

    def memory(self, elements: Tensor, lengths: Tensor) -> Memory:
        """Encode elements, see `encode`, and prepare them for `decode`."""
        values, summary = self.encode(elements.to(self.stop.dtype) if self.inputs else elements.long(), lengths)
        values = torch.cat([self.stop.expand(len(values), 1, -1), values], 1)
        mask = torch.arange(values.shape[1], device=values.device) <= lengths[:, None]
        return self._memory(values.masked_fill(~mask[..., None], 0.0), mask, summary)

    def _memory(self, values: Tensor, mask: Tensor, summary: Tensor) -> Memory:
        scorers = [*self.glimpses, *([] if self.pointer is None else [self.pointer])]
        return Memory(values, mask, summary, tuple(scorer.keys(values) for scorer in scorers))

    def decode(self, tokens: Tensor, memory: Memory, layout: Layout, state: State | None = None) -> Output:
        """Return logits (B, N, 1 + S), or over the dictionary, after tokens (B, N) long: 0, or the slots chosen before.
        """
        x = memory.at(tokens) if self.pointer is not None else self.decoder.embedding(tokens)
        begin = self.decoder.embedding.weight[0] + memory.of(memory.summary)
        x = self.decoder.drop(torch.where((tokens == 0)[..., None], begin, x))
        mask = memory.of(memory.mask)
        for index in range(len(self.decoder.blocks)):
            x = self.decoder.run_block(index, x, layout, state)
            for read, keys in zip(self.glimpses, memory.keys) if index == 0 else ():
                assert isinstance(read, InputAttention)
                x = x + read.blend(x, memory.of(keys), mask, memory.of(memory.values))
        hidden = self.decoder.finish(x, layout)
        if self.pointer is None:
            return Output(self.decoder.head(hidden), hidden)
        return Output(self.pointer(hidden, memory.of(memory.keys[-1]), mask), hidden)

    def forward(self, tokens: Tensor, layout: Layout | None = None) -> Output:
        """Return logits (B, N, 1 + S) for training rows (B, N, 1 + C) of `Batch.pointing`, zero at the elements. S:
        size of the largest set, or of the dictionary."""
        if layout is not None and layout.starts is not None:
            raise SegueError("a pointer network cannot reset inside a sequence: give it one set and answer per row")
        batch, n = tokens.shape[:2]
        slots, device = tokens[..., 0].long(), tokens.device
        lengths = (slots >= 0).long().argmax(1)
        if bool((lengths == 0).any()):
            raise SegueError("a row has no elements before its delimiter, or no delimiter: make it with Batch.pointing")
        longest, count = int(lengths.max()), n - int(lengths.min())
        element_mask = length_mask(lengths, longest)
        elements = tokens[:, :longest, 1:].masked_fill(~element_mask[..., None], 0)
        index = torch.arange(count, device=device)
        slots = slots.gather(1, (index + lengths[:, None]).clamp(max=n - 1))
        check_tokens(slots.cpu(), 1 + self.slots(longest))
        output = self.decode(slots, self.memory(elements, lengths), Layout.chain((batch, count), device=device))
        node = torch.arange(n, device=device) - lengths[:, None]
        is_target = ((node >= 0) & (node < count))[..., None]
        return Output(*(gather_nodes(x, node.clamp(max=count - 1)).masked_fill(~is_target, 0.0)
                        for x in (output.logits, output.hidden)))

    def read(self, sets: Sequence[Any]) -> Pointing:
        """Encode sets (each n_i elements of C real numbers, or n_i ids), for decoding with any decoder."""
        if not len(sets) or any(not len(elements) for elements in sets):
            raise SegueError("there is nothing to point at: give sets of at least one element")
        rows = [torch.as_tensor(elements).reshape(len(elements), -1) for elements in sets]
        if any(row.shape[1] != max(self.inputs, 1) for row in rows):
            raise SegueError(f"elements of {sorted({row.shape[1] for row in rows})} numbers: this model reads "
                             f"{self.inputs or 'ids'}")
        lengths = torch.tensor([len(row) for row in rows], device=self.stop.device)
        elements = nn.utils.rnn.pad_sequence(rows, batch_first=True).to(self.stop.device)
        training = self.training
        with torch.no_grad():
            memory = self.eval().memory(elements, lengths)
        self.train(training)
        return Pointing(self, memory)


class Pointing(nn.Module):
    """Sets encoded by a pointer network, ready for decoding. Satisfies `segue.models.base.Decodable`.

    Ids: 0 the delimiter, 1 ... S the elements, and after them one per set, which names the set and starts its answer:
    `prompts` are these. Decode by `generate(read, read.prompts, n, decoder, eos=0)`. A row that has named no set can
    only point at the end. Which set a row answers is part of its state, so that beams over many sets share passes.
    """

    def __init__(self, model: PointerNetwork, memory: Memory) -> None:
        super().__init__()
        self.model, self.named = model, LastNamedSet()
        self.sets, self.elements = len(memory.values), memory.values.shape[1] - 1
        # An empty set follows the last one, at -1, for rows that have named none.
        values, summary = F.pad(memory.values, (0, 0, 0, 0, 0, 1)), F.pad(memory.summary, (0, 0, 0, 1))
        values[-1, 0] = model.stop.detach()
        mask = F.pad(memory.mask, (0, 0, 0, 1))
        mask[-1, 0] = True
        with torch.no_grad():
            self.memory = model._memory(values, mask, summary)

    @property
    def first(self) -> int:
        """The id that names the first set."""
        return 1 + self.model.slots(self.elements)

    @property
    def vocabulary(self) -> int:
        return self.first + self.sets

    @property
    def path(self) -> str:
        return self.model.decoder.path

    def prompt(self, index: int, prefix: Sequence[int] = ()) -> list[int]:
        """Return the prompt for an answer about set `index` that starts with `prefix`."""
        return [self.first + index, *prefix]

    @property
    def prompts(self) -> list[list[int]]:
        """The prompts, one per set."""
        return [self.prompt(index) for index in range(self.sets)]

    def init_state(self, batch: int, history: int = 0) -> State:
        state = self.model.decoder.init_state(batch, history)
        named = Carry(self.named, self.named.initial(batch, state.positions), history)
        return State([*state.layers, {"named": named}], state.positions)

    def extend(self, tokens: Tensor, state: Decoding, parents: Tensor | None = None,
               at: Tensor | None = None) -> Output:
        """See `Decodable.extend`."""
        assert isinstance(state, State)
        check_rows(tokens.shape[0], state)
        check_tokens(tokens.cpu(), self.vocabulary)
        layout = state.layout(tokens.shape[1], parents)
        names = torch.where(tokens >= self.first, tokens - self.first, -1)
        carry = state.layers[-1]["named"]
        assert isinstance(carry, Carry)
        memory = Memory(self.memory.values, self.memory.mask, self.memory.summary, self.memory.keys,
                        self.named((names,), layout, carry))
        output = self.model.decode(tokens.masked_fill(names >= 0, 0), memory, layout, state)
        state.pending = layout
        logits = output.logits if at is None else gather_nodes(output.logits, at)
        return Output(F.pad(logits, (0, self.sets), value=-torch.inf), output.hidden)
