"""Figures of accuracy and of the distillation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup
from matplotlib import rc_context

from stars_deploy.validation.evidence import Series
from stars_deploy.validation.figures import (
    LINE,
    MUTED,
    REFERENCE,
    STYLE,
    TARGET,
    new_figure,
    svg,
)
from stars_deploy.validation.sections.accuracy import TEACHER

Row = Mapping[str, Any]


def accuracy_chart(rows: Sequence[Row], key: str) -> Markup:
    """Return one dot a row {label, value, low, high} with its interval."""
    with rc_context(STYLE):
        figure, axes = new_figure(0.55 + 0.36 * len(rows))
        for index, row in enumerate(rows):
            colour = MUTED if row["label"] == TEACHER else REFERENCE
            axes.plot([100 * row["low"], 100 * row["high"]], [index] * 2, color=colour, linewidth=2)
            axes.plot(100 * row["value"], index, "o", color=colour, markersize=6)
            said = f"{100 * row['value']:.2f} %"
            axes.annotate(said, (100 * row["high"], index), (5, 0), va="center",
                          textcoords="offset points")  # fmt: skip
        axes.set_yticks(range(len(rows)), [row["label"] for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        low, high = 100 * min(row["low"] for row in rows), 100 * max(row["high"] for row in rows)
        room = max(high - low, 1.0)
        axes.set_xlim(low - 0.1 * room, high + 0.45 * room)
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlabel("top-1 accuracy, %, with 95 % interval")
        axes.grid(axis="x", color=LINE, linewidth=0.6)
        axes.set_axisbelow(True)
        said = "; ".join(f"{row['label']} {100 * row['value']:.2f} %" for row in rows)
        return svg(figure, key, f"Accuracy: {said}")


def by_steps_chart(points: Sequence[Row], teacher: float | None, key: str) -> Markup:
    """Return accuracy after the first t of T steps, with the band of its interval."""
    with rc_context(STYLE):
        figure, axes = new_figure(2.6)
        steps = range(1, len(points) + 1)
        low, high = ([100 * point[side] for point in points] for side in ("low", "high"))
        axes.fill_between(steps, low, high, color=REFERENCE, alpha=0.18, linewidth=0)
        axes.plot(steps, [100 * point["value"] for point in points], "o-", color=REFERENCE,
                  linewidth=1.6, markersize=5, label="student, 95 % band")  # fmt: skip
        if teacher is not None:
            axes.axhline(100 * teacher, color=MUTED, linewidth=1.2, linestyle="--",
                         label=f"teacher, {100 * teacher:.2f} %")  # fmt: skip
        axes.xaxis.get_major_locator().set_params(integer=True)
        if len(points) <= 16:
            axes.set_xticks(list(steps))
        axes.set_xlabel("time steps used")
        axes.set_ylabel("top-1 accuracy, %")
        axes.grid(axis="y", color=LINE, linewidth=0.6)
        figure.legend(loc="outside upper left", ncols=2, handlelength=1.5)
        said = ", ".join(f"{100 * x['value']:.2f} % at {t}" for t, x in enumerate(points, 1))
        return svg(figure, key, f"Accuracy against time steps: {said}")


def curve_chart(series: Series, unit: str, share: str, name: str, key: str) -> Markup:
    """Return the loss and a share over the steps of a phase, one above the other."""
    with rc_context(STYLE):
        figure, _ = new_figure(3.0)
        figure.clear()
        loss, other = figure.subplots(2, 1, sharex=True)
        for axes, column, colour, factor in (
            (loss, "loss", TARGET, 1.0), (other, share, REFERENCE, 100.0)
        ):  # fmt: skip
            found = zip(series.step, series.values.get(column, ()), strict=False)
            held = [(x, factor * y) for x, y in found if y is not None]
            axes.plot([x for x, _ in held], [y for _, y in held], color=colour, linewidth=1.3)
            axes.grid(axis="y", color=LINE, linewidth=0.6)
            axes.locator_params(axis="y", nbins=4)
        loss.set_title("loss", loc="left", fontsize=8.5)
        other.set_title(f"{name}, %", loc="left", fontsize=8.5)
        other.set_xlabel(unit)
        return svg(figure, key, f"Loss and {name} over {series.step[-1]} {unit}")
