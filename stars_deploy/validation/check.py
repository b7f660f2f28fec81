"""Everything that speaks against a graph on a target, at once and without raising."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import nir

from stars_deploy.config.profile import Profile
from stars_deploy.config.profile_values import Whole
from stars_deploy.simulation.placement.place import Placement, place
from stars_deploy.targets.findings import Finding, Severity, exit_code
from stars_deploy.targets.loihi import Balance, LoweredNetwork, analyse, graph_findings
from stars_deploy.targets.netx_rules import netx_problems, not_a_chain
from stars_deploy.validation.placement import placement_findings

__all__ = ["Examination", "Finding", "check", "examine", "exit_code"]

_ORDER = {"error": 0, "warning": 1, "info": 2}


@dataclass(frozen=True)
class Examination:
    """All findings about a graph, errors first, its integers, and where they lie on the chips.

    `network` and `placement` are None where there are no integers, and in floating point.
    """

    findings: tuple[Finding, ...] = ()
    network: LoweredNetwork | None = None
    placement: Placement | None = None


def check(graph: nir.NIRGraph, profile: Profile, balance: Balance = "relay") -> list[Finding]:
    """Return all findings about `graph` on `profile`, errors first; never raises on a bad graph."""
    return list(examine(graph, profile, balance).findings)


def examine(graph: nir.NIRGraph, profile: Profile, balance: Balance = "relay") -> Examination:
    """Check `graph` on `profile` and place it.

    The lowering itself is run, so that every refusal of it is a finding here. Where only the
    chip's input stands in its way (it takes no graded messages), the network is placed all the
    same, as if the image could be sent.
    """
    if profile.arithmetic is None:
        return Examination(tuple(graph_findings(graph, profile)))
    analysis = analyse(graph, profile, balance)
    found = list(analysis.findings)
    network = placed = analysis.network
    if network is not None:
        found += _netx(network, profile)
    elif _only_input(found):
        placed = analyse(graph, _with_graded_input(profile), balance).network
    placement = None
    if placed is not None:
        placement = place(placed.document, placed.arrays, profile)
        found += placement_findings(placement, placed.document, placed.arrays, profile)
    found.sort(key=lambda item: _ORDER[item.severity])
    return Examination(tuple(found), network, placement)


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
    severity: Severity = "info" if not_a_chain(network.document) else "warning"
    remedy = "run it in raw Lava; no NetX file is written"
    return [
        Finding("netx", severity, None, problem, remedy=remedy)
        for problem in netx_problems(network.document, network.arrays)
    ]
