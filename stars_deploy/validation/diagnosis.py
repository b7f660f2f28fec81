"""Which layer's rounding costs most, and what kept its integers from being finer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stars_deploy.targets.findings import Finding

CODE = "diagnosis"
# In the order of what they say: a warning with its remedy, or the summary of the lowering.
_LOWERING = ("coarse_weights", "integers")
_REMEDY = "stars-deploy sweep --over bits shows what coarser or finer weights would change"

Layer = Mapping[str, Any]


def rounding(layers: Sequence[Layer], lowering: Sequence[Finding]) -> list[Finding]:
    """Name the layer whose own rounding changes the largest share of its spikes.

    On equal inputs (isolated) a layer's integers differ from the float graph by their rounding
    alone; the accumulated difference holds that of all layers before it too. Counted are spikes
    that come or go, since their number may stay while they move.

    Args:
        layers: rows of validation.json of integer against float.
        lowering: what `check` says about the same graph and profile.
    Returns: one finding of severity info; none where nothing differs or nothing was isolated.
    """
    worst = max(layers, key=_share, default=None)
    if worst is None or _share(worst) == 0:
        return []
    name, share = worst["name"], _share(worst)
    message = (
        f"rounding of this layer alone changes {_changed(worst)} spikes, {share:.2%} of the "
        f"reference's, more than that of any other layer; their number differs by "
        f"{worst['isolated_relative_difference']:.2%} on equal inputs, by "
        f"{worst['relative_difference']:.2%} accumulated"
    )
    said = {item.code: item for item in lowering if item.node == name and item.code in _LOWERING}
    cause = next((said[code] for code in _LOWERING if code in said), None)
    if cause is not None:
        message += f"; its integers: {cause.message}"
    remedy = cause.remedy if cause is not None and cause.remedy else _REMEDY
    return [Finding(CODE, "info", name, message, value=share, remedy=remedy)]


def _changed(layer: Layer) -> int:
    changed: int = (layer["isolated_mismatches"] or 0) + (layer["near_ties"] or 0)
    return changed


def _share(layer: Layer) -> float:
    """Return the changed spikes relative to the reference's."""
    share: float = _changed(layer) / max(layer["spikes_reference"], 1)
    return share
