"""Findings about ranges and precision: what does not fit, what loses accuracy, what never fires."""

from __future__ import annotations

import math
from collections.abc import Sequence

from stars_deploy.config.profile import Profile
from stars_deploy.graph.metadata import GraphMetadata
from stars_deploy.targets.findings import Finding
from stars_deploy.targets.loihi.encode import InputCode
from stars_deploy.targets.loihi.quantise import Quantised, ceilings
from stars_deploy.targets.loihi.stages import INPUT, Stage
from stars_deploy.targets.loihi.target import Ranges, Target

COARSE = 0.05  # relative error of the weights, about that of five bits


def graph_notes(metadata: GraphMetadata) -> list[Finding]:
    """Say what the number of steps means on a chip."""
    steps = metadata.T
    if steps & (steps - 1) == 0:
        return []
    return [
        Finding(
            code="reset_interval",
            severity="warning",
            node=None,
            message=f"T = {steps} is not a power of two, which boards need for the periodic reset "
            f"(tutorial of NetX, lava-dl 0.6.0; stated for Loihi 2)",
            value=float(steps),
            remedy="Lava's simulation runs it; for a board train with T = 1, 2, 4 or 8",
        )
    ]


def input_notes(code: InputCode, stages: Sequence[Stage], profile: Profile) -> list[Finding]:
    """Say how the image enters where it is not sent, and how coarse its integers are."""
    found = [_host_note(stages)] if code.host else []
    if not code.host and profile.arithmetic and profile.arithmetic.message_bits is None:
        return [
            Finding(
                code="input_messages",
                severity="error",
                node=None,
                message=f"profile {profile.name} has binary spikes only, the image needs graded "
                f"messages or biases that the host writes",
                remedy="choose profile loihi2 or loihi1",
            )
        ]
    if code.error <= COARSE:
        return found
    return [
        *found,
        Finding(
            code="coarse_input",
            severity="warning",
            node=None,
            message=f"pixels are rounded with a relative error of {code.error:.1%}",
            value=code.error,
            limit=COARSE,
            remedy="check mean and std, or make the biases of the first layer smaller",
        ),
    ]


def _host_note(stages: Sequence[Stage]) -> Finding:
    hearing = [stage for stage in stages if any(item.source == INPUT for item in stage.incoming)]
    names = ", ".join(stage.name for stage in hearing)
    count = sum(math.prod(stage.shape) for stage in hearing)
    return Finding(
        code="host_bias",
        severity="info",
        node=None,
        message=f"spikes are binary only: the host computes what the image gives to {names} and "
        f"writes it as biases, {count} values per image; these operators take no synapses",
        value=float(count),
    )


def scale_notes(
    stage: Stage, target: Target, result: Quantised | None, ranges: Ranges
) -> list[Finding]:
    """Say what the integers of a population cost, or why there are none."""
    if result is None:
        return [_refusal(stage, target, ranges)]
    found = [_summary(stage, target, result, ranges)]
    if result.error > COARSE:
        found.append(
            Finding(
                code="coarse_weights",
                severity="warning",
                node=stage.name,
                message=f"weights are rounded with a relative error of {result.error:.1%}, because "
                f"the range of {_RANGES[result.limited_by]} limits the scale to "
                f"{result.scale:.4g} per unit of V",
                value=result.error,
                limit=COARSE,
                remedy=_REMEDIES[result.limited_by],
            )
        )
    if target.threshold is not None and result.peaks.highest <= result.threshold:
        found.append(
            Finding(
                code="silent",
                severity="warning",
                node=stage.name,
                message="no input can make this population spike",
                value=result.peaks.highest,
                limit=float(result.threshold),
                remedy="check the threshold and the weights before it",
            )
        )
    return found


def _summary(stage: Stage, target: Target, result: Quantised, ranges: Ranges) -> Finding:
    """Say which integers were chosen and how much of the accumulator they can use."""
    worst = max(result.peaks.activation, result.peaks.highest, -result.peaks.lowest)
    threshold = "" if target.threshold is None else f"threshold {result.threshold}, "
    exact = "exact" if result.exact else f"weights rounded by {result.error:.2%}"
    return Finding(
        code="integers",
        severity="info",
        node=stage.name,
        message=f"{threshold}{exact}, worst case {worst:.0f} of {ranges.state:.0f} units, scale "
        f"limited by the range of {_RANGES[result.limited_by]}",
        value=worst,
        limit=ranges.state,
    )


_RANGES = {
    "weights": "the weights",
    "bias": "the bias mantissa",
    "image": "the bias mantissa, with the image in it",
    "threshold": "the threshold mantissa",
    "accumulator": "the accumulator in the worst case",
    "potential": "the potential in the worst case",
}
_REMEDIES = {
    "weights": "shrink the few largest weights of this layer",
    "bias": "shrink the biases of this layer relative to its weights",
    "image": "reduce the fan-in of this layer, or its biases relative to its weights",
    "threshold": "lower the threshold together with the weights",
    "accumulator": "reduce the fan-in of this layer (stride, pooling, fewer channels)",
    "potential": "reduce the fan-in of this layer (stride, pooling, fewer channels) or T",
}


def _refusal(stage: Stage, target: Target, ranges: Ranges) -> Finding:
    limits = ceilings(target, ranges)
    name = min(limits, key=lambda key: limits[key])
    return Finding(
        code="scale_range",
        severity="error",
        node=stage.name,
        message=f"no integer threshold works: the range of {_RANGES[name]} allows at most "
        f"{limits[name]:.3g} units per unit of V",
        value=limits[name],
        limit=None if target.threshold is None else 1 / target.threshold,
        remedy=_REMEDIES[name],
    )
