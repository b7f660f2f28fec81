"""What a placement has to say: which limit a layer exceeds, by how much, and what would fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from stars_deploy.config.profile import Profile, load_profile, profile_names
from stars_deploy.config.profile_limits import Limits
from stars_deploy.simulation.placement.place import Misfit, Placement, place
from stars_deploy.simulation.placement.types import RESOURCES
from stars_deploy.targets.findings import Finding

Array = NDArray[Any]
Json = Mapping[str, Any]

_SIZES = ("cores_per_chip", "neurons_per_core", "synaptic_memory_per_core_bit")
_AXONS = ("input_axons_per_core", "output_axons_per_core")
_SMALLER = "pool or stride before it, or halve the channels that feed it"
# resource: what takes how much of it, and what to do
_TEXTS = {
    "neurons": (
        "{where} takes {need} neuron words, the largest core of {profile} holds {limit}",
        "halve its channels, or pool or stride before it",
    ),
    "synaptic_memory": (
        "the weights of the smallest part of {where} take {need} bits, a core of {profile} holds "
        "{limit}",
        _SMALLER,
    ),
    "input_axons": (
        "the smallest part of {where} listens to {need} neurons, a core of {profile} to {limit}",
        _SMALLER,
    ),
    "output_axons": (
        "one neuron of {where} sends to {need} cores, a core of {profile} has {limit} output axons",
        "halve the channels of the layers that it feeds, so that they take fewer cores",
    ),
    "free_cores": (
        "{where} finds no free core on {profile}: those that could hold it hold other layers",
        "use fewer layers, or halve its channels so that a smaller core holds it",
    ),
    "destinations": (
        "{where} feeds {need} layers, a core of {profile} sends to {limit}",
        "use fewer skip connections",
    ),
    "synaptic_delay": (
        "{connection} delays spikes by {need} steps, {profile} by at most {limit}",
        "use shorter skip connections",
    ),
}
_FIELDS = {
    "kernel": "a kernel of {need} taps a side",
    "square_kernel": "a kernel of {need} by {limit} taps",
    "stride": "a stride of {need}",
    "padding": "a padding of {need}",
    "dilation": "a dilation of {need}",
    "groups": "{need} groups",
    "channels": "{need} channels",
    "output_size": "a map of {need} neurons a side",
}
_CODES = {"free_cores": "cores"}


def placement_findings(
    placement: Placement, document: Json, arrays: Mapping[str, Array], profile: Profile
) -> list[Finding]:
    """Return the cores a network takes, what exceeds a limit, and what could not be checked."""
    found = [_finding(item, placement) for item in placement.misfits if item.resource != "cores"]
    found += _cores(placement, document, arrays, profile)
    return found + _assumptions(profile)


def _finding(item: Misfit, placement: Placement) -> Finding:
    node = _node(placement, item.population)
    values = {"where": node, "need": item.need, "profile": placement.profile,
              "limit": item.limit, "connection": item.connection}  # fmt: skip
    if item.resource.startswith("convolution_"):
        field = item.resource.removeprefix("convolution_")
        message = f"{item.connection} needs {_FIELDS[field]}, {{profile}} computes {_allowed(item)}"
        code, remedy = "convolution_limit", "change this layer, or the pool composed into it"
    else:
        message, remedy = _TEXTS[item.resource]
        code = _CODES.get(item.resource, item.resource)
    allowed = item.limit
    return Finding(
        code, "error", node, message.format(**values), float(item.need),
        float(allowed) if isinstance(allowed, int) else ", ".join(map(str, allowed)), remedy,
    )  # fmt: skip


def _allowed(item: Misfit) -> str:
    if item.resource == "convolution_square_kernel":
        return "square ones only"
    if isinstance(item.limit, tuple):
        return f"only {', '.join(map(str, item.limit))}"
    return f"at most {item.limit}"


def _node(placement: Placement, population: str | None) -> str | None:
    """Return the node of a population, or the name of a relay."""
    for entry in placement.populations:
        if entry.name == population:
            return entry.node or entry.name
    return None


def _cores(
    placement: Placement, document: Json, arrays: Mapping[str, Array], profile: Profile
) -> list[Finding]:
    available = placement.cores_available
    if available is None:
        return []
    by_size = sorted(placement.populations, key=lambda entry: -len(entry.parts))
    largest = by_size[0].node or by_size[0].name
    shown = ", ".join(f"{len(p.parts)} for {p.node or p.name}" for p in by_size[:3])
    fits = placement.cores <= available
    return [
        Finding(
            code="cores",
            severity="info" if fits else "error",
            node=None if fits else largest,
            message=f"the network takes {placement.cores} of the {available} cores of "
            f"{profile.name}: {shown}{', ...' if len(by_size) > 3 else ''}",
            value=float(placement.cores),
            limit=float(available),
            remedy="" if fits else _larger(largest, placement, document, arrays, profile),
        )
    ]


def _larger(
    largest: str, placement: Placement, document: Json, arrays: Mapping[str, Array],
    profile: Profile,
) -> str:  # fmt: skip
    """Say what would hold the network: sharing, a packaged system of the same chip, less of it."""
    ways = []
    if not placement.shared and profile.limits.splits:
        shared = place(document, arrays, _sharing(profile))
        if shared.cores < placement.cores:
            ways.append(f"declare convolution_sharing where it holds ({shared.cores} cores)")
    larger = _system_that_holds(document, arrays, profile)
    if larger is not None:
        cores = larger.limits.cores_of_system
        ways.append(f"{larger.name} ({cores} cores) holds it")
    ways.append(f"halve the channels of {largest}, or pool or stride before it")
    return "; ".join(ways)


def _sharing(profile: Profile) -> Profile:
    content = profile.model_dump(by_alias=True)
    content["limits"]["convolution_sharing"] = {
        "value": True, "source": "to compare with", "confidence": "choice",
    }  # fmt: skip
    return Profile.model_validate(content)


def _system_that_holds(
    document: Json, arrays: Mapping[str, Array], profile: Profile
) -> Profile | None:
    """Return the smallest packaged profile with the same arithmetic that holds the network."""
    others = [load_profile(name) for name in profile_names() if name != profile.name]
    alike = [other for other in others if _numbers(other) == _numbers(profile)]
    known = [(other.limits.cores_of_system or 0, other) for other in alike]
    for cores, other in sorted(known, key=lambda item: item[0]):
        if cores and not place(document, arrays, other).misfits:
            return other
    return None


def _numbers(profile: Profile) -> dict[str, Any]:
    section = {} if profile.arithmetic is None else profile.arithmetic.model_dump()
    return {
        name: item["value"] if isinstance(item, dict) else item for name, item in section.items()
    }


def _assumptions(profile: Profile) -> list[Finding]:
    """Say what was not checked because the profile leaves it out, and what was only inferred."""
    found = []
    limits = profile.limits
    sizes = () if limits.core_kinds else _SIZES
    absent = [name for name in (*sizes, *_AXONS) if getattr(limits, name) is None]
    if absent:
        message = f"not checked, because profile {profile.name} leaves it out: {', '.join(absent)}"
        found.append(Finding("limits_unknown", "info", None, message))
    sharing = limits.convolution_sharing
    if sharing is not None and sharing.value and sharing.confidence not in ("code", "paper"):
        found.append(
            Finding(
                "limits_inferred", "info", None,
                f"a core is taken to store a convolution kernel once ({sharing.confidence}: "
                f"{sharing.source})",
            )
        )  # fmt: skip
    return found


def placement_summary(placement: Placement, limits: Limits) -> dict[str, Any]:
    """Return the placement as `check --json` shows it: each population, totals, limits of a core.

    `fullest` holds per resource the most that one core of the population takes; a limit that is
    not known, or that differs between cores, is null.
    """
    bounds = limits.per_core
    return {
        "populations": [
            {
                "name": entry.name,
                "node": entry.node,
                "neurons": entry.neurons,
                "cores": len(entry.parts),
                "first_core": entry.parts[0].core,
                "chips": list(entry.chips),
                "fullest": {name: entry.fullest(name) for name in RESOURCES},
            }
            for entry in placement.populations
        ],
        "totals": placement.totals(),
        "core_limits": {name: bounds.get(name) for name in RESOURCES},
    }
