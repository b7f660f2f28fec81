"""What one validation works on: an opened bundle, the engine asked for, and images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nir
import numpy as np

from stars_deploy.config.profile import Profile, load_profile
from stars_deploy.console import Progress
from stars_deploy.errors import InputError, nearest
from stars_deploy.graph.geometry import output_shapes
from stars_deploy.graph.metadata import metadata_of
from stars_deploy.graph.order import spiking_nodes
from stars_deploy.graph.reader import read_graph
from stars_deploy.simulation.recording import Engine
from stars_deploy.targets.bundle import Bundle, Golden, open_bundle, read_golden
from stars_deploy.validation.engines import OUTSIDE, build_engine, check_engine_name
from stars_deploy.validation.training import read_training
from stars_deploy.workflow.board import Elsewhere, open_elsewhere, run_elsewhere
from stars_deploy.workflow.samples import Samples, golden_part, load_samples

DEVICES = ("auto", "cpu", "cuda")
BATCH_VALUES = 1 << 25  # spikes recorded at a time, which bounds memory


@dataclass(frozen=True)
class Setting:
    """What one validation works on."""

    bundle: Bundle
    graph: nir.NIRGraph
    golden: Golden
    profile: Profile
    engine: str
    samples: Samples
    data: str | None
    limit: int | None
    device: str
    timeout: float
    batch: int
    elsewhere: Elsewhere | None

    def target(self, progress: Progress) -> Engine:
        """Return the engine asked for; one that runs elsewhere has answered all images then."""
        if self.elsewhere is None:
            return self.build(self.engine)
        path, images = self.bundle.path, self.samples.images
        return run_elsewhere(self.elsewhere, path, images, self.timeout, progress)

    def build(self, name: str) -> Engine:
        """Return an engine for the bundle's files."""
        return build_engine(name, self.graph, self.bundle.path, self.device, self.timeout)

    @property
    def golden_only(self) -> bool:
        """Whether the images are (the first of) the golden ones."""
        return self.data is None

    @property
    def training(self) -> dict[str, Any] | None:
        """What training.json of the bundle says, None if there is none."""
        if not self.bundle.has("training.json"):
            return None
        return read_training(self.bundle.file("training.json"))


def open_setting(
    path: Path,
    profile: str,
    engine: str | None,
    data: str | None,
    limit: int | None,
    timeout: float,
    device: str,
    command: str | None = None,
    trace: Path | None = None,
) -> Setting:
    """Open and check everything before anything is run; `engine` None is the profile's own.

    A trace over fewer images than there are stands for the first ones, as --limit would.

    Raises: BundleError, InputError, RecipeError, DataError, EngineError.
    """
    chosen = load_profile(profile)
    name = default_engine(chosen) if engine is None else engine
    check_engine_name(name)
    bundle = open_bundle(path)
    graph = read_graph(bundle.file("graph.nir"))
    golden = read_golden(bundle.file("golden.npz"))
    _require_profile(bundle, name, chosen)
    elsewhere = open_elsewhere(name, path, command, trace)
    samples = golden_part(golden, limit) if data is None else load_samples(graph, data, limit)
    if elsewhere is not None and elsewhere.trace is not None and limit is None:
        recorded = len(elsewhere.trace.images)
        limit = recorded if recorded < len(samples.images) else None
        samples = samples.first(limit)
    _require_images_placeholder(elsewhere, samples, golden)
    return Setting(
        bundle=bundle,
        graph=graph,
        golden=golden,
        profile=chosen,
        engine=name,
        samples=samples,
        data=data,
        limit=limit,
        device=resolve_device(name, device),
        timeout=timeout,
        batch=batch_size(graph),
        elsewhere=elsewhere,
    )


def default_engine(profile: Profile) -> str:
    """Return the engine that computes as the profile says."""
    return "float" if profile.arithmetic is None else "integer"


def batch_size(graph: nir.NIRGraph) -> int:
    """Return how many images are run at a time, so that their spikes fit in memory."""
    shapes = output_shapes(graph)
    values = sum(math.prod(shapes[node]) for node in spiking_nodes(graph)) * metadata_of(graph).T
    return max(1, BATCH_VALUES // values)


def resolve_device(engine: str, device: str) -> str:
    """Return where `engine` computes: only the integer engine can use a GPU.

    Raises: InputError for a device that does not exist or that the engine cannot use.
    """
    if device not in DEVICES:
        raise InputError(f"--device {device!r} is unknown{nearest(device, DEVICES)}")
    if engine != "integer":
        if device == "cuda":
            raise InputError(f"--device cuda: engine {engine} computes on the CPU")
        return "cpu"
    if device == "cpu":
        return device
    from stars_deploy.networks.device import resolve  # imports torch

    return str(resolve(device))


def _require_profile(bundle: Bundle, engine: str, profile: Profile) -> None:
    """Refuse to judge integers that were made for another profile."""
    if engine not in ("integer", "lava", *OUTSIDE):
        return
    bundle.file("loihi/network.json")
    made_for = bundle.manifest["profile"]
    if made_for != profile.name:
        raise InputError(
            f"--profile {profile.name}: the integer parameters of {bundle.path} are for profile "
            f"{made_for}; give --profile {made_for} (of a chip of your own: its file), or export "
            f"with --profile {profile.name}"
        )


def _require_images_placeholder(
    elsewhere: Elsewhere | None, samples: Samples, golden: Golden
) -> None:
    """Refuse a command that would run the golden images where others are asked for."""
    if elsewhere is None or elsewhere.command is None or "images" in elsewhere.command.fields:
        return
    if not np.array_equal(samples.images, golden.images):
        raise InputError(
            f"--command {elsewhere.command.template!r}: has no {{images}}, so it runs all golden "
            f"images, but other images are asked for (--data, --limit): add --images {{images}}"
        )
