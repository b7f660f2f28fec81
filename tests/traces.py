"""Traces as run_lava.py writes them, computed by the integer engine, and ways to damage them."""

import importlib.util
import json

import numpy as np

from stars_deploy.assets import asset
from stars_deploy.files import sha256
from stars_deploy.simulation.integer.engine import open_engine
from stars_deploy.simulation.integer.network import read_network


def kit():
    """run_lava.py as a module; it imports Lava only when it runs."""
    spec = importlib.util.spec_from_file_location("run_lava", asset("export", "run_lava.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def arrays_of(bundle, images, **info):
    """The arrays of an honest run over uint8 images [N, C, H, W]."""
    answer = open_engine(bundle / "loihi", "cpu").run(images)
    network = read_network(bundle / "loihi")
    populations = {item.node: item.name for item in network.populations if item.spiking}
    described = {
        "schema": 2, "engine": "lava-fixed_pt", "version": "0.10.0", "kind": "simulated",
        "network": "raw", "run_config": "sim", "n": len(images), "T": network.T,
        "populations": list(populations.values()), "timings": {"startup_s": 1.5, "run_s": 2.5},
        "ended": "2026-01-01T00:00:00Z", "versions": {"python": "3.10.14", "lava-nc": "0.10.0"},
    }  # fmt: skip
    return {
        "info": np.array(json.dumps({**described, **info})),
        "manifest_sha256": np.array(sha256(bundle / "manifest.json")),
        "images": images,
        **{f"spikes.{populations[node]}": train for node, train in answer.spikes.items()},
        "readout.v": np.rint(answer.logits * network.divisor).astype(np.int32),
        "readout.saturated": np.zeros(len(images), bool),
        "logits": answer.logits,
    }


def write(path, arrays):
    """Seal the arrays as run_lava.py does and write them."""
    arrays = {name: value for name, value in arrays.items() if name != "seal"}
    np.savez_compressed(path, **arrays, seal=np.array(kit().seal_of(arrays)))
    return path


def flip(arrays, population="lif2"):
    """Turn one spike of the middle of a population's run over."""
    train = arrays[f"spikes.{population}"].copy()
    train[1, 1].flat[0] ^= 1
    return {**arrays, f"spikes.{population}": train}
