"""Residual NIR graphs built by hand, with dyadic weights that integers hold without rounding."""

import nir
import numpy as np

from stars_deploy.graph.metadata import DT, GraphMetadata, with_metadata

# (pixel/255 - mean) / std = (pixel - 128) / 64: eight bits hold it without rounding.
EXACT_INPUT = {"mean": 128 / 255, "std": 64 / 255}


def lif(shape, tau=2.0, threshold=1.0, r=1.0):
    return nir.LIF(*(np.full(shape, x, np.float64) for x in (tau * DT, r, 0.0, threshold, 0.0)))


def neuron_if(shape, r=0.5, threshold=1.0):
    return nir.IF(r=np.full(shape, r), v_threshold=np.full(shape, threshold))


def leaky(shape, tau=2.0, r=1.0):
    return nir.LI(*(np.full(shape, x, np.float64) for x in (tau * DT, r, 0.0)))


def flatten(shape):
    return nir.Flatten({"input": np.array(shape)}, 0, -1)


def dyadic(rng, shape, below=1.0):
    """Multiples of 1/16 below `below` in magnitude."""
    most = int(16 * below) - 1
    return rng.integers(-most, most + 1, shape) / 16


def conv(rng, outputs, inputs, size=6, kernel=3, stride=1, padding=None, below=1.0, bias=True):
    """A convolution, by default padded so that its map keeps its size."""
    weight = dyadic(rng, (outputs, inputs, kernel, kernel), below)
    values = dyadic(rng, outputs, 0.5) + 0.25 if bias else np.zeros(outputs)
    around = kernel // 2 if padding is None else padding
    return nir.Conv2d((size, size), weight, stride, around, 1, 1, values)


def graph_of(nodes, edges, shape=(1, 6, 6), classes=3, T=4):
    """`nodes` and `edges` ("a b" for a -> b) between `input` of `shape` and `output`."""
    ends = {
        "input": nir.Input({"input": np.array(shape)}),
        "output": nir.Output({"output": np.array((classes,))}),
    }
    graph = nir.NIRGraph(
        {**ends, **nodes}, [tuple(edge.split()) for edge in edges], type_check=False
    )
    channels = {name: (value,) * shape[0] for name, value in EXACT_INPUT.items()}
    return with_metadata(graph, GraphMetadata(T=T, **channels))


def head(rng, shape, classes=3):
    """Flatten and a dense read-out of a map."""
    inputs = int(np.prod(shape))
    fc = nir.Affine(dyadic(rng, (classes, inputs), 0.5), dyadic(rng, classes))
    return {"flat": flatten(shape), "fc": fc}


def identity_skip(seed=0, T=4, neuron=lif, classes=3):
    """conv1 -> lif1 -> conv2 -> + lif1 -> lif2 -> fc."""
    rng = np.random.default_rng(seed)
    shape = (4, 6, 6)
    nodes = {
        "conv1": conv(rng, 4, 1),
        "lif1": neuron(shape),
        "conv2": conv(rng, 4, 4),
        "lif2": neuron(shape),
        **head(rng, shape, classes),
    }
    edges = ["input conv1", "conv1 lif1", "lif1 conv2", "conv2 lif2", "lif1 lif2"]
    return graph_of(nodes, [*edges, "lif2 flat", "flat fc", "fc output"], T=T, classes=classes)


def two_blocks(seed=0, T=4, neuron=lif):
    """A projection block, then an identity block; all maps behind lif1 are 3x3.

    conv1 -> lif1 -> conv2 -> lif2 -> conv3 -> + short(lif1) -> lif3
    -> conv4 -> lif4 -> conv5 -> + lif3 -> lif5 -> fc
    """
    rng = np.random.default_rng(seed)
    wide, small = (4, 6, 6), (6, 3, 3)
    nodes = {
        "conv1": conv(rng, 4, 1),
        "lif1": neuron(wide),
        "conv2": conv(rng, 6, 4, stride=2),
        "lif2": neuron(small),
        "conv3": conv(rng, 6, 6, 3),
        "short": conv(rng, 6, 4, kernel=1, stride=2),
        "lif3": neuron(small),
        "conv4": conv(rng, 6, 6, 3),
        "lif4": neuron(small),
        "conv5": conv(rng, 6, 6, 3),
        "lif5": neuron(small),
        **head(rng, small),
    }
    edges = "input conv1,conv1 lif1,lif1 conv2,conv2 lif2,lif2 conv3,conv3 lif3,lif1 short"
    edges += ",short lif3,lif3 conv4,conv4 lif4,lif4 conv5,conv5 lif5,lif3 lif5,lif5 flat,flat fc"
    return graph_of(nodes, [*edges.split(","), "fc output"], T=T)


def option_a(seed=0, T=4):
    """A strided identity with zeros for the new channels: half of them hear the skip."""
    graph = two_blocks(seed, T)
    weight = np.zeros((6, 4, 1, 1))
    weight[1:5, :, 0, 0] = np.eye(4)
    graph.nodes["short"] = nir.Conv2d((6, 6), weight, 2, 0, 1, 1, np.zeros(6))
    return graph


def sew_add(seed=0, T=4):
    """Spikes of lif1 and lif2 add up and enter conv3 and the read-out, as in SEW networks."""
    rng = np.random.default_rng(seed)
    shape = (4, 6, 6)
    nodes = {
        "conv1": conv(rng, 4, 1),
        "lif1": lif(shape),
        "conv2": conv(rng, 4, 4),
        "lif2": lif(shape),
        "conv3": conv(rng, 4, 4),
        "lif3": lif(shape),
        **head(rng, shape),
    }
    edges = "input conv1,conv1 lif1,lif1 conv2,conv2 lif2,lif1 conv3,lif2 conv3,conv3 lif3"
    edges += ",lif1 flat,lif2 flat,lif3 flat,flat fc,fc output"
    return graph_of(nodes, edges.split(","), T=T)


def membrane_shortcut(seed=0, T=4):
    """Currents are passed on: lif2 hears conv1 and conv2, lif3 hears conv1, conv2 and conv3."""
    rng = np.random.default_rng(seed)
    shape = (4, 6, 6)
    nodes = {
        "conv0": conv(rng, 4, 1),
        "lif0": lif(shape),
        "conv1": conv(rng, 4, 4, below=0.5),
        "lif1": lif(shape),
        "conv2": conv(rng, 4, 4, below=0.5),
        "lif2": lif(shape, tau=4.0),
        "conv3": conv(rng, 4, 4),
        "lif3": lif(shape, threshold=1.5),
        **head(rng, shape),
    }
    edges = "input conv0,conv0 lif0,lif0 conv1,conv1 lif1,lif1 conv2,conv1 lif2,conv2 lif2"
    edges += ",lif2 conv3,conv1 lif3,conv2 lif3,conv3 lif3,lif3 flat,flat fc,fc output"
    return graph_of(nodes, edges.split(","), T=T)


def long_skip(seed=0, T=4):
    """lif1 reaches lif4 past two populations, and the image reaches lif2."""
    rng = np.random.default_rng(seed)
    shape = (3, 6, 6)
    nodes = {
        "conv1": conv(rng, 3, 1),
        "lif1": lif(shape),
        "conv2": conv(rng, 3, 3),
        # Messages are 64 times the value: coarser weights share the scale of those for spikes.
        "side": conv(rng, 3, 1, kernel=1, bias=False),
        "lif2": lif(shape),
        "conv3": conv(rng, 3, 3),
        "lif3": lif(shape),
        "conv4": conv(rng, 3, 3),
        "lif4": lif(shape),
        **head(rng, shape),
    }
    nodes["side"].weight = rng.integers(-2, 3, (3, 1, 1, 1)) / 2
    edges = "input conv1,conv1 lif1,lif1 conv2,conv2 lif2,input side,side lif2,lif2 conv3"
    edges += ",conv3 lif3,lif3 conv4,conv4 lif4,lif1 lif4,lif4 flat,flat fc,fc output"
    return graph_of(nodes, edges.split(","), T=T)


ALL = {
    "identity": identity_skip,
    "projection": two_blocks,
    "option A": option_a,
    "SEW": sew_add,
    "membrane": membrane_shortcut,
    "long": long_skip,
}
