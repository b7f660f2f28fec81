"""Where two engines part: the first layer, image, step and neuron that answer differently.

All indices count from 0 and are those of the spike arrays [T, N, C, H, W] in golden.npz.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from stars_deploy.simulation.recording import Recording

Mask = NDArray[np.bool_]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Divergence:
    """One neuron at one step that fired in one engine and not in the other.

    Attributes:
        image, step, neuron: indices; `neuron` is (C, H, W) or (N,).
        reference, target: the spikes, 0 or 1.
        margin: H - V_th on equal inputs, of the engine that layers are isolated with, in units of
            the membrane potential; None where nothing was isolated.
        near_tie: whether summation in another order explains it.
    """

    node: str
    image: int
    step: int
    neuron: tuple[int, ...]
    reference: int
    target: int
    margin: float | None = None
    near_tie: bool = False

    def __str__(self) -> str:
        place = f"image {self.image}, step {self.step}, neuron {self.neuron}"
        text = f"{place}: {self.target} instead of {self.reference}"
        if self.margin is not None:
            text += f", H - V_th = {self.margin:.3g}"
        return f"{text} (near tie)" if self.near_tie else text


def first_mismatch(node: str, expected: Recording, found: Recording, start: int) -> Divergence:
    """Return the earliest step of a layer that differs, there the first image and neuron.

    `start` is the number of images before these. The layer must differ.
    """
    return _at(node, expected.spikes[node] != found.spikes[node], expected, found, start)


def first_divergence(
    nodes: Sequence[str],
    own: Sequence[Counts],
    expected: Recording,
    found: Recording,
    near_ties: Callable[[str], Mask | None],
    start: int,
) -> Divergence | None:
    """Return the place that answers "which layer is wrong first?", None if nothing differs.

    In a feed-forward network nothing before an image's first differing layer differs, at any
    step, so that layer itself is wrong (or near a tie). Of all images, the one whose layer comes
    first in the network is taken; a near tie only where nothing but near ties is left.

    Args:
        own: per layer the accumulated mismatches of each image.
        near_ties: per layer the spikes [T, N, ...] that near ties excuse, None if none can.
    """
    counts = np.stack(own) > 0
    origin = np.where(counts.any(axis=0), counts.argmax(axis=0), -1)
    tie = None
    for layer in np.unique(origin[origin >= 0]):
        node = nodes[layer]
        differs = expected.spikes[node] != found.spikes[node]
        differs[:, origin != layer] = False
        excused = near_ties(node)
        hard = differs if excused is None else differs & ~excused
        if hard.any():
            return _at(node, hard, expected, found, start)
        tie = tie or replace(_at(node, differs, expected, found, start), near_tie=True)
    return tie


def earlier(a: Divergence | None, b: Divergence | None, order: Sequence[str]) -> Divergence | None:
    """Return which of two batches' divergences comes first; `order` are the layers."""
    if a is None or b is None:
        return a or b

    def rank(item: Divergence) -> tuple[bool, int, int, int, tuple[int, ...]]:
        return item.near_tie, order.index(item.node), item.step, item.image, item.neuron

    return min(a, b, key=rank)


def _at(node: str, differs: Mask, expected: Recording, found: Recording, start: int) -> Divergence:
    """Return the first place of a mask [T, N, ...] in the order step, image, neuron."""
    place = tuple(int(i) for i in np.unravel_index(int(differs.argmax()), differs.shape))
    step, image, *neuron = place
    before, after = int(expected.spikes[node][place]), int(found.spikes[node][place])
    return Divergence(node, start + image, step, tuple(neuron), before, after)
