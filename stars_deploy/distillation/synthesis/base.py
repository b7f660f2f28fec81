"""What the training loop knows of a synthesis method."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class SynthesisStep:
    """The outcome of one optimisation step.

    Attributes:
        loss: value of the loss that was minimised.
        metrics: loss terms and gradient norms, empty where nothing is to be logged.
        images: images in [0, 1] for the pool `[B, C, H, W]`, or None.
        labels: the classes they were made for, `[B]`.
    """

    loss: float
    metrics: dict[str, float] = field(default_factory=dict)
    images: Tensor | None = None
    labels: Tensor | None = None


class Synthesizer(Protocol):
    """A method that makes images out of a teacher, one optimisation step at a time.

    Between two steps the whole state is in `state_dict()`, so that a run can stop and go on there.
    """

    def steps(self, epoch: int) -> int:
        """Return how many steps an epoch has."""
        ...

    def step(self, epoch: int, index: int) -> SynthesisStep:
        """Do step `index` of `epoch`."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors, numbers, strings, lists and dicts."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        ...


class Best:
    """The images of lowest loss among those offered since it was made."""

    def __init__(self) -> None:
        self.images: Tensor | None = None
        self.loss = math.inf
        self.offered = 0
        self.place = 0  # which offer is held

    def offer(self, images: Tensor, loss: float) -> bool:
        """Keep a copy of `images` if `loss` is the lowest so far; return whether it was kept."""
        kept = loss < self.loss
        if kept:
            self.images, self.loss, self.place = images.detach().clone(), loss, self.offered
        self.offered += 1
        return kept

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors and numbers."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Continue from `state_dict()`."""
        vars(self).update(state)
        self.images = None if self.images is None else self.images.to(device)
