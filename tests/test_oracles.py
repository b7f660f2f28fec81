"""The golden numbers of data/oracles.json, one check per key; no key and no field is left out."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
import torch
from torch import nn

from stars_deploy.config.recipe import Neuron, Stars
from stars_deploy.distillation.kd import kd_loss
from stars_deploy.distillation.priors import (
    BatchNormProbe,
    Moments,
    adversarial_loss,
    batch_moments,
    blend,
    bn_loss,
    jsd_loss,
)
from stars_deploy.distillation.stars import (
    StarsLoss,
    _unit_rows,
    firing_thresholds,
    rca_loss,
    scale_of,
    soft_exceedance,
    tail_thresholds,
    tar_loss,
)
from stars_deploy.graph.metadata import DT
from stars_deploy.networks.neuron import spike_train
from stars_deploy.networks.surrogate import SURROGATES
from stars_deploy.simulation.neurons import run_neurons

ORACLES = json.loads((Path(__file__).parent / "data" / "oracles.json").read_text())
PROSE = {"note", "std", "x_shape", "P", "Q"}  # fields that describe a case in words
EXACT = {"rel": 1e-9, "abs": 1e-9}


class Entry(dict):
    """A golden entry that remembers which of its fields a check has read."""

    def __init__(self, fields: dict[str, Any]) -> None:
        super().__init__(fields)
        self.unread = set(fields)

    def __getitem__(self, field: str) -> Any:
        self.unread.discard(field)
        return super().__getitem__(field)


def double(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(found: Any, golden: Any) -> None:
    found = found.detach() if isinstance(found, torch.Tensor) else found
    np.testing.assert_allclose(np.asarray(found), np.asarray(golden), rtol=1e-9, atol=1e-9)


def rca_hand(case):
    teacher, student = double(case["zT"]), double(case["zS"])
    for rows, gram in ((teacher, case["G_T"]), (student, case["G_S"])):
        unit, live = _unit_rows(rows, True)
        assert live.all()
        close(unit @ unit.T, gram)
    close(rca_loss(teacher, student), case["value"])


def rca_diff_channels(case):
    close(rca_loss(double(case["zT"]), double(case["zS"])), case["value"])


def rca_max(case):
    same, opposite = double([[1, 2], [2, 4]]), double([[3, 0, 1], [-6, 0, -2]])
    close(rca_loss(same, opposite), case["value"])


def tar_fixed_thr(case):
    teacher, student = double(case["zT"]), double(case["zS"])
    levels, delta = double(case["theta"]), case["delta"]
    close(soft_exceedance(teacher, levels, delta), case["pT"])
    close(soft_exceedance(student, levels, delta), case["pS"])
    close(tar_loss(teacher, student, levels, delta), case["value"])
    config = Stars(
        lambda_rca=0,
        normalization="none",
        thresholds="fixed",
        fixed=tuple(case["theta"]),
        delta=delta,
    )
    close(StarsLoss(config, Neuron(), 4)([teacher], [student]).tar, case["value"])


def tar_quantile(normalization):
    """Return the check of TAR at the teacher's quantiles under one normalisation."""

    def check(case):
        raw = double(case["zT"]), double(case["zS"])
        teacher, student = raw
        if normalization != "none":
            scale = scale_of(teacher, normalization == "teacher_channel")
            teacher, student = ((z - scale.mean) / scale.std for z in raw)
        levels, delta = tail_thresholds(teacher, case["q"]), case["delta"]
        close(levels, case["theta"])
        close(soft_exceedance(teacher, levels, delta), case["pT"])
        close(soft_exceedance(student, levels, delta), case["pS"])
        config = Stars(
            lambda_rca=0, normalization=normalization, quantiles=tuple(case["q"]), delta=delta
        )
        close(StarsLoss(config, Neuron(), 4)([raw[0]], [raw[1]]).tar, case["value"])

    return check


def beta_theta_tau2(rows):
    neuron = Neuron(tau=2.0)
    assert [row["t"] for row in rows] == list(range(1, 9))
    close(firing_thresholds(neuron, 8), [row["theta"] for row in rows])
    for row in rows:
        # H_t = beta_t a of a neuron at rest: just above theta_t it has fired by t, at it it has not
        t, theta, beta = row["t"], row["theta"], row["beta"]
        assert beta * theta == pytest.approx(1, **EXACT)
        fires = [spikes(a, neuron, t).any() for a in (theta - 1e-6, theta + 1e-6)]
        assert fires == [False, True]


def spikes(a: float, neuron: Neuron, T: int) -> torch.Tensor:
    return spike_train(torch.full((1, 1), a, dtype=torch.float64), T, neuron).flatten()


def engine_spikes(a: float, T: int, r: float) -> list[float]:
    one = np.ones(1)
    node = nir.LIF(2 * DT * one, r * one, 0 * one, one, 0 * one)
    return run_neurons(node, np.full((1, 1, 1), a), T, DT, False).output.flatten().tolist()


def lif_spikes(decay_input):
    """Return the check of spike trains: ours, Norse's, and those of the reference engine."""

    def check(trains):
        for a in trains:
            expected, current = trains[a], float(a)
            T = len(expected)
            for options in ({}, {"backend": "norse", "surrogate": "triangle"}):
                neuron = Neuron(decay_input=decay_input, **options)
                assert spikes(current, neuron, T).tolist() == expected, (a, options)
            assert engine_spikes(current, T, 1.0 if decay_input else 2.0) == expected, a

    return check


def first_spike_time_matches_eq8(golden):
    assert golden is True
    currents = torch.linspace(-1, 5, 2001, dtype=torch.float64)
    thresholds = double(firing_thresholds(Neuron(), 8))
    away = ((currents[:, None] - thresholds).abs() > 1e-9).all(1)
    assert away.sum() >= 2000
    fired = spike_train(currents[None], 8, Neuron())
    # argmax gives the first of equals; a column without any is told apart by `any`.
    first = torch.where(fired.any(0), fired.argmax(0), 8)
    crossed = currents > thresholds[:, None]
    expected = torch.where(crossed.any(0), crossed.int().argmax(0), 8)
    assert torch.equal(first[away], expected[away])
    assert set(first.tolist()) == set(range(9))


def rate_true_vs_eq9(rows):
    for row in rows:
        thresholds = firing_thresholds(Neuron(), row["T"])
        predicted = sum(row["a"] > theta for theta in thresholds) / row["T"]
        assert predicted == row["eq9_rate"]
        assert float(spikes(row["a"], Neuron(), row["T"]).mean()) == row["true_rate"]


def same_moments_diff_tail(case):
    two_points = double([[-1.0] * 5 + [1.0] * 5]).T
    heavy = double([[-(5**0.5)] + [0.0] * 8 + [5**0.5]]).T
    moments = [batch_moments(z.view(10, 1, 1, 1)) for z in (two_points, heavy)]
    close([moments[0].mean, moments[0].var], [[case["meanP"]], [case["varP"]]])
    close([moments[1].mean, moments[1].var], [[case["meanQ"]], [case["varQ"]]])
    assert float(bn_loss(moments[:1], moments[1:])) == pytest.approx(0, abs=1e-12)
    # delta -> 0 makes the soft exceedance a tail mass; ">= 1" is "> a little below 1".
    levels = double([1.5, 1 - 1e-6])
    mass = [soft_exceedance(z, levels, 1e-8) for z in (two_points, heavy)]
    close(mass[0], [case["tail_gt_1p5_P"], case["tail_ge_1_P"]])
    close(mass[1], [case["tail_gt_1p5_Q"], case["tail_ge_1_Q"]])
    for threshold in (1.05, 1.5, 2.2):
        assert float(tar_loss(two_points, heavy, double([threshold]), 0.05)) > 1e-3


RAMP = torch.arange(8, dtype=torch.float64).view(2, 2, 2, 1)


def probed() -> tuple[Moments, Moments]:
    """What a BatchNorm's hook sees of the ramp, and the running statistics of a fresh one."""
    norm = nn.BatchNorm2d(2).double().eval()
    with BatchNormProbe(norm) as probe:
        norm(RAMP)
        return probe.moments[0], probe.targets[0]


def bn_hook(case):
    batch, running = probed()
    close(batch.mean, case["mean"])
    close(batch.var, case["var"])
    close(running.mean, case["running_mean"])
    close(running.var, case["running_var"])
    close(bn_loss([batch], [running], "norm"), case["norm_form"])
    close(bn_loss([batch], [running], "squared"), case["squared_form_eq3"])


def bn_hook_mmt(case):
    batch, running = probed()
    average = Moments(double(case["mmt_mean"]), double(case["mmt_var"]))
    close(bn_loss([blend(batch, average, case["rate"])], [running]), case["value"])


def kl_t20_batchmean_t2(case):
    close(kd_loss(double(case["student"]), double(case["teacher"]), 20.0), case["value"])


def jsd_repo_t3(case):
    close(-jsd_loss(double(case["student"]), double(case["teacher"]), 3.0), case["value"])


def adv_masked(case):
    student, teacher = double(case["student"]), double(case["teacher"])
    agree = (student.argmax(1) == teacher.argmax(1)).double()
    assert agree.tolist() == case["mask"]
    rows = [kd_loss(student[i : i + 1], teacher[i : i + 1], 1.0) for i in range(2)]
    close(torch.stack(rows), case["kl_row_T1"])
    close(adversarial_loss(student, teacher), case["value"])


# Golden name -> our name and alpha.
SURROGATE_NAMES = {
    "atan_alpha2": ("atan", 2.0),
    "triangle_gamma1": ("triangle", 1.0),
    "sigmoid_alpha4": ("sigmoid", 4.0),
    "rect_width1": ("rectangle", 1.0),
}


def surrogate(tables):
    assert {name for name, _ in SURROGATE_NAMES.values()} == set(SURROGATES)
    for golden, (name, alpha) in SURROGATE_NAMES.items():
        values = tables[golden]
        places = double([float(x) for x in values])
        for side in (places, -places):
            close(SURROGATES[name](side.clone(), alpha), list(values.values()))


def spike_compare(golden):
    assert golden.startswith("strict: S = 1[H > Vth]")
    above = float(np.nextafter(2.0, 3.0))
    for options in ({}, {"backend": "norse", "surrogate": "triangle"}):
        neuron = Neuron(**options)  # tau 2: H_1 = a / 2
        assert [spikes(a, neuron, 1).item() for a in (2.0, above)] == [0, 1]
    assert [engine_spikes(a, 1, 1.0) for a in (2.0, above)] == [[0], [1]]


CHECKS = {
    "rca_hand": rca_hand,
    "rca_diff_channels": rca_diff_channels,
    "rca_max": rca_max,
    "tar_fixed_thr": tar_fixed_thr,
    "tar_quantile_none": tar_quantile("none"),
    "tar_quantile_global": tar_quantile("teacher_global"),
    "tar_quantile_channel": tar_quantile("teacher_channel"),
    "beta_theta_tau2": beta_theta_tau2,
    "lif_spikes_tau2_vth1_hard_decay_input": lif_spikes(True),
    "lif_spikes_no_decay_input": lif_spikes(False),
    "first_spike_time_matches_eq8": first_spike_time_matches_eq8,
    "rate_true_vs_eq9": rate_true_vs_eq9,
    "same_moments_diff_tail": same_moments_diff_tail,
    "bn_hook": bn_hook,
    "bn_hook_mmt": bn_hook_mmt,
    "kl_T20_batchmean_T2": kl_t20_batchmean_t2,
    "jsd_repo_T3": jsd_repo_t3,
    "adv_masked": adv_masked,
    "surrogate": surrogate,
    "spike_compare": spike_compare,
}


def entries(golden: Any) -> Iterator[Entry]:
    """Yield the entries that a check reads: of a list of cases, each."""
    for part in golden if isinstance(golden, list) else [golden]:
        if isinstance(part, Entry):
            yield part


@pytest.mark.parametrize("key", ORACLES)
def test_golden_value(key):
    golden = ORACLES[key]
    if isinstance(golden, dict):
        golden = Entry(golden)
    elif isinstance(golden, list):
        golden = [Entry(case) for case in golden]
    CHECKS[key](golden)
    for entry in entries(golden):
        assert entry.unread <= PROSE, f"{key}: no check of {sorted(entry.unread - PROSE)}"


def test_every_key_of_the_golden_file_has_a_check_and_no_check_is_idle():
    assert set(CHECKS) == set(ORACLES)
    assert len(ORACLES) == 20


@pytest.mark.parametrize("key", ORACLES)
def test_every_check_can_fail(key):
    with pytest.raises(AssertionError):
        CHECKS[key](spoiled(ORACLES[key]))


def spoiled(golden: Any) -> Any:
    """Return the golden entry with its last answer changed."""
    if isinstance(golden, bool):
        return not golden
    if isinstance(golden, str):
        return "lenient"
    if isinstance(golden, int | float):
        return golden + 1e-3 if golden % 1 else 1 - golden
    if isinstance(golden, list):
        return [*golden[:-1], spoiled(golden[-1])]
    answer = [name for name in golden if name not in PROSE][-1]
    return {**golden, answer: spoiled(golden[answer])}
