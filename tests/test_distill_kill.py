"""SIGKILL at any moment, then --resume: the same student, picture and metrics."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = Path(__file__).parent / "kill_distillation.py"


@pytest.mark.parametrize(
    ("kills", "seconds"),
    [pytest.param(3, "0.0", id="3"), pytest.param(10, "0.05", id="10", marks=pytest.mark.slow)],
)
def test_killed_and_resumed_runs_equal_the_uninterrupted_one(tmp_path, kills, seconds):
    command = [sys.executable, str(DRIVER), str(tmp_path), str(kills), seconds]
    done = subprocess.run(command, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stderr
    reports = json.loads(done.stdout.splitlines()[-1])
    assert kills <= len(reports) <= 2 * kills
    assert all(report["equal"] for report in reports), reports
    # The proof is worth something only if runs were cut in the middle.
    assert sum(report["killed"] and bool(report["done"]) for report in reports) >= kills // 2, (
        reports
    )
