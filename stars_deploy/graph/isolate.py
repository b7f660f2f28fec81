"""Opening an untrusted .nir file in a child process first.

The HDF5 library can crash or loop for ever on a damaged file, and no Python code can stop it from
inside. A child process can be stopped, and can be given a memory limit.
"""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np
from nir.serialization import hdf2dict

from stars_deploy.errors import GraphError
from stars_deploy.graph.prescan import LIMIT_BYTES, check_openable, prescan

TIMEOUT_S = 20.0
_REFUSED = 3
_BYTES_PER_S = 20e6
# Address space of an interpreter with NumPy and HDF5, most of it never touched.
_INTERPRETER_BYTES = 3 << 30

_NEURONS = ("LIF", "LI", "IF", "CubaLIF", "CubaLI")
_PARAMETERS = ("tau", "tau_mem", "tau_syn", "r", "w_in", "v_leak", "v_threshold", "v_reset")

_CHILD = """
import sys
sys.path[:] = sys.argv[3:]
from stars_deploy.graph.isolate import child
child(sys.argv[1], int(sys.argv[2]))
"""


def inspect(path: Path, limit_bytes: int = LIMIT_BYTES, timeout_s: float = TIMEOUT_S) -> None:
    """Pre-scan and read `path` in a child process; return if that went well.

    The child has `timeout_s` seconds plus one for every 20 MB, and memory for the declared data.
    Raises: GraphError with the child's reason, or because it crashed or was stopped.
    """
    check_openable(path, limit_bytes)
    patience = timeout_s + path.stat().st_size / _BYTES_PER_S
    command = [sys.executable, "-c", _CHILD, str(path), str(limit_bytes), *sys.path]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=patience,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise GraphError(
            f"{path}: reading it did not end within {patience:.0f} s, so the file is damaged; "
            "copy or export it again"
        ) from None
    if done.returncode == _REFUSED:
        raise GraphError(done.stdout.decode(errors="replace").strip())
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        detail = lines[-1][:160] if lines else f"exit status {done.returncode}"
        raise GraphError(
            f"{path}: the HDF5 library failed on it ({detail}), so the file is damaged; "
            "copy or export it again"
        )


def child(path: str, limit_bytes: int) -> None:
    """Pre-scan and read a file, then exit: 0 fine, 3 refused with the reason on stdout."""
    _limit_memory(_INTERPRETER_BYTES + 3 * limit_bytes)
    try:
        prescan(Path(path), limit_bytes)
        read_nir(Path(path))
    except GraphError as problem:
        print(problem, flush=True)
        # Without clean-up: a damaged file may still hang the library when it is closed.
        os._exit(_REFUSED)
    os._exit(0)


def read_nir(path: Path) -> nir.NIRGraph:
    """Return nir.read(path) without nir's type check; every failure becomes a GraphError.

    Read, too, is what nir.read refuses in files of other tools: a missing bias is zero, a `/` in a
    node's name, which HDF5 takes for a group, is part of the name again, and one value among
    per-neuron parameters counts for all neurons.
    """
    try:
        with h5py.File(path, "r") as file:
            fields = hdf2dict(file["node"])
        # Types are checked by our own rules, which name the node and the remedy.
        graph = nir.dict2NIRNode(_readable("", fields))
    except GraphError as problem:
        raise GraphError(f"{path}: {problem}") from None
    except Exception as problem:  # nir answers bad files with whatever its code runs into
        detail = f"{type(problem).__name__}: {problem}".splitlines()[0][:200].rstrip(": ")
        raise GraphError(f"{path}: not a NIR graph ({detail}); export the file again") from None
    if not isinstance(graph, nir.NIRGraph):
        kind = type(graph).__name__
        raise GraphError(f"{path}: holds a {kind} node, expected a graph; wrap it in nir.NIRGraph")
    return graph


def _readable(name: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a node of a file in the form that nir constructs it from."""
    fields = dict(fields)
    if fields.get("type") == "NIRGraph" and isinstance(fields.get("nodes"), dict):
        nodes = _by_name(fields["nodes"], "")
        fields["nodes"] = {child: _readable(child, node) for child, node in nodes.items()}
        fields["type_check"] = False
    elif fields.get("type") in ("Affine", "Conv1d", "Conv2d") and "bias" not in fields:
        fields["bias"] = np.zeros(np.shape(fields["weight"])[:1])
    elif fields.get("type") in _NEURONS:
        fields |= _one_shape(name, {key: fields[key] for key in _PARAMETERS if key in fields})
    return fields


def _one_shape(name: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return neuron parameters of one shape; a single value is repeated, and nothing else.

    Full broadcasting would make a huge array of two long ones.
    """
    shapes = {np.shape(value) for value in values.values()}
    if len(shapes) < 2:
        return values
    whole = {shape for shape in shapes if math.prod(shape) != 1} or {max(shapes, key=len)}
    if len(whole) > 1:
        listed = ", ".join(f"{key} {np.shape(value)}" for key, value in values.items())
        raise GraphError(
            f"{name}: parameters of different shapes: {listed}; write one shape for all"
        )
    shape = whole.pop()
    return {
        key: value if np.shape(value) == shape else np.full(shape, np.reshape(value, -1)[0])
        for key, value in values.items()
    }


def _by_name(group: dict[str, Any], prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, item in group.items():
        if isinstance(item, dict) and "type" not in item:
            found |= _by_name(item, f"{prefix}{name}/")
        else:
            found[prefix + name] = item
    return found


def _limit_memory(size: int) -> None:
    """Limit the address space where the system can."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = size if hard == resource.RLIM_INFINITY else min(size, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
