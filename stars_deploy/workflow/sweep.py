"""`stars-deploy sweep`: accuracy and spikes against the number of steps and against weight bits."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nir

from stars_deploy import __version__
from stars_deploy.config.profile import Profile, load_profile
from stars_deploy.console import Progress, no_progress
from stars_deploy.errors import DoesNotFit, InputError
from stars_deploy.files import atomic_path, json_text, read_json
from stars_deploy.graph.metadata import metadata_of, with_metadata
from stars_deploy.locks import one_writer
from stars_deploy.simulation.recording import Engine
from stars_deploy.simulation.reference import FloatEngine
from stars_deploy.simulation.tally import Tally, tallies
from stars_deploy.targets.bundle import refuse_inside
from stars_deploy.validation.proportions import LEVEL
from stars_deploy.validation.sweep_plot import sweep_figure
from stars_deploy.workflow.provenance import versions
from stars_deploy.workflow.samples import Samples
from stars_deploy.workflow.setting import batch_size, resolve_device
from stars_deploy.workflow.simulate import samples_of
from stars_deploy.workflow.sources import Source, open_source
from stars_deploy.workflow.sweep_plan import Plan, axis_of, plan_of
from stars_deploy.workflow.sweep_points import Point, notes_on

SCHEMA = 1
RESULT, FIGURE = "sweep.json", "sweep.png"
Json = dict[str, Any]


@one_writer("out")
def sweep(
    source: Path,
    profile: str,
    out: Path,
    over: str | None = None,
    steps: Sequence[int] | None = None,
    bits: Sequence[int] | None = None,
    engine: str | None = None,
    data: str | None = None,
    limit: int | None = None,
    device: str = "auto",
    progress: Progress = no_progress,
) -> Json:
    """Run SOURCE with other numbers of steps, lowered to other weight bits; write OUT/sweep.*.

    The float graph is run once, for the longest T: its first t steps are the run of t steps.
    Integers depend on T (what bounds a potential does), so every integer point is lowered for
    its own T and bits. A point whose integers do not fit carries the reason instead of numbers.

    Returns: what OUT/sweep.json holds.
    Raises: InputError for values out of range or an OUT that is not a folder for this;
    GraphError if the graph cannot be lowered at all, DoesNotFit if no point fits; DataError.
    """
    chosen = load_profile(profile)
    axis = axis_of(over, chosen, engine)
    _check_out(out)
    opened = open_source(source, complete=True)
    plan = plan_of(chosen, axis, steps, bits, engine, metadata_of(opened.graph).T)
    samples = samples_of(opened, data, limit)
    place = resolve_device(plan.engine, device)
    floats = _float_points(opened.graph, plan, samples, progress)
    trained = metadata_of(opened.graph).T
    reference = next(point for point in floats if point.steps == trained)
    points = [point for point in floats if point.steps in plan.steps]
    if plan.engine == "integer":
        points += _integer_points(opened.graph, plan, samples, place, progress)
    result = _document(opened, plan, samples, reference, points)
    result["command"] = _command(source, profile, out, over, steps, bits, engine, data, limit)
    _write(out, result)
    return result


def with_steps(graph: nir.NIRGraph, steps: int) -> nir.NIRGraph:
    """Return `graph` with T = `steps`; nothing else of it depends on T."""
    return with_metadata(graph, replace(metadata_of(graph), T=steps))


def with_weight_bits(profile: Profile, bits: int) -> Profile:
    """Return a Loihi profile whose weights have `bits` bits, two's complement."""
    if profile.arithmetic is None:
        raise InputError(
            f"profile {profile.name} computes in floating point, it has no weight bits"
        )
    weight_bits = profile.arithmetic.weight_bits.model_copy(update={"value": bits})
    arithmetic = profile.arithmetic.model_copy(update={"weight_bits": weight_bits})
    return profile.model_copy(update={"arithmetic": arithmetic})


def _float_points(
    graph: nir.NIRGraph, plan: Plan, samples: Samples, progress: Progress
) -> list[Point]:
    """Run the float graph once, for the longest T, and read it at every T and its own."""
    wanted = sorted({*plan.steps, metadata_of(graph).T})
    longest = with_steps(graph, wanted[-1])
    found = _run(FloatEngine(longest), longest, samples, wanted, "sweep float", progress)
    return [Point("float", tally.steps, None, tally) for tally in found]


def _integer_points(
    graph: nir.NIRGraph, plan: Plan, samples: Samples, device: str, progress: Progress
) -> list[Point]:
    """Lower and run every integer point for itself; DoesNotFit if none fits."""
    if plan.profile.arithmetic is None:
        return []
    full, own = plan.profile.arithmetic.weight_bits.value, metadata_of(graph).T
    wanted = sorted({(t, full) for t in plan.steps} | {(own, bits) for bits in plan.bits})
    points, problem = [], None
    for steps, bits in wanted:
        try:
            tally = _integer_tally(graph, plan, steps, bits, samples, device, progress)
            points.append(Point("integer", steps, bits, tally))
        except DoesNotFit as error:
            problem = error
            points.append(Point("integer", steps, bits, None, str(error)))
    if problem is not None and all(point.tally is None for point in points):
        raise problem
    return points


def _integer_tally(
    graph: nir.NIRGraph,
    plan: Plan,
    steps: int,
    bits: int,
    samples: Samples,
    device: str,
    progress: Progress,
) -> Tally:
    from stars_deploy.simulation.integer.engine import build_engine
    from stars_deploy.targets.loihi import lower

    timed = with_steps(graph, steps)
    network = lower(timed, with_weight_bits(plan.profile, bits))
    engine = build_engine(network.document, network.arrays, device)
    what = f"sweep integer, T = {steps}, {bits} bits"
    (tally,) = _run(engine, timed, samples, [steps], what, progress)
    return tally


def _run(
    engine: Engine,
    graph: nir.NIRGraph,
    samples: Samples,
    steps: Sequence[int],
    what: str,
    progress: Progress,
) -> list[Tally]:
    count = len(samples.images)
    return tallies(
        engine, samples.images, steps, batch_size(graph), lambda done: progress(what, done, count)
    )


def _document(
    source: Source, plan: Plan, samples: Samples, reference: Point, points: Sequence[Point]
) -> Json:
    base = reference.tally
    assert base is not None  # the float graph always runs

    def row(point: Point) -> Json:
        timed = with_steps(source.graph, point.steps)
        return point.to_json(samples.labels, base.predictions, timed)

    rows = [row(point) for point in points]
    return {
        "schema": SCHEMA,
        "source": source.provenance(),
        "profile": plan.profile.name,
        "engine": {"name": plan.engine, "version": __version__, "kind": "simulated"},
        "T": reference.steps,
        "steps": list(plan.steps),
        "bits": list(plan.bits),
        "images": samples.source,
        "n": len(samples.images),
        "confidence": LEVEL,
        "interval": "Wilson score",
        "reference": row(reference),
        "points": rows,
        "notes": notes_on(rows, samples),
        "versions": versions(),
        "tool_version": __version__,
    }


def _command(
    source: Path,
    profile: str,
    out: Path,
    over: str | None,
    steps: Sequence[int] | None,
    bits: Sequence[int] | None,
    engine: str | None,
    data: str | None,
    limit: int | None,
) -> str:
    """Return the command that gives this result, with names instead of machine paths."""
    words = ["stars-deploy", "sweep", source.resolve().name, "--profile", profile]
    options = {
        "--over": over,
        "--steps": ",".join(map(str, steps)) if steps else None,
        "--bits": ",".join(map(str, bits)) if bits else None,
        "--engine": engine,
        "--data": data,
        "--limit": limit,
        "--out": out.resolve().name,
    }
    for option, value in options.items():
        words += [option, str(value)] if value is not None else []
    return shlex.join(words)


def _check_out(out: Path) -> None:
    """Refuse an OUT where writing would destroy or spoil what a sweep did not make."""
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: exists and is not a folder; choose another")
    refuse_inside(out / RESULT, "--out")
    if not any((out / name).exists() or (out / name).is_symlink() for name in (RESULT, FIGURE)):
        return
    with contextlib.suppress(InputError):
        document = read_json(out / RESULT)
        known = isinstance(document, dict) and document.keys() >= {"schema", "points", "steps"}
        if known and not any((out / name).is_symlink() for name in (RESULT, FIGURE)):
            return
    raise InputError(
        f"--out {out}: holds a {RESULT} or {FIGURE} that no sweep wrote; choose another folder"
    )


def _write(out: Path, result: Json) -> None:
    """Write both files; neither replaces an earlier one before both are on the disk."""
    picture = sweep_figure(result)
    with contextlib.ExitStack() as stack:
        document = stack.enter_context(atomic_path(out / RESULT))
        document.write_text(json_text(result), encoding="utf-8")
        stack.enter_context(atomic_path(out / FIGURE)).write_bytes(picture)
