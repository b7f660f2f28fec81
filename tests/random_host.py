"""Integer networks whose image enters as biases of the host: by hand, and made of random DAGs."""

import numpy as np
import slow_loihi
from lava_documents import connection, document, population
from random_integer_dags import random_integer_dag
from random_integer_networks import random_images

ROOM = 3000  # of the 4095 of a bias mantissa; the rest is the population's own bias


def by_hand():
    """A map and a vector that hear the image, the second one step late; T = 2.

    Table q = pixel - 4. The kernel [3 5] with shift 2 gives (3 q + 5 q' + 2) >> 2, rounded down:
    image 0, q = -3 -2 -1 / 0 1 2, gives -17 >> 2 = -5, -9 >> 2 = -3, 7 >> 2 = 1, 15 >> 2 = 3,
    image 1, q = 4 4 0 / 0 0 0, gives 34 >> 2 = 8, 14 >> 2 = 3, 2 >> 2 = 0 and 0. With the bias 10:

        image 0: 5 7 11 13, leak 1/2, threshold 13: step 2 reaches 7.5 10.5 16.5 19.5
        image 1: 18 13 10 10: 18 fires twice; the others reach 19.5, 15 and 15 in step 2

    `late` has no memory and threshold 9. It hears all four, 1 2 4 8 and 0 0 0 16, and its own
    pixel, the first and the last: image 0 adds -3 and 2, image 1 adds 4 and 0. Then

        image 0: step 2: 4 + 8 - 3 = 9 does not fire, 16 + 2 does
        image 1: step 1: 1 + 4 = 5, 0 + 0; step 2: 15 + 4 and 16 both fire
    """
    network = document(
        (1, 2, 3),
        2,
        [
            population("map", (1, 2, 2), 1, 2, vth=13, dv=2048, bias="b.map"),
            population("late", (2,), 2, 2, vth=9, dv=4096),
            population("fc", (1,), 3, 2, vth=131071, spiking=False),
        ],
        [
            connection("input", "map", "w.map", "conv") | {"host_shift": 2},
            connection("input", "late", "w.pixel") | {"host_shift": 0},
            connection("map", "late", "w.late"),
            connection("late", "fc", "w.fc"),
        ],
    )
    network["input"]["encoding"] = "host_bias"
    arrays = {
        "input_table": np.arange(256)[None] - 4,
        "w.map": np.array([[[[3, 5]]]]),
        "b.map": np.array([10]),
        "w.pixel": np.array([[1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1]]),
        "w.late": np.array([[1, 2, 4, 8], [0, 0, 0, 16]]),
        "w.fc": np.array([[1, 3]]),
    }
    first, second = [[[1, 2, 3], [4, 5, 6]]], [[[8, 8, 4], [4, 4, 4]]]
    return network, arrays, np.array([first, second, first], np.uint8)


# [step][image][neuron] of the network by hand, and its logits: (3, 1 + 3, 3) / T.
SPIKES = {
    "map": [[[0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]], [[0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 1, 1]]],
    "late": [[[0, 0], [0, 0], [0, 0]], [[0, 1], [1, 1], [0, 1]]],
}
LOGITS = [[1.5], [2.0], [1.5]]


def random_hosted(seed):
    """Return (document, arrays, images) of a random DAG, its image connections on the host.

    No image leaves a mantissa. Thresholds are set anew, since the host's sums are smaller.
    """
    rng = np.random.default_rng([seed, 3])
    network, arrays = random_integer_dag(seed)
    images = random_images(network, seed)
    network["input"]["encoding"] = "host_bias"
    entries = [entry for entry in network["connections"] if entry["source"] == "input"]
    targets = [entry["target"] for entry in entries]
    largest = np.abs(arrays["input_table"]).max()
    for number, entry in enumerate(entries):
        weight = arrays[entry["weight_key"]].astype(float)
        sums = np.abs(weight).reshape(len(weight), -1).sum(axis=1).max() * largest
        shift = int(rng.integers(6, 25))
        wide = weight * (ROOM / targets.count(entry["target"]) / sums) * 2.0**shift
        arrays[f"w.host{number}"] = np.trunc(wide).astype(np.int64)
        kind = "conv" if weight.ndim == 4 else "dense"
        entry |= {"weight_key": f"w.host{number}", "host_shift": shift, "message_bits": 0}
        entry |= {"delay": 0, "kind": kind}
    for item in network["populations"]:
        if item["bias_key"] is not None and item["name"] in targets:
            arrays[item["bias_key"]] = np.clip(arrays[item["bias_key"]], -1000, 1000)
    for item in network["populations"]:
        if item["name"] in targets and item["spiking"]:
            _, potentials, _ = slow_loihi.run(network, arrays, images)
            peak = np.quantile(potentials[item["name"]].max(axis=0), rng.uniform(0.2, 0.7)) / 64
            item["vth"] = int(np.clip(peak - 1, 0, 131071))
    return network, arrays, images
