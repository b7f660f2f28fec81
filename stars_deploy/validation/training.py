"""The float graph against what training measured: totals, since training recorded no spikes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from stars_deploy.errors import InputError
from stars_deploy.files import read_json
from stars_deploy.simulation.recording import Engine
from stars_deploy.targets.findings import Finding
from stars_deploy.validation.counts import relative, state_of
from stars_deploy.validation.parity import Images, Labels

# Training computes in float32, on a GPU perhaps with TF32 products: near ties flip.
ACCURACY_DELTA = 0.002
LAYER_SPIKES_RELATIVE = 0.002
KEYS: dict[str, type | tuple[type, ...]] = {
    "device": str,
    "data": str,
    "n": int,
    "accuracy": (int, float),
    "spikes": dict,
    "T": int,
}
_SOURCE = "float32 training against the float64 graph: near ties"
_REMEDY = "export the run again; evaluate it with this version"


def read_training(path: Path) -> dict[str, Any]:
    """Read training.json; InputError names a key that is missing."""
    document: dict[str, Any] = read_json(path)
    if not isinstance(document, dict):
        raise InputError(f"{path}: not an object; run stars-deploy evaluate again")
    missing = [key for key in KEYS if key not in document]
    if missing:
        raise InputError(f"{path}: key {missing[0]!r} is missing; run stars-deploy evaluate again")
    teacher = document.get("teacher_accuracy", 0.0)
    wrong = [key for key, kind in KEYS.items() if not isinstance(document[key], kind)]
    wrong += [] if isinstance(teacher, int | float) else ["teacher_accuracy"]
    counts = document["spikes"] if "spikes" not in wrong else {}
    wrong += [f"spikes.{node}" for node, count in counts.items() if type(count) is not int]
    if wrong:
        raise InputError(
            f"{path}: the value of {wrong[0]!r} is not what training.json holds; run stars-deploy "
            "evaluate again"
        )
    return document


class _Samples(Protocol):
    @property
    def images(self) -> Images: ...
    @property
    def labels(self) -> Labels: ...
    @property
    def source(self) -> str: ...


def against_training(
    engine: Engine,
    samples: _Samples,
    training: Mapping[str, Any],
    batch: int,
    progress: Callable[[int], None],
) -> tuple[dict[str, Any], list[Finding], dict[str, Any]]:
    """Run `engine` on the images that training.json was measured on and compare the totals.

    Returns: the parity part of validation.json (no mismatches: training recorded totals only),
    findings, tolerances.
    Raises: InputError when the images are others than those of training.json.
    """
    count = len(samples.images)
    if (training["data"], training["n"]) != (samples.source, count):
        raise InputError(
            f"engine float is compared with training.json, measured on {training['n']} images of "
            f"{training['data']}; these are {count} of {samples.source}: give the same --data "
            "without --limit"
        )
    spikes = dict.fromkeys(engine.nodes, 0)
    places = dict.fromkeys(engine.nodes, 0)
    correct = 0
    for start in range(0, count, batch):
        part = slice(start, start + batch)
        answer = engine.run(samples.images[part])
        correct += int(np.count_nonzero(answer.logits.argmax(axis=1) == samples.labels[part]))
        for node in engine.nodes:
            spikes[node] += int(np.count_nonzero(answer.spikes[node]))
            places[node] += answer.spikes[node].size
        progress(min(start + batch, count))
    steps = int(training["T"])
    layers = [
        _layer(node, places[node], places[node] // (count * steps), training, spikes[node])
        for node in engine.nodes
    ]
    accuracy = {"reference": training["accuracy"], "target": correct / count}
    accuracy["delta"] = accuracy["target"] - accuracy["reference"]
    whole = {
        "n": count,
        "accuracy": accuracy,
        "agreement": None,
        "layers": layers,
        "first_divergence": None,
        "readout": {"max_abs_difference": None, "isolated_max_abs_difference": None},
    }
    rule = {
        "accuracy_delta": ACCURACY_DELTA,
        "layer_spikes_relative": LAYER_SPIKES_RELATIVE,
        "source": _SOURCE,
    }
    return whole, _findings(layers, accuracy["delta"]), rule


def _layer(
    node: str, places: int, neurons: int, training: Mapping[str, Any], found: int
) -> dict[str, Any]:
    if node not in training["spikes"]:
        raise InputError(
            f"training.json: counted no spikes of {node}, only of "
            f"{', '.join(training['spikes'])}; evaluate the run and export it again"
        )
    expected = int(training["spikes"][node])
    rate = expected / places
    return {
        "name": node,
        "neurons": neurons,
        "rate": rate,
        "state": state_of(rate),
        "spikes_reference": expected,
        "spikes_target": found,
        "relative_difference": relative(expected, found),
        "mismatches": None,
        "isolated_mismatches": None,
        "near_ties": None,
        "isolated_relative_difference": None,
        "first_step": None,
        "first_at": None,
    }


def _findings(layers: list[dict[str, Any]], delta: float) -> list[Finding]:
    found = [
        Finding(
            "training.spikes",
            "error",
            layer["name"],
            f"{layer['spikes_target']} spikes, training counted {layer['spikes_reference']}",
            layer["relative_difference"],
            LAYER_SPIKES_RELATIVE,
            _REMEDY,
        )
        for layer in layers
        if layer["relative_difference"] > LAYER_SPIKES_RELATIVE
    ]
    if abs(delta) > ACCURACY_DELTA:
        message = f"accuracy differs by {100 * delta:+.2f} points from what training measured"
        found.append(
            Finding(
                "training.accuracy", "error", "readout", message, delta, ACCURACY_DELTA, _REMEDY
            )
        )
    return found
