"""Figures of parity and spikes, and small PNGs."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib import image as png
from matplotlib import rc_context
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

from stars_deploy.validation.counts import SATURATED, SILENT
from stars_deploy.validation.figures import (
    INK,
    LINE,
    MUTED,
    REFERENCE,
    STYLE,
    TARGET,
    new_figure,
    svg,
)

_COLUMNS = 360  # of the raster; wider layers are binned


def spikes_chart(
    layers: Sequence[Mapping[str, Any]], reference: str, target: str, key: str
) -> Markup:
    """Return bars of the spikes per layer, reference above target."""
    with rc_context(STYLE):
        figure, axes = new_figure(0.9 + 0.42 * len(layers))
        rows = np.arange(len(layers))
        series = (("spikes_reference", REFERENCE, reference, -0.18),
                  ("spikes_target", TARGET, target, 0.18))  # fmt: skip
        most = max([1, *(int(layer[name]) for layer in layers for name, *_ in series)])
        for name, colour, label, offset in series:
            values = [int(layer[name]) for layer in layers]
            axes.barh(rows + offset, values, 0.32, color=colour, label=label)
            for row, value in zip(rows, values, strict=True):
                axes.text(value + most / 80, row + offset, _short(value), va="center", fontsize=7.5)
        axes.set_xlim(0, most * 1.16)
        axes.xaxis.set_major_formatter(lambda value, _: _short(value, most))
        axes.locator_params(axis="x", nbins=5)
        _finish(axes, layers, "spikes, summed over images, steps and neurons")
        figure.legend(loc="outside upper left", ncols=2, handlelength=1)
        return svg(figure, key, f"Spikes per layer, {reference} and {target}")


def rates_chart(layers: Sequence[Mapping[str, Any]], key: str) -> Markup:
    """Return the firing rate of each layer, with the zones where equality proves little."""
    with rc_context(STYLE):
        figure, axes = new_figure(0.9 + 0.3 * len(layers))
        for low, high in ((0, 100 * SILENT), (100 * SATURATED, 100)):
            axes.axvspan(low, high, color=LINE)
        rates = [100 * float(layer["rate"]) for layer in layers]
        rows = np.arange(len(layers))
        axes.hlines(rows, 0, rates, color=REFERENCE, linewidth=1.5)
        axes.plot(rates, rows, "o", color=REFERENCE, markersize=6)
        for row, rate in zip(rows, rates, strict=True):
            right = rate > 80  # no room beyond the dot: write above the line
            place = (rate - 2, row - 0.28) if right else (rate + 3, row)
            side = "right" if right else "left"
            axes.text(*place, f"{rate:.1f} %", va="center", ha=side, fontsize=7.5)
        axes.set_xlim(0, 100)
        _finish(axes, layers, "spikes per neuron and step, %; shaded: silent or saturated")
        return svg(figure, key, "Firing rate of every layer")


def raster(spikes: Mapping[str, NDArray[np.uint8]], key: str) -> Markup:
    """Return when which neuron fired for one image; `spikes` per layer [T, ...].

    A layer of more neurons than columns is binned: the darker, the more neurons of the bin fired.
    """
    hue = LinearSegmentedColormap.from_list("spikes", [(0.3, 0.5, 0.9, 0.0), (0.24, 0.48, 0.9, 1)])
    with rc_context({**STYLE, "ytick.color": MUTED, "font.size": 7}):
        figure = Figure((7, 0.2 + 0.55 * len(spikes)), layout="constrained")
        panels = figure.subplots(len(spikes), 1, squeeze=False)[:, 0]
        for axes, (node, train) in zip(panels, spikes.items(), strict=True):
            flat = train.reshape(len(train), -1)
            axes.imshow(
                _binned(flat), aspect="auto", interpolation="nearest", cmap=hue, vmin=0, vmax=1
            )
            axes.set_yticks([0, len(flat) - 1], ["1", str(len(flat))])
            axes.set_xticks([])
            axes.set_title(f"{node}: {flat.shape[1]} neurons, {int(flat.sum())} spikes",
                           loc="left", fontsize=7, color=INK, pad=3)  # fmt: skip
        return svg(figure, key, "Spikes of every layer by neuron and time step")


def image_grid(images: NDArray[np.uint8], scale: int = 2) -> str:
    """Return images [N, C, H, W] side by side as a PNG data URI; C = 1 is grey, 3 is colour."""
    tiles = images.transpose(0, 2, 3, 1)
    if tiles.shape[-1] != 3:
        tiles = np.repeat(tiles.mean(axis=-1, keepdims=True).astype(np.uint8), 3, axis=-1)
    gap = np.full((len(tiles), tiles.shape[1], 1, 3), 128, np.uint8)
    strip = np.concatenate(list(np.concatenate([tiles, gap], axis=2)), axis=1)[:, :-1]
    buffer = io.BytesIO()
    png.imsave(buffer, strip.repeat(scale, axis=0).repeat(scale, axis=1), format="png")
    return data_uri(buffer.getvalue())


def data_uri(content: bytes) -> str:
    """Return a PNG as a data URI."""
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")


def _binned(flat: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return [T, columns]: the share of neurons per column that fired, scaled to the busiest."""
    columns = min(_COLUMNS, flat.shape[1])
    edges = np.linspace(0, flat.shape[1], columns + 1).astype(int)
    shares = np.add.reduceat(flat.astype(np.float64), edges[:-1], axis=1) / np.diff(edges)
    return shares / max(float(shares.max()), 1e-9)


def _finish(axes: Any, layers: Sequence[Mapping[str, Any]], label: str) -> None:
    axes.set_yticks(range(len(layers)), [str(layer["name"]) for layer in layers])
    axes.set_ylim(len(layers) - 0.5, -0.5)
    axes.set_xlabel(label)
    axes.grid(axis="x", color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)


def _short(value: float, largest: float | None = None) -> str:
    """Return a number with the unit k, M or G of itself, or of the largest on its axis."""
    size = abs(value) if largest is None else largest
    for limit, factor, unit in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if size >= limit:
            return f"{value / factor:.3g} {unit}" if value else "0"
    return f"{value:.0f}"
