"""What export writes, from a graph, a run or a bundle, and what it never destroys."""

import json

import bundles
import numpy as np
import onnx
import pytest
import small_recipes
import tomli_w

from stars_deploy import files
from stars_deploy.assets import asset
from stars_deploy.config.recipe import load_recipe
from stars_deploy.errors import BundleError, GraphError, InputError
from stars_deploy.graph.writer import write_graph
from stars_deploy.networks.weights import save_weights
from stars_deploy.simulation.reference import FloatEngine
from stars_deploy.targets.bundle import open_bundle, read_golden
from stars_deploy.workflow import samples
from stars_deploy.workflow.export import export


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return bundles.write_bundle(tmp_path_factory.mktemp("export"))


def test_bundle_holds_every_documented_file(bundle):
    names = {p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file()}
    assert names == {
        "manifest.json", "graph.nir", "golden.npz", "model.onnx", "model_step.onnx",
        "loihi/network.json", "loihi/network.npz", "loihi/network.net", "card.md",
        "run_lava.py", "run_onnx.py", "requirements-lava.txt", "requirements-onnx.txt",
        "hil/hil_run.py", "hil/README.md", "operating_point.json", "export.json",
    }  # fmt: skip
    manifest = open_bundle(bundle).manifest
    assert set(manifest["sha256"]) == names - {"manifest.json", "card.md"}
    assert manifest["profile"] == "loihi2" and manifest["targets"] == ["nir", "onnx", "loihi"]
    assert manifest["source"]["sha256"] == files.sha256(bundle.parent / "net.nir")
    assert str(bundle.parent) not in json.dumps(manifest)


def test_golden_recordings_are_those_of_the_engines(bundle):
    golden = read_golden(bundle / "golden.npz")
    assert golden.source == "random" and (golden.labels == -1).all() and len(golden.images) == 16
    answer = FloatEngine(bundles.graph()).run(golden.images)
    np.testing.assert_array_equal(golden.logits["float"], answer.logits)
    assert set(golden.spikes) == {"float", "integer"}
    for node in ("lif1", "lif2", "lif3"):
        np.testing.assert_array_equal(golden.spikes["float"][node], answer.spikes[node])
        assert 0.01 < golden.spikes["integer"][node].mean() < 0.9


def test_equal_sources_give_equal_bytes(bundle, tmp_path):
    again = bundles.write_bundle(tmp_path)
    for name in open_bundle(bundle).manifest["sha256"]:
        assert (again / name).read_bytes() == (bundle / name).read_bytes(), name


def test_kits_are_copies_of_the_packaged_scripts(bundle):
    for name in ("run_lava.py", "hil/hil_run.py"):
        assert (bundle / name).read_bytes() == asset("export", name).read_bytes()


def test_only_asked_targets_are_written(tmp_path):
    bundle = bundles.write_bundle(tmp_path, ["onnx", "onnx"], golden=3)
    assert open_bundle(bundle).manifest["targets"] == ["nir", "onnx"]
    assert open_bundle(bundle).manifest["profile"] is None
    assert not (bundle / "loihi").exists() and not (bundle / "run_lava.py").exists()
    assert len(read_golden(bundle / "golden.npz").images) == 3


def test_bundle_as_source_gives_the_same_network_with_another_gain(bundle, tmp_path):
    export(bundle, ["nir"], "loihi2", 16, "folded", tmp_path / "folded")
    before, after = (read_golden(p / "golden.npz") for p in (bundle, tmp_path / "folded"))
    for node, train in before.spikes["float"].items():
        np.testing.assert_array_equal(after.spikes["float"][node], train)
    assert (
        open_bundle(tmp_path / "folded").manifest["source"]
        == (open_bundle(bundle).manifest["source"])
    )


def test_models_hold_no_path_of_this_machine(bundle):
    text = onnx.load(bundle / "model.onnx").SerializeToString()
    assert str(bundle.parent).encode() not in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": ["onx"]}, "did you mean 'onnx'"),
        ({"nir_gain": "fold"}, "did you mean 'folded'"),
        ({"golden": 0}, "--golden 0"),
    ],
)
def test_bad_options_are_named_before_anything_is_written(bundle, tmp_path, change, message):
    options = {"targets": ["nir"], "profile": "loihi2", "golden": 4, "nir_gain": "raw"} | change
    with pytest.raises(InputError, match=message):
        export(bundle, **options, out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_folder_that_is_no_bundle_is_left_alone(bundle, tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match="not a bundle"):
        export(bundle, ["nir"], "loihi2", 4, "raw", tmp_path / "work")
    assert (tmp_path / "work" / "notes.txt").read_text() == "mine"


def test_failed_export_leaves_the_earlier_bundle_and_no_rubbish(tmp_path):
    out = bundles.write_bundle(tmp_path, ["nir"])
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    # A membrane that starts below zero has no counterpart in Lava's LIF.
    write_graph(bundles.graph(v_resets=(-0.25,), dyadic=False), tmp_path / "other.nir")
    with pytest.raises(GraphError, match="lif1"):
        export(tmp_path / "other.nir", ["loihi"], "loihi2", 4, "raw", out)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert {p.name for p in tmp_path.iterdir()} == {"bundle", "net.nir", "other.nir"}


def test_bundle_replaces_an_earlier_bundle_as_a_whole(tmp_path):
    out = bundles.write_bundle(tmp_path, ["nir", "onnx"], golden=2)
    export(tmp_path / "net.nir", ["nir"], "loihi2", 5, "raw", out)
    assert not (out / "model.onnx").exists()
    assert len(read_golden(out / "golden.npz").images) == 5


# ---- runs ------------------------------------------------------------------------------------


TRAINING = {"device": "cpu", "data": "evaluation", "n": 9, "accuracy": 0.5, "spikes": {}, "T": 4}


def write_run(folder, recipe):
    folder.mkdir()
    (folder / "recipe.toml").write_text(tomli_w.dumps(recipe.resolved()))
    save_weights(small_recipes.lively_student(recipe), folder / "student.safetensors")
    return folder


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run", small_recipes.recipe())


def test_run_becomes_a_bundle_with_what_was_measured(run, tmp_path):
    student = files.sha256(run / "student.safetensors")
    (run / "synthetic.png").write_bytes(b"png")
    summary = {"name": "small", "method": "NAYER", "seed": 3, "teacher": {"sha256": "ab" * 32}}
    files.write_json(run / "summary.json", summary)
    training = {**TRAINING, "student_sha256": student}
    files.write_json(run / "training.json", training)
    result = export(run, ["nir"], "loihi2", 4, "raw", tmp_path / "bundle")
    assert result["golden"] == {"n": 4, "source": "random"}
    manifest = open_bundle(tmp_path / "bundle").manifest
    assert manifest["source"] == {
        "kind": "run", "name": "run", "sha256": student, "recipe": "small", "method": "NAYER",
        "teacher_sha256": "ab" * 32,
    }  # fmt: skip
    assert manifest["seeds"] == {"distill": 3, "golden": 0}
    assert files.read_json(tmp_path / "bundle" / "training.json") == training
    assert {"training.json", "synthetic.png"} <= set(manifest["sha256"])


def test_training_of_another_student_is_refused(run, tmp_path):
    files.write_json(run / "training.json", {**TRAINING, "student_sha256": "0" * 64})
    with pytest.raises(InputError, match="measured a student with sha256 0000"):
        export(run, ["nir"], "loihi2", 4, "raw", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_incomplete_training_is_bad_input(run, tmp_path):
    files.write_json(run / "training.json", {"accuracy": 0.5})
    with pytest.raises(InputError, match="key 'device' is missing"):
        export(run, ["nir"], "loihi2", 4, "raw", tmp_path / "bundle")


def test_golden_images_of_a_run_are_its_latest_synthetic_ones(run, tmp_path):
    import torch

    from stars_deploy.distillation import checkpoint

    pool = small_recipes.random_images(9, (1, 12, 12), 5)
    images = {"images": torch.from_numpy(pool), "labels": torch.zeros(9), "capacity": 9}
    numbers = {"done": 1, "metrics_size": 0, "threads": 1, "seconds": 1.0}
    checkpoint.save(run, {**numbers, "session": {"pool": images}})
    export(run, ["nir"], "loihi2", 4, "raw", tmp_path / "bundle")
    golden = read_golden(tmp_path / "bundle" / "golden.npz")
    assert golden.source == "synthetic" and (golden.labels == -1).all()
    np.testing.assert_array_equal(golden.images, pool[-4:])
    with pytest.raises(InputError, match="there are 9 synthetic images"):
        export(run, ["nir"], "loihi2", 10, "raw", tmp_path / "bundle")


def test_packaged_model_brings_labelled_images_of_every_class(tmp_path):
    recipe = load_recipe("fashion-mnist")
    recipe = recipe.model_copy(
        update={"teacher": recipe.teacher.model_copy(
            update={"args": {"channels": [2, 2], "strides": [2, 2]}})}
    )  # fmt: skip
    run = write_run(tmp_path / "run", recipe)
    export(run, ["nir"], "loihi2", 16, "raw", tmp_path / "bundle")
    golden = read_golden(tmp_path / "bundle" / "golden.npz")
    assert golden.source == "evaluation"
    counts = np.bincount(golden.labels, minlength=10)
    assert counts.min() == 1 and counts.max() == 2
    with np.load(asset("models", "fashion-mnist", "evaluation.npz")) as stored:
        for image, label in zip(golden.images, golden.labels, strict=True):
            same = (stored["images"] == image).all(axis=(1, 2, 3))
            assert label in stored["labels"][same]


def test_spread_takes_classes_in_turn():
    labels = np.array([2, 2, 0, 1, 2, 0])
    assert samples.spread(labels, 4).tolist() == [2, 3, 0, 5]
    assert samples.spread(labels, 10).tolist() == [2, 3, 0, 5, 1, 4]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "absent", "no such run, bundle or .nir file"),
        (lambda p: p, "neither a finished run"),
    ],
)
def test_source_that_is_nothing_is_named(tmp_path, make, message):
    with pytest.raises(InputError, match=message):
        export(make(tmp_path), ["nir"], "loihi2", 4, "raw", tmp_path / "out")
