"""Decoding steps as CUDA graphs: the step of one token is captured once and replayed for every token after that.

A step of a small model is hundreds of operations, each of which takes longer to launch than to run; a graph launches
them all at once. It reads and writes buffers of its own. The contents of a state are copied into them at its first
step, and copied back as soon as the state is used in any other way.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from segue.errors import SegueError
from segue.mixers.attention import Attention
from segue.mixers.cache import Cache, FixedCache
from segue.mixers.layout import check_rows, without_value_checks
from segue.mixers.state import Carry, Part, State
from segue.models.base import Decoding, Output, needs_whole_prompt
from segue.models.stack import Stack

EXTRA_CAPACITY = 256  # free positions in the cache of a new recording, at least
MAX_RECORDINGS = 4  # kept at a time; the least recently used is dropped


class RefuseSynchronisation(TorchDispatchMode):
    """Raises SegueError on operations that synchronise with the GPU (reading a tensor's values, copies between
    devices), which a graph capture does not allow. They must be found beforehand: an error during capture leaves
    torch's memory and random generators in disorder (dropout, for one, failed afterwards)."""

    LOOKS = frozenset(("item", "_local_scalar_dense", "is_nonzero", "nonzero", "nonzero_numpy", "argwhere", "equal",
                       "allclose", "masked_select", "cpu", "lift_fresh"))
    PLAIN = frozenset(("linalg_norm", "linalg_vector_norm", "linalg_matrix_norm", "linalg_matrix_power"))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        if self.synchronises(name, args, kwargs):
            raise SegueError(f"a step with the operation {name} cannot be recorded")
        return func(*args, **kwargs)

    def synchronises(self, name: str, args: Any, kwargs: Any) -> bool:
        if name in self.LOOKS or "unique" in name:
            return True
        if "linalg_" in name:  # most read back whether a matrix was singular
            return name not in self.PLAIN
        if name in ("index", "index_put", "index_put_"):
            return any(argument is not None and argument.dtype in (torch.bool, torch.uint8) for argument in args[1])
        if name == "repeat_interleave":  # a tensor of repeats must be read to size the result
            return isinstance(kwargs.get("repeats", args[min(1, len(args) - 1)]), Tensor)
        if name in ("copy_", "to", "_to_copy"):
            devices = [argument.device if isinstance(argument, Tensor) else argument
                       for argument in (*args, *kwargs.values()) if isinstance(argument, Tensor | torch.device)]
            return any(device.type != devices[0].type for device in devices)
        return False


class LentState(State):
    """A state whose contents may lie in a recording's buffers; any access copies them back first."""

    recording: Recording | None = None

    @property
    def layers(self) -> list[dict[str, Part]]:
        self.reclaim()
        return self._layers

    @layers.setter
    def layers(self, layers: list[dict[str, Part]]) -> None:
        self._layers = layers

    @property
    def positions(self) -> Tensor:
        self.reclaim()
        return self._positions

    @positions.setter
    def positions(self, positions: Tensor) -> None:
        self._positions = positions

    def restore(self, snapshot: State) -> None:
        self.reclaim()  # or the buffers would be copied over what is restored
        super().restore(snapshot)

    def reclaim(self) -> None:
        recording, self.recording = self.recording, None
        if recording is not None:
            recording.unload(self)


class Recording:
    """The recorded step of one token per row, with buffers for a cache of `capacity` tokens.

    state: an example of the states, for the sizes. graph: capture a CUDA graph; else the step runs operation by
        operation.
    """

    def __init__(self, stack: Stack, state: State, capacity: int, graph: bool) -> None:
        self.stack, self.capacity = stack, capacity
        self.tenant: weakref.ref[LentState] | None = None
        self.steps = 0  # since the tenant's state was loaded
        self.max_steps = math.inf  # steps until the buffers are full
        layers = [{name: self._buffer(part) for name, part in layer.items()} for layer in state.layers]
        self.state = State(layers, state.positions.clone())
        self.tokens = torch.zeros(state.batch, 1, dtype=torch.long, device=state.positions.device)
        self.play: Callable[[], Tensor] = self._record() if graph else self._step

    def _buffer(self, part: Part) -> Part:
        if isinstance(part, Cache):
            return FixedCache(part, self.capacity)
        assert isinstance(part, Carry)
        return Carry(part.recurrence, tuple(tensor.clone() for tensor in part.state))

    def _parts(self, state: State) -> list[Part]:
        return [part for layer in state.layers for part in layer.values()]

    def _step(self) -> Tensor:
        """Run the step on the buffers and write the new state into them; returns the scores (B, V)."""
        carries = [part for part in self._parts(self.state) if isinstance(part, Carry)]
        before, positions = [carry.state for carry in carries], self.state.positions
        logits = self.stack.extend(self.tokens, self.state).logits[:, 0]
        self.state.commit()
        for carry, state in zip(carries, before):
            for old, new in zip(state, carry.state):
                old.copy_(new)
            carry.state = state
        positions.copy_(self.state.positions)
        self.state.positions = positions
        return logits if logits.dtype == torch.float64 else logits.float()

    def _record(self) -> Callable[[], Tensor]:
        side_stream = torch.cuda.Stream()
        side_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side_stream):  # lazy initialisation must not be captured
            self._step()
            with without_value_checks(), RefuseSynchronisation():
                self._step()
        torch.cuda.current_stream().wait_stream(side_stream)
        graph = torch.cuda.CUDAGraph()
        with without_value_checks(), torch.cuda.graph(graph, capture_error_mode="thread_local"):
            logits = self._step()

        def play() -> Tensor:
            graph.replay()
            return logits

        return play

    def evict(self) -> None:
        """Copy the buffers back to the state that uses them, if it still exists."""
        tenant = None if self.tenant is None else self.tenant()
        if tenant is not None:
            tenant.reclaim()

    def load(self, state: LentState, max_steps: float) -> None:
        """Copy a state into the buffers, to run at most `most` steps on it."""
        self.evict()
        for buffer_part, part in zip(self._parts(self.state), self._parts(state)):
            if isinstance(buffer_part, FixedCache):
                assert isinstance(part, Cache)
                buffer_part.copy_from(part)
            else:
                assert isinstance(buffer_part, Carry) and isinstance(part, Carry)
                for buffer, tensor in zip(buffer_part.state, part.state):
                    buffer.copy_(tensor)
        self.state.positions.copy_(state.positions)
        self.steps, self.max_steps = 0, max_steps
        self.tenant, state.recording = weakref.ref(state), self

    def unload(self, state: LentState) -> None:
        """Copy the buffers back to the state."""
        self.tenant = None
        for buffer_part, part in zip(self._parts(self.state), self._parts(state)):
            if isinstance(buffer_part, FixedCache):
                assert isinstance(part, Cache)
                buffer_part.copy_to(part, self.steps)
            else:
                assert isinstance(buffer_part, Carry) and isinstance(part, Carry)
                part.state = part.replay_state = tuple(buffer.clone() for buffer in buffer_part.state)
        state.positions = self.state.positions.clone()


def cached_tokens(state: State) -> int | None:
    """The number of tokens in the caches of a state; None if it has no cache."""
    return max((part.longest for layer in state.layers for part in layer.values() if isinstance(part, Cache)),
               default=None)


class Recorded:
    """A stack whose single-token steps are replayed from a recording. Satisfies `segue.models.base.Decodable`.

    Steps are recorded for stacks of attention and of mixers with a constant state, and for states without a history,
    whose prompts are read from left to right; anything else runs operation by operation, as `Stack.extend` does.
    Without a GPU the same step runs on the same buffers, uncaptured (for tests).
    """

    def __init__(self, stack: Stack) -> None:
        self.stack, self.graph = stack, torch.cuda.is_available() and stack.embedding.weight.is_cuda
        self.vocabulary, self.layout_form, self.needs_whole_prompt = stack.vocabulary, stack, needs_whole_prompt(stack)
        self.recordings: dict[tuple[int, int], Recording] = {}
        self.failure: str | None = None  # why nothing is recorded
        self.longest = stack.max_positions

    @property
    def path(self) -> str:
        suffix = "" if not self.graph else ", steps as a CUDA graph" if self.failure is None else f" ({self.failure})"
        return self.stack.path + suffix

    def init_state(self, batch: int, history: int = 0) -> LentState:
        state = self.stack.init_state(batch, history)
        return LentState(state.layers, state.positions, state.prompt, state.spans)

    def extend(self, tokens: Tensor, state: Decoding, parents: Tensor | None = None,
               at: Tensor | None = None) -> Output:
        """See `segue.models.base.Decodable.extend`."""
        return self.stack.extend(tokens, state, parents, at)

    @torch.inference_mode()
    def step(self, tokens: np.ndarray, state: LentState) -> np.ndarray:
        """Extend each row by one token (B,) int64 and commit it; returns the scores (B, V) of the next."""
        recording = self._recording(state)
        if recording is None:
            ids = torch.from_numpy(tokens).to(state.positions.device)
            logits = self.stack.extend(ids[:, None], state).logits[:, 0]
            state.commit()
            return (logits if logits.dtype == torch.float64 else logits.float()).cpu().numpy()
        check_rows(len(tokens), recording.state)
        recording.tokens.copy_(torch.from_numpy(tokens)[:, None])
        recording.steps += 1
        return recording.play().cpu().numpy()

    def _recording(self, state: LentState) -> Recording | None:
        """The recording for the next step of this state, or None if it cannot be recorded."""
        recording = state.recording
        if recording is not None and recording.steps < recording.max_steps:
            return recording
        if self.failure is not None or not self._fits(state):
            return None
        cached, max_steps = cached_tokens(state), math.inf
        capacity = 0 if cached is None else 1 << (cached + EXTRA_CAPACITY - 1).bit_length()
        if cached is not None:
            max_steps = capacity - cached
        if self.longest is not None:
            max_steps = min(max_steps, self.longest - int(state.positions.max()))
        if max_steps < 1:
            return None
        key = (state.batch, capacity)
        recording = self.recordings.pop(key, None)
        if recording is None:
            while len(self.recordings) >= MAX_RECORDINGS:
                self.recordings.pop(next(iter(self.recordings))).evict()
            try:
                recording = Recording(self.stack, state, capacity, self.graph)
            except (SegueError, RuntimeError) as error:  # steps then run as before, and `path` says why
                self.failure = f"not recorded: {str(error).splitlines()[0]}"
                return None
        self.recordings[key] = recording
        recording.load(state, max_steps)
        return recording

    def _fits(self, state: LentState) -> bool:
        def fits(mixer: Any, part: Part) -> bool:
            return (type(part) is Carry and not part.history) or (isinstance(mixer, Attention) and type(part) is Cache)

        return state.batch > 0 and state.prompt is None and state.spans is None and all(
            fits(block.mixer, part) for block, layer in zip(self.stack.blocks, state.layers) for part in layer.values())
