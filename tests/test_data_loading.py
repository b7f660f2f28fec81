"""Images from outside: every way in gives the same arrays, everything else is refused by name."""

from __future__ import annotations

import gzip
import importlib.util
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from small_recipes import recipe

from stars_deploy import data as data_module
from stars_deploy.config.recipe import Data, load_recipe
from stars_deploy.data import cache_folder, load_data
from stars_deploy.errors import DataError
from stars_deploy.files import write_npz

DATA = recipe().data
IMAGES = np.random.default_rng(0).integers(0, 256, (7, 1, 12, 12), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2, 2])


def idx(array: np.ndarray) -> bytes:
    """An idx file from its definition: 0, 0, 8 (bytes), dimensions, big-endian sizes, values."""
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_folder(folder: Path, compress: bool = False, stem: str = "t10k") -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in (
        (f"{stem}-images-idx3-ubyte", idx(IMAGES[:, 0])),
        (f"{stem}-labels-idx1-ubyte", idx(LABELS)),
    ):
        if compress:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)
    return folder


def check(loaded: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = loaded
    assert images.dtype == np.uint8 and labels.dtype == np.int64
    assert images.flags.writeable and images.flags.c_contiguous
    np.testing.assert_array_equal(images, IMAGES)
    np.testing.assert_array_equal(labels, LABELS)


@pytest.mark.parametrize("compress", [True, False])
def test_idx_folder(tmp_path: Path, compress: bool) -> None:
    write_folder(tmp_path, compress)
    check(load_data(tmp_path, DATA))
    with pytest.raises(DataError, match=r"neither train-images-idx3-ubyte nor .*\.gz"):
        load_data(tmp_path, DATA, "train")
    write_folder(tmp_path, compress, "train")
    check(load_data(str(tmp_path), DATA, "train"))


def test_npz_file(tmp_path: Path) -> None:
    write_npz(tmp_path / "some.npz", {"images": IMAGES, "labels": LABELS.astype(np.uint8)})
    check(load_data(tmp_path / "some.npz", DATA))
    check(load_data(tmp_path / "some.npz", DATA, "train"))


def test_a_folder_with_an_npz_per_split(tmp_path: Path) -> None:
    for split, images in (("train", IMAGES), ("test", 255 - IMAGES)):
        arrays = {"images": images, "labels": LABELS.astype(np.uint8)}
        write_npz(tmp_path / f"things_{split}.npz", arrays)
    check(load_data(tmp_path, DATA, "train"))
    assert (load_data(tmp_path, DATA)[0] == 255 - IMAGES).all()
    (tmp_path / "other_test.npz").write_bytes(b"")
    with pytest.raises(DataError, match=r"one npz file named \*test.npz, found other_test.npz, th"):
        load_data(tmp_path, DATA)


def test_packaged_evaluation_subset_is_the_first_2000_test_images() -> None:
    data = load_recipe("fashion-mnist").data
    images, labels = load_data("evaluation", data)
    assert images.shape == (2000, 1, 28, 28)
    # Class counts and pixel statistics of the published test set's first 2,000 images.
    assert np.bincount(labels).tolist() == [200, 203, 214, 190, 219, 195, 197, 200, 194, 188]
    assert labels[:10].tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]
    assert images.mean() / 255 == pytest.approx(data.mean[0], abs=0.01)
    assert images.std() / 255 == pytest.approx(data.std[0], abs=0.01)
    with pytest.raises(DataError, match="holds test images only"):
        load_data("evaluation", data, "train")


def test_evaluation_subset_of_another_data_set_is_absent() -> None:
    with pytest.raises(DataError, match="no packaged subset for data set 'small'"):
        load_data("evaluation", DATA)


def fake_torchvision(monkeypatch: pytest.MonkeyPatch, factory: Callable[..., Any]) -> None:
    datasets = SimpleNamespace(FashionMNIST=factory)
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(datasets=datasets))


@pytest.mark.parametrize("channels", [1, 3])
def test_named_data_set_comes_from_torchvision(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, channels: int
) -> None:
    calls: list[Any] = []
    images = np.repeat(IMAGES, channels, axis=1)

    def fake(root: Path, train: bool, download: bool) -> SimpleNamespace:
        calls.append((Path(root), train, download))
        stored = images[:, 0] if channels == 1 else images.transpose(0, 2, 3, 1)
        return SimpleNamespace(data=stored, targets=LABELS.tolist())

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fake_torchvision(monkeypatch, fake)
    data = recipe(
        data={"shape": [channels, 12, 12], "mean": [0.5] * channels, "std": [0.3] * channels}
    ).data
    found, labels = load_data("fashion-mnist", data, "train")
    np.testing.assert_array_equal(found, images)
    np.testing.assert_array_equal(labels, LABELS)
    assert calls == [(tmp_path / "stars-deploy" / "data", True, True)]


def test_failed_download_says_what_else_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def offline(root: Path, train: bool, download: bool) -> None:
        raise RuntimeError("Error downloading\n train-images-idx3-ubyte.gz")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fake_torchvision(monkeypatch, offline)
    with pytest.raises(DataError, match=r"download to .* failed .* give a folder with its idx"):
        load_data("fashion-mnist", DATA)


def test_names_are_data_sets_of_torchvision() -> None:
    found = importlib.util.find_spec("torchvision")  # without the seconds that importing takes
    assert found is not None and found.origin is not None
    listed = (Path(found.origin).parent / "datasets" / "__init__.py").read_text()
    for name in data_module.NAMED.values():
        assert f'"{name}"' in listed


def test_downloads_go_to_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "stars-deploy" / "data"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("fashion-mnst", "'fashion-mnst' is neither a folder.*did you mean 'fashion-mnist'"),
        ("/no/such/folder", "'/no/such/folder' is neither a folder, an npz file nor"),
        ("", "'' is neither"),
    ],
)
def test_absent_data_is_refused(spec: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_data(spec, DATA)


BAD_ARRAYS: dict[str, tuple[dict[str, np.ndarray], str]] = {
    "no labels": ({"images": IMAGES}, r"array 'labels' is missing \(found images\)"),
    "empty archive": ({}, r"array 'images' is missing \(found nothing\)"),
    "floats": (
        {"images": IMAGES / 255, "labels": LABELS},
        "images are float64, expected uint8 pixels",
    ),
    "shape": (
        {"images": IMAGES[:, :, :10], "labels": LABELS},
        r"shape \[7, 1, 10, 12\], expected \[N, C, H, W\] = \[N, 1, 12, 12\] of data set 'small'",
    ),
    "no channel axis": ({"images": IMAGES[:, 0], "labels": LABELS}, r"shape \[7, 12, 12\]"),
    "no images": (
        {"images": IMAGES[:0], "labels": LABELS[:0]},
        "holds no images",
    ),
    "too few labels": (
        {"images": IMAGES, "labels": LABELS[:5]},
        r"labels are int64 \[5\], expected 7 integers",
    ),
    "float labels": ({"images": IMAGES, "labels": LABELS + 0.5}, "labels are float64"),
    "label too large": (
        {"images": IMAGES, "labels": np.array([0, 1, 3, 0, 0, 0, 0])},
        "label 3 of image 2 is not one of the 3 classes 0 to 2",
    ),
    "negative label": (
        {"images": IMAGES, "labels": np.array([0, 1, 2, -1, 0, 0, 0])},
        "label -1 of image 3",
    ),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_data_that_does_not_fit_is_refused(tmp_path: Path, case: str) -> None:
    arrays, message = BAD_ARRAYS[case]
    write_npz(tmp_path / "bad.npz", arrays)
    with pytest.raises(DataError, match=message) as caught:
        load_data(tmp_path / "bad.npz", DATA)
    assert str(caught.value).startswith(str(tmp_path / "bad.npz"))


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n" + bytes(64)])
def test_a_file_that_is_no_npz_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.npz: not a readable npz"):
        load_data(tmp_path / "x.npz", DATA)


def test_pickled_arrays_are_not_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=np.array([{"a": 1}], dtype=object), labels=LABELS)
    with pytest.raises(DataError, match="not a readable npz"):
        load_data(tmp_path / "x.npz", DATA)


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("keep", [0, 3, 10, 200, -1])
def test_truncated_idx_is_refused(tmp_path: Path, compress: bool, keep: int) -> None:
    write_folder(tmp_path, compress)
    path = next(tmp_path.glob("t10k-images*"))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match="t10k-images"):
        load_data(tmp_path, DATA)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (bytes([0, 0, 13, 3]), "not an idx file of bytes with 3 dimensions"),  # float32
        (bytes([0, 0, 8, 2]), "not an idx file of bytes with 3 dimensions"),
        (bytes([0, 0, 8, 3]) + b"\xff" * 12, "the limit is"),
        (bytes([0, 0, 8, 3]) + struct.pack(">3I", 6, 12, 12), "its header says 864"),
    ],
)
def test_idx_header_is_checked(tmp_path: Path, header: bytes, message: str) -> None:
    write_folder(tmp_path)
    path = tmp_path / "t10k-images-idx3-ubyte"
    path.write_bytes(header + path.read_bytes()[len(header) :])
    with pytest.raises(DataError, match=message):
        load_data(tmp_path, DATA)


def test_every_way_in_passes_one_point(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(spec: str, data: Data, split: str) -> None:
        raise AssertionError(f"{spec} was opened")

    write_npz(tmp_path / "a.npz", {"images": IMAGES, "labels": LABELS})
    monkeypatch.setattr(data_module, "_open", refuse)
    for spec in ("fashion-mnist", "evaluation", tmp_path, tmp_path / "a.npz"):
        with pytest.raises(AssertionError, match="was opened"):
            load_data(spec, DATA)


def test_importing_the_module_imports_neither_torch_nor_torchvision() -> None:
    code = "import sys, stars_deploy.data; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
