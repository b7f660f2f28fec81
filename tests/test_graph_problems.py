"""Graphs that cannot be run: every problem named, with node and remedy, never a traceback."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import nir
import numpy as np
import pytest
import random_networks

from stars_deploy.errors import GraphError
from stars_deploy.graph.metadata import DT, GraphMetadata, metadata_of, with_metadata
from stars_deploy.graph.order import sources, spiking_nodes, targets, topological_order
from stars_deploy.graph.problems import graph_problems, require_runnable

Nodes = dict[str, nir.NIRNode]


def graph() -> nir.NIRGraph:
    """input -> conv1 -> lif1 -> ... -> fc -> output"""
    return random_networks.random_graph(2, blocks=2, pools=True)


def changed(change: Callable[[Nodes], Any]) -> nir.NIRGraph:
    good = graph()
    nodes = dict(good.nodes)
    change(nodes)
    return nir.NIRGraph(nodes, list(good.edges), metadata=good.metadata, type_check=False)


def swap(nodes: Nodes, name: str, **fields: Any) -> None:
    """Replace fields without NIR's own checks, as a file would."""
    nodes[name] = dataclasses.replace(nodes[name])
    for field, value in fields.items():
        setattr(nodes[name], field, value)


def with_value(nodes: Nodes, name: str, field: str, value: float) -> None:
    array = np.array(getattr(nodes[name], field), np.float64)
    array.flat[-1] = value
    swap(nodes, name, **{field: array})


def test_a_good_graph_has_no_problem() -> None:
    assert graph_problems(graph()) == []


@pytest.mark.parametrize(
    ("change", "node", "words"),
    [
        (lambda n: with_value(n, "conv1", "weight", np.nan), "conv1", "weight holds NaN"),
        (lambda n: with_value(n, "lif1", "v_threshold", np.inf), "lif1", "v_threshold holds"),
        (lambda n: with_value(n, "lif1", "tau", 0.0), "lif1", "tau is 0, expected a positive"),
        (lambda n: with_value(n, "lif2", "tau", -1e-4), "lif2", "tau is -0.0001"),
        (lambda n: swap(n, "conv1", bias=np.zeros(99)), "conv1", "bias has shape (99,)"),
        (lambda n: swap(n, "fc", bias=np.zeros(99)), "fc", "bias has shape (99,)"),
        (lambda n: swap(n, "conv1", weight=np.zeros((2, 3))), "conv1", "expected 4 axes"),
        (lambda n: swap(n, "conv1", bias=np.array(["x"])), "conv1", "expected numbers"),
        (lambda n: swap(n, "conv1", stride=(0, 0)), None, "stride is (0, 0)"),
        (lambda n: swap(n, "conv1", padding=(1 << 30,) * 2), None, "padding is"),
        (lambda n: swap(n, "conv1", padding=(1 << 20,) * 2), None, "exceeds"),
        (lambda n: swap(n, "conv1", groups=7), "conv1", "groups do not divide"),
        (lambda n: swap(n, "lif1", v_threshold=np.ones(1)), None, "lif1 (LIF): gets shape"),
        (lambda n: swap(n, "flatten", start_dim=1), None, "fc (Affine): gets shape"),
        (lambda n: swap(n, "flatten", start_dim=5), None, "start_dim 5"),
        (lambda n: n.update(lif1=nir.Delay(np.ones(3))), "lif1", "Delay is not supported"),
        (lambda n: n.pop("lif1"), None, "there is no node 'lif1'"),
        (lambda n: n.update(spare=random_networks.lif((3,))), "spare", "nothing feeds this node"),
        (lambda n: n.update({"lif/3": n["lif1"]}), "lif/3", "[A-Za-z0-9_]+"),
        (lambda n: n.update(more=nir.Output({"output": np.array([3])})), None, "2 output nodes"),
        (lambda n: swap(n, "input", input_type={"input": np.array([1, 0, 5])}), None, "shape"),
        (
            lambda n: swap(n, "input", input_type={"input": np.array([1, 1 << 20, 1 << 20])}),
            None,
            "shape",
        ),
    ],
)
def test_each_problem_is_named(change: Callable[[Nodes], Any], node: str, words: str) -> None:
    bad = changed(change)
    found = graph_problems(bad)
    assert any(words in problem.message for problem in found), [str(p) for p in found]
    if node:
        assert any(p.node == node and p.remedy for p in found)
    with pytest.raises(GraphError, match=r"file\.nir: this graph cannot be run"):
        require_runnable(bad, "file.nir")


def test_all_problems_are_reported_at_once() -> None:
    def change(nodes: Nodes) -> None:
        with_value(nodes, "conv1", "weight", np.nan)
        with_value(nodes, "lif1", "tau", -1.0)
        nodes["lif2"] = nir.CubaLIF(*(np.ones(3),) * 6)

    found = graph_problems(changed(change))
    assert {problem.node for problem in found} >= {"conv1", "lif1", "lif2"}


def test_unsupported_nodes_come_with_a_remedy() -> None:
    for node, words in [(nir.CubaLIF(*(np.ones(3),) * 6), "LIF"), (graph(), "inline the subgraph")]:
        found = graph_problems(changed(lambda nodes, node=node: nodes.update(lif1=node)))
        assert any(p.code == "unsupported" and words in p.remedy for p in found)


def edited(edit: Callable[[list[tuple[str, str]]], Any]) -> nir.NIRGraph:
    good = graph()
    edges = list(good.edges)
    edit(edges)
    return nir.NIRGraph(dict(good.nodes), edges, metadata=good.metadata, type_check=False)


def test_cycle_names_its_nodes_only() -> None:
    looped = edited(lambda edges: edges.append(("lif2", "conv2")))
    with pytest.raises(GraphError, match=r"cycle (conv2 -> lif2 -> conv2|lif2 -> conv2 -> lif2)"):
        topological_order(looped)
    assert any("recurrent" in str(problem) for problem in graph_problems(looped))
    with pytest.raises(GraphError, match="lif1 -> lif1"):
        topological_order(edited(lambda edges: edges.append(("lif1", "lif1"))))


def test_duplicate_edge_and_residual_of_another_shape() -> None:
    twice = edited(lambda edges: edges.append(edges[0]))
    assert any(p.code == "edge" for p in graph_problems(twice))
    skip = edited(lambda edges: edges.append(("input", "fc")))
    assert any("adds values of different shapes" in str(p) for p in graph_problems(skip))


def test_order_is_natural_and_independent_of_the_dictionary() -> None:
    nodes = {"output": nir.Output({"output": np.array([2])})}
    for index in (10, 9, 2, 1):
        nodes[f"lif{index}"] = random_networks.lif((2,))
    nodes["input"] = nir.Input({"input": np.array([2])})
    edges = [("input", f"lif{i}") for i in (10, 1, 9, 2)] + [
        (f"lif{i}", "output") for i in (2, 10, 9, 1)
    ]
    many = nir.NIRGraph(nodes, edges, type_check=False)
    assert topological_order(many) == ["input", "lif1", "lif2", "lif9", "lif10", "output"]
    assert spiking_nodes(many) == ["lif1", "lif2", "lif9", "lif10"]
    assert targets(many, "input") == sources(many, "output") == ["lif1", "lif2", "lif9", "lif10"]


def test_metadata_survives_the_types_of_a_file() -> None:
    wanted = GraphMetadata(
        T=4, mean=(0.25,), std=(0.5,), classes=("naïve", "b"), gain="folded", tool_version="1"
    )
    raw = wanted.to_dict()
    as_read = {
        **raw,
        "T": np.int64(4),
        "dt": np.float64(DT),
        "gain": b"folded",
        "readout": np.array(b"mean"),
        "classes": raw["classes"].encode(),
    }
    good = graph()
    read = nir.NIRGraph(good.nodes, good.edges, metadata=as_read, type_check=False)
    assert metadata_of(read) == wanted


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("T", 2.5, "whole number"),
        ("T", 0, "whole number"),
        ("T", 10**9, "whole number"),
        ("T", "four", "expected numbers"),
        ("T", np.array([1, 2]), "one number"),
        ("dt", -1e-4, "positive"),
        ("dt", np.nan, "finite"),
        ("std", np.zeros(3), "positive"),
        ("std", np.array([1.0, 1.0, 1.0, 1.0]), "as many as mean"),
        ("readout", "last", "'mean'"),
        ("spike_compare", "ge", "'strict'"),
        ("gain", "both", "'raw' or 'folded'"),
        ("gain", 3, "text"),
        ("classes", "{", "JSON list"),
        ("classes", "[1]", "JSON list"),
        ("classes", json.dumps(["a"] * 99), "names, the output has"),
        ("mean", np.ones(9), "as many as mean"),
    ],
)
def test_wrong_metadata_is_named(key: str, value: object, expected: str) -> None:
    good = graph()
    raw = {**good.metadata, key: value}
    bad = nir.NIRGraph(good.nodes, good.edges, metadata=raw, type_check=False)
    found = graph_problems(bad)
    assert [problem.code for problem in found] == ["metadata"]
    assert expected in str(found[0])
    assert graph_problems(bad, metadata=False) == []


def test_missing_metadata_names_key_and_remedy() -> None:
    good = graph()
    foreign = nir.NIRGraph(good.nodes, good.edges, metadata={"dt": DT}, type_check=False)
    with pytest.raises(GraphError, match=r"no 'T' \(present: dt\).*add the key"):
        metadata_of(foreign)
    completed = with_metadata(foreign, metadata_of(good))
    assert metadata_of(completed) == metadata_of(good)
    three = GraphMetadata(T=1, mean=(0.0,) * 7, std=(1.0,) * 7)
    assert "7 values" in str(graph_problems(with_metadata(good, three))[0])
