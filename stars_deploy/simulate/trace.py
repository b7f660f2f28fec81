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
from stars_deploy.files import read_npz, sha256
from stars_deploy.simulate.recording import EngineInfo, Recording

SCHEMA = 1


@dataclass(frozen=True)
class Trace:
    """A trace file.

    Attributes:
        path: the file.
        info: engine, version, kind, timings, sizes; JSON in the file.
        manifest_sha256: SHA-256 of the manifest of the bundle that ran, empty if it had none.
        images_sha256: SHA-256 of every image's uint8 bytes in C, H, W order.
        spikes: per spiking population uint8 `[T, N, C, H, W]` or `[T, N, n]`.
        logits: float32 `[N, K]`; None where nothing was recorded (--timing).
        readout: int32 `[N, K]`, voltages of the read-out after T steps, in 1/64 weight units.
        saturated: bool `[N]`, whether the read-out left its range.
    """

    path: Path
    info: Mapping[str, Any]
    manifest_sha256: str
    images_sha256: tuple[str, ...]
    spikes: Mapping[str, NDArray[np.uint8]]
    logits: NDArray[np.float32] | None
    readout: NDArray[np.int32] | None
    saturated: NDArray[np.bool_] | None


def read_trace(path: Path) -> Trace:
    """Read a trace; DataError when it is missing, truncated or of another schema."""
    arrays = read_npz(path, DataError)
    try:
        info = json.loads(str(arrays["info"]))
        if info["schema"] != SCHEMA:
            raise DataError(f"{path}: trace schema {info['schema']!r}, expected {SCHEMA}")
        return Trace(
            path=path,
            info=info,
            manifest_sha256=str(arrays["manifest_sha256"]),
            images_sha256=tuple(str(item) for item in arrays["image_sha256"]),
            spikes={
                name.removeprefix("spikes."): value
                for name, value in arrays.items()
                if name.startswith("spikes.")
            },
            logits=arrays.get("logits"),
            readout=arrays.get("readout.v"),
            saturated=arrays.get("readout.saturated"),
        )
    except (KeyError, TypeError, ValueError) as problem:
        raise DataError(f"{path}: not a trace of run_lava.py ({problem!r})") from None


def recording_of(
    trace: Trace, bundle: Path, images: NDArray[np.uint8], nodes: Mapping[str, str]
) -> Recording:
    """Return a trace as a Recording after checking that it is about this bundle and these images.

    `nodes` maps populations to NIR nodes. Raises DataError for a trace of something else or with
    a population missing, EngineError where the read-out left its range.
    """
    manifest = bundle / "manifest.json"
    if trace.manifest_sha256 != (sha256(manifest) if manifest.is_file() else ""):
        raise DataError(
            f"{trace.path}: recorded from another bundle than {bundle}, or before a change"
        )
    if trace.images_sha256 != image_hashes(images):
        raise DataError(f"{trace.path}: recorded from other images than the {len(images)} given")
    missing = sorted(nodes.keys() - trace.spikes.keys())
    if trace.logits is None or trace.saturated is None or missing:
        raise DataError(f"{trace.path}: no recording of {', '.join(missing) or 'the read-out'}")
    if trace.saturated.any():
        raise EngineError(
            f"{trace.path}: the read-out left its 24 bits for image {int(trace.saturated.argmax())}"
        )
    info = trace.info
    return Recording(
        engine=EngineInfo(info["engine"], info["version"], info["kind"]),
        logits=trace.logits,
        spikes={node: trace.spikes[population] for population, node in nodes.items()},
    )


def image_hashes(images: NDArray[np.uint8]) -> tuple[str, ...]:
    """Return the SHA-256 of every image's bytes."""
    return tuple(hashlib.sha256(image.tobytes()).hexdigest() for image in images)
