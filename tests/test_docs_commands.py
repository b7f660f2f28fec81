"""The documents hold: every command parses, those of the short pages run, links lead somewhere."""

import ast
import contextlib
import json
import re
import runpy
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from docs_pages import (
    PAGES,
    ROOT,
    SHELL,
    anchors,
    blocks,
    commands,
    links,
    name_of,
    ours,
    places,
    words_of,
)
from test_structure import ALLOWED, BASE
from tiny_distillation import tiny_model
from torch import nn
from typer.testing import CliRunner

from stars_deploy import data
from stars_deploy.assets import asset
from stars_deploy.cli.app import app
from stars_deploy.cli.completion import COMPLETERS
from stars_deploy.config.profile import load_profile, parse_profile
from stars_deploy.config.profile_limits import Convolution, CoreKind, Limits
from stars_deploy.config.recipe import load_recipe
from stars_deploy.networks.tracing import operators

DOCS = ROOT / "docs"
EVERY = [(name_of(page), words) for page in PAGES for words in ours(page)]
OTHERS = [words for page in PAGES for words in commands(page) if words[0] != "stars-deploy"]
MADE = ("teacher/recipe.toml", "run4/profile.toml", "my-chip.toml")  # by a command, or on the page


def parsed(words):
    """The command's name, and its options as the command line itself understands them."""
    command, name, rest = typer.main.get_command(app), [], list(words)
    while hasattr(command, "commands"):
        name.append(rest.pop(0))
        command = command.commands[name[-1]]
    return " ".join(name), command.make_context(" ".join(name), rest).params


@pytest.mark.parametrize(("page", "words"), EVERY, ids=lambda value: " ".join(value)[:60])
def test_a_command_parses_and_what_it_names_exists(page, words):
    name, given = parsed(words)
    if given.get("profile") not in (None, *MADE):
        load_profile(given["profile"])
    if given.get("recipe") not in (None, *MADE):
        load_recipe(given["recipe"], given["overrides"] or ())
    for key, value in given.items():
        complete = COMPLETERS.get(f"{name} {key}") or COMPLETERS.get(key)
        if complete is not None and key not in ("recipe", "profile", "data"):
            wanted = value if isinstance(value, list) else [value]
            assert all(one is None or str(one) in complete(str(one)) for one in wanted), key


def test_other_programs_are_those_that_a_person_has():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for words in OTHERS:
        program = words[0].rpartition("/")[2]
        if program == "make":
            assert words[1] in targets
        elif program == "python" and words[1] != "-m" and "device" not in words[1]:
            assert (ROOT / words[1]).is_file(), words
        else:
            assert program in ("python", "pip", "tensorboard", "mkdir", "cp"), words


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_and_anchors_lead_somewhere(page):
    for link in links(page):
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_index_names_every_page():
    listed = {link.partition("#")[0] for link in links(DOCS / "README.md")}
    assert {page.name for page in DOCS.glob("*.md")} - {"README.md"} == listed - {"../README.md"}


def defined(file):
    """Names that a module defines at its top level, with those of its classes behind a dot."""
    found = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        targets = getattr(node, "targets", [getattr(node, "target", node)])
        names = {getattr(target, "id", getattr(target, "name", None)) for target in targets}
        found |= names
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{getattr(part, 'name', '')}" for part in node.body}
    return found


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "method.md"], ids=name_of)
def test_files_and_functions_that_are_named_exist(page):
    for path, name in places(page):
        assert (ROOT / path).exists(), path
        assert name is None or name in defined(ROOT / path), f"{path}:{name}"


# What the pages are run with: a narrow ResNet-8 in the place of the ResNet-20, and few updates.
NARROW = {
    "(3, 16,": "(3, 4,", "BatchNorm2d(16)": "BatchNorm2d(4)", "stage(16, 16": "stage(4, 4",
    "stage(16, 32": "stage(4, 6", "stage(32, 64": "stage(6, 8", "Linear(64": "Linear(8",
    "range(2)": "range(0)",
}  # fmt: skip
SHORT = [
    "run.epochs=2", "run.threads=1", "kd.steps=2", "kd.batch_size=4", "synthesis.batch_size=8",
    "synthesis.nayer.g_steps=2", "synthesis.nayer.gwp_loops=2", "synthesis.nayer.ngf=4",
    "synthesis.nayer.harvest_every=0", "warm_start.calibration_images=8", "student.T=2",
]  # fmt: skip


def write_teacher(folder):
    """cifar_resnet20.py and resnet20.th, as somebody has them."""
    text = (DOCS / "examples" / "cifar_resnet20.py").read_text()
    for wide, narrow in NARROW.items():
        assert wide in text
        text = text.replace(wide, narrow)
    (folder / "cifar_resnet20.py").write_text(text)
    torch.manual_seed(0)
    module = runpy.run_path(str(folder / "cifar_resnet20.py"))["resnet20"]()
    with torch.no_grad():
        for _ in range(5):
            module.train()(torch.randn(16, 3, 32, 32))
    torch.save({"state_dict": nn.DataParallel(module).state_dict()}, folder / "resnet20.th")


def write_fashion(folder):
    """A tiny recipe and labelled images in the place of the packaged model."""
    recipe = tiny_model(folder / "fashion-mnist")
    # A student of random weights fits the chip; one of this random teacher's would not.
    recipe.write_text(recipe.read_text().replace("enabled = true", "enabled = false"))
    pixels = np.random.default_rng(0).integers(0, 256, (12, 1, 8, 8), dtype=np.uint8)
    np.savez(folder / "evaluation.npz", images=pixels, labels=np.arange(12) % 3)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    write_teacher(tmp_path)
    write_fashion(tmp_path)
    monkeypatch.chdir(tmp_path)

    def packaged(*parts):
        subset = parts[-1] == "evaluation.npz"
        return tmp_path / "evaluation.npz" if subset else asset(*parts)

    monkeypatch.setattr(data, "asset", packaged)
    return tmp_path


def run(words):
    """Run a command of stars-deploy as it stands, but for how long it trains."""
    own = words[0] == "distill" and ("--teacher" in words or "teacher/recipe.toml" in words)
    short = [word for change in SHORT * own for word in ("--set", change)]
    more = ["--updates", "2"] * (words[0] == "finetune")
    if "fashion-mnist" in words[1:2] or words[0] == "finetune":
        more += ["--weights", "fashion-mnist/teacher.safetensors"]
    result = CliRunner().invoke(app, [*words, *short, *more])
    assert result.exit_code == 0, f"{words}\n{result.output}"
    return result.output


def in_shell(words):
    """Do what mkdir, cp and python device/... do."""
    program, *rest = words
    if program == "mkdir":
        Path(rest[0]).mkdir()
    elif program == "cp":
        for file in rest[:-1]:
            shutil.copy(file, rest[-1])
    else:
        main = runpy.run_path(rest[0])["main"]
        assert main(rest[1:]) == 0, words


def follow(page):
    for words in commands(page):
        if words[0] == "stars-deploy":
            run(words[1:])
        else:
            in_shell(words)


def test_the_page_on_own_teachers_is_run(folder, capsys):
    follow(DOCS / "own-teacher.md")
    kept = {"recipe.toml", "teacher.safetensors", "teacher.json"}
    held = [{f.name for f in Path(out).iterdir()} & kept for out in ("teacher", "run", "run2")]
    assert held == [kept, kept, kept] and not Path("run3").exists()


def test_the_page_on_edge_devices_is_run_and_its_three_lines_too(folder, capsys):
    follow(DOCS / "edge.md")
    assert capsys.readouterr().out.count("golden: ok") == 2
    assert Path("device/model_int8.onnx").stat().st_size < Path("device/model.onnx").stat().st_size
    (code,) = blocks(DOCS / "edge.md", "python")
    import onnxruntime

    pixels = np.load("device/golden.npz")["images"][0]
    scope = {"onnxruntime": onnxruntime, "numpy": np, "pixels": pixels}
    with contextlib.chdir("device"):
        exec(compile(code, "docs/edge.md", "exec"), scope)
    recorded = np.load("device/golden.npz")["float.logits"][0]
    np.testing.assert_allclose(scope["logits"][0], recorded, atol=1e-4)


NOT_RUN = {"lava", "recorded", "compare", "train"}


def test_the_steps_of_the_readme_are_run(folder, capsys):
    """All but Lava, a trace of a board, a study that takes hours, training on a whole data set.

    A block that begins with a distillation begins anew.
    """
    shutil.copy("cifar_resnet20.py", "net.py")
    for block in blocks(ROOT / "README.md", *SHELL):
        steps = [words[1:] for words in words_of(block) if words[0] == "stars-deploy"]
        if steps and steps[0][0] == "distill":
            shutil.rmtree("run", ignore_errors=True)
            shutil.rmtree("bundle", ignore_errors=True)
        for words in steps:
            if not NOT_RUN & set(words):
                run(words)
    for made in ("run/training.json", "run/operating_point.json", "bundle/validation.json",
                 "cores.png", "sweep/sweep.json", "run4/graph.nir"):  # fmt: skip
        assert Path(made).is_file(), made


def test_the_page_on_profiles_is_run_with_its_chip(folder, capsys):
    (chip,) = blocks(DOCS / "profiles.md", "toml")
    Path("my-chip.toml").write_text(chip)
    run(["distill", "fashion-mnist", "--out", "run"])
    run(["export", "run", "--target", "nir", "--out", "bundle"])
    follow(DOCS / "profiles.md")
    weights = np.load("my-bundle/loihi/network.npz")
    kernels = [weights[key] for key in weights.files if key.startswith("w.")]
    largest = max(int(np.abs(kernel).max()) for kernel in kernels)
    assert 16 <= largest <= 32  # 6 bits, and no fewer
    told = run(["check", "bundle", "--profile", "my-chip.toml"])
    assert "leaves it out: input_axons_per_core, output_axons_per_core" in " ".join(told.split())
    left_out = tomllib.loads(chip)
    del left_out["limits"]["neurons_per_core"]
    assert parse_profile(left_out, "my-chip.toml").limits.neurons_per_core is None


def test_the_numbers_of_the_page_on_edge_devices_are_those_of_the_benchmark():
    text = (DOCS / "edge.md").read_text()
    result = json.loads((ROOT / "benchmarks" / "results" / "edge.json").read_text())
    rows = dict(re.findall(r"^\| `([^`]+)` \| ([\d,]+) MiB \|", text, re.MULTILINE))
    assert {name: int(peak.replace(",", "")) for name, peak in rows.items()} == {
        name: round(step["peak_mib"]) for name, step in result["steps"].items()
    }
    for name in ("model.onnx", "model_int8.onnx"):
        found = result["device"][name]
        ms = found["one_image_ms"]
        row = (
            f"| `{name}` | {found['bytes']:,} | {found['one_image_peak_mib']:.0f} MiB "
            f"| {ms['median']:.1f} ms ({ms['min']:.1f} to {ms['max']:.1f}) |"
        )
        assert row in text
    assert f"{result['device']['environment_bytes'] / 1e6:.0f} MB" in text


def test_every_key_of_a_profile_is_on_its_page():
    text = (DOCS / "profiles.md").read_text()
    parts = [Limits, Convolution, CoreKind]
    profile = load_profile("loihi2")
    parts += [type(getattr(profile, name)) for name in type(profile).model_fields
              if hasattr(getattr(profile, name), "model_dump")]  # fmt: skip
    keys = {key for part in parts for key in part.model_fields}
    assert len(keys) > 60 and {key for key in keys if f"`{key}`" not in text} == set()


def test_every_operator_that_is_refused_by_name_is_on_its_page():
    text = (DOCS / "own-teacher.md").read_text()
    for name in operators.WHY_NOT:
        assert name.lower() in text.lower() or name == "mul", name
    kinds = [kind for kind, _ in operators._MODULES]
    flat = [one for kind in kinds for one in (kind if isinstance(kind, tuple) else (kind,))]
    words = {re.sub("dropout.*", "dropout", one.__name__.lower()) for one in flat}
    words = {"dropout" if "dropout" in word else word for word in words}
    assert {word for word in words if word not in text.lower()} == set()


def test_the_table_of_packages_is_what_the_structure_test_holds():
    text = (DOCS / "contributing.md").read_text()
    rows = re.findall(r"^\| (`[^|]*`[^|]*) \|[^|]*\| ([^|]*) \|$", text, re.MULTILINE)
    table = {}
    for names, imports in rows:
        for name in re.findall(r"`(\w+)`", names):
            table[name] = set(re.findall(r"`(\w+)`", imports))
    held = {name for name in ALLOWED if name not in ("", "__main__")}
    assert set(table) == held
    for name in held - BASE:
        assert table[name] == ALLOWED[name] - BASE, name
