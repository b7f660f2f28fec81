"""Which engine is compared with what, and by which rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from stars_deploy.errors import BundleError
from stars_deploy.simulation.energy.activity import CountingEngine
from stars_deploy.simulation.recording import Engine, Recording
from stars_deploy.targets.findings import Finding
from stars_deploy.validation import document, judge
from stars_deploy.validation.counts import Parity
from stars_deploy.validation.parity import Isolation, compare
from stars_deploy.validation.selfcheck import recorded, unrolled_findings
from stars_deploy.validation.training import against_training
from stars_deploy.workflow.setting import Setting

if TYPE_CHECKING:
    from stars_deploy.simulation.onnx_engine import OnnxEngine

Json = dict[str, Any]
Tick = Callable[[int], None]


@dataclass(frozen=True)
class Outcome:
    """What running the engine asked for gave, in the parts of validation.json."""

    parity: Json
    findings: list[Finding]
    rule: Json
    reference: Json
    also: list[Json]
    ran: set[str]


def _compared(
    setting: Setting,
    target: Engine,
    reference: Engine | Recording,
    isolation: Isolation,
    tick: Tick,
) -> Parity:
    samples = setting.samples
    return compare(
        samples.images, samples.labels, reference, target, isolation, setting.batch, tick
    )


def _stored(setting: Setting, engine: Engine, name: str) -> Engine | Recording:
    """Return what was recorded at export for golden images, the engine itself for others."""
    if not setting.golden_only:
        return engine
    return recorded(setting.golden, name, engine.info.version)


def _integer(setting: Setting, target: CountingEngine, tick: Tick) -> Outcome:
    """Integer arithmetic against the float graph, within the tolerances of the profile."""
    reference = setting.build("float")
    parity = _compared(setting, target, reference, Isolation(reference), tick)
    tolerances = setting.profile.tolerances
    found = [*judge.within(parity, tolerances), *judge.evidence(parity)]
    rule = judge.rule("within", tolerances, parity.labelled)
    return Outcome(
        document.parity_json(parity), found, rule, _reference("float"), [], {"float", "integer"}
    )


def _onnx(setting: Setting, target: CountingEngine, tick: Tick) -> Outcome:
    """onnxruntime against the float graph: equal but for near ties; both models alike."""
    reference = setting.build("float")
    parity = _compared(setting, target, reference, Isolation(reference), tick)
    found = judge.up_to_near_ties(parity)
    found += unrolled_findings(
        cast("OnnxEngine", target.engine), reference, setting.samples.images, setting.batch
    )
    found += judge.evidence(parity)
    rule = judge.rule("up_to_near_ties", setting.profile.tolerances, parity.labelled)
    return Outcome(
        document.parity_json(parity), found, rule, _reference("float"), [], {"float", "onnx"}
    )


def _onnx_int8(setting: Setting, target: CountingEngine, tick: Tick) -> Outcome:
    """Int8 weights against the float graph, within the tolerances of the profile.

    The files besides: against the float engine with the same int8 weights, equal but for near ties.
    """
    reference, coarse = setting.build("float"), setting.build("float-int8")
    parity = _compared(setting, target, reference, Isolation(reference), tick)
    tolerances = setting.profile.tolerances
    found = judge.within(parity, tolerances)
    engine = cast("OnnxEngine", target.engine)
    same = _compared(setting, engine, coarse, Isolation(coarse), lambda done: None)
    found += judge.up_to_near_ties(same)
    found += unrolled_findings(engine, coarse, setting.samples.images, setting.batch)
    found += judge.evidence(parity)
    rule = judge.rule("within", tolerances, parity.labelled)
    whole = document.parity_json(parity)
    return Outcome(whole, found, rule, _reference("float"), [], {"float", "onnx-int8"})


def _lava(setting: Setting, target: CountingEngine, tick: Tick) -> Outcome:
    """Lava's fixed-point models against the integer engine: equal, raw and through NetX."""
    engines: list[Engine] = [target]
    if setting.bundle.has("loihi/network.net"):
        engines.append(setting.build("lava-netx"))
    return _exact(setting, engines, tick)


def _elsewhere(setting: Setting, target: CountingEngine, tick: Tick) -> Outcome:
    """The trace of a run elsewhere against the integer engine: equal."""
    return _exact(setting, [target], tick)


def _exact(setting: Setting, engines: Sequence[Engine], tick: Tick) -> Outcome:
    """Integer arithmetic elsewhere against ours; the first engine gives the verdict's numbers."""
    integer = setting.build("integer")
    isolation = Isolation(integer, near=0.0)
    parities = [
        _compared(setting, engine, _stored(setting, integer, "integer"), isolation, tick)
        for engine in engines
    ]
    found = [finding for parity in parities for finding in judge.exact(parity)]
    found += judge.evidence(parities[0])
    rule = judge.rule("exact", setting.profile.tolerances, parities[0].labelled)
    also = [document.also_json(parity) for parity in parities[1:]]
    reference = _reference("integer", setting.golden_only)
    whole = document.parity_json(parities[0])
    return Outcome(whole, found, rule, reference, also, {"float", "integer", setting.engine})


def _float(setting: Setting, target: CountingEngine, tick: Tick) -> Outcome:
    """The float graph against its golden recording, or with data against training.json."""
    if setting.golden_only:
        isolation = Isolation(target, feed="reference")
        parity = _compared(setting, target, _stored(setting, target, "float"), isolation, tick)
        found = [*judge.up_to_near_ties(parity), *judge.evidence(parity)]
        rule = judge.rule("up_to_near_ties", setting.profile.tolerances, parity.labelled)
        whole = document.parity_json(parity)
        return Outcome(whole, found, rule, _reference("float", True), [], {"float"})
    training = setting.training
    if training is None:
        raise BundleError(
            f"{setting.bundle.path}: has no training.json to compare engine float with; run "
            "stars-deploy evaluate on the run and export again"
        )
    whole, found, rule = against_training(target, setting.samples, training, setting.batch, tick)
    reference = {"engine": "training", "device": training["device"], "recorded": True}
    return Outcome(whole, found, rule, reference, [], {"float"})


#: By engine: run it on the images of the setting and compare.
COMPARISONS: dict[str, Callable[[Setting, CountingEngine, Tick], Outcome]] = {
    "float": _float,
    "integer": _integer,
    "onnx": _onnx,
    "onnx-int8": _onnx_int8,
    "lava": _lava,
    "hardware": _elsewhere,
    "recorded": _elsewhere,
}


def _reference(name: str, stored: bool = False) -> Json:
    return {"engine": name, "device": "cpu", "recorded": stored}
