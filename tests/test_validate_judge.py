"""Rules: what is an error for which engine, and which layer it names."""

import numpy as np
import pytest
from fake_engines import FakeEngine, changed, images, make_weights

from stars_deploy.config.profile import Tolerances
from stars_deploy.simulation.recording import EngineInfo
from stars_deploy.validation import judge
from stars_deploy.validation.counts import LayerParity, Parity
from stars_deploy.validation.document import first_error, training_json
from stars_deploy.validation.parity import Isolation, compare

LOOSE = Tolerances(
    accuracy_delta=0.01, total_spikes_relative=0.03, layer_spikes_relative=0.1, source="test"
)

UNKNOWN = np.full(24, -1)


def layer(name="lif1", reference=1000, target=1000, steps=10_000, **counts):
    numbers = {"mismatches": 0, "isolated_mismatches": 0, "near_ties": 0, "unexplained": 0}
    return LayerParity(name, 100, steps, reference, target, **(numbers | counts))


def parity(*layers, images=100, labelled=100, correct=(90, 90), readout=0.0, isolated=0.0):
    a, b = EngineInfo("a", "1", "simulated"), EngineInfo("b", "1", "simulated")
    return Parity(
        a, b, layers or (layer(),), images, labelled, images, *correct, readout, isolated, 1.0
    )


def codes(findings):
    return [(finding.code, finding.node) for finding in findings]


@pytest.mark.parametrize("wrong", [0, 1, 2])
@pytest.mark.parametrize("rule", [judge.exact, judge.up_to_near_ties])
def test_engine_wrong_in_one_layer_is_failed_by_its_name(rule, wrong):
    reference = FakeEngine()
    target = FakeEngine(changed(make_weights(), wrong), name="target")
    found = rule(compare(images(), UNKNOWN, reference, target, Isolation(reference)))
    assert codes(found) == [("parity.spikes", f"lif{wrong + 1}")]
    assert found[0].severity == "error"
    assert first_error(found).startswith(f"lif{wrong + 1}: ")
    assert "target" in found[0].message and "fake" in found[0].message


@pytest.mark.parametrize("rule", [judge.exact, judge.up_to_near_ties])
def test_equal_engines_pass(rule):
    reference = FakeEngine()
    same = compare(images(), UNKNOWN, reference, FakeEngine(), Isolation(reference))
    assert rule(same) == [] and judge.within(same, LOOSE) == [] and judge.evidence(same) == []


@pytest.mark.parametrize("rule", [judge.exact, judge.up_to_near_ties])
def test_wrong_readout_is_named(rule):
    reference = FakeEngine()
    target = FakeEngine(readout_bias=0.01)
    found = rule(compare(images(), UNKNOWN, reference, target, Isolation(reference)))
    assert codes(found) == [("parity.readout", "readout")]


def test_integer_arithmetic_has_no_small_difference():
    assert codes(judge.exact(parity(readout=1e-9))) == [("parity.readout", "readout")]
    assert judge.up_to_near_ties(parity(readout=0.2, isolated=9e-5)) == []
    tie = layer(mismatches=3, near_ties=1)
    assert judge.up_to_near_ties(parity(tie)) == []
    assert codes(judge.exact(parity(tie))) == [("parity.spikes", "lif1")]


def test_accumulated_difference_without_near_tie_fails_float_engines():
    found = judge.up_to_near_ties(parity(layer(mismatches=3, unexplained=1)))
    assert codes(found) == [("parity.spikes", "lif1")]


def test_first_differing_layer_is_named_when_equal_inputs_hide_it():
    # The isolating engine shares the fault, so only the recorded reference shows it.
    rows = [layer("lif1"), layer("lif2", mismatches=4), layer("lif3", mismatches=9)]
    assert codes(judge.exact(parity(*rows))) == [("parity.spikes", "lif2")]


@pytest.mark.parametrize(
    ("target", "fails"), [(1000, False), (1099, False), (1101, True), (899, True), (901, False)]
)
def test_layer_tolerance_is_ten_percent_either_way(target, fails):
    # A large second layer keeps the total inside its own tolerance.
    rows = (layer("lif1", 1000, target), layer("lif2", 100_000, 100_000, steps=10**6))
    assert codes(judge.within(parity(*rows), LOOSE)) == (
        [("parity.spike_count", "lif1")] if fails else []
    )


def test_total_names_the_layer_that_contributes_most():
    rows = (layer("lif1", 1000, 1030), layer("lif2", 1000, 1065))
    found = judge.within(parity(*rows), LOOSE)
    assert codes(found) == [("parity.total_spikes", "lif2")]
    assert found[0].value == pytest.approx(0.0475)
    assert judge.within(parity(layer("lif1", 1000, 1030)), LOOSE) == []


def test_silent_layer_is_not_failed_by_one_spike_but_by_waking_up():
    busy = layer("lif2", 5000, 5000)
    assert judge.within(parity(layer("lif1", 5, 9), busy), LOOSE) == []
    assert codes(judge.within(parity(layer("lif1", 5, 11), busy), LOOSE)) == [
        ("parity.spike_count", "lif1")
    ]


@pytest.mark.parametrize(
    ("labelled", "correct", "fails"),
    [
        (100, (90, 89), False),
        (100, (90, 88), True),
        (100, (90, 92), True),
        (16, (15, 14), False),  # one image is the finest difference 16 images can show
        (16, (15, 13), True),
        (0, (0, 0), False),
    ],
)
def test_accuracy_within_one_point_or_one_image(labelled, correct, fails):
    found = judge.within(parity(labelled=labelled, correct=correct), LOOSE)
    assert codes(found) == ([("parity.accuracy", "readout")] if fails else [])


def test_silent_and_saturated_layers_are_warned_about():
    rows = (layer("lif1", 10, 10), layer("lif2", 9600, 9600), layer("lif3", 2000, 2000))
    found = judge.evidence(parity(*rows))
    assert codes(found) == [("evidence.silent", "lif1"), ("evidence.saturated", "lif2")]
    assert {finding.severity for finding in found} == {"warning"}
    assert first_error(found) is None


def test_rules_name_their_tolerances():
    assert judge.rule("exact", LOOSE, 16)["mismatches"] == 0
    assert judge.rule("up_to_near_ties", LOOSE, 16)["near_tie_abs"] == 1e-5
    assert judge.rule("within", LOOSE, 16)["accuracy_delta"] == 1 / 16
    assert judge.rule("within", LOOSE, 2000)["accuracy_delta"] == 0.01


def test_training_is_compared_only_on_the_same_images():
    measured = {"device": "cpu", "accuracy": 0.9, "data": "evaluation", "n": 2000}
    assert training_json(measured, "evaluation", 2000, 0.89)["delta"] == pytest.approx(-0.01)
    assert training_json(measured, "evaluation", 100, 0.89)["delta"] is None
    assert training_json(measured, None, 2000, 0.89)["delta"] is None
    assert training_json(None, "evaluation", 2000, 0.89) is None
