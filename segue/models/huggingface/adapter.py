"""Any causal language model of transformers, with the same `extend`, `commit`, `select` and `rewind` as native models.

How a model can be run is tested when it is loaded, not looked up by its name: ragged rows and draft trees are run in
each of the ways below and compared with the model's plain forward, and the first way that agrees is used.

1. EDITED: keys and values are kept in our own cache; trees and ragged rows run in one pass, with explicit positions and
   a 4D mask. This works for most attention models.
2. COPIED: the model's own cache, of whatever kind (a recurrent state, a sliding window), is never edited, only copied
   and extended. Rows of one length run together; others, and each path of a tree, in separate passes: slower, exact.
3. STEPPED: the same, for caches that take only one token at a time.
4. REREAD: no cache; every pass starts from the first token.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor
from transformers.cache_utils import Cache as TheirCache
from transformers.cache_utils import CacheLayerMixin, DynamicCache, DynamicLayer

from segue.errors import SegueError
from segue.mixers.cache import Cache
from segue.mixers.layout import Layout, check_rows, gather_nodes
from segue.mixers.rules import causal
from segue.mixers.state import State
from segue.models.base import Decoding, Output
from segue.models.huggingface.files import Weights, read_config

EDITED, COPIED, STEPPED, REREAD = "edited", "copied", "stepped", "reread"
WAYS = {EDITED: "one pass over an edited cache", COPIED: "path by path over copied caches",
        STEPPED: "token by token over copied caches", REREAD: "path by path without a cache"}
CACHES = ("cache", "past_key_values", "cache_params", "state")  # models' argument for their cache, new names first
TOLERANCE = 1e-4  # allowed difference between ways, relative to the largest logit: float32 rounding of deep models


class HuggingFaceModel:
    """A causal language model from a local Hugging Face folder. Satisfies `segue.models.base.Decodable`.

    folder: with config.json and safetensors. Its architecture must be one that transformers itself ships: code in the
        folder is never run, and nothing is downloaded. dtype, device: of the weights.
    way: how it is run (see WAYS), found by tests while loading.
    """

    auto: ClassVar[Any] = transformers.AutoModelForCausalLM
    what: ClassVar[str] = "a causal language model"
    ways: ClassVar[list[tuple[str, bool]]] = [(EDITED, True), (COPIED, True), (COPIED, False), (STEPPED, True),
                                              (STEPPED, False), (REREAD, True)]  # (way, batch equal rows)
    tokens: ClassVar[str] = "input_ids"  # the model's argument for the tokens to extend

    def __init__(self, folder: str | Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        values = read_config(folder)
        Weights(folder)  # a clear error where files are missing or broken
        self.model = _load(Path(folder), values, self.auto, self.what)
        self.model.requires_grad_(False)
        self.name = type(self.model).__name__
        self.head = self.model.get_output_embeddings()
        self.size = self.model.get_input_embeddings().weight.shape[0]  # ids that it accepts
        parameters = inspect.signature(self.model.forward).parameters
        self.slot = next((name for name in CACHES if name in parameters), None)
        self.takes_positions = "position_ids" in parameters
        self.layers: list[tuple[int, int, int]] = []  # heads, key and value features of each layer's cache
        self.hooked, self.together, self.way = True, True, REREAD
        self.output_size = 0  # ids that the model has logits for
        self._prepare()
        self.way = self._measure()
        self.model.to(device=device, dtype=dtype)
        self.dtype, self.device = dtype, torch.device(device)

    def to(self, device: torch.device) -> HuggingFaceModel:
        """Move the weights to a device, and return self."""
        self.model.to(device)
        self.device = device
        return self

    def _prepare(self) -> None:
        """Hook for subclasses: set what is needed before the model can be run."""

    @property
    def vocabulary(self) -> int:
        return self.output_size

    @property
    def path(self) -> str:
        return f"transformers {self.name} {str(self.dtype).removeprefix('torch.')} on {self.device.type}, " \
            f"{WAYS[self.way]}"

    @property
    def layout_form(self) -> HuggingFaceModel:
        """See `segue.models.base.layout_form`."""
        return self

    @property
    def max_positions(self) -> int | None:
        """See `segue.models.base.max_positions`."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    def init_state(self, batch: int, history: int = 0) -> State:
        device = self._weight.device
        if self.way == EDITED:
            like = torch.zeros(0, dtype=self._weight.dtype, device=device)
            layers: list[Any] = [{"cache": Cache(like.new_zeros(batch, heads, 0, keys),
                                                 like.new_zeros(batch, heads, 0, values))}
                                 for heads, keys, values in self.layers]
        else:
            layers = [{"memory": Memory([Row(history) for _ in range(batch)])}]
        return State(layers, torch.zeros(batch, dtype=torch.long, device=device))

    @torch.no_grad()
    def extend(self, tokens: Tensor, state: Decoding, parents: Tensor | None = None, at: Tensor | None = None,
               layout: Layout | None = None) -> Output:
        """See `Decodable.extend`. layout: replaces `parents`, with the nodes' positions and what they attend to."""
        assert isinstance(state, State)
        check_rows(tokens.shape[0], state)
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.size:
            raise SegueError(f"a token outside the model's vocabulary of {self.size}: was it encoded with another "
                             "codec?")
        if layout is None:
            layout = state.layout(tokens.shape[1], parents)
        elif self.way != EDITED:
            raise SegueError(f"{self.name} runs {WAYS[self.way]}, with positions of its own: sets in a prompt need a "
                             f"model that runs in {WAYS[EDITED]}")
        try:
            if self.way == EDITED:
                output, layout = self._extend_edited(tokens, state, layout, at)
            else:
                output = self._extend_copied(tokens, state, layout, at)
        except IndexError as error:  # how a table of learned positions ends
            reach = self.max_positions
            if layout.positions.numel() and reach is not None and int(layout.positions.max()) >= reach:
                raise SegueError(f"position {int(layout.positions.max())} is beyond the {reach} positions of this "
                                 "model: give a shorter prompt or ask for fewer tokens") from error
            raise
        state.pending = layout
        return output

    @property
    def _weight(self) -> Tensor:
        return self.model.get_input_embeddings().weight

    def _run(self, tokens: Tensor, at: Tensor | None = None, **kwargs: Any) -> tuple[Tensor, Tensor, Any]:
        """Run the model on tokens (B, N): logits (B, N or M, V), hidden states (B, N, D) and the model's own output.

        Hidden states are the head's input, captured by a hook, which also restricts the head to the nodes `at` (B, M).
        """
        captured: list[Tensor] = []

        def capture(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            captured.append(args[0])
            return None if at is None else (gather_nodes(args[0], at), *args[1:])

        handle = self.head.register_forward_pre_hook(capture) if self.hooked else None
        try:
            output = self.model(**{self.tokens: tokens}, return_dict=True, output_hidden_states=not self.hooked,
                                **kwargs)
        finally:
            if handle is not None:
                handle.remove()
        if self.hooked:
            return output.logits, captured[-1], output
        return output.logits if at is None else gather_nodes(output.logits, at), output.hidden_states[-1], output

    def _empty_output(self, batch: int, num_nodes: int, at: Tensor | None) -> Output:
        """Return the output of an empty call."""
        weight = self._weight
        return Output(weight.new_zeros(batch, num_nodes if at is None else at.shape[1], self.output_size),
                      weight.new_zeros(batch, num_nodes, self.width))

    def _extend_edited(self, tokens: Tensor, state: State, layout: Layout, at: Tensor | None) -> tuple[Output, Layout]:
        """`extend` in the way EDITED; return the output and the layout of the pending nodes."""
        if not tokens.numel():
            return self._extend_empty(tokens, state, layout, at), layout
        layers: list[Any] = state.layers
        cache = TheirCache(layers=[Layer(layer["cache"], layout) for layer in layers])
        mask, positions = self._mask(state, layout, len(tokens)), layout.positions.expand(tokens.shape)
        logits, hidden, _ = self._run(tokens, at, attention_mask=mask, position_ids=positions, use_cache=True,
                                      **{str(self.slot): cache})
        return Output(logits, hidden), layout

    def _extend_empty(self, tokens: Tensor, state: State, layout: Layout, at: Tensor | None) -> Output:
        """`_extend_edited` without tokens, which the model itself would not run."""
        for layer in state.layers:
            cache: Any = layer["cache"]
            cache.append(*(x.new_zeros(len(tokens), x.shape[1], tokens.shape[1], x.shape[3])
                        for x in (cache.k, cache.v)), layout)
        return self._empty_output(tokens.shape[0], tokens.shape[1], at)

    def _mask(self, state: State, layout: Layout, batch: int) -> Tensor | None:
        """Return a mask (B, 1, N, L + N) to add to the scores, or None if the nodes are a chain after rows of equal
        length."""
        cache: Any = state.layers[0]["cache"]
        valid = cache.valid(layout)
        if valid is None and layout.sees_whole_past:
            return None
        visible = causal(cache.pairs(layout))
        visible = (visible if valid is None else visible & valid).expand(batch, -1, -1)[:, None]
        dtype = self._weight.dtype
        mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
        return mask.masked_fill(~visible, torch.finfo(dtype).min)

    def _extend_copied(self, tokens: Tensor, state: State, layout: Layout, at: Tensor | None) -> Output:
        """`extend` in the ways COPIED, STEPPED and REREAD."""
        memory = state.layers[0]["memory"]
        assert isinstance(memory, Memory)
        memory.pending = [{} for _ in memory.rows]
        memory.tokens = tokens
        if not tokens.numel():
            return self._empty_output(tokens.shape[0], tokens.shape[1], at)
        logits = tokens.new_zeros(len(tokens), tokens.shape[1] if at is None else at.shape[1], self.output_size,
                                  dtype=self._weight.dtype)
        hidden = tokens.new_zeros(*tokens.shape, self.width, dtype=self._weight.dtype)
        if layout.parents is not None:
            for index, (row, parents) in enumerate(zip(memory.rows, layout.parents.tolist())):
                row_logits, hidden[index] = self._extend_tree(row, tokens[index], parents, memory.pending[index])
                logits[index] = row_logits if at is None else row_logits[at[index]]
            return Output(logits, hidden)
        groups: dict[Any, list[int]] = {}  # rows in the same cache at the same length run as one batch
        for index, row in enumerate(memory.rows):
            place = (id(row.cache), row.seen, len(row.tokens))
            groups.setdefault(place if self.together else index, []).append(index)
        for group in groups.values():
            group_logits, group_hidden, after = self._feed([memory.rows[index] for index in group], tokens[group],
                                                           None if at is None else at[group])
            logits[group] = group_logits.to(logits)  # some models return float32 whatever their dtype
            hidden[group] = group_hidden.to(hidden)
            for index, row in zip(group, after):
                memory.pending[index][tokens.shape[1] - 1] = row
        return Output(logits, hidden)

    def _extend_tree(self, row: Row, tokens: Tensor, parents: list[int],
                     after: dict[int, Row]) -> tuple[Tensor, Tensor]:
        """Return logits (N, V) and hidden (N, D) of one row's nodes. `after` receives the row after each leaf."""
        n = len(tokens)
        leaves = [node for node in range(n) if node not in parents]
        if len(leaves) > 1 and row.stale and self.way != REREAD:  # read the paths' shared prefix once
            read = self._feed([row], tokens[None, :0], None)[2][0]
            row.cache, row.place, row.seen, row.marks = read.cache, read.place, read.seen, read.marks
        logits = tokens.new_zeros(n, self.output_size, dtype=self._weight.dtype)
        hidden = tokens.new_zeros(n, self.width, dtype=self._weight.dtype)
        for leaf in leaves:
            path = [leaf]
            while (above := parents[path[-1]]) >= 0:
                path.append(above)
            path.reverse()
            path_logits, path_hidden, (after[leaf],) = self._feed([row], tokens[path][None], None)
            logits[path], hidden[path] = path_logits[0].to(logits), path_hidden[0].to(hidden)
        return logits, hidden

    def _feed(self, rows: list[Row], tokens: Tensor, at: Tensor | None) -> tuple[Tensor, Tensor, list[Row]]:
        """Run the tokens that the rows' cache has not seen yet, the same number in each row, then `tokens` (R, N).
        Return logits and hidden states of the latter, and the rows after them."""
        first = rows[0]
        unread = torch.tensor([row.tokens[row.seen :] for row in rows], dtype=torch.long, device=tokens.device)
        sequence, num_unread = torch.cat([unread, tokens], 1), unread.shape[1]
        length = sequence.shape[1]
        if at is None:
            wanted = torch.arange(num_unread, length, device=sequence.device).expand(len(rows), -1)
        else:
            wanted = at + num_unread
        if self.way == REREAD or self.slot is None:
            logits, hidden, _ = self._run(sequence, wanted, use_cache=False)
            return logits, hidden[:, num_unread:], [row.after(new, None, 0) for row, new in zip(rows, tokens)]
        cache = None if first.cache is None else first.cache.pick([row.place for row in rows])
        if self.way == COPIED or cache is None or length == 1:
            logits, hidden, cache = self._run_with_cache(sequence, wanted, cache)
        else:
            outputs = []
            for piece in sequence.split(1, 1):
                *step, cache = self._run_with_cache(piece, None, cache)
                outputs.append(step)
            logits, hidden = (torch.cat(x, 1) for x in zip(*outputs))
            logits = gather_nodes(logits, wanted)
        own_cache = OwnCache(cache, len(rows))
        return logits, hidden[:, num_unread:], [row.after(new, own_cache, place)
                                                for place, (row, new) in enumerate(zip(rows, tokens))]

    def _run_with_cache(self, tokens: Tensor, wanted: Tensor | None, cache: Any) -> tuple[Tensor, Tensor, Any]:
        """Run the model on tokens after its own cache (None: none yet); also return the new cache."""
        assert self.slot is not None
        kwargs = {} if cache is None else {self.slot: cache}
        logits, hidden, output = self._run(tokens, wanted, use_cache=True, **kwargs)
        cache = getattr(output, self.slot, None)
        if cache is None:
            raise LookupError("the model does not return its cache")
        return logits, hidden, cache

    # Testing in which way the model can be run.

    @torch.no_grad()
    def _measure(self) -> str:
        """Return the first way that agrees with the plain forward."""
        generator = torch.Generator().manual_seed(0)
        prompt = self._as_prompts(self._draw(1, 4, generator=generator))
        try:
            try:
                logits, hidden, _ = self._run(prompt, use_cache=False)
                self.hooked = hidden.shape[:2] == prompt.shape
            except (IndexError, AttributeError):  # the head is not called as a module
                self.hooked = False
            if not self.hooked:
                logits, hidden, _ = self._run(prompt, use_cache=False)
        except Exception as error:
            raise SegueError(f"transformers loads this {self.name} but cannot run it "
                             f"({type(error).__name__}: {error})") from error
        self.output_size, self.width = logits.shape[-1], hidden.shape[-1]
        references: dict[tuple[int, ...], Tensor] = {}
        for way, together in self.ways:
            self.way, self.together = way, together
            try:
                if (way != EDITED or self._editable(prompt)) and self._agrees(references):
                    return way
            except Exception:  # models raise anything when run in a way they do not support
                continue
        self.together = False  # row by row from the first token, which is the plain forward itself
        return REREAD

    def _draw(self, *shape: int, generator: torch.Generator) -> Tensor:
        """Return random tokens."""
        return torch.randint(self.size, shape, generator=generator)

    def _as_prompts(self, x: Tensor) -> Tensor:
        """Turn random tokens (B, N) into valid prompts of the model."""
        return x

    def _editable(self, prompt: Tensor) -> bool:
        """Whether the model's cache holds nothing but keys and values, one of each per token and layer."""
        if self.slot is None or not self.takes_positions:
            return False
        cache = getattr(self._run(prompt, use_cache=True)[2], self.slot, None)
        if not isinstance(cache, DynamicCache) or not cache.layers:
            return False
        self.layers = []
        for layer in cache.layers:
            if type(layer) is not DynamicLayer or layer.keys is None or layer.keys.dim() != 4 or \
                    layer.keys.shape[2] != prompt.shape[1]:
                return False
            self.layers.append((layer.keys.shape[1], layer.keys.shape[3], layer.values.shape[3]))
        return True

    def _agrees(self, references: dict[tuple[int, ...], Tensor]) -> bool:
        """Whether ragged rows, a tree, paths of different lengths and a chain after them agree with the plain forward;
        `references` caches the latter."""
        generator = torch.Generator().manual_seed(1)

        def draw(*shape: int) -> Tensor:
            return self._draw(*shape, generator=generator)

        def reference(tokens: Sequence[int]) -> Tensor:
            key = tuple(tokens)
            if key not in references:
                references[key] = self._run(torch.tensor([key]), use_cache=False)[0][0]
            return references[key]

        max_error, scale = 0.0, 1e-2

        def compare(logits: Tensor, tokens: list[int]) -> None:
            nonlocal max_error, scale
            expected = reference(tokens)
            scale = max(scale, float(expected.abs().max()))
            max_error = max(max_error, float((logits - expected[-len(logits) :]).abs().nan_to_num(nan=1e9).max()))

        state, x = self.init_state(2), self._as_prompts(draw(2, 5))
        y = self.extend(x, state).logits[..., : self.output_size]
        counts = [5, 2]
        state.commit(counts=torch.tensor(counts))
        rows = [x[row, :count].tolist() for row, count in enumerate(counts)]
        for row in range(2):
            compare(y[row, : counts[row]], rows[row])
        parents, paths = [-1, 0, 0, 1], ([0], [0, 1], [0, 2], [0, 1, 3])
        x = draw(2, 4)
        y = self.extend(x, state, torch.tensor([parents, parents])).logits[..., : self.output_size]
        for row in range(2):
            for path in paths[2:]:
                compare(y[row, path], rows[row] + x[row, path].tolist())
        state.commit(torch.tensor([[0, 2, -1], [0, 1, 3]]))
        rows = [rows[0] + x[0, [0, 2]].tolist(), rows[1] + x[1, [0, 1, 3]].tolist()]
        for step, n in enumerate((2, 1, 2, 1)):
            if step == 2:
                state, rows = state.select(torch.tensor([1, 1])), [rows[1]] * 2  # of one length, from the same cache
            x = draw(2, n)
            y = self.extend(x, state).logits[..., : self.output_size]
            state.commit()
            rows = [row + new for row, new in zip(rows, x.tolist())]
            for row in range(2):
                compare(y[row], rows[row])
        return max_error <= TOLERANCE * scale


class Layer(CacheLayerMixin):
    """One layer of our cache behind transformers' interface, for one call."""

    is_sliding = False

    def __init__(self, cache: Cache, layout: Layout) -> None:
        super().__init__()
        self.cache, self.layout, self.is_initialized = cache, layout, True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        pass

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return self.cache.append(key_states, value_states, self.layout)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cache.longest + query_length, 0

    def get_seq_length(self) -> int:
        return self.cache.longest

    def get_max_length(self) -> int:
        return -1


class OwnCache:
    """One of the model's own caches for a number of rows; it is copied, never modified."""

    def __init__(self, cache: Any, rows: int) -> None:
        self.cache, self.rows = cache, rows

    def pick(self, places: list[int]) -> Any:
        """Return a copy that holds these rows."""
        copied = copy.deepcopy(self.cache)
        if places == list(range(self.rows)):
            return copied
        if isinstance(copied, (list, tuple)):
            return type(copied)(tensor[places] for tensor in copied)
        copied.reorder_cache(torch.tensor(places))
        return copied


class Row:
    """One row of a model with its own cache: its tokens, and its index `place` in a cache of the first `seen` tokens.

    marks: older caches, (seen, cache, place) from old to new, for rewinding up to `history` tokens without rereading
    everything.
    """

    def __init__(self, history: int = 0) -> None:
        self.history = history
        self.tokens: list[int] = []
        self.cache: OwnCache | None = None
        self.place = self.seen = 0
        self.marks: list[tuple[int, OwnCache | None, int]] = []

    @property
    def stale(self) -> bool:
        """Whether there are tokens that the cache has not seen."""
        return self.seen < len(self.tokens)

    def copy(self) -> Row:
        copied = Row(self.history)
        copied.tokens, copied.marks = list(self.tokens), list(self.marks)
        copied.cache, copied.place, copied.seen = self.cache, self.place, self.seen
        return copied

    def after(self, tokens: Tensor, cache: OwnCache | None, place: int) -> Row:
        """Return the row extended by these tokens, all of which `cache` has seen (None: keep the old cache)."""
        new = self.copy()
        new.tokens += tokens.tolist()
        if cache is not None:
            new.cache, new.place, new.seen = cache, place, len(new.tokens)
            if self.history and self.cache is not None and \
                    (not self.marks or self.seen - self.marks[-1][0] >= self.history):
                new.marks.append((self.seen, self.cache, self.place))
                while len(new.marks) > 1 and new.marks[1][0] <= len(new.tokens) - self.history:
                    del new.marks[0]
        return new

    def back(self, n: int) -> Row:
        """Return the row without its last n tokens."""
        new = self.copy()
        if n:
            del new.tokens[-n:]
            while new.seen > len(new.tokens):
                new.seen, new.cache, new.place = new.marks.pop() if new.marks else (0, None, 0)
        return new


class Memory:
    """The rows of a model with its own cache, as one part of a `State`."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows
        self.tokens: Tensor | None = None
        self.pending: list[dict[int, Row]] = []  # per row, the row after some of the pending nodes

    def commit(self, path: Tensor | None, counts: Tensor | None) -> None:
        assert self.tokens is not None, "extend first"
        n = self.tokens.shape[1]
        for index, row in enumerate(self.rows):
            nodes = list(range(n if counts is None else int(counts[index]))) if path is None else \
                [node for node in path[index].tolist() if node >= 0]
            if nodes:
                ready = self.pending[index].get(nodes[-1])
                self.rows[index] = row.after(self.tokens[index, nodes], None, 0) if ready is None else ready
        self.tokens, self.pending = None, []

    def select(self, rows: Tensor) -> Memory:
        return Memory([self.rows[row].copy() for row in rows.tolist()])

    def join(self, others: Sequence[Memory]) -> Memory:
        return Memory([row.copy() for part in (self, *others) for row in part.rows])

    def max_rewind(self) -> Tensor:
        return torch.tensor([len(row.tokens) for row in self.rows], dtype=torch.long)

    def rewind(self, n: Tensor) -> None:
        self.rows = [row.back(count) for row, count in zip(self.rows, n.tolist())]
        self.tokens, self.pending = None, []

    def copy(self) -> Memory:
        return Memory([row.copy() for row in self.rows])

    def detach(self) -> None:
        pass

    def tensors(self) -> dict[str, Tensor]:
        return {"lengths": self.max_rewind()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        raise SegueError("the memory of this Hugging Face model is its own: it cannot be loaded from tensors")


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' progress bars and warnings within this context."""
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


def _load(folder: Path, values: dict[str, Any], auto: Any, what: str) -> Any:
    """Load a folder's model by a transformers auto class, without running its code; a SegueError if that fails."""
    if values.get("auto_map"):
        kind = values["model_type"]
        if kind not in transformers.models.auto.configuration_auto.CONFIG_MAPPING_NAMES:
            raise SegueError(f"{folder} brings its own code for '{kind}', which is never run: give a model of an "
                             "architecture that transformers has itself")
    try:
        with quiet():
            model, info = auto.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False, use_safetensors=True,
                output_loading_info=True)
    except Exception as error:  # transformers raises anything
        message = " ".join(str(error).split())
        raise SegueError(f"transformers cannot load {folder} as {what} "
                         f"({type(error).__name__}: {message[:200]})") from error
    for problem in ("missing_keys", "mismatched_keys"):
        if keys := list(info.get(problem) or []):
            raise SegueError(f"the weights in {folder} do not fit its config.json: {len(keys)} {problem.split('_')[0]} "
                             f"('{keys[0]}')")
    return model.eval()
