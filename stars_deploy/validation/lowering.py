"""Is what lies in the bundle what lowering its graph gives? Found without running anything.

Parity sees a changed parameter only where a spike depends on it; this names it in any case.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from stars_deploy import __version__
from stars_deploy.config.profile import Profile
from stars_deploy.errors import BundleError, StarsError
from stars_deploy.files import read_json, read_npz
from stars_deploy.graph.geometry import input_shape, output_shapes
from stars_deploy.graph.metadata import metadata_of
from stars_deploy.graph.order import spiking_nodes
from stars_deploy.simulation.integer.network import read_network
from stars_deploy.targets.findings import Finding
from stars_deploy.targets.onnx_options import FILES, OPSET, OPSETS, OnnxOptions, Weights

Array = NDArray[Any]
_REMEDY = "export the bundle again, unless the change is meant"


def require_layers(graph: nir.NIRGraph, folder: Path) -> None:
    """Refuse integers that do not have the spiking nodes, shapes and steps of `graph`.

    Nothing could be compared then. Raises: BundleError naming the first difference.
    """
    network = read_network(folder)
    shapes = output_shapes(graph)
    expected: dict[str, object] = {"T": metadata_of(graph).T, "input": input_shape(graph)}
    given: dict[str, object] = {"T": network.T, "input": network.input_shape}
    expected |= {f"node {name}": shapes[name] for name in spiking_nodes(graph)}
    given |= {
        f"node {item.node}": item.shape
        for item in network.populations
        if item.spiking and item.node
    }
    for name in [*expected, *sorted(given.keys() - expected.keys())]:
        ours, theirs = (values.get(name, "absent") for values in (expected, given))
        if ours != theirs:
            raise BundleError(
                f"{folder / 'network.json'}: {name} is {theirs}, in graph.nir {ours}; {_REMEDY}"
            )


def lowering_differences(graph: nir.NIRGraph, profile: Profile, folder: Path) -> list[Finding]:
    """Compare network.json and network.npz in `folder` with a fresh lowering of `graph`.

    Files of another tool version are not compared, which is said in a finding of severity info.
    """
    from stars_deploy.targets.loihi import lower

    document = read_json(folder / "network.json", BundleError)
    arrays = read_npz(folder / "network.npz", BundleError)
    written_by = document.get("tool_version") if isinstance(document, dict) else None
    if written_by != __version__:
        return [_skipped(written_by)]
    try:
        fresh = lower(graph, profile, "delay" if document.get("balance") == "delay" else "relay")
    except StarsError as problem:
        message = f"graph.nir cannot be lowered again: {problem}"
        return [Finding("lowering.refused", "error", None, message, remedy=_REMEDY)]
    expected = json.loads(json.dumps(fresh.document))  # as it stands in a file
    return [
        *_arrays(expected, fresh.arrays, arrays),
        *_entries(expected, document, "connections"),
        *_entries(expected, document, "populations"),
        *_rest(expected, document),
    ]


def onnx_differences(graph: nir.NIRGraph, folder: Path, weights: Weights) -> list[Finding]:
    """Compare the two models with these weights with what building them from `graph` gives.

    The operator set is the file's own.
    """
    import onnx

    from stars_deploy.targets.onnx import build_onnx, build_step_onnx

    found: list[Finding] = []
    for name, build in zip(FILES[weights], (build_onnx, build_step_onnx), strict=True):
        path = folder / name
        try:
            written = onnx.load_model_from_string(path.read_bytes())
        except Exception as problem:  # protobuf's own classes
            raise BundleError(f"{path}: not a readable ONNX model ({problem})") from None
        if written.producer_version != __version__:
            found.append(_skipped(written.producer_version, name))
            continue
        fresh = build(graph, OnnxOptions(_opset(written, weights), weights))
        if _bytes(written) != _bytes(fresh):
            found.append(_onnx_finding(name, fresh, written))
    return found


def _opset(model: Any, weights: Weights) -> int:
    """Return the model's operator set; one that we never write becomes the default and differs."""
    version = int(model.opset_import[0].version) if model.opset_import else 0
    return version if version in OPSETS[weights] else OPSET


def _onnx_finding(name: str, fresh: Any, written: Any) -> Finding:
    expected = {item.name: _bytes(item) for item in fresh.graph.initializer}
    given = {item.name: _bytes(item) for item in written.graph.initializer}
    changed = sorted(
        key for key in expected.keys() | given.keys() if expected.get(key) != given.get(key)
    )
    what = f"constant {changed[0]}" if changed else "the operators or metadata"
    more = f" and {len(changed) - 1} more constants" if len(changed) > 1 else ""
    node = changed[0].partition(".")[0] if changed else None
    message = f"{name}: {what}{more} differ from what graph.nir gives"
    return Finding("lowering.onnx", "error", node, message, len(changed), 0, _REMEDY)


def _bytes(message: Any) -> bytes:
    data: bytes = message.SerializeToString(deterministic=True)
    return data


def _skipped(version: object, name: str = "loihi/network.json") -> Finding:
    message = (
        f"{name} was written by version {version}, this is {__version__}: "
        "not compared with a fresh lowering"
    )
    return Finding("lowering.skipped", "info", None, message, remedy="export the bundle again")


def _arrays(
    document: Mapping[str, Any], fresh: Mapping[str, Array], written: Mapping[str, Array]
) -> Iterator[Finding]:
    owners = {item["weight_key"]: (item["node"], "weights") for item in document["connections"]}
    owners |= {
        item["bias_key"]: (item["node"], "biases")
        for item in document["populations"]
        if item["bias_key"]
    }
    for key in [*fresh, *sorted(written.keys() - fresh.keys())]:
        node, what = owners.get(key, (None, f"values of {key}"))
        message = _array_difference(fresh.get(key), written.get(key), what)
        if message:
            yield Finding(f"lowering.{what.split()[0]}", "error", node, message, remedy=_REMEDY)


def _array_difference(fresh: Array | None, written: Array | None, what: str) -> str | None:
    if fresh is None or written is None:
        return f"{what} are {'not expected' if fresh is None else 'missing'} in network.npz"
    if fresh.shape != written.shape:
        return f"{what} have shape {written.shape}, graph.nir gives {fresh.shape}"
    differs = fresh != written
    count = int(np.count_nonzero(differs))
    if count == 0:
        return None
    place = tuple(int(x) for x in np.argwhere(differs)[0])
    return (
        f"{count} of {fresh.size} {what} differ from what graph.nir gives, "
        f"first at {list(place)}: {written[place]} instead of {fresh[place]}"
    )


def _entries(
    fresh: Mapping[str, Any], written: Mapping[str, Any], section: str
) -> Iterator[Finding]:
    expected = {item["name"]: item for item in fresh[section]}
    given = {item["name"]: item for item in written[section]}
    for name in [*expected, *sorted(given.keys() - expected.keys())]:
        if name not in given or name not in expected:
            state = "missing" if name not in given else "not expected"
            message = f"{section[:-1]} {name} is {state} in network.json"
            yield Finding(f"lowering.{section}", "error", name, message, remedy=_REMEDY)
            continue
        for key in [*expected[name], *sorted(given[name].keys() - expected[name].keys())]:
            ours, theirs = expected[name].get(key), given[name].get(key)
            if ours != theirs:
                message = f"{key} is {theirs}, graph.nir gives {ours}"
                yield Finding(
                    f"lowering.{section}",
                    "error",
                    name,
                    message,
                    _plain(theirs),
                    _plain(ours),
                    _REMEDY,
                )


def _rest(fresh: Mapping[str, Any], written: Mapping[str, Any]) -> Iterator[Finding]:
    for key in [*fresh, *sorted(written.keys() - fresh.keys())]:
        if key in ("connections", "populations") or fresh.get(key) == written.get(key):
            continue
        message = f"{key} in network.json is {written.get(key)}, graph.nir gives {fresh.get(key)}"
        yield Finding("lowering.document", "error", None, message, remedy=_REMEDY)


def _plain(value: object) -> float | str:
    return value if isinstance(value, int | float) else str(value)
