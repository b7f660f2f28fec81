"""Where each layer works: how often its neurons fire, and on what currents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from stars_deploy.targets.bundle import Golden
from stars_deploy.validation.counts import state_of
from stars_deploy.validation.evidence import Histogram, LayerPoint, OperatingPoint

BAR, HEIGHT = 160.0, 18.0  # of a small picture in a table, SVG units
Json = dict[str, Any]


def layer_rows(
    golden: Golden, operating: OperatingPoint | None, order: Sequence[str]
) -> list[Json]:
    """Return a row per spiking layer: spikes of golden images, and currents where they are known.

    `order` names the layers as the network has them; an npz has them by name.

    `levels` holds the shares of neurons and images with 0, 1, .. T spikes.
    """
    points = {layer.name: layer for layer in operating.layers} if operating else {}
    spikes = golden.spikes["float"]
    return [_row(name, spikes[name], points.get(name)) for name in order]


def _row(name: str, train: np.ndarray[Any, Any], point: LayerPoint | None) -> Json:
    steps, images = train.shape[:2]
    counts = train.sum(axis=0, dtype=np.int64)
    levels = np.bincount(counts.reshape(-1), minlength=steps + 1) / counts.size
    neurons = counts.reshape(images, -1).sum(axis=0)
    rate = float(train.mean())
    return {
        "name": name,
        "neurons": int(neurons.size),
        "rate": rate,
        "state": state_of(rate),
        "silent": float((neurons == 0).mean()),
        "always": float((neurons == steps * images).mean()),
        "levels": _levels_picture(levels.tolist(), name),
        "point": point,
        "currents": None if point is None else _currents_picture(point),
        "first": None if point is None else point.tail_mass[0],
        "last": None if point is None else point.tail_mass[-1],
    }


def _levels_picture(levels: Sequence[float], name: str) -> Markup:
    """Return a bar of the shares, the more spikes the stronger its colour."""
    steps = len(levels) - 1
    said = ", ".join(f"{100 * share:.0f} % {count}" for count, share in enumerate(levels))
    parts, x = [], 0.0
    for count, share in enumerate(levels):
        width = BAR * share
        if width > 0:
            style = f"fill:var(--reference);fill-opacity:{count / steps:.3f}"
            place = f'x="{x:.2f}" y="1" width="{width:.2f}" height="16"'
            parts.append(f'<rect {place} style="{style}"/>')
        x += width
    frame = f'<rect class="frame" x="0.5" y="1" width="{BAR - 1:g}" height="16"/>'
    return _picture(f"{name}: neurons with 0 to {steps} spikes: {said}", "".join([*parts, frame]))


def _currents_picture(point: LayerPoint) -> Markup:
    """Return the histogram of the mean currents, with a line at each threshold in its range."""
    histogram = point.histogram
    most = max(*histogram.counts, 1)
    width = BAR / len(histogram.counts)
    bars = [
        f'<rect class="bar" x="{index * width:.2f}" y="{17 - 16 * count / most:.2f}" '
        f'width="{width:.2f}" height="{16 * count / most:.2f}"/>'
        for index, count in enumerate(histogram.counts)
        if count
    ]
    lines = [
        f'<line class="level" x1="{x:.2f}" x2="{x:.2f}" y1="0" y2="18"/>'
        for x in (_place(histogram, level) for level in point.thresholds or ())
        if 0 <= x <= BAR
    ]
    said = f"{point.name}: currents from {histogram.start:.3g} to {histogram.end:.3g}"
    return _picture(said, "".join([*bars, *lines]))


def _place(histogram: Histogram, value: float) -> float:
    return BAR * (value - histogram.start) / max(histogram.end - histogram.start, 1e-12)


def _picture(label: str, content: str) -> Markup:
    frame = Markup('<svg class="small" role="img" aria-label="{}" viewBox="0 0 {:g} {:g}">')
    return frame.format(label, BAR, HEIGHT) + Markup(content + "</svg>")


def thresholds_of(operating: OperatingPoint | None) -> Mapping[str, Any] | None:
    """Return the thresholds that all layers share, for the caption; None where they differ."""
    if operating is None:
        return None
    found = {layer.thresholds for layer in operating.layers}
    common = found.pop() if len(found) == 1 else None
    return {"images": operating.images, "thresholds": common}
