"""What a bundle tells of its making: copied from the run, thinned where a run writes much."""

from __future__ import annotations

import itertools
import json
import platform
import shutil
import tomllib
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nir
import numpy as np
import tomli_w
from numpy.typing import NDArray

import stars_deploy
from stars_deploy.errors import InputError
from stars_deploy.files import read_json, sha256, write_json, write_npz, write_text
from stars_deploy.simulation.operating_point import operating_point
from stars_deploy.validation import evidence as known
from stars_deploy.validation.training import read_training
from stars_deploy.workflow.sources import STUDENT, Source

METRICS = "metrics.jsonl"
POINTS = 200  # of a curve
COLUMNS = {"synthesis": ("loss", "teacher_hits"), "kd": ("loss", "agreement")}
PER_CLASS, CLASSES = 10, 20  # synthetic images that come along
PACKAGES = ("torch", "numpy", "norse", "nir", "onnx", "onnxruntime")

Json = dict[str, Any]


def copy_evidence(source: Source, folder: Path) -> None:
    """Copy what a run or a bundle tells of its making, as far as it does.

    A run's metrics become curve.json, its pool some images per class (synthetic.npz); of its recipe
    only `pool.dir` stays behind, a place on this machine.

    Raises: InputError for a file that is damaged, or a training.json about another student.
    """
    if source.kind == "nir":
        return
    _copy_training(source, folder)
    names = [known.PICTURE]
    if source.kind == "bundle":
        names += [known.SUMMARY, known.RECIPE, known.CURVE, known.SYNTHETIC]
    for name in names:
        if (source.path / name).is_file():
            shutil.copyfile(source.path / name, folder / name)
    if source.kind == "run":
        _copy_run(source.path, folder)


def add_evidence(
    graph: nir.NIRGraph, images: NDArray[np.uint8], command: str, folder: Path
) -> None:
    """Write operating_point.json, on golden images, and export.json: command and versions."""
    write_json(folder / known.OPERATING, operating_point(graph, images))
    versions = {
        "stars_deploy": stars_deploy.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }
    write_json(folder / known.EXPORT, {"command": command, "versions": versions})


def _copy_training(source: Source, folder: Path) -> None:
    training = source.path / known.TRAINING
    if not training.is_file():
        return
    document = read_training(training)
    known.check_facts(document, training, known.Training, InputError)
    if source.kind == "run":
        found, expected = document.get("student_sha256"), sha256(source.path / STUDENT)
        if found != expected:
            raise InputError(
                f"{training}: measured a student with sha256 {found}, this one has {expected}; "
                "run stars-deploy evaluate again"
            )
    write_json(folder / known.TRAINING, document)


def _copy_run(run: Path, folder: Path) -> None:
    recipe = tomllib.loads((run / "recipe.toml").read_text(encoding="utf-8"))
    recipe.get("pool", {}).pop("dir", None)
    write_text(folder / known.RECIPE, tomli_w.dumps(recipe))
    if (run / known.SUMMARY).is_file():
        summary = read_json(run / known.SUMMARY)
        known.check_facts(summary, run / known.SUMMARY, known.Summary, InputError)
        write_json(folder / known.SUMMARY, summary)
    curve = _curve(run / METRICS)
    if curve:
        write_json(folder / known.CURVE, curve)
    _copy_pool(run, recipe, folder)


def _curve(path: Path) -> Json:
    """Return per phase the logged columns, thinned; {} where nothing was logged."""
    rows: dict[str, list[Json]] = {phase: [] for phase in COLUMNS}
    for number, line in enumerate(_lines(path), 1):
        try:
            row = json.loads(line)
            rows.get(row["phase"], []).append({"place": (row["epoch"], row["step"]), **row})
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{path}: line {number} is no line of metrics") from None
    return {phase: _series(found, COLUMNS[phase]) for phase, found in rows.items() if found}


def _lines(path: Path) -> Sequence[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else ()


def _series(rows: Sequence[Json], columns: Sequence[str]) -> Json:
    """Return columns of lines that say epoch and step in it; the last step of each is logged."""
    lengths: dict[int, int] = {}
    for epoch, step in (row["place"] for row in rows):
        lengths[epoch] = max(lengths.get(epoch, 0), step + 1)
    before = dict(zip(lengths, itertools.accumulate(lengths.values(), initial=0), strict=False))
    kept = sorted({round(i) for i in np.linspace(0, len(rows) - 1, min(POINTS, len(rows)))})
    thin = [rows[index] for index in kept]
    return {
        "step": [before[row["place"][0]] + row["place"][1] + 1 for row in thin],
        "values": {name: [row.get(name) for row in thin] for name in columns},
    }


def _copy_pool(run: Path, recipe: Mapping[str, Any], folder: Path) -> None:
    """Write synthetic.npz: of each class images from the oldest to the newest, if any are kept."""
    from stars_deploy.distillation import checkpoint

    state = checkpoint.load(run)
    pool = state["session"]["pool"] if state is not None else {}
    if not len(pool.get("images", ())) or "labels" not in pool:
        return
    images, labels = np.asarray(pool["images"]), np.asarray(pool["labels"], np.int64)
    chosen: list[int] = []
    for label in range(min(CLASSES, len(recipe["data"]["classes"]))):
        places = np.flatnonzero(labels == label)
        picks = np.linspace(0, len(places) - 1, min(PER_CLASS, len(places))).round().astype(int)
        chosen += places[picks].tolist()
    write_npz(folder / known.SYNTHETIC, {"images": images[chosen], "labels": labels[chosen]})
