"""Seconds of a synthesis and of a student step: what STARS costs, and what the fused neuron saves.

overhead   NAYER generator steps with RCA and TAR, with the adversarial term only, and with neither,
           beside one forward and backward pass of the student on the same images, in alternation.
backends   per method, steps with Norse's neuron run step by step (what the literature's code does),
           the fused one and the compiled one, in alternation; and from them synthetic images per
           second of distillation: the images of an epoch over the seconds of its steps.

One process; the packaged Fashion-MNIST teacher and the recipes sized for it, warm-started student.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from common import environment, save, spread

from stars_deploy.config.recipe import Recipe, find_recipe, load_recipe
from stars_deploy.distillation.kd import kd_loss
from stars_deploy.distillation.schedule import Step, synthetic_images
from stars_deploy.distillation.session import Session
from stars_deploy.networks.images import to_input
from stars_deploy.networks.weights import load_teacher

RECIPES = {
    "nayer": "fashion-mnist",
    "cmi": "fashion-mnist-cmi",
    "deepinversion": "fashion-mnist-deepinversion",
}
# The one surrogate that Norse and we define alike, so that all backends do the same work.
SAME = ["neuron.surrogate=triangle", "neuron.alpha=1.0"]
BACKENDS = ("norse", "fused", "compiled")
ARMS = {
    "neither": ["stars.enabled=false", "synthesis.adv=0.0"],
    "adversarial": ["stars.enabled=false"],
    "stars": ["synthesis.adv=0.0"],
    "adversarial and stars": [],
}


def new_session(name: str, overrides: list[str]) -> Session:
    recipe = load_recipe(name, overrides)
    session = Session(recipe, load_teacher(recipe, origin=find_recipe(name)))
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(512, *recipe.data.shape, generator=generator)
    session.pool.add(images, torch.zeros(512, dtype=torch.int64))
    return session


def synthesis_step(session: Session) -> Callable[[], None]:
    """A step in the middle of a loop of an epoch in which the student takes part."""
    epoch = session.recipe.run.warmup
    session.advance(Step("synthesis", epoch, 0))
    return lambda: discard(session.advance(Step("synthesis", epoch, 2)))


def kd_step(session: Session) -> Callable[[], None]:
    epoch = session.recipe.run.warmup
    return lambda: discard(session.advance(Step("kd", epoch, 1)))


def student_pass(session: Session) -> Callable[[], None]:
    """One forward and backward pass down to the images, the student frozen as in synthesis."""
    recipe = session.recipe
    images = session.pool.images[: recipe.synthesis.batch_size]

    def work() -> None:
        session.student.eval().requires_grad_(False)
        x = to_input(images, recipe.data, session.device).requires_grad_()
        logits = session.student(x)
        kd_loss(logits, torch.zeros_like(logits), 20.0).backward()

    return work


def images_per_epoch(recipe: Recipe) -> float:
    """Synthetic images that an epoch with a student adds, on average."""
    run = recipe.run
    warm_up = recipe.model_copy(update={"run": run.model_copy(update={"epochs": run.warmup})})
    made = synthetic_images(recipe) - synthetic_images(warm_up)
    return made / (run.epochs - run.warmup)


def discard(_: Any) -> None:
    return None


def alternated(work: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each piece of work, done in turn; the first round is thrown away."""
    taken: dict[str, list[float]] = {name: [] for name in work}
    for number in range(rounds + 1):
        for name, step in work.items():
            begun = time.perf_counter()
            step()
            if number > 0:
                taken[name].append(time.perf_counter() - begun)
    return taken


def overhead(rounds: int) -> dict[str, Any]:
    work = {arm: synthesis_step(new_session("fashion-mnist", sets)) for arm, sets in ARMS.items()}
    work["student pass"] = student_pass(new_session("fashion-mnist", []))
    taken = alternated(work, rounds)
    middle = {name: statistics.median(values) for name, values in taken.items()}
    return {
        "seconds": {name: spread(values) for name, values in taken.items()},
        "stars_minus_neither_in_student_passes": (middle["stars"] - middle["neither"])
        / middle["student pass"],
        "stars_beside_adversarial_ratio": middle["adversarial and stars"] / middle["adversarial"],
    }


def backends(method: str, rounds: int) -> dict[str, Any]:
    sessions = {
        backend: new_session(RECIPES[method], [*SAME, f"neuron.backend={backend}"])
        for backend in BACKENDS
    }
    recipe = next(iter(sessions.values())).recipe
    epoch = recipe.run.warmup
    made = images_per_epoch(recipe)
    synthesis = alternated({b: synthesis_step(s) for b, s in sessions.items()}, rounds)
    student = alternated({b: kd_step(s) for b, s in sessions.items()}, rounds)
    result: dict[str, Any] = {"images_per_epoch": made}
    for backend, session in sessions.items():
        steps = session.synthesizer.steps(epoch)
        middle = statistics.median(synthesis[backend]), statistics.median(student[backend])
        result[backend] = {
            "synthesis_step_s": spread(synthesis[backend]),
            "student_step_s": spread(student[backend]),
            "images_per_s": made / (steps * middle[0] + recipe.kd.steps * middle[1]),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    cost = overhead(chosen.rounds)
    methods = {method: backends(method, chosen.rounds) for method in RECIPES}
    save(
        "distillation_speed",
        {
            "what": __doc__,
            "environment": environment(chosen.threads),
            "overhead": cost,
            "backends": methods,
        },
    )
    shown = {key: value for key, value in cost.items() if key != "seconds"}
    print(shown, {m: {b: r[b]["images_per_s"] for b in BACKENDS} for m, r in methods.items()})


if __name__ == "__main__":
    main()
