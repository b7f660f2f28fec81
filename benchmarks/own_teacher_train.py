"""Train the hand-written ResNet-20 of docs/examples outside of stars-deploy, saved as people do.

    python benchmarks/own_teacher_train.py --data CIFAR10 --epochs 6 --out resnet20.th

The weights are a DataParallel state dict under the key `state_dict`, pickled by torch.save.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from stars_deploy.config.recipe import load_recipe
from stars_deploy.data import load_data
from stars_deploy.networks.images import augment, to_input

ROOT = Path(__file__).parent.parent
BATCH = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="cifar10", help="as for stars-deploy teacher train")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    sys.path.insert(0, str(ROOT / "docs" / "examples"))
    from cifar_resnet20 import resnet20

    data = load_recipe(ROOT / "models" / "bases" / "cifar10.toml").data
    network = nn.DataParallel(resnet20()).to(memory_format=torch.channels_last)
    train(network, data, load_data(options.data, data, "train"), options.epochs)
    images, labels = load_data(options.data, data, "test")
    network.eval()
    with torch.no_grad():
        parts = [network(to_input(part, data, torch.device("cpu"))) for part in batches(images)]
    accuracy = float((torch.cat(parts).argmax(1).numpy() == labels).mean())
    print(f"accuracy on {len(labels)} test images: {accuracy:.4f}", flush=True)
    state = {"state_dict": network.state_dict(), "accuracy": accuracy, "epochs": options.epochs}
    torch.save(state, options.out)


def batches(images: np.ndarray) -> list[np.ndarray]:
    return [images[start : start + 500] for start in range(0, len(images), 500)]


def train(network: nn.Module, data, labelled, epochs: int) -> None:
    images, labels = labelled
    rng = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True)
    steps = -(-len(labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.1, epochs * steps, cycle_momentum=False
    )
    for epoch in range(epochs):
        begun, total = time.monotonic(), 0.0
        for chosen in torch.randperm(len(labels), generator=rng).split(BATCH):
            pixels = augment(torch.from_numpy(images[chosen.numpy()]), 4, True, rng)
            x = to_input(pixels, data, torch.device("cpu"))
            x = x.contiguous(memory_format=torch.channels_last)
            loss = F.cross_entropy(network(x), torch.from_numpy(labels[chosen.numpy()]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        seconds = time.monotonic() - begun
        print(f"epoch {epoch}: loss {total / steps:.3f}, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
