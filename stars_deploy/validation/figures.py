"""What the figures of the report share: SVG that takes its colours from the page."""

from __future__ import annotations

import io
import re
from typing import Any

from markupsafe import Markup, escape
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# Colours that no figure uses otherwise; in the SVG each becomes a variable of the page, so that
# one figure serves light, dark and print.
INK, MUTED, LINE, REFERENCE, TARGET = "#010101", "#020202", "#030303", "#040404", "#050505"
_VARIABLES = {
    INK: "var(--ink)", MUTED: "var(--muted)", LINE: "var(--line)",
    REFERENCE: "var(--reference)", TARGET: "var(--target)",
}  # fmt: skip
STYLE: dict[str, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "stars-deploy", "font.size": 8.5,
    "text.color": INK, "axes.labelcolor": MUTED, "axes.edgecolor": LINE,
    "xtick.color": MUTED, "ytick.color": INK, "ytick.left": False, "xtick.bottom": False,
    "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False,
    "axes.facecolor": "none", "figure.facecolor": "none", "legend.frameon": False,
}  # fmt: skip
WIDTH_INCH = 4.2


def new_figure(height: float, width: float = WIDTH_INCH) -> tuple[Figure, Any]:
    """Return a figure of `height` inches with one panel."""
    figure = Figure((width, height), layout="constrained")
    return figure, figure.add_subplot()


def svg(figure: Figure, key: str, label: str) -> Markup:
    """Return the figure as an SVG element without prolog, metadata or absolute size.

    Texts in it were escaped by matplotlib. `key` sets its ids apart from those of other figures on
    the page, `label` is what a screen reader says.
    """
    FigureCanvasSVG(figure)
    buffer = io.StringIO()
    keys = ("Creator", "Date", "Format", "Type")
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(keys))
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"font-family: [^;\"]*", "font-family: inherit", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    text = text.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)
    return Markup(_scoped(text, key))


def _scoped(svg: str, key: str) -> str:
    """Return a figure whose ids begin with `key`, so that several fit on one page."""
    svg = re.sub(r'(<g) id="[^"]*"', r"\1", svg)  # nobody refers to groups
    for mark in ('id="', 'href="#', "url(#"):
        svg = svg.replace(mark, f"{mark}{key}-")
    return svg
