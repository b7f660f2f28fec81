"""DeepInversion and CMI beside NAYER: parts by hand, what a step may change, going on."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_distillation import tiny_model

from stars_deploy.config.recipe import load_recipe, parse_recipe
from stars_deploy.distill.schedule import Step, steps, synthesis_steps
from stars_deploy.distill.session import METHODS, Session
from stars_deploy.distill.synthesis.base import Best
from stars_deploy.distill.synthesis.contrast import Bank, Head, contrastive_loss, info_nce
from stars_deploy.distill.synthesis.generator import Trunk
from stars_deploy.networks.images import denormalise, normalise, random_resized_crop
from stars_deploy.networks.weights import load_teacher

SMALL = {
    "deepinversion": ("synthesis.deepinversion.g_steps=4", "synthesis.adv=1.0"),
    "cmi": ("synthesis.cmi={g_steps=4, nz=6, ngf=4, n_neg=8, bank=25, head_dim=5}",),
    "nayer": (),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("methods"))


def new_session(model, method, *overrides):
    recipe = load_recipe(model, [f"synthesis.method={method}", *SMALL[method], *overrides])
    return Session(recipe, load_teacher(recipe, origin=model))


def test_published_weights_are_each_methods_defaults():
    document = {
        "name": "a",
        "data": {
            "name": "a", "shape": [1, 8, 8], "classes": ["x", "y"], "mean": [0.0], "std": [1.0]
        },
    }  # fmt: skip
    found = {}
    for method in METHODS:
        synthesis = parse_recipe({**document, "synthesis": {"method": method}}, "t").synthesis
        found[method] = (
            synthesis.batch_size, synthesis.lr, synthesis.adv, synthesis.bn, synthesis.oh
        )  # fmt: skip
    assert found == {
        "deepinversion": (256, 0.1, 1.0, 10.0, 1.0),
        "cmi": (256, 1e-3, 0.5, 1.0, 1.0),
        "nayer": (400, 4e-3, 1.33, 20.0, 0.75),
    }
    own = parse_recipe({**document, "synthesis": {"method": "cmi", "bn": 7.0}}, "t").synthesis
    assert (own.bn, own.adv) == (7.0, 0.5)


def test_generator_sizes_are_the_literatures():
    def size(*args):
        with torch.device("meta"):
            return sum(p.numel() for p in Trunk(*args).parameters())

    assert size(256, 64, (3, 32, 32)) == 2_328_899
    assert size(256, 64, (1, 28, 28)) == 1_834_305


def test_info_nce_of_identical_one_hot_rows():
    rows = torch.eye(5, dtype=torch.float64)
    losses = info_nce(rows, rows, 0.2)
    assert losses.tolist() == pytest.approx([math.log(1 + 4 * math.exp(-5))] * 5)


def test_partners_get_no_gradient_and_earlier_rows_count_apart():
    torch.manual_seed(0)
    head = Head(4, 3)
    local, globe = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    alone = contrastive_loss(head, local, globe, torch.empty(0, 8), 0.2)
    assert torch.autograd.grad(alone, globe, allow_unused=True, retain_graph=True) == (None,)
    earlier = torch.randn(2, 8)
    both = contrastive_loss(head, local, globe, earlier, 0.2)
    anchors = head(torch.cat([local, earlier[:, :4]]))
    partners = head(torch.cat([globe, earlier[:, 4:]]))
    rows = info_nce(anchors, partners, 0.2)
    torch.testing.assert_close(both, rows[:3].mean() + rows[3:].mean())
    assert float(torch.linalg.vector_norm(head(local), dim=1).detach().mean()) == pytest.approx(1)


def test_the_bank_forgets_the_oldest():
    bank = Bank(5, 2)
    for number in range(4):
        bank.add(torch.full((2, 2), float(number)))
    assert bank.rows[:, 0].tolist() == [1, 2, 2, 3, 3]
    picked = bank.sample(4, torch.Generator().manual_seed(0))
    assert len(picked) == 4 and len(bank.sample(99, torch.Generator())) == 5


def test_best_keeps_a_copy():
    best, images = Best(), torch.ones(2)
    assert best.offer(images, 2.0) and not best.offer(images, 3.0)
    images.zero_()
    assert best.images.tolist() == [1, 1] and best.place == 0
    assert best.offer(images, 1.0) and best.place == 2


def test_random_resized_crop_of_everything_is_the_image_and_mirrors_half():
    images = torch.rand(400, 1, 6, 8)
    rng = torch.Generator().manual_seed(0)
    whole = random_resized_crop(images, (4.0, 4.0), False, rng)  # clamped to the image
    torch.testing.assert_close(whole, images, atol=1e-5, rtol=1e-5)
    mirrored = random_resized_crop(images, (4.0, 4.0), True, rng)
    same = (mirrored - images).abs().amax((1, 2, 3)) < 1e-4
    flipped = (mirrored - images.flip(3)).abs().amax((1, 2, 3)) < 1e-4
    assert (same ^ flipped).all() and 0.4 < float(flipped.float().mean()) < 0.6


def test_random_resized_crop_looks_at_a_part_and_passes_gradients():
    ramp = torch.arange(64.0).view(1, 1, 1, 64).expand(50, 1, 64, 64).clone().requires_grad_()
    crop = random_resized_crop(ramp, (0.25, 0.25), False, torch.Generator().manual_seed(1))
    widths = (crop[..., -1] - crop[..., 0]).mean((1, 2)).detach() / 64
    heights = 0.25 / widths
    ratio = widths / heights
    assert ((ratio > 0.7) & (ratio < 1.4)).all()
    seen = crop.detach()
    assert float(seen.min()) >= 0 and float(seen.max()) <= 63
    crop.sum().backward()
    assert float(ramp.grad.sum()) == pytest.approx(crop.numel(), rel=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_a_synthesis_step_changes_the_methods_own_variables_only(model, method):
    session = new_session(model, method)
    networks = (session.teacher, session.student)
    state = [{k: v.clone() for k, v in n.state_dict().items()} for n in networks]
    made = session.synthesizer
    before = {k: v.clone() for k, v in variables(made, method).items()}
    session.advance(Step("synthesis", 0, 0))
    for network, known in zip(networks, state, strict=True):
        assert all(torch.equal(known[k], v) for k, v in network.state_dict().items())
        assert all(parameter.grad is None for parameter in network.parameters())
    for name, value in variables(made, method).items():
        assert not torch.equal(value, before[name]), name


def variables(made, method):
    if method == "deepinversion":
        return {"pixels": made._variable.detach()}
    if method == "cmi":
        return {
            "codes": made._codes.detach(),
            "trunk": made._trunk.project.weight.detach(),
            "head": made._head.layers[0].weight.detach(),
        }
    return {"noisy": made._generator.noisy.weight.detach()}


@pytest.mark.parametrize("method", METHODS)
def test_images_reach_the_pool_in_the_range_of_pixels(model, method):
    session = new_session(model, method, "pool.max_images=1000")
    count = synthesis_steps(session.recipe, 0)
    logged = [session.advance(Step("synthesis", 0, i)) for i in range(count)]
    assert len(session.pool) >= 10 and "bn" in logged[-1]
    assert logged[-1]["pool"] == len(session.pool)
    assert int(session.pool.labels.min()) >= 0 and int(session.pool.labels.max()) < 3
    if method == "deepinversion":
        box = denormalise(session.synthesizer._variable.detach(), session.recipe.data)
        assert float(box.min()) >= -1e-5 and float(box.max()) <= 1 + 1e-5


@pytest.mark.parametrize("method", ["deepinversion", "cmi"])
@pytest.mark.parametrize("stop", [3, 9, 14])
def test_a_session_goes_on_from_its_state(model, method, stop):
    order = list(steps(new_session(model, method).recipe))
    whole, first = new_session(model, method), new_session(model, method)
    for step in order:
        whole.advance(step)
    for step in order[:stop]:
        first.advance(step)
    second = new_session(model, method)
    second.load_state_dict(first.state_dict())
    for step in order[stop:]:
        second.advance(step)
    expected = whole.student.state_dict()
    assert all(torch.equal(expected[k], v) for k, v in second.student.state_dict().items())
    assert torch.equal(whole.pool.images, second.pool.images)


def test_stars_joins_every_method(model):
    for method in METHODS:
        session = new_session(model, method)
        for step in steps(session.recipe):
            metrics = session.advance(step)
            if step.phase == "synthesis" and step.epoch == 1 and metrics:
                assert {"rca", "tar", "adv", "grad_rca"} <= set(metrics), method
                break


def test_cmi_without_the_contrastive_term_makes_images_too(model):
    session = new_session(model, "cmi", "synthesis.cmi.cr=0")
    for number in range(4):
        metrics = session.advance(Step("synthesis", 0, number))
    assert len(session.pool) == 10 and "cr" not in metrics


def test_balance_gives_stars_its_share_of_the_gradient(model):
    session = new_session(model, "nayer", "stars.balance=0.5", "stars.units=teacher")
    for step in steps(session.recipe):
        metrics = session.advance(step)
        if step.phase == "synthesis" and step.epoch == 2 and metrics:
            break
    images = torch.rand(10, 1, 8, 8, requires_grad=True)
    judge = session._judge
    session.student.eval().requires_grad_(False)
    verdict = judge(normalise(images, session.recipe.data), images, torch.arange(10) % 3, 2)

    def norm(names):
        total = sum(verdict.terms[name] for name in names)
        (gradient,) = torch.autograd.grad(total, images, retain_graph=True)
        return float(gradient.norm())

    ratio = norm(["rca", "tar"]) / norm(["bn", "oh", "adv"])
    assert ratio == pytest.approx(0.5, rel=1e-3)
