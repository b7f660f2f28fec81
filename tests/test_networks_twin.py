"""The ANN family and its spiking twin: layers, taps, time, and what is computed how often."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_recipes import lively_student, random_images, recipe
from torch import nn

from stars_deploy.config.recipe import Neuron, load_recipe
from stars_deploy.errors import InputError, RecipeError
from stars_deploy.networks.base import Network
from stars_deploy.networks.device import resolve
from stars_deploy.networks.families import build_student, build_teacher, seeded
from stars_deploy.networks.images import augment, normalise, to_input
from stars_deploy.networks.neuron import spike_train

CPU = torch.device("cpu")


def inputs(count: int = 5) -> torch.Tensor:
    chosen = recipe()
    return to_input(random_images(count, chosen.data.shape), chosen.data, CPU)


def test_teacher_of_the_packaged_model_has_the_parameters_counted_by_hand() -> None:
    teacher = build_teacher(load_recipe("fashion-mnist"))
    convolutions = 9 * (1 * 16 + 16 * 16 + 16 * 32 + 32 * 32 + 32 * 64 + 64 * 64)
    norms = 2 * (16 + 16 + 32 + 32 + 64 + 64)
    assert sum(p.numel() for p in teacher.parameters()) == convolutions + norms + 64 * 10 + 10
    assert teacher.stage_ends == (1, 3, 5)


def test_twin_has_the_teachers_parameters_and_no_relu() -> None:
    teacher, student = build_teacher(recipe()), build_student(recipe())
    shapes = [{n: v.shape for n, v in net.state_dict().items()} for net in (teacher, student)]
    assert shapes[0] == shapes[1]
    student.load_state_dict(teacher.state_dict())
    assert not any(isinstance(module, nn.ReLU) for module in student.modules())
    assert teacher.stage_ends == student.stage_ends == (1, 2)


def test_stages_end_where_the_width_changes_and_at_the_last_block() -> None:
    args = {"channels": [4, 4, 4, 8, 6], "strides": [2, 1, 2, 1, 2]}
    assert build_teacher(recipe(teacher={"args": args})).stage_ends == (2, 3, 4)


def plain_student(student: Network, x: torch.Tensor) -> torch.Tensor:
    """Logits of every step [T, B, K], all layers applied to every step: slow and obvious."""
    assert student.spiking is not None
    T, neuron = student.spiking.T, student.spiking.neuron
    state: dict[int, torch.Tensor] = {}
    steps = []
    for _ in range(T):
        h = x
        for index, block in enumerate(student.blocks):
            current = block(h) * (1 if neuron.decay_input else neuron.tau)
            v = state.get(index, torch.full_like(current, neuron.v_reset))
            u = v + (current - (v - neuron.v_reset)) / neuron.tau
            h = (u > neuron.v_threshold).to(u.dtype)
            state[index] = torch.where(u > neuron.v_threshold, neuron.v_reset, u)
        steps.append(student.fc(h.mean((2, 3))))
    return torch.stack(steps)


@pytest.mark.parametrize(
    "neuron",
    [{}, {"tau": 3.0}, {"decay_input": False}, {"v_reset": -0.25, "v_threshold": 0.75}],
)
def test_student_equals_running_every_layer_at_every_step(neuron: dict[str, Any]) -> None:
    chosen = recipe(neuron=neuron, student={"T": 5})
    student = lively_student(chosen).double()
    x = inputs().double()
    with torch.no_grad():
        taps = student.taps(x)
        expected = plain_student(student, x)
        assert all(0.01 < spikes.mean() < 0.99 for spikes in taps.activations)
        torch.testing.assert_close(taps.step_logits, expected)
        torch.testing.assert_close(student(x), expected.mean(0))
    assert not torch.allclose(expected[0], expected[-1])


def test_norse_backend_gives_the_same_student() -> None:
    chosen = recipe(neuron={"backend": "norse", "surrogate": "super", "alpha": 100.0})
    norse, fused = lively_student(chosen), lively_student(recipe())
    x = inputs()
    torch.testing.assert_close(norse(x), fused(x))
    norse(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in norse.parameters())


def test_taps_are_what_enters_and_leaves_every_neuron() -> None:
    chosen = recipe(student={"T": 3})
    student = lively_student(chosen)
    taps = student.taps(inputs())
    assert [tuple(a.shape) for a in taps.pre_activations] == [
        (3, 5, 4, 12, 12),
        (3, 5, 4, 6, 6),
        (3, 5, 6, 3, 3),
    ]
    for before, after in zip(taps.pre_activations, taps.activations, strict=True):
        assert torch.equal(after, spike_train(before, 3, Neuron()))
    assert torch.equal(taps.logits, taps.step_logits.mean(0))


def test_taps_of_the_teacher_are_the_inputs_of_its_relus() -> None:
    teacher = seeded(build_teacher, recipe(), 0).eval()
    seen: list[torch.Tensor] = []
    for block in teacher.blocks:
        block.bn.register_forward_hook(lambda module, args, output: seen.append(output))
    x = inputs()
    taps = teacher.taps(x)
    assert all(torch.equal(a, b) for a, b in zip(taps.pre_activations, seen, strict=True))
    assert all(
        torch.equal(a.clamp(min=0), b)
        for a, b in zip(taps.pre_activations, taps.activations, strict=True)
    )
    assert torch.equal(taps.logits, teacher(x))
    assert taps.step_logits.shape == (1, 5, 3)


def test_static_stem_is_computed_once_and_later_layers_on_all_steps_at_once() -> None:
    student = build_student(recipe(student={"T": 4}))
    batches: list[int] = []
    for block in student.blocks:
        block.conv.register_forward_hook(lambda module, args, out: batches.append(len(out)))
    student(inputs(5))
    assert batches == [5, 20, 20]


def test_gradient_reaches_the_image_through_all_layers() -> None:
    student = lively_student(recipe())
    x = inputs().requires_grad_()
    (gradient,) = torch.autograd.grad(student(x).square().sum(), x)
    assert (gradient.flatten(1).norm(dim=1) > 0).all()


def test_two_forward_passes_do_not_know_of_each_other() -> None:
    student = lively_student(recipe())
    x = inputs(6)
    first = student(x)
    student(-x)
    assert torch.equal(student(x), first)
    torch.testing.assert_close(student(x[:2]), first[:2])


def test_seeded_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    one = seeded(build_teacher, recipe(), 7).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(5)
    two = seeded(build_teacher, recipe(), 7).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    other = seeded(build_teacher, recipe(), 8).state_dict()
    assert not torch.equal(one["fc.weight"], other["fc.weight"])


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({"family": "cnnn"}, "family 'cnnn' is unknown; did you mean 'cnn'"),
        ({"family": "vit"}, "family 'vit' is unknown; valid: cnn"),
        ({"args": {"channels": [4]}}, "'strides' is missing"),
        ({"args": {"channels": [4, 8], "strides": [1]}}, "1 strides for 2 channels"),
        ({"args": {"channels": [4, 0], "strides": [1, 1]}}, r"channels.1.*greater than or equal"),
        ({"args": {"channels": [], "strides": []}}, "channels.*at least 1"),
        ({"args": {"channel": [4], "strides": [1]}}, "'channel'; did you mean 'channels'"),
        ({"args": {"channels": ["4"], "strides": [1]}}, "valid integer"),
    ],
)
def test_wrong_teachers_are_refused(teacher: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build_teacher(recipe(teacher=teacher))


def test_unknown_surrogate_is_refused_before_any_training() -> None:
    with pytest.raises(RecipeError, match=r"neuron\.surrogate 'superspike'"):
        build_student(recipe(neuron={"surrogate": "superspike"}))


def test_normalisation_is_per_channel() -> None:
    data = recipe(
        data={"shape": [2, 1, 1], "mean": [0.5, 0.1], "std": [0.25, 2.0]}, teacher={}
    ).data
    found = normalise(torch.tensor([[[[1.0]], [[0.5]]]]), data)
    torch.testing.assert_close(found.flatten(), torch.tensor([2.0, 0.2]))
    pixels = torch.tensor([[[[255]], [[51]]]], dtype=torch.uint8)
    torch.testing.assert_close(to_input(pixels, data, CPU).flatten(), torch.tensor([2.0, 0.05]))


def test_augmentation_shifts_with_zeros_and_mirrors() -> None:
    image = torch.arange(1, 17, dtype=torch.float32).view(1, 1, 4, 4)
    padded = nn.functional.pad(image[0, 0], (1, 1, 1, 1))
    allowed = set()
    for dy in range(3):
        for dx in range(3):
            window = padded[dy : dy + 4, dx : dx + 4]
            allowed |= {tuple(window.flatten().tolist()), tuple(window.flip(1).flatten().tolist())}
    generator = torch.Generator().manual_seed(0)
    seen = augment(image.expand(600, 1, 4, 4), 1, True, generator)
    found = {tuple(view.flatten().tolist()) for view in seen}
    assert found == allowed and len(allowed) == 18
    unflipped = augment(image.expand(300, 1, 4, 4), 1, False, generator)
    assert len({tuple(view.flatten().tolist()) for view in unflipped}) == 9
    assert torch.equal(augment(image, 0, False, generator), image)


def test_augmentation_treats_channels_alike_and_lets_gradients_through() -> None:
    x = torch.rand(4, 1, 6, 5).expand(4, 3, 6, 5).clone().requires_grad_()
    view = augment(x, 2, True, torch.Generator().manual_seed(1))
    assert view.shape == x.shape
    assert torch.equal(view[:, 0], view[:, 2])
    (gradient,) = torch.autograd.grad(view.sum(), x)
    assert set(gradient.unique().tolist()) == {0.0, 1.0}


def test_devices_are_named_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve("auto") == resolve("cpu") == CPU
    with pytest.raises(InputError, match=r"'cuda'.*--device cpu"):
        resolve("cuda")
    with pytest.raises(InputError, match="'gpu': expected auto, cpu or cuda"):
        resolve("gpu")


def test_the_mean_of_equal_logits_is_any_of_them() -> None:
    student = lively_student(recipe(student={"T": 7})).double()
    with torch.no_grad():
        student.blocks[-1].bn.weight.zero_()
        student.blocks[-1].bn.bias.copy_(torch.tensor([-3.0, 0.0, 5.0, -1.0, 5.0, 9.0]))
        taps = student.taps(inputs().double())
        # The last layer's neurons fire at every step or at none, so every step says the same.
        by_hand = student.fc(torch.tensor([0, 0, 1, 0, 1, 1.0], dtype=torch.float64))
    assert all(torch.equal(step, taps.step_logits[0]) for step in taps.step_logits)
    torch.testing.assert_close(taps.step_logits[3], by_hand.expand(5, 3))
    torch.testing.assert_close(taps.logits, taps.step_logits[0], rtol=0, atol=1e-12)
