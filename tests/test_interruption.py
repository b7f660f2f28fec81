"""Ctrl-C and SIGTERM: a message that says how to go on, exit code 130, a checkpoint to resume."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from tiny_distillation import tiny_model
from typer.testing import CliRunner

from stars_deploy.cli import app as cli
from stars_deploy.cli.base import command
from stars_deploy.distillation import checkpoint

COMMANDS = {
    "distill": ("distill.distill", ["distill", "--out", "x"], "same command with --resume goes on"),
    "compare": ("compare.compare", ["compare", "fashion-mnist", "--out", "x"], "same command goes"),
    "demo": ("demo.run_demo", ["demo", "--out", "x"], "the same command goes on where it stopped"),
    "teacher": (
        "teacher.train_teacher",
        ["teacher", "train", "fashion-mnist", "--out", "x"],
        "empty the folder, or give another",
    ),
    "evaluate": ("evaluate.evaluate", ["evaluate", "x"], "the same command starts again"),
}


def receive(number):
    # Without a handler the signal would end the tests, too.
    assert signal.getsignal(number) is not signal.SIG_DFL
    signal.raise_signal(number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["int", "term"])
@pytest.mark.parametrize("name", COMMANDS)
def test_an_interrupted_command_says_how_to_go_on(name, number, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    place, words, says = COMMANDS[name]
    monkeypatch.setattr(f"stars_deploy.workflow.{place}", lambda *_, **__: receive(number))
    result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == 130, result.output
    assert "Error: interrupted; " in result.stderr and says in result.stderr
    assert "Traceback" not in result.output
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize("kept", [signal.SIG_IGN, lambda number, frame: None], ids=["ign", "own"])
def test_a_caller_that_ignores_or_handles_the_signal_still_does(kept):
    before = signal.signal(signal.SIGTERM, kept)
    try:
        seen = command(lambda: signal.getsignal(signal.SIGTERM))()
        assert seen is kept and signal.getsignal(signal.SIGTERM) is kept
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_command_may_run_outside_the_main_thread():
    seen = []
    thread = threading.Thread(target=lambda: seen.append(command(lambda: "done")()))
    thread.start()
    thread.join()
    assert seen == ["done"]


def test_a_distillation_that_is_terminated_keeps_its_checkpoint(tmp_path):
    model, out = tiny_model(tmp_path / "model"), tmp_path / "run"
    values = ["--set", "kd.steps=1000000", "--set", "run.checkpoint_seconds=0.2"]
    words = [sys.executable, "-m", "stars_deploy", "distill", model, *values, "--out", out]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not (out / checkpoint.FILE).is_file():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGTERM)
        stderr = process.communicate(timeout=60)[1]
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, stderr
    assert "interrupted; the same command with --resume goes on where it stopped" in stderr
    assert "Traceback" not in stderr
    assert checkpoint.load(out) is not None
    assert not list(out.rglob(".*"))  # no half-written file
