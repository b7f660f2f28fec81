"""Student to NIR: the graph, executed by the reference engine, gives the student's spikes."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
import torch
from small_recipes import lively_student, random_images, recipe
from torch import nn

from stars_deploy.errors import InputError
from stars_deploy.graph.metadata import metadata_of
from stars_deploy.graph.reader import read_graph
from stars_deploy.graph.writer import write_graph
from stars_deploy.networks.families import build_teacher
from stars_deploy.networks.images import to_input
from stars_deploy.networks.to_nir import (
    conv_node,
    fold_batch_norm,
    node_names,
    student_to_nir,
)
from stars_deploy.simulation.reference import FloatEngine


@pytest.mark.parametrize("decay_input", [True, False])
@pytest.mark.parametrize(("tau", "v_reset"), [(2.0, 0.0), (3.0, 0.0), (2.0, -0.25)])
def test_graph_gives_the_students_spikes(
    tau: float, v_reset: float, decay_input: bool, tmp_path: Path
) -> None:
    neuron = {"tau": tau, "v_reset": v_reset, "decay_input": decay_input}
    chosen = recipe(neuron=neuron, student={"T": 6})
    student = lively_student(chosen)
    write_graph(student_to_nir(student, chosen), tmp_path / "graph.nir")
    images = random_images(20, chosen.data.shape)
    recording = FloatEngine(read_graph(tmp_path / "graph.nir")).run(images, margins=True)
    with torch.no_grad():
        taps = student.taps(to_input(images, chosen.data, torch.device("cpu")))
    assert list(recording.spikes) == node_names(student) == ["lif1", "lif2", "lif3"]
    assert recording.margins is not None
    near = min(float(np.abs(margin).min()) for margin in recording.margins.values())
    for name, activation in zip(recording.spikes, taps.activations, strict=True):
        assert 0.02 < recording.spikes[name].mean() < 0.95
        different = int((recording.spikes[name] != activation.numpy()).sum())
        # Only a potential within rounding of the threshold may decide differently in float32.
        assert different == 0 or near < 1e-5
    if near > 1e-5:
        np.testing.assert_allclose(recording.logits, taps.logits.numpy(), atol=1e-5)


def test_the_comparison_can_fail() -> None:
    chosen = recipe()
    student = lively_student(chosen)
    graph = student_to_nir(student, chosen)
    images = random_images(4, chosen.data.shape)
    before = FloatEngine(graph).run(images).spikes
    graph.nodes["conv2"].bias[0] += 0.1
    after = FloatEngine(graph).run(images).spikes
    assert np.array_equal(before["lif1"], after["lif1"])
    assert not np.array_equal(before["lif2"], after["lif2"])


def test_nodes_edges_and_parameters() -> None:
    chosen = recipe(neuron={"tau": 3.0, "v_threshold": 0.8, "decay_input": False})
    graph = student_to_nir(lively_student(chosen), chosen)
    names = ["input", "conv1", "lif1", "conv2", "lif2", "conv3", "lif3"]
    names += ["pool", "flatten", "fc", "output"]
    assert list(graph.nodes) == names
    assert graph.edges == list(itertools.pairwise(names))
    lif = graph.nodes["lif2"]
    assert lif.tau.shape == (4, 6, 6) and lif.tau.dtype == np.float64
    assert np.all(lif.tau / 1e-4 == pytest.approx(3.0, abs=1e-12))
    assert np.all(lif.r == 3.0) and np.all(lif.v_threshold == 0.8)
    assert np.all(lif.v_reset == 0) and np.all(lif.v_leak == 0)
    assert list(graph.nodes["pool"].kernel_size) == [3, 3]
    metadata = metadata_of(graph)
    assert (metadata.T, metadata.dt, metadata.gain) == (4, 1e-4, "raw")
    assert (metadata.mean, metadata.std, metadata.classes) == ((0.4,), (0.3,), ("a", "b", "c"))
    assert (metadata.readout, metadata.spike_compare) == ("mean", "strict")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": True},
        {"groups": 2},
        {"groups": 4, "bias": True},
        {"stride": (2, 1), "padding": (0, 2)},
        {"dilation": 2, "kernel_size": 2},
    ],
)
def test_folded_convolution_equals_convolution_and_norm(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 8, **{"kernel_size": 3, "bias": False, **options}).double()
    bn = nn.BatchNorm2d(8).double().eval()
    for tensor in (bn.running_mean, bn.running_var, bn.weight.data, bn.bias.data):
        assert tensor is not None
        tensor.copy_(torch.rand(8) + 0.1)
    x = torch.randn(3, 4, 9, 7, dtype=torch.float64)
    expected = bn(conv(x))
    kernel, bias = fold_batch_norm(conv, bn)
    found = nn.functional.conv2d(
        x,
        torch.from_numpy(kernel),
        torch.from_numpy(bias),
        stride=conv.stride,
        padding=conv.padding,  # type: ignore[arg-type]
        dilation=conv.dilation,
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    node, shape = conv_node(conv, bn, (4, 9, 7))
    assert shape == tuple(expected.shape[1:])
    assert node.groups == 1 and node.weight.shape[1] == 4
    assert node.weight.dtype == np.float32
    np.testing.assert_array_equal(node.weight, kernel.astype(np.float32))


def test_norm_without_affine_parameters_folds_too() -> None:
    conv, bn = nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2, affine=False).eval()
    x = torch.randn(2, 1, 3, 3)
    kernel, bias = fold_batch_norm(conv, bn)
    found = nn.functional.conv2d(
        x, torch.from_numpy(kernel).float(), torch.from_numpy(bias).float()
    )
    torch.testing.assert_close(found, bn(conv(x)))


def test_writing_the_graph_leaves_the_student_alone() -> None:
    chosen = recipe()
    student = lively_student(chosen)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    graph = student_to_nir(student, chosen)
    graph.nodes["conv1"].weight[:] = 0
    graph.nodes["fc"].weight[:] = 0
    assert all(torch.equal(before[n], t) for n, t in student.state_dict().items())


def test_what_cannot_be_written_is_refused() -> None:
    chosen = recipe()
    with pytest.raises(InputError, match="is an ANN"):
        student_to_nir(build_teacher(chosen), chosen)
    with pytest.raises(InputError, match="padding 'same'"):
        conv_node(nn.Conv2d(1, 1, 3, padding="same"), nn.BatchNorm2d(1), (1, 5, 5))
    with pytest.raises(InputError, match="running statistics"):
        fold_batch_norm(nn.Conv2d(1, 1, 3), nn.BatchNorm2d(1, track_running_stats=False))


def test_the_graph_is_typed_by_nir_itself() -> None:
    chosen = recipe()
    graph = student_to_nir(lively_student(chosen), chosen)
    # Constructing with nir's own type check raises where shapes do not fit.
    nir.NIRGraph(graph.nodes, graph.edges, type_check=True)
