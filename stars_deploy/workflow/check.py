"""`stars-deploy check`: everything that keeps a graph from running on a profile, at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stars_deploy import __version__
from stars_deploy.config.profile import load_profile
from stars_deploy.targets.findings import exit_code
from stars_deploy.validate.check import examine
from stars_deploy.validate.placement import placement_summary
from stars_deploy.workflow.sources import load_any_graph, source_kind


def check(source: Path, profile: str, picture: Path | None = None) -> dict[str, Any]:
    """Return all findings about SOURCE, its placement, and the exit code: 0, 2 or 4.

    Args:
        picture: a PNG to draw the placement into; not written where nothing can be placed.

    Raises:
        InputError, BundleError, GraphError: there is no graph to look at.
        RecipeError: an unknown profile.
    """
    chosen = load_profile(profile)
    examination = examine(load_any_graph(source), chosen)
    placement = examination.placement
    drawn = None
    if picture is not None and placement is not None:
        from stars_deploy.validate.placement_picture import draw_placement

        draw_placement(placement, chosen.limits, picture)
        drawn = str(picture)
    return {
        "source": {"kind": source_kind(source), "name": source.resolve().name},
        "profile": chosen.name,
        "findings": [finding.to_dict() for finding in examination.findings],
        "placement": None if placement is None else placement_summary(placement, chosen.limits),
        "picture": drawn,
        "exit_code": exit_code(examination.findings),
        "tool_version": __version__,
    }
