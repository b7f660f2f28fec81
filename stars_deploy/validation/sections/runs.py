"""The verdicts on a bundle: which engines ran, layer by layer, and what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stars_deploy.validation.bars import rates_chart, spikes_chart

Json = dict[str, Any]


def verdict(runs: Sequence[Json]) -> Json:
    """Return the overall verdict, one sentence on it, and what failed."""
    failed = [run for run in runs if run["verdict"] != "pass"]
    return {
        "overall": "fail" if failed else "pass",
        "summary": _summary(runs, failed),
        "failures": [f"{run['engine']['name']}: {run['reason']}" for run in failed],
    }


def _summary(runs: Sequence[Json], failed: Sequence[Json]) -> str:
    names = ", ".join(f"{run['engine']['name']} on {run['n']:,} images" for run in runs)
    if failed:
        return f"{len(failed)} of {len(runs)} comparisons failed. Compared: {names}."
    return f"Every engine that was run agrees with its reference: {names}."


def with_figures(run: Json) -> Json:
    """Return a verdict with its figures, and its texts in words."""
    layers = run["layers"]
    reference = _reference_name(run["reference"])
    name = run["engine"]["name"]
    tolerances = run["tolerances"]
    shown = [f"{k.replace('_', ' ')} {real(v)}" for k, v in tolerances.items() if k != "source"]
    return {
        **run,
        "reference_name": reference,
        "spikes_chart": spikes_chart(layers, reference, name),
        "rates_chart": rates_chart(layers),
        "tolerances_text": ", ".join(shown) + f" ({tolerances['source']})",
    }


def _reference_name(reference: Mapping[str, Any]) -> str:
    if reference["engine"] == "training":
        return f"training ({reference['device']})"
    return f"{reference['engine']} as exported" if reference["recorded"] else reference["engine"]


def never_run(runs: Sequence[Json]) -> list[Json]:
    """Return the engines that no run used, with the latest reason."""
    reasons: dict[str, str] = {}
    for run in reversed(runs):
        reasons |= {item["name"]: item["reason"] for item in run["engines_not_run"]}
    everywhere = set.intersection(
        *({item["name"] for item in run["engines_not_run"]} for run in runs)
    )
    return [{"name": n, "reason": r} for n, r in reasons.items() if n in everywhere]


def findings(runs: Sequence[Json]) -> list[Json]:
    """Return the findings of all runs, each once, errors first."""
    seen: dict[tuple[str, ...], Json] = {}
    for run in runs:
        for finding in run["findings"]:
            key = (finding["code"], str(finding["node"]), finding["message"])
            seen.setdefault(key, finding)
    order = {"error": 0, "warning": 1, "info": 2}
    return sorted(seen.values(), key=lambda item: order.get(item["severity"], 3))


def real(value: float | None) -> str:
    """Return a number with four digits, a large one in full; - for none."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
