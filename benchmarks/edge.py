"""Without a network: peak memory from weights to a bundle, size and time on a device.

    python benchmarks/edge.py resnet20.th

The teacher is docs/examples/cifar_resnet20.py. Every command runs in a process of its own in which
no network can be reached (`unshare -rn`). The device is stood in for by an environment that holds
nothing but Python, numpy and onnxruntime (export/requirements-onnx.txt).
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import environment, save
from own_teacher import CIFAR, NAMES, ROOT, SHORT

NO_NETWORK = ["unshare", "-rn"]
RUNS = 200
# Milliseconds of one image on one thread, in the bare environment.
LATENCY = """
import json, sys, time
import numpy as np, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
with np.load(sys.argv[2]) as file:
    image = file["images"][:1].astype(np.float32) / np.float32(255)
times = []
for _ in range(20 + int(sys.argv[3])):
    start = time.perf_counter()
    session.run(["logits"], {"image": image})
    times.append(1000 * (time.perf_counter() - start))
times = sorted(times[20:])
print(json.dumps({"median": times[len(times) // 2], "min": times[0], "max": times[-1]}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        result = journey(Path(folder), options.weights.resolve())
    save("edge", {"environment": environment(threads=1), "settings": SHORT, **result})


def journey(folder: Path, weights: Path) -> dict[str, Any]:
    own = f"--teacher {ROOT}/docs/examples/cifar_resnet20.py:resnet20 --weights {weights}"
    change = " ".join(f"--set {item}" for item in [*SHORT, "run.threads=1"])
    bundle = folder / "bundle"
    steps = {
        "distill": f"distill {own} {CIFAR} --classes {NAMES} {change} --out {folder}/run",
        "export": f"export {folder}/run --target nir --target onnx --onnx-weights int8 "
        f"--out {bundle}",
        "check": f"check {bundle} --profile reference",
        "validate onnx": f"validate {bundle} --profile reference --engine onnx",
    }
    program = [sys.executable, "-m", "stars_deploy", "--json"]
    return {
        "network": "none: " + shlex.join(NO_NETWORK),
        "steps": {name: measured([*program, *shlex.split(text)]) for name, text in steps.items()},
        "device": device(folder, bundle),
    }


def measured(words: list[str]) -> dict[str, float]:
    """Run a command without network; return its seconds and the peak of its resident memory."""
    begun = time.monotonic()
    process = subprocess.Popen([*NO_NETWORK, *words], stdout=subprocess.PIPE, text=True)
    output = process.stdout.read() if process.stdout else ""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{shlex.join(words)}: exit code {process.returncode}\n{output}")
    print(words[-3:], f"{usage.ru_maxrss / 1024:.0f} MiB", flush=True)
    seconds = round(time.monotonic() - begun, 1)
    return {"seconds": seconds, "peak_mib": round(usage.ru_maxrss / 1024, 1)}


def device(folder: Path, bundle: Path) -> dict[str, Any]:
    """Measure what runs on the device: model.onnx and run_onnx.py beside numpy and onnxruntime."""
    python = bare_environment(folder / "bare")
    one = folder / "one.npz"
    with np.load(bundle / "golden.npz") as golden:
        np.savez(one, images=golden["images"][:1])
    result: dict[str, Any] = {"environment_bytes": tree_bytes(folder / "bare")}
    for name, more in (("model.onnx", []), ("model_int8.onnx", ["--int8"])):
        script = [str(python), "-I", str(bundle / "run_onnx.py"), "--threads", "1", *more]
        latency = [str(python), "-I", "-c", LATENCY, str(bundle / name), str(one), str(RUNS)]
        timed = subprocess.run([*NO_NETWORK, *latency], capture_output=True, text=True, check=True)
        result[name] = {
            "bytes": (bundle / name).stat().st_size,
            "golden": measured(script),
            "one_image_peak_mib": measured([*script, "--images", str(one)])["peak_mib"],
            "one_image_ms": json.loads(timed.stdout),
        }
    return result


def bare_environment(folder: Path) -> Path:
    """Make an environment with numpy and onnxruntime alone; return its interpreter."""
    uv = str(Path(sys.executable).parent / "uv")
    python = folder / "bin" / "python"
    wanted = str(ROOT / "export" / "requirements-onnx.txt")
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(folder)], check=True)
    install = [uv, "pip", "install", "--quiet", "--link-mode", "copy"]
    subprocess.run([*install, "--python", str(python), "-r", wanted], check=True)
    return python


def tree_bytes(folder: Path) -> int:
    """Return the bytes of all files in a folder; links are not followed."""
    return sum(p.lstat().st_size for p in folder.rglob("*") if p.is_file() and not p.is_symlink())


if __name__ == "__main__":
    main()
