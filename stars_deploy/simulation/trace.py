"""Traces: what run_lava.py writes about a run in Lava or on a board."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stars_deploy.errors import DataError, EngineError
from stars_deploy.files import parse_json, read_npz, sha256
from stars_deploy.simulation.recording import EngineInfo, Recording

SCHEMA = 2
#: Which kind of number a run configuration of run_lava.py gives.
KINDS = {"sim": "simulated", "hardware": "measured"}
_INFO = {"engine": str, "version": str, "network": str, "T": int, "timings": dict, "versions": dict}


@dataclass(frozen=True)
class Trace:
    """A trace file.

    Attributes:
        path: the file.
        info: engine, version, kind, run_config, timings, versions, sizes; JSON in the file.
        manifest_sha256: SHA-256 of the manifest of the bundle that ran, empty if it had none.
        images: uint8 `[N, C, H, W]`, what the network was given.
        spikes: per spiking population uint8 `[T, N, C, H, W]` or `[T, N, n]`.
        logits: float32 `[N, K]`; None where nothing was recorded (--timing).
        readout: integers `[N, K]`, what is read of the read-out, before its divisor.
        saturated: bool `[N]`, whether the read-out left its range.
    """

    path: Path
    info: Mapping[str, Any]
    manifest_sha256: str
    images: NDArray[np.uint8]
    spikes: Mapping[str, NDArray[np.uint8]]
    logits: NDArray[np.float32] | None
    readout: NDArray[np.integer[Any]] | None
    saturated: NDArray[np.bool_] | None


def read_trace(path: Path) -> Trace:
    """Read a trace and compare it with its seal.

    Raises: DataError when it is missing, truncated, of another schema, incomplete, or when an
    array changed after the run.
    """
    arrays = read_npz(path, DataError)
    try:
        info = parse_json(str(arrays["info"]))
        if info["schema"] != SCHEMA:
            raise DataError(
                f"{path}: trace schema {info['schema']!r}, expected {SCHEMA}; record it again with "
                "the run_lava.py of the bundle"
            )
        _check_seal(path, arrays)
        _check_info(path, info)
        trace = Trace(
            path=path,
            info=info,
            manifest_sha256=str(arrays["manifest_sha256"]),
            images=arrays["images"],
            spikes={
                name.removeprefix("spikes."): value
                for name, value in arrays.items()
                if name.startswith("spikes.")
            },
            logits=arrays.get("logits"),
            readout=arrays.get("readout.v"),
            saturated=arrays.get("readout.saturated"),
        )
        _check_arrays(trace)
    except (KeyError, TypeError, ValueError) as problem:
        raise DataError(f"{path}: not a trace of run_lava.py ({problem!r})") from None
    return trace


def seal_of(arrays: Mapping[str, NDArray[Any]]) -> str:
    """Return the SHA-256 over every array but `seal`: name, dtype, shape and bytes, by name.

    It covers the manifest's hash too, which is one of the arrays. It detects accidents and
    careless edits. It is no signature: whoever edits a trace on purpose can seal it again.
    """
    digest = hashlib.sha256()
    for name in sorted(arrays.keys() - {"seal"}):
        value = np.asarray(arrays[name])
        digest.update(json.dumps([name, value.dtype.str, list(value.shape)]).encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def recording_of(
    trace: Trace, bundle: Path, images: NDArray[np.uint8], nodes: Mapping[str, str]
) -> Recording:
    """Return what a trace says about `images`, which must be the first of its own.

    `nodes` maps populations to NIR nodes. Raises DataError for a trace of another bundle or other
    images or with a population missing, EngineError where the read-out left its range.
    """
    manifest = bundle / "manifest.json"
    if trace.manifest_sha256 != (sha256(manifest) if manifest.is_file() else ""):
        raise DataError(
            f"{trace.path}: recorded from another bundle than {bundle}, or before a change"
        )
    count = len(images)
    if not np.array_equal(trace.images[:count], images):
        raise DataError(f"{trace.path}: recorded from other images than the {count} given")
    missing = sorted(nodes.keys() - trace.spikes.keys())
    if trace.logits is None or trace.saturated is None or missing:
        raise DataError(f"{trace.path}: no recording of {', '.join(missing) or 'the read-out'}")
    left = trace.saturated[:count]
    if left.any():
        raise EngineError(
            f"{trace.path}: the read-out left its 24 bits for image {int(left.argmax())}"
        )
    info = trace.info
    return Recording(
        engine=EngineInfo(info["engine"], info["version"], info["kind"]),
        logits=trace.logits[:count],
        spikes={node: trace.spikes[population][:, :count] for population, node in nodes.items()},
    )


def _check_seal(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    found, expected = seal_of(arrays), str(arrays["seal"])
    if found != expected:
        raise DataError(
            f"{path}: the arrays have the SHA-256 {found}, the seal says {expected}; the trace "
            "changed after the run: fetch or record it again"
        )


def _check_info(path: Path, info: Mapping[str, Any]) -> None:
    """Refuse incomplete information, and a simulation that calls itself measured."""
    for key, kind in _INFO.items():
        if not isinstance(info[key], kind):
            raise DataError(f"{path}: info.{key} is {info[key]!r}, expected {kind.__name__}")
    expected = KINDS.get(info["run_config"])
    if expected is None or info["kind"] != expected:
        raise DataError(
            f"{path}: info.kind is {info['kind']!r} for the run configuration "
            f"{info['run_config']!r}, expected {expected or 'one of ' + ', '.join(KINDS)}"
        )


def _check_arrays(trace: Trace) -> None:
    """Refuse arrays that are no recording of T steps of N images."""
    count = len(trace.images) if trace.images.ndim else 0
    _require(trace, "images", trace.images, np.uint8, trace.images.ndim == 4 and count > 0)
    for name, train in trace.spikes.items():
        whole = train.ndim >= 3 and train.shape[:2] == (trace.info["T"], count)
        _require(trace, f"spikes.{name}", train, np.uint8, whole and train.max(initial=0) <= 1)
    if trace.logits is not None:
        whole = trace.logits.ndim == 2 and len(trace.logits) == count
        finite = whole and bool(np.isfinite(trace.logits).all())
        _require(trace, "logits", trace.logits, np.float32, finite)
    if trace.readout is not None:
        kind = trace.readout.dtype.type
        right = trace.readout.ndim == 2 and len(trace.readout) == count
        right = right and issubclass(kind, np.integer)
        _require(trace, "readout.v", trace.readout, kind, right)
    if trace.saturated is not None:
        right = trace.saturated.shape == (count,)
        _require(trace, "readout.saturated", trace.saturated, np.bool_, right)


def _require(
    trace: Trace, name: str, array: NDArray[Any], dtype: type[np.generic], right: bool
) -> None:
    if array.dtype != dtype or not right:
        raise DataError(
            f"{trace.path}: {name} is {array.dtype} {list(array.shape)}, which is no recording of "
            f"T = {trace.info['T']} steps of {len(trace.images) if trace.images.ndim else 0} images"
        )
