"""Accuracies with their intervals: teacher, student, and every engine that saw labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stars_deploy.validation.evidence import Training
from stars_deploy.validation.proportions import wilson

ENGINE_TITLES = {
    "float": "Float graph",
    "integer": "Integer parameters",
    "onnx": "ONNX model",
    "onnx-int8": "ONNX model, int8 weights",
    "lava-fixed_pt": "Lava",
}
TEACHER, STUDENT = "Teacher (ANN)", "Student in training"
Json = dict[str, Any]


def accuracy_rows(training: Training | None, runs: Sequence[Json]) -> list[Json]:
    """Return {label, value, low, high, n, kind, data, where}: ANN, student, then engines.

    low and high: 95 % Wilson interval. Of several runs of an engine the one on most images counts.
    """
    rows = _of_training(training)
    best: dict[str, Json] = {}
    for run in runs:
        for name, row in _of_run(run):
            if name not in best or row["n"] > best[name]["n"]:
                best[name] = row
    order = list(ENGINE_TITLES)
    known = sorted((name for name in best if name in order), key=order.index)
    return rows + [best[name] for name in (*known, *(n for n in best if n not in order))]


def _of_training(training: Training | None) -> list[Json]:
    if training is None:
        return []
    rows = [(STUDENT, training.accuracy)]
    if training.teacher_accuracy is not None:
        rows.insert(0, (TEACHER, training.teacher_accuracy))
    place = (training.data, training.device)
    return [row_of(label, value, training.n, "measured", *place) for label, value in rows]


def _of_run(run: Json) -> list[tuple[str, Json]]:
    accuracy, engine = run["accuracy"], run["engine"]
    labelled = run["n"]
    if not accuracy:
        return []
    found = []
    by = f"{engine['name']} {engine['version']}"
    reference = run["reference"]["engine"]
    sides = (
        (reference, "simulated", "reference", reference),
        (engine["name"], engine["kind"], "target", by),
    )
    for name, kind, side, where in sides:
        if name != "training" and accuracy[side] is not None:
            title = ENGINE_TITLES.get(name, name)
            row = row_of(title, accuracy[side], labelled, kind, str(run["images"]), where)
            found.append((name, row))
    return found


def row_of(label: str, value: float, n: int, kind: str, data: str, where: str) -> Json:
    """Return an accuracy with its interval."""
    low, high = wilson(round(value * n), n)
    return {
        "label": label, "value": value, "low": low, "high": high, "n": n, "kind": kind,
        "data": data, "where": where,
    }  # fmt: skip
