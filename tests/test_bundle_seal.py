"""A bundle opens only if it holds exactly what was exported."""

import json

import numpy as np
import pytest

from stars_deploy import files
from stars_deploy.errors import BundleError
from stars_deploy.targets.bundle import (
    Golden,
    is_bundle,
    open_bundle,
    read_golden,
    refuse_foreign,
    seal,
    write_golden,
    write_manifest,
)


@pytest.fixture
def bundle(tmp_path):
    path = tmp_path / "bundle"
    (path / "loihi").mkdir(parents=True)
    (path / "graph.nir").write_bytes(b"graph")
    (path / "loihi" / "network.json").write_text("{}")
    (path / "report.html").write_text("written later")
    source = {"kind": "nir", "name": "graph.nir", "sha256": "0" * 64}
    write_manifest(path, source, "loihi2", ["nir", "loihi"], {"golden": 0})
    return path


def test_manifest_hashes_every_file_except_what_is_written_later(bundle):
    manifest = json.loads((bundle / "manifest.json").read_text())
    # printf graph | sha256sum
    expected = "eef93e1d14482804277fca0172464032d1a4fdbcc338524059fa1e861454ad4d"
    assert manifest["sha256"]["graph.nir"] == expected
    assert set(manifest["sha256"]) == {"graph.nir", "loihi/network.json"}


def test_unchanged_bundle_opens(bundle):
    opened = open_bundle(bundle)
    assert opened.file("graph.nir").read_bytes() == b"graph"
    assert opened.has("loihi/network.json") and not opened.has("model.onnx")
    with pytest.raises(BundleError, match="--target onnx"):
        opened.file("model.onnx")


def test_changed_byte_names_file_and_both_hashes(bundle):
    expected = files.sha256(bundle / "loihi" / "network.json")
    (bundle / "loihi" / "network.json").write_text("{ ")
    found = files.sha256(bundle / "loihi" / "network.json")
    with pytest.raises(BundleError) as caught:
        open_bundle(bundle)
    message = str(caught.value)
    assert "network.json" in message and expected in message and found in message
    assert caught.value.exit_code == 2


def test_seal_accepts_the_change_and_keeps_the_rest(bundle):
    before = json.loads((bundle / "manifest.json").read_text())
    (bundle / "graph.nir").write_bytes(b"other")
    after = seal(bundle)
    assert open_bundle(bundle).manifest == after
    assert after["sha256"]["graph.nir"] != before["sha256"]["graph.nir"]
    assert {k: v for k, v in after.items() if k != "sha256"} == {
        k: v for k, v in before.items() if k != "sha256"
    }


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: (b / "graph.nir").unlink(), "graph.nir is listed in the manifest but missing"),
        (lambda b: (b / "extra.npz").write_bytes(b""), "extra.npz is not listed"),
        (lambda b: (b / "loihi" / "x").symlink_to(b / "graph.nir"), "link"),
        (lambda b: (b / "manifest.json").unlink(), "no manifest.json"),
        (lambda b: (b / "manifest.json").write_text("{"), "not valid JSON"),
        (lambda b: (b / "manifest.json").write_text("[]"), "not the manifest of a bundle"),
        (lambda b: (b / "manifest.json").write_text('{"sha256": {}, "schema": 7}'), "schema is 7"),
        (lambda b: (b / "manifest.json").write_text('{"sha256": {}, "schema": 1}'), "tool_version"),
    ],
)
def test_damage_is_named(bundle, damage, message):
    damage(bundle)
    with pytest.raises(BundleError, match=message):
        open_bundle(bundle)


def test_temporary_of_a_killed_validate_is_no_tampering(bundle):
    (bundle / ".validation.json.a1b2c3.json").write_text("half")
    open_bundle(bundle)


def test_only_a_bundle_may_be_replaced(bundle, tmp_path):
    refuse_foreign(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    refuse_foreign(tmp_path / "empty")
    refuse_foreign(bundle)
    (bundle / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match=r"notes\.txt is not part of the bundle"):
        refuse_foreign(bundle)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work")
    with pytest.raises(BundleError, match="not a bundle"):
        refuse_foreign(tmp_path / "thesis")
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="not a directory"):
        refuse_foreign(tmp_path / "file")
    (tmp_path / "extension").mkdir()
    (tmp_path / "extension" / "manifest.json").write_text('{"manifest_version": 3}')
    assert not is_bundle(tmp_path / "extension")


def golden(count=3):
    rng = np.random.default_rng(0)
    return Golden(
        images=rng.integers(0, 256, (count, 1, 4, 4), np.uint8),
        labels=np.array([1, -1, 0][:count]),
        source="evaluation",
        logits={"float": rng.normal(size=(count, 2)).astype(np.float32)},
        spikes={"float": {"lif1": rng.integers(0, 2, (2, count, 5), np.uint8)}},
    )


def test_golden_survives_the_file_with_the_documented_keys(tmp_path):
    path = tmp_path / "golden.npz"
    before = golden()
    write_golden(path, before)
    with np.load(path) as arrays:
        assert set(arrays.files) == {
            "images", "labels", "images_source", "float.logits", "float.spikes.lif1",
        }  # fmt: skip
    after = read_golden(path)
    assert after.source == "evaluation"
    np.testing.assert_array_equal(after.images, before.images)
    np.testing.assert_array_equal(after.labels, before.labels)
    np.testing.assert_array_equal(after.logits["float"], before.logits["float"])
    np.testing.assert_array_equal(after.spikes["float"]["lif1"], before.spikes["float"]["lif1"])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("images", None, "'images' is missing"),
        ("images", np.zeros((3, 1, 4, 4), np.float32), "'images' is float32"),
        ("labels", np.zeros(2, np.int64), "expected int64 with 1 axes, 3 images"),
        ("images_source", np.array("web"), "images_source is 'web'"),
        ("float.logits", np.zeros((4, 2), np.float32), r"'float\.logits' is float32 \[4, 2\]"),
        ("float.spikes.lif1", np.zeros((2, 5, 3), np.uint8), r"expected \[T, 3"),
    ],
)
def test_malformed_golden_is_named(tmp_path, key, value, message):
    path = tmp_path / "golden.npz"
    write_golden(path, golden())
    with np.load(path) as archive:
        arrays = dict(archive)
    arrays[key] = value
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
    with pytest.raises(BundleError, match=message):
        read_golden(path)


def test_truncated_golden_is_bad_input(tmp_path):
    path = tmp_path / "golden.npz"
    write_golden(path, golden())
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(BundleError, match="not a readable npz"):
        read_golden(path)


@pytest.mark.parametrize(
    ("key", "value"), [("seeds", None), ("source", 5), ("targets", 5), ("profile", [])]
)
def test_a_manifest_with_values_of_the_wrong_kind_is_refused(bundle, key, value):
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps({**manifest, key: value}))
    with pytest.raises(BundleError, match=f"key '{key}' has value"):
        open_bundle(bundle)
