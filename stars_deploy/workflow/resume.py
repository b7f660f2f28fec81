"""`stars-deploy distill --resume`: a run holds its recipe, so nobody has to say it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from stars_deploy.assets import asset
from stars_deploy.config.recipe import Recipe, find_recipe, load_recipe
from stars_deploy.errors import InputError, WeightsError
from stars_deploy.workflow.distill import RECIPE, weights_path
from stars_deploy.workflow.own_teacher import WEIGHTS


def require_run(out: Path) -> None:
    """Refuse a folder that holds no run: a typing mistake would start a new one."""
    if not (out / RECIPE).is_file():
        raise InputError(f"{out}: holds no run to resume; without --resume it is started anew")


def recipe_of_run(
    out: Path,
    spec: str | None,
    weights: Path | None,
    overrides: Sequence[str] = (),
    options: Mapping[str, str] | None = None,
) -> tuple[Recipe, Path]:
    """Return the recipe that the run in OUT was started with, and the file of its teacher.

    A run keeps the name of the teacher's file, not its folder: that, only `weights` or the recipe
    that the run was started with can tell.

    A teacher that was imported lies in the run itself.

    Args:
        spec: that recipe, if it was named again; without it, the packaged model of its name.
        overrides, options: as for load_recipe; distill refuses those that change the recipe.

    Raises:
        InputError: `spec` has another name, or nothing says where the teacher is.
    """
    recipe = load_recipe(out / RECIPE, overrides, options)
    if spec is None and weights is not None:
        return recipe, weights
    if spec is None and (out / WEIGHTS).is_file():
        return recipe, out / WEIGHTS
    origin = _packaged(recipe, out) if spec is None else find_recipe(spec)
    named = load_recipe(origin)
    if named.name != recipe.name:
        raise InputError(
            f"{out}: was started with name = {recipe.name!r}, now it is {named.name!r}; resume "
            "with the same recipe, or give another folder"
        )
    if weights is None and named.teacher.weights is None:
        raise WeightsError(f"{origin}: names no teacher.weights; give the run's --weights again")
    return recipe, weights_path(named, weights, origin)


def _packaged(recipe: Recipe, out: Path) -> Path:
    path = asset("models", recipe.name, "recipe.toml")
    if not path.is_file():
        raise InputError(
            f"{out}: its recipe {recipe.name!r} is no packaged model, so its teacher is not known; "
            f"name the recipe, stars-deploy distill RECIPE --resume --out {out}, or give --weights"
        )
    return path
