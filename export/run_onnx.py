#!/usr/bin/env python3
"""Run the ONNX model of a stars-deploy bundle: predictions, accuracy, spikes per layer.

    python run_onnx.py [BUNDLE] [--images golden|FILE.npz] [--threads N] [--step] [--int8]

Needs numpy and onnxruntime only (requirements-onnx.txt) and Python 3.9 or newer. BUNDLE is the
folder this script lies in unless given. FILE.npz holds `images`, uint8 [N, C, H, W], and
optionally `labels`, [N]. --int8 runs the models whose weights have eight bits, if the bundle has
them. With the golden images, the answers are compared with those that the float engine gave when
the bundle was written (for --int8 with the same eight-bit weights):
predictions must be equal and at most one spike in 10,000 may differ in any layer, because
float32 rounding can tip a neuron that sits exactly at its threshold.

Exit codes: 0 fine, 2 bad input, 3 the golden answers are not reproduced, 5 onnxruntime is absent.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time

BATCH = 64
SPIKE_TOLERANCE = 1e-4
LOGIT_TOLERANCE = 1e-4


class BadInput(Exception):
    """A file is missing, damaged or of the wrong kind."""


def main(arguments=None):
    """Run the command line and return the exit code."""
    options = parser().parse_args(arguments)
    try:
        import numpy
        import onnxruntime
    except ImportError as problem:
        print(f"error: {problem}; pip install -r requirements-onnx.txt", file=sys.stderr)
        return 5
    print(f"onnxruntime {onnxruntime.__version__}, numpy {numpy.__version__}")
    try:
        return run(options)
    except BadInput as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2


def parser():
    """Return the argument parser."""
    here = os.path.dirname(os.path.abspath(__file__))
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("bundle", nargs="?", default=here, help="bundle folder (default: here)")
    made.add_argument("--images", default="golden", help="golden, or an npz file")
    made.add_argument("--threads", type=int, default=0, help="CPU threads (default: all)")
    made.add_argument("--step", action="store_true", help="run model_step.onnx T times instead")
    made.add_argument("--int8", action="store_true", help="run the models with int8 weights")
    return made


def run(options):
    """Run the model as asked and print what it answers."""
    golden = options.images == "golden"
    file = os.path.join(options.bundle, "golden.npz") if golden else options.images
    data = read_npz(file)
    images = data.get("images")
    if images is None:
        raise BadInput(f"{file}: holds no 'images'")
    labels = data.get("labels")
    if labels is not None and len(labels) != len(images):
        raise BadInput(f"{file}: {len(labels)} labels for {len(images)} images")
    name = ("model_step" if options.step else "model") + ("_int8.onnx" if options.int8 else ".onnx")
    session = load(os.path.join(options.bundle, name), options.threads)
    check_shape(file, images, session)
    started = time.perf_counter()
    logits, counts = (run_steps if options.step else run_whole)(session, images)
    seconds = time.perf_counter() - started
    report(session, logits, counts, data.get("labels"), len(images))
    print(f"{len(images)} images in {seconds:.3f} s with {name}")
    reference = "float-int8" if options.int8 else "float"
    return check_golden(data, logits, counts, reference) if golden else 0


def read_npz(file):
    """Return the arrays of an npz file."""
    import zipfile
    import zlib

    import numpy as np

    damage = (
        ValueError, OSError, EOFError, AttributeError, RuntimeError, MemoryError,
        zipfile.BadZipFile, zlib.error,
    )  # fmt: skip
    try:
        with np.load(file, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except FileNotFoundError:
        raise BadInput(f"{file}: no such file") from None
    except damage as problem:
        raise BadInput(f"{file}: not a readable npz file ({problem})") from None


def load(file, threads):
    """Return an onnxruntime session on the CPU."""
    import onnxruntime

    if not os.path.isfile(file):
        more = " --onnx-weights int8" if file.endswith("_int8.onnx") else ""
        raise BadInput(f"{file}: no such file; export the bundle with --target onnx{more}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    with open(file, "rb") as stream:
        model = stream.read()  # given as bytes, a model cannot name other files as its data
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as problem:
        raise BadInput(f"{file}: onnxruntime cannot read it ({problem})") from None


def setting(session, key):
    """Return a JSON value from the model's metadata."""
    try:
        return json.loads(session.get_modelmeta().custom_metadata_map[key])
    except (KeyError, ValueError):
        raise BadInput(f"the model's metadata has no {key!r}: not a stars-deploy model") from None


def check_shape(file, images, session):
    """Refuse images the model cannot take."""
    expected = list(session.get_inputs()[0].shape[1:])
    if str(images.dtype) != "uint8" or list(images.shape[1:]) != expected or len(images) == 0:
        raise BadInput(
            f"{file}: images are {images.dtype} {list(images.shape)}, "
            f"the model takes uint8 [N, {', '.join(map(str, expected))}]"
        )


def batches(images):
    """Yield float32 images in [0, 1]."""
    import numpy as np

    for start in range(0, len(images), BATCH):
        yield images[start : start + BATCH].astype(np.float32) / np.float32(255)


def run_whole(session, images):
    """Return logits [N, K] and spike counts per node from the model of all steps."""
    import numpy as np

    nodes = setting(session, "nodes")
    names = ["logits"] + ["spikes." + node for node in nodes]
    parts = [session.run(names, {"image": image}) for image in batches(images)]
    joined = [np.concatenate(arrays) for arrays in zip(*parts)]
    return joined[0], dict(zip(nodes, joined[1:]))


def run_steps(session, images):
    """Return logits [N, K] and spike counts per node, one step after the other."""
    import numpy as np

    nodes, steps, start = (setting(session, key) for key in ("nodes", "T", "initial_state"))
    shapes = {entry.name: entry.shape[1:] for entry in session.get_inputs()}
    spikes = ["spikes." + node for node in nodes]
    names = ["logits"] + spikes + ["v_next." + node for node in start]
    all_logits, all_counts = [], []
    for image in batches(images):
        state = {node: potential(v, len(image), shapes["v." + node]) for node, v in start.items()}
        logits, counts = 0, [0] * len(nodes)
        for _ in range(steps):
            feeds = {"v." + node: v for node, v in state.items()}
            answer = session.run(names, {"image": image, **feeds})
            logits = logits + answer[0]
            counts = [c + s.astype(np.int32) for c, s in zip(counts, answer[1:])]
            state = dict(zip(state, answer[1 + len(nodes) :]))
        all_logits.append(logits / np.float32(steps))
        all_counts.append(counts)
    joined = [np.concatenate(arrays) for arrays in zip(*all_counts)]
    return np.concatenate(all_logits), dict(zip(nodes, joined))


def potential(value, count, shape):
    """Return the initial membrane potential [count, ...]."""
    import numpy as np

    one = np.asarray(value, np.float32)
    one = one.reshape(shape) if one.ndim else np.broadcast_to(one, shape)
    return np.repeat(one[None], count, axis=0)


def report(session, logits, counts, labels, count):
    """Print predictions, accuracy and spikes per layer."""
    classes, steps = setting(session, "classes"), setting(session, "T")
    predictions = logits.argmax(axis=1)
    shown = [classes[p] if classes else str(p) for p in predictions[:16]]
    print("predictions:", ", ".join(shown) + (", ..." if count > 16 else ""))
    if labels is not None and (labels >= 0).any():
        known = labels >= 0
        accuracy = (predictions[known] == labels[known]).mean()
        print(f"accuracy: {accuracy:.4f} on {int(known.sum())} labelled images")
    for node, spikes in counts.items():
        rate = spikes.mean() / steps
        print(f"spikes {node}: {int(spikes.sum())} ({100 * rate:.2f} % of neurons and steps)")


def check_golden(data, logits, counts, engine):
    """Compare with the recorded float engine; return the exit code."""
    import numpy as np

    if engine + ".logits" not in data:
        raise BadInput(f"golden.npz: holds no answers of the float engine ('{engine}.logits')")
    failures, flips = [], 0
    for node, spikes in counts.items():
        recorded = data.get(engine + ".spikes." + node)
        if recorded is None or recorded.shape[1:] != spikes.shape:
            raise BadInput(f"golden.npz: no recorded spikes that fit node {node!r}")
        different = int(np.abs(recorded.sum(axis=0, dtype=np.int64) - spikes).sum())
        flips += different
        if different > SPIKE_TOLERANCE * recorded.size:
            failures.append(f"{node}: {different} of {recorded.size} spikes differ")
    expected = data[engine + ".logits"]
    wrong = int((expected.argmax(axis=1) != logits.argmax(axis=1)).sum())
    if wrong:
        failures.append(f"{wrong} of {len(logits)} predictions differ")
    distance = float(np.abs(expected - logits).max())
    if not flips and distance > LOGIT_TOLERANCE:
        failures.append(f"logits differ by up to {distance:.2e}")
    for failure in failures:
        print("golden:", failure)
    print(
        f"golden: {'FAILED' if failures else 'ok'} ({flips} spikes differ, "
        f"logits by at most {distance:.1e})"
    )
    return 3 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
