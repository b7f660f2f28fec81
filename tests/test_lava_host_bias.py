"""Lava itself with the image as biases that run_lava.py writes between steps.

All networks run in one Lava process (see lava_batch.py).
"""

import json
from pathlib import Path

import lava_batch
import lava_documents
import numpy as np
import pytest
import random_host
import slow_loihi
from random_networks import image_shape, random_graph, random_images
from random_residual import fires, random_residual_graph

from stars_deploy.assets import asset
from stars_deploy.config.profile import load_profile
from stars_deploy.errors import BundleError
from stars_deploy.simulation.integer.engine import build_engine
from stars_deploy.simulation.lava.engine import LavaEngine
from stars_deploy.simulation.lava.environment import REMEDY, environment_status
from stars_deploy.simulation.lava.worker import run_kit
from stars_deploy.simulation.trace import read_trace
from stars_deploy.targets.loihi import lower

pytestmark = pytest.mark.lava

KIT = asset("export", "run_lava.py")
CHAINS = {f"chain{steps}": (seed, steps) for seed, steps in ((1, 4), (5, 3))}
RESIDUAL = {f"residual{seed}": seed for seed in (0, 2, 3, 8, 14, 20, 23)}
MEMBRANES = {f"membrane{steps}": steps for steps in (3, 4)}
DAGS = {f"dag{seed}": seed for seed in range(6)}


def graphs():
    """Chains, residual graphs, and graphs whose membrane skips bring the image late."""
    found = {name: random_graph(s, steps=(t, t)) for name, (s, t) in CHAINS.items()}
    found |= {name: random_residual_graph(seed) for name, seed in RESIDUAL.items()}
    blocks = ["membrane", "membrane"]
    for name, steps in MEMBRANES.items():
        found[name] = random_residual_graph(steps, blocks=blocks, steps=(steps, steps))
    return found


@pytest.fixture(scope="module")
def cases():
    """All networks: name -> (document, arrays, images)."""
    found = {"hand": random_host.by_hand()}
    for number, (name, graph) in enumerate(graphs().items()):
        network = lower(graph, load_profile("loihi1"), "delay" if number % 2 else "relay")
        images = random_images(3, image_shape(graph), number)
        found[name] = (dict(network.document), dict(network.arrays), images)
    return found | {name: random_host.random_hosted(seed) for name, seed in DAGS.items()}


def run_all(cases, kit, folder):
    """What Lava computed: function name -> Trace. A missing judge is a failure, not a skip."""
    status = environment_status()
    if not status.ready:
        pytest.fail(f"the Lava environment is {status.reason}: {REMEDY}")
    jobs = []
    for name, case in cases.items():
        lava_documents.write_bundle(folder / name, *case)
        jobs.append([str(folder / name), "raw", str(folder / f"{name}.npz")])
    (folder / "jobs.json").write_text(json.dumps(jobs))
    run_kit(Path(lava_batch.__file__), [str(kit), str(folder / "jobs.json")], timeout=500)
    return lambda name: read_trace(folder / f"{name}.npz")


@pytest.fixture(scope="module")
def lava(cases, tmp_path_factory):
    return run_all(cases, KIT, tmp_path_factory.mktemp("lava"))


def test_spikes_computed_by_hand(lava):
    trace = lava("hand")
    for name, expected in random_host.SPIKES.items():
        np.testing.assert_array_equal(trace.spikes[name].reshape(2, 3, -1), expected)
    np.testing.assert_array_equal(trace.logits, random_host.LOGITS)


@pytest.mark.parametrize("name", ["hand", *CHAINS, *RESIDUAL, *MEMBRANES, *DAGS])
def test_lava_equals_the_slow_model_and_the_engine(lava, cases, name):
    document, arrays, images = cases[name]
    assert document["input"]["encoding"] == "host_bias"
    trace = lava(name)
    spikes, _, logits = slow_loihi.run(document, arrays, images)
    integer = build_engine(document, arrays).run(images)
    for entry in document["populations"]:
        if entry["spiking"]:
            np.testing.assert_array_equal(trace.spikes[entry["name"]], spikes[entry["name"]])
    for node, found in integer.spikes.items():
        population = next(e["name"] for e in document["populations"] if e["node"] == node)
        np.testing.assert_array_equal(trace.spikes[population], found)
    np.testing.assert_array_equal(trace.logits, integer.logits)
    np.testing.assert_array_equal(trace.logits, logits.astype(np.float32))


def test_these_networks_are_evidence(cases):
    """They fire, and many hear the image late and spikes besides."""
    made = graphs()
    assert sum(map(fires, (made[name] for name in [*RESIDUAL, *MEMBRANES]))) >= 7
    mixed = 0
    for document, _, _ in cases.values():
        pairs = [(e["source"] == "input", e["target"]) for e in document["connections"]]
        mixed += any((True, name) in pairs and (False, name) in pairs for _, name in pairs)
    assert mixed >= 5
    assert all(cases[name][0]["T"] == steps for name, steps in MEMBRANES.items())


@pytest.mark.parametrize("steps", ["1", "-1"])
def test_biases_written_a_step_late_or_early_are_seen(cases, tmp_path, steps):
    """The judge can fail: another phase gives other spikes in the first population already."""
    right = "(k * T + depth_of(document, name), "
    source = KIT.read_text()
    assert source.count(right) == 1
    kit = tmp_path / "run_lava.py"
    kit.write_text(source.replace(right, f"(max(1, k * T + depth_of(document, name) + {steps}), "))
    trace = run_all({"hand": cases["hand"]}, kit, tmp_path)("hand")
    assert (trace.spikes["map"].reshape(2, 3, -1) != random_host.SPIKES["map"]).any()


def test_timing_and_netx(cases, tmp_path):
    document, arrays, images = cases["hand"]
    bundle = lava_documents.write_bundle(tmp_path / "bundle", document, arrays, images)
    timings = LavaEngine(bundle, timeout=120).timings(images)
    assert timings["steps"] == 3 * 2 + 3
    with pytest.raises(BundleError, match="NetX cannot write biases"):
        LavaEngine(bundle, network="netx", timeout=120).run(images)
