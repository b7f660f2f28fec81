"""A person's network, traced: it computes the same, and its twin is its graph, spike for spike."""

import numpy as np
import own_networks
import pytest
import tomli_w
import torch
import torch.nn.functional as F
from own_networks import NETWORKS, SHAPE, conv, trained
from torch import nn

from stars_deploy.config.recipe import parse_recipe
from stars_deploy.distillation import warm_start
from stars_deploy.distillation.warm_start import analytic_start, calibrate, twins
from stars_deploy.errors import InputError, RecipeError
from stars_deploy.graph.reader import read_graph
from stars_deploy.graph.writer import write_graph
from stars_deploy.networks.base import layers_of
from stars_deploy.networks.families import build_student, build_teacher
from stars_deploy.networks.images import to_input
from stars_deploy.networks.to_nir import node_names, student_to_nir
from stars_deploy.networks.tracing import operators
from stars_deploy.networks.tracing.trace import trace
from stars_deploy.simulation.reference import FloatEngine

ACTIVATIONS = {
    "Plain": 3, "Residual": 7, "Membrane": 5, "Bottleneck": 6, "Dense": 4, "Fire": 5, "Normed": 4,
}  # fmt: skip


def recipe(args, **sections):
    return parse_recipe(
        {
            "name": "own",
            "data": {
                "name": "own", "shape": SHAPE, "classes": ["a", "b", "c"],
                "mean": [0.5, 0.5], "std": [0.29, 0.29],
            },
            "teacher": {"family": "traced", "args": args.model_dump(exclude_defaults=True)},
            "warm_start": {"enabled": True},
            **sections,
        },
        "test",
    )  # fmt: skip


def pixels(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *SHAPE), dtype=np.uint8)


def warm_pair(traced, **sections):
    """The teacher, its warm-started and calibrated twin, and their recipe."""
    chosen = recipe(traced.args, **sections)
    pair = twins(chosen, traced.network, build_student(chosen))
    analytic_start(pair)
    calibrate(pair, torch.from_numpy(pixels(256)), chosen)
    return traced.network, pair.student.eval(), chosen


@pytest.mark.parametrize("network", NETWORKS)
def test_the_traced_network_is_the_persons_own(network):
    module = trained(network)
    traced = trace(module, SHAPE)
    x = torch.randn(16, *SHAPE)
    with torch.no_grad():
        expected, found = module(x), traced.network(x)
    if network is own_networks.Dense:
        found = F.log_softmax(found, dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert len(traced.network.neurons) == ACTIVATIONS[network.__name__]
    assert traced.difference < 1e-5
    # Nothing of the person's module is shared: training one leaves the other.
    ours = {tensor.data_ptr() for tensor in traced.network.state_dict().values()}
    assert not ours & {tensor.data_ptr() for tensor in module.state_dict().values()}


@pytest.mark.parametrize("network", NETWORKS)
def test_a_description_in_a_file_builds_it_again(network):
    import tomllib

    traced = trace(trained(network), SHAPE)
    text = tomli_w.dumps(recipe(traced.args).resolved())
    again = build_teacher(parse_recipe(tomllib.loads(text), "file"))
    again.load_state_dict(traced.network.state_dict())
    x = torch.randn(4, *SHAPE)
    with torch.no_grad():
        assert torch.equal(again.eval()(x), traced.network(x))


@pytest.mark.parametrize("network", NETWORKS)
def test_the_twin_is_its_graph_spike_for_spike(network, tmp_path):
    _, student, chosen = warm_pair(trace(trained(network), SHAPE))
    write_graph(student_to_nir(student, chosen), tmp_path / "graph.nir")
    images = pixels(20, seed=1)
    recording = FloatEngine(read_graph(tmp_path / "graph.nir")).run(images, margins=True)
    with torch.no_grad():
        taps = student.taps(to_input(images, chosen.data, torch.device("cpu")))
    assert list(recording.spikes) == node_names(student)
    near = min(float(np.abs(margin).min()) for margin in recording.margins.values())
    for name, index in zip(node_names(student), student.neurons, strict=True):
        spikes = recording.spikes[name]
        assert 0.01 < spikes.mean() < 0.95, name
        own = taps.activations[index].numpy().reshape(spikes.shape)
        assert near < 1e-5 or np.array_equal(spikes, own), name
    if near >= 1e-5:
        np.testing.assert_allclose(recording.logits, taps.logits.numpy(), atol=1e-4)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_calibrated_twin_follows_its_teacher(network, monkeypatch):
    """Gains times rates are the teacher's activations, in every wiring; IF neurons, 16 steps."""
    monkeypatch.setattr(warm_start, "SAMPLES", 1_000)
    traced = trace(trained(network), SHAPE)
    sections = {"student": {"T": 16}, "neuron": {"model": "if"}}
    teacher, student, chosen = warm_pair(traced, **sections)
    copied = build_student(chosen)
    copied.load_state_dict(teacher.state_dict())
    lost = unexplained(teacher, student, chosen)
    assert lost < LOST[network.__name__]
    assert lost < 0.9 * unexplained(teacher, copied.eval(), chosen)


def test_calibration_lets_go_of_maps_that_no_later_layer_reads(monkeypatch):
    """Of 7 junctions, a residual network never needs more than the one before and a shortcut."""
    held, refit = [], warm_start._Calibration.refit

    def watched(self, index):
        refit(self, index)
        held.append((len(self._spikes), len(self._inputs) + len(self._goals), len(self._z)))

    monkeypatch.setattr(warm_start._Calibration, "refit", watched)
    traced = trace(trained(own_networks.Residual), SHAPE)
    warm_pair(traced)
    count = len(traced.args.junctions)
    spikes, teachers, carried = zip(*held, strict=True)
    assert max(spikes) == 2 and spikes[-1] == len(traced.args.readout) == 1
    # All of the teacher's maps are there at the start, one activation of its own at the end.
    assert teachers[0] >= 2 * count - 2 and teachers[-1] == 1
    assert set(carried) == {0}


def unexplained(teacher, student, chosen):
    """The share of the variance of the teacher's centred logits that the student's do not have."""
    x = to_input(pixels(200, seed=2), chosen.data, torch.device("cpu"))
    with torch.no_grad():
        own, theirs = student(x), teacher(x)
    own, theirs = own - own.mean(1, keepdim=True), theirs - theirs.mean(1, keepdim=True)
    return float((own - theirs).square().sum() / (theirs - theirs.mean(0)).square().sum())


LOST = {
    "Plain": 0.9, "Residual": 0.75, "Membrane": 0.35, "Bottleneck": 0.7, "Dense": 0.4,
    "Fire": 0.9, "Normed": 1.0,
}  # fmt: skip


def pools(network):
    wires = [wire for junction in network.junctions for wire in junction.wires]
    layers = [layer for wire in wires for layer in layers_of(wire)]
    return [layer for layer in layers if isinstance(layer, nn.AvgPool2d | nn.MaxPool2d)]


def test_max_pooling_becomes_the_average_that_was_chosen():
    module = trained(own_networks.Fire)  # one pool: window 3, stride 2, padding 1
    found = {}
    for pooling in ("window", "stride"):
        traced = trace(module, SHAPE, pooling)
        assert any("becomes average pooling" in note for note in traced.notes)
        student = build_student(recipe(traced.args))
        (pool,) = [p for p in pools(student) if p.kernel_size != (4, 4)]  # that is the mean
        found[pooling] = (pool.kernel_size, pool.stride, pool.padding)
        assert [type(p) for p in pools(traced.network)] == [nn.MaxPool2d, nn.AvgPool2d]
    assert found == {
        "window": ((3, 3), (2, 2), (1, 1)),
        "stride": ((2, 2), (2, 2), (0, 0)),
    }


def test_what_differs_in_the_twin_is_said():
    notes = " | ".join(trace(trained(own_networks.Normed), SHAPE).notes)
    assert "two.2: a leaky ReLU" in notes and "two.1: max pooling (window 2" in notes
    assert "one_0: without BatchNorm" in notes
    notes = " | ".join(trace(trained(own_networks.Dense), SHAPE).notes)
    assert "log_softmax: left out" in notes
    notes = " | ".join(trace(trained(own_networks.Plain), SHAPE).notes)
    assert "classifier.3: does nothing after training" in notes


class Changed(own_networks.Plain):
    """Plain with something else in the place of one layer."""

    def __init__(self, place, layer):
        super().__init__()
        part, index = place
        getattr(self, part)[index] = layer


@pytest.mark.parametrize(
    ("place", "layer", "says"),
    [
        (("features", 1), nn.GELU(), r"features\.1: GELU .*retrain with ReLU"),
        (("features", 1), nn.Sigmoid(), r"features\.1: Sigmoid .*gates"),
        (("features", 1), nn.PReLU(), r"features\.1: PReLU .*retrain with ReLU"),
        (("features", 1), nn.Hardtanh(), r"features\.1: a hardtanh from -1\.0"),
        (("features", 1), nn.GroupNorm(2, 6), r"features\.1: GroupNorm .*BatchNorm"),
        (("features", 0), conv(2, 6, padding_mode="reflect"), r"features\.0: padding_mode"),
        (("features", 0), nn.Conv2d(2, 6, (1, 3), padding=(0, 1)), r"features\.0: kernel \(1, 3\)"),
        (
            ("features", 2),
            nn.MaxPool2d(3, 2, 1, ceil_mode=True),
            r"features\.2: ceil_mode pools parts",
        ),
        (("features", 2), nn.AdaptiveAvgPool2d(3), r"features\.2: adaptive pooling .*several"),
        (("features", 2), nn.LPPool2d(2, 2), r"features\.2: LPPool2d cannot be turned"),
        (("classifier", 0), nn.Flatten(2), r"classifier\.0: flattens axes 2"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_cannot_be_turned_is_named_with_its_place_and_a_remedy(place, layer, says):
    module = Changed(place, layer)
    if isinstance(layer, nn.AdaptiveAvgPool2d):
        module.features[5] = nn.Identity()
        module.classifier[1] = nn.Linear(72, 12)
    if isinstance(layer, nn.Flatten):
        module.classifier[1] = nn.Linear(4, 12)
    with pytest.raises(InputError, match=says):
        trace(module, SHAPE)


class Odd(nn.Module):
    """conv-BN-ReLU, and one expression on the map behind it."""

    def __init__(self, expression):
        super().__init__()
        self.block, self.linear = conv_block(), nn.Linear(4, 3)
        self.expression = expression

    def forward(self, x):
        return self.linear(self.expression(self.block(x)).mean((2, 3)))


def conv_block():
    return nn.Sequential(own_networks.conv_bn(2, 4), nn.ReLU())


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        (lambda x: x * torch.sigmoid(x), "Sigmoid|sigmoid"),
        (lambda x: x * x.mean((2, 3), keepdim=True), "mul: mul cannot .*products"),
        (lambda x: x + 1, "add: adds a constant"),
        (lambda x: x + x, "add: adds a value to itself"),
        (lambda x: torch.add(x, x.contiguous(), alpha=2), "adds a constant or a scaled value"),
        (lambda x: x + x.mean((2, 3), keepdim=True), r"add: adds maps of shapes"),
        (lambda x: x[:, :, 2:], r"getitem: picks"),
        (lambda x: x[:, :, ::2], r"getitem: picks"),
        (lambda x: F.pad(x, (1, 1, 1, 1)), r"pad: pads by \(1, 1, 1, 1\)"),
        (lambda x: x.permute(0, 1, 3, 2), "permute: permute cannot be turned"),
        (lambda x: torch.cat([x, x], 2), "cat: concatenates along axis 2"),
        (lambda x: x.view(x.size(0), 2, 2, 8, 8).flatten(1, 2), "view: reshapes a map"),
        (lambda x: F.interpolate(x, scale_factor=2), "interpolate cannot be turned"),
        (lambda x: x if x.sum() > 0 else -x, r"cannot be traced at line \d+ of test_trace"),
    ],
)
def test_expressions_without_a_spiking_form_are_named(expression, says):
    with pytest.raises(InputError, match=says):
        trace(Odd(expression), SHAPE)


def test_a_network_without_a_relu_is_an_error():
    module = nn.Sequential(own_networks.conv_bn(2, 4), nn.Flatten(), nn.Linear(256, 3))
    with pytest.raises(InputError, match="nothing was converted"):
        trace(module, SHAPE)


def test_results_that_are_no_logits_are_errors():
    class Two(own_networks.Plain):
        def forward(self, x):
            y = super().forward(x)
            return y, y

    with pytest.raises(InputError, match="several values"):
        trace(Two(), SHAPE)
    with pytest.raises(InputError, match=r"returns a tensor \(4, 6, 8, 8\)"):
        trace(nn.Sequential(conv(2, 6), nn.ReLU()), SHAPE)


def test_images_of_another_size_are_named():
    with pytest.raises(InputError, match=r"classifier\.1: fails for images \(2, 12, 12\)"):
        trace(own_networks.Plain(), (2, 12, 12))


def test_a_value_that_is_changed_in_place_is_caught():
    class InPlace(Odd):
        def forward(self, x):
            z = self.block[0](x)
            kept = z.sum((2, 3), keepdim=True) * 0 if False else z
            out = torch.relu_(z)  # kept is changed, too, which no graph of values shows
            return self.linear((out + self.block[0][1](kept)).mean((2, 3)))

    with pytest.raises(InputError, match=r"differs from the teacher.*in place"):
        trace(InPlace(None), SHAPE)


def test_a_defect_of_the_tracer_is_caught(monkeypatch):
    def forgetful(call, x, *pads, **options):
        layer = operators.Layer(kind="pad", inputs=x.shape[0], outputs=x.shape[0] + 2, first=0)
        return call.wiring.extended(x, layer, call.place)

    monkeypatch.setitem(operators.OPERATORS, F.pad, forgetful)
    with pytest.raises(InputError, match="differs from the teacher"):
        trace(trained(own_networks.Residual), SHAPE)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"readout": [9]}, "readout: 9 is no earlier junction"),
        ({"stage_ends": [7]}, "stage_ends: 7 is no earlier"),
        ({"junctions.1.wires.0.sources": [1]}, r"junctions\.1: 1 is no earlier"),
        ({"junctions.1.wires.0.layers.1.inputs": 5}, r"junctions\.1: a conv layer .* cannot take"),
        ({"junctions.1.wires.0.layers.1.groups": 5}, "5 groups do not divide"),
        ({"junctions.1.wires.0.layers.1.name": "features_0_0"}, "a name of its own"),
        ({"junctions.1.wires.0.layers.0.padding": [3, 3]}, "a max layer .* cannot take"),
        ({"junctions.0.wires.0.layers.0.outputs": 1 << 20}, "cannot take|larger than|weights"),
        ({"junctions.0.wires.0.layers.0.kernel": [0, 3]}, "kernel"),
        ({"junctions.1.carry": 0}, r"junctions\.1 .*different shapes"),
    ],
)
def test_a_description_that_contradicts_itself_is_refused(change, says):
    document = recipe(trace(trained(own_networks.Plain), SHAPE).args).resolved()
    ((path, value),) = change.items()
    node = document["teacher"]["args"]
    *parts, last = path.split(".")
    for part in parts:
        node = node[int(part)] if part.isdigit() else node[part]
    node[int(last) if last.isdigit() else last] = value
    with pytest.raises(RecipeError, match=says):
        build_teacher(parse_recipe(document, "test"))
