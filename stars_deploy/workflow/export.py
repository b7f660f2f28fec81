"""`stars-deploy export`: everything that is deployed, in one sealed directory."""

from __future__ import annotations

import dataclasses
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nir
import numpy as np

from stars_deploy import __version__
from stars_deploy.assets import asset
from stars_deploy.config.profile import Profile, load_profile
from stars_deploy.errors import InputError, RecipeError, nearest
from stars_deploy.files import (
    atomic_directory,
    atomic_path,
    read_json,
    write_text,
)
from stars_deploy.graph.foreign import Reading
from stars_deploy.graph.gain import fold_gain, unfold_gain
from stars_deploy.graph.metadata import metadata_of
from stars_deploy.graph.reader import read_graph
from stars_deploy.graph.writer import write_graph
from stars_deploy.locks import one_writer
from stars_deploy.simulation.recording import Recording
from stars_deploy.targets.bundle import Golden, refuse_foreign, write_golden, write_manifest
from stars_deploy.targets.findings import require_no_errors
from stars_deploy.targets.loihi import Balance, LoweredNetwork, balance_named
from stars_deploy.targets.onnx_options import DEFAULT, FILES, OnnxOptions, onnx_options
from stars_deploy.validation.card import card_text
from stars_deploy.validation.check import examine
from stars_deploy.validation.engines import build_engine
from stars_deploy.workflow.evidence import add_evidence, copy_evidence
from stars_deploy.workflow.samples import AUTO, Samples, golden_samples
from stars_deploy.workflow.sources import Source, open_source

TARGETS = ("nir", "onnx", "loihi")
GAINS = ("raw", "folded")
GOLDEN_SEED = 0
#: Scripts that run a target without this package, and what they need.
KITS = {
    "onnx": ("run_onnx.py", "requirements-onnx.txt"),
    "loihi": ("run_lava.py", "requirements-lava.txt", "hil/hil_run.py", "hil/README.md"),
}
Json = dict[str, Any]


@one_writer("out")
def export(
    source: Path,
    targets: Sequence[str],
    profile: str,
    golden: int,
    nir_gain: str,
    out: Path,
    reading: Reading | None = None,
    golden_images: str = AUTO,
    balance: str = "relay",
    opset: int | None = None,
    onnx_weights: str | None = None,
) -> Json:
    """Write the bundle OUT of SOURCE: graph.nir, golden.npz, the targets, their kits, the seal.

    The bundle appears as a whole or not at all, and replaces nothing but a bundle. What was
    known about SOURCE (see workflow.evidence) comes along. `reading` says what a graph of
    another tool leaves open, `golden_images` which images are recorded (see golden_samples),
    `balance` how skip connections wait on the chip: relay or delay; `opset` and `onnx_weights` how
    ONNX models are written (see OnnxOptions).

    Raises:
        InputError: an unknown target, gain or ONNX option, or an OUT that would be lost.
        GraphError, DoesNotFit: the graph cannot be lowered to the profile; lists every reason.
    """
    wanted = _checked(targets, golden, nir_gain)
    models = onnx_options(opset, onnx_weights, "onnx" in wanted)
    chosen, way = load_profile(profile), balance_named(balance)
    refuse_foreign(out)
    opened = open_source(source, reading)
    with atomic_directory(out, refuse_foreign) as folder:
        write_graph(_with_gain(opened.graph, nir_gain), folder / "graph.nir")
        graph = read_graph(folder / "graph.nir")  # targets come from the file, not from memory
        _write_targets(graph, wanted, chosen, way, models, folder)
        samples = _record(graph, golden, golden_images, opened, folder)
        copy_evidence(opened, folder)
        asked = _command(opened, wanted, profile, nir_gain, balance, golden, golden_images, models)
        add_evidence(graph, samples.images, asked, folder)
        manifest = write_manifest(
            folder,
            opened.provenance(),
            chosen.name if "loihi" in wanted else None,
            wanted,
            _seeds(opened),
        )
        write_text(folder / "card.md", card_text(folder, graph, None))
    return {
        "bundle": str(out),
        "targets": wanted,
        "profile": manifest["profile"],
        "onnx": None if models is None else dataclasses.asdict(models),
        "source": manifest["source"],
        "golden": {"n": len(samples.images), "source": samples.source},
        "notes": [str(note) for note in opened.notes],
        "files": sorted(manifest["sha256"]),
        "tool_version": __version__,
    }


def _checked(targets: Sequence[str], golden: int, nir_gain: str) -> list[str]:
    """Return the targets in their order, each once; nir is always one of them."""
    for target in targets:
        if target not in TARGETS:
            raise InputError(f"--target {target!r} is unknown{nearest(target, TARGETS)}")
    if nir_gain not in GAINS:
        raise InputError(f"--nir-gain {nir_gain!r} is unknown{nearest(nir_gain, GAINS)}")
    if golden < 1:
        raise InputError(f"--golden {golden}: expected at least one image")
    return [target for target in TARGETS if target == "nir" or target in targets]


def _with_gain(graph: nir.NIRGraph, gain: str) -> nir.NIRGraph:
    if metadata_of(graph).gain == gain:
        return graph
    return fold_gain(graph) if gain == "folded" else unfold_gain(graph)


def _write_targets(
    graph: nir.NIRGraph,
    targets: Sequence[str],
    profile: Profile,
    balance: Balance,
    models: OnnxOptions | None,
    folder: Path,
) -> None:
    if models is not None:
        write_onnx(graph, folder, models)
    if "loihi" in targets:
        examined = examine(graph, profile, balance)
        require_no_errors(examined.findings, f"this graph does not fit {profile.name}")
        if examined.network is None:
            raise RecipeError(
                f"--profile {profile.name} computes in floating point: there are no integers for "
                "--target loihi; choose another profile"
            )
        write_loihi(examined.network, folder)
    for target in targets:
        for name in KITS.get(target, ()):
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(asset("export", name), folder / name)


def write_onnx(graph: nir.NIRGraph, folder: Path, options: OnnxOptions = DEFAULT) -> None:
    """Write model.onnx and model_step.onnx, and for int8 weights the pair of those as well."""
    from stars_deploy.targets.onnx import build_onnx, build_step_onnx

    for weights, names in FILES.items():
        if weights == "int8" and options.weights != "int8":
            continue
        chosen = dataclasses.replace(options, weights=weights)
        for name, build in zip(names, (build_onnx, build_step_onnx), strict=True):
            with atomic_path(folder / name) as temporary:
                temporary.write_bytes(build(graph, chosen).SerializeToString(deterministic=True))


def write_loihi(network: LoweredNetwork, folder: Path) -> None:
    """Write loihi/network.json and network.npz, and network.net if NetX can hold the network.

    What NetX would change is left to raw Lava, which `check` says.
    """
    from stars_deploy.targets.netx import write_netx
    from stars_deploy.targets.netx_rules import netx_problems

    (folder / "loihi").mkdir()
    network.write(folder / "loihi")
    if not netx_problems(network.document, network.arrays):
        write_netx(network.document, network.arrays, folder / "loihi" / "network.net")


def _record(graph: nir.NIRGraph, count: int, choice: str, source: Source, folder: Path) -> Samples:
    """Choose golden images and write what the engines of the bundle answer to them."""
    run = source.path if source.kind == "run" else None
    samples = golden_samples(graph, count, run, choice)
    answers: dict[str, Recording] = {
        "float": build_engine("float", graph, folder).run(samples.images)
    }
    if (folder / "loihi").is_dir():
        answers["integer"] = build_engine("integer", graph, folder).run(samples.images)
    if (folder / FILES["int8"][0]).is_file():
        answers["float-int8"] = build_engine("float-int8", graph, folder).run(samples.images)
    golden = Golden(
        images=samples.images,
        labels=samples.labels.astype(np.int64),
        source=samples.source,
        logits={name: answer.logits for name, answer in answers.items()},
        spikes={name: answer.spikes for name, answer in answers.items()},
    )
    write_golden(folder / "golden.npz", golden)
    return samples


def _seeds(source: Source) -> Json:
    """Return the seeds that the bundle depends on."""
    if source.bundle is not None:
        return {**source.bundle.manifest["seeds"], "golden": GOLDEN_SEED}
    summary = source.path / "summary.json"
    trained = read_json(summary) if source.kind == "run" and summary.is_file() else {}
    seeds = {"distill": trained["seed"]} if "seed" in trained else {}
    return {**seeds, "golden": GOLDEN_SEED}


def _command(
    source: Source, targets: Sequence[str], profile: str, gain: str, balance: str,
    golden: int, golden_images: str, models: OnnxOptions | None,
) -> str:  # fmt: skip
    """Return the command line that makes this bundle; files by name, not by place."""
    words = ["stars-deploy", "export", source.path.resolve().name]
    for target in targets:
        words += ["--target", target]
    if "loihi" in targets:
        words += ["--profile", _name(profile), "--balance", balance]
    if models is not None:
        words += ["--opset", str(models.opset), "--onnx-weights", models.weights]
    words += ["--golden", str(golden), "--golden-images", _name(golden_images)]
    return shlex.join([*words, "--nir-gain", gain, "--out", "bundle"])


def _name(spec: str) -> str:
    return Path(spec).name if Path(spec).exists() else spec
