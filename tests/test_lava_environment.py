"""Finding Python 3.10 and building the Lava environment, with fake interpreters and a fake uv."""

import json
import threading
from pathlib import Path

import pytest
import uv

from stars_deploy.errors import EngineError
from stars_deploy.simulation.lava import environment as lava_environment
from stars_deploy.simulation.lava.environment import (
    build_environment,
    cache_dir,
    environment_dir,
    environment_status,
    find_python310,
    other_environments,
    require_environment,
)

GOOD = "#!/bin/sh\necho 3 10\n"
OTHER = "#!/bin/sh\necho 3 11\n"
BROKEN = "#!/bin/sh\necho 'version 3.10 is not set' >&2\nexit 127\n"  # as a pyenv shim says


def program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def places(tmp_path, monkeypatch):
    """One good Python 3.10 in every place; tests remove them in order."""
    for folder in ("path1", "path2"):
        program(tmp_path / folder / "python3.10", GOOD)
    for version in ("3.9.18", "3.10.9", "3.10.13", "3.10-dev"):
        program(tmp_path / "pyenv" / "versions" / version / "bin" / "python3.10", GOOD)
    installed = program(tmp_path / "uv-python" / "python3.10", GOOD)
    fake = program(tmp_path / "uv", f'#!/bin/sh\n[ "$2" = find ] && echo {installed}\nexit 0\n')
    monkeypatch.setattr(uv, "find_uv_bin", lambda: str(fake))
    env = {
        "STARS_DEPLOY_PYTHON310": str(program(tmp_path / "mine", GOOD)),
        "PATH": f"{tmp_path / 'path1'}:{tmp_path / 'path2'}",
        "PYENV_ROOT": str(tmp_path / "pyenv"),
    }
    return tmp_path, env


def test_python310_is_looked_for_in_order(places):
    root, env = places
    assert find_python310(env) == root / "mine"
    del env["STARS_DEPLOY_PYTHON310"]
    assert find_python310(env) == root / "path1" / "python3.10"
    program(root / "path1" / "python3.10", BROKEN)
    assert find_python310(env) == root / "path2" / "python3.10"
    program(root / "path2" / "python3.10", OTHER)
    versions = root / "pyenv" / "versions"
    assert find_python310(env) == versions / "3.10.13" / "bin" / "python3.10"
    (versions / "3.10.13" / "bin" / "python3.10").unlink()
    assert find_python310(env) == versions / "3.10.9" / "bin" / "python3.10"
    (versions / "3.10.9" / "bin" / "python3.10").unlink()
    assert find_python310(env) == root / "uv-python" / "python3.10"


@pytest.mark.parametrize("text", [OTHER, BROKEN])
def test_a_wrong_setting_is_not_passed_over(places, text):
    root, env = places
    program(root / "mine", text)
    with pytest.raises(EngineError, match=r"STARS_DEPLOY_PYTHON310=.*mine: expected a Python 3.10"):
        find_python310(env)


def test_no_python310_anywhere(places, monkeypatch):
    root, _ = places
    fake = program(root / "uv", "#!/bin/sh\necho 'no network' >&2\nexit 2\n")
    monkeypatch.setattr(uv, "find_uv_bin", lambda: str(fake))
    with pytest.raises(EngineError, match=r"install Python 3\.10") as caught:
        find_python310({"PATH": "", "PYENV_ROOT": str(root / "nothing")})
    assert "STARS_DEPLOY_PYTHON310" in str(caught.value) and "no network" in str(caught.value)


def test_cache_folder(tmp_path):
    assert cache_dir({"STARS_DEPLOY_CACHE": str(tmp_path)}) == tmp_path
    assert cache_dir({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path / "stars-deploy"
    assert cache_dir({}) == Path.home() / ".cache" / "stars-deploy"


PYTHON = """#!/bin/sh
[ -f "{root}/cannot_import" ] && {{ echo "ModuleNotFoundError: lava" >&2; exit 1; }}
echo 'noise of an import'
echo 'versions {{"lava-nc": "0.10.0", "python": "3.10.0"}}'
"""
# Writes down what it is asked for; `venv` makes a folder with a Python, `pip` takes its time.
UV = """#!/bin/sh
echo "$1" >> "{root}/calls"
for last; do :; done
if [ "$1" = venv ]; then mkdir -p "$last/bin" && cp "{root}/python" "$last/bin/python"; fi
if [ "$1" = pip ]; then
  sleep 0.2
  [ -f "{root}/no_network" ] && {{ echo "error: no network" >&2; exit 2; }}
fi
exit 0
"""


@pytest.fixture
def fake_uv(tmp_path, monkeypatch):
    program(tmp_path / "python", PYTHON.format(root=tmp_path))
    fake = program(tmp_path / "bin" / "uv", UV.format(root=tmp_path))
    monkeypatch.setattr(uv, "find_uv_bin", lambda: str(fake))
    monkeypatch.setattr(lava_environment, "find_python310", lambda: tmp_path / "base")
    monkeypatch.setenv("STARS_DEPLOY_CACHE", str(tmp_path / "cache"))
    return tmp_path


def calls(root):
    path = root / "calls"
    return path.read_text().split() if path.exists() else []


def test_build_once_and_use(fake_uv):
    assert environment_status().reason == "not built"
    seen = []
    status = build_environment(lambda text, done, total: seen.append((text, done)))
    assert status.ready and status.versions == {"lava-nc": "0.10.0", "python": "3.10.0"}
    assert [text for text, done in seen if done] == [
        "finding Python 3.10",
        "creating the Lava environment",
        "installing Lava",
        "importing Lava",
    ]
    assert require_environment().python == environment_dir() / "bin" / "python"
    build_environment()
    assert calls(fake_uv) == ["venv", "pip"]


def test_a_failed_build_is_no_environment_and_leaves_nothing_to_the_next(fake_uv):
    (fake_uv / "no_network").touch()
    with pytest.raises(EngineError, match="uv pip install failed:\nerror: no network"):
        build_environment()
    assert environment_status().reason == "half built"
    with pytest.raises(EngineError, match="half built: build it with `stars-deploy doctor --fix`"):
        require_environment()
    (fake_uv / "no_network").unlink()
    (environment_dir() / "half").touch()
    assert build_environment().ready
    assert not (environment_dir() / "half").exists()


def test_an_environment_that_cannot_import_lava_is_not_ready(fake_uv):
    (fake_uv / "cannot_import").touch()
    with pytest.raises(EngineError, match="cannot import Lava:\nModuleNotFoundError: lava"):
        build_environment()
    assert not environment_status().ready


def test_two_builds_at_once_build_once(fake_uv):
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(build_environment().ready)) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 3
    assert calls(fake_uv) == ["venv", "pip"]


def test_other_requirements_are_another_environment(fake_uv, monkeypatch):
    before = environment_dir()
    other = fake_uv / "requirements.txt"
    other.write_text("lava-dl==0.6.0\n")
    monkeypatch.setattr(lava_environment, "requirements", lambda: other)
    assert environment_dir() != before
    assert environment_dir().parent == before.parent == fake_uv / "cache"
    assert other_environments() == []
    before.mkdir(parents=True)
    environment_dir().mkdir()
    before.with_suffix(".lock").touch()
    assert other_environments() == [before]


def test_an_environment_whose_python_was_removed(fake_uv):
    build_environment()
    (environment_dir() / "bin" / "python").unlink()
    with pytest.raises(EngineError, match=r"its Python 3\.10 was removed"):
        require_environment()
    assert build_environment().ready


def test_a_missing_environment_ends_in_exit_code_5(fake_uv):
    with pytest.raises(EngineError, match=r"not built: build it with .*make lava") as caught:
        require_environment()
    assert caught.value.exit_code == 5


def test_a_broken_marker_is_not_trusted(fake_uv):
    build_environment()
    (environment_dir() / "ready.json").write_text(json.dumps({})[:-1])
    assert not environment_status().ready
