"""Running a kit script (export/run_lava.py) in the Lava environment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stars_deploy.errors import BundleError, EngineError
from stars_deploy.simulation.lava.environment import require_environment
from stars_deploy.simulation.subprocesses import Completed, TimedOut, run_session, tail

# Starts the script, and a thread that ends the whole session once our end of its standard input
# is closed, that is when we are gone. It reads the bare descriptor: Lava forks, and a Python
# stream would pass on a held lock.
_START = """
import os, runpy, signal, sys, threading
def watch():
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGTERM)
threading.Thread(target=watch, daemon=True).start()
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_kit(script: Path, arguments: Sequence[str], timeout: float | None = None) -> Completed:
    """Run a kit script with the Lava environment's Python and return its output.

    Raises EngineError when the environment is absent, when the script crashes (with the end of
    its stderr) or does not end in `timeout` seconds, and BundleError when it refuses its input.
    """
    python = require_environment().python
    command = [str(python), "-I", "-c", _START, str(script), *arguments]
    try:
        completed = run_session(command, timeout)
    except TimedOut as problem:
        raise TimedOut(f"{script.name}: {problem}\nmore time: validate --timeout") from None
    if completed.status == 2:
        raise BundleError(tail(completed.stderr))
    if completed.status:
        raise EngineError(
            f"{script.name} ended with status {completed.status}\n{tail(completed.stderr)}"
        )
    return completed
