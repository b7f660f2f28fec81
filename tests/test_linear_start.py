"""The warm start of sums, side-by-side maps, groups and dense heads: gains times rates."""

import own_networks
import pytest
import torch
import torch.nn.functional as F
from own_networks import SHAPE, conv_bn, trained
from test_random_modules import calibrated_as_it_runs
from test_trace_networks import pixels, recipe
from torch import nn

from stars_deploy.distillation.warm_start import (
    Pins,
    _passed_on,
    _per_input,
    analytic_start,
    calibrate,
    twins,
)
from stars_deploy.networks.families import build_student
from stars_deploy.networks.images import to_input
from stars_deploy.networks.tracing.trace import trace


def start(module, **sections):
    """Teacher and student after the analytic start, their recipe, and the gains."""
    traced = trace(module, SHAPE)
    chosen = recipe(traced.args, **sections)
    pair = twins(chosen, traced.network, build_student(chosen))
    return pair, chosen, analytic_start(pair)


def test_every_output_sees_the_inputs_of_its_group():
    seen = _per_input(torch.tensor([1.0, 2.0, 3.0, 4.0]), nn.Conv2d(4, 6, 1, groups=2))
    assert seen.tolist() == [[1, 2]] * 3 + [[3, 4]] * 3
    seen = _per_input(torch.tensor([1.0, 2.0]), nn.Conv2d(2, 3, 1))
    assert seen.tolist() == [[1, 2]] * 3


def test_a_sum_keeps_its_units_but_where_a_shortcut_ties_them():
    fit = _passed_on(torch.zeros(3), Pins(torch.tensor([2.0, float("nan"), 0.5])))
    assert fit.slope.tolist() == [2, 1, 0.5] and fit.gain.tolist() == [0.5, 1, 2]
    assert fit.offset.tolist() == [0, 0, 0]
    assert _passed_on(torch.zeros(2), Pins()).gain.tolist() == [1, 1]


def test_a_head_of_flattened_maps_has_one_gain_per_channel():
    net = nn.Sequential(conv_bn(2, 3), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(12, 3))
    pair, _, gains = start(trained(lambda: net))
    ratio = pair.student.fc.weight / pair.teacher.fc.weight
    for channel in range(3):  # flattening puts the 2x2 places of a channel side by side
        places = ratio[:, 4 * channel : 4 * channel + 4]
        torch.testing.assert_close(places, gains[-1][channel].expand(3, 4))
    assert gains[-1].max() > 1.05 * gains[-1].min()


class Added(nn.Module):
    """a and b are added, b and c elsewhere: all three fire in one unit."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(conv_bn(2, 4) for _ in "abc")
        self.one, self.other, self.linear = conv_bn(4, 4), conv_bn(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        a, b, c = (F.relu(block(x)) for block in self.blocks)
        x = F.relu(self.one(a + c) + self.other(b + c))
        return self.linear(x.mean((2, 3)))


def test_neurons_whose_spikes_are_added_share_their_gain():
    pair, chosen, gains = start(trained(Added))
    calibrated, _ = calibrate(pair, torch.from_numpy(pixels(64)), chosen)
    for found in (gains, calibrated):
        assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
        assert not torch.equal(found[0], found[3])


class Sums(nn.Module):
    """Sums of every kind: projections, side by side, padded, grouped, pooled; a dense head."""

    def __init__(self):
        super().__init__()
        self.a, self.b = conv_bn(2, 4), conv_bn(2, 4)
        self.c = conv_bn(4, 4, groups=2)
        self.d = conv_bn(8, 6, 1)
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(24, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)
        )

    def forward(self, x):
        linear = self.a(x) + F.relu(self.b(x))  # read twice, and no activation behind it
        x = torch.cat([linear, F.relu(self.c(linear))], 1)
        x = F.relu(self.d(x) + F.pad(F.relu(self.c(linear)), (0, 0, 0, 0, 1, 1)))
        return self.head(F.avg_pool2d(x, 4))


#: Junction 5 adds spikes that a shortcut brings unscaled, so that it saturates; 6 reads it.
LOST = (0.02, 0.02, 0.02, 0.02, 0.02, 0.15, 0.3)


def test_gains_times_rates_are_the_activations():
    """IF neurons and many steps: the rate is then as fine as the fit wants it."""
    sections = {"student": {"T": 64}, "neuron": {"model": "if"}}
    pair, chosen, _ = start(trained(Sums), **sections)
    gains, _ = calibrate(pair, torch.from_numpy(pixels(128)), chosen)
    x = to_input(pixels(64, seed=5), chosen.data, torch.device("cpu"))
    with torch.no_grad():
        ours, theirs = pair.student.eval().taps(x), pair.teacher.taps(x)
    for index, gain in enumerate(gains):
        rate, wanted = ours.activations[index].mean(0), theirs.activations[index]
        lost = (gain.view(-1, 1, 1) * rate - wanted).square().mean() / wanted.square().mean()
        assert lost < LOST[index], (index, float(lost))
    lost = (ours.logits - theirs.logits).square().mean() / theirs.logits.var()
    assert lost < 0.08, float(lost)


@pytest.mark.parametrize("network", [*own_networks.NETWORKS, Added, Sums])
@pytest.mark.parametrize("model", ["lif", "if"])
def test_calibration_knows_the_student_that_it_makes(network, model):
    pair, chosen, _ = start(trained(network), neuron={"model": model})
    calibrated_as_it_runs(pair, pixels(24), chosen)
