"""What a sweep is to vary: every value checked before anything is run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stars_deploy.config.profile import Profile
from stars_deploy.errors import InputError, nearest
from stars_deploy.graph.metadata import MAX_STEPS
from stars_deploy.workflow.setting import default_engine

AXES = ("T", "bits", "both")
ENGINES = ("float", "integer")
STEPS = (1, 2, 4, 6, 8)
FEWER_BITS = (0, 2, 3, 4)  # less than the profile's
LEAST_BITS = 2  # a sign and one bit


@dataclass(frozen=True)
class Plan:
    """What is asked for: `steps` at the profile's bits, `bits` at the graph's own steps."""

    profile: Profile
    engine: str
    steps: tuple[int, ...]
    bits: tuple[int, ...]


def parse_values(given: str | Sequence[int] | None, option: str) -> tuple[int, ...] | None:
    """Return whole numbers, or those of "8,6,5", each once, ascending; InputError otherwise."""
    if given is None:
        return None
    parts = given.split(",") if isinstance(given, str) else given
    try:
        return tuple(sorted({int(part) for part in parts}))
    except ValueError:
        raise InputError(f"{option} {given!r}: expected whole numbers such as 8,6,4") from None


def axis_of(over: str | None, profile: Profile, engine: str | None) -> str:
    """Return the axes asked for, by default all that the engine has; InputError if it has not."""
    if over is not None and over not in AXES:
        raise InputError(f"--over {over!r} is unknown{nearest(over, AXES)}")
    if engine is not None and engine not in ENGINES:
        raise InputError(
            f"--engine {engine!r}: a sweep runs {' or '.join(ENGINES)}; the other engines repeat "
            "these two (stars-deploy validate says whether they do)"
        )
    name = engine or default_engine(profile)
    if name == "integer" and profile.arithmetic is None:
        raise InputError(
            f"--engine integer: profile {profile.name} computes in floating point; choose a "
            "Loihi profile"
        )
    if over is None:
        return "both" if name == "integer" else "T"
    if over != "T" and name == "float":
        raise InputError(f"--over {over}: engine float has no weight bits; give --engine integer")
    return over


def plan_of(
    profile: Profile,
    axis: str,
    steps: Sequence[int] | None,
    bits: Sequence[int] | None,
    engine: str | None,
    trained: int,
) -> Plan:
    """Return the plan of the given or default values; `trained` is the graph's own T.

    Raises: InputError for a value out of range, or one that `axis` does not vary.
    """
    most = profile.arithmetic.weight_bits.value if profile.arithmetic else 0
    for name, given, other in (("--steps", steps, "bits"), ("--bits", bits, "T")):
        if given is not None and axis == other:
            raise InputError(f"{name}: --over {axis} does not vary it; give --over both")
    chosen = tuple(sorted(set(steps or (*STEPS, trained)))) if axis != "bits" else ()
    defaults = [most - less for less in FEWER_BITS if most - less >= LEAST_BITS]
    widths = tuple(sorted(set(bits or defaults))) if axis != "T" else ()
    for value in chosen:
        if not 1 <= value <= MAX_STEPS:
            raise InputError(f"--steps {value}: expected a number of steps from 1 to {MAX_STEPS}")
    for value in widths:
        if not LEAST_BITS <= value <= most:
            raise InputError(
                f"--bits {value}: profile {profile.name} has weights of {most} bits; expected "
                f"{LEAST_BITS} to {most}"
            )
    return Plan(profile, engine or default_engine(profile), chosen, widths)
