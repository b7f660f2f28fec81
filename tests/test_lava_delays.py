"""Lava itself on synaptic delays and all read-outs: run_lava.py against the integer engine."""

import json
from pathlib import Path

import lava_batch
import lava_documents
import lava_matrices
import numpy as np
import pytest
from lava_documents import connection, document, population

from stars_deploy.assets import asset
from stars_deploy.files import write_json
from stars_deploy.simulation.integer.engine import build_engine
from stars_deploy.simulation.lava.environment import REMEDY, environment_status
from stars_deploy.simulation.lava.worker import run_kit
from stars_deploy.simulation.trace import read_trace

pytestmark = pytest.mark.lava

KIT = asset("export", "run_lava.py")


def late(source, target, weight, delay, bits=0, **geometry):
    link = connection(source, target, weight, "sparse_delay", bits, **geometry)
    return link | {"delay": delay, "name": f"{source}_{target}_late"}


def delayed(kind="potential"):
    """Late connections of all kinds on maps that are not square.

    Binary: a strided, padded, grouped convolution and a matrix, two steps late, into one map, and
    a matrix one step late; graded: a dilated convolution and a matrix of the image.
    """
    T, rng = 4, np.random.default_rng(5)
    network = document(
        (2, 5, 7),
        T,
        [
            population("a", (4, 5, 7), 1, T, vth=900, dv=2048),
            population("b", (4, 5, 7), 2, T, vth=500, dv=1024),
            population("c", (9,), 3, T, vth=150, dv=2048, bias="b.c"),
            population("d", (6, 2, 7), 4, T, vth=300, dv=2048),
            population("out", (5,), 5, T, vth=131071, dv=1000, spiking=False),
        ],
        [
            connection("input", "a", "w.a", "conv", 8, padding=[1, 1]),
            connection("a", "b", "w.b", "conv", padding=[1, 1]),
            late("input", "b", "w.image", 1, 8, padding=[2, 2], dilation=[2, 2]),
            connection("b", "c", "w.c"),
            late("input", "c", "w.pixels", 2, 8),
            connection("c", "d", "w.d"),
            late("a", "d", "w.late", 2, stride=[2, 1], padding=[0, 2], groups=2),
            late("b", "d", "w.matrix", 1),
            connection("d", "out", "w.out"),
            late("c", "out", "w.skip", 1),
        ],
    )
    arrays = {
        "input_table": rng.integers(-127, 128, (2, 256)),
        "w.a": rng.integers(-20, 21, (4, 2, 3, 3)),
        "w.b": rng.integers(-90, 91, (4, 4, 3, 3)),
        "w.image": rng.integers(-4, 5, (4, 2, 3, 3)),
        "w.c": rng.integers(-60, 61, (9, 140)),
        "w.pixels": rng.integers(-1, 2, (9, 70)) * (rng.random((9, 70)) < 0.1),
        "w.d": rng.integers(-128, 128, (84, 9)),
        "w.late": rng.integers(-128, 128, (6, 2, 3, 5)),
        "w.matrix": rng.integers(-40, 41, (84, 140)) * (rng.random((84, 140)) < 0.2),
        "w.out": rng.integers(-99, 100, (5, 84)),
        "w.skip": rng.integers(-128, 128, (5, 9)),
        "b.c": rng.integers(-20, 21, 9),
    }
    network["readout"]["kind"] = kind
    if kind == "spikes":
        network["populations"][-1] |= {"spiking": True, "vth": 60}
        network["readout"]["divisor"] = T
    return network, arrays, rng.integers(0, 256, (3, 2, 5, 7)).astype(np.uint8)


KINDS = ("potential", "potentials", "spikes")


@pytest.fixture(scope="module")
def lava(tmp_path_factory):
    """What Lava computed: function (read-out kind) -> Trace."""
    status = environment_status()
    if not status.ready:
        pytest.fail(f"the Lava environment is {status.reason}: {REMEDY}")
    folder = tmp_path_factory.mktemp("lava")
    jobs = []
    for kind in KINDS:
        lava_documents.write_bundle(folder / kind, *delayed(kind))
        jobs.append([str(folder / kind), "raw", str(folder / f"{kind}.npz")])
    (folder / "jobs.json").write_text(json.dumps(jobs))
    run_kit(Path(lava_batch.__file__), [str(KIT), str(folder / "jobs.json")], timeout=300)
    return lambda kind: read_trace(folder / f"{kind}.npz")


@pytest.mark.parametrize("kind", KINDS)
def test_late_connections_and_readouts(lava, kind):
    network, arrays, images = delayed(kind)
    expected, trace = build_engine(network, arrays).run(images), lava(kind)
    assert len(np.unique(expected.logits)) > 3
    for node, spikes in expected.spikes.items():
        np.testing.assert_array_equal(trace.spikes[node], spikes, node)
        assert 0.05 < spikes.mean() < 0.95, (node, spikes.mean())
        assert (spikes[0] != spikes[-1]).any()
    np.testing.assert_array_equal(trace.logits, expected.logits)


def test_every_late_connection_counts():
    """Without any one of them, later populations or the logits differ."""
    network, arrays, images = delayed()
    expected = build_engine(network, arrays).run(images).logits
    for link in network["connections"]:
        if link["kind"] == "sparse_delay":
            silenced = arrays | {link["weight_key"]: 0 * arrays[link["weight_key"]]}
            assert (build_engine(network, silenced).run(images).logits != expected).any()


def random_geometry(seed):
    """A connection from a random map to what its convolution makes of it, and its weights."""
    rng = np.random.default_rng(seed)
    groups = int(rng.choice([1, 2, 3]))
    channels, outputs = groups * int(rng.integers(1, 3)), groups * int(rng.integers(1, 3))
    kernel, stride, dilation = (rng.integers(1, 4, 2) for _ in range(3))
    padding = rng.integers(0, 3, 2)
    extent = dilation * (kernel - 1) + 1
    size = np.maximum(rng.integers(3, 8, 2), extent - 2 * padding)
    made = (size + 2 * padding - extent) // stride + 1
    geometry = {"stride": stride, "padding": padding, "dilation": dilation}
    link = connection(
        "input",
        "out",
        f"w{seed}",
        "sparse_delay",
        8,
        groups=groups,
        **{key: value.tolist() for key, value in geometry.items()},
    )
    weight = rng.integers(-3, 4, (outputs, channels // groups, *kernel))
    return link, (channels, *map(int, size)), (outputs, *map(int, made)), weight


def test_matrices_of_convolutions_against_the_integer_engine(tmp_path):
    cases = [random_geometry(seed) for seed in range(40)]
    jobs = [(link, source[::-1], target[::-1]) for link, source, target, _ in cases]
    write_json(tmp_path / "jobs.json", jobs)
    np.savez(tmp_path / "weights.npz", **{link["weight_key"]: w for link, _, _, w in cases})
    names = [str(tmp_path / name) for name in ("jobs.json", "weights.npz", "matrices.npz")]
    run_kit(Path(lava_matrices.__file__), [str(KIT), *names], timeout=100)
    matrices = np.load(tmp_path / "matrices.npz")
    for link, source, target, weight in cases:
        network = document(
            source, 1, [population("out", target, 1, 1, 131071, spiking=False)], [link]
        )
        table = np.tile(np.arange(256) - 128, (source[0], 1))
        arrays = {"input_table": table, link["weight_key"]: weight}
        images = np.random.default_rng(0).integers(0, 256, (2, *source)).astype(np.uint8)
        expected = build_engine(network, arrays).run(images).logits
        messages = images.reshape(2, -1).astype(int) - 128
        matrix = matrices[link["weight_key"]]
        np.testing.assert_array_equal(messages @ matrix.T, expected)
        assert np.abs(expected).max() > 0 or not matrix.any()
