"""validate on real bundles: what passes, what fails and by which name, what is bad input."""

import json
import re
import shutil
from pathlib import Path

import bundles
import numpy as np
import onnx
import pytest

from stars_deploy import files
from stars_deploy.errors import BundleError, EngineError, InputError
from stars_deploy.simulation.recording import Recording
from stars_deploy.targets.bundle import open_bundle, read_golden, seal
from stars_deploy.targets.findings import Finding
from stars_deploy.validation import engines
from stars_deploy.workflow import setting as settings
from stars_deploy.workflow.simulate import simulate
from stars_deploy.workflow.validate import validate

NODES = ["lif1", "lif2", "lif3"]
KEYS = {
    "schema", "verdict", "reason", "profile", "engine", "reference", "training", "images", "n",
    "accuracy", "agreement", "layers", "readout", "energy", "tolerances", "findings", "also",
    "engines_not_run", "command", "tool_version", "manifest_sha256", "earlier", "first_divergence",
}  # fmt: skip
LAYER_KEYS = {
    "name", "neurons", "rate", "state", "spikes_reference", "spikes_target",
    "relative_difference", "mismatches", "isolated_mismatches", "near_ties",
    "isolated_relative_difference", "first_step", "first_at",
}  # fmt: skip


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return bundles.write_bundle(tmp_path_factory.mktemp("validate"))


@pytest.fixture
def bundle(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "bundle")


def failures(result):
    return [(f["code"], f["node"]) for f in result["findings"] if f["severity"] == "error"]


def rows(result):
    return {layer["name"]: layer for layer in result["layers"]}


# ---- what agrees -----------------------------------------------------------------------------


def test_every_engine_passes_and_the_report_keeps_all_verdicts(bundle):
    for engine in ("float", "onnx", "integer"):
        result = validate(bundle, "loihi2", engine)
        assert result["verdict"] == "pass" and result["reason"] is None, result["reason"]
    written = files.read_json(bundle / "validation.json")
    assert written == result and set(written) == KEYS
    assert [item["engine"]["name"] for item in written["earlier"]] == ["onnx", "float"]
    assert all(set(layer) == LAYER_KEYS for layer in written["layers"])
    assert [layer["name"] for layer in written["layers"]] == NODES
    assert {layer["state"] for layer in written["layers"]} == {"active"}
    assert written["accuracy"] is None and written["training"] is None  # random images
    assert written["tolerances"]["layer_spikes_relative"] == 0.1
    assert {item["kind"] for item in written["energy"]} == {"modeled"}
    not_run = {item["name"]: item["reason"] for item in written["engines_not_run"]}
    assert set(not_run) == {"onnx", "onnx-int8", "lava", "hardware", "recorded"}
    assert not_run["onnx"] == "not asked for" and "board" in not_run["hardware"]
    assert (bundle / "report.html").is_file() and "integer" in (bundle / "card.md").read_text()
    open_bundle(bundle)  # what validate writes leaves the seal whole


def test_float_and_onnx_agree_spike_for_spike(bundle):
    for engine in ("float", "onnx"):
        for layer in validate(bundle, "reference", engine)["layers"]:
            assert layer["mismatches"] == layer["isolated_mismatches"] == 0
            assert layer["spikes_reference"] > 100


def test_default_engine_is_that_of_the_profile(bundle):
    assert validate(bundle, "reference")["engine"]["name"] == "float"
    assert validate(bundle, "loihi2")["engine"]["name"] == "integer"


def test_limit_takes_the_first_golden_images(bundle):
    result = validate(bundle, "loihi2", "integer", limit=3)
    golden = read_golden(bundle / "golden.npz")
    assert result["n"] == 3 and result["command"].endswith("--limit 3")
    assert rows(result)["lif1"]["spikes_target"] == golden.spikes["integer"]["lif1"][:, :3].sum()


def test_verdicts_on_a_changed_bundle_are_not_kept(bundle):
    validate(bundle, "loihi2", "float")
    (bundle / "run_onnx.py").write_text("# edited\n")
    seal(bundle)
    assert validate(bundle, "loihi2", "integer")["earlier"] == []


# ---- labelled data ---------------------------------------------------------------------------


def write_data(folder, bundle, count=40):
    """Images whose labels are the float engine's own predictions, but for every tenth."""
    rng = np.random.default_rng(0)
    shape = read_golden(bundle / "golden.npz").images.shape[1:]
    images = (rng.random((count, *shape)) * rng.integers(80, 256, (count, 1, 1, 1))).astype(
        np.uint8
    )
    engine = engines.build_engine("float", bundles.graph(), bundle)
    answer = engine.run(images)
    labels = answer.logits.argmax(axis=1)
    labels[::10] = (labels[::10] + 1) % answer.logits.shape[1]
    np.savez(folder / "data.npz", images=images, labels=labels)
    return folder / "data.npz", answer


def test_accuracy_is_counted_against_the_labels_given(bundle, tmp_path):
    path, _ = write_data(tmp_path, bundle)
    result = validate(bundle, "loihi2", "integer", str(path))
    assert result["n"] == 40 and result["images"] == "unnamed (data.npz)"
    assert result["accuracy"]["reference"] == pytest.approx(0.9)
    delta = result["accuracy"]["target"] - result["accuracy"]["reference"]
    assert result["accuracy"]["delta"] == pytest.approx(delta)
    simulated = simulate(bundle, "loihi2", data=str(path), limit=20)
    assert simulated["n"] == 20 and simulated["engine"]["name"] == "integer"
    assert simulate(bundle, "reference", data=str(path))["accuracy"] == pytest.approx(0.9)


def with_training(bundle, answer, change=lambda document: None):
    training = {
        "device": "cpu", "data": "unnamed (data.npz)", "n": 40, "accuracy": 0.9, "T": 4,
        "spikes": {node: int(answer.spikes[node].sum()) for node in NODES},
    }  # fmt: skip
    change(training)
    files.write_json(bundle / "training.json", training)
    seal(bundle)


def test_float_graph_equals_training(bundle, tmp_path):
    path, answer = write_data(tmp_path, bundle)
    with_training(bundle, answer)
    result = validate(bundle, "reference", "float", str(path))
    assert result["verdict"] == "pass" and result["reference"]["engine"] == "training"
    assert result["training"]["delta"] == pytest.approx(0.0)
    assert all(layer["mismatches"] is None for layer in result["layers"])
    with pytest.raises(InputError, match="without --limit"):
        validate(bundle, "reference", "float", str(path), limit=10)


def test_difference_from_training_names_the_layer(bundle, tmp_path):
    path, answer = write_data(tmp_path, bundle)

    def spikes(document):
        document["spikes"]["lif2"] = int(document["spikes"]["lif2"] * 1.01)

    with_training(bundle, answer, spikes)
    result = validate(bundle, "reference", "float", str(path))
    assert result["verdict"] == "fail" and result["reason"].startswith("lif2: ")
    with_training(bundle, answer, lambda document: document.update(accuracy=0.85))
    result = validate(bundle, "reference", "float", str(path))
    assert failures(result) == [("training.accuracy", "readout")]


# ---- seeded faults ---------------------------------------------------------------------------


def test_changed_weight_is_named_by_connection_and_by_spikes(bundle):
    bundles.change_weight(bundle, "conv2", 8)
    result = validate(bundle, "loihi2", "integer")
    assert result["verdict"] == "fail"
    found = failures(result)
    assert ("lowering.weights", "conv2") in found and ("golden.integer", "lif2") in found
    assert not any(node in ("lif1", "conv1", "conv3") for _, node in found)
    (message,) = (f["message"] for f in result["findings"] if f["code"] == "lowering.weights")
    assert message.startswith("1 of ") and "weights differ" in message
    assert result["reason"] == f"conv2: {message}"  # the cause, before the spikes it changes
    where = r"first at image \d+, step \d, neuron \(\d+, \d+, \d+\): [01] instead of [01], H - V_th"
    (spikes,) = (f["message"] for f in result["findings"] if f["code"] == "golden.integer")
    assert re.search(where, spikes)
    assert files.read_json(bundle / "validation.json")["verdict"] == "fail"
    assert "What failed" in (bundle / "report.html").read_text()


def test_rounding_is_diagnosed_with_its_place_and_its_cause(bundle):
    result = validate(bundle, "loihi2", "integer")
    (found,) = (f for f in result["findings"] if f["code"] == "diagnosis")
    changed = {
        name: (row["isolated_mismatches"] + row["near_ties"]) / row["spikes_reference"]
        for name, row in rows(result).items()
    }
    assert found["node"] == max(changed, key=changed.get) and found["severity"] == "info"
    assert found["value"] == pytest.approx(changed[found["node"]])
    assert "limited by the range of" in found["message"]  # what the lowering said about it
    # The first difference is where the recordings of the two engines part, layer by layer.
    golden, first = read_golden(bundle / "golden.npz"), result["first_divergence"]
    recorded = [golden.spikes[engine][first["node"]] for engine in ("float", "integer")]
    place = (first["step"], first["image"], *first["neuron"])
    assert [int(train[place]) for train in recorded] == [first["reference"], first["target"]]
    assert (recorded[0] == recorded[1])[: first["step"]].all()
    assert first["node"] == "lif1" and (first["margin"] > 0) == (first["reference"] == 1)
    for name, row in rows(result).items():
        differs = golden.spikes["float"][name] != golden.spikes["integer"][name]
        steps = np.flatnonzero(differs.any(axis=tuple(range(1, differs.ndim))))
        assert row["first_step"] == (int(steps[0]) if len(steps) else None)
    assert "First difference:" in (bundle / "report.html").read_text()


def test_damaged_verdicts_are_replaced_not_a_defect(bundle):
    first = validate(bundle, "loihi2", "integer")
    layer, readout = first["layers"][0], first["readout"]
    for damage in (
        {"engine": "x"},
        {"layers": 5},
        {"layers": [5]},
        {"earlier": [7, {"a": 1}]},
        {"layers": [{**layer, "relative_difference": [1]}]},
        {"readout": {**readout, "max_abs_difference": []}},
        {"layers": [{**layer, "name": 5}]},
    ):
        files.write_json(bundle / "validation.json", {**first, **damage})
        assert validate(bundle, "reference", "float")["verdict"] == "pass"


def test_nothing_is_replaced_when_a_disk_is_full(bundle, monkeypatch):
    validate(bundle, "loihi2", "integer")
    before = {name: (bundle / name).read_bytes() for name in ("validation.json", "report.html")}
    real = Path.write_text

    def full(path, text, **options):
        if "card" in path.name:
            raise OSError(28, "No space left on device")
        return real(path, text, **options)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match=r"No space left on device.*card\.md"):
        validate(bundle, "reference", "float")
    assert before == {name: (bundle / name).read_bytes() for name in before}
    assert not list(bundle.glob(".*"))


def test_weight_that_no_spike_depends_on_is_named_all_the_same(bundle):
    def fewest(arrays):
        arrays["w.fc"] = arrays["w.fc"].copy()
        used = read_golden(bundle / "golden.npz").spikes["integer"]["lif3"].any(axis=(0, 1))
        (index,) = np.flatnonzero(~used.reshape(-1))[:1]
        arrays["w.fc"][0, index] += 1

    bundles.change_arrays(bundle / "loihi" / "network.npz", fewest)
    seal(bundle)
    result = validate(bundle, "loihi2", "integer")
    assert failures(result) == [("lowering.weights", "fc")]
    assert result["reason"].startswith("fc: 1 of ")


def test_changed_reset_offset_names_population_and_key(bundle):
    def later(document):
        document["populations"][1]["reset_offset"] = (
            document["populations"][1]["reset_offset"] + 1
        ) % document["T"]

    bundles.change_document(bundle, later)
    result = validate(bundle, "loihi2", "integer")
    assert failures(result) == [("lowering.populations", "lif2")]
    assert "reset_offset is" in result["reason"]


class FiresAtThreshold:
    """An integer engine whose neurons also fire where v equals the threshold."""

    def __init__(self, engine):
        self.engine, self.info, self.nodes = engine, engine.info, engine.nodes

    def run(self, images, feed=None, margins=False):
        given, gaps = dict(feed or {}), {}
        fired = {}
        for node in self.nodes:
            answer = self.engine.run(images, given, margins=True)
            fired[node] = (answer.margins[node] >= 0).astype(np.uint8)
            gaps[node] = answer.margins[node]
            given.setdefault(node, fired[node])
        last = self.engine.run(images, given)
        return Recording(self.info, last.logits, fired, gaps if margins else None)


def test_firing_at_the_threshold_is_caught_where_neurons_reach_it(bundle, monkeypatch):
    build = engines.build_engine

    def faulty(name, *arguments):
        engine = build(name, *arguments)
        return FiresAtThreshold(engine) if name == "integer" else engine

    golden = read_golden(bundle / "golden.npz")
    honest = build("integer", bundles.graph(), bundle).run(golden.images, margins=True)
    ties = {node: int((gap == 0).sum()) for node, gap in honest.margins.items()}
    assert ties["lif2"] > 0  # else this proves nothing
    monkeypatch.setattr(settings, "build_engine", faulty)
    result = validate(bundle, "loihi2", "integer")
    first = next(node for node in NODES if ties[node])
    assert result["verdict"] == "fail" and result["reason"].startswith(f"{first}: ")
    assert failures(result)[0] == ("golden.integer", first)


def test_changed_onnx_constant_is_named_and_seen_in_spikes(bundle):
    path = bundle / "model_step.onnx"
    model = onnx.load(path)
    (weight,) = (x for x in model.graph.initializer if x.name.startswith("conv2.w"))
    values = onnx.numpy_helper.to_array(weight).copy()
    values[np.unravel_index(np.abs(values).argmax(), values.shape)] *= -1
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    path.write_bytes(model.SerializeToString())
    seal(bundle)
    result = validate(bundle, "reference", "onnx")
    found = failures(result)
    assert ("lowering.onnx", "conv2") in found and ("parity.spikes", "lif2") in found
    assert ("parity.unrolled", "lif2") in found  # model.onnx still counts as before
    assert ("parity.spikes", "lif1") not in found and ("parity.spikes", "lif3") not in found


def test_changed_golden_recording_is_a_failure_of_the_bundle(bundle):
    def flip(arrays):
        train = arrays["float.spikes.lif3"]
        train[-1].flat[0] ^= 1

    bundles.change_arrays(bundle / "golden.npz", flip)
    seal(bundle)
    result = validate(bundle, "reference", "float")
    assert ("golden.float", "lif3") in failures(result)
    assert not any(node in ("lif1", "lif2") for _, node in failures(result))


def test_changed_graph_fails_every_lowering(bundle):
    from stars_deploy.graph.writer import write_graph

    graph = bundles.graph()
    graph.nodes["conv3"].weight[0, 0] += 0.25
    write_graph(graph, bundle / "graph.nir")
    seal(bundle)
    result = validate(bundle, "loihi2", "integer")
    found = failures(result)
    assert ("golden.float", "lif3") in found and ("lowering.weights", "conv3") in found
    assert any(code == "lowering.onnx" for code, _ in found)


def test_other_version_is_not_compared_and_that_is_said(bundle):
    bundles.change_document(bundle, lambda document: document.update(tool_version="0.0.9"))
    result = validate(bundle, "loihi2", "integer")
    assert result["verdict"] == "pass"
    (note,) = (f for f in result["findings"] if f["code"] == "lowering.skipped")
    assert note["severity"] == "info" and "0.0.9" in note["message"]


# ---- bad input: nothing is written -------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("loihi2", "integer", None, 17), InputError, "golden set has 16 images"),
        (("loihi2", "intger"), InputError, "did you mean 'integer'"),
        (("loihi2", "hardware"), InputError, "needs --command TEMPLATE"),
        (("loihi2", "recorded"), InputError, "needs --trace FILE"),
        (("loihi1", "integer"), InputError, "are for profile loihi2"),
        (("loihi2", "onnx", None, None, 1.0, "tpu"), InputError, "--device 'tpu'"),
        (("loihi2", "onnx", None, None, 1.0, "cuda"), InputError, "computes on the CPU"),
        (("reference", "float", "no-such-data"), InputError, "no-such-data"),
    ],
)
def test_bad_arguments(bundle, arguments, error, message):
    with pytest.raises(error, match=message):
        validate(bundle, *arguments)
    assert not (bundle / "validation.json").exists()


def test_tampered_bundle_is_refused_with_both_hashes(bundle):
    with (bundle / "loihi" / "network.npz").open("r+b") as stream:
        stream.seek(100)
        stream.write(b"\x00")
    found = files.sha256(bundle / "loihi" / "network.npz")
    with pytest.raises(BundleError, match=found) as caught:
        validate(bundle, "loihi2", "integer")
    assert caught.value.exit_code == 2 and "network.npz" in str(caught.value)
    assert not (bundle / "validation.json").exists()


def test_engine_without_its_files_is_refused(tmp_path):
    bundle = bundles.write_bundle(tmp_path, ["nir"], golden=2)
    with pytest.raises(BundleError, match="--target loihi"):
        validate(bundle, "loihi2", "integer")
    with pytest.raises(BundleError, match="--target onnx"):
        validate(bundle, "reference", "onnx")
    reasons = {
        item["name"]: item["reason"]
        for item in validate(bundle, "reference", "float")["engines_not_run"]
    }
    assert reasons["onnx"] == "the bundle has no model.onnx"


def test_absent_lava_is_an_engine_error_and_a_reason(bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("STARS_DEPLOY_CACHE", str(tmp_path / "empty"))
    with pytest.raises(EngineError, match="Lava environment is not built"):
        validate(bundle, "loihi2", "lava")
    assert not (bundle / "validation.json").exists()
    reasons = {
        item["name"]: item["reason"]
        for item in validate(bundle, "loihi2", "integer")["engines_not_run"]
    }
    assert "not built" in reasons["lava"] and "doctor --fix" in reasons["lava"]


def test_failed_write_leaves_the_earlier_verdict(bundle, monkeypatch):
    validate(bundle, "loihi2", "float")
    before = (bundle / "validation.json").read_bytes()
    monkeypatch.setattr(json, "dumps", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full"):
        files.write_json(bundle / "validation.json", {})
    assert (bundle / "validation.json").read_bytes() == before


# ---- simulate ----------------------------------------------------------------------------------


def test_simulate_builds_what_the_source_does_not_hold(exported):
    graph = exported.parent / "net.nir"
    for engine, profile in (("float", "reference"), ("onnx", "reference"), ("integer", "loihi2")):
        direct = simulate(graph, profile, engine, limit=6)
        from_bundle = simulate(exported, profile, engine, limit=6)
        assert direct["engine"]["name"] == engine and direct["n"] == 6
        assert direct["accuracy"] is None
        assert direct["layers"] == from_bundle["layers"]
        assert (direct["energy"] == []) == (profile == "reference")
    assert [layer["name"] for layer in direct["layers"]] == NODES


def test_simulated_rates_are_spikes_per_neuron_and_step(exported):
    golden = read_golden(exported / "golden.npz")
    for layer in simulate(exported, "loihi2")["layers"]:
        train = golden.spikes["integer"][layer["name"]]
        assert layer["spikes"] == train.sum() and layer["rate"] == pytest.approx(train.mean())
        assert layer["neurons"] == train[0, 0].size


# ---- Lava --------------------------------------------------------------------------------------


@pytest.mark.lava
def test_lava_agrees_raw_and_through_netx_and_sees_a_wrong_reset(bundle):
    result = validate(bundle, "loihi2", "lava", limit=2, timeout=300.0)
    assert result["verdict"] == "pass" and result["reference"]["recorded"]
    blocks = [result, *result["also"]]
    assert [block["engine"]["name"] for block in blocks] == ["lava-fixed_pt", "lava-netx"]
    for block in blocks:
        assert [layer["mismatches"] for layer in block["layers"]] == [0, 0, 0]
        assert block["readout"]["max_abs_difference"] == 0

    def later(document):
        population = document["populations"][1]
        population["reset_offset"] = (population["reset_offset"] + 1) % document["T"]

    bundles.change_document(bundle, later)
    result = validate(bundle, "loihi2", "lava", limit=2, timeout=300.0)
    assert ("parity.spikes", "lif2") in failures(result)
    assert ("parity.spikes", "lif1") not in failures(result)


@pytest.mark.lava
def test_lava_sees_a_weight_that_was_changed_by_8(bundle):
    bundles.change_weight(bundle, "conv2", 8)
    result = validate(bundle, "loihi2", "lava", limit=2, timeout=300.0)
    assert result["verdict"] == "fail"
    found = failures(result)
    # Lava is compared on two images; the integers' own recording shows it on all sixteen.
    assert ("golden.integer", "lif2") in found and ("lowering.weights", "conv2") in found
    assert not any(node in ("lif1", "conv1") for _, node in found)


def test_what_a_chip_cannot_hold_is_no_error_of_an_onnx_model(bundle, monkeypatch):
    wide = Finding("scale_range", "error", "lif1", "no integer threshold works", remedy="none")
    monkeypatch.setattr("stars_deploy.workflow.validate.check", lambda graph, profile: [wide])
    result = validate(bundle, "loihi2", "onnx")
    assert result["verdict"] == "pass"
    assert [f["severity"] for f in result["findings"] if f["code"] == "scale_range"] == ["warning"]
