"""The integer engine on synaptic delays, matrices into maps and all kinds of read-outs, by hand."""

import copy

import lava_documents
import numpy as np
import pytest
from lava_documents import connection, document, population

from stars_deploy.errors import BundleError
from stars_deploy.simulation.integer.engine import build_engine
from stars_deploy.simulation.integer.network import parse_network


def late(source, target, weight, delay=1, **geometry):
    return connection(source, target, weight, "sparse_delay", **geometry) | {"delay": delay}


def skip_network():
    """The hand-computed network with a second layer, whose skip waits one step.

    lif spikes as in lava_documents: image 0 gives 0 0 / 1 1, then 0 1 / 1 1; image 1 nothing.
    mid (threshold 2, no memory) has per row i the sum of its two spikes times 2: rows spike where
    any neuron of lif does: step 1: 0 1, step 2: 1 1. fc hears mid (weights 1 and 10) and the late
    lif (a kernel [[3], [5]] down the columns into a 2-neuron map, without padding):
    step 1: columns (0 3 + 1 5) = 5 5, plus mid 0 1 -> 10 on both = 15 15;
    step 2: columns 5 and 3 + 5 = 8, plus mid 1 1 -> 11: 16 19. Their sums: 31 34.
    """
    T = 2
    network = document(
        (1, 2, 3),
        T,
        [
            population("lif", (1, 2, 2), 1, T, vth=10, dv=2048),
            population("mid", (2,), 2, T, vth=1, dv=4096),
            population("fc", (1, 1, 2), 3, T, vth=131071, spiking=False),
        ],
        [
            connection("input", "lif", "w.lif", "conv", bits=8),
            connection("lif", "mid", "w.mid"),
            connection("mid", "fc", "w.fc"),
            late("lif", "fc", "w.late"),
        ],
    )
    arrays = {
        "input_table": np.arange(256, dtype=np.int32)[None],
        "w.lif": np.array([[[[1, 2]]]], np.int32),
        "w.mid": np.array([[2, 2, 0, 0], [0, 0, 2, 2]], np.int32),
        "w.fc": np.array([[1, 10], [1, 10]], np.int32),
        "w.late": np.array([[[[3], [5]]]], np.int32),
    }
    network["readout"] = {"population": "fc", "kind": "potential", "divisor": 64.0}
    return network, arrays, lava_documents.hand_computed()[2]


def logits(network, arrays, images):
    return build_engine(network, arrays).run(images).logits


def test_a_late_convolution_and_a_matrix_into_a_map_by_hand():
    network, arrays, images = skip_network()
    answer = build_engine(network, arrays).run(images)
    assert answer.spikes["mid"][:, 0].tolist() == [[0, 1], [1, 1]]
    assert not answer.spikes["mid"][:, 1].any()
    assert answer.logits.tolist() == [[31, 34], [0, 0]]


def test_a_late_matrix_is_the_same_as_the_late_convolution():
    """[[3], [5]] down the columns of a 2x2 map, in the order (C, H, W)."""
    network, arrays, images = skip_network()
    arrays["w.late"] = np.array([[3, 0, 5, 0], [0, 3, 0, 5]], np.int32)
    assert logits(network, arrays, images).tolist() == [[31, 34], [0, 0]]


def test_potentials_add_up_over_the_steps_by_hand():
    """v is 15 15 after step 1, 31 34 after step 2: their sum is 46 49."""
    network, arrays, images = skip_network()
    network["readout"]["kind"] = "potentials"
    assert logits(network, arrays, images).tolist() == [[46, 49], [0, 0]]
    network["populations"][2]["dv"] = 2048  # 15/2 + 16 and 15/2 + 19: 23.5 26.5
    assert logits(network, arrays, images).tolist() == [[38.5, 41.5], [0, 0]]
    network["readout"]["kind"] = "potential"
    assert logits(network, arrays, images).tolist() == [[23.5, 26.5], [0, 0]]


def test_spikes_are_counted_by_hand():
    """Threshold 15: step 1 meets it, which is no spike; in step 2 30 + 1 and 30 + 4 exceed it."""
    network, arrays, images = skip_network()
    network["populations"][2] |= {"spiking": True, "vth": 15}
    network["readout"] |= {"kind": "spikes", "divisor": 2.0}
    assert logits(network, arrays, images).tolist() == [[0.5, 0.5], [0, 0]]
    network["populations"][2]["vth"] = 14
    assert logits(network, arrays, images).tolist() == [[1, 1], [0, 0]]
    network["populations"][2]["vth"] = 33
    assert logits(network, arrays, images).tolist() == [[0, 0.5], [0, 0]]


def test_without_a_kind_the_potential_is_read():
    network, arrays, images = skip_network()
    del network["readout"]["kind"]
    assert logits(network, arrays, images).tolist() == [[31, 34], [0, 0]]


def put(*path_and_value):
    *path, last, value = path_and_value

    def change(network, arrays):
        for key in path:
            network = network[key]
        network[last] = value

    return change


def flat_late(network, arrays):
    arrays["w.late"] = arrays["w.late"].reshape(1, 1, 2)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (put("connections", 3, "kind", "conv"), "delay = 1, expected 0: a conv"),
        (put("connections", 3, "kind", "delayed"), "kind = 'delayed'.*sparse_delay"),
        (put("connections", 3, "delay", 0), "depths 1 -> 3 to differ by 1"),
        (put("connections", 3, "delay", 2), "depths 1 -> 3 to differ by 1"),
        (put("connections", 3, "delay", 63), "delay = 63, expected an integer from 0 to 62"),
        (put("connections", 3, "delay", -1), "delay = -1"),
        (put("connections", 3, "padding", [1, 0]), "height and width"),
        (flat_late, "weight_key"),
        (put("readout", "kind", "voltage"), "kind = 'voltage', expected potential or potentials"),
        (put("readout", "kind", 3), "kind = 3"),
        (put("readout", "kind", "spikes"), "population.*spiking = true"),
        (put("readout", "population", "mid"), "population.*spiking = false"),
        (put("populations", 2, "spiking", True), "population.*spiking = false"),
    ],
)
def test_what_is_wrong_is_named(change, named):
    network, arrays, _ = skip_network()
    network = copy.deepcopy(network)
    change(network, arrays)
    with pytest.raises(BundleError, match=named):
        parse_network(network, arrays)


def test_a_spiking_population_read_as_potentials_is_refused():
    network, arrays, _ = skip_network()
    network["populations"][2]["spiking"] = True
    network["readout"]["kind"] = "potentials"
    with pytest.raises(BundleError, match=r"population = 'fc'.*spiking = false"):
        parse_network(network, arrays)
