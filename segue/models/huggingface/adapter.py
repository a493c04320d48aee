"""Any causal language model of transformers, behind the same `extend`, `commit`, `select` and `rewind` as our own.

What a model can do is measured when it is loaded, not looked up by its name: the same ragged rows and draft trees are
run in each of the ways below and compared with the model's plain forward, and the first way that agrees is taken.

1. EDITED: keys and values lie in our own cache; trees and ragged rows run in one pass, by explicit positions and a
   mask of four axes. This is most attention models.
2. COPIED: the model's own cache, of whatever kind (a recurrent state, a sliding window), is never edited, only copied
   and fed. Rows of one length run together; others, and each path of a tree, in passes of their own: slower, and exact.
3. STEPPED: the same, where a cache takes only one token at a time.
4. REREAD: no cache; every pass begins at the first token.
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
CACHES = ("cache", "past_key_values", "cache_params", "state")  # what models call what they remember, new names first
CLOSE = 1e-4  # how far ways may differ, relative to the largest logit: float32 rounding of deep models


class HuggingFaceModel:
    """A causal language model of a local Hugging Face folder. Satisfies `segue.models.base.Decodable`.

    folder: holds config.json and safetensors. Its architecture must be one that transformers itself ships: code in
        the folder is never run, and nothing is fetched. dtype: of the weights. device: where they go.
    way: how it is run (see WAYS), measured while loading.
    """

    auto: ClassVar[Any] = transformers.AutoModelForCausalLM
    what: ClassVar[str] = "a causal language model"
    ways: ClassVar[list[tuple[str, bool]]] = [(EDITED, True), (COPIED, True), (COPIED, False), (STEPPED, True),
                                              (STEPPED, False), (REREAD, True)]  # and whether like rows run together
    tokens: ClassVar[str] = "input_ids"  # what the model calls the tokens that it goes on from

    def __init__(self, folder: str | Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        values = read_config(folder)
        Weights(folder)  # says clearly what is wrong with the files
        self.model = _load(Path(folder), values, self.auto, self.what)
        self.model.requires_grad_(False)
        self.name = type(self.model).__name__
        self.head = self.model.get_output_embeddings()
        self.size = self.model.get_input_embeddings().weight.shape[0]  # ids that it reads
        parameters = inspect.signature(self.model.forward).parameters
        self.slot = next((name for name in CACHES if name in parameters), None)
        self.placed = "position_ids" in parameters
        self.layers: list[tuple[int, int, int]] = []  # heads, key and value features of each layer's cache
        self.hooked, self.together, self.way = True, True, REREAD
        self.said = 0  # ids that the model has logits for
        self._prepare()
        self.way = self._measure()
        self.model.to(device=device, dtype=dtype)
        self.dtype, self.device = dtype, torch.device(device)

    def to(self, device: torch.device) -> HuggingFaceModel:
        """Move the weights there."""
        self.model.to(device)
        self.device = device
        return self

    def _prepare(self) -> None:
        """Whatever else must be known before the model can be run."""

    @property
    def vocabulary(self) -> int:
        return self.said

    @property
    def path(self) -> str:
        return f"transformers {self.name} {str(self.dtype).removeprefix('torch.')} on {self.device.type}, " \
            f"{WAYS[self.way]}"

    @property
    def layout_form(self) -> HuggingFaceModel:
        """See `segue.models.base.layout_form`."""
        return self

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
        """See `Decodable.extend`. layout: in place of parents, where the nodes stand and what they see."""
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
            reach = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
            if layout.positions.numel() and reach is not None and int(layout.positions.max()) >= reach:
                raise SegueError(f"position {int(layout.positions.max())} is beyond the {reach} positions of this "
                                 "model: give a shorter prompt or ask for fewer tokens") from error
            raise
        state.pending = layout
        return output

    @property
    def _weight(self) -> Tensor:
        return self.model.get_input_embeddings().weight

    def _run(self, tokens: Tensor, at: Tensor | None = None, **given: Any) -> tuple[Tensor, Tensor, Any]:
        """Logits (B, N or M, V), hidden states (B, N, D) and whatever else the model says about tokens (B, N).

        The head's input is the hidden states, and the head runs only where logits are wanted.
        """
        seen: list[Tensor] = []

        def look(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            seen.append(args[0])
            return None if at is None else (gather_nodes(args[0], at), *args[1:])

        handle = self.head.register_forward_pre_hook(look) if self.hooked else None
        try:
            out = self.model(**{self.tokens: tokens}, return_dict=True, output_hidden_states=not self.hooked, **given)
        finally:
            if handle is not None:
                handle.remove()
        if self.hooked:
            return out.logits, seen[-1], out
        return out.logits if at is None else gather_nodes(out.logits, at), out.hidden_states[-1], out

    def _nothing(self, batch: int, n: int, at: Tensor | None) -> Output:
        weight = self._weight
        return Output(weight.new_zeros(batch, n if at is None else at.shape[1], self.said),
                      weight.new_zeros(batch, n, self.width))

    def _extend_edited(self, tokens: Tensor, state: State, layout: Layout, at: Tensor | None) -> tuple[Output, Layout]:
        """What is given, and the layout of the nodes that are pending."""
        if not tokens.numel():
            return self._nothing_edited(tokens, state, layout, at), layout
        layers: list[Any] = state.layers
        cache = TheirCache(layers=[Layer(layer["cache"], layout) for layer in layers])
        mask, positions = self._mask(state, layout, len(tokens)), layout.positions.expand(tokens.shape)
        logits, hidden, _ = self._run(tokens, at, attention_mask=mask, position_ids=positions, use_cache=True,
                                      **{str(self.slot): cache})
        return Output(logits, hidden), layout

    def _nothing_edited(self, tokens: Tensor, state: State, layout: Layout, at: Tensor | None) -> Output:
        for layer in state.layers:
            cache: Any = layer["cache"]
            cache.append(*(x.new_zeros(len(tokens), x.shape[1], tokens.shape[1], x.shape[3])
                        for x in (cache.k, cache.v)), layout)
        return self._nothing(tokens.shape[0], tokens.shape[1], at)

    def _mask(self, state: State, layout: Layout, batch: int) -> Tensor | None:
        """(B, 1, N, L + N) to be added to the scores, or None where the nodes are a chain behind rows of one length."""
        first: Any = state.layers[0]["cache"]
        valid = first.valid(layout)
        if valid is None and layout.sees_whole_past:
            return None
        seen = causal(first.pairs(layout))
        seen = (seen if valid is None else seen & valid).expand(batch, -1, -1)[:, None]
        dtype = self._weight.dtype
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)

    def _extend_copied(self, tokens: Tensor, state: State, layout: Layout, at: Tensor | None) -> Output:
        memory = state.layers[0]["memory"]
        assert isinstance(memory, Memory)
        memory.pending = [{} for _ in memory.rows]
        memory.tokens = tokens
        if not tokens.numel():
            return self._nothing(tokens.shape[0], tokens.shape[1], at)
        logits = tokens.new_zeros(len(tokens), tokens.shape[1] if at is None else at.shape[1], self.said,
                                  dtype=self._weight.dtype)
        hidden = tokens.new_zeros(*tokens.shape, self.width, dtype=self._weight.dtype)
        if layout.parents is not None:
            for index, (row, parents) in enumerate(zip(memory.rows, layout.parents.tolist())):
                found, hidden[index] = self._extend_tree(row, tokens[index], parents, memory.pending[index])
                logits[index] = found if at is None else found[at[index]]
            return Output(logits, hidden)
        groups: dict[Any, list[int]] = {}  # rows that stand alike run together
        for index, row in enumerate(memory.rows):
            alike = (id(row.cache), row.seen, len(row.tokens))
            groups.setdefault(alike if self.together else index, []).append(index)
        for group in groups.values():
            found, seen, after = self._feed([memory.rows[index] for index in group], tokens[group],
                                            None if at is None else at[group])
            logits[group], hidden[group] = found.to(logits), seen.to(hidden)  # some give float32 whatever they are
            for index, row in zip(group, after):
                memory.pending[index][tokens.shape[1] - 1] = row
        return Output(logits, hidden)

    def _extend_tree(self, row: Row, tokens: Tensor, parents: list[int],
                     after: dict[int, Row]) -> tuple[Tensor, Tensor]:
        """Logits (N, V) and hidden (N, D) of one row's nodes. `after` takes the row as it is behind each leaf."""
        n = len(tokens)
        leaves = [node for node in range(n) if node not in parents]
        if len(leaves) > 1 and row.stale and self.way != REREAD:  # what all paths share is read once
            new = self._feed([row], tokens[None, :0], None)[2][0]
            row.cache, row.place, row.seen, row.marks = new.cache, new.place, new.seen, new.marks
        logits = tokens.new_zeros(n, self.said, dtype=self._weight.dtype)
        hidden = tokens.new_zeros(n, self.width, dtype=self._weight.dtype)
        for leaf in leaves:
            path = [leaf]
            while (above := parents[path[-1]]) >= 0:
                path.append(above)
            path.reverse()
            found, seen, (after[leaf],) = self._feed([row], tokens[path][None], None)
            logits[path], hidden[path] = found[0].to(logits), seen[0].to(hidden)
        return logits, hidden

    def _feed(self, rows: list[Row], tokens: Tensor, at: Tensor | None) -> tuple[Tensor, Tensor, list[Row]]:
        """Run what the rows' cache has not seen yet, the same number of tokens each, then `tokens` (R, N): logits and
        hidden of these, and the rows after."""
        first = rows[0]
        behind = torch.tensor([row.tokens[row.seen :] for row in rows], dtype=torch.long, device=tokens.device)
        line, skip = torch.cat([behind, tokens], 1), behind.shape[1]
        n = line.shape[1]
        wanted = torch.arange(skip, n, device=line.device).expand(len(rows), -1) if at is None else at + skip
        if self.way == REREAD or self.slot is None:
            logits, hidden, _ = self._run(line, wanted, use_cache=False)
            return logits, hidden[:, skip:], [row.after(new, None, 0) for row, new in zip(rows, tokens)]
        cache = None if first.cache is None else first.cache.pick([row.place for row in rows])
        if self.way == COPIED or cache is None or n == 1:
            logits, hidden, cache = self._remember(line, wanted, cache)
        else:
            found = []
            for piece in line.split(1, 1):
                *one, cache = self._remember(piece, None, cache)
                found.append(one)
            logits, hidden = (torch.cat(x, 1) for x in zip(*found))
            logits = gather_nodes(logits, wanted)
        kept = Kept(cache, len(rows))
        return logits, hidden[:, skip:], [row.after(new, kept, place)
                                          for place, (row, new) in enumerate(zip(rows, tokens))]

    def _remember(self, line: Tensor, wanted: Tensor | None, cache: Any) -> tuple[Tensor, Tensor, Any]:
        assert self.slot is not None
        given = {} if cache is None else {self.slot: cache}
        logits, hidden, out = self._run(line, wanted, use_cache=True, **given)
        cache = getattr(out, self.slot, None)
        if cache is None:
            raise LookupError("the model keeps its cache to itself")
        return logits, hidden, cache

    # Measuring.

    @torch.no_grad()
    def _measure(self) -> str:
        """The first way that agrees with the plain forward."""
        generator = torch.Generator().manual_seed(0)
        line = self._begun(self._draw(1, 4, generator=generator))
        try:
            try:
                logits, hidden, _ = self._run(line, use_cache=False)
                self.hooked = hidden.shape[:2] == line.shape
            except (IndexError, AttributeError):  # the head is no module that is called
                self.hooked = False
            if not self.hooked:
                logits, hidden, _ = self._run(line, use_cache=False)
        except Exception as error:
            raise SegueError(f"transformers loads this {self.name} but cannot run it "
                             f"({type(error).__name__}: {error})") from error
        self.said, self.width = logits.shape[-1], hidden.shape[-1]
        truths: dict[tuple[int, ...], Tensor] = {}
        for way, together in self.ways:
            self.way, self.together = way, together
            try:
                if (way != EDITED or self._editable(line)) and self._agrees(truths):
                    return way
            except Exception:  # whatever a model throws that cannot be run this way
                continue
        self.together = False  # each row alone and from its beginning is the plain forward itself
        return REREAD

    def _draw(self, *shape: int, generator: torch.Generator) -> Tensor:
        return torch.randint(self.size, shape, generator=generator)

    def _begun(self, x: Tensor) -> Tensor:
        """Random tokens (B, N) as prompts that the model can read."""
        return x

    def _editable(self, line: Tensor) -> bool:
        """Is all that the model remembers keys and values, one of each per token and layer?"""
        if self.slot is None or not self.placed:
            return False
        cache = getattr(self._run(line, use_cache=True)[2], self.slot, None)
        if not isinstance(cache, DynamicCache) or not cache.layers:
            return False
        self.layers = []
        for layer in cache.layers:
            if type(layer) is not DynamicLayer or layer.keys is None or layer.keys.dim() != 4 or \
                    layer.keys.shape[2] != line.shape[1]:
                return False
            self.layers.append((layer.keys.shape[1], layer.keys.shape[3], layer.values.shape[3]))
        return True

    def _agrees(self, truths: dict[tuple[int, ...], Tensor]) -> bool:
        """Ragged rows, a tree, paths of different lengths and a chain after them, against the plain forward."""
        generator = torch.Generator().manual_seed(1)

        def draw(*shape: int) -> Tensor:
            return self._draw(*shape, generator=generator)

        def truth(tokens: Sequence[int]) -> Tensor:
            key = tuple(tokens)
            if key not in truths:
                truths[key] = self._run(torch.tensor([key]), use_cache=False)[0][0]
            return truths[key]

        worst, scale = 0.0, 1e-2

        def compare(found: Tensor, tokens: list[int]) -> None:
            nonlocal worst, scale
            expected = truth(tokens)
            scale = max(scale, float(expected.abs().max()))
            worst = max(worst, float((found - expected[-len(found) :]).abs().nan_to_num(nan=1e9).max()))

        state, x = self.init_state(2), self._begun(draw(2, 5))
        y = self.extend(x, state).logits[..., : self.said]
        counts = [5, 2]
        state.commit(counts=torch.tensor(counts))
        rows = [x[row, :count].tolist() for row, count in enumerate(counts)]
        for row in range(2):
            compare(y[row, : counts[row]], rows[row])
        parents, paths = [-1, 0, 0, 1], ([0], [0, 1], [0, 2], [0, 1, 3])
        x = draw(2, 4)
        y = self.extend(x, state, torch.tensor([parents, parents])).logits[..., : self.said]
        for row in range(2):
            for path in paths[2:]:
                compare(y[row, path], rows[row] + x[row, path].tolist())
        state.commit(torch.tensor([[0, 2, -1], [0, 1, 3]]))
        rows = [rows[0] + x[0, [0, 2]].tolist(), rows[1] + x[1, [0, 1, 3]].tolist()]
        for step, n in enumerate((2, 1, 2, 1)):
            if step == 2:
                state, rows = state.select(torch.tensor([1, 1])), [rows[1]] * 2  # of one length, from the same cache
            x = draw(2, n)
            y = self.extend(x, state).logits[..., : self.said]
            state.commit()
            rows = [row + new for row, new in zip(rows, x.tolist())]
            for row in range(2):
                compare(y[row], rows[row])
        return worst <= CLOSE * scale


class Layer(CacheLayerMixin):
    """One layer of our cache where transformers looks for one of its own. Lives for one call."""

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


class Kept:
    """A cache of the model's own for a number of rows, never written to once it is here."""

    def __init__(self, cache: Any, rows: int) -> None:
        self.cache, self.rows = cache, rows

    def pick(self, places: list[int]) -> Any:
        """A copy that holds these rows."""
        twin = copy.deepcopy(self.cache)
        if places == list(range(self.rows)):
            return twin
        if isinstance(twin, (list, tuple)):
            return type(twin)(tensor[places] for tensor in twin)
        twin.reorder_cache(torch.tensor(places))
        return twin


class Row:
    """One row of a model that is not edited: its tokens, and its place in a cache that has seen the first `seen`.

    marks: older caches, (seen, cache, place) from old to new, for going back up to `history` tokens without reading
    everything again.
    """

    def __init__(self, history: int = 0) -> None:
        self.history = history
        self.tokens: list[int] = []
        self.cache: Kept | None = None
        self.place = self.seen = 0
        self.marks: list[tuple[int, Kept | None, int]] = []

    @property
    def stale(self) -> bool:
        return self.seen < len(self.tokens)

    def copy(self) -> Row:
        twin = Row(self.history)
        twin.tokens, twin.marks = list(self.tokens), list(self.marks)
        twin.cache, twin.place, twin.seen = self.cache, self.place, self.seen
        return twin

    def after(self, tokens: Tensor, cache: Kept | None, place: int) -> Row:
        """The row with these tokens more, all of them seen by `cache` (None: no cache)."""
        twin = self.copy()
        twin.tokens += tokens.tolist()
        if cache is not None:
            twin.cache, twin.place, twin.seen = cache, place, len(twin.tokens)
            if self.history and self.cache is not None and \
                    (not self.marks or self.seen - self.marks[-1][0] >= self.history):
                twin.marks.append((self.seen, self.cache, self.place))
                while len(twin.marks) > 1 and twin.marks[1][0] <= len(twin.tokens) - self.history:
                    del twin.marks[0]
        return twin

    def back(self, n: int) -> Row:
        """The row without its last n tokens."""
        twin = self.copy()
        if n:
            del twin.tokens[-n:]
            while twin.seen > len(twin.tokens):
                twin.seen, twin.cache, twin.place = twin.marks.pop() if twin.marks else (0, None, 0)
        return twin


class Memory:
    """The rows of a model that is not edited, as one part of a `State`."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows
        self.tokens: Tensor | None = None
        self.pending: list[dict[int, Row]] = []  # for each row, the row as it is behind some of the pending nodes

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
    """No progress bars and no advice from transformers while a folder is loaded."""
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
    if values.get("auto_map"):
        kind = values["model_type"]
        if kind not in transformers.models.auto.configuration_auto.CONFIG_MAPPING_NAMES:
            raise SegueError(f"{folder} brings its own code for '{kind}', which is never run: give a model of an "
                             "architecture that transformers has itself")
    try:
        with quiet():
            model, notes = auto.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False, use_safetensors=True,
                output_loading_info=True)
    except Exception as error:  # transformers raises anything
        said = " ".join(str(error).split())
        raise SegueError(f"transformers cannot load {folder} as {what} "
                         f"({type(error).__name__}: {said[:200]})") from error
    for wrong in ("missing_keys", "mismatched_keys"):
        if left := list(notes.get(wrong) or []):
            raise SegueError(f"the weights in {folder} do not fit its config.json: {len(left)} {wrong.split('_')[0]} "
                             f"('{left[0]}')")
    return model.eval()
