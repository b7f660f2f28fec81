"""What one validation works on: an opened bundle, the engine asked for, and images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nir

from stars_deploy.config.profile import Profile, load_profile
from stars_deploy.errors import InputError, nearest
from stars_deploy.graph.geometry import output_shapes
from stars_deploy.graph.metadata import metadata_of
from stars_deploy.graph.order import spiking_nodes
from stars_deploy.graph.reader import read_graph
from stars_deploy.simulate.recording import Engine
from stars_deploy.targets.bundle import Bundle, Golden, open_bundle, read_golden
from stars_deploy.validate.engines import build_engine, check_engine_name
from stars_deploy.validate.training import read_training
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
) -> Setting:
    """Open and check everything before anything is run; `engine` None is the profile's own.

    Raises: BundleError, InputError, RecipeError, DataError, EngineError.
    """
    chosen = load_profile(profile)
    name = default_engine(chosen) if engine is None else engine
    check_engine_name(name)
    bundle = open_bundle(path)
    graph = read_graph(bundle.file("graph.nir"))
    golden = read_golden(bundle.file("golden.npz"))
    _require_profile(bundle, name, chosen)
    samples = golden_part(golden, limit) if data is None else load_samples(graph, data, limit)
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
    if engine not in ("integer", "lava"):
        return
    bundle.file("loihi/network.json")
    made_for = bundle.manifest["profile"]
    if made_for != profile.name:
        raise InputError(
            f"--profile {profile.name}: the integer parameters of {bundle.path} are for profile "
            f"{made_for}; validate with that, or export with --profile {profile.name}"
        )
