"""The student's loss and learning rate."""

import pytest
import torch

from stars_deploy.config.recipe import Kd
from stars_deploy.distillation.kd import feature_loss, kd_loss, learning_rate

STUDENT = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
TEACHER = torch.tensor([[3.0, 2.0, 1.0], [1.0, 0.0, -1.0]], dtype=torch.float64)


def test_kd_loss_by_hand():
    assert float(kd_loss(STUDENT, TEACHER, 20.0)) == pytest.approx(0.8329516019230216, abs=1e-9)


def test_kd_loss_is_zero_up_to_a_constant():
    assert float(kd_loss(TEACHER, TEACHER, 4.0)) == pytest.approx(0, abs=1e-12)
    assert float(kd_loss(TEACHER + 5, TEACHER, 4.0)) == pytest.approx(0, abs=1e-12)


def test_kd_loss_at_a_high_temperature_is_the_error_of_centred_logits():
    difference = (STUDENT - STUDENT.mean(1, True)) - (TEACHER - TEACHER.mean(1, True))
    expected = difference.square().sum(1).mean() / (2 * 3)
    assert float(kd_loss(STUDENT, TEACHER, 1000.0)) == pytest.approx(float(expected), rel=1e-3)


def test_feature_loss_by_hand():
    spikes = [torch.tensor([1.0, 0.0]).view(2, 1, 1, 1, 1)]  # rate 0.5
    relu = [torch.tensor([2.0]).view(1, 1, 1, 1)]
    assert float(feature_loss(spikes, relu, [torch.tensor([2.0])])) == pytest.approx(1 / 4)
    assert float(feature_loss(spikes, relu, [torch.tensor([4.0])])) == 0


def test_cosine_moves_once_per_epoch():
    kd = Kd(lr=0.2, lr_min=2e-4, steps=7)
    rates = [[learning_rate(kd, e, s, 4) for s in range(7)] for e in range(4)]
    assert all(len(set(epoch)) == 1 for epoch in rates)
    assert rates[0][0] == 0.2
    assert rates[2][0] == pytest.approx((0.2 + 2e-4) / 2)
    assert 2e-4 < rates[3][0] < rates[2][0]


def test_onecycle_agrees_with_torch():
    kd = Kd(lr=0.05, steps=25, schedule="onecycle")
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.05, total_steps=100, pct_start=0.1, cycle_momentum=False
    )
    for step in range(100):
        ours = learning_rate(kd, step // 25, step % 25, 4)
        assert ours == pytest.approx(schedule.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        if step < 99:
            schedule.step()


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_onecycle_of_a_few_steps_stays_between_its_bounds(steps):
    kd = Kd(lr=0.05, steps=steps, schedule="onecycle")
    rates = [learning_rate(kd, 0, step, 1) for step in range(steps)]
    assert all(0 < rate <= 0.05 for rate in rates)
