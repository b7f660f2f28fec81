"""What all network families share: wiring, ReLU or LIF activations, feature taps, the read-out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from stars_deploy.config.recipe import Neuron
from stars_deploy.networks.layers import ConvBlock
from stars_deploy.networks.neuron import SpikingLayer

IMAGE = -1  # the source of a wire that takes the network's input


@dataclass(frozen=True)
class Spiking:
    """What makes a network the spiking twin of an ANN: its neuron and the number of time steps."""

    neuron: Neuron
    T: int


@dataclass(frozen=True)
class Wire:
    """One summand of a pre-activation: a layer on the sum of some activations' outputs.

    layer None passes that sum on unchanged (an identity shortcut).
    """

    layer: nn.Module | None
    sources: tuple[int, ...]  # indices of activations, or IMAGE alone


def layers_of(wire: Wire) -> list[nn.Module]:
    """Return the layers of a wire in order; none for an identity shortcut."""
    if wire.layer is None:
        return []
    return list(wire.layer) if isinstance(wire.layer, nn.Sequential) else [wire.layer]


def conv_block(wire: Wire) -> ConvBlock | None:
    """Return the convolution with BatchNorm of a wire, None for a shortcut without weights."""
    return next((layer for layer in layers_of(wire) if isinstance(layer, ConvBlock)), None)


@dataclass(frozen=True)
class Junction:
    """The pre-activation of one ReLU or LIF: the sum of its wires.

    Attributes:
        carry: an earlier junction whose pre-activation is added too (a membrane shortcut).
        activation: makes the ANN's activation, of which the twin makes neurons; None: there is
            none, the sum itself is what later wires read.
    """

    wires: tuple[Wire, ...]
    carry: int | None = None
    activation: Callable[[], nn.Module] | None = nn.ReLU


@dataclass(frozen=True)
class Taps:
    """One forward pass with its inner tensors; axes [B, C, H, W], or [T, B, C, H, W] if spiking.

    Attributes:
        logits: [B, K]; of a spiking network the mean of `step_logits`.
        step_logits: [T, B, K] read-out of every time step; T = 1 for an ANN.
        pre_activations: input of every ReLU or LIF, in the order of the junctions.
        activations: its output (spikes 0 or 1); of a junction without activation its input.
    """

    logits: Tensor
    step_logits: Tensor
    pre_activations: list[Tensor]
    activations: list[Tensor]


class Network(nn.Module):
    """Base of the families: an ANN, or, given `spiking`, the same layers with every ReLU a LIF.

    A family registers its layers under names of its own, then calls `wire`; everything that walks
    a network (forward, warm start, NIR) walks `junctions`, never a family's own attributes.

    Direct coding: the image is the input at every step. What lies before the first LIF (the stem)
    has no state, so it is computed once; behind it, time and batch are one axis [T*B, C, H, W].
    Membrane potentials start anew at every forward pass.

    Attributes:
        junctions: how activations and layers hang together, in an order that can be computed.
        readout: the activations whose summed output is pooled and given to `fc`.
        neurons: indices of the junctions that have an activation.
        stage_ends: indices of the junctions at the ends of stages.
        last_use: per junction, the outputs that nothing behind it needs.
        carried: the junctions whose pre-activation a later one adds.
    """

    junctions: Sequence[Junction]
    readout: tuple[int, ...]
    stage_ends: tuple[int, ...]
    fc: nn.Linear

    def __init__(self, spiking: Spiking | None) -> None:
        super().__init__()
        self.spiking = spiking

    def wire(
        self, junctions: Sequence[Junction], readout: Sequence[int], stage_ends: Sequence[int]
    ) -> None:
        """Set the wiring and make one activation per junction."""
        self.junctions = tuple(junctions)
        self.readout, self.stage_ends = tuple(readout), tuple(stage_ends)
        self.activations = nn.ModuleList(self._activation(junction) for junction in self.junctions)
        self.neurons = tuple(i for i, j in enumerate(self.junctions) if j.activation is not None)
        self.last_use = _last_uses(self.junctions, self.readout)
        self.carried = {j.carry for j in self.junctions if j.carry is not None}

    def _activation(self, junction: Junction) -> nn.Module:
        if junction.activation is None:
            return nn.Identity()
        if self.spiking is None:
            return junction.activation()
        return SpikingLayer(self.spiking.neuron, self.spiking.T)

    def head(self, features: Tensor) -> Tensor:
        """Return what `fc` reads [N, F] of the read-out's features [N, C, H, W]: their mean."""
        return features.mean((2, 3)) if features.dim() == 4 else features

    @property
    def T(self) -> int:
        """Time steps of the read-out; 1 for an ANN."""
        return self.spiking.T if self.spiking else 1

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [B, K] of normalised images [B, C, H, W]."""
        return self._by_step(self._run(x, None)).mean(dim=0)

    def taps(self, x: Tensor) -> Taps:
        """Return the logits of normalised images [B, C, H, W] with every activation's tensors."""
        record: list[tuple[Tensor, Tensor]] = []
        steps = self._by_step(self._run(x, record))
        before, after = [pair[0] for pair in record], [pair[1] for pair in record]
        return Taps(steps.mean(0), steps, before, after)

    def _run(self, image: Tensor, record: list[tuple[Tensor, Tensor]] | None) -> Tensor:
        """Return the read-out [T*B, K], filling `record`."""
        currents: dict[int, Tensor] = {}
        outputs: dict[int, Tensor] = {IMAGE: image}
        for index, junction in enumerate(self.junctions):
            current = self._current(junction, currents, outputs, len(image))
            outputs[index] = self._activate(index, current, len(image), record)
            if index in self.carried:
                currents[index] = current
            for spent in self.last_use.get(index, ()):
                del outputs[spent]
        features = self._aligned([outputs[i] for i in self.readout], len(image))
        if len(features) != self.T * len(image):
            features = features.repeat(self.T, 1, 1, 1)
        return self.fc(self.head(features))  # type: ignore[no-any-return]

    def _current(
        self,
        junction: Junction,
        currents: Mapping[int, Tensor],
        outputs: Mapping[int, Tensor],
        batch: int,
    ) -> Tensor:
        parts = [] if junction.carry is None else [currents[junction.carry]]
        for wire in junction.wires:
            x = self._aligned([outputs[source] for source in wire.sources], batch)
            parts.append(x if wire.layer is None else wire.layer(x))
        return self._aligned(parts, batch)

    def _aligned(self, parts: Sequence[Tensor], batch: int) -> Tensor:
        """Return the sum; the stem has no time axis until it meets something that has."""
        if any(len(part) != batch for part in parts):
            parts = [p if len(p) != batch else p.repeat(self.T, 1, 1, 1) for p in parts]
        return _total(parts)

    def _activate(
        self, index: int, x: Tensor, batch: int, record: list[tuple[Tensor, Tensor]] | None
    ) -> Tensor:
        activation = self.activations[index]
        if self.spiking is None:
            before, after = x, activation(x)
            merged: Tensor = after
        else:
            # A current without a time axis is the same at every step.
            before = x.unsqueeze(0) if len(x) == batch else self._by_step(x)
            after = activation(before)
            merged = after.flatten(0, 1)
            before = before.expand(self.T, *before.shape[1:])
        if record is not None:
            record.append((before, after.expand_as(before)))
        return merged

    def _by_step(self, x: Tensor) -> Tensor:
        return x.reshape(self.T, x.shape[0] // self.T, *x.shape[1:])


def _total(parts: Sequence[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _last_uses(junctions: Sequence[Junction], readout: Sequence[int]) -> dict[int, list[int]]:
    """Return, per junction, the outputs that nothing behind it needs."""
    last = {IMAGE: 0} | {index: index for index in range(len(junctions))}
    for index, junction in enumerate(junctions):
        for wire in junction.wires:
            last |= dict.fromkeys(wire.sources, index)
    uses: dict[int, list[int]] = {}
    for source, index in last.items():
        if source not in readout:
            uses.setdefault(index, []).append(source)
    return uses
