"""The image as biases of the host: by hand, against the slow model, and inside the mantissa."""

import copy

import lava_documents
import nir
import numpy as np
import pytest
import random_host
import random_networks
import slow_loihi
from lava_documents import connection, population
from random_host import by_hand, random_hosted
from random_integer_networks import fires_everywhere
from random_residual import random_residual_graph
from test_integer_dags import compare
from test_integer_files import paths, set_in
from test_loihi_lowering import chain, dense_graph, float_loop, lif

from stars_deploy.config.profile import load_profile
from stars_deploy.errors import BundleError, EngineError
from stars_deploy.simulation.integer.bounds import reach
from stars_deploy.simulation.integer.engine import IntegerEngine, build_engine
from stars_deploy.simulation.integer.network import parse_network
from stars_deploy.targets.loihi import analyse, lower
from stars_deploy.targets.netx_rules import netx_problems

LOIHI1 = load_profile("loihi1")
MANTISSA = 4095


def lowered(seed, residual, balance="relay"):
    graph = random_residual_graph(seed) if residual else random_networks.random_graph(seed)
    network = lower(graph, LOIHI1, balance)
    images = random_networks.random_images(3, random_networks.image_shape(graph), seed)
    return dict(network.document), dict(network.arrays), images


def hearing(document):
    """Populations that hear the image."""
    return [e["target"] for e in document["connections"] if e["source"] == "input"]


def test_by_hand():
    network, arrays, images = by_hand()
    spikes, _, logits = slow_loihi.run(network, arrays, images)
    recording = build_engine(network, arrays).run(images)
    for name, expected in random_host.SPIKES.items():
        np.testing.assert_array_equal(spikes[name].reshape(2, 3, -1), expected)
        np.testing.assert_array_equal(recording.spikes[name].reshape(2, 3, -1), expected)
    np.testing.assert_array_equal(logits, random_host.LOGITS)
    np.testing.assert_array_equal(recording.logits, random_host.LOGITS)


@pytest.mark.parametrize("residual", [False, True])
def test_lowered_graphs_equal_the_slow_model(residual):
    fires = []
    for seed in range(30):
        case = lowered(seed, residual, "delay" if seed % 2 else "relay")
        assert case[0]["input"]["encoding"] == "host_bias"
        fires.append(fires_everywhere(case[0], compare(*case)))
    assert np.mean(fires) >= 0.7


def test_random_networks_equal_the_slow_model():
    """With currents that have a memory, which the bias must not enter, and finer exponents."""
    fires, hosted = [], []
    for seed in range(60):
        case = random_hosted(seed)
        fires.append(fires_everywhere(case[0], compare(*case)))
        named = {entry["name"]: entry for entry in case[0]["populations"]}
        hosted += [named[name] for name in hearing(case[0])]
    assert np.mean(fires) >= 0.8
    assert sum(entry["du"] != 4095 for entry in hosted) >= 10
    assert sum(entry["bias_exp"] < 6 for entry in hosted) >= 10
    assert sum(entry["depth"] > 1 for entry in hosted) >= 10


def test_the_host_adds_to_the_voltage_and_not_to_the_current():
    """516 spikes of weight 127 make u = 65532, then 131064, just below the 131072 where it wraps.

    With 4000 of the host v reaches 69532, then it clips at 131071.98, above the threshold 131071.
    As part of u the 4000 would turn it negative.
    """
    network = lava_documents.document(
        (1, 1, 1),
        2,
        [
            population("all", (516,), 1, 2, vth=5, dv=4096, bias="b.all"),
            population("sum", (1,), 2, 2, vth=131071, dv=4096, du=-1),
            population("fc", (1,), 3, 2, vth=131071, spiking=False),
        ],
        [
            connection("input", "all", "w.none") | {"host_shift": 0},
            connection("input", "sum", "w.image") | {"host_shift": 0},
            connection("all", "sum", "w.sum"),
            connection("sum", "fc", "w.fc"),
        ],
    )
    network["input"]["encoding"] = "host_bias"
    arrays = {
        "input_table": np.ones((1, 256), np.int64),
        "w.none": np.zeros((516, 1), np.int64),
        "b.all": np.full(516, 10),
        "w.image": np.array([[4000]]),
        "w.sum": np.full((1, 516), 127),
        "w.fc": np.array([[1]]),
    }
    images = np.zeros((2, 1, 1, 1), np.uint8)
    spikes, _, _, overflow = slow_loihi.trace(network, arrays, images)
    assert overflow["sum"] == (0, 2)  # never wrapped, clipped once per image
    recording = IntegerEngine(parse_network(network, arrays), overflow="emulate").run(images)
    for found in (spikes, recording.spikes):
        np.testing.assert_array_equal(found["sum"][:, :, 0], [[0, 0], [1, 1]])
    with pytest.raises(EngineError, match="sum: the voltage v clips"):
        build_engine(network, arrays).run(images)


def test_the_current_is_that_of_the_graph_to_half_a_unit():
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(5, 12)), rng.normal(size=5)
    graph = chain(
        [
            ("flatten", nir.Flatten({"input": np.array((3, 2, 2))}, 0, -1)),
            ("fc1", nir.Affine(weight, bias)),
            ("lif1", lif((5,))),
            ("fc", nir.Linear(np.ones((2, 5)))),
        ],
        (3, 2, 2),
        4,
        mean=(0.3, 0.5, 0.6),
        std=(0.2, 0.3, 0.25),
    )
    network = lower(graph, LOIHI1)
    images = rng.integers(0, 256, (50, 3, 2, 2)).astype(np.uint8)
    scaled = (images / 255 - np.array((0.3, 0.5, 0.6))[:, None, None]) / np.array((0.2, 0.3, 0.25))[
        :, None, None
    ]
    currents = (scaled.reshape(50, -1) @ weight.T + bias) / 2  # 1 / tau
    entry, arrays = network.document["populations"][0], network.arrays
    table = arrays["input_table"]
    messages = np.stack([table[c][images[:, c]] for c in range(3)], 1).astype(np.int64)
    weights = {key: value.astype(np.int64) for key, value in arrays.items()}
    added = slow_loihi.host_mantissas(network.document, weights, messages, (5,), "lif1")
    mantissas = added + arrays[entry["bias_key"]]
    # Half a unit of the bias, half a unit of the sum, and the pixels in 16 bits.
    np.testing.assert_allclose(mantissas, currents * entry["scale"], rtol=0, atol=1.1)
    assert np.abs(mantissas).max() > MANTISSA / 4


def test_weights_on_a_coarse_grid_are_lowered_exactly_ties_included():
    ties = exact = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        graph = dense_graph(rng, int(rng.integers(1, 7)), 32)
        images = (rng.integers(0, 8, (4, 1, 2, 3)) * 32).astype(np.uint8)
        network = lower(graph, LOIHI1)
        assert network.document["input"]["bits"] == 8  # which hold (pixel - 128) / 64
        notes = [f for f in analyse(graph, LOIHI1).findings if f.code == "integers"]
        if not all("exact" in note.message for note in notes):
            continue
        margins, logits = float_loop(graph, images)
        recording = build_engine(network.document, network.arrays).run(images, margins=True)
        for node, expected in margins.items():
            np.testing.assert_array_equal(recording.margins[node], expected.astype(np.float32))
            ties += int((expected == 0).sum())
        np.testing.assert_array_equal(recording.logits, logits.astype(np.float32))
        exact += 1
    assert exact >= 30 and ties > 20


def extreme_images(document, arrays, name):
    """For one neuron of a population the images that drive it most, up and down.

    A neuron's sum is linear in the table values: the effect of each pixel is found by a unit.
    """
    shape = tuple(reversed(document["input"]["shape_whc"]))
    weights = {key: value.astype(np.int64) for key, value in arrays.items()}
    entry = next(
        e for e in document["connections"] if e["source"] == "input" and e["target"] == name
    )
    target = next(e for e in document["populations"] if e["name"] == name)
    made = tuple(reversed(target["shape_whc"]))
    middle = np.ravel_multi_index(
        tuple(size // 2 for size in made) if len(made) == 3 else (made[0] // 2,), made
    )
    units = np.eye(int(np.prod(shape)), dtype=np.int64).reshape(-1, *shape)
    graded, weight = entry | {"message_bits": 32}, weights[entry["weight_key"]]
    effect = np.array(
        [slow_loihi.arriving(graded, weight, u, made).reshape(-1)[middle] for u in units]
    ).reshape(shape)
    pairs = list(zip(effect, arrays["input_table"], strict=True))
    up = np.stack([np.where(e > 0, t.argmax(), t.argmin()) for e, t in pairs])
    down = np.stack([np.where(e > 0, t.argmin(), t.argmax()) for e, t in pairs])
    return np.stack([up, down]).astype(np.uint8)


def test_no_image_leaves_the_mantissa_and_the_bound_is_tight():
    reached = []
    for seed in range(12):
        document, arrays, _ = lowered(seed, residual=seed % 2)
        weights = {key: value.astype(np.int64) for key, value in arrays.items()}
        for name in set(hearing(document)):
            images = extreme_images(document, arrays, name)
            noise = np.random.default_rng(seed).choice([0, 255], (6, *images.shape[1:]))
            images = np.concatenate([images, noise.astype(np.uint8)])
            table = arrays["input_table"]
            messages = np.stack([table[c][images[:, c]] for c in range(images.shape[1])], 1)
            entry = next(e for e in document["populations"] if e["name"] == name)
            shape = tuple(reversed(entry["shape_whc"]))
            own = slow_loihi.Neurons(entry, arrays).bias // 64
            added = slow_loihi.host_mantissas(
                document, weights, messages.astype(np.int64), shape, name
            )
            assert np.abs(own + added).max() <= MANTISSA
            reached.append(np.abs(own + added).max())
        build_engine(document, arrays).run(images)  # raises if anything wraps
    assert max(reached) > 0.95 * MANTISSA


def test_the_accumulator_of_loihi1_bounds_what_synapses_carry():
    for seed in range(6):
        document, arrays, _ = lowered(seed, residual=True)
        network = parse_network(document, arrays)
        for item in network.populations:
            found = reach(network, item)
            assert found.activation < 1 << 15
            assert found.bias <= MANTISSA * 64 and found.state < 1 << 23


def test_a_late_image_needs_neither_delay_nor_relay():
    document, _, _ = lowered(2, residual=True)
    depths = {entry["name"]: entry["depth"] for entry in document["populations"]}
    late = [
        e for e in document["connections"] if e["source"] == "input" and depths[e["target"]] > 1
    ]
    assert late and all(e["delay"] == 0 and e["message_bits"] == 0 for e in late)
    heard = {e["target"] for e in document["connections"] if e["source"] != "input"}
    only = set(hearing(document)) - heard
    assert only and all(depths[name] == 1 for name in only)


def test_findings_say_what_the_host_must_do():
    graph = random_networks.random_graph(3)
    analysis = analyse(graph, LOIHI1)
    (note,) = [f for f in analysis.findings if f.code == "host_bias"]
    assert note.severity == "info" and "lif1" in note.message
    assert note.value == np.prod(analysis.network.document["populations"][0]["shape_whc"])
    assert not [f for f in analyse(graph, load_profile("loihi2")).findings if f.code == "host_bias"]


def test_netx_is_refused_for_one_reason():
    document, arrays, _ = lowered(2, residual=False)
    (problem,) = netx_problems(document, arrays)
    assert "host_bias" in problem


def field(index, key, value):
    return set_in("connections", index, key, value)


def scaled(key, factor):
    def change(document, arrays):
        arrays[key] = arrays[key] * factor

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d, a: d["connections"][0].pop("host_shift"), "host_shift"),
        (field(0, "host_shift", 32), "0 to 31"),
        (field(0, "host_shift", -1), "0 to 31"),
        (field(2, "host_shift", 0), "host_bias connections of the input"),
        (set_in("input", "encoding", "signed_q"), "host_bias connections of the input"),
        (field(1, "delay", 1), "delay"),
        (field(1, "message_bits", 8), "message_bits"),
        (field(1, "kind", "pool"), "kind"),
        (scaled("w.map", 2**30), "weight_key"),
        (scaled("w.map", 1 << 13), "'map': with the image, its bias mantissa reaches"),
        (scaled("w.late", 16), "-128 to 127"),
    ],
)
def test_a_wrong_value_is_named(change, said):
    network, arrays, _ = by_hand()
    parse_network(network, arrays)
    change(network, arrays)
    with pytest.raises(BundleError, match=said):
        parse_network(network, arrays)


def test_the_mantissa_is_bounded_to_the_unit():
    """The greatest q is 251: (8 * 251 + 2) >> 2 = 502, so a bias of 3593 just fits."""
    network, arrays, _ = by_hand()
    arrays["b.map"] = np.array([4095 - 502])
    parse_network(network, arrays)
    arrays["b.map"] += 1
    with pytest.raises(BundleError, match=r"reaches .*4096, expected"):
        parse_network(network, arrays)


def test_sums_that_float64_cannot_hold_are_refused():
    network, arrays, _ = by_hand()
    arrays["input_table"] = arrays["input_table"] * 30000
    arrays["w.map"] = arrays["w.map"] * (1 << 28)
    network["connections"][0]["host_shift"] = 31
    with pytest.raises(BundleError, match=r"input_map.*2\^52"):
        parse_network(network, arrays)


@pytest.mark.parametrize("value", [None, -1, 10**30, 0.5, "x", [], {}, True])
def test_any_value_anywhere_is_refused_or_read_but_never_crashes(value):
    network, arrays, _ = by_hand()
    for *path, last in (place for place in paths(network) if place):
        changed = copy.deepcopy(network)
        set_in(*path, last, copy.deepcopy(value))(changed, arrays)
        try:
            parse_network(changed, arrays)
        except BundleError:
            continue
