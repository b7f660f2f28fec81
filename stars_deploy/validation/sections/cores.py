"""Where the integers lie: cores in use, the fullest of them, and a picture of the chips."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from stars_deploy.config.profile import Profile, load_profile
from stars_deploy.config.profile_limits import Limits
from stars_deploy.errors import BundleError, RecipeError
from stars_deploy.files import read_json, read_npz
from stars_deploy.simulation.placement.place import Part, Placement, place
from stars_deploy.simulation.placement.types import RESOURCES
from stars_deploy.validation.placement_picture import GOLDEN_RATIO, by_chip, fullness, positions

MOST_CHIPS, MOST_CORES = 16, 1024  # drawn on the page; `check --picture` draws more
CELL = 22.0  # SVG units a core
RESOURCE_TITLES = {
    "neurons": "neurons",
    "synaptic_memory_bit": "bits of synaptic memory",
    "input_axons": "input axons",
    "output_axons": "output axons",
}
FRAME = Markup(
    '<figure class="chip"><svg role="img" aria-label="{}" viewBox="0 0 {:g} {:g}" '
    'style="max-width:{:g}px">'
)
Json = dict[str, Any]


def cores_section(bundle: Path, manifest: Mapping[str, Any], given: Profile | None) -> Json | None:
    """Return the placement of a bundle's integers; None without integers or limits.

    `given` is the profile of the verdict; if the integers are for another one, that is loaded by
    its name, and `absent` says so where it is not at hand.
    """
    name = manifest["profile"]
    if name is None or not (bundle / "loihi" / "network.json").is_file():
        return None
    profile = given if given is not None and given.name == name else _named(name)
    if profile is None:
        return {"absent": f"Profile {name} is not at hand, so nothing was placed."}
    document = read_json(bundle / "loihi" / "network.json", BundleError)
    arrays = read_npz(bundle / "loihi" / "network.npz", BundleError)
    placement = place(document, arrays, profile)
    if not placement.populations:
        return {"absent": f"Nothing could be placed on {name}; see stars-deploy check."}
    return _section(placement, profile)


def _named(name: str) -> Profile | None:
    try:
        return load_profile(name)
    except RecipeError:
        return None


def _section(placement: Placement, profile: Profile) -> Json:
    limits = profile.limits
    parts = [part for item in placement.populations for part in item.parts]
    fullest = max(parts, key=lambda part: fullness(part, limits))
    owner = next(item for item in placement.populations if fullest in item.parts)
    bits = profile.arithmetic.weight_bits.value if profile.arithmetic else None
    return {
        "absent": None,
        "profile": placement.profile,
        "cores": placement.cores,
        "available": placement.cores_available,
        "chips": placement.chips,
        "shared": placement.shared,
        "misfits": [f"{item.resource.replace('_', ' ')}: needs {item.need}, limit {item.limit}"
                    for item in placement.misfits],
        "weight_bits": bits,
        "fullest": {
            "share": fullness(fullest, limits),
            "core": fullest.core,
            "population": owner.name,
            "resources": _resources(fullest, limits),
        },
        "rows": _rows(placement, limits),
        "picture": _picture(placement, limits),
        "mesh": placement.mesh is not None,
    }  # fmt: skip


def _resources(part: Part, limits: Limits) -> list[Json]:
    bounds = limits.per_core
    return [
        {"name": RESOURCE_TITLES[name], "value": getattr(part, name), "limit": bounds.get(name)}
        for name in RESOURCES
    ]


def _rows(placement: Placement, limits: Limits) -> list[Json]:
    return [
        {
            "number": index + 1,
            "hue": hue(index),
            "name": item.name,
            "relay": item.node is None,
            "neurons": item.neurons,
            "cores": len(item.parts),
            "share": max(fullness(part, limits) for part in item.parts),
            "memory": sum(part.synaptic_memory_bit for part in item.parts),
        }
        for index, item in enumerate(placement.populations)
    ]


def hue(index: int) -> int:
    """Return the hue of a population in degrees; neighbours in the list differ most."""
    return round(360 * ((0.58 + GOLDEN_RATIO * index) % 1))


def _picture(placement: Placement, limits: Limits) -> Markup:
    """Return one panel per chip: a square per core, filled as far as its scarcest resource."""
    chips = by_chip(placement)
    places = positions(placement, limits, chips)[:MOST_CORES]
    columns, rows = (int(value) + 1 for value in places.max(axis=0))
    panels = []
    for chip in sorted(chips)[:MOST_CHIPS]:
        held = {part.core_on_chip: (index, part) for index, part in chips[chip]}
        squares = enumerate(places.tolist())
        cells = [_cell(place, held.get(core), limits) for core, place in squares]
        said = f"Chip {chip}: {len(held)} cores in use"
        width, height = columns * CELL, rows * CELL
        frame = FRAME.format(said, width, height, 1.4 * width)
        caption = Markup("<figcaption>{}</figcaption></figure>").format(said)
        panels.append(frame + Markup("".join(cells) + "</svg>") + caption)
    return Markup("").join(panels)


def _cell(place: list[int], held: tuple[int, Part] | None, limits: Limits) -> str:
    x, y, side = place[0] * CELL + 1, place[1] * CELL + 1, CELL - 2
    if held is None:
        return f'<rect class="free" x="{x:g}" y="{y:g}" width="{side:g}" height="{side:g}"/>'
    index, part = held
    fill = side * min(1.0, fullness(part, limits))
    style = f"--hue:{hue(index)}"
    return (
        f'<g style="{style}"><rect class="used" x="{x:g}" y="{y:g}" width="{side:g}" '
        f'height="{side:g}"/><rect class="fill" x="{x:g}" y="{y + side - fill:.1f}" '
        f'width="{side:g}" height="{fill:.1f}"/><text x="{x + side / 2:g}" y="{y + 13.5:g}">'
        f"{index + 1}</text></g>"
    )
