"""Chips on which a population is never split: one core each, of cores that may differ.

Where memory is addressed in powers of two (SynSense's DYNAP-CNN cores; sinabs, memory_summary):

    kernel words = I 2^(ceil(log2(KH KW)) + ceil(log2 O))
    neuron words = C 2^(ceil(log2 H) + ceil(log2 W))

A matrix is a convolution whose kernel covers the map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stars_deploy.config.profile_limits import Limits
from stars_deploy.simulation.placement.links import Counts, Link
from stars_deploy.simulation.placement.search import Demand, Starts, Stored, largest, whole
from stars_deploy.simulation.placement.types import Misfit


@dataclass(frozen=True)
class PaddedDemand(Demand):
    """A demand whose memory is rounded up to what the addresses span."""

    words: int = 0  # neurons
    bits: int = 0  # synapses

    def per_core(self, starts: Starts) -> dict[str, Counts]:
        """Return what the only core takes."""
        needs = super().per_core(starts)
        return {**needs, "neurons": np.full((1, 1, 1), self.words, np.int64),
                "synaptic_memory_bit": np.full((1, 1, 1), self.bits, np.int64)}  # fmt: skip


def padded_demand(demand: Demand, links: Sequence[Link], stored: Stored, limits: Limits) -> Demand:
    """Return the demand with its memory in powers of two, if the profile says so."""
    if limits.power_of_two_memory is None or not limits.power_of_two_memory.value:
        return demand
    channels, height, width = demand.shape
    bits = sum(_kernel_words(link) for link in links) * stored.weight
    words = channels * _power(height) * _power(width)
    return PaddedDemand(
        demand.shape, demand.kernel_bits, demand.synapse_bits, demand.reads, demand.fans, words,
        bits,
    )  # fmt: skip


def _kernel_words(link: Link) -> int:
    matrix = len(link.weight_shape) == 2
    height, width = link.given[1:] if matrix else link.weight_shape[2:]
    return link.given[0] * _power(height * width) * _power(link.weight_shape[0])


def _power(value: int) -> int:
    """Return the least power of two that is at least `value`."""
    return 1 << (value - 1).bit_length()


def assign_cores(demands: Mapping[str, Demand], limits: Limits) -> tuple[list[int], list[Misfit]]:
    """Return a core for each population, and what has none.

    A largest matching of populations and cores, by augmenting paths; populations without a core
    that holds them get numbers past the last one.
    """
    needs = {name: largest(demand, whole(demand.shape)) for name, demand in demands.items()}
    sizes = _sizes(limits, len(needs))
    names = list(needs)
    held = {
        name: [core for core, (neurons, bits) in enumerate(sizes)
               if needs[name]["neurons"] <= neurons and needs[name]["synaptic_memory_bit"] <= bits]
        for name in names
    }  # fmt: skip
    owner: dict[int, str] = {}
    for name in names:
        _augment(name, held, owner, set())
    core_of = {name: core for core, name in owner.items()}
    misfits = [item for name in names if name not in core_of
               for item in _why(name, needs[name], sizes, held[name])]  # fmt: skip
    spare = len(sizes)
    return [core_of.get(name, spare + index) for index, name in enumerate(names)], misfits


def _sizes(limits: Limits, populations: int) -> list[tuple[int, int]]:
    """Return (neurons, bits) of every core, as far as they are known."""
    endless = np.iinfo(np.int64).max
    if not limits.core_kinds:
        neurons, memory = limits.neurons_per_core, limits.synaptic_memory_per_core_bit
        one = (neurons.value if neurons else endless, memory.value if memory else endless)
        return [one] * (limits.cores_of_system or populations)
    chips = limits.chips.value if limits.chips else 1
    one_chip = [
        (kind.neurons, kind.synaptic_memory_bit)
        for kind in limits.core_kinds
        for _ in range(kind.cores)
    ]
    return one_chip * chips


def _augment(
    name: str, held: Mapping[str, list[int]], owner: dict[int, str], seen: set[int]
) -> bool:
    """Give `name` a core, moving others to another of theirs where that is needed."""
    for core in held[name]:
        if core in seen:
            continue
        seen.add(core)
        if core not in owner or _augment(owner[core], held, owner, seen):
            owner[core] = name
            return True
    return False


def _why(
    name: str, needs: Mapping[str, int], sizes: Sequence[tuple[int, int]], held: Sequence[int]
) -> list[Misfit]:
    """Return what keeps a population from every core; none if only the cores are taken."""
    if held:
        return [Misfit("free_cores", name, 1, 0)]
    neurons = max(size[0] for size in sizes)
    bits = max(size[1] for size in sizes if size[0] >= min(needs["neurons"], neurons))
    found = []
    if needs["neurons"] > neurons:
        found.append(Misfit("neurons", name, needs["neurons"], neurons))
    if needs["synaptic_memory_bit"] > bits:
        found.append(Misfit("synaptic_memory", name, needs["synaptic_memory_bit"], bits))
    return found
