"""The batched integer engine against the slow model, and against numbers computed by hand."""

import copy
import threading

import numpy as np
import pytest
import random_integer_networks as networks
import slow_loihi
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stars_deploy.errors import DataError, EngineError
from stars_deploy.simulation.integer.bounds import reach
from stars_deploy.simulation.integer.engine import IntegerEngine, build_engine
from stars_deploy.simulation.integer.layer import Rule, unfolded_convolution, weighted_sums
from stars_deploy.simulation.integer.network import parse_network

NETWORKS = 200


def same(document, arrays, images, **options):
    """Compare every spike, potential and logit of the engine with the slow model's."""
    spikes, potentials, logits = slow_loihi.run(document, arrays, images)
    engine = IntegerEngine(parse_network(document, arrays), **options)
    recording = engine.run(images, margins=True)
    for entry in document["populations"]:
        if entry["spiking"]:
            name = entry["name"]
            np.testing.assert_array_equal(recording.spikes[name], spikes[name])
            margin = (potentials[name] / 64 - entry["vth"]) / entry["scale"]
            np.testing.assert_array_equal(recording.margins[name], margin.astype(np.float32))
    np.testing.assert_array_equal(recording.logits, logits.astype(np.float32))
    return spikes


def test_random_networks_equal_the_slow_model():
    fires = []

    @settings(max_examples=NETWORKS, derandomize=True, deadline=None, database=None)
    @given(st.integers(0, 2**32 - 1))
    def compare(seed):
        document, arrays = networks.random_integer_network(seed)
        images = networks.random_images(document, seed)
        fires.append(networks.fires_everywhere(document, same(document, arrays, images)))

    compare()
    assert len(fires) >= NETWORKS
    assert np.mean(fires) >= 0.8


def one_neuron(weight, vth, T=6, dv=2048, du=4095, bias=None, bias_exp=6, spiking=True):
    """One pixel -> one neuron -> read-out of weight 1; the message is the pixel value - 128."""
    table = np.arange(256, dtype=np.int32)[None] - 128
    arrays = {"input_table": table, "w.fc1": np.array([[weight]]), "w.out": np.array([[1]])}
    population = {
        "name": "lif1",
        "node": "lif1",
        "shape_whc": [1],
        "du": du,
        "dv": dv,
        "vth": vth,
        "bias_exp": bias_exp,
        "bias_key": None,
        "reset_interval": T,
        "reset_offset": 2 % T,
        "depth": 1,
        "scale": 2.0,
        "spiking": True,
    }
    if bias is not None:
        arrays["b.lif1"] = np.array([bias])
        population["bias_key"] = "b.lif1"
    out = population | {"name": "out", "node": "out", "du": 4095, "dv": 0, "vth": 131071}
    out |= {"bias_key": None, "depth": 2, "reset_offset": 3 % T, "spiking": False, "scale": 1.0}
    connection = {
        "name": "fc1",
        "node": "fc1",
        "source": "input",
        "target": "lif1",
        "kind": "dense",
        "weight_key": "w.fc1",
        "stride": [1, 1],
        "padding": [0, 0],
        "dilation": [1, 1],
        "groups": 1,
        "delay": 0,
        "message_bits": 8,
        "weight_exp": 0,
    }
    second = connection | {"name": "out", "source": "lif1", "target": "out", "message_bits": 0}
    document = {
        "schema": 1,
        "tool_version": "test",
        "profile": "loihi2",
        "T": T,
        "input": {"encoding": "signed_q", "table_key": "input_table", "shape_whc": [1, 1, 1]},
        "populations": [population, out],
        "connections": [connection, second | {"weight_key": "w.out"}],
        "readout": {"population": "out", "divisor": 64.0 * T},
        "axes": {},
    }
    return document, arrays


def image(message):
    return np.array([[[[message + 128]]]], np.uint8)


def spikes_of(document, arrays, message, **options):
    engine = IntegerEngine(parse_network(document, arrays), **options)
    return engine.run(image(message), margins=True)


def test_leak_reset_and_threshold_by_hand():
    # a = 3 * 10 = 30, tau = 2, vth = 50: v = 30, 45, 52.5 -> spike and 0, 30, 45, 52.5 -> spike.
    recording = spikes_of(*one_neuron(3, 50), 10)
    assert recording.spikes["lif1"].ravel().tolist() == [0, 0, 1, 0, 0, 1]
    margins = (np.array([30, 45, 52.5, 30, 45, 52.5]) - 50) / 2
    np.testing.assert_array_equal(recording.margins["lif1"].ravel(), margins.astype(np.float32))
    assert recording.logits.tolist() == [[np.float32(2 / 6)]]


def test_the_threshold_itself_does_not_spike():
    # v = 30, 45, 52.5, 56.25, 58.125, 59.0625: 45 is met exactly at step 2.
    at, below = one_neuron(3, 45), one_neuron(3, 44)
    assert spikes_of(*at, 10).spikes["lif1"].ravel().tolist() == [0, 0, 1, 0, 0, 1]
    assert spikes_of(*below, 10).spikes["lif1"].ravel().tolist() == [0, 1, 0, 1, 0, 1]


def test_decay_rounds_toward_zero():
    # One step after a single bias-free a = -1 (-64 in state units), dv = 2731 keeps 1365/4096:
    # -64 * 1365 / 4096 = -21.3 -> -21, where floor would give -22; then - 64.
    recording = spikes_of(*one_neuron(1, 100, T=2, dv=2731), -1)
    np.testing.assert_array_equal(
        recording.margins["lif1"].ravel(), np.float32([(-1 - 100) / 2, (-85 / 64 - 100) / 2])
    )


def test_current_decay_is_one_more_than_du():
    # du = 2047 keeps half: u = 10, 15, 17.5; dv = 4096 forgets v, so v = u.
    recording = spikes_of(*one_neuron(1, 100, T=3, du=2047, dv=4096), 10)
    np.testing.assert_array_equal(
        recording.margins["lif1"].ravel(), (np.float32([10, 15, 17.5]) - 100) / 2
    )


def test_bias_enters_the_voltage_at_its_exponent():
    # 7 << 3 is 56 / 64 of an activation unit, each step; no leak.
    recording = spikes_of(*one_neuron(1, 100, T=3, dv=0, bias=7, bias_exp=3), 0)
    np.testing.assert_array_equal(
        recording.margins["lif1"].ravel(), (np.float32([0.875, 1.75, 2.625]) - 100) / 2
    )


@pytest.mark.parametrize(
    ("changes", "message", "what"),
    [
        # du = -1 never decays: u = 127 * 127 * t a-units passes 131072 at t = 9
        ({"T": 12, "du": -1, "dv": 4096, "vth": 131071}, 127, "u wraps"),
        ({"T": 12, "du": -1, "dv": 4096, "vth": 131071}, -128, "u wraps"),
        ({"T": 12, "dv": 0, "vth": 131071}, 127, "v clips"),
        ({"T": 12, "dv": 0, "vth": 131071}, -128, "v clips"),
    ],
)
def test_overflow_raises_or_is_emulated(changes, message, what):
    document, arrays = one_neuron(127, **changes)
    with pytest.raises(EngineError, match=rf"lif1: .*{what}"):
        spikes_of(document, arrays, message)
    *_, overflows = slow_loihi.trace(document, arrays, image(message))
    assert any(overflows["lif1"])
    same(document, arrays, image(message), overflow="emulate")


def test_worst_case_of_one_neuron_by_hand():
    # a in [3 * -128, 3 * 127]; B = 20 << 6; tau = 2, T = 3; what spikes starts again from 0.
    document, arrays = one_neuron(3, 50, T=3, bias=20)
    network = parse_network(document, arrays)
    limits = reach(network, network.populations[0])
    assert limits.activation == 384
    lowest = 64 * (-384 + 20) * (1 + 1 / 2 + 1 / 4)
    assert limits.state == -lowest  # more than 64 * (381 + 20 + 50 / 2)
    document, arrays = one_neuron(3, 50, T=3, bias=200)
    network = parse_network(document, arrays)
    assert reach(network, network.populations[0]).state == 64 * (381 + 200 + 50 / 2)


def test_no_potential_is_beyond_its_worst_case():
    for seed in range(20):
        document, arrays = networks.random_integer_network(seed)
        images = networks.random_images(document, seed)
        _, potentials, _ = slow_loihi.run(document, arrays, images)
        network = parse_network(document, arrays)
        for population in network.populations:
            limits = reach(network, population)
            if limits.state < 1 << 23:
                assert np.abs(potentials[population.name]).max() <= limits.state


def test_in_range_networks_do_not_raise_where_only_the_bound_is_exceeded():
    document, arrays = one_neuron(127, T=12, dv=0, vth=131071)
    recording = spikes_of(document, arrays, 5)
    assert recording.spikes["lif1"].sum() == 0


def test_a_read_out_that_would_spike_raises():
    document, arrays = one_neuron(1, 5)
    document["populations"][1]["vth"] = 3
    assert spikes_of(document, arrays, 4).logits.item() == 3 / 6  # 3 spikes: v = 3 is not above 3
    with pytest.raises(EngineError, match="read-out out"):
        spikes_of(document, arrays, 100)


def test_a_read_out_of_the_image_itself_sums_it_over_all_steps():
    document, arrays = one_neuron(3, 50, T=5)
    document["populations"] = [document["populations"][1] | {"depth": 1}]
    document["connections"] = [document["connections"][0] | {"target": "out"}]
    engine = build_engine(document, arrays)
    assert engine.nodes == []
    assert engine.run(image(10)).logits.item() == 30.0  # 3 * 10, mean over T


def test_statistics_are_the_sums_of_the_recording():
    for seed in range(6):
        document, arrays = networks.random_integer_network(seed)
        images = networks.random_images(document, seed, count=5)
        engine = build_engine(document, arrays)
        recording, statistics = engine.run(images), engine.statistics(images)
        np.testing.assert_array_equal(recording.logits, statistics.logits)
        assert list(statistics.spikes) == engine.nodes
        for node, counts in statistics.spikes.items():
            spikes = recording.spikes[node].astype(int)
            np.testing.assert_array_equal(counts, spikes.reshape(*spikes.shape[:2], -1).sum((0, 2)))


def test_chunks_and_threads_change_nothing():
    document, arrays = networks.random_integer_network(3)
    images = networks.random_images(document, 3, count=7)
    network = parse_network(document, arrays)
    whole = IntegerEngine(network, chunk=100).run(images)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        parts = IntegerEngine(network, chunk=2).run(images)
        seen = []
        thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert [torch.get_num_threads(), *seen] == [3, 3]
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(whole.logits, parts.logits)
    for node in whole.spikes:
        np.testing.assert_array_equal(whole.spikes[node], parts.spikes[node])


def test_fed_spikes_replace_what_a_layer_sends_but_not_what_it_records():
    document, arrays = networks.random_integer_network(5)
    images = networks.random_images(document, 5)
    engine = build_engine(document, arrays)
    free = engine.run(images)
    assert len(engine.nodes) >= 3
    nothing = {node: np.zeros_like(spikes) for node, spikes in free.spikes.items()}
    fed = engine.run(images, feed=nothing)
    first, second = engine.nodes[:2]
    np.testing.assert_array_equal(fed.spikes[first], free.spikes[first])
    assert not np.array_equal(fed.spikes[second], free.spikes[second])
    own = engine.run(images, feed=free.spikes)
    for node in engine.nodes:
        np.testing.assert_array_equal(own.spikes[node], free.spikes[node])
    with pytest.raises(DataError, match=first):
        engine.run(images, feed={first: free.spikes[first][:, :1]})


def test_unfolded_convolution_equals_the_direct_one():
    compared = 0
    for seed in range(12):
        document, arrays = networks.random_integer_network(seed)
        engine = build_engine(document, arrays)
        for layer in engine._layers:
            for synapse in layer.synapses:
                source = synapse.connection.source
                if synapse.connection.kind != "conv" or source != "input":
                    continue
                shape = engine.network.input_shape
                message = torch.randint(-9, 10, (3, *shape)).to(layer.dtype)
                direct = weighted_sums(layer, {"input": message[None]})[0]
                unfolded = unfolded_convolution(synapse, message)
                if layer.offset is not None and layer.rule is Rule.SHIFTED:
                    unfolded = unfolded + layer.offset
                assert torch.equal(direct, unfolded)
                compared += 1
    assert compared >= 5


def test_images_of_another_network_are_refused():
    document, arrays = networks.random_integer_network(0)
    engine = build_engine(document, arrays)
    images = networks.random_images(document, 0)
    for wrong in (images.astype(np.float32), images[:, :, :-1], images[:0]):
        with pytest.raises(DataError):
            engine.run(wrong)


def test_one_changed_weight_is_seen():
    """The comparison above can fail: a weight changed by 8 changes the recording."""
    seen = 0
    for seed in range(20):
        document, arrays = networks.random_integer_network(seed)
        images = networks.random_images(document, seed)
        changed = copy.deepcopy(arrays)
        weight = changed[document["connections"][0]["weight_key"]].reshape(-1)
        weight[0] += 8 if weight[0] < 0 else -8
        try:
            before = build_engine(document, arrays).run(images, margins=True)
            after = build_engine(document, changed).run(images, margins=True)
        except EngineError:
            continue
        node = document["populations"][0]["node"]
        seen += not np.array_equal(before.margins[node], after.margins[node])
    assert seen >= 15
