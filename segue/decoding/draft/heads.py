"""Drafts by heads on the model's last hidden state: Medusa, Hydra and Hydra++ (see `segue.models.heads`).

The draft is a fixed tree of child ranks: (0, 2) is the third likeliest child of the likeliest child. The best shape
follows from acceptance counts on text that the model generates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from segue.decoding.draft.base import NO_DRAFT, Tip, Tree
from segue.errors import SegueError
from segue.kernels.cpu.cache import is_warm
from segue.models.compiled_heads import CompiledHeads
from segue.models.heads import DraftHeads, TabulatedHeads
from segue.objectives import Batch
from segue.objectives.draft_heads import lookahead_targets
from segue.training.checkpoint import load_into, load_tensors, save_tensors, weights_of

RANKS = 10  # children of a node of a draft tree, at most
Paths = tuple[tuple[int, ...], ...]


def build_tree(chances: np.ndarray, nodes: int) -> Paths:
    """The `nodes` paths of child ranks that are likeliest to be accepted, best first, so parents before children.

    chances: (K, R), the probability that the child of rank r is accepted at depth k + 1 if its parent is. The
    probability of a path is the product over its nodes. Any prefix of the result is the best tree of its size.
    """
    chances = np.asarray(chances, dtype=np.float64)
    depth, ranks = chances.shape
    if nodes < 1 or (chances < 0).any() or (chances > 1).any():
        raise SegueError(f"a tree of {nodes} nodes: it has at least one, and chances are from 0 to 1")
    frontier: list[tuple[float, int, tuple[int, ...]]] = [
        (-float(negative_probability), 1, (rank,)) for rank, negative_probability in enumerate(chances[0])]
    heapify(frontier)
    paths: list[tuple[int, ...]] = []
    while frontier and len(paths) < nodes and frontier[0][0] < 0:
        negative_probability, size, path = heappop(frontier)
        paths.append(path)
        if size < depth:
            for rank in range(ranks):
                heappush(frontier, (negative_probability * float(chances[size, rank]), size + 1, (*path, rank)))
    return tuple(paths) or ((0,),)


def default_tree(heads: int, nodes: int = 63) -> Paths:
    """A tree for heads without acceptance counts: assumes 0.6 for rank 0, and 0.4 times the one before for the rest."""
    return build_tree(np.broadcast_to(0.6 * 0.4 ** np.arange(RANKS), (heads, RANKS)), nodes)


@torch.inference_mode()
def count_ranks(heads: DraftHeads, base: nn.Module, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Hits (K, RANKS), how often the text's token has rank r in head k, and the number of positions (K,) that each head
    predicted. Their quotients are the acceptance rates of `build_tree`. Heads are conditioned on the text's own tokens.
    """
    output = base(batch.tokens, batch.layout)
    condition = heads.condition(output.hidden, batch.layout)
    ranks = min(RANKS, heads.config.vocabulary)
    hits, counts = np.zeros((heads.config.heads, ranks), np.int64), np.zeros(heads.config.heads, np.int64)
    for k in range(1, heads.config.heads + 1):
        valid, context, label = lookahead_targets(batch, k)
        top = heads.logits(k, condition[:, : valid.shape[1]][valid], context[valid]).topk(ranks, -1).indices
        hits[k - 1] = (top == label[valid][:, None]).sum(0).cpu().numpy()
        counts[k - 1] = int(valid.sum())
    return hits, counts


@dataclass
class _TreeLevel:
    """One depth of a tree. expand: the nodes of the level above with children here. slot, rank: for each node here, its
    parent's index in `expand` and its rank among its siblings. nodes: their indices in the tree. ranks: how many of the
    likeliest tokens are needed."""

    expand: Tensor
    slot: Tensor
    rank: Tensor
    nodes: Tensor
    ranks: int


@dataclass
class _RequestState:
    """A request. observed: number of observed tokens. last: the last of them. read: number of hidden states received.
    fresh: hidden states that the heads' attention layer, whose cache is `state`, has not read yet. shown: (D,), the
    heads' input."""

    observed: int = 0
    last: int = -1
    read: int = 0
    fresh: list[Tensor] = field(default_factory=list)
    state: Any = None
    shown: Tensor | None = None


class HeadsDraft:
    """Drafts a tree of fixed shape, depth by depth, in one batch for each head.

    heads: trained for the model that is decoded; used with their current weights. paths: the tree, see `build_tree`
    (default: `default_tree`); a smaller budget takes its first paths.
    """

    name: ClassVar[str] = "heads"
    needs_hidden: ClassVar[bool] = True

    def __init__(self, heads: DraftHeads, paths: Sequence[Sequence[int]] | None = None) -> None:
        self.heads, vocabulary = heads.eval(), heads.config.vocabulary
        tree = default_tree(heads.config.heads) if paths is None else tuple(map(tuple, paths))
        known: set[tuple[int, ...]] = {()}
        for path in tree:
            if path in known or path[:-1] not in known or len(path) > heads.config.heads or min(path) < 0:
                raise SegueError(f"path {path} of a draft tree: each comes once, after its parent, at most "
                                 f"{heads.config.heads} deep, with ranks from 0")
            known.add(path)
        self.paths: Paths = tuple(path for path in tree if max(path) < vocabulary)
        self.nodes = len(self.paths)
        self.measured = 0 if paths is None else self.nodes  # a measured tree is used from the first pass on
        # reader: computes the heads' input from hidden states. quick: precomputed or compiled first layers, if any.
        self.reader: Any = heads
        self.quick: TabulatedHeads | CompiledHeads | None = None
        if heads.embedding.device.type == "cpu" and heads.embedding.dtype == torch.float32 and is_warm():
            self.reader = self.quick = CompiledHeads(heads)
        elif TabulatedHeads.is_worthwhile(heads.config, heads.embedding.element_size()):
            with torch.no_grad():
                self.quick = TabulatedHeads(heads)
        self._seen: dict[int, _RequestState] = {}
        self._plans: dict[tuple[int, int], list[_TreeLevel]] = {}

    def to(self, device: torch.device) -> HeadsDraft:
        """The same drafter for the model there."""
        return HeadsDraft(self.heads.to(device), self.paths)

    def save(self, path: str | Path) -> None:
        """Write the heads and the tree to one safetensors file, atomically."""
        save_tensors(path, weights_of(self.heads), {"heads": self.heads.config.to_dict(),
                                                    "paths": [list(path) for path in self.paths]})

    @classmethod
    def load(cls, path: str | Path, base: Any) -> HeadsDraft:
        """Read what `save` wrote, for the model that the heads were trained for."""
        try:
            tensors, values = load_tensors(path)
            shape, paths = dict(values["heads"]), [[int(rank) for rank in each] for each in values["paths"]]
            if any(type(value) not in (int, bool) or value > 1 << 16 for name, value in shape.items()
                   if name not in ("vocabulary", "width")):
                raise ValueError("sizes")
            if (shape.pop("vocabulary"), shape.pop("width")) != (base.config.vocabulary, base.config.width):
                raise SegueError("they were made for a model of another shape")
            heads = DraftHeads.for_base(base, **shape)
            load_into(heads, tensors, path)
            return cls(heads, paths)
        except (KeyError, TypeError, ValueError) as error:
            raise SegueError(f"{path} does not hold draft heads: run segue speed-up again") from error
        except SegueError as error:
            raise SegueError(f"{path}: {error}; run segue speed-up again") from error

    def observe(self, row: int, tokens: Sequence[int], prompt: bool = False) -> None:
        request = self._seen.setdefault(row, _RequestState())
        if len(tokens):
            request.observed += len(tokens)
            request.last = int(tokens[-1])

    @torch.inference_mode()
    def propose(self, tips: Sequence[Tip]) -> list[Tree]:
        for tip in tips:
            self._store_hidden(tip)
        drafting = [tip for tip in tips if min(tip.nodes, tip.depth) > 0 and tip.row in self._seen
                    and self._seen[tip.row].read]
        if self.heads.config.window:
            rows_to_draft = {tip.row for tip in drafting}  # of the others, only long backlogs are read
            self._read([row for row, request in self._seen.items() if request.fresh
                        and (row in rows_to_draft or sum(map(len, request.fresh)) > self.heads.config.window)])
        trees = dict.fromkeys((tip.row for tip in tips), NO_DRAFT)
        if drafting:
            trees |= self._draft(drafting)
        return [trees[tip.row] for tip in tips]

    def forget(self, row: int) -> None:
        self._seen.pop(row, None)

    def _store_hidden(self, tip: Tip) -> None:
        """Store a tip's hidden states once: there is one for each observed token but the last."""
        request = self._seen.get(tip.row)
        if request is None or tip.hidden is None or not len(tip.hidden) or \
                request.read + len(tip.hidden) >= request.observed:
            return
        request.read = request.observed - 1
        if self.heads.config.window:
            request.fresh.append(tip.hidden)
        else:
            request.shown = self.reader.condition(tip.hidden[None, -1:])[0, 0]

    def _read(self, rows: list[int]) -> None:
        """Run the heads' attention layer over the fresh hidden states of all these rows at once."""
        if not rows:
            return
        unread = [torch.cat(self._seen[row].fresh) for row in rows]
        states = [self._seen[row].state or self.reader.init_state(1) for row in rows]
        counts = [len(hidden) for hidden in unread]
        state = states[0].join(states[1:]) if len(rows) > 1 else states[0]
        device = self.heads.embedding.device
        condition = self.reader.condition(nn.utils.rnn.pad_sequence(unread, batch_first=True), None, state)
        state.commit(None, torch.tensor(counts, device=device))
        for index, row in enumerate(rows):
            request = self._seen[row]
            request.state = state.select(torch.tensor([index], device=device)) if len(rows) > 1 else state
            request.shown, request.fresh = condition[index, counts[index] - 1], []

    def _draft(self, tips: list[Tip]) -> dict[int, Tree]:
        """Draft a tree for each tip, level by level: head k predicts the nodes at depth k."""
        nodes, depth = max(tip.nodes for tip in tips), max(tip.depth for tip in tips)
        device = self.heads.embedding.device
        condition = torch.stack([self._seen[tip.row].shown for tip in tips])[:, None]  # type: ignore[misc]
        context = torch.tensor([self._seen[tip.row].last for tip in tips], device=device)[:, None, None]
        projected: Sequence[Tensor] = (condition,) * self.heads.config.heads
        if self.quick is not None:
            projected = self.quick.project_condition(condition)
        score = self.heads.logits if self.quick is None else self.quick.logits
        drafted = torch.zeros(len(tips), self.nodes, dtype=torch.long, device=device)
        for k, level in enumerate(self._plan(nodes, depth), 1):
            context = context[:, level.expand]  # (R, P, k)
            top = score(k, projected[k - 1], context).topk(level.ranks, -1).indices
            tokens = top.expand(-1, len(level.expand), -1)[:, level.slot, level.rank]
            drafted[:, level.nodes] = tokens
            context = torch.cat([context[:, level.slot], tokens[..., None]], -1)
        return {tip.row: self._tree(row, tip) for tip, row in zip(tips, drafted.tolist())}

    def _tree(self, drafted: list[int], tip: Tip) -> Tree:
        """The tree of one tip's drafted tokens, within its nodes and depth."""
        indices: dict[tuple[int, ...], int] = {(): -1}
        tree = Tree()
        for path, token in zip(self.paths[: tip.nodes], drafted):
            if len(path) <= tip.depth:
                indices[path] = len(tree.tokens)
                tree.tokens.append(token)
                tree.parents.append(indices[path[:-1]])
        return tree

    def _plan(self, nodes: int, depth: int) -> list[_TreeLevel]:
        """The tree of the first `nodes` paths level by level, down to `depth`."""
        key = min(nodes, self.nodes), min(depth, self.heads.config.heads)
        if key in self._plans:
            return self._plans[key]
        levels: list[_TreeLevel] = []
        previous: list[tuple[int, ...]] = [()]
        for size in range(1, key[1] + 1):
            paths = [path for path in self.paths[: key[0]] if len(path) == size]
            if not paths:
                break
            parents = list(dict.fromkeys(path[:-1] for path in paths))
            expand, slot, rank, indices = (torch.tensor(column, device=self.heads.embedding.device) for column in (
                [previous.index(path) for path in parents], [parents.index(path[:-1]) for path in paths],
                [path[-1] for path in paths], [self.paths.index(path) for path in paths]))
            levels.append(_TreeLevel(expand, slot, rank, indices, 1 + max(path[-1] for path in paths)))
            previous = paths
        self._plans[key] = levels
        return levels
