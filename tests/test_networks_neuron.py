"""The LIF neuron: hand-computed spike trains, Norse as the outside judge, gradients."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from norse.torch.functional.lif_box import (
    LIFBoxFeedForwardState,
    LIFBoxParameters,
    lif_box_feed_forward_step,
)

from stars_deploy.config.recipe import Neuron
from stars_deploy.distillation.stars import firing_thresholds
from stars_deploy.errors import RecipeError
from stars_deploy.networks.fused import run
from stars_deploy.networks.neuron import SpikingLayer, spike_train
from stars_deploy.networks.surrogate import SURROGATES

# Constant input a, tau = 2, V_th = 1: H_1 = a/2, without a spike H_t = a (1 - 2^-t).
TRAINS = {
    0.99: "00000000",  # below threshold at every time
    1.0: "00000000",  # approaches the threshold, never exceeds it
    1.05: "00001000",  # 1.05 (1 - 1/32) = 1.017 at t = 5
    1.2: "00100100",
    1.5: "01010101",
    2.0: "01010101",  # H_1 = 1 = V_th: equality is no spike
    2.01: "11111111",
}
TRAINS_WITHOUT_DECAY = {  # H_t = 2 a (1 - 2^-t)
    0.5: "00000000",
    0.6: "00100100",
    0.7: "01010101",
    1.0: "01010101",  # H_1 = 1: equality again
    1.01: "11111111",
}


def train(a: float, neuron: Neuron, T: int = 8) -> str:
    spikes = spike_train(torch.full((1, 1), a, dtype=torch.float64), T, neuron)
    return "".join(str(int(s)) for s in spikes[:, 0])


@pytest.mark.parametrize(("current", "expected"), TRAINS.items())
def test_spike_train_of_constant_current(current: float, expected: str) -> None:
    assert train(current, Neuron()) == expected
    # Moving V_r and V_th together moves V, and changes no spike.
    assert train(current, Neuron(v_reset=0.5, v_threshold=1.5)) == expected


@pytest.mark.parametrize(("current", "expected"), TRAINS_WITHOUT_DECAY.items())
def test_spike_train_without_input_decay(current: float, expected: str) -> None:
    assert train(current, Neuron(decay_input=False)) == expected


def test_first_spike_is_where_the_closed_form_crosses_the_threshold() -> None:
    # Eq. 8: first spike at the smallest t with a > V_th / (1 - (1 - 1/tau)^t).
    currents = torch.linspace(-1, 5, 2001, dtype=torch.float64)
    for tau in (1.5, 2.0, 4.0):
        spikes = spike_train(currents[None], 8, Neuron(tau=tau))
        crossing = [1 / (1 - (1 - 1 / tau) ** t) for t in range(1, 9)]
        for a, fired in zip(currents.tolist(), spikes.T, strict=True):
            if min(abs(a - theta) for theta in crossing) < 1e-9:
                continue
            expected = next((t for t, theta in enumerate(crossing) if a > theta), None)
            found = fired.nonzero()[0].item() if fired.any() else None
            assert found == expected


def norse_trace(x: torch.Tensor, neuron: Neuron) -> tuple[torch.Tensor, torch.Tensor]:
    """Spikes and potentials after reset of Norse's own step."""
    number = lambda value: torch.as_tensor(value, dtype=x.dtype)  # noqa: E731
    parameters = LIFBoxParameters(
        tau_mem_inv=number(1 / neuron.tau),
        v_leak=number(neuron.v_reset),
        v_th=number(neuron.v_threshold),
        v_reset=number(neuron.v_reset),
        method="triangle",
        alpha=1.0,
    )
    state = LIFBoxFeedForwardState(v=torch.full_like(x[0], neuron.v_reset))
    spikes, potentials = [], []
    for current in x:
        gain = 1 if neuron.decay_input else neuron.tau
        z, state = lif_box_feed_forward_step(current * gain, state, parameters, dt=1.0)
        spikes.append(z)
        potentials.append(state.v)
    return torch.stack(spikes), torch.stack(potentials)


@pytest.mark.parametrize("decay_input", [True, False])
@pytest.mark.parametrize(
    ("tau", "v_reset"), [(2.0, 0.0), (2.0, -0.25), (3.0, 0.0), (4 / 3, 0.125), (5.0, -0.5)]
)
def test_fused_forward_equals_norse(tau: float, v_reset: float, decay_input: bool) -> None:
    neuron = Neuron(tau=tau, v_reset=v_reset, decay_input=decay_input)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8, 20_000, generator=generator) * (tau if decay_input else 1) + 0.7
    spikes, potential = norse_trace(x, neuron)
    u, fired = run(x, 8, neuron)
    assert 0.1 < spikes.mean() < 0.9
    after_reset = u * (1 - fired) + v_reset
    if (tau, v_reset) == (2.0, 0.0):
        assert torch.equal(fired, spikes)
        assert torch.equal(after_reset, potential)
    else:
        # A spike may differ only where H is within rounding of the threshold.
        near = (u + v_reset - neuron.v_threshold).abs() < 1e-6
        ever_near = near.cummax(0).values
        assert ((fired == spikes) | ever_near).all()
        assert (after_reset - potential)[~ever_near].abs().max() <= 2e-6
        assert ever_near.float().mean() < 1e-4


@pytest.mark.parametrize("detach_reset", [True, False])
def test_norse_backend_agrees_with_fused_in_spikes_and_gradient(detach_reset: bool) -> None:
    # triangle with alpha = 1 is the one surrogate that both define alike.
    options = {"surrogate": "triangle", "alpha": 1.0, "detach_reset": detach_reset, "v_reset": -0.2}
    fused, norse = Neuron(**options), Neuron(**options, backend="norse")
    x = torch.randn(6, 500, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) + 1
    weight = torch.randn(6, 500, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    results = []
    for neuron in (fused, norse):
        leaf = x.clone().requires_grad_()
        spikes = spike_train(leaf, 6, neuron)
        results.append((spikes, *torch.autograd.grad((spikes * weight).sum(), leaf)))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1].abs().max() > 0.1
    torch.testing.assert_close(results[0][1], results[1][1], rtol=0, atol=1e-10)


class _Spike(torch.autograd.Function):
    """The step with a surrogate derivative, for the plain loop below."""

    @staticmethod
    def forward(ctx, x, slope):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        ctx.slope = slope
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        return grad * ctx.slope(ctx.saved_tensors[0].clone()), None


def plain_loop(x: torch.Tensor, T: int, neuron: Neuron) -> torch.Tensor:
    """The equation as written, differentiated by autograd."""
    slope = lambda u: SURROGATES[neuron.surrogate](u, neuron.alpha)  # noqa: E731
    v = torch.full_like(x[0], neuron.v_reset)
    spikes = []
    for t in range(T):
        current = x[t if len(x) == T else 0] * (1 if neuron.decay_input else neuron.tau)
        h = v + (current - (v - neuron.v_reset)) / neuron.tau
        s = _Spike.apply(h - neuron.v_threshold, slope)
        gate = s.detach() if neuron.detach_reset else s
        v = (1 - gate) * h + gate * neuron.v_reset
        spikes.append(s)
    return torch.stack(spikes)


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("detach_reset", [True, False])
@pytest.mark.parametrize("decay_input", [True, False])
@pytest.mark.parametrize("constant", [True, False])
def test_fused_gradient_equals_autograd(
    surrogate: str, detach_reset: bool, decay_input: bool, constant: bool
) -> None:
    neuron = Neuron(
        tau=3.0,
        v_reset=-0.2,
        surrogate=surrogate,
        alpha=1.5,
        detach_reset=detach_reset,
        decay_input=decay_input,
    )
    generator = torch.Generator().manual_seed(4)
    T = 5
    shape = (1 if constant else T, 2, 3, 7, 5)
    x = torch.randn(shape, dtype=torch.float64, generator=generator) + 1
    weight = torch.randn((T, 2, 3, 7, 5), dtype=torch.float64, generator=generator)
    gradients = []
    for function in (spike_train, plain_loop):
        leaf = x.clone().requires_grad_()
        spikes = function(leaf, T, neuron)
        gradients.append(torch.autograd.grad((spikes * weight).sum(), leaf)[0])
    assert gradients[1].abs().max() > 0.1
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-10)


SMOOTH = {  # antiderivatives: the step that each surrogate softens
    "atan": lambda x, a: torch.atan(math.pi / 2 * a * x) / math.pi,
    "sigmoid": lambda x, a: torch.sigmoid(a * x),
}


@pytest.mark.parametrize("alpha", [0.5, 2.0, 4.0])
@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_surrogate_is_the_derivative_of_its_step(name: str, alpha: float) -> None:
    x = torch.linspace(-3, 3, 201, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(SMOOTH[name](x, alpha).sum(), x)
    found = SURROGATES[name](x.detach().clone(), alpha)
    torch.testing.assert_close(found, slope, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("name", "alpha", "at"),
    [
        ("atan", 2.0, {0.0: 1.0, 0.25: 0.6184864581588363, 1.0: 0.09199966835037524}),
        ("sigmoid", 4.0, {0.0: 1.0, 0.5: 0.41997434161402647}),
        ("triangle", 1.0, {0.0: 1.0, 0.25: 0.75, -0.5: 0.5, 1.0: 0.0, 2.0: 0.0}),
        ("rectangle", 1.0, {0.0: 1.0, -0.25: 1.0, 0.5: 0.0, 1.0: 0.0}),
    ],
)
def test_surrogate_values(name: str, alpha: float, at: dict[float, float]) -> None:
    found = SURROGATES[name](torch.tensor(list(at), dtype=torch.float64), alpha)
    torch.testing.assert_close(found, torch.tensor(list(at.values()), dtype=torch.float64))


@pytest.mark.parametrize("alpha", [0.7, 2.0])
@pytest.mark.parametrize("name", SURROGATES)
def test_surrogate_has_unit_area(name: str, alpha: float) -> None:
    x = torch.linspace(-2000, 2000, 4_000_001, dtype=torch.float64)
    area = SURROGATES[name](x, alpha).sum() * 1e-3
    assert area == pytest.approx(1, abs=3e-3)


@given(a=st.floats(-4, 4), b=st.floats(-4, 4), tau=st.floats(1, 8), decay=st.booleans())
def test_more_current_never_means_fewer_spikes(a: float, b: float, tau: float, decay: bool) -> None:
    neuron = Neuron(tau=tau, decay_input=decay)
    counts = spike_train(torch.tensor([[a, b]], dtype=torch.float64), 12, neuron).sum(0)
    assert (counts[0] - counts[1]) * (a - b) >= 0


@given(x=st.floats(-4, 4, width=32), tau=st.sampled_from([1.0, 2.0, 4.0]))
def test_one_step_is_a_threshold(x: float, tau: float) -> None:
    assert spike_train(torch.tensor([[x]]), 1, Neuron(tau=tau)).item() == float(x / tau > 1)


def test_time_axis_of_a_constant_current_is_made_by_the_neuron() -> None:
    x = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(5)) * 2 + 1
    neuron = Neuron()
    assert torch.equal(spike_train(x, 6, neuron), spike_train(x.expand(6, 4, 3), 6, neuron))


def test_state_is_fresh_at_every_call_and_in_every_mode() -> None:
    layer = SpikingLayer(Neuron(), 4)
    x = torch.randn(4, 50, generator=torch.Generator().manual_seed(6)) + 1
    first = layer(x)
    assert torch.equal(layer(x), first)
    assert torch.equal(layer(x.clone().requires_grad_()), first)
    assert set(first.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("backend", ["fused", "norse"])
def test_bfloat16_currents_are_integrated_in_float32(backend: str) -> None:
    surrogate = "triangle"  # known to both
    neuron = Neuron(backend=backend, surrogate=surrogate)
    x = (torch.randn(6, 5000, generator=torch.Generator().manual_seed(7)) + 1.2).bfloat16()
    leaf = x.clone().requires_grad_()
    spikes = spike_train(leaf, 6, neuron)
    assert spikes.dtype == torch.bfloat16
    assert torch.equal(spikes.float(), spike_train(x.float(), 6, neuron))
    spikes.sum().backward()
    assert leaf.grad is not None and leaf.grad.dtype == torch.bfloat16


def test_memory_format_is_kept() -> None:
    x = torch.randn(8, 3, 5, 5).to(memory_format=torch.channels_last).requires_grad_()
    spikes = spike_train(x.view(4, 2, 3, 5, 5), 4, Neuron())
    assert spikes.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    (gradient,) = torch.autograd.grad(spikes.sum(), x)
    assert gradient.is_contiguous(memory_format=torch.channels_last)


def test_wrong_number_of_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="3 steps, expected 4"):
        spike_train(torch.zeros(3, 2), 4, Neuron())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"surrogate": "atn"}, r"'atn'.*atan, sigmoid, triangle, rectangle.*mean 'atan'"),
        (
            {"surrogate": "atan", "backend": "norse"},
            r"super, triangle.*set neuron.backend to 'fused'",
        ),
        ({"surrogate": "super"}, r"atan, sigmoid.*set neuron.backend to 'norse'"),
        ({"v_threshold": 0.5, "v_reset": 0.5}, r"v_threshold 0.5 must be above.*v_reset 0.5"),
    ],
)
def test_impossible_neurons_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        SpikingLayer(Neuron.model_validate(options), 4)


def plain_plif(x: torch.Tensor, w: torch.Tensor, neuron: Neuron) -> torch.Tensor:
    """PLIF as written, differentiated by autograd."""
    slope = lambda u: SURROGATES[neuron.surrogate](u, neuron.alpha)  # noqa: E731
    k, v, spikes = torch.sigmoid(w), torch.zeros_like(x[0]), []
    for current in x:
        h = v + k * (current - v) if neuron.decay_input else v * (1 - k) + current
        s = _Spike.apply(h - neuron.v_threshold, slope)
        v = h * (1 - (s.detach() if neuron.detach_reset else s))
        spikes.append(s)
    return torch.stack(spikes)


@pytest.mark.parametrize("decay_input", [True, False])
@pytest.mark.parametrize("detach_reset", [True, False])
def test_plif_has_the_plain_loops_gradients(decay_input: bool, detach_reset: bool) -> None:
    neuron = Neuron(model="plif", decay_input=decay_input, detach_reset=detach_reset)
    rng = torch.Generator().manual_seed(11)
    x = torch.randn(5, 400, dtype=torch.float64, generator=rng) + 0.8
    weight = torch.randn(5, 400, dtype=torch.float64, generator=rng)
    layer = SpikingLayer(neuron, 5).double()
    with torch.no_grad():
        layer.w.fill_(0.3)
    leaf, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    spikes = layer(leaf)
    w = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    expected = plain_plif(other, w, neuron)
    assert torch.equal(spikes, expected) and 0.05 < spikes.mean() < 0.95
    ours = torch.autograd.grad((spikes * weight).sum(), [leaf, layer.w])
    theirs = torch.autograd.grad((expected * weight).sum(), [other, w])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert abs(float(ours[1])) > 1e-3


def test_plif_starts_as_the_lif_of_its_tau_and_if_adds_up() -> None:
    x = torch.randn(6, 500, generator=torch.Generator().manual_seed(12)) + 0.8
    for tau in (1.0, 2.0, 5.0):
        layer = SpikingLayer(Neuron(model="plif", tau=tau), 6)
        assert layer.tau == pytest.approx(max(tau, 1.001), rel=1e-4)
        same = (layer(x) == spike_train(x, 6, Neuron(tau=layer.tau))).float().mean()
        assert same > 0.999
    # H = 0.4, 0.8, 1.2 -> spike and reset
    assert train(0.4, Neuron(model="if")) == "00100100"
    assert train(1.0, Neuron(model="if")) == "01010101"  # H_1 = V_th is no spike


def test_if_back_propagates_through_time_without_leak() -> None:
    # No spike at all: dH_T/dX_t = 1 for every t, so all gradients are the surrogate's sums.
    x = torch.full((3, 1), 0.1, dtype=torch.float64, requires_grad=True)
    spikes = spike_train(x, 3, Neuron(model="if"))
    (gradient,) = torch.autograd.grad(spikes.sum(), x)
    slopes = [float(SURROGATES["atan"](torch.tensor(h - 1.0), 2.0)) for h in (0.1, 0.2, 0.3)]
    expected = [sum(slopes), sum(slopes[1:]), slopes[2]]
    assert gradient.flatten().tolist() == pytest.approx(expected, rel=1e-5)


@given(tau=st.floats(1, 8), decay=st.booleans())
def test_a_current_at_its_limit_never_fires_and_one_above_tau_always_does(
    tau: float, decay: bool
) -> None:
    neuron = Neuron(tau=tau, decay_input=decay)
    limit = 1.0 if decay else 1 / tau  # what H tends to is the current, or tau times it
    # 1/tau and tau are rounded, so that without input decay their product may be above 1.
    assert "1" not in train(limit * (1.0 if decay else 1 - 1e-12), neuron, 200)
    assert train(limit * tau * (1 + 1e-9), neuron, 200) == "1" * 200


def test_the_rate_is_that_of_eq_9_at_most_and_equal_in_three_cases() -> None:
    # Eq. 9 counts the steps t with a > theta_t: it forgets that a spike resets the potential.
    currents = torch.linspace(0.01, 9, 3001, dtype=torch.float64)
    seen = torch.zeros(2, dtype=torch.long)
    for tau in (1.25, 2.0, 3.0, 6.0):
        for T in (1, 2, 4, 8):
            thresholds = torch.tensor(firing_thresholds(Neuron(tau=tau), T), dtype=torch.float64)
            a = currents[((currents[:, None] - thresholds).abs() > 1e-9).all(1)]
            spikes = spike_train(a[None], T, Neuron(tau=tau))
            count, predicted = spikes.sum(0), (a[:, None] > thresholds).sum(1)
            assert (count <= predicted).all()
            only_last = (spikes[:-1].sum(0) == 0) & (spikes[-1] > 0)
            equal = (count == 0) | only_last | (a > tau)
            assert torch.equal(count == predicted, equal)
            seen += torch.stack([equal.sum(), (~equal).sum()])
    assert (seen > 3000).all()


def test_a_potential_that_was_carried_over_would_be_seen() -> None:
    # 00100100: the last four steps go on from a charged membrane, a new call does not.
    whole = train(1.2, Neuron(), 8)
    assert whole[4:] == "0100" != train(1.2, Neuron(), 4) == whole[:4]
