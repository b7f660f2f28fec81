"""Depth balancing: all paths into a population take equally many steps, and what that costs."""

import nir
import numpy as np
import pytest
import residual_networks as networks
from random_networks import random_images
from residual_networks import conv, graph_of, head, lif

from stars_deploy.config.profile import load_profile
from stars_deploy.simulation.integer.engine import build_engine
from stars_deploy.simulation.integer.network import parse_network
from stars_deploy.targets.findings import exit_code
from stars_deploy.targets.loihi import analyse, lower
from stars_deploy.targets.loihi.balance import balanced, synapses
from stars_deploy.targets.loihi.stages import Incoming, Stage, stages_of

LOIHI2 = load_profile("loihi2")
IMAGES = random_images(6, (1, 6, 6), 1)


def populations(network, key):
    return {item["name"]: item[key] for item in network.document["populations"]}


def cost(graph, balance):
    return [item for item in analyse(graph, LOIHI2, balance).findings if item.code == "balance"]


@pytest.mark.parametrize("T", [4, 3])
def test_depths_and_phases_of_two_blocks_with_relays(T):
    network = lower(networks.two_blocks(T=T), LOIHI2, "relay")
    depths = {"lif1": 1, "lif2": 2, "lif1_relay1": 2, "lif3": 3, "lif4": 4, "lif3_relay1": 4}
    depths |= {"lif5": 5, "fc": 6}
    assert populations(network, "depth") == depths
    phases = {name: (1 + depth) % T for name, depth in depths.items()}
    assert populations(network, "reset_offset") == phases
    assert all(item["delay"] == 0 for item in network.document["connections"])
    order = list(populations(network, "depth").values())
    assert order == sorted(order)


def test_depths_and_delays_of_two_blocks_with_delays():
    network = lower(networks.two_blocks(), LOIHI2, "delay")
    names = ["lif1", "lif2", "lif3", "lif4", "lif5", "fc"]
    assert populations(network, "depth") == {name: d for d, name in enumerate(names, 1)}
    late = {
        item["name"]: (item["source"], item["target"], item["kind"], item["delay"])
        for item in network.document["connections"]
        if item["delay"]
    }
    assert late == {
        "short": ("lif1", "lif3", "sparse_delay", 1),
        "lif5_from_lif3": ("lif3", "lif5", "sparse_delay", 1),
        "lif5_from_lif3_2": ("lif3", "lif5", "sparse_delay", 1),
    }


def test_a_relay_repeats_spikes_and_forgets():
    """Weight 1, threshold 0, reset after every spike; it belongs to no node of the graph."""
    graph = networks.long_skip()
    network = lower(graph, LOIHI2)
    relays = [p for p in network.document["populations"] if p["node"] is None]
    assert [item["name"] for item in relays] == ["lif1_relay1", "lif1_relay2"]
    for item in relays:
        assert (item["vth"], item["dv"], item["du"], item["bias_key"]) == (0, 0, 4095, None)
        item["node"] = item["name"]  # so that the engine reports it
    spikes = build_engine(network.document, network.arrays).run(IMAGES).spikes
    assert 0.01 < spikes["lif1"].mean() < 0.9
    for item in relays:  # steps are counted from each population's own reset
        np.testing.assert_array_equal(spikes[item["name"]], spikes["lif1"])
    chain = [(c["source"], c["target"]) for c in network.document["connections"]]
    assert ("lif1", "lif1_relay1") in chain and ("lif1_relay1", "lif1_relay2") in chain


def test_relays_are_shared_by_all_that_listen():
    """In SEW networks lif1 is heard two and three populations later: one chain serves both."""
    network = lower(networks.sew_add(), LOIHI2)
    names = [item["name"] for item in network.document["populations"] if item["node"] is None]
    assert names == ["lif1_relay1", "lif1_relay2", "lif2_relay1"]
    heard = {c["target"] for c in network.document["connections"] if c["source"] == "lif1_relay1"}
    assert heard == {"lif1_relay2", "lif3"}


def test_both_balances_compute_the_same():
    for name, build in networks.ALL.items():
        networks_ = [lower(build(), LOIHI2, balance) for balance in ("relay", "delay")]
        relay, delay = (build_engine(n.document, n.arrays).run(IMAGES) for n in networks_)
        assert list(relay.spikes) == list(delay.spikes), name
        for node, spikes in relay.spikes.items():
            np.testing.assert_array_equal(spikes, delay.spikes[node])
        np.testing.assert_array_equal(relay.logits, delay.logits)


def test_messages_of_the_image_wait_in_synapses():
    """No relay repeats a graded message, so `relay` delays them too, and says so."""
    network = lower(networks.long_skip(), LOIHI2, "relay")
    side = next(c for c in network.document["connections"] if c["name"] == "side")
    assert (side["source"], side["kind"], side["delay"]) == ("input", "sparse_delay", 1)
    assert side["message_bits"] == 8
    notes = cost(networks.long_skip(), "relay")
    assert [note.severity for note in notes] == ["info", "info"]
    assert "(side: graded messages, which no relay repeats)" in notes[1].message


def test_costs_counted_by_hand():
    """Two blocks: 144 + 54 relay neurons, or delays in a 1x1 projection and an identity."""
    graph = networks.two_blocks()
    (note,) = cost(graph, "relay")
    assert note.value == 4 * 6 * 6 + 6 * 3 * 3 and "198 neurons more" in note.message
    taps = np.count_nonzero(graph.nodes["short"].weight)  # each read once per position
    (note,) = cost(graph, "delay")
    assert note.value == taps * 9 + 6 * 9 and "up to 1 steps" in note.message
    assert not cost(networks.identity_skip(), "relay")  # it skips a convolution, no population


def test_a_chain_costs_nothing():
    graph = networks.identity_skip()
    edges = [edge for edge in graph.edges if tuple(edge) != ("lif1", "lif2")]
    chain = nir.NIRGraph(graph.nodes, edges, metadata=graph.metadata, type_check=False)
    assert not cost(chain, "relay") and not cost(chain, "delay")


@pytest.mark.parametrize("stride", [(1, 1), (2, 1), (2, 3)])
@pytest.mark.parametrize("padding", [(0, 0), (1, 2)])
@pytest.mark.parametrize("dilation", [(1, 1), (2, 1)])
def test_synapses_are_counted_where_a_tap_reads_a_pixel(stride, padding, dilation):
    rng = np.random.default_rng(0)
    weight = rng.integers(-1, 2, (4, 1, 3, 2)).astype(float)
    given = (2, 6, 7)
    size = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(given[1:], padding, dilation, (3, 2), stride, strict=True)
    ]
    count = 0
    for _, _, a, b in np.argwhere(weight):
        for y in range(size[0]):
            for x in range(size[1]):
                row = y * stride[0] + a * dilation[0] - padding[0]
                column = x * stride[1] + b * dilation[1] - padding[1]
                count += 0 <= row < 6 and 0 <= column < 7
    item = Incoming("c", "c", "lif1", "conv", weight, stride, padding, dilation, 2, 1, given)
    assert synapses(Stage("lif2", (4, *size), (item,), np.zeros(()), None), item) == count


def test_synapses_of_a_matrix_are_its_entries():
    item = Incoming("fc", "fc", "lif1", "dense", np.array([[0.0, 1.0, -2.0], [0.0, 0.0, 3.0]]))
    assert synapses(Stage("fc", (2,), (item,), np.zeros(2), None), item) == 3


def deep(length):
    """A chain of `length` small layers behind lif0, whose spikes also reach the last one."""
    rng = np.random.default_rng(0)
    nodes = {"conv0": conv(rng, 1, 1, 2, kernel=1), "lif0": lif((1, 2, 2))}
    edges = ["input conv0", "conv0 lif0"]
    for i in range(1, length + 1):
        nodes |= {f"conv{i}": conv(rng, 1, 1, 2, kernel=1), f"lif{i}": lif((1, 2, 2))}
        edges += [f"lif{i - 1} conv{i}", f"conv{i} lif{i}"]
    nodes |= head(rng, (1, 2, 2))
    edges += [f"lif0 lif{length}", f"lif{length} flat", "flat fc", "fc output"]
    return graph_of(nodes, edges, shape=(1, 2, 2))


def test_delays_end_at_62_steps():
    network = lower(deep(63), LOIHI2, "delay")  # skips 62 populations
    assert max(item["delay"] for item in network.document["connections"]) == 62
    parse_network(network.document, network.arrays)
    refused = analyse(deep(64), LOIHI2, "delay")
    assert refused.network is None
    (found,) = [item for item in refused.findings if item.severity == "error"]
    assert (found.code, found.node, found.value, found.limit) == ("synaptic_delay", "lif64", 63, 62)
    assert "relay" in found.remedy
    assert exit_code(refused.findings) == 4
    assert analyse(deep(64), LOIHI2, "relay").network is not None


@pytest.mark.parametrize("balance", ["relay", "delay"])
def test_an_image_that_skips_too_much_is_not_advised_to_use_relays(balance):
    graph = deep(63)
    edges = [*graph.edges, ("input", "side"), ("side", "lif63")]
    nodes = {**graph.nodes, "side": conv(np.random.default_rng(1), 1, 1, 2, kernel=1)}
    late = nir.NIRGraph(nodes, edges, metadata=graph.metadata, type_check=False)
    found = [item for item in analyse(late, LOIHI2, balance).findings if item.severity == "error"]
    assert [(item.code, item.value) for item in found] == [("synaptic_delay", 63)]
    assert "relays (" not in found[0].remedy and "shorter skips" in found[0].remedy


def wide(neurons):
    """A vector of neurons whose spikes skip a layer."""
    rng = np.random.default_rng(0)
    fcs = [nir.Linear(np.ones((n, m))) for n, m in ((neurons, 4), (2, neurons), (2, neurons))]
    nodes = {"flat": networks.flatten((1, 2, 2)), "fc1": fcs[0], "lif1": lif((neurons,))}
    nodes |= {"fc2": fcs[1], "lif2": lif((2,)), "side": fcs[2], "lif3": lif((2,))}
    nodes |= {"fc3": nir.Linear(rng.normal(size=(2, 2))), "fc": nir.Linear(np.ones((3, 2)))}
    edges = "input flat,flat fc1,fc1 lif1,lif1 fc2,fc2 lif2,lif2 fc3,fc3 lif3,lif1 side,side lif3"
    return graph_of(nodes, [*edges.split(","), "lif3 fc", "fc output"], shape=(1, 2, 2))


def test_a_relay_of_a_vector_is_a_matrix_and_too_large_ones_are_refused():
    network = lower(wide(5), LOIHI2)
    np.testing.assert_array_equal(network.arrays["w.lif1_relay1_in"], np.eye(5))
    refused = analyse(wide(2049), LOIHI2)
    (found,) = [item for item in refused.findings if item.severity == "error"]
    assert (found.code, found.node, found.value, found.limit) == ("relay", "lif1", 2049, 2048)
    assert analyse(wide(2049), LOIHI2, "delay").network is not None


def test_relays_do_not_take_names_that_are_in_use():
    """A neuron called lif1_relay1 and a connection called lif1_relay2_in exist already."""
    graph = networks.long_skip()
    renamed = {"lif2": "lif1_relay1", "conv3": "lif1_relay2_in"}
    nodes = {renamed.get(name, name): node for name, node in graph.nodes.items()}
    edges = [tuple(renamed.get(end, end) for end in edge) for edge in graph.edges]
    graph = nir.NIRGraph(nodes, edges, metadata=graph.metadata, type_check=False)
    network = lower(graph, LOIHI2)
    relays = [item["name"] for item in network.document["populations"] if item["node"] is None]
    assert relays == ["lif1_relay1_", "lif1_relay2_"]
    names = [item["name"] for item in network.document["connections"]]
    assert len(set(names)) == len(names)
    plain = lower(networks.long_skip(), LOIHI2)
    answers = [build_engine(n.document, n.arrays).run(IMAGES).logits for n in (network, plain)]
    np.testing.assert_array_equal(*answers)


def test_stages_come_back_sources_first():
    for build in networks.ALL.values():
        for balance in ("relay", "delay"):
            known = {"input": 0}
            for stage in balanced(stages_of(build())[0], balance)[0]:
                for item in stage.incoming:
                    assert stage.depth == known[item.source] + 1 + item.delay
                known[stage.name] = stage.depth
