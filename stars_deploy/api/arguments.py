"""What the functions of the API take, and how it is checked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stars_deploy.console import Progress, no_progress
from stars_deploy.errors import InputError

__all__ = [
    "Json",
    "Names",
    "Numbers",
    "PathLike",
    "Progress",
    "at_least",
    "no_progress",
    "optional_path",
    "optional_text",
]

#: What a command prints under --json.
Json = dict[str, Any]
PathLike = str | Path
#: One number, several, or their text on the command line: "0.5,0.4".
Numbers = str | float | Sequence[float]
#: Names, or their text on the command line: "a,b,c" or a JSON list.
Names = str | Sequence[str]


def optional_path(path: PathLike | None) -> Path | None:
    """Return the path, None if there is none."""
    return None if path is None else Path(path)


def optional_text(value: PathLike | None) -> str | None:
    """Return a name or path as text, None if there is none."""
    return None if value is None else str(value)


def at_least(least: float, **options: float | None) -> None:
    """Refuse a number below `least`, named by its option; None is left to its default."""
    for name, value in options.items():
        if value is not None and not value >= least:
            option = name.replace("_", "-")
            raise InputError(f"--{option} {value}: expected a number of at least {least}")
