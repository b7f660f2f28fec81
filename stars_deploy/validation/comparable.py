"""Whether two engines' answers can be compared at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from stars_deploy.errors import EngineError
from stars_deploy.simulation.recording import Recording


def part_of(recording: Recording, window: slice) -> Recording:
    """Return what a recording says about some of its images."""
    spikes = {node: train[:, window] for node, train in recording.spikes.items()}
    return replace(
        recording, logits=recording.logits[window], spikes=spikes, margins=None, outputs=None
    )


def common_nodes(expected: Recording, found: Recording, order: Sequence[str]) -> list[str]:
    """Return the spiking nodes in `order`, after checking that both recordings are comparable.

    Raises: EngineError for a layer that only one recorded, another shape, or logits that are not
    finite numbers.
    """
    who = found.engine.name
    missing = expected.spikes.keys() ^ found.spikes.keys() or expected.spikes.keys() ^ set(order)
    if missing:
        raise EngineError(
            f"{who} and {expected.engine.name} did not record the same layers: "
            f"{', '.join(sorted(missing))} only in one of them"
        )
    for node in order:
        if expected.spikes[node].shape != found.spikes[node].shape:
            raise EngineError(
                f"{who}: spikes of {node} have shape {found.spikes[node].shape}, "
                f"expected {expected.spikes[node].shape} [T, N, ...] as {expected.engine.name}"
            )
    for recording in (expected, found):
        if (
            expected.logits.shape != recording.logits.shape
            or not np.isfinite(recording.logits).all()
        ):
            raise EngineError(
                f"{recording.engine.name}: logits of shape {recording.logits.shape} are not "
                f"{expected.logits.shape} finite numbers"
            )
    return list(order)
