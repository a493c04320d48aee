"""Models whose answers are positions of their input: pointer networks (Vinyals et al. 2015, arXiv 1506.03134), and sets
as input (Vinyals et al. 2015, arXiv 1511.06391).

An encoder makes a memory of the elements 1 ... n; slot 0, a learned vector, is the end. A decoder points at slots, one
after the other, until it points at the end, and reads what it pointed at. Id 0 frames an answer: read it begins one,
said it ends one. So the ids of an answer mean the same for sets of any size, and `eos=0` for every decoder.
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
    """An encoder that the order of the elements has no say in. inputs: C real numbers an element. width: model width D.
    steps: P, how often it reads all elements (0: it sums up nothing, a control)."""

    inputs: int
    width: int
    steps: int = 5


@dataclass(frozen=True)
class PointerConfig:
    """encoder: a stack of any mixers (`inputs` real numbers an element, or ids of its vocabulary), or a set encoder.
    decoder: a stack of causal mixers. Its vocabulary is 1, the frame: all else that it says and reads are elements. One
    of 1 + N says indices 1 ... N from a fixed dictionary instead, as models did before pointers.
    glimpses: reads of the memory, each added to what the decoder knows, behind its first block; further blocks, where
    there are any, carry what was read on to the next steps.
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
            made = SetConfig(**encoder) if "steps" in encoder else StackConfig.from_dict(encoder)
            return cls(made, StackConfig.from_dict(values["decoder"]), values["glimpses"])
        except (KeyError, TypeError) as error:
            raise SegueError(f"this is no config of a pointer network ({type(error).__name__}: {error})") from error


class SetEncoder(nn.Module):
    """Read and Process of "Order Matters": a memory of each element by itself, and a summary of them all by an LSTM
    that has no input but its own state and what it reads (the pooling called Set2Set in graph networks)."""

    def __init__(self, config: SetConfig) -> None:
        super().__init__()
        self.width, self.steps = config.width, config.steps
        self.read = nn.Sequential(nn.Linear(config.inputs, config.width), nn.ReLU(),
                                  nn.Linear(config.width, config.width))
        self.cell = nn.LSTMCell(2 * config.width, config.width) if config.steps else None

    def process(self, memory: Tensor, real: Tensor) -> Tensor:
        """memory (B, S, D), of which the elements `real` (B, S) bool are there -> the summary q* (B, 2 D)."""
        h = c = memory.new_zeros(len(memory), self.width)
        q = torch.cat([h, h], -1)
        for _ in range(self.steps):
            assert self.cell is not None
            h, c = self.cell(q, (h, c))
            scores = (memory @ h[..., None])[..., 0].masked_fill(~real, -torch.inf)
            q = torch.cat([h, (scores.softmax(-1)[:, None] @ memory)[:, 0]], -1)
        return q

    def forward(self, elements: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """elements (B, S, C), of which the first `lengths` (B,) are real -> memory (B, S, D), summary (B, 2 D)."""
        memory = self.read(elements)
        return memory, self.process(memory, length_mask(lengths, elements.shape[1]))


class PointerHead(nn.Module):
    """Additive scores over a memory, u_j = v . tanh(W1 e_j + W2 d); a slot that is masked has probability exactly 0."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.memory, self.query = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.v = nn.Linear(width, 1, bias=False)

    def keys(self, memory: Tensor) -> Tensor:
        """(..., S, D), what `forward` wants of the memory: the same for all queries."""
        return self.memory(memory)

    def forward(self, query: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        """query (B, N, D); keys (B, N or 1, S, D) and mask (B, N or 1, S) bool, True at slots that are there ->
        logits (B, N, S)."""
        scores = self.v(torch.tanh(keys + self.query(query)[..., None, :]))[..., 0]
        return scores.masked_fill(~mask, -torch.inf)


class InputAttention(PointerHead):
    """The same scores, by which the memory is blended: d' = sum of softmax(u)_j e_j."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.out = nn.Linear(width, width, bias=False)

    def blend(self, query: Tensor, keys: Tensor, mask: Tensor, memory: Tensor) -> Tensor:
        """As `forward`; memory (B, N or 1, S, D) -> what is read, projected (B, N, D)."""
        weights = self(query, keys, mask).softmax(-1)
        if memory.shape[1] == 1:
            return self.out(weights @ memory[:, 0])
        return self.out((weights[..., None, :] @ memory)[..., 0, :])


@dataclass
class Memory:
    """What was read of R sets of at most S elements, and which of them the nodes of a call look at.

    values: (R, 1 + S, D), slot 0 the end, zero behind the last element. mask: (R, 1 + S) bool. summary: (R, D). keys:
    (R, 1 + S, D) of each scorer. which: (B, N) long, the set of each node; None: row b looks at set b.
    """

    values: Tensor
    mask: Tensor
    summary: Tensor
    keys: tuple[Tensor, ...]
    which: Tensor | None = None

    def of(self, x: Tensor) -> Tensor:
        """Something (R, ...) of the sets as the nodes want it, (B, N or 1, ...)."""
        return x[:, None] if self.which is None else x[self.which]

    def at(self, slots: Tensor) -> Tensor:
        """(B, N) long -> the values there, (B, N, D)."""
        return gather_nodes(self.values, slots) if self.which is None else self.values[self.which, slots]


class LastNamedSet(Recurrence):
    """Which set is looked at: the one that was named last. State: (B,) long, -1 while none was."""

    def initial(self, batch: int, like: Tensor) -> Tensors:
        return (torch.full((batch,), -1, device=like.device),)

    def scan(self, inputs: Tensors, state: Tensors, starts: Tensor | None = None,
             lengths: Tensor | None = None) -> tuple[Tensor, Tensors]:
        every = torch.cat([state[0][:, None], inputs[0]], 1)
        news = every >= 0 if starts is None else (every >= 0) | F.pad(starts, (1, 0))
        latest = torch.where(news, torch.arange(every.shape[1], device=every.device), 0).cummax(1).values
        every = every.gather(1, latest)
        final = every[:, -1] if lengths is None else every.gather(1, lengths[:, None])[:, 0]
        return every[:, 1:], (final,)


class PointerNetwork(SavedModel):
    """An encoder, a decoder, and what the decoder says: pointers, or indices of a fixed dictionary.

    The training form reads rows of elements, the frame and what was pointed at (`Batch.pointing`), so that objectives
    and strategies for any model are for this one too. `read` gives the decoding form. The decoder begins with the
    summary of the elements: of a stack what it knows at the last one, of a set encoder q*.
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
        for name, block in zip(decoder.mixers, self.decoder.blocks):
            if not block.mixer.causal:
                raise SegueError(f"mixer '{name}' looks ahead: the decoder must be causal")
        if isinstance(encoder, SetConfig):
            self.encoder: Stack | SetEncoder = SetEncoder(encoder)
        else:
            self.encoder = Stack(encoder)
            self.encoder.register_module("head", None)  # it says nothing
        self.summary = nn.Linear(width * (2 if isinstance(encoder, SetConfig) else 1), width, bias=False)
        self.stop = nn.Parameter(torch.randn(width))
        self.glimpses = nn.ModuleList(InputAttention(width) for _ in range(config.glimpses))
        self.pointer = PointerHead(width) if decoder.vocabulary == 1 else None

    @property
    def inputs(self) -> int:
        """Real numbers of an element; 0 where elements are ids."""
        return self.config.encoder.inputs

    def slots(self, elements: int) -> int:
        """How many indices it can say of sets padded to so many elements."""
        return elements if self.pointer is not None else self.config.decoder.vocabulary - 1

    def state_parameters(self) -> list[nn.Parameter]:
        encoder = [] if isinstance(self.encoder, SetEncoder) else self.encoder.state_parameters()
        return encoder + self.decoder.state_parameters()

    def encode(self, elements: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """elements (B, S, C), of which the first `lengths` (B,) are real -> memory (B, S, D), summary (B, D)."""
        if isinstance(self.encoder, SetEncoder):
            memory, summary = self.encoder(elements, lengths)
        else:
            memory = encode_source(self.encoder, elements if self.inputs else elements[..., 0], lengths)
            summary = memory[torch.arange(len(memory), device=memory.device), lengths - 1]
        return memory, self.summary(summary)

    def memory(self, elements: Tensor, lengths: Tensor) -> Memory:
        """See `encode`."""
        values, summary = self.encode(elements.to(self.stop.dtype) if self.inputs else elements.long(), lengths)
        values = torch.cat([self.stop.expand(len(values), 1, -1), values], 1)
        mask = torch.arange(values.shape[1], device=values.device) <= lengths[:, None]
        return self._memory(values.masked_fill(~mask[..., None], 0.0), mask, summary)

    def _memory(self, values: Tensor, mask: Tensor, summary: Tensor) -> Memory:
        scorers = [*self.glimpses, *([] if self.pointer is None else [self.pointer])]
        return Memory(values, mask, summary, tuple(scorer.keys(values) for scorer in scorers))

    def decode(self, tokens: Tensor, memory: Memory, layout: Layout, state: State | None = None) -> Output:
        """tokens (B, N) long, 0 or the slots that were pointed at -> logits (B, N, 1 + S), or of the dictionary."""
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
        """The training form: rows (B, N, 1 + C) of `Batch.pointing` -> logits (B, N, 1 + S), which mean nothing at the
        elements; S: elements of the largest set, or the dictionary's."""
        if layout is not None and layout.starts is not None:
            raise SegueError("a pointer network cannot reset inside a sequence: give it one set and answer per row")
        batch, n = tokens.shape[:2]
        said, device = tokens[..., 0].long(), tokens.device
        lengths = (said >= 0).long().argmax(1)
        if bool((lengths == 0).any()):
            raise SegueError("a row has no elements before its frame, or no frame: make it with Batch.pointing")
        longest, count = int(lengths.max()), n - int(lengths.min())
        real = length_mask(lengths, longest)
        elements = tokens[:, :longest, 1:].masked_fill(~real[..., None], 0)
        node = torch.arange(count, device=device)
        said = said.gather(1, (node + lengths[:, None]).clamp(max=n - 1))
        check_tokens(said.cpu(), 1 + self.slots(longest))
        output = self.decode(said, self.memory(elements, lengths), Layout.chain((batch, count), device=device))
        place = torch.arange(n, device=device) - lengths[:, None]
        there = ((place >= 0) & (place < count))[..., None]
        return Output(*(gather_nodes(x, place.clamp(max=count - 1)).masked_fill(~there, 0.0)
                        for x in (output.logits, output.hidden)))

    def read(self, sets: Sequence[Any]) -> Pointing:
        """Read sets (each n_i elements of C real numbers, or n_i ids), to point at them with any decoder."""
        if not len(sets) or any(not len(one) for one in sets):
            raise SegueError("there is nothing to point at: give sets of at least one element")
        rows = [torch.as_tensor(one).reshape(len(one), -1) for one in sets]
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
    """Sets that a pointer network has read, to be answered. Satisfies `segue.models.base.Decodable`.

    Ids: 0 the frame, 1 ... S the elements, and behind them one for each set, which names it and begins its answer:
    `prompts` are these, one a set. An answer is `generate(read, read.prompts, n, decoder, eos=0)`. A row that has named
    no set has nothing to point at but the end. What each row looks at is a part of its state, so that beams over many
    sets share passes.
    """

    def __init__(self, model: PointerNetwork, memory: Memory) -> None:
        super().__init__()
        self.model, self.named = model, LastNamedSet()
        self.sets, self.elements = len(memory.values), memory.values.shape[1] - 1
        # Behind the last set an empty one, at -1: for rows that have named none.
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
        """The prompt for the answer about set `index` that begins with `prefix`."""
        return [self.first + index, *prefix]

    @property
    def prompts(self) -> list[list[int]]:
        """One for each set."""
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
