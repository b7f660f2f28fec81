"""Write snntorch.nir and snntorch.npz: a small net of snnTorch 1.0.0, and its own spikes.

    python make_snntorch.py    # snntorch 1.0.0, nir 1.0.8, nirtorch 2.6, torch 2.15.0

The graph is what `snntorch.export_nir.export_to_nir` returns. Leaky resets to zero without delay
(reset_mechanism "zero", reset_delay False), the only reset that NIR has: the exporter does not
write which one was used. It wants full-shape beta and threshold after a convolution. The order
of the edges in the file depends on PYTHONHASHSEED.
"""

from pathlib import Path

import nir
import numpy as np
import snntorch as snn
import torch
from recording import random_images, scale_weights, write_recording
from snntorch.export_nir import export_to_nir

HERE = Path(__file__).parent
STEPS = 6


def leaky(beta, shape):
    return snn.Leaky(
        beta=torch.full(shape, beta),
        threshold=torch.ones(shape),
        reset_mechanism="zero",
        reset_delay=False,
        init_hidden=True,
    )


def network():
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3, padding=1),
        leaky(0.5, (4, 16, 16)),
        torch.nn.AvgPool2d(2),
        torch.nn.Conv2d(4, 8, 3, bias=False),
        leaky(0.75, (8, 6, 6)),
        torch.nn.Flatten(),
        torch.nn.Linear(288, 10),
    )


def run(net, images):
    """Return logits [N, 10] and the output of each spiking layer, [T, N, ...]."""
    layers = [name for name, module in net.named_children() if isinstance(module, snn.Leaky)]
    spikes, logits = {name: [] for name in layers}, []
    for name in layers:
        net.get_submodule(name).reset_mem()
    for _ in range(STEPS):
        x = images
        for name, module in net.named_children():
            x = module(x)
            if name in spikes:
                spikes[name].append(x)
        logits.append(x)
    return torch.stack(logits).mean(0), {name: torch.stack(s) for name, s in spikes.items()}


if __name__ == "__main__":
    torch.manual_seed(1)
    pixels = random_images()
    with torch.no_grad():
        net, images = network(), torch.from_numpy(pixels.astype(np.float32) / 255)
        scale_weights(net, lambda: run(net, images)[1])
        logits, spikes = run(net, images)
    graph = export_to_nir(net, torch.zeros(1, 1, 16, 16), ignore_dims=[0])
    nir.write(HERE / "snntorch.nir", graph)
    write_recording(HERE / "snntorch.npz", pixels, logits, spikes, ["snntorch", "nirtorch"])
