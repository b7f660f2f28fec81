"""Reading a graph that another tool wrote: what it does not say, what it says in its own way.

A graph of ours has a `tool_version` in its metadata and is complete. Any other is read here: its
structure (foreign_structure), its time step and gains (foreign_time), then T, normalisation and
classes, from the file or from a Reading. The result carries all of our metadata. What had to be
assumed is a note; what cannot be assumed is a problem that names the option to add.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import nir
import numpy as np

from stars_deploy import __version__
from stars_deploy.errors import GraphError
from stars_deploy.graph.foreign_structure import (
    Note,
    fitted,
    inlined,
    renamed,
    with_image_input,
)
from stars_deploy.graph.foreign_time import Gain, discretised, inferred_dt
from stars_deploy.graph.geometry import Shape, input_shape, output_shapes
from stars_deploy.graph.metadata import GraphMetadata, metadata_of, with_metadata
from stars_deploy.graph.order import output_name, sources
from stars_deploy.graph.problems import (
    Problem,
    graph_problems,
    problem_of,
    structure_problems,
)

OWN = "tool_version"
# Field of GraphMetadata -> option of the command line.
_OPTIONS = {
    "T": "--steps",
    "dt": "--dt",
    "mean": "--mean",
    "std": "--std",
    "classes": "--classes",
}


@dataclass(frozen=True)
class Reading:
    """What a user says about a third-party graph; None where the file or a default is to say it.

    Attributes:
        T: time steps per image.
        dt: duration of a step in seconds, in the unit of the file's tau.
        gain: what r of its neurons means, see foreign_time.
        mean, std: normalisation of pixels / 255, per channel or one number for all.
        classes: names of the logits.
        image_shape: [C, H, W] of the image behind a vector input.
    """

    T: int | None = None
    dt: float | None = None
    gain: Gain | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    classes: tuple[str, ...] | None = None
    image_shape: Shape | None = None


@dataclass(frozen=True)
class Adopted:
    """A graph as read, what was read into it, and what keeps it from being run.

    With problems, `graph` is the graph as far as it was understood, without our metadata.
    """

    graph: nir.NIRGraph
    notes: tuple[Note, ...] = ()
    problems: tuple[Problem, ...] = ()


def adopt(graph: nir.NIRGraph, reading: Reading | None = None) -> Adopted:
    """Return `graph` as one of ours, with every problem at once; never raises on a bad graph.

    A value in the file wins; where `reading` says otherwise, that is a problem naming both. A graph
    of ours stays as it is, and is not judged here.
    """
    adoption = _Adoption(graph, reading or Reading())
    if OWN not in adoption.raw:
        adoption.run()
    elif reading is not None and not graph_problems(graph):
        adoption.attempt("option", adoption.agree_as_ours)
    return Adopted(adoption.graph, tuple(adoption.notes), tuple(adoption.problems))


class _Adoption:
    """The steps of reading one third-party graph; each adds notes and problems."""

    def __init__(self, graph: nir.NIRGraph, reading: Reading) -> None:
        self.graph = graph
        self.reading = reading
        self.raw = graph.metadata if isinstance(graph.metadata, Mapping) else {}
        self.notes: list[Note] = []
        self.problems: list[Problem] = []

    def attempt(self, code: str, step: Callable[[], Any]) -> None:
        """Run one step; what it raises becomes a problem."""
        self.problems += problem_of(code, step, self.graph.nodes)

    def run(self) -> None:
        self.attempt("subgraph", self._flat)
        self.attempt("time", self._discretise)
        if self.reading.T is None and "T" not in self.raw:
            message = "the file does not say for how many time steps an image is shown"
            self.problems.append(Problem("metadata", None, message, "add --steps T"))
        broken = structure_problems(self.graph)
        self.problems += broken
        if broken:
            return
        self.attempt("shape", self._shape)
        if self.problems:
            return
        self.attempt("metadata", self._complete)
        self.problems += graph_problems(self.graph, metadata=not self.problems)

    def _flat(self) -> None:
        self.graph = renamed(inlined(self.graph, self.notes), self.notes)

    def _discretise(self) -> None:
        dt = self.reading.dt
        if "dt" in self.raw:
            dt = metadata_of(self._with({"T": 1, "mean": 0.0, "std": 1.0})).dt
        if dt is None:
            dt = inferred_dt(self.graph.nodes, self.notes)
        nodes = discretised(self.graph.nodes, dt, self.reading.gain, self.notes)
        folded = [
            np.allclose(node.r * dt, node.tau, rtol=1e-12, atol=0)
            for node in nodes.values()
            if isinstance(node, nir.LIF | nir.LI)
        ]
        filled = {"dt": dt, "gain": "folded" if folded and all(folded) else "raw"}
        metadata = {**self.raw, **filled}
        self.graph = nir.NIRGraph(
            nodes, list(self.graph.edges), metadata=metadata, type_check=False
        )

    def _shape(self) -> None:
        graph = fitted(self.graph, self.notes)
        self.graph = with_image_input(graph, self.reading.image_shape, self.notes)

    def _complete(self) -> None:
        """Write all of our metadata into the graph, from the file, the reading and defaults."""
        said, channels = self.reading, input_shape(self.graph)[0]
        if "mean" not in self.raw and "std" not in self.raw and not (said.mean or said.std):
            message = "no mean and std: pixel / 255 enters as it is; give --mean and --std if not"
            self.notes.append(Note("normalisation", None, message))
        self._require_counts(channels)
        filled = {
            "T": said.T,
            "mean": _per_channel(said.mean or (0.0,), channels),
            "std": _per_channel(said.std or (1.0,), channels),
            "classes": json.dumps(list(said.classes or ())),
        }
        complete = metadata_of(self._with(filled))
        self.agree(complete)
        self.graph = with_metadata(self.graph, complete)
        last = sources(self.graph, output_name(self.graph))
        kinds = ", ".join(f"{name} ({type(self.graph.nodes[name]).__name__})" for name in last)
        message = f"logits are the mean over {complete.T} steps of what {kinds} puts out"
        self.notes.append(Note("readout", None, message))

    def _require_counts(self, channels: int) -> None:
        """Raise GraphError for an option that names another number of channels or logits."""
        for option, values in (("--mean", self.reading.mean), ("--std", self.reading.std)):
            if values is not None and len(values) not in (1, channels):
                raise GraphError(
                    f"{option} has {len(values)} numbers, the input has {channels} channels; "
                    "give one number, or one per channel"
                )
        logits = math.prod(output_shapes(self.graph)[output_name(self.graph)])
        classes = self.reading.classes
        if classes and len(classes) != logits:
            raise GraphError(
                f"--classes has {len(classes)} names, the output has {logits} values; "
                "name each of them, or leave --classes out"
            )

    def _with(self, filled: Mapping[str, Any]) -> nir.NIRGraph:
        """Return the graph with metadata where the file has none."""
        usual = {"readout": "mean", "spike_compare": "strict", "gain": "raw", "classes": "[]"}
        raw = self.graph.metadata if isinstance(self.graph.metadata, Mapping) else {}
        merged = {**usual, OWN: __version__, **filled, **raw}
        return nir.NIRGraph(
            dict(self.graph.nodes), list(self.graph.edges), metadata=merged, type_check=False
        )

    def agree_as_ours(self) -> None:
        """Raise GraphError where the reading contradicts a graph that stars-deploy wrote."""
        for value, option in (
            (self.reading.gain, "--gain"),
            (self.reading.image_shape, "--image-shape"),
        ):
            if value is not None:
                raise GraphError(
                    f"{option} is for files of other tools, this graph is complete; leave it out"
                )
        self.agree(metadata_of(self.graph))

    def agree(self, metadata: GraphMetadata) -> None:
        """Raise GraphError where the reading contradicts what the graph says."""
        for field, option in _OPTIONS.items():
            said, holds = getattr(self.reading, field), getattr(metadata, field)
            if said is None or said == holds:
                continue
            if field in ("mean", "std") and said * len(holds) == holds:
                continue
            raise GraphError(
                f"{option} is {said!r}, the file's metadata say {field} = {holds!r}; "
                f"leave {option} out, or correct the file"
            )


def _per_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return values * channels if len(values) == 1 else values
