"""Decoding states: everything a mixer or a stack of mixers remembers between calls.

A `State` holds named parts for each layer, and the position of each row. A part is either a `Carry` (the state of a
`Recurrence`, of constant size) or a key-value cache (`segue.mixers.cache`). All share one life cycle: `extend` leaves
the new nodes *pending*, and `commit` accepts some of them and discards the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor, nn

from segue.errors import SegueError
from segue.mixers.layout import LayerNodes, Layout, check_commit, check_parents, gather_nodes


class Part(Protocol):
    """One memory inside a state. `commit` takes node indices `path` (B, P) padded with -1, or None for a chain, of
    which the first `counts` (B,) nodes are taken (None: all)."""

    def commit(self, path: Tensor | None, counts: Tensor | None) -> None: ...
    def select(self, rows: Tensor) -> Part: ...
    def join(self, others: Sequence[Any]) -> Part: ...  # concatenates the rows of parts of the same class
    def max_rewind(self) -> Tensor: ...  # (B,): the largest n that `rewind` takes
    def rewind(self, n: Tensor) -> None: ...
    def copy(self) -> Part: ...
    def detach(self) -> None: ...
    def tensors(self) -> dict[str, Tensor]: ...
    def load(self, tensors: dict[str, Tensor]) -> None: ...


Parts = Mapping[str, Part]  # the memories of one layer by name; empty where nothing is remembered (training)


class State:
    """The memory of one mixer (one layer) or of a stack (many), for a batch of rows.

    positions: (B,) long, the position the next token of each row will take.
    layers: for each layer its named parts.
    prompt: (B,) long, or None: the length of each row's prompt, for mixers that read a prompt both ways and models that
        count from its end; set it before the prompt is given.
    spans: for each layer, or None: the layer runs only on nodes fewer than this many positions after the prompt (see
        `offset_from_prompt`), and its memory does not change elsewhere. The caller that runs the layers records in
        `layer_nodes` the nodes of each layer that did not run on all (None: on none).
    floor: (B,) long, the position after each row's last set (see `Layout.sets`), or that at which it was loaded: no row
        can be rewound further.
    """

    def __init__(self, layers: list[dict[str, Part]], positions: Tensor, prompt: Tensor | None = None,
                 spans: Sequence[int] | None = None) -> None:
        self.layers = layers
        self.positions = positions
        self.prompt = prompt
        self.spans = spans
        self.floor = torch.zeros_like(positions)
        self.pending: Layout | None = None
        self.layer_nodes: dict[int, LayerNodes | None] = {}

    @property
    def batch(self) -> int:
        return self.positions.shape[0]

    def layout(self, n: int, parents: Tensor | None = None, positions: Tensor | None = None,
               starts: Tensor | None = None) -> Layout:
        """The `Layout` of `n` new nodes after this state."""
        if parents is not None:
            check_parents(parents, self.batch, n)
        if positions is not None:
            layout = Layout(positions, parents, starts)
        elif parents is None:
            layout = Layout.chain((self.batch, n), self.positions, starts)
        elif starts is None:
            layout = Layout.tree(parents, self.positions)
        else:
            raise SegueError("a draft tree cannot cross the start of a document: give `starts` or `parents`")
        if self.prompt is not None:
            layout.prompt_end = self.prompt[:, None]
            layout.prompt = layout.positions < layout.prompt_end
        return layout

    def offset_from_prompt(self, positions: Tensor) -> Tensor:
        """(B, N), the positions counted from the end of their row's prompt: 0 is the first after it, negative lies in
        it."""
        return positions if self.prompt is None else positions - self.prompt[:, None]

    def commit(self, path: Tensor | None = None, counts: Tensor | None = None) -> None:
        """Accept pending nodes into the state and discard the rest.

        path: (B, P) long, one root-to-node path per row, padded with -1. None takes a chain: all of it, or the
        first `counts` (B,) nodes of each row (ragged prompts).
        """
        layout = self.pending
        if layout is None:
            raise SegueError("nothing is pending: call extend before commit")
        n = layout.positions.shape[1]
        check_commit(path, counts, layout.parents, self.batch, n)
        if path is not None:
            counts = (path >= 0).sum(1)
        if layout.sets is not None and n:
            self._raise_floor(layout.sets[..., 0] > 0, layout.positions, counts)
        for index, layer in enumerate(self.layers):
            nodes = self.layer_nodes.get(index)
            if nodes is None and index in self.layer_nodes:
                continue
            layer_commit = (path, counts) if nodes is None else nodes.localise_commit(path, counts)
            for part in layer.values():
                part.commit(*layer_commit)
        if counts is None:
            if n:
                self.positions = layout.positions[:, -1] + 1
        elif n:
            last = (counts - 1).clamp(min=0)[:, None]
            if path is not None:
                last = path.gather(1, last).clamp(min=0) if path.shape[1] else torch.zeros_like(last)
            self.positions = torch.where(counts > 0, layout.positions.gather(1, last)[:, 0] + 1, self.positions)
        self.pending = None

    def _raise_floor(self, inside: Tensor, positions: Tensor, counts: Tensor | None) -> None:
        """Move `floor` to the position after each row's last set. inside: (B, N) bool, the nodes of sets."""
        index = torch.arange(inside.shape[1], device=inside.device)
        counts = torch.full_like(self.positions, inside.shape[1]) if counts is None else counts
        after = torch.where(inside & (index < counts[:, None]), index + 1, 0).amax(1)
        if bool(((after > 0) & (after >= counts)).any()):
            raise SegueError("a row ends within a set: commit it with at least one token that follows the whole set")
        next_position = positions.gather(1, after.clamp(max=inside.shape[1] - 1)[:, None])[:, 0]
        self.floor = torch.where(after > 0, next_position, self.floor)

    def select(self, rows: Tensor) -> State:
        """A new state with these rows (long (R,), repeats allowed): fork, reorder or drop."""
        layers = [{name: part.select(rows) for name, part in layer.items()} for layer in self.layers]
        prompt = None if self.prompt is None else self.prompt[rows]
        return self._with_rows(layers, self.positions[rows], prompt, self.floor[rows])

    def join(self, others: Sequence[State]) -> State:
        """A new state with the rows of this state followed by those of others (as when requests join a batch)."""
        layers = [{name: part.join([other.layers[index][name] for other in others]) for name, part in layer.items()}
                  for index, layer in enumerate(self.layers)]
        states, prompt = [self, *others], None
        if any(state.prompt is not None for state in states):
            prompt = torch.cat([torch.zeros_like(state.positions) if state.prompt is None else state.prompt
                                for state in states])
        return self._with_rows(layers, torch.cat([state.positions for state in states]), prompt,
                               torch.cat([state.floor for state in states]))

    def _with_rows(self, layers: list[dict[str, Part]], positions: Tensor, prompt: Tensor | None,
                   floor: Tensor) -> Self:
        """A state of the same model with other rows."""
        state = type(self)(layers, positions, prompt, self.spans)
        state.floor = floor
        return state

    def rewind(self, n: int | Tensor) -> None:
        """Forget the last `n` (int or (B,)) committed tokens; positions go back with them."""
        n = torch.as_tensor(n, device=self.positions.device).expand(self.batch)
        if (n < 0).any() or (n > self.positions - self.floor).any():
            raise SegueError(f"cannot rewind {n.tolist()} tokens at positions {self.positions.tolist()}" +
                             (f", of which those before {self.floor.tolist()} are fixed" if self.floor.any() else ""))
        layer_counts = [self._count_layer_tokens(n, index) for index in range(len(self.layers))]
        for index, name, part in self._parts():  # check all of them before changing any
            limit = part.max_rewind().to(n.device)  # that of a transformers cache lies on the CPU
            if (layer_counts[index] > limit).any():
                raise SegueError(f"'{name}' of the state can go back {limit.tolist()} tokens here, not "
                                 f"{layer_counts[index].tolist()}: create it with init_state(batch, history=N) for a "
                                 "larger N")
        for index, _, part in self._parts():
            part.rewind(layer_counts[index])
        self.positions = self.positions - n
        self.pending = None

    def _count_layer_tokens(self, n: Tensor, index: int) -> Tensor:
        """(B,), on how many of the last `n` tokens layer `index` ran."""
        if self.spans is None:
            return n
        first = self.offset_from_prompt((self.positions - n)[:, None])[:, 0]
        return (self.spans[index] - first).clamp(min=0).minimum(n)

    def snapshot(self) -> State:
        """An independent copy of what is committed."""
        layers = [{name: part.copy() for name, part in layer.items()} for layer in self.layers]
        return self._with_rows(layers, self.positions.clone(), self.prompt, self.floor)

    def restore(self, snapshot: State) -> None:
        """Go back to a snapshot, which stays usable."""
        copy = snapshot.snapshot()
        self.layers, self.positions, self.prompt, self.floor = copy.layers, copy.positions, copy.prompt, copy.floor
        self.pending = None

    def detach(self) -> None:
        """Cut the graph: later losses do not flow back beyond here (truncated back-propagation through time)."""
        for _, _, part in self._parts():
            part.detach()

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of the committed state by name, to count, move, save or train them; the inverse is `load`."""
        named = {f"{part_name}.{name}": tensor for _, part_name, part in self._parts()
                 for name, tensor in part.tensors().items()}
        return {"positions": self.positions, **named}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Replace the committed state by tensors named as in `tensors()`, all with the same rows.

        They may be parameters (a trained initial state): gradients flow into them. What came before cannot be rewound.
        """
        if set(tensors) != set(self.tensors()):
            raise SegueError(f"a state of {sorted(self.tensors())} cannot load {sorted(tensors)}")
        for _, part_name, part in self._parts():
            part.load({name: tensors[f"{part_name}.{name}"] for name in part.tensors()})
        self.positions = self.floor = tensors["positions"]
        self.pending = None

    def _parts(self) -> Iterator[tuple[int, str, Part]]:
        for index, layer in enumerate(self.layers):
            for name, part in layer.items():
                yield index, f"{index}.{name}", part


Tensors = tuple[Tensor, ...]


class Recurrence(nn.Module):
    """A recurrence with a state of constant size: h_t = f(h_{t-1}, inputs_t), outputs_t = g(h_t, inputs_t).

    A subclass implements `initial` and `scan`; draft trees, commits, ragged rows and rewinding follow from these.

    learnable_tensors: indices of the state's tensors that a learned initial state may replace (None: all).
    """

    learnable_tensors: ClassVar[tuple[int, ...] | None] = None

    def initial(self, batch: int, like: Tensor) -> Tensors:
        """The initial state: tensors of shape (B, ...), on the device and of the dtype of `like`."""
        raise NotImplementedError

    def learnable_initial(self, batch: int, like: Tensor) -> Tensors:
        """An initial state to which a learned offset can be added; differs from `initial` where that holds
        infinities."""
        return self.initial(batch, like)

    def scan(self, inputs: Tensors, state: Tensors, starts: Tensor | None = None,
             lengths: Tensor | None = None) -> tuple[Tensor, Tensors]:
        """Run a chain of inputs (B, N, ...) from `state`; returns the outputs (B, N, ...) and the final state.

        starts: (B, N) bool, the nodes before which the state is reset to `initial`.
        lengths: (B,), return the state after this many nodes of each row instead (0: `state` itself).
        """
        raise NotImplementedError

    def state_factors(self, inputs: Tensors) -> Tensors | None:
        """If a chain of inputs changes the state only by an element-wise factor and a sum, h_N = factor * h_0 + sum:
        the factors, broadcastable to the state's tensors. None for any other recurrence."""
        return None

    def forward(self, inputs: Tensors, layout: Layout, carry: Carry | None = None) -> Tensor:
        """Outputs (B, N, ...) of all nodes. With a `carry`, starts from its state and leaves the inputs pending
        there."""
        if carry is None:
            state = self.initial(inputs[0].shape[0], inputs[0])
        else:
            state = carry.previous_state(inputs, layout.starts)
        if layout.parents is None or not layout.parents.numel():
            outputs, final = self.scan(inputs, state, layout.starts)
        else:
            outputs, final = self._scan_tree(inputs, state, layout), None
        if carry is not None:
            carry.pending = (inputs, layout.starts, final)
        return outputs

    def _scan_tree(self, inputs: Tensors, state: Tensors, layout: Layout) -> Tensor:
        """Run a draft tree level by level: all nodes of one depth take one step from their parents' states."""
        assert layout.parents is not None
        parents, depth = layout.parents, layout.follows.sum(-1) - 1
        # The last slot holds the state the roots follow, so that a parent of -1 finds it by plain indexing.
        nodes = [torch.cat([s.new_zeros(s.shape[0], parents.shape[1], *s.shape[1:]), s[:, None]], 1) for s in state]
        order: list[tuple[Tensor, Tensor]] = []
        outputs: list[Tensor] = []
        for level in range(int(depth.max()) + 1):
            row, node = torch.nonzero(depth == level, as_tuple=True)
            before = tuple(s[row, parents[row, node]] for s in nodes)
            out, after = self.scan(tuple(x[row, node][:, None] for x in inputs), before)
            for index, new in enumerate(after):
                nodes[index] = nodes[index].index_put((row, node), new)
            order.append((row, node))
            outputs.append(out[:, 0])
        row, node = (torch.cat(index) for index in zip(*order))
        nodes_output = torch.cat(outputs)
        return nodes_output.new_zeros(*parents.shape, *nodes_output.shape[1:]).index_put((row, node), nodes_output)


class SteppedRecurrence(Recurrence):
    """A recurrence defined by a single step, run in a Python loop: for those that no fused kernel covers."""

    def step(self, inputs: Tensors, state: Tensors) -> tuple[Tensor, Tensors]:
        """One node's inputs (B, ...) and the state before it -> its output (B, ...) and the next state."""
        raise NotImplementedError

    def scan(self, inputs: Tensors, state: Tensors, starts: Tensor | None = None,
             lengths: Tensor | None = None) -> tuple[Tensor, Tensors]:
        batch, n = inputs[0].shape[:2]

        def choose(rows: Tensor, a: Tensors, b: Tensors) -> Tensors:
            return tuple(torch.where(rows.view(-1, *[1] * (x.dim() - 1)), x, y) for x, y in zip(a, b))

        initial, outputs = self.initial(batch, inputs[0]), []
        final = state
        for t in range(n):
            if starts is not None:
                state = choose(starts[:, t], initial, state)
            y, state = self.step(tuple(x[:, t] for x in inputs), state)
            outputs.append(y)
            final = state if lengths is None else choose(t < lengths, state, final)
        if not outputs:
            y, _ = self.step(tuple(x.new_zeros(batch, *x.shape[2:]) for x in inputs), state)
            return y.new_zeros(batch, 0, *y.shape[1:]), state
        return torch.stack(outputs, 1), final


class Carry:
    """The committed state of a `Recurrence`, its pending inputs, and enough past inputs to rewind `history` tokens."""

    def __init__(self, recurrence: Recurrence, state: Tensors, history: int = 0) -> None:
        self.recurrence = recurrence
        self.state = state
        self.history = history
        self.pending: tuple[Tensors, Tensor | None, Tensors | None] | None = None
        # A rewind starts from an older state and runs the inputs since then again, except the last ones. The lengths
        # count those inputs in each row.
        self.replay_state = state
        self.replay_inputs: Tensors | None = None
        self.replay_lengths = torch.zeros(state[0].shape[0], dtype=torch.long, device=state[0].device)

    def previous_state(self, inputs: Tensors, starts: Tensor | None) -> Tensors:
        """The state before these inputs; a part of a sequence cut over processes fetches it (`segue.parallel`)."""
        return self.state

    def commit(self, path: Tensor | None, counts: Tensor | None) -> None:
        assert self.pending is not None, "extend first"
        inputs, starts, final = self.pending
        if path is not None:
            inputs = tuple(gather_nodes(x, path) for x in inputs)
            starts = None if starts is None else gather_nodes(starts, path)
        if path is None and counts is None and final is not None:
            self.state = final
        elif inputs[0].shape[1]:
            self.state = self.recurrence.scan(inputs, self.state, starts, counts)[1]
        if self.history:
            self._remember(inputs, starts, counts)
        self.pending = None

    def _remember(self, inputs: Tensors, starts: Tensor | None, counts: Tensor | None) -> None:
        batch, n = inputs[0].shape[:2]
        if starts is None:
            starts = torch.zeros(batch, n, dtype=torch.bool, device=inputs[0].device)
        if counts is None:
            counts = torch.full((batch,), n, device=inputs[0].device)
        new = (*inputs, starts)
        old = self.replay_inputs if self.replay_inputs is not None else tuple(x[:, :0] for x in new)
        index = torch.arange(old[0].shape[1] + n, device=inputs[0].device)
        keep = torch.where(index < old[0].shape[1], index < self.replay_lengths[:, None],
                           index - old[0].shape[1] < counts[:, None])
        order = keep.logical_not().to(torch.uint8).argsort(dim=1, stable=True)
        self.replay_lengths = self.replay_lengths + counts
        order = order[:, : int(self.replay_lengths.max()) if batch else 0]
        trail = tuple(gather_nodes(torch.cat([a, b], 1), order) for a, b in zip(old, new))
        if trail[0].shape[1] > 2 * self.history:  # move the older state forward, so that the inputs stay bounded
            drop = (self.replay_lengths - self.history).clamp(min=0)
            self.replay_state = self.recurrence.scan(trail[:-1], self.replay_state, trail[-1], drop)[1]
            window = drop[:, None] + torch.arange(self.history, device=drop.device)
            trail = tuple(gather_nodes(x, window.clamp(max=trail[0].shape[1] - 1)) for x in trail)
            self.replay_lengths = self.replay_lengths - drop
        self.replay_inputs = trail

    def max_rewind(self) -> Tensor:
        return self.replay_lengths

    def rewind(self, n: Tensor) -> None:
        self.pending = None
        if self.replay_inputs is None or not n.any():
            return
        self.replay_lengths = self.replay_lengths - n
        *inputs, starts = self.replay_inputs
        self.state = self.recurrence.scan(tuple(inputs), self.replay_state, starts, self.replay_lengths)[1]

    def select(self, rows: Tensor) -> Carry:
        selected = Carry(self.recurrence, tuple(s[rows] for s in self.state), self.history)
        selected.replay_state = tuple(s[rows] for s in self.replay_state)
        selected.replay_inputs = None if self.replay_inputs is None else tuple(s[rows] for s in self.replay_inputs)
        selected.replay_lengths = self.replay_lengths[rows]
        return selected

    def join(self, others: Sequence[Carry]) -> Carry:
        parts = [self, *others]

        def stacked(states: list[Tensors]) -> Tensors:
            return tuple(torch.cat(tensors) for tensors in zip(*states))

        joined = Carry(self.recurrence, stacked([part.state for part in parts]), self.history)
        joined.replay_state = stacked([part.replay_state for part in parts])
        joined.replay_lengths = torch.cat([part.replay_lengths for part in parts])
        trails = [part.replay_inputs for part in parts if part.replay_inputs is not None]
        if trails:
            longest = max(trail[0].shape[1] for trail in trails)
            padded = []
            for part in parts:
                rows = len(part.replay_lengths)
                trail = part.replay_inputs or tuple(x.new_zeros(rows, 0, *x.shape[2:]) for x in trails[0])
                padded.append(tuple(torch.cat([x, x.new_zeros(x.shape[0], longest - x.shape[1], *x.shape[2:])], 1)
                                    for x in trail))
            joined.replay_inputs = stacked(padded)
        return joined

    def copy(self) -> Carry:
        # Tensors are replaced, never written into, so a copy may share them.
        copied = Carry(self.recurrence, self.state, self.history)
        copied.replay_state, copied.replay_inputs = self.replay_state, self.replay_inputs
        copied.replay_lengths = self.replay_lengths
        return copied

    def detach(self) -> None:
        self.state, self.replay_state = (tuple(s.detach() for s in x) for x in (self.state, self.replay_state))
        self.replay_inputs = None if self.replay_inputs is None else tuple(x.detach() for x in self.replay_inputs)

    def tensors(self) -> dict[str, Tensor]:
        return {str(index): tensor for index, tensor in enumerate(self.state)}

    def load(self, tensors: dict[str, Tensor]) -> None:
        self.state = self.replay_state = tuple(tensors[str(index)] for index in range(len(tensors)))
        self.replay_inputs = self.pending = None
        self.replay_lengths = self.replay_lengths.new_zeros(len(self.state[0]))
