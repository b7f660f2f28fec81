"""What a placement breaks: limits of a core, of a connection, of the whole system."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stars_deploy.config.profile import Profile
from stars_deploy.config.profile_limits import Convolution, Limits
from stars_deploy.simulation.placement.links import Link
from stars_deploy.simulation.placement.types import Misfit, PlacedPopulation, Route


def neuron_misfits(
    population: str, needs: Mapping[str, int], limits: Mapping[str, int]
) -> list[Misfit]:
    """Return the limits that the smallest possible part of a population already exceeds."""
    return [
        Misfit(name.removesuffix("_bit"), population, needs[name], limit)
        for name, limit in limits.items()
        if needs[name] > limit
    ]


def connection_misfits(population: str, links: Sequence[Link], profile: Profile) -> list[Misfit]:
    """Return what a core cannot compute: delays that are too long, convolutions out of range."""
    found = []
    longest = profile.limits.synaptic_delay_max_steps
    for link in links:
        name = str(link.entry["name"])
        delay = int(link.entry["delay"])
        if longest is not None and delay > longest.value:
            found.append(Misfit("synaptic_delay", population, delay, longest.value, name))
        for field, need, limit in _convolution(link, profile.convolution):
            found.append(Misfit(f"convolution_{field}", population, need, limit, name))
    return found


def _convolution(link: Link, rules: Convolution) -> list[tuple[str, int, int | tuple[int, ...]]]:
    """Return (field, need, limit) of a convolution, or of a matrix as one over the whole map."""
    entry, made = link.entry, link.reads
    if len(link.weight_shape) == 4:
        kernel = link.weight_shape[2:]
        stride, padding, dilation = (entry[key] for key in ("stride", "padding", "dilation"))
        groups = int(entry["groups"])
    else:
        kernel, stride, padding, dilation, groups = link.given[1:], (1,), (0,), (1,), 1
    channels = max(made[0].shape)
    sizes = max(len(made[1]), len(made[2]))
    pairs = (
        ("kernel", max(kernel), rules.kernel_max),
        ("padding", max(padding), rules.padding_max),
        ("dilation", max(dilation), rules.dilation_max),
        ("groups", groups, rules.groups_max),
        ("channels", channels, rules.channels_max),
        ("output_size", sizes, rules.output_size_max),
    )
    found: list[tuple[str, int, int | tuple[int, ...]]] = [
        (field, int(need), limit.value)
        for field, need, limit in pairs
        if limit is not None and need > limit.value
    ]
    if rules.square_kernels is not None and rules.square_kernels.value and kernel[0] != kernel[1]:
        found.append(("square_kernel", int(kernel[0]), int(kernel[1])))
    if rules.strides is not None:
        wrong = [int(step) for step in stride if step not in rules.strides.value]
        found += [("stride", step, rules.strides.value) for step in wrong[:1]]
    return found


def system_misfits(
    populations: Sequence[PlacedPopulation], routes: Sequence[Route], limits: Limits
) -> list[Misfit]:
    """Return whether the cores of all chips suffice, and how many populations each sends to."""
    found = []
    available = limits.cores_of_system
    used = sum(len(population.parts) for population in populations)
    if available is not None and used > available:
        found.append(Misfit("cores", None, used, available))
    most = limits.destinations_per_core
    for population in populations:
        sent = sum(route.source == population.name for route in routes)
        if most is not None and sent > most.value:
            found.append(Misfit("destinations", population.name, sent, most.value))
    return found
