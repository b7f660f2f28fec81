"""Our synaptic operations against NeuroBench's.

    python benchmarks/synops_neurobench.py [--rates R ...] [--steps T]

It takes three minutes and builds NeuroBench's own environment first, with a torch of its own
(several GB where none is cached).

NeuroBench counts, layer by layer, a pass through a copy of the layer whose weights are 0 or 1:
Effective_ACs where all inputs are spikes, Effective_MACs where they are not (the image, at every
step), Dense with all inputs and weights taken as 1. It leaves out biases, and weights that are
zero; we count those, since a chip that stores them as synapses works on them too. So the counts
must be equal without zero weights, and with them (a pruned network) after taking them out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import nir
import numpy as np
from common import environment, save
from energy_common import outside_python, random_images, small_network

from stars_deploy.config.profile import load_profile
from stars_deploy.graph.metadata import metadata_of
from stars_deploy.simulation.energy.activity import CountingEngine
from stars_deploy.simulation.energy.counts import ann_macs, synapses
from stars_deploy.simulation.energy.events import events_of, input_on_host
from stars_deploy.simulation.operators import operator_of
from stars_deploy.simulation.reference import FloatEngine

NEUROBENCH = "2.3.0"
LAYERS = ("conv1", "conv2", "fc")


def ask(graph: nir.NIRGraph, images: np.ndarray[Any, Any]) -> dict[str, Any]:
    """What NeuroBench counts in the same network on the same images, per image."""
    python = outside_python(f"neurobench-{NEUROBENCH}", f"neurobench=={NEUROBENCH}")
    metadata = metadata_of(graph)
    arrays: dict[str, Any] = {"steps": np.array(metadata.T)}
    arrays["images"] = (images / 255.0 - metadata.mean[0]) / metadata.std[0]
    for name in LAYERS:
        node = graph.nodes[name]
        arrays[f"{name}.weight"], arrays[f"{name}.bias"] = node.weight, node.bias
    with tempfile.TemporaryDirectory() as folder:
        network, answer = Path(folder) / "network.npz", Path(folder) / "answer.json"
        np.savez(network, **arrays)
        worker = Path(__file__).parent / "synops_neurobench_worker.py"
        subprocess.run([python, worker, network, answer], check=True)
        result: dict[str, Any] = json.loads(answer.read_text())
        return result


def zero_weight_operations(graph: nir.NIRGraph, trains: dict[str, np.ndarray[Any, Any]]) -> float:
    """Operations on synapses whose weight is zero, per image: a pass with ones in their place."""
    total = 0.0
    for layer, source in (("conv2", "lif1"), ("fc", "lif2")):
        node, train = graph.nodes[layer], trains[source].astype(np.float64)
        zeros, bias = (node.weight == 0).astype(np.float64), np.zeros_like(node.bias)
        if isinstance(node, nir.Affine):
            marked: nir.NIRNode = nir.Affine(zeros, bias)
            train = train.reshape(*train.shape[:2], -1)
        else:
            marked = nir.Conv2d(
                node.input_shape, zeros, node.stride, node.padding, node.dilation, 1, bias
            )
        total += float(operator_of(layer, marked)(train).sum()) / train.shape[1]
    return total


def cross_check(seed: int, steps: int, rate: float, pruned: float) -> dict[str, Any]:
    """Everything but the environment of the result file."""
    graph, images = small_network(seed, steps, rate, pruned), random_images(seed + 1, 16)
    counting = CountingEngine(FloatEngine(graph), graph)
    trains = dict(counting.run(images).spikes)
    on_host = input_on_host(load_profile("loihi2"))
    events = events_of(graph, counting.activity, on_host)
    links = synapses(graph)
    first = steps * sum(
        int(count.sum()) for (source, _), count in links.items() if source == "input"
    )
    total = float(sum(p.synaptic_operations.sum() for p in events.populations))
    stored = steps * sum(int(count.sum()) for count in links.values())
    skipped = zero_weight_operations(graph, trains)
    answer = ask(graph, images)
    theirs = answer["synaptic_operations"]
    pairs = {
        "operations_on_input_messages": (first, theirs["Effective_MACs"]),
        "operations_on_spikes": (total - first, theirs["Effective_ACs"]),
        "operations_on_spikes_without_zero_weights": (
            total - first - skipped,
            theirs["Effective_ACs"],
        ),
        "all_synapses_at_all_steps": (stored, theirs["Dense"]),
    }
    spikes = {name: float(train.sum()) / train.shape[1] for name, train in trains.items()}
    return {
        "neurobench": answer["neurobench"],
        "torch": answer["torch"],
        "seed": seed,
        "T": steps,
        "images": len(images),
        "pruned": pruned,
        "rates": {name: float(train.mean()) for name, train in trains.items()},
        "spikes_per_image": {"ours": spikes, "neurobench": answer["spikes"]},
        "counts_per_image": {
            key: {"ours": ours, "neurobench": other, "difference": other - ours}
            for key, (ours, other) in pairs.items()
        },
        "ann_macs_times_T": steps * ann_macs(graph),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rates", type=float, nargs="+", default=[0.3, 0.1, 0.03])
    parser.add_argument("--steps", type=int, default=6)
    arguments = parser.parse_args()
    runs = [
        cross_check(seed, arguments.steps, rate, pruned)
        for seed, rate in enumerate(arguments.rates)
        for pruned in (0.0, 0.4)
    ]
    result = {
        "what": "synaptic operations per image, ours against NeuroBench's",
        "network": "1x8x8 -> conv 8 s2 -> LIF -> conv 16 s2 -> LIF -> dense 10",
        "runs": runs,
        "environment": environment(1),
    }
    save("synops_neurobench", result)


if __name__ == "__main__":
    main()
