#!/usr/bin/env python3
"""Run a bundle in Lava and write what every neuron did to a trace.

    python run_lava.py BUNDLE TRACE.npz [--network raw|netx] [--images golden|FILE.npz] [--limit N]
                       [--run-config sim|hardware] [--timing]

Needs Python 3.10 and requirements-lava.txt, nothing of stars-deploy. `raw` builds the processes
that loihi/network.json describes, `netx` lets lava-dl build them from loihi/network.net. Images
are streamed back to back: a population of depth d integrates image k, counting steps from 1, in
steps k*T + 1 + d .. (k + 1)*T + d, and is reset in the first of them, so N images take N*T + L
steps for a read-out of depth L.

Trace: `info` (JSON: engine, versions, timings, sizes), `manifest_sha256` of the bundle,
`image_sha256` [N], `spikes.<population>` uint8 [T, N, C, H, W] or [T, N, n], `readout.v` int32
[N, K] (sum over T, in 1/64 weight units), `readout.saturated` bool [N], `logits` float32 [N, K].
With --timing nothing is recorded: only `info`, `manifest_sha256` and `image_sha256`.

Exit codes: 0 done; 2 the bundle or the images are not usable; 5 Lava is absent or failed.
"""

import argparse
import contextlib
import hashlib
import json
import logging
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

import numpy as np

SCHEMA = 1
MAX_THRESHOLD = 131071  # 17 bits
INT8_LIMIT = 127  # Lava's Conv keeps kernel size, stride, padding, dilation and groups as int8


class KitError(Exception):
    """The bundle or the images cannot be run; the message says what to do."""


class LavaError(Exception):
    """Lava is absent, or failed."""


# ---- files ---------------------------------------------------------------------------------


def load_document(bundle):
    """Return loihi/network.json and the arrays of loihi/network.npz."""
    folder = Path(bundle) / "loihi"
    try:
        document = json.loads((folder / "network.json").read_text(encoding="utf-8"))
        with np.load(folder / "network.npz", allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except FileNotFoundError as problem:
        raise KitError(
            f"{problem.filename}: no such file; write it with "
            "`stars-deploy export ... --target loihi`"
        ) from None
    except (OSError, ValueError) as problem:
        raise KitError(f"{folder}: not readable ({problem})") from None
    check_document(document, arrays)
    return document, arrays


def check_document(document, arrays):
    """Refuse what this kit cannot run, and what Lava would change without a word."""
    if document.get("schema") != SCHEMA:
        raise KitError(f"network.json: schema {document.get('schema')!r}, this kit reads {SCHEMA}")
    encoding = document["input"]["encoding"]
    if encoding not in ("signed_q", "pixel_u8"):
        raise KitError(
            f"network.json: input encoding {encoding!r}; this kit sends graded messages "
            "(signed_q, pixel_u8): export with a profile that has them"
        )
    for population in document["populations"]:
        check_population(population, arrays)
    names = {population["name"] for population in document["populations"]}
    for connection in document["connections"]:
        for end in ("source", "target"):
            if connection[end] not in names | {"input"}:
                raise KitError(
                    f"{connection['name']}: {end} {connection[end]!r} is not a population"
                )
        check_connection(connection, arrays)


def check_population(population, arrays):
    """Refuse a threshold or bias that does not fit Lava's integers (it would wrap silently)."""
    name = population["name"]
    if not 0 <= population["vth"] <= MAX_THRESHOLD:
        raise KitError(f"{name}: vth {population['vth']}, expected 0..{MAX_THRESHOLD}")
    key = population["bias_key"]
    if key is not None and np.abs(arrays[key].astype(np.int64)).max(initial=0) > 32767:
        raise KitError(f"{name}: {key} leaves 16 bits")


def check_connection(connection, arrays):
    """Refuse a weight that the chip cannot hold, or a size that Lava's Conv cannot."""
    name, kind = connection["name"], connection["kind"]
    if kind not in ("conv", "dense"):
        raise KitError(f"{name}: connection kind {kind!r}, this kit knows conv and dense")
    if connection.get("delay", 0):
        raise KitError(f"{name}: delay {connection['delay']}, this kit knows 0")
    weight = arrays[connection["weight_key"]]
    if weight.min(initial=0) < -128 or weight.max(initial=0) > 127:
        raise KitError(f"{name}: weights {weight.min()}..{weight.max()}, expected -128..127")
    if kind == "dense":
        return
    if connection.get("weight_exp", 0):
        raise KitError(f"{name}: weight_exp {connection['weight_exp']}; Lava's Conv ignores it")
    sizes = [connection["groups"], *weight.shape[2:]]
    for key in ("stride", "padding", "dilation"):
        sizes += connection[key]
    if max(sizes) > INT8_LIMIT:
        raise KitError(
            f"{name}: kernel, stride, padding, dilation and groups must be <= {INT8_LIMIT} "
            "in Lava's Conv; write grouped kernels expanded"
        )


def load_images(bundle, choice, limit):
    """Return uint8 images [N, C, H, W] from the bundle's golden set or from an npz."""
    path = Path(bundle) / "golden.npz" if choice == "golden" else Path(choice)
    try:
        with np.load(path, allow_pickle=False) as archive:
            images = archive["images"]
    except (OSError, ValueError, KeyError) as problem:
        raise KitError(f"{path}: expected an npz with `images` ({problem})") from None
    if images.dtype != np.uint8 or images.ndim != 4 or not len(images):
        raise KitError(f"{path}: images are {images.dtype} {images.shape}, expected uint8 [N,C,H,W]")
    if limit is not None and not 1 <= limit <= len(images):
        raise KitError(f"--limit {limit}: {path.name} holds {len(images)} images")
    return images[:limit]


def quantise(images, document, arrays):
    """Look up each pixel's message: q[n, c, y, x] = table[c, image[n, c, y, x]]."""
    width, height, channels = document["input"]["shape_whc"]
    if images.shape[1:] != (channels, height, width):
        raise KitError(
            f"images are {images.shape[1:]}, the network takes {(channels, height, width)} (C, H, W)"
        )
    table = arrays[document["input"]["table_key"]]
    return np.stack([table[c][images[:, c]] for c in range(channels)], axis=1).astype(np.int32)


def file_sha256(path):
    """Return the hex SHA-256 of a file, empty where there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


# ---- network -------------------------------------------------------------------------------


class Network:
    """Lava processes: where messages go in, and the neurons of every population."""

    def __init__(self, connect_input, input_shape, neurons):
        self.connect_input = connect_input  # function: out-port -> None
        self.input_shape = input_shape  # [W, H, C], or [n] in C, H, W order
        self.neurons = neurons  # name -> LIF process

    def flat(self, name):
        """Return whether a population is a vector (C, H, W order) rather than [W, H, C]."""
        return len(self.neurons[name].s_out.shape) == 1


def is_vector(population, document):
    """Return whether a population is built as a vector: only dense connections end in it."""
    shape = population["shape_whc"]
    kinds = {c["kind"] for c in document["connections"] if c["target"] == population["name"]}
    return len(shape) == 1 or (kinds == {"dense"} and list(shape[:2]) == [1, 1])


def as_vector(port, vector):
    """View an out-port [W, H, C] as a vector in C, H, W order."""
    return port if vector else port.transpose([2, 1, 0]).flatten()


def as_map(port, vector, shape_whc):
    """View an out-port that is a vector in C, H, W order as [W, H, C]."""
    return port.reshape(tuple(shape_whc[::-1])).transpose([2, 1, 0]) if vector else port


def build_raw(document, arrays):
    """Build the populations and connections of network.json from Lava's own processes."""
    populations = {p["name"]: p for p in document["populations"]}
    vectors = {name: is_vector(p, document) for name, p in populations.items()}
    neurons = {n: neuron_process(p, arrays, vectors[n]) for n, p in populations.items()}
    shapes = {name: p["shape_whc"] for name, p in populations.items()}
    shapes["input"] = document["input"]["shape_whc"]
    entries = []
    for connection in document["connections"]:
        source, target = connection["source"], connection["target"]
        synapse = synapse_process(connection, arrays, shapes[source])
        is_dense = connection["kind"] == "dense"

        def enter(port, vector, synapse=synapse, is_dense=is_dense, shape=shapes[source]):
            view = as_vector(port, vector) if is_dense else as_map(port, vector, shape)
            view.connect(synapse.s_in)

        if source == "input":
            entries.append(enter)
        else:
            enter(neurons[source].s_out, vectors[source])
        out = synapse.a_out
        if not vectors[target]:
            out = as_map(out, is_dense, shapes[target])
        elif not is_dense:
            out = as_vector(out, False)
        out.connect(neurons[target].a_in)

    def connect_input(port):
        for enter in entries:
            enter(port, False)

    return Network(connect_input, tuple(shapes["input"]), neurons)


def neuron_process(population, arrays, vector):
    """Build a population: u[t] = a[t] << 6 + decayed u, hard reset, cleared every T steps."""
    from lava.proc.lif.process import LIFReset

    width, height, channels = ([1, 1] + list(population["shape_whc"]))[-3:]
    shape = (width * height * channels,) if vector else (width, height, channels)
    bias = np.zeros(shape, np.int32)
    if population["bias_key"] is not None:
        value = arrays[population["bias_key"]].astype(np.int32)
        if not vector:  # [C] or [C, H, W]
            value = np.broadcast_to(value.reshape((channels,) + (value.shape[1:] or (1, 1))),
                                    (channels, height, width)).transpose(2, 1, 0)
        bias[...] = value.reshape(shape)
    return LIFReset(
        shape=shape,
        du=population["du"],
        dv=population["dv"],
        vth=population["vth"],
        bias_mant=bias,
        bias_exp=population["bias_exp"],
        reset_interval=population["reset_interval"],
        reset_offset=population["reset_offset"],
        name=population["name"],
    )


def synapse_process(connection, arrays, source_whc):
    """Build a connection whose effective weights are exactly the integers of network.npz."""
    weight = arrays[connection["weight_key"]].astype(np.int32)
    bits = connection.get("message_bits", 0)
    if connection["kind"] == "dense":
        from lava.proc.dense.process import Dense
        from lava.utils.weightutils import SignMode

        # Mixed-sign weights are floored to even numbers by Lava (9 bits, the lowest dropped):
        # 2W is even, and the exponent -1 takes the factor back from the sum, exactly.
        return Dense(
            weights=2 * weight,
            weight_exp=connection.get("weight_exp", 0) - 1,
            sign_mode=SignMode.MIXED,
            num_message_bits=bits,
            name=connection["name"],
        )
    from lava.proc.conv.process import Conv

    # Lava convolves (flipped kernel) in [O, KW, KH, I]; the file holds a cross-correlation.
    flipped = np.ascontiguousarray(weight[:, :, ::-1, ::-1].transpose(0, 3, 2, 1))
    return Conv(
        weight=flipped,
        input_shape=tuple(([1, 1] + list(source_whc))[-3:]),
        stride=tuple(connection["stride"][::-1]),
        padding=tuple(connection["padding"][::-1]),
        dilation=tuple(connection["dilation"][::-1]),
        groups=connection["groups"],
        num_message_bits=bits,
        name=connection["name"],
    )


def build_netx(document, path):
    """Let lava-dl's NetX build the network of network.net."""
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
    if len(net.layers) != len(populations):
        raise KitError(
            f"{path.name} has {len(net.layers)} blocks, network.json {len(populations)} populations"
        )
    neurons = {p["name"]: layer.neuron for p, layer in zip(populations, net.layers)}
    for population in populations:
        expected, built = population["shape_whc"], neurons[population["name"]].s_out.shape
        if np.prod(expected) != np.prod(built):
            raise KitError(f"{path.name}: {population['name']} is {built}, expected {expected}")
    return Network(lambda port: port.connect(net.inp), net.inp.shape, neurons)


# ---- run -----------------------------------------------------------------------------------


def source_process(network, messages, T):
    """Send image k in steps k*T + 1 .. (k + 1)*T: the same values in each (direct coding)."""
    from lava.proc.io.source import RingBuffer

    vector = len(network.input_shape) == 1
    values = messages.reshape(len(messages), -1) if vector else messages.transpose(0, 3, 2, 1)
    values = values.reshape((len(messages),) + tuple(network.input_shape))
    return RingBuffer(data=np.repeat(np.moveaxis(values, 0, -1), T, axis=-1))


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
        shape = neuron.s_out.shape
        files[name] = os.path.join(folder, f"{index}.npy")
        np.lib.format.open_memmap(
            files[name], mode="w+", dtype=np.uint8, shape=(steps, int(np.prod(shape)))
        ).flush()
        sink = RingBuffer(shape=shape, buffer=1)
        sink.proc_params["path"] = files[name]
        if hardware:
            from lava.proc import embedded_io

            adapter = embedded_io.spike.NxToPyAdapter(shape=shape, num_message_bits=0)
            neuron.s_out.connect(adapter.inp)
            adapter.out.connect(sink.a_in)
        else:
            neuron.s_out.connect(sink.a_in)
    return files


def attach_input(network, source, hardware, bits):
    """Connect the host's messages to the network, on a board through an adapter."""
    port = source.s_out
    if hardware:
        from lava.proc import embedded_io

        spatial = len(network.input_shape) == 3
        kinds = embedded_io.spike
        adapter = (kinds.PyToN3ConvAdapter if spatial else kinds.PyToNxAdapter)(
            shape=network.input_shape, num_message_bits=bits
        )
        port.connect(adapter.inp)
        port = adapter.out
    network.connect_input(port)


def run_config(hardware):
    """Return Lava's run configuration: its fixed-point models, or a Loihi 2 board."""
    sink, recorder = recorder_model()
    if not hardware:
        from lava.magma.core.run_configs import Loihi2SimCfg

        return Loihi2SimCfg(select_tag="fixed_pt", exception_proc_model_map={sink: recorder})
    from lava.magma.core.run_configs import Loihi2HwCfg

    return Loihi2HwCfg(exception_proc_model_map={sink: recorder})


def require_board():
    """Refuse --run-config hardware where Intel's extension for boards is not installed."""
    from lava.utils.loihi import is_installed

    if not is_installed():
        raise LavaError(
            "--run-config hardware: Intel's lava-loihi extension is not installed here; it comes "
            "with access to a Loihi 2 system (INRC). Run this script there, or use sim"
        )


@contextlib.contextmanager
def runtime(process, config):
    """Start Lava; stop it in the end, or end its processes where it cannot stop by itself."""
    try:
        process.create_runtime(run_cfg=config)
        yield
        process.stop()
    except BaseException:
        # A failed or interrupted runtime waits for answers that never come.
        for child in multiprocessing.active_children():
            child.terminate()
        raise


def advance(process, steps):
    """Run a number of steps; state and clock continue from the last call."""
    from lava.magma.core.run_conditions import RunSteps

    process.run(condition=RunSteps(num_steps=int(steps)))


def stream(network, document, messages, hardware, folder):
    """Run all images, recording; return spike files, read-out voltages [N, K] and timings."""
    T, N = document["T"], len(messages)
    readout = network.neurons[document["readout"]["population"]]
    depth = depths(document)[document["readout"]["population"]]
    files = attach_recorders(network, N * T + depth, folder, hardware)
    source = source_process(network, messages, T)
    attach_input(network, source, hardware, document["input"]["bits"])
    started = time.perf_counter()
    voltages = []
    with runtime(source, run_config(hardware)):
        ready = time.perf_counter()
        advance(source, depth)
        for k in range(N):
            advance(source, T)
            voltages.append(np.asarray(readout.v.get()).reshape(-1).astype(np.int32))
            show_progress(k + 1, N)
        ended = time.perf_counter()
    times = {"startup_s": ready - started, "run_s": ended - ready, "steps": N * T + depth}
    return files, np.stack(voltages), times


def measure(network, document, messages, hardware):
    """Run all images without recording; the rate excludes start-up and the first L steps."""
    T, N = document["T"], len(messages)
    depth = depths(document)[document["readout"]["population"]]
    source = source_process(network, messages, T)
    attach_input(network, source, hardware, document["input"]["bits"])
    started = time.perf_counter()
    with runtime(source, run_config(hardware)):
        ready = time.perf_counter()
        advance(source, depth)
        filled = time.perf_counter()
        advance(source, N * T)
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


def depths(document):
    """Return each population's depth: connections from the input to it."""
    return {p["name"]: p["depth"] for p in document["populations"]}


def window(rows, depth, T, N):
    """Cut a population's rows [steps, n] into its images: [T, N, n]."""
    return rows[depth : depth + N * T].reshape(N, T, -1).transpose(1, 0, 2)


def read_spikes(network, document, files, N):
    """Return uint8 spikes per population: [T, N, C, H, W], or [T, N, n] for a vector."""
    T, spikes = document["T"], {}
    for population in document["populations"]:
        name = population["name"]
        values = window(np.load(files[name]), population["depth"], T, N)
        if not network.flat(name):
            values = values.reshape((T, N) + network.neurons[name].s_out.shape)
            values = values.transpose(0, 1, 4, 3, 2)
        elif not is_vector(population, document):
            values = values.reshape((T, N) + tuple(population["shape_whc"][::-1]))
        spikes[name] = np.ascontiguousarray(values)
    return spikes


def run(bundle, images, network="raw", hardware=False, timing=False):
    """Run uint8 images [N, C, H, W] through a bundle; return the arrays of the trace."""
    document, arrays = load_document(bundle)
    messages = quantise(images, document, arrays)
    if hardware:
        require_board()
    if network == "netx":
        built = build_netx(document, Path(bundle) / "loihi" / "network.net")
    else:
        built = build_raw(document, arrays)
    trace = {
        "manifest_sha256": np.array(file_sha256(Path(bundle) / "manifest.json")),
        "image_sha256": np.array([hashlib.sha256(i.tobytes()).hexdigest() for i in images]),
    }
    if timing:
        times = measure(built, document, messages, hardware)
    else:
        with tempfile.TemporaryDirectory(prefix="run_lava.") as folder:
            files, voltages, times = stream(built, document, messages, hardware, folder)
            spikes = read_spikes(built, document, files, len(images))
        trace.update(outputs(document, spikes, voltages))
    trace["info"] = np.array(json.dumps(describe(document, images, network, hardware, times)))
    return trace


def outputs(document, spikes, voltages):
    """Return the arrays of a recorded run; logits = v / divisor."""
    name = document["readout"]["population"]
    # A read-out at the highest threshold fires only where its voltage was clipped.
    saturated = spikes[name].any(axis=(0, *range(2, spikes[name].ndim)))
    spiking = [p["name"] for p in document["populations"] if p["spiking"]]
    arrays = {f"spikes.{key}": spikes[key] for key in spiking}
    arrays["readout.v"] = voltages
    arrays["readout.saturated"] = saturated
    arrays["logits"] = (voltages / document["readout"]["divisor"]).astype(np.float32)
    return arrays


def describe(document, images, network, hardware, times):
    """Return who ran what, and how long it took."""
    return {
        "schema": SCHEMA,
        "engine": "lava-netx" if network == "netx" else "lava-fixed_pt",
        "version": metadata.version("lava-nc"),
        "kind": "measured" if hardware else "simulated",
        "network": network,
        "run_config": "hardware" if hardware else "sim",
        "n": len(images),
        "T": document["T"],
        "populations": [p["name"] for p in document["populations"] if p["spiking"]],
        "timings": times,
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            **{name: metadata.version(name) for name in ("lava-nc", "lava-dl")},
        },
    }


def write_trace(path, trace):
    """Write the trace under a temporary name first: a failed run leaves an earlier one alone."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream_:
            np.savez_compressed(stream_, **trace)
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def arguments():
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--network", choices=("raw", "netx"), default="raw")
    parser.add_argument("--images", default="golden", help="golden, or an npz with `images`")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--run-config", choices=("sim", "hardware"), default="sim")
    parser.add_argument("--timing", action="store_true", help="report rates, record nothing")
    return parser.parse_args()


def main():
    """Run the command line; return the exit code."""
    options = arguments()
    logging.captureWarnings(True)
    try:
        images = load_images(options.bundle, options.images, options.limit)
        hardware = options.run_config == "hardware"
        trace = run(options.bundle, images, options.network, hardware, options.timing)
        write_trace(options.trace, trace)
    except KitError as problem:
        print(f"run_lava: {problem}", file=sys.stderr)
        return 2
    except (LavaError, ImportError) as problem:
        print(f"run_lava: {problem}", file=sys.stderr)
        return 5
    print(trace["info"].item())
    return 0


if __name__ == "__main__":
    sys.exit(main())
