"""Lowering of residual graphs, by both ways to balance paths, against the slow int64 model."""

import functools

import nir
import numpy as np
import pytest
import slow_loihi
from random_networks import image_shape, random_images
from random_residual import BLOCKS, random_residual_graph

from stars_deploy.config.profile import load_profile
from stars_deploy.graph.order import SPIKING, sources, topological_order
from stars_deploy.simulation.integer.engine import build_engine
from stars_deploy.simulation.reference import FloatEngine
from stars_deploy.targets.loihi import lower

LOIHI2 = load_profile("loihi2")
BALANCES = ("relay", "delay")
SEEDS, CHUNKS = 500, 20


@pytest.fixture
def few_scales(monkeypatch):
    """Try fewer scales: equality holds for any of them, and the search is what takes time."""
    monkeypatch.setattr("stars_deploy.targets.loihi.scales.CANDIDATES", (16, 48))


def images_for(graph, count, seed):
    return random_images(count, image_shape(graph), seed)


def node_of(document):
    """Node of every population that spikes and stands for one; relays stand for none."""
    return {
        entry["name"]: entry["node"]
        for entry in document["populations"]
        if entry["spiking"] and entry["node"] is not None
    }


def differences(document, arrays, images):
    """Spikes and logits in which the batched engine and the slow model differ."""
    spikes, _, logits = slow_loihi.run(document, arrays, images)
    recording = build_engine(document, arrays).run(images)
    nodes = node_of(document)
    assert sorted(recording.spikes) == sorted(nodes.values())
    wrong = {
        node: int((recording.spikes[node] != spikes[name]).sum()) for name, node in nodes.items()
    }
    wrong["logits"] = int((recording.logits != logits.astype(np.float32)).sum())
    return {name: count for name, count in wrong.items() if count}


# What the graph says about depths, computed from its edges alone.


def listeners(graph):
    """Populations and the output -> the populations, or "input", whose messages they take."""

    @functools.cache
    def roots(name):
        if name == "input" or isinstance(graph.nodes[name], SPIKING):
            return frozenset([name])
        return frozenset().union(*map(roots, sources(graph, name)))

    heard = {}
    for name in topological_order(graph):
        if isinstance(graph.nodes[name], SPIKING):
            heard[name] = frozenset().union(*map(roots, sources(graph, name)))
    last = sources(graph, "output")
    if not any(isinstance(graph.nodes[name], SPIKING) for name in last):
        heard["output"] = frozenset().union(*map(roots, last))
    return heard


def longest_paths(heard):
    depth = {"input": 0}
    for name, given in heard.items():  # in topological order
        depth[name] = 1 + max(depth[source] for source in given)
    return depth


def relays_needed(heard):
    """One chain of relays per population, as long as its latest listener is late."""
    depth = longest_paths(heard)
    late = dict.fromkeys(depth, 0)
    for name, given in heard.items():
        for source in given - {"input"}:  # the image is there at every step
            late[source] = max(late[source], depth[name] - depth[source] - 1)
    return sum(late.values())


def check_depths(graph, document):
    heard = listeners(graph)
    expected, readout = longest_paths(heard), document["readout"]["population"]
    depth = {"input": 0} | {e["name"]: e["depth"] for e in document["populations"]}
    for entry in document["populations"]:
        assert entry["reset_interval"] == document["T"]
        assert entry["reset_offset"] == (1 + entry["depth"]) % document["T"], entry["name"]
        if entry["node"] in heard:
            assert entry["depth"] == expected[entry["node"]], entry["name"]
    if "output" in heard:
        assert depth[readout] == expected["output"]
    ends = {e["name"] for e in document["populations"]} - {readout}
    assert ends <= {e["source"] for e in document["connections"]}  # nobody speaks to no one
    for e in document["connections"]:
        assert depth[e["target"]] == depth[e["source"]] + 1 + e["delay"], e["name"]
        assert (e["kind"] == "sparse_delay") == (e["delay"] > 0), e["name"]


def check_balance(graph, document, balance):
    relays = [entry for entry in document["populations"] if entry["node"] is None]
    late = [entry for entry in document["connections"] if entry["delay"]]
    if balance == "delay":
        assert not relays
        assert bool(late) >= (relays_needed(listeners(graph)) > 0)
        return
    assert len(relays) == relays_needed(listeners(graph))
    assert all(entry["source"] == "input" for entry in late)


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_engine_equals_the_slow_model(chunk, few_scales):
    for seed in range(chunk, SEEDS, CHUNKS):
        graph = random_residual_graph(seed)
        images = images_for(graph, 2, seed)
        for balance in BALANCES:
            network = lower(graph, LOIHI2, balance=balance)
            check_depths(graph, network.document)
            check_balance(graph, network.document, balance)
            wrong = differences(network.document, network.arrays, images)
            assert not wrong, (seed, balance, wrong)


def test_pools_that_cross_a_border(few_scales):
    for seed in range(40):
        graph = random_residual_graph(seed, inexact=True)
        for balance in BALANCES:
            network = lower(graph, LOIHI2, balance=balance)
            wrong = differences(network.document, network.arrays, images_for(graph, 2, seed))
            assert not wrong, (seed, balance, wrong)


@pytest.mark.parametrize("inexact", [False, True])
def test_both_balances_compute_the_same(inexact, few_scales):
    """Waiting in a relay or in a synapse: same integers, same spikes."""
    for seed in range(40):
        graph = random_residual_graph(seed, inexact=inexact)
        images = images_for(graph, 3, seed)
        relay, delay = (
            build_engine(network.document, network.arrays).run(images, margins=True)
            for network in (lower(graph, LOIHI2, balance=balance) for balance in BALANCES)
        )
        assert list(relay.spikes) == list(delay.spikes)
        for node in relay.spikes:
            np.testing.assert_array_equal(relay.spikes[node], delay.spikes[node])
            np.testing.assert_array_equal(relay.margins[node], delay.margins[node])
        np.testing.assert_array_equal(relay.logits, delay.logits)


@pytest.mark.parametrize("block", BLOCKS)
def test_given_the_same_spikes_every_layer_is_close_to_the_float_engine(block):
    """One layer's rounding of weights, bias, decay and, for the first one, input.

    Seeds are those in which every population fires; single layers may be coarse where an identity
    of weight 1 and small kernels share eight bits, their average must not be.
    """
    wrong, errors = [], []
    for seed in range(20):
        graph = random_residual_graph(seed, blocks=[block], inexact=seed % 4 == 3)
        images = images_for(graph, 8, seed)
        reference = FloatEngine(graph).run(images)
        network = lower(graph, LOIHI2, balance=BALANCES[seed % 2])
        recording = build_engine(network.document, network.arrays).run(
            images, feed=reference.spikes
        )
        for node, expected in reference.spikes.items():
            wrong.append(np.mean(recording.spikes[node] != expected))
        spread = reference.logits.std() + 1e-3
        errors.append(np.abs(recording.logits - reference.logits).max() / spread)
    assert np.mean(wrong) < 0.04 and np.median(wrong) < 0.02, (np.mean(wrong), np.max(wrong))
    assert np.median(errors) < 0.05, np.median(errors)


def test_spikes_and_logits_stay_close_to_the_float_engine():
    totals, wrong, alike = np.zeros(2), [], []
    for seed in range(60):
        graph = random_residual_graph(seed)
        images = images_for(graph, 12, seed)
        reference = FloatEngine(graph).run(images)
        network = lower(graph, LOIHI2, balance=BALANCES[seed % 2])
        recording = build_engine(network.document, network.arrays).run(images)
        assert list(recording.spikes) == list(reference.spikes)
        for node, expected in reference.spikes.items():
            wrong.append(np.mean(recording.spikes[node] != expected))
            totals += recording.spikes[node].sum(), expected.sum()
        alike.append(np.mean(recording.logits.argmax(1) == reference.logits.argmax(1)))
    assert np.mean(wrong) < 0.03, np.mean(wrong)
    assert abs(totals[0] - totals[1]) / totals[1] < LOIHI2.tolerances.total_spikes_relative
    assert np.mean(alike) > 0.85, np.mean(alike)


@pytest.mark.parametrize(
    ("readout", "kind"), [("affine", "potential"), ("li", "potentials"), ("spikes", "spikes")]
)
def test_read_outs(readout, kind, few_scales):
    for seed in range(6):
        graph = random_residual_graph(seed, readouts=[readout], populations=3)
        document = lower(graph, LOIHI2, balance="relay").document
        assert document["readout"]["kind"] == kind
        entry = next(
            e for e in document["populations"] if e["name"] == document["readout"]["population"]
        )
        assert entry["spiking"] == (kind == "spikes")
        if kind == "spikes":
            assert document["readout"]["divisor"] == document["T"]


def test_spikes_added_before_a_convolution_share_its_weights(few_scales):
    """a(W (s1 + s2)) = a(W s1 + W s2): two connections, one array."""
    shared = 0
    for seed in range(20):
        graph = random_residual_graph(seed, blocks=["sew"], populations=4, readouts=["affine"])
        network = lower(graph, LOIHI2, balance="relay")
        keys = [e["weight_key"] for e in network.document["connections"]]
        assert set(keys) <= set(network.arrays)
        shared += len(keys) > len(set(keys))
    assert shared >= 15


def test_equal_graphs_give_equal_files(tmp_path):
    graph = random_residual_graph(5, populations=6)
    turned = nir.NIRGraph(
        dict(reversed(graph.nodes.items())),
        list(reversed(graph.edges)),
        metadata=graph.metadata,
        type_check=False,
    )
    for balance in BALANCES:
        lower(graph, LOIHI2, balance=balance).write(tmp_path / "a")
        lower(turned, LOIHI2, balance=balance).write(tmp_path / "b")
        for name in ("network.json", "network.npz"):
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_skip_one_step_early_is_seen(few_scales):
    """The comparison above can fail: a document with a delay too few is another network."""
    seen = compared = 0
    for seed in range(40):
        graph = random_residual_graph(seed, blocks=["post_add", "long_skip"], image_skips=False)
        network = lower(graph, LOIHI2, balance="delay")
        late = [e["name"] for e in network.document["connections"] if e["delay"]]
        if not late:
            continue
        early = network.document | {
            "connections": [
                e | {"delay": e["delay"] - (e["name"] == late[0])}
                for e in network.document["connections"]
            ]
        }
        images = images_for(graph, 3, seed)
        right = slow_loihi.run(network.document, network.arrays, images)[1]
        wrong = slow_loihi.run(early, network.arrays, images)[1]
        seen += any((right[name] != wrong[name]).any() for name in right)
        compared += 1
    assert compared >= 20 and seen >= 0.9 * compared
