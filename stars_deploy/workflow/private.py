"""Texts that are published: without the names of their user and machine, without their folders."""

from __future__ import annotations

import contextlib
import getpass
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# An absolute path of at least two parts, and the name that it ends with.
_PATH = re.compile(r"(?<![\w.~/])/(?:[^\s/:'\"()\[\],;]+/)+([^\s/:'\"()\[\],;]*)")
_SHORTEST = 3  # characters of a name that is looked for; shorter ones are parts of words


def public(value: Any) -> Any:
    """Return `value` with every text in it made public: mappings, lists and texts."""
    if isinstance(value, Mapping):
        return {key: public(item) for key, item in value.items()}
    if isinstance(value, list):
        return [public(item) for item in value]
    return _public_text(value) if isinstance(value, str) else value


def _public_text(text: str) -> str:
    """Write ~ for the home, .../name for every other absolute path, USER and HOST for names."""
    home = str(Path.home())
    if home != "/":
        text = re.sub(rf"{re.escape(home)}(?=/|\W|$)", "~", text)
    text = _PATH.sub(r".../\1", text)
    for name, stand_in in _names().items():
        if len(name) >= _SHORTEST:
            text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", stand_in, text)
    return text


def _names() -> dict[str, str]:
    host = socket.gethostname()
    names = {host: "HOST", host.partition(".")[0]: "HOST"}
    with contextlib.suppress(OSError, KeyError):  # a container's user may have no name
        names[getpass.getuser()] = "USER"
    return names
