"""What make_snntorch.py and make_spikingjelly.py share: images, lively weights, the npz."""

import json
from importlib.metadata import version

import numpy as np

RATE = 0.2


def random_images():
    """Four images uint8 [4, 1, 16, 16] of blocks and grain."""
    rng = np.random.default_rng(7)
    blocks = rng.random((4, 1, 4, 4)).repeat(4, axis=2).repeat(4, axis=3)
    return (255 * (0.8 * blocks + 0.2 * rng.random((4, 1, 16, 16)))).astype(np.uint8)


def scale_weights(net, spikes):
    """Scale the weights in front of each spiking layer until about RATE of its neurons fire."""
    weighted = [name for name, module in net.named_children() if hasattr(module, "weight")]
    for layer in spikes():
        before = [name for name in weighted if int(name) < int(layer)][-1]
        parameters = list(net.get_submodule(before).parameters())
        for _ in range(12):
            rate = float(spikes()[layer].mean())
            for parameter in parameters:
                parameter.data *= 1.25 if rate < RATE else 0.85
            if abs(rate - RATE) < 0.03:
                break


def write_recording(path, images, logits, spikes, packages):
    """Write images, logits [N, K], spikes.<layer> [T, N, ...] and the versions that made them."""
    rates = {name: round(float(train.mean()), 3) for name, train in spikes.items()}
    print(path.name, rates)
    versions = {name: version(name) for name in (*packages, "nir", "torch")}
    arrays = {f"spikes.{name}": train.numpy().astype(np.uint8) for name, train in spikes.items()}
    np.savez_compressed(
        path,
        images=images,
        logits=logits.numpy().astype(np.float32),
        versions=np.array(json.dumps(versions)),
        **arrays,
    )
