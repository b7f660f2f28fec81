"""Runs in the judges' environment: other authors' simulators on our files. Imports nothing of ours.

    python -I judges_worker.py SITE versions
    python -I judges_worker.py SITE answer FOLDER

FOLDER holds questions.json (a list of judges) and for each number n.nir and n.npz: x, the
normalised images float64 [N, C, H, W]; T; dt in seconds. It gets n.json (error, or what snn-mlir
found) and n.answer.npz: spikes.<node> uint8 [T, N, ...] and logits float64 [N, K], mean over T.
"""

import importlib.metadata
import json
import sys
import warnings
from pathlib import Path

PACKAGES = ("spikingjelly", "snntorch", "snn-mlir", "nirtorch", "nir")


def main(site, task, folder=None):
    sys.path.insert(0, site)
    warnings.simplefilter("ignore")
    if task == "versions":
        import snn_mlir  # noqa: F401
        import snntorch.import_nir  # noqa: F401
        from spikingjelly.activation_based import nir_exchange  # noqa: F401

        print(json.dumps({name: importlib.metadata.version(name) for name in PACKAGES}))
        return
    folder = Path(folder)
    for number, judge in enumerate(json.loads((folder / "questions.json").read_text())):
        document = {"error": None}
        try:
            document.update(JUDGES[judge](folder / f"{number}.nir", folder / f"{number}.npz"))
        except Exception as problem:  # a refusal is an answer
            document["error"] = f"{type(problem).__name__}: {problem}"
        (folder / f"{number}.json").write_text(json.dumps(document))
    assert "stars_deploy" not in sys.modules


def spikingjelly(graph, inputs):
    import torch
    from loguru import logger
    from spikingjelly.activation_based.nir_exchange import import_from_nir

    logger.remove()
    x, steps, dt = read(inputs)
    net = import_from_nir(graph, dt=dt, dtype=torch.float64)
    return run(net, neurons_of(graph), [x], steps, inputs, lambda: None)


def snntorch(graph, inputs):
    """One image at a time: nir.Flatten(start_dim=0) takes the batch along (as nirtorch does)."""
    import nir
    from snntorch.import_nir import import_from_nir

    x, steps, _ = read(inputs)
    net = import_from_nir(nir.read(graph))  # its spikes are float32, so are its weights

    def reset():
        for module in net.modules():
            if hasattr(module, "reset_mem"):
                module.reset_mem()

    return run(net, neurons_of(graph), x.float().split(1), steps, inputs, reset)


def snn_mlir(graph, _):
    import snn_mlir as judge

    report = judge.check(graph)
    found = {"ok": report.ok, "errors": [f"{f.node}: {f.message}" for f in report.errors]}
    if report.ok:
        layers = list(judge.parse_graph(graph))
        found["decays"] = {layer.name: layer.decay for layer in layers if hasattr(layer, "decay")}
        found["mlir_bytes"] = len(judge.to_mlir(graph))
    return found


JUDGES = {"spikingjelly": spikingjelly, "snntorch": snntorch, "snn-mlir": snn_mlir}


def read(inputs):
    import numpy as np
    import torch

    with np.load(inputs) as arrays:
        return torch.from_numpy(arrays["x"]), int(arrays["T"]), float(arrays["dt"])


def neurons_of(graph):
    """Return the shape of every population, by name."""
    import nir

    nodes = nir.read(graph).nodes
    neurons = {n: node for n, node in nodes.items() if isinstance(node, (nir.LIF, nir.IF))}
    return {name: node.v_threshold.shape for name, node in neurons.items()}


def run(net, shapes, batches, steps, inputs, reset):
    """Run T steps per batch from rest; hooks keep what each neuron module puts out."""
    import numpy as np
    import torch

    seen, logits = {name: [] for name in shapes}, []
    modules = dict(net.named_modules())
    for name, values in seen.items():
        modules[name].register_forward_hook(lambda _, __, out, to=values: to.append(out))
    with torch.no_grad():
        for batch in batches:
            state, outputs = None, []
            reset()
            for _ in range(steps):
                output, state = net(batch, state)
                outputs.append(output.reshape(len(batch), -1))
            logits.append(torch.stack(outputs).mean(0))
    arrays = {f"spikes.{name}": trains(seen[name], batches, steps, shapes[name]) for name in shapes}
    logits = torch.cat(logits).double().numpy()
    np.savez(inputs.with_suffix(".answer.npz"), logits=logits, **arrays)
    return {}


def trains(values, batches, steps, shape):
    """Return uint8 [T, N, *shape] of what came batch after batch, step after step."""
    import numpy as np
    import torch

    values = [value[0] if isinstance(value, tuple) else value for value in values]
    parts = []
    for index, batch in enumerate(batches):
        train = torch.stack(values[index * steps : (index + 1) * steps])
        parts.append(train.reshape(steps, len(batch), *shape))
    joined = torch.cat(parts, dim=1).numpy()
    assert np.isin(joined, (0, 1)).all(), "not binary spikes"
    return joined.astype(np.uint8)


if __name__ == "__main__":
    main(*sys.argv[1:])
