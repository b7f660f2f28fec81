"""Modeled energy and latency of a network where it lies on the cores of a profile's chips."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from stars_deploy.config.profile import Profile
from stars_deploy.errors import BundleError
from stars_deploy.files import read_json, read_npz
from stars_deploy.graph.order import output_name
from stars_deploy.simulation.energy.activity import CountingEngine
from stars_deploy.simulation.energy.events import relays_of
from stars_deploy.simulation.energy.model import modeled
from stars_deploy.simulation.placement.place import Hops, Placement, message_hops, place


@dataclass(frozen=True)
class Deployed:
    """A lowered network and where it lies; no placement where it does not fit."""

    document: Mapping[str, Any]
    placement: Placement | None


def deployed(folder: Path, profile: Profile) -> Deployed | None:
    """Place `loihi/network.json` of a bundle's folder; None where there is none for this profile.

    A network of another profile is not placed: its integers are not what this one would hold.
    """
    if not (folder / "loihi" / "network.json").is_file() or profile.arithmetic is None:
        return None
    document = read_json(folder / "loihi" / "network.json", BundleError)
    if document.get("profile") != profile.name:
        return None
    arrays = read_npz(folder / "loihi" / "network.npz", BundleError)
    placement = place(document, arrays, profile)
    return Deployed(document, None if placement.misfits else placement)


def energy_rows(
    graph: nir.NIRGraph, engine: CountingEngine, profile: Profile, held: Deployed | None
) -> list[dict[str, Any]]:
    """Return what `modeled` says about the images that `engine` has counted."""
    if held is None:
        return modeled(graph, engine.activity, profile)
    relays = relays_of(held.document)
    if held.placement is None:
        return modeled(graph, engine.activity, profile, relays)
    cores = {item.name: len(item.parts) for item in held.placement.populations}
    # What only adds up stands under the output's name in the graph.
    cores[output_name(graph)] = cores[held.document["readout"]["population"]]
    hops = _hops(held, held.placement, engine)
    known = {*engine.activity.active, *(relay.name for relay in relays)}
    cores = {name: count for name, count in cores.items() if name in known}
    return modeled(graph, engine.activity, profile, relays, hops, cores)


def _hops(held: Deployed, placement: Placement, engine: CountingEngine) -> Hops:
    spikes: dict[str, NDArray[np.int64]] = {}
    for item in held.document["populations"]:
        if item["node"] in engine.spikes:
            spikes[item["name"]] = engine.spikes[item["node"]]
    for relay in relays_of(held.document):
        spikes[relay.name] = spikes[relay.origin]
    return message_hops(placement, spikes)
