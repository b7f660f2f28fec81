"""A slow, literal model of a pipelined Loihi in int64, as the judge of the batched engine.

It knows nothing of the package: it takes the JSON document and the arrays, steps a global clock
t = 1, 2, ..., sends every message through its connection with one step (plus `delay`) of latency,
resets each population in its own phase, and streams all samples through one running network.
"""

import numpy as np

WRAP, CLIP = 1 << 23, (1 << 23) - 1


def toward_zero(state, factor):
    """tz(state * factor / 4096), the magnitude shifted right by 12."""
    product = state * factor
    return np.sign(product) * (np.abs(product) >> 12)


def conv_sum(message, entry, weight, shape):
    """Weighted sums [O, H', W'] of a message [C, H, W], one kernel tap after the other."""
    (sy, sx), (py, px) = entry["stride"], entry["padding"]
    (dy, dx), groups = entry["dilation"], entry["groups"]
    padded = np.pad(message, ((0, 0), (py, py), (px, px)))
    outputs, per_group, kh, kw = weight.shape
    result = np.zeros((groups, outputs // groups, shape[1] * shape[2]), np.int64)
    for i in range(kh):
        for j in range(kw):
            seen = padded[:, i * dy :: sy, j * dx :: sx][:, : shape[1], : shape[2]]
            tap = weight[:, :, i, j].reshape(groups, -1, per_group)
            result += tap @ seen.reshape(groups, per_group, -1)
    return result.reshape(shape)


def arriving(entry, weight, message, shape):
    """What a connection adds to a target of `shape` for one message of its source.

    A `sparse_delay` is a convolution or a dense matrix like any other, sent synapse by synapse.
    """
    if entry["message_bits"] == 0:
        message = (message != 0).astype(np.int64)
    kind = entry["kind"]
    if kind == "sparse_delay":
        kind = {4: "conv", 2: "dense"}[weight.ndim]
    if kind == "dense":
        return (weight @ message.reshape(-1)).reshape(shape)
    assert kind == "conv", kind
    return conv_sum(message, entry, weight, shape)


def host_mantissas(document, weights, messages, shape, name):
    """What the host adds to the biases of a population for each image, [N, ...]; None: nothing.

    One sum, one rounding (half up, by an arithmetic shift) per connection and neuron.
    """
    total = None
    for entry in document["connections"]:
        if entry["target"] == name and "host_shift" in entry:
            weight, shift = weights[entry["weight_key"]], entry["host_shift"]
            graded = entry | {"message_bits": 32}
            sums = np.array([arriving(graded, weight, m, shape) for m in messages])
            part = (sums + ((1 << shift) >> 1)) >> shift
            total = part if total is None else total + part
    return total


def read_out(readout, spikes, potentials):
    """Logits [N, K] of a population's spikes and potentials before reset, both [T, N, K]."""
    kind = readout.get("kind", "potential")
    value = {
        "potential": lambda: potentials[-1],
        "potentials": lambda: potentials.sum(axis=0),
        "spikes": lambda: spikes.sum(axis=0),
    }[kind]()
    return value / readout["divisor"]


class Neurons:
    """State of one population."""

    def __init__(self, entry, arrays):
        self.entry = entry
        self.shape = tuple(reversed(entry["shape_whc"]))
        self.bias = np.zeros(self.shape, np.int64)
        if entry["bias_key"] is not None:
            mantissa = arrays[entry["bias_key"]].astype(np.int64)
            if mantissa.ndim == 1 and len(self.shape) == 3:
                mantissa = mantissa.reshape(-1, 1, 1)
            self.bias = self.bias + mantissa * 2 ** entry["bias_exp"]
        self.u = np.zeros(self.shape, np.int64)
        self.v = np.zeros(self.shape, np.int64)
        self.wraps = self.clips = 0

    def step(self, t, a, host=0):
        """One step of LIFReset, with what the host has added to the bias mantissa.

        Returns spikes and the voltage before the reset.
        """
        e = self.entry
        if t % e["reset_interval"] == e["reset_offset"] % e["reset_interval"]:
            self.u[...] = 0
            self.v[...] = 0
        c = toward_zero(self.u, 4096 - (e["du"] + 1)) + a * 64
        self.u = np.where(c > WRAP, c - 2 * WRAP, np.where(c <= -WRAP, c + 2 * WRAP, c))
        w = toward_zero(self.v, 4096 - e["dv"]) + self.u + self.bias
        w = w + host * 2 ** e["bias_exp"]
        h = np.clip(w, -CLIP, CLIP)
        self.wraps += int((self.u != c).sum())
        self.clips += int((h != w).sum())
        spikes = (h > e["vth"] * 64).astype(np.int64)
        self.v = np.where(spikes == 1, 0, h)
        return spikes, h


def run(document, arrays, images):
    """Stream images [N, C, H, W] through the pipeline.

    Returns spikes {population: [T, N, ...]}, potentials before reset (same axes), logits [N, K].
    """
    spikes, potentials, logits, _ = trace(document, arrays, images)
    return spikes, potentials, logits


def trace(document, arrays, images):
    """Like `run`, and the number of wrapped u and clipped v per population as a fourth result."""
    steps, count = document["T"], len(images)
    table = arrays[document["input"]["table_key"]].astype(np.int64)
    messages = np.stack([table[c][images[:, c]] for c in range(images.shape[1])], 1)
    neurons = {e["name"]: Neurons(e, arrays) for e in document["populations"]}
    keys = {entry["weight_key"] for entry in document["connections"]}
    weights = {key: arrays[key].astype(np.int64) for key in keys}
    depth = {e["name"]: e["depth"] for e in document["populations"]}
    # The host writes image k before the step in which its first spikes would reach the population.
    host = {
        name: host_mantissas(document, weights, messages, item.shape, name)
        for name, item in neurons.items()
    }
    sent = {"input": []} | {name: [] for name in neurons}  # sent[s][t - 1] at step t
    potential = {name: [] for name in neurons}
    for t in range(1, steps * count + max(depth.values()) + 1):
        sent["input"].append(messages[min((t - 1) // steps, count - 1)])
        for name, population in neurons.items():
            a = np.zeros(population.shape, np.int64)
            for entry in document["connections"]:
                if "host_shift" in entry:
                    continue
                origin = t - 1 - entry["delay"]  # the step in which the message was sent
                if entry["target"] == name and origin >= 1:
                    message = sent[entry["source"]][origin - 1]
                    a += arriving(entry, weights[entry["weight_key"]], message, population.shape)
            added, now = 0, (t - 1 - depth[name]) // steps
            if host[name] is not None and now >= 0:
                added = host[name][min(now, count - 1)]
            spikes, h = population.step(t, a, added)
            sent[name].append(spikes)
            potential[name].append(h)

    def window(track, name):
        shape = (count, steps, *neurons[name].shape)
        part = np.array(track[name][depth[name] : depth[name] + steps * count])
        return part.reshape(shape).swapaxes(0, 1)

    last = document["readout"]["population"]
    logits = read_out(document["readout"], window(sent, last), window(potential, last))
    return (
        {name: window(sent, name) for name in neurons},
        {name: window(potential, name) for name in neurons},
        logits,
        {name: (population.wraps, population.clips) for name, population in neurons.items()},
    )
