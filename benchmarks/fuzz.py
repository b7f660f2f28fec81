"""How many damaged files the readers were given, and what came of it.

Every reader of tests/fuzz_readers.py gets inputs for SECONDS, from seed FIRST on; a process that a
library takes down counts as a failure of the reader that was at work. Writes results/fuzz.json.

    python benchmarks/fuzz.py [SECONDS [FIRST]]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import environment, save

TESTS = Path(__file__).parent.parent / "tests"
sys.path.insert(0, str(TESTS))

from fuzz_readers import READERS  # noqa: E402
from fuzzing import MOST_BYTES, MOST_SECONDS  # noqa: E402


def tried(names: list[str], seconds: float, first: int) -> list[dict[str, Any]]:
    """Try all readers in one process, and those after a crash in the next."""
    command = [sys.executable, "fuzz_try.py", str(first), str(seconds), str(1 << 30), *names]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=TESTS, env=alone, capture_output=True, text=True, check=False
    )
    # Libraries print on stdout, too.
    found = [json.loads(x) for x in done.stdout.splitlines() if x.startswith('{"reader"')]
    for row in found:
        print(json.dumps(row), flush=True)
    if done.returncode == 0:
        return found
    reader = names[len(found)]
    last = [line for line in done.stderr.splitlines() if line.startswith('{"reader"')]
    crash = {"reader": reader, "tried": 0, "broken_n": 1, "broken": {"crash": last[-1:]}}
    print(json.dumps(crash), done.stderr[-300:], flush=True)
    rest = names[len(found) + 1 :]
    return [*found, crash, *(tried(rest, seconds, first) if rest else [])]


def main(seconds: float, first: int) -> None:
    """Fuzz every reader and write the result."""
    rows = tried([reader.name for reader in READERS], seconds, first)
    whole = [row for row in rows if "seconds_max" in row]
    result = {
        "first_seed": first,
        "seconds_per_reader": seconds,
        "limits": {"seconds": MOST_SECONDS, "bytes": MOST_BYTES},
        "inputs": sum(row["tried"] for row in rows),
        "failures": sum(row["broken_n"] for row in rows),
        "seconds_max": max(row["seconds_max"] for row in whole),
        "mib_max": max(row["mib_max"] for row in whole),
        "readers": rows,
        "environment": environment(1),
    }
    save("fuzz", result)


if __name__ == "__main__":
    main(
        float(sys.argv[1]) if len(sys.argv) > 1 else 14.0,
        int(sys.argv[2]) if len(sys.argv) > 2 else 0,
    )
