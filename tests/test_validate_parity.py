"""Counting differences: accumulated, on equal inputs, and near ties."""

import numpy as np
import pytest
from fake_engines import FakeEngine, changed, images, make_weights

from stars_deploy.errors import EngineError
from stars_deploy.simulation.recording import EngineInfo, Recording
from stars_deploy.targets.findings import Finding
from stars_deploy.validation.diagnosis import rounding
from stars_deploy.validation.document import parity_json
from stars_deploy.validation.parity import Isolation, compare

UNKNOWN = np.full(24, -1)


def by_name(parity):
    return {layer.name: layer for layer in parity.layers}


def test_equal_engines_agree_everywhere_and_fire():
    reference = FakeEngine()
    parity = compare(images(), UNKNOWN, reference, FakeEngine(), Isolation(reference))
    assert [layer.name for layer in parity.layers] == ["lif1", "lif2", "lif3"]
    for layer in parity.layers:
        assert layer.mismatches == layer.isolated_mismatches == layer.near_ties == 0
        assert layer.state == "active" and 0.05 < layer.rate < 0.6
    assert parity.readout_difference == parity.isolated_readout == 0
    assert parity.agreeing == parity.images == 24 and parity.labelled == 0


@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_wrong_layer_is_the_only_one_that_differs_on_equal_inputs(wrong):
    reference = FakeEngine()
    target = FakeEngine(changed(make_weights(), wrong))
    layers = compare(images(), UNKNOWN, reference, target, Isolation(reference)).layers
    for index, layer in enumerate(layers):
        assert (layer.isolated_mismatches > 0) == (index == wrong)
        assert (layer.mismatches > 0) == (index >= wrong)
        assert (layer.unexplained > 0) == (index == wrong)


def test_wrong_readout_shows_in_logits_only():
    reference = FakeEngine()
    target = FakeEngine(readout_bias=0.25)
    parity = compare(images(), UNKNOWN, reference, target, Isolation(reference))
    assert all(layer.mismatches == 0 for layer in parity.layers)
    assert parity.readout_difference == pytest.approx(0.25, abs=1e-6)
    assert parity.isolated_readout == pytest.approx(0.25, abs=1e-6)


def test_counts_do_not_depend_on_the_batch():
    reference, target = FakeEngine(), FakeEngine(changed(make_weights(), 1))
    labels = np.arange(24) % 3
    whole = compare(images(), labels, reference, target, Isolation(reference), batch=24)
    parts = compare(images(), labels, reference, target, Isolation(reference), batch=7)
    assert whole == parts
    assert target.calls == [24, 7, 7, 7, 3]


def recording(spikes, logits=None, name="r", margins=None):
    """A recording of one layer from [T][N][neurons] nested lists."""
    train = np.array(spikes, np.uint8)
    logits = np.zeros((train.shape[1], 2), np.float32) if logits is None else logits
    gaps = None if margins is None else {"lif1": np.array(margins, np.float32)}
    return Recording(EngineInfo(name, "1", "simulated"), logits, {"lif1": train}, gaps)


class Played:
    """An engine that answers what it is told: first alone, then when fed."""

    def __init__(self, alone, fed=None):
        self.info, self.nodes, self.alone, self.fed = alone.engine, list(alone.spikes), alone, fed

    def run(self, images, feed=None, margins=False):
        return self.alone if feed is None else self.fed


def one(reference, target, fed):
    blank = np.zeros((reference.logits.shape[0], 1, 1, 1), np.uint8)
    labels = np.full(len(blank), -1)
    judge = Played(reference, fed)
    return compare(blank, labels, judge, Played(target), Isolation(judge)).layers[0]


def test_hand_counted_layer():
    # T = 2, N = 2, three neurons: 5 spikes against 3, four places differ.
    reference = recording([[[1, 1, 0], [0, 0, 1]], [[1, 0, 0], [1, 0, 0]]])
    target = recording([[[1, 0, 0], [0, 0, 0]], [[1, 0, 1], [0, 0, 0]]], name="t")
    # On equal inputs: neuron 1 of image 0 at 5e-6 from the threshold, neuron 2 of image 1 at 1.
    fed = recording(
        [[[1, 1, 0], [0, 0, 1]], [[1, 0, 1], [0, 0, 0]]],
        margins=[[[1, 5e-6, 1], [1, 1, 1]], [[1, 1, 1], [1, 1, 1]]],
    )
    layer = one(reference, target, fed)
    assert (layer.spikes_reference, layer.spikes_target) == (5, 3)
    assert layer.relative_difference == pytest.approx(2 / 5)
    assert layer.neurons == 3 and layer.neuron_steps == 12 and layer.rate == pytest.approx(5 / 12)
    assert (layer.mismatches, layer.isolated_mismatches, layer.near_ties) == (4, 1, 1)
    # Image 0 has a near tie that may have started its difference; image 1 has none.
    assert layer.unexplained == 1
    # The first step, there the first image; on equal inputs 5 spikes against 3.
    first = layer.first
    assert (first.step, first.image, first.neuron) == (0, 0, (1,))
    assert (first.reference, first.target) == (1, 0)
    assert layer.isolated_relative_difference == pytest.approx(2 / 5)


@pytest.mark.parametrize(("margin", "ties"), [(1e-5, 1), (-1e-5, 1), (1.1e-5, 0), (0.0, 1)])
def test_near_tie_is_at_most_1e_5(margin, ties):
    reference, target = recording([[[1]]]), recording([[[0]]], name="t")
    layer = one(reference, target, recording([[[1]]], margins=[[[margin]]]))
    assert layer.near_ties == ties and layer.isolated_mismatches == 1 - ties
    assert layer.unexplained == 1 - ties


def test_first_difference_of_a_neuron_decides_about_its_later_ones():
    # A near tie at step 0 leaves different membranes behind, so step 1 differs far from V_th.
    reference, target = recording([[[1]], [[0]]]), recording([[[0]], [[1]]], name="t")
    tie_first = recording([[[1]], [[0]]], margins=[[[1e-6]], [[-0.5]]])
    layer = one(reference, target, tie_first)
    assert (layer.isolated_mismatches, layer.near_ties, layer.unexplained) == (0, 2, 0)
    tie_later = recording([[[1]], [[0]]], margins=[[[0.5]], [[-1e-6]]])
    layer = one(reference, target, tie_later)
    assert (layer.isolated_mismatches, layer.near_ties, layer.unexplained) == (2, 0, 1)


def test_summation_noise_is_a_near_tie_and_its_consequences_are_explained():
    # Dyadic weights put H exactly on the threshold; 1e-7 of noise then decides.
    rng = np.random.default_rng(3)
    shapes = [(20, 36), (16, 20), (12, 16), (3, 12)]
    weights = [rng.integers(-16, 24, shape) / 64 for shape in shapes]
    reference = FakeEngine(weights, (0.5, 0.5, 0.5))
    noisy = FakeEngine(weights, (0.5, 0.5, 0.5), nudge=1e-7)
    layers = by_name(compare(images(), UNKNOWN, reference, noisy, Isolation(reference)))
    assert layers["lif2"].near_ties > 0 and layers["lif2"].isolated_mismatches == 0
    assert layers["lif3"].mismatches > 0 and layers["lif3"].near_ties == 0
    assert all(layer.unexplained == 0 for layer in layers.values())
    exact = compare(images(), UNKNOWN, reference, noisy, Isolation(reference, near=0.0))
    assert by_name(exact)["lif2"].isolated_mismatches > 0


def test_recorded_reference_is_replayed_batch_by_batch():
    engine = FakeEngine()
    stored = engine.run(images())
    live = FakeEngine(changed(make_weights(), 0))
    judged = Isolation(live, feed="reference")
    parity = compare(images(), UNKNOWN, stored, live, judged, batch=5)
    assert [layer.isolated_mismatches > 0 for layer in parity.layers] == [True, False, False]
    assert parity.layers[0].spikes_reference == int(stored.spikes["lif1"].sum())


def test_predictions_are_counted_over_labelled_images_only():
    logits = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], np.float32)
    other = np.array([[1, 0], [0, 1], [0, 1], [1, 0]], np.float32)
    silent = [[[0], [0], [0], [0]]]
    labels = np.array([0, 1, 1, -1])
    reference, target = recording(silent, logits), recording(silent, other, "t")
    parity = compare(np.zeros((4, 1, 1, 1), np.uint8), labels, reference, Played(target))
    assert (parity.labelled, parity.correct_reference, parity.correct_target) == (3, 2, 3)
    assert parity.agreeing == 2 and parity.isolated_readout is None
    assert parity.layers[0].isolated_mismatches is None
    assert parity.layers[0].state == "silent"


@pytest.mark.parametrize(
    ("rate", "state"),
    [(0.004, "silent"), (0.005, "active"), (0.95, "active"), (0.951, "saturated")],
)
def test_state_follows_the_firing_rate(rate, state):
    train = np.zeros((1, 1, 1000), np.uint8)
    train[..., : round(1000 * rate)] = 1
    found = recording(train)
    parity = compare(np.zeros((1, 1, 1, 1), np.uint8), UNKNOWN[:1], found, Played(found))
    assert parity.layers[0].state == state


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (recording([[[1, 0]]], name="t"), r"spikes of lif1 have shape"),
        (recording([[[1]]], np.full((1, 2), np.nan, np.float32), "t"), "finite"),
        (recording([[[1]]], np.zeros((1, 3), np.float32), "t"), r"logits of shape \(1, 3\)"),
    ],
)
def test_answer_that_is_none_is_an_engine_error(target, message):
    with pytest.raises(EngineError, match=message):
        compare(np.zeros((1, 1, 1, 1), np.uint8), UNKNOWN[:1], recording([[[1]]]), Played(target))


def test_missing_layer_is_an_engine_error():
    short = FakeEngine([*make_weights()[:1], np.zeros((3, 20))], (0.3,))
    with pytest.raises(EngineError, match="lif2, lif3"):
        compare(images(), UNKNOWN, FakeEngine(), short)


# ---- the first difference --------------------------------------------------------------------


class Flipped(FakeEngine):
    """One neuron of one image answers wrong at one step; what follows hears it."""

    def order(self, node, image, step, neuron):
        self.fault = node, image, step, neuron
        return self

    def _layer(self, current, node, threshold):
        spikes, gaps = super()._layer(current, node, threshold)
        wrong, image, step, neuron = self.fault
        image -= sum(self.calls[:-1])  # of the batches before this one
        if node == wrong and 0 <= image < spikes.shape[1]:
            spikes[step, image, neuron] ^= 1
        return spikes, gaps


@pytest.mark.parametrize("near", [1e-5, 0.0])
@pytest.mark.parametrize("batch", [24, 7])
@pytest.mark.parametrize("fault", [("lif1", 0, 0, 0), ("lif2", 17, 2, 11), ("lif3", 23, 3, 4)])
def test_one_wrong_spike_is_named_exactly(fault, batch, near):
    node, image, step, neuron = fault
    reference = FakeEngine()
    target = Flipped().order(*fault)
    parity = compare(images(), UNKNOWN, reference, target, Isolation(reference, near=near), batch)
    honest = FakeEngine().run(images(), margins=True)
    spike = honest.spikes[node][step, image, neuron]
    first = parity.first
    assert (first.node, first.image, first.step, first.neuron) == (node, image, step, (neuron,))
    assert (first.reference, first.target, first.near_tie) == (spike, 1 - spike, False)
    assert first.margin == pytest.approx(honest.margins[node][step, image, neuron], abs=1e-6)
    assert (first.margin > 0) == spike
    for layer in parity.layers:  # layers before it do not differ, those after it not before it
        assert layer.first is None or (layer.name >= node and layer.first.step >= step)
    written = parity_json(parity)
    assert written["first_divergence"]["neuron"] == [neuron]
    assert {x["name"]: x["first_step"] for x in written["layers"]}[node] == step


def test_equal_engines_have_no_first_difference():
    reference = FakeEngine()
    parity = compare(images(), UNKNOWN, reference, FakeEngine(), Isolation(reference))
    assert parity.first is None and parity_json(parity)["first_divergence"] is None
    assert all(layer.first is None for layer in parity.layers)
    assert reference.calls == [24, 24]  # on its own, then isolated: nothing was run again


@pytest.mark.parametrize("batch", [24, 5])
def test_wrong_layer_is_named_before_a_near_tie_that_comes_earlier_in_the_network(batch):
    rng = np.random.default_rng(3)
    shapes = [(20, 36), (16, 20), (12, 16), (3, 12)]
    weights = [rng.integers(-16, 24, shape) / 64 for shape in shapes]
    reference = FakeEngine(weights, (0.5, 0.5, 0.5))
    noisy = Flipped(weights, (0.5, 0.5, 0.5), nudge=1e-7)
    tied = compare(images(), UNKNOWN, reference, noisy.order("", 0, 0, 0), Isolation(reference))
    assert tied.first.node == "lif2" and tied.first.near_tie and abs(tied.first.margin) <= 1e-5
    before = reference.run(images()).spikes["lif2"]
    after = noisy.run(images()).spikes["lif2"]
    (same,) = np.flatnonzero((before == after).all(axis=(0, 2)))[-1:]
    noisy = Flipped(weights, (0.5, 0.5, 0.5), nudge=1e-7).order("lif3", same, 1, 3)
    parity = compare(images(), UNKNOWN, reference, noisy, Isolation(reference), batch)
    first = parity.first
    assert (first.node, first.image, first.step, first.neuron) == ("lif3", same, 1, (3,))
    assert not first.near_tie


def test_without_isolation_the_place_is_known_and_the_margin_is_not():
    parity = compare(images(), UNKNOWN, FakeEngine(), Flipped().order("lif2", 3, 1, 2))
    assert (parity.first.node, parity.first.margin) == ("lif2", None)
    assert all(layer.isolated_relative_difference is None for layer in parity.layers)


# ---- whose rounding costs most ---------------------------------------------------------------


def rounded(name, reference, isolated, ties=0):
    return {
        "name": name, "spikes_reference": reference, "isolated_mismatches": isolated,
        "near_ties": ties, "isolated_relative_difference": 0.01, "relative_difference": 0.04,
    }  # fmt: skip


def test_diagnosis_names_the_largest_share_and_what_limited_its_scale():
    layers = [rounded("lif1", 10_000, 50), rounded("lif2", 100, 3, 2), rounded("lif3", 100, 4)]
    said = [
        Finding("integers", "info", "lif2", "threshold 7"),
        Finding("coarse_weights", "warning", "lif2", "limited by the accumulator", remedy="cut"),
        Finding("integers", "info", "lif1", "threshold 9"),
    ]
    (found,) = rounding(layers, said)
    assert (found.code, found.severity, found.node) == ("diagnosis", "info", "lif2")
    assert found.value == pytest.approx(0.05) and "changes 5 spikes, 5.00%" in found.message
    assert found.message.endswith("limited by the accumulator") and found.remedy == "cut"
    (found,) = rounding(layers, said[:1])
    assert found.message.endswith("threshold 7") and "sweep" in found.remedy


def test_no_diagnosis_where_nothing_differs_or_nothing_was_isolated():
    assert rounding([], []) == []
    assert rounding([rounded("lif1", 10, 0), rounded("lif2", 10, None, None)], []) == []
