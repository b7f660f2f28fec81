"""`stars-deploy compare`: the same recipe with values varied, over seeds, paired."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stars_deploy.config.recipe import Recipe, find_recipe, load_recipe
from stars_deploy.console import Progress, no_progress
from stars_deploy.data import Images, Labels, data_label, load_data
from stars_deploy.errors import InputError
from stars_deploy.files import read_json, sha256, write_json, write_text
from stars_deploy.locks import one_writer
from stars_deploy.networks.base import Network
from stars_deploy.networks.device import resolve
from stars_deploy.networks.weights import load_teacher
from stars_deploy.workflow.distill import SUMMARY, distill, method, weights_path
from stars_deploy.workflow.evaluate import accuracy
from stars_deploy.workflow.figures import comparison_figure
from stars_deploy.workflow.grid import Cell, parse_vary
from stars_deploy.workflow.provenance import hardware, versions
from stars_deploy.workflow.statistics import paired, spread

GRID = "grid.json"
RESULT = "compare.json"
TABLE = "compare.md"
FIGURE = "compare.svg"
RUNS = "runs"

Json = dict[str, Any]


@one_writer("out")
def compare(
    spec: str,
    vary: Sequence[str],
    seeds: Sequence[int],
    data: str,
    out: Path,
    overrides: Sequence[str] = (),
    weights: Path | None = None,
    progress: Progress = no_progress,
) -> Json:
    """Run every cell of the grid with every seed, and compare the cells with the first one.

    Each run is distilled into OUT/runs/<cell>/seed<k> and evaluated on the test images of `data`
    after every training epoch; the result of a run is its result.json, and one that exists is not
    run again, nor is a run started anew that was interrupted. Writes OUT/compare.json,
    compare.md and compare.svg.

    Raises:
        InputError: a cell's recipe is wrong, or OUT holds another grid. RecipeError, DataError,
        WeightsError, TrainingDiverged.
    """
    cells = parse_vary(vary) if vary else [Cell("recipe", ())]
    recipes = [_cell_recipe(spec, overrides, cell) for cell in cells]
    _require_difference(recipes, cells)
    _refuse_image_folder(recipes)
    origin = find_recipe(spec)
    images, labels = load_data(data, recipes[0].data, "test")
    teacher = load_teacher(recipes[0], weights, origin)
    grid = _grid(recipes, cells, seeds, data, weights_path(recipes[0], weights, origin))
    _claim(out, {**grid, "images_sha256": _digest(images, labels)})
    runs: list[list[Json]] = []
    for cell, recipe in zip(cells, recipes, strict=True):
        runs.append([])
        for seed in seeds:
            seeded = recipe.model_copy(update={"run": recipe.run.model_copy(update={"seed": seed})})
            folder = out / RUNS / _slug(cell) / f"seed{seed}"
            runs[-1].append(_run(seeded, folder, origin, weights, images, labels, progress))
            progress("compare", sum(map(len, runs)), len(cells) * len(seeds))
    result = _result(recipes, cells, seeds, runs, data, len(labels))
    result["teacher_accuracy"] = accuracy(
        teacher, images, labels, recipes[0].data, resolve(recipes[0].run.device)
    )
    write_json(out / RESULT, result)
    write_text(out / TABLE, markdown(result))
    write_text(out / FIGURE, comparison_figure(result))
    return result


def _cell_recipe(spec: str, overrides: Sequence[str], cell: Cell) -> Recipe:
    varied = {override.partition("=")[0]: f"--vary {override}" for override in cell.overrides}
    return load_recipe(spec, [*overrides, *cell.overrides], varied)


def _require_difference(recipes: Sequence[Recipe], cells: Sequence[Cell]) -> None:
    """Refuse other teachers, and settings that come to the same run, as if they were compared."""
    if any(recipe.teacher != recipes[0].teacher for recipe in recipes):
        raise InputError(
            "--vary changes teacher: all runs of a comparison have one teacher; run compare once "
            "for each"
        )
    seen: dict[str, str] = {}
    for recipe, cell in zip(recipes, cells, strict=True):
        document = recipe.resolved()
        del document["name"], document["run"]["seed"]  # compare itself sets the seeds
        key = json.dumps(document, sort_keys=True)
        if key in seen:
            raise InputError(
                f"--vary: the settings {seen[key]!r} and {cell.name!r} are the same run; a "
                "section in braces replaces all that was set of it before; seeds come from --seeds"
            )
        seen[key] = cell.name


def _refuse_image_folder(recipes: Sequence[Recipe]) -> None:
    for recipe in recipes:
        if recipe.pool.dir is not None:
            raise InputError(
                f"pool.dir = {recipe.pool.dir!r}: the runs of a comparison would all write their "
                "images there; leave pool.dir out, and use distill to write those of one run"
            )


def _grid(
    recipes: Sequence[Recipe], cells: Sequence[Cell], seeds: Sequence[int], data: str, weights: Path
) -> Json:
    resolved = json.dumps([recipe.resolved() for recipe in recipes], sort_keys=True)
    return {
        "recipe": recipes[0].name,
        "cells": [cell.name for cell in cells],
        "seeds": list(seeds),
        "data": data_label(data, recipes[0].data),
        "recipes_sha256": hashlib.sha256(resolved.encode()).hexdigest(),
        "teacher_sha256": sha256(weights),
    }


def _digest(images: Images, labels: Labels) -> str:
    """Return what tells apart two files of images that have the same name."""
    digest = hashlib.sha256(images.tobytes())
    digest.update(labels.tobytes())
    return digest.hexdigest()


def _claim(out: Path, grid: Json) -> None:
    """Make OUT the folder of this grid, or check that it is; more seeds may be added."""
    held = sorted(path.name for path in out.glob("*")) if out.is_dir() else []
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file, expected a folder for the comparison")
    if held and GRID not in held:
        raise InputError(f"{out}: holds {held[0]} and no {GRID}; give an empty folder")
    if held:
        before = read_json(out / GRID)
        if not isinstance(before, dict):
            raise InputError(f"{out / GRID}: not a grid of compare; give another folder")
        for key, value in grid.items():
            if key == "images_sha256" and key not in before:
                continue  # of a comparison begun before images were told apart
            if key != "seeds" and before.get(key) != value:
                raise InputError(
                    f"{out}: holds another grid ({key} was {before.get(key)!r}, now {value!r}); "
                    "give another folder"
                )
    write_json(out / GRID, grid)


def _slug(cell: Cell) -> str:
    """Return a folder name of a cell; a digest keeps those apart that differ in punctuation."""
    text = "".join(c if c.isalnum() or c in "=.-" else "_" for c in cell.name)
    plain = text == cell.name and len(text) <= 60
    digest = hashlib.sha256(cell.name.encode()).hexdigest()[:8]
    return text if plain else f"{text[:50]}-{digest}"


def _run(
    recipe: Recipe,
    folder: Path,
    origin: Path,
    weights: Path | None,
    images: Images,
    labels: Labels,
    progress: Progress,
) -> Json:
    path = folder / "result.json"
    if path.is_file():
        return _read_result(path, recipe.run.seed)
    epochs_path = folder.parent / f"{folder.name}.epochs.json"
    by_epoch: dict[str, float] = read_json(epochs_path) if epochs_path.is_file() else {}
    if not isinstance(by_epoch, dict) or not all(map(_is_number, by_epoch.values())):
        raise InputError(f"{epochs_path}: damaged; delete it and {folder}, to run that run again")
    device = resolve(recipe.run.device)

    def after_epoch(epoch: int, student: Network) -> None:
        by_epoch[str(epoch)] = accuracy(student, images, labels, recipe.data, device)
        write_json(epochs_path, by_epoch)

    summary = distill(
        recipe,
        folder,
        origin=origin,
        resume=folder.is_dir(),
        weights=weights,
        progress=progress,
        after_epoch=after_epoch,
    )
    trained = range(recipe.run.warmup, recipe.run.epochs)
    if set(by_epoch) != {str(epoch) for epoch in trained}:
        raise InputError(
            f"{epochs_path}: does not hold the accuracies of epochs {trained[0]} to {trained[-1]}, "
            f"which {folder} has behind it; delete both, to run that run again"
        )
    curve = [by_epoch[str(epoch)] for epoch in trained]
    result = {
        "seed": recipe.run.seed,
        "method": method(recipe),
        "last": curve[-1],
        "best": max(curve),
        "accuracy_by_epoch": curve,
        "wall_time_s": summary["wall_time_s"],
        "student_updates": summary["student_updates"],
        "synthetic_images": summary["synthetic_images"],
        "summary": SUMMARY,
    }
    write_json(path, result)
    epochs_path.unlink(missing_ok=True)
    return result


def _read_result(path: Path, seed: int) -> Json:
    result = read_json(path)
    whole = (
        isinstance(result, dict)
        and result.get("seed") == seed
        and all(_is_number(result.get(key)) for key in ("last", "best", "wall_time_s"))
    )
    if not whole:
        raise InputError(
            f"{path}: not the result of the run with seed {seed}; delete {path.parent}, to run it "
            "again"
        )
    return dict(result)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _result(
    recipes: Sequence[Recipe],
    cells: Sequence[Cell],
    seeds: Sequence[int],
    runs: Sequence[Sequence[Json]],
    data: str,
    n: int,
) -> Json:
    baseline = [run["last"] for run in runs[0]]
    rows = []
    for number, (cell, recipe, done) in enumerate(zip(cells, recipes, runs, strict=True)):
        last = [run["last"] for run in done]
        rows.append(
            {
                "cell": cell.name,
                "overrides": list(cell.overrides),
                "method": method(recipe),
                "last": spread(last),
                "best": spread([run["best"] for run in done]),
                "difference": paired(last, baseline) if number else None,
                "wall_time_s": spread([run["wall_time_s"] for run in done]),
                "runs": list(done),
            }
        )
    device = resolve(recipes[0].run.device)
    return {
        "recipe": recipes[0].name,
        "baseline": cells[0].name,
        "data": data_label(data, recipes[0].data),
        "n": n,
        "seeds": list(seeds),
        "selection": "last: the last step; best: the best epoch on the test images, which is "
        "selection by test labels and shown for comparison with papers that report it",
        "cells": rows,
        **hardware(device),
        "versions": versions(),
    }


def markdown(result: Json) -> str:
    """Return the comparison as a Markdown document."""
    lines = [
        f"# {result['recipe']}: {len(result['cells'])} settings, seeds "
        f"{', '.join(map(str, result['seeds']))}",
        "",
        f"Top-1 accuracy on {result['n']} test images of {result['data']}, percent: mean +- sample "
        f"standard deviation over seeds. Teacher: {100 * result['teacher_accuracy']:.2f}. "
        f"Differences are paired by seed with the first row; in brackets the 95 % bootstrap "
        f"interval of their mean. {result['selection'].capitalize()}.",
        "",
        "| " + " | ".join(HEADER) + " |",
        "|" + "---|" * len(HEADER),
        *("| " + " | ".join(row) + " |" for row in table_rows(result)),
        "",
    ]
    return "\n".join(lines)


HEADER = ("setting", "last epoch", "difference", "best epoch", "wall, s")


def table_rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the rows of the table under `HEADER`."""
    return [
        (
            row["cell"],
            _percent(row["last"]),
            _difference(row["difference"]),
            _percent(row["best"]),
            f"{row['wall_time_s']['mean']:.0f}",
        )
        for row in result["cells"]
    ]


def _percent(values: Json, sign: str = "") -> str:
    text = f"{100 * values['mean']:{sign}.2f}"
    return text if values["sd"] is None else f"{text} +- {100 * values['sd']:.2f}"


def _difference(values: Json | None) -> str:
    if values is None:
        return "baseline"
    text = _percent(values, "+")
    if values["interval"] is None:
        return text
    low, high = (100 * bound for bound in values["interval"])
    return f"{text} [{low:+.2f}, {high:+.2f}]"
