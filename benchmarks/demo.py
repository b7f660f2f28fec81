"""Wall time and peak memory of the demo, from distillation to report, installation left out.

Memory is the sum over the demo's process and everything it starts (Lava's processes too), as
proportional set size, polled twice a second; Linux only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import environment, save

POLL_S = 0.5


def children(pid: int) -> list[int]:
    """Return pid and all its descendants that are alive."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [one for child in task.read_text().split() for one in children(int(child))]
        except OSError:
            continue
    return found


def memory_kib(pid: int) -> int:
    total = 0
    for one in children(pid):
        try:
            lines = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


def run(seed: int, out: Path) -> tuple[dict, float, float]:
    command = [sys.executable, "-m", "stars_deploy", "--json", "demo"]
    command += ["--out", str(out), "--seed", str(seed)]
    start, peak = time.perf_counter(), 0
    with tempfile.TemporaryFile("w+") as stdout:
        process = subprocess.Popen(command, stdout=stdout)
        while process.poll() is None:
            peak = max(peak, memory_kib(process.pid))
            time.sleep(POLL_S)
        seconds = time.perf_counter() - start
        stdout.seek(0)
        result = json.loads(stdout.read())
    if process.returncode:
        raise SystemExit(f"demo ended with {process.returncode}: {result}")
    return result, seconds, peak / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    with tempfile.TemporaryDirectory() as folder:
        result, seconds, peak = run(seed, Path(folder) / "demo")
    print(f"{seconds:.0f} s, {peak:.2f} GiB")
    save(
        "demo",
        {
            "environment": environment(threads=2),
            "seed": seed,
            "wall_s": seconds,
            "peak_memory_gib": peak,
            "stages_s": result["seconds"],
            "accuracy": result["accuracy"],
            "n": result["n"],
        },
    )


if __name__ == "__main__":
    main()
