"""Making networks: `train_teacher`, `distill`, `evaluate`, `finetune`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from stars_deploy.api.arguments import (
    Json,
    Names,
    Numbers,
    PathLike,
    Progress,
    at_least,
    no_progress,
    optional_path,
    optional_text,
)
from stars_deploy.errors import InputError

if TYPE_CHECKING:
    from stars_deploy.config.recipe import Recipe
    from stars_deploy.results.training import (
        Evaluated,
        Finetuned,
        ImportedTeacher,
        TrainedTeacher,
    )
    from stars_deploy.workflow.own_teacher import OwnTeacher

DEFAULT_MODEL = "fashion-mnist"


def train_teacher(
    recipe: PathLike,
    *,
    out: PathLike,
    data: PathLike = "fashion-mnist",
    overrides: Sequence[str] = (),
    device: str = "auto",
    progress: Progress = no_progress,
) -> TrainedTeacher:
    """Train an ANN teacher with real data; writes OUT/teacher.safetensors and OUT/summary.json.

    Args:
        recipe: a recipe file or the name of a packaged model.
        out: a folder that is empty or absent.
        data: a data set's name, or a folder with training and test images.
        overrides: other values of the recipe, "key=value" each: "training.epochs=5".
        device: auto, cpu or cuda.
        progress: called with what is done, epochs completed, and epochs in all.

    Returns:
        The content of OUT/summary.json.

    Raises:
        RecipeError, DataError; InputError: OUT is not empty. TrainingDiverged: the loss is not
        finite; OUT/checkpoint keeps the last good epoch.

    Example:
        >>> stars_deploy.train_teacher("fashion-mnist", out="teacher")["accuracy"]
    """
    from stars_deploy.config.recipe import load_recipe
    from stars_deploy.workflow.teacher import train_teacher as train

    chosen = load_recipe(recipe, overrides)
    result = train(chosen, str(data), Path(out), device, progress)
    return cast("TrainedTeacher", result)


def import_teacher(
    teacher: str,
    *,
    out: PathLike,
    weights: PathLike | None = None,
    recipe: PathLike | None = None,
    card: PathLike | None = None,
    image_shape: str | Sequence[int] | None = None,
    mean: Numbers | None = None,
    std: Numbers | None = None,
    classes: Names | None = None,
    pooling: str = "window",
    overrides: Sequence[str] = (),
) -> ImportedTeacher:
    """Turn a trained network of your own into a recipe; writes OUT/recipe.toml and its weights.

    The network is traced (torch.fx) and run once: what was traced must give the same logits.

    Args:
        teacher: package.module:function, file.py:function, or torchvision:NAME. The function is
            called without arguments; this runs the code it is in.
        out: a folder that is empty or absent.
        weights: the trained weights: safetensors, or a state dict of torch.save (.pt, .pth, .th).
        recipe: what the new recipe starts from; models/bases/own-teacher.toml if None.
        card: a file that says shape, mean, std and classes: TOML, or a hub's config files.
        image_shape, mean, std, classes: the same, over the card and the recipe.
        pooling: what the spiking twin has for max pooling: the average over the same window, or,
            with stride, over windows that do not overlap.
        overrides: other values of the recipe, "key=value" each.

    Returns:
        The content of OUT/teacher.json: what differs in the twin, and which of the teacher's
        activations became which neurons.

    Raises:
        InputError: the network cannot be had or turned into a twin; says where, and what to do.
        WeightsError: the weights are missing, damaged, unsafe to read or of another network.

    Example:
        >>> stars_deploy.import_teacher(
        ...     "net.py:net", weights="net.th", image_shape=(3, 32, 32), mean=0.5, std=0.25,
        ...     out="teacher",
        ... )
    """
    from stars_deploy.workflow.own_teacher import import_teacher as write

    images = (image_shape, mean, std, classes)
    own = _own(teacher, weights, recipe, card, images, pooling, overrides, {})
    return cast("ImportedTeacher", write(own, Path(out)))


def distill(
    recipe: PathLike | None = None,
    *,
    out: PathLike,
    teacher: str | None = None,
    weights: PathLike | None = None,
    card: PathLike | None = None,
    image_shape: str | Sequence[int] | None = None,
    mean: Numbers | None = None,
    std: Numbers | None = None,
    classes: Names | None = None,
    pooling: str | None = None,
    student: str | None = None,
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
        teacher: a network of your own in the place of the recipe's, see import_teacher.
        weights: the teacher's weights; those that the recipe names if None.
        card, image_shape, mean, std, classes, pooling: of your own teacher, see import_teacher.
        student: twin (the teacher's layers as neurons), or a family, such as resnet20, which
            starts without the teacher's weights.
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
    from stars_deploy.workflow.distill import distill as run
    from stars_deploy.workflow.distill import plan
    from stars_deploy.workflow.resume import require_run

    folder, file = Path(out), optional_path(weights)
    if resume:
        require_run(folder)
    given = {"method": method, "seed": seed, "device": device, "student": student}
    options = _options(given, stars)
    # A network of another shape cannot start with the teacher's weights.
    other = [] if student in (None, "twin") else ["warm_start.enabled=false"]
    changes = [*other, *overrides, *options]
    sources = {change.partition("=")[0]: option for change, option in options.items()}
    images, own = (image_shape, mean, std, classes), None
    if teacher is not None:
        own = _own(teacher, weights, recipe, card, images, pooling or "window", changes, sources)
        chosen, origin, file = own.recipe, folder / "recipe.toml", None
        _say_notes(own)
    else:
        _require_own(card, pooling, *images)
        as_it_is = resume and not overrides and (method, stars, seed, student) == (None,) * 4
        spec = optional_text(recipe)
        chosen, origin, file = _recipe(spec, folder, file, changes, sources, as_it_is)
    if dry_run:
        return plan(chosen, file, origin)
    return run(
        chosen, folder, origin=origin, resume=resume, weights=file, own=own, progress=progress
    )


def _recipe(
    spec: str | None,
    run: Path,
    weights: Path | None,
    changes: Sequence[str],
    sources: Mapping[str, str],
    as_it_is: bool,
) -> tuple[Recipe, Path, Path | None]:
    """Return a recipe, its file, and the teacher's weights; `as_it_is`: those that RUN has."""
    from stars_deploy.config.recipe import find_recipe, load_recipe
    from stars_deploy.console import say
    from stars_deploy.workflow.resume import recipe_of_run

    if not as_it_is:
        spec = spec or DEFAULT_MODEL
        return load_recipe(spec, changes, sources), find_recipe(spec), weights
    recipe, weights = recipe_of_run(run, spec, weights, changes, sources)
    say(f"Resuming with the recipe of {run / 'recipe.toml'}")
    return recipe, run / "recipe.toml", weights


def _require_own(*described: object) -> None:
    """Refuse options that describe a teacher of one's own where none is given."""
    if any(value is not None for value in described):
        raise InputError(
            "--card, --image-shape, --mean, --std, --classes and --pooling describe a teacher of "
            "your own: give it with --teacher, or set data.mean and the like with --set"
        )


def _own(
    teacher: str,
    weights: PathLike | None,
    recipe: PathLike | None,
    card: PathLike | None,
    images: tuple[
        str | Sequence[int] | None, Numbers | None, Numbers | None, Names | None
    ],  # shape, mean, std, classes
    pooling: str,
    changes: Sequence[str],
    sources: Mapping[str, str],
) -> OwnTeacher:
    from stars_deploy.workflow.own_teacher import Request, own_teacher, require_own_weights
    from stars_deploy.workflow.reading import parse_reading

    shape, mean, std, classes = images
    reading = parse_reading(mean=mean, std=std, classes=classes, image_shape=shape)
    file = require_own_weights(teacher, optional_path(weights))
    request = Request(teacher, file, reading, optional_path(card), pooling)
    return own_teacher(request, optional_text(recipe), changes, sources)


def _say_notes(own: OwnTeacher) -> None:
    from stars_deploy.console import say

    for note in own.about["notes"]:
        say(f"Teacher: {note}")


def evaluate(
    run: PathLike,
    *,
    data: PathLike = "evaluation",
    device: str = "auto",
    progress: Progress = no_progress,
) -> Evaluated:
    """Measure accuracy (also against T) and spikes per layer; writes RUN/training.json.

    Args:
        run: the folder of a finished run.
        data: labelled images: a data set's name, a folder of images, or an npz.
        device: auto, cpu or cuda.
        progress: called with what is done, images completed, and images in all.

    Returns:
        The content of RUN/training.json.

    Raises:
        InputError: RUN is not the folder of a finished run. WeightsError, DataError.

    Example:
        >>> stars_deploy.evaluate("run", data="fashion-mnist")["accuracy_by_t"]
    """
    from stars_deploy.workflow.evaluate import evaluate as measure

    result = measure(Path(run), str(data), device, progress)
    return cast("Evaluated", result)


def finetune(
    source: PathLike,
    *,
    out: PathLike,
    profile: PathLike = "loihi2",
    bits: int | None = None,
    updates: int = 300,
    lr: float = 0.001,
    seed: int = 0,
    pool: PathLike | None = None,
    weights: PathLike | None = None,
    data: PathLike | None = None,
    device: str = "auto",
    progress: Progress = no_progress,
) -> Finetuned:
    """Train a student's integers as a chip computes them, on synthetic images.

    Writes graph.nir and finetune.json into OUT, as a whole.

    Args:
        source: a run, a bundle or a .nir file.
        out: a folder that is empty or absent.
        profile: the name of a Loihi profile, or its TOML file.
        bits: of the weights; the profile's if None.
        updates: of the weights; 0 corrects the biases only.
        lr: learning rate, relative to the largest weight.
        seed: of the order of the images.
        pool: the run whose synthetic images and teacher are used; SOURCE if it is a run.
        weights: the teacher's weights (safetensors), where the run cannot tell.
        data: labelled images to measure on, never to train on.
        device: auto, cpu or cuda.
        progress: called with what is done, updates completed, and updates in all.

    Returns:
        The content of OUT/finetune.json.

    Raises:
        InputError, WeightsError, DataError; GraphError, DoesNotFit: the graph cannot be lowered,
        or not be trained. TrainingDiverged: nothing is written.

    Example:
        >>> stars_deploy.finetune("run", bits=4, out="run4")["agreement"]
    """
    from stars_deploy.workflow.finetune import Settings
    from stars_deploy.workflow.finetune import finetune as train

    at_least(0, updates=updates, seed=seed)
    at_least(1e-9, lr=lr)
    result = train(
        Path(source),
        Path(out),
        Settings(updates, lr, seed),
        profile=str(profile),
        bits=bits,
        pool=optional_path(pool),
        weights=optional_path(weights),
        data=optional_text(data),
        device=device,
        progress=progress,
    )
    return cast("Finetuned", result)


def _options(values: Mapping[str, object], stars: bool | None) -> dict[str, str]:
    """Return the changes of the recipe that options stand for, and how each was given."""
    keys = {
        "method": "synthesis.method",
        "seed": "run.seed",
        "device": "run.device",
        "student": "student.architecture",
    }
    given = {name: value for name, value in values.items() if value is not None}
    changes = {f"{keys[name]}={value}": f"--{name} {value}" for name, value in given.items()}
    if stars is not None:
        changes[f"stars.enabled={str(stars).lower()}"] = "--stars" if stars else "--no-stars"
    return changes
