"""Integer engine against Lava: images per second, in alternation, on two networks.

`fixed`: 32x32x3, conv16, conv32 with stride 2, fc10, T = 4, random weights of the seed, scaled so
that the populations fire; `demo`: the demo's student. Lava streams 64 images without monitors; its
start-up and the first L steps are left out. Ours runs 1,000 images (2,000 for the demo) with 2
threads. The ratio is that of the medians of 3 alternations.

Ours alone, in a process of its own each: S-ResNet-20 (random weights) on 1,000 images of 32x32,
images per second and peak memory; and, with --data, all test images of Fashion-MNIST through the
demo's network, in seconds.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nir
import numpy as np
import torch
from common import environment, save, spread

from stars_deploy.config.profile import load_profile
from stars_deploy.config.recipe import load_recipe
from stars_deploy.data import load_data
from stars_deploy.graph.metadata import DT, GraphMetadata, with_metadata
from stars_deploy.simulation.integer.engine import IntegerEngine, build_engine, open_engine
from stars_deploy.simulation.lava.engine import LavaEngine
from stars_deploy.targets.loihi import lower

ALTERNATIONS = 3
LAVA_IMAGES = 64
THREADS = 2
SEED = 0


def lif(shape: tuple[int, ...], threshold: float) -> nir.LIF:
    values = (2 * DT, 1.0, 0.0, threshold, 0.0)
    return nir.LIF(*(np.full(shape, value, np.float64) for value in values))


def fixed_graph() -> nir.NIRGraph:
    """The network that speed is stated on; thresholds chosen so that 5 to 40 % fire."""
    rng = np.random.default_rng(SEED)

    def conv(name: str, inputs: int, outputs: int, size: int, stride: int) -> nir.Conv2d:
        weight = rng.normal(0, (inputs * 9) ** -0.5, (outputs, inputs, 3, 3))
        bias = rng.normal(0, 0.1, outputs)
        return nir.Conv2d((size, size), weight, stride, 1, 1, 1, bias)

    nodes = {
        "input": nir.Input({"input": np.array((3, 32, 32))}),
        "conv1": conv("conv1", 3, 16, 32, 1),
        "lif1": lif((16, 32, 32), 0.7),
        "conv2": conv("conv2", 16, 32, 32, 2),
        "lif2": lif((32, 16, 16), 0.25),
        "flatten": nir.Flatten({"input": np.array((32, 16, 16))}, 0, -1),
        "fc": nir.Affine(rng.normal(0, 0.01, (10, 8192)), np.zeros(10)),
        "output": nir.Output({"output": np.array((10,))}),
    }
    names = list(nodes)
    graph = nir.NIRGraph(nodes, list(zip(names, names[1:], strict=False)), type_check=False)  # noqa: RUF007
    return with_metadata(graph, GraphMetadata(T=4, mean=(0.5,) * 3, std=(0.25,) * 3))


def random_images(count: int) -> np.ndarray:
    rng = np.random.default_rng(SEED)
    return rng.integers(0, 256, (count, 3, 32, 32)).astype(np.uint8)


def ours_per_second(engine: IntegerEngine, images: np.ndarray) -> float:
    start = time.perf_counter()
    engine.statistics(images)
    return len(images) / (time.perf_counter() - start)


def against_lava(bundle: Path, images: np.ndarray) -> dict[str, Any]:
    engine, lava = open_engine(bundle / "loihi"), LavaEngine(bundle)
    counts = engine.statistics(images[:100])  # the first call also allocates
    shapes = {item.node: item.shape for item in engine.network.populations}
    steps = 100 * engine.network.T
    rates = {
        node: float(spikes.sum() / (np.prod(shapes[node]) * steps))
        for node, spikes in counts.spikes.items()
    }
    ours, theirs = [], []
    for _ in range(ALTERNATIONS):
        theirs.append(lava.timings(images[:LAVA_IMAGES])["images_per_second"])
        ours.append(ours_per_second(engine, images))
        print(f"Lava {theirs[-1]:.2f}, ours {ours[-1]:.0f} images/s")
    ratio = statistics.median(ours) / statistics.median(theirs)
    print(f"ratio {ratio:.0f}, firing rates {rates}")
    return {
        "lava": {"engine": f"{lava.info.name} {lava.info.version}", **spread(theirs)},
        "ours": {"engine": f"{engine.info.name} {engine.info.version}", **spread(ours)},
        "images": {"lava": LAVA_IMAGES, "ours": len(images)},
        "firing_rates": rates,
        "ratio_of_medians": ratio,
    }


def resnet20() -> None:
    """Print, as JSON, what S-ResNet-20 takes in a process of its own."""
    from student_step import recipe_of

    from stars_deploy.graph.canonical import canonical
    from stars_deploy.networks.families import build_student, seeded
    from stars_deploy.networks.to_nir import student_to_nir

    torch.set_num_threads(THREADS)
    recipe = recipe_of("resnet20", 4)
    student = seeded(build_student, recipe, SEED)
    student.eval()
    network = lower(canonical(student_to_nir(student, recipe)), load_profile("loihi2"))
    engine = build_engine(network.document, network.arrays)
    images = random_images(1000)
    engine.statistics(images[:20])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rates = [ours_per_second(engine, images) for _ in range(ALTERNATIONS)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kib = 1 << 20
    result = {"images": 1000, "images_per_second": spread(rates), "peak_memory_gib": peak / kib}
    print(json.dumps({**result, "memory_before_gib": before / kib}))


def test_set(bundle: str, data: str) -> None:
    """Print, as JSON, the seconds for all images of a data set, the start of Python included."""
    torch.set_num_threads(THREADS)
    engine = open_engine(Path(bundle) / "loihi")
    images, labels = load_data(data, load_recipe("fashion-mnist").data)
    start = time.perf_counter()
    logits = engine.statistics(images).logits
    seconds = time.perf_counter() - start
    accuracy = float((logits.argmax(axis=1) == labels).mean())
    print(json.dumps({"images": len(images), "seconds": seconds, "accuracy": accuracy}))


def alone(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    print(arguments[0], done.stdout.strip())
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path, nargs="?", default=Path("demo/bundle"))
    parser.add_argument("--data", help="folder of Fashion-MNIST's idx files")
    parser.add_argument("--part", choices=("resnet20", "test_set"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part == "resnet20":
        return resnet20()
    if options.part == "test_set":
        return test_set(str(options.bundle), options.data)
    torch.set_num_threads(THREADS)
    demo, _ = load_data("evaluation", load_recipe("fashion-mnist").data)
    with tempfile.TemporaryDirectory() as folder:
        lower(fixed_graph(), load_profile("loihi2")).write(Path(folder) / "loihi")
        fixed = against_lava(Path(folder), random_images(1000))
    result = {
        "environment": environment(THREADS),
        "unit": "images/s",
        "seed": SEED,
        "fixed": {"network": "32x32x3, conv16, conv32 stride 2, fc10, T = 4", **fixed},
        "demo": {
            "network": "demo student (fashion-mnist, seed 0)",
            **against_lava(options.bundle, demo[:2000]),
        },
        "resnet20": alone("--part", "resnet20"),
    }
    if options.data:
        result["test_set"] = alone(
            str(options.bundle), "--data", options.data, "--part", "test_set"
        )
    save("integer_engine", result)


if __name__ == "__main__":
    main()
