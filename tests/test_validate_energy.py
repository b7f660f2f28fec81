"""Modeled energy: fan-outs counted by hand, and by asking every weight."""

import itertools

import nir
import numpy as np
import pytest
import random_networks as networks

from stars_deploy.config.profile import load_profile
from stars_deploy.graph.metadata import DT, GraphMetadata, with_metadata
from stars_deploy.graph.order import spiking_nodes
from stars_deploy.simulate.energy import CountingEngine, fan_out, modeled_energy
from stars_deploy.simulate.reference import FloatEngine


def lif(shape):
    return nir.LIF(
        tau=np.full(shape, 2 * DT), r=np.ones(shape), v_leak=np.zeros(shape),
        v_threshold=np.ones(shape), v_reset=np.zeros(shape),
    )  # fmt: skip


def small():
    """Input 1x4x4 -> 3x3 conv to 2 channels, padded -> LIF -> 2x2 pool -> 3 outputs; T = 2."""
    nodes = {
        "input": nir.Input(np.array([1, 4, 4])),
        "conv1": nir.Conv2d((4, 4), np.ones((2, 1, 3, 3)), 1, 1, 1, 1, np.zeros(2)),
        "lif1": lif((2, 4, 4)),
        "pool": nir.AvgPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0])),
        "flatten": nir.Flatten(np.array([2, 2, 2]), start_dim=0, end_dim=-1),
        "fc": nir.Affine(np.ones((3, 8)), np.zeros(3)),
        "output": nir.Output(np.array([3])),
    }
    names = list(nodes)
    graph = nir.NIRGraph(nodes, list(itertools.pairwise(names)), type_check=False)
    return with_metadata(graph, GraphMetadata(T=2, mean=(0.0,), std=(1.0,)))


def test_fan_out_by_hand():
    driven = fan_out(small())
    # A corner pixel is read by 2x2 taps, an edge by 2x3, the middle by 3x3, times two channels.
    corner, edge, middle = 8, 12, 18
    assert driven["input"][0].tolist() == [
        [corner, edge, edge, corner],
        [edge, middle, middle, edge],
        [edge, middle, middle, edge],
        [corner, edge, edge, corner],
    ]
    # Pool and read-out are one matrix: every neuron reaches the three outputs.
    assert (driven["lif1"] == 3).all() and driven["lif1"].shape == (2, 4, 4)


def test_energy_by_hand():
    loihi = load_profile("loihi1").energy
    spikes = {"lif1": np.zeros((2, 4, 4), np.int64)}
    spikes["lif1"][0, 0, 0] = 10  # over 5 images
    rows = {row["name"]: row for row in modeled_energy(small(), spikes, 5, loihi)}
    # Input: 2 steps x (4 corners x 8 + 8 edges x 12 + 4 x 18) = 400; lif1: 10 x 3 / 5 = 6.
    assert rows["synaptic_operations"]["value"] == pytest.approx(406 * 23.6 / 1000)
    # 32 neurons and 3 outputs, updated in each of two steps.
    assert rows["neuron_updates"]["value"] == pytest.approx(70 * 81 / 1000)
    assert rows["spikes"]["value"] == pytest.approx(2 * 1.7 / 1000)
    parts = [rows[name]["value"] for name in ("synaptic_operations", "neuron_updates", "spikes")]
    assert rows["total"]["value"] == pytest.approx(sum(parts))
    assert all(row["kind"] == "modeled" and row["unit"] == "nJ/image" for row in rows.values())
    assert "Davies" in rows["spikes"]["source"]


def test_constants_of_another_chip_are_said_to_be():
    spikes = {"lif1": np.zeros((2, 4, 4), np.int64)}
    total = modeled_energy(small(), spikes, 1, load_profile("loihi2").energy)[-1]
    assert "loihi1" in total["source"]


@pytest.mark.parametrize("seed", range(8))
def test_fan_out_counts_every_synapse_once(seed):
    """Total fan-out of a layer equals the inputs its outputs read, found by probing."""
    graph = networks.random_graph(seed, pools=False, groups=True)
    driven = fan_out(graph)
    for name, node in graph.nodes.items():
        if isinstance(node, nir.Conv2d):
            (source,) = [a for a, b in graph.edges if b == name]
            assert driven[source].sum() == _read_inputs(node, driven[source].shape)


def _read_inputs(node, shape):
    """Count (output, input) pairs with a kernel tap between linked channels, one by one."""
    stride, padding, dilation = (
        np.broadcast_to(np.asarray(getattr(node, key)), (2,))
        for key in ("stride", "padding", "dilation")
    )
    _out_c, _in_c, height, width = node.weight.shape
    links = int((node.weight != 0).any(axis=(2, 3)).sum())
    rows = (shape[1] + 2 * padding[0] - dilation[0] * (height - 1) - 1) // stride[0] + 1
    columns = (shape[2] + 2 * padding[1] - dilation[1] * (width - 1) - 1) // stride[1] + 1
    taps = 0
    for y in range(rows):
        for x in range(columns):
            for i in range(height):
                for j in range(width):
                    row = y * stride[0] - padding[0] + i * dilation[0]
                    column = x * stride[1] - padding[1] + j * dilation[1]
                    taps += 0 <= row < shape[1] and 0 <= column < shape[2]
    return links * taps


def test_counting_engine_adds_up_batches_and_changes_nothing():
    graph = networks.random_graph(3)
    engine = FloatEngine(graph)
    counting = CountingEngine(engine)
    shape = tuple(int(x) for x in graph.nodes["input"].input_type["input"])
    images = networks.random_images(7, shape, 0)
    whole = engine.run(images)
    parts = [counting.run(images[:3]), counting.run(images[3:])]
    assert counting.images == 7 and counting.nodes == spiking_nodes(graph)
    for node in engine.nodes:
        joined = np.concatenate([part.spikes[node] for part in parts], axis=1)
        np.testing.assert_array_equal(joined, whole.spikes[node])
        np.testing.assert_array_equal(counting.spikes[node], whole.spikes[node].sum(axis=(0, 1)))
