"""Integer networks written by hand, as bundles that run_lava.py reads, and their NetX files."""

import json

import h5py
import numpy as np


def population(name, shape_chw, depth, T, vth, dv=0, du=4095, bias=None, spiking=True):
    return {
        "name": name,
        "node": name,
        "shape_whc": list(reversed(shape_chw)),
        "du": du,
        "dv": dv,
        "vth": vth,
        "bias_exp": 6,
        "bias_key": bias,
        "reset_interval": T,
        "reset_offset": (1 + depth) % T,
        "depth": depth,
        "scale": 1.0,
        "spiking": spiking,
    }


def connection(source, target, weight, kind="dense", bits=0, **geometry):
    return {
        "name": f"{source}_{target}",
        "node": None,
        "source": source,
        "target": target,
        "kind": kind,
        "weight_key": weight,
        "stride": geometry.get("stride", [1, 1]),
        "padding": geometry.get("padding", [0, 0]),
        "dilation": geometry.get("dilation", [1, 1]),
        "groups": geometry.get("groups", 1),
        "delay": 0,
        "message_bits": bits,
        "weight_exp": 0,
    }


def document(shape_chw, T, populations, connections):
    readout = populations[-1]["name"]
    return {
        "schema": 1,
        "tool_version": "test",
        "profile": "loihi2",
        "T": T,
        "input": {
            "encoding": "signed_q",
            "bits": 8,
            "scale": 1.0,
            "mean": [0.0] * shape_chw[0],
            "std": [1.0] * shape_chw[0],
            "table_key": "input_table",
            "shape_whc": list(reversed(shape_chw)),
        },
        "populations": populations,
        "connections": connections,
        "readout": {"population": readout, "divisor": 64 * T},
        "axes": {},
    }


def write_bundle(folder, network, arrays, images):
    """Write what run_lava.py reads of a bundle."""
    (folder / "loihi").mkdir(parents=True)
    (folder / "loihi" / "network.json").write_text(json.dumps(network))
    np.savez(folder / "loihi" / "network.npz", **arrays)
    np.savez(folder / "golden.npz", images=images)
    return folder


def write_netx(path, network, arrays):
    """Write a chain as a NetX file; conv weights stay in PyTorch's order there."""
    populations = {entry["name"]: entry for entry in network["populations"]}
    with h5py.File(path, "w") as file:
        layers = file.create_group("layer")

        def layer(kind):
            group = layers.create_group(str(len(layers)))
            group["type"] = np.array([kind.encode("ascii")], dtype="S10")
            return group

        layer("input")["shape"] = list(reversed(network["input"]["shape_whc"]))
        maps = True
        for link in network["connections"]:
            target = populations[link["target"]]
            if link["kind"] == "dense" and maps:
                layer("flatten")
                maps = False
            group = layer(link["kind"])
            group["shape"] = list(reversed(target["shape_whc"]))
            group["weight"] = arrays[link["weight_key"]]
            if link["kind"] == "conv":
                for key in ("stride", "padding", "dilation", "groups"):
                    group[key] = link[key]
            if target["bias_key"] is not None:
                bias = arrays[target["bias_key"]]
                group["bias"] = bias.transpose() if bias.ndim == 3 else bias  # [W, H, C]
            neuron = group.create_group("neuron")
            neuron["type"] = "CUBA"
            neuron["iDecay"] = target["du"] + 1
            neuron["vDecay"] = target["dv"]
            neuron["vThMant"] = target["vth"]


def hand_computed():
    """A conv and a dense layer on two 2x3 images, with every spike computed by hand.

    Kernel [1 2] (cross-correlation), leak 1/2, threshold 10, T = 2. Image 0 gives the sums
    5 8 / 14 17: 14 and 17 fire twice, 8 in step 2 (8/2 + 8 = 12), 5 never. Image 1 gives 6 0 / 0 6:
    none fires (6/2 + 6 = 9), unless the state that image 0 left is still there (6.75, 10.875).
    """
    images = np.array([[[[1, 2, 3], [4, 5, 6]]], [[[6, 0, 0], [0, 0, 3]]]], np.uint8)
    network = document(
        (1, 2, 3),
        2,
        [
            population("lif", (1, 2, 2), 1, 2, vth=10, dv=2048),
            population("fc", (2,), 2, 2, vth=131071, spiking=False),
        ],
        [connection("input", "lif", "w.lif", "conv", bits=8), connection("lif", "fc", "w.fc")],
    )
    arrays = {
        "input_table": np.arange(256, dtype=np.int32)[None],
        "w.lif": np.array([[[[1, 2]]]], np.int32),
        "w.fc": np.array([[1, 2, 4, 8], [-1, 3, -5, 7]], np.int32),
    }
    spikes = np.zeros((2, 2, 1, 2, 2), np.uint8)  # [T, N, C, H, W]
    spikes[0, 0, 0] = [[0, 0], [1, 1]]
    spikes[1, 0, 0] = [[0, 1], [1, 1]]
    readout = 64 * np.array([[12 + 14, 2 + 5], [0, 0]])
    return network, arrays, images, spikes, readout


def asymmetric_chain():
    """Two convs with asymmetric kernels, strides and paddings on a 5x7 map, biases, a dense."""
    T, rng = 3, np.random.default_rng(0)
    network = document(
        (2, 5, 7),
        T,
        [
            population("l1", (4, 5, 3), 1, T, vth=1500, dv=2048, bias="b.l1"),
            population("l2", (6, 2, 3), 2, T, vth=60, dv=1024, bias="b.l2"),
            population("l3", (7,), 3, T, vth=40, dv=3072, du=1000, bias="b.l3"),
            population("fc", (5,), 4, T, vth=131071, bias="b.fc", spiking=False),
        ],
        [
            connection("input", "l1", "w.l1", "conv", 8, stride=[1, 2], padding=[1, 0], groups=2),
            connection("l1", "l2", "w.l2", "conv", stride=[2, 1], padding=[0, 1]),
            connection("l2", "l3", "w.l3"),
            connection("l3", "fc", "w.fc"),
        ],
    )
    arrays = {
        "input_table": rng.integers(-127, 128, (2, 256)),
        "w.l1": rng.integers(-30, 31, (4, 1, 3, 2)),
        "w.l2": rng.integers(-60, 61, (6, 4, 2, 3)),
        "w.l3": rng.integers(-99, 100, (7, 36)),
        "w.fc": rng.integers(-99, 100, (5, 7)),
        "b.l1": rng.integers(-300, 300, 4),
        "b.l2": rng.integers(-50, 50, (6, 2, 3)),
        "b.l3": rng.integers(-50, 50, 7),
        "b.fc": rng.integers(-50, 50, 5),
    }
    return network, arrays, rng.integers(0, 256, (4, 2, 5, 7)).astype(np.uint8)


def two_paths():
    """Two populations of equal depth that both end in a third: a sum of two connections.

    One path is a conv, the other a dense layer into the same map, so both views of a map are used.
    """
    T, rng = 4, np.random.default_rng(1)
    network = document(
        (1, 4, 6),
        T,
        [
            population("a", (2, 4, 5), 1, T, vth=900, dv=2048),
            population("b", (9,), 1, T, vth=900, dv=2048),
            population("sum", (3, 2, 5), 2, T, vth=70, dv=2048, bias="b.sum"),
            population("fc", (4,), 3, T, vth=131071, spiking=False),
        ],
        [
            connection("input", "a", "w.a", "conv", 8),
            connection("input", "b", "w.b", bits=8),
            connection("a", "sum", "w.a_sum", "conv", stride=[2, 1], padding=[1, 0]),
            connection("b", "sum", "w.b_sum"),
            connection("sum", "fc", "w.fc"),
        ],
    )
    arrays = {
        "input_table": rng.integers(-127, 128, (1, 256)),
        "w.a": rng.integers(-30, 31, (2, 1, 1, 2)),
        "w.b": rng.integers(-30, 31, (9, 24)),
        "w.a_sum": rng.integers(-60, 61, (3, 2, 4, 1)),
        "w.b_sum": rng.integers(-60, 61, (30, 9)),
        "w.fc": rng.integers(-99, 100, (4, 30)),
        "b.sum": rng.integers(-20, 20, 3),
    }
    return network, arrays, rng.integers(0, 256, (3, 1, 4, 6)).astype(np.uint8)
