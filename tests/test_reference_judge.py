"""The float engine against outside judges: PyTorch for operators, Norse for neurons."""

from __future__ import annotations

from typing import Any

import nir
import numpy as np
import pytest
import random_networks
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from norse.torch.functional.lif_box import (
    LIFBoxFeedForwardState,
    LIFBoxParameters,
    lif_box_feed_forward_step,
)
from random_networks import clear_mismatches, image_shape, random_graph, random_images

from stars_deploy.errors import DataError, EngineError
from stars_deploy.graph.geometry import node_shape, output_shapes
from stars_deploy.graph.metadata import GraphMetadata, metadata_of, with_metadata
from stars_deploy.graph.order import sources, topological_order
from stars_deploy.simulation import operators, reference
from stars_deploy.simulation.operators import operator_of
from stars_deploy.simulation.reference import FloatEngine

Array = np.ndarray[Any, Any]

convolutions = st.fixed_dictionaries(
    {
        "groups": st.sampled_from([1, 2, 3]),
        "kernel": st.tuples(st.integers(1, 4), st.integers(1, 4)),
        "stride": st.tuples(st.integers(1, 3), st.integers(1, 3)),
        "padding": st.tuples(st.integers(0, 3), st.integers(0, 3)),
        "dilation": st.tuples(st.integers(1, 2), st.integers(1, 2)),
        "outputs": st.integers(1, 3),
    }
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(c=convolutions)
def test_convolution_is_torch_conv2d(c: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(c["groups"] * c["outputs"], 2, *c["kernel"]))
    bias = rng.normal(size=len(weight))
    shape = (2 * c["groups"], 9, 8)
    node = nir.Conv2d(
        shape[1:], weight, c["stride"], c["padding"], c["dilation"], c["groups"], bias
    )
    x = rng.integers(0, 2, size=(2, 3, *shape)).astype(np.uint8)
    answer = operator_of("conv", node)(x)
    numbers = (c["stride"], c["padding"], c["dilation"], c["groups"])
    flat = torch.tensor(x.reshape(6, *shape), dtype=torch.float64)
    expected = F.conv2d(flat, torch.tensor(weight), torch.tensor(bias), *numbers)
    assert node_shape("conv", node, shape) == tuple(expected.shape[1:])
    np.testing.assert_allclose(answer.reshape(expected.shape), expected.numpy(), atol=1e-12)


def test_convolution_in_parts_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    node = nir.Conv2d((8, 8), rng.normal(size=(4, 3, 3, 3)), 1, 1, 1, 1, rng.normal(size=4))
    x = rng.normal(size=(3, 5, 3, 8, 8))
    whole = operator_of("conv", node)(x)
    monkeypatch.setattr(operators, "_COLUMN_BYTES", 1)
    np.testing.assert_array_equal(operator_of("conv", node)(x), whole)


def test_conv1d_pools_and_flatten_are_torch() -> None:
    rng = np.random.default_rng(0)
    line = rng.normal(size=(1, 4, 3, 11))
    weight, bias = rng.normal(size=(5, 3, 4)), rng.normal(size=5)
    conv = nir.Conv1d(11, weight, 2, 1, 2, 1, bias)
    expected = F.conv1d(*(torch.tensor(a) for a in (line[0], weight, bias)), 2, 1, 2)
    np.testing.assert_allclose(operator_of("c", conv)(line)[0], expected.numpy(), atol=1e-12)
    maps = rng.normal(size=(1, 4, 3, 7, 9))
    window = (np.array([3, 2]), np.array([2, 2]), np.array([1, 1]))
    expected = F.avg_pool2d(torch.tensor(maps[0]), (3, 2), (2, 2), (1, 1))
    average = operator_of("p", nir.AvgPool2d(*window))(maps)
    np.testing.assert_allclose(average[0], expected.numpy(), atol=1e-12)
    total = operator_of("p", nir.SumPool2d(*window))(maps)
    np.testing.assert_allclose(total, average * 6, atol=1e-12)
    flat = operator_of("f", nir.Flatten({"input": np.array([3, 7, 9])}, 1, -1))(maps)
    assert flat.shape == (1, 4, 3, 63)


def judge(graph: nir.NIRGraph, images: Array) -> tuple[dict[str, Array], Array]:
    """Run a chain of random_graph with PyTorch operators and Norse neurons, float64."""
    metadata = metadata_of(graph)
    mean, std = (torch.tensor(x, dtype=torch.float64) for x in (metadata.mean, metadata.std))
    image = (torch.tensor(images) / 255.0 - mean[:, None, None]) / std[:, None, None]
    state: dict[str, Any] = {}
    spikes: dict[str, list[Array]] = {}
    logits = []
    for _ in range(metadata.T):
        values: dict[str, torch.Tensor] = {}
        for name in topological_order(graph):
            node = graph.nodes[name]
            x = values[sources(graph, name)[0]] if sources(graph, name) else image
            if isinstance(node, nir.LIF):
                x, state[name] = norse_step(node, x, state.get(name), metadata.dt)
                spikes.setdefault(name, []).append(x.numpy())
            elif isinstance(node, nir.Conv2d):
                w, b = (torch.tensor(a, dtype=torch.float64) for a in (node.weight, node.bias))
                x = F.conv2d(x, w, b, node.stride, node.padding)
            elif isinstance(node, nir.AvgPool2d):
                x = F.avg_pool2d(x, tuple(node.kernel_size), tuple(node.stride))
            elif isinstance(node, nir.Flatten):
                x = x.flatten(1)
            elif isinstance(node, nir.Affine):
                x = F.linear(x, *(torch.tensor(a).double() for a in (node.weight, node.bias)))
            values[name] = x
        logits.append(values["output"].numpy())
    return {name: np.stack(steps) for name, steps in spikes.items()}, np.mean(logits, axis=0)


def norse_step(node: nir.LIF, x: torch.Tensor, state: Any, dt: float) -> Any:
    parameters = LIFBoxParameters(
        tau_mem_inv=torch.tensor(dt / node.tau),
        v_leak=torch.tensor(node.v_leak),
        v_th=torch.tensor(node.v_threshold),
        v_reset=torch.tensor(node.v_reset),
        method="heaviside",
        alpha=torch.tensor(1.0),
    )
    if state is None:
        state = LIFBoxFeedForwardState(v=torch.tensor(node.v_reset).expand_as(x))
    return lif_box_feed_forward_step(x, state, parameters, dt=1.0)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(graph=random_networks.graphs(v_resets=(0.0, -0.25)))
def test_random_networks_spike_as_torch_and_norse_say(graph: nir.NIRGraph) -> None:
    images = random_images(5, image_shape(graph), 11)
    spikes, logits = judge(graph, images)
    answer = FloatEngine(graph).run(images, margins=True)
    assert list(answer.spikes) == list(spikes)
    assert clear_mismatches(answer, spikes, 1e-9) == 0
    np.testing.assert_allclose(answer.logits, logits, atol=1e-6)


def test_random_networks_are_alive() -> None:
    """Evidence needs spikes: nearly all populations fire at a useful rate on other images."""
    rates = []
    for seed in range(30):
        graph = random_graph(seed)
        images = random_images(8, image_shape(graph), seed + 1)
        rates += [float(s.mean()) for s in FloatEngine(graph).run(images).spikes.values()]
    low, high = random_networks.ALIVE
    assert np.mean([low <= rate <= high for rate in rates]) >= 0.9


def test_dyadic_networks_do_meet_their_threshold_exactly() -> None:
    ties = 0
    for seed in range(10):
        graph = random_graph(seed, dyadic=True, pools=False, steps=(3, 3))
        plain = GraphMetadata(T=3, mean=(0.0,) * 3, std=(1.0,) * 3)
        plain = GraphMetadata(
            T=3, mean=plain.mean[: image_shape(graph)[0]], std=plain.std[: image_shape(graph)[0]]
        )
        images = np.full((2, *image_shape(graph)), 255, np.uint8)
        answer = FloatEngine(with_metadata(graph, plain)).run(images, margins=True)
        for name, margin in (answer.margins or {}).items():
            ties += int((margin == 0).sum())
            assert not answer.spikes[name][margin == 0].any()
    assert ties > 0


def test_chunks_do_not_change_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = random_graph(3)
    images = random_images(7, image_shape(graph), 1)
    feed = {name: 1 - s for name, s in FloatEngine(graph).run(images).spikes.items()}
    whole = FloatEngine(graph).run(images, feed=feed, margins=True)
    monkeypatch.setattr(reference, "_CHUNK_BYTES", 1)
    parts = FloatEngine(graph).run(images, feed=feed, margins=True)
    np.testing.assert_allclose(parts.logits, whole.logits, atol=1e-6)
    for name in whole.spikes:
        np.testing.assert_array_equal(parts.spikes[name], whole.spikes[name])
        np.testing.assert_allclose(parts.margins[name], whole.margins[name], atol=1e-6)


def test_feeding_a_recording_to_itself_changes_nothing() -> None:
    graph = random_graph(9)
    images = random_images(4, image_shape(graph), 1)
    own = FloatEngine(graph).run(images)
    fed = FloatEngine(graph).run(images, feed=own.spikes)
    np.testing.assert_array_equal(own.logits, fed.logits)
    for name in own.spikes:
        np.testing.assert_array_equal(own.spikes[name], fed.spikes[name])


def test_no_images_and_shapes_of_the_recording() -> None:
    graph = random_graph(3)
    shape, steps = image_shape(graph), metadata_of(graph).T
    empty = FloatEngine(graph).run(np.zeros((0, *shape), np.uint8))
    assert empty.logits.shape[0] == 0 and empty.margins is None
    answer = FloatEngine(graph).run(random_images(3, shape), margins=True)
    for name, spikes in answer.spikes.items():
        assert spikes.shape == (steps, 3, *output_shapes(graph)[name])
        assert spikes.dtype == np.uint8 and answer.margins[name].dtype == np.float32


def test_wrong_images_and_feeds_are_named() -> None:
    engine = FloatEngine(random_graph(3))
    images = random_images(2, image_shape(random_graph(3)))
    with pytest.raises(DataError, match=r"images are float64 .* takes uint8 \[N, "):
        engine.run(images / 255.0)
    with pytest.raises(DataError, match="images are uint8"):
        engine.run(images[:, :, 1:])
    with pytest.raises(EngineError, match="feed names 'conv1'"):
        engine.run(images, feed={"conv1": images})
    with pytest.raises(EngineError, match="feed of lif1 has shape"):
        engine.run(images, feed={"lif1": images})
