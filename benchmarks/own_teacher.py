"""A hand-written CIFAR ResNet-20 with its .th file goes the whole way, as its owner would go it.

    python benchmarks/own_teacher_train.py --data CIFAR10 --out resnet20.th
    python benchmarks/own_teacher.py resnet20.th --data CIFAR10 --seeds 0 1 2

Every step is a command line of stars-deploy, run in a process of its own. The distillation opens
no data; the labelled images are for measuring, before the student and after it.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import environment, mean_and_sd, save

ROOT = Path(__file__).parent.parent
# About four minutes of distillation on two idle cores.
SHORT = ["run.epochs=3", "kd.steps=40", "synthesis.nayer.gwp_loops=6"]
CIFAR = "--image-shape 3,32,32 --mean 0.4914,0.4822,0.4465 --std 0.2023,0.1994,0.201"
NAMES = "airplane,automobile,bird,cat,deer,dog,frog,horse,ship,truck"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = [one(Path(folder), seed, options) for seed in options.seeds]
    accuracies = [run["accuracy_by_t"][-1] for run in runs]
    save(
        "own_teacher",
        {
            **environment(options.threads),
            "what": "docs/examples/cifar_resnet20.py, weights saved from DataParallel as .th",
            "settings": SHORT,
            "teacher_accuracy": runs[0]["teacher_accuracy"],
            **mean_and_sd("student_accuracy", accuracies),
            "runs": runs,
        },
    )


def one(folder: Path, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    run, bundle = folder / f"run{seed}", folder / f"bundle{seed}"
    own = f"--teacher {ROOT}/docs/examples/cifar_resnet20.py:resnet20 --weights {options.weights}"
    change = " ".join(f"--set {item}" for item in [*SHORT, f"run.threads={options.threads}"])
    steps: dict[str, Any] = {"seed": seed}

    def command(text: str) -> dict[str, Any]:
        words = [sys.executable, "-m", "stars_deploy", "--json", *shlex.split(text)]
        begun = time.monotonic()
        result = subprocess.run(words, capture_output=True, text=True, check=False)
        if result.returncode not in (0, 3):  # 3: a verdict that fails is a result
            raise SystemExit(f"{text}\n{result.stderr}")
        steps.setdefault("seconds", {})[text.split()[0]] = round(time.monotonic() - begun, 1)
        return dict(json.loads(result.stdout))

    summary = command(f"distill {own} {CIFAR} --classes {NAMES} {change} --seed {seed} --out {run}")
    measured = command(f"evaluate {run} --data {options.data}")
    command(f"export {run} --target nir --target onnx --target loihi --out {bundle}")
    verdicts = {
        engine: command(f"validate {bundle} --engine {engine} {more}")
        for engine, more in (("onnx", ""), ("lava", "--limit 1"), ("integer", "--limit 16"))
    }
    steps |= {
        "distillation_s": summary["wall_time_s"],
        "method": summary["method"],
        "student_updates": summary["student_updates"],
        "teacher_accuracy": measured["teacher_accuracy"],
        "accuracy_by_t": measured["accuracy_by_t"],
        "n": measured["n"],
        "rates": measured["rate"],
        "verdicts": {
            engine: {
                "verdict": result["verdict"],
                "kind": result["engine"]["kind"],
                "n": result["n"],
                "mismatches": sum(layer["mismatches"] or 0 for layer in result["layers"]),
            }
            for engine, result in verdicts.items()
        },
    }
    print(json.dumps(steps), flush=True)
    return steps


if __name__ == "__main__":
    main()
