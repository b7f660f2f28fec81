"""What a comparison counts, per layer and in all, and how batches add up."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from stars_deploy.simulation.recording import EngineInfo
from stars_deploy.validation.divergence import Divergence, earlier

SILENT, SATURATED = 0.005, 0.95  # firing rates beyond which equality proves little
State = Literal["active", "silent", "saturated"]


@dataclass(frozen=True)
class LayerParity:
    """Spikes of one layer, summed over images, steps and neurons.

    Attributes:
        neuron_steps: images * T * neurons, how many comparisons were made.
        isolated_mismatches: differences on equal inputs, near ties excluded; None if not run.
        near_ties: differences on equal inputs that a neuron within 1e-5 of V_th began.
        unexplained: images whose first difference is in this layer and is no near tie.
        first: the first step at which the layer differs on own inputs; None if it never does.
        isolated_reference, isolated_target: spikes on equal inputs; None if not run.
    """

    name: str
    neurons: int
    neuron_steps: int
    spikes_reference: int
    spikes_target: int
    mismatches: int
    isolated_mismatches: int | None
    near_ties: int
    unexplained: int
    first: Divergence | None = None
    isolated_reference: int | None = None
    isolated_target: int | None = None

    @property
    def rate(self) -> float:
        """Spikes of the reference per neuron and step."""
        return self.spikes_reference / self.neuron_steps

    @property
    def state(self) -> State:
        """Whether the layer fires enough, and not too much, for equality to mean something."""
        return state_of(self.rate)

    @property
    def relative_difference(self) -> float:
        """|target - reference| / max(reference, 1), in spikes."""
        return relative(self.spikes_reference, self.spikes_target)

    @property
    def isolated_relative_difference(self) -> float | None:
        """The same on equal inputs: what this layer alone adds; None if not run."""
        if self.isolated_reference is None or self.isolated_target is None:
            return None
        return relative(self.isolated_reference, self.isolated_target)


@dataclass(frozen=True)
class Parity:
    """Two engines on the same images.

    Attributes:
        images, labelled: how many images, and how many of them have a label.
        agreeing, correct_reference, correct_target: numbers of predictions.
        readout_difference: max |logit difference| on own inputs.
        isolated_readout: the same where the read-out got equal spikes; None if not run.
        logit_scale: max |logit| of the reference.
        first: which layer is wrong first, and where; None if no spike differs.
    """

    reference: EngineInfo
    target: EngineInfo
    layers: tuple[LayerParity, ...]
    images: int
    labelled: int
    agreeing: int
    correct_reference: int
    correct_target: int
    readout_difference: float
    isolated_readout: float | None
    logit_scale: float
    first: Divergence | None = None


def state_of(rate: float) -> State:
    """Return what a firing rate says about the evidence a layer gives."""
    if rate < SILENT:
        return "silent"
    return "saturated" if rate > SATURATED else "active"


def relative(reference: int, target: int) -> float:
    """Return |target - reference| / max(reference, 1)."""
    return abs(target - reference) / max(reference, 1)


def added(a: Parity, b: Parity) -> Parity:
    """Return the counts of two batches of images together."""
    isolated = [x for x in (a.isolated_readout, b.isolated_readout) if x is not None]
    counts = ("images", "labelled", "agreeing", "correct_reference", "correct_target")
    return replace(
        a,
        layers=tuple(_added_layer(x, y) for x, y in zip(a.layers, b.layers, strict=True)),
        readout_difference=max(a.readout_difference, b.readout_difference),
        isolated_readout=max(isolated) if isolated else None,
        logit_scale=max(a.logit_scale, b.logit_scale),
        first=earlier(a.first, b.first, [layer.name for layer in a.layers]),
        **{name: getattr(a, name) + getattr(b, name) for name in counts},
    )


def _added_layer(a: LayerParity, b: LayerParity) -> LayerParity:
    counts = (
        "neuron_steps", "spikes_reference", "spikes_target", "mismatches", "near_ties",
        "unexplained", "isolated_mismatches", "isolated_reference", "isolated_target",
    )  # fmt: skip
    sums = {name: _sum(getattr(a, name), getattr(b, name)) for name in counts}
    return replace(a, first=earlier(a.first, b.first, [a.name]), **sums)  # type: ignore[arg-type]


def _sum(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else a + b
