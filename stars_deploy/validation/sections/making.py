"""How the student was made, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import nir
import numpy as np

from stars_deploy.graph.metadata import metadata_of
from stars_deploy.graph.order import spiking_nodes
from stars_deploy.validation.evidence import Evidence, Summary, section

UNKNOWN = "not known"
Fact = tuple[str, str]
Json = dict[str, Any]


def title_of(source: Mapping[str, Any]) -> str:
    """Return what to call a bundle: its recipe, or else its source."""
    return str(source.get("recipe") or source.get("name") or "network")


def making_facts(
    evidence: Evidence, source: Mapping[str, Any], graph: nir.NIRGraph, neurons: int | None
) -> list[Fact]:
    """Return what was distilled from what, and how; what no file says is said to be unknown."""
    summary = evidence.summary or Summary()
    method = summary.method or source.get("method")
    facts = [
        ("Teacher", _teacher(summary, source, evidence.recipe)),
        ("Student", _student(graph, neurons, evidence.recipe)),
        ("Method", str(method or UNKNOWN)),
        ("Training data", _data(summary)),
        ("Updates", _updates(summary)),
        ("Wall time", _time(summary)),
    ]
    seed = UNKNOWN if summary.seed is None else str(summary.seed)
    chosen = f"; model selection: {summary.selection}" if summary.selection else ""
    return [*facts, ("Seed", f"{seed}{chosen}")]


def headline(evidence: Evidence, source: Mapping[str, Any], graph: nir.NIRGraph) -> str:
    """Return one sentence on what this is."""
    summary = evidence.summary or Summary()
    steps, layers = metadata_of(graph).T, len(spiking_nodes(graph))
    network = f"A spiking network of {layers} layers that looks at an image for {steps} time steps"
    method = summary.method or source.get("method")
    if not method:
        return f"{network}; how it was trained is not known."
    known = summary.teacher
    family = f" of family {known.family}" if known.family else ""
    family = f", {known.source}" if known.source else family
    free = "without any data " if summary.data == "none" else ""
    return f"{network}, distilled {free}from an ANN{family}: {method}."


def weights_of(graph: nir.NIRGraph) -> int:
    """Return the weights and biases of a graph; batch normalisation is part of them."""
    nodes = graph.nodes.values()
    arrays = [getattr(node, key, None) for node in nodes for key in ("weight", "bias")]
    return sum(int(np.asarray(array).size) for array in arrays if array is not None)


def class_name(classes: Sequence[str], index: int) -> str:
    """Return the name of a class, or its number."""
    return classes[index] if 0 <= index < len(classes) else f"class {index}"


def _teacher(summary: Summary, source: Mapping[str, Any], recipe: Mapping[str, Any] | None) -> str:
    planned = section(recipe, "teacher")
    family = summary.teacher.family or planned.get("family")
    digest = summary.teacher.sha256 or source.get("teacher_sha256") or planned.get("sha256")
    if family is None and digest is None:
        return UNKNOWN
    own = summary.teacher.source
    parts = [f"ANN, {own}" if own else f"ANN, family {family}" if family else "ANN"]
    channels = section(section(recipe, "teacher"), "args").get("channels")
    if isinstance(channels, list):
        parts.append(f"channels {'-'.join(map(str, channels))}")
    if summary.teacher.parameters is not None:
        parts.append(f"{summary.teacher.parameters:,} parameters")
    if digest:
        parts.append(f"sha256 {str(digest)[:12]}…")
    return ", ".join(parts)


def _student(graph: nir.NIRGraph, neurons: int | None, recipe: Mapping[str, Any] | None) -> str:
    parts = []
    architecture = section(recipe, "student").get("architecture")
    if architecture:
        twin = architecture == "twin"
        parts.append("the teacher's twin" if twin else f"family {architecture}")
    parts.append(f"{len(spiking_nodes(graph))} spiking layers")
    if neurons is not None:
        parts.append(f"{neurons:,} neurons")
    parts.append(f"{weights_of(graph):,} weights and biases")
    neuron = section(recipe, "neuron")
    if "model" in neuron:
        parts.append(f"{str(neuron['model']).upper()} tau {neuron.get('tau')} V_th "
                     f"{neuron.get('v_threshold')}")  # fmt: skip
    return ", ".join([*parts, f"T = {metadata_of(graph).T}"])


def _data(summary: Summary) -> str:
    if summary.data is None:
        return UNKNOWN
    if summary.data != "none":
        return summary.data
    made = summary.synthetic_images
    return "none" + (f"; {made:,} images were synthesised from the teacher" if made else "")


def _updates(summary: Summary) -> str:
    if summary.student_updates is None:
        return UNKNOWN
    steps = f", {summary.synthesis_steps:,} synthesis steps" if summary.synthesis_steps else ""
    return f"{summary.student_updates:,} of the student{steps}"


def _time(summary: Summary) -> str:
    if summary.wall_time_s is None:
        return UNKNOWN
    place = summary.device or "device not known"
    if summary.processor:
        place += f" ({summary.processor}"
        place += f", {threads(summary.threads)})" if summary.threads else ")"
    return f"{duration(summary.wall_time_s)} on {place}"


def threads(count: int) -> str:
    """Return a number of threads in words."""
    return f"{count} thread{'' if count == 1 else 's'}"


def duration(seconds: float) -> str:
    """Return seconds in words: 42 s, 12 min, 3.4 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
