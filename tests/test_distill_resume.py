"""`distill --resume`: the recipe is the run's; what is given besides must agree with it."""

import shutil

import numpy as np
import pytest
import tomli_w
from safetensors.numpy import load_file, save_file
from tiny_distillation import DOCUMENT, results, tiny_model
from typer.testing import CliRunner

from stars_deploy.cli.app import app
from stars_deploy.config.recipe import load_recipe
from stars_deploy.distillation.session import Session
from stars_deploy.workflow.distill import distill

CHANGES = ["run.seed=5", "kd.lr=0.03", "synthesis.method=nayer"]


class Stop(Exception):
    pass


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def stopped(model, tmp_path_factory):
    """A run with values of its own, stopped at its first step."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "advance", lambda *_: (_ for _ in ()).throw(Stop))
        with pytest.raises(Stop):
            distill(load_recipe(model, CHANGES), out, origin=model)
    return out


@pytest.fixture
def out(stopped, tmp_path):
    return shutil.copytree(stopped, tmp_path / "run")


def resume(*words):
    return CliRunner().invoke(app, ["distill", "--resume", *map(str, words)])


def refused(*words, says):
    result = resume(*words)
    assert result.exit_code == 2, result.output
    for part in says:
        assert part in result.stderr


@pytest.fixture(scope="module")
def expected(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    distill(load_recipe(model, CHANGES), out, origin=model)
    return results(out)


def test_nothing_has_to_be_said_again(model, out, expected):
    result = resume(model, "--out", out)
    assert result.exit_code == 0, result.output
    assert f"Resuming with the recipe of {out / 'recipe.toml'}" in result.stderr
    assert results(out) == expected


def test_weights_stand_for_the_recipe(model, out, expected):
    result = resume("--weights", model.parent / "teacher.safetensors", "--out", out)
    assert result.exit_code == 0, result.output
    assert results(out) == expected


def test_the_same_options_again_are_accepted(model, out, expected):
    words = ("--seed", 5, "--set", "kd.lr=0.03", "--method", "nayer", "--device", "cpu")
    result = resume(model, *words, "--out", out)
    assert result.exit_code == 0, result.output
    assert "Resuming with" not in result.stderr
    assert results(out) == expected


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--set", "kd.lr=0.03", "--seed", 0], "run.seed = 5, now it is 0"),
        (["--set", "kd.lr=0.03"], "run.seed = 5, now it is 0"),
        (["--seed", 5, "--set", "kd.lr=0.04"], "kd.lr = 0.03, now it is 0.04"),
        (["--method", "cmi"], "synthesis.method = 'nayer', now it is 'cmi'"),
        (["--no-stars"], "stars.enabled = True, now it is False"),
        (["--device", "auto"], "run.device = 'cpu', now it is 'auto'"),
    ],
)
def test_options_that_differ_are_refused(model, out, words, says):
    # Of several differences the first is named.
    if words[0] in ("--method", "--no-stars"):
        words = [*words, "--seed", 5, "--set", "kd.lr=0.03"]
    refused(model, *words, "--out", out, says=[f"was started with {says}"])


def test_a_recipe_of_another_name_is_refused(out, tmp_path):
    refused("fashion-mnist", "--out", out, says=["name = 'tiny', now it is 'fashion-mnist'"])


def test_without_a_recipe_an_unknown_one_is_asked_for(out):
    refused("--out", out, says=["'tiny' is no packaged model", f"--resume --out {out}"])


def test_a_packaged_model_is_found_by_its_name(out, monkeypatch, model):
    from stars_deploy.workflow import resume as module

    monkeypatch.setattr(module, "asset", lambda kind, name, file: model.parent / file)
    result = resume("--out", out)
    assert result.exit_code == 0, result.output


def test_a_teacher_that_changed_since_is_refused(model, out, tmp_path):
    tensors = load_file(model.parent / "teacher.safetensors")
    tensors["fc.bias"] = tensors["fc.bias"] + np.float32(1)
    save_file(tensors, tmp_path / "teacher.safetensors")
    refused("--weights", tmp_path / "teacher.safetensors", "--out", out, says=["teacher.sha256"])


def test_weights_are_where_the_recipe_inherits_them_from(model, out, tmp_path):
    heir = tmp_path / "heirs" / "heir.toml"
    heir.parent.mkdir()
    heir.write_text(tomli_w.dumps({"extends": [str(model)]}))
    assert resume(heir, "--out", out).exit_code == 0


def test_a_recipe_without_weights_asks_for_them(out, tmp_path):
    document = {**DOCUMENT, "teacher": {"args": DOCUMENT["teacher"]["args"]}}
    (tmp_path / "bare.toml").write_text(tomli_w.dumps(document))
    refused(tmp_path / "bare.toml", "--out", out, says=["bare.toml", "--weights again"])


def test_a_dry_run_plans_the_run_that_would_be_resumed(model, out):
    result = CliRunner().invoke(
        app, ["--json", "distill", str(model), "--resume", "--dry-run", "--out", str(out)]
    )
    assert '"seed": 5' in result.stdout
