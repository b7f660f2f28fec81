"""Random networks as people write them: what is traced computes the same, down to the integers."""

import re
import tempfile
import tomllib
from pathlib import Path

import numpy as np
import pytest
import tomli_w
import torch
from hypothesis import given, settings
from random_modules import networks

from stars_deploy.config.profile import load_profile
from stars_deploy.config.recipe import parse_recipe
from stars_deploy.distillation import warm_start
from stars_deploy.distillation.warm_start import analytic_start, calibrate, twins
from stars_deploy.errors import DoesNotFit, GraphError
from stars_deploy.graph.reader import read_graph
from stars_deploy.graph.writer import write_graph
from stars_deploy.networks.families import build_student, build_teacher
from stars_deploy.networks.images import to_input
from stars_deploy.networks.to_nir import node_names, student_to_nir
from stars_deploy.networks.tracing.trace import trace
from stars_deploy.simulation.integer.engine import build_engine
from stars_deploy.simulation.onnx_engine import OnnxEngine
from stars_deploy.simulation.reference import FloatEngine
from stars_deploy.targets.loihi.lower import lower
from stars_deploy.targets.onnx import build_onnx, build_step_onnx
from stars_deploy.validation.check import check

NEAR = 1e-5  # of a threshold: sums in another order may fall on the other side


def recipe_of(traced, shape):
    """The recipe as a file would hold it: written as TOML and read again."""
    document = {
        "name": "own",
        "data": {
            "name": "own", "shape": shape, "classes": ["a", "b", "c"],
            "mean": [0.5] * shape[0], "std": [0.29] * shape[0],
        },
        "teacher": {"family": "traced", "args": traced.args.model_dump(exclude_defaults=True)},
        "student": {"T": 3},
        "warm_start": {"enabled": True},
    }  # fmt: skip
    text = tomli_w.dumps(parse_recipe(document, "test").resolved())
    return parse_recipe(tomllib.loads(text), "file")


def same_in_float64(module, network, x):
    """Nearly no rounding to hide in: an Unnormalised keeps 1 - eps in float32."""
    with torch.no_grad():
        expected, found = module.double()(x.double()), network.double()(x.double())
    module.float()
    network.float()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def same_spikes(student, graph, recipe, images):
    """The twin, its graph, and the graph's ONNX models agree spike for spike, ties apart."""
    recording = FloatEngine(graph).run(images, margins=True)
    with torch.no_grad():
        taps = student.taps(to_input(images, recipe.data, torch.device("cpu")))
    names = node_names(student)
    assert list(recording.spikes) == names
    counts = onnx_counts(graph, images)
    near = np.zeros(len(images), bool)  # images of which a neuron came close to its threshold
    for name, index in zip(names, student.neurons, strict=True):
        margin = np.abs(recording.margins[name])
        near |= (margin < NEAR).any(axis=(0, *range(2, margin.ndim)))
        spikes = recording.spikes[name]
        own = taps.activations[index].numpy().reshape(spikes.shape)
        np.testing.assert_array_equal(spikes[:, ~near], own[:, ~near], name)
        np.testing.assert_array_equal(spikes.sum(0)[~near], counts.spikes[name][~near], name)
    np.testing.assert_allclose(
        recording.logits[~near], taps.logits.numpy()[~near], rtol=1e-4, atol=1e-4
    )
    return int((~near).sum())


def onnx_counts(graph, images):
    with tempfile.TemporaryDirectory() as folder:
        model, step = Path(folder, "model.onnx"), Path(folder, "step.onnx")
        model.write_bytes(build_onnx(graph).SerializeToString())
        step.write_bytes(build_step_onnx(graph).SerializeToString())
        return OnnxEngine(model, step, threads=1).counts(images)


def lowered_or_named(graph, images):
    """Integers that run, or an error about a node that there is. Returns whether they ran."""
    profile = load_profile("loihi2")
    findings = check(graph, profile)
    try:
        network = lower(graph, profile)
    except (GraphError, DoesNotFit) as problem:
        assert any(re.search(rf"\b{node}\b", str(problem)) for node in graph.nodes), problem
        assert any(finding.severity == "error" for finding in findings)
        return False
    recording = build_engine(network.document, network.arrays).run(images)
    assert np.isfinite(recording.logits).all()
    return True


def calibrated_as_it_runs(pair, images, recipe):
    """Calibrate; the spikes that every layer was fitted on are those that the student has then.

    A gain, an offset or a slope that is not folded into the right place makes another student.
    """
    seen = {}
    work = warm_start._Calibration
    original = work.refit

    def kept(self, index):
        original(self, index)
        seen[index] = self._spikes.get(index)  # of maps that nothing reads it keeps none

    work.refit = kept
    try:
        calibrate(pair, torch.from_numpy(images), recipe)
    finally:
        work.refit = original
    assert all(seen[index] is not None for index in pair.student.neurons)
    with torch.no_grad():
        taps = pair.student.eval().taps(to_input(images, recipe.data, torch.device("cpu")))
    for index, own in enumerate(taps.activations):
        if seen[index] is None:
            continue
        fitted = seen[index].expand_as(own)
        different = float(((fitted - own).abs() > 1e-3).float().mean())
        assert different < 0.01, (index, different, recipe.teacher.args["junctions"][index])


def everything_holds(module, shape):
    traced = trace(module, shape)
    x = torch.randn(4, *shape)
    same_in_float64(module, traced.network, x)
    recipe = recipe_of(traced, shape)
    again = build_teacher(recipe)
    again.load_state_dict(traced.network.state_dict())
    with torch.no_grad():
        assert torch.equal(again.eval()(x), traced.network(x))
    pair = twins(recipe, traced.network, build_student(recipe))
    analytic_start(pair)
    images = np.random.default_rng(0).integers(0, 256, (24, *shape), dtype=np.uint8)
    calibrated_as_it_runs(pair, images[:16], recipe)
    with tempfile.TemporaryDirectory() as folder:
        write_graph(student_to_nir(pair.student.eval(), recipe), Path(folder, "graph.nir"))
        graph = read_graph(Path(folder, "graph.nir"))
    compared = same_spikes(pair.student, graph, recipe, images[16:])
    return compared, lowered_or_named(graph, images[16:])


@settings(max_examples=20)
@given(networks())
def test_random_networks(network):
    everything_holds(*network)


@pytest.mark.slow
@settings(max_examples=500)
@given(networks(blocks=7))
def test_many_random_networks(network):
    everything_holds(*network)
