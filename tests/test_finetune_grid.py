"""Integers on a grid: a lowering finds the trained ones back, and the engine fires as trained."""

import dataclasses
import itertools

import nir
import numpy as np
import pytest
import torch
from random_networks import lif, random_graph, random_images

from stars_deploy.config.profile import load_profile
from stars_deploy.config.recipe import Neuron
from stars_deploy.distillation.integer_grid import DECAY_ONE, Grid, Population, _unit_gain, on_grid
from stars_deploy.distillation.integer_twin import IntegerTwin, Operator, messages_of, round_clipped
from stars_deploy.errors import GraphError, RecipeError
from stars_deploy.graph.geometry import input_shape
from stars_deploy.graph.metadata import DT, GraphMetadata, with_metadata
from stars_deploy.graph.reader import read_graph
from stars_deploy.graph.writer import write_graph
from stars_deploy.simulation.integer.engine import build_engine
from stars_deploy.simulation.reference import FloatEngine
from stars_deploy.targets.loihi import analyse, lower
from stars_deploy.workflow.finetune_grid import choose_grid, inexact, with_bits

LOIHI2 = load_profile("loihi2")
EXACT_TAUS = (1.0, 2.0, 4.0)  # decays that lose no digit within 4 steps


def chain(seed, taus=EXACT_TAUS, bits=4, **options):
    """The first random chain from `seed` on that can be lowered with so few bits."""
    for candidate in itertools.count(100 * seed):
        graph = random_graph(candidate, taus=taus, steps=(1, 4), global_pool=False, **options)
        if analyse(graph, with_bits(LOIHI2, bits)).network is not None:
            return graph
    raise AssertionError


def trained(graph, bits, seed=0):
    """A network on the grid whose parameters were moved, and what it is lowered to."""
    profile = with_bits(LOIHI2, bits)
    network, _ = choose_grid(graph, lower(graph, profile), profile, Neuron())
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.03 * torch.randn(parameter.shape, generator=rng)
    return network, lower(network.to_graph(), profile)


# ---- straight-through rounding ---------------------------------------------------------------


def test_the_gradient_passes_straight_through_where_nothing_is_clipped():
    x = torch.tensor([-3.2, -2.6, -0.5, 0.5, 1.5, 2.4, 3.0, 9.0], requires_grad=True)
    y = round_clipped(x, 3)
    assert y.tolist() == [-3, -3, 0, 0, 2, 2, 3, 3]  # half to even, as NumPy rounds
    (y * torch.arange(1.0, 9.0)).sum().backward()
    assert x.grad.tolist() == [0, 2, 3, 4, 5, 6, 7, 0]


def test_rounding_is_that_of_the_lowering():
    values = np.linspace(-9, 9, 1441)
    own = round_clipped(torch.from_numpy(values), 7).numpy()
    assert np.array_equal(own, np.clip(np.rint(values), -7, 7))


# ---- exact integers --------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [3, 4, 6, 8])
@pytest.mark.parametrize("seed", range(5))
def test_the_lowering_finds_the_trained_integers(seed, bits, tmp_path):
    taus = (1.0, 1.5, 2.0, 2.7, 4.0)
    graph = chain(seed, taus, bits, pools=False, groups=False)
    network, _ = trained(graph, bits)
    write_graph(network.to_graph(), tmp_path / "graph.nir")
    lowered = lower(read_graph(tmp_path / "graph.nir"), with_bits(LOIHI2, bits))
    assert inexact(network.gridded, lowered) == []
    assert lowered.document["input"]["scale"] == network.k
    integers = network.integers()
    assert len(integers) == len(lowered.document["connections"])
    for item in lowered.document["connections"]:
        weight, bias = integers[item["node"]]
        found = lowered.arrays[item["weight_key"]]
        ratio = np.abs(found).max() / np.abs(weight).max()
        assert ratio in (1, 2, 4, 8)  # small integers use the same grid, twice as fine
        assert np.array_equal(found, weight * ratio)
        own = lowered.arrays.get(f"b.{item['target']}", np.zeros(len(bias)))
        assert np.array_equal(own.reshape(-1), bias * ratio)


@pytest.mark.parametrize("seed", range(12))
def test_the_integer_engine_fires_as_the_network_was_trained(seed):
    graph = chain(seed)
    network, lowered = trained(graph, 4)
    images = random_images(6, input_shape(graph))
    engine = build_engine(lowered.document, lowered.arrays).run(images)
    with torch.no_grad():
        own = network(messages_of(torch.from_numpy(images), lowered.arrays["input_table"]))
    assert sum(int(spikes.sum()) for spikes in engine.spikes.values()) > 0
    for node, spikes in engine.spikes.items():
        assert np.array_equal(own.spikes[node].numpy(), spikes), node
    assert np.allclose(own.logits.numpy(), engine.logits, atol=1e-6)


def test_every_change_of_one_integer_is_seen_in_the_lowered_network():
    network, lowered = trained(chain(3), 4)
    operator = next(iter(network.operators))
    with torch.no_grad():
        operator.weight.view(-1)[0] -= torch.sign(operator.weight.view(-1)[0]) * 1.01 / 7
    changed = lower(network.to_graph(), with_bits(LOIHI2, 4))
    key = lowered.document["connections"][0]["weight_key"]
    assert not np.array_equal(lowered.arrays[key], changed.arrays[key])


@pytest.mark.parametrize("bits", [3, 8])
@pytest.mark.parametrize("seed", range(6))
def test_rewriting_changes_no_spike(seed, bits):
    graph = chain(seed, bits=bits)
    profile = with_bits(LOIHI2, bits)
    network, _ = choose_grid(graph, lower(graph, profile), profile, Neuron())
    images = random_images(4, input_shape(graph))
    before, after = FloatEngine(graph).run(images), FloatEngine(network.graph).run(images)
    for node, spikes in before.spikes.items():
        assert np.array_equal(after.spikes[node], spikes), node
    assert np.allclose(before.logits, after.logits, rtol=1e-5, atol=1e-6)


def test_zeros_stay_zero():
    graph = chain(1)
    conv = next(name for name, node in graph.nodes.items() if isinstance(node, nir.Conv2d))
    weight = np.array(graph.nodes[conv].weight)
    weight[0, 0] = 0
    graph.nodes[conv] = dataclasses.replace(graph.nodes[conv], weight=weight)
    network, _ = trained(graph, 4)
    assert not network.integers()[conv][0][0, 0].any()
    assert network.integers()[conv][0].any()


def test_every_decay_has_an_exact_input_gain():
    for decay in range(3, DECAY_ONE + 1):
        near, r = _unit_gain(decay)
        assert r * near / DECAY_ONE == 1 and abs(near - decay) <= 2


# ---- shortcuts -------------------------------------------------------------------------------


def residual(tau=2.0, r=1.0, branch=1.0, flat=False):
    """conv1 -> lif1 -> conv2 -> lif2, which also takes the spikes of lif1; then fc.

    Args:
        branch: factor of the weights of conv2.
        flat: lif2 holds a vector, its sources are flattened.
    """
    rng = np.random.default_rng(0)

    def conv(inputs, factor):
        weight = rng.normal(0.3, 0.5, (2, inputs, 3, 3)) * factor
        return nir.Conv2d((4, 4), weight, 1, 1, 1, 1, rng.normal(0.1, 0.1, 2))

    shape = (2, 4, 4)

    def flatten():
        return nir.Flatten({"input": np.array(shape)}, 0, -1)

    nodes = {
        "input": nir.Input({"input": np.array((1, 4, 4))}),
        "conv1": conv(1, 1.0),
        "lif1": lif(shape, tau=tau, r=r),
        "conv2": conv(2, branch),
        "lif2": lif(shape, tau=tau, r=r),
        "flatten": flatten(),
        "fc": nir.Affine(rng.normal(size=(3, 32)), rng.normal(size=3)),
        "output": nir.Output({"output": np.array([3])}),
    }
    edges = [*itertools.pairwise(nodes), ("lif1", "lif2")]
    if flat:
        nodes["lif2"] = lif((32,), tau=tau, r=r)
        nodes["flatten1"] = flatten()
        edges = [("input", "conv1"), ("conv1", "lif1"), ("lif1", "conv2"), ("conv2", "flatten")]
        edges += [("lif1", "flatten1"), ("flatten1", "lif2"), ("flatten", "lif2")]
        edges += [("lif2", "fc"), ("fc", "output")]
    graph = nir.NIRGraph(nodes, edges, type_check=False)
    return with_metadata(graph, GraphMetadata(T=4, mean=(0.5,), std=(0.25,)))


def test_an_identity_shortcut_is_rounded_in_the_unit_of_its_population():
    graph = residual()
    scales = {"lif1": Population(21.0, 2048), "lif2": Population(13.0, 2048)}
    gridded = on_grid(graph, scales, Population(30.0), 32.0, 7, 4095, 8)
    assert gridded.scales["lif1"] == 16 and gridded.scales["lif2"] == 16
    assert gridded.graph.nodes["lif1"].v_threshold.flat[0] == 21 / 16
    assert gridded.graph.nodes["lif2"].v_threshold.flat[0] == 13 / 16
    factor = gridded.graph.nodes["conv1"].weight / graph.nodes["conv1"].weight
    assert np.allclose(factor, 21 / 16, rtol=1e-12)
    assert gridded.grids["conv2"].step == 1 / (16 * 0.5)
    assert gridded.grids["conv1"].step == 32 / (16 * 0.5)  # weights are those of messages of 1/32
    # Weight 1 is 13/16 in the new unit, 6.5 integers; up to 8 synapses of 7 each may share it.
    skip = gridded.graph.nodes["lif2_from_lif1"]
    assert isinstance(skip, nir.Scale) and np.all(skip.scale == 13 / 16)
    assert skip.scale.shape == (2, 4, 4)
    grid = gridded.grids["lif2_from_lif1"]
    assert (grid.step, grid.high) == (1 / (16 * 0.5), 56) and gridded.grids["conv2"].high == 7
    images = random_images(8, (1, 4, 4))
    before, after = FloatEngine(graph).run(images), FloatEngine(gridded.graph).run(images)
    assert all(np.array_equal(before.spikes[n], after.spikes[n]) for n in before.spikes)
    twin = IntegerTwin(gridded, 32.0, Neuron())
    with torch.no_grad():
        messages = 32 * torch.from_numpy((images / 255 - 0.5) / 0.25).float()
        own = twin(messages, rounded=False)
    assert all(np.array_equal(own.spikes[n].numpy(), after.spikes[n]) for n in after.spikes)
    weight, bias = twin.integers()["lif2_from_lif1"]
    assert weight.tolist() == [[[6]], [[6]]] and not bias.any()  # half to even
    assert np.all(twin.to_graph().nodes["lif2_from_lif1"].scale == 6 / 8)


def test_a_scale_multiplies_its_channels_by_rounded_factors():
    """Integers 6 and -3 in units of 1/8; zero stays zero, and gradients reach the factors."""
    factors = np.broadcast_to(np.array([0.78, -0.4, 0.0]).reshape(3, 1, 1), (3, 2, 2))
    grid = Grid(1 / 8, 1 / 8, 56, 4095, 13.0, False)
    scale = Operator("skip", nir.Scale(factors), grid, 1.0)
    x = torch.ones(4, 5, 3, 2, 2)
    y = scale(x, rounded=True)
    assert y.shape == x.shape
    assert y[0, 0, :, 0, 0].tolist() == [6 / 8, -3 / 8, 0]
    assert torch.equal(y, y[:1, :1, :, :1, :1].expand_as(y))
    assert scale(x, rounded=False)[0, 0, :, 0, 0].tolist() == pytest.approx([0.78, -0.4, 0.0])
    y.sum().backward()
    assert (scale.weight.grad != 0).flatten().tolist() == [True, True, False]
    assert scale.bias.grad is None
    assert scale.to_node(1.0).scale[:, 1, 0].tolist() == [6 / 8, -3 / 8, 0]


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("branch", [1.0, 0.1])
@pytest.mark.parametrize("tau", [2.0, 3.0])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_residual_network_fires_as_it_was_trained(bits, tau, branch, flat, tmp_path):
    network, lowered = trained(residual(tau, branch=branch, flat=flat), bits)
    write_graph(network.to_graph(), tmp_path / "graph.nir")
    again = lower(read_graph(tmp_path / "graph.nir"), with_bits(LOIHI2, bits))
    assert again.document == lowered.document
    assert inexact(network.gridded, lowered) == []
    images = random_images(8, (1, 4, 4))
    engine = build_engine(lowered.document, lowered.arrays).run(images)
    with torch.no_grad():
        own = network(messages_of(torch.from_numpy(images), lowered.arrays["input_table"]))
    for node, spikes in engine.spikes.items():
        if tau == 2:  # other decays lose digits on the chip
            assert spikes.any() and np.array_equal(own.spikes[node].numpy(), spikes), node
    if tau == 2:
        assert np.allclose(own.logits.numpy(), engine.logits, atol=1e-6)


@pytest.mark.parametrize("branch", [4.0, 0.3])
def test_the_lowering_finds_the_trained_integers_of_a_shortcut(branch):
    network, lowered = trained(residual(branch=branch), 4)
    weight, _ = network.integers()["lif2_from_lif1"]
    assert len(np.unique(weight)) == 2  # every channel was moved for itself
    own = [c for c in lowered.document["connections"] if c["node"] == "lif2_from_lif1"]
    found = sum(lowered.arrays[item["weight_key"]].astype(int) for item in own)
    assert all(np.abs(lowered.arrays[item["weight_key"]]).max() <= 8 for item in own)
    assert (len(own) > 1) == (np.abs(weight).max() > 8)
    population = next(p for p in lowered.document["populations"] if p["name"] == "lif2")
    ratio = population["scale"] / network.gridded.scales["lif2"]
    assert np.array_equal(found[:, 0, 0, 0], weight[:, 0, 0] * ratio)
    assert (branch == 0.3) == (len(own) > 1)


def test_the_start_is_what_the_lowering_makes_of_the_source():
    """Before the training no population with a shortcut is coarser than as it is lowered."""
    graph, profile = residual(branch=0.3), with_bits(LOIHI2, 4)
    plain = lower(graph, profile)
    _, start = choose_grid(graph, plain, profile, Neuron())
    thresholds = [[p["vth"] for p in item.document["populations"]] for item in (plain, start)]
    assert thresholds[0] == thresholds[1]
    images = random_images(8, (1, 4, 4))
    runs = [build_engine(item.document, item.arrays).run(images) for item in (plain, start)]
    for node, spikes in runs[0].spikes.items():
        assert spikes.any() and np.array_equal(runs[1].spikes[node], spikes), node


def test_an_operator_of_two_populations_is_on_the_coarser_grid():
    graph = residual()
    graph.edges.append(("conv1", "lif2"))
    scales = {"lif1": Population(21.0, 2048), "lif2": Population(9.0, 2048)}
    gridded = on_grid(graph, scales, Population(30.0), 1.0, 7, 4095, 8)
    assert (gridded.scales["lif1"], gridded.scales["lif2"]) == (16, 8)
    assert gridded.grids["conv1"].step == 1 / (8 * 0.5)


def test_what_no_grid_holds_is_refused_by_name():
    scales = {name: Population(20.0, 1365) for name in ("lif1", "lif2")}
    with pytest.raises(GraphError, match=r"lif1: its input gain is 0\.333"):
        graph = residual(tau=3.0)
        graph.edges.append(("conv1", "lif2"))
        on_grid(graph, scales, Population(30.0), 1.0, 7, 4095, 8)
    graph = random_graph(0, global_pool=False, pools=False)
    graph.nodes["lif1"] = nir.Threshold(np.ones(graph.nodes["lif1"].v_threshold.shape))
    with pytest.raises(GraphError, match="lif1: a Threshold node is not fine-tuned"):
        on_grid(graph, {}, None, 1.0, 7, 4095, 8)


# ---- profiles --------------------------------------------------------------------------------


def test_a_narrower_profile_says_so():
    narrow = with_bits(LOIHI2, 4)
    assert narrow.name == "loihi2-4bit" and narrow.arithmetic.weight_bits.value == 4
    assert with_bits(LOIHI2, None) is LOIHI2 and with_bits(LOIHI2, 8) is LOIHI2


@pytest.mark.parametrize("bits", [-4, 0, 1, 9, 32])
def test_bits_outside_the_profile_are_refused(bits):
    with pytest.raises(RecipeError, match=rf"--bits {bits}: .* expected 2 to 8"):
        with_bits(LOIHI2, bits)


def test_a_profile_without_integers_is_refused():
    with pytest.raises(RecipeError, match="floating point"):
        with_bits(load_profile("reference"), 4)


assert DT == 1e-4  # what lif() counts in
