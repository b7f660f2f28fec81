"""What a placement says: which neurons lie on which core of which chip, and what they take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Masks = tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]
Shape3 = tuple[int, int, int]
Range = tuple[int, int]

RESOURCES = ("neurons", "synaptic_memory_bit", "input_axons", "output_axons")


@dataclass(frozen=True)
class Part:
    """The neurons of a population on one core: a box of its map (channels, rows, columns).

    A population without a map, (N,), has N channels of one row and one column, so that
    `channels` is its range of neurons.

    Attributes:
        core: counted over all chips, chips filled in order.
        chip, core_on_chip: the same core, counted on its chip.
        tile: of the chip's mesh, row by row; None where the mesh is not known.
        synaptic_memory_bit: of all synapses that end on the core.
        input_axons: neurons, or pixels, that send to the core.
        output_axons: pairs of a neuron of the core and a core that it sends to.
    """

    core: int
    chip: int
    core_on_chip: int
    tile: int | None
    channels: Range
    rows: Range
    columns: Range
    neurons: int
    synaptic_memory_bit: int
    input_axons: int
    output_axons: int


@dataclass(frozen=True)
class PlacedPopulation:
    """A population, its map (C, H, W), and its parts in the order of its grid of boxes."""

    name: str
    node: str | None  # None: a relay
    shape: Shape3
    parts: tuple[Part, ...]

    @property
    def neurons(self) -> int:
        """Neurons of the population."""
        return int(np.prod(self.shape))

    @property
    def chips(self) -> tuple[int, ...]:
        """Chips that hold a part of it."""
        return tuple(sorted({part.chip for part in self.parts}))

    def fullest(self, resource: str) -> int:
        """Return the most that one of its cores takes of a resource."""
        return max(int(getattr(part, resource)) for part in self.parts)


@dataclass(frozen=True)
class Route:
    """Which neurons of a source each part of a target listens to.

    `reads` holds per connection three masks, [channel blocks, C], [row blocks, H] and
    [column blocks, W] of the source; a part listens to the product of its three rows, and to the
    union over the connections.
    """

    source: str
    target: str
    reads: tuple[Masks, ...]


@dataclass(frozen=True)
class Misfit:
    """A limit that no placement of this network respects; `population` None: the whole network.

    `resource` is one of neurons, synaptic_memory, input_axons, output_axons, cores, destinations,
    synaptic_delay, convolution_<field>.
    """

    resource: str
    population: str | None
    need: int
    limit: int | tuple[int, ...]
    connection: str | None = None


@dataclass(frozen=True)
class Placement:
    """A network on the cores of a profile's chips.

    Attributes:
        routes: from placed populations only; the image comes from outside.
        mesh: columns and rows of tiles and cores per tile, None where they are not known.
        cores_available: of all chips, None where it is not known.
        shared: a core stores a convolution kernel once.
    """

    profile: str
    populations: tuple[PlacedPopulation, ...]
    routes: tuple[Route, ...]
    mesh: tuple[int, int, int] | None
    cores_available: int | None
    shared: bool
    misfits: tuple[Misfit, ...]

    @property
    def cores(self) -> int:
        """Cores in use."""
        return sum(len(population.parts) for population in self.populations)

    @property
    def chips(self) -> int:
        """Chips in use."""
        return len({chip for population in self.populations for chip in population.chips})

    def totals(self) -> dict[str, Any]:
        """Return cores, chips, neurons and synaptic memory in use."""
        parts = [part for population in self.populations for part in population.parts]
        return {
            "cores": self.cores,
            "cores_available": self.cores_available,
            "chips": self.chips,
            "neurons": sum(part.neurons for part in parts),
            "synaptic_memory_bit": sum(part.synaptic_memory_bit for part in parts),
            "convolution_sharing": self.shared,
        }
