"""Run as a script: distil, be killed with SIGKILL, resume; says how the results compare.

Usage: kill_distillation.py FOLDER KILLS CHECKPOINT_SECONDS. Libraries are imported once; every run
is a process of its own, forked before torch computes anything.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from tiny_distillation import results, tiny_model

from stars_deploy.config.recipe import load_recipe
from stars_deploy.distillation import checkpoint
from stars_deploy.workflow.distill import distill

for library in ("matplotlib.figure", "matplotlib.backends.backend_agg", "torch._dynamo"):
    importlib.import_module(library)  # here, so that the runs need not import them


def start(model: Path, out: Path, overrides: list[str], resume: bool) -> int:
    child = os.fork()
    if child:
        return child
    try:
        distill(load_recipe(model, overrides), out, origin=model, resume=resume)
        os._exit(0)
    finally:
        os._exit(1)


def finish(child: int) -> None:
    _, status = os.waitpid(child, 0)
    if status:
        raise SystemExit(f"a run ended with status {status}")


def killed_after(child: int, seconds: float) -> bool:
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def main(folder: Path, kills: int, seconds: str) -> None:
    # The recipe with the teacher is written by a child too: see the module's docstring.
    writer = os.fork()
    if not writer:
        tiny_model(folder / "model")
        os._exit(0)
    finish(writer)
    model, overrides = folder / "model" / "recipe.toml", [f"run.checkpoint_seconds={seconds}"]
    begun = time.monotonic()
    finish(start(model, folder / "whole", overrides, resume=False))
    duration = time.monotonic() - begun
    expected, rng, reports = results(folder / "whole"), random.Random(0), []
    for number in range(2 * kills):
        # A kill before the first step or after the last proves nothing: on a busy machine, more.
        if sum(bool(report["killed"] and report["done"]) for report in reports) == kills:
            break
        out = folder / f"killed{number}"
        # One kill in each part of the run, at a random moment of that part.
        moment = duration * (number % kills + rng.random()) / kills
        killed = killed_after(start(model, out, overrides, resume=False), moment)
        state = checkpoint.load(out) if out.exists() else None
        finish(start(model, out, overrides, resume=True))
        reports.append(
            {"killed": killed, "done": state and state["done"], "equal": results(out) == expected}
        )
    print(json.dumps(reports))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
