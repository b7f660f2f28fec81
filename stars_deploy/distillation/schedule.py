"""The steps of a run, one after the other; a run can stop and go on between any two of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from stars_deploy.config.recipe import Recipe
from stars_deploy.distillation.synthesis.nayer import loops, new_generator_due

Phase = Literal["synthesis", "calibration", "kd"]


class Step(NamedTuple):
    """Step `number` of one phase of one epoch."""

    phase: Phase
    epoch: int
    number: int


def steps(recipe: Recipe) -> Iterator[Step]:
    """Yield every step of a run in order.

    Per epoch synthesis and, after the warm-up, distillation. The warm start is calibrated once, as
    soon as the warm-up has filled the pool: before the first synthesis in which the student takes
    part, or after it if there was none to take images from.
    """
    pool_filled = recipe.run.warmup > 0
    calibrated = recipe.warm_start.enabled and recipe.warm_start.calibration_images > 0
    for epoch in range(recipe.run.epochs):
        first = calibrated and epoch == recipe.run.warmup
        if first and pool_filled:
            yield Step("calibration", epoch, 0)
        yield from (Step("synthesis", epoch, i) for i in range(synthesis_steps(recipe, epoch)))
        if first and not pool_filled:
            yield Step("calibration", epoch, 0)
        if epoch >= recipe.run.warmup:
            yield from (Step("kd", epoch, i) for i in range(recipe.kd.steps))


def synthesis_steps(recipe: Recipe, epoch: int) -> int:
    """Return the synthesis steps of an epoch."""
    synthesis = recipe.synthesis
    if synthesis.method == "nayer":
        return loops(synthesis.nayer, epoch, recipe.run.warmup) * synthesis.nayer.g_steps
    own = synthesis.cmi if synthesis.method == "cmi" else synthesis.deepinversion
    return own.g_steps


def totals(recipe: Recipe) -> dict[str, int]:
    """Return the number of steps per phase, for phases that a run has."""
    return dict(Counter(step.phase for step in steps(recipe)))


def synthetic_images(recipe: Recipe) -> int:
    """Return how many images a run makes in all (the pool may hold fewer)."""
    nayer, warmup = recipe.synthesis.nayer, recipe.run.warmup
    epochs = range(recipe.run.epochs)
    if recipe.synthesis.method != "nayer":
        return len(epochs) * recipe.synthesis.batch_size
    batches = sum(loops(nayer, epoch, warmup) for epoch in epochs)
    if nayer.harvest_every:
        per_loop = len(range(nayer.harvest_from, nayer.g_steps - 1, nayer.harvest_every))
        lives = sum(new_generator_due(nayer, epoch, warmup) for epoch in epochs)
        batches += (batches - lives) * per_loop
    return batches * recipe.synthesis.batch_size


def estimate(recipe: Recipe) -> dict[str, Any]:
    """Return the size of a run: steps per phase, images, student updates."""
    counts = totals(recipe)
    return {
        "epochs": recipe.run.epochs,
        "warmup_epochs": recipe.run.warmup,
        "synthesis_steps": counts.get("synthesis", 0),
        "synthetic_images": synthetic_images(recipe),
        "calibrations": counts.get("calibration", 0),
        "student_updates": counts.get("kd", 0),
        "student_images": counts.get("kd", 0) * recipe.kd.batch_size,
    }
