"""How many cores a lowered network takes at least: neurons and weights against one core's limits.

A lower bound, population by population: cores are not shared between populations, a kernel is
stored once on every core that holds part of its map, and axons are counted for dense layers only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from stars_deploy.config.profile import Limits, Profile
from stars_deploy.targets.findings import Finding
from stars_deploy.targets.loihi.stages import INPUT, Incoming, Stage


def capacity(stages: Sequence[Stage], profile: Profile) -> list[Finding]:
    """Return what exceeds a core or the whole chip, and which limits are not known."""
    if profile.arithmetic is not None and profile.arithmetic.message_bits is None:
        stages = [_without_image(stage) for stage in stages]
    limits, bits = profile.limits, _weight_bits(profile)
    found = _unknown(profile)
    for stage in stages:
        found += _core_findings(stage, limits, bits, profile.name)
    found += _chip_findings(stages, limits, bits, profile.name)
    return found


def _without_image(stage: Stage) -> Stage:
    """Without graded messages the host computes what the image gives: no synapses, no axons."""
    stored = tuple(item for item in stage.incoming if item.source != INPUT)
    return replace(stage, incoming=stored)


def least_cores(stage: Stage, limits: Limits, bits: int) -> int:
    """Return the least number of cores of a population, from its neurons and its weights."""
    needs = [1]
    if limits.neurons_per_core is not None:
        needs.append(math.ceil(math.prod(stage.shape) / limits.neurons_per_core.value))
    if limits.synaptic_memory_per_core_bit is not None:
        stored = sum(item.weight.size for item in stage.incoming) * bits
        needs.append(math.ceil(stored / limits.synaptic_memory_per_core_bit.value))
    return max(needs)


def _weight_bits(profile: Profile) -> int:
    return profile.arithmetic.weight_bits.value if profile.arithmetic else 0


def _core_findings(stage: Stage, limits: Limits, bits: int, profile: str) -> list[Finding]:
    found = []
    for item in stage.incoming:
        need = _fan_in(item) * bits
        memory = limits.synaptic_memory_per_core_bit
        if memory is not None and need > memory.value:
            found.append(
                Finding(
                    code="synaptic_memory",
                    severity="error",
                    node=item.node,
                    message=f"the weights of one neuron take {need} bits, a core of {profile} "
                    f"holds {memory.value}",
                    value=float(need),
                    limit=float(memory.value),
                    remedy="reduce the fan-in: pool or stride before this layer",
                )
            )
        axons = limits.input_axons_per_core
        if axons is not None and item.kind == "dense" and item.weight.shape[1] > axons.value:
            found.append(
                Finding(
                    code="input_axons",
                    severity="error",
                    node=item.node,
                    message=f"every core of this dense layer listens to {item.weight.shape[1]} "
                    f"neurons, a core of {profile} to {axons.value}",
                    value=float(item.weight.shape[1]),
                    limit=float(axons.value),
                    remedy="pool or stride before this layer",
                )
            )
    return found


def _fan_in(item: Incoming) -> int:
    return math.prod(item.weight.shape[1:])


def _chip_findings(
    stages: Sequence[Stage], limits: Limits, bits: int, profile: str
) -> list[Finding]:
    if limits.cores_per_chip is None or not stages:
        return []
    available = limits.cores_per_chip.value * (limits.chips.value if limits.chips else 1)
    needs = {stage.name: least_cores(stage, limits, bits) for stage in stages}
    total = sum(needs.values())
    largest = max(needs, key=lambda name: needs[name])
    fits = total <= available
    return [
        Finding(
            code="cores",
            severity="info" if fits else "error",
            node=None if fits else largest,
            message=f"the network takes at least {total} of the {available} cores of {profile}, "
            f"{needs[largest]} of them for {largest}",
            value=float(total),
            limit=float(available),
            remedy="" if fits else "use fewer channels or smaller maps, or a system of more chips",
        )
    ]


def _unknown(profile: Profile) -> list[Finding]:
    absent = [
        name
        for name in ("input_axons_per_core", "output_axons_per_core")
        if getattr(profile.limits, name) is None
    ]
    if profile.arithmetic is None or not absent:
        return []
    return [
        Finding(
            code="limits_unknown",
            severity="info",
            node=None,
            message=f"not checked, because it is not public for {profile.name}: "
            f"{', '.join(absent)}",
        )
    ]
