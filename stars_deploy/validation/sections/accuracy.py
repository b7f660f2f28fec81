"""Accuracies with their intervals: teacher, student, and every engine that saw labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from stars_deploy.validation.evidence import Training
from stars_deploy.validation.plots_making import accuracy_chart, by_steps_chart
from stars_deploy.validation.proportions import wilson

ENGINE_TITLES = {
    "float": "Float graph",
    "integer": "Integer parameters",
    "onnx": "ONNX model",
    "onnx-int8": "ONNX model, 8-bit weights",
    "lava-fixed_pt": "Lava",
}
Json = dict[str, Any]


def accuracy_rows(training: Training | None, runs: Sequence[Json]) -> list[Json]:
    """Return {label, value, low, high, n, kind, where}: ANN, student, then engines.

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
    rows = [("Spiking student, in training", training.accuracy)]
    if training.teacher_accuracy is not None:
        rows.insert(0, ("Teacher (ANN)", training.teacher_accuracy))
    where = f"{training.data}, {training.device}"
    return [_row(label, value, training.n, "measured", where) for label, value in rows]


def steps_figure(training: Training | None) -> Markup | None:
    """Return accuracy against T with the band of its interval; None where it was not measured."""
    if training is None or len(training.accuracy_by_t) < 2:
        return None
    points = [_row("", value, training.n, "", "") for value in training.accuracy_by_t]
    return by_steps_chart(points, training.teacher_accuracy, "steps")


def accuracy_figure(rows: Sequence[Json]) -> Markup | None:
    """Return dots with intervals of what saw most images: fewer would not be comparable."""
    most = max((row["n"] for row in rows), default=0)
    shown = [row for row in rows if row["n"] == most]
    return accuracy_chart(shown, "interval") if shown else None


def _of_run(run: Json) -> list[tuple[str, Json]]:
    accuracy, engine = run["accuracy"], run["engine"]
    labelled = run["n"]
    if not accuracy:
        return []
    found = []
    reference = run["reference"]["engine"]
    sides = ((reference, "simulated", "reference"), (engine["name"], engine["kind"], "target"))
    for name, kind, side in sides:
        if name != "training" and accuracy[side] is not None:
            title = ENGINE_TITLES.get(name, name)
            found.append((name, _row(title, accuracy[side], labelled, kind, str(run["images"]))))
    return found


def _row(label: str, value: float, n: int, kind: str, where: str) -> Json:
    low, high = wilson(round(value * n), n)
    return {
        "label": label, "value": value, "low": low, "high": high, "n": n, "kind": kind,
        "where": where,
    }  # fmt: skip
