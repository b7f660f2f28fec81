"""What a command did not make survives it, wherever --out points."""

from __future__ import annotations

import shutil
from pathlib import Path

import bundles
import fuzz_readers
import pytest
import traces
from PIL import Image
from typer.testing import CliRunner

from stars_deploy.cli.app import app
from stars_deploy.targets.bundle import read_golden

MINE = "years of work"


def invoke(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A recipe with its teacher, a finished run, a bundle and a data set."""
    folder = tmp_path_factory.mktemp("files")
    shutil.copytree(fuzz_readers.model(), folder / "model")
    shutil.copytree(fuzz_readers.run(), folder / "run")
    shutil.copy(fuzz_readers.images() / "data.npz", folder / "data.npz")
    bundles.write_bundle(folder, golden=2)
    return folder


def commands(files: Path, out: Path) -> dict[str, list[object]]:
    """Every command with --out, so that it fails only because of what lies there."""
    model, net, data = files / "model" / "recipe.toml", files / "net.nir", files / "data.npz"
    weights = files / "model" / "teacher.safetensors"
    return {
        "distill": ["distill", model, "--out", out],
        "resume": ["distill", model, "--resume", "--out", out],
        "export": ["export", net, "--target", "nir", "--golden", 1, "--out", out],
        "finetune": ["finetune", files / "run", "--weights", weights, "--out", out],
        "compare": ["compare", model, "--data", data, "--out", out],
        "teacher": ["teacher", "train", model, "--data", data.parent, "--out", out],
    }


NAMES = list(commands(Path(), Path()))


FORMS = ("file in it", "link in it", "link to it", "file")
# Elsewhere a folder is made where a dangling link points, and the link stays.
CASES = [(name, form) for name in NAMES for form in FORMS]
CASES += [("export", "dangling"), ("resume", "dangling")]


@pytest.mark.parametrize(("name", "form"), CASES)
def test_a_folder_of_somebody_else_is_refused_and_left_alone(name, form, files, tmp_path):
    foreign, out = tmp_path / "foreign", tmp_path / "out"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text(MINE)
    if form == "file in it":
        shutil.copytree(foreign, out)
    elif form == "link in it":
        out.mkdir()
        (out / "summary.json").symlink_to(foreign / "thesis.tex")
    elif form == "link to it":
        out.symlink_to(foreign)
    elif form == "file":
        out.write_text(MINE)
    else:
        out.symlink_to(tmp_path / "nothing")
    before = listing(tmp_path)
    result = invoke(*commands(files, out)[name])
    assert result.exit_code == 2, result.output
    assert listing(tmp_path) == before


def listing(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): (
            f"-> {path.readlink()}" if path.is_symlink() else "" if path.is_dir() else
            path.read_text()
        )
        for path in folder.rglob("*")
    }  # fmt: skip


def test_demo_leaves_the_folders_of_others_alone(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text(MINE)
    assert invoke("demo", "--out", tmp_path).exit_code == 2
    assert listing(tmp_path) == {"run": "", "run/thesis.tex": MINE}


def test_export_takes_nothing_out_of_a_bundle_that_it_did_not_put_there(files, tmp_path):
    out = shutil.copytree(files / "bundle", tmp_path / "bundle")
    words = commands(files, out)["export"]
    (out / "loihi" / "notes.txt").write_text(MINE)
    result = invoke(*words)
    assert result.exit_code == 2 and "notes.txt" in result.stderr
    assert (out / "loihi" / "notes.txt").read_text() == MINE
    (out / "loihi" / "notes.txt").unlink()
    assert invoke(*words).exit_code == 0
    assert not (out / "loihi").exists()


def test_a_resumed_run_keeps_the_swap_file_of_an_editor(tmp_path):
    half = shutil.copytree(fuzz_readers.half_run(), tmp_path / "half")
    mine = [half / "run" / ".recipe.toml.swp", half / "run" / "sub" / ".summary.json.x.json"]
    left = half / "run" / ".summary.json.abcd1234.json"
    for path in (*mine, left):
        path.parent.mkdir(exist_ok=True)
        path.write_text(MINE)
    recipe = half / "model" / "recipe.toml"
    result = invoke("distill", recipe, "--resume", "--out", half / "run")
    assert result.exit_code == 0, result.output
    assert [path.read_text() for path in mine] == [MINE, MINE] and not left.exists()


@pytest.mark.parametrize("name", ["sweep.json", "sweep.png"])
@pytest.mark.parametrize("link", [False, True])
def test_sweep_replaces_its_own_files_only(name, link, files, tmp_path):
    out, foreign = tmp_path / "out", tmp_path / "foreign"
    out.mkdir()
    foreign.write_text(MINE)
    (out / name).symlink_to(foreign) if link else (out / name).write_text(MINE)
    before = listing(tmp_path)
    words = ("sweep", files / "bundle", "--profile", "reference", "--steps", "1", "--out", out)
    result = invoke(*words)
    assert result.exit_code == 2 and "no sweep wrote" in result.stderr, result.output
    assert listing(tmp_path) == before


def test_a_picture_replaces_an_earlier_drawing_only(files, tmp_path):
    photo = tmp_path / "holiday.png"
    Image.new("L", (4, 4)).save(photo)
    content = photo.read_bytes()
    (tmp_path / "link.png").symlink_to(tmp_path / "drawn.png")
    words = ("check", files / "net.nir", "--picture")
    for path in (photo, tmp_path / "link.png"):
        result = invoke(*words, path)
        assert result.exit_code == 2 and "no picture of stars-deploy" in result.stderr
    assert photo.read_bytes() == content and not (tmp_path / "drawn.png").exists()
    for _ in range(2):
        assert invoke(*words, tmp_path / "drawn.png").exit_code == 0
    assert invoke(*words, tmp_path / "link.png").exit_code == 2


def test_a_trace_replaces_a_trace_only(files, tmp_path):
    bundle = shutil.copytree(files / "bundle", tmp_path / "bundle")
    images = read_golden(bundle / "golden.npz").images
    real = traces.write(tmp_path / "real.npz", traces.arrays_of(bundle, images))
    content = real.read_bytes()
    (tmp_path / "notes.npz").write_text(MINE)
    (tmp_path / "link.npz").symlink_to(real)
    for name in ("notes.npz", "link.npz"):
        result = invoke("validate", bundle, "--engine", "hardware", "--command", "true {bundle} "
                        "{trace}", "--trace", tmp_path / name)  # fmt: skip
        assert result.exit_code == 2 and "is not replaced" in result.stderr, result.output
    assert (tmp_path / "notes.npz").read_text() == MINE
    assert (tmp_path / "link.npz").is_symlink() and real.read_bytes() == content


@pytest.mark.parametrize(
    ("command", "name"),
    [("evaluate", "training.json"), ("operating-point", "operating_point.json")],
)
def test_results_in_a_run_touch_nothing_else(command, name, files, tmp_path):
    run = shutil.copytree(files / "run", tmp_path / "run")
    (run / "thesis.tex").write_text(MINE)
    words = [command, run, "--data", files / "data.npz", "--device", "cpu"]
    assert invoke(*words).exit_code == 0
    assert (run / "thesis.tex").read_text() == MINE
    (run / name).unlink()
    (run / name).symlink_to(run / "thesis.tex")
    result = invoke(*words)
    assert result.exit_code == 2 and f"{name}: is a symbolic link" in result.stderr
    assert (run / "thesis.tex").read_text() == MINE and (run / name).is_symlink()
