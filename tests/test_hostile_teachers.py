"""Clumsy and hostile teachers: their code, their weights, their cards; a message, no traceback."""

import json
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from stars_deploy.cli.app import app
from stars_deploy.errors import InputError, WeightsError
from stars_deploy.networks.state_dicts import load_into, read_state_dict
from stars_deploy.networks.teacher_spec import build_module

IMAGES = ["--image-shape", "2,8,8", "--mean", "0.5", "--std", "0.29"]
NET = """
import torch
from torch import nn

def net():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3)
    )
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    torch.manual_seed(0)
    torch.save(build_module("net.py:net").state_dict(), "net.pt")
    yield tmp_path
    sys.modules.pop("neighbour", None)


def imported(spec="net.py:net", weights="net.pt", *words, images=IMAGES, code=0):
    """Run `teacher import`; no exit code but those of a person's mistake."""
    words = ["--json", "teacher", "import", spec, "--weights", weights, *images, *words]
    result = CliRunner().invoke(app, [str(word) for word in [*words, "--out", "out"]])
    assert result.exit_code == code, (result.output, result.exception)
    answer = json.loads(result.stdout)  # one object, whatever the person's code prints
    return answer["error"]["message"] if code else answer


SCRIPTED = """
import torch, warnings
def net():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(torch.nn.ReLU())
"""


# ---- code ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import sys\nsys.exit(3)", r"SystemExit: 3 \(line 2 of code.py\)"),
        ("def net():\n    raise SystemExit('bye')", "SystemExit: bye"),
        ("def net():\n    import torch\n    return torch.zeros(1, device='cuda')", "Error"),
        ("def net():\n    return net()", "RecursionError"),
        (SCRIPTED, "TorchScript program"),
        ("def __getattr__(name):\n    raise RuntimeError('no ' + name)", "RuntimeError: no net"),
        ("net = 3", "is a int, expected a function"),
        ("def net():\n    return [1]", "gives a list"),
        ("raise BaseException('odd')", "BaseException: odd"),
    ],
)  # fmt: skip
def test_code_that_fails_is_a_message(code, says, folder):
    import re

    Path("code.py").write_text(code)
    assert re.search(says, imported("code.py:net", code=2))
    assert not Path("out").exists()


def test_ctrl_c_in_the_persons_code_is_an_interruption(folder):
    Path("code.py").write_text("raise KeyboardInterrupt")
    assert "interrupted" in imported("code.py:net", code=130)


@pytest.mark.parametrize(
    "spec", ["net.py:net.a.b", "net.py:net..", "..:net", "a/b:net", "C:\\net.py:net", "net.py:ne t",
             "net.py :net", "\x1b[1m.py:net", ":", "net.py::net", "torch:net", "net.py:__doc__.x"]
)  # fmt: skip
def test_odd_specs_are_named(spec, folder):
    assert "--teacher" in imported(spec, code=2)


CLUMSY = {
    "prints": NET + "\nprint('hello')\n",
    "prints in forward": NET.replace("def net():\n    return nn.Sequential(", """
class Loud(nn.Sequential):
    def forward(self, x):
        print("shape", x.shape)
        return super().forward(x)

def net():
    print("building")
    return Loud("""),
    "imports late": NET.replace("def net():", "def net():\n    import neighbour"),
    "dataclass": "from __future__ import annotations\nfrom dataclasses import dataclass\n"
    "@dataclass\nclass Config:\n    width: int = 3\n" + NET,
    "spoils sys.path": NET + "\nimport sys\nsys.path.clear()\n",
    "compiled": NET + "\nbare = net\ndef net():\n    return torch.compile(bare())\n",
    "parallel": NET + "\nbare = net\ndef net():\n    return nn.DataParallel(bare())\n",
    "half": NET + "\nbare = net\ndef net():\n    return bare().half()\n",
    "double": NET + "\nbare = net\ndef net():\n    return bare().double()\n",
    "unsaved buffer": NET
    + "\nbare = net\ndef net():\n    m = bare()\n"
    + "    m.register_buffer('x', torch.ones(1), persistent=False)\n    return m\n",
    "lazy": NET.replace("nn.Linear(256, 3)", "nn.LazyLinear(3)"),
}  # fmt: skip


@pytest.mark.parametrize("case", CLUMSY)
def test_clumsy_code_gives_the_same_network(case, folder):
    Path("neighbour.py").write_text("")
    imported()
    expected = Path("out/teacher.safetensors").read_bytes()
    for path in Path("out").iterdir():
        path.unlink()
    Path("code.py").write_text(CLUMSY[case])
    imported("code.py:net")
    assert Path("out/teacher.safetensors").read_bytes() == expected


def test_what_the_code_sets_is_set_back(folder):
    Path("code.py").write_text(
        NET + "\nimport os\nos.chdir('/')\ntorch.set_default_dtype(torch.float64)\n"
        "torch.set_grad_enabled(False)\ntorch.set_default_device('meta')\ntorch.set_num_threads(3)\n"
    )
    threads = torch.get_num_threads()
    with pytest.raises(InputError):
        build_module("code.py:nett")
    assert torch.get_default_dtype() == torch.float32 and torch.is_grad_enabled()
    assert torch.zeros(1).device.type == "cpu" and torch.get_num_threads() == threads
    assert Path.cwd() == folder


@pytest.mark.parametrize("name", ["torch.py", "json.py", "test.py", "stars_deploy.py", "a b-c.py"])
def test_files_with_names_of_other_modules(name, folder):
    before = {key: module for key, module in sys.modules.items() if key == name[:-3]}
    Path(name).write_text(NET)
    imported(f"{name}:net")
    assert {key: module for key, module in sys.modules.items() if key == name[:-3]} == before


# ---- images ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (["--image-shape", "2,8,8", "--mean", "0.5,0.4,0.3", "--std", "1"], "mean has 3"),
        (["--image-shape", "4096,4096,4096", "--mean", "0", "--std", "1"], "values at most|more"),
        (["--image-shape", "2,8,8", "--mean", "nan", "--std", "1"], "--mean"),
        ([*IMAGES, "--classes", "a"], "1 names for the 3 logits"),
    ],
)
def test_images_that_cannot_be(images, says, folder):
    import re

    assert re.search(says, imported(images=images, code=2))


@pytest.mark.parametrize(
    "card",
    [
        "classes = 5", "classes = 'abc'", "classes = [1, 2, 3]", "shape = 'x'",
        "shape = [true, 8, 8]",
        "shape = [2, 8, 8.0]", "mean = 'x'", "mean = {a = 1}", "mean = [[1]]", "std = [0.0, 0.0]",
        "std = [1979-05-27, 1979-05-27]", "flip = 3",
        "crop_padding = -1", "name = []", "shape = []",
        "data = 5", "data = [1]", "mean = []",
    ],
)  # fmt: skip
def test_cards_of_nonsense(card, folder):
    shape = "" if card.startswith(("shape", "data")) else "shape = [2, 8, 8]\n"
    Path("card.toml").write_text(shape + card)
    known = ["--mean", "0.5", "--std", "1"]
    known = [] if card.startswith(("mean", "std")) else known
    imported("net.py:net", "net.pt", "--card", "card.toml", images=known, code=2)
    assert not Path("out").exists()


def test_names_of_classes_of_any_kind(folder):
    names = ["日本\n", "\x1b[31mred", '"]\\']
    imported("net.py:net", "net.pt", "--classes", json.dumps(names))
    import tomllib

    recipe = tomllib.loads(Path("out/recipe.toml").read_text())
    assert recipe["data"]["classes"] == names


# ---- weights ---------------------------------------------------------------------------------


def bare():
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Linear(3, 2))


def state(**changes):
    return bare().state_dict() | changes


WEIGHT = torch.zeros(3, 2, 3, 3)
ODD = {
    "sparse": (state(**{"0.weight": WEIGHT.to_sparse()}), "0.weight is float32, torch.sparse_coo"),
    "complex": (state(**{"0.weight": WEIGHT.to(torch.complex64)}), "0.weight is complex64"),
    "meta": (state(**{"0.weight": WEIGHT.to("meta")}), "0.weight .* on meta"),
    "integers": (state(**{"0.weight": WEIGHT.to(torch.int8)}), "0.weight is int8, the teacher has"),
    "empty": (state(**{"0.weight": torch.zeros(0)}), r"shape \[0\]"),
    "one value everywhere": (
        state(**{"0.weight": torch.zeros(1).expand(1 << 20, 1 << 20)}), "claim .* bytes, in a file"
    ),
    "averaged": ({"n_averaged": torch.tensor(3), **{f"module.{k}": v for k, v in state().items()}},
                 "unexpected n_averaged"),
    "average alone": ({"model_ema": state()}, "'model_ema' beside or instead"),
    "two of one name": ({**state(), **{f"module.{k}": v for k, v in state().items()}},
                        r"unexpected module\.0"),
    "control characters": (state(**{"\x1b[31m\n": WEIGHT}), "unexpected"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Validating sparse")
@pytest.mark.parametrize("case", ODD)
def test_odd_weights_are_named(case, tmp_path):
    path = tmp_path / "weights.pt"
    content, says = ODD[case]
    torch.save(content, path)
    with pytest.raises(WeightsError, match=says):
        load_into(bare(), read_state_dict(path), path)


def test_shared_storages_and_links_are_read(tmp_path):
    shared = torch.randn(3, 2, 3, 3)
    torch.save(state(**{"0.weight": shared, "0.bias": shared.view(-1)[:3]}), tmp_path / "a.pt")
    (tmp_path / "link.pt").symlink_to("a.pt")
    assert torch.equal(read_state_dict(tmp_path / "link.pt")["0.bias"], shared.view(-1)[:3])


def test_a_folder_is_no_file_of_weights(tmp_path):
    with pytest.raises(WeightsError, match="is a folder"):
        read_state_dict(tmp_path)


def test_an_archive_that_unpacks_to_more_is_refused(tmp_path):
    torch.save(state(**{"0.weight": torch.zeros(1 << 22)}), tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for entry in plain.namelist():
            bomb.writestr(entry, plain.read(entry))
    assert (tmp_path / "bomb.pt").stat().st_size < 1 << 17
    with pytest.raises(WeightsError, match="compressed entries"):
        read_state_dict(tmp_path / "bomb.pt")


def test_an_archive_with_a_damaged_directory_is_refused(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(state(), path)
    content = bytearray(path.read_bytes())
    place = content.rindex(b"PK\x01\x02")
    content[place : place + 4] = b"PK\x09\x09"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="truncated"):
        read_state_dict(path)
