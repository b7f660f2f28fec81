"""The command line as a user meets it: exit codes, messages, clean stdout, nothing half-written."""

import json
import os
import resource
import shlex
import subprocess
import sys

import h5py
import numpy as np
import pytest
import random_networks
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from stars_deploy import __version__
from stars_deploy.assets import asset
from stars_deploy.cli import _global_options_first
from stars_deploy.cli.app import app
from stars_deploy.graph.writer import write_graph
from stars_deploy.targets.bundle import seal

TEACHER = asset("models", "fashion-mnist", "teacher.safetensors")


def invoke(*words):
    return CliRunner().invoke(app, _global_options_first([str(word) for word in words]))


def fails(code, *words, says):
    result = invoke(*words)
    assert result.exit_code == code, result.output
    for part in says:
        assert part in result.stderr, result.stderr
    assert "Traceback" not in result.output
    return result


@pytest.fixture(scope="module")
def graph_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("graph") / "net.nir"
    write_graph(random_networks.random_graph(1, pools=False), path)
    return path


@pytest.fixture(scope="module")
def exported(graph_file, tmp_path_factory):
    out = tmp_path_factory.mktemp("bundle") / "bundle"
    targets = [word for name in ("nir", "onnx", "loihi") for word in ("--target", name)]
    result = invoke("export", graph_file, *targets, "--out", out)
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture
def bundle(exported, tmp_path):
    import shutil

    return shutil.copytree(exported, tmp_path / "bundle")


# ---- the surface -----------------------------------------------------------------------------


def test_version():
    assert invoke("--version").stdout == f"stars-deploy {__version__}\n"


@pytest.mark.parametrize(
    "name",
    [
        "demo",
        "distill",
        "evaluate",
        "export",
        "check",
        "simulate",
        "validate",
        "sweep",
        "profiles",
        "zoo",
        "doctor",
        "teacher",
        "compare",
        "operating-point",
    ],
)
def test_every_command_has_help(name):
    result = invoke(name, "--help")
    assert result.exit_code == 0
    assert name in result.stdout


def test_json_is_alone_on_stdout_and_accepted_anywhere():
    for words in (("--json", "zoo"), ("zoo", "--json")):
        result = invoke(*words)
        names = [model["name"] for model in json.loads(result.stdout)["models"]]
        assert "fashion-mnist" in names and "paper-cmi-cifar10-vgg16" in names
        assert "Next:" in result.stderr


def test_nothing_is_resumed_by_mistake(tmp_path):
    result = invoke("distill", "fashion-mnist", "--out", tmp_path / "typo", "--resume")
    assert result.exit_code == 2 and "no run to resume" in result.stderr
    assert not (tmp_path / "typo").exists()


def test_a_dry_run_refuses_the_weights_that_the_run_would_refuse(tmp_path):
    (tmp_path / "bad.safetensors").write_text("no weights")
    for name, words in (("bad.safetensors", "not a safetensors"), ("none", "no such weights")):
        weights = ("--weights", tmp_path / name, "--dry-run", "--out", tmp_path / "out")
        result = invoke("distill", "fashion-mnist", *weights)
        assert result.exit_code == 2 and words in result.stderr
    assert invoke("distill", "fashion-mnist", "--dry-run", "--out", tmp_path).exit_code == 0


def test_quiet_says_nothing():
    result = invoke("zoo", "-q")
    assert (result.exit_code, result.output) == (0, "")


def test_no_colours_when_piped(exported):
    assert "\x1b" not in invoke("validate", exported).output


def test_errors_are_json_too(tmp_path):
    result = invoke("--json", "check", tmp_path / "none.nir")
    error = json.loads(result.stdout)["error"]
    assert error["exit_code"] == result.exit_code == 2
    assert "none.nir" in error["message"]


def test_unknown_command_names_the_nearest():
    assert "validate" in fails(2, "vallidate", says=["vallidate"]).stderr


def test_dry_run_plans_and_writes_nothing(tmp_path):
    result = invoke("--json", "distill", "--dry-run", "--out", tmp_path / "run", "--seed", 7)
    plan = json.loads(result.stdout)
    assert plan["seed"] == 7
    assert plan["student_updates"] > 0
    assert plan["recipe"]["run"]["seed"] == 7
    assert not (tmp_path / "run").exists()


# ---- recipes and profiles ----------------------------------------------------------------------


def test_unknown_recipe_key(tmp_path):
    words = ("distill", "--set", "kd.stepz=3", "--out", tmp_path / "run")
    fails(2, *words, says=["kd.stepz", "did you mean 'steps'?"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("--set", "kd.lr=-1"), "Error: --set kd.lr=-1: key 'kd.lr' has value -1"),
        (("--method", "cim"), "Error: --method cim: key 'synthesis.method' has value 'cim'"),
        (("--device", "gpu"), "Error: --device gpu: key 'run.device' has value 'gpu'"),
    ],
)
def test_a_wrong_value_names_the_option_it_came_from(given, says, tmp_path):
    fails(2, "distill", *given, "--out", tmp_path / "run", says=[says])


@pytest.mark.parametrize("command", ["check", "simulate", "validate"])
def test_unknown_profile(command, exported):
    words = (command, exported, "--profile", "loihi3")
    fails(2, *words, says=["loihi3", "loihi"])


def test_check_says_what_its_exit_code_means(exported, tmp_path):
    assert "fits profile loihi2" in invoke("check", exported).stderr
    fails(2, "check", exported, "--profile", "speck2f", says=["cannot run on profile speck2f"])
    chip = tmp_path / "chip.toml"
    text = asset("hardware_profiles", "loihi2.toml").read_text()
    chip.write_text(
        text.replace("neurons_per_core = { value = 8192", "neurons_per_core = { value = 1")
    )
    fails(4, "check", exported, "--profile", chip, says=["does not fit profile"])


def test_simulate_and_validate_say_which_images(exported):
    for command in ("simulate", "validate"):
        said = " ".join(invoke(command, exported).stderr.split())  # a title may take two lines
        assert "16 golden (random) images" in said


# ---- teachers --------------------------------------------------------------------------------


def distil_with(weights, tmp_path):
    return ("distill", "--weights", weights, "--out", tmp_path / "run")


def test_missing_weights(tmp_path):
    words = distil_with(tmp_path / "none.safetensors", tmp_path)
    fails(2, *words, says=["none.safetensors"])


def test_truncated_weights(tmp_path):
    short = tmp_path / "short.safetensors"
    short.write_bytes(TEACHER.read_bytes()[:10000])
    fails(2, *distil_with(short, tmp_path), says=["short.safetensors"])


def test_weights_of_another_architecture(tmp_path):
    tensors = load_file(TEACHER)
    name = "blocks.2.conv.weight"
    shape = tensors[name].shape
    tensors[name] = np.zeros((shape[0], shape[1] + 1, 3, 3), np.float32)
    save_file(tensors, tmp_path / "other.safetensors")
    words = distil_with(tmp_path / "other.safetensors", tmp_path)
    result = fails(2, *words, says=[name])
    for size in shape[0], shape[1], shape[1] + 1:
        assert str(size) in result.stderr


def test_teacher_without_batchnorm(tmp_path):
    tensors = {name: t for name, t in load_file(TEACHER).items() if ".bn." not in name}
    save_file(tensors, tmp_path / "plain.safetensors")
    fails(2, *distil_with(tmp_path / "plain.safetensors", tmp_path), says=["BatchNorm"])


# ---- data --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"images": np.zeros((4, 3, 9, 9), np.uint8), "labels": np.zeros(4, np.int64)}, "9"),
        ({"images": np.zeros((4, 1, 28, 28), np.float32), "labels": np.zeros(4, int)}, "float32"),
        ({"words": np.zeros(4)}, "images"),
    ],
)
def test_data_that_are_not_its_images(exported, tmp_path, arrays, says):
    np.savez(tmp_path / "data.npz", **arrays)
    words = ("simulate", exported, "--data", tmp_path / "data.npz")
    fails(2, *words, says=["data.npz", says])


def test_unknown_data(exported):
    fails(2, "simulate", exported, "--data", "fashion-mnits", says=["fashion-mnits"])


# ---- graphs --------------------------------------------------------------------------------


def external_link(path):
    with h5py.File(path, "r+") as file:
        del file["node"]
        file["node"] = h5py.ExternalLink("/etc/passwd", "/")


def huge_shape(path):
    with h5py.File(path, "r+") as file:
        group = file["node/nodes/lif1"]
        del group["tau"]
        group.create_dataset("tau", shape=(1 << 34,), dtype="f8", chunks=(1 << 20,), fillvalue=1.0)


def cyclic_link(path):
    with h5py.File(path, "r+") as file:
        file["node/nodes/again"] = h5py.SoftLink("/node")


def truncated(path):
    path.write_bytes(path.read_bytes()[:2000])


def unsupported_node(path):
    with h5py.File(path, "r+") as file:
        group = file["node/nodes/lif1"]
        del group["type"]
        group["type"] = "CubaLIF"


@pytest.mark.parametrize(
    "harm", [external_link, huge_shape, cyclic_link, truncated, unsupported_node]
)
@pytest.mark.parametrize("command", ["simulate", "export"])
def test_harmful_graphs(harm, command, graph_file, tmp_path):
    path = tmp_path / "bad.nir"
    path.write_bytes(graph_file.read_bytes())
    harm(path)
    words = (command, path)
    if command == "export":
        words += ("--target", "onnx", "--out", tmp_path / "bundle")
    fails(2, *words, says=["bad.nir"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.nir"]


# ---- bundles --------------------------------------------------------------------------------


def test_changed_byte(bundle):
    file = bundle / "loihi" / "network.npz"
    content = bytearray(file.read_bytes())
    content[-40] ^= 1
    file.write_bytes(content)
    fails(2, "validate", bundle, says=["network.npz"])


def test_changed_weight_after_sealing_fails_parity(bundle):
    file = bundle / "loihi" / "network.npz"
    with np.load(file) as archive:
        arrays = dict(archive)
    weights = arrays["w.conv1"]
    index = np.unravel_index(np.abs(weights).argmax(), weights.shape)
    weights[index] += -8 if weights[index] > 0 else 8
    np.savez_compressed(file, **arrays)
    seal(bundle)
    result = invoke("--json", "validate", bundle)
    assert result.exit_code == 3, result.output
    document = json.loads(result.stdout)
    assert document["verdict"] == "fail"
    assert any("conv1" in str(f) or "lif1" in str(f) for f in document["findings"])
    # written although it failed
    assert json.loads((bundle / "validation.json").read_text())["verdict"] == "fail"


def test_lava_environment_absent(exported, tmp_path, monkeypatch):
    monkeypatch.setenv("STARS_DEPLOY_CACHE", str(tmp_path / "empty"))
    fails(5, "validate", exported, "--engine", "lava", says=["doctor --fix"])


# ---- outputs --------------------------------------------------------------------------------


def test_output_that_cannot_be_written(graph_file, tmp_path):
    (tmp_path / "file").write_text("mine")
    out = tmp_path / "file" / "bundle"
    fails(2, "export", graph_file, "--target", "onnx", "--out", out, says=["file"])
    assert (tmp_path / "file").read_text() == "mine"


def test_output_never_replaces_what_is_not_a_bundle(graph_file, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    fails(2, "export", graph_file, "--target", "onnx", "--out", tmp_path, says=[str(tmp_path)])
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_full_disk_leaves_the_earlier_bundle(graph_file, bundle):
    before = {p: p.read_bytes() for p in sorted(bundle.rglob("*")) if p.is_file()}
    words = ["export", str(graph_file), "--target", "onnx", "--out", str(bundle)]
    run = subprocess.run(
        [sys.executable, "-m", "stars_deploy", *words],
        capture_output=True,
        text=True,
        # every file larger than 20 kB fails, as on a disk that fills up
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert run.returncode == 2, run.stderr
    assert "Traceback" not in run.stderr
    assert {p: p.read_bytes() for p in sorted(bundle.rglob("*")) if p.is_file()} == before
    assert [p.name for p in bundle.parent.iterdir()] == ["bundle"]


@pytest.mark.parametrize(("how", "code"), [("| true", 0), ("> /dev/full", 2), (">&-", 2)])
@pytest.mark.parametrize(
    "words", ["--json profiles", "schema zoo", "--json check none", "--json distil", "check -h"]
)
def test_output_that_nobody_takes(words, how, code):
    program = f"{shlex.quote(sys.executable)} -m stars_deploy {words}"
    fails = words in ("--json check none", "--json distil")
    script = f"set -o pipefail; {{ sleep 0.2; {program}; }} {how}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == (2 if fails else code), done.stderr
    assert "Traceback" not in done.stderr and "defect" not in done.stderr
    assert ("stdout: " in done.stderr) == (code == 2)
