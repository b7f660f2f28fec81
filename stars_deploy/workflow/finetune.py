"""`stars-deploy finetune`: train the integers of a chip on the synthetic images of a run."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nir
import tomli_w
from torch import Tensor

from stars_deploy.config.profile import Profile, load_profile
from stars_deploy.config.recipe import Recipe
from stars_deploy.console import Progress, no_progress
from stars_deploy.distillation import checkpoint
from stars_deploy.distillation.integer_bias import correct_biases
from stars_deploy.distillation.integer_finetune import Settings, train_integers
from stars_deploy.distillation.integer_twin import IntegerTwin, messages_of
from stars_deploy.errors import DoesNotFit, InputError, WeightsError
from stars_deploy.files import atomic_directory, sha256, write_json, write_text
from stars_deploy.graph.geometry import input_shape, output_shapes
from stars_deploy.graph.metadata import metadata_of
from stars_deploy.graph.order import output_name
from stars_deploy.graph.writer import write_graph
from stars_deploy.locks import one_writer
from stars_deploy.networks.base import Network
from stars_deploy.networks.device import resolve
from stars_deploy.networks.weights import load_teacher
from stars_deploy.targets.bundle import refuse_inside
from stars_deploy.targets.loihi import LoweredNetwork, lower
from stars_deploy.targets.loihi.host import takes_biases
from stars_deploy.workflow.distill import threads
from stars_deploy.workflow.finetune_grid import choose_grid, inexact, with_bits
from stars_deploy.workflow.finetune_measure import Measurements, spread
from stars_deploy.workflow.provenance import hardware, versions
from stars_deploy.workflow.resume import recipe_of_run
from stars_deploy.workflow.sources import Source, open_source, source_kind

__all__ = ["Settings", "finetune"]

GRAPH, REPORT, METRICS, PROFILE = "graph.nir", "finetune.json", "metrics.jsonl", "profile.toml"
CORRECTED = 128  # synthetic images that biases are corrected with
Json = dict[str, Any]


@dataclass(frozen=True)
class Lesson:
    """What a graph is trained with: recipe, teacher and synthetic images of a run."""

    run: Path
    recipe: Recipe
    teacher: Network
    pool: Tensor  # uint8 [N, C, H, W]


@one_writer("out")
def finetune(
    source: Path,
    out: Path,
    settings: Settings,
    *,
    profile: str = "loihi2",
    bits: int | None = None,
    pool: Path | None = None,
    weights: Path | None = None,
    data: str | None = None,
    device: str = "auto",
    progress: Progress = no_progress,
) -> Json:
    """Fine-tune SOURCE as `profile` computes it, with weights of `bits` bits; no data is opened.

    Writes OUT as a whole: graph.nir, whose weights are the integers that were trained, exactly;
    finetune.json; metrics.jsonl; and, if `bits` are not the profile's, profile.toml with them.

    Args:
        pool: the run whose synthetic images, teacher and recipe are used; SOURCE if it is a run.
        weights: the teacher's weights, where the run's recipe is no packaged model.
        data: labelled images to measure accuracies on before and after; never trained on.

    Returns:
        The content of finetune.json.

    Raises:
        InputError: bits, pool, teacher or OUT are not what is needed. GraphError, DoesNotFit: the
        graph cannot be lowered, or not be trained. TrainingDiverged: nothing is written.
    """
    start = time.monotonic()
    chosen = with_bits(load_profile(profile), bits)
    if takes_biases(chosen):
        raise InputError(
            f"--profile {profile}: the host computes its first layer, whose weights have 32 bits "
            f"and no grid that could be trained; choose a profile with graded messages (loihi2)"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: exists and is not an empty folder; give another one with --out")
    refuse_inside(out, "--out")
    place = resolve(device)
    opened = open_source(source, complete=True)
    lesson = _lesson(opened, pool, weights)
    _require_same_data(opened.graph, lesson.recipe, source)
    with threads(lesson.recipe.run.threads):
        lesson.teacher.to(place)
        graph, lines, found = _trained(opened.graph, lesson, settings, chosen, data, progress)
        made_on = hardware(place)
    result = {
        "schema": 1,
        "source": opened.provenance(),
        "profile": chosen.name,
        **_settings(settings, lesson, chosen),
        **found,
        **made_on,
        "versions": versions(),
        "wall_time_s": round(time.monotonic() - start, 3),
    }
    with atomic_directory(out) as folder:
        write_graph(graph, folder / GRAPH)
        write_text(folder / METRICS, "".join(json.dumps(line) + "\n" for line in lines))
        if chosen.name != load_profile(profile).name:
            document = chosen.model_dump(mode="json", by_alias=True, exclude_none=True)
            write_text(folder / PROFILE, tomli_w.dumps(document))
        write_json(folder / REPORT, result)
    return result


def _trained(
    graph: nir.NIRGraph,
    lesson: Lesson,
    settings: Settings,
    profile: Profile,
    data: str | None,
    progress: Progress,
) -> tuple[nir.NIRGraph, list[Json], Json]:
    """Return the trained graph, the lines of metrics, and what was measured before and after."""
    before = lower(graph, profile)
    network, start = choose_grid(graph, before, profile, lesson.recipe.neuron)
    network.to(next(lesson.teacher.parameters()).device)
    found = Measurements.of(lesson.pool, lesson.teacher, lesson.recipe.data, data)
    found.add_float("float_before", network, rounded=False)
    found.add_integers("integers_before", before)
    table = start.arrays["input_table"]
    shown = lesson.pool[spread(len(lesson.pool), CORRECTED)]
    correct_biases(network, messages_of(shown, table).to(found.device))
    found.add_integers("integers_corrected", _lowered(network.to_graph(), network, profile))
    lines = train_integers(
        network, lesson.teacher, lesson.pool, table, lesson.recipe, settings, progress
    )
    trained = network.to_graph()
    after = _lowered(trained, network, profile)
    found.add_float("float_after", network, rounded=True)
    found.add_integers("integers_after", after)
    measured = {
        **found.to_json(data),
        "compared": found.compared(network, after),
        "populations": _populations(after),
    }
    return trained, lines, measured


def _settings(settings: Settings, lesson: Lesson, profile: Profile) -> Json:
    recipe, arithmetic = lesson.recipe, profile.arithmetic
    return {
        "bits": arithmetic.weight_bits.value if arithmetic else None,
        "updates": settings.updates,
        "lr": settings.lr,
        "seed": settings.seed,
        "batch_size": min(recipe.kd.batch_size, len(lesson.pool)),
        "tau": recipe.kd.tau,
        "trained_on": {
            "images": "synthetic",
            "run": lesson.run.resolve().name,
            "n": len(lesson.pool),
        },
        "teacher": {"family": recipe.teacher.family, "sha256": recipe.teacher.sha256},
    }


def _lesson(opened: Source, pool: Path | None, weights: Path | None) -> Lesson:
    if pool is None and opened.kind != "run":
        raise InputError(
            f"{opened.path}: holds no synthetic images and no teacher; name the run they are "
            "taken from with --pool RUN"
        )
    run = opened.path if pool is None else pool
    if source_kind(run) != "run":
        raise InputError(f"--pool {run}: not the folder of a finished run")
    recipe, path = recipe_of_run(run, None, weights)
    if recipe.teacher.sha256 not in (None, sha256(path) if path.is_file() else None):
        raise WeightsError(
            f"{path}: is not the teacher of {run}, whose sha256 is {recipe.teacher.sha256}; "
            "give that file with --weights"
        )
    teacher = load_teacher(recipe, path)
    state = checkpoint.load(run)
    if state is None or not len(state["session"]["pool"]["images"]):
        raise InputError(f"{run}: its checkpoint holds no synthetic images; distil it again")
    return Lesson(run, recipe, teacher, state["session"]["pool"]["images"])


def _require_same_data(graph: nir.NIRGraph, recipe: Recipe, source: Path) -> None:
    """Refuse a graph that takes other images than the run's."""
    metadata, data = metadata_of(graph), recipe.data
    outputs = output_shapes(graph)[output_name(graph)]
    pairs = {
        "image shape": (input_shape(graph), data.shape),
        "mean": (metadata.mean, data.mean),
        "std": (metadata.std, data.std),
        "outputs": (outputs, (len(data.classes),)),
    }
    for what, (own, wanted) in pairs.items():
        if tuple(own) != tuple(wanted):
            raise InputError(
                f"{source}: {what} {tuple(own)}, the run's images and teacher have "
                f"{tuple(wanted)}; use a run of the same data"
            )


def _lowered(graph: nir.NIRGraph, network: IntegerTwin, profile: Profile) -> LoweredNetwork:
    """Return the lowering of the trained graph; DoesNotFit where it is not what was trained."""
    lowered = lower(graph, profile)
    off = inexact(network.gridded, lowered)
    if lowered.document["input"]["scale"] != network.k:
        off.append("input")
    if off:
        raise DoesNotFit(
            f"{', '.join(off)}: the trained integers are outside the ranges of {profile.name}; "
            "lower --lr, or use fewer bits. Nothing was written"
        )
    return lowered


def _populations(lowered: LoweredNetwork) -> list[Json]:
    return [
        {"name": item["name"], "scale": item["scale"], "threshold": item["vth"]}
        for item in lowered.document["populations"]
    ]
