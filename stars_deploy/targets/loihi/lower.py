"""From a NIR graph to Loihi's integers; `analyse` says everything, `lower` insists."""

from __future__ import annotations

from dataclasses import dataclass, replace

import nir
import numpy as np

from stars_deploy.config.profile import Profile
from stars_deploy.errors import GraphError, RecipeError
from stars_deploy.graph.geometry import input_shape
from stars_deploy.graph.metadata import GraphMetadata, metadata_of
from stars_deploy.graph.order import natural
from stars_deploy.graph.problems import graph_problems
from stars_deploy.targets.findings import Finding, require_no_errors
from stars_deploy.targets.loihi.balance import Balance, balanced
from stars_deploy.targets.loihi.document import LoweredNetwork, Readout, assemble
from stars_deploy.targets.loihi.encode import InputCode, host_code, input_codes
from stars_deploy.targets.loihi.host import takes_biases
from stars_deploy.targets.loihi.neurons import NEURONS, READOUT, Dynamics, dynamics
from stars_deploy.targets.loihi.notes import graph_notes, input_notes, scale_notes
from stars_deploy.targets.loihi.quantise import Quantised, quantise, repeating
from stars_deploy.targets.loihi.stages import INPUT, Stage, readout_of, stages_of
from stars_deploy.targets.loihi.target import Ranges, Source, Target

DEFAULT_MESSAGE_BITS = 8  # to say what else stands in the way of a chip that takes no image


@dataclass(frozen=True)
class Analysis:
    """The lowered network, None where an error forbids it, and all findings."""

    network: LoweredNetwork | None
    stages: tuple[Stage, ...]
    findings: tuple[Finding, ...]


def lower(graph: nir.NIRGraph, profile: Profile, balance: Balance = "relay") -> LoweredNetwork:
    """Lower `graph` to the integers of a Loihi profile; `balance` as in `balanced`.

    Raises:
        GraphError: the graph has nodes or values that the target does not support.
        DoesNotFit: no integers are inside the target's ranges for every input.
        RecipeError: the profile computes in floating point.
    """
    analysis = analyse(graph, profile, balance)
    require_no_errors(analysis.findings, f"this graph cannot be lowered to {profile.name}")
    if analysis.network is None:
        raise GraphError(f"this graph cannot be lowered to {profile.name}")
    return analysis.network


def analyse(graph: nir.NIRGraph, profile: Profile, balance: Balance = "relay") -> Analysis:
    """Lower `graph` as far as it goes, with a finding for everything that stands in the way."""
    if profile.arithmetic is None:
        raise RecipeError(
            f"profile {profile.name!r} computes in floating point, there is nothing to lower; "
            f"choose a Loihi profile"
        )
    found = graph_findings(graph, profile)
    if found:
        return Analysis(None, (), tuple(found))
    metadata = metadata_of(graph)
    neurons, found = _neurons(graph, metadata.dt)
    flat, structure = stages_of(graph)
    found += structure
    if any(item.severity == "error" for item in found):
        return Analysis(None, tuple(flat), tuple(found))
    readout = readout_of(graph, flat)
    stages, cost = balanced(flat, balance, takes_biases(profile))
    found += [*cost, *graph_notes(metadata)]
    if any(item.severity == "error" for item in found):
        return Analysis(None, tuple(stages), tuple(found))
    network, notes = _quantised(graph, stages, readout, neurons, metadata, profile, balance)
    return Analysis(network, tuple(stages), (*found, *notes))


def graph_findings(graph: nir.NIRGraph, profile: Profile) -> list[Finding]:
    """Return what keeps `graph` from being run at all, and nodes that the profile does not know."""
    found = [
        Finding(item.code, "error", item.node, item.message, remedy=item.remedy)
        for item in graph_problems(graph)
    ]
    known = {item.node for item in found}
    allowed = profile.operators.supported
    return found + [
        Finding(
            code="unsupported",
            severity="error",
            node=name,
            message=f"{type(node).__name__} is not an operator of profile {profile.name}",
            value=type(node).__name__,
            limit=", ".join(allowed),
            remedy=f"use {', '.join(allowed)}",
        )
        for name, node in sorted(graph.nodes.items(), key=lambda item: natural(item[0]))
        if type(node).__name__ not in allowed and name not in known
    ]


def _neurons(graph: nir.NIRGraph, dt: float) -> tuple[dict[str, Dynamics], list[Finding]]:
    known: dict[str, Dynamics] = {}
    found: list[Finding] = []
    for name in sorted(graph.nodes, key=natural):
        node = graph.nodes[name]
        if isinstance(node, NEURONS):
            neuron, notes = dynamics(name, node, dt)
            found += notes
            if neuron is not None:
                known[name] = neuron
    return known, found


def _quantised(
    graph: nir.NIRGraph,
    stages: list[Stage],
    readout: Stage,
    neurons: dict[str, Dynamics],
    metadata: GraphMetadata,
    profile: Profile,
    balance: Balance,
) -> tuple[LoweredNetwork | None, list[Finding]]:
    arithmetic = profile.arithmetic
    assert arithmetic is not None
    ranges = Ranges.of(arithmetic)
    computing = [stage for stage in stages if not stage.relay]
    targets = {
        stage.name: _target(stage, neurons.get(stage.name, READOUT), metadata.T)
        for stage in computing
    }
    code, results = _encoded(computing, targets, _codes(metadata, profile), ranges)
    found = input_notes(code, computing, profile)
    for stage in computing:
        target = _listening(stage, targets[stage.name], code)
        if stage.name not in results:
            results[stage.name] = quantise(target, ranges)
        found += scale_notes(stage, target, results[stage.name], ranges)
    results |= {stage.name: repeating(stage) for stage in stages if stage.relay}
    integers = [results[stage.name] for stage in stages]
    whole = [result for result in integers if result is not None]
    if len(whole) < len(integers) or any(item.severity == "error" for item in found):
        return None, found
    decays = [targets[stage.name].dv if stage.name in targets else 0 for stage in stages]
    network = assemble(
        stages,
        whole,
        decays,
        _readout(readout, results[readout.name], metadata.T),
        code,
        input_shape(graph),
        metadata,
        profile.name,
        ranges,
        balance,
    )
    return network, found


def _codes(metadata: GraphMetadata, profile: Profile) -> list[InputCode]:
    """Return the input codes to choose from; where the host has the image, only its own."""
    if takes_biases(profile):
        return [host_code(metadata)]
    bits = profile.arithmetic.message_bits if profile.arithmetic else None
    return input_codes(metadata, bits.value if bits else DEFAULT_MESSAGE_BITS)


def _readout(stage: Stage, result: Quantised | None, steps: int) -> Readout:
    """Return how the mean over T of the output is read from the read-out population."""
    assert result is not None
    if stage.spiking:
        return Readout(stage.name, "spikes", float(steps))
    kind = "potential" if stage.neuron is None else "potentials"
    return Readout(stage.name, kind, 64 * result.scale * steps)


def _target(stage: Stage, neuron: Dynamics, steps: int) -> Target:
    """Fold the neuron's gain into weights and biases; messages are spikes until encoded."""
    spikes = [Source(1.0, np.zeros(1), np.ones(1)) for _ in stage.incoming]
    return Target(
        incoming=stage.incoming,
        sources=tuple(spikes),
        weights=tuple(item.weight * neuron.gain for item in stage.incoming),
        bias=stage.bias * neuron.gain,
        threshold=neuron.threshold,
        dv=neuron.dv,
        steps=steps,
        shape=stage.shape,
    )


def _listening(stage: Stage, target: Target, code: InputCode) -> Target:
    """Return `target` with what its operators listen to: spikes, or the integers of `code`."""
    low, high = code.table.min(axis=1).astype(float), code.table.max(axis=1).astype(float)
    graded = Source(1 / code.k, low, high, code.host)
    sources, weights = list(target.sources), list(target.weights)
    for index, item in enumerate(stage.incoming):
        if item.source == INPUT:
            sources[index] = graded
            weights[index] = weights[index] / code.k
    return replace(target, sources=tuple(sources), weights=tuple(weights))


def _encoded(
    stages: list[Stage], targets: dict[str, Target], codes: list[InputCode], ranges: Ranges
) -> tuple[InputCode, dict[str, Quantised | None]]:
    """Choose the input code whose rounding, together with that of the first weights, is least.

    A finer code leaves coarser weights where the bias or the accumulator bounds the scale.
    """
    listeners = [stage for stage in stages if any(item.source == INPUT for item in stage.incoming)]
    best: tuple[float, InputCode, dict[str, Quantised | None]] | None = None
    for code in codes:
        results = {
            stage.name: quantise(_listening(stage, targets[stage.name], code), ranges)
            for stage in listeners
        }
        error = sum(np.inf if r is None else r.error**2 + code.error**2 for r in results.values())
        if best is None or error < best[0]:
            best = (float(error), code, results)
    if best is None:
        raise GraphError("the graph metadata give no usable input scale; check mean and std")
    return best[1], best[2]
