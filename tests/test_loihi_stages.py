"""Graphs as populations and operators: residual networks lower exactly where integers allow it."""

import itertools

import nir
import numpy as np
import pytest
import residual_networks as networks
import torch
import torch.nn.functional as F
from random_networks import clear_mismatches, random_images
from residual_networks import conv, dyadic, flatten, graph_of, head, leaky, lif, neuron_if

from stars_deploy.config.profile import load_profile
from stars_deploy.errors import BundleError
from stars_deploy.graph.gain import fold_gain
from stars_deploy.simulation.integer.engine import build_engine
from stars_deploy.simulation.reference import FloatEngine
from stars_deploy.targets.loihi import analyse, lower
from stars_deploy.targets.loihi import target as asked
from stars_deploy.targets.loihi.quantise import parallel_parts
from stars_deploy.targets.loihi.stages import stages_of
from stars_deploy.validation.lowering import require_layers

LOIHI2 = load_profile("loihi2")
IMAGES = random_images(6, (1, 6, 6), 1)
BALANCES = ("relay", "delay")


def lowered(graph, balance="relay"):
    """The network, which must be exact in every population."""
    analysis = analyse(graph, LOIHI2, balance)
    assert analysis.network is not None, analysis.findings
    notes = [item for item in analysis.findings if item.code == "integers"]
    assert notes and all("exact" in note.message for note in notes), notes
    return analysis.network


def run(network, images=IMAGES):
    return build_engine(network.document, network.arrays).run(images)


def assert_equal_to_the_graph(graph, network, images=IMAGES, rates=(0.01, 0.9)):
    expected, answer = FloatEngine(graph).run(images), run(network, images)
    assert sorted(answer.spikes) == sorted(expected.spikes)
    for node, spikes in expected.spikes.items():
        np.testing.assert_array_equal(answer.spikes[node], spikes, node)
        assert rates[0] < spikes.mean() < rates[1], (node, spikes.mean())
    np.testing.assert_array_equal(answer.logits, expected.logits)
    assert len(np.unique(answer.logits, axis=0)) > 1


def entry(network, section, name):
    (found,) = [item for item in network.document[section] if item["name"] == name]
    return found


@pytest.mark.parametrize("balance", BALANCES)
@pytest.mark.parametrize("name", networks.ALL)
def test_residual_networks_lower_exactly(name, balance):
    graph = networks.ALL[name]()
    network = lowered(graph, balance)
    assert_equal_to_the_graph(graph, network)
    for section in ("populations", "connections"):
        names = [item["name"] for item in network.document[section]]
        assert len(set(names)) == len(names)
    connections = network.document["connections"]
    used = {item["weight_key"] for item in connections}
    biases = {p["bias_key"] for p in network.document["populations"]} - {None}
    assert used | biases | {"input_table"} == set(network.arrays)
    assert {item["node"] for item in connections} <= set(graph.nodes)
    nodes = [p["node"] for p in network.document["populations"] if p["node"]]
    assert set(nodes) <= set(graph.nodes)


def test_two_sources_of_one_convolution_share_its_weights():
    network = lowered(networks.sew_add())
    ends = {
        item["name"]: (item["source"], item["target"], item["weight_key"])
        for item in network.document["connections"]
        if item["node"] == "conv3"
    }
    assert ends == {
        "conv3": ("lif1_relay1", "lif3", "w.conv3"),
        "conv3_from_lif2": ("lif2", "lif3", "w.conv3"),
    }


def test_one_convolution_for_populations_of_different_scales():
    """Each has weights of its own: the same name for both would lose one of them."""
    network = lowered(networks.membrane_shortcut())
    found = [item for item in network.document["connections"] if item["node"] == "conv1"]
    assert [(item["name"], item["target"]) for item in found] == [
        ("conv1", "lif1"),
        ("conv1_from_lif0", "lif2"),
        ("conv1_from_lif0_to_lif3", "lif3"),
    ]
    weights = [network.arrays[item["weight_key"]] for item in found]
    assert found[0]["weight_key"] == found[1]["weight_key"]  # scales 512 and 1024, tau 2 and 4
    np.testing.assert_array_equal(weights[0], 2 * weights[2])


def test_parallel_synapses_do_not_take_the_name_of_a_node():
    graph = networks.option_a()
    renamed = {"conv5": "short_2", "lif2": "lif5_from_lif3", "conv4": "lif1_relay1"}
    nodes = {renamed.get(name, name): node for name, node in graph.nodes.items()}
    edges = [tuple(renamed.get(end, end) for end in edge) for edge in graph.edges]
    graph = nir.NIRGraph(nodes, edges, metadata=graph.metadata, type_check=False)
    network = lowered(graph)
    assert_equal_to_the_graph(graph, network)
    names = [item["name"] for item in network.document["connections"]]
    assert len(set(names)) == len(names) and {"short_2", "short_2_"} <= set(names)


def two_convolutions(rng):
    """A biased convolution read beyond its border by a padded one, without a neuron between."""
    shape = (3, 6, 6)
    nodes = {"conv1": conv(rng, 2, 1, below=0.5), "conv2": conv(rng, 3, 2, below=0.5)}
    # Products of 16ths are 256ths: whole at a scale of 2^13 only for few bits.
    nodes["conv1"].weight = np.sign(nodes["conv1"].weight) / 2
    nodes["conv2"].weight = np.sign(nodes["conv2"].weight) / 2
    nodes |= {"lif1": lif(shape, threshold=0.25), **head(rng, shape)}
    edges = ["input conv1", "conv1 conv2", "conv2 lif1", "lif1 flat", "flat fc", "fc output"]
    return graph_of(nodes, edges)


def test_a_bias_behind_a_padded_convolution_is_one_per_neuron():
    graph = two_convolutions(np.random.default_rng(3))
    stage = stages_of(graph)[0][0]
    value = torch.zeros(1, 1, 6, 6, dtype=torch.float64)
    for name in ("conv1", "conv2"):
        node = graph.nodes[name]
        value = F.conv2d(value, torch.tensor(node.weight), torch.tensor(node.bias), padding=1)
    np.testing.assert_array_equal(stage.bias, value[0])
    assert np.ptp(stage.bias, axis=(1, 2)).all()
    network = lower(graph, LOIHI2)
    assert network.arrays["b.lif1"].shape == (3, 6, 6)
    silent = np.full((1, 1, 6, 6), 128, np.uint8)  # (128 - 128) / 64
    expected, answer = FloatEngine(graph).run(silent), run(network, silent)
    np.testing.assert_array_equal(answer.spikes["lif1"], expected.spikes["lif1"])
    assert 0 < expected.spikes["lif1"].mean() < 1


def behind_a_layer(rng, readout, *edges, classes=3):
    shape = (3, 6, 6)
    nodes = {"conv1": conv(rng, 3, 1), "lif1": lif(shape), **readout}
    return graph_of(nodes, ["input conv1", "conv1 lif1", *edges], classes=classes)


def spiking_readout(rng):
    nodes = {**head(rng, (3, 6, 6)), "out": lif((3,))}
    nodes["fc"].bias = nodes["fc"].bias / 2 + 0.75
    return behind_a_layer(rng, nodes, "lif1 flat", "flat fc", "fc out", "out output")


def leaky_readout(rng):
    nodes = {**head(rng, (3, 6, 6)), "out": leaky((3,))}
    return behind_a_layer(rng, nodes, "lif1 flat", "flat fc", "fc out", "out output")


def convolution_readout(rng):
    nodes = {"last": conv(rng, 1, 3, kernel=5, padding=0), "flat": flatten((1, 2, 2))}
    return behind_a_layer(rng, nodes, "lif1 last", "last flat", "flat output", classes=4)


def spiking_map_readout(rng):
    nodes = {"last": conv(rng, 1, 3, kernel=5, padding=0), "out": lif((1, 2, 2))}
    nodes["flat"] = flatten((1, 2, 2))
    edges = ["lif1 last", "last out", "out flat", "flat output"]
    return behind_a_layer(rng, nodes, *edges, classes=4)


def summed_readout(rng):
    nodes = {**head(rng, (3, 6, 6)), "side": nir.Linear(dyadic(rng, (3, 36)))}
    nodes |= {"pixels": flatten((1, 6, 6)), "lif0": lif((1, 6, 6), threshold=0.5)}
    edges = ["input lif0", "lif0 pixels", "pixels side", "side output", "fc output"]
    return behind_a_layer(rng, nodes, "lif1 flat", "flat fc", *edges)


READOUTS = {
    spiking_readout: ("out", "spikes"),
    leaky_readout: ("out", "potentials"),
    convolution_readout: ("flat", "potential"),
    spiking_map_readout: ("out", "spikes"),
    summed_readout: ("output", "potential"),
}


@pytest.mark.parametrize("build", READOUTS)
def test_readouts(build):
    graph = build(np.random.default_rng(2))
    network = lowered(graph)
    name, kind = READOUTS[build]
    assert network.document["readout"]["population"] == name
    assert network.document["readout"]["kind"] == kind
    assert_equal_to_the_graph(graph, network)


def test_a_readout_of_shifted_potentials_is_another_network():
    """The comparison can fail: v(T) is not the mean of v over T."""
    graph = leaky_readout(np.random.default_rng(2))
    network = lowered(graph)
    network.document["readout"]["kind"] = "potential"
    assert not np.allclose(run(network).logits, FloatEngine(graph).run(IMAGES).logits)


@pytest.mark.parametrize(("T", "r"), [(1, 1.0), (3, 0.5), (4, 0.5)])
def test_integrate_and_fire(T, r):
    graph = networks.two_blocks(T=T, neuron=lambda shape: neuron_if(shape, r))
    assert_equal_to_the_graph(graph, lowered(graph))


def test_threshold_nodes_have_no_memory():
    graph = networks.identity_skip(neuron=lambda shape: nir.Threshold(np.full(shape, 0.5)))
    network = lowered(graph)
    assert entry(network, "populations", "lif2")["dv"] == 4096
    assert_equal_to_the_graph(graph, network)


@pytest.mark.parametrize("tau", [1.37, 2.7, 3.3])
def test_learned_time_constants_stay_close(tau):
    graph = networks.two_blocks(neuron=lambda shape: lif(shape, tau, 0.5))
    network = lower(graph, LOIHI2)
    assert entry(network, "populations", "lif4")["dv"] == round(4096 / tau)
    expected = FloatEngine(graph).run(IMAGES, margins=True)
    engine = build_engine(network.document, network.arrays)
    answer = engine.run(IMAGES, feed=expected.spikes)
    assert all(spikes.any() for spikes in expected.spikes.values())
    assert clear_mismatches(expected, answer.spikes, 0.05) == 0
    assert clear_mismatches(expected, run(lower(other_tau(graph), LOIHI2)).spikes, 0.05) > 0


def other_tau(graph):
    for name in ("lif1", "lif4"):
        graph.nodes[name].tau = graph.nodes[name].tau * 1.5
    return graph


@pytest.mark.parametrize("name", networks.ALL)
def test_a_folded_gain_gives_the_same_integers(name):
    """r = 1 with the input decaying, or r = tau with 1/tau in weights and Scale nodes."""
    graph = networks.ALL[name]()
    raw, folded = (lowered(g) for g in (graph, fold_gain(graph)))
    assert folded.document["populations"] == raw.document["populations"]
    assert weights(folded) == weights(raw)


def weights(network):
    """What joins which populations, whatever the connections are called."""
    return sorted(
        (item["source"], item["target"], item["kind"], network.arrays[item["weight_key"]].tolist())
        for item in network.document["connections"]
    )


def fine_block():
    """A skip of weight 1 beside a convolution of small weights, tau = 2."""
    graph = networks.identity_skip()
    rng = np.random.default_rng(7)
    graph.nodes["conv2"].weight = rng.uniform(-0.15, 0.15, (4, 4, 3, 3))
    return graph


def test_a_skip_takes_parallel_synapses_instead_of_the_scale(monkeypatch):
    network = lower(fine_block(), LOIHI2)
    scale = entry(network, "populations", "lif2")["scale"]
    assert 254 < scale <= 8 * 254
    skip = [c for c in network.document["connections"] if c["source"] == "lif1"]
    skip = [network.arrays[c["weight_key"]] for c in skip if c["node"] == "lif2"]
    assert 2 <= len(skip) <= 8
    assert all(part.min() >= -128 and part.max() <= 127 for part in skip)
    np.testing.assert_array_equal(sum(skip), np.full((4, 1, 1, 1), round(scale / 2)))
    monkeypatch.setattr(asked, "PARALLEL", 1)
    bound = entry(lower(fine_block(), LOIHI2), "populations", "lif2")["scale"]
    assert bound <= 2 * 254


def test_a_negative_skip_is_split_too():
    parts = parallel_parts(np.array([[300, -300], [0, 5]]), asked.Ranges.of(LOIHI2.arithmetic))
    assert [part.tolist() for part in parts] == [
        [[127, -128], [0, 5]],
        [[127, -128], [0, 0]],
        [[46, -44], [0, 0]],
    ]


def errors(graph):
    analysis = analyse(graph, LOIHI2)
    assert analysis.network is None
    return {item.node: item for item in analysis.findings if item.severity == "error"}


def test_a_neuron_called_input_is_not_the_image():
    graph = networks.identity_skip()
    renamed = {"input": "image", "lif1": "input"}
    nodes = {renamed.get(name, name): node for name, node in graph.nodes.items()}
    edges = [tuple(renamed.get(end, end) for end in edge) for edge in graph.edges]
    found = errors(nir.NIRGraph(nodes, edges, metadata=graph.metadata, type_check=False))
    assert "rename" in found["input"].remedy


def test_potentials_drive_no_population():
    graph = networks.identity_skip()
    graph.nodes["lif1"] = leaky((4, 6, 6))
    found = errors(graph)
    assert set(found) == {"lif1"} and "LI node whose potential drives lif2" in found["lif1"].message


def many_paths(count):
    """`count` neurons whose currents add up in one."""
    rng = np.random.default_rng(0)
    nodes = {f"lif{i}": lif((1, 2, 2)) for i in range(count)}
    nodes |= {"sum": lif((1, 2, 2)), **head(rng, (1, 2, 2))}
    edges = [f"input lif{i}" for i in range(count)] + [f"lif{i} sum" for i in range(count)]
    return graph_of(nodes, [*edges, "sum flat", "flat fc", "fc output"], shape=(1, 2, 2))


def test_paths_without_number_are_refused():
    assert errors(many_paths(65))["sum"].code == "paths"
    assert analyse(many_paths(64), LOIHI2).network is not None


def test_equal_operators_between_the_same_populations_are_one():
    graph = networks.two_blocks()
    rng = np.random.default_rng(9)
    graph.nodes["twin"] = conv(rng, 6, 6, 3)
    edges = [*graph.edges, ("lif3", "twin"), ("twin", "lif4")]
    graph = nir.NIRGraph(graph.nodes, edges, metadata=graph.metadata, type_check=False)
    stage = next(stage for stage in stages_of(graph)[0] if stage.name == "lif4")
    (item,) = stage.incoming
    expected = graph.nodes["conv4"].weight + graph.nodes["twin"].weight
    np.testing.assert_array_equal(item.weight, expected)
    assert_equal_to_the_graph(graph, lowered(graph))


def scaled(node, field, factor):
    graph = networks.identity_skip()
    setattr(graph.nodes[node], field, np.asarray(getattr(graph.nodes[node], field)) * factor)
    return graph


@pytest.mark.parametrize(
    ("node", "field", "named", "code"),
    [
        ("conv2", "weight", "conv2", "range"),
        ("fc", "weight", "fc", "range"),
        ("fc", "bias", "fc", "range"),
        ("lif2", "r", "lif2", "neuron"),
        ("lif2", "v_threshold", "lif2", "scale_range"),
    ],
)
@pytest.mark.parametrize("factor", [1e200, 1e305])
def test_numbers_whose_squares_overflow_are_named(node, field, named, code, factor):
    assert errors(scaled(node, field, factor))[named].code == code


def test_a_chain_of_large_weights_is_named_before_it_overflows():
    rng = np.random.default_rng(0)
    graph = identity_behind(rng, [1e20, 1e20])
    assert errors(graph)["a1"].code == "range"


def identity_behind(rng, factors):
    """The image through one scaled identity after the other into lif."""
    nodes = {"flat": flatten((1, 6, 6)), "lif": lif((36,)), "fc": nir.Linear(dyadic(rng, (3, 36)))}
    names = ["flat", *(f"a{i}" for i in range(len(factors)))]
    nodes |= {f"a{i}": nir.Linear(np.eye(36) * x) for i, x in enumerate(factors)}
    chain = ["input", *names, "lif", "fc", "output"]
    return graph_of(nodes, [f"{a} {b}" for a, b in itertools.pairwise(chain)])


@pytest.mark.parametrize("factor", [1e30, 1e-30, 1e-300])
def test_numbers_that_float32_holds_still_lower_where_only_the_scale_changes(factor):
    network = lower(scaled("fc", "weight", factor), LOIHI2)
    assert np.isfinite(run(network).logits).all()


def unknown_node(entry):
    entry["node"] = "lif9"


def no_node(entry):
    entry["node"] = None


@pytest.mark.parametrize(
    ("population", "change", "named"),
    [("lif1_relay1", unknown_node, "node lif9"), ("lif3", no_node, "node lif3 is absent")],
)
def test_integers_of_other_nodes_than_the_graph_s_are_refused(tmp_path, population, change, named):
    graph = networks.long_skip()
    network = lower(graph, LOIHI2)
    network.write(tmp_path)
    require_layers(graph, tmp_path)
    change(entry(network, "populations", population))
    network.write(tmp_path)
    with pytest.raises(BundleError, match=named):
        require_layers(graph, tmp_path)
