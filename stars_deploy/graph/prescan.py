"""Looking at an HDF5 file before any of its data is read.

HDF5 can point into other files (external links, external storage, virtual datasets), loop (links)
and declare terabytes in a few kilobytes (fill values, compression). nir.read follows all of it.
"""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from stars_deploy.errors import GraphError

LIMIT_BYTES = 1 << 30
MAX_OBJECTS = 20_000
MAX_DEPTH = 8
MAX_STRINGS = 50_000
MAX_CHUNKS = 100_000

_REMEDY = "such a file is not written by NIR tools; do not trust it"
_GZIP, _SHUFFLE, _FLETCHER32 = 1, 2, 3
_CHECKSUM = 4


@dataclass
class _Budget:
    """What the walk has seen so far, against the limits."""

    limit_bytes: int
    bytes: int = 0
    objects: int = 0
    strings: int = 0
    seen: set[Any] = field(default_factory=set)

    def spend(self, where: str, size: int) -> None:
        self.bytes += size
        if self.bytes > self.limit_bytes:
            raise GraphError(
                f"{where}: the file declares more than {self.limit_bytes} bytes of data; "
                "raise the limit only for a file whose origin you know"
            )


def prescan(path: Path, limit_bytes: int = LIMIT_BYTES) -> None:
    """Refuse a file that is not HDF5, truncated, or would do more than fill memory with its data.

    Reads names, types and sizes, inflates compressed chunks piecewise to learn their true size,
    and keeps none of it: memory stays near the size of one chunk, time near that of reading.
    Raises: GraphError naming the object and why it is refused.
    """
    check_openable(path, limit_bytes)
    try:
        with h5py.File(path, "r") as file:
            _walk(file, _Budget(limit_bytes))
            if "node" not in file:
                raise GraphError("has no 'node' group, so it is HDF5 but not NIR; export it again")
    except GraphError as problem:
        raise GraphError(f"{path}: {problem}") from None
    except Exception as problem:  # damaged HDF5 surfaces as many exception types
        detail = str(problem).splitlines()[0][:160] if str(problem) else type(problem).__name__
        raise GraphError(
            f"{path}: not a readable HDF5 file, damaged or truncated ({detail}); copy it again"
        ) from None


def check_openable(path: Path, limit_bytes: int) -> None:
    """Refuse what is not a regular, readable file of at most `limit_bytes`."""
    if not path.is_file():
        raise GraphError(f"{path}: not a file" if path.exists() else f"{path}: no such file")
    if not os.access(path, os.R_OK):
        raise GraphError(f"{path}: not readable; check its permissions")
    if path.stat().st_size > limit_bytes:
        raise GraphError(f"{path}: larger than {limit_bytes} bytes; raise the limit to read it")


def _walk(file: h5py.File, budget: _Budget) -> None:
    """Visit every object once, breadth first, checking a link before following it."""
    waiting: list[tuple[h5py.Group, int]] = [(file, 0)]
    budget.seen.add(_address(file))
    while waiting:
        group, depth = waiting.pop()
        for name, item in _children(group, budget):
            where = f"{group.name.rstrip('/')}/{name}"
            if isinstance(item, h5py.Group):
                if depth >= MAX_DEPTH:
                    raise GraphError(f"{where}: nested deeper than {MAX_DEPTH} groups; {_REMEDY}")
                waiting.append((item, depth + 1))
            elif isinstance(item, h5py.Dataset):
                _check_dataset(where, item, budget)
            else:
                raise GraphError(f"{where}: holds a named type, not data; {_REMEDY}")


def _children(group: h5py.Group, budget: _Budget) -> Iterator[tuple[str, Any]]:
    budget.objects += len(group)
    if budget.objects > MAX_OBJECTS:
        raise GraphError(f"{group.name}: more than {MAX_OBJECTS} objects; {_REMEDY}")
    for name in group:
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            kind = type(link).__name__ if link is not None else "broken link"
            target = f"{getattr(link, 'filename', '')}:{getattr(link, 'path', '')}".strip(":")
            where = f" to {target}" if target else ""
            raise GraphError(f"{group.name}/{name}: is a {kind}{where}; {_REMEDY}")
        item = group[name]
        address = _address(item)
        if address in budget.seen:
            raise GraphError(f"{group.name}/{name}: a second link to one object; {_REMEDY}")
        budget.seen.add(address)
        yield name, item


def _address(item: Any) -> Any:
    info = h5py.h5o.get_info(item.id)
    return (info.fileno, info.addr)


def _check_dataset(where: str, dataset: h5py.Dataset, budget: _Budget) -> None:
    if dataset.is_virtual or dataset.external:
        kind = "virtual" if dataset.is_virtual else "external"
        raise GraphError(f"{where}: its data lie in another file ({kind} storage); {_REMEDY}")
    if dataset.shape is None:
        raise GraphError(f"{where}: holds no data; {_REMEDY}")
    text = h5py.check_string_dtype(dataset.dtype) is not None
    if not text and dataset.dtype.kind not in "fiub":
        raise GraphError(f"{where}: holds {dataset.dtype}, expected numbers or text; {_REMEDY}")
    # HDF5 holds whole chunks in memory, so a chunk larger than its data counts in full.
    budget.spend(where, max(_chunks(dataset) * _chunk_bytes(dataset), dataset.nbytes))
    _check_filters(where, dataset)
    _check_stored(where, dataset)
    if text:
        _check_strings(where, dataset, budget)


def _chunks(dataset: h5py.Dataset) -> int:
    if dataset.chunks is None:
        return 1
    return math.prod(-(-n // c) for n, c in zip(dataset.shape, dataset.chunks, strict=True))


def _chunk_bytes(dataset: h5py.Dataset) -> int:
    values: int = math.prod(dataset.chunks or dataset.shape)
    return values * int(dataset.dtype.itemsize)


def _check_filters(where: str, dataset: h5py.Dataset) -> None:
    codes = _filters(dataset)
    if not {*codes} <= {_GZIP, _SHUFFLE, _FLETCHER32} or codes.count(_GZIP) > 1:
        raise GraphError(
            f"{where}: compressed with HDF5 filters {codes}, expected gzip; "
            "write it with nir.write and its default compression"
        )


def _filters(dataset: h5py.Dataset) -> list[int]:
    created = dataset.id.get_create_plist()
    return [int(created.get_filter(index)[0]) for index in range(created.get_nfilters())]


def _check_stored(where: str, dataset: h5py.Dataset) -> None:
    """Refuse data that are declared but not stored: HDF5 would make them up from a fill value."""
    if dataset.chunks is None:
        if dataset.id.get_storage_size() < dataset.nbytes:
            raise GraphError(f"{where}: {dataset.nbytes} bytes declared, not stored; {_REMEDY}")
        return
    expected, size = _chunks(dataset), _chunk_bytes(dataset)
    stored: list[tuple[Any, int]] = []
    if expected <= MAX_CHUNKS:
        dataset.id.chunk_iter(lambda chunk: stored.append((chunk.chunk_offset, chunk.size)))
    if len(stored) != expected:
        raise GraphError(f"{where}: {expected} chunks declared, {len(stored)} stored; {_REMEDY}")
    for offset, length in stored:
        _check_chunk(where, dataset, offset, length, size)


def _check_chunk(where: str, dataset: h5py.Dataset, offset: Any, length: int, size: int) -> None:
    """Inflate one chunk no further than its declared size: gzip may hide a thousand times more."""
    if length > 2 * size + 1024:
        raise GraphError(f"{where}: a chunk of {size} bytes takes {length} in the file; {_REMEDY}")
    codes = _filters(dataset)
    if _GZIP not in codes:
        return
    mask, raw = dataset.id.read_direct_chunk(offset)
    if mask & (1 << codes.index(_GZIP)):
        return
    if len(zlib.decompressobj().decompress(raw, size + 1024)) > size + _CHECKSUM:
        raise GraphError(f"{where}: a compressed chunk holds more than it declares; {_REMEDY}")


def _check_strings(where: str, dataset: h5py.Dataset, budget: _Budget) -> None:
    """Read strings one by one: many entries may point at one long string."""
    count = math.prod(dataset.shape)
    budget.strings += count
    if budget.strings > MAX_STRINGS:
        raise GraphError(f"{where}: more than {MAX_STRINGS} strings; {_REMEDY}")
    for index in np.ndindex(dataset.shape):
        value = dataset[index]
        budget.spend(where, len(value))
