"""Pools merged into the operator after them: exact, or refused with the reason."""

from __future__ import annotations

import itertools

import nir
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from random_networks import clear_mismatches, image_shape, lif, random_graph, random_images

from stars_deploy.errors import GraphError
from stars_deploy.graph import pooling
from stars_deploy.graph.metadata import GraphMetadata, with_metadata
from stars_deploy.graph.pooling import compose_pooling
from stars_deploy.simulate.operators import operator_of
from stars_deploy.simulate.reference import FloatEngine


def assert_same_outputs(graph: nir.NIRGraph, composed: nir.NIRGraph) -> None:
    images = random_images(6, image_shape(graph), 3)
    expected = FloatEngine(graph).run(images, margins=True)
    answer = FloatEngine(composed).run(images)
    assert clear_mismatches(expected, answer.spikes, 1e-9) == 0
    np.testing.assert_allclose(answer.logits, expected.logits, atol=1e-6)


def pools(graph: nir.NIRGraph) -> list[str]:
    kinds = (nir.AvgPool2d, nir.SumPool2d)
    return [name for name, node in graph.nodes.items() if isinstance(node, kinds)]


def test_random_chains_keep_their_outputs() -> None:
    composed = 0
    for seed in range(40):
        graph = random_graph(seed, global_pool=seed % 2 == 0)
        try:
            without = compose_pooling(graph)
        except GraphError as problem:
            assert "cannot be merged into conv" in str(problem)
            continue
        assert not pools(without)
        if pools(graph):
            composed += 1
            assert_same_outputs(graph, without)
    assert composed >= 15


def test_global_pool_by_hand() -> None:
    """fc(mean of 2x2) is one dense matrix with each weight / 4 on the four positions."""
    nodes = {
        "input": nir.Input({"input": np.array([2, 2, 2])}),
        "lif": lif((2, 2, 2)),
        "pool": nir.AvgPool2d(*(np.array(x) for x in ([2, 2], [2, 2], [0, 0]))),
        "flat": nir.Flatten({"input": np.array([2, 1, 1])}, 0, -1),
        "fc": nir.Affine(np.array([[4.0, 8.0]], np.float32), np.zeros(1, np.float32)),
        "output": nir.Output({"output": np.array([1])}),
    }
    names = list(nodes)
    edges = list(itertools.pairwise(names))
    graph = with_metadata(
        nir.NIRGraph(nodes, edges, type_check=False),
        GraphMetadata(T=2, mean=(0.0,) * 2, std=(0.3,) * 2),
    )
    composed = compose_pooling(graph)
    assert composed.nodes["fc"].weight.tolist() == [[1.0] * 4 + [2.0] * 4]
    assert composed.nodes["fc"].weight.dtype == np.float32
    assert ("lif", "flat") in composed.edges and "pool" not in composed.nodes
    assert_same_outputs(graph, composed)
    nir.NIRGraph(composed.nodes, composed.edges)  # nir's own type check


def linear(pool: nir.NIRNode, follower: nir.NIRNode, size: int) -> nir.NIRGraph:
    """input [2, size, size] -> pool -> follower, types unchecked."""
    nodes = {
        "input": nir.Input({"input": np.array([2, size, size])}),
        "pool": pool,
        "conv": follower,
    }
    return nir.NIRGraph(nodes, [("input", "pool"), ("pool", "conv")], type_check=False)


windows = st.fixed_dictionaries(
    {
        "size": st.integers(4, 11),
        "p": st.integers(1, 3),
        "pool_stride": st.integers(1, 3),
        "pool_padding": st.integers(0, 1),
        "k": st.integers(1, 3),
        "stride": st.integers(1, 2),
        "padding": st.integers(0, 2),
        "dilation": st.integers(1, 2),
    }
)


def by_torch(x: np.ndarray, weight: np.ndarray, w: dict[str, int]) -> np.ndarray:
    pooled = F.avg_pool2d(torch.tensor(x), w["p"], w["pool_stride"], w["pool_padding"])
    return F.conv2d(
        pooled, torch.tensor(weight), None, w["stride"], w["padding"], w["dilation"]
    ).numpy()


@settings(max_examples=150, deadline=None, derandomize=True)
@given(w=windows)
def test_one_kernel_is_exact_and_refusals_are_needed(w: dict[str, int]) -> None:
    """Torch runs pool and convolution; what is refused must really come out different."""
    assume(w["pool_padding"] < w["p"] and 2 * w["pool_padding"] <= w["p"])
    pooled = (w["size"] + 2 * w["pool_padding"] - w["p"]) // w["pool_stride"] + 1
    assume(pooled + 2 * w["padding"] >= w["dilation"] * (w["k"] - 1) + 1)
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(3, 2, w["k"], w["k"]))
    x = rng.uniform(1, 2, size=(1, 2, w["size"], w["size"]))
    expected = by_torch(x, weight, w)
    pool = nir.AvgPool2d(*([w[key]] * 2 for key in ("p", "pool_stride", "pool_padding")))
    conv = nir.Conv2d(
        (pooled, pooled), weight, w["stride"], w["padding"], w["dilation"], 1, np.zeros(3)
    )
    graph = linear(pool, conv, w["size"])
    try:
        merged = compose_pooling(graph).nodes["conv"]
    except GraphError as problem:
        assert str(problem).startswith("pool: cannot be merged into conv exactly")
        assert naive_differs(graph, x, expected)
        return
    np.testing.assert_allclose(operator_of("conv", merged)(x[None])[0], expected, atol=1e-12)


def naive_differs(graph: nir.NIRGraph, x: np.ndarray, expected: np.ndarray) -> bool:
    """Merge without asking whether that is exact, and compare."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pooling, "_require_exact", lambda *_: None)
        try:
            merged = compose_pooling(graph).nodes["conv"]
        except GraphError:
            return True  # not even the same number of outputs
    return not np.allclose(operator_of("conv", merged)(x[None])[0], expected, atol=1e-9)


def chain(*steps: tuple[str, nir.NIRNode], size: int = 8, out: int) -> nir.NIRGraph:
    nodes = {"input": nir.Input({"input": np.array([2, size, size])}), **dict(steps)}
    nodes["flat"] = nir.Flatten({"input": None}, 0, -1)
    nodes["output"] = nir.Output({"output": np.array([out])})
    names = list(nodes)
    edges = list(itertools.pairwise(names))
    metadata = GraphMetadata(T=3, mean=(0.3,) * 2, std=(0.3,) * 2)
    return with_metadata(nir.NIRGraph(nodes, edges, type_check=False), metadata)


def pool(size: int, kind: type = nir.AvgPool2d) -> nir.NIRNode:
    return kind(np.array([size] * 2), np.array([size] * 2), np.array([0, 0]))


def test_pool_before_a_neuron_becomes_a_convolution() -> None:
    graph = chain(
        ("lif1", lif((2, 8, 8))), ("pool", pool(2)), ("lif2", lif((2, 4, 4), 1.0, 0.4)), out=32
    )
    composed = compose_pooling(graph)
    assert isinstance(composed.nodes["pool"], nir.Conv2d)
    assert composed.nodes["pool"].weight[0, 1].any() == np.False_
    assert_same_outputs(graph, composed)


def test_pools_in_a_row_and_sum_pools() -> None:
    graph = chain(
        ("lif1", lif((2, 8, 8))),
        ("pool1", pool(2, nir.SumPool2d)),
        ("pool2", pool(2)),
        ("lif2", lif((2, 2, 2))),
        out=8,
    )
    composed = compose_pooling(graph)
    assert [n for n in composed.nodes if "pool" in n] == ["pool2"]
    assert composed.nodes["pool2"].weight.shape == (2, 2, 4, 4)
    assert_same_outputs(graph, composed)


def test_odd_map_with_padded_convolution_names_node_and_remedy() -> None:
    conv = nir.Conv2d((3, 3), np.ones((2, 2, 3, 3)), 1, 1, 1, 1, np.zeros(2))
    graph = chain(("pool", pool(2)), ("conv", conv), ("lif", lif((2, 3, 3))), size=7, out=18)
    with pytest.raises(GraphError, match=r"pool: cannot be merged into conv .*divisible"):
        compose_pooling(graph)


def test_a_residual_onto_the_follower_is_refused() -> None:
    conv = nir.Conv2d((4, 4), np.ones((2, 2, 3, 3)), 1, 1, 1, 1, np.zeros(2))
    graph = chain(
        ("lif0", lif((2, 8, 8))), ("pool", pool(2)), ("conv", conv), ("lif", lif((2, 4, 4))), out=32
    )
    nodes = {**graph.nodes, "side": pool(2)}
    edges = [*graph.edges, ("lif0", "side"), ("side", "conv")]
    with pytest.raises(GraphError, match=r"conv: adds the output of .* and of"):
        compose_pooling(nir.NIRGraph(nodes, edges, metadata=graph.metadata, type_check=False))
