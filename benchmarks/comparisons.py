"""The comparisons behind docs/stars.md: `stars-deploy compare` with the settings of each table.

Every run is kept under --work, so that an interrupted series goes on where it stopped; the JSON,
Markdown and figure of each comparison end up in benchmarks/results. One thread a run: two series
can be run side by side on two cores, and wall times are then those of a shared machine.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from common import RESULTS

SEEDS = "0,1,2"
SCRATCH = [
    "warm_start.enabled=false", "kd.lr=0.1", "kd.weight_decay=1e-4", "kd.feature=0",
    "neuron.decay_input=false",
]  # fmt: skip
# Name -> recipe, what is varied, what is set.
SERIES: dict[str, tuple[str, list[str], list[str]]] = {
    "nayer-warm": ("fashion-mnist", ["stars=off,on"], []),
    "nayer-scratch": ("fashion-mnist", ["stars=off,on"], SCRATCH),
    "cmi-warm": ("fashion-mnist-cmi", ["stars=off,on"], []),
    "small-scratch": (
        "fashion-mnist-small",
        [
            'stars={enabled = false}|{}|{balance = 1.0}|{units = "teacher"}'
            '|{layers = "last", start = "warmup+1"}|{normalization = "none"}'
        ],
        [],
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("series", nargs="*", default=list(SERIES), help=", ".join(SERIES))
    parser.add_argument("--data", default="fashion-mnist", help="where the test images are")
    parser.add_argument("--work", type=Path, default=Path("comparisons"))
    chosen = parser.parse_args()
    for name in chosen.series:
        recipe, varied, settings = SERIES[name]
        command = ["compare", recipe, "--seeds", SEEDS, "--data", chosen.data]
        for value in varied:
            command += ["--vary", value]
        for value in ["run.threads=1", *settings]:
            command += ["--set", value]
        out = chosen.work / name
        program = "from stars_deploy.cli import main; main()"
        subprocess.run([sys.executable, "-c", program, *command, "--out", str(out)], check=True)
        for kind in ("json", "md", "svg"):
            shutil.copy(out / f"compare.{kind}", RESULTS / f"compare-{name}.{kind}")


if __name__ == "__main__":
    main()
