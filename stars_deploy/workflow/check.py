"""`stars-deploy check`: everything that keeps a graph from running on a profile, at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stars_deploy import __version__
from stars_deploy.config.profile import load_profile
from stars_deploy.errors import InputError
from stars_deploy.graph.foreign import OWN, Reading
from stars_deploy.targets.bundle import refuse_inside
from stars_deploy.targets.findings import Finding, exit_code
from stars_deploy.targets.loihi import balance_named
from stars_deploy.validation.check import Examination, examine
from stars_deploy.validation.placement import placement_summary
from stars_deploy.workflow.sources import load_any_graph, source_kind


def check(
    source: Path,
    profile: str,
    reading: Reading | None = None,
    balance: str = "relay",
    picture: Path | None = None,
) -> dict[str, Any]:
    """Return all findings about SOURCE, its placement, and the exit code: 0, 2 or 4.

    Args:
        reading: what a graph of another tool leaves open; what is missing is a finding.
        balance: relay or delay, how skip connections wait.
        picture: a PNG to draw the placement into; not written where nothing can be placed.

    Raises:
        InputError, BundleError, GraphError: there is no graph to look at, or no such balance.
        RecipeError: an unknown profile.
    """
    chosen, way = load_profile(profile), balance_named(balance)
    if picture is not None:
        _require_picture(picture)
    adopted = load_any_graph(source, reading)
    findings = [
        Finding(item.code, "error", item.node, item.message, remedy=item.remedy)
        for item in adopted.problems
    ]
    examination = Examination()
    if OWN in adopted.graph.metadata:
        examination = examine(adopted.graph, chosen, way)
    findings += examination.findings
    findings += [Finding(note.code, "info", note.node, note.message) for note in adopted.notes]
    findings = list(dict.fromkeys(findings))  # some are found in reading and in examining
    placement = examination.placement
    drawn = None
    if picture is not None and placement is not None:
        from stars_deploy.validation.placement_picture import draw_placement

        draw_placement(placement, chosen.limits, picture)
        drawn = str(picture)
    return {
        "source": {"kind": source_kind(source), "name": source.resolve().name},
        "profile": chosen.name,
        "findings": [finding.to_dict() for finding in findings],
        "placement": None if placement is None else placement_summary(placement, chosen.limits),
        "picture": drawn,
        "exit_code": exit_code(findings),
        "tool_version": __version__,
    }


def _require_picture(path: Path) -> None:
    """Refuse to draw over anything but an earlier drawing, or into a bundle."""
    refuse_inside(path, "--picture")
    if not (path.exists() or path.is_symlink()):
        return
    if path.is_file() and (path.stat().st_size == 0 or _drawn_here(path)):
        return
    raise InputError(
        f"--picture {path}: exists and is no picture of stars-deploy check, so it is not replaced; "
        "give another file"
    )


def _drawn_here(path: Path) -> bool:
    from PIL import Image

    from stars_deploy.validation.placement_picture import MADE_BY, SOFTWARE

    try:
        with Image.open(path, formats=["PNG"]) as picture:
            return picture.info.get(SOFTWARE) == MADE_BY
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False
