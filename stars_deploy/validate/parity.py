"""Do two engines agree? Spikes counted layer by layer, batch by batch.

Two counts tell different things. `mismatches` is accumulated: every engine runs on its own
inputs, so one early difference shows in all later layers. `isolated_mismatches` gives each layer
the same inputs in both engines, so only the layer that is wrong shows. A neuron whose first
difference has |H - V_th| <= NEAR is a near tie: summation in another order decides it either way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stars_deploy.errors import EngineError
from stars_deploy.simulate.recording import Engine, Recording
from stars_deploy.validate.counts import LayerParity, Parity, added

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
        _part(reference, window) if isinstance(reference, Recording) else reference.run(images)
    )
    found = target.run(images)
    nodes = _nodes(expected, found, target.nodes)
    fed = against = None
    if isolation is not None:
        against = found if isolation.feed == "target" else expected
        fed = isolation.engine.run(images, feed=against.spikes, margins=isolation.near > 0)
        _nodes(against, fed, nodes)
    near = isolation.near if isolation else 0.0
    isolated = [_isolated(node, fed, against, near) for node in nodes]
    own = [_per_image(expected.spikes[n] != found.spikes[n]) for n in nodes]
    unexplained = _unexplained(own, [ties for _, ties in isolated]) if fed else [0] * len(nodes)
    layers = tuple(
        _layer(node, expected, found, differs, apart, blame)
        for node, differs, apart, blame in zip(nodes, own, isolated, unexplained, strict=True)
    )
    readout = None if fed is None or against is None else _distance(fed.logits, against.logits)
    return Parity(
        expected.engine, found.engine, layers, isolated_readout=readout,
        readout_difference=_distance(expected.logits, found.logits),
        logit_scale=float(np.abs(expected.logits).max(initial=0)),
        **_predictions(expected.logits, found.logits, labels),
    )  # fmt: skip


def _layer(
    node: str,
    expected: Recording,
    found: Recording,
    differs: Counts,
    isolated: tuple[Counts | None, Counts],
    unexplained: int,
) -> LayerParity:
    train = expected.spikes[node]
    apart, ties = isolated
    return LayerParity(
        name=node,
        neurons=int(np.prod(train.shape[2:], dtype=np.int64)),
        neuron_steps=train.size,
        spikes_reference=int(np.count_nonzero(train)),
        spikes_target=int(np.count_nonzero(found.spikes[node])),
        mismatches=int(differs.sum()),
        isolated_mismatches=None if apart is None else int(apart.sum()),
        near_ties=int(ties.sum()),
        unexplained=unexplained,
    )


def _isolated(
    node: str, fed: Recording | None, against: Recording | None, near: float
) -> tuple[Counts | None, Counts]:
    """Return per image the differences on equal inputs: beyond near ties, and near ties."""
    if fed is None or against is None:
        return None, np.zeros(0, np.int64)
    differs = fed.spikes[node] != against.spikes[node]
    if near == 0:
        return _per_image(differs), np.zeros(differs.shape[1], np.int64)
    if fed.margins is None or node not in fed.margins:
        raise EngineError(f"{fed.engine.name}: gave no margins for {node}; cannot tell near ties")
    close = np.abs(fed.margins[node]) <= near
    # From its first difference on, a neuron's membranes differ in the two engines, so what it
    # does later follows from that one: the first difference decides about all of its neuron.
    first = differs.argmax(axis=0, keepdims=True)
    excused = differs & np.take_along_axis(close, first, axis=0)
    return _per_image(differs & ~excused), _per_image(excused)


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


def _part(recording: Recording, window: slice) -> Recording:
    """Return what a recording says about some of its images."""
    spikes = {node: train[:, window] for node, train in recording.spikes.items()}
    return replace(recording, logits=recording.logits[window], spikes=spikes, margins=None)


def _nodes(expected: Recording, found: Recording, order: Sequence[str]) -> list[str]:
    """Return the spiking nodes in order, after checking that both recordings are comparable."""
    who = found.engine.name
    missing = expected.spikes.keys() ^ found.spikes.keys() or expected.spikes.keys() ^ set(order)
    if missing:
        raise EngineError(
            f"{who} and {expected.engine.name} did not record the same layers: "
            f"{', '.join(sorted(missing))} only in one of them"
        )
    for node in order:
        if expected.spikes[node].shape != found.spikes[node].shape:
            raise EngineError(
                f"{who}: spikes of {node} have shape {found.spikes[node].shape}, "
                f"expected {expected.spikes[node].shape} [T, N, ...] as {expected.engine.name}"
            )
    for recording in (expected, found):
        if (
            expected.logits.shape != recording.logits.shape
            or not np.isfinite(recording.logits).all()
        ):
            raise EngineError(
                f"{recording.engine.name}: logits of shape {recording.logits.shape} are not "
                f"{expected.logits.shape} finite numbers"
            )
    return list(order)
