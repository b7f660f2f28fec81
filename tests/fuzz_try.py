"""Run as a script: try many damaged inputs of one reader; print a JSON line of what happened.

Usage: fuzz_try.py READER FIRST_SEED SECONDS MOST. A process of its own, because a library that
crashes on a damaged file takes the process with it.
"""

from __future__ import annotations

import collections
import json
import random
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from functools import partial
from pathlib import Path

import fuzzing
from fuzz_readers import READERS

from stars_deploy.console import settings


def main(name: str, first: int, seconds: float, most: int) -> None:
    settings.quiet = True
    warnings.simplefilter("error")
    reader = next(item for item in READERS if item.name == name)
    reader.make()
    with tempfile.TemporaryDirectory() as folder:
        reader.read(Path(shutil.copytree(reader.make(), Path(folder) / "input")))
    tried, refused, slowest, largest = 0, 0, 0.0, 0
    broken: dict[str, list[int]] = collections.defaultdict(list)
    end = time.monotonic() + seconds
    while time.monotonic() < end and tried < most:
        seed = first + tried
        print(json.dumps({"reader": name, "trying": seed}), file=sys.stderr, flush=True)
        tried += 1
        with tempfile.TemporaryDirectory() as folder:
            damaged = reader.damaged(random.Random(seed), Path(folder))
            try:
                outcome = fuzzing.attempt(partial(reader.read, damaged))
                refused += outcome.refused is not None
                slowest = max(slowest, outcome.seconds)
                largest = max(largest, outcome.bytes)
            except fuzzing.Broken as problem:
                cause = problem.__cause__
                at = traceback.extract_tb(cause.__traceback__)[-1] if cause else None
                where = f" at {Path(at.filename).name}:{at.lineno}" if at else ""
                broken[f"{type(cause).__name__}{where}" if cause else str(problem)].append(seed)
                print(json.dumps({"seed": seed, "problem": str(problem)}), file=sys.stderr)
            if list(Path(folder).rglob("unpickled")):
                broken["a pickle was executed"].append(seed)
    print(json.dumps({
        "reader": name, "tried": tried, "refused": refused, "seconds_max": round(slowest, 3),
        "mib_max": round(largest / 2**20, 1),
        "broken": {text: seeds[:5] for text, seeds in broken.items()},
        "broken_n": sum(map(len, broken.values())),
    }))  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
