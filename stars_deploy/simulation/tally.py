"""What a network answers after the first t of its T steps, from one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stars_deploy.errors import EngineError
from stars_deploy.simulation.recording import Engine, Recording

Array = NDArray[Any]


@dataclass(frozen=True)
class Tally:
    """The answers of one engine after `steps` steps.

    Attributes:
        predictions: int64 [N], the class with the largest mean read-out.
        spikes: per spiking node the spikes of each neuron, summed over images and steps.
    """

    steps: int
    predictions: NDArray[np.int64]
    spikes: Mapping[str, NDArray[np.int64]]

    @property
    def totals(self) -> dict[str, int]:
        """Spikes per node, summed over images, steps and neurons."""
        return {node: int(counts.sum()) for node, counts in self.spikes.items()}


def tallies(
    engine: Engine,
    images: NDArray[np.uint8],
    steps: Sequence[int],
    batch: int,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Tally]:
    """Run `engine` once on images [N, C, H, W] and tell its answers after each of `steps`.

    Neurons start from rest and a step depends on no later one, so the first t steps of a long
    run are the run of t steps; the read-out is their mean.

    Raises: EngineError for a step beyond the engine's last, or any but the last if the engine
    does not tell its read-out step by step.
    """
    predictions: dict[int, list[Array]] = {t: [] for t in steps}
    by_step: dict[str, Array] = {}
    for start in range(0, len(images), batch):
        answer = engine.run(images[start : start + batch])
        for node, train in answer.spikes.items():
            counts = train.sum(axis=1, dtype=np.int64)  # [T, ...]
            by_step[node] = by_step[node] + counts if node in by_step else counts
        for t in steps:
            predictions[t].append(_logits(answer, t).argmax(axis=1))
        progress(min(start + batch, len(images)))
    return [
        Tally(
            t,
            np.concatenate(predictions[t]).astype(np.int64),
            {node: counts[:t].sum(axis=0) for node, counts in by_step.items()},
        )
        for t in steps
    ]


def _logits(answer: Recording, steps: int) -> NDArray[np.float32]:
    """Return the mean read-out of the first `steps` steps, [N, K]."""
    total = len(next(iter(answer.spikes.values())))
    if steps == total:
        return answer.logits
    if answer.outputs is None or not 1 <= steps < total:
        raise EngineError(
            f"{answer.engine.name}: cannot tell what the network answers after {steps} of its "
            f"{total} steps"
        )
    logits: NDArray[np.float32] = answer.outputs[:steps].mean(axis=0).astype(np.float32)
    return logits
