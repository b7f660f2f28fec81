"""Lava itself: run_lava.py against hand-computed spikes and the slow int64 model.

All networks run in one Lava process (see lava_batch.py).
"""

import copy
import json
from pathlib import Path

import lava_batch
import lava_documents
import numpy as np
import pytest
import random_networks
import slow_loihi
from random_integer_networks import fires_everywhere, random_images, random_integer_network

from stars_deploy.assets import asset
from stars_deploy.config.profile import load_profile
from stars_deploy.errors import DataError, EngineError
from stars_deploy.simulation.integer.engine import build_engine
from stars_deploy.simulation.lava.engine import LavaEngine
from stars_deploy.simulation.lava.environment import REMEDY, environment_status
from stars_deploy.simulation.lava.worker import run_kit
from stars_deploy.simulation.trace import read_trace, recording_of
from stars_deploy.targets.loihi import lower
from stars_deploy.targets.netx import write_netx
from stars_deploy.targets.netx_rules import netx_problems

pytestmark = pytest.mark.lava

RANDOM = [f"random{seed}" for seed in range(20)]
LOWERED = {f"lowered{seed}": seed for seed in (0, 1, 7)}


@pytest.fixture(scope="module")
def lava_environment():
    """The environment must be there: a missing judge is a failure, not a skip."""
    status = environment_status()
    if not status.ready:
        pytest.fail(f"the Lava environment is {status.reason}: {REMEDY}")
    return status


def networks():
    """All networks: name -> (document, arrays, images)."""
    found = written_by_hand()
    for seed, name in enumerate(RANDOM):
        document, arrays = random_integer_network(seed)
        found[name] = (document, arrays, random_images(document, seed, count=3))
    for name, seed in LOWERED.items():
        network = lower(random_networks.random_graph(seed), load_profile("loihi2"))
        shape = tuple(reversed(network.document["input"]["shape_whc"]))
        images = random_networks.random_images(3, shape, seed)
        found[name] = (network.document, network.arrays, images)
    return found


def written_by_hand():
    found = {"hand": lava_documents.hand_computed()[:3]}
    found["chain"] = lava_documents.asymmetric_chain()
    found["paths"] = lava_documents.two_paths()
    late = copy.deepcopy(found["chain"][0])
    late["populations"][1]["reset_offset"] += 1
    found["late_reset"] = (late, *found["chain"][1:])
    return found


@pytest.fixture(scope="module")
def cases():
    return networks()


@pytest.fixture(scope="module")
def lava(lava_environment, cases, tmp_path_factory):
    """What Lava computed: function (name, network) -> Trace."""
    folder = tmp_path_factory.mktemp("lava")
    jobs = []
    for name, case in cases.items():
        lava_documents.write_bundle(folder / name, *case)
        jobs.append([str(folder / name), "raw", str(folder / f"{name}.raw.npz")])
    for name in ("hand", "chain"):
        lava_documents.write_netx(folder / name / "loihi" / "network.net", *cases[name][:2])
        jobs.append([str(folder / name), "netx", str(folder / f"{name}.netx.npz")])
    for name in [*LOWERED, *netx_randoms(cases)]:
        write_netx(*cases[name][:2], folder / name / "loihi" / "network.net")
        jobs.append([str(folder / name), "netx", str(folder / f"{name}.netx.npz")])
    (folder / "jobs.json").write_text(json.dumps(jobs))
    kit = asset("export", "run_lava.py")
    run_kit(Path(lava_batch.__file__), [str(kit), str(folder / "jobs.json")], timeout=500)
    return lambda name, network="raw": read_trace(folder / f"{name}.{network}.npz")


def netx_randoms(cases):
    """The first five random networks that a NetX file can hold."""
    return [name for name in RANDOM if not netx_problems(*cases[name][:2])][:5]


def mismatches(trace, document, arrays, images):
    """Spikes that differ from the slow model's, per population, and read-out values that do."""
    spikes, potentials, _ = slow_loihi.run(document, arrays, images)
    names = [entry["name"] for entry in document["populations"] if entry["spiking"]]
    assert sorted(trace.spikes) == sorted(names)
    wrong = {name: int((trace.spikes[name] != spikes[name]).sum()) for name in names}
    last = potentials[document["readout"]["population"]][-1]
    return wrong, int((trace.readout != last).sum())


@pytest.mark.parametrize("network", ["raw", "netx"])
def test_spikes_computed_by_hand(lava, network):
    _, _, _, spikes, readout = lava_documents.hand_computed()
    trace = lava("hand", network)
    np.testing.assert_array_equal(trace.spikes["lif"], spikes)
    np.testing.assert_array_equal(trace.readout, readout)
    np.testing.assert_array_equal(trace.logits, [[13, 3.5], [0, 0]])


@pytest.mark.parametrize("network", ["raw", "netx"])
def test_asymmetric_kernels_on_maps_that_are_not_square(lava, cases, network):
    wrong, readout = mismatches(lava("chain", network), *cases["chain"])
    assert wrong == {"l1": 0, "l2": 0, "l3": 0} and readout == 0
    rates = [spikes.mean() for spikes in lava("chain", network).spikes.values()]
    assert all(0.05 < rate < 0.95 for rate in rates), rates


def test_two_connections_add_up_in_one_population(lava, cases):
    wrong, readout = mismatches(lava("paths"), *cases["paths"])
    assert wrong == {"a": 0, "b": 0, "sum": 0} and readout == 0
    assert 0.05 < lava("paths").spikes["sum"].mean() < 0.95


@pytest.mark.parametrize("name", RANDOM)
def test_random_networks(lava, cases, name):
    wrong, readout = mismatches(lava(name), *cases[name])
    assert not any(wrong.values()) and readout == 0, (wrong, readout)


def test_random_networks_through_our_netx_files(lava, cases):
    names = netx_randoms(cases)
    assert len(names) == 5
    for name in names:
        wrong, readout = mismatches(lava(name, "netx"), *cases[name])
        assert not any(wrong.values()) and readout == 0, (name, wrong, readout)


@pytest.mark.parametrize("network", ["raw", "netx"])
@pytest.mark.parametrize("name", LOWERED)
def test_lowered_graphs_against_the_integer_engine(lava, cases, name, network):
    document, arrays, images = cases[name]
    integer = build_engine(document, arrays).run(images)
    trace = lava(name, network)
    assert list(trace.spikes) == list(integer.spikes)
    for node, spikes in integer.spikes.items():
        np.testing.assert_array_equal(trace.spikes[node], spikes)
        assert 0.01 < spikes.mean() < 0.95
    np.testing.assert_array_equal(trace.logits, integer.logits)


def test_random_networks_are_evidence(cases):
    fires = [fires_everywhere(cases[name][0], slow_loihi.run(*cases[name])[0]) for name in RANDOM]
    assert sum(fires) >= 16, fires


def test_a_reset_one_step_late_changes_spikes(lava, cases):
    """The fault must show in its own population, and not before it."""
    wrong, _ = mismatches(lava("late_reset"), *cases["chain"])
    assert wrong["l1"] == 0 and wrong["l2"] > 0, wrong
    pipelined, _ = mismatches(lava("late_reset"), *cases["late_reset"])
    assert pipelined == {"l1": 0, "l2": 0, "l3": 0}  # the slow model has the same fault


def test_a_trace_names_its_bundle_and_images(lava, cases, tmp_path):
    trace, images = lava("hand"), cases["hand"][2]
    nodes = {"lif": "lif"}
    assert recording_of(trace, tmp_path, images, nodes).engine.name == "lava-fixed_pt"
    with pytest.raises(DataError, match="other images"):
        recording_of(trace, tmp_path, images[::-1], nodes)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match="another bundle"):
        recording_of(trace, tmp_path, images, nodes)


def test_engine_runs_the_kit(lava_environment, tmp_path):
    document, arrays, images, spikes, _ = lava_documents.hand_computed()
    bundle = lava_documents.write_bundle(tmp_path / "bundle", document, arrays, images)
    (bundle / "manifest.json").write_text("{}")
    engine = LavaEngine(bundle, timeout=120)
    answer = engine.run(images[::-1])
    assert (answer.engine.name, answer.engine.version) == ("lava-fixed_pt", "0.10.0")
    assert engine.nodes == ["lif"]
    np.testing.assert_array_equal(answer.spikes["lif"], spikes[:, ::-1])
    np.testing.assert_array_equal(answer.logits, [[0, 0], [13, 3.5]])
    with pytest.raises(EngineError, match="no feed"):
        engine.run(images, feed={})


def test_timing_streams_without_recording(lava_environment, tmp_path):
    document, arrays, images, *_ = lava_documents.hand_computed()
    bundle = lava_documents.write_bundle(tmp_path / "bundle", document, arrays, images)
    timings = LavaEngine(bundle, timeout=120).timings(images)
    assert timings["steps"] == 2 * 2 + 2
    assert timings["images_per_second"] == pytest.approx(2 / timings["run_s"])
