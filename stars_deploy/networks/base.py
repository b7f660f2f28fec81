"""What all network families share: ReLU or LIF activations, feature taps, the read-out."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from stars_deploy.config.recipe import Neuron
from stars_deploy.networks.neuron import Lif


@dataclass(frozen=True)
class Spiking:
    """What makes a network the spiking twin of an ANN: its neuron and the number of time steps."""

    neuron: Neuron
    T: int


@dataclass(frozen=True)
class Taps:
    """One forward pass with its inner tensors; axes [B, C, H, W], or [T, B, C, H, W] if spiking.

    Attributes:
        logits: [B, K]; of a spiking network the mean of `step_logits`.
        step_logits: [T, B, K] read-out of every time step; T = 1 for an ANN.
        pre_activations: input of every ReLU or LIF, in the order of the layers.
        activations: its output (spikes 0 or 1).
    """

    logits: Tensor
    step_logits: Tensor
    pre_activations: list[Tensor]
    activations: list[Tensor]


class Network(nn.Module):
    """Base of the families: an ANN, or, given `spiking`, the same layers with every ReLU a LIF.

    Direct coding: the image is the input at every step. What lies before the first LIF (the stem)
    has no state, so it is computed once; behind it, time and batch are one axis [T*B, C, H, W].
    Membrane potentials start anew at every forward pass.

    A family sets `stage_ends` and implements `trace`.
    """

    stage_ends: tuple[int, ...]  # indices into Taps.pre_activations

    def __init__(self, activations: int, spiking: Spiking | None) -> None:
        super().__init__()
        self.spiking = spiking
        self.activations = nn.ModuleList(
            Lif(spiking.neuron, spiking.T) if spiking else nn.ReLU() for _ in range(activations)
        )

    @property
    def T(self) -> int:
        """Time steps of the read-out; 1 for an ANN."""
        return self.spiking.T if self.spiking else 1

    def trace(self, x: Tensor, record: list[tuple[Tensor, Tensor]] | None) -> Tensor:
        """Return the read-out [T*B, K] of normalised images [B, C, H, W], filling `record`."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [B, K] of normalised images [B, C, H, W]."""
        return self._by_step(self.trace(x, None)).mean(dim=0)

    def taps(self, x: Tensor) -> Taps:
        """Return the logits of normalised images [B, C, H, W] with every activation's tensors."""
        record: list[tuple[Tensor, Tensor]] = []
        steps = self._by_step(self.trace(x, record))
        before, after = [pair[0] for pair in record], [pair[1] for pair in record]
        return Taps(steps.mean(0), steps, before, after)

    def activate(self, index: int, x: Tensor, record: list[tuple[Tensor, Tensor]] | None) -> Tensor:
        """Apply activation `index` to [B, ...] or [T*B, ...]; the first starts the time axis."""
        activation = self.activations[index]
        if self.spiking is None:
            before, after = x, activation(x)
        else:
            before = x.unsqueeze(0) if index == 0 else self._by_step(x)
            after = activation(before)
            before = before.expand_as(after)
        if record is not None:
            record.append((before, after))
        merged: Tensor = after if self.spiking is None else after.flatten(0, 1)
        return merged

    def _by_step(self, x: Tensor) -> Tensor:
        return x.reshape(self.T, x.shape[0] // self.T, *x.shape[1:])
