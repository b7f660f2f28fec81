"""What there is and what this machine can run: `demo`, `profiles`, `zoo`, `doctor`, `schema`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from stars_deploy.api.arguments import Json, PathLike, Progress, at_least, no_progress

if TYPE_CHECKING:
    from stars_deploy.results.inventory import Diagnosed, Profiles, Zoo
    from stars_deploy.results.validation import Demonstrated


def demo(
    *, out: PathLike = "demo", seed: int = 0, progress: Progress = no_progress
) -> Demonstrated:
    """Run the whole journey on the packaged Fashion-MNIST teacher: a CPU, minutes, no network.

    An interrupted demo of the same seed goes on where it stopped.

    Args:
        out: where OUT/run and OUT/bundle go.
        seed: of the distillation.
        progress: called with what is done, steps completed, and steps in all.

    Returns:
        n, accuracy by network, training, validations (one validation.json per engine), verdict,
        seconds by stage, report. A failed verdict is returned, not raised.

    Raises:
        What distill, evaluate, export and validate raise.

    Example:
        >>> stars_deploy.demo(out="demo")["accuracy"]
    """
    from stars_deploy.workflow.demo import run_demo

    at_least(0, seed=seed)
    result = run_demo(Path(out), seed, progress)
    return cast("Demonstrated", result)


def profiles() -> Profiles:
    """Return the packaged hardware profiles.

    Returns:
        profiles: what each is, by name.

    Raises:
        RecipeError: a packaged file was damaged.

    Example:
        >>> sorted(stars_deploy.profiles()["profiles"])
    """
    from stars_deploy.workflow.inventory import profiles as found

    result = found()
    return cast("Profiles", result)


def zoo() -> Zoo:
    """Return the packaged models: recipe, teacher, data.

    Returns:
        models: name, teacher, data and T of each.

    Raises:
        RecipeError: a packaged file was damaged.

    Example:
        >>> [model["name"] for model in stars_deploy.zoo()["models"]]
    """
    from stars_deploy.workflow.inventory import zoo as found

    result = found()
    return cast("Zoo", result)


def doctor(*, fix: bool = False, progress: Progress = no_progress) -> Diagnosed:
    """Say what this machine can run, without private names or paths.

    Args:
        fix: build the Lava environment, and let it compute, first.
        progress: called with what is done, steps completed, and steps in all.

    Returns:
        Versions, system, cuda, lava, profiles, models.

    Raises:
        EngineError: the environment cannot be built or computes something wrong.

    Example:
        >>> stars_deploy.doctor()["lava"]["state"]
    """
    from stars_deploy.workflow.doctor import doctor as examine

    result = examine(fix=fix, progress=progress)
    return cast("Diagnosed", result)


def schema(name: str) -> Json:
    """Return the JSON Schema of a command's result, or of a file with such a content.

    Args:
        name: a command ("validate", "teacher-train"), a file ("manifest.json"), or "error".

    Returns:
        A JSON Schema, draft 2020-12.

    Raises:
        InputError: a name that has no schema.

    Example:
        >>> sorted(stars_deploy.schema("check")["properties"])
    """
    from stars_deploy.results.schemas import schema as found

    return found(name)
