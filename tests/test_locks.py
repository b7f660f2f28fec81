"""Two commands never write into one folder: the second is told who holds it, and ends with 2."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import bundles
import pytest
from tiny_distillation import tiny_model
from typer.testing import CliRunner

from stars_deploy import locks
from stars_deploy.cli.app import app
from stars_deploy.errors import InputError
from stars_deploy.locks import claimed

HOLDER = """
import sys
from pathlib import Path
from stars_deploy.locks import claimed
with claimed(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
# Enters and leaves the lock; inside, nobody else may be.
CONTENDER = """
import os, sys, time
from pathlib import Path
from stars_deploy.errors import InputError
from stars_deploy.locks import claimed
folder, inside, entered = Path(sys.argv[1]), Path(sys.argv[2]), 0
end = time.monotonic() + 3
while time.monotonic() < end:
    try:
        with claimed(folder):
            os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
            time.sleep(0.0003)
            entered += 1
            inside.unlink()
    except InputError:
        pass
print(entered)
"""
DISTILL = ("distill", "fashion-mnist", "--set", "run.device=cpu")
FINETUNE = ("finetune", "absent", "--profile", "loihi2")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def hold():
    """Start a process that holds the lock of a folder until the test ends."""
    started = []

    def start(folder):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.communicate()


@pytest.mark.parametrize(
    "words",
    [
        (*DISTILL, "--out"),
        (*DISTILL, "--resume", "--out"),
        ("compare", "fashion-mnist", "--out"),
        ("sweep", "net.nir", "--out"),
        ("export", "net.nir", "--target", "nir", "--out"),
        (*FINETUNE, "--out"),
        ("validate",),
        ("demo", "--out"),
        ("teacher", "train", "fashion-mnist", "--data", "absent", "--out"),
    ],
    ids=lambda words: "-".join(word for word in words if word.isalpha()),
)
def test_a_second_command_is_told_who_writes_there(words, hold, tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "recipe.toml").write_text("of the first command")
    holder = hold(folder)
    result = CliRunner().invoke(app, [*words, str(folder)])
    assert result.exit_code == 2, result.output
    assert f"{folder}: is being written by process {holder.pid} on" in result.stderr
    assert f"kill {holder.pid}" in result.stderr and "give another folder" in result.stderr
    assert names(folder) == ["recipe.toml"] and names(tmp_path) == [".results.lock", "results"]


def test_every_way_to_a_folder_is_the_same_folder(hold, tmp_path, monkeypatch):
    (tmp_path / "results").mkdir()
    (tmp_path / "link").symlink_to("results")
    monkeypatch.chdir(tmp_path)
    hold(tmp_path / "link")
    for way in ("results", "./link", "results/../link/", str(tmp_path / "results")):
        with pytest.raises(InputError, match="is being written"), claimed(Path(way)):
            pass
    with claimed(tmp_path / "another"):
        pass


def test_a_killed_process_holds_nothing(hold, tmp_path):
    holder = hold(tmp_path / "run")
    holder.kill()
    holder.wait()
    assert names(tmp_path) == [".run.lock"]
    with claimed(tmp_path / "run"):
        assert json.loads((tmp_path / ".run.lock").read_text())["pid"] == os.getpid()
    assert names(tmp_path) == []


def test_a_note_that_is_no_note_changes_nothing(hold, tmp_path):
    hold(tmp_path / "run")
    for junk in (b"", b"\xff", b"[]", b'{"pid": "x"}', b"[" * 4000):
        (tmp_path / ".run.lock").write_bytes(junk)
        with (
            pytest.raises(InputError, match="written by another command"),
            claimed(tmp_path / "run"),
        ):
            pass


def test_a_lock_file_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "foreign").write_text("mine")
    (tmp_path / ".run.lock").symlink_to("foreign")
    with pytest.raises(OSError), claimed(tmp_path / "run"):
        pass
    assert (tmp_path / "foreign").read_text() == "mine"


def test_a_command_that_fails_leaves_no_folders(tmp_path):
    with pytest.raises(ValueError), claimed(tmp_path / "a" / "b" / "run"):
        raise ValueError
    assert names(tmp_path) == []
    with claimed(tmp_path / "a" / "b" / "run"):
        (tmp_path / "a" / "b" / "run").mkdir()
    assert names(tmp_path / "a" / "b") == ["run"]


def test_where_nothing_can_be_written_beside_the_folder_itself_is_locked(tmp_path, monkeypatch):
    (tmp_path / "mounted").mkdir()
    real = os.open

    def read_only(path, flags, *mode):
        if flags & os.O_CREAT:
            raise PermissionError(13, "denied", str(path))
        return real(path, flags, *mode)

    monkeypatch.setattr(locks.os, "open", read_only)
    with claimed(tmp_path / "mounted"):
        with pytest.raises(InputError, match="is being written"), claimed(tmp_path / "mounted"):
            pass
        assert names(tmp_path) == ["mounted"]
    with claimed(tmp_path / "mounted"):
        pass


def test_nobody_enters_while_the_lock_file_is_removed_and_made_again(tmp_path):
    words = [sys.executable, "-c", CONTENDER, str(tmp_path / "run"), str(tmp_path / "inside")]
    contenders = [
        subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    said = [contender.communicate() for contender in contenders]
    for contender, (out, error) in zip(contenders, said, strict=True):
        assert contender.returncode == 0, error
        assert int(out) > 10


def test_a_run_is_refused_while_it_runs_and_free_after_a_kill(tmp_path):
    model, out = tiny_model(tmp_path / "model"), tmp_path / "run"
    words = ["distill", str(model), "--out", str(out)]
    forever = ["--set", "kd.steps=1000000", "--set", "run.checkpoint_seconds=0.2"]
    command = [sys.executable, "-m", "stars_deploy", *words, *forever]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not (out / "checkpoint" / "state.pt").is_file():
            assert first.poll() is None
            time.sleep(0.1)
        second = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
        assert second.returncode == 2
        assert f"is being written by process {first.pid}" in second.stderr
        assert first.poll() is None
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    with claimed(out):  # what --resume would take
        pass


def test_two_exports_and_a_validation_of_one_bundle(hold, tmp_path):
    bundle = bundles.write_bundle(tmp_path, targets=("nir",), golden=2)
    before = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    hold(bundle)
    export = ("export", str(tmp_path / "net.nir"), "--target", "nir", "--out", str(bundle))
    for words in (export, ("validate", str(bundle), "--profile", "reference")):
        assert CliRunner().invoke(app, words).exit_code == 2
    after = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    assert after == before
