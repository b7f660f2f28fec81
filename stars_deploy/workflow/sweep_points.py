"""One point of a sweep as it stands in sweep.json, and what must be said about all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import nir
import numpy as np

from stars_deploy.data import Labels
from stars_deploy.simulation.energy.counts import synaptic_operations
from stars_deploy.simulation.tally import Tally
from stars_deploy.validation.proportions import wilson
from stars_deploy.workflow.samples import Samples

WIDE = 0.05  # an interval wider than this is said aloud
Json = dict[str, Any]


@dataclass(frozen=True)
class Point:
    """One network: engine, T, weight bits (None: float), what it answered or why it could not."""

    engine: str
    steps: int
    bits: int | None
    tally: Tally | None
    problem: str | None = None

    def to_json(self, labels: Labels, reference: Labels, graph: nir.NIRGraph) -> Json:
        """Return the point with its intervals; all None but `problem` where nothing was run.

        Args:
            reference: predictions of the float graph with its own T.
            graph: the graph with the T of this point, whose synapses are counted.
        """
        tally = self.tally
        spikes = tally.totals if tally else None
        count = len(labels)
        return {
            "engine": self.engine,
            "T": self.steps,
            "weight_bits": self.bits,
            "n": count,
            **_accuracy(tally, labels),
            **_agreement(tally, reference),
            "spikes": spikes,
            "spikes_per_image": sum(spikes.values()) / count if spikes is not None else None,
            "synaptic_operations": (
                synaptic_operations(graph, tally.spikes, count) if tally else None
            ),
            "problem": self.problem,
        }


def notes_on(points: Sequence[Json], samples: Samples) -> list[str]:
    """Return what a reader must know: no labels, few images, points without numbers."""
    labelled = bool((samples.labels >= 0).any())
    measure, key = ("accuracy", "interval") if labelled else ("agreement", "agreement_interval")
    notes = []
    if not labelled:
        notes.append(
            f"the {samples.source} images have no labels: agreement with the predictions of the "
            "float reference instead of accuracy"
        )
    widest = max((x[key][1] - x[key][0] for x in points if x[key]), default=0.0)
    if widest > WIDE:
        notes.append(
            f"{len(samples.images)} images: intervals of the {measure} are up to "
            f"{100 * widest:.0f} points wide; give more images with --data"
        )
    return notes + [
        f"T = {x['T']}, {x['weight_bits']} bits: not run, {x['problem']}"
        for x in points
        if x["problem"]
    ]


def _accuracy(tally: Tally | None, labels: Labels) -> Json:
    known = labels >= 0
    labelled = int(np.count_nonzero(known))
    if tally is None or not labelled:
        return {"labelled": labelled, "correct": None, "accuracy": None, "interval": None}
    correct = int(np.count_nonzero(known & (tally.predictions == labels)))
    interval = list(wilson(correct, labelled))
    return {
        "labelled": labelled,
        "correct": correct,
        "accuracy": correct / labelled,
        "interval": interval,
    }


def _agreement(tally: Tally | None, reference: Labels) -> Json:
    if tally is None:
        return {"agreeing": None, "agreement": None, "agreement_interval": None}
    agreeing = int(np.count_nonzero(tally.predictions == reference))
    return {
        "agreeing": agreeing,
        "agreement": agreeing / len(reference),
        "agreement_interval": list(wilson(agreeing, len(reference))),
    }
