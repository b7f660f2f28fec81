"""`stars-deploy simulate`: run a network as a profile's hardware would compute it."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import nir
import numpy as np

from stars_deploy import __version__
from stars_deploy.config.profile import Profile, load_profile
from stars_deploy.console import Progress, no_progress
from stars_deploy.graph.foreign import Reading
from stars_deploy.graph.geometry import output_shapes
from stars_deploy.graph.metadata import metadata_of
from stars_deploy.simulation.energy.activity import CountingEngine
from stars_deploy.simulation.recording import Engine
from stars_deploy.targets.bundle import read_golden
from stars_deploy.targets.loihi import Balance, balance_named, lower
from stars_deploy.targets.onnx_options import OnnxOptions, Weights
from stars_deploy.validation.counts import state_of
from stars_deploy.validation.document import engine_json
from stars_deploy.validation.engines import NEEDS, build_engine, require_runnable
from stars_deploy.workflow.export import write_loihi, write_onnx
from stars_deploy.workflow.modeling import deployed, energy_rows
from stars_deploy.workflow.samples import Samples, golden_part, golden_samples, load_samples
from stars_deploy.workflow.setting import batch_size, default_engine, resolve_device
from stars_deploy.workflow.sources import Source, open_source

DEFAULT_IMAGES = 16  # of a source that has no golden images of its own
LAVA_TIMEOUT_S = 900.0
Json = dict[str, Any]


def simulate(
    source: Path,
    profile: str,
    engine: str | None = None,
    data: str | None = None,
    limit: int | None = None,
    device: str = "auto",
    progress: Progress = no_progress,
    reading: Reading | None = None,
    balance: str = "relay",
) -> Json:
    """Run SOURCE (a run, a bundle or a .nir file) and count accuracy, spikes and modeled energy.

    `reading` says what a graph of another tool leaves open. Targets that the source does not hold
    for this profile are built in a temporary folder, `balance` (relay or delay) says how.

    Raises:
        InputError: bad source, engine or limit. GraphError, DoesNotFit: the graph cannot be
        lowered to the profile. DataError, EngineError.
    """
    chosen, way = load_profile(profile), balance_named(balance)
    name = default_engine(chosen) if engine is None else engine
    require_runnable(name)
    opened = open_source(source, reading)
    samples = samples_of(opened, data, limit)
    with tempfile.TemporaryDirectory(prefix="stars-deploy.") as folder:
        files = _files(opened, name, chosen, way, Path(folder))
        place = resolve_device(name, device)
        judged = build_engine(name, opened.graph, files, place, LAVA_TIMEOUT_S)
        runner = CountingEngine(judged, opened.graph)
        correct = _run(runner, opened.graph, samples, progress)
        energy = energy_rows(opened.graph, runner, chosen, deployed(files, chosen))
    return _result(opened, chosen, runner, samples, correct, energy)


def samples_of(source: Source, data: str | None, limit: int | None) -> Samples:
    """Return the images of `data`, else the golden ones of a bundle, else what would be golden."""
    if data is not None:
        return load_samples(source.graph, data, limit)
    if source.bundle is not None:
        return golden_part(read_golden(source.bundle.file("golden.npz")), limit)
    run = source.path if source.kind == "run" else None
    return golden_samples(source.graph, limit or DEFAULT_IMAGES, run)


def _files(source: Source, engine: str, profile: Profile, balance: Balance, folder: Path) -> Path:
    """Return a folder with the files that `engine` needs, built from the graph if need be."""
    bundle = source.bundle
    held = bundle is not None and all(bundle.has(name) for name in NEEDS[engine])
    if engine in ("integer", "lava"):
        if bundle is not None and held and bundle.manifest["profile"] == profile.name:
            return bundle.path
        write_loihi(lower(source.graph, profile, balance), folder)
    elif engine in ("onnx", "onnx-int8"):
        if bundle is not None and held:
            return bundle.path
        weights: Weights = "int8" if engine == "onnx-int8" else "float32"
        write_onnx(source.graph, folder, OnnxOptions(weights=weights))
    return folder


def _run(
    engine: Engine, graph: nir.NIRGraph, samples: Samples, progress: Progress
) -> tuple[int, int]:
    """Return how many images have a label, and how many of them are classified right."""
    count, correct = len(samples.images), 0
    known = samples.labels >= 0
    batch = batch_size(graph)
    for start in range(0, count, batch):
        part = slice(start, start + batch)
        predicted = engine.run(samples.images[part]).logits.argmax(axis=1)
        correct += int(np.count_nonzero(known[part] & (predicted == samples.labels[part])))
        progress(f"simulate {engine.info.name}", min(start + batch, count), count)
    return int(np.count_nonzero(known)), correct


def _result(
    source: Source,
    profile: Profile,
    engine: CountingEngine,
    samples: Samples,
    counted: tuple[int, int],
    energy: list[Json],
) -> Json:
    labelled, correct = counted
    return {
        "profile": profile.name,
        "engine": engine_json(engine.info),
        "notes": [str(note) for note in source.notes],
        "images": samples.source,
        "n": engine.images,
        "accuracy": correct / labelled if labelled else None,
        "layers": _layers(source.graph, engine),
        "energy": energy,
        "tool_version": __version__,
    }


def _layers(graph: nir.NIRGraph, engine: CountingEngine) -> list[Json]:
    steps, shapes = metadata_of(graph).T, output_shapes(graph)
    layers = []
    for node in engine.nodes:
        neurons, spikes = math.prod(shapes[node]), int(engine.spikes[node].sum())
        rate = spikes / (neurons * steps * engine.images)
        layers.append(
            {
                "name": node,
                "neurons": neurons,
                "rate": rate,
                "state": state_of(rate),
                "spikes": spikes,
            }
        )
    return layers
