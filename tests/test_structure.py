"""The shape of the package: imports point down, torch stays in its place, the wheel is clean."""

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import stars_deploy

PACKAGE = Path(stars_deploy.__file__).parent
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "_assets" not in path.parts)

# A module may import its own layer, and the layers that its own layer names.
BASE = {"errors", "files", "assets", "console", "locks", "config", ""}
ALLOWED = {
    "errors": set(),
    "files": {"errors"},
    "assets": set(),
    "console": {"errors"},
    "locks": {"errors", "console", "files"},
    "config": BASE,
    "graph": BASE,
    "networks": BASE | {"graph"},
    "data": BASE | {"image_files"},
    "image_files": BASE,
    "distillation": BASE | {"graph", "networks"},
    "targets": BASE | {"graph"},
    "simulation": BASE | {"graph"},
    "validation": BASE | {"graph", "targets", "simulation"},
    "workflow": BASE
    | {"graph", "networks", "data", "distillation", "targets", "simulation", "validation"}
    | {"results"},
    "results": BASE,
    "api": BASE | {"workflow", "results"},
    "cli": BASE | {"api", "workflow"},
    "": {"api"},
    "__main__": {"cli"},
}
TORCH_FREE = ("config", "results", "api", "graph", "targets", "simulation", "validation")


def layer(dotted: str) -> str:
    parts = dotted.split(".")
    return parts[1] if len(parts) > 1 else ""


def dotted_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] == "stars_deploy"}


@pytest.mark.parametrize("path", MODULES, ids=dotted_name)
def test_imports_point_down(path):
    own = layer(dotted_name(path))
    used = {layer(name) for name in imported(path)} - {own}
    # `from stars_deploy import __version__` and `from stars_deploy import console`
    used = {"" if name.startswith("__") else name for name in used}
    assert used <= ALLOWED[own], f"{dotted_name(path)} imports {used - ALLOWED[own]}"


def test_lower_layers_import_without_torch():
    names = [dotted_name(path) for path in MODULES if layer(dotted_name(path)) in TORCH_FREE]
    assert len(names) > 10
    code = (
        "import sys\n"
        "for blocked in ('torch', 'torchvision', 'norse'): sys.modules[blocked] = None\n"
        f"for name in {names!r}: __import__(name)\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_help_imports_neither_torch_nor_numpy():
    code = (
        "import sys\n"
        "sys.argv = ['stars-deploy', '--help']\n"
        "from stars_deploy.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'onnx', 'nir', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, check=True, cwd=PACKAGE.parent, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_installs_one_top_level_name(wheel):
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert tops == {"stars_deploy", f"stars_deploy-{stars_deploy.__version__}.dist-info"}


def test_wheel_finds_its_assets(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        "import stars_deploy.assets as a\n"
        "print(a.__file__)\n"
        "for kind, name in (('models', 'fashion-mnist/recipe.toml'), ('export', 'run_lava.py'),\n"
        "                   ('hardware_profiles', 'loihi2.toml')):\n"
        "    assert '_assets' in str(a.asset(kind, name)) and a.asset(kind, name).is_file(), name\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(str(tmp_path))
