"""`stars-deploy validate`: does an engine compute what the reference computes, layer by layer?"""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from stars_deploy import __version__
from stars_deploy.config.profile import load_profile
from stars_deploy.console import Progress, no_progress
from stars_deploy.errors import InputError, RecipeError
from stars_deploy.files import json_text, read_json, sha256, write_texts
from stars_deploy.locks import one_writer
from stars_deploy.results.validation import Validated
from stars_deploy.simulation.energy.activity import CountingEngine
from stars_deploy.simulation.recorded_engine import RecordedEngine
from stars_deploy.targets.findings import Finding
from stars_deploy.targets.onnx_options import FILES
from stars_deploy.validation import document
from stars_deploy.validation.card import card_text
from stars_deploy.validation.check import check
from stars_deploy.validation.diagnosis import rounding
from stars_deploy.validation.engines import not_run
from stars_deploy.validation.lowering import lowering_differences, onnx_differences, require_layers
from stars_deploy.validation.report import report_html
from stars_deploy.validation.selfcheck import golden_findings
from stars_deploy.workflow.comparisons import COMPARISONS, Outcome
from stars_deploy.workflow.modeling import deployed, energy_rows
from stars_deploy.workflow.setting import Setting, open_setting

Json = dict[str, Any]


@one_writer("bundle")
def validate(
    bundle: Path,
    profile: str,
    engine: str | None = None,
    data: str | None = None,
    limit: int | None = None,
    timeout: float = 900.0,
    device: str = "auto",
    progress: Progress = no_progress,
    command: str | None = None,
    trace: Path | None = None,
) -> Json:
    """Compare an engine with its reference and write validation.json, report.html and card.md.

    First of all the bundle is compared with itself: its golden recordings are computed again,
    and its targets are built again from graph.nir. Without `data` the golden images are used.
    `command` is what engine hardware runs, `trace` what engine recorded replays, or where engine
    hardware keeps its own (see workflow.board).

    Returns: validation.json; `verdict` is pass or fail, `reason` the first failure in words.
    Raises: BundleError, InputError, EngineError; nothing is written then, but for the trace of a
        command that ran.
    """
    setting = open_setting(bundle, profile, engine, data, limit, timeout, device, command, trace)
    target = CountingEngine(setting.target(progress), setting.graph)
    findings = _self_check(setting, progress)
    total = len(setting.samples.images)
    outcome = COMPARISONS[setting.engine](
        setting, target, lambda done: progress(f"validate {setting.engine}", done, total)
    )
    result = _result(setting, target, outcome, [*findings, *outcome.findings])
    result = _keep_earlier(setting.bundle.path, result)
    folder = setting.bundle.path
    write_texts(
        {
            folder / "report.html": report_html(folder, setting.graph, result, setting.profile),
            folder / "card.md": card_text(folder, setting.graph, result),
            folder / "validation.json": json_text(result),
        }
    )
    return result


def _self_check(setting: Setting, progress: Progress) -> list[Finding]:
    """Compute the golden recordings and the targets again."""
    folder, graph, bundle = setting.bundle.path, setting.graph, setting.bundle
    found = golden_findings(setting.golden, "float", setting.build("float"), setting.batch)
    if bundle.has("loihi/network.json"):
        require_layers(graph, folder / "loihi")
        integer = setting.build("integer")
        found += _lowering(setting, folder / "loihi")  # a cause, before what comes of it
        found += golden_findings(setting.golden, "integer", integer, setting.batch)
    for weights, (whole, _) in FILES.items():
        if bundle.has(whole):
            found += onnx_differences(graph, folder, weights)
    if bundle.has(FILES["int8"][0]):
        coarse = setting.build("float-int8")
        found += golden_findings(setting.golden, "float-int8", coarse, setting.batch)
    progress("self-check", 1, 1)
    return found


def _lowering(setting: Setting, folder: Path) -> list[Finding]:
    """Build the integers again for the profile they were made for, if it is at hand."""
    name = str(setting.bundle.manifest["profile"])
    profile = setting.profile
    if profile.name != name:
        try:
            profile = load_profile(name)
        except RecipeError:
            message = f"the integers are for profile {name!r}, which is not at hand: not rebuilt"
            remedy = "validate with that profile's file"
            return [Finding("lowering.skipped", "info", None, message, remedy=remedy)]
    return lowering_differences(setting.graph, profile, folder)


def _result(
    setting: Setting, target: CountingEngine, outcome: Outcome, findings: list[Finding]
) -> Json:
    failed = document.first_error(findings)
    checked = check(setting.graph, setting.profile)
    notes = [_about_chip(item, setting.engine) for item in checked if item.severity != "info"]
    if setting.engine == "integer":
        notes += rounding(outcome.parity["layers"], checked)
    accuracy = outcome.parity["accuracy"]
    reached = accuracy["target"] if accuracy else None
    samples, bundle = setting.samples, setting.bundle
    training = document.training_json(
        setting.training, samples.source, len(samples.images), reached
    )
    held = deployed(bundle.path, setting.profile)
    energy = energy_rows(setting.graph, target, setting.profile, held)
    present = set(bundle.manifest["sha256"])
    return {
        "schema": 1,
        "verdict": "fail" if failed else "pass",
        "reason": failed,
        "profile": setting.profile.name,
        "engine": _engine(target),
        "reference": outcome.reference,
        "training": training,
        "images": samples.source,
        **outcome.parity,
        "energy": energy,
        "tolerances": outcome.rule,
        "findings": document.findings_json([*findings, *notes]),
        "also": outcome.also,
        "engines_not_run": not_run(outcome.ran, present),
        "command": _command(setting),
        "tool_version": __version__,
        "manifest_sha256": sha256(bundle.path / "manifest.json"),
    }


def _engine(target: CountingEngine) -> Json:
    """Return who computed it; for a run elsewhere also how it was run, and how long it took."""
    about = target.engine.about() if isinstance(target.engine, RecordedEngine) else {}
    return {**document.engine_json(target.info), **about}


def _command(setting: Setting) -> str:
    name = setting.bundle.path.resolve().name
    words = ["stars-deploy", "validate", name, "--profile", setting.profile.name]
    words += ["--engine", setting.engine]
    if setting.data is not None:
        words += ["--data", setting.data]
    if setting.limit is not None:
        words += ["--limit", str(setting.limit)]
    elsewhere = setting.elsewhere
    if elsewhere is not None and elsewhere.command is not None:
        words += ["--command", elsewhere.command.template]
    elif elsewhere is not None:
        words += ["--trace", str(elsewhere.file)]
    return shlex.join(words)


def _about_chip(finding: Finding, engine: str) -> Finding:
    """Return a finding of `check`; what a chip cannot hold is no error of another engine."""
    elsewhere = finding.severity == "error" and engine in ("float", "onnx", "onnx-int8")
    return dataclasses.replace(finding, severity="warning") if elsewhere else finding


def _keep_earlier(folder: Path, result: Json) -> Json:
    """Return `result` with the verdicts of other engines on the same bundle under `earlier`."""
    path = folder / "validation.json"
    before: list[Any] = []
    if path.is_file():
        try:
            latest = read_json(path)
            before = [latest, *latest.get("earlier", [])]
        except (InputError, AttributeError, TypeError):
            before = []  # a damaged verdict is no evidence; this one replaces it
    kept = [
        {name: value for name, value in item.items() if name != "earlier"}
        for item in before
        if _is_verdict(item)
        and item["manifest_sha256"] == result["manifest_sha256"]
        and _subject(item) != _subject(result)
    ]
    return {**result, "earlier": kept}


def _is_verdict(item: Any) -> bool:
    """Return whether a stored verdict is what this version writes: anything else is no evidence."""
    try:
        TypeAdapter(Validated).validate_python(item, strict=True)
    except ValidationError:
        return False
    return True


def _subject(result: Json) -> tuple[object, ...]:
    """Return what a verdict is about; a newer one on the same replaces it."""
    engine = result["engine"]
    return engine.get("name"), engine.get("run_config"), result["profile"], result["images"]
