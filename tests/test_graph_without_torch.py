"""Graphs, the float engine and ONNX must work where torch is not installed."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
sys.modules["torch"] = None
import stars_deploy.graph.gain, stars_deploy.graph.linear, stars_deploy.graph.reader
import stars_deploy.graph.writer, stars_deploy.simulation.reference
import stars_deploy.simulation.onnx_engine, stars_deploy.targets.onnx
"""


def test_import_with_torch_blocked() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
