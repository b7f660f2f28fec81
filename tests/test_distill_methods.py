"""DeepInversion and CMI beside NAYER: parts by hand, what a step may change, going on."""

from __future__ import annotations

import math

import pytest
import torch
from small_recipes import lively_student, recipe
from tiny_distillation import tiny_model

from stars_deploy.config.recipe import load_recipe, parse_recipe
from stars_deploy.distillation.schedule import Step, steps, synthesis_steps, synthetic_images
from stars_deploy.distillation.session import METHODS, Session
from stars_deploy.distillation.stars import pooled, rca_loss
from stars_deploy.distillation.synthesis.base import Best
from stars_deploy.distillation.synthesis.contrast import Bank, Head, contrastive_loss, info_nce
from stars_deploy.distillation.synthesis.generator import Trunk
from stars_deploy.networks.families import build_teacher, seeded
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


def test_mirroring_of_synthetic_views_can_differ_from_the_students(model):
    images = torch.rand(40, 1, 8, 8)
    for flip, mirrored in (("true", True), ("false", False)):
        session = new_session(model, "nayer", "data.crop_padding=0", f"synthesis.flip={flip}")
        view, plain = session._judge.view(images), normalise(images, session.recipe.data)
        changed = (view != plain).flatten(1).any(1)
        assert changed.any() == mirrored
        assert torch.equal(view[changed], plain[changed].flip(3))


def advance_to(session, phase, epoch):
    """Do every step before the first one of a phase of an epoch; return those of the phase."""
    order = list(steps(session.recipe))
    start = next(i for i, step in enumerate(order) if (step.phase, step.epoch) == (phase, epoch))
    for step in order[:start]:
        session.advance(step)
    return [step for step in order[start:] if (step.phase, step.epoch) == (phase, epoch)]


def snapshot(network):
    """Every parameter, buffer and gradient of a network, copied."""
    state = {name: value.clone() for name, value in network.state_dict().items()}
    grads = {f"{n}.grad": p.grad for n, p in network.named_parameters()}
    return state | {name: None if g is None else g.clone() for name, g in grads.items()}


def same(before, after):
    return before.keys() == after.keys() and all(
        torch.equal(before[name], after[name]) if before[name] is not None else after[name] is None
        for name in before
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_whole_round_with_a_trained_student_leaves_both_networks_as_they_were(model, method):
    session = new_session(model, method)
    round_steps = advance_to(session, "synthesis", 2)
    before = [snapshot(network) for network in (session.teacher, session.student)]
    # The student has been trained: it has gradients that a careless backward pass would change.
    assert before[1]["fc.weight.grad"].abs().sum() > 0
    for step in round_steps:
        metrics = session.advance(step)
    assert {"bn", "oh", "adv", "rca", "tar"} <= set(metrics)
    after = [snapshot(network) for network in (session.teacher, session.student)]
    assert same(before[0], after[0]) and same(before[1], after[1])


def test_a_nayer_step_moves_the_whole_generator_and_a_new_loop_the_noisy_layers_only(model):
    session = new_session(model, "nayer")
    generator = session.synthesizer._generator
    before = {name: value.detach().clone() for name, value in generator.named_parameters()}
    advance_to(session, "calibration", 1)
    generator = session.synthesizer._generator
    after = dict(generator.named_parameters())
    assert all(not torch.equal(before[name], after[name]) for name in before)
    known = {name: value.clone() for name, value in generator.state_dict().items()}
    session.synthesizer._begin_loop()
    changed = {n for n, v in generator.state_dict().items() if not torch.equal(known[n], v)}
    assert changed == {"noisy.weight", "noisy.bias"}


def random_states(session):
    state = session.state_dict()
    mine = [state["augment_rng"], state["judge_rng"]]
    return [*mine, state["pool"]["rng"], state["synthesizer"]["rng"]]


@pytest.mark.parametrize("method", METHODS)
def test_stars_draws_no_random_numbers(model, method):
    sessions = [
        new_session(model, method, "stars.units=teacher", f"stars.enabled={on}")
        for on in ("true", "false")
    ]
    shared = torch.get_rng_state()  # torch's own generator, which no step of either may use
    for step in steps(sessions[0].recipe):
        metrics = [session.advance(step) for session in sessions]
        if step.phase == "synthesis" and step.epoch == 1 and metrics[0]:
            assert "rca" in metrics[0] and "rca" not in metrics[1]
        states = [random_states(session) for session in sessions]
        assert all(torch.equal(a, b) for a, b in zip(*states, strict=True)), step
        assert torch.equal(torch.get_rng_state(), shared), step
    assert not torch.equal(sessions[0].pool.images, sessions[1].pool.images)


@pytest.mark.parametrize("method", METHODS)
def test_weights_of_zero_make_the_baselines_images_and_student(model, method):
    zero = new_session(model, method, "stars.lambda_rca=0", "stars.lambda_tar=0")
    none = new_session(model, method, "stars.enabled=false")
    for step in steps(zero.recipe):
        assert zero.advance(step) == none.advance(step)
    assert torch.equal(zero.pool.images, none.pool.images)
    assert same(snapshot(zero.student), snapshot(none.student))


@pytest.mark.parametrize("method", METHODS)
def test_the_first_batch_depends_on_the_seed_alone(model, method):
    pools = []
    for seed in (3, 3, 4):
        torch.manual_seed(len(pools))  # the state of torch's own generator has no say
        session = new_session(model, method, f"run.seed={seed}")
        for number in range(synthesis_steps(session.recipe, 0)):
            session.advance(Step("synthesis", 0, number))
        pools.append(session.pool.images[:10])
    assert torch.equal(pools[0], pools[1]) and not torch.equal(pools[0], pools[2])


@pytest.mark.parametrize("method", METHODS)
def test_the_pool_grows_by_one_batch_a_loop(model, method):
    session = new_session(
        model, method, "pool.max_images=1000", "synthesis.nayer.harvest_every=0", "kd.steps=1"
    )
    sizes = {}
    for step in steps(session.recipe):
        session.advance(step)
        sizes[step.epoch] = len(session.pool)
    # batches of 10; of NAYER two loops in the one epoch of warm-up, then one
    grown = [20, 30, 40, 50] if method == "nayer" else [10, 20, 30, 40]
    assert list(sizes.values()) == grown
    assert synthetic_images(session.recipe) == grown[-1]


def test_the_learning_rate_counts_from_the_end_of_the_warm_up(model):
    session = new_session(model, "nayer", "run.epochs=5", "run.warmup=2", "kd.steps=2")
    logged = {}
    for step in steps(session.recipe):
        metrics = session.advance(step)
        if step.phase == "kd" and metrics:
            logged.setdefault(step.epoch, metrics["lr"])
    low, high = session.recipe.kd.lr_min, session.recipe.kd.lr
    # cos(pi e / 3) of e = 0, 1, 2 is 1, 1/2, -1/2
    expected = {2: high, 3: low + 0.75 * (high - low), 4: low + 0.25 * (high - low)}
    assert logged == pytest.approx(expected)


def test_rca_reaches_the_pixels_through_either_network_alone():
    chosen = recipe()
    teacher = seeded(build_teacher, chosen, 0).eval().requires_grad_(False)
    student = lively_student(chosen).requires_grad_(False)
    images = torch.rand(10, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    images.requires_grad_(True)
    view = normalise(images, chosen.data)
    place = teacher.stage_ends[-1]
    z_t = pooled(teacher.taps(view).pre_activations[place])
    z_s = pooled(student.taps(view).pre_activations[place])

    def gradient(t, s):
        (found,) = torch.autograd.grad(rca_loss(t, s), images, retain_graph=True)
        return found

    by_student, by_teacher = gradient(z_t.detach(), z_s), gradient(z_t, z_s.detach())
    assert float(by_student.norm()) > 1e-4 and float(by_teacher.norm()) > 1e-4
    torch.testing.assert_close(gradient(z_t, z_s), by_student + by_teacher)
