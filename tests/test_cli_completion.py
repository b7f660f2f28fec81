"""Shell completion, through the protocol that shells use; without torch or numpy."""

import os
import subprocess
import sys
from typing import get_args

import pytest
from test_api import COMMANDS

from stars_deploy.cli.completion import COMPLETERS
from stars_deploy.config.profile import profile_names
from stars_deploy.config.recipe import Synthesis
from stars_deploy.data import EVALUATION, NAMED
from stars_deploy.networks import device as torch_device
from stars_deploy.targets.loihi import Balance
from stars_deploy.targets.onnx_options import Weights
from stars_deploy.validation.engines import OUTSIDE, RUNNABLE
from stars_deploy.workflow import export, reading, setting, sweep_plan
from stars_deploy.workflow.inventory import zoo
from stars_deploy.workflow.own_teacher import POOLINGS

# Completes in a process that cannot import what makes a shell wait.
PROGRAM = """
import sys
for blocked in ("torch", "numpy", "pydantic"):
    sys.modules[blocked] = None
sys.argv = ["stars-deploy"]
from stars_deploy.cli import main
main()
"""


def complete(line, shell="bash"):
    """Return what `shell` is offered at the end of `line`."""
    words = line.split(" ")
    environment = {
        "_STARS_DEPLOY_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
        "_TYPER_COMPLETE_ARGS": line,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_bash_completes_every_kind_of_word():
    assert complete("stars-deploy va").split() == ["validate"]
    assert complete("stars-deploy teacher ").split() == ["import", "train"]
    assert complete("stars-deploy distill --wei").split() == ["--weights"]
    assert complete("stars-deploy distill fashion-mnist-s").split() == ["fashion-mnist-small"]
    assert complete("stars-deploy check x --profile loihi").split() == [
        name for name in profile_names() if name.startswith("loihi")
    ]
    assert complete("stars-deploy --json validate x --engine r").split() == ["recorded"]
    assert complete("stars-deploy export x --json --target ").split() == ["nir", "onnx", "loihi"]
    assert complete("stars-deploy distill --weights ").split() == []  # files, which bash knows


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_complete_too(shell):
    assert "fashion-mnist-small" in complete("stars-deploy compare fashion-mnist-s", shell)
    assert "--profile" in complete("stars-deploy sweep x --pro", shell)


@pytest.mark.parametrize(
    ("shell", "says"), [("bash", "complete -o"), ("zsh", "compdef"), ("fish", "complete --command")]
)
def test_the_script_of_a_shell(shell, says):
    environment = {**os.environ, "_STARS_DEPLOY_COMPLETE": f"source_{shell}"}
    words = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    assert says in done.stdout and "stars-deploy" in done.stdout


def test_completion_is_installed_where_a_shell_reads_it(tmp_path):
    script = f"{sys.executable} -m stars_deploy --install-completion; true"  # bash must stay
    done = subprocess.run(
        ["bash", "-c", script],
        env={**os.environ, "HOME": str(tmp_path), "SHELL": "/bin/bash"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "completion installed" in done.stdout, done.stderr
    installed = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any("_STARS_DEPLOY_COMPLETE" in path.read_text() for path in installed)


def test_the_lists_are_those_of_the_commands():
    methods = get_args(Synthesis.model_fields["method"].annotation)
    lists = {
        "profile": profile_names(),
        "recipe": [model["name"] for model in zoo()["models"]],
        "simulate engine": RUNNABLE,
        "validate engine": (*RUNNABLE, *OUTSIDE),
        "sweep engine": sweep_plan.ENGINES,
        "target": export.TARGETS,
        "device": setting.DEVICES,
        "balance": get_args(Balance),
        "nir_gain": export.GAINS,
        "gain": reading.GAINS,
        "onnx_weights": get_args(Weights),
        "pooling": POOLINGS,
        "golden_images": ("auto", EVALUATION, "synthetic", "random"),
        "method": methods,
        "over": sweep_plan.AXES,
        "data": (*NAMED, EVALUATION),
    }
    assert torch_device.resolve("cpu").type == "cpu"
    assert set(lists) == set(COMPLETERS)
    for name, expected in lists.items():
        assert set(COMPLETERS[name]("")) == set(expected), name


def test_every_list_belongs_to_an_option():
    known = {p.name for command in COMMANDS.values() for p in command.params}
    assert {name.split()[-1] for name in COMPLETERS} <= known
