"""`stars-deploy tensorboard`: metrics.jsonl, which stays the one log, as TensorBoard's events."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from stars_deploy.config.recipe import Recipe, load_recipe
from stars_deploy.distillation.schedule import synthesis_steps
from stars_deploy.errors import EngineError, InputError
from stars_deploy.files import atomic_directory
from stars_deploy.locks import one_writer
from stars_deploy.targets.bundle import refuse_inside

METRICS = "metrics.jsonl"
EVENTS = "events.out.tfevents."
_PLACE = ("phase", "epoch", "step", "update", "time_s")


class Scalar(NamedTuple):
    """One value as TensorBoard holds it; `seconds` since the run began, None if not logged."""

    tag: str
    value: float
    step: int
    seconds: float | None


@one_writer("out")
def tensorboard(run: Path, out: Path) -> dict[str, Any]:
    """Write RUN/metrics.jsonl, of any command that trains, as event files into OUT.

    Steps count on through a run: the synthesis steps of all epochs so far, or the student's
    updates. A list, such as a rate per layer, becomes one curve per place. OUT is replaced as a
    whole if it holds only events, so a run that goes on is simply converted again.

    Returns: events (the folder), scalars (their number), tags.
    Raises: InputError: no metrics, a damaged line, or an OUT that holds something else.
        EngineError: the extra is not installed.
    """
    writer = _writer_class()
    _require_events_only(out)
    scalars = list(read_scalars(run))
    ends = (run / METRICS).stat().st_mtime
    last = max((scalar.seconds or 0.0 for scalar in scalars), default=0.0)
    with atomic_directory(out, _require_events_only) as folder, writer(str(folder)) as events:
        for scalar in scalars:
            when = None if scalar.seconds is None else ends - last + scalar.seconds
            events.add_scalar(scalar.tag, scalar.value, scalar.step, walltime=when)
    tags = sorted({scalar.tag for scalar in scalars})
    return {"events": str(out), "scalars": len(scalars), "tags": tags}


def _writer_class() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise EngineError(
            "TensorBoard is not installed: pip install 'stars-deploy[tensorboard]'"
        ) from None
    return SummaryWriter


def _require_events_only(out: Path) -> None:
    refuse_inside(out, "--out")
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file, expected a folder for the events")
    others = [path.name for path in out.glob("*") if not path.name.startswith(EVENTS)]
    if others:
        raise InputError(f"--out {out}: holds {others[0]}, which is no event file; give another")


def read_scalars(run: Path) -> Iterator[Scalar]:
    """Yield every number in RUN/metrics.jsonl; InputError for a file that is damaged."""
    path = run / METRICS
    if not path.is_file():
        raise InputError(
            f"{run}: no {METRICS}; expected the folder of distill, teacher train or finetune"
        )
    recipe = load_recipe(run / "recipe.toml") if (run / "recipe.toml").is_file() else None
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        if not line.endswith("\n"):
            return  # a line that is being written
        yield from _scalars(_entry(line, f"{path}: line {number}"), recipe)


def _entry(line: str, where: str) -> Mapping[str, Any]:
    try:
        entry = json.loads(line)
    except (json.JSONDecodeError, RecursionError):
        entry = None
    if not isinstance(entry, dict) or not {"epoch", "update"} & entry.keys():
        raise InputError(f"{where}: expected an object with epoch or update, found {line[:40]!r}")
    return entry


def _scalars(entry: Mapping[str, Any], recipe: Recipe | None) -> Iterator[Scalar]:
    phase, step = entry.get("phase", "train"), _step(entry, recipe)
    for name, value in entry.items():
        if name in _PLACE:
            continue
        many = isinstance(value, list)
        for place, number in enumerate(value if many else [value]):
            if isinstance(number, int | float):  # null stands for an infinite value
                tag = f"{phase}/{name}/{place}" if many else f"{phase}/{name}"
                yield Scalar(tag, float(number), step, entry.get("time_s"))


def _step(entry: Mapping[str, Any], recipe: Recipe | None) -> int:
    """Return how many steps of its phase lie before an entry."""
    if "phase" not in entry or recipe is None:
        return int(entry.get("update", entry.get("epoch", 0)))
    epoch, own = int(entry["epoch"]), int(entry["step"])
    if entry["phase"] == "synthesis":
        return own + sum(itertools.islice(_per_epoch(recipe), epoch))
    return own + max(0, epoch - recipe.run.warmup) * recipe.kd.steps


def _per_epoch(recipe: Recipe) -> Iterator[int]:
    return (synthesis_steps(recipe, epoch) for epoch in range(recipe.run.epochs))
