"""A stack on a GPU whose step of one token is recorded once, as a CUDA graph, and played for every token after that.

A step of a small model is hundreds of operations, each of which takes longer to start than to run; a graph starts them
all at once. What it reads and writes lies in buffers of its own: a state lends them what it remembers when its first
step comes, and has it back as soon as anything else is asked of it.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from segue.errors import SegueError
from segue.mixers.attention import Attention
from segue.mixers.cache import Cache, FixedCache
from segue.mixers.state import Carry, Part, State, check_rows, without_value_checks
from segue.models.base import Decoding, Output, reads_whole
from segue.models.stack import Stack

ROOM = 256  # tokens more than a state has, at least, that its recording has a place for
KEPT = 4  # recordings; the oldest makes room for the next


class Unread(TorchDispatchMode):
    """Within, it is an error to look at the numbers of a tensor or to bring them from device to device: a GPU would be
    waited for, which a recording cannot. This must be known before: what fails while it is recorded leaves torch's
    memory and random numbers in disorder (seen: dropout could not draw any more)."""

    LOOKS = frozenset(("item", "_local_scalar_dense", "is_nonzero", "nonzero", "nonzero_numpy", "argwhere", "equal",
                       "allclose", "masked_select", "cpu", "lift_fresh"))
    PLAIN = frozenset(("linalg_norm", "linalg_vector_norm", "linalg_matrix_norm", "linalg_matrix_power"))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        if self.looks(name, args, kwargs):
            raise SegueError(f"a step with the operation {name} cannot be recorded")
        return func(*args, **kwargs)

    def looks(self, name: str, args: Any, kwargs: Any) -> bool:
        if name in self.LOOKS or "unique" in name:
            return True
        if "linalg_" in name:  # a matrix that cannot be inverted is told of
            return name not in self.PLAIN
        if name in ("index", "index_put", "index_put_"):
            return any(each is not None and each.dtype in (torch.bool, torch.uint8) for each in args[1])
        if name == "repeat_interleave":  # so many times each as numbers say
            return isinstance(kwargs.get("repeats", args[min(1, len(args) - 1)]), Tensor)
        if name in ("copy_", "to", "_to_copy"):
            devices = [each.device if isinstance(each, Tensor) else each for each in (*args, *kwargs.values())
                       if isinstance(each, Tensor | torch.device)]
            return any(device.type != devices[0].type for device in devices)
        return False


class LentState(State):
    """A state whose memory a recording may have: whoever looks at it gets it back first."""

    recording: Recording | None = None

    @property
    def layers(self) -> list[dict[str, Part]]:
        self.take_back()
        return self._layers

    @layers.setter
    def layers(self, layers: list[dict[str, Part]]) -> None:
        self._layers = layers

    @property
    def positions(self) -> Tensor:
        self.take_back()
        return self._positions

    @positions.setter
    def positions(self, positions: Tensor) -> None:
        self._positions = positions

    def take_back(self) -> None:
        recording, self.recording = self.recording, None
        if recording is not None:
            recording.give(self)


class Recording:
    """One step of a token for so many rows, with a memory of `capacity` tokens, in buffers.

    state: of the rows, for the sizes. graph: whether a CUDA graph is recorded; else a step runs as it would anyway.
    """

    def __init__(self, stack: Stack, state: State, capacity: int, graph: bool) -> None:
        self.stack, self.capacity = stack, capacity
        self.tenant: weakref.ref[LentState] | None = None
        self.played = 0  # steps since the tenant came
        self.most = math.inf  # steps that it may stay
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
        """The step over the buffers: scores (B, V). What it replaced is written where it lay."""
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
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # what is prepared at a first run must not be part of the recording
            self._step()
            with without_value_checks(), Unread():
                self._step()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with without_value_checks(), torch.cuda.graph(graph, capture_error_mode="thread_local"):
            logits = self._step()

        def play() -> Tensor:
            graph.replay()
            return logits

        return play

    def evict(self) -> None:
        """Give the tenant, if there still is one, what it remembers."""
        tenant = None if self.tenant is None else self.tenant()
        if tenant is not None:
            tenant.take_back()

    def take(self, state: LentState, most: float) -> None:
        """Continue this state from now on, for so many steps at most."""
        self.evict()
        for here, part in zip(self._parts(self.state), self._parts(state)):
            if isinstance(here, FixedCache):
                assert isinstance(part, Cache)
                here.copy_from(part)
            else:
                assert isinstance(here, Carry) and isinstance(part, Carry)
                for buffer, tensor in zip(here.state, part.state):
                    buffer.copy_(tensor)
        self.state.positions.copy_(state.positions)
        self.played, self.most = 0, most
        self.tenant, state.recording = weakref.ref(state), self

    def give(self, state: LentState) -> None:
        """The tenant leaves with all it remembers."""
        self.tenant = None
        for here, part in zip(self._parts(self.state), self._parts(state)):
            if isinstance(here, FixedCache):
                assert isinstance(part, Cache)
                here.copy_to(part, self.played)
            else:
                assert isinstance(here, Carry) and isinstance(part, Carry)
                part.state = part.replay_state = tuple(buffer.clone() for buffer in here.state)
        state.positions = self.state.positions.clone()


def held(state: State) -> int | None:
    """How many tokens the caches of a state hold; None where it has no cache."""
    return max((part.longest for layer in state.layers for part in layer.values() if isinstance(part, Cache)),
               default=None)


class Recorded:
    """A stack whose plain decoding plays a recording. Satisfies `segue.models.base.Decodable`.

    Recorded are stacks of attention and of mixers with a constant state, in states that cannot go back and whose
    prompts are read from left to right; anything else runs operation by operation, as `Stack.extend` does. Where there
    is no GPU, the same step runs over the same buffers (tests do that).
    """

    def __init__(self, stack: Stack) -> None:
        self.stack, self.graph = stack, torch.cuda.is_available() and stack.embedding.weight.is_cuda
        self.vocabulary, self.explicit, self.needs_whole_prompt = stack.vocabulary, stack, reads_whole(stack)
        self.recordings: dict[tuple[int, int], Recording] = {}
        self.trouble: str | None = None  # why nothing is recorded
        tables = [stack.position_embedding, *(getattr(block.mixer, "places", None) for block in stack.blocks)]
        self.longest = min((table.num_embeddings for table in tables if isinstance(table, nn.Embedding)), default=None)

    @property
    def path(self) -> str:
        told = "" if not self.graph else ", steps as a CUDA graph" if self.trouble is None else f" ({self.trouble})"
        return self.stack.path + told

    def init_state(self, batch: int, history: int = 0) -> LentState:
        state = self.stack.init_state(batch, history)
        return LentState(state.layers, state.positions, state.prompt, state.spans)

    def extend(self, tokens: Tensor, state: Decoding, parents: Tensor | None = None,
               at: Tensor | None = None) -> Output:
        """See `segue.models.base.Decodable.extend`."""
        return self.stack.extend(tokens, state, parents, at)

    @torch.inference_mode()
    def step(self, tokens: np.ndarray, state: LentState) -> np.ndarray:
        """One token (B,) int64 per row, made real at once: `extend` and `commit` in one. Returns the scores (B, V) of
        what follows."""
        recording = self._recording(state)
        if recording is None:
            ids = torch.from_numpy(tokens).to(state.positions.device)
            logits = self.stack.extend(ids[:, None], state).logits[:, 0]
            state.commit()
            return (logits if logits.dtype == torch.float64 else logits.float()).cpu().numpy()
        check_rows(len(tokens), recording.state)
        recording.tokens.copy_(torch.from_numpy(tokens)[:, None])
        recording.played += 1
        return recording.play().cpu().numpy()

    def _recording(self, state: LentState) -> Recording | None:
        """Where the next step of this state is played, None where it is not."""
        recording = state.recording
        if recording is not None and recording.played < recording.most:
            return recording
        if self.trouble is not None or not self._fits(state):
            return None
        used, most = held(state), math.inf
        capacity = 0 if used is None else 1 << (used + ROOM - 1).bit_length()
        if used is not None:
            most = capacity - used
        if self.longest is not None:
            most = min(most, self.longest - int(state.positions.max()))
        if most < 1:
            return None
        key = (state.batch, capacity)
        recording = self.recordings.pop(key, None)
        if recording is None:
            while len(self.recordings) >= KEPT:
                self.recordings.pop(next(iter(self.recordings))).evict()
            try:
                recording = Recording(self.stack, state, capacity, self.graph)
            except (SegueError, RuntimeError) as error:  # the step then runs as it did, and `path` says why
                self.trouble = f"not recorded: {str(error).splitlines()[0]}"
                return None
        self.recordings[key] = recording
        recording.take(state, most)
        return recording

    def _fits(self, state: LentState) -> bool:
        def fits(mixer: Any, part: Part) -> bool:
            return (type(part) is Carry and not part.history) or (isinstance(mixer, Attention) and type(part) is Cache)

        return state.batch > 0 and state.prompt is None and state.spans is None and all(
            fits(block.mixer, part) for block, layer in zip(self.stack.blocks, state.layers) for part in layer.values())
