"""The SANA-FE side of energy_sanafe.py; runs in its own environment, imports nothing of ours.

energy_sanafe_worker.py NETWORK.npz ANSWER.json [CONSTANTS.json]

Every population is run alone: its sources are SANA-FE's input neurons that replay given spikes, a
first layer gets its current as bias. Then the whole network runs once, and its spikes are kept.
CONSTANTS replaces energies of the bundled loihi.yaml.
"""

import json
import re
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import sanafe

SCALE = 2.0**20  # SANA-FE truncates potentials to 1/64
NEVER = 1e15  # threshold of neurons that only sum


def architecture(constants):
    text = (Path(sanafe.__file__).parent / "examples" / "loihi.yaml").read_text()
    for key, value in constants.items():
        # The first soma is the LIF neuron; input neurons, which follow, stay free of charge.
        count = 1 if "neuron" in key or "spike_out" in key else 0
        text, found = re.subn(rf"({key}): \S+", rf"\1: {value:e}", text, count=count)
        assert found, f"loihi.yaml has no {key}"
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as stream:
        stream.write(text)
        stream.flush()
        return sanafe.load_arch(stream.name)


def neurons(net, core, name, size, spiking, synapse, current=None):
    group = net.create_neuron_group(
        name, size, soma_hw_name="loihi_lif", default_synapse_hw_name=synapse, log_spikes=True,
        model_attributes={
            "threshold": SCALE if spiking else NEVER, "reset": 0.0, "reset_mode": "hard",
            "leak_decay": 0.5, "input_decay": 0.0,
        },
    )  # fmt: skip
    for index in range(size):
        if current is not None:
            group[index].set_attributes(model_attributes={"bias": float(current[index]) * SCALE})
        group[index].map_to_core(core)
    return group


def replayed(net, core, train):
    """Input neurons that spike as train [T, neurons] says."""
    group = net.create_neuron_group("source", train.shape[1])
    for index in range(train.shape[1]):
        group[index].set_attributes(
            soma_hw_name=f"loihi_inputs[{index}]",
            model_attributes={"spikes": [int(x) for x in train[:, index]]},
        )
        group[index].map_to_core(core)
    return group


def connect(source, target, synapses):
    """synapses: [source, target, weight] rows."""
    pairs = [(int(a), int(b)) for a, b in synapses[:, :2]]
    weights = [float(weight) for weight in synapses[:, 2] * SCALE]
    source.connect_neurons_sparse(target, {"weight": weights}, pairs)


def simulate(net, arch, steps):
    chip = sanafe.SpikingChip(arch)
    chip.load(net)
    return chip.sim(steps, timing_model="simple", spike_trace=True, perf_trace=True)


def alone(data, name, arch):
    """Counts and energies of one population, its sources replayed."""
    net, cores, size = sanafe.Network(), arch.tiles[0].cores, int(data[f"{name}.size"])
    spiking = bool(data[f"{name}.spiking"])
    first = f"{name}.current" in data
    current = data[f"{name}.current"] if first else None
    target = neurons(net, cores[1], name, size, spiking, str(data[f"{name}.synapse"]), current)
    steps = len(data[f"{name}.train"] if first else data[f"{name}.source"])
    sent = 0
    if not first:
        train = data[f"{name}.source"]
        source = replayed(net, cores[0], train)
        connect(source, target, data[f"{name}.synapses"])
        steps, sent = steps + 1, int(train.sum())  # a spike is seen one step later
    result = simulate(net, arch, steps)
    fired = sum(neuron.group_name == name for step in result["spike_trace"] for neuron in step)
    energy = {part: result["energy"][part] for part in ("synapse", "dendrite", "network")}
    # The extra first step only looks the population's idle neurons up.
    energy["soma"] = sum(result["perf_trace"]["soma_energy"][0 if first else 1 :])
    return {
        "synaptic_operations": result["spikes"],
        "spikes": fired,
        # An input neuron is updated when it fires.
        "active_updates": result["neurons_updated"] - sent,
        "messages_in": result["packets_sent"],
        "sim_time_s": result["sim_time"],
        "energy_j": energy,
    }


def together(data, names, arch, steps):
    """Spikes per step and population of the whole network, [steps + depth] chip steps."""
    net, groups = sanafe.Network(), {}
    for index, name in enumerate(names):
        current = data.get(f"{name}.current")
        groups[name] = neurons(
            net, arch.tiles[0].cores[index], name, int(data[f"{name}.size"]),
            bool(data[f"{name}.spiking"]), str(data[f"{name}.synapse"]), current,
        )  # fmt: skip
        if index:
            connect(groups[names[index - 1]], groups[name], data[f"{name}.synapses"])
    result = simulate(net, arch, steps + len(names) - 1)
    fired = {name: np.zeros((steps + len(names), int(data[f"{name}.size"]))) for name in names}
    for step, spikes in enumerate(result["spike_trace"]):
        for neuron in spikes:
            fired[neuron.group_name][step, neuron.neuron_offset] = 1
    # The population behind index others is so many steps late.
    return {name: fired[name][index : index + steps].tolist() for index, name in enumerate(names)}


def main():
    network, answer = sys.argv[1:3]
    constants = json.loads(Path(sys.argv[3]).read_text()) if len(sys.argv) > 3 else {}
    data = dict(np.load(network))
    names = [str(name) for name in data["names"]]
    arch = architecture(constants)
    steps = int(data["steps"])
    result = {
        "sanafe": version("sanafe"), "numpy": version("numpy"),
        "populations": {name: alone(data, name, arch) for name in names},
        "spikes": together(data, names, arch, steps),
    }  # fmt: skip
    Path(answer).write_text(json.dumps(result))


main()
