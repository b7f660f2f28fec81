"""What travels with a bundle about its making, and what the page says of it."""

import itertools
import json
import re
import shlex

import numpy as np
import pytest
import small_recipes
import tiny_distillation
import tomli_w
from test_bundle_export import TRAINING, write_run
from test_report_html import parsed, verdict, write_folder

from stars_deploy import files
from stars_deploy.config.recipe import load_recipe
from stars_deploy.distillation import checkpoint
from stars_deploy.errors import BundleError, InputError
from stars_deploy.graph.reader import read_graph
from stars_deploy.targets.bundle import open_bundle
from stars_deploy.validation.evidence import read_evidence
from stars_deploy.validation.proportions import wilson
from stars_deploy.validation.report import context, report_html
from stars_deploy.validation.sections.accuracy import accuracy_rows
from stars_deploy.validation.sections.repeat import distill_command
from stars_deploy.workflow.distill import distill
from stars_deploy.workflow.evidence import POINTS, _curve
from stars_deploy.workflow.export import export

EVIDENCE = {
    "summary.json", "recipe.toml", "curve.json", "synthetic.npz", "synthetic.png",
    "operating_point.json", "export.json",
}  # fmt: skip


def text_of(page):
    return " ".join("".join(parsed(page).text).split())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A distillation of a second, with a pool folder on this machine."""
    folder = tmp_path_factory.mktemp("distilled")
    path = tiny_distillation.tiny_model(folder / "model")
    recipe = load_recipe(path, [f"pool.dir='{folder / 'images'}'"])
    distill(recipe, folder / "run", origin=path)
    return folder / "run"


@pytest.fixture(scope="module")
def bundle(run):
    export(run, ["nir"], "loihi2", 4, "raw", run.parent / "bundle")
    return run.parent / "bundle"


@pytest.fixture(scope="module")
def page(bundle):
    return report_html(bundle, read_graph(bundle / "graph.nir"), verdict())


def test_bundle_of_a_run_holds_its_evidence_under_the_seal(run, bundle):
    assert set(open_bundle(bundle).manifest["sha256"]) >= EVIDENCE
    assert files.read_json(bundle / "summary.json") == files.read_json(run / "summary.json")
    assert str(run.parent) in (run / "recipe.toml").read_text()
    for name in EVIDENCE - {"synthetic.npz", "synthetic.png"}:
        assert str(run.parent) not in (bundle / name).read_text(), name


def test_bundle_of_a_bundle_tells_the_same(bundle, tmp_path):
    export(bundle, ["nir"], "loihi2", 4, "raw", tmp_path / "bundle")
    for name in EVIDENCE - {"export.json", "operating_point.json"}:  # its images differ
        assert (tmp_path / "bundle" / name).read_bytes() == (bundle / name).read_bytes(), name


def test_synthetic_images_are_labelled_and_spread_over_the_pool(run, bundle):
    synthetic = read_evidence(bundle).synthetic
    pool = checkpoint.load(run)["session"]["pool"]
    images, labels = np.asarray(pool["images"]), np.asarray(pool["labels"])
    for label in range(3):
        mine, kept = images[labels == label], synthetic.images[synthetic.labels == label]
        assert len(kept) == min(10, len(mine))
        np.testing.assert_array_equal(kept[[0, -1]], mine[[0, -1]])
    assert synthetic.images.shape[1:] == (1, 8, 8)


def test_page_says_how_the_student_was_made(run, page):
    summary = json.loads((run / "summary.json").read_text())
    text = text_of(page)
    assert summary["student_parameters"] > summary["teacher"]["parameters"] - 20 > 0
    for shown in (
        f"{summary['teacher']['parameters']:,} parameters", "warm start + NAYER + STARS",
        "18 of the student", "channels 4-4-6", "LIF tau 2.0 V_th 1.0, T = 2", "model selection",
        "distilled without any data from an ANN of family cnn",
        "none; ", "images were synthesised from the teacher",
    ):  # fmt: skip
        assert shown in text, shown
    assert page.count('alt="10 synthetic images made for class') <= 3
    assert {f"class {name}" for name in "abc"} == set(
        re.findall(r"synthetic images made for (class \w)", page)
    )


def test_page_shows_the_course_of_the_distillation(bundle, page):
    curve = read_evidence(bundle).curve
    assert curve is not None and curve.kd is not None and curve.kd.step[-1] == 18
    last = curve.kd.values["agreement"][-1]
    assert last is not None
    assert f"18 student updates; at the end {100 * last:.1f} % agreement" in text_of(page)
    assert 'aria-label="Loss and agreement with teacher over 18 student updates"' in page


def test_curve_counts_steps_through_epochs_of_unequal_length(tmp_path):
    path = tmp_path / "metrics.jsonl"
    places = [("synthesis", 0, 3), ("synthesis", 0, 7), ("synthesis", 1, 1), ("kd", 1, 0),
              ("kd", 1, 4), ("calibration", 1, 0), ("synthesis", 2, 1), ("kd", 2, 4)]  # fmt: skip
    lines = [
        {"phase": phase, "epoch": epoch, "step": step, "loss": float(number), "agreement": 0.5}
        for number, (phase, epoch, step) in enumerate(places)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    curve = _curve(path)
    assert curve["synthesis"]["step"] == [4, 8, 10, 12]
    assert curve["synthesis"]["values"] == {"loss": [0, 1, 2, 6], "teacher_hits": [None] * 4}
    assert curve["kd"]["step"] == [1, 5, 10] and curve["kd"]["values"]["agreement"] == [0.5] * 3
    assert set(curve) == {"synthesis", "kd"}


def test_long_curve_is_thinned_and_keeps_both_ends(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with path.open("w") as stream:
        for step in range(5000):
            print(json.dumps({"phase": "kd", "epoch": 0, "step": step, "loss": step}), file=stream)
    steps = _curve(path)["kd"]["step"]
    assert len(steps) == POINTS and steps[0] == 1 and steps[-1] == 5000
    assert steps == sorted(set(steps))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.jsonl", '{"phase": "kd", "epoch": 0}\n', "line 1 is no line of metrics"),
        ("metrics.jsonl", "{}\nnothing", "line 1 is no line of metrics"),
        ("summary.json", '{"wall_time_s": "long"}', "summary.json: wall_time_s: "),
        ("training.json", json.dumps({**TRAINING, "accuracy": 5}), "training.json: accuracy: "),
    ],
)
def test_damaged_evidence_of_a_run_is_bad_input(tmp_path, name, content, message):
    run = write_run(tmp_path / "run", small_recipes.recipe())
    (run / name).write_text(content)
    with pytest.raises(InputError, match=re.escape(message)):
        export(run, ["nir"], "loihi2", 2, "raw", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("curve.json", '{"kd": {"step": [1], "values": {"loss": ["x"]}}}', "curve.json: kd.values"),
        ("operating_point.json", '{"images": 1, "T": 2}', "operating_point.json: layers"),
        ("export.json", "[]", "export.json: the document"),
        ("recipe.toml", "name = ", "recipe.toml: not valid TOML"),
        ("synthetic.npz", "no zip", "synthetic.npz: not a readable npz"),
    ],
)
def test_damaged_evidence_of_a_bundle_is_named(tmp_path, name, content, message):
    path, graph = write_folder(tmp_path / "bundle")
    (path / name).write_text(content)
    with pytest.raises(BundleError, match=re.escape(message)):
        report_html(path, graph, verdict())


def test_bundle_without_evidence_says_what_is_not_known(tmp_path):
    path, graph = write_folder(tmp_path / "bundle")
    text = text_of(report_html(path, graph, verdict()))
    for shown in (
        "how it was trained is not known", "The course of the distillation is not known",
        "Accuracy against time steps is not known", "Currents are not known",
        "No synthetic images came with this bundle",
    ):  # fmt: skip
        assert shown in text, shown


def test_accuracies_have_wilson_intervals_and_engines_their_largest_run():
    small = verdict("integer", n=16, accuracy={"reference": 1.0, "target": 0.5, "delta": -0.5})
    large = verdict("integer")
    other = verdict("a-new-engine", n=16, accuracy={"reference": 0.5, "target": 0.25, "delta": 0})
    rows = {row["label"]: row for row in accuracy_rows(None, [small, large, other])}
    assert list(rows) == ["Float graph", "Integer parameters", "a-new-engine"]
    assert rows["Integer parameters"]["n"] == 2000
    found = rows["Integer parameters"]
    assert (found["low"], found["high"]) == wilson(1810, 2000)
    assert rows["a-new-engine"]["value"] == 0.25


def test_accuracy_against_steps_is_drawn_with_the_teacher(tmp_path):
    path, graph = write_folder(tmp_path / "bundle")
    training = {**TRAINING, "n": 400, "accuracy_by_t": [0.25, 0.5, 0.75], "teacher_accuracy": 0.9}
    files.write_json(path / "training.json", training)
    page = report_html(path, graph, verdict())
    said = "Accuracy against time steps: 25.00 % at 1, 50.00 % at 2, 75.00 % at 3"
    assert f'aria-label="{said}"' in page and "teacher, 90.00 %" in page


# ---- commands ----------------------------------------------------------------------------------


def test_distill_command_names_recipe_seed_and_changes():
    changes = ["run.seed=5", "kd.lr=0.01", "synthesis.method=cmi", "stars.enabled=false",
               "data.flip=false", "stars.quantiles=[0.5, 0.75]"]  # fmt: skip
    recipe = load_recipe("fashion-mnist", changes)
    line = distill_command(recipe.resolved())
    words = shlex.split(line)
    assert words[:3] == ["stars-deploy", "distill", "fashion-mnist"]
    assert words[-2:] == ["--out", "run"] and "--no-stars" in words
    assert words[words.index("--seed") + 1] == "5"
    assert words[words.index("--method") + 1] == "cmi"
    given = [word for flag, word in itertools.pairwise(words) if flag == "--set"]
    known = ["run.seed=5", "synthesis.method=cmi", "stars.enabled=false"]
    assert load_recipe("fashion-mnist", [*given, *known]) == recipe


def test_distill_command_of_an_unchanged_recipe_says_its_seed():
    recipe = load_recipe("fashion-mnist")
    assert distill_command(recipe.resolved()) == (
        "stars-deploy distill fashion-mnist --seed 0 --out run"
    )


def test_recipe_of_ones_own_is_repeated_from_the_bundle(bundle, page):
    text = text_of(page)
    assert "stars-deploy distill bundle/recipe.toml --weights teacher.safetensors --out run" in text
    digest = files.sha256(bundle.parent / "model" / "teacher.safetensors")
    assert f"teacher.safetensors is the file with sha256 {digest}." in text
    assert "stars-deploy export run --target nir --golden 4" in text


def test_no_command_line_is_made_up_for_what_it_could_not_repeat():
    another = load_recipe("fashion-mnist").resolved()
    another["teacher"]["sha256"] = "0" * 64
    unsaid = load_recipe("fashion-mnist", ["run.seed=1"]).resolved()
    del unsaid["teacher"]["sha256"]  # no option takes a key away
    for recipe in (another, unsaid, {"name": "no such recipe"}, {}):
        assert distill_command(recipe) is None


# ---- cores -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lowered(tmp_path_factory):
    import bundles

    return bundles.write_bundle(tmp_path_factory.mktemp("lowered"), ["loihi"], golden=2)


def test_cores_are_those_of_the_placement(lowered):
    from stars_deploy.config.profile import load_profile
    from stars_deploy.simulation.placement.place import place

    document = files.read_json(lowered / "loihi" / "network.json")
    placement = place(document, files.read_npz(lowered / "loihi" / "network.npz"),
                      load_profile("loihi2"))  # fmt: skip
    graph = read_graph(lowered / "graph.nir")
    cores = context(lowered, graph, verdict())["cores"]
    assert (cores["cores"], cores["available"]) == (placement.cores, 120)
    parts = [part for item in placement.populations for part in item.parts]
    share = max(max(p.neurons / 8192, p.synaptic_memory_bit / 1048576) for p in parts)
    assert cores["fullest"]["share"] == pytest.approx(share)
    page = report_html(lowered, graph, verdict())
    assert page.count('<rect class="used"') == placement.cores
    assert page.count('<rect class="free"') == 120 - placement.cores
    assert f"{placement.cores} of 120 cores" in text_of(page)


def test_profile_that_is_not_at_hand_is_said(lowered, tmp_path):
    import shutil

    copy = tmp_path / "bundle"
    shutil.copytree(lowered, copy)
    manifest = files.read_json(copy / "manifest.json")
    files.write_json(copy / "manifest.json", {**manifest, "profile": "mine"})
    page = report_html(copy, read_graph(copy / "graph.nir"), verdict())
    assert "Profile mine is not at hand, so nothing was placed." in text_of(page)


def test_recipe_of_another_version_is_shown_all_the_same(tmp_path):
    path, graph = write_folder(tmp_path / "bundle")
    recipe = {"name": "fashion-mnist", "later": {"key": 1}, "teacher": "x", "neuron": ["lif"]}
    (path / "recipe.toml").write_text(tomli_w.dumps(recipe))
    text = text_of(report_html(path, graph, verdict()))
    assert "stars-deploy distill bundle/recipe.toml --weights teacher.safetensors" in text
