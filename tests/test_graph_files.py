"""Writing: equal graphs give equal bytes, nothing is lost, and a failed write changes nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import nir
import numpy as np
import pytest
import random_networks
from hypothesis import given, settings

from stars_deploy.errors import GraphError
from stars_deploy.graph import writer
from stars_deploy.graph.canonical import canonical, difference
from stars_deploy.graph.groups import expand_groups
from stars_deploy.graph.reader import read_graph
from stars_deploy.graph.writer import write_graph


def shuffled(graph: nir.NIRGraph, seed: int) -> nir.NIRGraph:
    """The same graph with other orders, list types and Fortran arrays."""
    rng = np.random.default_rng(seed)
    names = list(rng.permutation(list(graph.nodes)))
    nodes = {}
    for name in names:
        node = graph.nodes[name]
        if hasattr(node, "weight"):
            node = dataclasses.replace(node, weight=np.asfortranarray(node.weight))
        if isinstance(node, nir.Conv2d):
            node = dataclasses.replace(
                node, stride=np.array(node.stride), padding=list(node.padding), groups=np.int64(1)
            )
        nodes[name] = node
    edges = [tuple(edge) for edge in rng.permutation(list(graph.edges))]
    metadata = dict(reversed(graph.metadata.items()))
    metadata["mean"] = list(metadata["mean"])
    return nir.NIRGraph(nodes, edges, metadata=metadata, type_check=False)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(graph=random_networks.graphs(blocks=2))
def test_equal_graphs_give_equal_bytes(
    graph: nir.NIRGraph, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    write_graph(graph, folder / "a.nir")
    write_graph(shuffled(graph, 1), folder / "b.nir")
    assert (folder / "a.nir").read_bytes() == (folder / "b.nir").read_bytes()


def test_round_trip_returns_the_canonical_graph(tmp_path: Path) -> None:
    graph = random_networks.random_graph(1)
    path = tmp_path / "new" / "graph.nir"
    write_graph(graph, path)
    read = read_graph(path)
    assert difference(read, canonical(graph)) is None
    assert read.nodes["conv1"].weight.dtype == np.float32
    assert isinstance(read.nodes["conv1"].stride[0], int)


def test_difference_names_the_field() -> None:
    one = canonical(random_networks.random_graph(1))
    for name, field in [("conv1", "weight"), ("lif1", "tau"), ("fc", "bias"), ("conv1", "stride")]:
        nodes = dict(one.nodes)
        value = np.array(getattr(nodes[name], field), np.float64)
        value.flat[0] = np.nextafter(value.flat[0], 9)
        nodes[name] = dataclasses.replace(nodes[name], **{field: value})
        other = nir.NIRGraph(nodes, one.edges, metadata=one.metadata, type_check=False)
        assert difference(one, other) == f"{name}.{field}"
    fewer = nir.NIRGraph(one.nodes, one.edges[1:], metadata=one.metadata, type_check=False)
    assert "edges" in str(difference(one, fewer))
    other = nir.NIRGraph(one.nodes, one.edges, metadata={**one.metadata, "T": 99}, type_check=False)
    assert difference(one, other) == "metadata.T"


def test_a_change_on_the_way_is_noticed_and_the_old_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "graph.nir"
    write_graph(random_networks.random_graph(1), path)
    before = path.read_bytes()
    real = nir.read

    def lossy(file: Path) -> nir.NIRGraph:
        graph = real(file)
        graph.nodes["conv1"].bias = graph.nodes["conv1"].bias + 1
        return graph

    monkeypatch.setattr(writer.nir, "read", lossy)
    with pytest.raises(GraphError, match=r"conv1\.bias changed in the file"):
        write_graph(random_networks.random_graph(2), path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["graph.nir"]


def test_bad_graphs_are_not_written(tmp_path: Path) -> None:
    graph = random_networks.random_graph(1)
    nodes = dict(graph.nodes)
    nodes["conv1"] = dataclasses.replace(nodes["conv1"], bias=nodes["conv1"].bias * np.nan)
    bad = nir.NIRGraph(nodes, graph.edges, metadata=graph.metadata, type_check=False)
    with pytest.raises(GraphError, match="conv1: bias holds NaN"):
        write_graph(bad, tmp_path / "bad.nir")
    assert not list(tmp_path.iterdir())


def hand_made(node: nir.NIRNode, shape: tuple[int, ...]) -> nir.NIRGraph:
    """input [4, 6, 6] -> node -> LIF -> flatten -> output"""
    size = int(np.prod(shape))
    nodes = {
        "input": nir.Input({"input": np.array([4, 6, 6])}),
        "op": node,
        "lif": random_networks.lif(shape),
        "flat": nir.Flatten({"input": np.array(shape)}, 0, -1),
        "output": nir.Output({"output": np.array([size])}),
    }
    edges = [("input", "op"), ("op", "lif"), ("lif", "flat"), ("flat", "output")]
    metadata = random_networks.GraphMetadata(T=2, mean=(0.5,) * 4, std=(0.5,) * 4)
    return random_networks.with_metadata(nir.NIRGraph(nodes, edges, type_check=False), metadata)


def test_grouped_convolutions_are_written_expanded(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).normal(size=(4, 1, 3, 3))
    node = nir.Conv2d((6, 6), weight, 1, 1, 1, 4, np.zeros(4))
    graph = hand_made(node, (4, 6, 6))
    write_graph(graph, tmp_path / "graph.nir")
    read = read_graph(tmp_path / "graph.nir")
    assert read.nodes["op"].weight.shape == (4, 4, 3, 3)
    assert difference(read, canonical(expand_groups(graph))) is None


def test_rectangular_kernel_is_refused_with_a_remedy(tmp_path: Path) -> None:
    node = nir.Conv2d((6, 6), np.ones((4, 4, 3, 1)), 1, 0, 1, 1, np.zeros(4))
    with pytest.raises(GraphError, match=r"op: kernel 3x1; .* pad the shorter side"):
        write_graph(hand_made(node, (4, 4, 6)), tmp_path / "graph.nir")


def test_foreign_file_without_metadata(tmp_path: Path) -> None:
    graph = random_networks.random_graph(1)
    bare = nir.NIRGraph(dict(graph.nodes), list(graph.edges))
    nir.write(tmp_path / "bare.nir", bare)
    with pytest.raises(GraphError, match="no 'T'"):
        read_graph(tmp_path / "bare.nir")
    assert "lif1" in read_graph(tmp_path / "bare.nir", metadata=False).nodes
