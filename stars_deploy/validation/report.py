"""report.html: everything known about a bundle on one self-contained page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nir
import numpy as np

from stars_deploy.config.profile import Profile
from stars_deploy.files import read_json
from stars_deploy.graph.metadata import metadata_of
from stars_deploy.graph.order import spiking_nodes
from stars_deploy.targets.bundle import Golden, read_golden
from stars_deploy.validation.document import all_runs
from stars_deploy.validation.evidence import PICTURE, Evidence, read_evidence
from stars_deploy.validation.plots import data_uri, image_grid, raster
from stars_deploy.validation.sections import (
    accuracy,
    cores,
    layers,
    making,
    pictures,
    repeat,
    runs,
    targets,
)

Json = dict[str, Any]
TEMPLATE = "report.html.j2"
THUMBNAIL_SCALE = 6


def report_html(
    bundle: Path,
    graph: nir.NIRGraph,
    validation: Mapping[str, Any],
    profile: Profile | None = None,
) -> str:
    """Return the page about validation.json and what else the bundle of `graph` holds.

    `profile` is the one of the verdict; without, the profile of the bundle's integers is looked up
    by its name. Raises: BundleError for a file of the bundle that is damaged.
    """
    return render(context(bundle, graph, validation, profile))


def render(values: Mapping[str, Any]) -> str:
    """Fill the page; every value is escaped except the figures drawn here."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("stars_deploy.validation", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": _percent,
        "count": _count,
        "real": runs.real,
        "short": _short,
    }
    return environment.get_template(TEMPLATE).render(values)


def context(
    bundle: Path, graph: nir.NIRGraph, validation: Mapping[str, Any], profile: Profile | None = None
) -> Json:
    """Return what the page shows, from the files of the bundle and the verdicts on it."""
    manifest = read_json(bundle / "manifest.json")
    evidence, golden = read_evidence(bundle), read_golden(bundle / "golden.npz")
    verdicts = all_runs(validation)
    return {
        "title": making.title_of(manifest["source"]),
        "manifest": manifest,
        "validation": validation,
        **runs.verdict(verdicts),
        **_first_screen(bundle, graph, manifest, evidence, verdicts, profile),
        **_making(bundle, graph, evidence),
        **_behaviour(graph, golden, evidence),
        "steps_figure": pictures.steps_figure(evidence.training),
        "runs": [runs.with_figures(run) for run in verdicts],
        "not_run": runs.never_run(verdicts),
        "findings": runs.findings(verdicts),
        "energy": next((run["energy"] for run in verdicts if run["energy"]), []),
        "commands": repeat.commands(bundle, manifest, evidence, verdicts),
        "versions": repeat.version_table(evidence, verdicts),
        "facts": [*repeat.hardware_facts(evidence), *_facts(manifest, verdicts)],
    }


def _first_screen(
    bundle: Path, graph: nir.NIRGraph, manifest: Json, evidence: Evidence, verdicts: list[Json],
    profile: Profile | None,
) -> Json:  # fmt: skip
    rows = accuracy.accuracy_rows(evidence.training, verdicts)
    placed = cores.cores_section(bundle, manifest, profile)
    neurons = {layer["name"]: layer["neurons"] for layer in verdicts[0]["layers"]}
    source = manifest["source"]
    chip = targets.chip_facts(placed, manifest["profile"], verdicts)
    return {
        "headline": making.headline(evidence, source, graph),
        "making": making.making_facts(evidence, source, graph, sum(neurons.values()) or None),
        "accuracies": rows,
        "accuracy_figure": pictures.accuracy_figure(rows),
        "tiles": targets.tiles(rows, placed, verdicts),
        "edge": targets.edge_facts(bundle, graph, verdicts),
        "chip": [*chip, *targets.spikes_fact(verdicts)] if chip else [],
        "cores": placed,
    }


def _making(bundle: Path, graph: nir.NIRGraph, evidence: Evidence) -> Json:
    rows = pictures.synthetic_rows(evidence.synthetic, metadata_of(graph).classes)
    picture = bundle / PICTURE
    whole = data_uri(picture.read_bytes()) if picture.is_file() and not rows else None
    return {
        "curves": pictures.curve_figures(evidence.curve),
        "synthetic": rows,
        "synthetic_picture": whole,
    }


def _behaviour(graph: nir.NIRGraph, golden: Golden, evidence: Evidence) -> Json:
    return {
        "layers": layers.layer_rows(golden, evidence.operating, spiking_nodes(graph)),
        "operating": layers.thresholds_of(evidence.operating),
        "golden": {"count": len(golden.images), "source": golden.source},
        "example": _example(golden, graph),
    }


def _example(golden: Golden, graph: nir.NIRGraph) -> Json:
    engine = "integer" if "integer" in golden.spikes else "float"
    index = 0
    recorded, classes = golden.spikes[engine], metadata_of(graph).classes
    spikes = {node: recorded[node][:, index] for node in spiking_nodes(graph)}
    label = int(golden.labels[index])
    return {
        "number": index + 1,
        "count": len(golden.images),
        "source": golden.source,
        "engine": engine,
        "image": image_grid(golden.images[index : index + 1], THUMBNAIL_SCALE),
        "raster": raster(spikes),
        "label": making.class_name(classes, label) if label >= 0 else None,
        "predicted": making.class_name(classes, int(np.argmax(golden.logits[engine][index]))),
    }


def _facts(manifest: Mapping[str, Any], verdicts: Sequence[Json]) -> list[tuple[str, str]]:
    source = manifest["source"]
    seeds = ", ".join(f"{key} {value}" for key, value in manifest["seeds"].items())
    return [
        ("Source", f"{source['kind']} {source['name']}, sha256 {source['sha256']}"),
        ("Teacher", f"sha256 {source['teacher_sha256']}" if "teacher_sha256" in source else "-"),
        ("Targets", ", ".join(manifest["targets"])),
        ("Profile of the lowering", str(manifest["profile"] or "none")),
        ("Seeds", seeds or "-"),
        ("Manifest", f"sha256 {verdicts[0]['manifest_sha256']}"),
        ("Exported by", f"stars-deploy {manifest['tool_version']}"),
        ("Validated by", f"stars-deploy {verdicts[0]['tool_version']}"),
    ]


def _percent(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{100 * value:.{digits}f} %"


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _short(value: float) -> str:
    return f"{value:.3g}"
