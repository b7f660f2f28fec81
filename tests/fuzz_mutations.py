"""Damage to valid files: in their structure, so that it comes past the first check, and in bytes.

Every mutation takes a random.Random and changes one file in place. Equal seeds give equal files.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import tomllib
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import tomli_w

Mutation = Callable[[random.Random, Path], None]

NUMBERS = [
    0, 1, -1, 2, 7, 255, 65536, 1 << 31, (1 << 31) - 1, -(1 << 31), 1 << 53, 1 << 62, 1 << 63,
    (1 << 64) - 1, 10**18, 10**30, 0.0, -0.0, 0.5, 1.5, -1.5, 1e-300, 1e-30, 1e30, 1e300, -1e300,
    5e-324, 1.7e308, float("inf"), float("-inf"), float("nan"),
]  # fmt: skip
TEXTS = [
    "", " ", "x", "true", "0", "../../etc/passwd", "/dev/zero", "/dev/null", ".", "..", "a/b", "\n",
    "a\nb", "\x1b[31mred\x1b]0;title\x07", "\u202egnp.exe", "é", "\U0001f600", "\x00", "x" * 5000,
    "{}", "%s%n", "{0.__class__}", "input", "output", "readout", "null", "NaN", "😀" * 100,
    "\x9b1m", "nayer", "cuda", "conv", "dense", "norse", "resnet18", "vgg16",
]  # fmt: skip


def value(rng: random.Random, depth: int = 0) -> Any:
    """A value that somebody might write, or that nobody would."""
    kind = rng.randrange(8 if depth < 3 else 5)
    if kind < 2:
        return rng.choice(NUMBERS)
    if kind == 2:
        return rng.choice(TEXTS)
    if kind == 3:
        return rng.choice([True, False, None])
    if kind == 4:
        return rng.choice([[], {}, [[]], [{}], [None], {"": {}}])
    if kind == 5:
        return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 6:
        return {rng.choice(TEXTS): value(rng, depth + 1) for _ in range(rng.randrange(3))}
    deep: Any = rng.choice(NUMBERS)
    for _ in range(rng.choice([3, 40, 300])):
        deep = rng.choice([[deep], {"a": deep}])
    return deep


def _places(node: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a document."""
    found: list[tuple[Any, Any]] = []
    keys = list(node) if isinstance(node, dict) else range(len(node))
    for key in keys:
        found.append((node, key))
        if isinstance(node[key], dict | list):
            found += _places(node[key])
    return found


def edit_document(rng: random.Random, document: Any) -> Any:
    """Change one to three places of a JSON or TOML document."""
    for _ in range(rng.randint(1, 3)):
        places = _places(document) if isinstance(document, dict | list) else []
        if not places or rng.random() < 0.02:
            return value(rng)
        node, key = rng.choice(places)
        kind = rng.randrange(6)
        if kind == 0:
            del node[key]
        elif kind == 1 and isinstance(node, dict):
            node[rng.choice(TEXTS)] = node.pop(key)
        elif kind == 2 and isinstance(node, list):
            node *= rng.choice([0, 2, 3])
        elif kind == 3:
            other, name = rng.choice(places)
            node[key] = other[name] if not isinstance(other[name], dict | list) else value(rng)
        else:
            node[key] = value(rng)
    return document


def edit_json(rng: random.Random, path: Path) -> None:
    text = json.dumps(edit_document(rng, json.loads(path.read_text())))
    if rng.random() < 0.05:
        text = text.replace("{", '{"T": 0, "T": 1, "schema": 9, ', 1)  # keys that are there twice
    if rng.random() < 0.03:
        text = "[" * 100_000 + text + "]" * 100_000
    path.write_text(text)


def edit_toml(rng: random.Random, path: Path) -> None:
    document = edit_document(rng, tomllib.loads(path.read_text()))
    if rng.random() < 0.1 and isinstance(document, dict):
        bases = [
            path.name,
            "/dev/zero",
            "/dev/stdin",
            ".",
            "a\x1b[0m.toml",
            "/proc/self/mem",
        ]
        document["extends"] = [rng.choice(bases)]
    try:
        path.write_text(tomli_w.dumps(document))
    except (TypeError, AttributeError, UnicodeEncodeError, RecursionError):
        path.write_text(f"a = {'[' * 200}{']' * 200}\nname = {json.dumps(rng.choice(TEXTS))}")


def flip_bytes(rng: random.Random, path: Path) -> None:
    """Flip, cut, insert, repeat and overwrite bytes, mostly near the beginning."""
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 1, 2, 8])):
        at = rng.randrange(len(data) + 1)
        at = rng.randrange(min(200, len(data)) + 1) if rng.random() < 0.4 else at
        kind = rng.randrange(6)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            data[at:at] = rng.randbytes(rng.choice([1, 4, 100]))
        elif kind == 3:
            data[at : at + 8] = struct.pack("<q", rng.choice([0, -1, 1, 1 << 31, 1 << 40, 1 << 62]))
        elif kind == 4:
            del data[at : at + rng.choice([1, 8, 1000])]
        else:
            data[at:at] = data[at : at + rng.choice([1, 64, 4096])]
    path.write_bytes(data)


class Marker:
    """Unpickled, it creates a folder: proof that somebody unpickled it."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (self.path,))


def _array(rng: random.Random, array: np.ndarray) -> np.ndarray:
    kind = rng.randrange(12)
    size = array.size
    if array.dtype.kind not in "fiub":  # a text, such as where images come from
        return np.array(rng.choice([*NUMBERS[:20], *TEXTS, None]))
    if kind == 0:
        return array.astype(rng.choice(["f4", "f8", "i1", "i4", "u8", "?", "c16", "f2"]))
    if kind == 1:
        return array.reshape(rng.choice([(-1,), (1, *array.shape), (*array.shape, 1)]))
    if kind == 2:
        return array[..., :0] if array.ndim else np.zeros(3, array.dtype)
    if kind == 3:
        return np.array(rng.choice(TEXTS))
    if kind == 4:
        return np.array([value(rng, 3)], dtype=object)
    if kind == 5:
        return np.zeros(rng.choice([(0,), (0, 1 << 40), (), (3,), (1, 1, 1, 1)]), array.dtype)
    if kind == 6:
        return np.zeros(array.shape, rng.choice(["M8[s]", "m8[ns]", "S5", "U3", "V8", "i2,f4"]))
    if kind == 7 and size and array.dtype.kind in "fiu":
        changed = array.copy()
        high = [np.nan, np.inf, -np.inf, 1e300, 0, -1] if array.dtype.kind == "f" else [0, -1, 255]
        with np.errstate(over="ignore", invalid="ignore"):
            changed.flat[rng.randrange(size)] = np.array(rng.choice(high)).astype(array.dtype)
        return changed
    if kind == 8 and size and array.dtype.kind in "fiu":
        limits = np.finfo if array.dtype.kind == "f" else np.iinfo
        bound = rng.choice([limits(array.dtype).min, limits(array.dtype).max])
        return np.full(array.shape, bound, array.dtype)
    if kind == 9 and array.ndim:
        return np.concatenate([array, array])
    if kind == 10:
        return array.T
    return array[1:] if array.ndim else array


def _lying(rng: random.Random, array: np.ndarray) -> bytes:
    """A member whose header says something else than what follows."""
    shape = rng.choice([(1 << 40,), (1 << 62, 4), (-1,), (1 << 31, 1 << 31), (10**6, 10**6), (0,)])
    header = io.BytesIO()
    described = {"descr": rng.choice(["|u1", "<f8", "|O", "<U999999999"]), "fortran_order": False}
    np.lib.format.write_array_header_1_0(header, {**described, "shape": shape})
    return header.getvalue() + array.tobytes()[:1000]


def edit_npz(rng: random.Random, path: Path) -> None:
    with np.load(path) as archive:
        arrays: dict[str, Any] = dict(archive)
    raw: dict[str, bytes] = {}
    for _ in range(rng.randint(1, 2)):
        name = rng.choice(sorted(arrays))
        kind = rng.randrange(8)
        if kind == 0:
            del arrays[name]
        elif kind == 1:
            arrays[rng.choice([x for x in TEXTS if x and "\x00" not in x])] = arrays.pop(name)
        elif kind == 2:
            raw[f"{name}.npy"] = _lying(rng, arrays.pop(name))
        elif kind == 3:
            arrays[name] = arrays[rng.choice(sorted(arrays))]
        else:
            arrays[name] = _array(rng, arrays[name])
        if not arrays:
            break
    _write_npz(rng, path, arrays, raw)


def _write_npz(
    rng: random.Random, path: Path, arrays: dict[str, Any], raw: dict[str, bytes]
) -> None:
    marker = Marker(path.with_name("unpickled"))
    if arrays and rng.random() < 0.1:
        arrays[rng.choice(sorted(arrays))] = np.array([marker], dtype=object)
    method = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_DEFLATED])
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, np.asarray(array), allow_pickle=True)
            archive.writestr(f"{name}.npy", content.getvalue())
        for name, data in raw.items():
            archive.writestr(name, data)
        if rng.random() < 0.1:
            archive.writestr(
                rng.choice(["x", "../x.npy", "/x.npy", "images.npy"]), pickle.dumps(marker)
            )


def bomb(path: Path, name: str, mebibytes: int) -> None:
    """Write an npz with one member of zeros, a thousandth of their size."""
    header = io.BytesIO()
    described = {"descr": "|u1", "fortran_order": False, "shape": (mebibytes << 20,)}
    np.lib.format.write_array_header_1_0(header, described)
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open(f"{name}.npy", "w", force_zip64=True) as stream,
    ):
        stream.write(header.getvalue())
        for _ in range(mebibytes):
            stream.write(bytes(1 << 20))


def edit_hdf5(rng: random.Random, path: Path) -> None:
    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        for _ in range(rng.randint(1, 2)):
            _edit_object(rng, file, rng.choice(sorted(names)))


def _edit_object(rng: random.Random, file: h5py.File, name: str) -> None:
    if name not in file:
        return
    item, kind = file[name], rng.randrange(7)
    if kind == 0:
        del file[name]
    elif kind == 1:
        other = f"{name.rpartition('/')[0]}/{rng.choice(['x', 'é', 'type', 'a b', '0'])}"
        if other not in file:
            file.move(name, other)
    elif kind == 2:
        item.attrs["note"] = rng.choice([1, "x", np.zeros(100), np.nan])
    elif kind == 3:
        del file[name]
        link = rng.choice(
            [h5py.SoftLink("/node"), h5py.ExternalLink("/etc/passwd", "/"), h5py.SoftLink("/x")]
        )
        file[name] = link
    elif isinstance(item, h5py.Dataset):
        array = item[()]
        del file[name]
        text = isinstance(array, bytes) or (isinstance(array, np.ndarray) and array.dtype == object)
        changed = (
            rng.choice([*TEXTS[:10], *NUMBERS[:20]]) if text else _array(rng, np.asarray(array))
        )
        try:
            file[name] = changed
        except (TypeError, ValueError, OverflowError):
            file[name] = 0
    else:
        del file[name]
        file[name] = rng.choice(NUMBERS[:10])


def edit_safetensors(rng: random.Random, path: Path) -> None:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    text = json.dumps(edit_document(rng, header)).encode()
    size = rng.choice([len(text)] * 6 + [0, 1, 1 << 40, (1 << 64) - 1])
    path.write_bytes(struct.pack("<Q", size) + text + body)


def edit_idx(rng: random.Random, path: Path) -> None:
    data = bytearray(path.read_bytes())
    at = rng.choice([0, 1, 2, 3, 4, 8, 12])
    data[at : at + 4] = struct.pack(">I", rng.choice([0, 1, 255, 65536, (1 << 32) - 1, 1 << 31]))
    path.write_bytes(data)


def edit_png(rng: random.Random, path: Path) -> None:
    """Change the header of a PNG, checksum and all."""
    data = bytearray(path.read_bytes())
    field = rng.choice([(16, ">I"), (20, ">I"), (24, ">B"), (25, ">B"), (28, ">B")])
    most = 255 if field[1] == ">B" else (1 << 32) - 1
    number = min(rng.choice([0, 1, 2, 3, 4, 6, 8, 16, 9999, 60000, 1 << 31]), most)
    struct.pack_into(field[1], data, field[0], number)
    struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
    path.write_bytes(data)


def edit_onnx(rng: random.Random, path: Path) -> None:
    import onnx

    model = onnx.load_model_from_string(path.read_bytes())
    graph, kind = model.graph, rng.randrange(8)
    if kind == 0 and graph.node:
        node = rng.choice(graph.node)
        node.op_type = rng.choice(["Conv", "Identity", "Nope", "Loop", "Reshape", "Gemm"])
    elif kind == 1 and graph.initializer:
        tensor = rng.choice(graph.initializer)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        places = ["/etc/passwd", "../../secret", "manifest.json", "/dev/zero"]
        tensor.external_data.add(key="location", value=rng.choice(places))
    elif kind == 2 and graph.initializer:
        tensor = rng.choice(graph.initializer)
        del tensor.dims[:]
        tensor.dims.extend(rng.choice([[1 << 40], [-1], [], [1 << 31, 1 << 31], [3, 3]]))
    elif kind == 3:
        del rng.choice([graph.input, graph.output, graph.node, graph.initializer])[:1]
    elif kind == 4:
        entry = rng.choice(model.metadata_props)
        entry.value = rng.choice([*TEXTS, json.dumps(value(rng)), "[" * 100_000])
    elif kind == 5:
        rng.choice([*graph.input, *graph.output]).name = rng.choice(TEXTS[:8])
    elif kind == 6:
        shape = rng.choice([*graph.input, *graph.output]).type.tensor_type.shape
        for entry in shape.dim:
            entry.dim_value = rng.choice([0, 1, 5, 1 << 40])
    else:
        rng.choice(graph.node).input[:] = rng.choice([[], ["x"], ["image"]])
    path.write_bytes(model.SerializeToString())


def edit_pickle(rng: random.Random, path: Path) -> None:
    """Replace a member of a file of torch.save, a zip archive, or damage its pickle."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(sorted(members))
    kind = rng.randrange(4)
    if kind == 0:
        pickled = next(key for key in members if key.endswith("data.pkl"))
        members[pickled] = pickle.dumps(Marker(path.with_name("unpickled")))
    elif kind == 1:
        del members[name]
    else:
        content = bytearray(members[name])
        for _ in range(rng.choice([1, 5])):
            if content:
                content[rng.randrange(len(content))] = rng.randrange(256)
        members[name] = bytes(content[: rng.choice([len(content), len(content) // 2])])
    with zipfile.ZipFile(path, "w") as archive:
        for key, data in members.items():
            archive.writestr(key, data)
