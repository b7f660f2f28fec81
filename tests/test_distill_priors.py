"""Synthesis losses against hand-computed values, and what the BatchNorm probe reads."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from stars_deploy.distillation.priors import (
    BatchNormProbe,
    Moments,
    adversarial_loss,
    batch_moments,
    blend,
    bn_loss,
    class_prior_loss,
    jsd_loss,
    l2_norm,
    total_variation,
    update_average,
)
from stars_deploy.errors import InputError

STUDENT = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
TEACHER = torch.tensor([[3.0, 2.0, 1.0], [1.0, 0.0, -1.0]], dtype=torch.float64)
RAMP = torch.arange(8, dtype=torch.float64).view(2, 2, 2, 1)
FRESH = [Moments(torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64))]


def test_moments_are_biased_and_per_channel():
    moments = batch_moments(RAMP)
    # channel 0 holds 0, 1, 4, 5: mean 2.5, squares of deviations 6.25 2.25 2.25 6.25
    assert moments.mean.tolist() == [2.5, 4.5]
    assert moments.var.tolist() == [4.25, 4.25]


@pytest.mark.parametrize(("form", "value"), [("norm", 9.74400914820606), ("squared", 47.625)])
def test_bn_loss_by_hand(form, value):
    assert float(bn_loss([batch_moments(RAMP)], FRESH, form)) == pytest.approx(value, abs=1e-9)


def test_bn_loss_with_a_moving_average_by_hand():
    average = Moments(torch.full((2,), 1.0).double(), torch.full((2,), 2.0).double())
    matched = blend(batch_moments(RAMP), average, 0.9)
    assert float(bn_loss([matched], FRESH)) == pytest.approx(3.5058263990038614, abs=1e-9)


def test_moving_average_copies_the_first_batch_and_then_moves_by_a_tenth():
    first = update_average(None, [batch_moments(RAMP)], 0.9)
    assert first[0].mean.tolist() == [2.5, 4.5]
    second = update_average(first, [Moments(torch.zeros(2).double(), torch.zeros(2).double())], 0.9)
    assert second[0].mean.tolist() == pytest.approx([2.25, 4.05])


def test_bn_loss_is_zero_at_the_running_moments_and_has_a_finite_gradient_there():
    x = RAMP.clone().requires_grad_(True)
    target = Moments(*(value.detach() for value in batch_moments(RAMP)))
    loss = bn_loss([batch_moments(x)], [target])
    loss.backward()
    assert float(loss.detach()) == 0
    assert torch.isfinite(x.grad).all()


def test_probe_reads_the_input_of_every_norm_and_leaves_the_network_alone():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)
    )
    network.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    x = torch.rand(4, 1, 6, 6)
    with BatchNormProbe(network) as probe:
        network(x)
    assert [len(m.mean) for m in probe.moments] == [3, 2]
    torch.testing.assert_close(probe.moments[0].mean, network[0](x).mean((0, 2, 3)))
    inner = network[2](network[1](network[0](x)))
    torch.testing.assert_close(probe.moments[1].var, inner.var((0, 2, 3), correction=0))
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    probe.inputs.clear()
    network(x)  # the hooks are gone
    assert probe.inputs == []


def test_a_network_without_batch_norm_is_refused():
    with pytest.raises(InputError, match="BatchNorm"):
        BatchNormProbe(nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU()))


def test_adversarial_loss_counts_agreement_only():
    # Row 0: argmax 2 against 0, masked. Row 1: KL 0.26621670682817..., halved by the mean.
    assert float(adversarial_loss(STUDENT, TEACHER)) == pytest.approx(-0.1331083534140854, abs=1e-9)
    assert float(adversarial_loss(STUDENT[:1], TEACHER[:1])) == 0
    assert float(adversarial_loss(TEACHER, TEACHER)) == pytest.approx(0, abs=1e-12)


def test_class_prior_is_cross_entropy():
    loss = class_prior_loss(torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1]))
    assert float(loss) == pytest.approx(0.6931472)


def test_smoothness_by_hand():
    image = torch.tensor([[[[0.0, 1.0], [2.0, 4.0]]]])
    # right: |1-0|, |4-2| mean 1.5; down: |2-0|, |4-1| mean 2.5; diagonals: |4-0|, |2-1|
    assert float(total_variation(image)) == pytest.approx(1.5 + 2.5 + 4 + 1)
    assert float(l2_norm(image)) == pytest.approx(21**0.5)


def test_jsd_is_that_of_the_public_code():
    student = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    teacher = torch.tensor([[3.0, 2.0, 1.0], [1.0, 0.0, -1.0]], dtype=torch.float64)
    assert float(jsd_loss(student, teacher)) == pytest.approx(-0.02308027315487532, abs=1e-9)
    assert float(jsd_loss(student, student)) == pytest.approx(0, abs=1e-12)


def test_bn_loss_of_a_network_is_zero_at_its_own_biased_statistics():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)
    )
    network.double().eval().requires_grad_(False)
    x = torch.rand(4, 1, 6, 6, dtype=torch.float64)

    def loss():
        with BatchNormProbe(network) as probe:
            network(x)
        return float(bn_loss(probe.moments, probe.targets))

    assert loss() > 0.1
    for place in (1, 4):
        features = network[:place](x)  # the second norm's input depends on the first norm
        network[place].running_mean.copy_(features.mean((0, 2, 3)))
        network[place].running_var.copy_(features.var((0, 2, 3), correction=0))
    assert loss() == pytest.approx(0, abs=1e-12)
    network[1].running_var.mul_(64 / 63)  # what an unbiased estimate of 4 x 4 x 4 values would be
    assert loss() > 1e-4


@given(st.integers(0, 10_000))
def test_the_adversarial_loss_is_never_positive_and_leaves_disagreement_alone(seed):
    rng = torch.Generator().manual_seed(seed)
    student = torch.randn(6, 3, generator=rng, dtype=torch.float64).requires_grad_(True)
    teacher = torch.randn(6, 3, generator=rng, dtype=torch.float64)
    loss = adversarial_loss(student, teacher)
    (gradient,) = torch.autograd.grad(loss, student)
    agree = student.argmax(1) == teacher.argmax(1)
    assert float(loss.detach()) <= 0 and (float(loss.detach()) < 0) == bool(agree.any())
    assert torch.equal(gradient.abs().sum(1) > 0, agree)
