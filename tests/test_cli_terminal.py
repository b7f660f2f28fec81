"""Colours and bars are for terminals: seen through a pseudo-terminal and through a pipe."""

import os
import pty
import re
import subprocess
import sys

import pytest
import random_networks

from stars_deploy.graph.writer import write_graph

COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-7][0-9;]*m")
ESCAPE = "\x1b"


@pytest.fixture(scope="module")
def graph_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("graph") / "net.nir"
    write_graph(random_networks.random_graph(1, pools=False), path)
    return path


def environment(changes):
    ours = ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    return {**kept, "TERM": "xterm-256color", "COLUMNS": "100", **changes}


def run(*words):
    return [sys.executable, "-m", "stars_deploy", *map(str, words)]


def piped(*words, **changes):
    done = subprocess.run(run(*words), capture_output=True, text=True, env=environment(changes))
    return done.stdout + done.stderr


def on_terminal(*words, **changes):
    """Return what a terminal shows of both streams."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        run(*words), stdin=theirs, stdout=theirs, stderr=theirs, env=environment(changes)
    )
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 65536):
            shown += part
    except OSError:  # Linux ends a pseudo-terminal with EIO
        pass
    finally:
        os.close(ours)
        process.wait(timeout=60)
    return shown.decode()


def test_errors_are_coloured_on_a_terminal_only():
    words = ("check", "no-such.nir")
    assert COLOUR.search(on_terminal(*words))
    assert ESCAPE not in piped(*words)
    assert not COLOUR.search(on_terminal(*words, NO_COLOR="1"))
    assert COLOUR.search(piped(*words, FORCE_COLOR="1"))
    assert not COLOUR.search(piped(*words, FORCE_COLOR="1", NO_COLOR="1"))


def test_bars_are_drawn_on_a_terminal_only(graph_file):
    words = ("simulate", graph_file, "--engine", "float", "--profile", "reference")
    shown = on_terminal(*words)
    assert "━" in shown and "16/16" in shown
    for changes in ({}, {"FORCE_COLOR": "1"}):
        log = piped(*words, **changes)
        assert "━" not in log and "simulate float: 16/16" in log
    assert ESCAPE not in piped(*words)
    assert "16/16" not in on_terminal(*words, "-q")


def test_nothing_moves_on_a_terminal_without_a_long_task(tmp_path):
    words = ("distill", "--dry-run", "--out", tmp_path / "run")
    assert not re.search(r"\x1b\[[0-9]*[AK]", on_terminal(*words))  # cursor up, erase line


def test_json_on_a_terminal_is_plain(graph_file):
    shown = on_terminal("profiles", "--json", "-q")
    assert ESCAPE not in shown and shown.startswith("{")
