"""`stars-deploy distill`: a spiking student from a teacher, without data."""

from __future__ import annotations

import contextlib
import copy
import tomllib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import tomli_w
import torch

from stars_deploy.config.recipe import Recipe
from stars_deploy.console import Progress, no_progress, say
from stars_deploy.distillation import checkpoint, loop
from stars_deploy.distillation.image_folder import ImageFolder, image_folder
from stars_deploy.distillation.picture import draw_pool
from stars_deploy.distillation.schedule import estimate
from stars_deploy.distillation.session import Session
from stars_deploy.distillation.stars import active
from stars_deploy.errors import InputError
from stars_deploy.files import read_json, remove_leftovers, sha256, write_json, write_text
from stars_deploy.locks import one_writer
from stars_deploy.networks.base import Network
from stars_deploy.networks.device import resolve
from stars_deploy.networks.families import TRACED, build_student, build_teacher
from stars_deploy.networks.weights import load_teacher, save_weights
from stars_deploy.workflow.own_teacher import ABOUT, WEIGHTS, OwnTeacher, keep
from stars_deploy.workflow.provenance import hardware, versions

RECIPE = "recipe.toml"
STUDENT = "student.safetensors"
SUMMARY = "summary.json"
PICTURE = "synthetic.png"
METHOD_NAMES = {"deepinversion": "DeepInversion", "cmi": "CMI", "nayer": "NAYER"}


@one_writer("out")
def distill(
    recipe: Recipe,
    out: Path,
    *,
    origin: Path | None = None,
    resume: bool = False,
    weights: Path | None = None,
    own: OwnTeacher | None = None,
    progress: Progress = no_progress,
    after_epoch: Callable[[int, Network], None] | None = None,
) -> dict[str, Any]:
    """Distil the recipe's teacher into a spiking student; no data set is opened.

    Writes OUT/recipe.toml, metrics.jsonl, checkpoint/, student.safetensors, synthetic.png and,
    last, summary.json; with `pool.dir` also every image, there. With `resume` a run that was
    interrupted goes on from its checkpoint and ends with the same files as if it had not been; a
    complete run is left as it is.

    Args:
        origin: the recipe's file; `teacher.weights` is relative to its folder.
        weights: a safetensors file to use instead of `teacher.weights`.
        own: a teacher that was imported, with `recipe` its recipe; like any teacher of family
            traced it is kept in OUT.
        after_epoch: called with the number of each training epoch and the student as it then is.

    Returns:
        The content of summary.json.

    Raises:
        InputError: OUT or pool.dir is not empty, or OUT, to resume, belongs to another recipe.
        WeightsError: the teacher's weights are missing, damaged or of another architecture.
        TrainingDiverged: a loss is not finite; OUT/checkpoint holds the last good state.
    """
    device = resolve(recipe.run.device)
    if own is None:
        teacher: Network = load_teacher(recipe, weights, origin)
        file = weights_path(recipe, weights, origin)
        recipe = _with_teacher(recipe, file)
    else:
        teacher = own.network
    with threads(recipe.run.threads):  # a recipe is refused before it claims a folder
        session = Session(recipe, teacher.to(device))
    images = image_folder(recipe)
    begun = (out / checkpoint.FILE).is_file() or (out / SUMMARY).is_file()
    if images is not None and not begun:  # no image is made before the first checkpoint
        images.require_empty()
    _claim(out, recipe, resume)
    if own is not None:
        own.write(out)
    elif recipe.teacher.family == TRACED:
        keep(file, out)
    if (out / SUMMARY).is_file():
        say(f"{out}: this run is complete; nothing to resume")
        return _read_summary(out / SUMMARY)
    state = checkpoint.load(out)
    _keep_images(session, images, state)
    with threads(recipe.run.threads if state is None else state["threads"]):
        watch = None if after_epoch is None else partial(_watched, session, after_epoch)
        seconds = loop.run(session, out, state, progress, watch)
        save_weights(session.student, out / STUDENT)
        draw_pool(session.pool, recipe.data.classes, out / PICTURE)
        summary = _summary(session, seconds, out)
    write_json(out / SUMMARY, summary)
    return summary


def _read_summary(path: Path) -> dict[str, Any]:
    summary = read_json(path)
    needed = ("wall_time_s", "student_updates", "synthetic_images")
    if not isinstance(summary, dict) or not all(
        isinstance(summary.get(key), int | float) for key in needed
    ):
        raise InputError(f"{path}: not the summary of a run; delete the run and start it again")
    return summary


def _keep_images(
    session: Session, images: ImageFolder | None, state: Mapping[str, Any] | None
) -> None:
    """Let the pool's images be written from now on; `state` says which ones already are."""
    if images is None:
        return
    if state is not None:
        with checkpoint.restoring(images.path):
            images.cut_back(state["session"]["pool"]["added"])
    session.pool.keep = images.write


def _watched(session: Session, after_epoch: Callable[[int, Network], None], epoch: int) -> None:
    after_epoch(epoch, copy.deepcopy(session.student))


def plan(recipe: Recipe, weights: Path | None = None, origin: Path | None = None) -> dict[str, Any]:
    """Return what a run of the recipe would do and how large it is; nothing is run or written.

    Raises:
        WeightsError: `weights` are given, and the run would refuse them.
    """
    if weights is not None:
        load_teacher(recipe, weights, origin)
    return {
        "name": recipe.name,
        "method": method(recipe),
        "teacher": recipe.teacher.family,
        "teacher_parameters": _size(build_teacher(recipe)),
        "student_parameters": _size(build_student(recipe)),
        "T": recipe.student.T,
        "seed": recipe.run.seed,
        "device": str(resolve(recipe.run.device)),
        **estimate(recipe),
        "recipe": recipe.resolved(),
    }


def method(recipe: Recipe) -> str:
    """Return the method in words: warm start, synthesis, STARS."""
    parts = ["warm start"] if recipe.warm_start.enabled else []
    parts.append(METHOD_NAMES[recipe.synthesis.method])
    if active(recipe.stars):
        parts.append("STARS")
    return " + ".join(parts)


def _size(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def weights_path(recipe: Recipe, weights: Path | None, origin: Path | None) -> Path:
    """Return the file of the teacher's weights."""
    if weights is not None:
        return weights
    folder = origin.parent if origin is not None else Path()
    return folder / str(recipe.teacher.weights)


def _with_teacher(recipe: Recipe, weights: Path) -> Recipe:
    """Return the recipe with the identity of the weights that are really used."""
    name = WEIGHTS if recipe.teacher.family == TRACED else weights.name
    known = {"weights": name, "sha256": sha256(weights)}
    return recipe.model_copy(update={"teacher": recipe.teacher.model_copy(update=known)})


def _claim(out: Path, recipe: Recipe, resume: bool) -> None:
    """Make OUT a run of `recipe`, or check that it already is one."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file, expected a folder for the run")
    # A killed write leaves a hidden temporary file; anything else belongs to somebody.
    held = [path.name for path in out.glob("*") if not path.name.startswith(".")]
    if held and not resume:
        raise InputError(
            f"{out}: holds {', '.join(sorted(held)[:3])}; continue that run with --resume, "
            "or give an empty folder"
        )
    if held and RECIPE not in held:
        raise InputError(f"{out}: holds no {RECIPE}, so it is no run that could be resumed")
    if not held:
        write_text(out / RECIPE, tomli_w.dumps(recipe.resolved()))
        return
    _same_recipe(out / RECIPE, recipe)
    for name in (RECIPE, STUDENT, SUMMARY, PICTURE, checkpoint.FILE):
        remove_leftovers(out / name)


def _same_recipe(path: Path, recipe: Recipe) -> None:
    try:
        before = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as problem:
        raise InputError(f"{path}: not valid TOML ({problem})") from None
    difference = _first_difference(before, tomllib.loads(tomli_w.dumps(recipe.resolved())))
    if difference is not None:
        key, old, new = difference
        raise InputError(
            f"{path.parent}: was started with {key} = {old!r}, now it is {new!r}; resume with the "
            "same recipe, seed and weights, or give another folder"
        )


def _first_difference(
    before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = ""
) -> tuple[str, Any, Any] | None:
    for key in [*now, *(key for key in before if key not in now)]:
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            inner = _first_difference(old, new, f"{prefix}{key}.")
            if inner is not None:
                return inner
        elif old != new:
            return f"{prefix}{key}", old, new
    return None


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Use `count` CPU threads inside, torch's own choice if 0; sums depend on their number."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _summary(session: Session, seconds: float, out: Path) -> dict[str, Any]:
    recipe = session.recipe
    imported = {"source": read_json(out / ABOUT)["teacher"]} if (out / ABOUT).is_file() else {}
    return {
        "name": recipe.name,
        "method": method(recipe),
        "seed": recipe.run.seed,
        "teacher": {
            "family": recipe.teacher.family,
            "sha256": recipe.teacher.sha256,
            "parameters": _size(session.teacher),
            **imported,
        },
        "student_parameters": _size(session.student),
        "T": recipe.student.T,
        **estimate(recipe),
        "pool_images": len(session.pool),
        "data": "none",
        "selection": "last step",
        **hardware(session.device),
        "versions": versions(),
        "wall_time_s": round(seconds, 3),
    }
