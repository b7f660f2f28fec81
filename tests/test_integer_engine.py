"""The batched integer engine against the slow model, and against numbers computed by hand."""

import numpy as np
import pytest
import random_integer_networks as networks
import slow_loihi

from stars_deploy.simulate.integer import IntegerEngine, build_engine
from stars_deploy.simulate.integer_network import parse_network

SEEDS = range(200)


def same(document, arrays, images, **options):
    """Compare every spike, potential and logit of the engine with the slow model's."""
    spikes, potentials, logits = slow_loihi.run(document, arrays, images)
    engine = IntegerEngine(parse_network(document, arrays), **options)
    recording = engine.run(images, margins=True)
    for entry in document["populations"]:
        if entry["spiking"]:
            name = entry["name"]
            np.testing.assert_array_equal(recording.spikes[name], spikes[name])
            margin = (potentials[name] / 64 - entry["vth"]) / entry["scale"]
            np.testing.assert_array_equal(recording.margins[name], margin.astype(np.float32))
    np.testing.assert_array_equal(recording.logits, logits.astype(np.float32))
    return spikes


@pytest.mark.parametrize("block", range(20))
def test_random_networks_equal_the_slow_model(block):
    for seed in SEEDS[block::20]:
        document, arrays = networks.random_integer_network(seed)
        same(document, arrays, networks.random_images(document, seed))
