"""Random integer networks, as `network.json` documents with their arrays, whose populations fire.

Thresholds are set from what the slow model computes on the images of `random_images`, layer by
layer; weights are halved until nothing wraps or clips there.
"""

import numpy as np
import slow_loihi

NO_SPIKE = 131071
DECAYS = (0, 2048, 2048, 1024, 3072, 4096, 4095, 1, None)  # None: any


def random_images(document, seed, count=2):
    """Images [N, C, H, W] that the network of the same seed fires for."""
    shape = tuple(reversed(document["input"]["shape_whc"]))
    rng = np.random.default_rng([seed, 1])
    return rng.integers(0, 256, (count, *shape)).astype(np.uint8)


def random_integer_network(seed):
    """Return (document, arrays) of a chain of conv and dense populations and a read-out."""
    rng = np.random.default_rng([seed, 0])
    shape = (int(rng.integers(1, 4)), int(rng.integers(4, 8)), int(rng.integers(4, 8)))
    document, arrays = empty(rng, shape)
    images = random_images(document, seed)
    source = "input"
    hidden = [*["conv"] * int(rng.integers(0, 4)), *["dense"] * int(rng.integers(0, 3))] or ["conv"]
    for kind in hidden:
        shape = _add(document, arrays, rng, kind, source, shape)
        source = document["populations"][-1]["name"]
        tame(document, arrays, images)
        fire(document, arrays, images, rng)
    _add(document, arrays, rng, "dense", source, shape, readout=True)
    last = document["populations"][-1]
    document["readout"] = {
        "population": last["name"],
        "divisor": 64 * last["scale"] * document["T"],
    }
    tame(document, arrays, images)
    return document, arrays


def fires_everywhere(document, spikes):
    """Whether every spiking population spikes at least once and not always."""
    return all(
        0 < spikes[entry["name"]].mean() < 1
        for entry in document["populations"]
        if entry["spiking"]
    )


def empty(rng, shape):
    table = rng.integers(-127, 128, (shape[0], 256)).astype(np.int32)
    document = {
        "schema": 1,
        "tool_version": "test",
        "profile": "loihi2",
        "T": int(rng.integers(1, 9)),
        "input": {
            "encoding": "signed_q",
            "bits": 8,
            "scale": 1.0,
            "mean": [0.0] * shape[0],
            "std": [1.0] * shape[0],
            "table_key": "input_table",
            "shape_whc": list(reversed(shape)),
        },
        "populations": [],
        "connections": [],
        "axes": {},
    }
    return document, {"input_table": table}


def pick(rng, choices):
    return choices[int(rng.integers(len(choices)))]


def geometry(rng, shape):
    """Return kernel, stride, padding, dilation with at least one output position."""
    while True:
        kernel = [int(rng.integers(1, 4)) for _ in range(2)]
        stride = [int(rng.integers(1, 3)) for _ in range(2)]
        padding = [int(rng.integers(0, 3)) for _ in range(2)]
        dilation = [int(rng.integers(1, 3)) for _ in range(2)]
        size = [
            (shape[1 + i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
            for i in range(2)
        ]
        if min(size) >= 1:
            return kernel, stride, padding, dilation, size


def weights(rng, shape, graded):
    limit = 24 if graded else 127
    weight = np.clip(np.rint(rng.normal(0, limit / 2.5, shape)), -limit, limit).astype(np.int32)
    return _mixed(weight)


def _mixed(weight):
    """Give the matrix both signs: Lava treats matrices of one sign by other rules."""
    flat = weight.reshape(-1)
    if flat.size > 1:
        flat[0], flat[-1] = max(1, abs(flat[0])), -max(1, abs(flat[-1]))
    return weight


def _add(document, arrays, rng, kind, source, shape, readout=False):
    """Append one population and the connection into it; returns its shape."""
    index = len(document["populations"]) + 1
    name = "readout" if readout else f"lif{index}"
    node = f"{'conv' if kind == 'conv' else 'fc'}{index}"
    stride, padding, dilation, groups = [1, 1], [0, 0], [1, 1], 1
    if kind == "conv":
        kernel, stride, padding, dilation, size = geometry(rng, shape)
        groups = pick(rng, [1, 1, shape[0]] + ([2] if shape[0] % 2 == 0 else []))
        channels = groups * int(rng.integers(1, 4 if groups < 4 else 2))
        weight_shape = (channels, shape[0] // groups, *kernel)
        result = (channels, *size)
    else:
        result = (int(rng.integers(2, 13)),)
        weight_shape = (result[0], int(np.prod(shape)))
    arrays[f"w.{node}"] = weights(rng, weight_shape, source == "input")
    append_population(document, arrays, rng, name, result, index, readout)
    append_connection(
        document,
        source,
        name,
        f"w.{node}",
        kind,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
    )
    return result


def append_population(document, arrays, rng, name, shape, depth, readout):
    """Append a population with random decays and bias; its threshold is set later, if at all."""
    bias_key, bias_exp = None, 6
    if rng.random() < 0.6:
        bias_key, bias_exp = f"b.{name}", int(pick(rng, [6, 6, 6, 3, 0, 7]))
        per_channel = len(shape) == 3 and rng.random() < 0.5
        span = 60 if bias_exp >= 6 else 2000
        arrays[bias_key] = rng.integers(
            -span, span + 1, shape[:1] if per_channel else shape
        ).astype(np.int32)
    dv = pick(rng, DECAYS)
    document["populations"].append(
        {
            "name": name,
            "node": name,
            "shape_whc": list(reversed(shape)),
            "du": 4095 if rng.random() < 0.6 else int(pick(rng, [0, 2047, 3000, 1023, 4094, -1])),
            "dv": int(rng.integers(0, 4097)) if dv is None else dv,
            "vth": NO_SPIKE,
            "bias_exp": bias_exp,
            "bias_key": bias_key,
            "reset_interval": document["T"],
            "reset_offset": (1 + depth) % document["T"],
            "depth": depth,
            "scale": float(rng.uniform(10, 500)),
            "spiking": not readout,
        }
    )


def append_connection(document, source, target, key, kind, delay=0, **geometry):
    number = sum(entry["weight_key"] == key for entry in document["connections"])
    name = key.removeprefix("w.") + (f"_{number}" if number else "")
    document["connections"].append(
        {
            "name": name,
            "node": name,
            "source": source,
            "target": target,
            "kind": kind,
            "weight_key": key,
            "stride": geometry.get("stride", [1, 1]),
            "padding": geometry.get("padding", [0, 0]),
            "dilation": geometry.get("dilation", [1, 1]),
            "groups": geometry.get("groups", 1),
            "delay": delay,
            "message_bits": 8 if source == "input" else 0,
            "weight_exp": 0,
        }
    )


def _own_weights(document):
    """The weight keys of the newest population, each once."""
    last = document["populations"][-1]["name"]
    return {e["weight_key"]: None for e in document["connections"] if e["target"] == last}


def _probe(document, arrays, images):
    """Run up to the newest population; returns its potentials and whether it left its range."""
    last = document["populations"][-1]["name"]
    partial = document | {"readout": {"population": last, "divisor": 1.0}}
    _, potentials, _, overflows = slow_loihi.trace(partial, arrays, images)
    return potentials[last], any(overflows[last])


def tame(document, arrays, images):
    """Halve the newest weights and bias until nothing wraps or clips, with some room."""
    last = document["populations"][-1]
    while True:
        potentials, overflow = _probe(document, arrays, images)
        if not overflow and np.abs(potentials).max() < 6_000_000:
            return
        for key in _own_weights(document):
            arrays[key] = _mixed((arrays[key] / 2).astype(np.int32))
        if last["bias_key"] is not None:
            arrays[last["bias_key"]] = (arrays[last["bias_key"]] / 2).astype(np.int32)


def fire(document, arrays, images, rng):
    """Set the newest threshold so that some, not all, neurons fire."""
    last = document["populations"][-1]
    if _peaks(document, arrays, images, 0.6) < 128:  # nearly all inhibited: turn the signs around
        for name in (*_own_weights(document), last["bias_key"]):
            if name is not None:
                arrays[name] = -arrays[name]
    height = _peaks(document, arrays, images, rng.uniform(0.2, 0.7)) / 64
    last["vth"] = int(np.clip(height - 1, 0, NO_SPIKE - 1))


def _peaks(document, arrays, images, quantile):
    potentials, _ = _probe(document, arrays, images)
    return np.quantile(potentials.max(axis=0), quantile)
