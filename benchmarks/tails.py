"""Does the student fire on synthetic images as it does on real ones?

For every run that benchmarks/comparisons.py kept: `operating-point` on its pool and on real test
images, and the mean over layers and thresholds theta_t of |tail mass on synthetic - on real|.
STARS sets out to close this gap.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from common import environment, mean_and_sd, save

from stars_deploy.workflow.operating_point import operating_point


def gap(result: dict[str, Any]) -> float:
    differences = [
        abs(synthetic - real)
        for layer in result["layers"]
        for synthetic, real in zip(
            layer["synthetic"]["tail_mass"], layer["real"]["tail_mass"], strict=True
        )
    ]
    return statistics.mean(differences)


def rates(result: dict[str, Any], source: str) -> list[float]:
    return [layer[source]["rate"] for layer in result["layers"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("series", nargs="+", help="as in comparisons.py")
    parser.add_argument("--data", default="fashion-mnist", help="where the test images are")
    parser.add_argument("--work", type=Path, default=Path("comparisons"))
    parser.add_argument("--limit", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    table: dict[str, Any] = {}
    for name in chosen.series:
        compared = json.loads((chosen.work / name / "compare.json").read_text())
        for cell in compared["cells"]:
            folders = sorted(
                path.parent
                for path in (chosen.work / name / "runs").glob("*/seed*/result.json")
                if json.loads(path.read_text()) in cell["runs"]
            )
            found = [operating_point(f, chosen.data, chosen.limit) for f in folders]
            entry = mean_and_sd("tail_gap", [gap(result) for result in found])
            entry["rate_synthetic"] = [rates(result, "synthetic") for result in found]
            entry["rate_real"] = [rates(result, "real") for result in found]
            table[f"{name}: {cell['cell']}"] = entry
            print(name, cell["cell"], entry["tail_gap_values"], flush=True)
    save(
        "tails",
        {
            "what": __doc__,
            "environment": environment(chosen.threads),
            "images": chosen.limit,
            "table": table,
        },
    )


if __name__ == "__main__":
    main()
