"""What an engine says about a batch of images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Spikes = Mapping[str, NDArray[np.uint8]]


@dataclass(frozen=True)
class EngineInfo:
    """Which engine produced a number, and what kind of number it therefore is."""

    name: str
    version: str
    kind: Literal["measured", "simulated", "modeled"]


@dataclass(frozen=True)
class Recording:
    """The answer of one engine for N images over T steps.

    Attributes:
        engine: who computed it.
        logits: float32 `[N, K]`, mean over T of the read-out.
        spikes: per spiking node uint8 `[T, N, ...]`, axes after N in NIR order (C, H, W).
        margins: per spiking node float32 `[T, N, ...]`, H - V_th before the comparison, if asked.
        outputs: float64 `[T, N, K]`, the read-out at every step, from engines that tell it: the
            mean over the first t steps is what the network answers when it is run for t steps.
    """

    engine: EngineInfo
    logits: NDArray[np.float32]
    spikes: Spikes
    margins: Mapping[str, NDArray[np.float32]] | None = None
    outputs: NDArray[np.float64] | None = None


class Engine(Protocol):
    """Anything that runs a spiking network on images and records its spikes."""

    info: EngineInfo
    nodes: list[str]  # spiking nodes in topological order

    def run(
        self, images: NDArray[np.uint8], feed: Spikes | None = None, margins: bool = False
    ) -> Recording:
        """Run on uint8 images `[N, C, H, W]`.

        With `feed`, each node still computes and records its own spikes, but the next layers
        receive `feed[node]` instead, so that every layer is judged on given inputs.
        """
        ...
