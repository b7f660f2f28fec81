"""`stars-deploy check`: everything that keeps a graph from running on a profile, at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stars_deploy import __version__
from stars_deploy.config.profile import load_profile
from stars_deploy.graph.foreign import OWN, Reading
from stars_deploy.targets.findings import Finding, exit_code
from stars_deploy.validate.check import check as find
from stars_deploy.workflow.sources import load_any_graph, source_kind


def check(source: Path, profile: str, reading: Reading | None = None) -> dict[str, Any]:
    """Return all findings about SOURCE, and the exit code that they add up to: 0, 2 or 4.

    `reading` says what a graph of another tool leaves open; what is missing is a finding.
    Raises: InputError, BundleError, GraphError only where there is no graph to look at.
    """
    chosen = load_profile(profile)
    adopted = load_any_graph(source, reading)
    findings = [
        Finding(item.code, "error", item.node, item.message, remedy=item.remedy)
        for item in adopted.problems
    ]
    if OWN in adopted.graph.metadata:
        findings += find(adopted.graph, chosen)
    findings += [Finding(note.code, "info", note.node, note.message) for note in adopted.notes]
    return {
        "source": {"kind": source_kind(source), "name": source.resolve().name},
        "profile": chosen.name,
        "findings": [finding.to_dict() for finding in findings],
        "exit_code": exit_code(findings),
        "tool_version": __version__,
    }
