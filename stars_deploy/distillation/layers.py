"""Which layers of teacher and student STARS compares, and their features of one batch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from stars_deploy.config.recipe import Stars
from stars_deploy.distillation.probe import InputProbe
from stars_deploy.errors import InputError, nearest
from stars_deploy.networks.base import Junction, Network, Taps, conv_block
from stars_deploy.networks.layers import PooledLinear

Pair = tuple[int, int]  # junction of the teacher, junction of the student


def layer_name(network: Network, index: int) -> str:
    """Return the name of the neuron layer of junction `index`, as graph and results have it."""
    is_if = network.spiking is not None and network.spiking.neuron.model == "if"
    return f"{'if' if is_if else 'lif'}{network.neurons.index(index) + 1}"


def compared_layers(config: Stars, teacher: Network, student: Network) -> list[Pair]:
    """Return the pairs of junctions that `stars.layers` and `stars.pairing` select.

    Layers given by name are the student's. By depth, student layer j of L_S goes with teacher
    layer round(j (L_T - 1) / (L_S - 1)).

    Raises:
        InputError: an unknown layer, or different numbers of layers to pair by stage or by name.
    """
    chosen = _selected(config, student)
    if config.pairing == "depth":
        last_t, last_s = len(_deep(teacher)) - 1, len(_deep(student)) - 1
        return [(round(j * last_t / max(last_s, 1)), j) for j in chosen]
    if isinstance(config.layers, tuple):
        if len(_deep(teacher)) != len(_deep(student)):
            raise InputError(
                f"stars.layers = {list(config.layers)} are layers of the student; its teacher has "
                f"{len(_deep(teacher))} layers and it has {len(_deep(student))}, so that equal "
                "numbers are different places; set stars.pairing = 'depth'"
            )
        return [(j, j) for j in chosen]
    partners = _selected(config, teacher)
    if len(partners) != len(chosen):
        raise InputError(
            f"stars.layers = {config.layers!r} selects {len(partners)} layers of the teacher and "
            f"{len(chosen)} of the student; set stars.pairing = 'depth' for networks of "
            "different depth"
        )
    return list(zip(partners, chosen, strict=True))


def _selected(config: Stars, network: Network) -> list[int]:
    if isinstance(config.layers, tuple):
        known = {layer_name(network, index): index for index in _deep(network)}
        for name in config.layers:
            if name not in known:
                raise InputError(
                    f"stars.layers: {name!r} is not a neuron layer of the student"
                    f"{nearest(name, known)}"
                )
        return [known[name] for name in config.layers]
    if config.layers == "all":
        return _deep(network)
    return list(network.stage_ends if config.layers == "stage_ends" else network.stage_ends[-1:])


def _deep(network: Network) -> list[int]:
    """Return the activations of feature maps; a hidden linear layer of the head has none."""
    return [i for i in network.neurons if not _is_linear(network.junctions[i])]


def _is_linear(junction: Junction) -> bool:
    blocks = [conv_block(wire) for wire in junction.wires]
    return any(block is not None and block.dense for block in blocks) or any(
        isinstance(wire.layer, PooledLinear) for wire in junction.wires
    )


class NormInputs(InputProbe):
    """Records what enters the BatchNorm of some junctions of a network (stars.features = pre_bn).

    Use as a context manager around one forward pass.
    """

    def __init__(self, network: Network, junctions: Sequence[int]) -> None:
        norms: list[nn.Module] = []
        for index in junctions:
            wires = network.junctions[index].wires
            block = next((block for block in map(conv_block, wires) if block is not None), None)
            if block is None:
                raise InputError(f"stars.features = 'pre_bn': junction {index} has no BatchNorm")
            norms.append(block.bn)
        super().__init__(norms)

    def by_step(self, batch: int) -> list[Tensor]:
        """Return the features as `[T or 1, B, C, H, W]`."""
        return [x.view(-1, batch, *x.shape[1:]) for x in self.inputs]


def pre_activations(taps: Taps, junctions: Sequence[int]) -> list[Tensor]:
    """Return the inputs of the activations of some junctions."""
    return [taps.pre_activations[index] for index in junctions]
