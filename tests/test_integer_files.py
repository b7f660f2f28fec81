"""Tampered or incomplete network.json / network.npz: every mistake is named, none is run."""

import copy
import functools
import math

import numpy as np
import pytest
import random_integer_networks as networks

from stars_deploy.errors import BundleError
from stars_deploy.files import write_json, write_npz
from stars_deploy.simulation.integer.engine import open_engine
from stars_deploy.simulation.integer.network import LARGEST_RUN, parse_network


@functools.cache
def _chain():
    for seed in range(50):
        document, arrays = networks.random_integer_network(seed)
        first = document["connections"][0]
        if first["kind"] == "conv" and document["populations"][0]["bias_key"]:
            return document, arrays
    raise AssertionError("no seed gives such a network")


def chain():
    """A network with a convolution first, a bias and a dense read-out."""
    return copy.deepcopy(_chain())


def set_in(*path_and_value):
    *path, last, value = path_and_value

    def change(document, arrays):
        for key in path:
            document = document[key]
        document[last] = value

    return change


def drop(*path):
    def change(document, arrays):
        for key in path[:-1]:
            document = document[key]
        del document[path[-1]]

    return change


def array(key, value):
    def change(document, arrays):
        arrays[key] = value(arrays[key]) if callable(value) else value

    return change


FIRST, LINK = ("populations", 0), ("connections", 0)
CASES = [
    (set_in("schema", 2), "schema"),
    (set_in("T", 0), "T = 0"),
    (set_in("T", 4.0), "T = 4.0"),
    (drop("populations"), "'populations' is missing"),
    (set_in("populations", []), "populations"),
    (set_in("connections", {}), "connections"),
    (set_in("input", "encoding", "rate"), "encoding"),
    (set_in("input", "table_key", "nothing"), "table_key"),
    (set_in("input", "shape_whc", [4, 4]), "shape_whc"),
    (set_in("input", "shape_whc", [4, 4, 9]), "table_key"),
    (set_in(*FIRST, "du", 4096), "du = 4096"),
    (set_in(*FIRST, "dv", -1), "dv = -1"),
    (set_in(*FIRST, "vth", 1 << 17), "vth = 131072"),
    (set_in(*FIRST, "vth", True), "vth = True"),
    (set_in(*FIRST, "scale", 0), "scale"),
    (set_in(*FIRST, "scale", float("nan")), "scale"),
    (set_in(*FIRST, "bias_exp", 8), "bias_exp"),
    (set_in(*FIRST, "bias_key", "w.nothing"), "bias_key"),
    (set_in(*FIRST, "reset_interval", 9999), "reset_interval"),
    (set_in(*FIRST, "depth", 2), "delay"),
    (set_in(*FIRST, "spiking", 1), "spiking"),
    (set_in(*FIRST, "spiking", False), "sends no spikes"),
    (set_in(*FIRST, "shape_whc", [1 << 20, 1 << 20, 1 << 20]), "shape_whc"),
    (set_in(*FIRST, "name", "readout"), "name|populations"),
    (set_in(*LINK, "source", "nobody"), "source"),
    (set_in(*LINK, "target", "input"), "target"),
    (set_in(*LINK, "kind", "pool"), "kind"),
    (set_in(*LINK, "delay", 1), "delay"),
    (set_in(*LINK, "weight_exp", 1), "weight_exp"),
    (set_in(*LINK, "stride", [0, 1]), "stride"),
    (set_in(*LINK, "stride", 2), "stride"),
    (set_in(*LINK, "padding", [50, 0]), "target"),
    (set_in(*LINK, "groups", 7), "groups"),
    (set_in(*LINK, "message_bits", -1), "message_bits"),
    (set_in("readout", "population", "lif1"), "population"),
    (set_in("readout", "divisor", 0.0), "divisor"),
    (lambda d, a: d["connections"].pop(0), "has no connection"),
    (lambda d, a: a.pop(d["connections"][0]["weight_key"]), "weight_key"),
    (array("input_table", lambda t: t.astype(float)), "integers"),
    (array("input_table", lambda t: t[:, :255]), "table_key"),
    (array("b.lif1", lambda b: b + 5000), "bias_key"),
    (array("b.lif1", lambda b: np.zeros(len(b) + 1, np.int32)), "bias_key"),
]


@pytest.mark.parametrize(("change", "named"), CASES)
def test_a_wrong_value_is_named(change, named):
    document, arrays = chain()
    parse_network(document, arrays)
    change(document, arrays)
    with pytest.raises(BundleError, match=named):
        parse_network(document, arrays, "network.json")


@pytest.mark.parametrize("weight", [128, -129])
def test_weights_beyond_eight_bits_are_refused(weight):
    document, arrays = chain()
    key = document["connections"][0]["weight_key"]
    arrays[key].reshape(-1)[0] = weight
    with pytest.raises(BundleError, match="-128 to 127"):
        parse_network(document, arrays)


@pytest.mark.parametrize("text", ["[]", "null", '"x"', "{}", "{", "\x00"])
def test_documents_that_are_no_networks(tmp_path, text):
    write_npz(tmp_path / "network.npz", chain()[1])
    (tmp_path / "network.json").write_text(text)
    with pytest.raises(BundleError, match=r"network\.json"):
        open_engine(tmp_path)


def test_missing_and_truncated_files(tmp_path):
    document, arrays = chain()
    with pytest.raises(BundleError, match=r"network\.json: no such file"):
        open_engine(tmp_path)
    write_json(tmp_path / "network.json", document)
    with pytest.raises(BundleError, match=r"network\.npz: no such file"):
        open_engine(tmp_path)
    write_npz(tmp_path / "network.npz", arrays)
    assert open_engine(tmp_path).nodes
    content = (tmp_path / "network.npz").read_bytes()
    (tmp_path / "network.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(BundleError, match=r"network\.npz"):
        open_engine(tmp_path)


def test_the_reset_phase_belongs_to_the_chip():
    """A wrong phase is for the engines that have one to find; the layer-wise model has none."""
    document, arrays = chain()
    document["populations"][0]["reset_offset"] += 1
    parse_network(document, arrays)


def paths(value, prefix=()):
    """Every place in a JSON value."""
    yield prefix
    children = value.items() if isinstance(value, dict) else ()
    children = enumerate(value) if isinstance(value, list) else children
    for key, child in children:
        yield from paths(child, (*prefix, key))


@pytest.mark.parametrize("value", [None, -1, 10**30, 0.5, "x", [], {}, [[]], True])
def test_any_value_anywhere_is_refused_or_read_but_never_crashes(value):
    document, arrays = chain()
    refused = 0
    for *path, last in (place for place in paths(document) if place):
        changed = copy.deepcopy(document)
        set_in(*path, last, copy.deepcopy(value))(changed, arrays)
        try:
            parse_network(changed, arrays)
        except BundleError:
            refused += 1
    assert refused > 40


def twice(section):
    def change(document, arrays):
        document[section].append(copy.deepcopy(document[section][-1]))

    return change


def same_node(document, arrays):
    document["populations"][1]["node"] = document["populations"][0]["node"]


def not_a_time(document, arrays):
    """NumPy counts timedelta64 among the integers, and NaT is below no limit."""
    key = document["connections"][0]["weight_key"]
    arrays[key] = np.full(arrays[key].shape, np.timedelta64("NaT"))


def endless(document, arrays):
    """A population that would take gigabytes for one image."""
    document["T"] = 1024
    for population in document["populations"]:
        population["reset_interval"] = document["T"]
    size = math.isqrt(LARGEST_RUN // document["T"]) + 1
    document["populations"][0]["shape_whc"][:2] = [size, size]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (twice("connections"), "2 connections are called"),
        (twice("populations"), "a name that no other population has"),
        (same_node, "a node that no other population stands for"),
        (not_a_time, "an array of integers, not timedelta64"),
        (endless, "neurons times T"),
        (set_in("populations", 0, "scale", 10**400), "a finite number of at least 1e-31"),
        (set_in("readout", "divisor", 1e-40), "a finite number of at least 1e-31"),
    ],
)
def test_what_would_count_twice_or_never_end_is_refused(change, named):
    document, arrays = chain()
    change(document, arrays)
    with pytest.raises(BundleError, match=named):
        parse_network(document, arrays)
