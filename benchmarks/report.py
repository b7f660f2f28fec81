"""How long report.html takes and how large it is, for bundles that were validated.

python benchmarks/report.py demo/bundle [BUNDLE ...]
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import common

from stars_deploy.files import read_json
from stars_deploy.graph.order import spiking_nodes
from stars_deploy.graph.reader import read_graph
from stars_deploy.validation.document import all_runs
from stars_deploy.validation.report import report_html

REPEATS = 5


def measure(bundle: Path) -> dict[str, Any]:
    """Return layers, verdicts, bytes and seconds of the page; the first build loads fonts too."""
    graph, validation = read_graph(bundle / "graph.nir"), read_json(bundle / "validation.json")
    seconds, page = [], ""
    for _ in range(1 + REPEATS):
        start = time.perf_counter()
        page = report_html(bundle, graph, validation)
        seconds.append(round(time.perf_counter() - start, 3))
    return {
        "source": read_json(bundle / "manifest.json")["source"].get("recipe", bundle.name),
        "layers": len(spiking_nodes(graph)),
        "verdicts": len(all_runs(validation)),
        "bytes": len(page.encode()),
        "first_s": seconds[0],
        "seconds": common.spread(seconds[1:]),
    }


def main() -> None:
    """Measure the bundles named on the command line and write benchmarks/results/report.json."""
    bundles = [Path(name) for name in sys.argv[1:]] or [Path("demo/bundle")]
    rows = [measure(bundle) for bundle in bundles]
    common.save("report", {**common.environment(1), "repeats": REPEATS, "pages": rows})


if __name__ == "__main__":
    main()
