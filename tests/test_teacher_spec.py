"""--teacher: code by file or package, and torchvision by name."""

import sys

import pytest
import torch
from torch import nn

from stars_deploy.errors import InputError
from stars_deploy.networks.teacher_spec import (
    build_module,
    class_count,
    short_name,
    torchvision_data,
)

CODE = """
import neighbour
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(neighbour.WIDTH, 2))

class Zoo:
    small = staticmethod(Net)

def broken():
    return 1 / 0

def number():
    return 3

def needs(width):
    return Net()

ready = Net()
constant = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "my_net.py").write_text(CODE)
    (tmp_path / "neighbour.py").write_text("WIDTH = 7\n")
    return tmp_path


@pytest.mark.parametrize("name", ["Net", "Zoo.small", "ready"])
def test_a_file_or_a_package_gives_the_network(name, folder, monkeypatch):
    before = list(sys.path)
    assert build_module(f"{folder / 'my_net.py'}:{name}")[0].in_features == 7
    monkeypatch.chdir(folder)
    assert build_module(f"my_net:{name}")[0].in_features == 7
    assert sys.path == before


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("my_net.py", "expected package.module:function, file.py:function"),
        ("my_net.py:", "expected package"),
        ("other.py:Net", "other.py: no such file"),
        ("my_net.py:Nett", "has no 'Nett'; did you mean 'Net'"),
        ("my_net.py:Zoo.large", "has no 'large'"),
        ("my_net.py:broken", r"ZeroDivisionError: division by zero \(line \d+ of my_net.py\)"),
        ("my_net.py:needs", "TypeError: needs.* without arguments"),
        ("my_net.py:number", "gives a int, expected a torch.nn.Module"),
        ("my_net.py:constant", "is a int, expected a function"),
        ("no_such_package_at_all:f", "ModuleNotFoundError"),
        ("torchvision:resnet81", r"torchvision:resnet81 is unknown; did you mean 'resnet1?8?"),
    ],
)
def test_what_is_wrong_is_said(spec, says, folder, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match=says):
        build_module(spec)


def test_code_that_cannot_be_read_is_named_with_its_line(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "my_net.py").write_text("x = (\n")
    with pytest.raises(InputError, match="SyntaxError"):
        build_module("my_net.py:Net")


def test_torchvision_models_have_the_classes_of_the_weights():
    module = build_module("torchvision:squeezenet1_1", 7)
    assert module(torch.zeros(1, 3, 64, 64)).shape == (1, 7)
    assert class_count({"a": torch.zeros(3, 3, 1, 1), "fc": torch.zeros(7, 5)}) == 7
    assert class_count({"a": torch.zeros(9, 3, 1, 1), "b": torch.zeros(9)}) == 9
    assert class_count({"a": torch.zeros(3)}) is None


def test_torchvision_says_what_its_weights_were_made_for():
    data = torchvision_data("resnet18")
    assert data["shape"] == [3, 224, 224]
    assert data["mean"] == [0.485, 0.456, 0.406] and data["std"] == [0.229, 0.224, 0.225]
    assert len(data["classes"]) == 1000 and data["classes"][0] == "tench"


def test_names_of_folders_are_not_kept():
    assert short_name("/home/somebody/net.py:f") == "net.py:f"
    assert short_name("package.module:f") == "package.module:f"
    assert isinstance(build_module("torch.nn:Identity"), nn.Identity)


def test_neighbours_of_one_name_are_those_of_the_folder(tmp_path):
    for width in (3, 4):
        own = tmp_path / str(width)
        own.mkdir()
        (own / "my_net.py").write_text(CODE)
        (own / "neighbour.py").write_text(f"WIDTH = {width}\n")
        assert build_module(f"{own / 'my_net.py'}:Net")[0].in_features == width
