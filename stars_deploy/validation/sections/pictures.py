"""The pictures of accuracy and distillation, as far as a bundle holds what they show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from stars_deploy.validation.evidence import Curve, Synthetic, Training
from stars_deploy.validation.plots import image_grid
from stars_deploy.validation.plots_making import accuracy_chart, by_steps_chart, curve_chart
from stars_deploy.validation.sections.accuracy import row_of
from stars_deploy.validation.sections.making import class_name

SIDE = 42  # CSS pixels of a synthetic image at least
Json = dict[str, Any]


def steps_figure(training: Training | None) -> Markup | None:
    """Return accuracy against T with the band of its interval; None where it was not measured."""
    if training is None or len(training.accuracy_by_t) < 2:
        return None
    points = [row_of("", value, training.n, "", "", "") for value in training.accuracy_by_t]
    return by_steps_chart(points, training.teacher_accuracy, "steps")


def accuracy_figure(rows: Sequence[Json]) -> Markup | None:
    """Return dots with intervals of what saw most images: fewer would not be comparable."""
    most = max((row["n"] for row in rows), default=0)
    shown = [row for row in rows if row["n"] == most]
    return accuracy_chart(shown, "interval") if shown else None


def curve_figures(curve: Curve | None) -> list[Json]:
    """Return the curves of both phases, those that were logged."""
    if curve is None:
        return []
    phases = (
        ("kd", curve.kd, "Distillation", "student updates", "agreement", "agreement with teacher"),
        ("synthesis", curve.synthesis, "Synthesis", "synthesis steps", "teacher_hits",
         "images the teacher puts in their class"),
    )  # fmt: skip
    return [
        {
            "title": title,
            "figure": curve_chart(series, unit, share, name, f"curve-{key}"),
            "last": _last(series.values.get(share, ())),
            "share": name,
            "steps": series.step[-1],
            "unit": unit,
        }
        for key, series, title, unit, share, name in phases
        if series is not None and len(series.step) > 1
    ]


def synthetic_rows(synthetic: Synthetic | None, classes: Sequence[str]) -> list[Json]:
    """Return a strip of images per class that they were made for."""
    if synthetic is None:
        return []
    return [
        {
            "name": class_name(classes, int(label)),
            "count": int((synthetic.labels == label).sum()),
            "strip": image_grid(synthetic.images[synthetic.labels == label], 1),
            "width": _strip_width(synthetic, int(label)),
        }
        for label in np.unique(synthetic.labels)
    ]


def _strip_width(synthetic: Synthetic, label: int) -> int:
    """Return CSS pixels: images of at least SIDE a side, whatever their own size."""
    side, count = int(synthetic.images.shape[3]), int((synthetic.labels == label).sum())
    scale = max(1, round(SIDE / side))
    return scale * (count * (side + 1) - 1)


def _last(values: Sequence[float | None]) -> float | None:
    return next((value for value in reversed(values) if value is not None), None)
