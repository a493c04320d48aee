"""Graphs: what is spelled is understood, whatever form a file has, and however its nodes are numbered."""

from __future__ import annotations

import json
import random
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import segue
from segue.errors import SegueError
from segue.kinds import KINDS
from segue.kinds.base import Problems, head_of
from segue.kinds.graph import DIGITS, Graph, graph_from_tokens, graph_to_tokens, node_colours, order_of
from segue.kinds.packed import bare
from segue.testing.kinds import check_kind

nx: Any = pytest.importorskip("networkx")
GRAPHS: Any = KINDS["graph"]


@st.composite
def graphs(draw: st.DrawFn, unlabelled: bool = False) -> Graph:
    n = draw(st.integers(1, 12))
    nodes = draw(st.lists(st.sampled_from([""] if unlabelled else ["", "C", "-3", "é", "="]), min_size=n, max_size=n))
    ends = st.integers(0, n - 1)
    if unlabelled:
        pairs = draw(st.sets(st.tuples(ends, ends).filter(lambda pair: pair[0] < pair[1])))
        return Graph(nodes, [(a, b, False, "") for a, b in sorted(pairs)])
    edge = st.tuples(ends, ends, st.booleans(), st.sampled_from(["", "1", ":2"]))
    return Graph(nodes, draw(st.lists(edge, max_size=25)), draw(st.sampled_from(["", "7"])))


def shuffled(graph: Graph, seed: int) -> Graph:
    """The same graph with its nodes and edges in another order."""
    draw = random.Random(seed)
    place = list(range(len(graph.nodes)))
    draw.shuffle(place)
    nodes = [""] * len(place)
    for old, new in enumerate(place):
        nodes[new] = graph.nodes[old]
    edges = [(place[a], place[b], directed, label) for a, b, directed, label in graph.edges]
    edges = [(b, a, *attributes) if not attributes[0] and draw.random() < 0.5 else (a, b, *attributes)
             for a, b, *attributes in edges]
    draw.shuffle(edges)
    return Graph(nodes, edges, graph.label)


def isomorphic(first: Graph, second: Graph) -> bool:
    """Isomorphic, labels and directions included: by networkx, on a graph with a node in the middle of each edge."""
    def subdivided(graph: Graph) -> Any:
        network = nx.MultiDiGraph()
        for i, label in enumerate(graph.nodes):
            network.add_node(i, said=label)
        for number, (a, b, directed, label) in enumerate(graph.edges):
            network.add_node(f"e{number}", said=(directed, label))
            network.add_edge(a, f"e{number}")
            network.add_edge(f"e{number}", b)
            if not directed:
                network.add_edge(b, f"e{number}")
                network.add_edge(f"e{number}", a)
        return network

    return first.label == second.label and nx.is_isomorphic(subdivided(first), subdivided(second),
                                                            node_match=lambda a, b: a["said"] == b["said"])


@settings(deadline=None)
@given(graph=graphs(), order=st.sampled_from(["dfs", "bfs", "given"]))
def test_graph_tokens_round_trip(graph: Graph, order: str) -> None:
    items = graph_to_tokens(graph, order)
    decoded = graph_from_tokens(items)
    assert isomorphic(graph, decoded)
    assert graph_to_tokens(decoded, order) == items, "it is spelled in one way"
    assert sorted(order_of(graph, order)) == list(range(len(graph.nodes)))


@settings(deadline=None)
@given(graph=graphs(), seed=st.integers(0, 1000), order=st.sampled_from(["dfs", "bfs"]))
def test_the_order_of_a_file_does_not_matter(graph: Graph, seed: int, order: str) -> None:
    other = shuffled(graph, seed)
    assert sorted(node_colours(graph).tolist()) == sorted(node_colours(other).tolist())
    if len(set(node_colours(graph).tolist())) == len(graph.nodes):  # no ties
        assert graph_to_tokens(graph, order) == graph_to_tokens(other, order)


def test_graph_signs_equal_those_by_hand() -> None:
    assert graph_to_tokens(Graph(["C", "O", "C"], [(0, 2, False, "1"), (2, 1, False, "1")], "7")) in (
        ["=7", "@O", "@C", "-1", ":1", "@C", "-1", ":1"], ["=7", "@C", "@C", "-1", ":1", "@O", "-1", ":1"])
    assert graph_to_tokens(Graph(["", "", ""], [(0, 1, False, ""), (1, 2, False, ""), (0, 2, False, "")])) == \
        ["@", "@", "-1", "@", "-1", "-2"]
    assert graph_to_tokens(Graph(["a", "b"], [(0, 1, True, ""), (1, 0, True, "x"), (1, 1, False, "")]), "given") == \
        ["@a", "@b", "-0", "<1", ":x", ">1"]
    distant = Graph([""] * 300, [(0, 299, False, ""), (10, 299, True, "y")])
    items = graph_to_tokens(distant, "given")
    assert items[-5:] == ["+4", ">33", ":y", "+4", "-43"] and graph_from_tokens(items) == \
        Graph(distant.nodes, [(10, 299, True, "y"), (0, 299, False, "")])
    assert Counter(graph_to_tokens(Graph([""] * (DIGITS**2 + 2), [(0, DIGITS**2 + 1, False, "")]), "given")) == \
        {"@": DIGITS**2 + 2, "+1": 1, "+0": 1, "-1": 1}


def test_malformed_tokens_become_the_valid_part_of_a_graph() -> None:
    malformed = ["-1", ":2", "+5", "@C", ":3", "-4", ":1", "@O", "-1", "=9", "+1", "x", "-1", ":2", ":3", "-"]
    assert graph_from_tokens(malformed) == Graph(["C", "O"], [(0, 1, False, ""), (0, 1, False, "2")])
    assert graph_from_tokens(["+63"] * 5000 + ["@", "-1"]) == Graph([""], [])


def of_networkx(network: Any) -> Graph:
    place = {node: i for i, node in enumerate(network)}
    return Graph([""] * len(place), [(place[a], place[b], network.is_directed(), "") for a, b in network.edges()])


def read_one(path: Path, **options: Any) -> Graph:
    [record] = GRAPHS.read(path, **options)
    return graph_from_tokens(record.object)


SAMPLES = {
    "karate": nx.karate_club_graph(), "directed": nx.gnp_random_graph(12, 0.2, seed=3, directed=True),
    "tree": nx.random_labeled_tree(9, seed=1), "alone": nx.empty_graph(3), "loops": nx.Graph([(0, 0), (0, 1), (2, 2)]),
    "several": nx.MultiGraph([(0, 1), (0, 1), (1, 2), (3, 3)]), "large": nx.gnp_random_graph(100, 0.05, seed=2),
    "words": nx.relabel_nodes(nx.path_graph(4), {0: 'New "York"', 1: "Zürich", 2: "a & b <c>", 3: "x"}),
}


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("form", ["graphml", "gml", "json", "g6", "s6", "edgelist", "adjlist"])
def test_files_written_by_networkx_are_read(tmp_path: Path, name: str, form: str) -> None:
    network, path, directed = SAMPLES[name], tmp_path / f"graph.{form}", False
    lists = form in ("edgelist", "adjlist")
    short = form in ("g6", "s6")
    if (short and (network.is_directed() or name == "words")) or (form == "g6" and name in ("loops", "several")):
        pytest.skip("networkx does not write these so")
    if lists and name in ("alone", "words"):
        pytest.skip("edge lists have no nodes without edges, and no names with blanks")
    if form == "json":
        path.write_text(json.dumps(nx.node_link_data(network, edges="links")))
    elif short:
        {"g6": nx.write_graph6, "s6": nx.write_sparse6}[form](network, path)
    else:
        getattr(nx, f"write_{form}")(network, path)
    directed = network.is_directed() if lists else None
    if lists:
        network = network.edge_subgraph(network.edges)
    assert isomorphic(read_one(path, directed=directed, node="", edge=""), of_networkx(network))
    assert GRAPHS.sniff(path, head_of(path)) > 0.9


@pytest.mark.parametrize("form", ["graphml", "gml", "json", "jsonl", "g6", "edgelist", "txt"])
@settings(max_examples=15, deadline=None)
@given(graph=graphs(), simple=graphs(unlabelled=True))
def test_written_files_are_read_back_and_by_networkx(tmp_path_factory: pytest.TempPathFactory, form: str, graph: Graph,
                                                     simple: Graph) -> None:
    path = tmp_path_factory.mktemp("graph") / f"graph.{form}"
    for original in (graph, simple):
        items = graph_to_tokens(original)
        try:
            GRAPHS.write([items], path)
        except SegueError as error:
            assert "write GraphML" in str(error)
            continue
        [record] = GRAPHS.read(path, label=True)
        assert record.object == items
        original = graph_from_tokens(items)
        if form == "gml":
            network = nx.parse_gml(path.read_text(), label="id")
        elif form in ("graphml", "txt"):
            if len({directed for _, _, directed, _ in original.edges}) > 1:
                continue  # networkx takes no mixture
            network = nx.parse_graphml(path.read_text())
        elif form == "g6":
            network = nx.read_graph6(path)
        elif form == "edgelist":
            network = nx.read_edgelist(path, create_using=nx.MultiGraph, data=False)
        else:
            network = nx.node_link_graph(json.loads(path.read_text()), edges="links")
        assert (len(network), network.number_of_edges()) == (len(original.nodes), len(original.edges))
        labels = [attributes.get("node_label", "") for _, attributes in network.nodes(data=True)]
        assert form in ("g6", "edgelist") or labels == original.nodes


def tu(folder: Path, first: int = 1) -> Path:
    """Two molecules, the second with a bond to itself."""
    folder.mkdir(exist_ok=True)
    for part, lines in {
        "A": [(1, 2), (2, 1), (2, 3), (3, 2), (4, 5), (5, 4), (5, 5)], "edge_labels": [1, 1, 2, 2, 1, 1, 3],
        "graph_indicator": [1, 1, 1, 2, 2], "graph_labels": [-1, 1], "node_labels": [6, 6, 8, 7, 6],
        "node_attributes": ["0.5, 1.5"] * 5}.items():
        moved = [", ".join(str(n - 1 + first) for n in line) if isinstance(line, tuple) else str(line)
                 for line in lines]
        (folder / f"DS_{part}.txt").write_text("\n".join(moved) + "\n")
    return folder


MUTAG = "2\n3 1\n6 1 1\n6 2 0 2\n8 1 1\n2 -1\n7 1 1 0.25 3\n6 2 0 1 0.5 4\n"
GML = """# made by hand
Creator "me"
graph [
  comment "a ] in words, &#233;"
  directed 0
  node [ id 7 label "a" type "atom" graphics [ x 1.5 y 2 ] ]
  node [ id 3 label "b" type "ring" ]
  edge [ source 7 target 3 value 2 ]
]
"""


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    written = {
        "dgcnn.txt": MUTAG, "hand.gml": GML, "list.csv": "source,target,type\na,b,likes\nb,c,knows\nc,a,likes\n",
        "snap.txt": "# Directed graph (each unordered pair)\n# Nodes: 3 Edges: 3\n# FromNodeId\tToNodeId\n"
                    "10\t20\n20\t30\n30\t10\n",
        "matrix.mtx": "%%MatrixMarket matrix coordinate pattern symmetric\n% made by hand\n4 4 3\n2 1\n3 2\n3 3\n",
        "index.jsonl": '{"edge_index": [[0, 1, 1, 2], [1, 0, 2, 1]], "node_feat": [[6, 0], [6, 1], [8, 0]], "y": [1], '
                       '"edge_attr": [[1], [1], [2], [2]], "num_nodes": 3}\n'
                       '{"edge_index": [[], []], "edge_attr": [], "node_feat": [[6, 0]], "y": [0], "num_nodes": 1}\n',
        "triples.jsonl": '{"graph": [[0, 1, 1], [1, 2, 2]], "node_features": [[1, 0.5], [0, 0.25], [1, 0]], '
                         '"id": "m1"}\n',
        "d3.json": '{"nodes": [{"name": "x", "group": 1}, {"name": "y", "group": 2}], '
                   '"links": [{"source": 0, "target": 1, "value": 1}]}',
        "cytoscape.json": '{"data": {"name": "c"}, "elements": {"nodes": [{"data": {"id": "p"}}, {"data": '
                          '{"id": "q"}}], "edges": [{"data": {"source": "p", "target": "q", "type": "t"}}]}}',
        "jgf.json": '{"graph": {"directed": true, "nodes": {"a": {"label": "A"}, "b": {"label": "B"}}, '
                    '"edges": [{"source": "a", "target": "b", "relation": "eats"}]}}',
        "two.graphml": '<?xml version="1.0"?><graphml xmlns="http://graphml.graphdrawing.org/xmlns"><!-- two -->'
                       '<key id="k" for="node" attr.name="type" attr.type="string"/>'
                       '<graph id="first" edgedefault="directed"><node id="a"><data key="k">x y</data></node>'
                       '<node id="b"/><edge source="a" target="b"/><edge directed="false" source="b" target="a"/>'
                       '</graph><graph edgedefault="undirected"><node id="a"/></graph></graphml>',
        "lines.g6": ">>graph6<<D?{\nBw\n", "lines.s6": ":Fa@x^\n", "lines.d6": "&DI?AO?\n"}
    for name, text in written.items():
        (tmp_path / name).write_text(text)
    tu(tmp_path / "tu")
    return {path.name: path for path in [*(tmp_path / name for name in written), tmp_path / "tu" / "DS_A.txt"]}


def test_the_contract(files: dict[str, Path]) -> None:
    check_kind(GRAPHS, files.values(), mutations=12)


def test_small_files_give_the_expected_graphs(files: dict[str, Path], tmp_path: Path) -> None:
    def read(name: str, **options: Any) -> list[Graph]:
        assert GRAPHS.sniff(bare(files[name]), head_of(files[name])) > 0.7
        return [graph for _, graph in GRAPHS.graphs(files[name], **options)]

    molecules = [Graph(["6", "6", "8"], [(0, 1, False, "1"), (1, 2, False, "2")], "-1"),
                 Graph(["7", "6"], [(0, 1, False, "1"), (1, 1, False, "3")], "1")]
    assert read("DS_A.txt") == molecules
    assert [graph for _, graph in GRAPHS.graphs(tu(tmp_path / "zero", 0) / "DS_A.txt")] == molecules, "counted from 0"
    assert read("dgcnn.txt") == [Graph(["6", "6", "8"], [(0, 1, False, ""), (1, 2, False, "")], "1"),
                                 Graph(["7", "6"], [(0, 1, False, ""), (1, 1, False, "")], "-1")]
    assert read("hand.gml") == [Graph(["a", "b"], [(0, 1, False, "2")])]
    assert read("hand.gml", node="type") == [Graph(["atom", "ring"], [(0, 1, False, "2")])]
    assert read("list.csv") == [Graph([""] * 3, [(i, (i + 1) % 3, False, label) for i, label in
                                                 enumerate(("likes", "knows", "likes"))])]
    assert read("snap.txt") == [Graph([""] * 3, [(0, 1, True, ""), (1, 2, True, ""), (2, 0, True, "")])]
    assert read("matrix.mtx") == [Graph([""] * 4, [(1, 0, False, ""), (2, 1, False, ""), (2, 2, False, "")])]
    assert read("index.jsonl") == [Graph(["6,0", "6,1", "8,0"], [(0, 1, False, "1"), (1, 2, False, "2")], "1"),
                                   Graph(["6,0"], [], "0")]
    assert read("triples.jsonl") == [Graph(["1", "0", "1,0"], [(0, 1, False, "1"), (1, 2, False, "2")])]
    assert read("d3.json") == [Graph(["1", "2"], [(0, 1, False, "1")])]
    assert read("cytoscape.json") == [Graph(["", ""], [(0, 1, False, "t")])]
    assert read("jgf.json") == [Graph(["A", "B"], [(0, 1, True, "eats")])]
    assert read("two.graphml") == [Graph(["x_y", ""], [(0, 1, True, ""), (1, 0, False, "")]), Graph([""], [])]
    assert read("lines.g6")[1] == Graph([""] * 3, [(0, 1, False, ""), (0, 2, False, ""), (1, 2, False, "")])
    assert len(read("lines.s6")[0].nodes) == 7 and {edge[2] for edge in read("lines.d6")[0].edges} == {True}


def test_edge_lists_in_common_variants(tmp_path: Path) -> None:
    def graph(name: str, text: str, **options: Any) -> Graph:
        (tmp_path / name).write_text(text)
        return next(graph for _, graph in GRAPHS.graphs(tmp_path / name, **options))

    triangle = [(0, 1, False, ""), (1, 2, False, ""), (2, 0, False, "")]
    names = 'source,target,weight\nNew York,"Los Angeles, CA",0.5\n"Los Angeles, CA",Rome,0.7\nRome,New York,0.1\n'
    assert graph("names.csv", names) == Graph([""] * 3, triangle)
    assert read_kind(tmp_path / "names.csv") == "graph"
    assert graph("weights.csv", "source,target,weight\n1,2,0.5\n2,3,0.7\n3,1,0.5\n") == Graph([""] * 3, triangle)
    assert read_kind(tmp_path / "weights.csv") == "graph"  # and no series of three columns
    for heading in ("id_1,id_2", "person a,person b"):  # a heading is no edge
        assert graph("ids.csv", f"{heading}\n1,2\n2,3\n3,1\n") == Graph([""] * 3, triangle)
    gephi = "Source;Target;Type;Id;Label;Weight\na;b;Directed;0;;1.0\nb;c;{};1;;1.0\n"
    assert graph("gephi.csv", gephi.format("Directed")).edges == [(0, 1, True, ""), (1, 2, True, "")]
    assert graph("gephi.csv", gephi.format("Undirected")).edges == [(0, 1, True, ""), (1, 2, False, "")]
    assert graph("nx.edgelist", "a b {'weight': 1, 'x': 2}\nb c {}\n").edges == triangle[:2]
    assert graph("tabs.edges", "a b\tc d\nc d\ta b\n") == Graph(["", ""], triangle[:1])
    pairs = [(a, (a * a + b) % 40) for a in range(40) for b in (1, 2, 3)]  # of SNAP without a heading
    for name, lines, kind in (("combined.txt", [(a, b) for a, b in pairs if a < b], "graph"),
                              ("email.txt", [*pairs, *((b, a) for a, b in pairs if (b, a) not in pairs)], "graph"),
                              ("clicks.txt", [(a, 5 * b) for a, b in pairs], "events")):
        (tmp_path / name).write_text("".join(f"{a} {b}\n" for a, b in lines))
        assert read_kind(tmp_path / name) == kind


def test_links_after_many_nodes_are_found(tmp_path: Path) -> None:
    nodes, links = [{"id": i} for i in range(8000)], [{"source": 0, "target": 1}]
    (tmp_path / "d3.json").write_text(json.dumps({"nodes": nodes, "links": links}))
    assert read_kind(tmp_path / "d3.json") == "graph"


def read_kind(path: Path) -> str:
    return segue.read(path).kind.name


def test_a_graph_set_in_several_files_is_read(files: dict[str, Path], tmp_path: Path) -> None:
    """By the folder, by one of the files, and in an archive beside a README."""
    expected = [["@8", "@6", "-1", ":2", "@6", "-1", ":1"], ["@7", "@6", "-0", ":3", "-1", ":1"]]
    folder = files["DS_A.txt"].parent
    with zipfile.ZipFile(tmp_path / "DS.zip", "w") as archive:
        archive.writestr("DS/README.txt", "Five nodes.")
        for file in folder.iterdir():
            archive.write(file, f"DS/{file.name}")
    for paths in ([folder], [folder / "DS_A.txt"], [folder / "DS_graph_labels.txt"], [tmp_path / "DS.zip"],
                  [folder / "DS_node_labels.txt", folder / "DS_A.txt"]):
        data = segue.read(*paths)
        assert data.kind.name == "graph" and not data.problems
        assert sorted(len(record) for record in data) == sorted(map(len, expected))
        assert {frozenset(Counter(record.object).items()) for record in data} == \
            {frozenset(Counter(items).items()) for items in expected}


def test_citation_graphs_take_labels_from_the_other_file(tmp_path: Path) -> None:
    """The subjects in one file label the nodes of the other; cited papers that are missing are reported."""
    (tmp_path / "cora.content").write_text("31336\t0\t1\tTheory\n1061127\t1\t0\tRules\n99\t0\t0\tTheory\n")
    (tmp_path / "cora.cites").write_text("31336\t1061127\n99\t31336\n99\t7\n")
    for path in (tmp_path, tmp_path / "cora.cites", tmp_path / "cora.content"):
        data = segue.read(path)
        assert (data.kind.name, data.problems.total) == ("graph", 1)
        assert "line 3: not two papers" in str(data.problems[0])
        assert [sorted(record.object) for record in data] == [["-1", "-1", "@Rules", "@Theory", "@Theory"]]


@pytest.mark.parametrize("name, text, message", [
    ("a.graphml", "<graphml><graph><node id='1'/><edge source='1' target='2'/></graph></graphml>", "1, position 1"),
    ("a.graphml", "<graphml><graph>", r"a\.graphml: no GraphML that can be read"),
    ("a.graphml", "<graphml></graphml>", "there is no graph"),
    ("a.graphml", "<graphml><graph/></graphml>", "no nodes"),
    ("a.graphml", "<graphml><graph><node id='1'/><node id='1'/></graph></graphml>", "two nodes are called '1'"),
    ("a.gml", "graph [ node [ id 1 ] ", "never closed"), ("a.gml", "graph [\n 3 4 ]", "line 2: '3' where a key"),
    ("a.gml", "graph [ node [ id 1 ] edge [ source 1 ] ]", "position 1: the edge has no source and target"),
    ("a.json", '{"nodes": [{"id": 1}], "links": [{"source": 1, "target": 4}]}', "node '4'"),
    ("a.json", '{"nodes": [{"id": 1}], "links": [', "no JSON that can be read"),
    ("a.json", '{"nodes": 3, "links": []}', "no graph: write nodes"),
    ("a.g6", "D?", "does not have the 2 signs that 5 nodes take"), ("a.g6", "~~?zzzzzz", "too many"),
    ("a.s6", ";x", "incremental"), ("a.edges", "1 2\n3\n", "record line 2: not two nodes"),
    ("a.mtx", "%%MatrixMarket matrix coordinate\n3 3 5\n1 2\n", "cut short"),
    ("a.txt", "3\n1 0\n0 0\n", "no graph 2 of 3 begins here"),
    ("a.txt", "2\n1 0\n0 0\n2 1\n0 1 1\n", "record 2: has 1 of 2 nodes"),
    ("a.txt", "1\n1 0\n0 1 5\n", "a node 5 that the graph does not have")])
def test_mistakes_are_told_in_one_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(SegueError, match=message) as error:
        list(GRAPHS.read(tmp_path / name))
    assert name.split("_")[0] in str(error.value)


def test_damaged_data_sets_name_the_file(tmp_path: Path) -> None:
    for part, text, message in (("A", "1, 2\n1, x\n", r"DS_A\.txt, line 2: not two whole numbers"),
                                ("A", "1, 4\n", "a node 4 that the graph"),
                                ("A", "1, 9\n9, 1\n", "record line 2: node 9"),
                                ("node_labels", "1\n", r"DS_node_labels\.txt: has 1 lines for 5 nodes"),
                                ("graph_labels", "1\n", r"DS_graph_labels\.txt: has 1 lines for graph 2")):
        folder = tu(tmp_path / "tu")
        (folder / "DS_edge_labels.txt").unlink()
        (folder / f"DS_{part}.txt").write_text(text)
        with pytest.raises(SegueError, match=message):
            list(GRAPHS.read(folder / "DS_A.txt", label=True))


def test_graphml_keys_give_default_values(tmp_path: Path) -> None:
    path = tmp_path / "defaults.graphml"
    path.write_text('<graphml xmlns="http://graphml.graphdrawing.org/xmlns">'
                    '<key id="d0" for="node" attr.name="label" attr.type="string"><default> C </default></key>'
                    '<key id="d1" for="edge" attr.name="bond" attr.type="int"><desc/><default>1</default></key>'
                    '<key id="d2" attr.name="class" attr.type="string"><default>x</default></key>'
                    '<graph edgedefault="undirected"><node id="a"/><node id="b"><data key="d0">O</data></node>'
                    '<node id="c"/><edge source="a" target="b"/><edge source="b" target="c"><data key="d1">2</data>'
                    '</edge></graph></graphml>')
    record = next(iter(GRAPHS.read(path, label=True)))
    result = graph_from_tokens(record.object)
    assert sorted(result.nodes) == ["C", "C", "O"] and sorted(edge[3] for edge in result.edges) == ["1", "2"]
    assert result.label == "x"
    assert nx.parse_graphml(path.read_text()).graph["node_default"] == {"label": " C "}  # as others read it


def test_attributes_that_name_or_measure_are_no_labels(tmp_path: Path) -> None:
    """Attributes whose values hardly come again name or measure; one may ask for them, and for one there is not."""
    nx.write_gml(nx.path_graph(8), tmp_path / "path.gml")
    assert set(next(GRAPHS.read(tmp_path / "path.gml")).object) == {"@", "-1"}
    network = nx.path_graph(40)
    for node in network:
        network.nodes[node].update(label=f"person {node}", club=str(node % 2), weight=node + 0.5)
    path = tmp_path / "club.graphml"
    nx.write_graphml(network, path)
    problems = Problems()
    [unlabelled] = GRAPHS.read(path, problems)
    assert set(unlabelled.object) == {"@", "-1"} and problems.note == ""
    assert {"@person_0", "@person_39"} < set(next(GRAPHS.read(path, node="label")).object)
    [record] = GRAPHS.read(path, problems, node="club")
    assert set(record.object) == {"@0", "@1", "-1"} and problems.note == "labels node=club"
    with pytest.raises(SegueError, match=r"no node has an attribute 'age'; there are club, label, weight"):
        list(GRAPHS.read(path, node="age"))


@pytest.mark.parametrize("name, text", [
    ("a.csv", "source,target\nA house.,Ein Haus.\nA cat.,Eine Katze.\n"), ("a.txt", "from me to you\nwith love\n"),
    ("a.txt", "3\n1 2\n3 4\n5 6\n"), ("sensor_A.txt", "1, 2\n3, 4\n"), ("a.html", "text about <graphml> files"),
    ("a.json", '{"nodes": "none", "edges": "sharp"}'), ("a.py", "graph = [1, 2]\n"), ("a.txt", "graph [theory] is\n")])
def test_files_that_resemble_graphs_are_read_as_other_kinds(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert GRAPHS.sniff(tmp_path / name, text.encode()) == 0


def test_typed_signs_are_normalised_or_refused() -> None:
    assert GRAPHS.normalise("@C @C -1 → @O >1 :2") == ["@C", "@C", "-1", "@O", ">1", ":2"]
    assert GRAPHS.normalise(Graph(["C"], [(0, 0, False, "")])) == ["@C", "-0"]
    for malformed in ("@C C", "-64", ["@C", 3]):
        with pytest.raises(SegueError, match="is no sign of a graph"):
            GRAPHS.normalise(malformed)


def test_a_shown_graph_lists_nodes_and_edges() -> None:
    text = GRAPHS.show(["=7", "@C", "@Cl", "-1", ":2", "@O", "<2", ">1", "-0"])
    assert text.splitlines() == ["3 nodes, 4 edges, label 7", "   0 C", "   1 Cl  ─0:2", "   2 O   →0 ←1 ─2"]
    assert GRAPHS.show(["@"] * 50).splitlines()[-1].strip() == "..."


def test_fit_continue_and_write_end_to_end(tmp_path: Path) -> None:
    """Fit on rings of two sorts of atoms, go on from a chain, write GraphML, evaluate and embed."""
    rings = [graph_to_tokens(Graph(["C", "O"] * (n // 2), [(i, (i + 1) % n, False, "1") for i in range(n)])) for n in
             range(6, 30, 2)]
    GRAPHS.write(rings * 4, tmp_path / "rings.graphml")
    data = segue.read(tmp_path / "rings.graphml")
    assert data.kind.name == "graph" and [record.object for record in data] == rings * 4
    model = segue.fit(data, steps=8, width=32, quiet=True, mix=False)
    model.continue_("@C @O -1 :1", n=12, decoder="greedy").save(tmp_path / "answer.graphml")
    assert nx.read_graphml(tmp_path / "answer.graphml").number_of_nodes() >= 2
    assert model.evaluate(data).bits_per_unit > 0
    assert model.embed(data).vectors.shape[0] == 48


def test_real_graph_sets_have_their_documented_counts(shared_data: Any) -> None:
    """The counts of the sets' descriptions."""
    folder = shared_data("graphs-tu")
    for name, nodes, edges, labels in (("MUTAG", 3371, 3721, {"0": 63, "2": 125}),
                                       ("PROTEINS", 43_471, 81_044, {"0": 663, "1": 450})):
        results = [graph for _, graph in GRAPHS.graphs(folder / f"{name}.txt.gz")]
        assert Counter(graph.label for graph in results) == labels
        assert (sum(len(graph.nodes) for graph in results),
                sum(len(graph.edges) for graph in results)) == (nodes, edges)
    data = segue.read(folder / "MUTAG.txt.gz")
    assert (data.kind.name, len(data), data.total) == ("graph", 188, 3371 + 3721)
    check_kind(GRAPHS, [folder / "MUTAG.txt.gz"], mutations=10)
    quantum = next(GRAPHS.read(shared_data("qm9-graphs-sample") / "qm9-valid.jsonl.gz"))
    assert quantum.name.endswith("qm9:133582") and "@0,1,0,0,0,6" in quantum.object and ":3" in quantum.object
