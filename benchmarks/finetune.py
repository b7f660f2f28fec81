"""What few bits cost a student, and what `stars-deploy finetune` wins back, on labelled images.

    python benchmarks/finetune.py RUN --data images.npz --weights teacher.safetensors

For a finished run: the float student, its plain lowering with every number of --bits, and for the
--tune bits the same after bias correction alone and after training with every seed. The images of
--data are measured on only; finetune sees the run's synthetic images. Results are written after
every measurement. Accuracy, agreement with the teacher and with the float student, and the spikes
of every population per image.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from common import environment, save
from numpy.typing import NDArray

CHUNK = 50  # images whose spikes are in memory at once
Logits = NDArray[np.float32]
Spikes = Mapping[str, float]


@dataclass(frozen=True)
class Bench:
    """What all measurements of one call share."""

    run: Path
    weights: Path | None
    data: str
    count: int
    lr: float


def images_of(bench: Bench) -> tuple[NDArray[np.uint8], NDArray[np.int64], Any]:
    from stars_deploy.data import load_data
    from stars_deploy.workflow.resume import recipe_of_run

    recipe, path = recipe_of_run(bench.run, None, bench.weights)
    images, labels = load_data(bench.data, recipe.data)
    return images[: bench.count], labels[: bench.count], (recipe, path)


def float_student(bench: Bench) -> dict[str, Any]:
    """Measure the teacher and the student as they were trained, in floats."""
    import torch

    from stars_deploy.networks.images import to_input
    from stars_deploy.networks.to_nir import node_names
    from stars_deploy.networks.weights import load_student, load_teacher

    images, labels, (recipe, path) = images_of(bench)
    teacher = load_teacher(recipe, path).eval()
    student = load_student(recipe, bench.run / "student.safetensors").eval()

    def taught(part: NDArray[np.uint8]) -> tuple[Logits, Spikes]:
        with torch.no_grad():
            return teacher(to_input(part, recipe.data, torch.device("cpu"))).numpy(), {}

    def learned(part: NDArray[np.uint8]) -> tuple[Logits, Spikes]:
        with torch.no_grad():
            taps = student.taps(to_input(part, recipe.data, torch.device("cpu")))
        spikes = zip(node_names(student), taps.activations, strict=True)
        return taps.step_logits.mean(0).numpy(), {name: float(x.sum()) for name, x in spikes}

    return {"teacher": _measured(taught, images, labels), **_measured(learned, images, labels)}


def integers(bench: Bench, bits: int, updates: int | None, seed: int) -> dict[str, Any]:
    """Measure integers of so many bits: as lowered (updates None), or fine-tuned."""
    from stars_deploy.config.profile import load_profile
    from stars_deploy.graph.reader import read_graph
    from stars_deploy.simulation.integer.engine import build_engine
    from stars_deploy.targets.loihi import lower
    from stars_deploy.workflow.finetune import Settings, finetune
    from stars_deploy.workflow.finetune_grid import with_bits
    from stars_deploy.workflow.sources import open_source

    start, result = time.monotonic(), {}
    if updates is None:
        graph = open_source(bench.run).graph
    else:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out"
            settings = Settings(updates, bench.lr, seed)
            report = finetune(bench.run, out, settings, bits=bits, weights=bench.weights)
            graph = read_graph(out / "graph.nir")
        result = {key: report[key] for key in ("agreement", "compared", "batch_size", "lr")}
    seconds = time.monotonic() - start
    lowered = lower(graph, with_bits(load_profile("loihi2"), bits))
    engine = build_engine(lowered.document, lowered.arrays)

    def classify(part: NDArray[np.uint8]) -> tuple[Logits, Spikes]:
        found = engine.statistics(part)
        return found.logits, {name: float(item.sum()) for name, item in found.spikes.items()}

    images, labels, _ = images_of(bench)
    measured = _measured(classify, images, labels)
    return {**measured, "finetune": result, "finetune_s": round(seconds, 1)}


def _measured(
    answer: Callable[[NDArray[np.uint8]], tuple[Logits, Spikes]],
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
) -> dict[str, Any]:
    """Return the accuracy, the classes, and the spikes per image of every population."""
    classes: list[int] = []
    total: dict[str, float] = {}
    for start in range(0, len(images), CHUNK):
        logits, spikes = answer(images[start : start + CHUNK])
        classes += logits.argmax(1).tolist()
        for name, count in spikes.items():
            total[name] = total.get(name, 0.0) + count
    per_image = {name: count / len(images) for name, count in total.items()}
    return {
        "accuracy": float((np.array(classes) == labels).mean()),
        "spikes_per_image": sum(per_image.values()),
        "spikes_by_population": per_image,
        "classes": classes,
    }


def _report(rows: dict[str, Any]) -> dict[str, Any]:
    """Return the rows without classes; agreement with teacher and float student instead."""
    known = rows.get("float")
    found = {}
    for name, row in rows.items():
        own = {key: value for key, value in row.items() if key not in ("classes", "teacher")}
        if known is not None:
            against = {"teacher": known["teacher"], "float": known}
            for title, other in against.items():
                same = np.equal(row["classes"], other["classes"]).mean()
                own[f"agreement_with_{title}"] = float(same)
        if "teacher" in row:
            own["teacher_accuracy"] = row["teacher"]["accuracy"]
        found[name] = own
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a finished run")
    parser.add_argument("--data", required=True, help="labelled images, as for evaluate --data")
    parser.add_argument("--weights", type=Path, help="the teacher's, if it is not packaged")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--bits", type=int, nargs="*", default=[8, 6, 4], help="lowered plainly")
    parser.add_argument("--tune", type=int, nargs="*", default=[4, 6], help="fine-tuned")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--updates", type=int, default=300)
    parser.add_argument("--lr", type=float, default=0.001)
    parser.add_argument("--jobs", type=int, default=1, help="processes, one thread each")
    args = parser.parse_args()
    bench = Bench(args.run, args.weights, args.data, args.images, args.lr)
    from stars_deploy.data import data_label
    from stars_deploy.workflow.sources import open_source

    head = {
        "environment": environment(1),
        "source": open_source(args.run).provenance(),
        "data": data_label(args.data, images_of(bench)[2][0].data),
        "images": args.images,
        "updates": args.updates,
        "lr": args.lr,
        "seeds": args.seeds,
    }
    rows: dict[str, Any] = {}
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(float_student, bench): "float"}
        for bits in args.bits:
            waiting[pool.submit(integers, bench, bits, None, 0)] = f"{bits} bits, plain"
        for bits in args.tune:
            waiting[pool.submit(integers, bench, bits, 0, 0)] = f"{bits} bits, biases only"
        for seed in args.seeds:
            for bits in args.tune:
                name = f"{bits} bits, seed {seed}"
                waiting[pool.submit(integers, bench, bits, args.updates, seed)] = name
        for done in as_completed(waiting):
            rows[waiting[done]] = done.result()
            print(waiting[done], rows[waiting[done]]["accuracy"], flush=True)
            save("finetune", {**head, "results": _report(rows)})


if __name__ == "__main__":
    main()
