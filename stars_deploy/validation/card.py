"""card.md: the bundle as a model card in the form of the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nir

from stars_deploy.files import read_json
from stars_deploy.graph.geometry import input_shape
from stars_deploy.graph.metadata import metadata_of
from stars_deploy.graph.order import spiking_nodes
from stars_deploy.validation.document import all_runs
from stars_deploy.validation.evidence import Evidence, read_evidence, section
from stars_deploy.validation.sections.accuracy import TEACHER, accuracy_rows
from stars_deploy.validation.sections.making import making_facts, title_of
from stars_deploy.validation.sections.repeat import commands

Json = Mapping[str, Any]
Runs = Sequence[dict[str, Any]]
TAGS = ("spiking-neural-network", "neuromorphic", "nir")
#: Rows of the model that a card shows; report.html has all.
ENERGY_ROWS = {
    "total": "energy",
    "ratio_to_ann_fp32": "ratio to the ANN's multiply-accumulates, FP32",
    "ratio_to_ann_int8": "ratio to the ANN's multiply-accumulates, INT8",
    "latency": "latency",
}
DISTILLED_TAGS = ("knowledge-distillation", "data-free-distillation")


def card_text(bundle: Path, graph: nir.NIRGraph, validation: Json | None) -> str:
    """Return BUNDLE/card.md; `validation` is None before the first `validate`.

    Front matter as https://huggingface.co/docs/hub/model-cards defines it. `license` and
    `base_model` are left out: no file of a bundle says them.
    """
    manifest, evidence = read_json(bundle / "manifest.json"), read_evidence(bundle)
    runs = all_runs(validation) if validation else []
    rows = accuracy_rows(evidence.training, runs)
    name = title_of(manifest["source"])
    parts = [
        _front_matter(name, manifest, evidence, rows),
        f"# {_plain(name)}\n",
        _description(graph, manifest),
        _limits(manifest, evidence),
        _training(graph, manifest, evidence),
        _evaluation(rows),
        _parity(runs),
        _energy(runs),
        _use(manifest),
        _reproduce(bundle, manifest, evidence, runs),
        _citation(evidence),
    ]
    return "\n".join(part for part in parts if part)


def _front_matter(name: str, manifest: Json, evidence: Evidence, rows: Sequence[Json]) -> str:
    """YAML that the hub reads; every text is written as a JSON string, which is valid YAML."""
    tags = [*TAGS, *(DISTILLED_TAGS if evidence.summary is not None else ())]
    tags += [target for target in manifest["targets"] if target != "nir"]
    lines = [
        "---",
        "library_name: stars-deploy",
        "pipeline_tag: image-classification",
        "tags:",
        *(f"- {tag}" for tag in tags),
    ]
    if rows:
        entry = [{"name": name, "results": _results(rows, evidence)}]
        lines += ["metrics:", "- accuracy"]
        lines.append(f"model-index: {json.dumps(entry, ensure_ascii=False)}")
    return "\n".join([*lines, "---", ""])


def _results(rows: Sequence[Json], evidence: Evidence) -> list[Json]:
    """Return the results of a model index: of this network on the most images that were used."""
    most = max(row["n"] for row in rows)
    own = [row for row in rows if row["n"] == most and row["label"] != TEACHER]
    data = str(section(evidence.recipe, "data").get("name", ""))
    return [
        {
            "task": {"type": "image-classification"},
            "dataset": {"name": row["data"], "type": data or row["data"]},
            "metrics": [
                {
                    "type": "accuracy",
                    "value": row["value"],
                    "name": f"{row['label']} ({row['kind']}, {row['n']} images)",
                }
            ],
        }
        for row in own
    ]


def _description(graph: nir.NIRGraph, manifest: Json) -> str:
    metadata = metadata_of(graph)
    shape = " x ".join(map(str, input_shape(graph)))
    source = manifest["source"]
    lines = [
        "## Model description\n",
        f"A spiking image classifier of {len(spiking_nodes(graph))} spiking layers that sees an "
        f"image ({shape}) for {metadata.T} time steps; its answer is the mean of the logits.\n",
        f"- Source: {source['kind']} {_plain(source['name'])}, sha256 `{source['sha256']}`",
    ]
    if metadata.classes:
        lines.append(f"- Classes: {', '.join(_plain(name) for name in metadata.classes)}")
    lines.append(f"- Targets: {', '.join(manifest['targets'])}")
    lines.append(f"- Written by stars-deploy {manifest['tool_version']}")
    return "\n".join([*lines, ""])


def _limits(manifest: Json, evidence: Evidence) -> str:
    lines = [
        "## Intended use and limits\n",
        "For classifying images like those the teacher was trained on, and for studying spiking "
        "networks on the targets above. It learned from the teacher alone, and errs where that "
        "does, and more often.\n",
        "- `simulated` numbers were computed by an engine on a computer, `modeled` ones by a "
        "formula; only `measured` ones come from the device they name.",
    ]
    if evidence.training is None:
        lines.append("- Its accuracy after training was not measured before it was exported.")
    if manifest["profile"]:
        lines.append(
            f"- Integer parameters are for profile {_plain(manifest['profile'])}; equality with "
            "Lava's fixed-point models is no measurement on silicon."
        )
    return "\n".join([*lines, ""])


def _training(graph: nir.NIRGraph, manifest: Json, evidence: Evidence) -> str:
    facts = making_facts(evidence, manifest["source"], graph, None)
    lines = ["## Training procedure\n"]
    if evidence.summary is not None and evidence.summary.data == "none":
        lines.append(
            "Data-free: the images the student learned from were synthesised from the teacher; no "
            "data set was opened, and no test label chose a checkpoint.\n"
        )
    lines += [f"- {name}: {_plain(value)}" for name, value in facts]
    return "\n".join([*lines, ""])


def _evaluation(rows: Sequence[Json]) -> str:
    if not rows:
        return "## Evaluation\n\nNot measured yet: run `stars-deploy validate` with `--data`.\n"
    table = [
        "## Evaluation\n",
        "| network | top-1 | 95 % interval (Wilson) | images | from | kind | computed by |",
        "|---|---|---|---|---|---|---|",
    ]
    table += [
        f"| {_plain(row['label'])} | {100 * row['value']:.2f} % | {100 * row['low']:.2f} to "
        f"{100 * row['high']:.2f} % | {row['n']} | {_plain(row['data'])} | {row['kind']} "
        f"| {_plain(row['where'])} |"
        for row in rows
    ]
    return "\n".join([*table, ""])


def _parity(runs: Runs) -> str:
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


def _energy(runs: Runs) -> str:
    found: Runs = next((run["energy"] for run in runs if run["energy"]), [])
    shown = [row for row in found if row["name"] in ENERGY_ROWS]
    if not shown:
        return ""
    lines = ["## Energy (modeled)\n", "| quantity | value | how |", "|---|---|---|"]
    lines += [
        f"| {ENERGY_ROWS[row['name']]} | {row['value']:.4g} {row['unit']} | "
        f"{_plain(row['source'])} |"
        for row in shown
    ]
    return "\n".join(
        [*lines, "\nCounted events times published constants; nothing was measured.\n"]
    )


def _use(manifest: Json) -> str:
    lines = ["## How to use\n", "```", "stars-deploy validate BUNDLE"]
    if "onnx" in manifest["targets"]:
        lines.append("python BUNDLE/run_onnx.py BUNDLE        # needs numpy and onnxruntime only")
    if "loihi" in manifest["targets"]:
        lines.append("python3.10 BUNDLE/run_lava.py BUNDLE trace.npz   # in a Lava environment")
    return "\n".join([*lines, "```", ""])


def _reproduce(bundle: Path, manifest: Json, evidence: Evidence, runs: Runs) -> str:
    """Indented, not fenced: a line may hold any name, back-quotes included."""
    found = commands(bundle, manifest, evidence, runs)
    lines = [part for step in found for line in step["lines"] for part in line.splitlines()]
    return "\n".join(["## How to reproduce\n", *(f"    {line}" for line in lines), ""])


def _citation(evidence: Evidence) -> str:
    method = (evidence.summary.method or "") if evidence.summary is not None else ""
    if "STARS" not in method:
        return ""
    return (
        "## Citation\n\nThe method is STARS, [arXiv 2605.27409](https://arxiv.org/abs/2605.27409), "
        "implemented independently.\n"
    )


def _plain(value: object) -> str:
    """Return text that Markdown and HTML show as it is."""
    text = " ".join(str(value).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{c}" if c in "\\`*_[]|#!" else c for c in text)
