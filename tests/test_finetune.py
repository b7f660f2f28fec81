"""`finetune` as a user meets it: files, seeds, exported integers, refusals, no data, Ctrl-C."""

import json
import shutil

import numpy as np
import pytest
import torch
from test_cli import fails, invoke
from tiny_distillation import DOCUMENT, tiny_model
from watched import opened

from stars_deploy.config.profile import load_profile
from stars_deploy.config.recipe import load_recipe
from stars_deploy.distillation import integer_finetune
from stars_deploy.distillation.integer_finetune import Settings
from stars_deploy.errors import InputError
from stars_deploy.graph.reader import read_graph
from stars_deploy.graph.writer import write_graph
from stars_deploy.networks.images import normalise
from stars_deploy.networks.weights import load_teacher, save_weights
from stars_deploy.targets.loihi import lower
from stars_deploy.workflow.distill import distill
from stars_deploy.workflow.finetune import finetune
from stars_deploy.workflow.finetune_grid import with_bits
from stars_deploy.workflow.sources import open_source


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny teacher that gives all its classes, and gives them with some certainty."""
    path = tiny_model(tmp_path_factory.mktemp("model"))
    recipe = load_recipe(path)
    teacher = load_teacher(recipe, path.parent / "teacher.safetensors")
    images = torch.rand(200, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        teacher.fc.weight *= 4
        teacher.fc.bias -= teacher(normalise(images, recipe.data)).mean(0)
    save_weights(teacher, path.parent / "teacher.safetensors")
    return path


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "run"
    distill(
        load_recipe(model, ["warm_start.enabled=false", "kd.steps=60", "kd.tau=2"]),
        out,
        origin=model,
    )
    return out


@pytest.fixture(scope="module")
def weights(model):
    return model.parent / "teacher.safetensors"


@pytest.fixture(scope="module")
def tuned(run, weights, tmp_path_factory):
    out = tmp_path_factory.mktemp("tuned") / "out"
    result = finetune(run, out, Settings(60, 0.01, 0), bits=3, weights=weights)
    return out, result


def test_few_bits_follow_the_teacher_better_after_training(tuned):
    agreement = tuned[1]["agreement"]
    assert agreement["integers_after"] > agreement["integers_before"] + 0.05
    assert agreement["n"] == 60 and agreement["images"] == "synthetic"
    assert tuned[1]["accuracy"] is None  # nobody gave data
    assert tuned[1]["compared"]["mismatches"] == 0 and tuned[1]["compared"]["spikes"] > 0


def test_a_finetuned_graph_leaves_the_documented_files(tuned, run):
    out, result = tuned
    names = {path.name for path in out.iterdir()}
    assert names == {"graph.nir", "finetune.json", "metrics.jsonl", "profile.toml"}
    assert json.loads((out / "finetune.json").read_text()) == result
    assert (result["bits"], result["profile"], result["seed"]) == (3, "loihi2-3bit", 0)
    assert result["source"]["name"] == "run" and result["trained_on"]["n"] == 60
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["update"] for line in lines] == [0, 20, 40, 59]
    assert {"update", "loss", "agreement", "lr"} == set(lines[0])
    assert lines[0]["lr"] == 0.01 and lines[-1]["lr"] < 1e-4
    assert load_profile(out / "profile.toml") == with_bits(load_profile("loihi2"), 3)


def test_the_exported_integers_are_the_trained_ones(tuned, tmp_path):
    out, result = tuned
    profile = ["--profile", out / "profile.toml"]
    words = ["export", out / "graph.nir", "--target", "loihi", *profile]
    done = invoke(*words, "--out", tmp_path / "bundle")
    assert done.exit_code == 0, done.output
    document = json.loads((tmp_path / "bundle" / "loihi" / "network.json").read_text())
    scales = [[item["name"], item["scale"], item["vth"]] for item in document["populations"]]
    assert scales == [[p["name"], p["scale"], p["threshold"]] for p in result["populations"]]
    arrays = np.load(tmp_path / "bundle" / "loihi" / "network.npz")
    graph = read_graph(out / "graph.nir")
    again = lower(graph, load_profile(out / "profile.toml"))
    for key in arrays.files:
        assert np.array_equal(arrays[key], again.arrays[key])
        assert not key.startswith("w.") or np.abs(arrays[key]).max() <= 3
    done = invoke("validate", tmp_path / "bundle", *profile)
    assert done.exit_code in (0, 3), done.output  # rounding of pixels may cost more than allowed


def test_without_updates_biases_are_corrected_only(run, weights, tmp_path):
    result = finetune(run, tmp_path / "out", Settings(0, 0.01, 0), bits=3, weights=weights)
    agreement = result["agreement"]
    assert agreement["integers_after"] == agreement["integers_corrected"]
    assert result["compared"]["mismatches"] == 0
    assert (tmp_path / "out" / "metrics.jsonl").read_text() == ""
    assert (tmp_path / "out" / "graph.nir").is_file()


def test_equal_seeds_give_equal_bytes(tuned, run, weights, tmp_path):
    finetune(run, tmp_path / "a", Settings(60, 0.01, 0), bits=3, weights=weights)
    finetune(run, tmp_path / "b", Settings(60, 0.01, 1), bits=3, weights=weights)
    for name in ("graph.nir", "metrics.jsonl"):
        first = (tuned[0] / name).read_bytes()
        assert (tmp_path / "a" / name).read_bytes() == first
        assert (tmp_path / "b" / name).read_bytes() != first


def test_the_source_is_left_as_it_was(run, weights, tmp_path):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    finetune(run, tmp_path / "out", Settings(2, 0.01, 0), weights=weights)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_graph_is_trained_with_the_images_of_a_run(run, weights, tmp_path):
    write_graph(open_source(run).graph, tmp_path / "net.nir")
    finetune(run, tmp_path / "a", Settings(3, 0.01, 0), bits=4, weights=weights)
    words = ["--bits", 4, "--updates", 3, "--lr", 0.01, "--pool", run, "--weights", weights]
    done = invoke("finetune", tmp_path / "net.nir", *words, "--out", tmp_path / "b")
    assert done.exit_code == 0, done.output
    assert "stars-deploy export" in done.stderr and "profile.toml" in done.stderr
    graphs = [(tmp_path / name / "graph.nir").read_bytes() for name in "ab"]
    assert graphs[0] == graphs[1]


def test_labelled_images_are_measured_on_only(run, weights, tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (30, 1, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=rng.integers(0, 3, 30))
    settings = Settings(3, 0.01, 0)
    finetune(run, tmp_path / "a", settings, bits=4, weights=weights)
    data = str(tmp_path / "data.npz")
    with_data = finetune(run, tmp_path / "b", settings, bits=4, weights=weights, data=data)
    assert with_data["accuracy"]["n"] == 30
    names = {"float_before", "integers_before", "float_after", "integers_after", "teacher"}
    assert names <= set(with_data["accuracy"])
    graphs = [(tmp_path / name / "graph.nir").read_bytes() for name in "ab"]
    assert graphs[0] == graphs[1]


# ---- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 9])
def test_bits_that_the_profile_cannot_hold_are_bad_usage(run, bits, tmp_path):
    out = tmp_path / "out"
    fails(2, "finetune", run, "--bits", bits, "--out", out, says=[f"--bits {bits}", "2 to 8"])
    assert not out.exists()


def test_bad_usage_says_what_to_do(run, weights, model, tmp_path):
    net, out = tmp_path / "net.nir", tmp_path / "out"
    write_graph(open_source(run).graph, net)
    fails(2, "finetune", net, "--out", out, says=["net.nir", "--pool RUN"])
    fails(2, "finetune", net, "--pool", net, "--out", out, says=["--pool", "finished run"])
    fails(2, "finetune", run, "--out", out, says=["--weights"])  # no packaged recipe
    fails(2, "finetune", run, "--profile", "reference", "--out", out, says=["floating point"])
    other = tmp_path / "other.safetensors"
    other.write_bytes(weights.read_bytes() + b" ")
    fails(2, "finetune", run, "--weights", other, "--out", out, says=["is not the teacher of"])
    assert not out.exists()
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    fails(2, "finetune", run, "--weights", weights, "--out", out, says=["not an empty folder"])
    assert (out / "mine.txt").read_text() == "keep"


def test_a_graph_of_other_images_is_refused(run, weights, tmp_path):
    graph = open_source(run).graph
    graph.metadata["mean"] = np.array([0.5])
    write_graph(graph, tmp_path / "net.nir")
    words = ["--pool", run, "--weights", weights, "--out", tmp_path / "out"]
    fails(2, "finetune", tmp_path / "net.nir", *words, says=["mean (0.5,)", "(0.4,)"])


def test_a_run_without_images_is_refused(run, weights, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(run, bare)
    shutil.rmtree(bare / "checkpoint")
    words = ["--weights", weights, "--out", tmp_path / "out"]
    fails(2, "finetune", bare, *words, says=["no synthetic images"])


# ---- the end before the end ------------------------------------------------------------------


def test_divergence_and_ctrl_c_write_nothing(run, weights, tmp_path, monkeypatch):
    def broken(*args):
        return integer_finetune.torch.tensor(float("nan"), requires_grad=True)

    def interrupt(*args):
        raise KeyboardInterrupt

    words = ["finetune", run, "--weights", weights, "--out", tmp_path / "out"]
    monkeypatch.setattr(integer_finetune, "kd_loss", broken)
    fails(1, *words, says=["update 0: the loss is nan", "lower --lr", "Nothing was written"])
    monkeypatch.setattr(integer_finetune, "kd_loss", interrupt)
    fails(130, *words, says=["interrupted; nothing was written to"])
    assert list(tmp_path.iterdir()) == []


# ---- without data ----------------------------------------------------------------------------

IMPORTS = """
from stars_deploy.distillation.integer_finetune import Settings
from stars_deploy.workflow.finetune import finetune
"""
WORK = """
run, weights, out = map(Path, sys.argv[1:])
finetune(run, out, Settings(2, 0.01, 0), bits=4, weights=weights)
"""


def test_finetune_opens_the_run_and_the_teacher_only(run, weights, tmp_path):
    given, others = opened(
        IMPORTS, WORK, [run, weights, tmp_path / "out"], tmp_path, [run, weights]
    )
    assert given == {
        "recipe.toml",
        "student.safetensors",
        "summary.json",
        "state.pt",
        "teacher.safetensors",
    }
    assert others == set()


assert DOCUMENT["pool"]["max_images"] == 60  # what the numbers above count on


def test_a_first_layer_that_the_host_computes_is_refused(run, weights, tmp_path):
    with pytest.raises(InputError, match="--profile loihi1: the host computes its first layer"):
        finetune(run, tmp_path / "out", Settings(2, 0.01, 0), profile="loihi1", weights=weights)
    assert not (tmp_path / "out").exists()
