"""Ranges: no worst case overflows, what limits the scale is named, and the scale is a good one."""

import itertools

import nir
import numpy as np
import pytest
import random_networks

from stars_deploy.config.profile import load_profile
from stars_deploy.errors import DoesNotFit, RecipeError
from stars_deploy.graph.metadata import DT, GraphMetadata, with_metadata
from stars_deploy.simulation.integer.engine import build_engine
from stars_deploy.targets.loihi import analyse, lower
from stars_deploy.targets.loihi.bounds import Drive, activation_range, peaks
from stars_deploy.targets.loihi.quantise import quantise
from stars_deploy.targets.loihi.stages import Incoming
from stars_deploy.targets.loihi.target import Ranges, Source, Target

LOIHI1, LOIHI2 = load_profile("loihi1"), load_profile("loihi2")
RANGES = Ranges.of(LOIHI2.arithmetic)


def dense(weight):
    return Incoming("fc", "fc", "lif1", "dense", weight)


def target(weight, bias=None, threshold=1.0, dv=2048, steps=4, unit=1.0, messages=(0.0, 1.0)):
    weight = np.asarray(weight, float)
    bias = np.zeros(len(weight)) if bias is None else np.asarray(bias, float)
    low, high = (np.full(1, float(x)) for x in messages)
    return Target(
        (dense(weight),), (Source(unit, low, high),), (weight,), bias, threshold, dv, steps
    )


def test_ranges_are_those_of_the_profiles():
    assert (RANGES.weight_low, RANGES.weight_high, RANGES.bias) == (-128, 127, 4095)
    assert (RANGES.threshold, RANGES.activation, RANGES.state) == (131071, 131072.0, 131072.0)
    assert Ranges.of(LOIHI1.arithmetic).activation == 32768.0


@pytest.mark.parametrize("seed", range(10))
def test_bounds_are_attained_by_some_input_and_exceeded_by_none(seed):
    rng = np.random.default_rng(seed)
    inputs, steps = 3, 3
    weight = rng.integers(-9, 10, (2, inputs)).astype(float)
    bias = rng.integers(-4, 5, 2).astype(float)
    keep, threshold = float(rng.choice([0.0, 0.5, 1.0])), float(rng.integers(1, 12))
    low, high = activation_range(dense(weight), weight, np.zeros(1), np.ones(1), (2,))
    bound = peaks(Drive(low, high, bias), keep, threshold, steps)
    sums, reached = [], []
    patterns = list(itertools.product([0.0, 1.0], repeat=inputs))
    for sequence in itertools.product(patterns, repeat=steps):
        v = np.zeros(2)
        for spikes in sequence:
            sums.append(weight @ np.array(spikes))
            v = keep * v + sums[-1] + bias
            reached.append(v)
            v = np.where(v > threshold, 0, v)
    sums, reached = np.array(sums), np.array(reached)
    np.testing.assert_array_equal(sums.min(axis=0), low)
    np.testing.assert_array_equal(sums.max(axis=0), high)
    assert bound.lowest == min(0, reached.min())  # nothing spikes on the way down
    assert reached.max() <= bound.highest <= reached.max() + keep * threshold
    assert bound.activation == np.abs(sums).max()


def test_convolution_bounds_use_the_range_of_each_channel_and_group():
    weight = np.array([[[[1.0, -2.0]]], [[[3.0, 4.0]]]])  # two groups of one channel each
    item = Incoming("conv", "conv", "input", "conv", weight, groups=2)
    messages = np.array([-10.0, 2.0]), np.array([20.0, 5.0])
    low, high = activation_range(item, weight, *messages, (2, 1, 1))
    # channel 0: 1 * [-10, 20] - 2 * [-10, 20]; channel 1, padding included: (3 + 4) * [0, 5]
    assert low.reshape(-1).tolist() == [-10.0 - 40.0, 0.0]
    assert high.reshape(-1).tolist() == [20.0 + 20.0, 35.0]


def test_scales_reach_the_full_weight_range_when_nothing_else_binds():
    weight = np.random.default_rng(0).normal(0, 0.3, (20, 30))
    found = quantise(target(weight), RANGES)
    assert found.limited_by == "weights"
    assert 110 <= np.abs(found.weights[0]).max() <= 128
    assert found.error < 0.01


def uneven(shape, scale=1.0):
    return np.abs(np.random.default_rng(1).normal(0, scale, shape))


@pytest.mark.parametrize(
    ("options", "profile", "limited_by"),
    [
        ({"weight": uneven((2, 40), 0.1), "bias": [40.0, 1.0]}, LOIHI2, "bias"),
        ({"weight": uneven((2, 40), 1e-3), "threshold": 300.0}, LOIHI2, "threshold"),
        ({"weight": uneven((1, 3000))}, LOIHI1, "accumulator"),
        ({"weight": uneven((1, 9000))}, LOIHI2, "potential"),
        ({"weight": -uneven((1, 3000)), "dv": 0}, LOIHI2, "potential"),
        ({"weight": uneven((1, 3000)), "threshold": None, "dv": 0}, LOIHI2, "potential"),
    ],
)
def test_what_limits_the_scale_is_named_and_respected(options, profile, limited_by):
    ranges = Ranges.of(profile.arithmetic)
    found = quantise(target(**options), ranges)
    assert found.limited_by == limited_by
    usage = {
        "bias": np.abs(found.bias).max() / 4096,
        "threshold": found.threshold / 131072,
        "accumulator": found.peaks.activation / ranges.activation,
        "potential": max(found.peaks.highest, -found.peaks.lowest) / 131072,
    }
    assert max(usage.values()) < 1
    assert usage[limited_by] > 0.8  # close to the limit, not needlessly coarse


def test_a_threshold_below_one_unit_is_refused():
    assert quantise(target([[0.1]], bias=[9000.0]), RANGES) is None
    assert quantise(target([[0.1]], bias=[4000.0]), RANGES).threshold == 1


def test_strict_comparison_survives_because_the_scale_fits_the_threshold():
    for threshold in (0.3, 0.7, 1.0, 1.7):
        found = quantise(target([[0.123, -0.456, 0.31]], threshold=threshold), RANGES)
        assert found.scale * threshold == pytest.approx(found.threshold, rel=1e-12)


def test_no_other_whole_threshold_is_much_better():
    for seed in range(8):
        rng = np.random.default_rng(seed)
        chosen = target(rng.normal(0, 0.3, (4, 9)), rng.normal(0, 0.1, 4))
        weight, found = chosen.weights[0], quantise(chosen, RANGES)
        errors = [
            np.square(np.clip(np.rint(weight * m), -128, 127) / m - weight).sum()
            for m in range(1, 1000)
        ]
        mine = np.square(found.weights[0] / found.scale - weight).sum()
        assert mine <= 1.1 * min(errors)


def test_biases_are_rounded_to_the_nearest_unit():
    rng = np.random.default_rng(0)
    bias = rng.normal(0, 0.5, 40)
    found = quantise(target(rng.normal(0, 0.3, (40, 9)), bias), RANGES)
    assert np.abs(found.bias / found.scale - bias).max() <= 0.5 / found.scale * (1 + 1e-9)


def test_dyadic_weights_take_the_largest_power_of_two():
    found = quantise(target([[1.5, -0.25]], bias=[0.5]), RANGES)
    assert found.exact and found.error == 0
    assert (found.scale, found.threshold) == (64.0, 64)
    assert found.weights[0].tolist() == [[96, -16]] and found.bias.tolist() == [32]


def readout_graph(weight, T):
    """One pixel -> lif1 (fires every step on white) -> fc."""
    count = weight.shape[1]
    values = (2e-4, 1.0, 0.0, 0.01, 0.0)
    nodes = {
        "input": nir.Input({"input": np.array((1, 1, 1))}),
        "flatten": nir.Flatten({"input": np.array((1, 1, 1))}, 0, -1),
        "fc1": nir.Affine(np.ones((count, 1)), np.zeros(count)),
        "lif1": nir.LIF(*(np.full(count, x, np.float64) for x in values)),
        "fc": nir.Affine(weight, np.zeros(len(weight))),
        "output": nir.Output({"output": np.array((len(weight),))}),
    }
    names = list(nodes)
    graph = nir.NIRGraph(nodes, list(itertools.pairwise(names)), type_check=False)
    return with_metadata(graph, GraphMetadata(T=T, mean=(0.5,), std=(0.5,), dt=DT))


def test_the_read_out_never_reaches_its_threshold_even_when_everything_fires():
    rng = np.random.default_rng(0)
    weight = np.abs(rng.normal(0, 1, (3, 4000)))
    network = lower(readout_graph(weight, 8), LOIHI2)
    recording = build_engine(network.document, network.arrays).run(
        np.full((1, 1, 1, 1), 255, np.uint8)
    )
    assert recording.spikes["lif1"].all()
    largest = network.arrays["w.fc"].sum(axis=1).max() * 8
    assert 100_000 < largest <= 131071
    expected = weight.sum(axis=1)
    np.testing.assert_allclose(recording.logits[0], expected, rtol=0.01)


def test_worst_cases_of_lowered_networks_stay_in_range_when_run():
    """Images of the worst kind: every pixel at the end that drives a channel most."""
    for seed in range(10):
        graph = random_networks.random_graph(seed, pools=False)
        network = lower(graph, LOIHI2)
        shape = tuple(reversed(network.document["input"]["shape_whc"]))
        images = np.random.default_rng(seed).choice([0, 255], (8, *shape)).astype(np.uint8)
        build_engine(network.document, network.arrays).run(images)  # raises if anything wraps


def test_loihi1_has_no_graded_messages_and_a_narrower_accumulator():
    """600 spikes of weight 127 are more than 2^15; the image, which is no activation, is not."""
    shape, rng = (1, 20, 30), np.random.default_rng(0)
    nodes = {
        "input": nir.Input({"input": np.array(shape)}),
        "lif1": nir.LIF(*(np.full(shape, x) for x in (2 * DT, 1.0, 0.0, 1.0, 0.0))),
        "flatten": nir.Flatten({"input": np.array(shape)}, 0, -1),
        "fc": nir.Linear(rng.uniform(0.5, 1, (2, 600))),
        "output": nir.Output({"output": np.array((2,))}),
    }
    graph = nir.NIRGraph(nodes, list(itertools.pairwise(nodes)), type_check=False)
    graph = with_metadata(graph, GraphMetadata(T=1, mean=(0.5,), std=(0.25,)))
    wide, narrow = lower(graph, LOIHI2), lower(graph, LOIHI1)
    assert (wide.arrays["w.fc"].sum(axis=1) >= 1 << 15).any()
    assert (narrow.arrays["w.fc"].sum(axis=1) < 1 << 15).all()
    assert narrow.document["input"]["encoding"] == "host_bias"


def test_impossible_biases_do_not_fit_and_the_layer_is_named():
    graph = random_networks.random_graph(3)
    graph.nodes["conv1"].bias[:] = 1e6
    with pytest.raises(DoesNotFit, match=r"lif1: .*bias mantissa"):
        lower(graph, LOIHI2)


def test_coarse_weights_are_a_warning_that_names_the_cause():
    graph = random_networks.random_graph(3)
    graph.nodes["conv1"].bias[:] = 300.0
    (finding,) = [f for f in analyse(graph, LOIHI2).findings if f.code == "coarse_weights"]
    assert finding.node == "lif1" and "bias" in finding.message
    assert finding.value > finding.limit


def test_a_population_that_cannot_fire_is_a_warning():
    graph = random_networks.random_graph(3)
    graph.nodes["lif1"].v_threshold[:] = 1e4
    assert ("silent", "lif1") in {(f.code, f.node) for f in analyse(graph, LOIHI2).findings}


def test_the_reference_profile_has_nothing_to_lower_to():
    with pytest.raises(RecipeError, match="reference"):
        lower(random_networks.random_graph(0), load_profile("reference"))
