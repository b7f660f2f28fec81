"""Currents, tails and rates of a graph's layers: the neuron's equation, solved and counted."""

import nir
import numpy as np
import pytest
import random_networks

from stars_deploy.graph.metadata import metadata_of
from stars_deploy.simulation import operating_point as module
from stars_deploy.simulation.neurons import run_neurons
from stars_deploy.simulation.operating_point import currents, firing_thresholds, operating_point
from stars_deploy.simulation.reference import FloatEngine
from stars_deploy.workflow.samples import random_images

DT = 1e-4
ONE = np.ones(3)
LIF = nir.LIF(tau=2 * DT * ONE, r=ONE, v_leak=0 * ONE, v_threshold=ONE, v_reset=0 * ONE)
NEURONS = {
    "lif": LIF,
    "lif, other parameters": nir.LIF(
        tau=3 * DT * ONE, r=1.5 * ONE, v_leak=0.2 * ONE, v_threshold=ONE, v_reset=-0.1 * ONE
    ),
    "lif, one tau a neuron": nir.LIF(
        tau=DT * np.array([1.5, 2.0, 4.0]), r=ONE, v_leak=0 * ONE, v_threshold=ONE,
        v_reset=0 * ONE,
    ),
    "if": nir.IF(r=0.5 * ONE, v_threshold=ONE, v_reset=0.1 * ONE),
    "threshold": nir.Threshold(threshold=0.7 * ONE),
}  # fmt: skip


def test_thresholds_by_hand():
    levels = firing_thresholds(LIF, 4, DT)
    np.testing.assert_allclose(levels[:, 0], [2, 4 / 3, 8 / 7, 16 / 15])
    integrator = nir.IF(r=ONE, v_threshold=2 * ONE, v_reset=0.5 * ONE)
    np.testing.assert_allclose(firing_thresholds(integrator, 3, DT)[:, 0], [1.5, 0.75, 0.5])


@pytest.mark.parametrize("node", NEURONS.values(), ids=NEURONS.keys())
def test_a_neuron_at_rest_fires_by_step_t_just_above_its_threshold(node):
    steps = 4
    levels = firing_thresholds(node, steps, DT)
    for t in range(steps):
        for factor, fires in ((1 + 1e-9, True), (1 - 1e-9, False)):
            current = np.broadcast_to(factor * levels[t], (steps, 1, 3))
            spikes = run_neurons(node, current, steps, DT, False).output
            assert (spikes[: t + 1].any(axis=0) == fires).all(), (t, factor)


@pytest.mark.parametrize("node", NEURONS.values(), ids=NEURONS.keys())
def test_currents_are_those_that_made_the_neurons_fire(node):
    current = np.random.default_rng(0).normal(0.6, 1.5, (6, 40, 3))
    trace = run_neurons(node, current, 6, DT, True)
    assert 0.05 < trace.output.mean() < 0.95
    found = currents(node, trace.output, trace.margins, DT)
    np.testing.assert_allclose(found, current, atol=1e-5)


def test_layers_are_counted_and_predicted_by_hand():
    """Constant currents 0.5, 1.1, 1.5 and 2.5 of four images: first spikes never, 4, 2, 1."""
    current = np.broadcast_to(np.array([0.5, 1.1, 1.5, 2.5])[:, None], (4, 4, 3))
    trace = run_neurons(LIF, current, 4, DT, True)
    row = module._layer(LIF, trace.output, trace.margins, DT)
    assert row["tail_mass"] == [0.25, 0.5, 0.5, 0.75]
    assert row["predicted_rate"] == 0.5
    assert row["rate"] == (0 + 1 + 2 + 4) / 16
    assert row["current_mean"] == pytest.approx(1.4, abs=1e-6)
    assert sum(row["histogram"]["counts"]) >= 12 - 2  # the outermost quantiles may lie outside
    assert (row["neurons_silent"], row["neurons_always"]) == (0.0, 0.0)


def test_silent_and_always_firing_neurons_are_shares_of_neurons():
    current = np.broadcast_to(np.array([0.0, 9.0, 1.1]), (4, 2, 3))
    trace = run_neurons(LIF, current, 4, DT, True)
    row = module._layer(LIF, trace.output, trace.margins, DT)
    assert row["neurons_silent"] == row["neurons_always"] == pytest.approx(1 / 3)


def test_a_graph_has_a_row_per_spiking_layer_with_the_rates_of_its_engine():
    graph = random_networks.random_graph(21, blocks=3, dyadic=True, pools=False, steps=(4, 4))
    shape = tuple(int(x) for x in graph.nodes["input"].input_type["input"])
    images = random_images(5, shape)
    result = operating_point(graph, images)
    spikes = FloatEngine(graph).run(images).spikes
    assert [row["name"] for row in result["layers"]] == list(spikes)
    assert result["T"] == metadata_of(graph).T and result["images"] == 5
    for row in result["layers"]:
        assert row["rate"] == pytest.approx(spikes[row["name"]].mean())
        assert row["tail_mass"] == sorted(row["tail_mass"])  # thresholds fall with t


def test_fewer_images_are_taken_of_a_large_network(monkeypatch):
    graph = random_networks.random_graph(21, blocks=3, dyadic=True, pools=False, steps=(4, 4))
    shape = tuple(int(x) for x in graph.nodes["input"].input_type["input"])
    size = sum(s.size for s in FloatEngine(graph).run(random_images(1, shape)).spikes.values())
    monkeypatch.setattr(module, "NEURON_STEPS", 2 * size)
    assert operating_point(graph, random_images(5, shape))["images"] == 2
