"""What the functions of the API take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stars_deploy.console import Progress, no_progress

__all__ = ["Json", "PathLike", "Progress", "no_progress", "optional_path"]

#: What a command prints under --json.
Json = dict[str, Any]
PathLike = str | Path


def optional_path(path: PathLike | None) -> Path | None:
    """Return the path, None if there is none."""
    return None if path is None else Path(path)
