"""Graphs as sequences: forests, clusters, neighbourhoods and walks by networkx; what relabelling changes; tasks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from weights import shake

from segue.errors import SegueError
from segue.kernels import graphs as loops
from segue.kernels.scan import linear_scan
from segue.mixers.layout import Layout
from segue.models import Classifier, Stack, StackConfig
from segue.models.classify import LinearHead
from segue.models.graphs import (
    MAX_DISTANCE,
    TOKENISERS,
    GatedGCN,
    GraphBatch,
    GraphSequence,
    TreePosition,
    bfs,
    dfs,
    induced_edges,
    khop,
    laplacian_eigenvectors,
    leaves,
    pack_graphs,
    walk,
)
from segue.objectives import ClassLoss
from segue.tasks.graphs import COLOURS, FEATURES, GRAPHS
from segue.training.learn import accuracy, learn

nx: Any = pytest.importorskip("networkx")


@st.composite
def random_graphs(draw: st.DrawFn, ties: bool = False) -> GraphBatch:
    """One to three random graphs, connected or not."""
    seed, sizes = draw(st.integers(0, 10_000)), draw(st.lists(st.integers(1, 12), min_size=1, max_size=3))
    numbers = np.random.default_rng(seed)
    graph, ends, first = np.repeat(np.arange(len(sizes)), sizes), list[tuple[int, int]](), 0
    for n in sizes:
        network = nx.gnp_random_graph(n, draw(st.sampled_from([0.0, 0.2, 0.5, 1.0])), seed=seed)
        ends += [(first + a, first + b) for a, b in network.edges]
        first += n
    weights = numbers.integers(3, size=len(ends)) if ties else numbers.random(len(ends))
    return GraphBatch(graph, np.array(ends, np.int64).reshape(-1, 2), weights.astype(float))


def of_networkx(graphs: GraphBatch) -> Any:
    network = nx.Graph()
    network.add_nodes_from(range(len(graphs.graph)))
    network.add_weighted_edges_from((int(a), int(b), float(w)) for (a, b), w in zip(graphs.ends, graphs.weights))
    return network


@settings(deadline=None, max_examples=50)
@given(graphs=random_graphs())
def test_clusters_are_joined_by_the_maximum_spanning_forest(graphs: GraphBatch) -> None:
    tree, reference = graphs.tree(), of_networkx(graphs)
    forest = {tuple(sorted(edge)) for edge in nx.maximum_spanning_edges(reference, data=False)}
    assert {tuple(sorted(edge)) for edge in graphs.ends[tree.taken].tolist()} == forest


@settings(deadline=None, max_examples=50)
@given(graphs=random_graphs(ties=True))
def test_the_cluster_tree_is_laminar_and_complete(graphs: GraphBatch) -> None:
    """Also where weights are equal: laminar, in at most log2 n rounds, the components at the end, each cluster
    together in the order, which is a permutation; the forest is one of the heaviest."""
    tree, reference, n = graphs.tree(), of_networkx(graphs), len(graphs.graph)
    rounds = tree.clusters[:-1]
    assert len(rounds) - 1 <= int(np.ceil(np.log2(max(np.bincount(graphs.graph))))) if n > 1 else True
    assert sorted(tree.order.tolist()) == list(range(n))
    for below, above in zip(tree.clusters, tree.clusters[1:]):
        assert all(len(set(above[below == cluster].tolist())) == 1 for cluster in set(below.tolist())), "laminar"
    for level in tree.clusters:
        along = level[tree.order]
        assert np.array_equal(along, np.sort(along)), "clusters stand together, and are numbered along the order"
    parts = {frozenset(np.flatnonzero(rounds[-1] == cluster).tolist()) for cluster in rounds[-1]}
    assert parts == set(map(frozenset, nx.connected_components(reference)))
    assert np.array_equal(tree.clusters[-1], graphs.graph)
    best = sum(attributes["weight"] for _, _, attributes in nx.maximum_spanning_edges(reference))
    assert graphs.weights[tree.taken].sum() == pytest.approx(best)
    assert tree.taken.sum() == n - len(parts)


@settings(deadline=None, max_examples=30)
@given(graphs=random_graphs())
def test_neighbourhoods_distances_and_walks(graphs: GraphBatch) -> None:
    reference, n = of_networkx(graphs), len(graphs.graph)
    begins, others = graphs.neighbours
    assert all(sorted(others[begins[i] : begins[i + 1]].tolist()) == sorted(reference[i]) for i in range(n))
    results = loops.k_hop_neighbourhoods(begins, others, 2)
    for i in range(n):
        for radius in range(3):
            expected = nx.single_source_shortest_path_length(reference, i, radius)
            assert sorted(results[(results[:, 0] == i) & (results[:, 1] == radius), 2].tolist()) == sorted(expected)
    a, b = (grid.reshape(-1) for grid in np.meshgrid(np.arange(n), np.arange(n)))
    lengths = dict(nx.all_pairs_shortest_path_length(reference))
    expected_lengths = [min(lengths[i].get(j, 4), 4) for i, j in zip(a, b)]
    assert loops.shortest_distances(begins, others, a, b, 4).tolist() == expected_lengths
    for trail in loops.random_walks(begins, others, np.random.default_rng(0).random((n, 5))):
        assert all(reference.has_edge(i, j) or (i == j and not reference[i]) for i, j in zip(trail, trail[1:]))


@settings(deadline=None, max_examples=30)
@given(graphs=random_graphs(), name=st.sampled_from(list(TOKENISERS)))
def test_every_tokenisation_has_each_node_once(graphs: GraphBatch, name: str) -> None:
    tokens = TOKENISERS[name](graphs, np.random.default_rng(0))
    n = len(graphs.graph)
    own_tokens = tokens.rows.reshape(-1)[tokens.own]
    assert len(set(tokens.own.tolist())) == n and (own_tokens >= 0).all()
    for i, token in enumerate(own_tokens):
        assert tokens.sets[tokens.sets[:, 0] == token, 1].tolist() == [i]
    is_token = tokens.rows >= 0
    assert (is_token[:, :-1] >= is_token[:, 1:]).all(), "padding is behind"
    assert tokens.rows.max() < len(tokens.level) and tokens.rows[is_token].min() >= 0
    if tokens.scales is not None:
        assert len(tokens.scales) == len(tokens.level) and tokens.scales.max(initial=0) <= MAX_DISTANCE + 1


def test_graph_tokens_equal_those_by_hand() -> None:
    """Two nodes joined strongly, a third hung on to them, a fourth alone; and a graph of one node."""
    graphs = GraphBatch(np.array([0, 0, 0, 0, 1]), np.array([[0, 1], [1, 2]]), np.array([0.9, 0.1]))
    draw = np.random.default_rng(0)

    def as_sets(tokens: Any) -> list[list[set[int]]]:
        return [[set(tokens.sets[tokens.sets[:, 0] == token, 1].tolist()) for token in row if token >= 0]
                for row in tokens.rows]

    every = {0, 1, 2, 3}
    assert as_sets(dfs(graphs, draw)) == [[every, {0, 1, 2}, {0}], [every, {0, 1, 2}, {1}], [every, {0, 1, 2}, {2}],
                                          [every, {3}], [{4}, {4}]]
    order = graphs.tree().order.tolist()
    assert as_sets(bfs(graphs, draw))[0] in ([every, {0, 1, 2}, *({i} for i in order[:4])],)
    assert as_sets(khop(graphs, draw, k=1))[1:3] == [[{0, 1, 2}, {1}], [{1, 2}, {2}]]
    assert [row[-1] for row in as_sets(walk(graphs, draw, length=3))] == [{0}, {1}, {2}, {3}, {4}]
    assert as_sets(leaves(graphs, draw)) == [[{i} for i in order[:4]], [{4}]]


@pytest.mark.parametrize("graph", [nx.grid_2d_graph(8, 8), nx.random_labeled_tree(64, seed=4)])
def test_the_tree_order_is_local(graph: Any) -> None:
    """Ends of edges stand nearer to each other than in an order at random."""
    ends = np.array(nx.convert_node_labels_to_integers(graph).edges)
    order = GraphBatch(np.zeros(64, np.int64), ends, np.random.default_rng(1).random(len(ends))).tree().order
    place = np.argsort(order)
    separate = np.abs(place[ends[:, 0]] - place[ends[:, 1]]).mean()
    assert separate < 0.5 * 64 / 3, "n / 3 is what chance gives"


def test_message_passing_equals_its_definition() -> None:
    torch.manual_seed(0)
    layer, h = GatedGCN(5).double(), torch.randn(4, 5, dtype=torch.float64)
    ends = torch.tensor([[0, 1], [1, 0], [0, 2], [2, 0], [2, 1]])
    expected = []
    for i in range(4):
        neighbours = [j for a, j in ends.tolist() if a == i]
        gates = [torch.sigmoid(layer.gate_own(h[i]) + layer.gate_other(h[j])) for j in neighbours]
        messages = sum((g * layer.other(h[j]) for g, j in zip(gates, neighbours)), torch.zeros(5).double())
        total = sum(gates, torch.zeros(5).double())
        expected.append(h[i] + torch.relu(layer.norm(layer.own(h[i]) + messages / (total + 1e-6))))
    torch.testing.assert_close(layer(h, ends), torch.stack(expected))


@settings(deadline=None, max_examples=30)
@given(graphs=random_graphs())
def test_edges_within_tokens_equal_a_loop(graphs: GraphBatch) -> None:
    tokens = khop(graphs, np.random.default_rng(0), k=1)
    results = induced_edges(torch.from_numpy(tokens.sets), torch.from_numpy(graphs.ends), len(graphs.graph)).tolist()
    edges = {(a, b) for a, b in graphs.ends.tolist()} | {(b, a) for a, b in graphs.ends.tolist()}
    expected = [[i, j] for i, (token, a) in enumerate(tokens.sets.tolist())
                for j, (other, b) in enumerate(tokens.sets.tolist()) if token == other and (a, b) in edges]
    assert sorted(results) == expected


def batch(seed: int, sizes: tuple[int, ...] = (9, 6, 9), p: float = 0.3) -> tuple[list[Any], list[Any]]:
    draw = torch.Generator().manual_seed(seed)
    features = [torch.randn(n, 3, generator=draw) for n in sizes]
    edges = [torch.tensor(list(nx.gnp_random_graph(n, p, seed=seed + n).edges)).reshape(-1, 2) for n in sizes]
    return features, edges


def network(tokens: Any, mixers: str = "mamba+attention", **options: Any) -> GraphSequence:
    torch.manual_seed(0)
    config = StackConfig(1, 16, mixers.split("+"), options={"attention": {"causal": False, "positions": "none"}})
    model = GraphSequence(3, config, tokens, **options)
    shake(model, 0.1)
    return model.eval()


@pytest.mark.parametrize("mixers", ["mamba+attention", "gru", "gla+attention", "mlstm", "bidirectional", "hydra"])
@pytest.mark.parametrize("tokens", [*TOKENISERS, ("node", "dfs", "khop")])
def test_every_mixer_reads_every_tokenisation(tokens: Any, mixers: str) -> None:
    """Graphs do not see each other, nor the padding; gradients reach every parameter; walks aside, which are drawn."""
    model, (features, edges) = network(tokens, mixers), batch(1)
    together = model.hidden(pack_graphs(features, edges, 12))
    together.square().sum().backward()
    silent = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert silent <= {"stack.head.weight", "position.far.weight"}, "distances are told of clusters alone"
    assert together.shape == (3, 12, 16) and (together[1, 6:] == 0).all()
    if tokens != "walk":
        for row, nodes, ends in zip(together, features, edges):
            single = model.hidden(pack_graphs([nodes], [ends]))
            torch.testing.assert_close(row[: len(nodes)], single[0], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("tokens", ["khop", "dfs", "bfs", "leaves", ("khop", "dfs", "bfs")])
@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 1000))
def test_relabelled_nodes_permute_the_vectors(tokens: Any, seed: int) -> None:
    model, ([nodes], [ends]) = network(tokens), batch(seed, (10,), 0.35)
    place = torch.randperm(10, generator=torch.Generator().manual_seed(seed))
    moved = torch.empty_like(nodes)
    moved[place] = nodes
    weights = model.graphs(nodes[None], pack_graphs([nodes], [ends])[..., 4:],
                           torch.ones(1, 10, dtype=torch.bool)).weights
    components = list(nx.connected_components(nx.Graph([*ends.tolist(), *([i, i] for i in range(10))])))
    if len(set(weights.tolist())) < len(weights) or (tokens != "khop" and len(components) > 1):
        return  # ties, of which components are one: their order is that of the nodes
    with torch.no_grad():
        results, permuted = model.hidden(pack_graphs([nodes],
                                                     [ends]))[0], model.hidden(pack_graphs([moved], [place[ends]]))[0]
    torch.testing.assert_close(permuted[place], results, atol=2e-5, rtol=1e-4)


def test_nodes_without_edges_equal_a_plain_stack() -> None:
    model, (features, edges) = network("node", local=0, positions=False), batch(2)
    tokens = pack_graphs(features, edges)
    plain_stack: Stack = model.stack
    for row, nodes in enumerate(features):
        vectors = model.embed(torch.cat([torch.ones(len(nodes), 1), nodes], 1))[None]
        torch.testing.assert_close(model.hidden(tokens)[row, : len(nodes)],
                                   plain_stack.hidden(vectors, Layout.of(vectors))[0], atol=1e-5, rtol=1e-5)


def test_a_recurrence_counts_colours_and_attention_cannot() -> None:
    """The library's linear recurrence of width C without decay counts C colours; two-way attention without positions
    gives the same output for graphs with the same shares of colours, in any order."""
    colours = torch.nn.functional.one_hot(torch.tensor([0, 2, 2, 1, 0, 2]), 3).float()
    assert linear_scan(torch.ones(1, 1, 3), colours[None], torch.zeros(1, 3))[0, -1].tolist() == [2, 1, 3]
    model = network("node", "attention+attention", local=0, positions=False)
    no_edges = torch.zeros(0, 2, dtype=torch.long)
    pooled = [model.hidden(pack_graphs([nodes], [no_edges])).mean(1) for nodes in
              (colours, colours[torch.randperm(6)], torch.cat([colours, colours]))]
    for other in pooled[1:]:
        torch.testing.assert_close(other, pooled[0], atol=1e-5, rtol=1e-5)
    counting = network("node", "gru", local=0, positions=False)
    a, b = (counting.hidden(pack_graphs([nodes], [no_edges]))[0, -1]
            for nodes in (colours, torch.cat([colours, colours])))
    assert (a - b).abs().max() > 1e-3


def test_zero_eigenvalues_count_components() -> None:
    features, edges = batch(3, (8, 5), 0.3)
    tokens = pack_graphs(features, edges)
    result = laplacian_eigenvectors(tokens[..., 4:], tokens[..., 0] > 0, 4)
    assert result.shape == (2, 8, 4) and (result[1, 5:] == 0).all()
    degree = tokens[0, :, 4:].sum(-1)
    laplacian = torch.diag((degree > 0).float()) - tokens[0, :, 4:] * (degree.clamp(min=1)[:, None] *
                                                                       degree.clamp(min=1)).rsqrt()
    values = torch.linalg.eigvalsh(laplacian)
    torch.testing.assert_close(laplacian @ result[0], result[0] * values[:4], atol=1e-4, rtol=1e-4)


def test_tree_positions_add_up() -> None:
    position = TreePosition(6)
    level, scales = torch.tensor([0, 2, 40]), torch.tensor([[0, 0], [3, 0], [1, 9]])
    results = position(level, scales)
    torch.testing.assert_close(results[0], position.level.weight[0])
    torch.testing.assert_close(results[1], position.level.weight[2] + position.far.weight[3])
    torch.testing.assert_close(results[2], position.level.weight[-1] + position.far.weight[1]
                               + position.far.weight[MAX_DISTANCE + 2 + 9])


def test_bad_options_are_refused() -> None:
    for tokenisation in ("trees", []):
        with pytest.raises(SegueError, match="tokenisations"):
            network(tokenisation)
    with pytest.raises(SegueError, match="elements of 8 numbers are no nodes of 3 features in rows of 5"):
        network("node").hidden(torch.zeros(2, 5, 8))


@pytest.mark.parametrize("name", GRAPHS)
def test_graph_task_answers_equal_networkx(name: str) -> None:
    """By networkx; yes and no are as frequent, and have as many edges."""
    task = GRAPHS[name]
    for length in (task.shortest, 20):
        rows = task.test(60, length)
        assert torch.equal(rows.tokens, task.test(60, length).tokens)
        edges: dict[int, list[int]] = {}
        for tokens, targets in zip(rows.tokens, rows.targets):
            n = int(tokens[:, 0].sum())
            adjacency = tokens[:n, 1 + FEATURES : 1 + FEATURES + n]
            assert torch.equal(adjacency, adjacency.T) and not adjacency.diagonal().any()
            graph, colour = nx.from_numpy_array(adjacency.numpy()), tokens[:n, 1 : 1 + COLOURS]
            answers = targets[targets >= 0]
            if name == "degree":
                assert targets.tolist() == [min(degree, 15) for _, degree in graph.degree]
                continue
            assert len(answers) == 1 and int(targets[n - 1]) == int(answers)
            edges.setdefault(int(answers), []).append(graph.number_of_edges())
            if name == "path":
                a, b = tokens[:n, FEATURES].nonzero()[:, 0].tolist()
                assert int(answers) == min(nx.shortest_path_length(graph, a, b), 9)
            else:
                assert int(answers) == {"connectivity": nx.is_connected(graph), "cycle": not nx.is_forest(graph),
                                        "colours": int(colour[:, 0].sum())}[name]
        if name in ("connectivity", "cycle"):
            assert abs(np.mean(edges[0]) - np.mean(edges[1])) < 1.5 and 0.3 < len(edges[1]) / 60 < 0.7


def test_neighbourhood_tokens_learn_degrees() -> None:
    task = GRAPHS["degree"]
    torch.manual_seed(0)
    config = StackConfig(1, 16, ["gru"])
    model = Classifier(GraphSequence(FEATURES, config, "khop", {"khop": {"k": 1}}, local=0), LinearHead(16, 16))
    learn(model, task.batches(16, (12, 12)), 60, rate=1e-2, objective=ClassLoss("all"))
    assert accuracy(model, task.test(50, 12)) > 0.6
