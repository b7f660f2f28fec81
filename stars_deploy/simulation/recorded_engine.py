"""A trace as an engine: what a board or Lava answered, played back without either."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stars_deploy.errors import DataError, EngineError
from stars_deploy.files import sha256
from stars_deploy.simulation.integer.network import read_network
from stars_deploy.simulation.recording import Recording, Spikes
from stars_deploy.simulation.trace import Trace, recording_of


def judged(bundle: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the populations whose spikes are compared: name -> (NIR node, shape of a neuron map).

    Raises: BundleError for a missing or malformed loihi/network.json or network.npz.
    """
    populations = read_network(bundle / "loihi").populations
    return {
        item.name: (item.node, item.shape) for item in populations if item.spiking and item.node
    }


class RecordedEngine:
    """Plays a trace once, from its first image on.

    It is read like a tape, not looked up by image: equal images may have been answered
    differently if a state was carried over, and that must show.

    Args:
        images: uint8 [N, C, H, W], those that will be asked for; the first ones of the trace.
    Raises: DataError for a trace of another bundle, other images, or other populations,
        EngineError where the read-out left its range.
    """

    def __init__(self, trace: Trace, bundle: Path, images: NDArray[np.uint8]) -> None:
        populations = judged(bundle)
        for name, (_, shape) in populations.items():
            train = trace.spikes.get(name)
            if train is not None and train.shape[2:] != shape:
                raise DataError(
                    f"{trace.path}: spikes.{name} has neurons {list(train.shape[2:])}, the bundle "
                    f"has {list(shape)}"
                )
        nodes = {name: node for name, (node, _) in populations.items()}
        self._recording = recording_of(trace, bundle, images, nodes)
        self._images = images
        self._played = 0
        self._trace = trace
        self._sha256 = sha256(trace.path)
        self.info = self._recording.engine
        self.nodes: list[str] = list(nodes.values())

    def run(
        self, images: NDArray[np.uint8], feed: Spikes | None = None, margins: bool = False
    ) -> Recording:
        """Return what was recorded for the next images; `feed` and `margins` do not exist."""
        if feed is not None or margins:
            raise EngineError("a trace holds the whole network's run: no feed, no margins")
        part = slice(self._played, self._played + len(images))
        if not np.array_equal(self._images[part], images):
            raise EngineError(f"{self._trace.path}: played out of the order of its images")
        self._played = part.stop
        return Recording(
            engine=self.info,
            logits=self._recording.logits[part],
            spikes={node: train[:, part] for node, train in self._recording.spikes.items()},
        )

    def about(self) -> dict[str, Any]:
        """Return what validation.json says about the run beyond name, version and kind."""
        info = self._trace.info
        run = {key: info[key] for key in ("run_config", "network", "timings", "versions")}
        return {**run, "trace_sha256": self._sha256}
