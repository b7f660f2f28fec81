"""ONNX models with int8 weights: their arithmetic, their size, and how they are judged."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import bundles
import nir
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_networks import clear_mismatches, image_shape, random_graph, random_images
from test_onnx_models import every_node

from stars_deploy.errors import BundleError
from stars_deploy.files import read_npz
from stars_deploy.graph.metadata import GraphMetadata, with_metadata
from stars_deploy.graph.writer import write_graph
from stars_deploy.simulation.onnx_engine import OnnxEngine
from stars_deploy.simulation.reference import FloatEngine
from stars_deploy.targets.bundle import open_bundle, seal
from stars_deploy.targets.onnx import build_onnx, build_step_onnx
from stars_deploy.targets.onnx_int8 import quantise_rows, with_int8_weights
from stars_deploy.targets.onnx_options import OnnxOptions
from stars_deploy.workflow.export import export
from stars_deploy.workflow.simulate import simulate
from stars_deploy.workflow.validate import validate

INT8 = OnnxOptions(weights="int8")
MODELS = ("model_int8.onnx", "model_step_int8.onnx")
NEAR = 1e-5


# ---- the arithmetic --------------------------------------------------------------------------


def test_rows_by_hand() -> None:
    weight = np.array([[1.27, -0.5, 0.004], [0, 0, 0], [-2.54, 1.0, 2.54]])
    q, scale = quantise_rows(weight)
    assert q.dtype == np.int8 and scale.dtype == np.float32
    np.testing.assert_array_equal(q, [[127, -50, 0], [0, 0, 0], [-127, 50, 127]])
    np.testing.assert_allclose(scale, [0.01, 1.0, 0.02], rtol=1e-7)


@given(seed=st.integers(0, 2**32 - 1), power=st.integers(-20, 10))
def test_error_is_at_most_half_a_step_and_the_sign_is_kept(seed: int, power: int) -> None:
    weight = np.random.default_rng(seed).normal(0, 2.0**power, (4, 3, 2, 2))
    q, scale = quantise_rows(weight)
    step = scale.astype(np.float64).reshape(-1, 1, 1, 1)
    assert (np.abs(q * step - weight) <= step * (0.5 + 1e-4)).all()
    assert (np.abs(q).reshape(4, -1).max(axis=1) == 127).all()
    np.testing.assert_array_equal(quantise_rows(-weight)[0], -q)


def test_a_skip_of_ones_stays_exact() -> None:
    node = nir.Conv2d((2, 2), np.eye(3).reshape(3, 3, 1, 1), 1, 0, 1, 1, np.zeros(3))
    weight = with_int8_weights(nir.NIRGraph({"conv": node}, [], type_check=False)).nodes["conv"]
    np.testing.assert_array_equal(weight.weight, node.weight)


def engine_of(graph: nir.NIRGraph, folder: Path, options: OnnxOptions = INT8) -> OnnxEngine:
    for name, build in zip(MODELS, (build_onnx, build_step_onnx), strict=True):
        model = build(graph, options)
        onnx.checker.check_model(model, full_check=True)
        (folder / name).write_bytes(model.SerializeToString())
    return OnnxEngine(*(folder / name for name in MODELS), threads=1, name="onnx-int8")


@pytest.mark.parametrize("opset", [13, 17, 20, 23])
@pytest.mark.parametrize("graph", [every_node(), random_graph(5)], ids=["every node", "chain"])
def test_the_models_compute_what_their_weights_say(
    graph: nir.NIRGraph, opset: int, tmp_path: Path
) -> None:
    images = random_images(6, image_shape(graph), 5)
    engine = engine_of(graph, tmp_path, OnnxOptions(opset, "int8"))
    answer, counts = engine.run(images), engine.counts(images)
    coarse = FloatEngine(with_int8_weights(graph)).run(images, feed=answer.spikes, margins=True)
    assert clear_mismatches(coarse, answer.spikes, NEAR) == 0
    np.testing.assert_allclose(answer.logits, coarse.logits, atol=1e-5)
    for node, spikes in answer.spikes.items():
        np.testing.assert_array_equal(counts.spikes[node], spikes.sum(axis=0))
    exact = FloatEngine(graph).run(images)
    assert any((exact.spikes[node] != spikes).any() for node, spikes in answer.spikes.items())


def test_weights_are_stored_once_in_one_byte_and_grouped_ones_compact() -> None:
    model = build_onnx(every_node(), INT8)
    stored = {item.name: item for item in model.graph.initializer}
    assert list(stored["conv2.weight.int8"].dims) == [4, 1, 3, 3]
    assert stored["conv2.weight.int8"].data_type == onnx.TensorProto.INT8
    assert "conv2.weight" not in stored
    scaled = [node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"]
    weighted = ("conv1", "conv2", "widen", "pad", "linear", "conv3", "fc")
    assert sorted(scaled) == sorted(f"{name}.weight" for name in weighted)


def test_a_quarter_of_the_size_and_the_same_bytes_again() -> None:
    rng = np.random.default_rng(0)
    nodes = {
        "input": nir.Input({"input": np.array((1, 16, 16))}),
        "flat": nir.Flatten({"input": np.array((1, 16, 16))}, 0, -1),
        "fc1": nir.Affine(rng.normal(0, 0.1, (512, 256)), np.zeros(512)),
        "lif1": nir.LIF(*(np.full(512, x) for x in (2e-4, 1.0, 0.0, 1.0, 0.0))),
        "fc2": nir.Affine(rng.normal(0, 0.1, (10, 512)), np.zeros(10)),
        "output": nir.Output({"output": np.array((10,))}),
    }
    edges = list(zip(nodes, list(nodes)[1:], strict=False))
    graph = with_metadata(
        nir.NIRGraph(nodes, edges, type_check=False), GraphMetadata(T=4, mean=(0.5,), std=(0.5,))
    )
    small, again = (build_onnx(graph, INT8).SerializeToString() for _ in range(2))
    assert small == again
    assert 3.8 < len(build_onnx(graph).SerializeToString()) / len(small) < 4.0


# ---- bundles ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int8")
    write_graph(random_graph(6, 3, steps=(4, 4)), folder / "net.nir")
    export(
        folder / "net.nir", ["onnx"], "loihi2", 16, "raw", folder / "bundle",
        opset=17, onnx_weights="int8",
    )  # fmt: skip
    return folder / "bundle"


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Path:
    return shutil.copytree(exported, tmp_path / "bundle")


def failures(result: dict) -> list[tuple[str, str]]:
    return [(f["code"], f["node"]) for f in result["findings"] if f["severity"] == "error"]


def test_both_pairs_are_sealed_and_as_asked(bundle: Path) -> None:
    assert {*MODELS, "model.onnx", "model_step.onnx"} <= open_bundle(bundle).manifest[
        "sha256"
    ].keys()
    for name in (*MODELS, "model.onnx"):
        assert onnx.load(bundle / name).opset_import[0].version == 17


def test_validate_compares_within_the_profile(bundle: Path) -> None:
    result = validate(bundle, "loihi2", "onnx-int8")
    assert result["verdict"] == "pass", result["reason"]
    assert result["engine"]["name"] == "onnx-int8" and result["reference"]["engine"] == "float"
    assert result["tolerances"]["layer_spikes_relative"] == 0.1
    assert sum(layer["mismatches"] for layer in result["layers"]) > 0  # weights were rounded
    assert "onnx-int8" not in {item["name"] for item in result["engines_not_run"]}
    assert validate(bundle, "loihi2", "onnx")["verdict"] == "pass"


def test_simulate_takes_the_files_or_builds_them(bundle: Path) -> None:
    held = simulate(bundle, "loihi2", "onnx-int8")
    built = simulate(bundle.parent / "bundle" / "graph.nir", "loihi2", "onnx-int8", limit=4)
    assert held["engine"]["name"] == built["engine"]["name"] == "onnx-int8"
    golden = read_npz(bundle / "golden.npz")
    for layer in held["layers"]:
        expected = golden[f"float-int8.spikes.{layer['name']}"].sum()
        assert layer["spikes"] == pytest.approx(expected, abs=2)


def test_a_changed_code_is_named(bundle: Path) -> None:
    for name in MODELS:
        model = onnx.load(bundle / name)
        stored = next(t for t in model.graph.initializer if t.name == "conv2.weight.int8")
        codes = -onnx.numpy_helper.to_array(stored)
        stored.CopyFrom(onnx.numpy_helper.from_array(codes, stored.name))
        (bundle / name).write_bytes(model.SerializeToString(deterministic=True))
    seal(bundle)
    found = failures(validate(bundle, "loihi2", "onnx-int8"))
    assert ("lowering.onnx", "conv2") in found and ("parity.spikes", "lif2") in found


def test_another_operator_set_is_noticed(bundle: Path) -> None:
    """The file says which set it was built for; one that is never written is a difference."""
    model = onnx.load(bundle / MODELS[0])
    model.opset_import[0].version = 12
    (bundle / MODELS[0]).write_bytes(model.SerializeToString(deterministic=True))
    seal(bundle)
    with pytest.raises(BundleError, match="not a readable ONNX model"):
        validate(bundle, "loihi2", "onnx-int8")
    assert ("lowering.onnx", None) in failures(validate(bundle, "loihi2", "onnx"))


def test_a_changed_recording_is_noticed(bundle: Path) -> None:
    def flip(arrays: dict[str, np.ndarray]) -> None:
        arrays["float-int8.spikes.lif2"] = 1 - arrays["float-int8.spikes.lif2"]

    bundles.change_arrays(bundle / "golden.npz", flip)
    seal(bundle)
    found = failures(validate(bundle, "loihi2", "onnx-int8"))
    assert ("golden.float-int8", "lif2") in found


def test_a_bundle_without_them_says_how_to_get_them(tmp_path: Path) -> None:
    bundle = bundles.write_bundle(tmp_path, ("onnx",), golden=2)
    assert not (bundle / MODELS[0]).exists()
    with pytest.raises(BundleError, match="--target onnx --onnx-weights int8"):
        validate(bundle, "loihi2", "onnx-int8")


@pytest.mark.parametrize("options", [[], ["--step"]])
def test_the_script_of_the_bundle_runs_them(bundle: Path, options: list[str]) -> None:
    command = [sys.executable, "-I", str(bundle / "run_onnx.py"), "--int8", "--threads", "1"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "_int8.onnx" in done.stdout and "golden: ok (0 spikes differ" in done.stdout
    (bundle / MODELS[bool(options)]).unlink()
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "--onnx-weights int8" in done.stderr


def test_the_command_line_hands_the_options_on(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "stars_deploy", "--json", "export", str(bundle / "graph.nir")]
    command += ["--target", "onnx", "--opset", "13", "--onnx-weights", "int8", "--golden", "2"]
    done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["onnx"] == {"opset": 13, "weights": "int8"}
    assert onnx.load(out / MODELS[0]).opset_import[0].version == 13
