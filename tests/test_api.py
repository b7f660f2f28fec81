"""The Python API: one function per command, same arguments, same result, and a light import."""

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from tiny_distillation import tiny_model
from typer.testing import CliRunner

import stars_deploy
from stars_deploy import api, console
from stars_deploy.cli.app import app
from stars_deploy.errors import InputError, RecipeError

DOCS = Path(__file__).parents[1] / "docs"
RENAMED = {
    "teacher train": "train_teacher",
    "teacher import": "import_teacher",
    "operating-point": "operating_point",
}
OPTIONS = {"overrides": "--set"}  # all others are the argument's name
SEEDS = "0,1,2"  # which the API has as numbers


def commands(group=None, prefix=""):
    """Yield the name of every command, as it is typed, and the command."""
    group = typer.main.get_command(app) if group is None else group
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{prefix}{name} ")
        else:
            yield prefix + name, command


COMMANDS = dict(commands())


def function_of(name):
    return getattr(stars_deploy, RENAMED.get(name, name))


def options_of(name):
    return {p.name: p for p in COMMANDS[name].params if p.name != "help"}


def test_every_command_is_a_function_and_the_other_way_round():
    names = {RENAMED.get(name, name) for name in COMMANDS}
    assert names == set(api.__all__) == set(stars_deploy.__all__) - {"__version__"}


@pytest.mark.parametrize("name", COMMANDS)
def test_arguments_are_the_options(name):
    arguments = inspect.signature(function_of(name)).parameters
    options = options_of(name)
    assert set(arguments) - {"progress"} == set(options)
    for key, option in options.items():
        own, theirs = arguments[key].default, option.default
        if option.required:
            assert own is inspect.Parameter.empty
        elif theirs == SEEDS:
            assert own == (0, 1, 2)
        else:
            assert str(own or None) == str(theirs or None), key
        if option.param_type_name == "option":
            assert OPTIONS.get(key, f"--{key.replace('_', '-')}") in option.opts
            assert arguments[key].kind is inspect.Parameter.KEYWORD_ONLY


def sample(key, annotation):
    """A value that is not the default, as text and as the function gets it; a flag has no text."""
    if annotation.startswith("bool"):
        return None, True
    if annotation.startswith("int"):
        return "7", 7
    if annotation.startswith("float"):
        return "2.5", 2.5
    return f"given-{key}", f"given-{key}"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_reaches_the_function(name, monkeypatch):
    got = {}

    def spy(*args, **kwargs):
        names = list(inspect.signature(function_of(name)).parameters)
        got.update(dict(zip(names, args, strict=False)), **kwargs)
        raise InputError("seen")

    signature = inspect.signature(function_of(name))
    spy.__signature__ = signature
    monkeypatch.setattr(api, RENAMED.get(name, name), spy)
    words, wanted = name.split(), {}
    for key, option in options_of(name).items():
        text, value = sample(key, signature.parameters[key].annotation)
        wanted[key] = [value] if option.multiple else value
        words += [] if option.param_type_name == "argument" else [option.opts[0]]
        words += [] if text is None else [text]
    result = CliRunner().invoke(app, words)
    assert "seen" in result.stderr, result.output
    assert {key: plain(got[key]) for key in wanted} == wanted


def plain(value):
    return str(value) if isinstance(value, Path) else value


@pytest.mark.parametrize("name", api.__all__)
def test_every_function_is_documented(name):
    function = getattr(stars_deploy, name)
    text = inspect.getdoc(function)
    for part in ("Returns:", "Raises:", f">>> {'' if name in text else '?'}"):
        assert part in text
    assert f"stars_deploy.{name}(" in text.partition("Example:")[2]
    for argument, parameter in inspect.signature(function).parameters.items():
        assert re.search(rf"^    [\w, ]*\b{argument}\b[\w, ]*:", text, re.MULTILINE), argument
        assert parameter.annotation is not inspect.Parameter.empty
    assert f"| `{name}` |" in (DOCS / "api.md").read_text()


def test_the_import_is_light():
    code = (
        "import sys, stars_deploy\n"
        "assert all(callable(getattr(stars_deploy, n)) for n in stars_deploy.__all__[1:])\n"
        "assert set(stars_deploy.__all__) <= set(dir(stars_deploy))\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'rich', 'typer', 'nir'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "from stars_deploy import *\n"
        "assert distill is stars_deploy.api.distill\n"
        "try: stars_deploy.distil\n"
        "except AttributeError as error: assert 'distil' in str(error)\n"
        "else: raise SystemExit('no AttributeError')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


CLIENT = """\
from pathlib import Path
import stars_deploy

summary: dict[str, object] = stars_deploy.distill("m", out=Path("run"), seed=1)
stars_deploy.export("run", target=["onnx"], out="bundle", mean=[0.5], classes="a,b")
stars_deploy.sweep("bundle", out="s", steps=[1, 2], progress=lambda what, done, total: None)
stars_deploy.validate("bundle", limit="ten")  # type: ignore[arg-type]
stars_deploy.distill("m")  # type: ignore[call-arg]
stars_deploy.distil("m", out="run")  # type: ignore[attr-defined]
"""
# What the functions load when they are called says nothing about their types.
MYPY = """\
[mypy]
strict = true
[mypy-stars_deploy.workflow.*]
follow_imports = skip
[mypy-stars_deploy.config.*]
follow_imports = skip
"""


def test_a_client_is_checked_by_mypy(tmp_path):
    (tmp_path / "client.py").write_text(CLIENT)
    (tmp_path / "mypy.ini").write_text(MYPY)
    words = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "client.py"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_quick_start_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(console, "settings", console.Settings())  # as no command line has left it
    recipe = tiny_model(tmp_path / "my-model")
    # A student of random weights fits the chip; one of this random teacher's would not.
    recipe.write_text(recipe.read_text().replace("enabled = true", "enabled = false"))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 1, 8, 8), dtype=np.uint8)
    np.savez("test.npz", images=images, labels=rng.integers(0, 3, 12))
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "api.md").read_text(), re.DOTALL)
    scope = {}
    exec(compile(code, "docs/api.md", "exec"), scope)
    again = stars_deploy.distill("my-model", seed=1, out="run", resume=True)  # which has news
    assert again == scope["summary"]
    said = capsys.readouterr()
    assert said.err == "" and said.out.splitlines()[-1].startswith("pass")
    for result, file in [
        ("summary", "run/summary.json"),
        ("measured", "run/training.json"),
        ("verdict", "bundle/validation.json"),
    ]:
        assert scope[result] == json.loads(Path(file).read_text())
    assert scope["summary"]["seed"] == 1 and scope["fit"]["exit_code"] == 0
    assert scope["simulated"]["n"] == 12


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: stars_deploy.simulate("b", limit=0), "--limit 0: expected a number of at least 1"),
        (lambda: stars_deploy.validate("b", timeout=float("nan")), "--timeout nan"),
        (lambda: stars_deploy.export("b", target="nir", out="o", golden=0), "--golden 0"),
        (lambda: stars_deploy.finetune("b", out="o", lr=0), "--lr 0"),
        (lambda: stars_deploy.demo(seed=-1), "--seed -1"),
        (lambda: stars_deploy.compare("fashion-mnist", out="o", seeds=[-1]), "--seeds"),
        (lambda: stars_deploy.compare("fashion-mnist", out="o", seeds=[]), "--seeds"),
        (lambda: stars_deploy.export("b", target="onxx", out="o"), "did you mean 'onnx'"),
    ],
)
def test_a_wrong_value_is_refused_before_anything_is_read(call, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=re.escape(says)):
        call()
    assert list(tmp_path.iterdir()) == []


def test_a_negative_seed_is_no_recipe(tmp_path):
    with pytest.raises(RecipeError, match="--seed -1"):
        stars_deploy.distill(out=tmp_path / "run", seed=-1)
