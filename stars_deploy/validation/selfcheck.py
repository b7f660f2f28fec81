"""Does the bundle still compute what it computed when it was exported?"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from stars_deploy.errors import BundleError
from stars_deploy.simulation.recording import Engine, EngineInfo, Recording
from stars_deploy.targets.bundle import Golden
from stars_deploy.targets.findings import Finding
from stars_deploy.validation import judge
from stars_deploy.validation.parity import NEAR, Images, Isolation, compare

if TYPE_CHECKING:
    from stars_deploy.simulation.onnx_engine import OnnxEngine


def recorded(golden: Golden, engine: str, version: str) -> Recording:
    """Return what an engine (float, integer) answered to the golden images at export.

    Raises: BundleError if golden.npz does not hold it.
    """
    if engine not in golden.logits or engine not in golden.spikes:
        raise BundleError(
            f"golden.npz: holds no recording of engine {engine}; export the bundle again"
        )
    info = EngineInfo(f"its recording at export ({engine})", version, "simulated")
    return Recording(info, golden.logits[engine], golden.spikes[engine])


def golden_findings(golden: Golden, name: str, engine: Engine, batch: int) -> list[Finding]:
    """Run `engine` on the golden images again and compare with its own recording.

    The float engine may differ in near ties (another machine adds in another order), the integer
    engine in nothing.
    """
    near = 0.0 if name == "integer" else NEAR
    before = recorded(golden, name, engine.info.version)
    isolation = Isolation(engine, feed="reference", near=near)
    parity = compare(golden.images, golden.labels, before, engine, isolation, batch)
    found = judge.exact(parity) if near == 0 else judge.up_to_near_ties(parity)
    return [dataclasses.replace(item, code=f"golden.{name}") for item in found]


def unrolled_findings(
    engine: OnnxEngine, reference: Engine, images: Images, batch: int
) -> list[Finding]:
    """Compare model.onnx with model_step.onnx: spikes per neuron over T, and logits.

    A count may differ where the neuron came within NEAR of the threshold, and so may whatever
    follows in that image.
    """
    wrong = dict.fromkeys(engine.nodes, 0)
    distance, scale = 0.0, 1.0
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        steps, whole = engine.run(part), engine.counts(part)
        excused = np.zeros(len(part), bool)
        differing = {
            node: steps.spikes[node].sum(axis=0, dtype=np.int32) != whole.spikes[node]
            for node in engine.nodes
        }
        margins = None
        for node, differs in differing.items():
            if not differs.any():
                continue
            if margins is None:
                margins = reference.run(part, feed=steps.spikes, margins=True).margins or {}
            close = (np.abs(margins[node]) <= NEAR).any(axis=0)
            axes = tuple(range(1, differs.ndim))
            excused |= (differs & close).any(axis=axes)
            wrong[node] += int(np.count_nonzero(differs.any(axis=axes) & ~excused))
        difference = np.abs(steps.logits - whole.logits).max(axis=1)
        distance = max(distance, float(difference[~excused].max(initial=0)))
        scale = max(scale, float(np.abs(steps.logits).max(initial=0)))
    found = [_count_finding(node, count) for node, count in wrong.items() if count]
    limit = judge.READOUT_RELATIVE * scale
    if distance > limit and not found:
        message = f"logits of model.onnx and model_step.onnx differ by up to {distance:.3g}"
        found.append(
            Finding("parity.unrolled", "error", judge.READOUT, message, distance, limit, _REMEDY)
        )
    return found


_REMEDY = "export the bundle again"


def _count_finding(node: str, images: int) -> Finding:
    message = f"spike counts of model.onnx and model_step.onnx differ in {images} images"
    return Finding("parity.unrolled", "error", node, message, images, 0, _REMEDY)
