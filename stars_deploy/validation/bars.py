"""Spikes and firing rates by layer as SVG; written by hand, since a page may hold many of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

from stars_deploy.validation.counts import SATURATED, SILENT

WIDTH, TOP, BOTTOM = 400.0, 22.0, 34.0  # SVG units: all of it, above and below the rows
LETTER, FONT = 6.2, 10  # width of a letter about, and its size
MARGIN = 14.0  # at the right, for half of the last tick's text
MOST_LETTERS = 22  # of a layer's name beside its bars
VALUE_ROOM = 0.17  # of the bars' room, for the number beside the longest

Layers = Sequence[Mapping[str, Any]]


def spikes_chart(layers: Layers, reference: str, target: str) -> Markup:
    """Return bars of the spikes per layer, reference above target."""
    series = (("spikes_reference", "reference", 3.0), ("spikes_target", "target", 14.0))
    most = max([1, *(int(layer[name]) for layer in layers for name, *_ in series)])
    frame = _Frame(layers, 28.0, most * (1 + VALUE_ROOM))
    parts = [frame.grid([(x, short(x, most)) for x in ticks(most)])]
    for row, layer in enumerate(layers):
        for name, colour, offset in series:
            value, y = int(layer[name]), TOP + 28 * row + offset
            width = frame.x(value) - frame.left
            parts.append(
                f'<rect x="{frame.left:.1f}" y="{y:.1f}" width="{width:.1f}" height="10" '
                f'style="fill:var(--{colour})"/>'
            )
            parts.append(_text(frame.x(value) + 3, y + 8.5, short(value), "value"))
    parts.append(_legend(frame.left, ((reference, "reference"), (target, "target"))))
    label = "spikes, summed over images, steps and neurons"
    return frame.drawn(parts, f"Spikes per layer, {reference} and {target}", label)


def rates_chart(layers: Layers) -> Markup:
    """Return the firing rate of each layer, with the zones where equality proves little."""
    frame = _Frame(layers, 20.0, 100.0)
    height = 20.0 * len(layers)
    parts = [
        f'<rect x="{frame.x(low):.1f}" y="{TOP:g}" width="{frame.x(high) - frame.x(low):.1f}" '
        f'height="{height:g}" style="fill:var(--line)"/>'
        for low, high in ((0, 100 * SILENT), (100 * SATURATED, 100))
    ]
    parts.append(frame.grid([(x, str(x)) for x in range(0, 101, 20)]))
    for row, layer in enumerate(layers):
        rate, y = 100 * float(layer["rate"]), TOP + 20 * row + 10
        x = frame.x(rate)
        parts.append(
            f'<line x1="{frame.left:.1f}" x2="{x:.1f}" y1="{y:g}" y2="{y:g}" '
            f'style="stroke:var(--reference);stroke-width:1.5"/>'
            f'<circle cx="{x:.1f}" cy="{y:g}" r="3.5" style="fill:var(--reference)"/>'
        )
        right = rate > 80  # no room beyond the dot: write before it, above the line
        place = (x - 6, y - 3, "value end") if right else (x + 7, y + 3.5, "value")
        parts.append(_text(place[0], place[1], f"{rate:.1f} %", place[2]))
    label = "spikes per neuron and step, %; shaded: silent or saturated"
    return frame.drawn(parts, "Firing rate of every layer", label)


def ticks(most: float) -> list[float]:
    """Return three to six round numbers from 0 to at most `most`."""
    power = 10.0 ** math.floor(math.log10(most))
    step = next(s * power for s in (0.2, 0.5, 1.0, 2.0) if most / (s * power) <= 5)
    return [index * step for index in range(int(most / step) + 1)]


def short(value: float, largest: float | None = None) -> str:
    """Return a number with the unit k, M or G of itself, or of the largest on its axis."""
    size = abs(value) if largest is None else largest
    for limit, factor, unit in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if size >= limit:
            return f"{value / factor:.3g} {unit}" if value else "0"
    return f"{value:.0f}" if value == round(value) else f"{value:g}"


class _Frame:
    """The names of layers at the left, `pitch` apart, and an axis from 0 to `end` below."""

    def __init__(self, layers: Layers, pitch: float, end: float) -> None:
        self._names = [_cut(str(layer["name"])) for layer in layers]
        self._pitch, self._end = pitch, end
        self.left = LETTER * max(map(len, self._names)) + 8
        self._base = TOP + pitch * len(layers)

    def x(self, value: float) -> float:
        return self.left + (WIDTH - MARGIN - self.left) * value / self._end

    def grid(self, marks: Sequence[tuple[float, str]]) -> str:
        lines = [
            f'<line class="grid" x1="{self.x(x):.1f}" x2="{self.x(x):.1f}" y1="{TOP:g}" '
            f'y2="{self._base:g}"/>' + _text(self.x(x), self._base + 13, text, "tick")
            for x, text in marks
        ]
        return "".join(lines)

    def drawn(self, parts: Sequence[str], said: str, label: str) -> Markup:
        names = [
            _text(self.left - 6, TOP + self._pitch * (row + 0.5) + 3.5, name, "end")
            for row, name in enumerate(self._names)
        ]
        middle = (self.left + WIDTH) / 2
        axis = _text(middle, self._base + 28, label, "tick")
        head = Markup('<svg class="bars" role="img" aria-label="{}" viewBox="0 0 {:g} {:g}">')
        content = Markup("".join([*parts, *names, axis]) + "</svg>")
        return head.format(said, WIDTH, self._base + BOTTOM) + content


def _legend(left: float, entries: Sequence[tuple[str, str]]) -> str:
    parts, x = [], left
    for name, colour in entries:
        parts.append(f'<rect x="{x:.1f}" y="4" width="9" height="9" style="fill:var(--{colour})"/>')
        parts.append(_text(x + 13, 12, _cut(name), ""))
        x += 13 + LETTER * len(_cut(name)) + 14
    return "".join(parts)


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _cut(name: str) -> str:
    return name if len(name) <= MOST_LETTERS else f"{name[: MOST_LETTERS - 1]}…"
