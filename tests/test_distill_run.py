"""Distillation as a whole: files, seeds, resuming, refusals, divergence."""

import json
import math
import tomllib

import pytest
import torch
from tiny_distillation import results, tiny_model

from stars_deploy.config.recipe import load_recipe
from stars_deploy.distillation import checkpoint, kd, loop
from stars_deploy.distillation.schedule import Step, steps, totals
from stars_deploy.distillation.session import Session
from stars_deploy.distillation.synthesis import nayer
from stars_deploy.errors import InputError, StarsError, TrainingDiverged, WeightsError
from stars_deploy.networks.weights import load_student, load_teacher
from stars_deploy.workflow.distill import distill, plan


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model"))


def run(model, out, *overrides, **options):
    return distill(load_recipe(model, overrides), out, origin=model, **options)


PROGRESS: dict[str, tuple[int, int]] = {}


@pytest.fixture(scope="module")
def reference(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("reference") / "run"
    run(model, out, progress=lambda title, done, total: PROGRESS.update({title: (done, total)}))
    return out


def test_progress_reaches_every_total(reference):
    assert set(PROGRESS) == set(loop.TITLES.values())
    assert all(done == total for done, total in PROGRESS.values())


def test_a_run_leaves_the_documented_files(model, reference):
    names = {path.name for path in reference.iterdir()}
    assert names == {
        "recipe.toml",
        "student.safetensors",
        "metrics.jsonl",
        "summary.json",
        "synthetic.png",
        "checkpoint",
    }
    recipe = load_recipe(reference / "recipe.toml")
    load_student(recipe, reference / "student.safetensors")
    written = tomllib.loads((reference / "recipe.toml").read_text())
    assert written["kd"]["momentum"] == 0.9  # a default, written out
    summary = json.loads((reference / "summary.json").read_text())
    assert (summary["name"], summary["method"]) == ("tiny", "warm start + NAYER + STARS")
    assert summary["teacher"]["sha256"] == recipe.teacher.sha256
    assert summary["student_updates"] == 18
    assert {"seed", "device", "threads", "versions", "wall_time_s"} <= set(summary)
    assert (reference / "synthetic.png").read_bytes()[:4] == b"\x89PNG"


def test_metrics_name_every_term_and_its_gradient(reference):
    lines = results(reference)[2]
    synthesis = [line for line in lines if line["phase"] == "synthesis"]
    assert len(synthesis) == 5  # 2 loops of the warm-up, then 1 in each of 3 epochs
    warm, late = synthesis[0], synthesis[-1]
    assert {"bn", "grad_bn", "oh", "grad_oh"} <= set(warm) and "adv" not in warm
    for term in ("bn", "oh", "adv", "rca", "tar"):
        assert math.isfinite(late[term]) and late[f"grad_{term}"] >= 0
    total = sum(late[term] for term in ("bn", "oh", "adv", "rca", "tar"))
    assert late["loss"] == pytest.approx(total, rel=1e-4)
    assert {line["phase"] for line in lines} == {"synthesis", "calibration", "kd"}


def test_the_plan_counts_what_a_run_does(model, reference):
    recipe = load_recipe(model)
    planned = plan(recipe)
    state = checkpoint.load(reference)
    assert state is not None and state["done"] == sum(totals(recipe).values())
    assert planned["student_updates"] == totals(recipe)["kd"] == 18
    assert planned["synthesis_steps"] == 5 * 5
    # Every loop gives its selected iterate; the second of the warm-up, the only one that is not
    # the first of a generator's life, also its iterates 1 and 3.
    assert planned["synthetic_images"] == (5 + 2) * 10
    session = Session(recipe, load_teacher(recipe, origin=model))
    session.load_state_dict(state["session"])
    assert len(session.pool) == 60  # the newest of the 70
    order = [step.phase for step in steps(recipe)]
    assert order.index("synthesis") < order.index("calibration")
    assert order.index("calibration") < order.index("kd")
    assert json.dumps(planned)


def test_the_same_seed_gives_the_same_files_and_another_seed_does_not(model, reference, tmp_path):
    # Writing a checkpoint after every step changes nothing either.
    run(model, tmp_path / "again", "run.checkpoint_seconds=0.0")
    assert results(tmp_path / "again") == results(reference)
    run(model, tmp_path / "other", "run.seed=1")
    assert results(tmp_path / "other")[0] != results(reference)[0]


def test_stars_with_weights_of_zero_is_bit_identical_to_none(model, reference, tmp_path):
    run(model, tmp_path / "off", "stars.enabled=false")
    run(model, tmp_path / "zero", "stars.lambda_rca=0", "stars.lambda_tar=0")
    assert results(tmp_path / "off") == results(tmp_path / "zero")
    assert results(tmp_path / "off")[0] != results(reference)[0]


def test_a_run_goes_on_from_every_step(model, reference, tmp_path, monkeypatch):
    recipe = load_recipe(model)
    total = sum(totals(recipe).values())
    out = tmp_path / "run"
    save, wanted = checkpoint.save, iter(range(1, total, 3))
    stop = next(wanted)

    class Stop(Exception):
        pass

    def save_and_stop(run_folder, state):
        save(run_folder, state)
        if state["done"] == stop:
            raise Stop

    monkeypatch.setattr(checkpoint, "save", save_and_stop)
    monkeypatch.setattr(checkpoint.Timer, "due", lambda timer: True)
    stopped = 0
    while stop is not None:
        with pytest.raises(Stop):
            run(model, out, resume=True)
        with (out / "metrics.jsonl").open("a") as stream:
            stream.write('{"a line": "that the checkpoint does not know"}\n')
        stopped, stop = stopped + 1, next(wanted, None)
    run(model, out, resume=True)
    assert stopped > 10
    assert results(out) == results(reference)


def test_resuming_a_complete_run_changes_nothing(model, reference, capsys):
    before = {path: path.stat().st_mtime_ns for path in reference.rglob("*")}
    summary = run(model, reference, resume=True)
    assert summary == json.loads((reference / "summary.json").read_text())
    assert {path: path.stat().st_mtime_ns for path in reference.rglob("*")} == before
    assert "nothing to resume" in capsys.readouterr().err


def test_resume_starts_a_run_that_had_not_begun(model, reference, tmp_path):
    (tmp_path / "run").mkdir()
    run(model, tmp_path / "run", resume=True)
    assert results(tmp_path / "run") == results(reference)


def test_a_folder_in_use_is_refused(model, reference, tmp_path):
    with pytest.raises(InputError, match="--resume"):
        run(model, reference)
    (tmp_path / "letters.txt").write_text("private")
    with pytest.raises(InputError, match="no run"):
        run(model, tmp_path, resume=True)
    with pytest.raises(InputError, match="is a file"):
        run(model, tmp_path / "letters.txt")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("run.seed=3", "run.seed = 0, now it is 3"),
        ("kd.lr=0.5", "kd.lr = 0.02, now it is 0.5"),
        ("pool.max_images=61", "pool.max_images = 60, now it is 61"),
    ],
)
def test_resuming_another_recipe_names_the_difference(model, reference, override, words):
    with pytest.raises(InputError, match=words):
        run(model, reference, override, resume=True)


def test_resuming_with_another_teacher_is_refused(model, reference, tmp_path):
    other = tiny_model(tmp_path / "other").parent / "teacher.safetensors"
    weights = load_teacher(load_recipe(model), other)
    with torch.no_grad():
        weights.fc.bias.add_(1)
    from stars_deploy.networks.weights import save_weights

    save_weights(weights, other)
    with pytest.raises(InputError, match=r"teacher\.sha256"):
        run(model, reference, resume=True, weights=other)


def test_missing_weights_leave_no_folder(model, tmp_path):
    with pytest.raises(WeightsError):
        run(model, tmp_path / "run", weights=tmp_path / "absent.safetensors")
    assert not (tmp_path / "run").exists()


def test_a_damaged_checkpoint_is_named(model, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(TrainingDiverged):
        run(model, out, "kd.lr=1e30")
    path = out / checkpoint.FILE
    state = checkpoint.load(out)
    for content in (path.read_bytes()[:1000], b"junk", b"", b"\x80\x02junk."):
        path.write_bytes(content)
        with pytest.raises(InputError, match="damaged checkpoint"):
            run(model, out, "kd.lr=1e30", resume=True)
    checkpoint.save(out, {key: value for key, value in state.items() if key != "session"})
    with pytest.raises(InputError, match="not a checkpoint of schema"):
        run(model, out, "kd.lr=1e30", resume=True)


def test_divergence_keeps_the_last_good_checkpoint(model, tmp_path, monkeypatch):
    rate = kd.learning_rate

    def explodes(config, epoch, step, epochs):
        return math.inf if (epoch, step) == (1, 2) else rate(config, epoch, step, epochs)

    monkeypatch.setattr(kd, "learning_rate", explodes)
    monkeypatch.setattr(checkpoint.Timer, "due", lambda timer: True)
    with pytest.raises(TrainingDiverged, match=r"kd\.lr.*last good checkpoint"):
        run(model, tmp_path / "run")
    state = checkpoint.load(tmp_path / "run")
    assert state is not None
    recipe = load_recipe(model)
    expected = next(i for i, step in enumerate(steps(recipe)) if step[:3] == ("kd", 2, 2))
    assert state["done"] == expected
    assert all(t.isfinite().all() for t in state["session"]["student"].values())
    assert not (tmp_path / "run" / "student.safetensors").exists()


@pytest.fixture
def session(model):
    return Session(load_recipe(model), load_teacher(load_recipe(model), origin=model))


def advance_until(session, phase, epoch):
    for step in steps(session.recipe):
        if step.phase == phase and step.epoch == epoch:
            return step
        session.advance(step)
    raise LookupError(phase)


def test_synthesis_changes_neither_network(session):
    step = advance_until(session, "synthesis", 1)
    networks = (session.teacher, session.student)
    before = [{k: v.clone() for k, v in n.state_dict().items()} for n in networks]
    session.student.zero_grad(set_to_none=True)
    for number in range(5):
        metrics = session.advance(step._replace(number=number))
    assert {"adv", "rca", "tar"} <= set(metrics)
    for network, state in zip(networks, before, strict=True):
        assert all(torch.equal(state[k], v) for k, v in network.state_dict().items())
        assert all(parameter.grad is None for parameter in network.parameters())


def test_a_silent_student_gives_finite_losses_and_gradients(session):
    step = advance_until(session, "synthesis", 1)
    with torch.no_grad():
        for block in session.student.blocks:
            block.bn.bias.fill_(-100)
    for number in range(5):
        metrics = session.advance(step._replace(number=number))
    assert all(math.isfinite(value) for value in metrics.values())
    assert metrics["grad_rca"] < 100
    for _ in range(3):
        assert math.isfinite(session.advance(Step("kd", 1, 0))["loss"])


def test_a_new_generator_is_made_every_life(session, monkeypatch):
    config = session.recipe.synthesis.nayer
    due = [
        e
        for e in range(45)
        if nayer.new_generator_due(config.model_copy(update={"g_life": 10}), e, 20)
    ]
    assert due == [0, 10, 20, 30, 40]
    kept = config.model_copy(update={"g_life": 0})
    assert [e for e in range(45) if nayer.new_generator_due(kept, e, 20)] == [0]
    born = []
    begin = nayer.Nayer._begin_life
    monkeypatch.setattr(nayer.Nayer, "_begin_life", lambda self: (born.append(1), begin(self)))
    for step in steps(session.recipe):
        session.advance(step)
    # g_life 2 with a warm-up of 1: epochs 0, 2 and, counted from the warm-up, 1, 3
    assert len(born) == 4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("synthesis.nayer.lte_dim=2", "lte_dim is 2"),
        ("synthesis.batch_size=1", "synthesis.batch_size"),
        ("data.shape=[1, 6, 6]", "multiples of 4"),
    ],
)
def test_a_recipe_that_cannot_run_claims_no_folder(model, tmp_path, override, message):
    with pytest.raises(StarsError, match=message):
        run(model, tmp_path / "out", override)
    assert not (tmp_path / "out").exists()


def test_nesterov_without_momentum_is_plain_descent(model, tmp_path):
    run(model, tmp_path / "out", "kd.momentum=0", "kd.nesterov=true")
    assert (tmp_path / "out" / "summary.json").is_file()


def test_an_epoch_makes_ten_batches_in_the_papers_warm_up_and_four_after_it():
    recipe = load_recipe("paper-nayer-cifar10-resnet34")
    counts = [nayer.loops(recipe.synthesis.nayer, epoch, 20) for epoch in range(320)]
    assert recipe.run.warmup == 20 and recipe.run.epochs == 320
    assert counts == [10] * 20 + [4] * 300
