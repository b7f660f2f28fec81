"""`stars-deploy evaluate`: accuracy and spike counts of a trained student on real images."""

from __future__ import annotations

import torch

from stars_deploy.config.recipe import Data
from stars_deploy.data import Images, Labels
from stars_deploy.networks.base import Network
from stars_deploy.networks.images import to_input

BATCH = 250


@torch.no_grad()
def accuracy(
    network: Network, images: Images, labels: Labels, data: Data, device: torch.device
) -> float:
    """Return the top-1 accuracy (fraction) of an ANN or a student in eval mode."""
    was_training = network.training
    network.eval()
    correct = 0
    for start in range(0, len(labels), BATCH):
        logits = network(to_input(images[start : start + BATCH], data, device))
        predicted = logits.argmax(1).cpu().numpy()
        correct += int((predicted == labels[start : start + BATCH]).sum())
    network.train(was_training)
    return correct / len(labels)
