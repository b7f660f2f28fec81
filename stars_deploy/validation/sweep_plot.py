"""The figure of a sweep: accuracy and spikes against steps and against weight bits."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import colormaps, rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLOURS = {"float": "#2f6fdb", "integer": "#c4611c"}
MARKS = {"float": "o", "integer": "s"}
LAYERS_SHOWN = 8  # of a deeper network only the total is drawn
_STYLE = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": "#e3e5e8", "grid.linewidth": 0.6, "axes.axisbelow": True,
    "axes.edgecolor": "#8a929b", "legend.frameon": False, "legend.fontsize": 8,
}  # fmt: skip
_PANEL_INCH = (4.8, 3.3)

Json = Mapping[str, Any]


def sweep_figure(result: Json) -> bytes:
    """Return the PNG of sweep.json: one column for T, one for bits, where each was varied.

    Above: accuracy with its interval, or agreement with the float reference where no image has a
    label; the dashed line is the float graph with its own T. Below: spikes per image, in all and
    per layer. Points that did not fit have no mark.
    """
    panels = [key for key in ("steps", "bits") if result[key]]
    with rc_context(_STYLE):
        width, height = _PANEL_INCH
        figure = Figure((width * len(panels), 2 * height + 0.5), layout="constrained", dpi=150)
        axes = figure.subplots(2, len(panels), squeeze=False)
        for column, key in enumerate(panels):
            lines = _lines(result, key)
            x = "T" if key == "steps" else "weight_bits"
            _accuracy(axes[0, column], result, lines, x)
            _spikes(axes[1, column], result, lines, x)
            for row in (0, 1):
                axes[row, column].set_xticks(result[key])
                axes[row, column].set_xlabel(
                    f"time steps T{_at_bits(lines)}" if key == "steps"
                    else f"weight bits, at T = {result['T']}"
                )  # fmt: skip
        title = f"{result['source']['name']} on profile {result['profile']}"
        images = f"{result['n']} images: {result['images']}"
        joint = ", " if len(panels) > 1 else "\n"
        figure.suptitle(f"{title}{joint}{images}", fontsize=10)
        return _png(figure)


def _lines(result: Json, key: str) -> dict[str, list[Json]]:
    """Return per engine the points of one column, in order of their x."""
    ran = [point for point in result["points"] if point["spikes"] is not None]
    bits = [point["weight_bits"] for point in result["points"] if point["weight_bits"]]
    if key == "bits":
        chosen = [x for x in ran if x["T"] == result["T"] and x["weight_bits"] in result["bits"]]
        return {"integer": sorted(chosen, key=lambda point: int(point["weight_bits"]))}
    full = max(bits, default=None)
    chosen = [x for x in ran if x["weight_bits"] in (None, full) and x["T"] in result["steps"]]
    lines: dict[str, list[Json]] = {}
    for point in sorted(chosen, key=lambda point: int(point["T"])):
        lines.setdefault(point["engine"], []).append(point)
    return lines


def _accuracy(axes: Any, result: Json, lines: Mapping[str, Sequence[Json]], x: str) -> None:
    labelled = result["reference"]["accuracy"] is not None
    key, interval = ("accuracy", "interval") if labelled else ("agreement", "agreement_interval")
    for offset, (engine, points) in zip((-1, 1), lines.items(), strict=False):
        # Side by side where there are two, so that neither interval hides the other.
        shift = 0.006 * offset * _span(result, x) if len(lines) > 1 else 0.0
        values = [100 * point[key] for point in points]
        low = [100 * (point[key] - point[interval][0]) for point in points]
        high = [100 * (point[interval][1] - point[key]) for point in points]
        axes.errorbar(
            [point[x] + shift for point in points],
            values,
            yerr=(low, high),
            fmt=f"{MARKS[engine]}-",
            color=COLOURS[engine],
            markersize=4.5,
            linewidth=1.3,
            elinewidth=0.9,
            capsize=2.5,
            label=f"{engine} ({100 * result['confidence']:.0f} % interval)",
        )
    if labelled:
        level = 100 * result["reference"]["accuracy"]
        _reference(axes, level, f"float reference, T = {result['T']}: {level:.1f} %")
    axes.set_ylabel("accuracy, %" if labelled else "agreement with the float\nreference, %")
    _legend(axes, columns=1)


def _spikes(axes: Any, result: Json, lines: Mapping[str, Sequence[Json]], x: str) -> None:
    for engine, points in lines.items():
        # Both totals stay visible where one lies over the other: the float's is a larger ring.
        integer = engine == "integer"
        places = [point[x] for point in points]
        axes.plot(
            places, [point["spikes_per_image"] for point in points], f"{MARKS[engine]}-",
            color=COLOURS[engine], markersize=4.5 if integer else 8, linewidth=1.3,
            markerfacecolor=COLOURS[engine] if integer else "none",
            label=f"{engine}, all layers",
        )  # fmt: skip
    swept = list(lines.values())[-1] if lines else []
    nodes = list(swept[0]["spikes"]) if swept else []
    if 1 < len(nodes) <= LAYERS_SHOWN:
        shades = colormaps["viridis"]
        for index, node in enumerate(nodes):
            counts = [point["spikes"][node] / point["n"] for point in swept]
            axes.plot(
                [point[x] for point in swept], counts, ".-", markersize=3, linewidth=0.8,
                color=shades(0.1 + 0.75 * index / (len(nodes) - 1)), label=node,
            )  # fmt: skip
    _reference(axes, result["reference"]["spikes_per_image"], None)
    axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
    axes.set_ylabel("spikes per image")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    _legend(axes, columns=4)


def _reference(axes: Any, level: float, label: str | None) -> None:
    """Draw what the float graph with its own T reaches."""
    axes.axhline(level, color="#5b636c", linewidth=1, linestyle="--", label=label)


def _legend(axes: Any, columns: int) -> None:
    """Put the legend above the panel, where it covers no line."""
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1.01), ncols=columns, borderaxespad=0,
        handlelength=1.6, columnspacing=1.2, labelspacing=0.3,
    )  # fmt: skip


def _span(result: Json, x: str) -> float:
    values = result["steps" if x == "T" else "bits"]
    return float(max(values) - min(values))


def _at_bits(lines: Mapping[str, Sequence[Json]]) -> str:
    integer = lines.get("integer")
    return f" (integer: {integer[0]['weight_bits']} weight bits)" if integer else ""


def _png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
