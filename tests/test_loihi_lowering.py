"""Lowering: exact where the weights allow it, close elsewhere, always the same bytes."""

import dataclasses
import itertools

import nir
import numpy as np
import pytest
import random_networks

from stars_deploy.config.profile import load_profile
from stars_deploy.graph.gain import fold_gain
from stars_deploy.graph.metadata import DT, GraphMetadata, with_metadata
from stars_deploy.simulation.integer.engine import build_engine, open_engine
from stars_deploy.simulation.reference import FloatEngine
from stars_deploy.targets.loihi import lower

LOIHI2 = load_profile("loihi2")
# (pixel/255 - mean) / std = (pixel - 128) / 64: eight bits hold it without rounding.
EXACT_INPUT = {"mean": (128 / 255,), "std": (64 / 255,)}


def lif(shape, tau=2.0, threshold=1.0, r=1.0):
    return nir.LIF(*(np.full(shape, x, np.float64) for x in (tau * DT, r, 0.0, threshold, 0.0)))


def chain(operators, shape, T, **metadata):
    """input -> operators in turn -> output; operators are (name, node)."""
    names = ["input", *(name for name, _ in operators), "output"]
    outputs = operators[-1][1].weight.shape[0]
    nodes = {"input": nir.Input({"input": np.array(shape)}), **dict(operators)}
    nodes["output"] = nir.Output({"output": np.array((outputs,))})
    graph = nir.NIRGraph(nodes, list(itertools.pairwise(names)), type_check=False)
    return with_metadata(graph, GraphMetadata(T=T, **(EXACT_INPUT | metadata)))


def sixtyfourths(rng, shape, step=1, below=2):
    """Multiples of step/64 below 2 (or `below`) in magnitude."""
    largest = (64 * below - 1) // step
    return rng.integers(-largest, largest + 1, shape) * (step / 64)


def dense_graph(rng, T, step):
    sizes = [int(n) for n in rng.integers(3, 9, 3)]
    operators = [("flatten", nir.Flatten({"input": np.array((1, 2, 3))}, 0, -1))]
    given = 6
    for i, size in enumerate(sizes[:2], 1):
        # The first layer sums up to 128 times its weights: larger ones would not fit 17 bits.
        weight = sixtyfourths(rng, (size, given), step * i, below=i)
        # With tau = 2 and s = 128 * 64 a bias of 1 would take 4096, which 12 bits do not hold.
        operators.append((f"fc{i}", nir.Affine(weight, sixtyfourths(rng, size, step, below=1))))
        operators.append((f"lif{i}", lif((size,))))
        given = size
    weight, bias = sixtyfourths(rng, (sizes[2], given)), sixtyfourths(rng, sizes[2])
    return chain([*operators, ("fc", nir.Affine(weight, bias))], (1, 2, 3), T)


def float_loop(graph, images):
    """The network in plain Python floats, exact for these weights: margins and logits."""
    T = int(graph.metadata["T"])
    margins, logits = {"lif1": [], "lif2": []}, []
    for image in images:
        x = [(int(p) - 128) / 64 for p in image.reshape(-1)]
        v = {"lif1": [0.0] * 99, "lif2": [0.0] * 99}
        tracks, total = {"lif1": [], "lif2": []}, 0.0
        for _ in range(T):
            signal = x
            for linear, neuron in (("fc1", "lif1"), ("fc2", "lif2")):
                weight, bias = graph.nodes[linear].weight, graph.nodes[linear].bias
                spikes, heights = [], []
                for j in range(len(bias)):
                    current = sum(w * s for w, s in zip(weight[j], signal, strict=True)) + bias[j]
                    h = v[neuron][j] + (current - v[neuron][j]) / 2
                    heights.append(h - 1.0)
                    spikes.append(1.0 if h > 1.0 else 0.0)
                    v[neuron][j] = 0.0 if h > 1.0 else h
                tracks[neuron].append(heights)
                signal = spikes
            fc = graph.nodes["fc"]
            total = total + np.array(
                [sum(w * s for w, s in zip(row, signal, strict=True)) for row in fc.weight]
            )
            total = total + fc.bias
        for neuron, track in tracks.items():
            margins[neuron].append(track)
        logits.append(total / T)
    return {n: np.array(m).swapaxes(0, 1) for n, m in margins.items()}, np.array(logits)


def test_weights_in_64ths_are_lowered_exactly_ties_included():
    ties = 0
    for seed in range(80):
        rng = np.random.default_rng(seed)
        step = int(rng.choice([1, 32]))
        graph = dense_graph(rng, int(rng.integers(1, 7)), step)
        images = (rng.integers(0, 256 // step, (4, 1, 2, 3)) * step).astype(np.uint8)
        network = lower(graph, LOIHI2)
        margins, logits = float_loop(graph, images)
        recording = build_engine(network.document, network.arrays).run(images, margins=True)
        for node, expected in margins.items():
            np.testing.assert_array_equal(recording.margins[node], expected.astype(np.float32))
            np.testing.assert_array_equal(recording.spikes[node], expected > 0)
            ties += int((expected == 0).sum())
        np.testing.assert_array_equal(recording.logits, logits.astype(np.float32))
    assert ties > 40  # potentials that meet the threshold exactly, and must not spike


def convolution_graph(rng, T, tau=2.0, r=1.0, neuron=None, pool=False, groups=1):
    """conv -> neuron [-> pool] -> conv -> neuron -> flatten -> fc on [1, 8, 8]."""
    neuron = neuron or (lambda shape: lif(shape, tau=tau, r=r))
    first = sixtyfourths(rng, (4, 1, 3, 3), 4, below=1)
    second = sixtyfourths(rng, (6, 4 // groups, 3, 3), 4)
    size = 4 if pool else 8
    operators = [
        ("conv1", nir.Conv2d((8, 8), first, 1, 1, 1, 1, sixtyfourths(rng, 4, 4, below=1))),
        ("lif1", neuron((4, 8, 8))),
    ]
    if pool:
        operators.append(("pool1", nir.AvgPool2d(*(np.array((x, x)) for x in (2, 2, 0)))))
    conv = nir.Conv2d((size, size), second, 1, 1, 1, groups, sixtyfourths(rng, 6, 4))
    operators += [
        ("conv2", conv),
        ("lif2", neuron((6, size, size))),
        ("flatten", nir.Flatten({"input": np.array((6, size, size))}, 0, -1)),
        ("fc", nir.Affine(sixtyfourths(rng, (5, 6 * size**2)) / 16, sixtyfourths(rng, 5))),
    ]
    return chain(operators, (1, 8, 8), T)


def images_for(graph, count, seed=0):
    shape = tuple(graph.nodes["input"].input_type["input"])
    return random_networks.random_images(count, shape, seed)


def named(options):
    """The same in every process, unlike the address of a function."""
    return "-".join(f"{key}={getattr(x, '__name__', x)}" for key, x in options.items()) or "plain"


def integer_if(shape):
    return nir.IF(r=np.full(shape, 0.5), v_threshold=np.full(shape, 1.0))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pool": True},
        {"groups": 2},
        {"tau": 1.0},
        {"tau": 4 / 3},
        {"tau": 4.0},
        {"r": 2.0},
        {"neuron": integer_if},
    ],
    ids=named,
)
def test_every_layer_given_the_same_inputs_equals_the_float_engine(options):
    for seed in range(6):
        rng = np.random.default_rng(seed)
        graph = convolution_graph(rng, T=int(rng.integers(1, 5)), **options)
        images = images_for(graph, 4, seed)
        reference = FloatEngine(graph).run(images, margins=True)
        network = lower(graph, LOIHI2)
        engine = build_engine(network.document, network.arrays)
        recording = engine.run(images, feed=reference.spikes, margins=True)
        # Float noise of the reference's normalisation may turn a tie of the first layer into a
        # spike, so its potentials are compared before the first reset.
        np.testing.assert_allclose(
            recording.margins["lif1"][0], reference.margins["lif1"][0], atol=1e-6, rtol=0
        )
        np.testing.assert_array_equal(recording.spikes["lif2"], reference.spikes["lif2"])
        np.testing.assert_allclose(
            recording.margins["lif2"], reference.margins["lif2"], atol=1e-12, rtol=0
        )
        np.testing.assert_allclose(recording.logits, reference.logits, atol=2e-6)


@pytest.mark.parametrize(
    ("tau", "dv"), [(1.0, 4096), (4 / 3, 3072), (2.0, 2048), (2.7, 1517), (1500, 3)]
)
def test_decay_is_the_nearest_4096th_and_the_gain_follows_it(tau, dv):
    # A threshold in proportion to the gain keeps the integers large enough to tell gains apart.
    graph = convolution_graph(
        np.random.default_rng(0), 2, neuron=lambda shape: lif(shape, tau, threshold=2 / tau)
    )
    network = lower(graph, LOIHI2)
    population = network.document["populations"][0]
    assert population["dv"] == dv
    # Steady state r X is kept: W_int / s = W dv / 4096 / k.
    step = network.document["input"]["scale"] / population["scale"]
    wanted = graph.nodes["conv1"].weight * dv / 4096
    np.testing.assert_allclose(network.arrays["w.conv1"] * step, wanted, atol=step / 2, rtol=0)


def test_folded_and_raw_gain_lower_to_the_same_integers():
    for seed in range(5):
        graph = convolution_graph(np.random.default_rng(seed), 4)
        raw, folded = lower(graph, LOIHI2), lower(fold_gain(graph), LOIHI2)
        assert raw.document == folded.document
        for key, value in raw.arrays.items():
            np.testing.assert_array_equal(value, folded.arrays[key])


def test_trained_like_weights_stay_close_to_the_float_engine():
    spikes = np.zeros(2)
    for seed in range(25):
        graph = random_networks.random_graph(seed, pools=False, steps=(1, 4))
        images = images_for(graph, 16, seed)
        reference = FloatEngine(graph).run(images)
        network = lower(graph, LOIHI2)
        recording = build_engine(network.document, network.arrays).run(images)
        for node, expected in reference.spikes.items():
            assert np.mean(recording.spikes[node] != expected) < 0.08
            spikes += recording.spikes[node].sum(), expected.sum()
    assert abs(spikes[0] - spikes[1]) / spikes[1] < LOIHI2.tolerances.total_spikes_relative


def test_no_worst_case_overflows_by_the_engines_own_bounds():
    for seed in range(30):
        graph = random_networks.random_graph(seed, pools=False)
        network = lower(graph, LOIHI2)
        layers = build_engine(network.document, network.arrays)._layers
        assert all(layer.contained for layer in layers)


def test_document_of_a_chain(tmp_path):
    graph = convolution_graph(np.random.default_rng(1), 4, groups=2)
    network = lower(graph, LOIHI2)
    document = network.document
    first, second, readout = document["populations"]
    assert [e["name"] for e in document["populations"]] == ["lif1", "lif2", "fc"]
    assert [e["reset_offset"] for e in document["populations"]] == [2, 3, 0]  # (1 + depth) mod 4
    assert [e["reset_interval"] for e in document["populations"]] == [4, 4, 4]
    assert first["shape_whc"] == [8, 8, 4] and readout["shape_whc"] == [5]
    assert (first["du"], readout["dv"], readout["vth"]) == (4095, 0, 131071)
    assert first["spiking"] and second["spiking"] and not readout["spiking"]
    assert [e["message_bits"] for e in document["connections"]] == [8, 0, 0]
    assert document["connections"][1]["groups"] == 2
    assert network.arrays["w.conv2"].shape == (6, 2, 3, 3)
    assert document["readout"] == {
        "population": "fc",
        "kind": "potential",
        "divisor": 64 * readout["scale"] * 4,
    }
    assert document["input"]["scale"] == 64.0
    np.testing.assert_array_equal(network.arrays["input_table"], [np.arange(256) - 128])
    network.write(tmp_path)
    images = images_for(graph, 3)
    written, memory = open_engine(tmp_path), build_engine(document, network.arrays)
    np.testing.assert_array_equal(written.run(images).logits, memory.run(images).logits)


def test_equal_graphs_give_equal_files(tmp_path):
    graph = random_networks.random_graph(3)
    turned = nir.NIRGraph(
        dict(reversed(graph.nodes.items())),
        list(reversed(graph.edges)),
        metadata=graph.metadata,
        type_check=False,
    )
    lower(graph, LOIHI2).write(tmp_path / "a")
    lower(turned, LOIHI2).write(tmp_path / "b")
    for name in ("network.json", "network.npz"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_depthwise_kernels_keep_below_lavas_127_groups():
    channels = 130
    depthwise = np.zeros((channels, channels, 1, 1))
    depthwise[np.arange(channels), np.arange(channels)] = 0.5
    operators = [
        ("conv1", nir.Conv2d((2, 2), np.ones((channels, 1, 1, 1)), 1, 0, 1, 1, np.zeros(channels))),
        ("lif1", lif((channels, 2, 2), threshold=0.1)),
        ("conv2", nir.Conv2d((2, 2), depthwise, 1, 0, 1, 1, np.zeros(channels))),
        ("lif2", lif((channels, 2, 2), threshold=0.2)),
        ("flatten", nir.Flatten({"input": np.array((channels, 2, 2))}, 0, -1)),
        ("fc", nir.Affine(np.ones((2, 4 * channels)) / 64, np.zeros(2))),
    ]
    graph = chain(operators, (1, 2, 2), 2)
    network = lower(graph, LOIHI2)
    assert network.document["connections"][1]["groups"] == 65
    assert network.arrays["w.conv2"].shape == (channels, 2, 1, 1)
    images = images_for(graph, 3)
    recording = build_engine(network.document, network.arrays).run(images)
    reference = FloatEngine(graph).run(images)
    np.testing.assert_array_equal(recording.spikes["lif2"], reference.spikes["lif2"])
    assert recording.spikes["lif2"].any()


def test_a_biased_threshold_is_a_different_network():
    """The exactness test can fail: >= instead of > is a threshold one unit lower."""
    rng = np.random.default_rng(5)
    graph = dense_graph(rng, 4, 32)
    images = (rng.integers(0, 8, (20, 1, 2, 3)) * 32).astype(np.uint8)
    network = lower(graph, LOIHI2)
    lowered = dataclasses.replace(
        network,
        document=network.document
        | {
            "populations": [
                e | {"vth": e["vth"] - 1} if e["spiking"] else e
                for e in network.document["populations"]
            ]
        },
    )
    right = build_engine(network.document, network.arrays).run(images)
    wrong = build_engine(lowered.document, lowered.arrays).run(images)
    assert not np.array_equal(right.spikes["lif1"], wrong.spikes["lif1"])
