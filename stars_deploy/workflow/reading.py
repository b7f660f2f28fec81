"""The options that say how a .nir file of another tool is to be read."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from stars_deploy.errors import InputError, nearest
from stars_deploy.graph.foreign import Reading

GAINS = ("raw", "discrete")
Numbers = str | float | Sequence[float]


def parse_reading(
    steps: int | None = None,
    dt: float | None = None,
    gain: str | None = None,
    mean: Numbers | None = None,
    std: Numbers | None = None,
    classes: str | Sequence[str] | None = None,
    image_shape: str | Sequence[int] | None = None,
) -> Reading | None:
    """Return the Reading that the options describe, None if none was given.

    mean, std and image_shape are numbers, or text with commas between them; classes are names, or
    text with commas between them or a JSON list.
    Raises: InputError naming the option, its value and what was expected.
    """
    if dt is not None and not (math.isfinite(dt) and dt > 0):
        raise InputError(f"--dt {dt}: expected a positive number of seconds, for example 1e-4")
    if gain is not None and gain not in GAINS:
        raise InputError(f"--gain {gain!r} is unknown{nearest(gain, GAINS)}")
    spread = _numbers("--std", std)
    if spread is not None and min(spread) <= 0:
        raise InputError(f"--std {std}: expected positive numbers")
    reading = Reading(
        T=steps,
        dt=dt,
        gain=gain,  # type: ignore[arg-type]
        mean=_numbers("--mean", mean),
        std=spread,
        classes=_names(classes),
        image_shape=_shape(image_shape),
    )
    return None if reading == Reading() else reading


def _numbers(option: str, given: Numbers | None) -> tuple[float, ...] | None:
    if given is None:
        return None
    parts = given.split(",") if isinstance(given, str) else given
    try:
        values = tuple(map(float, parts if isinstance(parts, Sequence) else [parts]))
    except ValueError:
        values = ()
    if not values or not all(map(math.isfinite, values)):
        raise InputError(
            f"{option} {given!r}: expected numbers with commas between, as 0.5,0.5,0.5"
        )
    return values


def _names(text: str | Sequence[str] | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    if not isinstance(text, str):
        return tuple(text)
    if not text.lstrip().startswith("["):
        return tuple(part.strip() for part in text.split(","))
    try:
        names = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"--classes {text[:60]!r}: expected a JSON list of names, or a,b,c")
    return tuple(names)


def _shape(given: str | Sequence[int] | None) -> tuple[int, ...] | None:
    if given is None:
        return None
    parts = given.split(",") if isinstance(given, str) else [str(part) for part in given]
    if len(parts) != 3 or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"--image-shape {given!r}: expected C,H,W, for example 1,28,28")
    return tuple(int(part) for part in parts)
