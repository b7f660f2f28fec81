"""export/run_onnx.py: self-contained, checks the golden answers, plain words for bad input."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from random_networks import image_shape, random_graph, random_images

from stars_deploy.files import read_npz, write_npz
from stars_deploy.simulation.reference import FloatEngine
from stars_deploy.targets.onnx import build_onnx, build_step_onnx

SCRIPT = Path(__file__).parents[1] / "export" / "run_onnx.py"
# Runs the script with our package and torch made impossible to import.
GUARD = """
import runpy, sys
for name in ("stars_deploy", "torch", "nir", "h5py", "onnx", "norse"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    graph = random_graph(0, v_resets=(-0.25,))
    (folder / "model.onnx").write_bytes(build_onnx(graph).SerializeToString())
    (folder / "model_step.onnx").write_bytes(build_step_onnx(graph).SerializeToString())
    images = random_images(16, image_shape(graph), 1)
    answer = FloatEngine(graph).run(images)
    labels = answer.logits.argmax(axis=1)
    labels[:8] = -1
    labels[8] += 1
    golden = {"images": images, "labels": labels, "float.logits": answer.logits}
    spikes = {f"float.spikes.{name}": s for name, s in answer.spikes.items()}
    write_npz(folder / "golden.npz", {**golden, **spikes})
    shutil.copy(SCRIPT, folder)
    return folder


def run(bundle: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", "-c", GUARD, str(bundle / "run_onnx.py"), "--threads", "1"]
    return subprocess.run([*command, *options], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("options", [[], ["--step"]])
def test_golden_images_are_reproduced_without_our_package(bundle: Path, options: list[str]) -> None:
    done = run(bundle, *options)
    assert done.returncode == 0, done.stderr
    assert "golden: ok (0 spikes differ" in done.stdout
    assert "accuracy: 0.8750 on 8 labelled images" in done.stdout
    golden = read_npz(bundle / "golden.npz")
    for key, spikes in golden.items():
        if key.startswith("float.spikes."):
            assert f"spikes {key[13:]}: {int(spikes.sum())} (" in done.stdout


def test_own_images_without_labels(bundle: Path, tmp_path: Path) -> None:
    images = read_npz(bundle / "golden.npz")["images"]
    np.savez(tmp_path / "mine.npz", images=images[:3])
    done = run(bundle, str(bundle), "--images", str(tmp_path / "mine.npz"))
    assert done.returncode == 0, done.stderr
    assert "golden" not in done.stdout and "accuracy" not in done.stdout
    assert "3 images in" in done.stdout


@pytest.mark.parametrize("key", ["float.logits", "float.spikes.lif1"])
def test_other_golden_answers_fail(bundle: Path, tmp_path: Path, key: str) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    golden = read_npz(copy / "golden.npz")
    golden[key] = np.roll(golden[key], 1, axis=0 if key == "float.logits" else 1)
    write_npz(copy / "golden.npz", golden)
    done = run(copy)
    assert done.returncode == 3
    assert "golden: FAILED" in done.stdout


def test_bad_input_ends_in_a_message(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    np.savez(tmp_path / "wrong.npz", images=np.zeros((2, 9, 9), np.uint8))
    (copy / "model.onnx").write_bytes(b"not a model")
    cases = [
        (["--images", str(tmp_path / "absent.npz")], "no such file"),
        (["--images", str(tmp_path / "wrong.npz"), "--step"], "the model takes uint8"),
        (["--images", str(SCRIPT)], "not a readable npz"),
        ([], "onnxruntime cannot read it"),
        ([str(tmp_path)], "no such file"),
    ]
    for options, words in cases:
        done = run(copy, *options)
        assert done.returncode == 2 and words in done.stderr, (options, done.stderr)
        assert "Traceback" not in done.stderr


def test_missing_onnxruntime_is_exit_code_5(bundle: Path) -> None:
    guard = GUARD.replace('"torch"', '"onnxruntime"')
    command = [sys.executable, "-I", "-c", guard, str(bundle / "run_onnx.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 5 and "requirements-onnx.txt" in done.stderr


def test_damaged_and_unequal_arrays_are_bad_input(bundle: Path, tmp_path: Path) -> None:
    whole = (bundle / "golden.npz").read_bytes()
    for number, content in enumerate((b"", whole[: len(whole) // 2], whole[:200] + whole[210:])):
        path = tmp_path / f"{number}.npz"
        path.write_bytes(content)
        result = run(bundle, str(bundle), "--images", str(path))
        assert result.returncode == 2 and "Traceback" not in result.stderr, result.stderr
    arrays = read_npz(bundle / "golden.npz")
    write_npz(tmp_path / "short.npz", {"images": arrays["images"], "labels": arrays["labels"][:3]})
    result = run(bundle, str(bundle), "--images", str(tmp_path / "short.npz"))
    assert result.returncode == 2 and "3 labels for 16 images" in result.stderr
