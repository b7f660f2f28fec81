"""Modeled energy and latency: by hand, by asking every weight, and against two outside counts."""

import itertools
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import nir
import numpy as np
import pytest
import random_networks as networks
from hypothesis import given, settings

from stars_deploy.cli.tables import show_simulation
from stars_deploy.config.profile import load_profile
from stars_deploy.graph.geometry import output_shapes
from stars_deploy.graph.metadata import DT, GraphMetadata, metadata_of, with_metadata
from stars_deploy.graph.order import spiking_nodes
from stars_deploy.simulation.energy.activity import Activity, CountingEngine
from stars_deploy.simulation.energy.counts import ann_macs, depths, fan_out, populations, synapses
from stars_deploy.simulation.energy.events import (
    Events,
    PopulationEvents,
    Relay,
    events_of,
    relays_of,
)
from stars_deploy.simulation.energy.latency import bounds, placed
from stars_deploy.simulation.energy.model import MAC_PJ, modeled
from stars_deploy.simulation.operators import operator_of
from stars_deploy.simulation.reference import FloatEngine

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"
SANAFE_COLUMNS = ("synaptic_operations", "spikes", "active_updates", "messages_in")


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


def activity(graph, images=1, active=None, **spikes):
    """Counts as if an engine had made them; every update active unless told."""
    steps, shapes = metadata_of(graph).T, output_shapes(graph)
    every = {n: np.full(steps, images * int(np.prod(shapes[n]))) for n in populations(graph)}
    trains = {n: np.zeros((steps, *shapes[n]), np.int64) for n in spiking_nodes(graph)}
    return Activity(images, {**trains, **spikes}, {**every, **(active or {})})


def by_name(rows):
    assert all(row["kind"] == "modeled" and row["source"] for row in rows)
    return {row["name"]: row for row in rows}


def test_energy_by_hand():
    spikes = np.zeros((2, 2, 4, 4), np.int64)
    spikes[0, 0, 0, 0], spikes[1, 0, 0, 0] = 4, 6  # over 5 images
    seen = activity(small(), 5, {"lif1": np.array([100, 160])}, lif1=spikes)
    rows = by_name(modeled(small(), seen, load_profile("loihi2")))
    # Input: 2 steps x (4 corners x 8 + 8 edges x 12 + 4 x 18) = 400; lif1: 10 x 3 / 5 = 6.
    assert rows["synaptic_operations"]["value"] == pytest.approx(406 * 23.6 / 1000)
    # 32 neurons and 3 outputs in two steps are 70 updates; 12 of those of lif1 are idle.
    assert rows["neuron_updates_active"]["value"] == pytest.approx(58 * 81 / 1000)
    assert rows["neuron_updates_idle"]["value"] == pytest.approx(12 * 52 / 1000)
    assert rows["spikes"]["value"] == pytest.approx(2 * 1.7 / 1000)
    assert rows["input_messages"]["value"] == pytest.approx(2 * 16 * 1.7 / 1000)
    parts = ("synaptic_operations", "neuron_updates_active", "neuron_updates_idle", "spikes")
    total = sum(rows[name]["value"] for name in (*parts, "input_messages"))
    assert rows["total"]["value"] == pytest.approx(total)
    assert {rows[name]["unit"] for name in (*parts, "total")} == {"nJ/image"}
    assert "Davies" in rows["spikes"]["source"]
    assert "hops between tiles (no placement)" in rows["total"]["source"]


def test_without_graded_messages_the_first_layer_is_the_hosts():
    rows = by_name(modeled(small(), activity(small()), load_profile("loihi1")))
    assert rows["synaptic_operations"]["value"] == 0 and "input_messages" not in rows
    assert "200 MACs of the first layer on the host" in rows["total"]["source"]
    assert rows["total"]["confidence"] == "secondary"  # of a table that was seen quoted only


def test_ratio_to_the_ann_by_hand():
    # 2 channels x 4 x 4 positions x 9 taps, a padded zero multiplied like all; 3 x 8 dense.
    assert ann_macs(small()) == 288 + 24
    rows = by_name(modeled(small(), activity(small()), load_profile("loihi2")))
    total = rows["total"]["value"]
    assert rows["ann_fp32"]["value"] == pytest.approx(312 * 4.6 / 1000)
    assert rows["ratio_to_ann_fp32"]["value"] == pytest.approx(total / (0.312 * 4.6))
    assert rows["ratio_to_ann_int8"]["value"] == pytest.approx(total / (0.312 * 0.23))
    assert rows["ratio_to_ann_int8"]["unit"] == "ratio"
    assert all("Horowitz" in rows[f"ann_{name}"]["source"] for name in MAC_PJ)
    assert "memory access is not counted" in rows["ratio_to_ann_fp32"]["source"]


def test_constants_of_another_chip_are_said_to_be():
    rows = by_name(modeled(small(), activity(small()), load_profile("loihi2")))
    assert "loihi1" in rows["total"]["source"]
    assert rows["total"]["confidence"] == rows["latency_least"]["confidence"] == "inferred"


def test_nothing_is_modeled_without_constants_or_images():
    assert modeled(small(), activity(small()), load_profile("reference")) == []
    assert modeled(small(), activity(small(), images=0), load_profile("loihi2")) == []


@dataclass
class Placement:
    messages: int = 40
    east_west: int = 30
    north_south: int = 20
    off_chip: int = 5


def test_hops_of_a_placement():
    spikes = np.ones((2, 2, 4, 4), np.int64)
    seen = activity(small(), 5, lif1=spikes)
    profile = load_profile("loihi2")
    rows = by_name(modeled(small(), seen, profile, hops=Placement()))
    assert rows["spikes"]["value"] == pytest.approx(8 * 1.7 / 1000)
    assert rows["hops_east_west"]["value"] == pytest.approx(6 * 3.0 / 1000)
    assert rows["hops_north_south"]["value"] == pytest.approx(4 * 4.0 / 1000)
    assert "no placement" not in rows["total"]["source"]
    assert "1 messages to other chips" in rows["total"]["source"]
    alone = by_name(modeled(small(), seen, profile))
    more = rows["total"]["value"] - alone["total"]["value"]
    assert more == pytest.approx((8 - 64 / 5) * 1.7e-3 + 0.018 + 0.016)


def test_relays_are_charged():
    document = {
        "populations": [
            {"name": "lif1", "node": "lif1", "shape_whc": [4, 4, 2], "depth": 1},
            {"name": "hold1", "node": None, "shape_whc": [4, 4, 2], "depth": 2},
            {"name": "hold2", "node": None, "shape_whc": [4, 4, 2], "depth": 3},
        ],
        "connections": [
            {"source": "input", "target": "lif1"},
            {"source": "lif1", "target": "hold1"},
            {"source": "hold1", "target": "hold2"},
        ],
    }
    relays = relays_of(document)
    assert relays == [Relay("hold1", "lif1", 32, 2), Relay("hold2", "lif1", 32, 3)]
    spikes = np.zeros((2, 2, 4, 4), np.int64)
    spikes[0, 0, 0, 0] = 7
    seen, profile = activity(small(), 1, lif1=spikes), load_profile("loihi1")
    rows = by_name(modeled(small(), seen, profile, relays))
    alone = by_name(modeled(small(), seen, profile))

    def more(name):
        return rows[name]["value"] - alone[name]["value"]

    # Each relay: 7 events, 7 active updates of 2 x 32, 7 messages.
    assert more("synaptic_operations") == pytest.approx(14 * 23.6e-3)
    assert more("neuron_updates_active") == pytest.approx(14 * 81e-3)
    assert more("neuron_updates_idle") == pytest.approx((128 - 14) * 52e-3)
    assert more("spikes") == pytest.approx(14 * 1.7e-3)


def test_latency_by_hand():
    spikes = np.zeros((2, 2, 4, 4), np.int64)
    spikes[0, 0, 0, 0], spikes[1, 0, 0, 0] = 1, 3
    seen = activity(small(), 1, {"lif1": np.array([32, 30])}, lif1=spikes)
    profile = load_profile("loihi2")
    timing, events = profile.timing, events_of(small(), seen, False)
    assert depths(small()) == {"lif1": 1, "output": 2}
    # lif1: 200 operations a step and 32 updates, of which the second step has two idle.
    first = [200 * 3.5 + 32 * 8.4, 200 * 3.5 + 30 * 8.4 + 2 * 5.3]
    # The read-out gets 3 operations for each spike; in a full pipeline it is one step behind.
    second = [3 * 3.5 + 3 * 8.4, 9 * 3.5 + 3 * 8.4]
    chip = [first[0] + second[1], first[1] + second[0]]
    least, most = bounds(events, timing, profile.limits)
    assert least.interval_ns == pytest.approx(sum(chip) / 120 + 2 * 113)
    # T + L = 4 steps are two rounds; with 16 pixels and the spikes sent one after the other.
    assert least.first_ns == pytest.approx(2 * least.interval_ns)
    assert most.interval_ns == pytest.approx(sum(chip) + (2 * 16 + 4) * 2.1 + 2 * 465)
    # Eleven cores are three tiles, so that 2/31 of the way from one tile's barrier to 32 tiles'.
    placement = placed(events, timing, {"lif1": 10, "output": 1})
    barrier = 113 + (465 - 113) * 2 / 31
    slowest = [max(first[0] / 10, second[1]), max(first[1] / 10, second[0])]
    assert placement.interval_ns == pytest.approx(sum(slowest) + 2 * barrier)
    rows = by_name(modeled(small(), seen, profile))
    assert rows["interval_most"]["value"] == pytest.approx(most.interval_ns / 1000)
    assert rows["latency_least"]["unit"] == "us/image"
    assert "latency" not in rows
    rows = by_name(modeled(small(), seen, profile, cores={"lif1": 10, "output": 1}))
    assert rows["latency"]["value"] == pytest.approx(placement.first_ns / 1000)
    assert "11 cores" in rows["latency"]["source"] and "latency_least" not in rows


def test_an_image_meets_the_steps_of_its_neighbours():
    """T = 3 and L = 2: T + L steps are no whole rounds, so it matters which they are."""

    def population(name, depth, operations):
        nothing = np.zeros(3)
        return PopulationEvents(name, 0, depth, np.array(operations), nothing, nothing)

    first, second = population("a", 1, [10.0, 20.0, 30.0]), population("b", 2, [1.0, 2.0, 4.0])
    profile = load_profile("loihi2")
    least, most = bounds(Events((first, second), 0, 0), profile.timing, profile.limits)
    # While a does step 0 of an image, b does the last step of the image before.
    chip = [10 + 4, 20 + 1, 30 + 2]
    assert most.interval_ns == pytest.approx(3.5 * sum(chip) + 3 * 465)
    # Messages are sent in the last step of the image before; the answer comes after step 1 + 2.
    passed = [chip[2], *chip, chip[0]]
    assert most.first_ns == pytest.approx(3.5 * sum(passed) + 5 * 465)
    assert least.first_ns == pytest.approx(3.5 * sum(passed) / 120 + 5 * 113)


@settings(max_examples=6, deadline=None)
@given(graph=networks.graphs(blocks=2))
def test_any_placement_lies_between_the_bounds(graph):
    seen, profile = counted(graph, 2).activity, load_profile("loihi2")
    events = events_of(graph, seen, False)
    least, most = bounds(events, profile.timing, profile.limits)
    for spread in (1, 40):
        between = placed(events, profile.timing, dict.fromkeys(populations(graph), spread))
        assert least.interval_ns <= between.interval_ns <= most.interval_ns
        assert least.first_ns <= between.first_ns <= most.first_ns


def counted(graph, images):
    counting = CountingEngine(FloatEngine(graph), graph)
    shape = networks.image_shape(graph)
    counting.run(networks.random_images(images, shape, 1))
    return counting


@settings(max_examples=8, deadline=None)
@given(graph=networks.graphs(blocks=2, steps=(1, 4)))
def test_synaptic_operations_are_those_of_every_spike_and_synapse(graph):
    """Each spike is pushed alone through the operators behind it, with weight 1 on all synapses."""
    counting = counted(graph, 1)
    events = events_of(graph, counting.activity, False)
    operations = {p.name: p.synaptic_operations for p in events.populations}
    shapes, names = output_shapes(graph), populations(graph)
    for source, target in itertools.pairwise(["input", *names]):
        behind = {at: reached(graph, source, at, shapes) for at in np.ndindex(shapes[source])}
        for step in range(metadata_of(graph).T):
            sent = np.ones(shapes[source])
            if source != "input":
                sent = counting.activity.spikes[source][step]
            expected = sum(count for at, count in behind.items() if sent[at] > 0)
            assert operations[target][step] == expected


def reached(graph, source, at, shapes):
    """Count the synapses of one element, following it node by node and tap by tap."""
    frontier, node = {at: 1}, source
    while True:
        before = node
        (node,) = [b for a, b in graph.edges if a == before]
        kind = graph.nodes[node]
        if isinstance(kind, (nir.LIF, nir.Output)):
            return sum(frontier.values())
        frontier = stepped(kind, frontier, shapes[before], shapes[node])


def stepped(kind, frontier, given_shape, shape):
    if isinstance(kind, nir.Flatten):
        return {(int(np.ravel_multi_index(at, given_shape)),): n for at, n in frontier.items()}
    if isinstance(kind, nir.Affine):
        total = sum(frontier.values())
        return {(k,): total for k in range(shape[0])}
    pool = isinstance(kind, nir.AvgPool2d)
    kernel = [int(x) for x in (kind.kernel_size if pool else kind.weight.shape[2:])]
    stride = [int(x) for x in np.broadcast_to(kind.stride, 2)]
    padding = [int(x) for x in np.broadcast_to(kind.padding, 2)]
    made = {}
    for (c, y, x), n in frontier.items():
        for i, j in np.ndindex(*kernel):
            v, u = y + padding[0] - i, x + padding[1] - j
            if v % stride[0] or u % stride[1]:
                continue
            v, u = v // stride[0], u // stride[1]
            if not (0 <= v < shape[1] and 0 <= u < shape[2]):
                continue
            for o in [c] if pool else range(shape[0]):
                if pool or kind.weight[o, c].any():
                    made[o, v, u] = made.get((o, v, u), 0) + n
    return made


@settings(max_examples=10, deadline=None)
@given(graph=networks.graphs(blocks=2, steps=(1, 5)))
def test_active_updates_are_those_of_neurons_with_something_to_compute(graph):
    """Without biases: recomputed from membrane potentials, which are zero only where all is."""
    for name, node in graph.nodes.items():
        if hasattr(node, "bias") and name != "conv1":
            node.bias = np.zeros_like(node.bias)
    counting = CountingEngine(FloatEngine(graph), graph)
    images = networks.random_images(3, networks.image_shape(graph), 1)
    recording = counting.run(images)
    for name, (weighted, source) in charges(graph, recording).items():
        potential = np.zeros(weighted.shape[1:])
        train = recording.spikes.get(name)
        for step, current in enumerate(weighted):
            arrived = current > 0
            active = arrived | (potential > 0)
            assert counting.activity.active[name][step] == np.count_nonzero(active), (name, source)
            potential = np.where(active, 1.0, 0.0)
            if train is not None:
                potential[train[step] > 0] = 0.0


def charges(graph, recording):
    """Return what reaches each population behind the first: spikes through all-ones operators."""
    ones = {}
    for name, node in graph.nodes.items():
        if hasattr(node, "weight"):
            linked = node.weight.any(axis=(2, 3), keepdims=True) if node.weight.ndim == 4 else 1
            full = np.ones_like(node.weight) * linked
            fields = {"weight": full, "bias": np.zeros_like(node.bias)}
            ones[name] = type(node)(**{**{f: getattr(node, f) for f in own(node)}, **fields})
    names, found = populations(graph), {}
    for source, target in itertools.pairwise(names):
        x, node = recording.spikes[source].astype(float), source
        while True:
            (node,) = [b for a, b in graph.edges if a == node]
            if node == target:
                break
            x = operator_of(node, ones.get(node, graph.nodes[node]))(x)
        found[target] = (x, source)
    return found


def own(node):
    return [
        f
        for f in type(node).__dataclass_fields__
        if f not in ("input_type", "output_type", "metadata")
    ]


def test_biases_and_input_keep_neurons_active():
    counting = counted(small(), 3)
    # lif1 gets 16 pixels at every step; the read-out has no bias and no spike ever reaches it.
    assert counting.activity.active["lif1"].tolist() == [96, 96]
    silent = small()
    silent.nodes["conv1"].weight[:] = 0
    assert counted(silent, 3).activity.active["output"].tolist() == [0, 0]
    silent.nodes["fc"].bias[1] = 0.5
    assert counted(silent, 3).activity.active["output"].tolist() == [3, 3]


def test_integrators_are_the_read_out_or_send_graded_messages():
    integrator = nir.LI(tau=np.full(3, 2 * DT), r=np.ones(3), v_leak=np.zeros(3))
    graph = small()
    graph.nodes["li"] = integrator
    graph.edges = [edge for edge in graph.edges if edge[0] != "fc"]
    behind = [("fc", "li"), ("li", "output")]
    last = nir.NIRGraph(graph.nodes, [*graph.edges, *behind], graph.metadata, type_check=False)
    last = with_metadata(last, metadata_of(small()))
    assert populations(last) == ["lif1", "li"] and depths(last) == {"lif1": 1, "li": 2}
    nodes = {**graph.nodes, "more": nir.Affine(np.ones((3, 3)), np.zeros(3))}
    behind = [("fc", "li"), ("li", "more"), ("more", "output")]
    inner = nir.NIRGraph(nodes, [*graph.edges, *behind], type_check=False)
    inner = with_metadata(inner, metadata_of(small()))
    inner.nodes["conv1"].weight[:] = 0  # so that the integrators get nothing
    seen = counted(inner, 2).activity
    assert seen.active["output"].tolist() == [6, 6] and seen.active["li"].tolist() == [0, 0]
    events = {p.name: p for p in events_of(inner, seen, False).populations}
    assert events["output"].synaptic_operations.tolist() == [9, 9]
    assert events["li"].messages.tolist() == [3, 3]


def test_an_identity_shortcut_is_one_synapse_a_neuron():
    nodes = {
        "input": nir.Input(np.array([1, 4, 4])),
        "conv1": nir.Conv2d((4, 4), np.ones((2, 1, 1, 1)), 1, 0, 1, 1, np.zeros(2)),
        "lif1": lif((2, 4, 4)),
        "conv2": nir.Conv2d((4, 4), np.ones((2, 2, 1, 1)), 1, 0, 1, 1, np.zeros(2)),
        "lif2": lif((2, 4, 4)),
        "flatten": nir.Flatten(np.array([2, 4, 4]), 0, -1),
        "fc": nir.Affine(np.ones((3, 32)), np.zeros(3)),
        "output": nir.Output(np.array([3])),
    }
    edges = [*itertools.pairwise(nodes), ("lif1", "lif2")]
    graph = nir.NIRGraph(nodes, edges, type_check=False)
    graph = with_metadata(graph, GraphMetadata(T=1, mean=(0.0,), std=(1.0,)))
    assert (synapses(graph)["lif1", "lif2"] == 2 + 1).all()
    assert depths(graph) == {"lif1": 1, "lif2": 2, "output": 3}


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
    counting = CountingEngine(engine, graph)
    shape = tuple(int(x) for x in graph.nodes["input"].input_type["input"])
    images = networks.random_images(7, shape, 0)
    whole = engine.run(images)
    parts = [counting.run(images[:3]), counting.run(images[3:])]
    assert counting.images == 7 and counting.nodes == spiking_nodes(graph)
    for node in engine.nodes:
        joined = np.concatenate([part.spikes[node] for part in parts], axis=1)
        np.testing.assert_array_equal(joined, whole.spikes[node])
        np.testing.assert_array_equal(counting.spikes[node], whole.spikes[node].sum(axis=(0, 1)))


def result(name):
    return json.loads((BENCHMARKS / "results" / f"{name}.json").read_text())


def test_sanafe_counted_the_same_events():
    """What benchmarks/energy_sanafe.py found, as docs/energy.md says."""
    check_sanafe(result("energy_sanafe"))


def check_sanafe(found):
    assert found["largest_count_difference"] == found["spike_mismatches"] == 0
    for run in found["runs"]:
        rows = [row for part in run["counts"].values() for row in part.values()]
        assert all(row["ours"] == row["sanafe"] for row in rows)
        assert all(0.02 < rate < 0.6 for rate in run["rates"].values())
        for part in run["energy_constants_of_davies_2018_in_both"].values():
            assert part["ratio"] == pytest.approx(1)
    neurons = found["runs"][-1]["neurons"]
    active = found["runs"][-1]["counts"]["lif2"]["active_updates"]["ours"]
    assert active < neurons["lif2"] * found["runs"][-1]["T"]  # some were idle


def test_neurobench_counted_the_same_operations():
    """What benchmarks/synops_neurobench.py found, as docs/energy.md says."""
    for run in result("synops_neurobench")["runs"]:
        counts = run["counts_per_image"]
        assert run["spikes_per_image"]["ours"] == run["spikes_per_image"]["neurobench"]
        for name, row in counts.items():
            equal = row["ours"] == pytest.approx(row["neurobench"])
            # It leaves zero weights out; a pruned network has them.
            assert equal == (name != "operations_on_spikes" or run["pruned"] == 0), name


def test_the_page_says_what_the_results_say():
    page = (ROOT / "docs" / "energy.md").read_text()
    for run in result("energy_sanafe")["runs"]:
        counts = run["counts"].values()
        sums = [sum(part[key]["ours"] for part in counts) for key in SANAFE_COLUMNS]
        own = run["energy_constants_of_sanafe_in_sanafe"]["total"]
        energies = f"{own['ours_nj']:.1f} | {own['sanafe_nj']:.1f}"
        assert f"| {' | '.join(f'{x:,}' for x in sums)} | {energies} |" in page
    for run in result("synops_neurobench")["runs"]:
        counts = run["counts_per_image"]
        both = counts["operations_on_spikes"]
        less = counts["operations_on_spikes_without_zero_weights"]["ours"]
        row = f"{both['ours']:,.1f} | {less:,.1f} | {both['neurobench']:,.1f}"
        assert f"| {100 * run['pruned']:.0f} % | {row} |" in page
    for constant in MAC_PJ.values():
        assert f"{constant.value:g} pJ" in page


def test_the_table_keeps_sources_apart(capsys):
    rows = modeled(small(), activity(small()), load_profile("loihi2"))
    layers = [{"name": "lif1", "neurons": 32, "rate": 0.1, "spikes": 5}]
    engine = {"name": "float", "version": "1", "kind": "simulated"}
    result = {"engine": engine, "accuracy": None, "n": 1, "images": "random"}
    result |= {"layers": layers, "energy": rows}
    show_simulation(result)
    shown = capsys.readouterr().err
    assert "Modeled energy and latency" in shown and "ratio_to_ann_int8" in shown
    assert shown.count("Source: constants of the first Loihi (Davies") == 1
    show_simulation({**result, "energy": []})
    assert "Modeled" not in capsys.readouterr().err


@pytest.mark.slow
def test_sanafe_still_counts_the_same(tmp_path):
    """Builds SANA-FE's environment unless it is there; needs the package index then."""
    code = (
        "import json, sys; sys.path.insert(0, sys.argv[1]); import energy_sanafe as e;"
        "run = e.cross_check(7, 4, 0.05); print(json.dumps(e.summary([run])))"
    )
    command = [sys.executable, "-c", code, str(BENCHMARKS)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    check_sanafe(json.loads(answer.splitlines()[-1]))
