"""Everything that speaks against a graph on a target, at once and without raising."""

from __future__ import annotations

import nir

from stars_deploy.config.profile import Profile
from stars_deploy.targets.findings import Finding, exit_code
from stars_deploy.targets.loihi import LoweredNetwork, analyse, graph_findings
from stars_deploy.targets.netx_rules import netx_problems
from stars_deploy.validate.capacity import capacity

__all__ = ["Finding", "check", "exit_code"]

_ORDER = {"error": 0, "warning": 1, "info": 2}


def check(graph: nir.NIRGraph, profile: Profile) -> list[Finding]:
    """Return all findings about `graph` on `profile`, errors first; never raises on a bad graph.

    For a Loihi profile the lowering itself is run, so that every refusal of it is a finding here.
    """
    if profile.arithmetic is None:
        return graph_findings(graph, profile)
    analysis = analyse(graph, profile)
    found = [*analysis.findings, *capacity(analysis.stages, profile)]
    if analysis.network is not None:
        found += _netx(analysis.network)
    return sorted(found, key=lambda item: _ORDER[item.severity])


def _netx(network: LoweredNetwork) -> list[Finding]:
    """Return what lava-dl's NetX would change silently; raw Lava computes it as it is."""
    return [
        Finding(
            "netx", "warning", None, problem, remedy="run it in raw Lava; no NetX file is written"
        )
        for problem in netx_problems(network.document, network.arrays)
    ]
