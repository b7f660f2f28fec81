"""Where S-ResNet-20 and S-ResNet-19 lie: cores, what does not fit, and what would hold it.

Random weights of the recipe's shapes (CIFAR-10, T = 4). Loihi 2 with and without declared sharing
of convolution kernels, and systems of more chips; the findings are what `check` says.
"""

from __future__ import annotations

import math
from typing import Any

import nir
from common import environment, save
from student_step import recipe_of

from stars_deploy.config.profile import Profile, load_profile
from stars_deploy.graph.canonical import canonical
from stars_deploy.networks.families import build_student, seeded
from stars_deploy.networks.to_nir import student_to_nir
from stars_deploy.targets.loihi import Balance
from stars_deploy.validation.check import examine

CASES: tuple[tuple[str, str, bool, Balance], ...] = (
    ("resnet20", "loihi2", True, "relay"),
    ("resnet20", "loihi2", True, "delay"),
    ("resnet20", "loihi2", False, "relay"),
    ("resnet19", "loihi2", True, "relay"),
    ("resnet19", "loihi2", True, "delay"),
    ("resnet19", "loihi2-kapoho-point", True, "relay"),
    ("resnet19", "loihi2-kapoho-point", True, "delay"),
)


def graph_of(family: str) -> nir.NIRGraph:
    recipe = recipe_of(family, 4)
    student = seeded(build_student, recipe, 0)
    student.eval()
    return canonical(student_to_nir(student, recipe))


def unshared(profile: Profile) -> Profile:
    limits = profile.limits.model_copy(update={"convolution_sharing": None})
    return profile.model_copy(update={"limits": limits})


def examined(family: str, name: str, sharing: bool, balance: Balance) -> dict[str, Any]:
    profile = load_profile(name)
    found = examine(graph_of(family), profile if sharing else unshared(profile), balance)
    placement = found.placement
    assert placement is not None
    neurons = sum(math.prod(item.shape) for item in placement.populations)
    result = {
        "network": family,
        "profile": name,
        "convolution_sharing": sharing,
        "balance": balance,
        "neurons": neurons,
        "cores": sum(len(item.parts) for item in placement.populations),
        "fits": not placement.misfits,
        "says": [
            str(item)
            for item in found.findings
            if item.severity != "info" or item.code in ("cores", "balance")
        ],
    }
    print(result, flush=True)
    return result


def main() -> None:
    results = [examined(*case) for case in CASES]
    save("placement", {"environment": environment(1), "cases": results})


if __name__ == "__main__":
    main()
