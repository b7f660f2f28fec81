"""The image as biases of the host: by hand, against the slow model, and inside the mantissa."""

import numpy as np
import pytest
import random_networks
import slow_loihi
from random_residual import random_residual_graph
from test_integer_dags import compare

from stars_deploy.config.profile import load_profile
from stars_deploy.targets.loihi import lower

LOIHI1 = load_profile("loihi1")


def lowered(seed, residual, balance="relay"):
    graph = random_residual_graph(seed) if residual else random_networks.random_graph(seed)
    network = lower(graph, LOIHI1, balance)
    images = random_networks.random_images(3, random_networks.image_shape(graph), seed)
    return dict(network.document), dict(network.arrays), images


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("residual", [False, True])
def test_engine_equals_the_slow_model(seed, residual):
    compare(*lowered(seed, residual))
