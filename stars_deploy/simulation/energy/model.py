"""Modeled energy and latency: what an engine counted times what a profile says one event costs.

Nothing here is measured. docs/energy.md states the formulas, the sources, and what is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import nir

from stars_deploy.config.profile import Energy, Profile, Timing
from stars_deploy.config.profile_values import Confidence, Real
from stars_deploy.graph.metadata import metadata_of
from stars_deploy.simulation.energy.activity import Activity
from stars_deploy.simulation.energy.counts import ann_macs
from stars_deploy.simulation.energy.events import Events, Relay, events_of, input_on_host
from stars_deploy.simulation.energy.latency import Latency, bounds, placed

Row = dict[str, Any]

# Weakest last: a sum is as trustworthy as the weakest constant in it.
TRUST: tuple[Confidence, ...] = ("code", "paper", "secondary", "inferred", "choice")
_HOROWITZ = (
    "Horowitz, Computing's energy problem (and what we can do about it), ISSCC 2014: "
    "45 nm, 0.9 V, arithmetic alone"
)
# Energy in pJ of one multiply-accumulate (multiplication + addition), whatever the profile.
MAC_PJ: Mapping[str, Real] = {
    "fp32": Real(value=4.6, source=f"{_HOROWITZ}, 3.7 + 0.9 pJ", confidence="secondary"),
    "int8": Real(value=0.23, source=f"{_HOROWITZ}, 0.2 + 0.03 pJ", confidence="secondary"),
}


class Hops(Protocol):
    """Messages between cores and the mesh links they cross, totals over the images counted."""

    @property
    def messages(self) -> float:
        """Messages, one for each spike and core it is sent to."""

    @property
    def east_west(self) -> float | None:
        """Crossings between tiles that are neighbours east and west; None: mesh not known."""

    @property
    def north_south(self) -> float | None:
        """Crossings between tiles that are neighbours north and south; None: mesh not known."""

    @property
    def off_chip(self) -> float:
        """Messages to another chip."""


def modeled(
    graph: nir.NIRGraph,
    activity: Activity,
    profile: Profile,
    relays: Sequence[Relay] = (),
    hops: Hops | None = None,
    cores: Mapping[str, int] | None = None,
) -> list[Row]:
    """Return energy, latency and the comparison with the ANN, per image.

    Each row is {name, value, unit, kind, source, confidence} and its kind is `modeled`. A profile
    without the constants gives no rows.

    Args:
        activity: what `CountingEngine` counted.
        relays: populations that the lowering adds, see `relays_of`.
        hops: of a placement; without, one message within a tile is charged for each spike.
        cores: of a placement, the number of cores that each population has to itself; without,
            latency is given as bounds.
    """
    if activity.images == 0 or (profile.energy is None and profile.timing is None):
        return []
    events = events_of(graph, activity, input_on_host(profile), relays)
    rows = []
    if profile.energy is not None:
        steps = metadata_of(graph).T
        rows = _energy_rows(events, steps, profile.energy, hops, activity.images)
        rows += _ann_rows(ann_macs(graph), rows[-1])
    if profile.timing is not None:
        rows += _latency_rows(events, profile, profile.timing, cores)
    return rows


def _row(name: str, value: float, unit: str, source: str, confidence: Confidence) -> Row:
    return {
        "name": name,
        "value": value,
        "unit": unit,
        "kind": "modeled",
        "source": source,
        "confidence": confidence,
    }


def _weakest(rows: Sequence[Row]) -> Confidence:
    return TRUST[max(TRUST.index(row["confidence"]) for row in rows)]


def _charge(name: str, count: float, cost: Real) -> Row:
    """Return count * cost as nJ per image."""
    text = f"{count:,.0f} x {cost.value:g} pJ; {cost.source}"
    return _row(name, count * cost.value / 1000, "nJ/image", text, cost.confidence)


def _energy_rows(
    events: Events, steps: int, energy: Energy, hops: Hops | None, images: int
) -> list[Row]:
    """E = e_syn N_syn + e_active N_active + e_idle N_idle + e_spike N_messages (+ hops)."""
    held = events.populations
    spikes = float(sum(p.messages.sum() for p in held))
    sent = spikes if hops is None else hops.messages / images
    operations = float(sum(p.synaptic_operations.sum() for p in held))
    rows = [
        _charge("synaptic_operations", operations, energy.synaptic_operation_pj),
        _charge(
            "neuron_updates_active",
            float(sum(p.active.sum() for p in held)),
            energy.neuron_update_active_pj,
        ),
        _charge(
            "neuron_updates_idle",
            float(sum(p.idle.sum() for p in held)),
            energy.neuron_update_inactive_pj,
        ),
        _charge("spikes", sent, energy.spike_within_tile_pj),
    ]
    if events.input_messages:
        total = float(steps * events.input_messages)
        rows.append(_charge("input_messages", total, energy.spike_within_tile_pj))
    if hops is not None and hops.east_west is not None and hops.north_south is not None:
        rows += [
            _charge("hops_east_west", hops.east_west / images, energy.hop_east_west_pj),
            _charge("hops_north_south", hops.north_south / images, energy.hop_north_south_pj),
        ]
    note = "sum of the above, not counted: " + ", ".join(_left_out(events, hops, images))
    if energy.extrapolated_from:
        note += f"; constants of {energy.extrapolated_from}"
    value = sum(row["value"] for row in rows)
    return [*rows, _row("total", value, "nJ/image", note, _weakest(rows))]


def _left_out(events: Events, hops: Hops | None, images: int) -> list[str]:
    missing = ["static power", "input and output of the chip"]
    if hops is None:
        missing.append("hops between tiles (no placement)")
    elif hops.east_west is None:
        missing.append("hops between tiles (the mesh is not public)")
    if hops is not None and hops.off_chip:
        missing.append(f"{hops.off_chip / images:,.0f} messages to other chips")
    if events.host_macs:
        missing.append(f"{events.host_macs:,} MACs of the first layer on the host")
    return missing


def _latency_rows(
    events: Events, profile: Profile, timing: Timing, cores: Mapping[str, int] | None
) -> list[Row]:
    """Rows in us; every step lasts as long as its slowest core, plus a barrier."""
    origin = timing.synaptic_operation_ns
    tail = f"steps of the slowest core and a barrier each; {origin.source}"
    depth = max(population.depth for population in events.populations)
    steps = len(events.populations[0].active)
    first = f"T + L = {steps} + {depth} {tail}"
    interval = f"T = {steps} {tail}"

    def rows(suffix: str, latency: Latency, how: str) -> list[Row]:
        values = (("latency", latency.first_ns, first), ("interval", latency.interval_ns, interval))
        return [
            _row(name + suffix, value / 1000, "us/image", f"{how}: {text}", origin.confidence)
            for name, value, text in values
        ]

    if cores is not None:
        return rows("", placed(events, timing, cores), f"placed on {sum(cores.values())} cores")
    least, most = bounds(events, timing, profile.limits)
    return [
        *rows("_least", least, "no placement, work even on all cores"),
        *rows("_most", most, "no placement, one core does everything"),
    ]


def _ann_rows(macs: int, total: Row) -> list[Row]:
    """One pass of the ANN with the same operators, and energy / ANN energy (below 1: less)."""
    rows = []
    for name, cost in MAC_PJ.items():
        ann = _charge(f"ann_{name}", macs, cost)
        rows.append(ann)
        weakest = _weakest([ann, total])
        if macs:
            note = (
                f"total / ann_{name}; the ANN of the same operators, each evaluated once, "
                f"arithmetic alone: memory access is not counted for it"
            )
            ratio = total["value"] / ann["value"]
            rows.append(_row(f"ratio_to_ann_{name}", ratio, "ratio", note, weakest))
    return rows
