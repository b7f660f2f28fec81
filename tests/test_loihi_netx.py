"""NetX files: what is written is what Lava would compute, and everything else is refused."""

import time

import h5py
import numpy as np
import pytest
import random_integer_networks as networks
import random_networks

from stars_deploy.config.profile import load_profile
from stars_deploy.errors import GraphError
from stars_deploy.targets.loihi import lower
from stars_deploy.targets.netx import write_netx
from stars_deploy.targets.netx_rules import effective_dense, netx_problems


def matrix(*rows):
    return np.array(rows, np.int64)


# Observed in lava-dl 0.6.0 with lava-nc 0.10.0: what becomes of a dense matrix. None: NetX fails.
HAZARDS = [
    ("mixed within eight bits", matrix([-128, 3], [5, 127]), "same"),
    ("mixed odd values", matrix([-3, 3], [1, -1]), "same"),
    ("mixed within nine bits", matrix([-256, 253], [5, 254]), "same"),
    ("mixed beyond 254", matrix([-3, 255]), matrix([-3, 254])),
    ("mixed far beyond", matrix([-300, 400]), matrix([-256, 254])),
    ("all positive within 255", matrix([0, 255], [7, 1]), "same"),
    ("all positive, 256", matrix([0, 256], [7, 1]), matrix([0, 0], [0, 0])),
    ("all negative, no power of two", matrix([-100, -7]), "same"),
    ("all negative, -1", matrix([-1, -1]), matrix([0, 0])),
    ("all negative, -128", matrix([-128, -4]), matrix([-124, -4])),
    ("zero and -128", matrix([-128, 0, -3]), np.array([[-127.5, 0.0, -3.0]])),
    ("zero and -128 alone", matrix([-128, 0]), matrix([-64, 0])),
    ("zero and odd below -128", matrix([-129, 0]), matrix([0, 0])),
    ("all negative beyond 255", matrix([-257, -2]), matrix([0, 0])),
    ("zeros", matrix([0, 0]), None),
]


@pytest.mark.parametrize(("weight", "result"), [case[1:] for case in HAZARDS],
                         ids=[case[0] for case in HAZARDS])  # fmt: skip
def test_what_lava_makes_of_a_dense_matrix(weight, result):
    found = effective_dense(weight)
    if result is None:
        assert found is None
    else:
        expected = weight if isinstance(result, str) else result
        np.testing.assert_array_equal(found, expected)


def test_every_mixed_or_positive_matrix_of_eight_bits_survives():
    rng = np.random.default_rng(0)
    for _ in range(300):
        high = int(rng.integers(1, 128))
        weight = rng.integers(-high - 1, high + 1, (4, 5))
        weight[0, :2] = 1, -1
        np.testing.assert_array_equal(effective_dense(weight), weight)
        positive = np.abs(weight)
        np.testing.assert_array_equal(effective_dense(positive), positive)


def network():
    """A convolution, a dense layer after it, biases of exponent 6."""
    for seed in range(100):
        document, arrays = networks.random_integer_network(seed)
        kinds = [entry["kind"] for entry in document["connections"]]
        biased = document["populations"][0]["bias_key"] is not None
        if kinds[:2] == ["conv", "dense"] and biased and not netx_problems(document, arrays):
            return document, arrays
    raise AssertionError("no seed gives such a network")


def population(index, **changes):
    def change(document, arrays):
        document["populations"][index] |= changes

    return change


def connection(index, **changes):
    def change(document, arrays):
        document["connections"][index] |= changes

    return change


def weights(index, value):
    def change(document, arrays):
        key = document["connections"][index]["weight_key"]
        arrays[key] = np.full_like(arrays[key], value)

    return change


def bias(value):
    def change(document, arrays):
        key = document["populations"][0]["bias_key"]
        arrays[key] = np.full_like(arrays[key], value)

    return change


def skip(document, arrays):
    extra = document["connections"][0] | {"name": "skip", "target": "readout"}
    document["connections"].append(extra)


CORRUPTED = [
    (weights(1, 0), "zeros"),
    (weights(1, -1), "NetX would change"),
    (weights(1, -64), "no positive weight"),
    (weights(1, 128), "outside -128..127"),
    (weights(0, 200), "outside -128..127"),
    (connection(0, groups=128), "groups 128 exceeds the int8"),
    (connection(0, stride=[128, 1]), "stride 128"),
    (connection(0, padding=[0, 200]), "padding 200"),
    (connection(0, delay=1), "delay"),
    (connection(0, weight_exp=-1), "weight exponent"),
    (connection(1, source="input"), "does not listen to lif1"),
    (population(0, vth=131072), "vth"),
    (population(0, dv=4097), "decays"),
    (population(0, bias_exp=5), "finer"),
    (population(0, reset_offset=0, reset_interval=5), "reset_offset"),
    (bias(4096), "exceeds 4095"),
    (bias(40000), "exceeds 4095"),  # int16 would wrap
    (skip, "several connections"),
]


@pytest.mark.parametrize(("change", "named"), CORRUPTED, ids=[named for _, named in CORRUPTED])
def test_what_would_be_corrupted_silently_is_refused(change, named, tmp_path):
    document, arrays = network()
    change(document, arrays)
    if named == "finer":
        arrays[document["populations"][0]["bias_key"]] |= 1
    path = tmp_path / "network.net"
    with pytest.raises(GraphError, match=named):
        write_netx(document, arrays, path)
    assert not path.exists() and not list(tmp_path.iterdir())


def test_all_reasons_are_listed_at_once(tmp_path):
    document, arrays = network()
    weights(1, 0)(document, arrays)
    bias(9000)(document, arrays)
    population(0, vth=-1)(document, arrays)
    assert len(netx_problems(document, arrays)) == 3


def test_structure_of_the_file(tmp_path):
    document, arrays = network()
    write_netx(document, arrays, tmp_path / "network.net")
    first = document["connections"][0]
    with h5py.File(tmp_path / "network.net") as file:
        layers = [file[f"layer/{i}"] for i in range(len(file["layer"]))]
        kinds = [layer["type"][0].decode() for layer in layers]
        assert kinds[:4] == ["input", "conv", "flatten", "dense"]
        assert kinds.count("flatten") == 1
        shape = document["input"]["shape_whc"][::-1]
        assert layers[0]["shape"][()].tolist() == shape  # C, H, W
        conv, entry = layers[1], document["populations"][0]
        assert conv["weight"].dtype == np.int64
        np.testing.assert_array_equal(conv["weight"], arrays[first["weight_key"]])
        assert conv["stride"][()].tolist() == first["stride"]  # H, W
        assert conv["groups"].shape == () and conv["groups"][()] == first["groups"]
        neuron = conv["neuron"]
        assert neuron["type"][()] == b"CUBA"
        assert neuron["iDecay"][()] == entry["du"] + 1
        assert (neuron["vDecay"][()], neuron["vThMant"][()]) == (entry["dv"], entry["vth"])
        assert layers[-1]["neuron/vThMant"][()] == 131071


def test_neuron_wise_bias_is_turned_to_width_height_channel(tmp_path):
    document, arrays = network()
    population(0, bias_exp=6)(document, arrays)
    channels, height, width = document["populations"][0]["shape_whc"][::-1]
    values = np.arange(channels * height * width, dtype=np.int32).reshape(channels, height, width)
    arrays[document["populations"][0]["bias_key"]] = values
    write_netx(document, arrays, tmp_path / "network.net")
    with h5py.File(tmp_path / "network.net") as file:
        stored = file["layer/1/bias"][()]
    assert stored.shape == (width, height, channels)
    assert stored[width - 1, 0, 0] == values[0, 0, width - 1]


def test_coarser_bias_exponents_are_brought_to_six(tmp_path):
    document, arrays = network()
    population(0, bias_exp=7)(document, arrays)
    write_netx(document, arrays, tmp_path / "network.net")
    with h5py.File(tmp_path / "network.net") as file:
        stored = file["layer/1/bias"][()]
    expected = 2 * arrays[document["populations"][0]["bias_key"]].astype(int)
    assert np.sort(stored, axis=None).tolist() == np.sort(expected, axis=None).tolist()


def test_equal_networks_give_equal_bytes(tmp_path):
    document, arrays = network()
    write_netx(document, arrays, tmp_path / "a.net")
    time.sleep(1.1)  # HDF5 time stamps count seconds
    write_netx(document, arrays, tmp_path / "b.net")
    assert (tmp_path / "a.net").read_bytes() == (tmp_path / "b.net").read_bytes()


def test_lowered_chains_can_be_written(tmp_path):
    profile = load_profile("loihi2")
    for seed in range(8):
        network = lower(random_networks.random_graph(seed, pools=False), profile)
        write_netx(network.document, network.arrays, tmp_path / f"{seed}.net")
