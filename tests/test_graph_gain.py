"""Folding 1/tau into weights changes where the factor stands, never what comes out."""

from __future__ import annotations

import nir
import numpy as np
import random_networks
from hypothesis import given, settings
from random_networks import image_shape, lif, random_graph, random_images

from stars_deploy.graph.gain import fold_gain, unfold_gain
from stars_deploy.graph.metadata import DT, GraphMetadata, metadata_of, with_metadata
from stars_deploy.simulation.reference import FloatEngine


def assert_same_outputs(one: nir.NIRGraph, other: nir.NIRGraph) -> None:
    images = random_images(8, image_shape(one), 7)
    expected = FloatEngine(one).run(images, margins=True)
    answer = FloatEngine(other).run(images)
    assert sum(int(s.sum()) for s in expected.spikes.values()) > 0
    assert random_networks.clear_mismatches(expected, answer.spikes, 1e-9) == 0
    np.testing.assert_allclose(answer.logits, expected.logits, atol=1e-6)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(graph=random_networks.graphs(v_resets=(0.0, -0.25)))
def test_outputs_are_preserved_both_ways(graph: nir.NIRGraph) -> None:
    folded = fold_gain(graph)
    assert_same_outputs(graph, folded)
    assert_same_outputs(folded, unfold_gain(folded))
    assert metadata_of(folded).gain == "folded"
    assert metadata_of(unfold_gain(folded)).gain == "raw"
    for node in folded.nodes.values():
        if isinstance(node, nir.LIF):
            np.testing.assert_array_equal(node.r, node.tau / DT)


def test_tau_two_halves_the_weights_exactly_and_unfolds_to_the_same_bytes() -> None:
    graph = random_graph(5, taus=(2.0,))
    folded, back = fold_gain(graph), unfold_gain(fold_gain(graph))
    for name, node in graph.nodes.items():
        if isinstance(node, nir.Conv2d):
            assert folded.nodes[name].weight.dtype == np.float32
            np.testing.assert_array_equal(folded.nodes[name].weight * 2, node.weight)
            np.testing.assert_array_equal(folded.nodes[name].bias * 2, node.bias)
            np.testing.assert_array_equal(back.nodes[name].weight, node.weight)
    assert list(folded.nodes) == list(graph.nodes)


def test_other_factors_are_kept_in_float64_rather_than_rounded() -> None:
    graph = random_graph(5, taus=(1.5,))
    assert fold_gain(graph).nodes["conv1"].weight.dtype == np.float64


def test_neurons_without_decay_input_are_folded_already() -> None:
    graph = random_graph(4, folded=True)
    folded = fold_gain(graph)
    np.testing.assert_array_equal(folded.nodes["conv1"].weight, graph.nodes["conv1"].weight)


def residual() -> nir.NIRGraph:
    """conv1 -> lif1 -> conv2 (+ lif1) -> lif2 -> pool -> lif3, conv1 also straight to lif4.

    Every way a factor can be stuck: an identity skip, an operator that two neurons share, a
    pool in front of a neuron, neurons whose tau differs within a channel.
    """
    rng = np.random.default_rng(0)
    shape, small = (3, 6, 6), (3, 3, 3)

    def conv(scale: float) -> nir.Conv2d:
        return nir.Conv2d((6, 6), rng.normal(0, scale, (3, 3, 3, 3)), 1, 1, 1, 1, rng.random(3))

    mixed = lif(shape, 4.0)
    mixed.tau = mixed.tau * rng.uniform(0.5, 1.5, shape)
    nodes = {
        "input": nir.Input({"input": np.array(shape)}),
        "conv1": conv(0.4),
        "lif1": lif(shape, 2.0),
        "conv2": conv(0.4),
        "lif2": lif(shape, 3.0),
        "pool": nir.SumPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0])),
        "lif3": lif(small, 4.0),
        "lif4": mixed,
        "if5": nir.IF(np.full(small, 0.7), np.ones(small), np.zeros(small)),
        "scale": nir.Scale(np.full(small, 0.5)),
        "flat3": nir.Flatten({"input": np.array(small)}, 0, -1),
        "flat4": nir.Flatten({"input": np.array(shape)}, 0, -1),
        "fc3": nir.Linear(rng.normal(size=(4, 27))),
        "fc4": nir.Affine(rng.normal(size=(4, 108)), np.zeros(4)),
        "li": nir.LI(np.full(4, 2 * DT), np.ones(4), np.zeros(4)),
        "output": nir.Output({"output": np.array([4])}),
    }
    edges = [
        ("input", "conv1"), ("conv1", "lif1"), ("lif1", "conv2"), ("conv2", "lif2"),
        ("lif1", "lif2"), ("lif2", "pool"), ("pool", "lif3"), ("conv1", "lif4"),
        ("lif3", "scale"), ("scale", "if5"), ("if5", "flat3"), ("flat3", "fc3"),
        ("lif4", "flat4"), ("flat4", "fc4"), ("fc3", "li"), ("fc4", "li"), ("li", "output"),
    ]  # fmt: skip
    metadata = GraphMetadata(T=5, mean=(0.4,) * 3, std=(0.3,) * 3)
    return with_metadata(nir.NIRGraph(nodes, edges, type_check=False), metadata)


def test_factors_that_no_operator_can_take_become_scale_nodes() -> None:
    graph = residual()
    folded = fold_gain(graph)
    assert_same_outputs(graph, folded)
    added = set(folded.nodes) - set(graph.nodes)
    # conv2, scale, fc3 and fc4 take theirs; the skip, the shared conv1 and lif2 -> pool cannot.
    assert added == {
        "lif1_gain_conv1", "lif4_gain_conv1", "lif2_gain_lif1", "pool_gain_lif2",
    }  # fmt: skip
    np.testing.assert_allclose(folded.nodes["conv2"].weight, graph.nodes["conv2"].weight / 3)
    np.testing.assert_allclose(folded.nodes["fc3"].weight, graph.nodes["fc3"].weight / 2)
    np.testing.assert_allclose(folded.nodes["scale"].scale, 0.35)
    assert_same_outputs(graph, unfold_gain(folded))


def shared(second: nir.NIRNode, mixed: bool) -> nir.NIRGraph:
    """conv -> lif -> flat -> output, and conv -> second -> flat; lif's tau may be mixed."""
    shape = (2, 4, 4)
    rng = np.random.default_rng(1)
    neuron = lif(shape, 3.0, 0.7)
    if mixed:
        neuron.tau = neuron.tau * rng.uniform(0.5, 1.5, shape)
    conv = nir.Conv2d((4, 4), rng.normal(0, 0.7, (2, 2, 3, 3)), 1, 1, 1, 1, rng.random(2))
    nodes = {
        "input": nir.Input({"input": np.array(shape)}),
        "conv": conv,
        "lif": neuron,
        "second": second,
        "flat": nir.Flatten({"input": np.array(shape)}, 0, -1),
        "output": nir.Output({"output": np.array([32])}),
    }
    edges = [
        ("input", "conv"), ("conv", "lif"), ("lif", "flat"), ("flat", "output"),
        ("conv" if not mixed else "lif", "second"), ("second", "flat"),
    ]  # fmt: skip
    graph = nir.NIRGraph(nodes, edges, type_check=False)
    return with_metadata(graph, GraphMetadata(T=4, mean=(0.4,) * 2, std=(0.3,) * 2))


def test_an_operator_that_others_read_keeps_its_weights() -> None:
    graph = shared(nir.Scale(np.full((2, 4, 4), 0.5)), mixed=False)
    folded = fold_gain(graph)
    assert folded.nodes["conv"] is graph.nodes["conv"]
    assert "lif_gain_conv" in folded.nodes
    assert_same_outputs(graph, folded)


def test_factors_that_differ_within_a_channel_do_not_go_into_a_kernel() -> None:
    graph = shared(nir.Scale(np.full((2, 4, 4), 0.5)), mixed=True)
    folded = fold_gain(graph)
    assert folded.nodes["lif_gain_conv"].scale.shape == (2, 4, 4)
    assert_same_outputs(graph, folded)
