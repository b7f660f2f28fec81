"""Files are replaced as a whole or not at all, and damage is an error, not a traceback."""

import os
import zipfile

import numpy as np
import pytest

from stars_deploy import files
from stars_deploy.errors import DataError, InputError
from stars_deploy.files import (
    atomic_directory,
    atomic_path,
    read_json,
    read_npz,
    write_json,
    write_npz,
)

ARRAYS = {"a": np.arange(300, dtype=np.int32), "b": np.ones((3, 4), np.float32)}


def test_npz_round_trip_and_equal_bytes(tmp_path):
    write_npz(tmp_path / "x.npz", ARRAYS)
    write_npz(tmp_path / "y.npz", dict(reversed(ARRAYS.items())))
    assert (tmp_path / "x.npz").read_bytes() == (tmp_path / "y.npz").read_bytes()
    found = read_npz(tmp_path / "x.npz")
    assert all(np.array_equal(found[key], value) for key, value in ARRAYS.items())


def test_every_flipped_byte_of_an_npz_is_read_or_refused(tmp_path):
    write_npz(tmp_path / "x.npz", ARRAYS)
    content = (tmp_path / "x.npz").read_bytes()
    refused = 0
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 0xFF
        (tmp_path / "x.npz").write_bytes(damaged)
        try:
            read_npz(tmp_path / "x.npz", DataError)
        except DataError as error:
            refused += 1
            assert "x.npz" in str(error)
    assert refused > len(content) / 2


def test_npz_bomb_is_refused(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", a=np.zeros(1 << 20))
    with pytest.raises(DataError, match="limit"):
        read_npz(tmp_path / "x.npz", DataError, limit_bytes=1 << 20)


def test_pickled_npz_is_refused(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError):
        read_npz(tmp_path / "x.npz", DataError)


def test_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError):
        write_json(path, {"a": float("nan")})
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_failed_directory_leaves_the_old_one(tmp_path):
    path = tmp_path / "d"
    path.mkdir()
    (path / "old").write_text("old")
    with pytest.raises(RuntimeError), atomic_directory(path) as temporary:
        (temporary / "new").write_text("new")
        raise RuntimeError
    assert [p.name for p in path.iterdir()] == ["old"]
    with atomic_directory(path, lambda _: None) as temporary:
        (temporary / "new").write_text("new")
    assert [p.name for p in path.iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_what_came_into_a_directory_meanwhile_is_not_removed(tmp_path):
    path = tmp_path / "d"

    def refuse(folder):
        if (folder / "mine").exists():
            raise InputError("not mine to remove")

    for argument, error in (((), OSError), ((refuse,), InputError)):
        path.mkdir(exist_ok=True)
        with pytest.raises(error), atomic_directory(path, *argument) as temporary:
            (temporary / "new").write_text("new")
            (path / "mine").write_text("years of work")
        assert (path / "mine").read_text() == "years of work"
        assert [p.name for p in tmp_path.iterdir()] == ["d"]
        (path / "mine").unlink()


def test_links_are_neither_replaced_nor_followed(tmp_path):
    (tmp_path / "foreign").write_text("mine")
    (tmp_path / "link").symlink_to("foreign")
    (tmp_path / "dangling").symlink_to("nothing")
    for name in ("link", "dangling"):
        with pytest.raises(InputError, match=f"{name}: is a symbolic link"):
            write_json(tmp_path / name, {})
        assert (tmp_path / name).is_symlink()
    assert (tmp_path / "foreign").read_text() == "mine"
    assert not (tmp_path / "nothing").exists()


def test_only_temporaries_of_this_tool_are_left_over(tmp_path):
    names = (".recipe.toml.a1b2c3d4.toml", ".recipe.toml.swp", ".recipe.toml.backup_1.txt")
    for name in names:
        (tmp_path / name).write_text("")
    (tmp_path / ".recipe.toml.a1b2c3d5.toml").mkdir()
    files.remove_leftovers(tmp_path / "recipe.toml")
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [".recipe.toml.a1b2c3d5.toml", ".recipe.toml.backup_1.txt", ".recipe.toml.swp"]


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"a": \x00}'])
def test_damaged_json_is_refused(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError, match=r"x\.json"):
        read_json(tmp_path / "x.json", DataError)


def test_hostile_archives_are_bad_input(tmp_path):
    import io
    import zipfile

    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (10**14,)}
    )
    cases = {"huge": ("a.npy", header.getvalue()), "bytes": ("a.txt", b"no array")}
    for name, (member, content) in cases.items():
        path = tmp_path / f"{name}.npz"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(member, content)
        with pytest.raises(InputError, match="not a"):
            files.read_npz(path)


def test_the_current_folder_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with (
        pytest.raises(InputError, match="current folder"),
        files.atomic_directory(files.Path()),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_texts_are_replaced_together_or_not_at_all(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    files.write_texts({one: "1", two: "2"})
    with pytest.raises(UnicodeEncodeError):
        files.write_texts({one: "3", two: "\ud800"})
    assert (one.read_text(), two.read_text()) == ("1", "2")
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two"}


def test_only_files_are_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # a device, for whoever is not root
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(InputError, match=f"{name}: exists and is not a file"):
            write_json(tmp_path / name, {})
    assert (tmp_path / "pipe").is_fifo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "pipe"]


def test_errors_name_the_file_that_was_asked_for(tmp_path):
    with pytest.raises(OSError) as caught:
        write_json(tmp_path / ("x" * 250), {})  # the temporary's name would be too long
    assert caught.value.filename == str(tmp_path / ("x" * 250))


@pytest.mark.parametrize("text", ["NaN", "[1e999]", '"\\ud800"', "[" * 100_000, "1" * 5000])
def test_json_that_could_not_be_written_again_is_refused(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(InputError, match="not valid JSON"):
        read_json(path)


@pytest.mark.parametrize("header", [b"(" * 16, b"{'descr': " + b"[" * 9000])
def test_npz_headers_that_are_no_literal_are_refused(tmp_path, header):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        size = len(header).to_bytes(2, "little")
        archive.writestr("a.npy", b"\x93NUMPY\x01\x00" + size + header)
    with pytest.raises(InputError, match="not a readable npz"):
        read_npz(path)
