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
def drawn(draw: st.DrawFn, ties: bool = False) -> GraphBatch:
    """One to three random graphs, connected or not."""
    seed, sizes = draw(st.integers(0, 10_000)), draw(st.lists(st.integers(1, 12), min_size=1, max_size=3))
    numbers = np.random.default_rng(seed)
    graph, ends, first = np.repeat(np.arange(len(sizes)), sizes), list[tuple[int, int]](), 0
    for n in sizes:
        made = nx.gnp_random_graph(n, draw(st.sampled_from([0.0, 0.2, 0.5, 1.0])), seed=seed)
        ends += [(first + a, first + b) for a, b in made.edges]
        first += n
    weights = numbers.integers(3, size=len(ends)) if ties else numbers.random(len(ends))
    return GraphBatch(graph, np.array(ends, np.int64).reshape(-1, 2), weights.astype(float))


def of_networkx(graphs: GraphBatch) -> Any:
    made = nx.Graph()
    made.add_nodes_from(range(len(graphs.graph)))
    made.add_weighted_edges_from((int(a), int(b), float(w)) for (a, b), w in zip(graphs.ends, graphs.weights))
    return made


@settings(deadline=None, max_examples=50)
@given(graphs=drawn())
def test_clusters_are_joined_by_the_maximum_spanning_forest(graphs: GraphBatch) -> None:
    tree, made = graphs.tree(), of_networkx(graphs)
    forest = {tuple(sorted(edge)) for edge in nx.maximum_spanning_edges(made, data=False)}
    assert {tuple(sorted(edge)) for edge in graphs.ends[tree.taken].tolist()} == forest


@settings(deadline=None, max_examples=50)
@given(graphs=drawn(ties=True))
def test_the_cluster_tree(graphs: GraphBatch) -> None:
    """Also where weights are equal: laminar, in at most log2 n rounds, the components at the end, each cluster
    together in the order, which is a permutation; the forest is one of the heaviest."""
    tree, made, n = graphs.tree(), of_networkx(graphs), len(graphs.graph)
    rounds = tree.clusters[:-1]
    assert len(rounds) - 1 <= int(np.ceil(np.log2(max(np.bincount(graphs.graph))))) if n > 1 else True
    assert sorted(tree.order.tolist()) == list(range(n))
    for below, above in zip(tree.clusters, tree.clusters[1:]):
        assert all(len(set(above[below == each].tolist())) == 1 for each in set(below.tolist())), "laminar"
    for level in tree.clusters:
        along = level[tree.order]
        assert np.array_equal(along, np.sort(along)), "clusters stand together, and are numbered along the order"
    parts = {frozenset(np.flatnonzero(rounds[-1] == each).tolist()) for each in rounds[-1]}
    assert parts == set(map(frozenset, nx.connected_components(made)))
    assert np.array_equal(tree.clusters[-1], graphs.graph)
    best = sum(said["weight"] for _, _, said in nx.maximum_spanning_edges(made))
    assert graphs.weights[tree.taken].sum() == pytest.approx(best)
    assert tree.taken.sum() == n - len(parts)


@settings(deadline=None, max_examples=30)
@given(graphs=drawn())
def test_neighbourhoods_distances_and_walks(graphs: GraphBatch) -> None:
    made, n = of_networkx(graphs), len(graphs.graph)
    begins, others = graphs.neighbours
    assert all(sorted(others[begins[i] : begins[i + 1]].tolist()) == sorted(made[i]) for i in range(n))
    found = loops.k_hop_neighbourhoods(begins, others, 2)
    for i in range(n):
        for radius in range(3):
            expected = nx.single_source_shortest_path_length(made, i, radius)
            assert sorted(found[(found[:, 0] == i) & (found[:, 1] == radius), 2].tolist()) == sorted(expected)
    a, b = (each.reshape(-1) for each in np.meshgrid(np.arange(n), np.arange(n)))
    ways = dict(nx.all_pairs_shortest_path_length(made))
    wanted = [min(ways[i].get(j, 4), 4) for i, j in zip(a, b)]
    assert loops.shortest_distances(begins, others, a, b, 4).tolist() == wanted
    for trail in loops.random_walks(begins, others, np.random.default_rng(0).random((n, 5))):
        assert all(made.has_edge(i, j) or (i == j and not made[i]) for i, j in zip(trail, trail[1:]))


@settings(deadline=None, max_examples=30)
@given(graphs=drawn(), name=st.sampled_from(list(TOKENISERS)))
def test_every_tokenisation_has_each_node_once_as_its_own_token(graphs: GraphBatch, name: str) -> None:
    tokens = TOKENISERS[name](graphs, np.random.default_rng(0))
    n = len(graphs.graph)
    own = tokens.rows.reshape(-1)[tokens.own]
    assert len(set(tokens.own.tolist())) == n and (own >= 0).all()
    for i, token in enumerate(own):
        assert tokens.sets[tokens.sets[:, 0] == token, 1].tolist() == [i]
    known = tokens.rows >= 0
    assert (known[:, :-1] >= known[:, 1:]).all(), "padding is behind"
    assert tokens.rows.max() < len(tokens.level) and tokens.rows[known].min() >= 0
    if tokens.scales is not None:
        assert len(tokens.scales) == len(tokens.level) and tokens.scales.max(initial=0) <= MAX_DISTANCE + 1


def test_tokens_by_hand() -> None:
    """Two nodes joined strongly, a third hung on to them, a fourth alone; and a graph of one node."""
    graphs = GraphBatch(np.array([0, 0, 0, 0, 1]), np.array([[0, 1], [1, 2]]), np.array([0.9, 0.1]))
    draw = np.random.default_rng(0)

    def said(tokens: Any) -> list[list[set[int]]]:
        return [[set(tokens.sets[tokens.sets[:, 0] == token, 1].tolist()) for token in row if token >= 0]
                for row in tokens.rows]

    every = {0, 1, 2, 3}
    assert said(dfs(graphs, draw)) == [[every, {0, 1, 2}, {0}], [every, {0, 1, 2}, {1}], [every, {0, 1, 2}, {2}],
                                       [every, {3}], [{4}, {4}]]
    order = graphs.tree().order.tolist()
    assert said(bfs(graphs, draw))[0] in ([every, {0, 1, 2}, *({i} for i in order[:4])],)
    assert said(khop(graphs, draw, k=1))[1:3] == [[{0, 1, 2}, {1}], [{1, 2}, {2}]]
    assert [row[-1] for row in said(walk(graphs, draw, length=3))] == [{0}, {1}, {2}, {3}, {4}]
    assert said(leaves(graphs, draw)) == [[{i} for i in order[:4]], [{4}]]


@pytest.mark.parametrize("made", [nx.grid_2d_graph(8, 8), nx.random_labeled_tree(64, seed=4)])
def test_the_order_of_the_tree_is_local(made: Any) -> None:
    """Ends of edges stand nearer to each other than in an order at random."""
    ends = np.array(nx.convert_node_labels_to_integers(made).edges)
    order = GraphBatch(np.zeros(64, np.int64), ends, np.random.default_rng(1).random(len(ends))).tree().order
    place = np.argsort(order)
    apart = np.abs(place[ends[:, 0]] - place[ends[:, 1]]).mean()
    assert apart < 0.5 * 64 / 3, "n / 3 is what chance gives"


def test_message_passing_by_its_definition() -> None:
    torch.manual_seed(0)
    layer, h = GatedGCN(5).double(), torch.randn(4, 5, dtype=torch.float64)
    ends = torch.tensor([[0, 1], [1, 0], [0, 2], [2, 0], [2, 1]])
    expected = []
    for i in range(4):
        near = [j for a, j in ends.tolist() if a == i]
        gates = [torch.sigmoid(layer.gate_own(h[i]) + layer.gate_other(h[j])) for j in near]
        heard = sum((g * layer.other(h[j]) for g, j in zip(gates, near)), torch.zeros(5).double())
        total = sum(gates, torch.zeros(5).double())
        expected.append(h[i] + torch.relu(layer.norm(layer.own(h[i]) + heard / (total + 1e-6))))
    torch.testing.assert_close(layer(h, ends), torch.stack(expected))


@settings(deadline=None, max_examples=30)
@given(graphs=drawn())
def test_edges_within_tokens(graphs: GraphBatch) -> None:
    tokens = khop(graphs, np.random.default_rng(0), k=1)
    found = induced_edges(torch.from_numpy(tokens.sets), torch.from_numpy(graphs.ends), len(graphs.graph)).tolist()
    edges = {(a, b) for a, b in graphs.ends.tolist()} | {(b, a) for a, b in graphs.ends.tolist()}
    expected = [[i, j] for i, (token, a) in enumerate(tokens.sets.tolist())
                for j, (other, b) in enumerate(tokens.sets.tolist()) if token == other and (a, b) in edges]
    assert sorted(found) == expected


def batch(seed: int, sizes: tuple[int, ...] = (9, 6, 9), p: float = 0.3) -> tuple[list[Any], list[Any]]:
    draw = torch.Generator().manual_seed(seed)
    features = [torch.randn(n, 3, generator=draw) for n in sizes]
    edges = [torch.tensor(list(nx.gnp_random_graph(n, p, seed=seed + n).edges)).reshape(-1, 2) for n in sizes]
    return features, edges


def network(tokens: Any, mixers: str = "mamba+attention", **options: Any) -> GraphSequence:
    torch.manual_seed(0)
    config = StackConfig(1, 16, mixers.split("+"), options={"attention": {"causal": False, "positions": "none"}})
    made = GraphSequence(3, config, tokens, **options)
    shake(made, 0.1)
    return made.eval()


@pytest.mark.parametrize("mixers", ["mamba+attention", "gru", "gla+attention", "mlstm", "bidirectional", "hydra"])
@pytest.mark.parametrize("tokens", [*TOKENISERS, ("node", "dfs", "khop")])
def test_any_mixer_reads_any_tokenisation(tokens: Any, mixers: str) -> None:
    """Graphs do not see each other, nor the padding; gradients reach every parameter; walks aside, which are drawn."""
    made, (features, edges) = network(tokens, mixers), batch(1)
    together = made.hidden(pack_graphs(features, edges, 12))
    together.square().sum().backward()
    silent = {name for name, parameter in made.named_parameters() if parameter.grad is None}
    assert silent <= {"stack.head.weight", "position.far.weight"}, "distances are told of clusters alone"
    assert together.shape == (3, 12, 16) and (together[1, 6:] == 0).all()
    if tokens != "walk":
        for row, own, ends in zip(together, features, edges):
            alone = made.hidden(pack_graphs([own], [ends]))
            torch.testing.assert_close(row[: len(own)], alone[0], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("tokens", ["khop", "dfs", "bfs", "leaves", ("khop", "dfs", "bfs")])
@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 1000))
def test_relabelled_nodes_permute_the_vectors(tokens: Any, seed: int) -> None:
    made, ([own], [ends]) = network(tokens), batch(seed, (10,), 0.35)
    place = torch.randperm(10, generator=torch.Generator().manual_seed(seed))
    moved = torch.empty_like(own)
    moved[place] = own
    weights = made.graphs(own[None], pack_graphs([own], [ends])[..., 4:], torch.ones(1, 10, dtype=torch.bool)).weights
    components = list(nx.connected_components(nx.Graph([*ends.tolist(), *([i, i] for i in range(10))])))
    if len(set(weights.tolist())) < len(weights) or (tokens != "khop" and len(components) > 1):
        return  # ties, of which components are one: their order is that of the nodes
    with torch.no_grad():
        found, again = made.hidden(pack_graphs([own], [ends]))[0], made.hidden(pack_graphs([moved], [place[ends]]))[0]
    torch.testing.assert_close(again[place], found, atol=2e-5, rtol=1e-4)


def test_nodes_without_edges_are_what_a_plain_stack_reads() -> None:
    made, (features, edges) = network("node", local=0, positions=False), batch(2)
    tokens = pack_graphs(features, edges)
    plain: Stack = made.stack
    for row, own in enumerate(features):
        vectors = made.embed(torch.cat([torch.ones(len(own), 1), own], 1))[None]
        torch.testing.assert_close(made.hidden(tokens)[row, : len(own)], plain.hidden(vectors, Layout.of(vectors))[0],
                                   atol=1e-5, rtol=1e-5)


def test_a_recurrence_counts_where_attention_knows_shares_only() -> None:
    """The linear recurrence of the library, of width C and with nothing forgotten, counts C colours; attention that
    looks both ways, without positions, says the same of graphs with the same shares of colours, and of any order."""
    colours = torch.nn.functional.one_hot(torch.tensor([0, 2, 2, 1, 0, 2]), 3).float()
    assert linear_scan(torch.ones(1, 1, 3), colours[None], torch.zeros(1, 3))[0, -1].tolist() == [2, 1, 3]
    made = network("node", "attention+attention", local=0, positions=False)
    none = torch.zeros(0, 2, dtype=torch.long)
    pooled = [made.hidden(pack_graphs([each], [none])).mean(1) for each in
              (colours, colours[torch.randperm(6)], torch.cat([colours, colours]))]
    for other in pooled[1:]:
        torch.testing.assert_close(other, pooled[0], atol=1e-5, rtol=1e-5)
    counting = network("node", "gru", local=0, positions=False)
    a, b = (counting.hidden(pack_graphs([each], [none]))[0, -1] for each in (colours, torch.cat([colours, colours])))
    assert (a - b).abs().max() > 1e-3


def test_the_spectrum_says_how_many_components_there_are() -> None:
    features, edges = batch(3, (8, 5), 0.3)
    tokens = pack_graphs(features, edges)
    found = laplacian_eigenvectors(tokens[..., 4:], tokens[..., 0] > 0, 4)
    assert found.shape == (2, 8, 4) and (found[1, 5:] == 0).all()
    degree = tokens[0, :, 4:].sum(-1)
    laplacian = torch.diag((degree > 0).float()) - tokens[0, :, 4:] * (degree.clamp(min=1)[:, None] *
                                                                       degree.clamp(min=1)).rsqrt()
    values = torch.linalg.eigvalsh(laplacian)
    torch.testing.assert_close(laplacian @ found[0], found[0] * values[:4], atol=1e-4, rtol=1e-4)


def test_tree_positions_add_up() -> None:
    position = TreePosition(6)
    level, scales = torch.tensor([0, 2, 40]), torch.tensor([[0, 0], [3, 0], [1, 9]])
    found = position(level, scales)
    torch.testing.assert_close(found[0], position.level.weight[0])
    torch.testing.assert_close(found[1], position.level.weight[2] + position.far.weight[3])
    torch.testing.assert_close(found[2], position.level.weight[-1] + position.far.weight[1]
                               + position.far.weight[MAX_DISTANCE + 2 + 9])


def test_mistakes_are_told() -> None:
    for wrong in ("trees", []):
        with pytest.raises(SegueError, match="tokenisations"):
            network(wrong)
    with pytest.raises(SegueError, match="elements of 8 numbers are no nodes of 3 features in rows of 5"):
        network("node").hidden(torch.zeros(2, 5, 8))


@pytest.mark.parametrize("name", GRAPHS)
def test_answers_of_tasks(name: str) -> None:
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
            made, colour = nx.from_numpy_array(adjacency.numpy()), tokens[:n, 1 : 1 + COLOURS]
            asked = targets[targets >= 0]
            if name == "degree":
                assert targets.tolist() == [min(degree, 15) for _, degree in made.degree]
                continue
            assert len(asked) == 1 and int(targets[n - 1]) == int(asked)
            edges.setdefault(int(asked), []).append(made.number_of_edges())
            if name == "path":
                a, b = tokens[:n, FEATURES].nonzero()[:, 0].tolist()
                assert int(asked) == min(nx.shortest_path_length(made, a, b), 9)
            else:
                assert int(asked) == {"connectivity": nx.is_connected(made), "cycle": not nx.is_forest(made),
                                      "colours": int(colour[:, 0].sum())}[name]
        if name in ("connectivity", "cycle"):
            assert abs(np.mean(edges[0]) - np.mean(edges[1])) < 1.5 and 0.3 < len(edges[1]) / 60 < 0.7


def test_neighbourhoods_learn_degrees() -> None:
    task = GRAPHS["degree"]
    torch.manual_seed(0)
    config = StackConfig(1, 16, ["gru"])
    model = Classifier(GraphSequence(FEATURES, config, "khop", {"khop": {"k": 1}}, local=0), LinearHead(16, 16))
    learn(model, task.batches(16, (12, 12)), 60, rate=1e-2, objective=ClassLoss("all"))
    assert accuracy(model, task.test(50, 12)) > 0.6
