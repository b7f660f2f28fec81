"""The paper's networks: sizes, shapes, residual styles, their graphs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from small_recipes import random_images, recipe
from torch import nn

from stars_deploy.config.recipe import Recipe
from stars_deploy.distillation.priors import BatchNormProbe
from stars_deploy.errors import RecipeError
from stars_deploy.graph.order import sources, spiking_nodes
from stars_deploy.networks.base import Network
from stars_deploy.networks.families import FAMILIES, build_student, build_teacher, seeded
from stars_deploy.networks.images import to_input
from stars_deploy.networks.layers import ConvBlock
from stars_deploy.networks.to_nir import node_names, student_to_nir
from stars_deploy.simulation.reference import FloatEngine

CPU = torch.device("cpu")
# dfkd counts: family, arguments, classes, parameters, BatchNorms, their channels.
SIZES = [
    ("resnet18", {}, 10, 11_173_962, 20, 4800),
    ("resnet18", {}, 100, 11_220_132, 20, 4800),
    ("resnet18", {}, 200, 11_271_432, 20, 4800),
    ("resnet34", {}, 10, 21_282_122, 36, 8512),
    ("resnet34", {}, 100, 21_328_292, 36, 8512),
    ("resnet34", {}, 200, 21_379_592, 36, 8512),
    ("resnet19", {}, 10, 12_569_226, 19, 5248),
    ("resnet19", {}, 100, 12_615_396, 19, 5248),
    ("resnet19", {"hidden": 256}, 10, 12_697_994, 19, 5248),
    ("resnet19", {"hidden": 256}, 100, 12_721_124, 19, 5248),
    ("resnet19", {"hidden": 256}, 200, 12_746_824, 19, 5248),
    ("resnet19_sakd", {}, 10, 12_502_090, 20, 5312),
    ("resnet19_sakd", {}, 100, 12_548_260, 20, 5312),
    ("resnet19_sakd", {"hidden": 256}, 10, 12_630_858, 20, 5312),
    ("resnet19_sakd", {"hidden": 256}, 100, 12_653_988, 20, 5312),
    ("resnet20", {}, 10, 269_722, 19, 688),
    ("resnet20", {}, 100, 275_572, 19, 688),
    ("resnet20", {"blocks": [9, 9, 9]}, 10, 853_018, 55, 2032),  # ResNet-56
    ("resnet20", {"shortcut": "projection"}, 10, 272_474, 21, 784),
    ("resnet20", {"shortcut": "projection"}, 100, 278_324, 21, 784),
    ("vgg16", {}, 10, 14_728_266, 13, 4224),
    ("vgg16", {}, 100, 14_774_436, 13, 4224),
    ("vgg16", {}, 200, 14_825_736, 13, 4224),
]


def colour(family: str, classes: int = 3, size: int = 32, **sections: Any) -> Recipe:
    names = [str(number) for number in range(classes)]
    sections["data"] = {
        "shape": [3, size, size],
        "classes": names,
        "mean": [0.4, 0.5, 0.6],
        "std": [0.2, 0.3, 0.25],
    }
    sections["teacher"] = {"family": family, "args": sections.pop("args", {})}
    return recipe(**sections)


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(("family", "args", "classes", "count", "norms", "channels"), SIZES)
def test_sizes_are_those_of_the_literature(family, args, classes, count, norms, channels):
    with torch.device("meta"):
        network = build_teacher(colour(family, classes, args=args))
    found = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert parameters(network) == count
    assert (len(found), sum(norm.num_features for norm in found)) == (norms, channels)
    matched = [len(target.mean) for target in BatchNormProbe(network).targets]
    assert (len(matched), sum(matched)) == (norms, channels)


@pytest.mark.parametrize(
    ("family", "shapes"),
    [
        ("resnet18", [(64, 32), (128, 16), (256, 8), (512, 4)]),
        ("resnet34", [(64, 32), (128, 16), (256, 8), (512, 4)]),
        ("resnet19", [(128, 32), (256, 16), (512, 8)]),
        ("resnet19_sakd", [(128, 32), (256, 16), (512, 8)]),
        ("resnet20", [(16, 32), (32, 16), (64, 8)]),
        ("vgg16", [(64, 32), (128, 16), (256, 8), (512, 4), (512, 2)]),
    ],
)
def test_stage_ends_have_the_literatures_shapes(family, shapes):
    chosen = colour(family, args={"width": 0.125}, student={"T": 1})
    for network in (build_teacher(chosen), build_student(chosen)):
        taps = network.eval().taps(torch.zeros(1, 3, 32, 32))
        found = [taps.pre_activations[i].shape[-3:] for i in network.stage_ends]
        assert [(c * 8, h) for c, h, _ in found] == shapes


def lively(network: Network, seed: int = 0) -> Network:
    """Random BatchNorm that makes every layer fire."""
    rng = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.2, 1.0),
                (module.weight.data, 0.6, 1.4),
                (module.bias.data, 0.1, 0.9),
            ):
                tensor.copy_(torch.rand(tensor.shape, generator=rng) * (high - low) + low)
    return network.eval()


STUDENTS = [
    ("resnet20", {}, "post_add"),
    ("resnet20", {"shortcut": "projection"}, "post_add"),
    ("resnet20", {"shortcut": "projection"}, "sew"),
    ("resnet20", {"shortcut": "projection"}, "ms"),
    ("resnet20", {}, "ms"),
    ("resnet19", {"hidden": 12}, "post_add"),
]


def block_by_hand(block: nn.Module, x: torch.Tensor, style: str, act: Any) -> torch.Tensor:
    """One residual block as its authors draw it; `act` is called in the order of the junctions.

    In style ms, x is the membrane stream and what is returned is one too.
    """
    if style == "ms":
        inner = act(x)
        short = x if block.shortcut is None else block.shortcut(inner)
        return short + block.conv2(act(block.conv1(inner)))
    if style == "sew":
        first = act(block.conv1(x))
        short = x if block.shortcut is None else act(block.shortcut(x))
        return act(block.conv2(first)) + short
    first = act(block.conv1(x))
    short = x if block.shortcut is None else block.shortcut(x)
    return act(block.conv2(first) + short)


@pytest.mark.parametrize(("family", "args", "style"), STUDENTS)
def test_an_ann_is_wired_as_its_authors_draw_it(family, args, style):
    args = {**args, "style": style, "width": 0.25}
    network = lively(build_teacher(colour(family, args=args)))
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        stream = network.stem(x) if style == "ms" else network.stem(x).relu()
        for stage in network.stages:
            for block in stage:
                stream = block_by_hand(block, stream, style, torch.relu)
        features = (stream.relu() if style == "ms" else stream).mean((2, 3))
        if network.hidden is not None:
            features = network.hidden.linear(features).relu()
        expected = network.fc(features)
        torch.testing.assert_close(network(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("family", "args", "style"), STUDENTS)
def test_a_student_is_its_graph_spike_for_spike(family, args, style):
    args = {**args, "style": style, "width": 0.25}
    chosen = colour(family, size=16, args=args, student={"T": 3})
    student = lively(seeded(build_student, chosen, 1)).double()
    images = random_images(3, chosen.data.shape)
    graph = student_to_nir(student, chosen)
    engine = FloatEngine(graph)
    found = engine.run(images, margins=True)
    with torch.no_grad():
        taps = student.taps(to_input(images, chosen.data, CPU).double())
    assert engine.nodes == spiking_nodes(graph) and set(engine.nodes) == set(node_names(student))
    rates = []
    for name, spikes in zip(node_names(student), taps.activations, strict=True):
        near = np.abs(found.margins[name]) < 1e-5  # weights in the graph are float32
        assert (near | (found.spikes[name] == spikes.numpy())).all(), name
        rates.append(found.spikes[name].mean())
    assert sum(0.005 < rate < 0.95 for rate in rates) > len(rates) / 2
    np.testing.assert_allclose(found.logits, taps.logits.numpy(), atol=2e-2)


def test_adds_are_two_edges_into_the_neurons():
    chosen = colour("resnet20", args={"width": 0.25})
    graph = student_to_nir(build_student(chosen).eval(), chosen)
    assert sources(graph, "lif3") == ["conv3", "lif1"]
    assert sources(graph, "lif9") == ["conv9", "skip9"]  # option A as a convolution
    kernel = graph.nodes["skip9"].weight
    assert kernel.shape == (8, 4, 1, 1) and graph.nodes["skip9"].stride == (2, 2)
    np.testing.assert_array_equal(kernel[:, :, 0, 0], np.eye(8, 4, -2))


def test_a_max_pooled_student_cannot_be_written_and_says_so():
    from stars_deploy.errors import InputError

    chosen = colour("vgg16", args={"width": 0.05}, student={"args": {"pooling": "max"}})
    with pytest.raises(InputError, match=r"MaxPool2d layer cannot be written.*average pooling"):
        student_to_nir(build_student(chosen).eval(), chosen)
    averaged = colour("vgg16", args={"width": 0.05})
    assert "pool3" in student_to_nir(build_student(averaged).eval(), averaged).nodes


def test_a_student_may_differ_from_its_teacher():
    chosen = colour("resnet20", student={"args": {"style": "ms"}})
    assert {n: v.shape for n, v in build_student(chosen).state_dict().items()} == {
        n: v.shape for n, v in build_teacher(chosen).state_dict().items()
    }
    small = colour("resnet34", args={"width": 0.1}, student={"architecture": "resnet18"})
    assert len(build_student(small).junctions) == 17


def test_a_strided_shortcut_is_its_convolution():
    block = ConvBlock(3, 6, 2, kernel=1).eval()
    x = torch.randn(2, 3, 7, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(block(x), block.bn(block.conv(x)))
    assert block(x).shape == (2, 6, 4, 4)


def test_tdbn_scales_every_batch_norm():
    chosen = colour("resnet20", student={"tdbn": 1.0}, neuron={"v_threshold": 0.5})
    norms = [m for m in build_student(chosen).modules() if isinstance(m, nn.BatchNorm2d)]
    assert all((norm.weight == 0.5).all() for norm in norms)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: build_teacher(colour("resnet21")), "teacher.family 'resnet21'.*'resnet2"),
        (
            lambda: build_student(colour("resnet20", student={"architecture": "twn"})),
            "student.architecture 'twn'.*'twin'",
        ),
        (lambda: build_teacher(colour("resnet20", args={"widht": 2})), "'widht'.*'width'"),
        (lambda: build_teacher(colour("resnet20", args={"blocks": [1]})), "expected 3 numbers"),
        (
            lambda: build_student(colour("resnet20", student={"args": {"style": "sew"}})),
            "'pad' shortcut.*'projection'",
        ),
    ],
)
def test_impossible_networks_are_refused(make, message):
    with pytest.raises(RecipeError, match=message):
        make()


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"traced"}))
def test_a_twin_has_as_many_parameters_and_plif_one_more_per_layer(family):
    args = {"channels": [16, 32], "strides": [1, 2]} if family == "cnn" else {}
    with torch.device("meta"):
        teacher = build_teacher(colour(family, args=args))
        for model in ("lif", "if", "plif"):
            student = build_student(colour(family, args=args, neuron={"model": model}))
            learned = len(student.junctions) if model == "plif" else 0
            assert parameters(student) == parameters(teacher) + learned
            assert len(student.junctions) == len(teacher.junctions) > 1


def test_a_students_own_hidden_layer_is_what_it_has_more_than_its_teacher():
    chosen = colour("resnet19", classes=10, student={"args": {"hidden": 256}})
    with torch.device("meta"):
        sizes = parameters(build_teacher(chosen)), parameters(build_student(chosen))
    assert sizes == (12_569_226, 12_697_994)


@pytest.mark.parametrize("width", [float("inf"), 1e300, 0.0])
def test_a_width_beyond_reason_is_refused(width):
    with pytest.raises(RecipeError, match="key 'width' has value"):
        build_teacher(colour("resnet20", args={"width": width}))
