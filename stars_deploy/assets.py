"""Where the packaged models, export kits and hardware profiles are.

In a wheel they are package data; in a checkout (and in an editable install) the folders of the
repository are used. Only this module knows the difference.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def asset(kind: str, *parts: str) -> Path:
    """Return the path of a packaged asset; `kind` is models, export or hardware_profiles."""
    packaged = _PACKAGE / "_assets" / kind
    root = packaged if packaged.is_dir() else _PACKAGE.parent / kind
    return root.joinpath(*parts)
