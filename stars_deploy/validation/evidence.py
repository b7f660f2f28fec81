"""What a bundle says about its making, besides what it deploys; every file of it may be absent.

Bundles of earlier versions, and of graphs that were not distilled here, hold less of it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stars_deploy.errors import BundleError, InputError
from stars_deploy.files import read_json, read_npz

SUMMARY, RECIPE, CURVE = "summary.json", "recipe.toml", "curve.json"
OPERATING, SYNTHETIC, PICTURE = "operating_point.json", "synthetic.npz", "synthetic.png"
EXPORT, TRAINING = "export.json", "training.json"

Share = Annotated[float, Field(ge=0, le=1)]
M = TypeVar("M", bound="_Facts")


class _Facts(BaseModel):
    """Facts of a file; what a later version adds is no error."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class TeacherFacts(_Facts):
    """The network that was distilled."""

    family: str | None = None
    sha256: str | None = None
    parameters: int | None = None
    source: str | None = None  # what --teacher named


class Summary(_Facts):
    """summary.json of the run that made the student."""

    name: str | None = None
    method: str | None = None
    seed: int | None = None
    teacher: TeacherFacts = TeacherFacts()
    student_parameters: int | None = None
    T: int | None = None
    student_updates: int | None = None
    synthesis_steps: int | None = None
    synthetic_images: int | None = None
    pool_images: int | None = None
    data: str | None = None
    selection: str | None = None
    device: str | None = None
    processor: str | None = None
    threads: int | None = None
    versions: dict[str, str] = {}
    wall_time_s: float | None = None


class Training(_Facts):
    """training.json: what `evaluate` measured on the student before it was exported."""

    n: int = Field(ge=1)
    device: str
    data: str
    accuracy: Share
    accuracy_by_t: tuple[Share, ...] = ()
    teacher_accuracy: Share | None = None
    hardware: dict[str, str | int] = {}
    versions: dict[str, str] = {}


class Series(_Facts):
    """Columns of metrics.jsonl, thinned; `step` counts through all epochs, from 1."""

    step: tuple[int, ...]
    values: dict[str, tuple[float | None, ...]]


class Curve(_Facts):
    """curve.json: what synthesis and distillation logged."""

    synthesis: Series | None = None
    kd: Series | None = None


class Histogram(_Facts):
    """Equal bins between two values."""

    start: float = Field(alias="from")
    end: float = Field(alias="to")
    counts: tuple[int, ...] = Field(min_length=1)


class LayerPoint(_Facts):
    """One layer of operating_point.json; see simulation.operating_point."""

    name: str
    neurons: int
    rate: Share
    neurons_silent: Share
    neurons_always: Share
    current_mean: float
    current_sd: float
    thresholds: tuple[float, ...] | None
    tail_mass: tuple[Share, ...]
    predicted_rate: Share
    histogram: Histogram


class OperatingPoint(_Facts):
    """operating_point.json: currents and rates of the float graph on golden images."""

    images: int
    T: int
    layers: tuple[LayerPoint, ...]


class Export(_Facts):
    """export.json: how the bundle was made, and with what."""

    command: str
    versions: dict[str, str] = {}


@dataclass(frozen=True)
class Synthetic:
    """Some images of the pool, uint8 [N, C, H, W], and the class each was made for, [N]."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Evidence:
    """What a bundle holds besides what it deploys; None where it holds no such file."""

    summary: Summary | None
    recipe: Mapping[str, Any] | None  # as it was written, perhaps by another version
    training: Training | None
    curve: Curve | None
    operating: OperatingPoint | None
    synthetic: Synthetic | None
    export: Export | None


def read_evidence(folder: Path) -> Evidence:
    """Read the evidence of a bundle; BundleError names a file and key that is wrong."""
    return Evidence(
        summary=_facts(folder / SUMMARY, Summary),
        recipe=_recipe(folder / RECIPE),
        training=_facts(folder / TRAINING, Training),
        curve=_facts(folder / CURVE, Curve),
        operating=_facts(folder / OPERATING, OperatingPoint),
        synthetic=_synthetic(folder / SYNTHETIC),
        export=_facts(folder / EXPORT, Export),
    )


def section(recipe: Mapping[str, Any] | None, name: str) -> Mapping[str, Any]:
    """Return a section of a recipe; empty where there is none, whatever version wrote it."""
    found = (recipe or {}).get(name)
    return found if isinstance(found, Mapping) else {}


def check_facts(document: Any, path: Path, kind: type[M], error: type[InputError]) -> M:
    """Return the facts in `document`, read from `path`; `error` names the first wrong key."""
    try:
        return kind.model_validate(document)
    except ValidationError as problem:
        first = problem.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the document"
        raise error(f"{path}: {key}: {first['msg'].lower()}") from None


def _facts(path: Path, kind: type[M]) -> M | None:
    if not path.is_file():
        return None
    return check_facts(read_json(path, BundleError), path, kind, BundleError)


def _recipe(path: Path) -> Mapping[str, Any] | None:
    if not path.is_file():
        return None
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as problem:
        raise BundleError(f"{path}: not valid TOML ({problem})") from None


def _synthetic(path: Path) -> Synthetic | None:
    if not path.is_file():
        return None
    arrays = read_npz(path, BundleError)
    images, labels = arrays.get("images"), arrays.get("labels")
    if images is None or images.dtype != np.uint8 or images.ndim != 4:
        raise BundleError(f"{path}: images are missing or not uint8 [N, C, H, W]")
    if labels is None or labels.dtype != np.int64 or labels.shape != images.shape[:1]:
        raise BundleError(f"{path}: labels are missing or not int64 [{len(images)}]")
    return Synthetic(images, labels)
