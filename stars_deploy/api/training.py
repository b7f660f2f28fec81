"""Making networks: `distill`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stars_deploy.api.arguments import Json, PathLike, Progress, no_progress, optional_path

DEFAULT_MODEL = "fashion-mnist"


def distill(
    recipe: PathLike | None = None,
    *,
    out: PathLike,
    weights: PathLike | None = None,
    method: str | None = None,
    stars: bool | None = None,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    device: str | None = None,
    resume: bool = False,
    dry_run: bool = False,
    progress: Progress = no_progress,
) -> Json:
    """Distil a teacher into a spiking student without any data; writes the folder of a run.

    Args:
        recipe: a recipe file or the name of a packaged model; fashion-mnist if None.
        out: the folder of the run; it must be empty or absent, unless `resume`.
        weights: the teacher's weights (safetensors); those that the recipe names if None.
        method: synthesis by deepinversion, cmi or nayer; as the recipe says if None.
        stars: RCA and TAR on or off; as the recipe says if None.
        overrides: other values of the recipe, "key=value" each: "kd.lr=0.05".
        seed: of everything random.
        device: auto, cpu or cuda.
        resume: go on with an interrupted run, with the recipe that it has; a complete one is left.
        dry_run: return the plan and its size; nothing is run or written.
        progress: called with what is done, steps completed, and steps in all.

    Returns:
        The content of OUT/summary.json; with `dry_run` the plan.

    Raises:
        RecipeError: unknown recipe, key or value. InputError: OUT is in use, or is no run to
        resume. WeightsError: the teacher's weights are missing, damaged or of another network.
        TrainingDiverged: a loss is not finite; OUT/checkpoint holds the last good state.

    Example:
        >>> summary = stars_deploy.distill("fashion-mnist", seed=1, out="run")
    """
    from stars_deploy.config.recipe import find_recipe, load_recipe
    from stars_deploy.console import say
    from stars_deploy.workflow.distill import distill as run
    from stars_deploy.workflow.distill import plan
    from stars_deploy.workflow.resume import recipe_of_run, require_run

    folder, file = Path(out), optional_path(weights)
    if resume:
        require_run(folder)
    options = _options({"method": method, "seed": seed, "device": device}, stars)
    changes = [*overrides, *options]
    sources = {change.partition("=")[0]: option for change, option in options.items()}
    if resume and not overrides and method is None and stars is None and seed is None:
        named = None if recipe is None else str(recipe)
        chosen, file = recipe_of_run(folder, named, file, changes, sources)
        origin = folder / "recipe.toml"
        say(f"Resuming with the recipe of {origin}")
    else:
        spec = str(recipe or DEFAULT_MODEL)
        chosen, origin = load_recipe(spec, changes, sources), find_recipe(spec)
    if dry_run:
        return plan(chosen, file, origin)
    return run(chosen, folder, origin=origin, resume=resume, weights=file, progress=progress)


def _options(values: dict[str, object], stars: bool | None) -> dict[str, str]:
    """Return the changes of the recipe that options stand for, and how each was given."""
    keys = {"method": "synthesis.method", "seed": "run.seed", "device": "run.device"}
    given = {name: value for name, value in values.items() if value is not None}
    changes = {f"{keys[name]}={value}": f"--{name} {value}" for name, value in given.items()}
    if stars is not None:
        changes[f"stars.enabled={str(stars).lower()}"] = "--stars" if stars else "--no-stars"
    return changes
