"""A small bundle with every target, and ways to damage it."""

import json

import numpy as np
import random_networks

from stars_deploy.graph.writer import write_graph
from stars_deploy.targets.bundle import seal
from stars_deploy.workflow.export import export

TARGETS = ("nir", "onnx", "loihi")
SEED = 21  # weights k/64: three layers that fire, and neurons that reach V_th exactly


def graph(seed=SEED, **choices):
    return random_networks.random_graph(
        seed, **{"blocks": 3, "dyadic": True, "steps": (4, 4), "pools": False, **choices}
    )


def write_bundle(folder, targets=TARGETS, golden=16, gain="raw"):
    """Write the graph and its bundle into `folder`; return the bundle."""
    write_graph(graph(), folder / "net.nir")
    export(folder / "net.nir", targets, "loihi2", golden, gain, folder / "bundle")
    return folder / "bundle"


def change_document(bundle, change):
    """Apply `change` to loihi/network.json and seal the bundle."""
    path = bundle / "loihi" / "network.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    seal(bundle)


def change_arrays(path, change):
    """Apply `change` to the arrays of an npz."""
    with np.load(path) as archive:
        arrays = dict(archive)
    change(arrays)
    np.savez_compressed(path, **arrays)


def change_weight(bundle, layer="conv2", by=8):
    """Shift one weight of a layer, a large one so that spikes depend on it, and seal."""

    def shift(arrays):
        weight = arrays[f"w.{layer}"]
        index = np.unravel_index(np.abs(weight).argmax(), weight.shape)
        weight[index] -= by * np.sign(weight[index])

    change_arrays(bundle / "loihi" / "network.npz", shift)
    seal(bundle)
