"""Graphs read by sequence models: GSM and GSM++ (Behrouz et al. 2024, arXiv 2411.15671).

A tokenisation turns a graph into sequences of tokens, each a set of nodes; a message-passing network encodes each token
as a vector, and a `Stack` of any mixers reads the sequences. Every node gets the output of its own token. So
`GraphSequence` is a backbone like any other: `Classifier(GraphSequence(...), LinearHead(...), "mean")` classifies
graphs or nodes.

A batch holds graphs as rows of nodes; an element is a node's features and its row of the adjacency, see `pack_graphs`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.errors import SegueError
from segue.kernels import graphs as loops
from segue.mixers.layout import Layout
from segue.models.stack import Stack, StackConfig

MAX_DISTANCE = 8  # in edges; larger distances count as this plus one


def pack_graphs(features: Sequence[Tensor], edges: Sequence[Tensor], length: int | None = None) -> Tensor:
    """Pack graphs as padded rows of nodes, (B, T, 1 + C + T). An element is a 1 (0: padding), the C features of a node,
    and its row of the symmetric adjacency.

    features: (n, C) per graph. edges: (m, 2) long per graph, node indices. length: T, at least the size of the largest
    graph (the default).
    """
    length = max(map(len, features)) if length is None else length
    width = features[0].shape[1]
    out = torch.zeros(len(features), length, 1 + width + length)
    for row, nodes, pairs in zip(out, features, edges, strict=True):
        row[: len(nodes), 0] = 1
        row[: len(nodes), 1 : 1 + width] = nodes
        pairs = pairs.reshape(-1, 2).long()
        for a, b in (pairs.T, pairs.T.flip(0)):
            row[a, 1 + width + b] = 1
    return out


@dataclass(frozen=True)
class ClusterTree:
    """Hierarchical affinity clustering (Bateni et al. 2017).

    clusters: (R + 2, N) number of each node's cluster per level, from the node itself over R rounds to its graph, the
    root even of a disconnected graph; numbered in the order of `order`. order: (N,) nodes, in depth-first order of the
    tree. taken: (M,) bool, the edges that merged clusters: a maximum spanning forest.
    """

    clusters: np.ndarray
    order: np.ndarray
    taken: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """Number of clusters per level, (R + 2,)."""
        return self.clusters.max(1, initial=-1) + 1

    @property
    def numbers(self) -> np.ndarray:
        """The clusters (R + 2, N), numbered consecutively over all levels."""
        return self.clusters + (np.cumsum(self.counts) - self.counts)[:, None]

    @property
    def new(self) -> np.ndarray:
        """(R + 2, N) bool: the cluster differs from that of the round before; always True for nodes and whole graphs.
        """
        sizes = np.stack([np.bincount(level)[level] for level in self.clusters])
        return np.concatenate([sizes[:1] > 0, sizes[1:-1] > sizes[:-2], sizes[:1] > 0])


@dataclass(frozen=True)
class GraphBatch:
    """The graphs of a batch as one disconnected graph.

    graph: (N,) ascending, the graph of each node. ends: (M, 2) node indices, each edge once. weights: (M,) edge weights
    for clustering; of equal ones the first counts as larger.
    """

    graph: np.ndarray
    ends: np.ndarray
    weights: np.ndarray

    @property
    def neighbours(self) -> tuple[np.ndarray, np.ndarray]:
        """The adjacency lists, see `segue.kernels.graphs.adjacency`."""
        return loops.adjacency(len(self.graph), *self.ends.T)

    def tree(self) -> ClusterTree:
        """Cluster the nodes by their edges' weights."""
        n, index, graph = len(self.graph), np.arange(len(self.ends)), self.graph[self.ends[:, 0]]
        rank = np.empty(len(self.ends), np.int64)  # within each graph, independent of the rest of the batch
        rank[np.lexsort((index, -self.weights, graph))] = index - np.searchsorted(np.sort(graph), np.sort(graph))
        u, v = np.ascontiguousarray(self.ends.T)
        rounds, taken, order = loops.boruvka(n, u, v, rank)
        order = order[np.argsort(self.graph[order], kind="stable")]
        levels = np.concatenate([rounds, self.graph[None]])
        for level in levels:
            ordered = level[order]
            is_new = np.concatenate([[True], ordered[1:] != ordered[:-1]])[:n]
            level[order] = np.cumsum(is_new) - 1
        return ClusterTree(levels, order, taken)


@dataclass(frozen=True)
class Tokens:
    """Sequences of tokens, each a set of nodes.

    sets: (P, 2) pairs of a token and one of its nodes. rows: (S, L) token numbers, -1: padding. own: (N,) flat index
    into `rows` of each node's own token. level: (K,) level of each token, for its position. scales: (K, Z) distances,
    see `TreePosition`, or None.
    """

    sets: np.ndarray
    rows: np.ndarray
    own: np.ndarray
    level: np.ndarray
    scales: np.ndarray | None = None


def order_tokens(graphs: GraphBatch, order: np.ndarray) -> Tokens:
    """Make one sequence per graph: its nodes in the given order, which must keep graphs together."""
    n = len(order)
    count = np.bincount(graphs.graph)
    rank = np.arange(n) - np.repeat(np.cumsum(count) - count, count)
    rows = np.full((len(count), count.max()), -1)
    rows[graphs.graph[order], rank] = order
    own_token = np.empty(n, np.int64)
    own_token[order] = graphs.graph[order] * rows.shape[1] + rank
    index = np.arange(n)
    return Tokens(np.stack([index, index], 1), rows, own_token, np.zeros(n, np.int64))


def nodes(graphs: GraphBatch, draw: np.random.Generator) -> Tokens:
    """Make one sequence per graph: its nodes in their given order."""
    return order_tokens(graphs, np.arange(len(graphs.graph)))


def khop(graphs: GraphBatch, draw: np.random.Generator, k: int = 2) -> Tokens:
    """Make one sequence per node: the sets of nodes at most k, k - 1, ... 0 edges away (NAGphormer, arXiv 2206.04910).
    """
    n = len(graphs.graph)
    neighbourhoods = loops.k_hop_neighbourhoods(*graphs.neighbours, k)
    sets = np.stack([neighbourhoods[:, 0] * (k + 1) + neighbourhoods[:, 1], neighbourhoods[:, 2]], 1)
    rows = np.arange(n * (k + 1)).reshape(n, k + 1)[:, ::-1].copy()
    return Tokens(sets, rows, np.arange(n) * (k + 1) + k, np.tile(np.arange(k + 1), n))


def walk(graphs: GraphBatch, draw: np.random.Generator, length: int = 8) -> Tokens:
    """Make one sequence per node: a random walk that ends at it (DeepWalk, arXiv 1403.6652), resampled in each call."""
    n = len(graphs.graph)
    rows = loops.random_walks(*graphs.neighbours, draw.random((n, length)))[:, ::-1].copy()
    index = np.arange(n)
    return Tokens(np.stack([index, index], 1), rows, index * (length + 1) + length, np.zeros(n, np.int64))


def leaves(graphs: GraphBatch, draw: np.random.Generator) -> Tokens:
    """Make one sequence per graph: its nodes in the order of the cluster tree's leaves."""
    tree = graphs.tree()
    return replace(order_tokens(graphs, tree.order), scales=ancestor_distances(graphs, tree)[tree.clusters[0]])


def dfs(graphs: GraphBatch, draw: np.random.Generator) -> Tokens:
    """Make one sequence per node: its clusters, from the whole graph down to itself."""
    tree = graphs.tree()
    sets, level = cluster_tokens(tree)
    down, keep = np.flip(tree.numbers, 0).T, np.flip(tree.new, 0).T
    column = keep.cumsum(1) - 1
    rows: np.ndarray = np.full(down.shape, -1)
    rows[np.broadcast_to(np.arange(len(rows))[:, None], keep.shape)[keep], column[keep]] = down[keep]
    own_token = np.arange(len(rows)) * rows.shape[1] + keep.sum(1) - 1
    return Tokens(sets, rows, own_token, level, ancestor_distances(graphs, tree))


def bfs(graphs: GraphBatch, draw: np.random.Generator) -> Tokens:
    """Make one sequence per graph: all clusters level by level, from the whole graph down to its nodes."""
    tree = graphs.tree()
    sets, level = cluster_tokens(tree)
    kept, first = np.unique(sets[:, 0], return_index=True)
    graph = graphs.graph[sets[first, 1]]
    order = np.lexsort((kept, -np.searchsorted(tree.counts.cumsum(), kept, side="right"), graph))
    counts = np.bincount(graph)
    rank = np.arange(len(kept)) - np.repeat(np.cumsum(counts) - counts, counts)
    rows = np.full((len(counts), counts.max()), -1)
    rows[graph[order], rank] = kept[order]
    flat_index = np.empty(len(level), np.int64)
    flat_index[kept[order]] = graph[order] * rows.shape[1] + rank
    return Tokens(sets, rows, flat_index[tree.clusters[0]], level, ancestor_distances(graphs, tree))


TOKENISERS: dict[str, Callable[..., Tokens]] = {
    "node": nodes, "leaves": leaves, "khop": khop, "walk": walk, "dfs": dfs, "bfs": bfs}


def cluster_tokens(tree: ClusterTree) -> tuple[np.ndarray, np.ndarray]:
    """Return clusters as tokens: pairs of cluster and node (P, 2), for new clusters, and the level of every cluster
    (K,): 0 for whole graphs, 1 for nodes, 2 and up for the rounds."""
    node = np.broadcast_to(np.arange(len(tree.order)), tree.clusters.shape)
    level = np.repeat(np.arange(len(tree.counts)) + 1, tree.counts)
    level[tree.numbers[-1]] = 0
    return np.stack([tree.numbers[tree.new], node[tree.new]], 1), level


def ancestor_distances(graphs: GraphBatch, tree: ClusterTree) -> np.ndarray:
    """Return distances between neighbours in the cluster tree, (K, R + 1): for each cluster and each of its ancestors,
    from itself up to the graph, 1 plus its distance to the preceding cluster in the graph of that level's clusters. 0
    where there is no preceding one in the same graph, or the cluster is not new."""
    steps = len(tree.counts) - 1
    out = np.zeros((tree.counts.sum(), steps), np.int64)
    for level, (clusters, new) in enumerate(zip(tree.clusters[:-1], tree.new)):
        count = int(tree.counts[level])
        u, v = clusters[graphs.ends].T
        pairs = np.unique(np.stack([u, v], 1)[u != v], axis=0).reshape(-1, 2)
        cluster = np.arange(1, count)
        distance = np.zeros(count, np.int64)
        lists = loops.adjacency(count, *np.ascontiguousarray(pairs.T))
        distance[1:] = 1 + loops.shortest_distances(*lists, cluster, cluster - 1, MAX_DISTANCE)
        graph = np.zeros(count, np.int64)
        graph[clusters] = graphs.graph
        distance[1:][graph[1:] != graph[:-1]] = 0
        by_node = np.where(new, distance[clusters], 0)
        for lower in tree.numbers[: level + 1]:
            out[lower, level] = by_node
    return out


def randomise_edges(graphs: GraphBatch, draw: np.random.Generator) -> GraphBatch:
    """Replace the edges of each graph by a random tree with random weights, so that clusters do not depend on the
    graph: a control."""
    count = np.bincount(graphs.graph)
    first = np.repeat(np.cumsum(count) - count, count)
    child = np.flatnonzero(np.arange(len(first)) > first)
    parent = first[child] + (draw.random(len(child)) * (child - first[child])).astype(np.int64)
    return GraphBatch(graphs.graph, np.stack([parent, child], 1), draw.random(len(child)))


class GatedGCN(nn.Module):
    """A layer of the gated graph network (Bresson & Laurent 2017, arXiv 1711.07553): h_i + relu(norm(U h_i + sum over
    neighbours of g_ij V h_j)), with gates g = sigmoid(A h_i + B h_j) normalised by their sum. width: D."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.own, self.other, self.gate_own, self.gate_other = (nn.Linear(width, width) for _ in range(4))
        self.norm = nn.LayerNorm(width)

    def forward(self, h: Tensor, ends: Tensor) -> Tensor:
        """Update node vectors h (P, D); each edge in `ends` (E, 2) long sends a message from its second node to its
        first."""
        target, source = ends.T
        gates = torch.sigmoid(self.gate_own(h)[target] + self.gate_other(h)[source])
        total = torch.zeros_like(h).index_add(0, target, gates)
        message = torch.zeros_like(h).index_add(0, target, gates * self.other(h)[source]) / (total + 1e-6)
        return h + torch.relu(self.norm(self.own(h) + message))


class TreePosition(nn.Module):
    """Position embedding of a cluster: a vector for its level, plus one per scale for the distances of it and its
    ancestors to the clusters before them (`ancestor_distances`). The paper compares all pairs within attention;
    relative to the preceding cluster, any mixer can use it. width: D. levels: the most levels of a tree; higher ones
    share one vector."""

    def __init__(self, width: int, levels: int = 16) -> None:
        super().__init__()
        self.levels = levels
        self.level = nn.Embedding(levels, width)
        self.far = nn.Embedding(levels * (MAX_DISTANCE + 2), width)
        nn.init.normal_(self.level.weight, std=0.02)
        nn.init.normal_(self.far.weight, std=0.02)

    def forward(self, level: Tensor, scales: Tensor | None) -> Tensor:
        """Return vectors (K, D) for levels (K,) and distances (K, Z) or None."""
        vectors = self.level(level.clamp(max=self.levels - 1))
        if scales is None:
            return vectors
        offset = torch.arange(scales.shape[1], device=level.device).clamp(max=self.levels - 1) * (MAX_DISTANCE + 2)
        return vectors + (self.far(offset + scales) * (scales > 0)[..., None]).sum(1)


def induced_edges(sets: Tensor, ends: Tensor, count: int) -> Tensor:
    """Return the edges within each token, in both directions, as indices into `sets`: (E, 2). ends: (M, 2), the edges
    of the graph. count: number of nodes."""
    key = sets[:, 0] * count + sets[:, 1]
    sorted_key, order = key.sort()
    directed = torch.cat([ends, ends.flip(1)])
    begins = torch.searchsorted(directed[:, 0].contiguous().sort().values, torch.arange(count + 1, device=ends.device))
    directed = directed[directed[:, 0].argsort(stable=True)]
    degree = (begins[1:] - begins[:-1])[sets[:, 1]]
    pair = torch.repeat_interleave(torch.arange(len(sets), device=ends.device), degree)
    step = torch.arange(len(pair), device=ends.device) - torch.repeat_interleave(degree.cumsum(0) - degree, degree)
    keys = sets[pair, 0] * count + directed[begins[sets[pair, 1]] + step, 1]
    match = torch.searchsorted(sorted_key, keys).clamp(max=len(key) - 1)
    found = sorted_key[match] == keys
    return torch.stack([pair[found], order[match[found]]], 1)


def laplacian_eigenvectors(adjacency: Tensor, real: Tensor, count: int) -> Tensor:
    """Return the eigenvectors of the `count` smallest eigenvalues of the normalised Laplacian, (B, T, count), zero at
    padding; signs are arbitrary (Dwivedi & Bresson 2020, arXiv 2012.09699). adjacency: (B, T, T). real: (B, T) bool,
    False at padding."""
    degree = adjacency.sum(-1)
    root = degree.clamp(min=1).rsqrt()
    laplacian = torch.diag_embed((degree > 0).to(adjacency)) - root[..., None] * adjacency * root[..., None, :]
    laplacian = laplacian + torch.diag_embed(3.0 * ~real)  # sorts padding after the eigenvalues, which are at most 2
    vectors = torch.linalg.eigh(laplacian).eigenvectors[..., :count] * real[..., None]
    return F.pad(vectors, (0, count - vectors.shape[-1])) * real.sum(-1)[:, None, None].sqrt()


class GraphSequence(nn.Module):
    """A backbone for graphs: (B, T, 1 + features + T), see `pack_graphs` -> (B, T, width), a vector per node.

    features: C per node. config: the `Stack` that reads the sequences, of any mixers (its `vocabulary` and `inputs` are
    ignored); causal mixers read in one direction only.
    tokens: one of `TOKENISERS`, or several (mixture of tokenisations): a router then chooses two per node, by its
    softmax; their outputs, weighted by it, are concatenated and go through a linear map.
    options: keyword arguments of tokenisers, by name. local: number of `GatedGCN` layers on the nodes of each token; a
    token's vector is their mean plus a term for the logarithm of their number. spectral: number of Laplacian
    eigenvectors added as features, with random signs in training. positions: whether to add `TreePosition`.
    randomly: a control, tokens from another, random graph (`randomise_edges`); messages still pass along the real
    edges. seed: of walks and random graphs in evaluation mode. No gradients flow through the clustering.
    """

    def __init__(self, features: int, config: StackConfig, tokens: str | Sequence[str] = "dfs",
                 options: Mapping[str, Mapping[str, int]] | None = None, local: int = 1, spectral: int = 0,
                 positions: bool = True, randomly: bool = False, seed: int = 0) -> None:
        super().__init__()
        names = [tokens] if isinstance(tokens, str) else list(tokens)
        if not names or (unknown := set(names) - TOKENISERS.keys()):
            raise SegueError(f"tokenisations {sorted(unknown) if names else '(none)'} are unknown: choose from "
                             f"{', '.join(TOKENISERS)}")
        if min(features, local, spectral) < 0:
            raise SegueError("features, local and spectral are counts: give 0 or more")
        self.features, self.spectral, self.randomly, self.seed = features, spectral, randomly, seed
        self.config = replace(config, vocabulary=1, inputs=config.width, tied=False)
        self.tokenise = [partial(TOKENISERS[name], **(options or {}).get(name, {})) for name in names]
        width = config.width
        self.embed = nn.Linear(1 + features + spectral, width)
        self.local = nn.ModuleList(GatedGCN(width) for _ in range(local))
        self.size = nn.Parameter(torch.randn(width) / width**0.5)
        self.position = TreePosition(width) if positions else None
        self.stack = Stack(self.config)
        self.router = nn.Linear(width, len(names)) if len(names) > 1 else None
        self.merge = nn.Linear(2 * width, width) if len(names) > 1 else None

    def hidden(self, tokens: Tensor, layout: Layout | None = None) -> Tensor:
        real = tokens[..., 0] > 0
        if tokens.shape[2] != 1 + self.features + tokens.shape[1]:
            raise SegueError(f"elements of {tokens.shape[2]} numbers are no nodes of {self.features} features in rows "
                             f"of {tokens.shape[1]}: pack graphs with segue.models.graphs.pack_graphs")
        inputs, adjacency = tokens[..., : 1 + self.features], tokens[..., 1 + self.features :]
        if self.spectral:
            vectors = laplacian_eigenvectors(adjacency, real, self.spectral)
            if self.training:  # their signs are arbitrary
                signs = torch.randint(0, 2, (len(tokens), 1, self.spectral), device=vectors.device)
                vectors = vectors * (2 * signs - 1)
            inputs = torch.cat([inputs, vectors], -1)
        graphs = self.graphs(tokens[..., 1 : 1 + self.features], adjacency, real)
        x = self.embed(inputs[real])
        draw = np.random.default_rng(int(torch.randint(1 << 62, ())) if self.training else self.seed)
        ends = torch.from_numpy(graphs.ends).to(x.device)
        if self.randomly:
            graphs = randomise_edges(graphs, draw)
        outputs = [self.read(x, ends, tokenise(graphs, draw)) for tokenise in self.tokenise]
        return torch.zeros(*real.shape, x.shape[1], dtype=x.dtype, device=x.device).masked_scatter(
            real[..., None], self.mix_tokenisations(x, outputs))

    def mix_tokenisations(self, x: Tensor, outputs: Sequence[Tensor]) -> Tensor:
        """Combine the outputs (N, D) of all tokenisations by the router, which reads x (N, D)."""
        if self.router is None or self.merge is None:
            return outputs[0]
        weights, which = torch.softmax(self.router(x), -1).topk(2)
        stacked = torch.stack(list(outputs), 1)  # (N, tokenisations, D)
        chosen = stacked.gather(1, which[..., None].expand(-1, -1, x.shape[1])) * weights[..., None]
        return self.merge(chosen.flatten(1))

    @torch.no_grad()
    def graphs(self, features: Tensor, adjacency: Tensor, real: Tensor) -> GraphBatch:
        """Return the batch as one graph. An edge's weight is minus the squared distance of its ends' features, degrees,
        and means of these over neighbourhoods."""
        degree = adjacency.sum(-1, keepdim=True)
        z = torch.cat([features, degree.log1p()], -1).double()
        averaging = adjacency.double() / degree.clamp(min=1)
        for _ in range(2):
            z = torch.cat([z, averaging @ z], -1)
        number = torch.full(real.shape, -1, device=real.device)
        number[real] = torch.arange(int(real.sum()), device=real.device)
        row, a, b = adjacency.triu(1).nonzero(as_tuple=True)
        weights = -(z[row, a] - z[row, b]).square().sum(-1)
        ends = torch.stack([number[row, a], number[row, b]], 1)
        return GraphBatch(real.nonzero()[:, 0].cpu().numpy(), ends.cpu().numpy(), weights.cpu().numpy().round(9))

    def read(self, x: Tensor, ends: Tensor, tokens: Tokens) -> Tensor:
        """Return vectors of nodes (N, D) from the sequences of one tokenisation. x: (N, D), embedded nodes. ends:
        (M, 2), edges."""
        sets, rows = torch.from_numpy(tokens.sets).to(x.device), torch.from_numpy(tokens.rows).to(x.device)
        h = x[sets[:, 1]]
        if len(self.local):
            within = induced_edges(sets, ends, len(x))
            for layer in self.local:
                h = layer(h, within)
        size = torch.bincount(sets[:, 0], minlength=len(tokens.level)).clamp(min=1).to(x)[:, None]
        vectors = x.new_zeros(len(size), x.shape[1]).index_add(0, sets[:, 0], h) / size
        vectors = vectors + self.size * size.log()
        if self.position is not None:
            scales = None if tokens.scales is None else torch.from_numpy(tokens.scales).to(x.device)
            vectors = vectors + self.position(torch.from_numpy(tokens.level).to(x.device), scales)
        filled = rows >= 0
        sequence = vectors[rows.clamp(min=0)] * filled[..., None]
        layout = Layout.of(sequence)
        if not bool(filled.all()) and not all(block.mixer.causal for block in self.stack.blocks):
            starts = torch.zeros_like(filled)  # padding becomes a document of its own
            starts[:, 1:] = filled[:, :-1] & ~filled[:, 1:]
            layout = Layout.chain((rows.shape[0], rows.shape[1]), starts=starts)
        return self.stack.hidden(sequence, layout).flatten(0, 1)[torch.from_numpy(tokens.own).to(x.device)]
