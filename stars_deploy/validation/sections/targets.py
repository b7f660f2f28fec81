"""What an engineer of either kind needs first: the ONNX model, and the integers of the chip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nir

from stars_deploy.graph.geometry import input_shape
from stars_deploy.graph.metadata import metadata_of

#: Engines that must equal the integer engine spike for spike.
EXACT = ("lava", "hardware", "recorded")
Fact = tuple[str, str]
Json = dict[str, Any]


def edge_facts(bundle: Path, graph: nir.NIRGraph, runs: Sequence[Json]) -> list[Fact]:
    """Return what there is to say about model.onnx; nothing where there is none."""
    model = bundle / "model.onnx"
    if not model.is_file():
        return []
    shape = " x ".join(map(str, input_shape(graph)))
    facts = [
        ("Model", f"model.onnx, {size_of(model.stat().st_size)}"),
        ("Input", f"image float32 [N, {shape.replace(' x ', ', ')}] in [0, 1]"),
        ("Output", f"logits, the mean over T = {metadata_of(graph).T}, and spike counts"),
    ]
    for run in runs:
        if run["engine"]["name"].startswith("onnx"):
            facts.append((f"{run['engine']['name']} {run['engine']['version']}", _agreement(run)))
    if len(facts) == 3:
        facts.append(("Compared", "not yet: stars-deploy validate --engine onnx"))
    return facts


def chip_facts(cores: Json | None, profile: str | None, runs: Sequence[Json]) -> list[Fact]:
    """Return what there is to say about the integers; nothing where there are none."""
    if profile is None:
        return []
    facts: list[Fact] = [("Profile", profile)]
    if cores is not None and cores["absent"] is None:
        available = "" if cores["available"] is None else f" of {cores['available']}"
        fullest = cores["fullest"]
        facts += [
            ("Weights", f"{cores['weight_bits']} bits"),
            ("Cores", f"{cores['cores']}{available}"),
            ("Fullest core", f"{100 * fullest['share']:.0f} % ({fullest['population']})"),
        ]
    for run in runs:
        name = run["engine"]["name"]
        if name == "integer" or name.startswith(EXACT):
            facts.append((f"{name} {run['engine']['version']}", _agreement(run)))
    total = next((row for run in runs for row in run["energy"] if row["name"] == "total"), None)
    if total is not None:
        facts.append(("Energy, modeled", f"{total['value']:,.0f} {total['unit']}"))
    return facts


def spikes_fact(runs: Sequence[Json]) -> list[Fact]:
    """Return spikes per image, of the run on most images."""
    if not runs:
        return []
    run = max(runs, key=lambda item: int(item["n"]))
    spikes = sum(layer["spikes_target"] for layer in run["layers"]) / run["n"]
    return [("Spikes", f"{spikes:,.0f} an image ({run['engine']['name']})")]


def size_of(count: int) -> str:
    """Return a number of bytes in kB or MB."""
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"


def tiles(accuracies: Sequence[Json], cores: Json | None, runs: Sequence[Json]) -> list[Json]:
    """Return the few numbers that stand first: accuracies on most images, Lava, cores."""
    most = max((row["n"] for row in accuracies), default=0)
    found = [
        {
            "label": row["label"],
            "value": f"{100 * row['value']:.2f} %",
            "note": f"{100 * row['low']:.1f} to {100 * row['high']:.1f} %, {row['kind']}",
        }
        for row in accuracies
        if row["n"] == most
    ]
    found += [_exact(run) for run in runs if run["engine"]["name"].startswith(EXACT)]
    if cores is not None and cores["absent"] is None and cores["available"]:
        value = f"{cores['cores']} of {cores['available']}"
        found.append({"label": "Cores", "value": value, "note": cores["profile"]})
    return found


def _exact(run: Json) -> Json:
    note = f"spikes differ from {run['reference']['engine']}, {run['n']:,} images"
    label = f"{run['engine']['name']} {run['engine']['version']}"
    differing = sum(layer["mismatches"] or 0 for layer in run["layers"])
    return {"label": label, "value": f"{differing:,}", "note": note}


def _agreement(run: Mapping[str, Any]) -> str:
    if not run["engine"]["name"].startswith((*EXACT, "onnx")) and run["agreement"] is not None:
        share = f"{100 * run['agreement']:.2f} % equal predictions"
        return f"{run['verdict']}, {run['n']:,} images, {share}"
    found = [layer["mismatches"] for layer in run["layers"] if layer["mismatches"] is not None]
    text = f"{run['verdict']}, {run['n']:,} images"
    if found:
        text += f", {sum(found):,} of its spikes differ from {run['reference']['engine']}"
    return text
