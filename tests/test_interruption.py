"""Ctrl-C and SIGTERM: a message that says how to go on, exit code 130, a checkpoint to resume."""

import json
import os
import shlex
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

# Where a command is interrupted, what is typed, and what it says.
COMMANDS = {
    "distill": (
        "distill.distill",
        "distill --out x --seed 1",
        "nothing was written to x yet; start again: stars-deploy distill --out x --seed 1",
    ),
    "compare": (
        "compare.compare",
        "compare fashion-mnist --vary kd.lr=0.1,0.2 --out 'x y'",
        "x y keeps what is done; go on with: "
        "stars-deploy compare fashion-mnist --vary kd.lr=0.1,0.2 --out 'x y'",
    ),
    "demo": (
        "demo.run_demo",
        "demo --out x -v",
        "x keeps what is done; go on with: stars-deploy demo --out x -v",
    ),
    "teacher": (
        "teacher.train_teacher",
        "teacher train fashion-mnist --out x",
        "delete x and start again: stars-deploy teacher train fashion-mnist --out x",
    ),
    "finetune": (
        "finetune.finetune",
        "finetune run --out x",
        "nothing was written to x; start again: stars-deploy finetune run --out x",
    ),
    "sweep": (
        "sweep.sweep",
        "sweep run --out x",
        "nothing was written to x; start again: stars-deploy sweep run --out x",
    ),
    "export": (
        "export.export",
        "export run --target nir --out x",
        "nothing was written to x; start again: stars-deploy export run --target nir --out x",
    ),
    "evaluate": (
        "evaluate.evaluate",
        "evaluate x",
        "earlier results are as they were; start again: stars-deploy evaluate x",
    ),
    "validate": (
        "validate.validate",
        "validate x",
        "earlier results are as they were; start again: stars-deploy validate x",
    ),
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
    result = CliRunner().invoke(cli.app, shlex.split(words))
    assert result.exit_code == 130, result.output
    assert f"Error: interrupted; {says}\n" in result.stderr.replace(
        "x/checkpoint holds the last complete epoch, but training cannot go on from it; ", ""
    )
    assert "-v" in words or "Traceback" not in result.output
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
    assert f"interrupted; {out} keeps what is done; go on with: stars-deploy distill" in stderr
    assert "Traceback" not in stderr
    assert checkpoint.load(out) is not None
    assert not list(out.rglob(".*"))  # no half-written file
    # What it says to type is taken, up to the plan of the run.
    said = shlex.split(stderr.partition("go on with: ")[2].splitlines()[0])
    assert said[:2] == ["stars-deploy", "distill"] and said[-1] == "--resume"
    resumed = CliRunner().invoke(cli.app, [*said[1:], "--dry-run", "--json"])
    assert resumed.exit_code == 0, resumed.output
    assert json.loads(resumed.stdout)["recipe"]["kd"]["steps"] == 1000000
