"""A picture of the chips: which core holds which population, and how full it is."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from stars_deploy.config.profile_limits import Limits
from stars_deploy.files import atomic_path
from stars_deploy.simulation.placement.place import Part, Placement

SOFTWARE, MADE_BY = "Software", "stars-deploy check"  # by which a PNG is known to be one of these
MOST_CHIPS, MOST_CORES = 48, 4096  # drawn, cores per chip; titles say how many there are
_FREE, _LINE, _INK, _MUTED = "#eceff1", "#ffffff", "#1b1f24", "#5c6670"
_STYLE: dict[str, Any] = {"font.size": 8, "text.color": _INK, "axes.edgecolor": "#c5ccd3"}
_LEGEND_ROWS = 12
_SIDE = 40.0  # inches of all cores at most, on either axis
GOLDEN_RATIO = 0.618034  # of the hue circle: neighbours in the list differ most


def draw_placement(placement: Placement, limits: Limits, path: Path) -> None:
    """Write a PNG: one panel per chip in use, one square per core.

    A square has the colour and the number of its population and is filled from below up to the
    share of its scarcest resource; grey cores are free. The mesh is drawn where it is known,
    otherwise cores stand in their order.

    Raises: OSError if the file cannot be written.
    """
    colours = _colours(len(placement.populations))
    held = by_chip(placement)
    chips = sorted(held)[:MOST_CHIPS]
    places = positions(placement, limits, held)
    across = min(len(chips), int(np.ceil(np.sqrt(len(chips) * 1.6))))
    down = -(-len(chips) // across)
    numbered = len(chips) <= 4
    columns, rows = places.max(axis=0) + 1
    cell = 0.42 if len(chips) == 1 else 0.24 if numbered else 0.11
    room = _SIDE / max(across * columns, down * rows)
    numbered, cell = numbered and room > 0.15, min(cell, room)
    entries = _legend(placement, colours)
    width = max(across * (columns * cell + 0.25), 6.4)
    legend_columns = max(1, min(-(-len(entries) // _LEGEND_ROWS), int(width // 2.0)))
    legend_height = 0.19 * -(-len(entries) // legend_columns) + 0.3
    height = down * (rows * cell + 0.3) + 0.6 + legend_height
    with rc_context(_STYLE):
        figure = Figure((width, height), layout="constrained")
        panels = figure.subplots(down, across, squeeze=False).reshape(-1)
        for axes, chip in zip(panels, chips, strict=False):
            shown = [item for item in held[chip] if item[1].core_on_chip < len(places)]
            _draw_chip(axes, shown, places, colours, limits, numbered)
            cores = max(limits.cores or 0, len(places))
            title = f"chip {chip}: {len(held[chip])} of {cores} cores"
            if len(shown) < len(held[chip]):
                title += f", the first {len(places)} are drawn"
            size = 7 if numbered else 5.5
            axes.set_title(title, loc="left", fontsize=size, color=_MUTED, pad=2)
        for axes in panels[len(chips) :]:
            axes.set_axis_off()
        figure.suptitle(_title(placement, len(held) - len(chips)), x=0.01, ha="left", fontsize=9)
        figure.legend(handles=entries, loc="outside lower left", ncols=legend_columns,
                      frameon=False, fontsize=7.5, handlelength=1, handleheight=1)  # fmt: skip
        FigureCanvasAgg(figure)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", dpi=130, metadata={SOFTWARE: MADE_BY})


def by_chip(placement: Placement) -> dict[int, list[tuple[int, Part]]]:
    """Return the parts on every chip in use, each with the index of its population."""
    found: dict[int, list[tuple[int, Part]]] = {}
    for index, population in enumerate(placement.populations):
        for part in population.parts:
            found.setdefault(part.chip, []).append((index, part))
    return found


def _title(placement: Placement, hidden: int) -> str:
    available = placement.cores_available
    text = f"{placement.profile}: {placement.cores} cores"
    if available is not None:
        text += f" of {available}"
    text += f" on {placement.chips} chip{'s' if placement.chips > 1 else ''}"
    if available is not None and placement.cores > available:
        text += ", does not fit"
    if hidden:
        text += f"; {hidden} chips more are not drawn"
    order = "" if placement.mesh else "; the mesh is not known, cores stand in their order"
    return f"{text}{order}\nfilled from below: share of the core's scarcest resource"


def _legend(placement: Placement, colours: list[tuple[float, float, float]]) -> list[Patch]:
    return [
        Patch(
            color=colours[index],
            label=f"{index + 1}  {entry.name}{'' if entry.node else ' (relay)'}: "
            f"{len(entry.parts)} core{'s' if len(entry.parts) > 1 else ''}",
        )
        for index, entry in enumerate(placement.populations)
    ]


def _colours(count: int) -> list[tuple[float, float, float]]:
    lightness = (0.45, 0.6, 0.38)
    return [
        colorsys.hls_to_rgb(0.58 + GOLDEN_RATIO * index, lightness[index % 3], 0.62)
        for index in range(count)
    ]


def positions(
    placement: Placement, limits: Limits, held: Mapping[int, list[tuple[int, Part]]]
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return column and row of every core of a chip that is drawn."""
    used = max(part.core_on_chip for parts in held.values() for _, part in parts) + 1
    cores = np.arange(min(max(limits.cores or 0, used), MOST_CORES))
    if placement.mesh is None:
        columns = int(np.ceil(np.sqrt(2 * len(cores))))
        return np.stack([cores % columns, cores // columns], axis=1)
    tiles_across, _, per_tile = placement.mesh
    side = int(np.ceil(np.sqrt(per_tile)))
    tile, inside = np.divmod(cores, per_tile)
    column = tile % tiles_across * side + inside % side
    row = tile // tiles_across * -(-per_tile // side) + inside // side
    return np.stack([column, row], axis=1)


def _draw_chip(
    axes: Any,
    parts: list[tuple[int, Part]],
    positions: np.ndarray[Any, np.dtype[np.int64]],
    colours: list[tuple[float, float, float]],
    limits: Limits,
    numbered: bool,
) -> None:
    squares = [Rectangle((float(x), float(y)), 1, 1) for x, y in positions]
    faces: list[Any] = [_FREE] * len(squares)
    fills, shades = [], []
    for index, part in parts:
        colour = np.array(colours[index])
        faces[part.core_on_chip] = tuple(1 - 0.35 * (1 - colour))
        share = min(1.0, fullness(part, limits))
        x, y = (float(value) for value in positions[part.core_on_chip])
        fills.append(Rectangle((x, y + 1 - share), 1, share))
        shades.append(tuple(colour))
        if numbered:
            axes.text(x + 0.5, y + 0.27, str(index + 1), ha="center", va="center", fontsize=6,
                      color=_LINE if share > 0.85 else _INK)  # fmt: skip
    axes.add_collection(PatchCollection(squares, facecolors=faces, edgecolors="none"))
    axes.add_collection(PatchCollection(fills, facecolors=shades, edgecolors="none"))
    axes.add_collection(
        PatchCollection(squares, facecolors="none", edgecolors=_LINE, linewidths=0.8)
    )
    columns, rows = positions.max(axis=0) + 1
    axes.set_xlim(0, columns)
    axes.set_ylim(rows, 0)
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])


def fullness(part: Part, limits: Limits) -> float:
    """Return the largest share of a core's resources that is taken; 0 where none is known."""
    bounds = dict(limits.per_core)
    if limits.core_kinds:
        kinds = [kind for kind in limits.core_kinds for _ in range(kind.cores)]
        kind = kinds[part.core_on_chip % len(kinds)]
        bounds |= {"neurons": kind.neurons, "synaptic_memory_bit": kind.synaptic_memory_bit}
    return max((getattr(part, name) / bound for name, bound in bounds.items()), default=0.0)
