"""Write spikingjelly.nir and spikingjelly.npz: a small net of SpikingJelly 2.0.0, and its spikes.

    python make_spikingjelly.py    # spikingjelly 2.0.0, nir 1.0.8, nirtorch 2.6, torch 2.15.0

The file is what `export_to_nir(net, example, path)` writes with its default dt = 1e-4 s. The net
holds the three neurons it knows how to write: LIF with decayed input (r = 1), IF (r = 1 / dt) and
LIF without (r = tau / dt), which is the read-out.
"""

from pathlib import Path

import numpy as np
import torch
from recording import random_images, scale_weights, write_recording
from spikingjelly.activation_based import functional, layer, neuron
from spikingjelly.activation_based.nir_exchange import export_to_nir

HERE = Path(__file__).parent
STEPS = 6


def network():
    return torch.nn.Sequential(
        layer.Conv2d(1, 4, 3, padding=1),
        neuron.LIFNode(tau=2.0),
        layer.AvgPool2d(2, 2),
        layer.Conv2d(4, 8, 3, bias=False),
        neuron.IFNode(),
        layer.Flatten(),
        layer.Linear(288, 10),
        neuron.LIFNode(tau=1.5, decay_input=False),
    )


def run(net, images):
    """Return logits [N, 10] and the output of each spiking layer, [T, N, ...]."""
    modules = net.named_children()
    layers = [name for name, module in modules if isinstance(module, neuron.BaseNode)]
    spikes, logits = {name: [] for name in layers}, []
    functional.reset_net(net)
    for _ in range(STEPS):
        x = images
        for name, module in net.named_children():
            x = module(x)
            if name in spikes:
                spikes[name].append(x)
        logits.append(x)
    functional.reset_net(net)
    return torch.stack(logits).mean(0), {name: torch.stack(s) for name, s in spikes.items()}


if __name__ == "__main__":
    torch.manual_seed(2)
    pixels = random_images()
    with torch.no_grad():
        net, images = network(), torch.from_numpy(pixels.astype(np.float32) / 255)
        scale_weights(net, lambda: run(net, images)[1])
        logits, spikes = run(net, images)
    export_to_nir(net, torch.zeros(1, 1, 16, 16), HERE / "spikingjelly.nir")
    spikes = {f"_{name}": train for name, train in spikes.items()}  # as the exporter names nodes
    write_recording(HERE / "spikingjelly.npz", pixels, logits, spikes, ["spikingjelly", "nirtorch"])
