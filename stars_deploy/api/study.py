"""Questions a researcher asks: `compare`, `operating_point`, `tensorboard`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from stars_deploy.api.arguments import (
    PathLike,
    Progress,
    at_least,
    no_progress,
    optional_path,
    optional_text,
)

if TYPE_CHECKING:
    from stars_deploy.results.study import Compared, OperatingPoint
    from stars_deploy.results.training import Converted


def compare(
    recipe: PathLike,
    *,
    out: PathLike,
    vary: Sequence[str] = (),
    seeds: str | Sequence[int] = (0, 1, 2),
    data: PathLike = "evaluation",
    weights: PathLike | None = None,
    overrides: Sequence[str] = (),
    progress: Progress = no_progress,
) -> Compared:
    """Run a recipe with values varied, over seeds: means, spreads, paired differences.

    A comparison that was interrupted goes on where it stopped; more seeds may be added.

    Args:
        recipe: a recipe file or the name of a packaged model.
        out: the folder of the comparison; continued if it is one.
        vary: values to compare, "key=a,b" each: "stars=on,off".
        seeds: whole numbers, or their text: "0-4".
        data: a data set's name, a folder of images, or an npz.
        weights: the teacher's weights (safetensors); those that the recipe names if None.
        overrides: other values of the recipe, "key=value" each.
        progress: called with what is done, steps completed, and steps in all.

    Returns:
        compare.json: one entry of `cells` per setting.

    Raises:
        InputError, RecipeError: a wrong setting, or OUT holds another comparison. DataError,
        WeightsError, TrainingDiverged.

    Example:
        >>> stars_deploy.compare("fashion-mnist", vary=["stars=on,off"], seeds=[0, 1], out="stars")
    """
    from stars_deploy.workflow.compare import compare as run
    from stars_deploy.workflow.grid import parse_seeds

    file = optional_path(weights)
    chosen = parse_seeds(seeds)
    result = run(str(recipe), vary, chosen, str(data), Path(out), overrides, file, progress)
    return cast("Compared", result)


def operating_point(
    run: PathLike,
    *,
    data: PathLike | None = None,
    limit: int = 2000,
    device: str = "auto",
    progress: Progress = no_progress,
) -> OperatingPoint:
    """Measure tail masses and firing rates per layer, on synthetic and on real images.

    Writes RUN/operating_point.json and RUN/operating_point.svg.

    Args:
        run: the folder of a distillation run.
        data: real images to compare with: a data set's name, a folder, an npz.
        limit: images of each kind.
        device: auto, cpu or cuda.
        progress: called with what is done, images completed, and images in all.

    Returns:
        operating_point.json: thresholds, and per layer what was measured on each kind of images.

    Raises:
        InputError: RUN is not a finished run with a checkpoint. DataError, WeightsError.

    Example:
        >>> stars_deploy.operating_point("run", data="evaluation")["layers"]
    """
    from stars_deploy.workflow.operating_point import operating_point as measure

    at_least(1, limit=limit)
    result = measure(Path(run), optional_text(data), limit, device, progress)
    return cast("OperatingPoint", result)


def tensorboard(run: PathLike, *, out: PathLike) -> Converted:
    """Write the metrics of a run as event files for TensorBoard; metrics.jsonl stays as it is.

    A run that goes on is simply converted again.

    Args:
        run: a folder that distill, train_teacher or finetune wrote.
        out: the folder of the event files; replaced as a whole if it holds nothing else.

    Returns:
        events, scalars, tags.

    Raises:
        InputError: RUN has no metrics or damaged ones, or OUT holds something else.
        EngineError: stars-deploy[tensorboard] is not installed.

    Example:
        >>> stars_deploy.tensorboard("run", out="events")["tags"]
    """
    from stars_deploy.workflow.tensorboard import tensorboard as convert

    return cast("Converted", convert(Path(run), Path(out)))
