"""Bias correction: mean inputs of channels are those of the network that is not rounded."""

import itertools

import nir
import numpy as np
import pytest
import torch
from random_networks import lif, random_images
from test_finetune_grid import LOIHI2, residual

from stars_deploy.config.recipe import Neuron
from stars_deploy.distillation.integer_bias import correct_biases
from stars_deploy.distillation.integer_grid import Population, on_grid
from stars_deploy.distillation.integer_twin import IntegerTwin, messages_of
from stars_deploy.graph.metadata import GraphMetadata, with_metadata
from stars_deploy.targets.loihi import lower
from stars_deploy.workflow.finetune_grid import choose_grid, inexact, with_bits


def dense(bias=True):
    """Two pixels -> 1 LIF neuron without memory -> 1 output; weights 0.6, 0.3 and 1.4."""
    first = np.array([[0.6, 0.3]])
    nodes = {
        "input": nir.Input({"input": np.array((1, 1, 2))}),
        "flatten": nir.Flatten({"input": np.array((1, 1, 2))}, 0, -1),
        "a": nir.Affine(first, np.array([0.25])) if bias else nir.Linear(first),
        "lif": lif((1,), tau=1.0),
        "fc": nir.Affine(np.array([[1.4]]), np.array([0.5])),
        "output": nir.Output({"output": np.array([1])}),
    }
    graph = nir.NIRGraph(nodes, list(itertools.pairwise(nodes)), type_check=False)
    graph = with_metadata(graph, GraphMetadata(T=2, mean=(0.5,), std=(0.25,)))
    gridded = on_grid(graph, {"lif": Population(4.0, 4096)}, Population(2.0), 1.0, 7, 4095, 8)
    return IntegerTwin(gridded, 1.0, Neuron())


MESSAGES = torch.tensor([[[[1.0, 1.0]]], [[[3.0, 0.0]]], [[[0.0, 2.0]]]])


def test_the_rounding_of_weights_is_taken_out_of_the_bias():
    """By hand: in quarters 0.6 and 0.3 are 2.4 and 1.2, that is 2 and 1, and the bias is 1.

    Mean messages 4/3 and 1 miss 0.4 * 4/3 + 0.2 * 1 = 11/15 of a quarter: the bias is 2, rounded.
    All potentials with it, 3 + 2, 6 + 2, 2 + 2 quarters, but the last, are above the threshold of
    4; in floats 0.9 + 0.25, 1.8 + 0.25, 0.6 + 0.25 too. So the read-out of unit 1/2 sees the same
    spikes: weight 1.4 is 3 halves, 0.1 too large for 2/3 of the images, and the bias 1 - 2/15
    halves stays 1.
    """
    network = dense()
    assert network.integers()["a"][1].tolist() == [1]
    assert correct_biases(network, MESSAGES) == 2
    assert network.integers()["a"][0].tolist() == [[2, 1]]
    assert network.integers()["a"][1].tolist() == [2]
    assert network.by_name["a"].bias.item() * 4 == pytest.approx(1 + 11 / 15)
    high = network.by_name["fc"].grid.threshold
    assert network.by_name["fc"].bias.item() * high == pytest.approx(1 - 2 / 15)
    assert network.integers()["fc"][1].tolist() == [1]


def test_operators_without_a_bias_get_none():
    network = dense(bias=False)
    assert correct_biases(network, MESSAGES) == 1
    assert not network.by_name["a"].bias.any()
    assert isinstance(network.to_graph().nodes["a"], nir.Linear)


@pytest.mark.parametrize("flat", [False, True])
def test_channels_of_a_residual_network_get_the_means_of_the_floats(flat):
    graph, profile = residual(flat=flat), with_bits(LOIHI2, 3)
    network, start = choose_grid(graph, lower(graph, profile), profile, Neuron())
    messages = messages_of(
        torch.from_numpy(random_images(64, (1, 4, 4))), start.arrays["input_table"]
    )
    goals = means(network, messages, rounded=False)
    before = means(network, messages, rounded=True)
    weights = {name: item[0].copy() for name, item in network.integers().items()}
    assert correct_biases(network, messages) == 3
    after = means(network, messages, rounded=True)
    for name, goal in goals.items():
        operator = network.by_name[{"lif1": "conv1", "lif2": "conv2", "output": "fc"}[name]]
        unit = operator.grid.bias_step
        # Half a unit is what rounding the bias costs.
        assert np.abs(before[name] - goal).max() > 0.5001 * unit, name
        assert np.abs(after[name] - goal).max() <= 0.5001 * unit, name
    assert all(np.array_equal(network.integers()[name][0], old) for name, old in weights.items())
    assert inexact(network.gridded, lower(network.to_graph(), profile)) == []


@torch.no_grad()
def means(network, messages, rounded):
    """The mean input of every channel of the populations and the read-out."""
    values, found = {network.input: messages[None]}, {}
    for name in network.order[1:]:
        x = network.drive(name, values)
        if name in network.neurons or name == network.output:
            channels = 3 if name == "output" else 2
            found[name] = x.mean((0, 1)).view(channels, -1).mean(1).numpy()
        values[name] = network.value(name, x, rounded)
    return found
