"""Integer engine against Lava on the demo network: images per second, in alternation.

Lava streams 64 images without monitors; its start-up and the first L steps are left out. Ours runs
2,000 images with 2 threads. The ratio is that of the medians of 3 alternations.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
from common import environment, save, spread

from stars_deploy.config.recipe import load_recipe
from stars_deploy.data import load_data
from stars_deploy.simulate.integer import IntegerEngine, open_engine
from stars_deploy.simulate.lava_engine import LavaEngine

ALTERNATIONS = 3
LAVA_IMAGES = 64
OUR_IMAGES = 2000
THREADS = 2


def ours_per_second(engine: IntegerEngine, images) -> float:
    start = time.perf_counter()
    engine.statistics(images)
    return len(images) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path, nargs="?", default=Path("demo/bundle"))
    bundle = parser.parse_args().bundle
    torch.set_num_threads(THREADS)
    images, _ = load_data("evaluation", load_recipe("fashion-mnist").data)
    engine = open_engine(bundle / "loihi")
    lava = LavaEngine(bundle)
    engine.statistics(images[:100])  # first call allocates
    ours, theirs = [], []
    for _ in range(ALTERNATIONS):
        theirs.append(lava.timings(images[:LAVA_IMAGES])["images_per_second"])
        ours.append(ours_per_second(engine, images[:OUR_IMAGES]))
        print(f"Lava {theirs[-1]:.2f}, ours {ours[-1]:.0f} images/s")
    ratio = statistics.median(ours) / statistics.median(theirs)
    print(f"ratio {ratio:.0f}")
    save(
        "integer_engine",
        {
            "environment": environment(THREADS),
            "unit": "images/s",
            "network": "demo student (fashion-mnist, seed 0)",
            "lava": {"engine": f"{lava.info.name} {lava.info.version}", **spread(theirs)},
            "ours": {"engine": f"{engine.info.name} {engine.info.version}", **spread(ours)},
            "images": {"lava": LAVA_IMAGES, "ours": OUR_IMAGES},
            "ratio_of_medians": ratio,
        },
    )


if __name__ == "__main__":
    main()
