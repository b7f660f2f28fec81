"""The warm start: fits against simulated neurons, least squares, folding, calibration."""

import pytest
import torch
from tiny_distillation import DOCUMENT, tiny_teacher
from torch import nn

from stars_deploy.config.recipe import Neuron, parse_recipe
from stars_deploy.distillation.rate_fit import (
    MIN_GAIN,
    fit_gaussian,
    fit_samples,
    threshold_currents,
)
from stars_deploy.distillation.warm_start import analytic_start, calibrate, twins
from stars_deploy.distillation.weight_refit import refit_conv, refit_linear, ridge_correction
from stars_deploy.errors import InputError
from stars_deploy.networks.base import Network
from stars_deploy.networks.families import build_student, seeded
from stars_deploy.networks.images import to_input
from stars_deploy.networks.neuron import spike_train

NEURONS = [
    (Neuron(), 4),
    (Neuron(), 8),
    (Neuron(decay_input=False), 4),
    (Neuron(tau=1.0), 3),
    (Neuron(tau=5.0, v_threshold=0.7, v_reset=-0.2), 6),
]


def rate(current, neuron, T):
    return spike_train(current[None], T, neuron).mean(0)


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("neuron", "T"), NEURONS)
def test_threshold_currents_separate_silence_and_constant_firing(neuron, T):
    first, full = threshold_currents(neuron, T)
    around = torch.tensor([first * 0.999, first * 1.001, full * 0.999, full * 1.001])
    silent, once, _, always = rate(around, neuron, T).tolist()
    assert silent == 0 and once > 0 and always == 1
    if full > first * 1.01:
        assert rate(around, neuron, T)[2] < 1


def test_threshold_currents_of_the_default_neuron():
    assert threshold_currents(Neuron(), 4) == pytest.approx((16 / 15, 2.0))


@pytest.mark.parametrize(("neuron", "T"), NEURONS)
def test_reported_error_is_what_simulated_neurons_make(neuron, T):
    mean, std = torch.tensor([0.0, -0.6, 1.0, 0.3]), torch.tensor([1.0, 0.5, 0.3, 2.0])
    fit = fit_gaussian(mean, std, neuron, T)
    z = mean + std * normal(0, 40_000, 4)
    relu = z.clamp(min=0)
    made = fit.gain * rate(fit.slope * z + fit.offset, neuron, T)
    error = (made - relu).square().mean(0) / relu.square().mean(0)
    torch.testing.assert_close(fit.error, error, atol=0.015, rtol=0.1)
    # A binary neuron cannot do better than 0.2; several levels can.
    assert float(fit.error.max()) < (0.35 if neuron.tau == 1 else 0.12)


def test_an_offset_is_worth_more_than_any_scale():
    z = normal(1, 20_000)
    relu = z.clamp(min=0)

    def best_without_offset():
        for slope in torch.linspace(0.3, 4, 60).tolist():
            r = rate(slope * z, Neuron(), 4)
            g = (r * relu).mean() / r.square().mean().clamp(min=1e-9)
            yield float((g * r - relu).square().mean() / relu.square().mean())

    fit = fit_gaussian(torch.zeros(1), torch.ones(1), Neuron(), 4)
    assert float(fit.error) < 0.85 * min(best_without_offset())


def test_a_channel_that_never_fires_is_finite_and_silent():
    fit = fit_gaussian(torch.tensor([-9.0, -9.0]), torch.tensor([1.0, 0.0]), Neuron(), 4)
    assert all(value.isfinite().all() for value in fit)
    assert fit.gain.tolist() == pytest.approx([MIN_GAIN] * 2)
    z = -9 + normal(2, 1000, 2) * torch.tensor([1.0, 0.0])
    assert rate(fit.slope * z + fit.offset, Neuron(), 4).sum() == 0


def test_samples_refine_a_guess_that_is_off():
    z = normal(3, 4000, 2) * torch.tensor([1.0, 0.4]) + torch.tensor([0.0, 0.2])
    good = fit_gaussian(torch.tensor([0.0, 0.2]), torch.tensor([1.0, 0.4]), Neuron(), 4)
    guess = good._replace(slope=good.slope * 1.4, offset=good.offset - 0.2)
    fit = fit_samples(z[None], z.clamp(min=0), guess, Neuron(), 4)
    torch.testing.assert_close(fit.error, good.error, atol=0.02, rtol=0.1)


def test_ridge_correction_is_least_squares_with_a_free_offset():
    inputs, weight = normal(4, 200, 5).double() + 1, normal(5, 3, 5).double()
    target = normal(6, 200, 3).double()
    wide = torch.cat([inputs, torch.ones(200, 1)], dim=1)
    expected = torch.linalg.lstsq(wide, target).solution[:-1].T
    blocks = list(zip(inputs.split(64), target.split(64), strict=True))
    found = weight + ridge_correction(blocks, weight, 0.0)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert ridge_correction(blocks, weight, 1e9).abs().max() < 1e-6


def test_ridge_is_relative_to_the_inputs_size():
    inputs, weight, target = normal(7, 300, 4), torch.zeros(2, 4), normal(8, 300, 2)
    small = ridge_correction([(inputs, target)], weight, 0.3)
    large = ridge_correction([(100 * inputs, target)], weight, 0.3)
    torch.testing.assert_close(100 * large, small, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("stride", [1, 2])
def test_refit_finds_the_convolution_that_made_the_target(stride):
    wanted = nn.Conv2d(3, 4, 3, stride=stride, padding=1)
    found = nn.Conv2d(3, 4, 3, stride=stride, padding=1, bias=False)
    images = normal(9, 100, 3, 6, 7)
    with torch.no_grad():
        refit_conv(found, images, wanted(images), ridge=0.0)
    torch.testing.assert_close(found.weight, wanted.weight, atol=1e-3, rtol=1e-3)


def test_refit_of_a_linear_layer_leaves_the_bias():
    wanted, found = nn.Linear(4, 3), nn.Linear(4, 3)
    bias, inputs = found.bias.clone(), normal(10, 50, 4)
    with torch.no_grad():
        refit_linear(found, inputs, wanted(inputs), ridge=0.0)
    torch.testing.assert_close(found.weight, wanted.weight, atol=1e-4, rtol=1e-4)
    assert torch.equal(found.bias, bias)


@pytest.fixture
def pair():
    document = {
        **DOCUMENT,
        "student": {"T": 4},
        "teacher": {"args": {"channels": [6, 8, 8], "strides": [1, 2, 1]}},
    }
    recipe = parse_recipe(document, "tiny")
    teacher = tiny_teacher(recipe)
    with torch.no_grad():
        teacher.blocks[1].bn.weight[0] *= -1  # trained networks have such channels
    student = seeded(build_student, recipe, 1).eval()
    return recipe, twins(recipe, teacher, student)


def images(count):
    rng = torch.Generator().manual_seed(11)
    return torch.randint(256, (count, 1, 8, 8), generator=rng, dtype=torch.uint8)


def logit_error(recipe, pair):
    x = to_input(images(64), recipe.data, torch.device("cpu"))
    with torch.no_grad():
        wanted, got = pair.teacher(x), pair.student(x)
    return float((got - wanted).square().mean() / (wanted - wanted.mean(0)).square().mean())


def test_slope_and_offset_are_folded_into_the_first_block(pair):
    recipe, nets = pair
    analytic_start(nets)
    x = to_input(images(5), recipe.data, torch.device("cpu"))
    bn = nets.teacher.blocks[0].bn
    fit = fit_gaussian(bn.bias.detach(), bn.weight.detach().abs(), recipe.neuron, 4)
    z = nets.teacher.taps(x).pre_activations[0]
    current = nets.student.taps(x).pre_activations[0][0]
    expected = fit.slope.view(-1, 1, 1) * z + fit.offset.view(-1, 1, 1)
    torch.testing.assert_close(current, expected, atol=1e-4, rtol=1e-4)
    # the gain is in the input channels of the next convolution
    weights = [net.blocks[1].conv.weight for net in (nets.teacher, nets.student)]
    torch.testing.assert_close(weights[1], weights[0] * fit.gain.view(1, -1, 1, 1))


def test_each_stage_of_the_warm_start_brings_the_logits_closer(pair):
    recipe, nets = pair
    nets.student.load_state_dict(nets.teacher.state_dict())
    naive = logit_error(recipe, nets)
    analytic_start(nets)
    analytic = logit_error(recipe, nets)
    no_refit = recipe.model_copy(
        update={"warm_start": recipe.warm_start.model_copy(update={"ridge": 0})}
    )
    calibrate(nets, images(128), no_refit)
    fitted = logit_error(recipe, nets)
    gains, errors = calibrate(nets, images(128), recipe)
    refitted = logit_error(recipe, nets)
    assert refitted < fitted < analytic < naive
    assert refitted < 0.2 * naive
    assert [len(gain) for gain in gains] == [6, 8, 8] and len(errors) == 3


def test_calibration_keeps_the_sign_of_a_negative_batch_norm_weight(pair):
    recipe, nets = pair
    calibrate(nets, images(128), recipe)
    x = to_input(images(64), recipe.data, torch.device("cpu"))
    z = nets.teacher.taps(x).pre_activations[1][:, 0].flatten().detach()
    current = nets.student.taps(x).pre_activations[1].mean(0)[:, 0].flatten().detach()
    assert float(torch.corrcoef(torch.stack([z, current]))[0, 1]) > 0.5


def test_the_teacher_is_left_alone(pair):
    recipe, nets = pair
    before = {name: value.clone() for name, value in nets.teacher.state_dict().items()}
    calibrate(nets, images(32), recipe)
    assert all(torch.equal(before[n], v) for n, v in nets.teacher.state_dict().items())


def test_a_network_that_is_no_chain_is_refused(pair):
    recipe, nets = pair
    with pytest.raises(InputError, match=r"warm_start\.enabled = false"):
        twins(recipe, nets.teacher, Network(None))


@pytest.mark.parametrize(("neuron", "T"), NEURONS)
def test_a_relu_that_never_opens_gets_no_steep_slope(neuron, T):
    mean, std = torch.tensor([-9.0, 0.0]), torch.tensor([0.5, 0.5])
    dead, alive = fit_gaussian(mean, std, neuron, T).slope.tolist()
    assert 0.1 * alive < dead < 10 * alive
