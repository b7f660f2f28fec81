"""Seconds until `--help` of every command and `--version` answer: 7 runs in alternation."""

from __future__ import annotations

import subprocess
import sys
import time

from common import environment, save, spread

RUNS = 7
COMMANDS = (
    "check", "compare", "demo", "distill", "doctor", "evaluate", "export", "finetune",
    "operating-point", "profiles", "schema", "simulate", "sweep", "teacher train", "tensorboard",
    "validate", "zoo",
)  # fmt: skip
OPTIONS = ("--help", "--version", *(f"{name} --help" for name in COMMANDS))


def seconds(option: str) -> float:
    words = [sys.executable, "-m", "stars_deploy", *option.split()]
    start = time.perf_counter()
    subprocess.run(words, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    for option in OPTIONS:
        seconds(option)  # byte-compiles and fills the file cache
    times: dict[str, list[float]] = {option: [] for option in OPTIONS}
    for _ in range(RUNS):
        for option in OPTIONS:
            times[option].append(seconds(option))
    result = {"environment": environment(threads=1), "unit": "s"}
    result |= {option: spread(times[option]) for option in OPTIONS}
    for option in OPTIONS:
        print(f"{option}: {result[option]['median']:.3f} s")
    save("startup", result)


if __name__ == "__main__":
    main()
