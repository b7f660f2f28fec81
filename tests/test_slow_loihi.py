"""The slow int64 model by hand: delays, relays, read-outs; and its convolution, written twice."""

import copy

import lava_documents
import numpy as np
import pytest
import random_integer_dags as dags
import slow_loihi
from lava_documents import connection, population
from random_integer_networks import fires_everywhere, random_images

T = 4
FORGETS = 4096


def late_path():
    """pixel -> a -> b -> c and a -> c, where what a sends must wait one step for b.

    With message 10, a = 30, 45, 52.5 > 50, 30: it spikes at step 3. b repeats it. At step 3 c has
    4 from b and 5 from a: 9 > 8 spikes; one step apart they would make 5 / 2 + 4 = 6.5, no spike.
    """
    network = lava_documents.document(
        (1, 1, 1),
        T,
        [
            population("a", (1,), 1, T, vth=50, dv=2048),
            population("b", (1,), 2, T, vth=9, dv=FORGETS),
            population("c", (1,), 3, T, vth=8, dv=2048),
            population("out", (1,), 4, T, vth=131071, dv=0, spiking=False),
        ],
        [
            connection("input", "a", "w.a", bits=8),
            connection("a", "b", "w.b"),
            connection("b", "c", "w.c"),
            connection("a", "c", "w.late", "sparse_delay") | {"delay": 1},
            connection("c", "out", "w.out"),
        ],
    )
    arrays = {
        "input_table": np.arange(256)[None] - 128,
        "w.a": np.array([[3]]),
        "w.b": np.array([[10]]),
        "w.c": np.array([[4]]),
        "w.late": np.array([[5]]),
        "w.out": np.array([[2]]),
    }
    network["readout"] = {"population": "out", "kind": "potential", "divisor": 64.0}
    return network, arrays, np.array([138, 128, 138], np.uint8).reshape(3, 1, 1, 1)


SPIKES = [[0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 1, 0]]


def test_a_delayed_skip_by_hand():
    network, arrays, images = late_path()
    spikes, potentials, logits = slow_loihi.run(network, arrays, images)
    for name in ("a", "b", "c"):
        np.testing.assert_array_equal(spikes[name][:, :, 0].T, SPIKES)
    np.testing.assert_array_equal(potentials["c"][:, 0, 0], [0, 0, 9 * 64, 0])
    np.testing.assert_array_equal(potentials["out"][:, 0, 0], [0, 0, 2 * 64, 2 * 64])
    np.testing.assert_array_equal(logits, [[2], [0], [2]])


def test_a_skip_that_does_not_wait_misses_the_spike():
    network, arrays, images = late_path()
    network["connections"][3] |= {"kind": "dense", "delay": 0}
    spikes, potentials, _ = slow_loihi.run(network, arrays, images)
    assert not spikes["c"].any()
    np.testing.assert_array_equal(potentials["c"][:, 0, 0] / 64, [0, 5, 6.5, 3.25])


def test_a_relay_waits_as_a_delay_does():
    network, arrays, images = late_path()
    delayed = slow_loihi.run(network, arrays, images)
    relay = population("a_at2", (1,), 2, T, vth=0, dv=FORGETS) | {"node": None}
    network["populations"].insert(1, relay)
    network["connections"][3] = connection("a_at2", "c", "w.late")
    network["connections"].append(connection("a", "a_at2", "w.late"))  # a weight used twice
    relayed = slow_loihi.run(network, arrays, images)
    for name in delayed[0]:
        np.testing.assert_array_equal(delayed[0][name], relayed[0][name])
        np.testing.assert_array_equal(delayed[1][name], relayed[1][name])
    np.testing.assert_array_equal(relayed[0]["a_at2"][:, :, 0].T, SPIKES)


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("out", "potential", [2, 0, 2]),
        ("out", "potentials", [4, 0, 4]),  # 0, 0, 2, 2
        ("c", "potential", [0, 0, 0]),  # after its spike, at step 4
        ("c", "potentials", [9, 0, 9]),  # 0, 0, 9 before the reset, 0
        ("c", "spikes", [1 / 64, 0, 1 / 64]),
    ],
)
def test_read_outs_by_hand(name, kind, expected):
    network, arrays, images = late_path()
    network["readout"] = {"population": name, "kind": kind, "divisor": 64.0}
    _, _, logits = slow_loihi.run(network, arrays, images)
    np.testing.assert_array_equal(logits[:, 0], expected)


def test_delayed_kernels_are_convolutions():
    """A kernel and the matrix that computes the same, both late."""
    rng = np.random.default_rng(0)
    shape, entry = (4, 2, 3), {"kind": "sparse_delay", "message_bits": 0, "groups": 2}
    entry |= {"stride": [2, 1], "padding": [1, 0], "dilation": [1, 2]}
    kernel = rng.integers(-9, 10, (4, 1, 3, 2))
    units = np.eye(2 * 4 * 5, dtype=np.int64).reshape(-1, 2, 4, 5)
    columns = [slow_loihi.arriving(entry, kernel, unit, shape).reshape(-1) for unit in units]
    message = rng.integers(0, 2, (2, 4, 5))
    np.testing.assert_array_equal(
        slow_loihi.arriving(entry, np.array(columns).T, message, shape),
        slow_loihi.arriving(entry, kernel, message, shape),
    )


def one_position_at_a_time(message, entry, weight, shape):
    (sy, sx), (py, px) = entry["stride"], entry["padding"]
    (dy, dx), groups = entry["dilation"], entry["groups"]
    padded = np.pad(message, ((0, 0), (py, py), (px, px)))
    outputs, per_group, kh, kw = weight.shape
    result = np.zeros(shape, np.int64)
    for o, y, x in np.ndindex(*shape):
        first = (o // (outputs // groups)) * per_group
        for c, i, j in np.ndindex(per_group, kh, kw):
            seen = padded[first + c, y * sy + i * dy, x * sx + j * dx]
            result[o, y, x] += weight[o, c, i, j] * seen
    return result


def test_convolution_equals_the_definition():
    compared = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        groups = int(rng.choice([1, 2, 3]))
        channels, outputs = groups * int(rng.integers(1, 3)), groups * int(rng.integers(1, 3))
        pairs = {"stride": (1, 4), "padding": (0, 3), "dilation": (1, 3)}
        entry = {key: rng.integers(*span, 2).tolist() for key, span in pairs.items()}
        entry["groups"] = groups
        weight = rng.integers(-128, 128, (outputs, channels // groups, *rng.integers(1, 4, 2)))
        size = rng.integers(3, 8, 2)
        spans = zip(size, entry["padding"], entry["dilation"], weight.shape[2:], strict=True)
        room = [n + 2 * p - d * (k - 1) - 1 for n, p, d, k in spans]
        if min(room) < 0:
            continue
        shape = (outputs, *(n // s + 1 for n, s in zip(room, entry["stride"], strict=True)))
        message = rng.integers(-128, 128, (channels, *size))
        np.testing.assert_array_equal(
            slow_loihi.conv_sum(message, entry, weight, shape),
            one_position_at_a_time(message, entry, weight, shape),
        )
        compared += 1
    assert compared >= 25


def depths_agree(document):
    depth = {"input": 0} | {e["name"]: e["depth"] for e in document["populations"]}
    assert all(
        depth[e["target"]] == depth[e["source"]] + 1 + e["delay"] for e in document["connections"]
    )
    assert all(
        e["reset_offset"] == (1 + e["depth"]) % document["T"] for e in document["populations"]
    )


def test_random_dags_are_evidence():
    fires, late, kinds = [], [], set()
    for seed in range(40):
        document, arrays = dags.random_integer_dag(seed)
        depths_agree(document)
        images = random_images(document, seed)
        spikes, _, _, overflows = slow_loihi.trace(document, arrays, images)
        fires.append(fires_everywhere(document, spikes))
        assert not any(any(counts) for counts in overflows.values())
        late.append(dags.late_edges(document))
        kinds.add(document["readout"]["kind"])
    assert np.mean(fires) >= 0.8
    assert kinds == set(dags.READOUTS)
    for what, least in (("delays", 30), ("relays", 20), ("shared", 10)):
        assert sum(entry[what] > 0 for entry in late) >= least, what


def test_delays_of_random_dags_matter():
    """A message one step early changes spikes or potentials in nearly all of them."""
    seen = compared = 0
    for seed in range(30):
        document, arrays = dags.random_integer_dag(seed, image_delays=False)
        early = copy.deepcopy(document)
        late = [e for e in early["connections"] if e["delay"]]
        if not late:
            continue
        late[0]["delay"] -= 1
        images = random_images(document, seed, count=3)
        right, wrong = (slow_loihi.run(d, arrays, images)[1] for d in (document, early))
        seen += any((right[name] != wrong[name]).any() for name in right)
        compared += 1
    assert compared >= 15 and seen >= 0.9 * compared
