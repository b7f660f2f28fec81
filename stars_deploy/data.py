"""Labelled images from outside: data sets by name, folders, npz files, packaged subsets.

`load_data` is the only way in the package to open a data set. Distillation never calls it.
"""

from __future__ import annotations

import gzip
import os
import re
import struct
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stars_deploy.assets import asset
from stars_deploy.config.recipe import Data
from stars_deploy.errors import DataError, nearest
from stars_deploy.files import read_npz, require_plain, require_proportion
from stars_deploy.image_files import IMAGE_SPLITS, image_folder, jpeg_images

Split = Literal["train", "test"]
Images = NDArray[np.uint8]
Labels = NDArray[np.int64]

NAMED = {  # name -> class of torchvision.datasets
    "fashion-mnist": "FashionMNIST",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
}
EVALUATION = "evaluation"
_IDX_FILES = {"train": "train", "test": "t10k"}
_IDX_LIMIT = 1 << 31  # bytes one idx file may unpack to


def load_data(spec: str | Path, data: Data, split: Split = "test") -> tuple[Images, Labels]:
    """Return images uint8 [N, C, H, W] and labels int64 [N] of what `spec` names.

    A name ("cifar10") is downloaded once by torchvision; "evaluation" is the test subset packaged
    with the model `data.name`; a folder holds idx files, or train/ and test/ (or val/) with a
    folder of image files per class, or one npz file per split whose name ends in train.npz and
    test.npz; an npz holds images and labels, or JPEG files (arrays `jpeg`, all their bytes,
    `offsets` [N+1], `labels`), and is used as it is, whatever the split.

    Raises:
        DataError: absent, unreadable, not images, of another shape, or a label out of range.
    """
    images, labels, origin = _open(str(spec), data, split)
    return _checked(images, labels, data, origin)


def data_label(spec: str, data: Data) -> str:
    """Return how results name what `load_data` opens: by name, not by a path of one machine."""
    path = Path(spec).expanduser()
    return f"{data.name} ({path.name})" if spec != EVALUATION and path.exists() else spec


def _open(spec: str, data: Data, split: Split) -> tuple[NDArray[Any], NDArray[Any], str]:
    path = Path(spec).expanduser()
    if spec == EVALUATION:
        return *_evaluation(data, split), f"evaluation subset of {data.name!r}"
    if spec and path.is_dir():
        if any((path / name).is_dir() for name in ("train", *IMAGE_SPLITS["test"])):
            return *image_folder(path, data, split), str(path)
        if any(path.glob("*.npz")):
            found = _npz_of(path, split)
            return *_npz(found, data), str(found)
        return *_idx_folder(path, split), str(path)
    if path.is_file():
        return *_npz(path, data), str(path)
    if spec in NAMED:
        return *_named(spec, split), spec
    raise DataError(
        f"data {spec!r} is neither a folder, an npz file nor a known data set"
        f"{nearest(spec, [*NAMED, EVALUATION])}"
    )


def _evaluation(data: Data, split: Split) -> tuple[NDArray[Any], NDArray[Any]]:
    path = asset("models", data.name, "evaluation.npz")
    if split != "test":
        raise DataError(f"data {EVALUATION!r} holds test images only; name the data set itself")
    if not path.is_file():
        raise DataError(f"data {EVALUATION!r}: no packaged subset for data set {data.name!r}")
    return _npz(path, data)


def _npz_of(folder: Path, split: Split) -> Path:
    found = sorted(folder.glob(f"*{split}.npz"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise DataError(f"{folder}: expected one npz file named *{split}.npz, found {names}")
    return found[0]


def _npz(path: Path, data: Data) -> tuple[NDArray[Any], NDArray[Any]]:
    arrays = read_npz(path, DataError)
    if "jpeg" in arrays:
        return jpeg_images(arrays, path, data)
    for key in ("images", "labels"):
        if key not in arrays:
            found = ", ".join(arrays) or "nothing"
            raise DataError(f"{path}: array {key!r} is missing (found {found})")
    return arrays["images"], arrays["labels"]


def _idx_folder(folder: Path, split: Split) -> tuple[NDArray[Any], NDArray[Any]]:
    stem = _IDX_FILES[split]
    images = _read_idx(_find(folder, f"{stem}-images-idx3-ubyte"))
    return images[:, None], _read_idx(_find(folder, f"{stem}-labels-idx1-ubyte"))


def _find(folder: Path, name: str) -> Path:
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise DataError(f"{folder}: neither {name} nor {name}.gz; expected a folder of idx files")


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """Read an idx file of unsigned bytes: magic 0 0 8 ndim, big-endian sizes, then the values."""
    opened = gzip.open if path.suffix == ".gz" else Path.open
    dimensions = 3 if "idx3" in path.name else 1
    try:
        require_plain(path, DataError, _IDX_LIMIT)
        with opened(path, "rb") as stream:
            header = stream.read(4 + 4 * dimensions)
            if header[:4] != bytes([0, 0, 8, dimensions]):
                raise DataError(f"{path}: not an idx file of bytes with {dimensions} dimensions")
            shape = struct.unpack(f">{dimensions}I", header[4:])
            count = int(np.prod(shape, dtype=object))
            if count > _IDX_LIMIT:
                raise DataError(f"{path}: declares {count} bytes, the limit is {_IDX_LIMIT}")
            require_proportion(path, count, DataError)
            content = bytearray(count)  # writable, for torch
            filled = stream.readinto(content) + len(stream.read(1))
    except (OSError, EOFError, zlib.error, struct.error) as problem:
        raise DataError(f"{path}: truncated or not a readable idx file ({problem})") from None
    if filled != count:
        raise DataError(f"{path}: holds {filled} bytes of values or more, its header says {count}")
    return np.frombuffer(content, np.uint8).reshape(shape)


def cache_folder() -> Path:
    """Return where downloaded data sets are kept: $XDG_CACHE_HOME (or ~/.cache)/stars-deploy."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
    return Path(base) / "stars-deploy" / "data"


def _named(name: str, split: Split) -> tuple[NDArray[Any], NDArray[Any]]:
    from torchvision import datasets  # seconds to import

    factory = getattr(datasets, NAMED[name])
    try:
        found = factory(cache_folder(), train=split == "train", download=True)
    except (OSError, RuntimeError) as problem:
        reason = re.sub(r"\s+", " ", str(problem))
        raise DataError(
            f"data {name!r}: download to {cache_folder()} failed ({reason}); "
            "give a folder with its idx files instead"
        ) from None
    images = np.asarray(found.data)
    images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    return images, np.asarray(found.targets)


def _checked(
    images: NDArray[Any], labels: NDArray[Any], data: Data, origin: str
) -> tuple[Images, Labels]:
    """Return contiguous arrays, or raise DataError naming what does not fit the recipe's data."""
    if images.dtype != np.uint8:
        raise DataError(f"{origin}: images are {images.dtype}, expected uint8 pixels 0 to 255")
    if images.ndim != 4 or images.shape[1:] != data.shape:
        raise DataError(
            f"{origin}: images have shape {list(images.shape)}, expected [N, C, H, W] = "
            f"[N, {', '.join(map(str, data.shape))}] of data set {data.name!r}"
        )
    if len(images) == 0:
        raise DataError(f"{origin}: holds no images")
    if labels.dtype.kind not in "iu" or labels.shape != (len(images),):
        raise DataError(
            f"{origin}: labels are {labels.dtype} {list(labels.shape)}, "
            f"expected {len(images)} integers"
        )
    classes = len(data.classes)
    outside = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(outside):
        at = int(outside[0])
        raise DataError(
            f"{origin}: label {int(labels[at])} of image {at} is not one of the "
            f"{classes} classes 0 to {classes - 1}"
        )
    return np.ascontiguousarray(images), np.ascontiguousarray(labels, dtype=np.int64)
