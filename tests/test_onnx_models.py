"""The ONNX models: valid, small, the same bytes every time, and spike for spike the reference."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import nir
import numpy as np
import onnx
import pytest
import random_networks
from hypothesis import given, settings
from random_networks import clear_mismatches, image_shape, random_graph, random_images

from stars_deploy.errors import BundleError, DataError, EngineError, GraphError
from stars_deploy.graph.gain import fold_gain
from stars_deploy.graph.groups import expand_kernel
from stars_deploy.graph.metadata import DT, GraphMetadata, metadata_of, with_metadata
from stars_deploy.graph.order import spiking_nodes
from stars_deploy.simulation.onnx_engine import OnnxEngine
from stars_deploy.simulation.reference import FloatEngine
from stars_deploy.targets.onnx import build_onnx, build_step_onnx

NEAR = 1e-5  # float32 may decide differently for margins |H - V_th| below this


def engine_of(graph: nir.NIRGraph, folder: Path) -> OnnxEngine:
    model, step = folder / "model.onnx", folder / "model_step.onnx"
    model.write_bytes(build_onnx(graph).SerializeToString())
    step.write_bytes(build_step_onnx(graph).SerializeToString())
    return OnnxEngine(model, step, threads=1)


def assert_parity(graph: nir.NIRGraph, folder: Path, seed: int = 5) -> None:
    images = random_images(6, image_shape(graph), seed)
    engine = engine_of(graph, folder)
    answer = engine.run(images)
    # Each layer of the reference gets the spikes that the model's layers got.
    reference = FloatEngine(graph).run(images, feed=answer.spikes, margins=True)
    assert engine.nodes == spiking_nodes(graph)
    assert clear_mismatches(reference, answer.spikes, NEAR) == 0
    np.testing.assert_allclose(answer.logits, reference.logits, atol=1e-5)
    counts = engine.counts(images)
    np.testing.assert_allclose(counts.logits, answer.logits, atol=1e-5)
    for name in engine.nodes:
        total = answer.spikes[name].sum(axis=0, dtype=np.int32)
        np.testing.assert_array_equal(counts.spikes[name], total)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(graph=random_networks.graphs(v_resets=(0.0, -0.25)))
def test_random_networks_agree_with_the_reference(
    graph: nir.NIRGraph, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert_parity(graph, tmp_path_factory.mktemp("onnx"))


def test_folded_gain_agrees_with_the_reference(tmp_path: Path) -> None:
    assert_parity(fold_gain(random_graph(5)), tmp_path)


def test_exact_ties_do_not_spike(tmp_path: Path) -> None:
    """Weights k/64 and pixels 0 or 255 are exact in float32: equality at the threshold occurs."""
    ties = 0
    for seed in range(6):
        graph = random_graph(seed, dyadic=True, pools=False, steps=(3, 3))
        channels = image_shape(graph)[0]
        plain = GraphMetadata(T=3, mean=(0.0,) * channels, std=(1.0,) * channels)
        graph = with_metadata(graph, plain)
        images = (random_images(8, image_shape(graph), seed) > 60).astype(np.uint8) * 255
        answer = engine_of(graph, tmp_path).run(images)
        reference = FloatEngine(graph).run(images, margins=True)
        for name, spikes in reference.spikes.items():
            np.testing.assert_array_equal(answer.spikes[name], spikes)
            ties += int((reference.margins[name] == 0).sum())
    assert ties > 10


def every_node() -> nir.NIRGraph:
    """A graph with every supported node type, a residual add, groups, dilation and per-neuron
    parameters."""
    rng = np.random.default_rng(0)
    shape, wide, line = (2, 6, 6), (4, 3, 3), (5, 4)

    def lif(shape: tuple[int, ...]) -> nir.LIF:
        spread = rng.uniform(0.8, 1.2, (2, *shape))
        node = random_networks.lif(shape, 2.0, 0.6, -0.1)
        return nir.LIF(
            node.tau * spread[0], node.r * 1.3, node.v_leak, node.v_threshold * spread[1],
            node.v_reset,
        )  # fmt: skip

    kernel = expand_kernel(rng.normal(0, 0.6, (4, 1, 3, 3)), 2)
    pool = [np.array(x) for x in ([3, 3], [2, 2], [1, 1])]
    nodes = {
        "input": nir.Input({"input": np.array(shape)}),
        "scale": nir.Scale(rng.uniform(0.5, 1.5, shape)),
        "conv1": nir.Conv2d(
            (6, 6), rng.normal(0, 0.5, (2, 2, 3, 3)), 1, 2, 2, 1, rng.random(2)
        ),
        "lif1": lif(shape),
        "conv2": nir.Conv2d((6, 6), kernel, (2, 2), "valid", 1, 1, rng.random(4)),
        "average": nir.AvgPool2d(*pool),
        "widen": nir.Conv2d((3, 3), rng.normal(0, 0.5, (4, 2, 1, 1)), 1, 0, 1, 1, np.zeros(4)),
        "pad": nir.Conv2d((2, 2), rng.normal(0, 0.5, (4, 4, 2, 2)), 1, 1, 1, 1, np.zeros(4)),
        "if2": nir.IF(np.full(wide, 0.8), np.ones(wide), np.zeros(wide)),
        "sum": nir.SumPool2d(*pool),
        "flat": nir.Flatten({"input": np.array([4, 2, 2])}, 0, -1),
        "linear": nir.Linear(rng.normal(0, 0.3, (20, 16))),
        "threshold": nir.Threshold(np.full(20, 0.4)),
        "flat3": nir.Flatten({"input": np.array(wide)}, 1, 2),
        "conv3": nir.Conv1d(9, rng.normal(0, 0.5, (5, 4, 3)), 2, 0, 1, 1, rng.random(5)),
        "lif3": lif(line),
        "flat4": nir.Flatten({"input": np.array(line)}, 0, -1),
        "fc": nir.Affine(rng.normal(size=(3, 20)), rng.normal(size=3)),
        "li": nir.LI(np.full(3, 3 * DT), np.full(3, 0.5), np.full(3, 0.25)),
        "output": nir.Output({"output": np.array([3])}),
    }  # fmt: skip
    edges = [
        ("input", "scale"), ("scale", "conv1"), ("conv1", "lif1"), ("lif1", "conv2"),
        ("conv2", "pad"), ("pad", "if2"), ("lif1", "average"), ("average", "widen"),
        ("widen", "if2"), ("if2", "sum"), ("sum", "flat"), ("flat", "linear"),
        ("linear", "threshold"), ("threshold", "fc"), ("if2", "flat3"), ("flat3", "conv3"),
        ("conv3", "lif3"), ("lif3", "flat4"), ("flat4", "fc"), ("fc", "li"), ("li", "output"),
    ]  # fmt: skip
    metadata = GraphMetadata(T=5, mean=(0.4, 0.5), std=(0.3, 0.2))
    return with_metadata(nir.NIRGraph(nodes, edges, type_check=False), metadata)


def test_every_node_type_agrees_with_the_reference(tmp_path: Path) -> None:
    graph = every_node()
    images = random_images(6, (2, 6, 6), 5)
    rates = {n: s.mean() for n, s in FloatEngine(graph).run(images).spikes.items()}
    assert list(rates) == ["lif1", "if2", "lif3", "threshold"]
    assert all(0.02 < rate < 0.9 for rate in rates.values()), rates
    assert_parity(graph, tmp_path)


def test_models_pass_the_full_checker_and_have_the_promised_interface() -> None:
    graph = random_graph(0)
    shape, steps = image_shape(graph), metadata_of(graph).T
    for model in (build_onnx(graph), build_step_onnx(graph), build_step_onnx(every_node())):
        onnx.checker.check_model(model, full_check=True)
        assert model.opset_import[0].version == 20 and model.ir_version == 9
    whole, step = build_onnx(graph), build_step_onnx(graph)
    neurons = [f"{prefix}.{n}" for prefix in ("spikes", "v_next") for n in spiking_nodes(graph)]
    assert [value.name for value in whole.graph.input] == ["image"]
    assert [value.name for value in whole.graph.output] == ["logits", *neurons[: len(neurons) // 2]]
    assert [v.name for v in step.graph.input] == [
        "image",
        *(f"v.{n}" for n in spiking_nodes(graph)),
    ]
    assert [value.name for value in step.graph.output] == ["logits", *neurons]
    batch = whole.graph.input[0].type.tensor_type.shape.dim
    assert batch[0].dim_param == "N" and [d.dim_value for d in batch[1:]] == list(shape)
    convolutions = [node for node in whole.graph.node if node.op_type == "Conv"]
    spiking = len(spiking_nodes(graph))
    # The first convolution sees the same image at every step and is computed once.
    assert len(convolutions) == 1 + (spiking - 1) * steps


def test_grouped_kernels_are_stored_compact() -> None:
    graph = every_node()
    stored = {t.name: list(t.dims) for t in build_onnx(graph).graph.initializer}
    assert stored["conv2.weight"] == [4, 1, 3, 3]


def test_no_path_or_time_in_the_file_and_equal_bytes_in_another_process(tmp_path: Path) -> None:
    code = (
        "import sys, hashlib; sys.path.insert(0, sys.argv[1]);"
        "from random_networks import random_graph;"
        "from stars_deploy.targets.onnx import build_onnx, build_step_onnx;"
        "g = random_graph(8);"
        "print(*(hashlib.sha256(b(g).SerializeToString()).hexdigest()"
        " for b in (build_onnx, build_step_onnx)))"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent)]
    other = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    models = [b(random_graph(8)).SerializeToString() for b in (build_onnx, build_step_onnx)]
    assert other.stdout.split() == [hashlib.sha256(model).hexdigest() for model in models]
    for model in models:
        assert str(Path.cwd()).encode() not in model and b".py" not in model


def test_graphs_that_cannot_be_run_are_refused() -> None:
    graph = random_graph(0)
    bare = nir.NIRGraph(graph.nodes, graph.edges, metadata={}, type_check=False)
    for build in (build_onnx, build_step_onnx):
        with pytest.raises(GraphError, match="no 'T'"):
            build(bare)
    graph.nodes["fc"].bias = graph.nodes["fc"].bias.astype(np.float64) + 1e300
    with pytest.raises(GraphError, match=r"fc\.bias: a value exceeds float32"):
        build_onnx(graph)


def test_engine_names_what_it_cannot_do(tmp_path: Path) -> None:
    graph = random_graph(0)
    engine = engine_of(graph, tmp_path)
    images = random_images(3, image_shape(graph))
    assert engine.info.kind == "simulated" and "onnxruntime" in engine.info.version
    with pytest.raises(EngineError, match="do not take spikes from outside"):
        engine.run(images, feed={})
    with pytest.raises(EngineError, match="do not put out margins"):
        engine.run(images, margins=True)
    with pytest.raises(DataError, match="the models take uint8"):
        engine.run(images[:, :, 1:])
    with pytest.raises(DataError, match="images are float32"):
        engine.counts(images.astype(np.float32))


def test_damaged_foreign_and_mixed_models(tmp_path: Path) -> None:
    engine_of(random_graph(0), tmp_path)
    model, step = tmp_path / "model.onnx", tmp_path / "model_step.onnx"
    with pytest.raises(BundleError, match="no such file"):
        OnnxEngine(tmp_path / "absent.onnx", step)
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(model.read_bytes()[:2000])
    with pytest.raises(BundleError, match="not a readable ONNX model"):
        OnnxEngine(damaged, step)
    foreign = onnx.load(step)
    del foreign.metadata_props[:]
    damaged.write_bytes(foreign.SerializeToString())
    with pytest.raises(BundleError, match="not written by stars-deploy"):
        OnnxEngine(model, damaged)
    other = with_metadata(random_graph(0), GraphMetadata(T=9, mean=(0.5,) * 3, std=(0.5,) * 3))
    damaged.write_bytes(build_onnx(other).SerializeToString())
    with pytest.raises(BundleError, match="disagree on T"):
        OnnxEngine(damaged, step)


def test_mutated_models_are_noticed(tmp_path: Path) -> None:
    """The comparison can fail: one weight, or >= for >, changes spikes."""
    graph = random_graph(0)
    images = random_images(8, image_shape(graph), 1)
    expected = FloatEngine(graph).run(images, margins=True)
    engine_of(graph, tmp_path)
    step = onnx.load(tmp_path / "model_step.onnx")
    weight = next(t for t in step.graph.initializer if t.name == "conv1.weight")
    values = onnx.numpy_helper.to_array(weight).copy()
    values.flat[np.abs(values).argmax()] *= -1
    weight.CopyFrom(onnx.numpy_helper.from_array(values, "conv1.weight"))
    (tmp_path / "model_step.onnx").write_bytes(step.SerializeToString())
    engine = OnnxEngine(tmp_path / "model.onnx", tmp_path / "model_step.onnx", threads=1)
    assert clear_mismatches(expected, engine.run(images).spikes, NEAR) > 0
