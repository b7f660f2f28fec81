"""The batched integer engine against the slow model, on networks with delays and relays."""

import copy

import numpy as np
import pytest
import random_integer_dags as dags
import slow_loihi
from random_integer_networks import fires_everywhere, random_images

from stars_deploy.errors import BundleError
from stars_deploy.simulation.integer.engine import build_engine

NETWORKS, CHUNKS = 120, 4


def compare(document, arrays, images):
    """Every spike, potential and logit of the engine with the slow model's; returns its spikes."""
    spikes, potentials, logits = slow_loihi.run(document, arrays, images)
    recording = build_engine(document, arrays).run(images, margins=True)
    nodes = [e for e in document["populations"] if e["spiking"] and e["node"] is not None]
    assert sorted(recording.spikes) == sorted(entry["node"] for entry in nodes)
    for entry in nodes:
        name, node = entry["name"], entry["node"]
        np.testing.assert_array_equal(recording.spikes[node], spikes[name])
        margin = (potentials[name] / 64 - entry["vth"]) / entry["scale"]
        np.testing.assert_array_equal(recording.margins[node], margin.astype(np.float32))
    np.testing.assert_array_equal(recording.logits, logits.astype(np.float32))
    return spikes


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_random_dags_equal_the_slow_model(chunk):
    fires = []
    for seed in range(chunk, NETWORKS, CHUNKS):
        document, arrays = dags.random_integer_dag(seed)
        images = random_images(document, seed)
        fires.append(fires_everywhere(document, compare(document, arrays, images)))
    assert np.mean(fires) >= 0.8


def test_the_order_of_populations_and_connections_is_of_no_matter():
    for seed in range(5):
        document, arrays = dags.random_integer_dag(seed)
        for key in ("populations", "connections"):
            document[key] = document[key][::-1]
        compare(document, arrays, random_images(document, seed))


def test_depths_that_delays_do_not_explain_are_refused():
    refused = 0
    for seed in range(10):
        document, arrays = dags.random_integer_dag(seed)
        for number, entry in enumerate(document["connections"]):
            if entry["delay"]:
                wrong = copy.deepcopy(document)
                wrong["connections"][number]["delay"] -= 1
                with pytest.raises(BundleError, match="delay"):
                    build_engine(wrong, arrays)
                refused += 1
    assert refused >= 10
