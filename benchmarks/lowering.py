"""Lowering of S-ResNet-20, -19 and S-VGG-16 with random weights: seconds and peak memory.

CIFAR-10 shapes, T = 4, a process and one thread each, from graph to integers in memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import torch
from common import environment, save

FAMILIES = ("resnet20", "resnet19", "vgg16")


def measure(family: str) -> None:
    from student_step import recipe_of

    from stars_deploy.config.profile import load_profile
    from stars_deploy.graph.canonical import canonical
    from stars_deploy.networks.families import build_student, seeded
    from stars_deploy.networks.to_nir import student_to_nir
    from stars_deploy.targets.loihi import lower

    torch.set_num_threads(1)
    recipe = recipe_of(family, 4)
    student = seeded(build_student, recipe, 0)
    student.eval()
    graph = canonical(student_to_nir(student, recipe))
    start = time.perf_counter()
    network = lower(graph, load_profile("loihi2"))
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
    weights = sum(int(array.size) for array in network.arrays.values())
    print(json.dumps({"seconds": seconds, "peak_memory_gib": peak, "integers": weights}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", choices=FAMILIES, help="measure one of them in this process")
    family = parser.parse_args().family
    if family:
        return measure(family)
    results = {}
    for name in FAMILIES:
        command = [sys.executable, __file__, "--family", name]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        results[name] = json.loads(done.stdout.splitlines()[-1])
        print(name, results[name])
    save("lowering", {"environment": environment(1), "seed": 0, **results})


if __name__ == "__main__":
    main()
