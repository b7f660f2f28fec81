"""run_lava.py without Lava: what it refuses, and that it stands alone."""

import ast
import copy
import importlib.util
import json
import subprocess
import sys

import lava_documents
import numpy as np
import pytest
import random_host
import slow_loihi

from stars_deploy.assets import asset

KIT = asset("export", "run_lava.py")
IMAGES = np.zeros((2, 2, 5, 7), np.uint8)


@pytest.fixture(scope="module")
def run_lava():
    spec = importlib.util.spec_from_file_location("run_lava", KIT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.split(".")[0]


def test_needs_python_310_numpy_scipy_and_lava_only():
    tree = ast.parse(KIT.read_text(), feature_version=(3, 10))
    assert set(imports(tree)) - set(sys.stdlib_module_names) == {"numpy", "scipy", "lava"}


def test_every_requirement_is_pinned():
    lines = asset("export", "requirements-lava.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert pins["lava-dl"] == "0.6.0" and pins["lava-nc"] == "0.10.0"
    assert pins["numpy"].startswith("1.26.") and int(pins["setuptools"].split(".")[0]) < 81


def changed(change):
    """The chain of lava_documents with one change; returns document and arrays."""
    network, arrays, _ = lava_documents.asymmetric_chain()
    network, arrays = copy.deepcopy(network), dict(arrays)
    change(network, arrays)
    return network, arrays


def put(path, value):
    """A change that sets document[path[0]][path[1]]... to a value."""

    def change(network, arrays):
        place = network
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


def heavier(network, arrays):
    arrays["w.l2"] = arrays["w.l2"] + 100


def biased(network, arrays):
    arrays["b.l1"] = arrays["b.l1"] + 40000


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (put(["schema"], 2), "schema 2, this kit reads 1"),
        (put(["input", "encoding"], "morse"), "input encoding 'morse'"),
        (
            put(["populations", 0, "vth"], 131072),
            "l1: vth is 131072, expected an integer 0..131071",
        ),
        (biased, "l1: b.l1 leaves 16 bits"),
        (heavier, r"l1_l2: weights 4\d..1\d\d, expected -128..127"),
        (put(["connections", 1, "kind"], "pool"), "l1_l2: connection kind 'pool'"),
        (put(["connections", 2, "delay"], 1), "l2_l3: delay of dense is 1, .* 0..0"),
        (put(["connections", 1, "weight_exp"], 2), "l1_l2: weight_exp is 2, .* 0..0"),
        (put(["connections", 1, "groups"], 128), "l1_l2: .*must be <= 127"),
        (put(["connections", 1, "target"], "l9"), "'l1_l2' does not join two populations"),
        (put(["connections", 0, "weight_key"], "w.l9"), r"incomplete or malformed.*w\.l9"),
    ],
)
def test_refuses_what_lava_would_change_silently(run_lava, tmp_path, change, said):
    bundle = lava_documents.write_bundle(tmp_path / "bundle", *changed(change), IMAGES)
    with pytest.raises(run_lava.KitError, match=said):
        run_lava.load_document(bundle)


def test_the_unchanged_chain_is_accepted(run_lava, tmp_path):
    network, arrays = changed(lambda network, arrays: None)
    bundle = lava_documents.write_bundle(tmp_path / "bundle", network, arrays, IMAGES)
    assert run_lava.load_document(bundle)[0] == network


def test_quantise_looks_up_each_channel_in_its_table(run_lava):
    network, arrays, images = lava_documents.asymmetric_chain()
    messages = run_lava.quantise(images, network, arrays)
    assert messages[2, 1, 3, 4] == arrays["input_table"][1, images[2, 1, 3, 4]]
    assert messages.shape == images.shape and messages.dtype == np.int32
    with pytest.raises(run_lava.KitError, match=r"the network takes \(2, 5, 7\)"):
        run_lava.quantise(images.transpose(0, 1, 3, 2), network, arrays)


def command(*arguments):
    done = subprocess.run(
        [sys.executable, str(KIT), *map(str, arguments)], capture_output=True, text=True
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def test_exit_code_2_for_unusable_files(tmp_path):
    network, arrays, _ = lava_documents.asymmetric_chain()
    bundle = lava_documents.write_bundle(tmp_path / "bundle", network, arrays, IMAGES)
    trace = tmp_path / "trace.npz"
    code, said = command(bundle, trace, "--limit", 3)
    assert code == 2 and "--limit 3: golden.npz holds 2 images" in said
    code, said = command(bundle, trace, "--images", tmp_path / "none.npz")
    assert code == 2 and "none.npz: expected an npz with `images`" in said
    np.savez(tmp_path / "float.npz", images=IMAGES.astype(float))
    code, said = command(bundle, trace, "--images", tmp_path / "float.npz")
    assert code == 2 and "float64" in said
    (bundle / "loihi" / "network.json").write_text("{")
    assert command(bundle, trace)[0] == 2
    (bundle / "loihi" / "network.json").write_text("{}")
    assert command(bundle, trace)[0] == 2
    (bundle / "loihi" / "network.json").unlink()
    code, said = command(bundle, trace)
    assert code == 2 and "--target loihi" in said
    assert not trace.exists()


def test_exit_code_5_without_lava(tmp_path):
    network, arrays, images = lava_documents.asymmetric_chain()
    bundle = lava_documents.write_bundle(tmp_path / "bundle", network, arrays, images)
    code, said = command(bundle, tmp_path / "trace.npz")
    assert code == 5 and "No module named 'lava'" in said


def test_a_trace_is_written_as_a_whole(run_lava, tmp_path):
    path = tmp_path / "trace.npz"
    run_lava.write_trace(path, {"info": np.array("first")})
    with pytest.raises(TypeError):
        run_lava.write_trace(path, {1: np.array("second")})
    assert str(np.load(path)["info"]) == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_damaged_archives_are_refused_in_words(run_lava, tmp_path):
    np.savez_compressed(tmp_path / "whole.npz", images=IMAGES)
    whole = (tmp_path / "whole.npz").read_bytes()
    np.save(tmp_path / "plain.npy", IMAGES)
    for number, content in enumerate((b"", whole[: len(whole) // 2])):
        path = tmp_path / f"{number}.npz"
        path.write_bytes(content)
        with pytest.raises(run_lava.KitError, match="expected an npz"):
            run_lava.load_images(tmp_path, str(path), None)
    with pytest.raises(run_lava.KitError, match="expected an npz"):
        run_lava.load_images(tmp_path, str(tmp_path / "plain.npy"), None)


def test_images_as_biases_by_hand(run_lava):
    """Mantissas in the layout of the processes, [W, H, C]; see random_host.by_hand."""
    network, arrays, images = random_host.by_hand()
    found = run_lava.host_biases(network, arrays, run_lava.quantise(images, network, arrays))
    assert set(found) == {"map", "late"} and found["map"].dtype == np.int16
    np.testing.assert_array_equal(
        found["map"][:, :, :, 0], [[[5, 11], [7, 13]], [[18, 10], [13, 10]], [[5, 11], [7, 13]]]
    )
    np.testing.assert_array_equal(found["late"], [[-3, 2], [4, 0], [-3, 2]])


def test_images_as_biases_equal_the_slow_model(run_lava):
    for seed in range(20):
        network, arrays, images = random_host.random_hosted(seed)
        messages = run_lava.quantise(images, network, arrays)
        weights = {key: value.astype(np.int64) for key, value in arrays.items()}
        found = run_lava.host_biases(network, arrays, messages)
        for entry in network["populations"]:
            shape = tuple(reversed(entry["shape_whc"]))
            added = slow_loihi.host_mantissas(network, weights, messages, shape, entry["name"])
            if added is None:
                assert entry["name"] not in found
                continue
            own = slow_loihi.Neurons(entry, arrays).bias >> entry["bias_exp"]
            layout = (0, *range(added.ndim - 1, 0, -1))
            np.testing.assert_array_equal(found[entry["name"]], (own + added).transpose(layout))


def heavy(network, arrays):
    arrays["w.pixel"] = arrays["w.pixel"] * (1 << 55)


def apart(network, arrays):
    network["populations"].append(lava_documents.population("lonely", (2,), 1, 2, vth=9))
    network["connections"].append(
        lava_documents.connection("input", "lonely", "w.pixel") | {"host_shift": 0}
    )


def places(value, prefix=()):
    """Every place in a JSON value but its root."""
    children = value.items() if isinstance(value, dict) else ()
    for key, child in enumerate(value) if isinstance(value, list) else children:
        yield [*prefix, key]
        yield from places(child, (*prefix, key))


@pytest.mark.parametrize("value", [None, -1, 10**60, 0.5, "x", [], {}, [[]], True, float("nan")])
def test_any_value_anywhere_is_refused_in_words(run_lava, tmp_path, value):
    network, arrays, _ = lava_documents.asymmetric_chain()
    bundle = lava_documents.write_bundle(tmp_path / "bundle", network, arrays, IMAGES)
    refused = 0
    for path in places(network):
        document = copy.deepcopy(network)
        put(path, value)(document, arrays)
        (bundle / "loihi" / "network.json").write_text(json.dumps(document))
        try:
            run_lava.load_document(bundle)
        except run_lava.KitError:
            refused += 1
    assert refused > 40


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (put(["connections", 0, "host_shift"], 32), "input_map: host_shift is 32, .* 0..31"),
        (put(["connections", 1, "delay"], 1), "input_late: .*without delay"),
        (put(["connections", 1, "kind"], "sparse_delay"), "input_late: the host computes"),
        (put(["connections", 2, "delay"], 1), "map_late: delay of "),
        (heavy, "input_late: sums of its weights leave 64 bits"),
        (apart, "no connections lead from lonely to the read-out"),
    ],
)
def test_refuses_what_the_host_or_lava_cannot_do(run_lava, change, said):
    network, arrays, _ = random_host.by_hand()
    run_lava.check_document(network, arrays)
    change(network, arrays)
    with pytest.raises(run_lava.KitError, match=said):
        run_lava.check_document(network, arrays)


def test_refuses_an_image_that_leaves_the_mantissa(run_lava):
    network, arrays, images = random_host.by_hand()
    arrays["b.map"] = np.array([4087])  # 4087 + 8 just fits
    messages = run_lava.quantise(images, network, arrays)
    assert run_lava.host_biases(network, arrays, messages)["map"].max() == 4095
    arrays["b.map"] += 1
    with pytest.raises(run_lava.KitError, match=r"map: biases 4088..4096"):
        run_lava.host_biases(network, arrays, messages)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (put(["populations", 0, "depth"], 60000), "do not differ by 1 \\+ delay"),
        (put(["connections", 1, "padding"], [100, 100]), "do not lead from"),
        (put(["populations", 0, "shape_whc"], [1 << 14, 1 << 14, 1]), "neurons"),
        (put(["readout", "population"], "l9"), "no population is called 'l9'"),
        (put(["connections", 1, "name"], "input_l1"), "two connections are called"),
    ],
)
def test_refuses_what_would_run_wrongly_or_for_ever(run_lava, tmp_path, change, said):
    bundle = lava_documents.write_bundle(tmp_path / "bundle", *changed(change), IMAGES)
    with pytest.raises(run_lava.KitError, match=said):
        run_lava.load_document(bundle)
