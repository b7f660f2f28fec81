"""Lava as an engine: its own fixed-point models run the bundle, in their own environment."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stars_deploy.assets import asset
from stars_deploy.errors import EngineError
from stars_deploy.files import write_npz
from stars_deploy.simulation.lava.environment import require_environment
from stars_deploy.simulation.lava.worker import run_kit
from stars_deploy.simulation.recorded_engine import judged
from stars_deploy.simulation.recording import EngineInfo, Recording, Spikes
from stars_deploy.simulation.trace import Trace, read_trace, recording_of

NAMES = {"raw": "lava-fixed_pt", "netx": "lava-netx"}


class LavaEngine:
    """Runs `export/run_lava.py` on a bundle.

    `raw` builds the processes that loihi/network.json describes, `netx` those of
    loihi/network.net. Raises EngineError where the Lava environment is absent.
    """

    def __init__(
        self,
        bundle: Path,
        network: Literal["raw", "netx"] = "raw",
        timeout: float | None = 600.0,
    ) -> None:
        self._nodes = {name: node for name, (node, _) in judged(bundle).items()}
        self._bundle = bundle
        self._network = network
        self._timeout = timeout
        version = require_environment().versions["lava-nc"]
        self.info = EngineInfo(NAMES[network], version, "simulated")
        self.nodes: list[str] = list(self._nodes.values())

    def run(
        self, images: NDArray[np.uint8], feed: Spikes | None = None, margins: bool = False
    ) -> Recording:
        """Run on uint8 images [N, C, H, W]; `feed` and `margins` are not possible in Lava.

        To judge one layer, feed the reference with Lava's spikes instead.
        """
        if feed is not None or margins:
            raise EngineError("Lava runs the whole network: no feed, no margins")
        return recording_of(self._trace(images), self._bundle, images, self._nodes)

    def timings(self, images: NDArray[np.uint8]) -> dict[str, float]:
        """Stream images without recording; return seconds and rates.

        `images_per_second` excludes `startup_s` and `fill_s`, the first L steps.
        """
        return dict(self._trace(images, "--timing").info["timings"])

    def _trace(self, images: NDArray[np.uint8], *options: str) -> Trace:
        with tempfile.TemporaryDirectory(prefix="stars-deploy.") as folder:
            given, written = Path(folder, "images.npz"), Path(folder, "trace.npz")
            write_npz(given, {"images": images})
            files = [str(self._bundle), str(written), "--images", str(given)]
            run_kit(
                asset("export", "run_lava.py"),
                [*files, "--network", self._network, *options],
                self._timeout,
            )
            return read_trace(written)
