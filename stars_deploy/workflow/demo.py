"""The demo: every step of the toolchain on the packaged Fashion-MNIST teacher."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from stars_deploy.config.recipe import find_recipe, load_recipe
from stars_deploy.console import Progress, no_progress, say
from stars_deploy.data import EVALUATION
from stars_deploy.locks import one_writer
from stars_deploy.networks.weights import load_teacher
from stars_deploy.simulation.lava.environment import environment_status
from stars_deploy.workflow.distill import distill
from stars_deploy.workflow.evaluate import evaluate
from stars_deploy.workflow.export import TARGETS, export
from stars_deploy.workflow.validate import validate

MODEL = "fashion-mnist"
PROFILE = "loihi2"
GOLDEN = 16
LAVA_TIMEOUT_S = 600.0
Json = dict[str, Any]
R = TypeVar("R")


@one_writer("out")
def run_demo(out: Path, seed: int, progress: Progress = no_progress) -> Json:
    """Distil, evaluate, export and validate into OUT/run and OUT/bundle, on the CPU.

    A run in OUT that an earlier demo of the same seed began is continued, so that an interrupted
    demo loses nothing. The last verdict, and so the report, is that of the integer engine on the
    evaluation images; the report keeps those of the other engines.

    Returns:
        n, accuracy by network, training.json, one validation.json per engine that ran, seconds
        by stage, and the path of the report.

    Raises: what the commands raise that it runs.
    """
    run, bundle = out / "run", out / "bundle"
    clock = _Clock()
    clock.time("distil", lambda: _distil(run, seed, progress))
    training = clock.time("evaluate", lambda: _evaluate(run, progress))
    clock.time("export", lambda: export(run, TARGETS, PROFILE, GOLDEN, "raw", bundle))
    validations = []
    for engine, data in _judges():
        say(f"Validating with engine {engine} on {data or 'golden'} images")
        judge = functools.partial(_judge, bundle, engine, data, progress)
        validations.append(clock.time(f"validate {engine}", judge))
    judged = validations[-1]["accuracy"]
    return {
        "n": training["n"],
        "accuracy": {
            "ANN teacher": training["teacher_accuracy"],
            "spiking student (training)": training["accuracy"],
            "float graph": judged["reference"],
            f"{PROFILE} integers": judged["target"],
        },
        "training": training,
        "validations": validations,
        "verdict": "pass" if all(v["verdict"] == "pass" for v in validations) else "fail",
        "seconds": clock.seconds,
        "report": str(bundle / "report.html"),
    }


def _distil(run: Path, seed: int, progress: Progress) -> Json:
    recipe = load_recipe(MODEL, [f"run.seed={seed}", "run.device=cpu"])
    begun = (run / "recipe.toml").is_file()
    return distill(recipe, run, origin=find_recipe(MODEL), resume=begun, progress=progress)


def _evaluate(run: Path, progress: Progress) -> Json:
    teacher = load_teacher(load_recipe(MODEL), origin=find_recipe(MODEL))
    return evaluate(run, EVALUATION, "cpu", progress, teacher)


def _judges() -> list[tuple[str, str | None]]:
    """Return engines and the data they judge, the integer engine last: its report stays."""
    lava = environment_status()
    if not lava.ready:
        say(f"Lava is not run: {lava.reason}")
    outside: list[tuple[str, str | None]] = [("onnx", None), ("lava", None)]
    return [*outside[: 1 + lava.ready], ("integer", EVALUATION)]


def _judge(bundle: Path, engine: str, data: str | None, progress: Progress) -> Json:
    return validate(bundle, PROFILE, engine, data, None, LAVA_TIMEOUT_S, "cpu", progress)


class _Clock:
    """Seconds of every stage, in order."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def time(self, stage: str, action: Callable[[], R]) -> R:
        start = time.perf_counter()
        result = action()
        self.seconds[stage] = round(time.perf_counter() - start, 2)
        return result
