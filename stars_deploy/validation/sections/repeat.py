"""The commands that make everything on the page again, and what it was made with."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from stars_deploy.config.recipe import Recipe, find_recipe, load_recipe, parse_recipe
from stars_deploy.errors import RecipeError
from stars_deploy.validation.evidence import RECIPE, Evidence, section
from stars_deploy.validation.sections.making import threads

OPTIONS = {"synthesis.method": "--method", "run.seed": "--seed", "run.device": "--device"}
RUN, TEACHER = "run", "teacher.safetensors"
ABSENT = object()
Json = dict[str, Any]


def commands(
    bundle: Path, manifest: Mapping[str, Any], evidence: Evidence, runs: Sequence[Json]
) -> list[Json]:
    """Return {title, note, lines} from distill to the last validate.

    The bundle is called as its folder is; the folder of the run is `run`.
    """
    name = shlex.quote(bundle.resolve().name)
    steps = [_distill(name, evidence), _evaluate(evidence), _export(name, evidence)]
    profile = manifest["profile"]
    if profile is not None:
        line = f"stars-deploy check {name} --profile {shlex.quote(profile)} --picture cores.png"
        steps.append(_step("Does it fit the chip?", line))
    lines = [run["command"] for run in reversed(runs)]
    steps.append(_step("Compare the engines", *lines))
    if "onnx" in manifest["targets"]:
        steps.append(_step("Run it without stars-deploy", f"python {name}/run_onnx.py {name}"))
    return [step for step in steps if step is not None]


def distill_command(recipe: Mapping[str, Any]) -> str | None:
    """Return a distill command with the packaged recipe and what was changed in it.

    None where no packaged recipe of that name, with changes on the command line, is exactly
    `recipe`, or the teacher is not the packaged one.
    """
    try:
        name = str(recipe["name"])
        wanted = parse_recipe(recipe, RECIPE)
        if find_recipe(name) == Path(name):
            return None
        base = load_recipe(name)
        changes = _changes(base.resolved(), wanted.resolved())
        changes.setdefault("run.seed", str(wanted.run.seed))
        if any(key.startswith("teacher.") for key in changes):
            return None  # its weights are needed, so the bundle's recipe is as good
        if _same(load_recipe(name, [f"{key}={text}" for key, text in changes.items()]), wanted):
            return shlex.join([*_words(name, changes), "--out", RUN])
    except (RecipeError, KeyError):
        return None
    return None


def version_table(evidence: Evidence, runs: Sequence[Json]) -> Json:
    """Return the versions of every stage that says them: columns are stages, rows packages."""
    stages = []
    for title, source in (
        ("distilled", evidence.summary), ("evaluated", evidence.training),
        ("exported", evidence.export),
    ):  # fmt: skip
        if source is not None and source.versions:
            stages.append((title, source.versions))
    packages = list(dict.fromkeys(name for _, versions in stages for name in versions))
    rows = [(name, [versions.get(name) for _, versions in stages]) for name in packages]
    engines = [run["engine"] for run in runs]
    engines += [other["engine"] for run in runs for other in run["also"]]
    known = {f"{engine['name']} {engine['version']}": None for engine in engines}
    return {"stages": [title for title, _ in stages], "rows": rows, "engines": list(known)}


def hardware_facts(evidence: Evidence) -> list[tuple[str, str]]:
    """Return on what the student was distilled and measured."""
    facts = []
    summary, training = evidence.summary, evidence.training
    if summary is not None and summary.device is not None:
        values = (summary.device, summary.processor, _threads(summary.threads))
        facts.append(("Distilled on", ", ".join(value for value in values if value)))
    if training is not None:
        known = training.hardware
        found = (training.device, known.get("processor"), _threads(known.get("threads")))
        facts.append(("Evaluated on", ", ".join(str(value) for value in found if value)))
    return facts


def _threads(count: int | str | None) -> str | None:
    return threads(int(count)) if count else None


def _step(title: str, *lines: str, note: str = "") -> Json:
    return {"title": title, "note": note, "lines": list(lines)}


def _distill(name: str, evidence: Evidence) -> Json | None:
    recipe, summary = evidence.recipe, evidence.summary
    if recipe is None:
        return None
    line = distill_command(recipe)
    notes = []
    if line is None:
        line = f"stars-deploy distill {name}/{RECIPE} --weights {TEACHER} --out {RUN}"
        digest = section(recipe, "teacher").get("sha256")
        notes.append(f"{TEACHER} is the file with sha256 {digest}." if digest else "")
    if summary is not None and summary.threads:
        notes.append(
            "Equal to the last bit on the same kind of processor with "
            f"{threads(summary.threads)} (run.threads, OMP_NUM_THREADS)."
        )
    return _step("Distil", line, note=" ".join(note for note in notes if note))


def _evaluate(evidence: Evidence) -> Json | None:
    training = evidence.training
    if training is None:
        return None
    data, note = training.data, ""
    if data.endswith(")"):  # named by load_data after the file it read
        data = data.rpartition(" (")[2].removesuffix(")")
        note = f"{data} is the data set's file or folder."
    line = shlex.join(["stars-deploy", "evaluate", RUN, "--data", data])
    if training.teacher_accuracy is not None:
        known = "The teacher was measured on the same images, as stars-deploy demo does."
        note = f"{note} {known}".strip()
    return _step("Measure the student", line, note=note)


def _export(name: str, evidence: Evidence) -> Json | None:
    if evidence.export is None:
        return None
    return _step("Export", evidence.export.command.removesuffix(" bundle") + f" {name}")


def _same(recipe: Recipe, wanted: Recipe) -> bool:
    return recipe.resolved() == wanted.resolved()


def _changes(base: Json, wanted: Json, prefix: str = "") -> dict[str, str]:
    """Return key and TOML value of everything in which `wanted` differs from `base`."""
    changes: dict[str, str] = {}
    for key, value in wanted.items():
        old = base.get(key, ABSENT)
        if isinstance(value, dict) and isinstance(old, dict):
            changes |= _changes(old, value, f"{prefix}{key}.")
        elif value != old:
            changes[prefix + key] = _toml(value)
    return changes


def _toml(value: Any) -> str:
    text = tomli_w.dumps({"x": value}).partition("=")[2].strip()
    if isinstance(value, dict):
        return json.dumps(value)
    return " ".join(text.split())


def _words(name: str, changes: Mapping[str, str]) -> list[str]:
    words = ["stars-deploy", "distill", name]
    for key, text in changes.items():
        if key in OPTIONS:
            words += [OPTIONS[key], text.strip('"')]
        elif key == "stars.enabled":
            words.append("--stars" if text == "true" else "--no-stars")
        else:
            words += ["--set", f"{key}={text}"]
    return words
