"""Our files in other authors' hands: SpikingJelly, snnTorch, onnxruntime and snn-mlir.

    python benchmarks/judges.py [RUN ...]

Networks of tests/judges_networks.py, three seeds each, are written as graph.nir and read by
SpikingJelly and snnTorch in the environment of `make judges`; spikes are compared with the float
engine step by step. onnxruntime runs model.onnx (spike counts per neuron over T) in every operator
set and at several batch sizes. snn-mlir checks and decodes raw and folded graphs. Every RUN
(default: demo/run) is exported with int8 weights and measured on the 2,000 packaged images.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import nir
import numpy as np
from common import environment, save

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from judges_environment import Answer, Question, ask, versions
from judges_networks import EDGES, NETWORKS, residual, resnet20
from random_networks import image_shape, random_images

from stars_deploy.files import read_json
from stars_deploy.graph.gain import fold_gain
from stars_deploy.graph.reader import read_graph
from stars_deploy.simulation.onnx_engine import Counts, OnnxEngine
from stars_deploy.simulation.recording import Recording
from stars_deploy.simulation.reference import FloatEngine
from stars_deploy.targets.onnx_options import FILES, OPSETS, OnnxOptions
from stars_deploy.workflow.export import export, write_onnx
from stars_deploy.workflow.validate import validate

SEEDS, IMAGES = (0, 1, 2), 16
BATCHES = (1, 3, 16)
SIMULATORS = ("spikingjelly", "snntorch")
WHITE = np.full((1, 1, 1, 1), 255, np.uint8)
Json = dict[str, Any]


def counts_of(
    graph: nir.NIRGraph, images: np.ndarray[Any, Any], options: OnnxOptions, batch: int
) -> Counts:
    """What onnxruntime counts in model.onnx, `batch` images at a time."""
    with tempfile.TemporaryDirectory() as folder:
        write_onnx(graph, Path(folder), options)
        model, step = (Path(folder) / name for name in FILES["float32"])
        engine = OnnxEngine(model, step, threads=1)
    parts = [engine.counts(images[i : i + batch]) for i in range(0, len(images), batch)]
    return Counts(
        np.concatenate([part.logits for part in parts]),
        {node: np.concatenate([part.spikes[node] for part in parts]) for node in engine.nodes},
    )


def onnx_differences(expected: Recording, counts: Counts) -> Json:
    """Neurons whose spike count over T differs, and the largest difference of a logit."""
    wrong = {n: counts.spikes[n] != s.sum(axis=0) for n, s in expected.spikes.items()}
    return {
        "mismatches": sum(int(np.count_nonzero(w)) for w in wrong.values()),
        "compared": sum(w.size for w in wrong.values()),
        "logits_difference": float(np.abs(counts.logits - expected.logits).max()),
    }


def judged(expected: Recording, answer: Answer) -> Json:
    """Neuron-steps in which a judge differs, in all layers, or why it did not run."""
    if answer.error is not None or answer.logits is None:
        return {"error": answer.error}
    wrong = {node: answer.spikes[node] != train for node, train in expected.spikes.items()}
    return {
        "mismatches": sum(int(np.count_nonzero(w)) for w in wrong.values()),
        "logits_difference": float(np.abs(answer.logits - expected.logits).max()),
    }


def networks() -> list[Json]:
    """One row per network and seed; all questions go to one process."""
    cases = [(name, seed, NETWORKS[name](seed)) for name in NETWORKS for seed in SEEDS]
    images = [random_images(IMAGES, image_shape(graph), seed) for _, seed, graph in cases]
    asked = [
        Question(judge, graph, x)
        for (_, _, graph), x in zip(cases, images, strict=True)
        for judge in SIMULATORS
    ]
    answers = iter(ask(asked, timeout=1800))
    rows = []
    for (name, seed, graph), x in zip(cases, images, strict=True):
        expected = FloatEngine(graph).run(x, margins=True)
        rates = [float(spikes.mean()) for spikes in expected.spikes.values()]
        margins = (expected.margins or {}).values()
        row = {
            "network": name,
            "seed": seed,
            "layers": len(rates),
            "neuron_steps": sum(spikes.size for spikes in expected.spikes.values()),
            "spikes": sum(int(spikes.sum()) for spikes in expected.spikes.values()),
            "rates": rates,
            "smallest_margin": min(float(np.abs(margin).min()) for margin in margins),
            **{judge: judged(expected, next(answers)) for judge in SIMULATORS},
            "onnxruntime": onnx_differences(expected, counts_of(graph, x, OnnxOptions(), IMAGES)),
        }
        print({key: row[key] for key in ("network", "seed", *SIMULATORS)}, flush=True)
        rows.append(row)
    return rows


def edges() -> list[Json]:
    """Single neurons where a judge differs from NIR's equations or refuses: the spike trains."""
    asked = [Question(judge, graph, WHITE) for graph in EDGES.values() for judge in SIMULATORS]
    answers = iter(ask(asked))
    rows = []
    for name, graph in EDGES.items():
        row: Json = {"case": name, "float": _train(FloatEngine(graph).run(WHITE).spikes)}
        for judge in SIMULATORS:
            answer = next(answers)
            row[judge] = answer.error or _train(answer.spikes)
        rows.append(row)
    return rows


def folded_residual() -> Json:
    """Folding puts 1/tau of an identity skip into a nir.Scale: what each simulator says of it."""
    graph = fold_gain(residual(0))
    images = random_images(2, image_shape(graph), 0)
    answers = ask([Question(judge, graph, images) for judge in SIMULATORS])
    return {judge: answer.error for judge, answer in zip(SIMULATORS, answers, strict=True)}


def _train(spikes: Any) -> list[int]:
    train: list[int] = spikes["lif1"].ravel().tolist()
    return train


def compiled() -> list[Json]:
    """snn-mlir's verdict on raw and folded graphs, and the decays that it decodes."""
    cases = [(name, gain) for name in NETWORKS for gain in ("raw", "folded")]
    graphs = [
        fold_gain(NETWORKS[n](0)) if gain == "folded" else NETWORKS[n](0) for n, gain in cases
    ]
    answers = ask([Question("snn-mlir", graph) for graph in graphs])
    rows = []
    for (name, gain), graph, answer in zip(cases, graphs, answers, strict=True):
        dt = graph.metadata["dt"]
        neurons = {n: node for n, node in graph.nodes.items() if isinstance(node, nir.LIF)}
        right = {n: float(1 - dt / node.tau.flat[0]) for n, node in neurons.items()}
        said = dict(answer.document)
        decays = said.get("decays")
        said["decays_right"] = decays is not None and all(
            math.isclose(decays[n], value, abs_tol=1e-9) for n, value in right.items()
        )
        rows.append({"network": name, "gain": gain, "decays_of_the_graph": right, **said})
    return rows


def operator_sets() -> Json:
    """Every operator set and batch size on a residual and a pooled network."""
    rows = []
    for name in ("residual, projection", "by hand"):
        graph = NETWORKS[name](0)
        x = random_images(IMAGES, image_shape(graph), 0)
        expected = FloatEngine(graph).run(x)
        for opset in OPSETS["float32"]:
            for batch in BATCHES:
                found = onnx_differences(expected, counts_of(graph, x, OnnxOptions(opset), batch))
                rows.append({"network": name, "opset": opset, "batch": batch, **found})
    return {"opsets": list(OPSETS["float32"]), "batch_sizes": BATCHES, "rows": rows}


def int8(run: Path) -> Json:
    """Size, accuracy and agreement of a student with int8 weights."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        export(run, ["onnx"], "loihi2", 16, "raw", bundle, onnx_weights="int8")
        sizes = {name: (bundle / name).stat().st_size for pair in FILES.values() for name in pair}
        verdicts = {
            engine: validate(bundle, "loihi2", engine, "evaluation")
            for engine in ("onnx", "onnx-int8")
        }
        nodes = read_graph(bundle / "graph.nir").nodes.values()
    seed = read_json(run / "summary.json")["seed"]
    keys = ("verdict", "n", "accuracy", "agreement", "readout")
    layers = ("name", "neurons", "rate", "spikes_reference", "spikes_target", "mismatches")
    return {
        "seed": seed,
        "bytes": sizes,
        "weights": sum(node.weight.size for node in nodes if hasattr(node, "weight")),
        **{
            engine: {
                **{key: result[key] for key in keys},
                "layers": [{key: layer[key] for key in layers} for layer in result["layers"]],
            }
            for engine, result in verdicts.items()
        },
    }


def large() -> Json:
    """Sizes of the models of an S-ResNet-20 with random weights, 32x32x3, T = 4."""
    graph = resnet20()
    with tempfile.TemporaryDirectory() as folder:
        write_onnx(graph, Path(folder), OnnxOptions(weights="int8"))
        sizes = {name: (Path(folder) / name).stat().st_size for p in FILES.values() for name in p}
    weights = sum(node.weight.size for node in graph.nodes.values() if hasattr(node, "weight"))
    return {"network": "S-ResNet-20", "weights": weights, "bytes": sizes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", type=Path, default=[Path("demo/run")])
    runs = parser.parse_args().runs
    result = {
        "what": __doc__,
        "environment": environment(1),
        "judges": versions(),
        "seeds": SEEDS,
        "images": IMAGES,
        "networks": networks(),
        "edges": edges(),
        "folded_residual": folded_residual(),
        "snn_mlir": compiled(),
        "onnx": operator_sets(),
        "int8": [int8(run) for run in runs],
        "int8_large": large(),
    }
    save("judges", result)


if __name__ == "__main__":
    main()
