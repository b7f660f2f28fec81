"""No file of anybody is unpickled: one whose unpickling would create a folder is refused."""

from __future__ import annotations

import ast
import pickle
import zipfile
from pathlib import Path

import fuzz_mutations
import numpy as np
import pytest
import torch
from fuzz_readers import images, run
from test_structure import MODULES, PACKAGE

from stars_deploy.assets import asset
from stars_deploy.config.recipe import load_recipe
from stars_deploy.data import load_data
from stars_deploy.distillation import checkpoint
from stars_deploy.errors import DataError, InputError, WeightsError
from stars_deploy.files import read_npz
from stars_deploy.networks.weights import load_teacher
from stars_deploy.simulation.trace import read_trace
from stars_deploy.targets.bundle import read_golden

KITS = [asset("export", "run_lava.py"), asset("export", "run_onnx.py")]


@pytest.fixture
def marker(tmp_path):
    return fuzz_mutations.Marker(tmp_path / "unpickled")


def unpickled(tmp_path: Path) -> bool:
    return (tmp_path / "unpickled").exists()


def test_the_marker_works(marker, tmp_path):
    pickle.loads(pickle.dumps(marker))
    assert unpickled(tmp_path)


@pytest.mark.parametrize("read", [read_npz, read_golden, read_trace])
@pytest.mark.parametrize("form", ["object", "npy-is-pickle", "member"])
def test_arrays_are_not_unpickled(read, form, marker, tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("images", "info", "labels"):
            with archive.open(f"{name}{'' if form == 'member' else '.npy'}", "w") as stream:
                if form == "object":
                    np.lib.format.write_array(stream, np.array([marker]), allow_pickle=True)
                else:
                    stream.write(pickle.dumps(marker))
    with pytest.raises(InputError):
        read(path)
    assert not unpickled(tmp_path)


def test_images_are_not_unpickled(marker, tmp_path):
    data = load_recipe("fashion-mnist").data
    np.savez(tmp_path / "a.npz", images=np.array([marker]), labels=np.arange(1))
    with pytest.raises(DataError):
        load_data(tmp_path / "a.npz", data)
    assert not unpickled(tmp_path) and images().is_dir()


@pytest.mark.parametrize("form", ["torch", "raw", "legacy"])
def test_a_checkpoint_is_not_unpickled(form, marker, tmp_path):
    state = {**torch.load(run() / checkpoint.FILE, weights_only=True), "extra": marker}
    path = tmp_path / checkpoint.FILE
    path.parent.mkdir()
    if form == "raw":
        path.write_bytes(pickle.dumps(state["extra"]))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "torch")
    with pytest.raises(InputError, match="damaged checkpoint"):
        checkpoint.load(tmp_path)
    assert not unpickled(tmp_path)


def test_weights_are_not_unpickled(marker, tmp_path):
    recipe = load_recipe("fashion-mnist")
    path = tmp_path / "teacher.safetensors"
    for content in (pickle.dumps(marker), None):
        if content is None:
            torch.save({"w": marker}, path)
        else:
            path.write_bytes(content)
        with pytest.raises(WeightsError):
            load_teacher(recipe, path)
        assert not unpickled(tmp_path)


def calls(path: Path) -> list[ast.Call]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def named(call: ast.Call) -> str:
    return ast.unparse(call.func)


def keyword(call: ast.Call, name: str) -> object:
    found = [item.value for item in call.keywords if item.arg == name]
    return found[0].value if found and isinstance(found[0], ast.Constant) else None


@pytest.mark.parametrize("path", [*MODULES, *KITS], ids=lambda path: path.name)
def test_every_call_that_could_unpickle_says_that_it_does_not(path):
    for call in calls(path):
        name = named(call)
        if name == "torch.load":
            assert keyword(call, "weights_only") is True, ast.unparse(call)
        assert name.partition(".")[0] not in ("pickle", "dill", "joblib", "marshal", "shelve")
        assert name not in ("eval", "exec"), ast.unparse(call)
        if name == "np.load" and path.is_relative_to(PACKAGE):
            assert keyword(call, "allow_pickle") is False, ast.unparse(call)
        assert keyword(call, "allow_pickle") is not True, ast.unparse(call)
