"""What a graph says about time, input and read-out, and the tolerant way back from a file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import nir
import numpy as np

from stars_deploy import __version__
from stars_deploy.errors import GraphError

# Several NIR readers assume this step; other values make them silent.
DT = 1e-4
MAX_STEPS = 1024

_REMEDY = "write the graph with `stars-deploy export`, or add the key to the graph's metadata"


@dataclass(frozen=True)
class GraphMetadata:
    """Time step, normalisation and read-out of a graph.

    Attributes:
        T: number of time steps per image.
        mean, std: per input channel; the graph takes (pixel / 255 - mean) / std.
        classes: names of the logits, empty where unknown.
        dt: duration of a step in seconds; a neuron's tau in steps is tau / dt.
        readout: logits are the mean over T of the output node.
        spike_compare: a neuron fires where H > v_threshold.
        gain: `raw` (r as trained) or `folded` (weights hold 1/tau and r = tau / dt).
        tool_version: version that wrote the graph.
    """

    T: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...] = ()
    dt: float = DT
    readout: Literal["mean"] = "mean"
    spike_compare: Literal["strict"] = "strict"
    gain: Literal["raw", "folded"] = "raw"
    tool_version: str = __version__

    def to_dict(self) -> dict[str, Any]:
        """Return the metadata dictionary of a NIR graph, in types that survive a file."""
        return {
            "T": self.T,
            "classes": json.dumps(list(self.classes), ensure_ascii=False),
            "dt": self.dt,
            "gain": self.gain,
            "mean": np.array(self.mean, np.float64),
            "readout": self.readout,
            "spike_compare": self.spike_compare,
            "std": np.array(self.std, np.float64),
            "tool_version": self.tool_version,
        }


def metadata_of(graph: nir.NIRGraph) -> GraphMetadata:
    """Return the metadata of `graph`, checked; GraphError where a key is missing or wrong."""
    raw = graph.metadata if isinstance(graph.metadata, Mapping) else {}
    steps = _number(raw, "T")
    if not steps.is_integer() or not 1 <= steps <= MAX_STEPS:
        raise _invalid("T", raw["T"], f"a whole number from 1 to {MAX_STEPS}")
    dt = _number(raw, "dt")
    if dt <= 0:
        raise _invalid("dt", dt, "a positive number of seconds")
    mean, std = _numbers(raw, "mean"), _numbers(raw, "std")
    if len(mean) != len(std):
        raise _invalid("std", std, f"{len(mean)} values, as many as mean")
    if any(value <= 0 for value in std):
        raise _invalid("std", std, "positive numbers")
    return GraphMetadata(
        T=int(steps),
        mean=mean,
        std=std,
        classes=_classes(raw),
        dt=dt,
        readout=_choice(raw, "readout", "mean"),  # type: ignore[arg-type]
        spike_compare=_choice(raw, "spike_compare", "strict"),  # type: ignore[arg-type]
        gain=_choice(raw, "gain", "raw", "folded"),  # type: ignore[arg-type]
        tool_version=_text(raw, "tool_version"),
    )


def with_metadata(graph: nir.NIRGraph, metadata: GraphMetadata) -> nir.NIRGraph:
    """Return `graph` with `metadata` written into it; nodes, edges and other keys stay."""
    other = graph.metadata if isinstance(graph.metadata, Mapping) else {}
    merged = {**other, **metadata.to_dict()}
    return nir.NIRGraph(dict(graph.nodes), list(graph.edges), metadata=merged, type_check=False)


def _invalid(key: str, value: object, expected: str) -> GraphError:
    value = value.item() if isinstance(value, np.generic) else value
    return GraphError(f"graph metadata {key!r} is {value!r}, expected {expected}; {_REMEDY}")


def _get(raw: Mapping[str, Any], key: str) -> Any:
    if key not in raw:
        present = ", ".join(sorted(map(str, raw))) or "none"
        raise GraphError(f"graph metadata has no {key!r} (present: {present}); {_REMEDY}")
    return raw[key]


def _numbers(raw: Mapping[str, Any], key: str) -> tuple[float, ...]:
    value = _get(raw, key)
    try:
        array = np.asarray(value, np.float64).reshape(-1)
    except (TypeError, ValueError):
        raise _invalid(key, value, "numbers") from None
    if array.size == 0 or not np.isfinite(array).all():
        raise _invalid(key, value, "finite numbers")
    return tuple(float(x) for x in array)


def _number(raw: Mapping[str, Any], key: str) -> float:
    values = _numbers(raw, key)
    if len(values) != 1 or not math.isfinite(values[0]):
        raise _invalid(key, values, "one number")
    return values[0]


def _text(raw: Mapping[str, Any], key: str) -> str:
    value = _get(raw, key)
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(-1)[0]
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="replace")
    if not isinstance(value, str):
        raise _invalid(key, value, "text")
    return value


def _choice(raw: Mapping[str, Any], key: str, *allowed: str) -> str:
    value = _text(raw, key)
    if value not in allowed:
        raise _invalid(key, value, " or ".join(repr(x) for x in allowed))
    return value


def _classes(raw: Mapping[str, Any]) -> tuple[str, ...]:
    text = _text(raw, "classes")
    try:
        names = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _invalid("classes", text[:80], "a JSON list of names")
    return tuple(names)
