"""Documents of written networks, built from layer shapes; nobody lowers anything here."""

import numpy as np


def shape_whc(shape):
    return [int(size) for size in reversed(shape)]


class Document:
    """A `network.json` with its arrays, layer after layer."""

    def __init__(self, image, steps=4, seed=0):
        self.rng = np.random.default_rng(seed)
        self.shapes = {"input": tuple(image)}
        self.arrays = {}
        self.document = {
            "schema": 1, "T": steps, "populations": [], "connections": [],
            "input": {"shape_whc": shape_whc(image)},
        }  # fmt: skip

    def population(self, name, shape, node="same"):
        self.shapes[name] = tuple(shape)
        node = name if node == "same" else node
        entry = {"name": name, "node": node, "shape_whc": shape_whc(shape), "spiking": True}
        self.document["populations"].append(entry)
        return name

    def weight(self, shape):
        return self.rng.integers(1, 128, shape).astype(np.int32)

    def connect(self, source, target, weight, kind=None, **options):
        name = f"c{len(self.document['connections'])}"
        self.arrays[name] = weight
        kind = kind or ("conv" if weight.ndim == 4 else "dense")
        entry = {
            "name": name, "node": name, "source": source, "target": target, "kind": kind,
            "weight_key": name, "stride": [1, 1], "padding": [0, 0], "dilation": [1, 1],
            "groups": 1, "delay": 0,
        }  # fmt: skip
        self.document["connections"].append(entry | options)
        return entry

    def dense(self, source, name, outputs):
        inputs = int(np.prod(self.shapes[source]))
        self.population(name, (outputs,))
        self.connect(source, name, self.weight((outputs, inputs)))
        return name

    def conv(self, source, name, channels, kernel=3, stride=1):
        inputs, height, width = self.shapes[source]
        padding = kernel // 2
        size = [(side + 2 * padding - kernel) // stride + 1 for side in (height, width)]
        self.population(name, (channels, *size))
        weight = self.weight((channels, inputs, kernel, kernel))
        self.connect(source, name, weight, stride=[stride] * 2, padding=[padding] * 2)
        return name


def residual_network(blocks, widths, classes, image=(3, 32, 32)):
    """A residual network: stem, then stages of blocks of two convolutions with a skip.

    The skip is a convolution of one tap, sent a step later: from the block's input as single
    synapses with a delay, or through a relay where the shape stays.
    """
    built = Document(image)
    last = built.conv("input", "stem", widths[0])
    for stage, (depth, width) in enumerate(zip(blocks, widths, strict=True)):
        for block in range(depth):
            stride = 2 if stage and not block else 1
            name = f"s{stage}b{block}"
            first = built.conv(last, f"{name}a", width, stride=stride)
            second = built.conv(first, f"{name}b", width)
            inputs = built.shapes[last][0]
            if inputs == width and stride == 1:
                relay = built.population(f"{name}r", built.shapes[last], node=None)
                tap = np.full((width, 1, 1, 1), 64, np.int32)
                built.connect(last, relay, tap, groups=width)
                built.connect(relay, second, 2 * tap, groups=width)
            else:
                weight = built.weight((width, inputs, 1, 1))
                built.connect(last, second, weight, "sparse_delay", stride=[stride] * 2, delay=1)
            last = second
    built.dense(last, "fc", classes)
    return built.document, built.arrays


def s_resnet20():
    return residual_network((3, 3, 3), (16, 32, 64), 10)


def s_resnet19():
    return residual_network((3, 3, 2), (128, 256, 512), 100)
