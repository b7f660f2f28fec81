"""What a population asks of its integers, and the ranges that they must stay inside."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stars_deploy.config.profile import Arithmetic
from stars_deploy.targets.loihi.stages import Incoming

Reals = NDArray[np.float64]
PARALLEL = 8  # synapses in parallel of an operator with one input per output


@dataclass(frozen=True)
class Ranges:
    """What the integers of a population must stay inside; magnitudes in activation units."""

    weight_low: int
    weight_high: int
    bias: int  # |mantissa|, with an exponent that makes it an activation
    threshold: int
    activation: float  # |a| below this
    state: float  # |v| below this

    @classmethod
    def of(cls, arithmetic: Arithmetic) -> Ranges:
        """Read the ranges of a profile."""
        half = 1 << (arithmetic.weight_bits.value - 1)
        shift = arithmetic.state_shift_bits.value
        return cls(
            weight_low=-half,
            weight_high=half - 1,
            bias=(1 << arithmetic.bias_magnitude_bits.value) - 1,
            threshold=(1 << arithmetic.threshold_bits.value) - 1,
            activation=float(1 << arithmetic.accumulator_magnitude_bits.value),
            state=float(1 << (arithmetic.state_magnitude_bits.value - shift)),
        )


@dataclass(frozen=True)
class Source:
    """Messages of one incoming operator: unit of a message, and its range per channel."""

    unit: float  # real value of a message of 1
    low: Reals
    high: Reals
    host: bool = False  # its messages stay on the host, which adds what they give to the bias


@dataclass(frozen=True)
class Target:
    """A population to be quantised: real weights times the neuron's gain, and its dynamics."""

    incoming: tuple[Incoming, ...]
    sources: tuple[Source, ...]
    weights: tuple[Reals, ...]  # gain * weight * unit of the message
    bias: Reals
    threshold: float | None  # None: read-out
    dv: int
    steps: int
    shape: tuple[int, ...] = ()  # of the population; needed for matrices into maps

    @property
    def parallel(self) -> tuple[int, ...]:
        """Return how many synapses each operator may take in parallel: more for skips only."""
        skips = len(self.weights) > 1
        return tuple(PARALLEL if skips and _single(weight) else 1 for weight in self.weights)

    @property
    def hosted(self) -> bool:
        """Whether the host adds what the image gives to the bias."""
        return any(source.host for source in self.sources)


def _single(weight: Reals) -> bool:
    """Whether every output hears one input only, as in an identity or a scaled skip."""
    if weight.ndim == 2:
        return bool((np.count_nonzero(weight, axis=1) <= 1).all())
    return weight.shape[2:] == (1, 1) and bool((np.count_nonzero(weight, axis=1) <= 1).all())
