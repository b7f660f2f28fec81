"""`--card`: what a teacher's images looked like, from a file that came with its weights."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stars_deploy.errors import InputError

KEYS = ("name", "shape", "mean", "std", "classes", "flip", "crop_padding")
EXPECTED = (
    "expected a TOML file with shape, mean, std and classes (a recipe's [data] section), or the "
    "preprocessor_config.json or config.json of a model on the Hugging Face hub"
)


def read_card(path: Path) -> dict[str, Any]:
    """Return what a card says of the keys of a recipe's [data] section.

    A folder stands for the config.json and preprocessor_config.json in it.

    Raises:
        InputError: unreadable, or nothing in it is of use.
    """
    if path.is_dir():
        parts = [path / "config.json", path / "preprocessor_config.json"]
        found = [_document(part) for part in parts if part.is_file()]
    else:
        found = [_document(path)]
    known: dict[str, Any] = {}
    for document in found:
        known |= _toml(document) if "data" in document or "shape" in document else _hub(document)
    if not known:
        raise InputError(f"--card {path}: says nothing about images; {EXPECTED}")
    return known


def _document(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        document = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as problem:
        raise InputError(f"--card {path}: cannot be read ({problem.strerror})") from None
    except (ValueError, RecursionError) as problem:
        raise InputError(f"--card {path}: not valid ({problem}); {EXPECTED}") from None
    if not isinstance(document, dict):
        raise InputError(f"--card {path}: {EXPECTED}")
    return document


def _toml(document: Mapping[str, Any]) -> dict[str, Any]:
    data = document.get("data", document)
    return {key: data[key] for key in KEYS if key in data} if isinstance(data, dict) else {}


def _hub(document: Mapping[str, Any]) -> dict[str, Any]:
    """Read the keys of transformers' image processors and configs, and of timm's configs."""
    timm = document.get("pretrained_cfg")
    timm = timm if isinstance(timm, dict) else {}
    known: dict[str, Any] = {}
    for key, values in (
        ("mean", document.get("image_mean", timm.get("mean"))),
        ("std", document.get("image_std", timm.get("std"))),
        ("classes", _classes(document)),
        ("shape", _shape(document, timm)),
    ):
        if isinstance(values, list):
            known[key] = values
    return known


def _classes(document: Mapping[str, Any]) -> list[str] | None:
    names = document.get("label_names", document.get("id2label"))
    if isinstance(names, dict) and all(str(key).isdecimal() for key in names):
        names = [names[key] for key in sorted(names, key=int)]
    return [str(name) for name in names] if isinstance(names, list) else None


def _shape(document: Mapping[str, Any], timm: Mapping[str, Any]) -> list[Any] | None:
    if isinstance(timm.get("input_size"), list):
        return list(timm["input_size"])
    size = document.get("crop_size", document.get("size"))
    if isinstance(size, dict):
        edge = size.get("shortest_edge")
        size = [size.get("height", edge), size.get("width", edge)]
    elif isinstance(size, int):
        size = [size, size]
    if not isinstance(size, list) or not all(isinstance(n, int) for n in size):
        return None
    return [3, *size]
