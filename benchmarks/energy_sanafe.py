"""Our event counts and modeled energy against SANA-FE's simulated Loihi.

    python benchmarks/energy_sanafe.py [--rates R ...] [--steps T]

It takes two minutes and builds SANA-FE's own environment first.

SANA-FE (Boyle et al., IEEE TCAD 2025) simulates the cores of a chip event by event. It gets the
same network and input currents. Compared are the spikes of the whole network, and for each
population its synaptic events, spikes, active updates and messages, which must be equal; then
energy by part, once with the constants of Davies et al. 2018 in both (equal again), once with
SANA-FE's own (it calibrated them itself, so the energies differ).
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
from numpy.typing import NDArray

from stars_deploy.config.profile import load_profile
from stars_deploy.graph.metadata import metadata_of
from stars_deploy.simulation.energy.activity import CountingEngine
from stars_deploy.simulation.energy.events import Events, events_of, input_on_host
from stars_deploy.simulation.energy.model import modeled
from stars_deploy.simulation.operators import operator_of
from stars_deploy.simulation.reference import FloatEngine

SANAFE = "2.2.9"
NAMES = ("lif1", "lif2", "fc")
OPERATORS = {"lif1": "conv1", "lif2": "conv2", "fc": "fc"}
SYNAPSE = {"lif1": "loihi_conv_synapse", "lif2": "loihi_conv_synapse", "fc": "loihi_dense_synapse"}
Array = NDArray[Any]


def network_arrays(
    graph: nir.NIRGraph, image: NDArray[np.uint8], trains: dict[str, Array]
) -> dict[str, Array]:
    """The network as SANA-FE needs it: synapse by synapse, the first layer as current.

    With tau = 2 a step is v <- v / 2 + I / 2, so that weights and currents are halved.
    """
    metadata = metadata_of(graph)
    x = (image[None, None] / 255.0 - metadata.mean[0]) / metadata.std[0]
    arrays: dict[str, Array] = {"names": np.array(NAMES), "steps": np.array(metadata.T)}
    source = None
    for name in NAMES:
        node = graph.nodes[OPERATORS[name]]
        arrays[f"{name}.spiking"] = np.array(name != "fc")
        arrays[f"{name}.synapse"] = np.array(SYNAPSE[name])
        if source is None:
            current = operator_of(OPERATORS[name], node)(x).reshape(-1) / 2
            arrays[f"{name}.current"], arrays[f"{name}.size"] = current, np.array(current.size)
            arrays[f"{name}.train"] = trains[name].reshape(metadata.T, -1)
        else:
            shape = trains[source].shape[1:]
            arrays[f"{name}.source"] = trains[source].reshape(metadata.T, -1)
            rows = synapse_rows(node, shape)
            arrays[f"{name}.synapses"] = rows
            arrays[f"{name}.size"] = np.array(int(rows[:, 1].max()) + 1)
        source = name
    return arrays


def synapse_rows(node: nir.NIRNode, shape: tuple[int, ...]) -> Array:
    """[source, target, weight / 2] of every synapse, one loop per index: nothing clever."""
    if isinstance(node, nir.Affine):
        return np.array([(j, i, w / 2) for (i, j), w in np.ndenumerate(node.weight)])
    channels, height, width = shape
    stride, padding = node.stride[0], node.padding[0]
    outputs, _, rows, columns = node.weight.shape
    made = (
        (height + 2 * padding - rows) // stride + 1,
        (width + 2 * padding - columns) // stride + 1,
    )
    found = []
    for o, i, a, b in np.ndindex(outputs, channels, rows, columns):
        for y, x in np.ndindex(*made):
            v, u = y * stride - padding + a, x * stride - padding + b
            if 0 <= v < height and 0 <= u < width:
                source = (i * height + v) * width + u
                found.append((source, (o * made[0] + y) * made[1] + x, node.weight[o, i, a, b] / 2))
    return np.array(found)


def ask(arrays: dict[str, Array], constants: dict[str, float]) -> dict[str, Any]:
    """What SANA-FE says about the network, with its constants or with these."""
    python = outside_python(f"sanafe-{SANAFE}", f"sanafe=={SANAFE}", "numpy")
    worker = Path(__file__).parent / "energy_sanafe_worker.py"
    with tempfile.TemporaryDirectory() as folder:
        network, answer, changed = (Path(folder) / n for n in ("n.npz", "a.json", "c.json"))
        np.savez(network, **arrays)
        changed.write_text(json.dumps(constants))
        command = [python, worker, network, answer, changed]
        subprocess.run(command, check=True, stdout=subprocess.PIPE)
        result: dict[str, Any] = json.loads(answer.read_text())
        return result


def davies_constants() -> dict[str, float]:
    """Ours in SANA-FE's terms, J: an update costs its access and, if active, the difference."""
    energy = load_profile("loihi1").energy
    assert energy is not None
    idle, active = energy.neuron_update_inactive_pj.value, energy.neuron_update_active_pj.value
    picojoules = {
        "energy_process_spike": energy.synaptic_operation_pj.value,
        "energy_access_neuron": idle,
        "energy_update_neuron": active - idle,
        "energy_spike_out": 0.0,
        "energy_message_out": energy.spike_within_tile_pj.value,
    }
    return {key: value * 1e-12 for key, value in picojoules.items()}


def compared(mine: float, theirs: float) -> dict[str, Any]:
    """Both numbers and their difference; counts are whole."""
    return {"ours": int(mine), "sanafe": int(theirs), "difference": int(theirs) - int(mine)}


def counts(events: Events, answer: dict[str, Any]) -> dict[str, Any]:
    """Ours and SANA-FE's events, population by population, and their differences."""
    ours = {("fc" if p.name == "output" else p.name): p for p in events.populations}
    before = dict(zip(NAMES[1:], NAMES, strict=False))
    table = {}
    for name in NAMES:
        mine, theirs = ours[name], answer["populations"][name]
        sent = ours[before[name]].messages.sum() if name in before else 0
        pairs = {
            "synaptic_operations": mine.synaptic_operations.sum(),
            "spikes": mine.messages.sum(),
            "active_updates": mine.active.sum(),
            "messages_in": sent,
        }
        table[name] = {key: compared(value, theirs[key]) for key, value in pairs.items()}
    return table


def energies(rows: list[dict[str, Any]], answer: dict[str, Any]) -> dict[str, Any]:
    """Ours and SANA-FE's energy in nJ, part by part, and SANA-FE's relative to ours."""
    mine = {row["name"]: row["value"] for row in rows}
    updates = mine["neuron_updates_active"] + mine["neuron_updates_idle"]
    parts = {"synapse": mine["synaptic_operations"], "soma": updates, "network": mine["spikes"]}
    table: dict[str, Any] = {}
    for part, ours in [*parts.items(), ("total", mine["total"])]:
        asked = list(parts) if part == "total" else [part]
        held = [p["energy_j"][name] for p in answer["populations"].values() for name in asked]
        theirs = sum(held) * 1e9
        table[part] = {"ours_nj": ours, "sanafe_nj": theirs, "ratio": theirs / ours}
    return table


def cross_check(seed: int, steps: int, rate: float) -> dict[str, Any]:
    """Everything but the environment of the result file."""
    graph, image = small_network(seed, steps, rate), random_images(seed + 1, 16)[:1]
    counting = CountingEngine(FloatEngine(graph), graph)
    trains = {name: train[:, 0] for name, train in counting.run(image).spikes.items()}
    profile = load_profile("loihi1")  # no graded messages: the first layer's current is a bias
    events = events_of(graph, counting.activity, input_on_host(profile))
    rows = modeled(graph, counting.activity, profile)
    arrays = network_arrays(graph, image[0], trains)
    own, davies = ask(arrays, {}), ask(arrays, davies_constants())
    spikes = {
        name: int((np.array(own["spikes"][name]) != train.reshape(steps, -1)).sum())
        for name, train in trains.items()
    }
    return {
        "sanafe": own["sanafe"],
        "seed": seed,
        "T": steps,
        "neurons": {p.name: p.neurons for p in events.populations},
        "rates": {name: float(train.mean()) for name, train in trains.items()},
        "spike_mismatches": spikes,
        "counts": counts(events, own),
        "energy_constants_of_davies_2018_in_both": energies(rows, davies),
        "energy_constants_of_sanafe_in_sanafe": energies(rows, own),
        "sanafe_time_of_populations_us": {
            name: value["sim_time_s"] * 1e6 for name, value in own["populations"].items()
        },
        "ours": [{key: row[key] for key in ("name", "value", "unit", "kind")} for row in rows],
    }


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The runs, and the worst of them."""
    rows = [row for run in runs for part in run["counts"].values() for row in part.values()]
    return {
        "what": "events of one image, ours against SANA-FE's simulated Loihi; energies modeled",
        "network": "1x8x8 -> conv 8 s2 -> LIF -> conv 16 s2 -> LIF -> dense 10",
        "largest_count_difference": max(abs(row["difference"]) for row in rows),
        "spike_mismatches": sum(sum(run["spike_mismatches"].values()) for run in runs),
        "runs": runs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rates", type=float, nargs="+", default=[0.3, 0.1, 0.03])
    parser.add_argument("--steps", type=int, default=6)
    arguments = parser.parse_args()
    runs = [cross_check(i, arguments.steps, rate) for i, rate in enumerate(arguments.rates)]
    save("energy_sanafe", {**summary(runs), "environment": environment(1)})


if __name__ == "__main__":
    main()
