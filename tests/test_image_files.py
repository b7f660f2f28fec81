"""Folders of image files and npz files of JPEG bytes."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from stars_deploy.config.recipe import Data
from stars_deploy.data import load_data
from stars_deploy.errors import DataError

DATA = Data(
    name="x", shape=(3, 6, 8), classes=("cat", "dog"), mean=(0.0,) * 3, std=(1.0,) * 3
)  # fmt: skip


def picture(value: int, size: tuple[int, int] = (8, 6), mode: str = "RGB") -> Image.Image:
    return Image.new(mode, size, value if mode == "L" else (value, 10, 20))


def encoded(image: Image.Image, form: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form)
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path):
    for split, count in (("train", 3), ("test", 2)):
        for number, name in enumerate(("dog", "cat")):
            place = tmp_path / split / name
            place.mkdir(parents=True)
            for index in range(count):
                picture(100 * number + index).save(place / f"{index}.png")
    return tmp_path


def test_classes_of_a_folder_are_the_recipes_by_name(folder):
    images, labels = load_data(folder, DATA, "train")
    assert images.shape == (6, 3, 6, 8) and labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert images[:, 0, 0, 0].tolist() == [100, 101, 102, 0, 1, 2]
    assert images[0, :, 0, 0].tolist() == [100, 10, 20]
    assert len(load_data(folder, DATA, "test")[1]) == 4


def test_other_names_count_in_alphabetical_order(folder):
    renamed = DATA.model_copy(update={"classes": ("a", "b")})
    assert load_data(folder, renamed, "train")[1].tolist() == [0, 0, 0, 1, 1, 1]


def test_tiny_imagenets_layout_is_read(tmp_path):
    (tmp_path / "train" / "cat" / "images").mkdir(parents=True)
    picture(1).save(tmp_path / "train" / "cat" / "images" / "a.png")
    (tmp_path / "test" / "images").mkdir(parents=True)  # has no labels and is passed over
    picture(2).save(tmp_path / "test" / "images" / "b.png")
    (tmp_path / "val" / "images").mkdir(parents=True)
    for index, _ in enumerate(("dog", "cat")):
        picture(50 + index).save(tmp_path / "val" / "images" / f"{index}.png")
    lines = [f"{index}.png\t{name}\t0\t0\t1\t1" for index, name in enumerate(("dog", "cat"))]
    (tmp_path / "val" / "val_annotations.txt").write_text("\n".join(lines))
    images, labels = load_data(tmp_path, DATA, "test")
    assert labels.tolist() == [0, 1] and images[:, 0, 0, 0].tolist() == [51, 50]
    assert load_data(tmp_path, DATA, "train")[1].tolist() == [0]


def jpeg_npz(path, images, **changes):
    parts = [encoded(image, "JPEG") for image in images]
    arrays = {
        "jpeg": np.frombuffer(b"".join(parts), np.uint8),
        "offsets": np.cumsum([0, *map(len, parts)]),
        "labels": np.arange(len(parts)) % 2,
        "classes": np.array(["cat", "dog"]),
    }
    np.savez(path, **{**arrays, **changes})
    return path


def test_jpeg_bytes_become_images(tmp_path):
    path = jpeg_npz(tmp_path / "a.npz", [picture(30), picture(200), picture(90)])
    images, labels = load_data(path, DATA)
    assert labels.tolist() == [0, 1, 0]
    assert np.abs(images[:, 0, 3, 3].astype(int) - [30, 200, 90]).max() <= 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"offsets": np.array([0, 5])}, "'offsets' must run from 0 to"),
        ({"offsets": np.array([[0, 5]])}, "'offsets' integers"),
        ({"jpeg": np.zeros(9, np.float32)}, "one row of bytes"),
        ({"labels": np.array([0])}, "expected 2 integers"),
        ({"jpeg": np.zeros(40, np.uint8), "offsets": np.array([0, 20, 40])}, "not a readable im"),
        ({"jpeg": np.zeros(40, np.uint8), "offsets": np.array([0, 40, 40])}, "must grow"),
    ],
)
def test_damaged_jpeg_archives_are_refused(tmp_path, changes, message):
    path = jpeg_npz(tmp_path / "a.npz", [picture(1), picture(2)], **changes)
    with pytest.raises(DataError, match=message):
        load_data(path, DATA)


def test_wrong_folders_are_refused(folder, tmp_path):
    (folder / "train" / "dog" / "0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"0\.png: not a readable image"):
        load_data(folder, DATA, "train")
    picture(1, (4, 4)).save(folder / "train" / "dog" / "0.png")
    with pytest.raises(DataError, match=r"image 3 has shape \[3, 4, 4\]"):
        load_data(folder, DATA, "train")
    three = DATA.model_copy(update={"classes": ("a", "b", "c")})
    with pytest.raises(DataError, match="has 2 class folders"):
        load_data(folder, three, "test")
    (folder / "test").rename(folder / "other")
    with pytest.raises(DataError, match="no folder test or val"):
        load_data(folder, DATA, "test")


def test_a_png_with_a_broken_chunk_is_refused(folder):
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    content = encoded(Image.fromarray(noise), "PNG")
    first, second = content.find(b"IDAT"), content.rfind(b"IDAT")
    assert first != second  # what follows the first one is looked for where the pixels are read
    broken = content[:second] + b"\x00\x8e\x16\xaa" + content[second + 4 :]
    (folder / "train" / "dog" / "0.png").write_bytes(broken)
    with pytest.raises(DataError, match=r"0\.png: not a readable image"):
        load_data(folder, DATA, "train")


def test_a_few_bytes_do_not_claim_all_memory(tmp_path):
    huge = encoded(Image.new("L", (9000, 9000)), "JPEG")
    count = 2_000_000  # times 9000^2: more than a process can address
    path = jpeg_npz(
        tmp_path / "a.npz",
        [],
        jpeg=np.concatenate([np.frombuffer(huge, np.uint8), np.zeros(count, np.uint8)]),
        offsets=np.concatenate([[0], len(huge) + np.arange(count + 1)]),
        labels=np.zeros(count + 1, np.uint8),
    )
    with pytest.raises(DataError, match="9000 x 9000 pixels, at most"):
        load_data(path, DATA)


def test_annotations_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "val" / "images").mkdir(parents=True)
    (tmp_path / "val" / "val_annotations.txt").write_bytes(b"\xff\xfe\t\x80")
    with pytest.raises(DataError, match=r"val_annotations\.txt: not a text file"):
        load_data(tmp_path, DATA, "test")
