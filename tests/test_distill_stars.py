"""RCA and TAR: hand-computed values, invariances, gradients, silent layers."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from small_recipes import recipe

from stars_deploy.config.recipe import Neuron, Stars
from stars_deploy.distillation.layers import compared_layers
from stars_deploy.distillation.stars import (
    StarsLoss,
    firing_thresholds,
    layer_weights,
    pooled,
    rca_loss,
    scale_of,
    soft_exceedance,
    started,
    tail_thresholds,
    tar_loss,
)
from stars_deploy.errors import InputError
from stars_deploy.networks.families import build_student, build_teacher

QUANTILES = (0.6, 0.7, 0.8, 0.9, 0.95)
Z_T = torch.tensor([[0.0, 1.0], [2.0, 3.0]], dtype=torch.float64)
Z_S = Z_T - 1


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("teacher", "student", "value"),
    [
        (rows([1, 0], [0, 1], [1, 1]), rows([1, 0], [1, 0], [0, 2]), 2 / 3),
        (rows([1, 0], [0, 1], [1, 1]), rows([1, 2, 2], [0, 3, 4], [-1, 0, 0]), 0.8178755810044178),
        (rows([1, 0], [2, 0]), rows([1, 0], [-1, 0]), 4),
        (rows([1, 0]), rows([0, 1]), 0),  # a single sample has no pairs
    ],
)
def test_rca_by_hand(teacher, student, value):
    assert float(rca_loss(teacher, student)) == pytest.approx(value, abs=1e-9)


@given(st.integers(0, 10_000), st.integers(2, 9), st.integers(1, 6))
def test_rca_ignores_scale_rotation_empty_channels_and_order(seed, batch, channels):
    z = normal(seed, batch, channels)
    other = normal(seed + 1, batch, channels + 2)
    rotation, _ = torch.linalg.qr(normal(seed + 2, channels, channels))
    scale = normal(seed + 3, batch, 1).abs() + 0.1
    reference = rca_loss(z, other)
    assert 0 <= float(reference) <= 4
    assert float(rca_loss(z, z * scale)) == pytest.approx(0, abs=1e-12)
    assert float(rca_loss(z, z @ rotation)) == pytest.approx(0, abs=1e-12)
    padded = torch.cat([other, torch.zeros(batch, 3, dtype=other.dtype)], dim=1)
    assert float(rca_loss(z, padded)) == pytest.approx(float(reference), abs=1e-12)
    order = torch.randperm(batch, generator=torch.Generator().manual_seed(seed))
    assert float(rca_loss(z[order], other[order])) == pytest.approx(float(reference), abs=1e-12)


def test_rca_sees_a_common_offset():
    assert float(rca_loss(normal(0, 6, 3), normal(0, 6, 3) + 2)) > 0.1


def test_silent_rows_are_left_out_and_their_gradient_is_bounded():
    teacher, student = normal(1, 8, 4), normal(2, 8, 4)
    live = rca_loss(teacher[1:], student[1:])
    student[0] = 0
    student.requires_grad_(True)
    loss = rca_loss(teacher, student)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(live), abs=1e-12)
    assert torch.isfinite(student.grad).all() and float(student.grad.norm()) < 10
    assert student.grad[0].abs().sum() == 0
    nothing = torch.zeros(8, 4, dtype=torch.float64, requires_grad=True)
    silent = rca_loss(teacher, nothing)
    silent.backward()
    assert float(silent.detach()) == 0 and float(nothing.grad.norm()) == 0


def test_rca_gradients_match_finite_differences():
    inputs = (normal(3, 5, 3).requires_grad_(True), normal(4, 5, 4).requires_grad_(True))
    assert torch.autograd.gradcheck(rca_loss, inputs)


def test_tar_at_a_fixed_threshold_by_hand():
    threshold = rows(1.0).flatten()
    assert soft_exceedance(Z_T, threshold, 0.5).tolist() == pytest.approx([0.6205034475094771])
    assert soft_exceedance(Z_S, threshold, 0.5).tolist() == pytest.approx([0.37949655249052283])
    assert float(tar_loss(Z_T, Z_S, threshold, 0.5)) == pytest.approx(0.05808432344667722)


def in_teacher_units(teacher, student):
    scale = scale_of(teacher)
    return (teacher - scale.mean) / scale.std, (student - scale.mean) / scale.std


def test_tar_at_the_teachers_quantiles_by_hand():
    raw = tail_thresholds(Z_T, QUANTILES)
    assert raw.tolist() == pytest.approx([1.8, 2.1, 2.4, 2.7, 2.85])
    assert float(tar_loss(Z_T, Z_S, raw, 0.5)) == pytest.approx(0.03626559322062149)
    teacher, student = in_teacher_units(Z_T, Z_S)
    thresholds = tail_thresholds(teacher, QUANTILES)
    assert thresholds[0].item() == pytest.approx(0.2683281572999746)
    assert float(tar_loss(teacher, student, thresholds, 0.5)) == pytest.approx(0.0343298545329319)


@given(st.integers(0, 10_000), st.floats(0.1, 20), st.floats(-5, 5))
def test_standardised_tar_ignores_a_common_affine(seed, scale, shift):
    z_t, z_s = normal(seed, 6, 4), normal(seed + 1, 6, 5)

    def value(t, s):
        t, s = in_teacher_units(t, s)
        return float(tar_loss(t, s, tail_thresholds(t, QUANTILES), 0.5))

    assert value(scale * z_t + shift, scale * z_s + shift) == pytest.approx(
        value(z_t, z_s), abs=1e-9
    )
    assert value(z_t, z_t.flip(0)) == pytest.approx(
        0, abs=1e-15
    )  # which sample is which is ignored


def test_exceedance_of_a_gaussian():
    z = normal(0, 400_000)
    levels = tail_thresholds(z, QUANTILES)
    soft = soft_exceedance(z, levels, 0.5).tolist()
    assert soft == pytest.approx([0.4238, 0.3454, 0.2620, 0.1669, 0.1084], abs=2e-3)
    hard = soft_exceedance(z, levels, 1e-3).tolist()
    assert hard == pytest.approx([0.4, 0.3, 0.2, 0.1, 0.05], abs=2e-3)
    assert (soft_exceedance(z + 0.1, levels, 0.5) > torch.tensor(soft)).all()


def test_equal_moments_with_different_tails_are_told_apart():
    two_points = rows([-1] * 5 + [1] * 5).T
    heavy = rows([-(5**0.5)] + [0] * 8 + [5**0.5]).T
    assert torch.allclose(two_points.var(correction=0), heavy.var(correction=0))
    assert float(tar_loss(heavy, two_points, rows(1.6).flatten(), 0.05)) > 0.009


def test_thresholds_and_scale_carry_no_gradient():
    teacher = normal(5, 6, 4).requires_grad_(True)
    assert not tail_thresholds(teacher, QUANTILES).requires_grad
    frozen = teacher.detach()
    constants = tail_thresholds(frozen, QUANTILES), 0.5 * frozen.std(correction=0)

    def with_frozen(z):  # the same loss in raw units, thresholds and scale written as constants
        return tar_loss(z, Z_S, *constants)

    standard, student = in_teacher_units(teacher, Z_S)
    loss = tar_loss(standard, student, tail_thresholds(standard, QUANTILES), 0.5)
    (gradient,) = torch.autograd.grad(loss, teacher)
    step = 1e-6
    for row, column in ((0, 0), (3, 2), (5, 3)):
        nudge = torch.zeros_like(frozen)
        nudge[row, column] = step
        slope = (with_frozen(frozen + nudge) - with_frozen(frozen - nudge)) / (2 * step)
        assert float(gradient[row, column]) == pytest.approx(float(slope), rel=1e-4, abs=1e-10)


def test_pooling_over_time_and_space():
    maps = normal(6, 3, 2, 5, 4, 4)
    torch.testing.assert_close(pooled(maps), maps.mean((0, 3, 4)))
    torch.testing.assert_close(pooled(maps[:1].expand_as(maps)), pooled(maps[0]))
    assert pooled(Z_T) is Z_T


def stars(config):
    return StarsLoss(config, Neuron(), 4)


def features(seed, *lead):
    return [normal(seed + i, *lead, 2 + i, 3, 3) for i in range(2)]


def test_stars_loss_averages_layers_and_takes_any_width():
    teacher, student = features(10, 6), features(20, 4, 6)
    rca, tar = stars(Stars())(teacher, student)
    by_hand = [rca_loss(pooled(t), pooled(s)) for t, s in zip(teacher, student, strict=True)]
    assert float(rca) == pytest.approx(float(sum(by_hand)) / 2)
    assert float(tar) > 0
    plain = stars(Stars(normalization="none"))(teacher, student).tar
    assert float(plain) != pytest.approx(float(tar))


@pytest.mark.parametrize(
    "config",
    [Stars(enabled=False), Stars(lambda_rca=0, lambda_tar=0)],
    ids=["disabled", "zero"],
)
def test_weights_of_zero_compute_nothing(config):
    assert stars(config)([], []) == (None, None)
    assert stars(Stars(lambda_tar=0))(features(1, 4), features(2, 2, 4)).tar is None


def test_teacher_path_can_be_cut():
    teacher = [f.requires_grad_(True) for f in features(1, 4)]
    student = [f.requires_grad_(True) for f in features(5, 2, 4)]
    for cut in (False, True):
        rca, tar = stars(Stars(detach_teacher=cut))(teacher, student)
        grads = torch.autograd.grad(rca + tar, [*teacher, *student], allow_unused=True)
        reached = [g is not None and bool(g.abs().sum() > 0) for g in grads]
        assert reached == [not cut, not cut, True, True]


def test_networks_of_different_depth_are_refused():
    with pytest.raises(InputError, match="2 layers of the teacher and 1 of the student"):
        stars(Stars())(features(1, 4), features(2, 2, 4)[:1])


def test_tar_in_units_of_each_channel_by_hand():
    # Every channel of Z_T becomes (-1, 1): quantiles 0.6, 1, 1, 1, 1.
    config = Stars(lambda_rca=0, normalization="teacher_channel")
    assert float(stars(config)([Z_T], [Z_S]).tar) == pytest.approx(0.04352442167605994)


def test_quantiles_of_each_channel_are_per_channel():
    shifted = Z_T + rows(0.0, 100.0)
    config = Stars(lambda_rca=0, normalization="none", thresholds="channel_quantile")
    plain = stars(config)([Z_T], [Z_S]).tar
    moved = stars(config)([shifted], [Z_S + rows(0.0, 100.0)]).tar
    assert float(moved) == pytest.approx(float(plain))
    assert float(plain) > 0


def test_firing_thresholds_of_eq_8():
    assert firing_thresholds(Neuron(), 4) == pytest.approx([2, 4 / 3, 8 / 7, 16 / 15])
    assert firing_thresholds(Neuron(decay_input=False), 2) == pytest.approx([1, 2 / 3])
    assert firing_thresholds(Neuron(model="if"), 4) == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])


def test_plif_neurons_have_no_common_firing_thresholds():
    plif = Neuron(model="plif")
    with pytest.raises(InputError, match="no common theta_t"):
        StarsLoss(Stars(thresholds="lif"), plif, 4)
    StarsLoss(Stars(thresholds="lif", enabled=False), plif, 4)


def test_lif_thresholds_are_raw_currents_in_the_units_compared():
    teacher, student = normal(7, 6, 4) + 1, normal(8, 6, 5) + 1
    config = Stars(lambda_rca=0, thresholds="lif", delta=0.3)
    scale = scale_of(teacher)
    raw = torch.tensor(firing_thresholds(Neuron(), 4), dtype=torch.float64)
    expected = tar_loss(
        (teacher - scale.mean) / scale.std,
        (student - scale.mean) / scale.std,
        (raw - scale.mean) / scale.std,
        0.3,
    )
    assert float(stars(config)([teacher], [student]).tar) == pytest.approx(float(expected))


def test_fixed_thresholds_are_used_as_they_are():
    config = Stars(lambda_rca=0, thresholds="fixed", fixed=(1.0,), normalization="none")
    assert float(stars(config)([Z_T], [Z_S]).tar) == pytest.approx(
        float(tar_loss(Z_T, Z_S, rows(1.0), 0.5))
    )


@pytest.mark.parametrize("teacher_blocks", [[1, 2, 1], [1, 1, 1]])
def test_layers_by_name_are_the_same_places_or_refused(teacher_blocks):
    args = {"width": 0.25, "shortcut": "projection"}
    chosen = recipe(
        teacher={"family": "resnet20", "args": args | {"blocks": teacher_blocks}},
        student={"architecture": "resnet20", "args": args | {"blocks": [1, 1, 1]}},
    )
    pair = build_teacher(chosen), build_student(chosen)
    named = Stars(layers=("lif5", "lif7"))
    if teacher_blocks == [1, 1, 1]:
        assert compared_layers(named, *pair) == [(4, 4), (6, 6)]
        return
    # Layer 5 ends the student's second stage, and lies inside the second block of the teacher's.
    with pytest.raises(InputError, match="teacher has 9 layers and it has 7"):
        compared_layers(named, *pair)
    assert compared_layers(named.model_copy(update={"pairing": "depth"}), *pair)[-1] == (8, 6)


def test_layer_weights_by_hand():
    teacher = [Z_T, Z_T]
    student = [Z_S, Z_T]  # the second pair is equal: its losses are 0
    alone = stars(Stars())([Z_T], [Z_S])
    for weights, share in (("equal", 1 / 2), ("linear", 1 / 3), ((1.0, 3.0), 1 / 4)):
        both = stars(Stars(layer_weights=weights))(teacher, student)
        assert float(both.rca) == pytest.approx(share * float(alone.rca))
        assert float(both.tar) == pytest.approx(share * float(alone.tar))
    assert layer_weights(Stars(layer_weights=(2.0, 6.0)), 2) == [0.25, 0.75]
    with pytest.raises(InputError, match="expected 3 numbers"):
        layer_weights(Stars(layer_weights=(1.0, 1.0)), 3)


def test_per_step_is_the_mean_over_steps():
    teacher, student = features(30, 6)[:1], features(31, 3, 6)[:1]
    whole = stars(Stars(per_step=True))(teacher, student).rca
    steps = [rca_loss(pooled(teacher[0]), pooled(step)) for step in student[0]]
    assert float(whole) == pytest.approx(float(sum(steps)) / 3)
    assert float(whole) != pytest.approx(float(stars(Stars())(teacher, student).rca))


def test_running_units_move_slowly_towards_the_batch():
    loss = stars(Stars(normalization="teacher_running"))
    loss([Z_T], [Z_S])
    loss([Z_T + 10], [Z_S])
    assert float(loss.running[0].mean) == pytest.approx(float(Z_T.mean()) + 1)


def test_dead_rows_with_a_floor_have_a_bounded_slope():
    student = (1e-4 * normal(10, 4, 3)).requires_grad_(True)
    teacher = normal(9, 4, 3)
    (gradient,) = torch.autograd.grad(rca_loss(teacher, student, mask_dead=False), student)
    assert 0 < float(gradient.norm()) < 100
    (masked,) = torch.autograd.grad(rca_loss(teacher, student), student)
    assert float(masked.norm()) == 0


def test_channel_units_need_equal_widths():
    with pytest.raises(InputError, match="3 and 4 channels"):
        stars(Stars(normalization="teacher_channel"))([normal(1, 5, 3)], [normal(2, 5, 4)])


def test_start_gate():
    for start, epochs in (("always", [0, 1, 2, 3]), ("warmup", [2, 3]), ("warmup+1", [3])):
        config = Stars(start=start)
        assert [epoch for epoch in range(4) if started(config, epoch, 2)] == epochs


@given(st.integers(0, 10_000), st.integers(2, 7))
def test_rca_counts_every_pair_once(seed, batch):
    teacher, student = normal(seed, batch, 3), normal(seed + 1, batch, 5)
    pairs = list(itertools.combinations(range(batch), 2))
    gaps = [
        F.cosine_similarity(student[i], student[j], dim=0)
        - F.cosine_similarity(teacher[i], teacher[j], dim=0)
        for i, j in pairs
    ]
    expected = torch.stack(gaps).square().sum() / (batch * (batch - 1) / 2)
    assert float(rca_loss(teacher, student)) == pytest.approx(float(expected), abs=1e-12)


def test_rca_ignores_how_alike_a_sample_is_to_itself():
    # Divided by the floor, student rows of 1e-3 have length 0.1; the cross terms still agree.
    axes = torch.eye(3, dtype=torch.float64)
    assert float(rca_loss(axes, 1e-3 * axes, mask_dead=False)) == 0


def test_a_single_sample_gives_rca_no_gradient_and_no_nan():
    rows_of_one = normal(1, 1, 3).requires_grad_(True), normal(2, 1, 4).requires_grad_(True)
    loss = rca_loss(*rows_of_one)
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(torch.equal(z.grad, torch.zeros_like(z)) for z in rows_of_one)


def test_equal_features_have_no_tar():
    for normalization in ("teacher_global", "teacher_channel", "none"):
        config = Stars(lambda_rca=0, normalization=normalization)
        z = normal(3, 6, 4)
        assert float(stars(config)([z], [z]).tar) == 0


def test_raw_tar_sees_a_common_scale_but_no_common_shift():
    teacher, student = normal(0, 8, 4), normal(1, 8, 4) + 1
    loss = stars(Stars(lambda_rca=0, normalization="none"))

    def value(scale, shift):
        return float(loss([scale * teacher + shift], [scale * student + shift]).tar)

    assert value(1, 3) == pytest.approx(value(1, 0), abs=1e-12)
    assert value(3, 1) != pytest.approx(value(1, 0), rel=0.05)
    # Of features much smaller than delta only the mean is left: p = p(0) + z / (4 delta).
    linear = (1e-3 * (student.mean() - teacher.mean()) / (4 * 0.5)).square()
    assert value(1e-3, 0) == pytest.approx(float(linear), rel=1e-2)


@given(st.integers(0, 10_000), st.lists(st.floats(-2, 2), min_size=2, max_size=6, unique=True))
def test_exceedance_falls_with_the_threshold(seed, levels):
    levels = sorted(round(level, 3) for level in levels)
    masses = soft_exceedance(normal(seed, 5, 3), torch.tensor(levels).double(), 0.5)
    for (low, high), fall in zip(itertools.pairwise(levels), -masses.diff(), strict=True):
        assert (fall > 0) == (high > low)


def test_exceedance_of_a_gaussian_by_width():
    # Midpoints of 100,000 slices of equal probability stand for N(0, 1) without sampling noise.
    slices = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    z = torch.special.ndtri(slices).view(-1, 1)
    levels = torch.special.ndtri(torch.tensor(QUANTILES, dtype=torch.float64))
    for delta, expected in {
        0.5: [0.4238, 0.3454, 0.2620, 0.1669, 0.1084],
        0.05: [0.4004, 0.3007, 0.2010, 0.1009, 0.0507],
        1e-6: [0.4, 0.3, 0.2, 0.1, 0.05],
    }.items():
        assert soft_exceedance(z, levels, delta).tolist() == pytest.approx(expected, abs=6e-5)


def shuffled(z, seed):
    """The same values for other samples and channels."""
    rng = torch.Generator().manual_seed(seed)
    order = [torch.randperm(length, generator=rng) for length in z.shape]
    return z[order[0]][:, order[1]]


@given(st.integers(0, 10_000))
def test_tar_ignores_which_sample_and_channel_is_which_in_either_network(seed):
    teacher, student = normal(seed, 6, 4), normal(seed + 1, 6, 5)
    loss = stars(Stars())
    before = loss([teacher], [student])
    for pair in ((shuffled(teacher, seed), student), (teacher, shuffled(student, seed))):
        assert float(loss([pair[0]], [pair[1]]).tar) == pytest.approx(float(before.tar), abs=1e-12)


def test_rca_does_not_ignore_which_sample_is_which():
    teacher, student = normal(0, 6, 4), normal(1, 6, 5)
    moved = rca_loss(teacher, student.roll(1, 0))
    assert float(moved) != pytest.approx(float(rca_loss(teacher, student)), rel=1e-3)


@given(st.integers(0, 10_000), st.floats(0.05, 2), st.floats(0.05, 2))
def test_firing_too_much_raises_every_tail_and_tar(seed, first, more):
    z = normal(seed, 6, 4)
    levels = tail_thresholds(z, QUANTILES)
    tails = [soft_exceedance(z + shift, levels, 0.5) for shift in (0, first, first + more)]
    assert (tails[1] > tails[0]).all() and (tails[2] > tails[1]).all()
    losses = [float(tar_loss(z, z + shift, levels, 0.5)) for shift in (0, first, first + more)]
    assert 0 == losses[0] < losses[1] < losses[2] < 1


def test_tar_is_the_mean_over_as_many_thresholds_as_quantiles():
    teacher, student = normal(0, 6, 4), normal(1, 6, 4)

    def value(*quantiles):
        return float(stars(Stars(lambda_rca=0, quantiles=quantiles))([teacher], [student]).tar)

    for count in (1, 2, 5):
        assert soft_exceedance(teacher, tail_thresholds(teacher, QUANTILES[:count]), 0.5).shape == (
            count,
        )
    singles = [value(q) for q in QUANTILES]
    assert value(*QUANTILES) == pytest.approx(sum(singles) / 5)
    assert value(0.6, 0.6, 0.6) == pytest.approx(singles[0])
