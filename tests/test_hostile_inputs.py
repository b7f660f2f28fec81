"""Inputs that once ended in a traceback, a hang or a full memory, each refused with its reason."""

from __future__ import annotations

import json
import os
import struct
import zlib
from pathlib import Path

import bundles
import fuzz_mutations
import fuzzing
import numpy as np
import pytest
import tomli_w
import torch
from fuzz_readers import images, model, run
from tiny_distillation import DOCUMENT
from typer.testing import CliRunner

from stars_deploy import console, files
from stars_deploy.cli import _global_options_first
from stars_deploy.cli.app import app
from stars_deploy.config.profile import load_profile
from stars_deploy.config.recipe import load_recipe, parse_recipe
from stars_deploy.data import load_data
from stars_deploy.distillation import checkpoint
from stars_deploy.errors import BundleError, DataError, InputError
from stars_deploy.networks.families import build_student, build_teacher
from stars_deploy.targets.bundle import open_bundle
from stars_deploy.validation.training import read_training
from stars_deploy.workflow.grid import parse_vary


def refused(read, says):
    """The message of a refusal that keeps the contract."""
    outcome = fuzzing.attempt(read)
    assert outcome.refused is not None and says in outcome.refused, outcome
    return outcome.refused


def changed(**sections):
    return {
        **DOCUMENT,
        **{name: {**DOCUMENT.get(name, {}), **section} for name, section in sections.items()},
    }


# ---- recipes and profiles --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("neuron", "tau", 1e300),  # (1 - 1 / tau) rounds to 1: a division by zero later
        ("neuron", "v_threshold", 1e300),  # infinite in float32
        ("neuron", "v_threshold", 1e-300),  # zero in float32
        ("neuron", "alpha", 1e300),
        ("data", "std", [1e-300]),
        ("data", "mean", [1e300]),
        ("data", "shape", [1, 100_000, 100_000]),
        ("data", "shape", [1, 1 << 70, 8]),
        ("data", "crop_padding", 1 << 40),
        ("student", "T", 1 << 40),
        ("run", "seed", 1 << 70),
        ("run", "threads", 1 << 40),
        ("training", "seed", -1),
        ("kd", "batch_size", 1 << 70),
    ],
)
def test_numbers_far_outside_of_sense(section, key, value):
    document = changed(**{section: {key: value}})
    refused(lambda: parse_recipe(document, "recipe"), key)


@pytest.mark.parametrize(
    "args",
    [
        {"channels": [60_000] * 3, "strides": [1] * 3},
        {"channels": [1 << 62], "strides": [1]},
        {"channels": [4] * 100_000, "strides": [1] * 100_000},
        {"channels": [4], "strides": [1 << 70]},
        {"channels": [60_000] * 3, "strides": [1] * 3, "width": 100.0},
    ],
)
def test_networks_that_fit_no_memory(args):
    recipe = parse_recipe(changed(teacher={"args": args}), "recipe")
    refused(lambda: build_teacher(recipe), "a")
    refused(lambda: build_student(recipe), "a")


def test_the_size_of_a_network_is_found_without_drawing_numbers():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    build = parse_recipe(changed(neuron={"model": "plif"}), "recipe")
    from stars_deploy.networks import families

    families._require_size("x", families.FAMILIES["cnn"], build.data,
                           families.CnnArgs(**DOCUMENT["teacher"]["args"]), None)  # fmt: skip
    assert torch.equal(torch.rand(3), expected)


def test_recipes_that_never_end(tmp_path):
    recipe = tmp_path / "recipe.toml"
    os.mkfifo(tmp_path / "pipe")
    for base in ("/dev/zero", "pipe", ".", "recipe.toml"):
        recipe.write_text(tomli_w.dumps({"extends": [base], **DOCUMENT}))
        refused(lambda: load_recipe(recipe), base if base != "." else str(tmp_path))
    for number in range(40):  # read 2^40 times, if each read all that it extends
        document = {"extends": [f"{number + 1}.toml"] * 2}
        (tmp_path / f"{number}.toml").write_text(tomli_w.dumps(document))
    (tmp_path / "40.toml").write_text(tomli_w.dumps(DOCUMENT))
    refused(lambda: load_recipe(tmp_path / "0.toml"), "more than 64 recipes")
    recipe.write_bytes(b"#" * (2 << 20))
    refused(lambda: load_recipe(recipe), "the limit")
    refused(lambda: load_profile(recipe), "the limit")


def test_deep_values():
    deep = "[" * 50_000
    refused(lambda: load_recipe(model(), [f"teacher.args.{'a.' * 5000}b=1"]), "nested too deeply")
    assert fuzzing.attempt(lambda: load_recipe(model(), [f"teacher.args.x={deep}"]))
    assert fuzzing.attempt(lambda: parse_vary([f"kd.lr={deep},1"]))


# ---- files -----------------------------------------------------------------------------------


def test_json_and_npz_from_pipes_and_devices(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        refused(lambda path=path: files.read_json(path), "not a file")
        refused(lambda path=path: files.read_npz(path), "not a file")


def test_archives_that_unpack_to_a_thousand_times_their_size(tmp_path):
    fuzz_mutations.bomb(tmp_path / "a.npz", "images", 600)
    assert (tmp_path / "a.npz").stat().st_size < 4 << 20
    data = load_recipe(model()).data
    outcome = fuzzing.attempt(lambda: load_data(tmp_path / "a.npz", data))
    assert "unpacks to" in outcome.refused and outcome.bytes < 100 << 20
    header = b"".join(number.to_bytes(4, "big") for number in (0x803, 600 << 10, 32, 32))
    packed = zlib.compressobj(1, zlib.DEFLATED, 31)
    content = [packed.compress(header)]
    content += [packed.compress(bytes(1 << 20)) for _ in range(600)]
    folder = tmp_path / "idx"
    folder.mkdir()
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(b"".join([*content, packed.flush()]))
    (folder / "t10k-labels-idx1-ubyte").write_bytes(b"")
    outcome = fuzzing.attempt(lambda: load_data(folder, data))
    assert "unpacks to" in outcome.refused and outcome.bytes < 100 << 20


def test_what_is_in_proportion_is_read(tmp_path):
    value = np.random.default_rng(0).integers(0, 256, 1 << 16, np.uint8)
    np.savez_compressed(tmp_path / "a.npz", a=value)
    assert np.array_equal(files.read_npz(tmp_path / "a.npz")["a"], value)


def png(width, height):
    """A grey PNG of a few bytes that declares any size."""

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = [
        chunk(b"IHDR", header),
        chunk(b"IDAT", zlib.compress(bytes(1000))),
        chunk(b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("size", [(9000, 9000), (12_000, 12_000), (60_000, 60_000)])
def test_pictures_of_very_many_pixels(size, tmp_path):
    for name in "abc":
        (tmp_path / "test" / name).mkdir(parents=True)
        (tmp_path / "test" / name / "x.png").write_bytes(png(*size))
    data = load_recipe(model()).data
    outcome = fuzzing.attempt(lambda: load_data(tmp_path, data))
    assert "x.png" in outcome.refused and outcome.bytes < 50 << 20


def test_an_image_folder_of_links_loops_and_devices(tmp_path):
    data = load_recipe(model()).data
    for name in "abc":
        (tmp_path / "test" / name).mkdir(parents=True)
    (tmp_path / "test" / "a" / "loop").symlink_to(tmp_path / "test")
    device = tmp_path / "test" / "a" / "x.png"
    device.symlink_to("/dev/zero")
    refused(lambda: load_data(tmp_path, data), "not a file")
    device.unlink()
    os.mkfifo(device)
    refused(lambda: load_data(tmp_path, data), "not a file")


def test_annotations_name_files_of_their_folder_only(tmp_path):
    (tmp_path / "val" / "images").mkdir(parents=True)
    for name in ("../../secret.png", "/etc/passwd", "a/b.png"):
        (tmp_path / "val" / "val_annotations.txt").write_text(f"{name}\ta\n")
        refused(lambda: load_data(tmp_path, load_recipe(model()).data), "no file and class")


def test_an_image_of_another_shape_is_refused_before_all_are_held(tmp_path):
    from PIL import Image

    for name in "abc":
        (tmp_path / "test" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((4000, 4000), np.uint8)).save(tmp_path / "test" / name / "0.png")
        for number in range(1, 100):  # 4.8 GB, if an array for all were made of the first
            (tmp_path / "test" / name / f"{number}.png").symlink_to("0.png")
    refused(lambda: load_data(tmp_path, load_recipe(model()).data), "expected [1, 8, 8]")


@pytest.mark.parametrize(
    ("key", "value"),
    [("n", "2"), ("accuracy", {}), ("spikes", []), ("spikes", {"lif1": "x"}), ("T", None),
     ("device", 1), ("teacher_accuracy", "high")],
)  # fmt: skip
def test_training_json_of_other_kinds(key, value, tmp_path):
    document = {"device": "cpu", "data": "x", "n": 2, "accuracy": 0.5, "spikes": {}, "T": 4}
    path = tmp_path / "training.json"
    path.write_text(json.dumps({**document, key: value}))
    refused(lambda: read_training(path), "training.json")


def test_a_manifest_without_its_source(tmp_path):
    bundle = bundles.write_bundle(tmp_path, ("nir",), 1)
    manifest = json.loads((bundle / "manifest.json").read_text())
    for source in ({}, {"kind": 1, "name": "x", "sha256": "x"}):
        (bundle / "manifest.json").write_text(json.dumps({**manifest, "source": source}))
        with pytest.raises(BundleError, match="source has no kind"):
            open_bundle(bundle)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.update(done="x"),
        lambda state: state.pop("seconds"),
        lambda state: state.update(metrics_size=-1),
        lambda state: state["session"].pop("pool"),
        lambda state: state["session"]["pool"].update(capacity=1 << 62),
        lambda state: state["session"]["pool"].update(images=torch.zeros(3)),
        lambda state: state.update(session=[]),
    ],
)
def test_checkpoints_whose_entries_are_others(change, tmp_path):
    state = torch.load(run() / checkpoint.FILE, weights_only=True)
    change(state)
    (tmp_path / checkpoint.FILE).parent.mkdir()
    torch.save(state, tmp_path / checkpoint.FILE)
    with pytest.raises(InputError, match="damaged checkpoint"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("text", ["[]", "1", "{}", '{"wall_time_s": "long"}'])
def test_a_summary_that_is_none(text, tmp_path):
    import shutil

    from stars_deploy.workflow.distill import distill

    out = shutil.copytree(run(), tmp_path / "run")
    (out / "summary.json").write_text(text)
    recipe = model() / "recipe.toml"
    chosen = load_recipe(recipe)
    refused(lambda: distill(chosen, out, origin=recipe, resume=True), "not the summary of a run")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 7 EiB"),
        RuntimeError("[..] DefaultCPUAllocator: can't alloc"),
    ],
)
def test_memory_that_runs_out_is_no_defect(error, capsys):
    import typer

    from stars_deploy.cli.base import command

    def fill():
        raise error

    with pytest.raises(typer.Exit) as ended:
        command(fill)()
    said = capsys.readouterr().err
    assert ended.value.exit_code == 2 and "not enough memory" in said and "fewer images" in said


# ---- names that reach a terminal -------------------------------------------------------------


def test_names_do_not_steer_the_terminal(tmp_path):
    name = "\x1b]0;owned\x07\x1b[2J\x9b1m\u202egnp.nir"
    (tmp_path / name).write_text("no graph")
    shown = CliRunner().invoke(app, ["check", str(tmp_path / name)])
    assert shown.exit_code == 2
    for character in ("\x1b", "\x07", "\x9b", "\u202e"):
        assert character not in shown.stderr
    assert r"\x1b]0;owned\x07" in shown.stderr and r"\u202e" in shown.stderr


def test_ordinary_text_is_shown_as_it_is():
    text = "Größe 3\u00a0×\u00a04, 日本語 😀\n\ttwo lines"
    assert console.printable(text) == text


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_bytes_that_are_no_text_in_a_name(options, tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.nir")
    shown = CliRunner().invoke(app, _global_options_first([*options, "check", path]))
    assert shown.exit_code == 2, shown.output
    if options:
        assert "\udcff" in json.loads(shown.stdout)["error"]["message"]
    assert json.loads(files.json_text({"name": path}))["name"].endswith("/??.nir")


def test_paths_with_line_breaks_and_long_names(tmp_path):
    for name in ("a\nb", "x" * 300, "a" * 5000, "\x00"):
        for words in (("check",), ("distill",), ("validate",), ("evaluate",)):
            shown = CliRunner().invoke(app, [*words, str(tmp_path / name)])
            assert shown.exit_code == 2, (name[:10], words, shown.output)


def test_an_unreadable_data_set_is_named():
    with pytest.raises(DataError):
        load_data(str(images() / "idx" / "t10k-labels-idx1-ubyte.gz"), load_recipe(model()).data)


@pytest.mark.parametrize(
    ("key", "text"),
    [("initial_state", "7"), ("initial_state", '{"x": 0}'), ("T", str(1 << 40)), ("nodes", "{}")],
)
def test_onnx_metadata_of_other_kinds(key, text, tmp_path):
    import onnx

    from stars_deploy.simulation.onnx_engine import OnnxEngine

    bundle = bundles.write_bundle(tmp_path, ("nir", "onnx"), 1)
    paths = [bundle / name for name in ("model.onnx", "model_step.onnx")]
    for path in paths:
        written = onnx.load_model_from_string(path.read_bytes())
        for entry in written.metadata_props:
            entry.value = text if entry.key == key else entry.value
        path.write_bytes(written.SerializeToString())
    refused(lambda: OnnxEngine(*paths), "model_step.onnx" if key != "x" else "")
