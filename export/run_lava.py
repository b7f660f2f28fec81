#!/usr/bin/env python3
"""Run a bundle in Lava and write what every neuron did to a trace.

    python run_lava.py BUNDLE TRACE.npz [--network raw|netx] [--images golden|FILE.npz] [--limit N]
                       [--run-config sim|hardware] [--timing]

Needs Python 3.10 and requirements-lava.txt, nothing of stars-deploy. `raw` builds the processes
that loihi/network.json describes, `netx` lets lava-dl build them from loihi/network.net. Images
are streamed back to back: a population of depth d integrates image k, counting steps from 1, in
steps k*T + 1 + d .. (k + 1)*T + d, and is reset in the first of them, so N images take N*T + L
steps for a read-out of depth L.

With input encoding `host_bias` (targets without graded spikes) no image is sent: this script
computes what it gives to each population, in integers, and writes it to the population's biases
(`bias_mant`) before its first step for that image. That takes a pause of the network per image and
depth. Lava's simulation allows it; whether a board does has not been tried. NetX cannot do it.

Trace: `info` (JSON: engine, versions, timings, sizes), `manifest_sha256` of the bundle, `images`
uint8 [N, C, H, W], `spikes.<population>` uint8 [T, N, C, H, W] or [T, N, n], `readout.v` int64
[N, K] (voltage after T steps, or summed over them, in 1/64 weight units), `readout.saturated` bool
[N], `logits` float32 [N, K], `seal` (SHA-256 over all of these: it shows accidents and careless
edits, it is no signature). With --timing nothing is recorded: only `info`, `manifest_sha256`,
`images` and `seal`.

Exit codes: 0 done; 1 Lava failed; 2 the bundle or the images are not usable; 5 Lava, or the
extension for boards, is not installed.
"""

import argparse
import contextlib
import hashlib
import json
import lzma
import math
import multiprocessing
import os
import platform
import sys
import tempfile
import time
import tokenize
import zipfile
import zlib
from importlib import metadata
from pathlib import Path

import numpy as np

SCHEMA = 1  # of network.json
TRACE_SCHEMA = 2
MAX_THRESHOLD = 131071  # 17 bits
MAX_DELAY = 62
MAX_SHIFT = 31
HOST_BIAS = "host_bias"
ENCODINGS = ("signed_q", "pixel_u8", HOST_BIAS)
BIAS_RANGE = (-4096, 4095)  # 12 bits and the sign
MAX_STEPS = 1024
MAX_RUN = 1 << 26  # neurons of one population times T
POPULATION = (
    ("vth", 0, MAX_THRESHOLD), ("du", -1, 4095), ("dv", 0, 4096), ("bias_exp", 0, 7),
    ("reset_interval", 1, 1 << 16), ("reset_offset", 0, 1 << 16), ("depth", 1, 1 << 16),
)  # fmt: skip
INT8_LIMIT = 127  # Lava's Conv keeps kernel size, stride, padding, dilation and groups as int8


class KitError(Exception):
    """The bundle or the images cannot be run; the message says why."""


# What json, zipfile, zlib and NumPy raise for a damaged file.
DAMAGE = (
    OSError, ValueError, KeyError, EOFError, AttributeError, TypeError, RuntimeError,
    MemoryError, OverflowError, SyntaxError, tokenize.TokenError, lzma.LZMAError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip


# ---- files ---------------------------------------------------------------------------------


def load_document(bundle):
    """Return loihi/network.json and the arrays of loihi/network.npz."""
    folder = Path(bundle) / "loihi"
    try:
        document = json.loads((folder / "network.json").read_text(encoding="utf-8"))
        with open(folder / "network.npz", "rb") as stream, np.load(stream) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except FileNotFoundError as problem:
        remedy = "write it with `stars-deploy export ... --target loihi`"
        raise KitError(f"{problem.filename}: no such file; {remedy}") from None
    except DAMAGE as problem:
        raise KitError(f"{folder}: not readable ({problem})") from None
    try:
        check_document(document, arrays)
    except (KeyError, IndexError, TypeError, AttributeError, OverflowError) as problem:
        raise KitError(f"{folder}: incomplete or malformed ({problem!r})") from None
    return document, arrays


def check_document(document, arrays):
    """Refuse what this kit cannot run, and what Lava would change without a word."""
    if document["schema"] != SCHEMA:
        raise KitError(f"network.json: schema {document['schema']!r}, this kit reads {SCHEMA}")
    require_whole("T", document["T"], 1, MAX_STEPS)
    check_input(document["input"], arrays)
    shapes = {"input": document["input"]["shape_whc"]}
    for population in document["populations"]:
        if population["name"] in shapes:
            raise KitError(f"two populations are called {population['name']!r}, or one 'input'")
        check_population(population, arrays, document["T"])
        shapes[population["name"]] = population["shape_whc"]
    depths = {"input": 0} | {p["name"]: p["depth"] for p in document["populations"]}
    hosted = document["input"]["encoding"] == HOST_BIAS
    table = arrays[document["input"]["table_key"]]
    known = set()
    for connection in document["connections"]:
        source, target, name = (connection[key] for key in ("source", "target", "name"))
        if source not in shapes or target not in shapes or target == "input":
            raise KitError(f"connection {name!r} does not join two populations")
        if name in known:
            raise KitError(f"two connections are called {name!r}")
        known.add(name)
        if hosted and source == "input":
            check_host_connection(connection, arrays, table)
        else:
            check_connection(connection, arrays)
            if depths[target] != depths[source] + 1 + connection["delay"]:
                apart = f"{depths[source]} -> {depths[target]}"
                raise KitError(f"{name}: depths {apart} do not differ by 1 + delay")
        check_geometry(connection, arrays, shapes[source], shapes[target])
    check_readout(document["readout"], shapes)
    if hosted:
        check_joined(document)


def check_input(entry, arrays):
    """Refuse another encoding, and a table without a message for every pixel value."""
    if entry["encoding"] not in ENCODINGS:
        raise KitError(f"input encoding {entry['encoding']!r}; this kit knows {', '.join(ENCODINGS)}")
    require_shape("input", entry["shape_whc"], 1)
    require_whole("input bits", entry["bits"], 1, 32)
    table = integers("input", entry["table_key"], arrays)
    if len(entry["shape_whc"]) != 3 or table.shape != (entry["shape_whc"][2], 256):
        raise KitError(f"input: shape {entry['shape_whc']} with a table {table.shape}")


def check_readout(entry, shapes):
    """Refuse a read-out that is no population, or that is read in an unknown way."""
    kind, divisor = entry.get("kind", "potential"), entry["divisor"]
    if entry["population"] not in shapes.keys() - {"input"}:
        raise KitError(f"readout: no population is called {entry['population']!r}")
    if kind not in ("potential", "potentials", "spikes") or not 0 < divisor < float("inf"):
        raise KitError(f"readout: kind {kind!r}, divisor {divisor!r}")


def require_whole(what, value, low, high):
    """Refuse what is no integer from `low` to `high`."""
    if type(value) is not int or not low <= value <= high:
        raise KitError(f"{what} is {value!r}, expected an integer {low}..{high}")


def require_shape(name, shape, steps):
    """Refuse a shape that is neither [W, H, C] nor [n], or far beyond any chip."""
    for size in shape:
        require_whole(f"{name}: a size", size, 1, MAX_RUN)
    if len(shape) not in (1, 3) or math.prod(shape) * steps > MAX_RUN:
        raise KitError(f"{name}: shape {shape}; [W, H, C] or [n] of at most {MAX_RUN} / T neurons")


def integers(name, key, arrays):
    """Return an array of network.npz that holds integers."""
    value = arrays[key]
    if value.dtype.kind not in "iu" or not value.size:
        raise KitError(f"{name}: {key} is {value.dtype} {list(value.shape)}, expected integers")
    return value


def check_population(population, arrays, steps):
    """Refuse a threshold or bias that does not fit Lava's integers (it would wrap silently)."""
    name, key = population["name"], population["bias_key"]
    shape = population["shape_whc"]
    require_shape(name, shape, steps)
    for field, low, high in POPULATION:
        require_whole(f"{name}: {field}", population[field], low, high)
    if key is None:
        return
    bias = integers(name, key, arrays)
    if bias.shape not in (tuple(shape[-1:]), tuple(shape[::-1])):
        raise KitError(f"{name}: {key} has shape {bias.shape} for neurons {shape}")
    if max(-int(bias.min()), int(bias.max())) > 32767:
        raise KitError(f"{name}: {key} leaves 16 bits")


def check_connection(connection, arrays):
    """Refuse a weight that the chip cannot hold, or a size that Lava's Conv cannot."""
    name, kind = connection["name"], connection["kind"]
    weight = integers(name, connection["weight_key"], arrays)
    if kind not in ("conv", "dense", "sparse_delay"):
        known = "conv, dense and sparse_delay"
        raise KitError(f"{name}: connection kind {kind!r}, this kit knows {known}")
    longest = MAX_DELAY if kind == "sparse_delay" else 0
    require_whole(f"{name}: delay of {kind}", connection["delay"], 0, longest)
    require_whole(f"{name}: weight_exp", connection["weight_exp"], 0, 0)
    require_whole(f"{name}: message_bits", connection["message_bits"], 0, 32)
    check_window(connection)
    if weight.min() < -128 or weight.max() > 127:
        raise KitError(f"{name}: weights {weight.min()}..{weight.max()}, expected -128..127")
    sizes = [connection["groups"], *weight.shape[2:]]
    for key in ("stride", "padding", "dilation"):
        sizes += connection[key]
    if kind == "conv" and max(sizes) > INT8_LIMIT:
        keys = "kernel, stride, padding, dilation, groups"
        raise KitError(f"{name}: {keys} must be <= {INT8_LIMIT} in Lava; write groups expanded")


def check_window(connection):
    """Refuse groups, strides, paddings and dilations that are none."""
    name = connection["name"]
    require_whole(f"{name}: groups", connection["groups"], 1, 1 << 16)
    for key, low in (("stride", 1), ("padding", 0), ("dilation", 1)):
        for value in connection[key]:
            require_whole(f"{name}: {key}", value, low, 1 << 16)


def check_host_connection(connection, arrays, table):
    """Refuse what the host cannot compute in 64-bit integers."""
    name = connection["name"]
    weight = integers(name, connection["weight_key"], arrays)
    if connection["kind"] not in ("conv", "dense") or connection["delay"]:
        raise KitError(f"{name}: the host computes conv and dense without delay")
    require_whole(f"{name}: host_shift", connection["host_shift"], 0, MAX_SHIFT)
    check_window(connection)
    largest = np.abs(weight.astype(float)).reshape(len(weight), -1).sum(axis=1).max()
    if largest * np.abs(table.astype(float)).max() >= 2.0**62:
        raise KitError(f"{name}: sums of its weights leave 64 bits")


def check_joined(document):
    """Refuse parts that no connection joins: without a source, Lava would run only one of them."""
    joined, rest = {document["readout"]["population"]}, document["connections"]
    while True:
        met = [c for c in rest if c["source"] != "input" and joined & {c["source"], c["target"]}]
        if not met:
            break
        joined |= {end for c in met for end in (c["source"], c["target"])}
        rest = [c for c in rest if c not in met]
    apart = sorted({p["name"] for p in document["populations"]} - joined)
    if apart:
        raise KitError(f"no connections lead from {', '.join(apart)} to the read-out")


def check_geometry(connection, arrays, source, target):
    """Refuse weights that do not lead from the source's neurons to the target's."""
    shape, groups = arrays[connection["weight_key"]].shape, connection["groups"]
    dense = connection["kind"] == "dense" or (connection["kind"] != "conv" and len(shape) == 2)
    if dense:
        fits = shape == (math.prod(target), math.prod(source))
    else:
        fits = len(source) == len(target) == 3 and len(shape) == 4
        fits = fits and not (source[2] % groups or target[2] % groups)
        fits = fits and shape[:2] == (target[2], source[2] // groups)
        for axis in (0, 1) if fits else ():
            stride, padding, dilation = (
                connection[key][axis] for key in ("stride", "padding", "dilation")
            )
            left = source[1 - axis] + 2 * padding - dilation * (shape[2 + axis] - 1) - 1
            fits = fits and left >= 0 and left // stride + 1 == target[1 - axis]
    if not fits:
        raise KitError(
            f"{connection['name']}: weights {list(shape)} in {groups} groups, stride "
            f"{connection['stride']}, padding {connection['padding']}, dilation "
            f"{connection['dilation']} do not lead from {source} to {target}"
        )


def load_images(bundle, choice, limit):
    """Return uint8 images [N, C, H, W] from the bundle's golden set or from an npz."""
    path = Path(bundle) / "golden.npz" if choice == "golden" else Path(choice)
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as archive:
            images = archive["images"]
    except DAMAGE as problem:
        raise KitError(f"{path}: expected an npz with `images` ({problem})") from None
    if images.dtype != np.uint8 or images.ndim != 4 or not len(images):
        raise KitError(f"{path}: images are {images.dtype} {images.shape}, not uint8 [N,C,H,W]")
    if limit is not None and not 1 <= limit <= len(images):
        raise KitError(f"--limit {limit}: {path.name} holds {len(images)} images")
    return images[:limit]


def quantise(images, document, arrays):
    """Look up each pixel's message: q[n, c, y, x] = table[c, image[n, c, y, x]]."""
    expected = tuple(document["input"]["shape_whc"][::-1])
    if images.shape[1:] != expected:
        raise KitError(f"images are {images.shape[1:]}, the network takes {expected} (C, H, W)")
    table = arrays[document["input"]["table_key"]].astype(np.int32)
    return np.stack([table[c][images[:, c]] for c in range(len(table))], axis=1)


# ---- image as biases -----------------------------------------------------------------------


def host_biases(document, arrays, messages):
    """Return {population: bias mantissas int16 [N, *shape_whc]} of images as table values."""
    entries = {}
    for connection in document["connections"]:
        if connection["source"] == "input":
            entries.setdefault(connection["target"], []).append(connection)
    populations = [p for p in document["populations"] if p["name"] in entries]
    return {
        p["name"]: np.stack([mantissas(p, entries[p["name"]], arrays, m) for m in messages])
        for p in populations
    }


def mantissas(population, connections, arrays, message):
    """Return the bias mantissas of a population for one image, in the layout of its process.

    Each connection adds c = (S + (2^shift >> 1)) >> shift, S the sum of weight times table value.
    """
    shape = tuple(population["shape_whc"][::-1])
    total = bias_mantissa(population, arrays).astype(np.int64)
    for connection in connections:
        shift = connection["host_shift"]
        sums = host_sums(connection, arrays, message.astype(np.int64), shape)
        total = total + ((sums + ((1 << shift) >> 1)) >> shift).transpose()
    low, high = total.min(), total.max()
    if low < BIAS_RANGE[0] or high > BIAS_RANGE[1]:
        raise KitError(f"{population['name']}: biases {low}..{high}, expected {BIAS_RANGE}")
    return np.ascontiguousarray(total, dtype=np.int16)


def host_sums(connection, arrays, message, shape):
    """Return the sums of a message [C, H, W] for a population of `shape`, in int64."""
    weight = arrays[connection["weight_key"]].astype(np.int64)
    if connection["kind"] == "dense":
        return (weight @ message.reshape(-1)).reshape(shape)
    (sy, sx), (dy, dx) = connection["stride"], connection["dilation"]
    py, px = connection["padding"]
    padded = np.pad(message, ((0, 0), (py, py), (px, px)))
    groups, per_group = connection["groups"], weight.shape[1]
    kernel = weight.reshape(groups, -1, *weight.shape[1:])
    sums = np.zeros((groups, kernel.shape[1], shape[1] * shape[2]), np.int64)
    for i in range(weight.shape[2]):
        for j in range(weight.shape[3]):
            seen = padded[:, i * dy :: sy, j * dx :: sx][:, : shape[1], : shape[2]]
            sums += kernel[..., i, j] @ seen.reshape(groups, per_group, -1)
    return sums.reshape(shape)


# ---- network -------------------------------------------------------------------------------


class Network:
    """Lava processes: `enter` connects an out-port of `input_shape` to the network's inputs."""

    def __init__(self, enter, input_shape, neurons):
        self.enter = enter
        self.input_shape = tuple(input_shape)  # (W, H, C), or (n,) in C, H, W order
        self.neurons = neurons  # population -> LIF process


def to_vector(port):
    """View an out-port as a vector in C, H, W order."""
    return port if len(port.shape) == 1 else port.transpose([2, 1, 0]).flatten()


def to_map(port, shape_whc):
    """View an out-port as [W, H, C]."""
    if len(port.shape) == 3:
        return port
    return port.reshape(tuple(shape_whc[::-1])).transpose([2, 1, 0])


def build_raw(document, arrays):
    """Build the populations and connections of network.json from Lava's own processes."""
    neurons = {p["name"]: neuron_process(p, arrays) for p in document["populations"]}
    shapes = {p["name"]: p["shape_whc"] for p in document["populations"]}
    shapes["input"] = document["input"]["shape_whc"]
    entries = []
    host = document["input"]["encoding"] == HOST_BIAS
    for connection in document["connections"]:
        source, target = connection["source"], connection["target"]
        if host and source == "input":
            continue
        synapse = synapse_process(connection, arrays, shapes[source], shapes[target])
        out, shape = synapse.a_out, shapes[target]
        (to_vector(out) if len(shape) == 1 else to_map(out, shape)).connect(neurons[target].a_in)
        if source == "input":
            entries.append(synapse)
        else:
            feed(neurons[source].s_out, synapse, shapes[source])

    def enter(port):
        for synapse in entries:
            feed(port, synapse, shapes["input"])

    return Network(enter, shapes["input"], neurons)


def feed(port, synapse, shape_whc):
    """Connect spikes to a synapse: dense ones take a vector, convolutions a map."""
    dense = len(synapse.s_in.shape) == 1
    (to_vector(port) if dense else to_map(port, shape_whc)).connect(synapse.s_in)


def neuron_process(population, arrays):
    """Build a population with hard reset whose state is cleared every `reset_interval` steps."""
    from lava.proc.lif.process import LIFReset

    return LIFReset(
        shape=tuple(population["shape_whc"]),
        du=population["du"],
        dv=population["dv"],
        vth=population["vth"],
        bias_mant=bias_mantissa(population, arrays),
        bias_exp=population["bias_exp"],
        reset_interval=population["reset_interval"],
        reset_offset=population["reset_offset"],
        name=population["name"],
    )


def bias_mantissa(population, arrays):
    """Return a population's own bias mantissas in the layout of its process, `shape_whc`."""
    bias = np.zeros(tuple(population["shape_whc"])[::-1], np.int32)  # [C, H, W] or [n]
    if population["bias_key"] is not None:
        value = arrays[population["bias_key"]].astype(np.int32)
        bias += value.reshape(value.shape + (1,) * (bias.ndim - value.ndim))
    return np.ascontiguousarray(bias.transpose())


def synapse_process(connection, arrays, source_whc, target_whc):
    """Build a connection whose effective weights are exactly the integers of network.npz."""
    weight = arrays[connection["weight_key"]].astype(np.int32)
    if connection["kind"] == "sparse_delay":
        from lava.proc.sparse.process import DelaySparse
        from lava.utils.weightutils import SignMode

        matrix = weight_matrix(connection, weight, source_whc, target_whc)
        delays = matrix.copy()
        delays.data[:] = connection["delay"]
        return DelaySparse(
            weights=2 * matrix,  # as for Dense below
            delays=delays,
            weight_exp=-1,
            sign_mode=SignMode.MIXED,
            num_message_bits=connection["message_bits"],
            name=connection["name"],
        )
    if connection["kind"] == "dense":
        from lava.proc.dense.process import Dense
        from lava.utils.weightutils import SignMode

        # Lava floors weights of mixed sign to even numbers (9 bits, the lowest dropped): 2W is
        # even, and the exponent -1 takes the factor back from the sum, exactly.
        return Dense(
            weights=2 * weight,
            weight_exp=-1,
            sign_mode=SignMode.MIXED,
            num_message_bits=connection["message_bits"],
            name=connection["name"],
        )
    from lava.proc.conv.process import Conv

    # Lava convolves (flipped kernel) in [O, KW, KH, I]; the file holds a cross-correlation.
    return Conv(
        weight=np.ascontiguousarray(weight[:, :, ::-1, ::-1].transpose(0, 3, 2, 1)),
        input_shape=tuple(source_whc),
        stride=tuple(connection["stride"][::-1]),
        padding=tuple(connection["padding"][::-1]),
        dilation=tuple(connection["dilation"][::-1]),
        groups=connection["groups"],
        num_message_bits=connection["message_bits"],
        name=connection["name"],
    )


def weight_matrix(connection, weight, source_whc, target_whc):
    """Return the weights as a sparse matrix on vectors in C, H, W order.

    A convolution is the sum over its kernel taps of channel weights times the places they join.
    """
    from scipy import sparse

    if weight.ndim == 2:
        return sparse.csr_matrix(weight, dtype=int)
    outputs, per_group = weight.shape[:2]
    groups = connection["groups"]
    channels = np.zeros((outputs, per_group * groups, *weight.shape[2:]), int)
    for o in range(outputs):
        first = o // (outputs // groups) * per_group
        channels[o, first : first + per_group] = weight[o]
    total = None
    for a in range(weight.shape[2]):
        rows = places(connection, 0, a, source_whc[1], target_whc[1])
        for b in range(weight.shape[3]):
            columns = places(connection, 1, b, source_whc[0], target_whc[0])
            joined = sparse.kron(rows, columns)
            part = sparse.kron(sparse.csr_matrix(channels[:, :, a, b]), joined)
            total = part if total is None else total + part
    matrix = sparse.csr_matrix(total, dtype=int)
    matrix.eliminate_zeros()
    return matrix


def places(connection, axis, tap, given, made):
    """Return the matrix [made, given] of the positions that a kernel tap reads along one axis."""
    from scipy import sparse

    first = tap * connection["dilation"][axis] - connection["padding"][axis]
    read = first + connection["stride"][axis] * np.arange(made)
    seen = np.flatnonzero((read >= 0) & (read < given))
    values = np.ones(len(seen), int)
    return sparse.csr_matrix((values, (seen, read[seen])), shape=(made, given))


def build_netx(document, path):
    """Let lava-dl's NetX build the network of network.net."""
    if document["input"]["encoding"] == HOST_BIAS:
        raise KitError(f"NetX cannot write biases ({HOST_BIAS}); use --network raw")
    if not path.is_file():
        raise KitError(f"{path}: no such file; NetX holds chains only, use --network raw")
    with contextlib.redirect_stdout(sys.stderr):  # lava-dl prints notices when imported
        from lava.lib.dl.netx.hdf5 import Network as NetX

        # Offset 1: the source sends in step 1, so the first block's data arrive in step 2.
        net = NetX(
            net_config=str(path),
            reset_interval=document["T"],
            reset_offset=1,
            input_message_bits=document["input"]["bits"],
        )
    populations = document["populations"]
    shapes = [list(layer.neuron.s_out.shape) for layer in net.layers]
    if shapes != [population["shape_whc"] for population in populations]:
        raise KitError(f"{path.name}: blocks of shapes {shapes} are not those of network.json")
    names = [population["name"] for population in populations]
    neurons = {name: layer.neuron for name, layer in zip(names, net.layers)}
    return Network(lambda port: port.connect(net.inp), net.inp.shape, neurons)


# ---- run -----------------------------------------------------------------------------------


def recorder_model():
    """Return a model for Lava's sink that writes one row per step to a file.

    The sink's own variable would have to be read back through Lava's runtime, which passes one
    number per message: minutes for a few million spikes.
    """
    from lava.magma.core.decorator import implements, requires, tag
    from lava.magma.core.model.py.model import PyLoihiProcessModel
    from lava.magma.core.model.py.ports import PyInPort
    from lava.magma.core.model.py.type import LavaPyType
    from lava.magma.core.resources import CPU
    from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol
    from lava.proc.io.sink import RingBuffer

    @implements(proc=RingBuffer, protocol=LoihiProtocol)
    @requires(CPU)
    @tag("fixed_pt")
    class FileRecorder(PyLoihiProcessModel):
        a_in = LavaPyType(PyInPort.VEC_DENSE, np.int32)
        data = LavaPyType(np.ndarray, np.int32)

        def __init__(self, proc_params):
            super().__init__(proc_params)
            self.rows = np.load(proc_params["path"], mmap_mode="r+")

        def run_spk(self):
            self.rows[self.time_step - 1] = self.a_in.recv().reshape(-1)

    return RingBuffer, FileRecorder


def attach_recorders(network, steps, folder, hardware):
    """Record the spikes of every population; return name -> file of uint8 [steps, neurons]."""
    from lava.proc.io.sink import RingBuffer

    files = {}
    for index, (name, neuron) in enumerate(network.neurons.items()):
        port = neuron.s_out
        files[name] = os.path.join(folder, f"{index}.npy")
        size = (steps, int(np.prod(port.shape)))
        np.lib.format.open_memmap(files[name], mode="w+", dtype=np.uint8, shape=size).flush()
        sink = RingBuffer(shape=port.shape, buffer=1)
        sink.proc_params["path"] = files[name]
        if hardware:
            from lava.proc import embedded_io

            adapter = embedded_io.spike.NxToPyAdapter(shape=port.shape, num_message_bits=0)
            port.connect(adapter.inp)
            port = adapter.out
        port.connect(sink.a_in)
    return files


def attach_source(network, messages, document, hardware):
    """Send image k in steps k*T + 1 .. (k + 1)*T, the same values in each (direct coding)."""
    from lava.proc.io.source import RingBuffer

    values = messages.transpose(0, 3, 2, 1)
    if len(network.input_shape) == 1:
        values = messages.reshape(len(messages), -1)
    source = RingBuffer(data=np.repeat(np.moveaxis(values, 0, -1), document["T"], axis=-1))
    port = source.s_out
    if hardware:
        from lava.proc import embedded_io

        spikes = embedded_io.spike
        kind = spikes.PyToN3ConvAdapter if len(port.shape) == 3 else spikes.PyToNxAdapter
        adapter = kind(shape=port.shape, num_message_bits=document["input"]["bits"])
        port.connect(adapter.inp)
        port = adapter.out
    network.enter(port)
    return source


def run_config(hardware):
    """Return Lava's run configuration: its fixed-point models, or a Loihi 2 board."""
    from lava.magma.core import run_configs
    from lava.utils.loihi import is_installed

    sink, recorder = recorder_model()
    if not hardware:
        return run_configs.Loihi2SimCfg(
            select_tag="fixed_pt", exception_proc_model_map={sink: recorder}
        )
    if not is_installed():
        raise ImportError(
            "--run-config hardware needs Intel's lava-loihi extension, which comes with access "
            "to a Loihi 2 system (INRC): run this script there, or use sim"
        )
    return run_configs.Loihi2HwCfg(exception_proc_model_map={sink: recorder})


@contextlib.contextmanager
def runtime(process, config):
    """Start Lava; stop it in the end, or end its processes where it cannot stop by itself."""
    try:
        process.create_runtime(run_cfg=config)
        yield
        process.stop()
    except BaseException:
        if process.runtime is not None:
            report_failures(process.runtime)
            # A failed or interrupted runtime waits for answers that never come, in stop() and
            # in its destructor, which calls stop().
            process.runtime._is_started = False
        for child in multiprocessing.active_children():
            child.terminate()
        raise


def report_failures(runtime_):
    """Print what went wrong inside Lava's processes; Lava itself only says how often."""
    infrastructure = runtime_._messaging_infrastructure
    for actor in infrastructure.actors if infrastructure else []:
        if actor.exception:
            print(actor.exception[1], file=sys.stderr)


class Clock:
    """Runs Lava, and pauses it wherever the host has biases to write."""

    def __init__(self, process, writings=()):
        """Take a process of the network and (step, process, mantissas), in order of steps."""
        self.process = process
        self.writings = list(writings)
        self.step = 0  # the last one that was run

    def forward(self, steps):
        """Run a number of steps; state and clock continue from the last call."""
        goal = self.step + int(steps)
        while self.writings and self.writings[0][0] < goal:
            when, neuron, mantissas = self.writings.pop(0)
            self._run(when)
            neuron.bias_mant.set(mantissas)
        self._run(goal)

    def _run(self, goal):
        from lava.magma.core.run_conditions import RunSteps

        if goal > self.step:
            self.process.run(condition=RunSteps(num_steps=goal - self.step))
            self.step = goal


def start(network, document, arrays, messages, hardware):
    """Return the clock of a network whose images are sent by a source or written as biases.

    What belongs to image k is written after step k*T + depth of its population, where the last
    step of the image before it is over.
    """
    if document["input"]["encoding"] != HOST_BIAS:
        return Clock(attach_source(network, messages, document, hardware))
    T = document["T"]
    writings = [
        (k * T + depth_of(document, name), network.neurons[name], mantissas)
        for name, images in host_biases(document, arrays, messages).items()
        for k, mantissas in enumerate(images)
    ]
    readout = network.neurons[document["readout"]["population"]]
    return Clock(readout, sorted(writings, key=lambda item: item[0]))


def record(network, document, arrays, messages, hardware, folder):
    """Run all images, recording; return spike files, read-out voltages [N, K] and timings."""
    T, N, readout = document["T"], len(messages), document["readout"]["population"]
    depth, kind = depth_of(document, readout), readout_kind(document)
    config = run_config(hardware)
    files = attach_recorders(network, N * T + depth, folder, hardware)
    clock = start(network, document, arrays, messages, hardware)
    voltages = []
    started = time.perf_counter()
    with runtime(clock.process, config):
        ready = time.perf_counter()
        clock.forward(depth)
        for k in range(N):
            voltages.append(read_sample(clock, network.neurons[readout], kind, T))
            show_progress(k + 1, N)
        ended = time.perf_counter()
    times = {"startup_s": ready - started, "run_s": ended - ready, "steps": N * T + depth}
    return files, np.stack(voltages), times


def readout_kind(document):
    """Return what the logits are read from: potential, potentials (over T) or spikes."""
    return document["readout"].get("kind", "potential")


def read_sample(clock, neuron, kind, T):
    """Run the steps of one image; return the read-out's voltage: the last, or their sum."""
    if kind != "potentials":
        clock.forward(T)
        return neuron.v.get().reshape(-1).astype(np.int64)
    total = 0
    for _ in range(T):
        clock.forward(1)
        total = total + neuron.v.get().reshape(-1).astype(np.int64)
    return total


def measure(network, document, arrays, messages, hardware):
    """Run all images without recording; the rate excludes start-up and the first L steps.

    Writing biases (host_bias) belongs to it, computing them does not.
    """
    T, N = document["T"], len(messages)
    depth = depth_of(document, document["readout"]["population"])
    config = run_config(hardware)
    clock = start(network, document, arrays, messages, hardware)
    started = time.perf_counter()
    with runtime(clock.process, config):
        ready = time.perf_counter()
        clock.forward(depth)
        filled = time.perf_counter()
        clock.forward(N * T)
        ended = time.perf_counter()
    return {
        "startup_s": ready - started,
        "fill_s": filled - ready,
        "run_s": ended - filled,
        "steps": N * T + depth,
        "images_per_second": N / (ended - filled),
        "steps_per_second": N * T / (ended - filled),
    }


def show_progress(done, total):
    """Draw one line on a terminal."""
    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        print(f"\rimage {done}/{total}", end=end, file=sys.stderr, flush=True)


# ---- trace ---------------------------------------------------------------------------------


def depth_of(document, name):
    """Return a population's depth: the connections between the input and it."""
    return {p["name"]: p["depth"] for p in document["populations"]}[name]


def read_spikes(document, files, N):
    """Return every population's spikes, uint8 [T, N, C, H, W] or [T, N, n]."""
    T, spikes = document["T"], {}
    for population in document["populations"]:
        first = population["depth"]  # row 0 is step 1
        rows = np.load(files[population["name"]])[first : first + N * T]
        values = rows.reshape([N, T, *population["shape_whc"]]).swapaxes(0, 1)
        if values.ndim == 5:
            values = values.transpose(0, 1, 4, 3, 2)
        spikes[population["name"]] = np.ascontiguousarray(values)
    return spikes


def run(bundle, images, network="raw", hardware=False, timing=False):
    """Run uint8 images [N, C, H, W] through a bundle; return the arrays of the trace."""
    document, arrays = load_document(bundle)
    messages = quantise(images, document, arrays)
    if network == "netx":
        built = build_netx(document, Path(bundle) / "loihi" / "network.net")
    else:
        built = build_raw(document, arrays)
    trace = {"manifest_sha256": np.array(manifest_sha256(Path(bundle))), "images": images}
    if timing:
        times = measure(built, document, arrays, messages, hardware)
    else:
        with tempfile.TemporaryDirectory(prefix="run_lava.") as folder:
            files, voltages, times = record(built, document, arrays, messages, hardware, folder)
            trace.update(outputs(document, read_spikes(document, files, len(images)), voltages))
    trace["info"] = np.array(json.dumps(describe(document, images, network, hardware, times)))
    trace["seal"] = np.array(seal_of(trace))
    return trace


def manifest_sha256(bundle):
    """Return the SHA-256 of the manifest ("" without one); what ran must be what it lists."""
    try:
        content = (bundle / "manifest.json").read_bytes()
        listed = json.loads(content).get("sha256", {})
        for path in sorted((bundle / "loihi").glob("network.*")):
            name = f"loihi/{path.name}"
            found = hashlib.sha256(path.read_bytes()).hexdigest()
            if listed.get(name, found) != found:
                raise KitError(f"{path}: sha256 is {found}, the manifest lists {listed[name]}")
    except FileNotFoundError:
        return ""
    except DAMAGE as problem:
        raise KitError(f"{bundle / 'manifest.json'}: not readable ({problem})") from None
    return hashlib.sha256(content).hexdigest()


def seal_of(arrays):
    """Return the SHA-256 over every array but the seal: name, dtype, shape and bytes, by name."""
    digest = hashlib.sha256()
    for name in sorted(arrays.keys() - {"seal"}):
        value = np.asarray(arrays[name])
        digest.update(json.dumps([name, value.dtype.str, list(value.shape)]).encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def outputs(document, spikes, voltages):
    """Return the arrays of a recorded run; logits = what is read / divisor."""
    readout = document["readout"]
    fired = spikes[readout["population"]]
    counted = fired.sum(axis=0, dtype=np.int64).reshape(len(voltages), -1)
    counts = readout_kind(document) == "spikes"
    spiking = [p["name"] for p in document["populations"] if p["spiking"]]
    arrays = {f"spikes.{name}": spikes[name] for name in spiking}
    arrays["readout.v"] = voltages
    # A read-out of potentials has the highest threshold: it fires only where it was clipped.
    arrays["readout.saturated"] = np.zeros(len(voltages), bool) if counts else counted.any(axis=1)
    value = counted if counts else voltages
    arrays["logits"] = (value / readout["divisor"]).astype(np.float32)
    return arrays


def describe(document, images, network, hardware, times):
    """Return who ran what, when, and how long it took."""
    lava = lava_versions()
    engine = "lava-netx" if network == "netx" else "lava-fixed_pt"
    return {
        "schema": TRACE_SCHEMA,
        "engine": "loihi2" if hardware else engine,
        "version": lava.get("lava-nc", "unknown"),
        "kind": "measured" if hardware else "simulated",
        "network": network,
        "run_config": "hardware" if hardware else "sim",
        "n": len(images),
        "T": document["T"],
        "populations": [p["name"] for p in document["populations"] if p["spiking"]],
        "timings": times,
        "ended": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": {"python": platform.python_version(), "numpy": np.__version__, **lava},
    }


def lava_versions():
    """Return the versions of Lava's packages, and of its extension for boards if there is one."""
    found = {}
    for package in metadata.distributions():
        name = (package.metadata["Name"] or "").lower().replace("_", "-")
        if name.startswith("lava-"):
            found[name] = package.version
    return dict(sorted(found.items()))


def write_trace(path, trace):
    """Write the trace under a temporary name first: a failed run leaves an earlier one alone."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            np.savez_compressed(stream, **trace)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def arguments():
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--network", choices=("raw", "netx"), default="raw")
    parser.add_argument("--images", default="golden", help="golden, or an npz with `images`")
    parser.add_argument("--limit", type=int, help="the first N images")
    parser.add_argument("--run-config", choices=("sim", "hardware"), default="sim")
    parser.add_argument("--timing", action="store_true", help="report rates, record nothing")
    return parser.parse_args()


def main():
    """Run the command line; return the exit code."""
    options = arguments()
    hardware = options.run_config == "hardware"
    try:
        images = load_images(options.bundle, options.images, options.limit)
        trace = run(options.bundle, images, options.network, hardware, options.timing)
        write_trace(options.trace, trace)
    except KitError as problem:
        print(f"run_lava: {problem}", file=sys.stderr)
        return 2
    except ImportError as problem:
        print(f"run_lava: {problem}", file=sys.stderr)
        return 5
    print(trace["info"].item())
    return 0


if __name__ == "__main__":
    sys.exit(main())
