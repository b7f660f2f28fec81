"""report.html: everything known about a bundle on one self-contained page."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nir
import numpy as np

from stars_deploy.files import read_json
from stars_deploy.graph.metadata import metadata_of
from stars_deploy.targets.bundle import Golden, read_golden
from stars_deploy.validation.training import read_training

Json = dict[str, Any]
TEMPLATE = "report.html.j2"
THUMBNAIL_SCALE = 6
ENGINE_TITLES = {
    "float": "Float graph",
    "integer": "Integer parameters",
    "onnx": "ONNX model",
    "lava-fixed_pt": "Lava",
}


def report_html(bundle: Path, graph: nir.NIRGraph, validation: Mapping[str, Any]) -> str:
    """Return the page about validation.json and what else the bundle of `graph` holds."""
    return render(context(bundle, graph, validation))


def render(values: Mapping[str, Any]) -> str:
    """Fill the page; every value is escaped except the figures drawn here."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("stars_deploy.validation", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters |= {"percent": _percent, "count": _count, "real": _real}
    return environment.get_template(TEMPLATE).render(values)


def context(bundle: Path, graph: nir.NIRGraph, validation: Mapping[str, Any]) -> Json:
    """Return what the page shows, from the files of the bundle and the verdicts on it."""
    manifest = read_json(bundle / "manifest.json")
    golden = read_golden(bundle / "golden.npz")
    classes = metadata_of(graph).classes
    runs = all_runs(validation)
    failed = [run for run in runs if run["verdict"] != "pass"]
    return {
        "title": _title(manifest["source"]),
        "manifest": manifest,
        "validation": validation,
        "overall": "fail" if failed else "pass",
        "summary": _summary(runs, failed),
        "failures": [f"{run['engine']['name']}: {run['reason']}" for run in failed],
        "tiles": _tiles(bundle, runs),
        "runs": [_with_figures(run, index) for index, run in enumerate(runs)],
        "not_run": _never_run(runs),
        "findings": _findings(runs),
        "example": _example(golden, classes),
        "synthetic": _picture(bundle / "synthetic.png"),
        "energy": next((run["energy"] for run in runs if run["energy"]), []),
        "commands": _commands(bundle, manifest, runs),
        "facts": _facts(manifest, runs),
    }


def all_runs(validation: Mapping[str, Any]) -> list[Json]:
    """Return the latest verdict and the earlier ones of other engines on the same bundle."""
    latest = {key: value for key, value in validation.items() if key != "earlier"}
    return [latest, *validation.get("earlier", [])]


def _title(source: Mapping[str, Any]) -> str:
    return str(source.get("recipe") or source.get("name") or "network")


def _summary(runs: Sequence[Json], failed: Sequence[Json]) -> str:
    names = ", ".join(f"{run['engine']['name']} on {run['n']:,} images" for run in runs)
    if failed:
        return f"{len(failed)} of {len(runs)} comparisons failed. Compared: {names}."
    return f"Every engine that was run agrees with its reference: {names}."


def _tiles(bundle: Path, runs: Sequence[Json]) -> list[Json]:
    tiles = []
    if (bundle / "training.json").is_file():
        training = read_training(bundle / "training.json")
        note = f"{training['n']:,} images, {training['device']}, measured"
        if "teacher_accuracy" in training:
            tiles.append(_tile("Teacher (ANN)", training["teacher_accuracy"], note))
        tiles.append(_tile("Spiking student, in training", training["accuracy"], note))
    for name, engine, images, value in _accuracies(runs):
        tiles.append(_tile(name, value, f"{images:,} images, {engine}"))
    return tiles


def _accuracies(runs: Sequence[Json]) -> list[tuple[str, str, int, float]]:
    """Return the accuracies on the largest number of images; fewer would not be comparable."""
    best: dict[str, tuple[str, str, int, float]] = {}
    most = max((run["n"] for run in runs if run["accuracy"]), default=0)
    for run in runs:
        if not run["accuracy"]:
            continue
        reference, engine = run["reference"]["engine"], run["engine"]
        for label, kind, side in (
            (reference, "simulated", "reference"),
            (engine["name"], engine["kind"], "target"),
        ):
            if run["n"] == most and label != "training":
                title = ENGINE_TITLES.get(label, label)
                best.setdefault(label, (title, kind, run["n"], run["accuracy"][side]))
    return list(best.values())


def _tile(label: str, value: float, note: str) -> Json:
    return {"label": label, "value": value, "note": note}


def _with_figures(run: Json, index: int) -> Json:
    from markupsafe import Markup

    from stars_deploy.validation.plots import rates_chart, scoped, spikes_chart

    layers = run["layers"]
    reference = _reference_name(run["reference"])
    bars = spikes_chart(layers, reference, run["engine"]["name"])
    tolerances = run["tolerances"]
    shown = [f"{k.replace('_', ' ')} {_real(v)}" for k, v in tolerances.items() if k != "source"]
    return {
        **run,
        "reference_name": reference,
        # Drawn from layer names and counts by matplotlib, which escapes its texts.
        "spikes_chart": Markup(scoped(bars, f"bars{index}")),
        "rates_chart": Markup(scoped(rates_chart(layers), f"rates{index}")),
        "tolerances_text": ", ".join(shown) + f" ({tolerances['source']})",
    }


def _reference_name(reference: Mapping[str, Any]) -> str:
    if reference["engine"] == "training":
        return f"training ({reference['device']})"
    return f"{reference['engine']} as exported" if reference["recorded"] else reference["engine"]


def _never_run(runs: Sequence[Json]) -> list[Json]:
    """Return the engines that no run used, with the latest reason."""
    reasons: dict[str, str] = {}
    for run in reversed(runs):
        reasons |= {item["name"]: item["reason"] for item in run["engines_not_run"]}
    everywhere = set.intersection(
        *({item["name"] for item in run["engines_not_run"]} for run in runs)
    )
    return [{"name": n, "reason": r} for n, r in reasons.items() if n in everywhere]


def _findings(runs: Sequence[Json]) -> list[Json]:
    """Return the findings of all runs, each once, errors first."""
    seen: dict[tuple[str, ...], Json] = {}
    for run in runs:
        for finding in run["findings"]:
            key = (finding["code"], str(finding["node"]), finding["message"])
            seen.setdefault(key, finding)
    order = {"error": 0, "warning": 1, "info": 2}
    return sorted(seen.values(), key=lambda item: order.get(item["severity"], 3))


def _example(golden: Golden, classes: Sequence[str]) -> Json:
    from markupsafe import Markup

    from stars_deploy.validation.plots import image_grid, raster, scoped

    engine = "integer" if "integer" in golden.spikes else "float"
    index = 0
    spikes = {node: train[:, index] for node, train in golden.spikes[engine].items()}
    label = int(golden.labels[index])
    return {
        "number": index + 1,
        "count": len(golden.images),
        "source": golden.source,
        "engine": engine,
        "image": image_grid(golden.images[index : index + 1], THUMBNAIL_SCALE),
        "raster": Markup(scoped(raster(spikes), "raster")),
        "label": _class_name(classes, label) if label >= 0 else None,
        "predicted": _class_name(classes, int(np.argmax(golden.logits[engine][index]))),
    }


def _class_name(classes: Sequence[str], index: int) -> str:
    return classes[index] if index < len(classes) else f"class {index}"


def _picture(path: Path) -> str | None:
    from stars_deploy.validation.plots import data_uri

    return data_uri(path.read_bytes()) if path.is_file() else None


def _commands(bundle: Path, manifest: Mapping[str, Any], runs: Sequence[Json]) -> list[str]:
    name = shlex.quote(bundle.resolve().name)
    lines = [run["command"] for run in reversed(runs)]
    if "onnx" in manifest["targets"]:
        lines.append(f"python {name}/run_onnx.py {name}")
    return lines


def _facts(manifest: Mapping[str, Any], runs: Sequence[Json]) -> list[tuple[str, str]]:
    source = manifest["source"]
    seeds = ", ".join(f"{key} {value}" for key, value in manifest["seeds"].items())
    facts = [
        ("Source", f"{source['kind']} {source['name']}, sha256 {source['sha256']}"),
        ("Method", str(source.get("method", "not known"))),
        ("Teacher", f"sha256 {source['teacher_sha256']}" if "teacher_sha256" in source else "-"),
        ("Targets", ", ".join(manifest["targets"])),
        ("Profile of the lowering", str(manifest["profile"] or "none")),
        ("Seeds", seeds or "-"),
        ("Manifest", f"sha256 {runs[0]['manifest_sha256']}"),
        ("Exported by", f"stars-deploy {manifest['tool_version']}"),
        ("Validated by", f"stars-deploy {runs[0]['tool_version']}"),
    ]
    engines = {f"{run['engine']['name']} {run['engine']['version']}" for run in runs}
    return [*facts, ("Engines", ", ".join(sorted(engines)))]


def _percent(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{100 * value:.{digits}f} %"


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _real(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
