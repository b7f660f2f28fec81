"""Our graph.nir in SpikingJelly, snnTorch and snn-mlir: spike for spike, or why not."""

from __future__ import annotations

import functools

import nir
import numpy as np
import pytest
from judges_environment import Answer, Question, ask
from judges_networks import EDGES, NETWORKS, by_hand, chain, residual
from random_networks import image_shape, random_images

from stars_deploy.errors import EngineError
from stars_deploy.graph.gain import fold_gain
from stars_deploy.graph.metadata import DT
from stars_deploy.simulation.recording import Recording
from stars_deploy.simulation.reference import FloatEngine

SIMULATORS = ("spikingjelly", "snntorch")
SEEDS = (0, 1)
FIRING = (0.02, 0.6)


def changed_weight(graph: nir.NIRGraph) -> nir.NIRGraph:
    node = graph.nodes["conv2"]
    node.weight = node.weight.copy()
    node.weight.flat[np.abs(node.weight).argmax()] *= -1
    return graph


WHITE = np.full((1, 1, 1, 1), 255, np.uint8)
LEAK = by_hand(3, v_reset=-0.25)


def images_of(graph: nir.NIRGraph, seed: int = 0) -> np.ndarray:
    return WHITE if image_shape(graph) == (1, 1, 1) else random_images(3, image_shape(graph), seed)


@functools.cache
def questions() -> dict[tuple[str, str], Question]:
    """Everything that is asked, so that one process imports the judges once."""
    graphs = {
        **{f"{name} {seed}": NETWORKS[name](seed) for name in NETWORKS for seed in SEEDS},
        "folded chain": fold_gain(chain(0)),
        "folded residual": fold_gain(residual(0)),
        "v_reset = v_leak = -0.25": LEAK,
        "changed": changed_weight(chain(0)),
        **EDGES,
    }
    asked = {
        (judge, name): Question(judge, graph, images_of(graph))
        for judge in SIMULATORS
        for name, graph in graphs.items()
    }
    compiled = {"raw": chain(0), "folded": fold_gain(chain(0)), "by hand": fold_gain(by_hand(0))}
    compiled |= {"residual": fold_gain(residual(0)), "leak": fold_gain(LEAK)}
    asked |= {("snn-mlir", name): Question("snn-mlir", graph) for name, graph in compiled.items()}
    return asked


@functools.cache
def answers() -> dict[tuple[str, str], Answer]:
    asked = questions()
    return dict(zip(asked, ask(list(asked.values())), strict=True))


def reference(name: str) -> Recording:
    question = questions()[("snntorch", name)]
    return FloatEngine(question.graph).run(question.images)


def mismatches(answer: Answer, expected: Recording) -> dict[str, int]:
    assert answer.error is None, answer.error
    assert answer.spikes.keys() == expected.spikes.keys()
    return {
        name: int(np.count_nonzero(answer.spikes[name] != train))
        for name, train in expected.spikes.items()
    }


def train(answer: Answer) -> list[int]:
    assert answer.error is None, answer.error
    return answer.spikes["lif1"].ravel().tolist()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("judge", SIMULATORS)
def test_every_spike_of_every_layer_is_ours(judge: str, name: str, seed: int) -> None:
    expected = reference(f"{name} {seed}")
    rates = {node: float(spikes.mean()) for node, spikes in expected.spikes.items()}
    assert all(FIRING[0] < rate < FIRING[1] for rate in rates.values()), rates
    answer = answers()[judge, f"{name} {seed}"]
    assert sum(mismatches(answer, expected).values()) == 0
    np.testing.assert_allclose(answer.logits, expected.logits, atol=1e-6)


@pytest.mark.parametrize("judge", SIMULATORS)
def test_folded_gain_gives_the_same_spikes(judge: str) -> None:
    expected = reference("chain 0")
    assert sum(mismatches(answers()[judge, "folded chain"], expected).values()) == 0


@pytest.mark.parametrize("judge", SIMULATORS)
def test_folded_identity_skips_need_a_node_that_they_do_not_read(judge: str) -> None:
    """1/tau of a skip without weights stands in a nir.Scale."""
    graph = questions()[judge, "folded residual"].graph
    assert any(isinstance(node, nir.Scale) for node in graph.nodes.values())
    assert "Scale" in str(answers()[judge, "folded residual"].error)


@pytest.mark.parametrize("judge", SIMULATORS)
def test_a_changed_weight_changes_what_they_say(judge: str) -> None:
    found = mismatches(answers()[judge, "changed"], reference("chain 0"))
    assert found["lif1"] == 0 and found["lif2"] > 0


def test_a_potential_at_the_threshold_fires_in_spikingjelly_only() -> None:
    """H_1 = 0 + (2 - 0)/2 = 1 = V_th: `>=` there, `>` in Norse, NIR, snnTorch and here."""
    assert reference("tie").spikes["lif1"].ravel().tolist() == [0, 1, 0, 1]
    assert train(answers()["snntorch", "tie"]) == [0, 1, 0, 1]
    assert train(answers()["spikingjelly", "tie"]) == [1, 1, 1, 1]


def test_integrate_and_fire_fails_in_snntorch_and_has_other_units_in_spikingjelly() -> None:
    """0.15 n > 1 from n = 7. snnTorch makes nir.IF a Leaky(beta=0.9) that returns (spikes, V)."""
    expected = reference("IF").spikes["lif1"].ravel()
    assert np.flatnonzero(expected).tolist() == [6]
    assert "'tuple' object has no attribute" in answers()["snntorch", "IF"].error
    assert "nir.IF.r must equal 1 / dt" in answers()["spikingjelly", "IF"].error
    assert train(answers()["spikingjelly", "IF with r = 1/dt"]) == expected.tolist()


def test_a_leak_towards_another_potential_is_refused_by_snntorch() -> None:
    expected = reference("v_reset = v_leak = -0.25")
    assert "v_leak not supported" in answers()["snntorch", "v_reset = v_leak = -0.25"].error
    found = mismatches(answers()["spikingjelly", "v_reset = v_leak = -0.25"], expected)
    assert sum(found.values()) == 0
    assert all(FIRING[0] < spikes.mean() < FIRING[1] for spikes in expected.spikes.values())


def test_a_reset_apart_from_the_leak_is_ignored_by_snntorch_and_refused_by_spikingjelly() -> None:
    """From V = 0.5: H = 0.5 + (1.8 - 0.5)/2 = 1.15 > 1 at every step; from 0: 0.9, then 1.35."""
    assert reference("v_reset without v_leak").spikes["lif1"].ravel().tolist() == [1, 1, 1, 1]
    assert train(answers()["snntorch", "v_reset without v_leak"]) == [0, 1, 0, 1]
    assert "v_leak must equal v_reset" in answers()["spikingjelly", "v_reset without v_leak"].error


def test_a_neuron_that_forgets_everything_is_refused_by_spikingjelly() -> None:
    assert "must be finite and greater than 1" in answers()["spikingjelly", "tau = dt"].error
    assert train(answers()["snntorch", "tau = dt"]) == [0, 0, 0, 0]  # 0.9 at every step


def test_snn_mlir_takes_a_folded_chain_with_the_right_decay() -> None:
    said = answers()["snn-mlir", "folded"].document
    assert said["ok"] and said["errors"] == [] and said["mlir_bytes"] > 1000
    assert said["decays"] == {"lif1": 0.5, "lif2": 0.5, "lif3": 0.5}  # 1 - 1/tau, tau = 2
    graph = by_hand(0)
    decays = {n: 1 - DT / x.tau.flat[0] for n, x in graph.nodes.items() if isinstance(x, nir.LIF)}
    assert answers()["snn-mlir", "by hand"].document["decays"] == pytest.approx(decays)
    assert len(set(decays.values())) > 1


def test_snn_mlir_decodes_raw_gain_as_no_memory_without_a_word() -> None:
    """It takes dt = tau/r and the decay 1 - dt/tau = 1 - 1/r; r = 1 in a raw graph."""
    said = answers()["snn-mlir", "raw"].document
    assert said["ok"] and said["errors"] == []
    assert said["decays"] == {"lif1": 0.0, "lif2": 0.0, "lif3": 0.0}


def test_snn_mlir_refuses_skips_and_leaks() -> None:
    errors = answers()["snn-mlir", "residual"].document["errors"]
    assert any("only linear-chain graphs are supported" in error for error in errors)
    assert any("v_leak must be 0" in e for e in answers()["snn-mlir", "leak"].document["errors"])


def test_a_missing_environment_names_the_remedy(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("STARS_DEPLOY_CACHE", str(tmp_path))
    with pytest.raises(EngineError, match="make judges"):
        ask([Question("snn-mlir", chain(0))])
