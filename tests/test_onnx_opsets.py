"""model.onnx in every operator set that is offered, and at several batch sizes."""

from __future__ import annotations

from pathlib import Path

import nir
import numpy as np
import onnx
import pytest
from random_networks import image_shape, random_graph, random_images
from test_onnx_models import every_node

from stars_deploy.errors import InputError
from stars_deploy.simulation.onnx_engine import OnnxEngine
from stars_deploy.simulation.reference import FloatEngine
from stars_deploy.targets.onnx import build_onnx, build_step_onnx
from stars_deploy.targets.onnx_options import OPSETS, OnnxOptions, Weights, onnx_options

BATCHES = (1, 3, 16)
GRAPHS = {"every node type": every_node(), "chain": random_graph(1)}
# The oldest file format of an operator set (onnx/docs/Versioning.md); runtimes refuse newer ones.
OLDEST_FORMAT = {11: 6, 13: 7, 15: 8, 20: 9, 21: 10, 23: 11}


def engine_of(graph: nir.NIRGraph, folder: Path, options: OnnxOptions) -> OnnxEngine:
    model, step = folder / "model.onnx", folder / "model_step.onnx"
    for path, build in ((model, build_onnx), (step, build_step_onnx)):
        written = build(graph, options)
        onnx.checker.check_model(written, full_check=True)
        assert written.opset_import[0].version == options.opset
        path.write_bytes(written.SerializeToString())
    return OnnxEngine(model, step, threads=1)


@pytest.mark.parametrize("opset", OPSETS["float32"])
@pytest.mark.parametrize("name", GRAPHS)
def test_spikes_and_logits_at_every_operator_set_and_batch_size(
    name: str, opset: int, tmp_path: Path
) -> None:
    graph = GRAPHS[name]
    engine = engine_of(graph, tmp_path, OnnxOptions(opset))
    images = random_images(max(BATCHES), image_shape(graph), 7)
    expected = FloatEngine(graph).run(images, margins=True)
    assert all(0.02 < spikes.mean() < 0.9 for spikes in expected.spikes.values())
    assert min(np.abs(margin).min() for margin in expected.margins.values()) > 1e-6
    for count in BATCHES:
        steps, whole = engine.run(images[:count]), engine.counts(images[:count])
        np.testing.assert_allclose(whole.logits, expected.logits[:count], atol=1e-5)
        np.testing.assert_allclose(steps.logits, expected.logits[:count], atol=1e-5)
        for node, spikes in expected.spikes.items():
            np.testing.assert_array_equal(steps.spikes[node], spikes[:, :count])
            np.testing.assert_array_equal(whole.spikes[node], spikes[:, :count].sum(axis=0))


def test_a_file_is_as_old_as_its_operator_set() -> None:
    for opset, version in OLDEST_FORMAT.items():
        assert build_onnx(GRAPHS["chain"], OnnxOptions(opset)).ir_version == version


@pytest.mark.parametrize(("weights", "operator"), [("float32", "Gemm"), ("int8", "axis")])
def test_one_operator_set_less_lacks_an_operator(weights: Weights, operator: str) -> None:
    lowest = OPSETS[weights][0]
    model = build_onnx(GRAPHS["every node type"], OnnxOptions(lowest, weights))
    onnx.checker.check_model(model, full_check=True)
    model.opset_import[0].version = lowest - 1
    with pytest.raises(onnx.checker.ValidationError, match=operator):
        onnx.checker.check_model(model, full_check=True)


@pytest.mark.parametrize(
    ("opset", "weights", "wanted", "words"),
    [
        (10, None, True, r"--opset 10: .* float32 weights can be written for 11 to 23"),
        (24, None, True, r"--opset 24: .* 11 to 23"),
        (12, "int8", True, r"--opset 12: .* int8 weights can be written for 13 to 23"),
        (None, "int4", True, r"--onnx-weights 'int4' is unknown"),
        (13, None, False, r"--opset 13: is about ONNX models; add --target onnx"),
        (None, "int8", False, r"--onnx-weights int8: is about ONNX models"),
    ],
)
def test_what_cannot_be_written_is_refused(
    opset: int | None, weights: str | None, wanted: bool, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        onnx_options(opset, weights, wanted)


def test_without_options_the_default_is_written() -> None:
    assert onnx_options(None, None, True) == OnnxOptions(20, "float32")
    assert onnx_options(None, None, False) is None
