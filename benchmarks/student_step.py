"""A training step of a spiking student, forward and backward, against SpikingJelly's multi-step.

Three processes, our fused neuron, our compiled one and SpikingJelly, do steps in turn:
same network (S-ResNet-20 or S-VGG-16), weights, batch, T, threads and loss; fp32, channels_last,
the stem outside the time loop in all.
SpikingJelly runs in an environment of its own with the torch of ours. Gradients of all
convolutions are compared in float64.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import environment, save, spread

from stars_deploy.config.recipe import Recipe, parse_recipe
from stars_deploy.distillation.kd import kd_loss
from stars_deploy.networks.families import build_student, seeded
from stars_deploy.simulation.lava.environment import cache_dir

SPIKINGJELLY = "2.0.0"
HERE = Path(__file__).parent


def recipe_of(family: str, T: int, backend: str = "fused") -> Recipe:
    classes = [str(number) for number in range(10)]
    return parse_recipe(
        {
            "name": "step",
            "data": {
                "name": "step", "shape": [3, 32, 32], "classes": classes,
                "mean": [0.5] * 3, "std": [0.25] * 3,
            },
            "teacher": {"family": family},
            "student": {"T": T},
            "neuron": {"backend": backend},
        },
        "benchmark",
    )  # fmt: skip


def peak_memory(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise LookupError(key)


def serve(family: str, path: str, T: int, threads: int, backend: str) -> None:
    """Our side: the same commands as student_step_spikingjelly.py."""
    torch.set_num_threads(threads)
    arrays = {name: torch.from_numpy(value) for name, value in np.load(path).items()}
    x, goal = arrays.pop("x"), arrays.pop("goal")
    student = build_student(recipe_of(family, T, backend))
    student.load_state_dict(arrays)
    student.train().to(memory_format=torch.channels_last)
    x = x.contiguous(memory_format=torch.channels_last)
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_memory("VmRSS")
    for line in sys.stdin:
        command, _, argument = line.strip().partition(" ")
        if command == "step":
            begun = time.perf_counter()
            student.zero_grad(set_to_none=True)
            kd_loss(student(x), goal, 20.0).backward()
            print(time.perf_counter() - begun, flush=True)
        elif command == "gradients":
            exact = copy.deepcopy(student).double()
            kd_loss(exact(x.double()), goal.double(), 20.0).backward()
            named = {n: p.grad for n, p in exact.named_parameters() if n.endswith("conv.weight")}
            np.savez(argument, **{name: grad.numpy() for name, grad in named.items()})
            del exact, named
            print("saved", flush=True)
        elif command == "memory":
            print(peak_memory("VmHWM") - before, flush=True)


def spikingjelly_python() -> Path:
    """The interpreter of SpikingJelly's environment, built on first use."""
    torch_version = version("torch").partition("+")[0]
    folder = cache_dir() / f"spikingjelly-{SPIKINGJELLY}-torch-{torch_version}"
    python = folder / "bin" / "python"
    if not (folder / "ready").is_file():
        uv = [sys.executable, "-m", "uv"]
        subprocess.run(
            [*uv, "venv", "--clear", "--python", sys.executable, str(folder)], check=True
        )
        wanted = [f"spikingjelly=={SPIKINGJELLY}", f"torch=={torch_version}", "numpy", "scipy"]
        subprocess.run([*uv, "pip", "install", "--python", str(python), *wanted], check=True)
        (folder / "ready").touch()
    return python


class Side:
    """One of the two processes."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, text: str) -> str:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(text + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline().strip()
        if not answer:
            raise SystemExit("a benchmark process died; its message is above")
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def measured(family: str, T: int, batch: int, rounds: int, threads: int) -> dict[str, Any]:
    student = seeded(build_student, recipe_of(family, T), 0)
    rng = torch.Generator().manual_seed(0)
    for name, tensor in student.state_dict().items():
        if name.endswith("bn.bias"):  # so that layers fire
            tensor.copy_(torch.rand(tensor.shape, generator=rng) * 0.8 + 0.6)
    x = torch.randn(batch, 3, 32, 32, generator=rng)
    goal = torch.randn(batch, 10, generator=rng) * 3
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "network.npz")
        arrays = {name: tensor.numpy() for name, tensor in student.state_dict().items()}
        np.savez(path, x=x.numpy(), goal=goal.numpy(), **arrays)
        arguments = [family, path, str(T), str(threads)]
        script = str(HERE / "student_step_spikingjelly.py")
        serving = [sys.executable, __file__, "--serve", *arguments]
        sides = {backend: Side([*serving, backend]) for backend in ("fused", "compiled")}
        sides["spikingjelly"] = Side([str(spikingjelly_python()), script, *arguments])
        times: dict[str, list[float]] = {name: [] for name in sides}
        for round_ in range(rounds + 1):
            for name, side in sides.items():
                seconds = float(side.ask("step"))
                if round_ > 0:  # the first step allocates
                    times[name].append(seconds)
        memory = {name: int(side.ask("memory")) for name, side in sides.items()}
        difference = gradient_difference(sides, Path(folder))
        for side in sides.values():
            side.close()
    theirs = times["spikingjelly"]
    return {
        "family": family,
        "T": T,
        "batch": batch,
        "gradient_relative_difference": difference,
        "seconds": {name: spread(values) for name, values in times.items()},
        "time_ratio": {
            name: statistics.median(a / b for a, b in zip(times[name], theirs, strict=True))
            for name in ("fused", "compiled")
        },
        "peak_bytes": memory,
        "memory_ratio": {
            name: memory[name] / memory["spikingjelly"] for name in ("fused", "compiled")
        },
    }


def gradient_difference(sides: dict[str, Side], folder: Path) -> dict[str, float]:
    """Per backend the largest |a - b| / |b| of a convolution's gradient, in float64.

    In float32 sums in another order let a few currents fall on the other side of the threshold,
    and what follows from a spike more or less is no rounding error.
    """
    found = {}
    for name, side in sides.items():
        side.ask(f"gradients {folder / name}.npz")
        found[name] = dict(np.load(folder / f"{name}.npz"))
    theirs = found.pop("spikingjelly")
    return {
        backend: max(
            float(np.linalg.norm(grads[name] - grad) / max(np.linalg.norm(grad), 1e-12))
            for name, grad in theirs.items()
        )
        for backend, grads in found.items()
    }


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]), sys.argv[6])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=15, help="of resnet20; vgg16 has a third")
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    results = []
    for family, rounds in (("resnet20", chosen.rounds), ("vgg16", chosen.rounds // 3)):
        results.append(measured(family, 4, chosen.batch, rounds, chosen.threads))
        shown = {k: results[-1][k] for k in ("time_ratio", "memory_ratio")}
        print(family, shown, results[-1]["gradient_relative_difference"], flush=True)
    save(
        "student_step",
        {
            "what": __doc__,
            "environment": environment(chosen.threads),
            "spikingjelly": SPIKINGJELLY,
            "results": results,
        },
    )


if __name__ == "__main__":
    main()
