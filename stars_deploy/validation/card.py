"""card.md: the bundle as a model card in the form of the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nir

from stars_deploy.files import read_json
from stars_deploy.graph.geometry import input_shape
from stars_deploy.graph.metadata import metadata_of
from stars_deploy.graph.order import spiking_nodes
from stars_deploy.validation.report import all_runs
from stars_deploy.validation.training import read_training

Json = Mapping[str, Any]


def card_text(bundle: Path, graph: nir.NIRGraph, validation: Json | None) -> str:
    """Return BUNDLE/card.md; `validation` is None before the first `validate`."""
    manifest = read_json(bundle / "manifest.json")
    training = bundle / "training.json"
    measured = read_training(training) if training.is_file() else None
    runs = all_runs(validation) if validation else []
    parts = [
        _front_matter(manifest, measured),
        f"# {_plain(_name(manifest))}\n",
        _description(graph, manifest),
        _results(measured, runs),
        _parity(runs),
        _use(manifest),
        _limits(manifest),
    ]
    return "\n".join(parts)


def _front_matter(manifest: Json, measured: Json | None) -> str:
    """YAML that the hub reads; every text is written as a JSON string, which is valid YAML."""
    lines = [
        "---",
        "library_name: stars-deploy",
        "pipeline_tag: image-classification",
        "tags:",
        *(f"- {tag}" for tag in ("spiking-neural-network", "neuromorphic", "nir")),
        *(f"- {target}" for target in manifest["targets"] if target != "nir"),
    ]
    if measured:
        result = {
            "task": {"type": "image-classification"},
            "dataset": {"name": measured["data"], "type": measured["data"]},
            "metrics": [{"type": "accuracy", "value": measured["accuracy"]}],
        }
        entry = [{"name": _name(manifest), "results": [result]}]
        lines.append(f"model-index: {json.dumps(entry, ensure_ascii=False)}")
    return "\n".join([*lines, "---", ""])


def _description(graph: nir.NIRGraph, manifest: Json) -> str:
    metadata = metadata_of(graph)
    channels, height, width = input_shape(graph)
    source = manifest["source"]
    lines = [
        f"A spiking image classifier of {len(spiking_nodes(graph))} spiking layers that sees an "
        f"image ({channels} x {height} x {width}) for {metadata.T} time steps.\n",
        f"- Method: {_plain(source.get('method', 'not known'))}",
        f"- Source: {source['kind']} {_plain(source['name'])}, sha256 `{source['sha256']}`",
    ]
    if "teacher_sha256" in source:
        lines.append(f"- Teacher: sha256 `{source['teacher_sha256']}`")
    if metadata.classes:
        lines.append(f"- Classes: {', '.join(_plain(name) for name in metadata.classes)}")
    lines.append(f"- Written by stars-deploy {manifest['tool_version']}")
    return "\n".join([*lines, ""])


def _results(measured: Json | None, runs: list[dict[str, Any]]) -> str:
    rows = []
    if measured:
        rows.append(("student in training", measured["device"], "measured", measured["n"],
                     measured["accuracy"]))  # fmt: skip
    for run in runs:
        if run["accuracy"]:
            engine = run["engine"]
            rows.append((engine["name"], engine["version"], engine["kind"], run["n"],
                         run["accuracy"]["target"]))  # fmt: skip
    if not rows:
        return "## Accuracy\n\nNot measured yet: run `stars-deploy validate` with `--data`.\n"
    table = [
        "## Accuracy\n",
        "| engine | version | kind | images | top-1 |",
        "|---|---|---|---|---|",
    ]
    table += [f"| {a} | {b} | {c} | {n} | {100 * value:.2f} % |" for a, b, c, n, value in rows]
    return "\n".join([*table, ""])


def _parity(runs: list[dict[str, Any]]) -> str:
    if not runs:
        return "## Parity\n\nNot validated yet: run `stars-deploy validate` on this bundle.\n"
    table = [
        "## Parity\n",
        "| engine | reference | images | verdict | mismatching spikes | largest logit difference |",
        "|---|---|---|---|---|---|",
    ]
    for run in runs:
        spikes = [x["mismatches"] for x in run["layers"] if x["mismatches"] is not None]
        shown = sum(spikes) if spikes else "-"
        difference = run["readout"]["max_abs_difference"]
        logits = "-" if difference is None else f"{difference:.3g}"
        table.append(
            f"| {run['engine']['name']} | {run['reference']['engine']} | {run['n']} | "
            f"{run['verdict']} | {shown} | {logits} |"
        )
    return "\n".join([*table, "\nreport.html shows every layer.\n"])


def _use(manifest: Json) -> str:
    lines = ["## Use\n", "```", "stars-deploy validate BUNDLE"]
    if "onnx" in manifest["targets"]:
        lines.append("python BUNDLE/run_onnx.py BUNDLE        # needs numpy and onnxruntime only")
    if "loihi" in manifest["targets"]:
        lines.append("python3.10 BUNDLE/run_lava.py BUNDLE trace.npz   # in a Lava environment")
    return "\n".join([*lines, "```", ""])


def _limits(manifest: Json) -> str:
    lines = [
        "## Limits\n",
        "- `simulated` numbers were computed by an engine on a computer, `modeled` ones by a "
        "formula; only `measured` ones come from the device they name.",
    ]
    if manifest["profile"]:
        lines.append(
            f"- Integer parameters are for profile {_plain(manifest['profile'])}; equality with "
            "Lava's fixed-point models is no measurement on silicon."
        )
    return "\n".join([*lines, ""])


def _name(manifest: Json) -> str:
    source = manifest["source"]
    return str(source.get("recipe") or source["name"])


def _plain(value: object) -> str:
    """Return text that Markdown and HTML show as it is."""
    text = " ".join(str(value).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{c}" if c in "\\`*_[]|#!" else c for c in text)
