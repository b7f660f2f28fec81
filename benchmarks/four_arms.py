"""What each part of the demo's distillation is worth at the same wall time, on real test images.

Four arms per seed, each evaluated once, after its last step:

    scratch            NAYER + STARS, student from random weights
    warm start         synthetic images and the calibrated start, no gradient step
    warm start + NAYER the recipe without STARS
    full               the recipe: warm start + NAYER + STARS

The recipe's own length sets the budget. Before each arm its steps are timed on this machine, and
the count of its student updates (of its batches of images, for the arm that has none) is chosen so
that the arm is expected to take the same time; schedules then stretch over that count. What every
arm really took, and how many updates it made, stands beside every accuracy. Timing pilots and
evaluation are not counted.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch
from common import environment, mean_and_sd, save

from stars_deploy.config.recipe import Recipe, find_recipe, load_recipe
from stars_deploy.data import load_data
from stars_deploy.distillation.schedule import Step, steps, totals
from stars_deploy.distillation.session import Session
from stars_deploy.networks.weights import load_teacher
from stars_deploy.workflow.distill import method
from stars_deploy.workflow.evaluate import accuracy

MODEL = "fashion-mnist"
PILOT = 6  # steps timed per kind, the first of them thrown away
ARMS: dict[str, list[str]] = {
    # From random weights the published optimiser setting learns faster than the fine-tuning one.
    "scratch": ["warm_start.enabled=false", "kd.lr=0.1", "kd.weight_decay=1e-4", "kd.feature=0"],
    "warm start": ["stars.enabled=false"],
    "warm start + NAYER": ["stars.enabled=false"],
    "full": [],
}


def recipe_of(arm: str, seed: int, overrides: list[str]) -> Recipe:
    return load_recipe(MODEL, [*ARMS[arm], *overrides, f"run.seed={seed}"])


def new_session(recipe: Recipe) -> Session:
    return Session(recipe, load_teacher(recipe, origin=find_recipe(MODEL)))


def schedule(arm: str, recipe: Recipe) -> Iterator[Step]:
    """The steps an arm does: all of them, or those up to the calibration."""
    if arm != "warm start":
        return steps(recipe)
    whole = list(steps(recipe))
    return iter(whole[: 1 + next(i for i, step in enumerate(whole) if step.phase == "calibration")])


def step_seconds(recipe: Recipe) -> dict[tuple[str, bool], float]:
    """Median seconds of a step by phase and by whether the student takes part in it."""
    session = new_session(recipe)
    session.pool.add(torch.rand(512, *recipe.data.shape), torch.zeros(512, dtype=torch.int64))
    costs = {}
    kinds = {(step.phase, step.epoch >= recipe.run.warmup): step for step in steps(recipe)}
    for kind, step in kinds.items():
        repeats = 1 if step.phase == "calibration" else PILOT
        taken = []
        for number in range(repeats):
            begun = time.perf_counter()
            # Not the last step of a loop or of an epoch: those log more.
            session.advance(step._replace(number=number))
            taken.append(time.perf_counter() - begun)
        costs[kind] = statistics.median(taken[1:] or taken)
    return costs


def predicted(arm: str, recipe: Recipe, costs: dict[tuple[str, bool], float]) -> float:
    done = schedule(arm, recipe)
    return sum(costs[step.phase, step.epoch >= recipe.run.warmup] for step in done)


def fitted(arm: str, seed: int, budget: float) -> Recipe:
    """The arm's recipe with the step count that is expected to take `budget` seconds."""
    costs = step_seconds(recipe_of(arm, seed, []))
    key = "synthesis.nayer.gwp_loops" if arm == "warm start" else "kd.steps"
    for count in itertools.count(1):
        longer = recipe_of(arm, seed, [f"{key}={count + 1}"])
        if predicted(arm, longer, costs) > budget:
            return recipe_of(arm, seed, [f"{key}={count}"])
    raise AssertionError


def run_arm(arm: str, recipe: Recipe, images: Any, labels: Any) -> dict[str, Any]:
    begun = time.perf_counter()
    session = new_session(recipe)
    for step in schedule(arm, recipe):
        session.advance(step)
    wall = time.perf_counter() - begun
    counts = totals(recipe)
    return {
        "accuracy": accuracy(session.student, images, labels, recipe.data, session.device),
        "wall_s": round(wall, 1),
        "student_updates": 0 if arm == "warm start" else counts["kd"],
        "pool_images": len(session.pool),
    }


def summary(arms: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Mean and spread per arm, and differences of the full recipe to each other arm per seed."""
    full = [result["accuracy"] for result in arms["full"]]
    table = {}
    for arm, results in arms.items():
        values = [result["accuracy"] for result in results]
        gains = [ours - other for ours, other in zip(full, values, strict=True)]
        table[arm] = {
            **mean_and_sd("accuracy", values),
            "wall_s": statistics.mean(result["wall_s"] for result in results),
            **({} if arm == "full" else {"full_minus_this": mean_and_sd("difference", gains)}),
            "runs": results,
        }
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--name", default="four_arms", help="result file in benchmarks/results")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    base = load_recipe(MODEL)
    images, labels = load_data("evaluation", base.data)
    arms: dict[str, list[dict[str, Any]]] = {"full": []}
    for seed in chosen.seeds:
        recipe = recipe_of("full", seed, [])
        arms["full"].append(run_arm("full", recipe, images, labels))
        budget = arms["full"][-1]["wall_s"]
        print(f"seed {seed}: full {arms['full'][-1]}", flush=True)
        for arm in (name for name in chosen.arms if name != "full"):
            result = run_arm(arm, fitted(arm, seed, budget), images, labels)
            arms.setdefault(arm, []).append(result)
            print(f"seed {seed}: {arm} {result}", flush=True)
    save(
        chosen.name,
        {
            "what": __doc__,
            "environment": environment(chosen.threads),
            "model": MODEL,
            "images": len(labels),
            "images_are": "the packaged evaluation subset: the first test images",
            "checkpoint": "last step, evaluated once; no selection",
            "seeds": chosen.seeds,
            "methods": {
                arm: "warm start" if arm == "warm start" else method(recipe_of(arm, 0, []))
                for arm in arms
            },
            "overrides": {arm: ARMS[arm] for arm in arms},
            "recipe": base.resolved(),
            "arms": summary(arms),
        },
    )


if __name__ == "__main__":
    main()
