"""The way of a person's own network: from their file and weights to a bundle that validates."""

import json
import tomllib
from pathlib import Path

import numpy as np
import own_networks
import pytest
import torch
from own_networks import SHAPE, trained
from torch import nn
from typer.testing import CliRunner

import stars_deploy
from stars_deploy.cli.app import app
from stars_deploy.config.recipe import load_recipe
from stars_deploy.errors import InputError, RecipeError, WeightsError
from stars_deploy.networks.teacher_spec import build_module
from stars_deploy.networks.weights import load_teacher
from stars_deploy.workflow.card import read_card

IMAGES = ["--image-shape", "2,8,8", "--mean", "0.5", "--std", "0.29"]
SMALL = [
    "run.epochs=2", "kd.steps=3", "kd.batch_size=8", "synthesis.batch_size=16",
    "synthesis.nayer.g_steps=4", "synthesis.nayer.gwp_loops=2", "synthesis.nayer.ngf=4",
    "warm_start.calibration_images=24", "data.crop_padding=1", "student.T=2",
    "synthesis.nayer.harvest_every=0",
]  # fmt: skip
SET = [word for change in SMALL for word in ("--set", change)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder as a person has it: their file, and weights saved from DataParallel."""
    source = Path(own_networks.__file__).read_text()
    (tmp_path / "net.py").write_text(source)
    module = trained(own_networks.Residual)
    torch.save({"state_dict": nn.DataParallel(module).state_dict(), "epoch": 1}, "net.th")
    (Path.cwd() / "net.th").rename(tmp_path / "net.th")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words, code=0):
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result


def test_from_a_file_to_a_bundle_that_validates(folder):
    own = ["--teacher", "net.py:Residual", "--weights", "net.th", *IMAGES]
    result = run("distill", *own, "--classes", "a,b,c", "--out", "run", *SET)
    assert "Next: stars-deploy export run" in result.stderr
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["teacher"]["source"] == "net.py:Residual" and summary["data"] == "none"
    assert (
        str(folder)
        not in "".join(path.read_text() for path in Path("run").glob("*.json*"))
        + Path("run/recipe.toml").read_text()
    )
    for name in ("net.py", "net.th"):  # from here on the run is all that is needed
        Path(name).unlink()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, *SHAPE), dtype=np.uint8)
    np.savez("data.npz", images=images, labels=np.arange(12) % 3)
    run("evaluate", "run", "--data", "data.npz")
    training = json.loads(Path("run/training.json").read_text())
    assert 0 <= training["teacher_accuracy"] <= 1 and len(training["spikes"]) == 7
    run("export", "run", "--target", "nir", "--target", "onnx", "--out", "bundle")
    for engine in ("float", "onnx"):
        run("validate", "bundle", "--profile", "reference", "--engine", engine)
    assert json.loads(Path("bundle/validation.json").read_text())["verdict"] == "pass"
    page = Path("bundle/report.html").read_text()
    assert "distilled without any data from an ANN, net.py:Residual" in page


def test_an_imported_teacher_is_a_recipe_for_every_command(folder):
    words = ["teacher", "import", "net.py:Residual", "--weights", "net.th", *IMAGES]
    run(*words, "--out", "teacher", *SET)
    about = json.loads(Path("teacher/teacher.json").read_text())
    assert about["neurons"]["lif1"] == "relu" and about["parameters"] == 2_051
    recipe = load_recipe("teacher/recipe.toml")
    x = torch.randn(5, *SHAPE)
    with torch.no_grad():
        ours = load_teacher(recipe, origin=Path("teacher/recipe.toml"))(x)
        torch.testing.assert_close(ours, trained(own_networks.Residual)(x), rtol=1e-4, atol=1e-5)
    run("distill", "teacher/recipe.toml", "--out", "run")
    for name in ("teacher.safetensors", "teacher.json"):  # a run needs nothing beside it
        assert Path("run", name).read_bytes() == Path("teacher", name).read_bytes()
    assert json.loads(Path("run/summary.json").read_text())["teacher"]["source"] == about["teacher"]
    before = Path("teacher/recipe.toml").read_bytes()
    assert "not an empty folder" in run(*words, "--out", "teacher", code=2).stderr
    assert Path("teacher/recipe.toml").read_bytes() == before


def test_an_interrupted_run_goes_on_without_the_persons_code(folder, monkeypatch):
    own = ["distill", "--teacher", "net.py:Residual", "--weights", "net.th", *IMAGES, *SET]
    run(*own, "--out", "whole")
    from stars_deploy.distillation.session import Session

    steps, advance = [], Session.advance

    def stopped(self, step):
        if len(steps) == 9:
            raise KeyboardInterrupt
        steps.append(step)
        return advance(self, step)

    monkeypatch.setattr(Session, "advance", stopped)
    assert (
        "--resume"
        in run(*own, "--set", "run.checkpoint_seconds=0", "--out", "cut", code=130).stderr
    )
    monkeypatch.setattr(Session, "advance", advance)
    Path("net.py").unlink()
    run("distill", "--resume", "--out", "cut")
    for name in ("student.safetensors", "synthetic.png", "teacher.safetensors"):
        assert Path("cut", name).read_bytes() == Path("whole", name).read_bytes(), name


def test_a_student_of_another_family(folder):
    own = ["--teacher", "net.py:Residual", "--weights", "net.th", *IMAGES]
    plan = json.loads(
        run("--json", "distill", *own, "--student", "resnet20", "--dry-run", "--out", "x").stdout
    )
    assert plan["method"] == "NAYER + STARS" and plan["student_parameters"] > 200_000
    assert plan["teacher"] == "traced" and not Path("x").exists()
    told = run("distill", *own, "--student", "resnet2O", "--dry-run", "--out", "x", code=2).stderr
    assert "did you mean 'resnet20'" in told


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["--weights", "net.th"],
            "its images are not known; give --image-shape C,H,W, --mean, --std",
        ),
        (IMAGES, "give its trained weights with --weights FILE"),
        ([*IMAGES, "--weights", "net.th", "--classes", "a,b"], "2 names for the 3 logits"),
        (
            [*IMAGES, "--weights", "net.th", "--pooling", "windw"],
            "'windw' is unknown; did you mean",
        ),
        ([*IMAGES, "--weights", "net.py"], "not a safetensors file"),
        ([*IMAGES[:1], "3,8,8", *IMAGES[2:], "--weights", "net.th"], r"stem\.0: fails for images"),
        ([*IMAGES, "--weights", "net.th", "--mean", "0.5,0.5,0.5"], "3 .*2 channels"),
        ([*IMAGES, "--weights", "net.th", "--card", "none.toml"], "none.toml: cannot be read"),
    ],
)
def test_what_is_missing_or_wrong_is_said(words, says, folder):
    import re

    result = run("distill", "--teacher", "net.py:Residual", *words, "--out", "run", code=2)
    assert re.search(says, " ".join(result.stderr.split())), result.stderr
    assert not Path("run").exists()


def test_options_of_an_own_teacher_need_one(folder):
    assert "give it with --teacher" in run("distill", *IMAGES, "--out", "run", code=2).stderr


def test_a_teacher_without_batch_norm_is_refused(folder):
    (folder / "bare.py").write_text(
        "from torch import nn\n"
        "def net():\n"
        "    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))\n"
    )
    torch.save(build_module("bare.py:net").state_dict(), "bare.pt")
    own = ["--teacher", "bare.py:net", "--weights", "bare.pt", *IMAGES]
    assert "no BatchNorm" in run("distill", *own, "--out", "run", code=2).stderr


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        (
            "card.toml",
            'shape = [3, 32, 32]\nmean = [0.5]\nstd = [0.2]\nclasses = ["a", "b"]',
            {"shape": [3, 32, 32], "mean": [0.5], "std": [0.2], "classes": ["a", "b"]},
        ),
        ("recipe.toml", "[data]\nshape = [1, 8, 8]\n[kd]\nlr = 0.1", {"shape": [1, 8, 8]}),
        (
            "preprocessor_config.json",
            '{"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.2, 0.2], "size": {"height": 32, '
            '"width": 48}}',
            {"shape": [3, 32, 48], "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.2]},
        ),
        (
            "config.json",
            '{"id2label": {"1": "dog", "0": "cat", "10": "ox", "2": "hen"}, "size": 224}',
            {"classes": ["cat", "dog", "hen", "ox"], "shape": [3, 224, 224]},
        ),
        (
            "config.json",
            '{"pretrained_cfg": {"input_size": [3, 64, 64], "mean": [0.1, 0.2, 0.3], "std": '
            '[1, 1, 1]}, "label_names": ["x", "y"]}',
            {
                "shape": [3, 64, 64], "mean": [0.1, 0.2, 0.3], "std": [1, 1, 1],
                "classes": ["x", "y"],
            },
        ),
    ],
)  # fmt: skip
def test_cards(name, text, expected, tmp_path):
    (tmp_path / name).write_text(text)
    assert read_card(tmp_path / name) == expected
    if name.endswith(".json"):
        assert read_card(tmp_path) == expected  # a model's folder


@pytest.mark.parametrize("text", ["[1, 2]", "{", '{"id2label": "x"}', "[" * 100_000])
def test_cards_that_say_nothing_are_refused(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"--card .*config\.json"):
        read_card(tmp_path / "config.json")


def test_the_card_and_a_recipe_say_what_options_do_not(folder):
    Path("card.toml").write_text("shape = [2, 8, 8]\nmean = [0.1, 0.2]\nstd = [0.3, 0.4]\n")
    arguments = {"weights": "net.th", "card": "card.toml", "mean": "0.7,0.8"}
    stars_deploy.import_teacher("net.py:Residual", out="one", **arguments)
    data = tomllib.loads(Path("one/recipe.toml").read_text())["data"]
    assert (data["mean"], data["std"], data["classes"]) == ([0.7, 0.8], [0.3, 0.4], ["0", "1", "2"])
    # The recipe that another teacher came with: its images and settings, this network.
    stars_deploy.import_teacher(
        "net.py:Residual", weights="net.th", recipe="one/recipe.toml", overrides=["kd.lr=0.07"],
        out="two",
    )  # fmt: skip
    two = tomllib.loads(Path("two/recipe.toml").read_text())
    assert two["data"]["mean"] == [0.7, 0.8] and two["kd"]["lr"] == 0.07


def test_errors_of_the_library_are_its_exceptions(folder):
    with pytest.raises(WeightsError, match="no such weights file"):
        stars_deploy.distill(teacher="net.py:Residual", weights="x.pt", image_shape=SHAPE, out="r")
    with pytest.raises(RecipeError, match=r"kd\.lrr"):
        stars_deploy.import_teacher(
            "net.py:Residual", weights="net.th", image_shape=SHAPE, mean=0.5, std=0.2, out="r",
            overrides=["kd.lrr=1"],
        )  # fmt: skip


def test_what_torchvision_says_of_its_own_weights_is_used_and_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(build_module("torchvision:squeezenet1_1", 4).state_dict(), "bare.pth")
    with pytest.raises(InputError, match="no BatchNorm"):
        stars_deploy.import_teacher("torchvision:squeezenet1_1", weights="bare.pth", out="x")
    torch.save(build_module("torchvision:resnet18", 4).state_dict(), "net.pth")
    about = stars_deploy.import_teacher(
        "torchvision:resnet18", weights="net.pth", image_shape=(3, 64, 64), std=0.25, out="t"
    )
    data = tomllib.loads(Path("t/recipe.toml").read_text())["data"]
    assert data["shape"] == [3, 64, 64] and data["std"] == [0.25] * 3
    assert data["mean"] == [0.485, 0.456, 0.406] and data["classes"] == ["0", "1", "2", "3"]
    assert about["notes"][-1] == "images: mean of torchvision's own weights"


def test_many_classes_have_room(folder):
    Path("wide.py").write_text(
        "import net\nfrom torch import nn\n\ndef wide():\n    module = net.Residual()\n"
        "    module.linear = nn.Linear(8, 100)\n    return module\n"
    )
    torch.save(build_module("wide.py:wide").state_dict(), "wide.pt")
    own = ["--teacher", "wide.py:wide", "--weights", "wide.pt", *IMAGES]
    run("distill", *own, *SET, "--out", "run")
    recipe = load_recipe("run/recipe.toml")
    assert recipe.synthesis.nayer.lte_dim == len(recipe.data.classes) == 100


@pytest.mark.parametrize("words", [["--mean", "127"], ["--std", "0.2,60"]])
def test_constants_of_undivided_pixels_are_refused(words, folder):
    own = ["--teacher", "net.py:Residual", "--weights", "net.th", *IMAGES, *words]
    assert (
        "divide constants for pixels of 0 to 255"
        in run("distill", *own, "--out", "x", code=2).stderr
    )
