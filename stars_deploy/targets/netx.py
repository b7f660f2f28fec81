"""Write a chain as the HDF5 network file of lava-dl's NetX (lava.lib.dl.netx.hdf5.Network).

Load it with `input_message_bits=8, reset_interval=T, reset_offset=1`. Format: lava-dl 0.6.0.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from stars_deploy.errors import GraphError
from stars_deploy.files import write_bytes
from stars_deploy.targets.netx_rules import netx_bias, netx_problems

Array = NDArray[Any]


def write_netx(document: Mapping[str, Any], arrays: Mapping[str, Array], path: Path) -> None:
    """Write the lowered network as `path`; equal networks give equal bytes.

    Raises:
        GraphError: NetX or Lava would compute something else than what is written, or the
            network is not a chain; every reason is listed.
    """
    problems = netx_problems(document, arrays)
    if problems:
        raise GraphError("this network cannot be written for NetX:\n  " + "\n  ".join(problems))
    # In memory first: the HDF5 library crashes when the disk fills up under it.
    content = io.BytesIO()
    with h5py.File(content, "w", track_order=False) as file:
        _input(file.create_group("layer/0"), document["input"]["shape_whc"])
        rank = 3
        for population in document["populations"]:
            connection = next(
                entry for entry in document["connections"] if entry["target"] == population["name"]
            )
            # NetX flattens between two blocks only; an image for a dense layer is sent flat.
            if connection["kind"] == "dense" and rank == 3 and connection["source"] != "input":
                _put(file.create_group(f"layer/{len(file['layer'])}"), "type", _tag("flatten"))
            group = file.create_group(f"layer/{len(file['layer'])}")
            _block(group, connection, population, arrays)
            rank = len(population["shape_whc"])
    write_bytes(path, content.getvalue())


def _put(group: h5py.Group, name: str, value: Any) -> None:
    # Time stamps would make equal networks differ.
    group.create_dataset(name, data=value, track_times=False)


def _tag(text: str) -> Array:
    return np.array([text.encode("ascii")], dtype="S10")


def _input(group: h5py.Group, shape_whc: list[int]) -> None:
    _put(group, "type", _tag("input"))
    _put(group, "shape", np.array(shape_whc[::-1], dtype=np.int64))


def _block(
    group: h5py.Group,
    connection: Mapping[str, Any],
    population: Mapping[str, Any],
    arrays: Mapping[str, Array],
) -> None:
    """Write one synapse with its neurons; integers everywhere, since NetX truncates floats."""
    weight = arrays[connection["weight_key"]].astype(np.int64)
    shape = population["shape_whc"][::-1]
    _put(group, "type", _tag(connection["kind"]))
    _put(group, "shape", np.array(shape if len(shape) == 3 else [*shape, 1, 1], dtype=np.int64))
    _put(group, "weight", weight)
    if connection["kind"] == "conv":
        for field in ("stride", "padding", "dilation"):
            _put(group, field, np.array(connection[field], dtype=np.int64))
        _put(group, "groups", np.int64(connection["groups"]))
        _put(group, "inChannels", np.int64(weight.shape[1] * connection["groups"]))
        _put(group, "outChannels", np.int64(weight.shape[0]))
        _put(group, "kernelSize", np.array(weight.shape[2:], dtype=np.int64))
    else:
        _put(group, "inFeatures", np.int64(weight.shape[1]))
        _put(group, "outFeatures", np.int64(weight.shape[0]))
    if population["bias_key"] is not None:
        bias = np.rint(netx_bias(population, arrays)).astype(np.int64)
        _put(group, "bias", bias.transpose(2, 1, 0) if bias.ndim == 3 else bias)
    neuron = group.create_group("neuron")
    _put(neuron, "type", np.array("CUBA", dtype=h5py.string_dtype("ascii")))
    _put(neuron, "iDecay", np.int64(population["du"] + 1))
    _put(neuron, "vDecay", np.int64(population["dv"]))
    _put(neuron, "vThMant", np.int64(population["vth"]))
