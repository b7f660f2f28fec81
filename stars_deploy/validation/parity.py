"""Do two engines agree? Spikes counted layer by layer, batch by batch.

Two counts tell different things. `mismatches` is accumulated: every engine runs on its own
inputs, so one early difference shows in all later layers. `isolated_mismatches` gives each layer
the same inputs in both engines, so only the layer that is wrong shows. A neuron whose first
difference has |H - V_th| <= NEAR is a near tie: summation in another order decides it either way.
Where something differs, the first neuron and step are named (`divergence.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stars_deploy.errors import EngineError
from stars_deploy.simulation.recording import Engine, Recording
from stars_deploy.validation.comparable import common_nodes, part_of
from stars_deploy.validation.counts import LayerParity, Parity, added
from stars_deploy.validation.divergence import Divergence, first_divergence, first_mismatch

NEAR = 1e-5  # |H - V_th| in units of the membrane potential

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Isolation:
    """How layers are judged on equal inputs.

    `engine` is run again with the spikes of one side fed to every layer, and compared with that
    side. Its margins tell near ties, unless `near` is 0 (integer arithmetic has none).
    """

    engine: Engine
    feed: Literal["reference", "target"] = "target"
    near: float = NEAR


def compare(
    images: Images,
    labels: Labels,
    reference: Engine | Recording,
    target: Engine,
    isolation: Isolation | None = None,
    batch: int = 64,
    progress: Callable[[int], None] = lambda done: None,
) -> Parity:
    """Run `target` and `reference` on images [N, C, H, W], `batch` at a time, and count.

    Args:
        labels: int64 [N], -1 where unknown.
        reference: an engine, or what it recorded for exactly these images.
        progress: told the number of images compared so far.
    Raises: EngineError when an engine's answer is not one (a layer missing, a shape, NaN).
    """
    total: Parity | None = None
    for start in range(0, len(images), batch):
        window = slice(start, min(start + batch, len(images)))
        part = _compare_window(window, images[window], labels[window], reference, target, isolation)
        total = part if total is None else added(total, part)
        progress(window.stop)
    if total is None:
        raise EngineError("nothing to compare: no images")
    return total


def _compare_window(
    window: slice,
    images: Images,
    labels: Labels,
    reference: Engine | Recording,
    target: Engine,
    isolation: Isolation | None,
) -> Parity:
    expected = (
        part_of(reference, window) if isinstance(reference, Recording) else reference.run(images)
    )
    found = target.run(images)
    nodes = common_nodes(expected, found, target.nodes)
    pair = _Pair(expected, found, window.start)
    if isolation is not None:
        pair = _isolate(pair, images, nodes, isolation)
    isolated = [_isolated(node, pair) for node in nodes]
    own = [_per_image(expected.spikes[n] != found.spikes[n]) for n in nodes]
    ties = [near_ties for _, near_ties in isolated]
    unexplained = _unexplained(own, ties) if pair.fed else [0] * len(nodes)
    layers = tuple(
        _layer(node, pair, differs, apart, blame)
        for node, differs, apart, blame in zip(nodes, own, isolated, unexplained, strict=True)
    )
    return Parity(
        expected.engine, found.engine, layers,
        isolated_readout=_distance(pair.fed.logits, pair.against.logits) if pair.fed else None,
        readout_difference=_distance(expected.logits, found.logits),
        logit_scale=float(np.abs(expected.logits).max(initial=0)),
        first=_first(pair, nodes, own, images, isolation),
        **_predictions(expected.logits, found.logits, labels),
    )  # fmt: skip


@dataclass(frozen=True)
class _Pair:
    """Two answers to the same images, `start` images after the first.

    `fed` is what the isolating engine does on the spikes of `against`, one of the two.
    """

    expected: Recording
    found: Recording
    start: int
    fed: Recording | None = None
    near: float = 0.0
    against_found: bool = True

    @property
    def against(self) -> Recording:
        return self.found if self.against_found else self.expected


def _isolate(pair: _Pair, images: Images, nodes: list[str], isolation: Isolation) -> _Pair:
    pair = replace(pair, near=isolation.near, against_found=isolation.feed == "target")
    fed = isolation.engine.run(images, feed=pair.against.spikes, margins=isolation.near > 0)
    common_nodes(pair.against, fed, nodes)
    return replace(pair, fed=fed)


def _first(
    pair: _Pair,
    nodes: list[str],
    own: Sequence[Counts],
    images: Images,
    isolation: Isolation | None,
) -> Divergence | None:
    """Return the first divergence with its margin, which costs nothing where all spikes agree."""

    def near_ties(node: str) -> NDArray[np.bool_] | None:
        return None if pair.fed is None else _masks(node, pair.fed, pair)[1]

    first = first_divergence(nodes, own, pair.expected, pair.found, near_ties, pair.start)
    if first is None or pair.fed is None or isolation is None:
        return first
    index, margins = first.image - pair.start, pair.fed.margins
    if margins is None:
        one = slice(index, index + 1)
        feed = {node: train[:, one] for node, train in pair.against.spikes.items()}
        margins, index = isolation.engine.run(images[one], feed=feed, margins=True).margins, 0
    if margins is None or first.node not in margins:
        return first
    return replace(first, margin=float(margins[first.node][(first.step, index, *first.neuron)]))


def _layer(
    node: str,
    pair: _Pair,
    differs: Counts,
    isolated: tuple[Counts | None, Counts],
    unexplained: int,
) -> LayerParity:
    train = pair.expected.spikes[node]
    apart, ties = isolated
    mismatches = int(differs.sum())
    alone = None if pair.fed is None else int(np.count_nonzero(pair.fed.spikes[node]))
    given = None if pair.fed is None else int(np.count_nonzero(pair.against.spikes[node]))
    return LayerParity(
        name=node,
        neurons=int(np.prod(train.shape[2:], dtype=np.int64)),
        neuron_steps=train.size,
        spikes_reference=int(np.count_nonzero(train)),
        spikes_target=int(np.count_nonzero(pair.found.spikes[node])),
        mismatches=mismatches,
        isolated_mismatches=None if apart is None else int(apart.sum()),
        near_ties=int(ties.sum()),
        unexplained=unexplained,
        first=first_mismatch(node, pair.expected, pair.found, pair.start) if mismatches else None,
        isolated_reference=alone if pair.against_found else given,
        isolated_target=given if pair.against_found else alone,
    )


def _isolated(node: str, pair: _Pair) -> tuple[Counts | None, Counts]:
    """Return per image the differences on equal inputs: beyond near ties, and near ties."""
    if pair.fed is None:
        return None, np.zeros(0, np.int64)
    differs, excused = _masks(node, pair.fed, pair)
    if excused is None:
        return _per_image(differs), np.zeros(differs.shape[1], np.int64)
    return _per_image(differs & ~excused), _per_image(excused)


def _masks(
    node: str, fed: Recording, pair: _Pair
) -> tuple[NDArray[np.bool_], NDArray[np.bool_] | None]:
    """Return [T, N, ...] what differs on equal inputs, and what of it near ties excuse, if any."""
    differs = fed.spikes[node] != pair.against.spikes[node]
    if pair.near == 0:
        return differs, None
    if fed.margins is None or node not in fed.margins:
        raise EngineError(f"{fed.engine.name}: gave no margins for {node}; cannot tell near ties")
    close = np.abs(fed.margins[node]) <= pair.near
    # From its first difference on, a neuron's membranes differ in the two engines, so what it
    # does later follows from that one: the first difference decides about all of its neuron.
    first = differs.argmax(axis=0, keepdims=True)
    return differs, differs & np.take_along_axis(close, first, axis=0)


def _unexplained(own: Sequence[Counts], ties: Sequence[Counts]) -> list[int]:
    """Count per layer the images whose first difference is there without a near tie.

    Up to its first differing layer an image's inputs are equal in both engines, so that
    difference must show on equal inputs too; if no near tie is there, nothing excuses it.
    """
    differing = np.stack(own) > 0  # [layers, images]
    first = differing.argmax(axis=0)
    excused = np.stack(ties)[first, np.arange(differing.shape[1])] > 0
    guilty = differing.any(axis=0) & ~excused
    return [int(np.count_nonzero(guilty & (first == layer))) for layer in range(len(own))]


def _per_image(differs: NDArray[np.bool_]) -> Counts:
    axes = (0, *range(2, differs.ndim))
    counts: Counts = np.count_nonzero(differs, axis=axes)
    return counts


def _predictions(reference: NDArray[Any], target: NDArray[Any], labels: Labels) -> dict[str, int]:
    expected, found = reference.argmax(axis=1), target.argmax(axis=1)
    known = labels >= 0
    return {
        "images": len(labels),
        "labelled": int(np.count_nonzero(known)),
        "agreeing": int(np.count_nonzero(expected == found)),
        "correct_reference": int(np.count_nonzero(known & (expected == labels))),
        "correct_target": int(np.count_nonzero(known & (found == labels))),
    }


def _distance(a: NDArray[Any], b: NDArray[Any]) -> float:
    return float(np.abs(a.astype(np.float64) - b).max(initial=0))
