"""What the integer engine computes in another way than it is written: the same integers."""

import numpy as np
import pytest
import slow_loihi

from stars_deploy.simulation.integer.engine import build_engine


def document(channels, groups, kernels, size=3, T=3):
    """image [1, size, size] -> wide -> skipped; several connections from wide to skipped."""
    rng = np.random.default_rng(channels)
    arrays = {
        "table": np.arange(-128, 128, dtype=np.int32)[None],
        "w.in": rng.integers(-9, 10, (channels, 1, 3, 3)).astype(np.int32),
        "w.out": rng.integers(-9, 10, (4, channels * size * size)).astype(np.int32),
    }
    shape = [size, size, channels]
    populations = [
        population("wide", shape, 1, T, vth=700),
        population("skipped", shape, 2, T, vth=60),
        population("out", [4], 3, T, vth=131071, spiking=False),
    ]
    connections = [connection("in", "input", "wide", "conv", 1, padding=1, bits=8)]
    for index, kernel in enumerate(kernels):
        arrays[f"w.skip{index}"] = kernel.astype(np.int32)
        padding = kernel.shape[2] // 2
        connections.append(
            connection(f"skip{index}", "wide", "skipped", "conv", groups[index], padding=padding)
        )
    connections.append(connection("out", "skipped", "out", "dense", 1))
    entry = {"encoding": "signed_q", "bits": 8, "table_key": "table", "shape_whc": [size, size, 1]}
    return {
        "schema": 1,
        "tool_version": "test",
        "T": T,
        "input": entry,
        "populations": populations,
        "connections": connections,
        "readout": {"population": "out", "kind": "potential", "divisor": 64 * T},
    }, arrays


def population(name, shape_whc, depth, T, vth, spiking=True):
    return {
        "name": name, "node": name, "shape_whc": shape_whc, "du": 4095, "dv": 2048, "vth": vth,
        "bias_exp": 6, "bias_key": None, "reset_interval": T, "reset_offset": (1 + depth) % T,
        "depth": depth, "scale": 1.0, "spiking": spiking,
    }  # fmt: skip


def connection(name, source, target, kind, groups, padding=0, bits=0):
    return {
        "name": name, "node": name, "source": source, "target": target, "kind": kind,
        "weight_key": f"w.{name}", "stride": [1, 1], "padding": [padding, padding],
        "dilation": [1, 1], "groups": groups, "delay": 0, "message_bits": bits, "weight_exp": 0,
    }  # fmt: skip


def identity(channels, groups, rng):
    """Diagonal 1x1 kernel [channels, channels / groups, 1, 1] of different weights."""
    per_group = channels // groups
    kernel = np.zeros((channels, per_group, 1, 1))
    own = np.arange(channels) % per_group
    kernel[np.arange(channels), own, 0, 0] = rng.integers(-128, 128, channels)
    return kernel


def cases():
    rng = np.random.default_rng(0)
    block = rng.integers(-40, 41, (6, 3, 3, 3)).astype(float)
    nearly = identity(6, 2, rng)
    nearly[0, 1] = 100  # one channel hears its neighbour too: no diagonal
    return {
        "wide identity": (130, [65], [identity(130, 65, rng)]),
        "parallel identities": (6, [6, 6, 6], [identity(6, 6, rng) for _ in range(3)]),
        "identity before a kernel": (6, [2, 2], [identity(6, 2, rng), block]),
        "parallel kernels": (6, [2, 2], [block, block[::-1].copy()]),
        "not quite an identity": (6, [2], [nearly]),
    }


@pytest.mark.parametrize("name", cases())
def test_products_and_sums_of_synapses_are_the_convolutions_they_stand_for(name):
    channels, groups, kernels = cases()[name]
    network, arrays = document(channels, groups, kernels)
    images = np.random.default_rng(1).integers(0, 256, (4, 1, 3, 3)).astype(np.uint8)
    recording = build_engine(network, arrays).run(images)
    spikes, _, logits = slow_loihi.run(network, arrays, images)
    for node in ("wide", "skipped"):
        np.testing.assert_array_equal(recording.spikes[node], spikes[node])
        assert 0.02 < recording.spikes[node].mean() < 0.8
    np.testing.assert_array_equal(recording.logits, logits.astype(np.float32))
