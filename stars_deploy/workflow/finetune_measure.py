"""What fine-tuning did: agreement with the teacher, and accuracy if there are labelled images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stars_deploy.config.recipe import Data
from stars_deploy.data import Images, Labels, data_label, load_data
from stars_deploy.distillation.integer_twin import IntegerTwin, messages_of
from stars_deploy.networks.base import Network
from stars_deploy.networks.images import to_input
from stars_deploy.simulation.integer.engine import build_engine
from stars_deploy.targets.loihi import LoweredNetwork

BATCH = 250
SYNTHETIC = 500  # synthetic images that agreement is measured on, spread over the pool
COMPARED = 32  # of those, images whose every spike is compared

Classes = NDArray[np.int64]


@dataclass
class Measurements:
    """Classes that networks give to synthetic images, and to labelled ones if there are any."""

    data: Data
    device: torch.device
    synthetic: Images
    taught: Classes  # what the teacher says about the synthetic images
    labelled: tuple[Images, Labels] | None
    agreement: dict[str, float] = field(default_factory=dict)
    accuracy: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, pool: Tensor, teacher: Network, data: Data, spec: str | None) -> Measurements:
        """Ask the teacher, and open the labelled images `spec` if it is not None."""
        device = next(teacher.parameters()).device
        images = pool[spread(len(pool), SYNTHETIC)].numpy()

        def answer(part: Images) -> Tensor:
            logits: Tensor = teacher(to_input(part, data, device))
            return logits

        labelled = load_data(spec, data) if spec is not None else None
        found = cls(data, device, images, _classes(answer, images), labelled)
        if labelled is not None:
            found._labelled("teacher", lambda part: _classes(answer, part))
        return found

    def add_float(self, name: str, network: IntegerTwin, rounded: bool) -> None:
        """Measure a network on images that are not rounded to messages."""

        def answer(part: Images) -> Tensor:
            messages = to_input(part, self.data, self.device) * network.k
            logits: Tensor = network(messages, rounded).logits
            return logits

        self._add(name, lambda part: _classes(answer, part))

    def add_integers(self, name: str, lowered: LoweredNetwork) -> None:
        """Measure a lowered network with the integer engine."""
        engine = build_engine(lowered.document, lowered.arrays)
        self._add(name, lambda part: engine.statistics(part).logits.argmax(1))

    def compared(self, network: IntegerTwin, lowered: LoweredNetwork) -> dict[str, int]:
        """Count the spikes in which the trained network and the integer engine differ."""
        images = self.synthetic[:COMPARED]
        recording = build_engine(lowered.document, lowered.arrays).run(images)
        messages = messages_of(torch.from_numpy(images), lowered.arrays["input_table"])
        with torch.no_grad():
            own = network(messages.to(self.device)).spikes
        pairs = [(own[node].cpu().numpy(), spikes) for node, spikes in recording.spikes.items()]
        return {
            "images": len(images),
            "spikes": sum(int(spikes.sum(dtype=np.int64)) for _, spikes in pairs),
            "mismatches": sum(int(np.count_nonzero(a != b)) for a, b in pairs),
        }

    def _add(self, name: str, classify: Callable[[Images], Classes]) -> None:
        self.agreement[name] = float((classify(self.synthetic) == self.taught).mean())
        self._labelled(name, classify)

    def _labelled(self, name: str, classify: Callable[[Images], Classes]) -> None:
        if self.labelled is not None:
            images, labels = self.labelled
            self.accuracy[name] = float((classify(images) == labels).mean())

    def to_json(self, spec: str | None) -> dict[str, Any]:
        """Return both, with what they were measured on."""
        result: dict[str, Any] = {
            "agreement": {"images": "synthetic", "n": len(self.synthetic), **self.agreement},
            "accuracy": None,
        }
        if spec is not None and self.labelled is not None:
            label = data_label(spec, self.data)
            result["accuracy"] = {"data": label, "n": len(self.labelled[1]), **self.accuracy}
        return result


def spread(available: int, wanted: int) -> Tensor:
    """Return up to `wanted` indices, evenly over `available` images."""
    return torch.linspace(0, available - 1, min(available, wanted)).long()


@torch.no_grad()
def _classes(answer: Callable[[Images], Tensor], images: Images) -> Classes:
    parts = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
    return np.concatenate([answer(part).argmax(1).cpu().numpy() for part in parts])
