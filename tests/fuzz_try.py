"""Run as a script: try many damaged inputs of readers; print a JSON line for each reader.

Usage: fuzz_try.py FIRST_SEED SECONDS MOST READER... In a process of its own, because a library
that crashes on a damaged file takes the process with it; stderr says which input was tried.
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
from typing import Any

import fuzzing
from fuzz_readers import READERS, Reader

from stars_deploy.console import settings


def try_one(reader: Reader, seed: int) -> fuzzing.Outcome:
    """Read the input of one seed; fuzzing.Broken where the contract is broken."""
    with tempfile.TemporaryDirectory() as folder:
        damaged = reader.damaged(random.Random(seed), Path(folder))
        outcome = fuzzing.attempt(partial(reader.read, damaged))
        if list(Path(folder).rglob("unpickled")):
            raise fuzzing.Broken("a pickle was executed")
        return outcome


def try_many(reader: Reader, first: int, seconds: float, most: int) -> dict[str, Any]:
    """Try seeds from `first` on, and say what happened."""
    with tempfile.TemporaryDirectory() as folder:  # the valid files are read
        reader.read(Path(shutil.copytree(reader.make(), Path(folder) / "input")))
    tried, refused, slowest, largest = 0, 0, 0.0, 0
    broken: dict[str, list[Any]] = collections.defaultdict(list)
    end = time.monotonic() + seconds
    while time.monotonic() < end and tried < most:
        seed = first + tried
        print(json.dumps({"reader": reader.name, "trying": seed}), file=sys.stderr, flush=True)
        tried += 1
        try:
            outcome = try_one(reader, seed)
        except fuzzing.Broken as problem:
            broken[_place(problem)].append([seed, str(problem)])
            continue
        refused += outcome.refused is not None
        slowest, largest = max(slowest, outcome.seconds), max(largest, outcome.bytes)
    return {
        "reader": reader.name,
        "tried": tried,
        "refused": refused,
        "seconds_max": round(slowest, 3),
        "mib_max": round(largest / 2**20, 1),
        "broken_n": sum(map(len, broken.values())),
        "broken": {place: seeds[:2] for place, seeds in broken.items()},
    }


def _place(problem: fuzzing.Broken) -> str:
    cause = problem.__cause__
    if cause is None:
        return str(problem)
    frames = [x for x in traceback.extract_tb(cause.__traceback__) if "stars_deploy" in x.filename]
    last = frames[-1]
    return f"{type(cause).__name__} at {Path(last.filename).name}:{last.lineno}"


if __name__ == "__main__":
    settings.quiet = True
    warnings.simplefilter("error")
    begin, limit, count = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    for chosen in READERS:
        if chosen.name in sys.argv[4:] or len(sys.argv) == 4:
            print(json.dumps(try_many(chosen, begin, limit, count)), flush=True)
