"""A .nir file must not make the reader open other files, fill memory, loop or crash."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np
import pytest
import random_networks

from stars_deploy.errors import GraphError
from stars_deploy.graph import isolate
from stars_deploy.graph import prescan as prescan_module
from stars_deploy.graph.prescan import prescan
from stars_deploy.graph.reader import load_graph, read_graph
from stars_deploy.graph.writer import write_graph

TAU = "node/nodes/lif1/tau"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("good") / "graph.nir"
    write_graph(random_networks.random_graph(3), path)
    return path


@pytest.fixture
def file(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(good, tmp_path / "graph.nir"))


def edit(path: Path, change: Callable[[h5py.File], Any]) -> None:
    with h5py.File(path, "r+") as opened:
        change(opened)


def replace(opened: h5py.File, **create: Any) -> h5py.Dataset:
    del opened[TAU]
    return opened.create_dataset(TAU, **create)


def test_the_untouched_file_is_accepted(file: Path) -> None:
    prescan(file)
    assert "lif1" in read_graph(file).nodes


def external_link(opened: h5py.File) -> None:
    del opened[TAU]
    opened[TAU] = h5py.ExternalLink("other.h5", "/secret")


def soft_link(opened: h5py.File) -> None:
    del opened[TAU]
    opened[TAU] = h5py.SoftLink("/node/nodes/lif1/r")


def soft_link_cycle(opened: h5py.File) -> None:
    opened["node/nodes/lif1/again"] = h5py.SoftLink("/node")


def hard_link_cycle(opened: h5py.File) -> None:
    opened["node/nodes/lif1/again"] = opened["node"]


def shared_data(opened: h5py.File) -> None:
    del opened[TAU]
    opened[TAU] = opened["node/nodes/lif1/r"]


def external_storage(opened: h5py.File) -> None:
    shape = opened[TAU].shape
    Path(opened.filename).with_name("secret").write_bytes(b"s" * 8 * int(np.prod(shape)))
    replace(opened, shape=shape, dtype="f8", external=[("secret", 0, h5py.h5f.UNLIMITED)])


def virtual_data(opened: h5py.File) -> None:
    shape = opened[TAU].shape
    del opened[TAU]
    layout = h5py.VirtualLayout(shape, "f8")
    layout[:] = h5py.VirtualSource("other.h5", "/secret", shape)
    opened.create_virtual_dataset(TAU, layout)


def huge_shape(opened: h5py.File) -> None:
    replace(opened, shape=(1 << 40,), dtype="f8", chunks=(1 << 10,), compression="gzip")


def fill_value_bomb(opened: h5py.File) -> None:
    # Within the limit of bytes, but nothing of it is in the file.
    replace(opened, shape=(1 << 26,), dtype="f8", chunks=(1 << 20,), fillvalue=1.0)


def contiguous_fill_value(opened: h5py.File) -> None:
    replace(opened, shape=(1 << 26,), dtype="f8")


def large_chunk(opened: h5py.File) -> None:
    replace(opened, shape=(1,), maxshape=(None,), dtype="f8", chunks=(1 << 28,))


def gzip_bomb(opened: h5py.File) -> None:
    # The chunk declares 1 KiB, takes 1 KiB in the file, and inflates to 1 MiB.
    data = replace(opened, shape=(128,), dtype="f8", chunks=(128,), compression="gzip")
    data.id.write_direct_chunk((0,), zlib.compress(bytes(1 << 20), 9))


def double_gzip(opened: h5py.File) -> None:
    created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    created.set_chunk((16,))
    created.set_deflate(9)
    created.set_deflate(9)
    del opened[TAU]
    space = h5py.h5s.create_simple((16,))
    h5py.h5d.create(opened.id, TAU.encode(), h5py.h5t.NATIVE_DOUBLE, space, created)


def other_filter(opened: h5py.File) -> None:
    replace(opened, data=np.ones(1000), compression="lzf")


def references(opened: h5py.File) -> None:
    replace(opened, data=np.array([opened.ref], dtype=h5py.ref_dtype), dtype=h5py.ref_dtype)


def compound(opened: h5py.File) -> None:
    replace(opened, data=np.zeros(3, dtype=[("a", "f8"), ("b", "i4")]))


def named_type(opened: h5py.File) -> None:
    del opened[TAU]
    opened[TAU] = np.dtype("f8")


def deep(opened: h5py.File) -> None:
    opened.create_group("node/nodes/" + "/".join("abcdefgh"))


def many_objects(opened: h5py.File) -> None:
    group = opened.create_group("node/more")
    for index in range(300):
        group.create_group(str(index))


def repeated_string(opened: h5py.File) -> None:
    # 2,000 entries that all point at one megabyte: 2 GB once read.
    text = opened.create_dataset("node/text", (2000,), h5py.string_dtype())
    text[0] = "x" * (1 << 20)
    opened.flush()
    with Path(opened.filename).open("r+b") as raw:
        raw.seek(text.id.get_offset())
        pointer = raw.read(16)
        raw.seek(text.id.get_offset())
        raw.write(pointer * 2000)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (external_link, "ExternalLink to other.h5"),
        (soft_link, "SoftLink"),
        (soft_link_cycle, "SoftLink"),
        (hard_link_cycle, "second link"),
        (shared_data, "second link"),
        (external_storage, "external storage"),
        (virtual_data, "virtual storage"),
        (huge_shape, "declares more than"),
        (fill_value_bomb, "0 stored"),
        (contiguous_fill_value, "not stored"),
        (large_chunk, "declares more than"),
        (gzip_bomb, "more than it declares"),
        (double_gzip, "filters"),
        (other_filter, "filters"),
        (references, "expected numbers or text"),
        (compound, "expected numbers or text"),
        (named_type, "named type"),
        (deep, "nested deeper"),
        (many_objects, "more than 200 objects"),
        (repeated_string, "declares more than"),
    ],
)
def test_hostile_content_is_refused_before_reading(
    file: Path, change: Callable[[h5py.File], None], word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prescan_module, "MAX_OBJECTS", 200)
    edit(file, change)
    with pytest.raises(GraphError, match=word) as caught:
        prescan(file)
    assert str(file) in str(caught.value)


def test_secret_of_external_storage_is_not_read_by_the_public_reader(file: Path) -> None:
    edit(file, external_storage)
    with pytest.raises(GraphError, match="external storage"):
        read_graph(file)


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.99])
def test_truncated_file(file: Path, keep: float) -> None:
    raw = file.read_bytes()
    file.write_bytes(raw[: int(len(raw) * keep)])
    with pytest.raises(GraphError, match="damaged or truncated"):
        prescan(file)


def test_not_hdf5_missing_and_directory(file: Path, tmp_path: Path) -> None:
    file.write_text("a picture of a network")
    with pytest.raises(GraphError, match="not a readable HDF5 file"):
        prescan(file)
    with pytest.raises(GraphError, match="no such file"):
        read_graph(tmp_path / "absent.nir")
    with pytest.raises(GraphError, match="not a file"):
        read_graph(tmp_path)


def test_hdf5_without_graph(tmp_path: Path) -> None:
    path = tmp_path / "data.h5"
    with h5py.File(path, "w") as opened:
        opened["x"] = np.ones(3)
    with pytest.raises(GraphError, match="not NIR"):
        read_graph(path)


def test_unknown_field_is_an_error_not_a_traceback(file: Path) -> None:
    edit(file, lambda opened: opened.create_dataset("node/nodes/lif1/v_start", data=np.ones(3)))
    with pytest.raises(GraphError, match=r"not a NIR graph .*v_start"):
        load_graph(file)


def test_a_library_that_hangs_or_crashes_is_stopped(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Damaged string storage makes HDF5 itself loop; the child process stands for it here.
    monkeypatch.setattr(isolate, "_CHILD", "import time; time.sleep(60)")
    with pytest.raises(GraphError, match="did not end within"):
        isolate.inspect(file, timeout_s=0.3)
    monkeypatch.setattr(isolate, "_CHILD", "import os; os.abort()")
    with pytest.raises(GraphError, match="the HDF5 library failed"):
        isolate.inspect(file)


def test_file_that_really_hangs_hdf5(file: Path) -> None:
    """The global heap (strings of the edges) with object sizes of zero."""
    raw = bytearray(file.read_bytes())
    heap = raw.index(b"GCOL")
    raw[heap + 16 : heap + 4096] = bytes(4080)
    file.write_bytes(raw)
    with pytest.raises(GraphError):
        isolate.inspect(file, timeout_s=2)


def test_random_damage_never_escapes_as_another_exception(file: Path) -> None:
    raw = file.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(5):
        damaged = bytearray(raw)
        for position in rng.integers(0, 4000, 6):
            damaged[position] = rng.integers(0, 256)
        file.write_bytes(damaged)
        try:
            assert isinstance(load_graph(file), nir.NIRGraph)
        except GraphError:
            refused += 1
    assert refused >= 2
