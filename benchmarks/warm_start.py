"""What the warm start buys, by time steps and depth, at an equal number of student updates.

Per recipe the warm-up makes one pool of synthetic images (the student has no part in it), which all
students then share. For each T: the analytic start (no image), the calibrated one (synthetic
images), and after the same number of student updates on the same pool, warm-started and from random
weights. From random weights the published optimiser setting is used: it learns faster there. The
last step is evaluated, on the first test images.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from common import environment, save

from stars_deploy.config.recipe import Recipe, find_recipe, load_recipe
from stars_deploy.data import data_label, load_data
from stars_deploy.distillation.schedule import Step, steps
from stars_deploy.distillation.session import Session
from stars_deploy.networks.base import Network
from stars_deploy.networks.weights import load_teacher
from stars_deploy.workflow.evaluate import accuracy

TIMES = (2, 4, 8)
SCRATCH = ["warm_start.enabled=false", "kd.lr=0.1", "kd.weight_decay=1e-4", "kd.feature=0"]


class Bench:
    """One recipe: its teacher, its pool, and the images that judge."""

    def __init__(self, name: str, weights: Path | None, data: str, images: int, updates: int):
        self.name, self.weights, self.updates = name, weights, updates
        recipe = self.recipe([])
        found, labels = load_data(data, recipe.data, "test")
        self.images, self.labels = found[:images], labels[:images]
        session = self.session(recipe)
        for step in steps(recipe):
            if step.epoch == recipe.run.warmup:
                break
            session.advance(step)
        self.pool = session.pool.state_dict()
        self.teacher_accuracy = self.accuracy(session.teacher)

    def recipe(self, overrides: list[str]) -> Recipe:
        whole = [f"kd.steps={self.updates}", *overrides]
        recipe = load_recipe(self.name, whole)
        short = recipe.run.model_copy(update={"epochs": recipe.run.warmup + 1})
        return recipe.model_copy(update={"run": short})

    def session(self, recipe: Recipe) -> Session:
        return Session(recipe, load_teacher(recipe, self.weights, find_recipe(self.name)))

    def accuracy(self, network: Network) -> float:
        data = load_recipe(self.name).data
        return accuracy(network, self.images, self.labels, data, torch.device("cpu"))

    def at(self, T: int) -> dict[str, Any]:
        """Return the accuracies of the four students of T steps."""
        begun = time.perf_counter()
        warm = self.session(self.recipe([f"student.T={T}"]))
        result = {"T": T, "analytic": self.accuracy(warm.student)}
        warm.pool.load_state_dict(self.pool)
        epoch = warm.recipe.run.warmup
        warm.advance(Step("calibration", epoch, 0))
        result["calibrated"] = self.accuracy(warm.student)
        cold = self.session(self.recipe([f"student.T={T}", *SCRATCH]))
        cold.pool.load_state_dict(self.pool)
        for name, session in (("warm + updates", warm), ("scratch + updates", cold)):
            for number in range(self.updates):
                session.advance(Step("kd", epoch, number))
            result[name] = self.accuracy(session.student)
        return result | {"seconds": round(time.perf_counter() - begun, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("--weights", type=Path, help="the teacher's, if the recipe has none")
    parser.add_argument("--data", required=True, help="labelled test images")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--updates", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    bench = Bench(chosen.recipe, chosen.weights, chosen.data, chosen.images, chosen.updates)
    print(f"teacher {bench.teacher_accuracy}", flush=True)
    results = []
    for T in TIMES:
        results.append(bench.at(T))
        print(results[-1], flush=True)
    recipe = load_recipe(chosen.recipe)
    save(
        f"warm_start-{recipe.name}",
        {
            "what": __doc__,
            "environment": environment(chosen.threads),
            "recipe": recipe.name,
            "seed": recipe.run.seed,
            "neuron_layers": len(bench.session(bench.recipe([])).student.junctions),
            "data": data_label(chosen.data, recipe.data),
            "images": len(bench.labels),
            "updates": chosen.updates,
            "teacher_accuracy": bench.teacher_accuracy,
            "results": results,
        },
    )


if __name__ == "__main__":
    main()
