"""Damaged files of every kind: refused with a message, or read; soon, and in little memory.

STARS_DEPLOY_FUZZ=10 tries ten times as many inputs; benchmarks/fuzz.py tries them for minutes.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import time
from pathlib import Path

import fuzzing
import numpy as np
import pytest
from fuzz_readers import READERS, Reader, hooked, model, run
from fuzz_try import try_one
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stars_deploy import console

TIMES = float(os.environ.get("STARS_DEPLOY_FUZZ", "1"))
ids = [reader.name for reader in READERS]


def inputs(reader: Reader, seconds: float) -> int:
    """How many inputs take about `seconds`, within sense."""
    return max(1, round(TIMES * min(20.0, seconds / reader.cost)))


def fuzz(reader: Reader, count: int) -> None:
    console.settings.quiet = True
    with tempfile.TemporaryDirectory() as folder:  # undamaged, the files are read
        reader.read(Path(shutil.copytree(reader.make(), Path(folder) / "input")))

    @settings(max_examples=count, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, 1 << 32))
    def every(seed: int) -> None:
        try_one(reader, seed)

    try:
        every()
    finally:
        console.settings.quiet = False


@pytest.mark.parametrize("reader", READERS, ids=ids)
def test_damage_is_refused_or_read(reader):
    fuzz(reader, inputs(reader, 1.0))


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS, ids=ids)
def test_much_damage_is_refused_or_read(reader):
    fuzz(reader, 10 * inputs(reader, 4.0))


@pytest.mark.parametrize("reader", READERS, ids=ids)
def test_most_damage_comes_past_the_first_line_of_defence_or_is_seen(reader):
    """Whatever the mutations do, they change the file."""
    same = 0
    for seed in range(10):
        with tempfile.TemporaryDirectory() as folder:
            damaged = reader.damaged(random.Random(seed), Path(folder))
            changed = damaged / reader.file
            same += (
                changed.is_file()
                and changed.read_bytes() == (reader.make() / reader.file).read_bytes()
            )
    assert same <= 4


# ---- the contract itself ---------------------------------------------------------------------


def test_a_reader_that_allocates_too_much_is_caught(monkeypatch):
    monkeypatch.setattr(fuzzing, "MOST_BYTES", 150 << 20)
    with pytest.raises(fuzzing.Broken, match="MiB of memory"):
        fuzzing.attempt(lambda: np.ones(200 << 20, np.uint8))
    with pytest.raises(fuzzing.Broken, match="MemoryError"):
        fuzzing.attempt(lambda: np.zeros(100 << 30, np.uint8))
    assert fuzzing.attempt(lambda: np.ones(100 << 20, np.uint8)).bytes > 90 << 20


def test_a_reader_that_hangs_raises_or_says_nothing_is_caught(monkeypatch):
    from stars_deploy.errors import InputError, StarsError

    def refuse(error):
        raise error

    monkeypatch.setattr(fuzzing, "MOST_SECONDS", 0.2)
    monkeypatch.setattr(fuzzing, "MOST_WAITING", 1.0)
    for hang in (lambda: [None for _ in iter(int, 1)], lambda: time.sleep(60)):
        with pytest.raises(fuzzing.Broken, match="took too long"):
            fuzzing.attempt(hang)
    for error in (KeyError("x"), InputError("x"), StarsError("a defect of ours, in many words")):
        with pytest.raises(fuzzing.Broken):
            fuzzing.attempt(lambda error=error: refuse(error))
    message = "x.json: not valid JSON; write it again"
    assert fuzzing.attempt(lambda: refuse(InputError(message))).refused == message


def test_a_reader_that_unpickles_is_caught():
    """hooked() is what a reader of .pt files is fuzzed with; here one that trusts its file."""
    import torch

    trusting = hooked(
        "trusting", run, "checkpoint/state.pt", lambda path: torch.load(path, weights_only=False)
    )
    caught = set()
    for seed in range(40):
        try:
            try_one(trusting, seed)
        except fuzzing.Broken as problem:
            caught.add(str(problem))
    assert "a pickle was executed" in caught
    assert model().is_dir()
