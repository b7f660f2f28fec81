"""One image, one thread: milliseconds of model.onnx, of T steps of model_step.onnx, and of torch.

The three are timed in alternation, with the spike outputs left out of what is fetched; torch runs
the float student in eval mode under inference_mode.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from common import environment, save, spread

from stars_deploy.config.recipe import load_recipe
from stars_deploy.data import load_data
from stars_deploy.networks.images import to_input
from stars_deploy.networks.weights import load_student

ROUNDS = 200
WARMUP = 20


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def unrolled(bundle: Path, image: np.ndarray) -> Callable[[], np.ndarray]:
    model = session(bundle / "model.onnx")
    return lambda: model.run(["logits"], {"image": image})[0]


def stepwise(bundle: Path, image: np.ndarray, T: int) -> Callable[[], np.ndarray]:
    model = session(bundle / "model_step.onnx")
    states = [value for value in model.get_inputs() if value.name.startswith("v.")]
    names = ["logits", *(value.name.replace("v.", "v_next.", 1) for value in states)]
    start = {value.name: np.zeros([1, *value.shape[1:]], np.float32) for value in states}

    def run() -> np.ndarray:
        inputs, total = {"image": image, **start}, 0.0
        for _ in range(T):
            logits, *after = model.run(names, inputs)
            inputs |= {value.name: v for value, v in zip(states, after, strict=True)}
            total = total + logits
        return total / T

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", type=Path, nargs="?", default=Path("demo"))
    folder = parser.parse_args().demo
    torch.set_num_threads(1)
    recipe = load_recipe(folder / "run" / "recipe.toml")
    images, _ = load_data("evaluation", recipe.data)
    image = images[:1].astype(np.float32) / 255
    student = load_student(recipe, folder / "run" / "student.safetensors")
    x = to_input(images[:1], recipe.data, torch.device("cpu"))

    def in_torch() -> np.ndarray:
        with torch.inference_mode():
            return student(x).numpy()

    bundle = folder / "bundle"
    contenders = {
        "onnx_unrolled": unrolled(bundle, image),
        "onnx_step": stepwise(bundle, image, recipe.student.T),
        "torch_student": in_torch,
    }
    answers = [run() for run in contenders.values()]
    assert all(np.allclose(answers[0], other, atol=1e-3) for other in answers[1:])
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for round_ in range(WARMUP + ROUNDS):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            if round_ >= WARMUP:
                times[name].append(1000 * (time.perf_counter() - start))
    result = {"environment": environment(threads=1), "unit": "ms", "T": recipe.student.T}
    for name, values in times.items():
        summary = spread(values)
        del summary["values"]
        result[name] = summary
        print(f"{name}: {summary['median']:.2f} ms")
    save("onnx_latency", result)


if __name__ == "__main__":
    main()
