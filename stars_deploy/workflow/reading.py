"""The options that say how a .nir file of another tool is to be read, from text to Reading."""

from __future__ import annotations

import json
import math
import shlex

from stars_deploy.errors import InputError, nearest
from stars_deploy.graph.foreign import Reading

GAINS = ("raw", "discrete")


def parse_reading(
    steps: int | None = None,
    dt: float | None = None,
    gain: str | None = None,
    mean: str | None = None,
    std: str | None = None,
    classes: str | None = None,
    image_shape: str | None = None,
) -> Reading | None:
    """Return the Reading that the options describe, None if none was given.

    mean, std and image_shape are numbers with commas between them, classes names with commas
    between them or a JSON list.
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


def option_text(reading: Reading | None) -> str:
    """Return the options that describe `reading`, each after a space, for the next command."""
    if reading is None:
        return ""
    options = {
        "--steps": reading.T,
        "--dt": reading.dt,
        "--gain": reading.gain,
        "--mean": _joined(reading.mean),
        "--std": _joined(reading.std),
        "--classes": _named(reading.classes),
        "--image-shape": _joined(reading.image_shape),
    }
    return "".join(
        f" {name} {shlex.quote(str(value))}" for name, value in options.items() if value is not None
    )


def _joined(values: tuple[object, ...] | None) -> str | None:
    return None if values is None else ",".join(map(str, values))


def _named(names: tuple[str, ...] | None) -> str | None:
    """Return the names as --classes takes them: a JSON list where commas would be misread."""
    if names is None or not any("," in n or n.startswith("[") or n != n.strip() for n in names):
        return _joined(names)
    return json.dumps(list(names), ensure_ascii=False)


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or not all(map(math.isfinite, values)):
        raise InputError(f"{option} {text!r}: expected numbers with commas between, as 0.5,0.5,0.5")
    return values


def _names(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    if not text.lstrip().startswith("["):
        return tuple(part.strip() for part in text.split(","))
    try:
        names = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"--classes {text[:60]!r}: expected a JSON list of names, or a,b,c")
    return tuple(names)


def _shape(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"--image-shape {text!r}: expected C,H,W, for example 1,28,28")
    return tuple(int(part) for part in parts)
