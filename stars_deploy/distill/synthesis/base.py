"""What the training loop knows of a synthesis method."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

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
