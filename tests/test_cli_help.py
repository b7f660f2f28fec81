"""Help with examples that are taken, nearest names, and usage errors that scripts can read."""

import json
import re
import shlex
import subprocess
import sys

import pytest
from test_api import COMMANDS, RENAMED
from typer.testing import CliRunner

from stars_deploy import api
from stars_deploy.cli.app import app
from stars_deploy.errors import InputError


def invoke(*words):
    return CliRunner().invoke(app, list(words))


def help_of(name):
    result = invoke(*name.split(), "--help")
    assert result.exit_code == 0
    return result.stdout


def examples(text):
    """The commands in a help page; a backslash at the end of a line goes on with the next."""
    joined = re.sub(r" \\\n +", " ", text)
    return re.findall(r"^ *(?:Example: )?stars-deploy ((?!\[).*)$", joined, re.MULTILINE)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_of_a_help_page_are_taken(name, monkeypatch):
    found = examples(help_of(name))
    assert found
    monkeypatch.setattr(api, RENAMED.get(name, name), reached)
    for words in found:
        assert words.startswith(name)
        result = invoke(*shlex.split(words))
        assert "Error: reached" in result.stderr, (words, result.stderr)


def reached(*_, **__):
    raise InputError("reached")


def test_examples_are_shown_as_they_are_written():
    text = help_of("export")
    assert "\n    stars-deploy export run --target nir --target onnx --target loihi --out b" in text
    assert " --std 0.25 \\\n      --out bundle\n" in text
    assert len(examples(text)) == 2


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_page_names_the_global_options(name):
    text = " ".join(help_of(name).split())
    assert "--json (one JSON object on stdout), -q, --quiet (errors only), -v, --verbose" in text


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["distil"], "No such command 'distil'. Did you mean 'distill'?"),
        (["teacher", "trian"], "No such command 'trian'. Did you mean 'train'?"),
        (["distill", "--wieghts", "x"], "--weights"),
        (["export", "x", "--tarket=nir"], "--target"),
        (["sweep"], "Missing argument 'source'"),
        (["simulate", "x", "--limit", "ten"], "Invalid value for '--limit'"),
        (["--jsn", "zoo"], "--json"),
        (["export", "x", "--target", "onxx", "--out", "o"], "did you mean 'onnx'?"),
        (["check", "x", "--profile", "loihi22"], "did you mean 'loihi2'?"),
        (["distill", "fashion-mnits", "--out", "o"], "did you mean 'fashion-mnist'?"),
        (["simulate", "x", "--engine", "flaot"], "did you mean 'float'?"),
        (["distill", "--method", "cim", "--out", "o"], "cmi"),
    ],
)
def test_a_usage_error_names_what_was_meant_on_both_streams(words, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for given in (["--json", *words], [*words, "--json"]):
        result = invoke(*given)
        assert result.exit_code == 2
        assert says in result.stderr
        document = json.loads(result.stdout)
        assert set(document) == {"error"} and document["error"]["exit_code"] == 2
        assert says in document["error"]["message"]
    silent = invoke(*words)
    assert (silent.exit_code, silent.stdout) == (2, "") and says in silent.stderr


def test_no_help_page_waits_for_heavy_imports():
    code = (
        "import sys\n"
        "from stars_deploy.cli import main\n"
        f"for name in {list(COMMANDS)!r}:\n"
        "    sys.argv = ['stars-deploy', *name.split(), '--help']\n"
        "    try: main()\n"
        "    except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'onnx', 'nir', 'rich.table'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.count("Usage: stars-deploy ") == len(COMMANDS)


@pytest.mark.parametrize("words", [["teacher", "--help"], ["--help"], ["-q", "zoo", "-h"]])
def test_help_of_groups_and_among_global_options(words):
    result = invoke(*words)
    assert result.exit_code == 0 and result.stdout.startswith("Usage: ")


def test_what_follows_two_dashes_is_no_option():
    result = invoke("check", "--", "--json")
    assert result.exit_code == 2 and result.stdout == ""
    assert "--json" in result.stderr
