"""The random residual graphs: they fire, they hold what they promise, and seeds repeat."""

from collections import Counter

import nir
import numpy as np
import pytest
from random_networks import image_shape, random_images
from random_residual import BLOCKS, READOUTS, fires, random_residual_graph, rates

from stars_deploy.graph.geometry import output_shapes, window_of
from stars_deploy.graph.groups import find_groups
from stars_deploy.graph.order import SPIKING, sources, targets
from stars_deploy.simulation.reference import FloatEngine

SEEDS = 200


@pytest.fixture(scope="module")
def graphs():
    return [random_residual_graph(seed) for seed in range(SEEDS)]


def features(graph):
    """What a graph has, read off its nodes and edges."""
    spiking = set(populations(graph))
    found = {type(node).__name__ for node in graph.nodes.values()}
    for name, node in graph.nodes.items():
        given = set(sources(graph, name))
        convolution = isinstance(node, nir.Conv2d)
        kernels = [x for x in given if isinstance(graph.nodes[x], nir.Conv2d)]
        facts = {
            "neuron adds": name in spiking and len(given) > 1,
            "spikes as current": name in spiking and bool(given & spiking),
            "several convolutions": name in spiking and len(kernels) > 1,
            "spikes added before a convolution": convolution and len(given & spiking) > 1,
            "linear before linear": convolution and not given <= spiking | {"input"},
            "shared current": convolution and len(spiking & {*targets(graph, name)}) > 1,
        }
        found |= {fact for fact, holds in facts.items() if holds}
        if convolution:
            found |= kernel_features(np.asarray(node.weight), np.asarray(node.bias))
    return found


def kernel_features(weight, bias):
    outputs, inputs = weight.shape[:2]
    copies = np.isin(weight, (0, 1)).all() and not bias.any()
    if copies and (weight.sum(axis=(0, 2, 3)) == 1).all() and outputs >= inputs:
        return {"option A"}
    groups = find_groups(weight)
    if groups == 1:
        return set()
    return {"depthwise" if groups == inputs else "grouped"}


def test_populations_fire(graphs):
    alive = [fires(graph) for graph in graphs]
    assert np.mean(alive) >= 0.9, np.flatnonzero(~np.array(alive))


def test_all_of_it_occurs(graphs):
    found = Counter(name for graph in graphs for name in features(graph))
    for what, least in {
        "neuron adds": 0.5,
        "spikes as current": 0.2,
        "several convolutions": 0.3,
        "spikes added before a convolution": 0.1,
        "shared current": 0.15,
        "linear before linear": 0.1,
        "option A": 0.1,
        "grouped": 0.05,
        "depthwise": 0.2,
        "Scale": 0.3,
        "AvgPool2d": 0.2,
        "SumPool2d": 0.1,
        "IF": 0.3,
        "Threshold": 0.3,
        "LI": 0.2,
    }.items():
        assert found[what] >= least * SEEDS, (what, found[what])
    counts = Counter(len(populations(graph)) for graph in graphs)
    assert set(range(2, 7)) <= set(counts) and max(counts) <= 8, counts
    assert {int(graph.metadata["T"]) for graph in graphs} == set(range(1, 9))


def populations(graph):
    return [name for name, node in graph.nodes.items() if isinstance(node, SPIKING)]


def test_a_seed_gives_one_graph():
    first, second = (random_residual_graph(7, blocks=["membrane"]) for _ in range(2))
    assert first.edges == second.edges
    images = random_images(3, image_shape(first))
    logits = [FloatEngine(graph).run(images).logits for graph in (first, second)]
    np.testing.assert_array_equal(*logits)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("readout", READOUTS)
def test_every_block_with_every_read_out(block, readout):
    graph = random_residual_graph(11, blocks=[block], readouts=[readout], populations=4)
    last = graph.nodes[sources(graph, "output")[0]]
    wanted = {"affine": nir.Affine, "li": nir.LI, "spikes": nir.LIF | nir.IF}[readout]
    assert isinstance(last, wanted)
    assert len(rates(graph)) >= 4


def test_image_skips_can_be_left_out():
    listening = 0
    for seed in range(60):
        for allowed in (True, False):
            graph = random_residual_graph(seed, blocks=["membrane"], image_skips=allowed)
            deep = deep_listeners(graph)
            assert allowed or not deep
            listening += bool(deep)
    assert listening >= 20


def deep_listeners(graph):
    """Populations that listen to the image and to spikes."""
    roots = {}

    def listens(name):
        if name == "input" or isinstance(graph.nodes[name], SPIKING):
            return {name}
        if name not in roots:
            roots[name] = set().union(*map(listens, sources(graph, name)))
        return roots[name]

    given = {name: set().union(*map(listens, sources(graph, name))) for name in populations(graph)}
    return [name for name, heard in given.items() if "input" in heard and len(heard) > 1]


def test_inexact_pools_are_inexact():
    """No kernel over the map before the pool sees the zeros that its own padding puts around."""
    for inexact, least, most in ((False, 0, 0), (True, 30, 80)):
        found = [crossing_pools(random_residual_graph(s, inexact=inexact)) for s in range(80)]
        assert least <= sum(map(bool, found)) <= most


def crossing_pools(graph):
    """Pools that drop or pad pixels, before a padded convolution."""
    shapes = output_shapes(graph)
    found = []
    for name, node in graph.nodes.items():
        if not isinstance(node, nir.AvgPool2d | nir.SumPool2d):
            continue
        window, size = window_of(name, node), shapes[sources(graph, name)[0]][1:]
        tiles = all(n % s == 0 for n, s in zip(size, window.stride, strict=True))
        behind = [graph.nodes[target] for target in targets(graph, name)]
        padded = any(isinstance(x, nir.Conv2d) and max(x.padding) > 0 for x in behind)
        if padded and (not tiles or max(window.padding) > 0):
            found.append(name)
    return found
