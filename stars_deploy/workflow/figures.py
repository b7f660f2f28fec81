"""Figures of comparisons and measurements, as SVG files that stand alone."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

COLOURS = {"synthetic": "#b35900", "real": "#1f5fbf"}
_STYLE = {
    "svg.hashsalt": "stars-deploy",
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def tails_figure(result: Mapping[str, Any]) -> str:
    """Return, per layer, the tail mass above every theta_t, predicted and true rates beside it."""
    layers = result["layers"]
    sources = [name for name in COLOURS if name in result["images"]]
    with rc_context(_STYLE):
        figure = Figure((7.2, 1.5 + 0.32 * len(layers)), layout="constrained")
        tails, rates = figure.subplots(1, 2, width_ratios=(3, 2))
        steps = range(1, result["T"] + 1)
        for source in sources:
            for depth, layer in enumerate(layers):
                shade = 0.35 + 0.65 * (depth + 1) / len(layers)
                label = f"{source} images" if depth == len(layers) - 1 else None
                mass = layer[source]["tail_mass"]
                tails.plot(steps, mass, "o-", ms=3, lw=1, alpha=shade, label=label,
                           color=COLOURS[source])  # fmt: skip
        tails.set_xticks(list(steps), [f"{value:.3g}" for value in result["thresholds"]])
        tails.set_xlabel("threshold current of step 1, 2, ..., T (darker: deeper layer)")
        tails.set_ylabel("share of currents above it")
        tails.set_ylim(bottom=0)
        tails.legend(loc="upper left")
        rows = range(len(layers))
        for offset, source in zip((-0.16, 0.16), sources, strict=False):
            places = [row + offset for row in rows]
            rates.barh(places, [x[source]["rate"] for x in layers], 0.3, color=COLOURS[source])
            rates.plot([x[source]["predicted_rate"] for x in layers], places, "k|", ms=7)
        rates.set_yticks(list(rows), [layer["name"] for layer in layers])
        rates.invert_yaxis()
        rates.set_xlabel("spikes per neuron and step (mark: predicted by Eq. 9)")
        return _svg(figure)


def comparison_figure(result: Mapping[str, Any]) -> str:
    """Return the last accuracy of every seed and setting, with means."""
    cells = result["cells"]
    with rc_context(_STYLE):
        figure = Figure((6.4, 1.0 + 0.38 * len(cells)), layout="constrained")
        axes = figure.subplots()
        for row, cell in enumerate(cells):
            values = [100 * value for value in cell["last"]["values"]]
            axes.plot(values, [row] * len(values), "o", ms=4, alpha=0.6, color=COLOURS["real"])
            axes.plot([100 * cell["last"]["mean"]], [row], "k|", ms=14, mew=2)
        axes.set_yticks(range(len(cells)), [cell["cell"] for cell in cells])
        axes.set_ylim(len(cells) - 0.5, -0.5)
        axes.set_xlabel("accuracy after the last step, % (dots: seeds; bar: mean)")
        axes.grid(axis="x", lw=0.4)
        return _svg(figure)


def _svg(figure: Figure) -> str:
    FigureCanvasSVG(figure)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
