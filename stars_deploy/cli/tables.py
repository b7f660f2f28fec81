"""Tables of findings, simulations and verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stars_deploy import console

Json = Mapping[str, Any]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def show_findings(findings: Sequence[Json]) -> None:
    """One row per finding, with what to do about it."""
    if findings:
        rows = [(f["severity"], f["node"], f["code"], f["message"], f["remedy"]) for f in findings]
        console.show("Findings", ("severity", "node", "code", "finding", "remedy"), rows)


def show_placement(result: Json) -> None:
    """One row per population: its cores, its chips, and its fullest core against the limits."""
    placement = result["placement"]
    if placement is None:
        return
    limits, totals = placement["core_limits"], placement["totals"]
    rows = [
        (
            f"{entry['name']} (relay)" if entry["node"] is None else entry["name"],
            entry["neurons"],
            entry["cores"],
            _chips(entry["chips"]),
            *(_share(entry["fullest"][name], limit) for name, limit in limits.items()),
        )
        for entry in placement["populations"]
    ]
    columns = (
        "population", "neurons", "cores", "chip", "neurons of the fullest core",
        "synaptic memory, bit", "input axons", "output axons",
    )  # fmt: skip
    of = "" if totals["cores_available"] is None else f" of {totals['cores_available']}"
    title = f"Placement on {result['profile']}: {totals['cores']}{of} cores"
    console.show(title, columns, rows)


def _chips(chips: Sequence[int]) -> str:
    return str(chips[0]) if len(chips) == 1 else f"{chips[0]} to {chips[-1]}"


def _share(value: int, limit: int | None) -> str:
    return str(value) if limit is None else f"{value} ({100 * value / limit:.0f} %)"


def show_simulation(result: Json) -> None:
    """Accuracy, spikes per layer and modeled energy of one engine."""
    engine = result["engine"]
    accuracy = _percent(result["accuracy"])
    title = f"{engine['name']} {engine['version']} ({engine['kind']})"
    title += f", {result['n']} {result['images']} images"
    rows = [(x["name"], x["neurons"], _percent(x["rate"]), x["spikes"]) for x in result["layers"]]
    console.show(f"{title}: accuracy {accuracy}", ("layer", "neurons", "rate", "spikes"), rows)
    _show_energy(result.get("energy") or [])


def _show_energy(energy: Sequence[Json]) -> None:
    """One row per quantity; the sources, which many share, stand below the table."""
    if not energy:
        return
    parts = [(row, *row["source"].partition("; ")) for row in energy]
    rows = [
        (row["name"], row["value"], row["unit"], how, row.get("confidence", "-"))
        for row, how, _, _source in parts
    ]
    columns = ("quantity", "value", "unit", "how", "confidence")
    console.show("Modeled energy and latency, none of it measured", columns, rows)
    for source in dict.fromkeys(source for _, _, _, source in parts if source):
        console.say(f"Source: {source}")


def _run_on(result: Json) -> str:
    return f"on {result['n']} {result['images']} images, profile {result['profile']}"


def show_validation(result: Json) -> None:
    """The verdict and the parity of every layer."""
    show_parity(result, result["engine"], _run_on(result))
    for other in result.get("also", []):
        show_parity(other, other["engine"], "the same images")
    accuracy = result["accuracy"]
    if accuracy:
        console.say(
            f"Accuracy: reference {_percent(accuracy['reference'])}, "
            f"target {_percent(accuracy['target'])}"
        )
    _show_energy(result["energy"])
    show_findings(result["findings"])
    for missing in result["engines_not_run"]:
        console.say(f"Not run: {missing['name']} ({missing['reason']})")
    console.say(f"Verdict: {result['verdict']}")


def show_parity(block: Json, engine: Json, what: str) -> None:
    """Spikes of target and reference, layer by layer."""
    rows = [
        (
            layer["name"],
            layer["state"],
            _percent(layer["rate"]),
            layer["spikes_reference"],
            layer["spikes_target"],
            _percent(layer["relative_difference"]),
            layer["mismatches"],
            layer["isolated_mismatches"],
            _percent(layer["isolated_relative_difference"]),
            layer["near_ties"],
            layer["first_step"],
        )
        for layer in block["layers"]
    ]
    columns = (
        "layer", "state", "rate", "spikes reference", "spikes target", "difference",
        "mismatches", "isolated", "isolated difference", "near ties", "first step",
    )  # fmt: skip
    console.show(f"{engine['name']} {engine['version']} ({engine['kind']}) {what}", columns, rows)
    if block["first_divergence"]:
        console.say(f"First difference: {divergence_text(block['first_divergence'])}")


def divergence_text(first: Json) -> str:
    """Say where two engines part: indices count from 0, as in golden.npz."""
    where = f"{first['node']}, image {first['image']}, step {first['step']}"
    text = f"{where}, neuron {tuple(first['neuron'])}: {first['target']} instead of "
    text += str(first["reference"])
    if first["margin"] is not None:
        text += f", H - V_th = {first['margin']:.3g}"
    return text + (" (near tie)" if first["near_tie"] else "")
