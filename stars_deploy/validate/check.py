"""Everything that speaks against a graph on a target, at once and without raising."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import nir

from stars_deploy.config.profile import Profile
from stars_deploy.config.profile_values import Whole
from stars_deploy.simulate.placement import Placement, place
from stars_deploy.targets.findings import Finding, exit_code
from stars_deploy.targets.loihi import LoweredNetwork, analyse, graph_findings
from stars_deploy.targets.netx_rules import netx_problems
from stars_deploy.validate.placement import placement_findings

__all__ = ["Examination", "Finding", "check", "examine", "exit_code"]

_ORDER = {"error": 0, "warning": 1, "info": 2}


@dataclass(frozen=True)
class Examination:
    """All findings about a graph, errors first, and where it lies on the chips.

    `placement` is None where there are no integers to place, and in floating point.
    """

    findings: tuple[Finding, ...]
    placement: Placement | None


def check(graph: nir.NIRGraph, profile: Profile) -> list[Finding]:
    """Return all findings about `graph` on `profile`, errors first; never raises on a bad graph."""
    return list(examine(graph, profile).findings)


def examine(graph: nir.NIRGraph, profile: Profile) -> Examination:
    """Check `graph` on `profile` and place it.

    The lowering itself is run, so that every refusal of it is a finding here. Where only the
    chip's input stands in its way (it takes no graded messages), the network is placed all the
    same, as if the image could be sent.
    """
    if profile.arithmetic is None:
        return Examination(tuple(graph_findings(graph, profile)), None)
    analysis = analyse(graph, profile)
    found = list(analysis.findings)
    network = analysis.network
    if network is not None:
        found += _netx(network, profile)
    elif _only_input(found):
        network = analyse(graph, _with_graded_input(profile)).network
    placement = None
    if network is not None:
        placement = place(network.document, network.arrays, profile)
        found += placement_findings(placement, network.document, network.arrays, profile)
    found.sort(key=lambda item: _ORDER[item.severity])
    return Examination(tuple(found), placement)


def _only_input(findings: Sequence[Finding]) -> bool:
    return {item.code for item in findings if item.severity == "error"} == {"input_messages"}


def _with_graded_input(profile: Profile) -> Profile:
    graded = Whole(value=8, source="as if the image could be sent", confidence="choice")
    arithmetic = profile.arithmetic
    if arithmetic is None:
        return profile
    changed = arithmetic.model_copy(update={"message_bits": graded})
    return profile.model_copy(update={"arithmetic": changed})


def _netx(network: LoweredNetwork, profile: Profile) -> list[Finding]:
    """Return what lava-dl's NetX would change silently; raw Lava computes it as it is."""
    if profile.identity.family != "loihi":
        return []
    return [
        Finding(
            "netx", "warning", None, problem, remedy="run it in raw Lava; no NetX file is written"
        )
        for problem in netx_problems(network.document, network.arrays)
    ]
