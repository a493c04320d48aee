"""Learned prompts: rows that stand for no element, trained while the model they steer stays frozen.

A source of prompts (`PromptSource`) maps a query that summarises the sequence to a prompt, a few rows of the model's
width, for some layers of a stack. Four are here:

- `Prefix`: the same rows for every sequence (prefix tuning, Li & Liang 2021, arXiv 2101.00190);
- `Pools`: rows of the slots whose keys are nearest to the query (L2P, Wang et al. 2022, arXiv 2112.08654);
- `DualPrompts`: general rows, and an expert prompt per experience (DualPrompt, Wang et al. 2022, arXiv 2204.04799);
- `CodaPrompts`: a sum of components, weighted by attention to the query (CODA-Prompt, Smith et al. 2023,
  arXiv 2211.13218).

`Prompted` applies one to a stack by setting its initial state: attention gets the rows as keys and values without
tokens, a recurrence the state that its layer has after reading them. So every mixer can be prompted, and continuing
under a prompt uses an ordinary state. A point process (PromptTPP, Xue et al. 2023, arXiv 2310.04993) inserts its
prompts between the prefix that chose them and the events after it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.errors import SegueError
from segue.mixers.attention import Attention
from segue.mixers.cross import Source
from segue.mixers.layout import Layout
from segue.mixers.state import State
from segue.models.base import Output
from segue.models.stack import Stack


class PromptSource(nn.Module):
    """Base of all sources: maps queries (B, D) to prompts (B, L, D) by layer number.

    uses_query: whether the prompts depend on the query. match: (B,) similarity of the last queries to the keys they
    chose, summed over layers, or None; an objective or a strategy adds it, since nothing else trains those keys.
    begin, end: called at the start and the end of an experience. Parameters of an experience are trained in it and
    frozen at its end.
    """

    uses_query = True
    match: Tensor | None = None

    def forward(self, query: Tensor) -> dict[int, Tensor]:
        raise NotImplementedError

    def begin(self) -> None:
        """Start a new experience."""

    def end(self) -> None:
        """End the experience and freeze its parameters."""

    def penalty(self) -> Tensor | None:
        """Return a scalar to add to the loss, which keeps components apart, or None."""
        return None


class Prefix(PromptSource):
    """The same `length` rows of `width` features for every sequence, in each of `layers`. Initialised from U(-1, 1)."""

    uses_query = False

    def __init__(self, layers: Sequence[int], width: int, length: int = 8) -> None:
        super().__init__()
        self.layers = list(layers)
        self.rows = nn.Parameter(torch.rand(len(self.layers), length, width) * 2 - 1)

    def forward(self, query: Tensor) -> dict[int, Tensor]:
        return {layer: rows.expand(len(query), -1, -1) for layer, rows in zip(self.layers, self.rows)}


class PromptTuning(nn.Module):
    """`length` rows of `width` features in front of every sequence, read by all layers (Lester et al. 2021,
    arXiv 2104.08691), computed from an embedding by a small network (Li & Liang 2021): linear, tanh, linear, with
    `dropout` on the embedding in training."""

    def __init__(self, width: int, length: int = 32, dropout: float = 0.2) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(length, width))
        self.network = nn.Sequential(nn.Dropout(dropout), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))

    def forward(self, batch: int) -> Tensor:
        """Return the rows for a batch, (B, L, D)."""
        return self.network(self.embedding).expand(batch, -1, -1)


class PromptPool(nn.Module):
    """Slots, each a key of `width` features and a prompt of `length` rows. All are initialised from U(-1, 1).

    top: slots chosen per sequence; if equal to `slots`, always all of them, in their own order.
    """

    def __init__(self, width: int, slots: int = 10, length: int = 5, top: int = 5) -> None:
        super().__init__()
        if not 1 <= top <= slots or length < 1:
            raise SegueError(f"a pool of {slots} slots of {length} rows cannot give {top}: choose from 1 to {slots}")
        self.keys = nn.Parameter(torch.rand(slots, width) * 2 - 1)
        self.prompts = nn.Parameter(torch.rand(slots, length, width) * 2 - 1)
        self.top = top

    def choose(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Return the slots with the nearest keys to query (B, D), (B, top) long, nearest first, and the sum of their
        cosine similarities (B,). Each row chooses independently of the rest of the batch."""
        cosines = F.normalize(query, dim=-1) @ F.normalize(self.keys, dim=-1).T
        if self.top == len(self.keys):
            return torch.arange(self.top, device=query.device).expand(len(query), -1), cosines.sum(-1)
        near, chosen = cosines.topk(self.top, dim=-1)
        return chosen, near.sum(-1)

    def rows(self, chosen: Tensor) -> Tensor:
        """Return the prompts of slots (B, top), concatenated: (B, top * length, D)."""
        return self.prompts[chosen].flatten(1, 2)


class Pools(PromptSource):
    """A `PromptPool` for each of `layers`. For slots, length and top see there."""

    match: Tensor

    def __init__(self, layers: Sequence[int], width: int, slots: int = 10, length: int = 5, top: int = 5) -> None:
        super().__init__()
        self.layers = list(layers)
        pools = nn.ModuleList(PromptPool(width, slots, length, top) for _ in self.layers)
        self.pools: list[PromptPool] = pools  # type: ignore[assignment]

    def forward(self, query: Tensor) -> dict[int, Tensor]:
        chosen = [pool.choose(query) for pool in self.pools]
        self.match = torch.stack([cosine for _, cosine in chosen]).sum(0)
        return {layer: pool.rows(slots) for layer, pool, (slots, _) in zip(self.layers, self.pools, chosen)}


class LayerPrompts(Pools):
    """A prompt pool for each of `depth` layers of a point process.

    prefix: the number of first events that choose the prompts, 1 or more. Only events after them see the prompts, so
    none is chosen by what it helps to predict. slots, length, top: of each pool, see `PromptPool`.
    centre, seen: running mean and number of all training queries. The mean is subtracted before queries are compared
    with keys, since all queries point in nearly the same direction. The match (added to the loss by
    `segue.objectives.EventLikelihood`) sends no gradient to the queries.
    """

    centre: Tensor
    seen: Tensor

    def __init__(self, depth: int, width: int, prefix: int, slots: int = 10, length: int = 5, top: int = 5) -> None:
        super().__init__(range(depth), width, slots, length, top)
        if prefix < 1:
            raise SegueError(f"prompts are chosen by the first elements of a sequence, 1 or more of them, not {prefix}")
        self.prefix = prefix
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, query: Tensor) -> dict[int, Tensor]:
        query = query.detach()
        if self.training:
            self.seen += len(query)
            self.centre += (query - self.centre).sum(0) / self.seen
        return super().forward(query - self.centre)


class ExpandingSource(PromptSource):
    """Base of sources with one slice of parameters per experience.

    There is one slice more than finished experiences; it is created when an experience ends, so that no parameter is
    added while an optimiser is running. used: number of slices in use, the last of which is being trained.
    """

    used: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.slices: list[nn.ParameterDict] = nn.ModuleList()  # type: ignore[assignment]
        self.register_buffer("used", torch.ones((), dtype=torch.long))

    def fresh(self) -> dict[str, Tensor]:
        """Return the initial tensors of the next slice, by name."""
        raise NotImplementedError

    def grow(self) -> None:
        """Append a new slice."""
        existing = next(iter(self.parameters()), torch.empty(0)).detach()
        tensors = {name: nn.Parameter(x.to(existing)) for name, x in self.fresh().items()}
        self.slices.append(nn.ParameterDict(tensors))

    def begin(self) -> None:
        self.used.fill_(len(self.slices))

    def end(self) -> None:
        for parameters in self.slices:
            parameters.requires_grad_(False)
        self.grow()

    def rows(self, name: str, used: int | None = None) -> Tensor:
        """Return the tensor `name` of all slices in use (or of the first `used`), concatenated: (layers, M, ...)."""
        return torch.cat([parameters[name] for parameters in itertools.islice(self.slices, used or int(self.used))], 1)


class DualPrompts(ExpandingSource):
    """General rows for all sequences, and an expert prompt per experience.

    shared: layers that read the `general` rows, which are trained in every experience. own: layers that read the
    expert, `length` rows: in training that of the current experience, else the one whose key is nearest to the query.
    All are initialised from U(-1, 1).
    """

    def __init__(self, shared: Sequence[int], own: Sequence[int], width: int, general: int = 6,
                 length: int = 20) -> None:
        super().__init__()
        self.general = Prefix(shared, width, general)
        self.own, self.length, self.width = list(own), length, width
        self.grow()

    def fresh(self) -> dict[str, Tensor]:
        return {"key": torch.rand(1, 1, self.width) * 2 - 1,
                "prompt": torch.rand(len(self.own), 1, self.length, self.width) * 2 - 1}

    def forward(self, query: Tensor) -> dict[int, Tensor]:
        cosines = F.normalize(query, dim=-1) @ F.normalize(self.rows("key")[0], dim=-1).T
        chosen = torch.full_like(cosines[:, 0], int(self.used) - 1, dtype=torch.long) if self.training else \
            cosines.argmax(1)
        self.match = cosines.gather(1, chosen[:, None])[:, 0]
        experts = self.rows("prompt")[:, chosen]
        return self.general(query) | dict(zip(self.own, experts))


class CodaPrompts(ExpandingSource):
    """The sum of components alpha_m P_m in each of `layers`, with alpha_m = cos(query * A_m, K_m), of either sign.

    components: number that each experience adds; earlier ones are frozen and still summed. length: rows of P_m. New
    components are initialised orthonormal to each other and orthogonal to all earlier ones, so there can be at most
    `width`. Everything is trained by the task's loss; `penalty` is the mean of the squared entries of P P' - I, K K' -
    I and A A' - I, summed over these three and over layers.
    """

    def __init__(self, layers: Sequence[int], width: int, components: int = 10, length: int = 8) -> None:
        super().__init__()
        if components < 1:
            raise SegueError(f"{components} components make no prompt: give 1 or more")
        self.layers, self.width, self.components, self.length = list(layers), width, components, length
        self.grow()

    def fresh(self) -> dict[str, Tensor]:
        shapes = {"prompt": (self.length, self.width), "key": (self.width,), "attention": (self.width,)}
        tensors = {}
        for name, shape in shapes.items():
            earlier = [self.rows(name, len(self.slices))[layer].flatten(1).detach() if self.slices else None
                       for layer in range(len(self.layers))]
            tensors[name] = torch.stack([orthonormal_rows(self.components, shape, rows) for rows in earlier])
        return tensors

    def alphas(self, query: Tensor) -> Tensor:
        """Return the weights alpha, (layers, B, M), for queries (B, D)."""
        return F.cosine_similarity(query[:, None] * self.rows("attention")[:, None], self.rows("key")[:, None], dim=-1)

    def forward(self, query: Tensor) -> dict[int, Tensor]:
        summed = torch.einsum("lbm,lmrd->lbrd", self.alphas(query), self.rows("prompt"))
        return dict(zip(self.layers, summed))

    def penalty(self) -> Tensor:
        total = []
        for name in ("prompt", "key", "attention"):
            rows = self.rows(name).flatten(2)
            total.append((rows @ rows.mT - torch.eye(rows.shape[1]).to(rows)).square().mean((1, 2)).sum())
        return torch.stack(total).sum()


def orthonormal_rows(count: int, shape: Sequence[int], earlier: Tensor | None = None) -> Tensor:
    """Return random orthonormal rows (count, *shape), orthogonal to the rows of `earlier` (M, N) as well."""
    noise = torch.randn(count, *shape).flatten(1)
    earlier = noise[:0] if earlier is None else earlier.to(noise)
    if (total := count + len(earlier)) > noise.shape[1]:
        raise SegueError(f"{total} components of {noise.shape[1]} numbers cannot all be orthogonal: give fewer "
                         "components an experience, or a wider model")
    basis = torch.linalg.qr(torch.cat([earlier, noise]).double().T).Q.T[len(earlier) :]
    return basis.to(noise).view(count, *shape)


SOURCES: dict[str, type[PromptSource]] = {"prefix": Prefix, "pools": Pools, "dual": DualPrompts, "coda": CodaPrompts}


def keys_and_values(mixer: Attention, rows: Tensor) -> Source:
    """Use prompt rows (B, L, D), without projections, as alternating keys and values of an attention."""
    width = mixer.kv_heads * mixer.head_width
    if rows.shape[1] % 2 or rows.shape[2] < width:
        raise SegueError(f"a prompt of {rows.shape[1]} rows of {rows.shape[2]} features does not fit an attention of "
                         f"keys of {width}: give an even number of rows, which take turns in being a key and a value")
    k, v = (rows[:, offset::2, :width].unflatten(-1, (-1, mixer.head_width)).transpose(1, 2) for offset in (0, 1))
    return Source(k, v, torch.full((len(rows),), k.shape[2], device=rows.device))


def init_prompted_state(stack: Stack, prompts: dict[int, Tensor], batch: int, history: int | None = None) -> State:
    """Return the initial state of `batch` rows under prompts, given by layer. history: as of `init_state`; None: for
    one pass over whole sequences, a state that holds only what the prompts set."""
    like = stack.embedding.weight.detach()
    positions = torch.zeros(batch, dtype=torch.long, device=like.device)
    state = State([{} for _ in stack.blocks], positions) if history is None else stack.init_state(batch, history)
    for index, rows in prompts.items():
        mixer = stack.blocks[index].mixer
        if not rows.shape[1]:
            continue
        if isinstance(mixer, Attention):
            state.layers[index] = {**state.layers[index], "given": keys_and_values(mixer, rows)}
        elif mixer.causal:
            state.layers[index] = parts = state.layers[index] or stack.blocks[index].parts(batch, like, 0)
            stack.run_block(index, rows, positions_in_front(rows), state)
            for part in parts.values():
                part.commit(None, None)
    return state


def positions_in_front(rows: Tensor) -> Layout:
    """Return the layout of a prompt's rows, which end right before position 0."""
    return Layout.chain((rows.shape[0], rows.shape[1]),
                        torch.full((len(rows),), -rows.shape[1], device=rows.device))


class Prompted(nn.Module):
    """A frozen stack steered by learned prompts.

    backbone: any stack; bidirectional mixers other than attention read their prompt as rows in front of the sequence.
    prompts: see `SOURCES`.
    The query is the mean of the backbone's hidden vectors without a prompt, over the elements that the layout marks as
    prompt (`Batch.prompt`, `Batch.as_prompts`) if it marks any, else over the whole row.

    As the backbone of a `Classifier` (`hidden`) the whole row may form the query, since the label comes after it. As a
    language model (`forward`) only a marked prefix does; the prefix itself is read without a prompt up to its last
    element, so that no element is predicted under a prompt that it helped to choose. `primed` continues a prefix.

    centre, spread: (D,) mean and deviation by which queries are standardised; see `standardise_queries`.
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, backbone: Stack, prompts: PromptSource) -> None:
        super().__init__()
        self.config = backbone.config
        self.backbone = backbone.requires_grad_(False)
        self.prompts = prompts
        self.register_buffer("centre", torch.zeros(self.config.width))
        self.register_buffer("spread", torch.ones(self.config.width))
        for layer in getattr(prompts, "layers", ()):
            if not 0 <= layer < len(backbone.blocks):
                raise SegueError(f"there is no layer {layer} to prompt: the last one is {len(backbone.blocks) - 1}")

    def train(self, mode: bool = True) -> Prompted:
        super().train(mode)
        self.backbone.eval()
        return self

    @torch.no_grad()
    def hidden_without_prompt(self, tokens: Tensor, layout: Layout) -> Tensor:
        """Return the backbone's hidden vectors without a prompt, (B, T, D)."""
        return self.backbone.hidden(tokens, layout)

    def query(self, plain: Tensor, layout: Layout) -> Tensor:
        """Return the standardised query (B, D) from hidden vectors without a prompt (B, T, D)."""
        marked = plain.new_ones(plain.shape[1], 1) if layout.prompt is None else layout.prompt[..., None].to(plain)
        return ((plain * marked).sum(-2) / marked.sum(-2).clamp(min=1) - self.centre) / self.spread

    @torch.no_grad()
    def standardise_queries(self, tokens: Tensor, layout: Layout) -> None:
        """Standardise all later queries by the mean and deviation of those of these rows, say of pre-training data.

        Mean hidden vectors all point in nearly the same direction, and keys could not tell them apart. Call this before
        the first experience, so that queries of old ones do not move."""
        self.centre.zero_()
        self.spread.fill_(1)
        spread, centre = torch.std_mean(self.query(self.hidden_without_prompt(tokens, layout), layout), 0)
        self.centre.copy_(centre)
        self.spread.copy_(spread.clamp(min=1e-6))

    def hidden(self, tokens: Tensor, layout: Layout) -> Tensor:
        """Return hidden vectors (B, T, D) of ids (B, T) or vectors (B, T, C) under the prompt. Through the query, every
        element depends on the whole row, later elements included."""
        if self.prompts.uses_query:
            query = self.query(self.hidden_without_prompt(tokens, layout), layout)
        else:
            query = self.backbone.embedding.weight.new_zeros(len(tokens), self.config.width)
        return self.hidden_under(self.prompts(query), tokens, layout)

    def hidden_under(self, prompts: dict[int, Tensor], tokens: Tensor, layout: Layout) -> Tensor:
        """Return hidden vectors (B, T, D) under given prompts, by layer (B, L, D)."""
        stack = self.backbone
        state = init_prompted_state(stack, prompts, len(tokens))
        x = stack.embed(tokens, layout.positions)
        for index, block in enumerate(stack.blocks):
            rows, mixer = prompts.get(index), block.mixer
            if rows is not None and layout.starts is not None and mixer.causal and not isinstance(mixer, Attention):
                raise SegueError(f"a prompt sets the state of '{self.config.mixers[index]}' once: give one document a "
                                 "row")
            if rows is None or mixer.causal or isinstance(mixer, Attention):
                x = stack.run_block(index, x, layout, state)
            else:
                x = stack.run_block(index, torch.cat([rows, x], 1), layout_with_prompt(rows, layout))
                x = x[:, rows.shape[1] :]
        return stack.finish(x, layout)

    def forward(self, tokens: Tensor, layout: Layout | None = None) -> Output:
        """Return a language model's logits (B, T, V); `layout` marks the prefix that chooses the prompts."""
        layout = Layout.of(tokens) if layout is None else layout
        if not self.prompts.uses_query:
            hidden = self.hidden(tokens, layout)
        elif layout.prompt is None:
            raise SegueError("nothing says which elements may choose the prompts of a language model: mark the "
                             "beginning of each row (Batch.prompt)")
        else:
            plain = self.hidden_without_prompt(tokens, layout)
            hidden = self.hidden_under(self.prompts(self.query(plain, layout)), tokens, layout)
            next_in_prefix = F.pad(layout.prompt[:, 1:], (0, 1))  # whether the next element is still in the prefix
            hidden = torch.where((layout.prompt & next_in_prefix)[..., None], plain, hidden)
        return Output(self.backbone.head(hidden), hidden)

    @torch.no_grad()
    def primed(self, prime: Sequence[int]) -> FixedPromptModel:
        """Return the language model with the prompts that the ids `prime` choose, fixed; read the prime with it first.
        """
        if not len(prime):
            raise SegueError("a prime without elements chooses no prompts: give one or more")
        tokens = torch.tensor([list(prime)], device=self.backbone.embedding.weight.device)
        training, layout = self.training, Layout.of(tokens)
        self.eval()
        prompts = self.prompts(self.query(self.hidden_without_prompt(tokens, layout), layout))
        self.train(training)
        return FixedPromptModel(self.backbone, prompts)


class FixedPromptModel:
    """A stack whose states all start from the same prompts, by layer (1, L, D). Decodable."""

    def __init__(self, stack: Stack, prompts: dict[int, Tensor]) -> None:
        self.stack, self.prompts = stack, prompts

    @property
    def vocabulary(self) -> int:
        return self.stack.vocabulary

    @property
    def path(self) -> str:
        return f"{self.stack.path}, prompted"

    @torch.no_grad()
    def init_state(self, batch: int, history: int = 0) -> State:
        prompts = {layer: rows.expand(batch, -1, -1) for layer, rows in self.prompts.items()}
        return init_prompted_state(self.stack, prompts, batch, history)

    def extend(self, tokens: Tensor, state: Any, parents: Tensor | None = None, at: Tensor | None = None,
               starts: Tensor | None = None) -> Output:
        return self.stack.extend(tokens, state, parents, at, starts)


def layout_with_prompt(rows: Tensor, layout: Layout) -> Layout:
    """Return the layout of a prompt's rows (B, L, D) followed by the nodes of `layout`, as one chain."""
    if layout.grid is not None:
        raise SegueError("elements on a grid have no front where a prompt could stand: give them as one sequence")
    size = rows.shape[1]
    positions = torch.cat([positions_in_front(rows).positions, layout.positions.expand(len(rows), -1)], 1)
    starts = None if layout.starts is None else F.pad(layout.starts, (size, 0))
    return Layout(positions, None, starts)
