"""Spike trains computed by hand, and the reference engine's rules about time and input."""

from __future__ import annotations

import itertools

import nir
import numpy as np
import pytest

from stars_deploy.graph.metadata import DT, GraphMetadata, with_metadata
from stars_deploy.simulation.neurons import run_neurons
from stars_deploy.simulation.reference import FloatEngine


def neuron(kind: type = nir.LIF, tau: float = 2.0, r: float = 1.0, v0: float = 0.0) -> nir.NIRNode:
    one = np.ones(1)
    if kind is nir.IF:
        return nir.IF(r * one, one, v0 * one)
    return nir.LIF(tau * DT * one, r * one, v0 * one, one, v0 * one)


def train(node: nir.NIRNode, current: float, steps: int = 8) -> str:
    trace = run_neurons(node, np.full((1, 1, 1), current), steps, DT, margins=False)
    return "".join(map(str, trace.output[:, 0, 0]))


@pytest.mark.parametrize(
    ("current", "expected"),
    [
        (0.99, "00000000"),
        (1.0, "00000000"),  # approaches the threshold, never exceeds it
        (1.05, "00001000"),
        (1.2, "00100100"),
        (1.5, "01010101"),
        (2.0, "01010101"),  # H = 1.0 exactly at the first step: strict, no spike
        (3.0, "11111111"),
    ],
)
def test_lif_by_hand(current: float, expected: str) -> None:
    # tau = 2, V_th = 1: H = V/2 + a/2; from 0 the sum is a (1 - 2^-t), first above 1 at ...
    assert train(neuron(), current) == expected


def test_gain_equal_to_tau_is_lif_without_decay_input() -> None:
    # H = V/2 + a: 0.6, 0.9, 1.05 -> third step
    assert train(neuron(r=2.0), 0.6) == "00100100"
    assert train(neuron(r=2.0), 0.5) == "00000000"


def test_if_by_hand() -> None:
    # H = V + 0.4: 0.4, 0.8, 1.2 -> reset
    assert train(neuron(nir.IF), 0.4) == "00100100"
    assert train(neuron(nir.IF, r=2.0), 0.5) == "01010101"  # 1.0 is not above 1.0


def test_reset_and_leak_towards_negative_potential() -> None:
    # V0 = -1/2: H = V + (a - (V + 1/2)) / 2 = V/2 + a/2 - 1/4; a = 2.5: -1/4+5/4-1/4 = 3/4,
    # then 3/8 + 1 = 1.375 -> spike, back to -1/2
    trace = run_neurons(neuron(v0=-0.5), np.full((1, 1, 1), 2.5), 4, DT, margins=True)
    assert trace.output[:, 0, 0].tolist() == [0, 1, 0, 1]
    assert trace.margins is not None
    assert trace.margins[:, 0, 0].tolist() == [-0.25, 0.375, -0.25, 0.375]


def test_leaky_integrator_by_hand() -> None:
    node = nir.LI(np.full(1, 2 * DT), np.ones(1), np.zeros(1))
    trace = run_neurons(node, np.full((1, 1, 1), 1.0), 3, DT, margins=False)
    assert trace.output[:, 0, 0].tolist() == [0.5, 0.75, 0.875]


def test_threshold_node_has_no_memory() -> None:
    node = nir.Threshold(np.ones(1))
    current = np.array([0.9, 1.0, 1.1, 0.9]).reshape(4, 1, 1)
    trace = run_neurons(node, current, 4, DT, margins=False)
    assert trace.output[:, 0, 0].tolist() == [0, 0, 1, 0]


def small_graph() -> nir.NIRGraph:
    """Two pixels -> x2 (Affine) -> LIF -> Affine [1, -1] -> output; hand-computable."""
    pair = (1, 1, 2)
    nodes = {
        "input": nir.Input({"input": np.array(pair)}),
        "flat": nir.Flatten({"input": np.array(pair)}, 0, -1),
        "fc1": nir.Affine(2 * np.eye(2), np.zeros(2)),
        "lif": nir.LIF(*(np.full(2, x) for x in (2 * DT, 1.0, 0.0, 1.0, 0.0))),
        "fc2": nir.Affine(np.array([[1.0, -1.0]]), np.array([0.25])),
        "output": nir.Output({"output": np.array([1])}),
    }
    names = list(nodes)
    graph = nir.NIRGraph(nodes, list(itertools.pairwise(names)))
    return with_metadata(graph, GraphMetadata(T=4, mean=(0.0,), std=(0.5,)))


def test_logits_are_the_mean_over_time() -> None:
    # pixel 255 -> 1/0.5 -> x2 = 4 -> H = 2: fires at all 4 steps; pixel 96 -> 1.506 -> 0101
    images = np.array([[[[255, 96]]], [[[96, 255]]], [[[0, 0]]]], np.uint8)
    answer = FloatEngine(small_graph()).run(images)
    assert answer.spikes["lif"][:, 0].T.tolist() == [[1, 1, 1, 1], [0, 1, 0, 1]]
    assert answer.logits[:, 0].tolist() == [0.25 + 1 - 0.5, 0.25 + 0.5 - 1, 0.25]
    assert answer.logits.dtype == np.float32


def test_feed_changes_what_follows_but_not_what_is_recorded() -> None:
    images = np.array([[[[255, 96]]]], np.uint8)
    feed = {"lif": np.zeros((4, 1, 2), np.uint8)}
    answer = FloatEngine(small_graph()).run(images, feed=feed)
    assert answer.spikes["lif"].sum() == 6
    assert answer.logits.tolist() == [[0.25]]
