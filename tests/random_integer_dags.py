"""Random integer networks that are no chains: several connections into a population, and delays.

Paths of different length meet: what is early waits in relays (populations without a node, one step
each) or in the synapses (`sparse_delay`). Some connections share their weights. On every edge
depth(target) = depth(source) + 1 + delay.
"""

import numpy as np
import random_integer_networks as chains
from random_integer_networks import pick, random_images

LONGEST_DELAY = 3
READOUTS = ("potential", "potentials", "spikes")


def random_integer_dag(seed, image_delays=True):
    """Return (document, arrays); with `image_delays` the image, too, may arrive late."""
    rng = np.random.default_rng([seed, 2])
    shape = (int(rng.integers(1, 3)), int(rng.integers(4, 7)), int(rng.integers(4, 7)))
    document, arrays = chains.empty(rng, shape)
    images = random_images(document, seed)
    sent = [("input", shape, 0)]  # name, shape and depth of everything that sends messages
    for number in range(1, int(rng.integers(2, 6)) + 1):
        kind = pick(rng, ["conv", "conv", "dense"] if len(sent[-1][1]) == 3 else ["dense"])
        _grow(document, arrays, rng, sent, f"lif{number}", kind, image_delays)
        chains.tame(document, arrays, images)
        chains.fire(document, arrays, images, rng)
    kind = pick(rng, READOUTS)
    _grow(document, arrays, rng, sent, "readout", "dense", image_delays, readout=True)
    chains.tame(document, arrays, images)
    last = document["populations"][-1]
    if kind == "spikes":
        last["spiking"] = True
        chains.fire(document, arrays, images, rng)
    divisor = document["T"] * (1 if kind == "spikes" else 64 * last["scale"])
    document["readout"] = {"population": "readout", "kind": kind, "divisor": float(divisor)}
    return document, arrays


def late_edges(document):
    """Connections that are not one step behind: number of delays, relays and shared weights."""
    keys = [entry["weight_key"] for entry in document["connections"]]
    return {
        "delays": sum(entry["delay"] > 0 for entry in document["connections"]),
        "relays": sum(entry["node"] is None for entry in document["populations"]),
        "shared": len(keys) - len(set(keys)),
    }


def _grow(document, arrays, rng, sent, name, kind, image_delays, readout=False):
    """Append population `name` with one to three connections, and the relays that it needs."""
    source, shape, depth = sent[-1]
    late = int(rng.random() < 0.2) if image_delays or source != "input" else 0
    depth += 1 + late
    others = [item for item in sent[:-1] if depth - item[2] - 1 <= LONGEST_DELAY]
    if not image_delays:
        others = [item for item in others if item[0] != "input"]
    count = min(len(others), int(rng.integers(0, 3)))
    incoming = [sent[-1], *(others[i] for i in rng.permutation(len(others))[:count])]
    first = _edge(rng, kind, shape)
    result = first["shape"]
    edges = [first]
    for _, given, _ in incoming[1:]:
        edges.append(_edge(rng, kind, given, result))
    waiting = [_waited(document, arrays, rng, item, depth) for item in incoming]
    chains.append_population(document, arrays, rng, name, result, depth, readout)
    known = {}
    for number, (edge, (source, _, sender)) in enumerate(zip(edges, waiting, strict=True)):
        graded = source == "input"
        alike = (edge["weight"], str(edge["geometry"]), graded)
        key = known.get(alike)
        if key is None or rng.random() < 0.3:
            key = known[alike] = f"w.{name}_{number}"
            arrays[key] = chains.weights(rng, edge["weight"], graded)
        delay = depth - sender - 1
        sort = "sparse_delay" if delay else edge["kind"]
        chains.append_connection(document, source, name, key, sort, delay, **edge["geometry"])
    sent.append((name, result, depth))


def _edge(rng, kind, given, result=None):
    """A connection from shape `given`, of its own choice or to shape `result`."""
    if kind == "conv" and len(given) == 3:
        found = _convolution(rng, given, result)
        if found is not None:
            return found
    result = result or (int(rng.integers(2, 13)),)
    weight = (int(np.prod(result)), int(np.prod(given)))
    return {"kind": "dense", "weight": weight, "shape": result, "geometry": {}}


def _convolution(rng, given, result):
    """A kernel that maps the given map to the wanted one, or None."""
    for _ in range(20):
        if result is None and rng.random() < 0.5:  # a map of the same size, so that others fit
            kernel, stride, padding, dilation, size = [3, 3], [1, 1], [1, 1], [1, 1], given[1:]
        elif result is not None and given[1:] == result[1:]:
            edge = int(pick(rng, [1, 3, 3]))
            kernel, padding = [edge, edge], [edge // 2] * 2
            stride, dilation, size = [1, 1], [1, 1], given[1:]
        else:
            kernel, stride, padding, dilation, size = chains.geometry(rng, given)
        if result is not None and tuple(size) != tuple(result[1:]):
            continue
        groups = pick(rng, [1, 1, given[0]])
        if result is not None and result[0] % groups:
            groups = 1
        channels = result[0] if result else groups * int(rng.integers(1, 4 if groups < 4 else 2))
        return {
            "kind": "conv",
            "weight": (channels, given[0] // groups, *kernel),
            "shape": (channels, *size),
            "geometry": {
                "stride": stride,
                "padding": padding,
                "dilation": dilation,
                "groups": groups,
            },
        }
    return None


def _waited(document, arrays, rng, item, depth):
    """Return `item`, or the last of the relays that hold its spikes back for some of the way."""
    source, shape, sender = item
    wait = depth - sender - 1
    if wait == 0 or source == "input" or rng.random() < 0.5:
        return item
    for _ in range(int(rng.integers(1, wait + 1))):
        sender += 1
        relay = f"{source}_at{sender}"
        if relay not in {entry["name"] for entry in document["populations"]}:
            _relay(document, arrays, rng, source, shape, relay, sender)
        source = relay
    return source, shape, sender


def _relay(document, arrays, rng, source, shape, name, depth):
    """A memoryless population that sends at each step what it was sent."""
    key = f"w.copy{'x'.join(map(str, shape))}"
    geometry = {"groups": shape[0]} if len(shape) == 3 else {}
    weight = np.ones((shape[0], 1, 1, 1)) if geometry else np.eye(shape[0])
    arrays[key] = (64 * weight).astype(np.int32)
    document["populations"].append(
        {
            "name": name,
            "node": None,
            "shape_whc": list(reversed(shape)),
            "du": 4095,
            "dv": 4096,
            "vth": int(rng.integers(1, 64)),
            "bias_exp": 6,
            "bias_key": None,
            "reset_interval": document["T"],
            "reset_offset": (1 + depth) % document["T"],
            "depth": depth,
            "scale": 1.0,
            "spiking": True,
        }
    )
    kind = "conv" if geometry else "dense"
    chains.append_connection(document, source, name, key, kind, **geometry)
