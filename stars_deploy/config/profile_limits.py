"""What the chips of a hardware profile hold, and which convolutions their cores compute."""

from __future__ import annotations

from pydantic import Field, model_validator

from stars_deploy.config.profile_values import MOST, Confidence, Count, Flag, Section, Whole, Wholes

MOST_CORES = 1 << 20  # of a system: every one of them is looked at


class CoreKind(Section):
    """Cores of one size, on a chip whose cores differ."""

    cores: int = Field(ge=1, le=MOST_CORES)
    neurons: int = Field(ge=1, le=MOST)
    synaptic_memory_bit: int = Field(ge=1, le=MOST)
    source: str = Field(min_length=1)
    confidence: Confidence


class Limits(Section):
    """What one chip holds; an absent limit is unknown.

    The mesh is one of tiles, `mesh_columns` east-west by `mesh_rows` north-south, numbered row by
    row, with `cores_per_tile` cores on each.
    """

    chips: Count | None = None
    cores_per_chip: Count | None = None
    core_kinds: tuple[CoreKind, ...] = ()  # instead of equal cores
    cores_per_tile: Count | None = None
    mesh_columns: Count | None = None
    mesh_rows: Count | None = None
    neurons_per_core: Count | None = None
    synaptic_memory_per_core_bit: Count | None = None
    synapse_index_bits: Whole | None = None  # of a synapse stored on its own, besides its weight
    synapse_delay_bits: Whole | None = None  # of a synapse with a delay of its own
    convolution_sharing: Flag | None = None  # a core stores a kernel once; absent: it does not
    split_populations: Flag | None = None  # a population may take several cores; absent: it may
    power_of_two_memory: Flag | None = None  # addresses are padded, see simulate/placement/whole.py
    destinations_per_core: Whole | None = None  # populations that one core sends to
    input_axons_per_core: Count | None = None
    output_axons_per_core: Count | None = None
    synaptic_delay_max_steps: Whole | None = None

    @model_validator(mode="after")
    def _cores_are_said_once(self) -> Limits:
        same = ("cores_per_chip", "neurons_per_core", "synaptic_memory_per_core_bit")
        given = [name for name in same if getattr(self, name) is not None]
        if self.core_kinds and given:
            raise ValueError(f"core_kinds and {given[0]} say the same thing; give one of them")
        if self.core_kinds and self.splits:
            raise ValueError(
                "core_kinds needs split_populations = false: a population is split over equal "
                "cores only"
            )
        if self.cores_of_system is not None and self.cores_of_system > MOST_CORES:
            raise ValueError(
                f"chips times their cores are {self.cores_of_system}, at most {MOST_CORES} are "
                "placed on; describe a smaller system"
            )
        if self.mesh and self.cores and self.cores > self.mesh[0] * self.mesh[1] * self.mesh[2]:
            raise ValueError("mesh_columns * mesh_rows * cores_per_tile is below cores_per_chip")
        return self

    @property
    def cores(self) -> int | None:
        """Cores of one chip."""
        if self.core_kinds:
            return sum(kind.cores for kind in self.core_kinds)
        return self.cores_per_chip.value if self.cores_per_chip else None

    @property
    def cores_of_system(self) -> int | None:
        """Cores of all chips; one chip where their number is unknown."""
        return None if self.cores is None else self.cores * (self.chips.value if self.chips else 1)

    @property
    def per_core(self) -> dict[str, int]:
        """What a core holds of each resource, where it is known and the same for all cores."""
        bounds = {
            "neurons": self.neurons_per_core,
            "synaptic_memory_bit": self.synaptic_memory_per_core_bit,
            "input_axons": self.input_axons_per_core,
            "output_axons": self.output_axons_per_core,
        }
        return {name: bound.value for name, bound in bounds.items() if bound is not None}

    @property
    def splits(self) -> bool:
        """Whether a population may take several cores."""
        return self.split_populations is None or self.split_populations.value

    @property
    def shares(self) -> bool:
        """Whether a core stores a convolution kernel once for all neurons that use it."""
        return self.convolution_sharing is not None and self.convolution_sharing.value

    @property
    def mesh(self) -> tuple[int, int, int] | None:
        """Columns and rows of tiles, and cores per tile, where all three are known."""
        if self.mesh_columns is None or self.mesh_rows is None or self.cores_per_tile is None:
            return None
        return self.mesh_columns.value, self.mesh_rows.value, self.cores_per_tile.value


class Convolution(Section):
    """Convolutions that a core can compute; an absent limit is unknown."""

    kernel_max: Whole | None = None
    square_kernels: Flag | None = None
    strides: Wholes | None = None
    padding_max: Whole | None = None
    dilation_max: Whole | None = None
    groups_max: Whole | None = None
    channels_max: Whole | None = None
    output_size_max: Whole | None = None  # height and width
