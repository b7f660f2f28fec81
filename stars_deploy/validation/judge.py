"""What is wrong: a comparison measured against the rule of the engine that was compared.

Every function returns findings in network order; one of severity error fails the verdict.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from stars_deploy.config.profile import Tolerances
from stars_deploy.targets.findings import Finding
from stars_deploy.validation.counts import SATURATED, SILENT, LayerParity, Parity
from stars_deploy.validation.parity import NEAR

READOUT = "readout"
READOUT_RELATIVE = 1e-4  # float32 sums against float64, relative to the largest logit
_LAYER_REMEDY = "compare this layer's parameters with graph.nir; export the bundle again"


def exact(parity: Parity) -> list[Finding]:
    """Integer arithmetic: every spike and the read-out are equal, or the layer is named."""
    found = [_differs(layer, parity) for layer in _guilty(parity)]
    if parity.readout_difference > 0 and not found:
        found = [_readout(parity, parity.readout_difference, 0.0)]
    return found


def up_to_near_ties(parity: Parity) -> list[Finding]:
    """Float arithmetic: spikes are equal but for near ties and what follows from them."""
    found = [
        _differs(layer, parity)
        for layer in parity.layers
        if layer.isolated_mismatches or layer.unexplained
    ]
    limit = READOUT_RELATIVE * max(1.0, parity.logit_scale)
    if parity.isolated_readout is not None and parity.isolated_readout > limit:
        found.append(_readout(parity, parity.isolated_readout, limit))
    return found


def within(parity: Parity, tolerances: Tolerances) -> list[Finding]:
    """Integer against float: accuracy, total and per-layer spikes within the profile's limits."""
    found = [
        _spikes(layer.name, layer.spikes_reference, layer.spikes_target, difference, limit)
        for layer in parity.layers
        if (difference := _robust_difference(layer)) > (limit := tolerances.layer_spikes_relative)
    ]
    return [*found, *_total(parity, tolerances), *_accuracy(parity, tolerances)]


def evidence(parity: Parity) -> list[Finding]:
    """Warnings about layers that fire too little or too much for equality to mean something."""
    return [
        Finding(
            code=f"evidence.{layer.state}",
            severity="warning",
            node=layer.name,
            message=f"{layer.state}: fires in {100 * layer.rate:.2f} % of neurons and steps, "
            "so its parity proves little",
            value=layer.rate,
            limit=SILENT if layer.state == "silent" else SATURATED,
            remedy="validate on more or other images, or rescale the layer",
        )
        for layer in parity.layers
        if layer.state != "active"
    ]


def rule(name: str, tolerances: Tolerances, labelled: int) -> dict[str, Any]:
    """Return what validation.json says about the tolerances of an engine's rule."""
    if name == "exact":
        return {"mismatches": 0, "readout_abs": 0.0, "source": "integer arithmetic"}
    if name == "up_to_near_ties":
        return {
            "isolated_mismatches": 0,
            "near_tie_abs": NEAR,
            "readout_relative": READOUT_RELATIVE,
            "source": "float arithmetic in another order of summation",
        }
    return {
        "accuracy_delta": accuracy_limit(tolerances, labelled),
        "total_spikes_relative": tolerances.total_spikes_relative,
        "layer_spikes_relative": tolerances.layer_spikes_relative,
        "source": tolerances.source,
    }


def accuracy_limit(tolerances: Tolerances, labelled: int) -> float:
    """Return the profile's accuracy tolerance, but at least one image: finer cannot be seen."""
    return max(tolerances.accuracy_delta, 1 / labelled) if labelled else tolerances.accuracy_delta


def _guilty(parity: Parity) -> list[LayerParity]:
    """Return the first layer that differs, and all that differ on equal inputs."""
    differing = [layer for layer in parity.layers if layer.mismatches]
    apart = [layer for layer in parity.layers if layer.isolated_mismatches]
    return [layer for layer in parity.layers if layer in apart or layer in differing[:1]]


def _differs(layer: LayerParity, parity: Parity) -> Finding:
    apart = layer.isolated_mismatches
    on_equal = "" if apart is None else f"; {apart} on equal inputs, near ties excluded"
    named = parity.first is not None and parity.first.node == layer.name
    first = f"; first at {parity.first}" if named else ""
    return Finding(
        code="parity.spikes",
        severity="error",
        node=layer.name,
        message=f"{layer.mismatches} of {layer.neuron_steps} neuron-steps of "
        f"{parity.target.name} differ from {parity.reference.name}{on_equal}{first}",
        value=apart or layer.mismatches,
        limit=0,
        remedy=_LAYER_REMEDY,
    )


def _readout(parity: Parity, difference: float, limit: float) -> Finding:
    return Finding(
        code="parity.readout",
        severity="error",
        node=READOUT,
        message=f"logits of {parity.target.name} differ from {parity.reference.name} "
        f"by up to {difference:.3g} on equal spikes, at most {limit:.3g} is expected",
        value=difference,
        limit=limit,
        remedy=_LAYER_REMEDY,
    )


def _robust_difference(layer: LayerParity) -> float:
    """Return |target - reference| / reference, a silent layer's reference raised to the limit.

    Without that, one spike more in a layer that fires five times would fail it.
    """
    floor = SILENT * layer.neuron_steps
    return abs(layer.spikes_target - layer.spikes_reference) / max(layer.spikes_reference, floor, 1)


def _spikes(node: str, reference: int, target: int, difference: float, limit: float) -> Finding:
    return Finding(
        code="parity.spike_count",
        severity="error",
        node=node,
        message=f"{target} spikes, the reference has {reference}, a difference of "
        f"{100 * difference:.2f} %; at most {100 * limit:.2f} % is tolerated",
        value=difference,
        limit=limit,
        remedy="check the scales and roundings of this layer; calibrate or use more bits",
    )


def _total(parity: Parity, tolerances: Tolerances) -> list[Finding]:
    reference = sum(layer.spikes_reference for layer in parity.layers)
    target = sum(layer.spikes_target for layer in parity.layers)
    difference = abs(target - reference) / max(reference, 1)
    limit = tolerances.total_spikes_relative
    if difference <= limit:
        return []
    worst = max(parity.layers, key=lambda x: abs(x.spikes_target - x.spikes_reference))
    found = _spikes(worst.name, reference, target, difference, limit)
    text = f"all layers together: {found.message}; this layer contributes most"
    return [dataclasses.replace(found, code="parity.total_spikes", message=text)]


def _accuracy(parity: Parity, tolerances: Tolerances) -> list[Finding]:
    if not parity.labelled:
        return []
    delta = (parity.correct_target - parity.correct_reference) / parity.labelled
    limit = accuracy_limit(tolerances, parity.labelled)
    if abs(delta) <= limit:
        return []
    return [
        Finding(
            code="parity.accuracy",
            severity="error",
            node=READOUT,
            message=f"accuracy differs from the reference by {100 * delta:+.2f} points "
            f"over {parity.labelled} images; at most {100 * limit:.2f} is tolerated",
            value=delta,
            limit=limit,
            remedy="see which layer's spikes deviate most; calibrate or use more bits",
        )
    ]
