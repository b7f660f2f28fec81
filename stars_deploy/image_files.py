"""Compressed images: folders of image files, and npz files that hold JPEG bytes."""

from __future__ import annotations

import contextlib
import io
import itertools
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stars_deploy.config.recipe import Data
from stars_deploy.errors import DataError
from stars_deploy.files import require_plain

IMAGE_SPLITS = {"train": ("train",), "test": ("test", "val")}  # folder names, the first that exists
FORMATS = ("PNG", "JPEG", "BMP")
MOST_PIXELS = 1 << 24  # of one image: a few kilobytes may stand for gigabytes
MOST_BYTES = 256 << 20  # of one file
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
ANNOTATIONS = "val_annotations.txt"  # of Tiny-ImageNet, whose val/ has no class folders

Pair = tuple[NDArray[Any], NDArray[Any]]


def jpeg_images(arrays: Mapping[str, NDArray[Any]], path: Path, data: Data) -> Pair:
    """Return images [N, C, H, W] and labels of arrays `jpeg`, `offsets` [N+1] and `labels`.

    Raises:
        DataError: an array is missing, an offset is out of place, or a file is no image.
    """
    for key in ("offsets", "labels"):
        if key not in arrays:
            raise DataError(f"{path}: array {key!r} is missing beside 'jpeg'")
    content, offsets = arrays["jpeg"], arrays["offsets"]
    if (
        content.dtype != np.uint8
        or content.ndim != 1
        or offsets.dtype.kind not in "iu"
        or offsets.ndim != 1
    ):
        raise DataError(f"{path}: 'jpeg' must be one row of bytes and 'offsets' integers")
    if len(offsets) < 2 or offsets[0] != 0 or offsets[-1] != len(content):
        raise DataError(f"{path}: 'offsets' must run from 0 to {len(content)}, the bytes of 'jpeg'")
    if (np.diff(offsets.astype(np.int64)) <= 0).any():
        raise DataError(f"{path}: 'offsets' must grow from image to image")
    whole = content.tobytes()
    images = (
        _decode(whole[first:last], f"{path}: image {number}")
        for number, (first, last) in enumerate(itertools.pairwise(offsets))
    )
    return _stacked(images, len(offsets) - 1, data, str(path)), arrays["labels"]


def image_folder(folder: Path, data: Data, split: str) -> Pair:
    """Return the images under FOLDER/<split>/<class>/ in the order of classes and file names.

    A class is found by the recipe's name of it; if no folder has such a name, the folders in
    alphabetical order are the classes in order.

    Raises:
        DataError: no such split, another number of classes, or a file that is no image.
    """
    place = _split_folder(folder, split)
    listed = dict(_annotated(place)) if (place / ANNOTATIONS).is_file() else _by_folder(place)
    names = sorted(set(listed.values()))
    if set(names) <= set(data.classes):
        index = {name: data.classes.index(name) for name in names}
    elif len(names) == len(data.classes):
        index = {name: number for number, name in enumerate(names)}
    else:
        raise DataError(
            f"{place}: has {len(names)} class folders ({', '.join(names[:3])}, ...), the recipe "
            f"has {len(data.classes)} classes"
        )
    files = sorted(listed, key=lambda path: (index[listed[path]], path))
    grey = data.shape[0] == 1
    images = (_decode(_content(path), str(path), grey) for path in files)
    labels = np.array([index[listed[path]] for path in files], np.int64)
    return _stacked(images, len(files), data, str(place)), labels


def _content(path: Path) -> bytes:
    require_plain(path, DataError, MOST_BYTES)
    return path.read_bytes()


def _split_folder(folder: Path, split: str) -> Path:
    for name in IMAGE_SPLITS[split]:
        if (folder / name).is_dir() and not _unlabelled(folder / name):
            return folder / name
    expected = " or ".join(IMAGE_SPLITS[split])
    raise DataError(f"{folder}: has no folder {expected} for the {split} images")


def _unlabelled(place: Path) -> bool:
    """Tiny-ImageNet's test/ holds images of no class."""
    folders = [path.name for path in place.iterdir() if path.is_dir()]
    return folders == ["images"] and not (place / ANNOTATIONS).is_file()


def _by_folder(place: Path) -> dict[Path, str]:
    found = {
        path: path.relative_to(place).parts[0]
        for path in place.rglob("*")
        if path.suffix.lower() in SUFFIXES and len(path.relative_to(place).parts) > 1
    }
    if not found:
        raise DataError(f"{place}: holds no folders of image files ({', '.join(SUFFIXES)})")
    return found


def _annotated(place: Path) -> Iterator[tuple[Path, str]]:
    require_plain(place / ANNOTATIONS, DataError, MOST_BYTES)
    try:
        lines = (place / ANNOTATIONS).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as problem:
        raise DataError(f"{place / ANNOTATIONS}: not a text file ({problem})") from None
    for number, line in enumerate(lines, start=1):
        fields = line.split("\t")
        if len(fields) < 2 or Path(fields[0]).name != fields[0]:
            raise DataError(f"{place / ANNOTATIONS}: line {number} has no file and class")
        yield place / "images" / fields[0], fields[1]


def _decode(content: bytes, origin: str, grey: bool | None = None) -> NDArray[np.uint8]:
    """Return an image file as [C, H, W]; grey None keeps its own kind."""
    from PIL import Image, UnidentifiedImageError

    try:
        with _no_bombs(), Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise DataError(
                    f"{origin}: {image.width} x {image.height} pixels, at most {MOST_PIXELS} are "
                    "decoded; make the image smaller"
                )
            mode = image.mode if grey is None else ("L" if grey else "RGB")
            pixels = np.asarray(image.convert("L" if mode == "L" else "RGB"))
    except (
        UnidentifiedImageError,
        OSError,
        ValueError,
        SyntaxError,  # Pillow's word for a PNG that breaks off in the middle
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
        zlib.error,
        struct.error,
        OverflowError,
        MemoryError,
    ) as problem:
        raise DataError(f"{origin}: not a readable image ({problem})") from None
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


@contextlib.contextmanager
def _no_bombs() -> Iterator[None]:
    """Make Pillow's warning of a picture of very many pixels an error."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _stacked(
    images: Iterator[NDArray[np.uint8]], count: int, data: Data, origin: str
) -> NDArray[np.uint8]:
    """Return `count` images as one array, made without holding them twice."""
    stack: NDArray[np.uint8] | None = None
    for number, image in enumerate(images):
        if image.shape != data.shape:
            raise DataError(
                f"{origin}: image {number} has shape {list(image.shape)}, expected "
                f"{list(data.shape)} of data set {data.name!r}"
            )
        if stack is None:
            try:
                stack = np.empty((count, *image.shape), np.uint8)
            except (MemoryError, ValueError):  # ValueError: more than an array can index
                raise DataError(
                    f"{origin}: {count} images of {list(image.shape)} do not fit in memory"
                ) from None
        stack[number] = image
    if stack is None:
        raise DataError(f"{origin}: holds no images")
    return stack
