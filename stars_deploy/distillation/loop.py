"""Runs the steps of a session: logs, reports progress, writes checkpoints, continues from one."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from stars_deploy.console import Progress, no_progress
from stars_deploy.distillation import checkpoint
from stars_deploy.distillation.metrics import MetricsLog
from stars_deploy.distillation.schedule import Step, steps, totals
from stars_deploy.distillation.session import Session
from stars_deploy.errors import TrainingDiverged

METRICS = "metrics.jsonl"
TITLES = {
    "synthesis": "synthesise",
    "calibration": "calibrate",
    "kd": "distil",
}


def run(
    session: Session,
    out: Path,
    state: dict[str, Any] | None = None,
    progress: Progress = no_progress,
    after_epoch: Callable[[int], None] | None = None,
) -> float:
    """Do the steps of the session's recipe that `state`, a checkpoint, has not done yet.

    Writes OUT/metrics.jsonl and OUT/checkpoint. When a checkpoint is written depends on the clock,
    what it holds only on the step it follows, so the clock has no influence on the numbers.

    Args:
        after_epoch: called with the number of every epoch that has trained the student; of one
            that a continued run does again, once more. It must not change the session.

    Returns:
        Seconds of work, including those that the checkpoint knows of.

    Raises:
        TrainingDiverged: a loss or a weight is not finite; the last good checkpoint is kept.
    """
    position = state or {"done": 0, "metrics_size": 0, "seconds": 0.0}
    if state is not None:
        with checkpoint.restoring(out):
            session.load_state_dict(state["session"])
    first = int(position["done"])
    start = time.monotonic() - float(position["seconds"])
    with MetricsLog(out / METRICS, position["metrics_size"]) as log:

        def save(done: int) -> None:
            _save(session, out, done, log.size, time.monotonic() - start)

        if state is None:
            save(0)  # from here on there is always a good checkpoint
        timer = checkpoint.Timer(session.recipe.run.checkpoint_seconds)
        reporter = _Reporter(session, first, progress)
        for number, step in enumerate(islice(steps(session.recipe), first, None), first):
            metrics = session.advance(step)
            reporter.completed(step)
            if metrics:
                log.write({**_place(step), **metrics, "time_s": time.monotonic() - start})
            if after_epoch is not None and _ends_epoch(session, step):
                paused = time.monotonic()
                after_epoch(step.epoch)
                start += time.monotonic() - paused  # looking on is no work of the run
            if timer.due():
                timer.measure(partial(save, number + 1))
        save(sum(totals(session.recipe).values()))
    return time.monotonic() - start


def _ends_epoch(session: Session, step: Step) -> bool:
    return step.phase == "kd" and step.number == session.recipe.kd.steps - 1


def _place(step: Step) -> dict[str, Any]:
    return {"phase": step.phase, "epoch": step.epoch, "step": step.number}


def _save(session: Session, out: Path, done: int, metrics_size: int, seconds: float) -> None:
    if not session.finite():
        raise TrainingDiverged(
            "a weight of the student is NaN or infinite; lower kd.lr (now "
            f"{session.recipe.kd.lr}). The last good checkpoint is kept"
        )
    checkpoint.save(
        out,
        {
            "done": done,
            "metrics_size": metrics_size,
            "seconds": seconds,
            "threads": torch.get_num_threads(),
            "session": session.state_dict(),
        },
    )


class _Reporter:
    """Counts completed steps per phase for the progress display."""

    def __init__(self, session: Session, done: int, progress: Progress) -> None:
        self._totals = totals(session.recipe)
        self._done = Counter(step.phase for step in islice(steps(session.recipe), done))
        self._progress = progress

    def completed(self, step: Step) -> None:
        self._done[step.phase] += 1
        self._progress(TITLES[step.phase], self._done[step.phase], self._totals[step.phase])
