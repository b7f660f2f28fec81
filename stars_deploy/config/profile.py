"""Hardware profiles: one TOML file of data says what a target computes with and what it holds.

A number comes with its unit in the key, and with its source and how far to trust it. What is not
public is absent: a check that needs an absent limit is not made, and says so.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from stars_deploy.assets import asset
from stars_deploy.config.profile_limits import Convolution, Limits
from stars_deploy.config.profile_values import Real, Section, Whole
from stars_deploy.config.recipe import RECIPE_BYTES, explain
from stars_deploy.errors import RecipeError, nearest
from stars_deploy.files import require_plain

STATE_SHIFT, DECAY_BITS = 6, 12  # of a leaky step, as lava-nc 0.10.0 computes it


def _within(low: int, high: int) -> AfterValidator:
    """Return a validator of a constant whose value is from `low` to `high`."""

    def check(item: Whole) -> Whole:
        if not low <= item.value <= high:
            expected = str(low) if low == high else f"{low} to {high}"
            raise ValueError(f"value = {item.value}, expected {expected}")
        return item

    return AfterValidator(check)


class Identity(Section):
    """What the profile describes.

    `loihi`: leaky integrate-and-fire in Loihi's integers. `integer-if`: the same step without a
    leak, v = v + (a << state_shift_bits) + bias, inside narrower ranges.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    family: Literal["reference", "loihi", "integer-if"]
    description: str
    references: tuple[str, ...] = ()


class Arithmetic(Section):
    """How numbers are held; absent in a profile that computes in floating point.

    A magnitude of n bits means |x| < 2^n. Activations `a` are counted in weight units; the state
    (u, v) and the threshold are `a` shifted left by `state_shift_bits`.

    Ranges may be narrower than those of `network.json`, which are Loihi 2's in Lava, not wider:
    nothing could be written, or run, that uses more.
    """

    weight_bits: Annotated[Whole, _within(2, 8)]  # two's complement
    accumulator_magnitude_bits: Annotated[Whole, _within(1, 17)]  # a
    state_magnitude_bits: Annotated[Whole, _within(1, 23)]  # u, v
    state_shift_bits: Annotated[Whole, _within(0, STATE_SHIFT)]
    threshold_bits: Annotated[Whole, _within(1, 17)]  # unsigned mantissa
    # du, dv in units of 2^-bits; absent: there is no leak
    decay_bits: Annotated[Whole, _within(DECAY_BITS, DECAY_BITS)] | None = None
    bias_magnitude_bits: Annotated[Whole, _within(1, 12)]  # mantissa, besides its sign
    bias_exponent_max: Annotated[Whole, _within(0, 7)]
    # signed graded messages; absent: spikes are binary only
    message_bits: Annotated[Whole, _within(2, 24)] | None = None
    decay_rounding: Literal["toward_zero"] | None = None
    spike_comparison: Literal["strict"]
    reset: Literal["hard_to_zero"]

    @model_validator(mode="after")
    def _state_fits_the_step(self) -> Arithmetic:
        shift, state = self.state_shift_bits.value, self.state_magnitude_bits.value
        if not shift < state <= shift + 17:
            raise ValueError(
                f"state_magnitude_bits = {state}: expected {shift + 1} to {shift + 17}, "
                f"1 to 17 above state_shift_bits = {shift}"
            )
        return self


class Operators(Section):
    """NIR node types that can be run or lowered."""

    supported: tuple[str, ...] = Field(min_length=1)
    source: str = Field(min_length=1)


class Tolerances(Section):
    """How far the target may be from the float reference (fractions)."""

    accuracy_delta: float = Field(ge=0, le=1)
    total_spikes_relative: float = Field(ge=0)
    layer_spikes_relative: float = Field(ge=0)
    source: str = Field(min_length=1)


class Energy(Section):
    """Energy of one event, in pJ; estimates made from it are modeled, not measured."""

    kind: Literal["modeled"]
    extrapolated_from: str | None = None  # another chip whose constants these are
    synaptic_operation_pj: Real
    neuron_update_active_pj: Real
    neuron_update_inactive_pj: Real
    spike_within_tile_pj: Real
    hop_east_west_pj: Real
    hop_north_south_pj: Real


class Timing(Section):
    """Duration of one event, in ns; estimates made from it are modeled, not measured."""

    kind: Literal["modeled"]
    extrapolated_from: str | None = None
    synaptic_operation_ns: Real
    neuron_update_active_ns: Real
    neuron_update_inactive_ns: Real
    spike_within_tile_ns: Real
    hop_east_west_ns: Real
    hop_north_south_ns: Real
    barrier_one_tile_ns: Real
    barrier_all_tiles_ns: Real


class Profile(Section):
    """One hardware target."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    identity: Identity
    arithmetic: Arithmetic | None = None
    limits: Limits = Limits()
    convolution: Convolution = Convolution()
    operators: Operators
    tolerances: Tolerances
    energy: Energy | None = None
    timing: Timing | None = None

    @model_validator(mode="after")
    def _integer_families_say_how(self) -> Profile:
        if (self.identity.family == "reference") != (self.arithmetic is None):
            raise ValueError(
                f"family {self.identity.family!r} and the section 'arithmetic' do not go "
                f"together: 'loihi' and 'integer-if' need it, 'reference' computes in floating "
                f"point"
            )
        if self.arithmetic is None:
            return self
        leaky = self.arithmetic.decay_bits is not None
        if leaky != (self.identity.family == "loihi"):
            raise ValueError("arithmetic.decay_bits: 'loihi' needs it, 'integer-if' has no leak")
        shift = self.arithmetic.state_shift_bits.value
        if leaky and shift != STATE_SHIFT:
            raise ValueError(
                f"arithmetic.state_shift_bits = {shift}: a state that leaks is rounded "
                f"{STATE_SHIFT} bits below a, and no engine computes otherwise; write {STATE_SHIFT}"
            )
        if not leaky and "LIF" in self.operators.supported:
            raise ValueError("operators.supported: 'integer-if' has no leak, so no LIF")
        return self

    @property
    def name(self) -> str:
        """Name that bundles and reports carry."""
        return self.identity.name


def profile_names() -> list[str]:
    """Return the names of the packaged profiles."""
    return sorted(path.stem for path in asset("hardware_profiles").glob("*.toml"))


def find_profile(spec: str | Path) -> Path:
    """Return the file that `spec` names: a path, or the name of a packaged profile."""
    path = Path(spec)
    if path.is_file():
        return path
    packaged = asset("hardware_profiles", f"{spec}.toml")
    if path.name == str(spec) and packaged.is_file():
        return packaged
    raise RecipeError(
        f"profile {str(spec)!r} is neither a file nor a packaged profile"
        f"{nearest(str(spec), profile_names())}"
    )


def load_profile(spec: str | Path) -> Profile:
    """Read and validate the profile named `spec`, or the one in the file `spec`.

    Raises:
        RecipeError: unknown profile, malformed TOML, unknown key, or a value out of range.
    """
    path = find_profile(spec)
    require_plain(path, RecipeError, RECIPE_BYTES)
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as problem:
        raise RecipeError(f"{path}: not valid TOML ({problem})") from None
    return parse_profile(document, str(path))


def parse_profile(document: Mapping[str, Any], origin: str) -> Profile:
    """Validate a profile given as nested mappings; `origin` names it in messages."""
    try:
        return Profile.model_validate(document)
    except ValidationError as problem:
        raise RecipeError(f"{origin}: {explain(problem, Profile)}") from None
