"""validation.json: what was compared with what, how it came out, and what was not run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stars_deploy.simulation.recording import EngineInfo
from stars_deploy.targets.findings import Finding
from stars_deploy.validation.counts import LayerParity, Parity
from stars_deploy.validation.divergence import Divergence

Json = dict[str, Any]


def all_runs(validation: Mapping[str, Any]) -> list[Json]:
    """Return the latest verdict and the earlier ones of other engines on the same bundle."""
    latest = {key: value for key, value in validation.items() if key != "earlier"}
    return [latest, *validation.get("earlier", [])]


def engine_json(info: EngineInfo) -> Json:
    """Return name, version and kind of an engine."""
    return {"name": info.name, "version": info.version, "kind": info.kind}


def layer_json(layer: LayerParity) -> Json:
    """Return one row of the parity table."""
    return {
        "name": layer.name,
        "neurons": layer.neurons,
        "rate": layer.rate,
        "state": layer.state,
        "spikes_reference": layer.spikes_reference,
        "spikes_target": layer.spikes_target,
        "relative_difference": layer.relative_difference,
        "mismatches": layer.mismatches,
        "isolated_mismatches": layer.isolated_mismatches,
        "near_ties": layer.near_ties,
        "isolated_relative_difference": layer.isolated_relative_difference,
        "first_step": layer.first.step if layer.first else None,
        "first_at": _place(layer.first) if layer.first else None,
    }


def divergence_json(first: Divergence | None) -> Json | None:
    """Return where two engines part first, None if they do not."""
    if first is None:
        return None
    return {
        "node": first.node,
        "step": first.step,
        **_place(first),
        "margin": first.margin,
        "near_tie": first.near_tie,
    }


def _place(first: Divergence) -> Json:
    return {
        "image": first.image,
        "neuron": list(first.neuron),
        "reference": first.reference,
        "target": first.target,
    }


def parity_json(parity: Parity) -> Json:
    """Return accuracy, agreement, layers, first divergence and read-out of a comparison."""
    return {
        "n": parity.images,
        "accuracy": _accuracy(parity),
        "agreement": parity.agreeing / parity.images,
        "layers": [layer_json(layer) for layer in parity.layers],
        "first_divergence": divergence_json(parity.first),
        "readout": {
            "max_abs_difference": parity.readout_difference,
            "isolated_max_abs_difference": parity.isolated_readout,
        },
    }


def also_json(parity: Parity) -> Json:
    """Return the comparison of a further engine that judged the same images."""
    whole = parity_json(parity)
    return {
        "engine": engine_json(parity.target),
        "layers": whole["layers"],
        "first_divergence": whole["first_divergence"],
        "readout": whole["readout"],
    }


def training_json(
    training: Mapping[str, Any] | None, data: str | None, images: int, accuracy: float | None
) -> Json | None:
    """Return what training measured; delta = target - training where both saw the same images."""
    if training is None:
        return None
    same = training.get("data") == data and training.get("n") == images
    return {
        "device": training["device"],
        "accuracy": training["accuracy"],
        "delta": accuracy - training["accuracy"] if same and accuracy is not None else None,
        "data": training.get("data"),
        "n": training.get("n"),
    }


def findings_json(findings: Sequence[Finding]) -> list[Json]:
    """Return findings as JSON objects."""
    return [finding.to_dict() for finding in findings]


def first_error(findings: Sequence[Finding]) -> str | None:
    """Return the first failure in words, its layer first; None if there is none."""
    errors = (finding for finding in findings if finding.severity == "error")
    return next((f"{f.node}: {f.message}" if f.node else f.message for f in errors), None)


def _accuracy(parity: Parity) -> Json | None:
    if not parity.labelled:
        return None
    reference = parity.correct_reference / parity.labelled
    target = parity.correct_target / parity.labelled
    return {"reference": reference, "target": target, "delta": target - reference}
