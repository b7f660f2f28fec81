"""Every reader of files: how a valid file is made, how it is damaged, and what reads it."""

from __future__ import annotations

import gzip
import json
import random
import shutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import bundles
import fuzz_mutations as mutate
import numpy as np
import torch
import traces
from tiny_distillation import tiny_model

from stars_deploy.assets import asset
from stars_deploy.config.profile import load_profile
from stars_deploy.config.recipe import load_recipe
from stars_deploy.data import load_data
from stars_deploy.distillation import checkpoint
from stars_deploy.graph.reader import read_graph
from stars_deploy.networks.teacher_spec import build_module
from stars_deploy.networks.weights import load_student, load_teacher
from stars_deploy.simulation.integer.engine import open_engine
from stars_deploy.simulation.onnx_engine import OnnxEngine
from stars_deploy.simulation.recorded_engine import RecordedEngine
from stars_deploy.simulation.trace import read_trace
from stars_deploy.targets.bundle import open_bundle, read_golden, seal
from stars_deploy.validation.check import examine
from stars_deploy.workflow.compare import compare
from stars_deploy.workflow.distill import distill, plan
from stars_deploy.workflow.operating_point import operating_point
from stars_deploy.workflow.own_teacher import Request, own_teacher
from stars_deploy.workflow.samples import golden_samples
from stars_deploy.workflow.sources import load_any_graph, open_source
from stars_deploy.workflow.sweep import sweep
from stars_deploy.workflow.validate import validate

Read = Callable[[Path], Any]


@dataclass(frozen=True)
class Reader:
    """What is fuzzed.

    Attributes:
        make: returns a folder of valid files; called once, copied for every input.
        file: the one that is damaged, in that folder.
        mutations: what damages it.
        read: reads the damaged folder.
        cost: seconds of one call, about; how many inputs a suite affords.
        before: called between damage and reading, such as to seal a bundle again.
    """

    name: str
    make: Callable[[], Path]
    file: str
    mutations: Sequence[mutate.Mutation]
    read: Read
    cost: float = 0.01
    before: Callable[[random.Random, Path], None] | None = None

    def damaged(self, rng: random.Random, folder: Path) -> Path:
        """Copy the valid files into `folder`, damage one of them, and return the copy."""
        copy = folder / "input"
        shutil.copytree(self.make(), copy)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rng.choice(self.mutations)(rng, copy / self.file)
            if self.before is not None:
                self.before(rng, copy)
        return copy


def hooked(name: str, make: Callable[[], Path], file: str, read: Read) -> Reader:
    """A Reader for files of torch.save (.pt, .pth): `read` is called with the damaged file.

    For whoever adds such a reader: append hooked(...) to READERS.
    """
    mutations = (mutate.edit_pickle, mutate.flip_bytes)
    return Reader(name, make, file, mutations, lambda folder: read(folder / file))


def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="stars-fuzz-"))


@cache
def model() -> Path:
    folder = _folder()
    tiny_model(folder)
    return folder


@cache
def run() -> Path:
    out = _folder() / "run"
    distill(load_recipe(model() / "recipe.toml"), out, origin=model() / "recipe.toml")
    return out


@cache
def half_run() -> Path:
    """A run whose summary and results are gone, as if it had been killed."""
    folder = _folder()
    shutil.copytree(run(), folder / "run")
    shutil.copytree(model(), folder / "model")
    for name in ("summary.json", "student.safetensors", "synthetic.png"):
        (folder / "run" / name).unlink()
    return folder


@cache
def bundle() -> Path:
    folder = _folder()
    made = bundles.write_bundle(folder, golden=2)
    training = {"device": "cpu", "data": "x", "n": 2, "accuracy": 0.5, "spikes": {}, "T": 4}
    (made / "training.json").write_text(json.dumps(training))
    seal(made)
    validate(made, "loihi2", "onnx")
    return made


@cache
def recording() -> Path:
    folder = _folder()
    shutil.copytree(bundle(), folder / "bundle")
    images = read_golden(bundle() / "golden.npz").images
    traces.write(folder / "trace.npz", traces.arrays_of(folder / "bundle", images))
    return folder


@cache
def images() -> Path:
    """The same eight 1x8x8 images of classes a, b, c in every form that data may have."""
    from PIL import Image

    folder = _folder()
    pixels = np.random.default_rng(0).integers(0, 256, (8, 1, 8, 8), np.uint8)
    labels = np.arange(8) % 3
    np.savez_compressed(folder / "data.npz", images=pixels, labels=labels)
    jpegs = [_encoded(image[0]) for image in pixels]
    offsets = np.cumsum([0, *map(len, jpegs)])
    joined = np.frombuffer(b"".join(jpegs), np.uint8)
    np.savez_compressed(folder / "jpeg.npz", jpeg=joined, offsets=offsets, labels=labels)
    (folder / "idx").mkdir()
    header = b"".join(n.to_bytes(4, "big") for n in (0x803, 8, 8, 8))
    (folder / "idx" / "t10k-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
    packed = gzip.compress((0x801).to_bytes(4, "big") + (8).to_bytes(4, "big") + bytes(8))
    (folder / "idx" / "t10k-labels-idx1-ubyte.gz").write_bytes(packed)
    for number, image in enumerate(pixels):
        place = folder / "files" / "test" / "abc"[number % 3]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0]).save(place / f"{number}.png")
        (place / f"{number}j.jpg").write_bytes(_encoded(image[0]))
    return folder


def _encoded(image: np.ndarray) -> bytes:
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format="JPEG")
    return stream.getvalue()


@cache
def teacher() -> Path:
    """A person's own network: its file, its weights, and cards of both kinds."""
    folder = _folder()
    (folder / "net.py").write_text(
        "from torch import nn\n"
        "def net():\n"
        "    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(),\n"
        "                         nn.Linear(72, 3))\n"
    )
    torch.manual_seed(0)
    state = build_module(f"{folder / 'net.py'}:net").state_dict()
    torch.save({"state_dict": state, "epoch": 1}, folder / "net.th")
    (folder / "card.toml").write_text(
        'shape = [1, 8, 8]\nmean = [0.5]\nstd = [0.25]\nclasses = ["a", "b", "c"]\nflip = false\n'
    )
    hub = {"image_mean": [0.5], "image_std": [0.25], "id2label": {"0": "a", "1": "b", "2": "c"}}
    timm = {"pretrained_cfg": {"input_size": [1, 8, 8]}}
    (folder / "config.json").write_text(json.dumps(hub | timm))
    return folder


def _imported(card: str) -> Read:
    """Import the teacher, its images as a card says."""
    return lambda folder: own_teacher(
        Request(f"{folder / 'net.py'}:net", folder / "net.th", None, folder / card)
    )


@cache
def profile() -> Path:
    folder = _folder()
    shutil.copy(asset("hardware_profiles", "loihi2.toml"), folder / "profile.toml")
    return folder


@cache
def swept() -> Path:
    folder = _folder()
    sweep(bundle(), "reference", folder / "sweep", "T", [1, 2])
    return folder


@cache
def compared() -> Path:
    """A comparison of two short runs."""
    folder = _folder()
    shutil.copytree(model(), folder / "model")
    np.savez(folder / "data.npz", **np.load(images() / "data.npz"))
    _compare(folder)
    first = folder / "out" / "runs" / "stars=on"
    (first / "seed0.epochs.json").write_text('{"1": 0.5, "2": 0.5, "3": 0.25}')
    return folder


def _compare(folder: Path) -> None:
    shorter = ["kd.steps=1", "warm_start.enabled=false"]
    recipe, data = folder / "model" / "recipe.toml", str(folder / "data.npz")
    compare(str(recipe), ["stars=on,off"], [0], data, folder / "out", shorter)


def _data() -> Any:
    return load_recipe(model() / "recipe.toml").data


def _resealed(rng: random.Random, folder: Path) -> None:
    if rng.random() < 0.9:
        seal(folder)


def _sealed_trace(rng: random.Random, folder: Path) -> None:
    try:
        with np.load(folder / "trace.npz") as archive:
            arrays = dict(archive)
        if rng.random() < 0.9:
            traces.write(folder / "trace.npz", arrays)
    except Exception:
        return  # damaged so far that nobody could seal it


def _integers(folder: Path) -> None:
    open_bundle(folder)
    shown = read_golden(bundle() / "golden.npz").images
    open_engine(folder / "loihi", "cpu").run(shown)


def _onnx(folder: Path) -> None:
    opened = open_bundle(folder)
    names = opened.file("model.onnx"), opened.file("model_step.onnx")
    shown = read_golden(bundle() / "golden.npz").images
    OnnxEngine(*names).run(shown)


def _replayed(folder: Path) -> None:
    trace = read_trace(folder / "trace.npz")
    RecordedEngine(trace, folder / "bundle", trace.images)


def _graph(folder: Path) -> None:
    adopted = load_any_graph(folder / "graph.nir")
    examine(adopted.graph, load_profile("loihi2"))
    open_source(folder / "graph.nir")


def _profile(folder: Path) -> None:
    examine(_own_graph(), load_profile(folder / "profile.toml"))


@cache
def _own_graph() -> Any:
    return read_graph(bundle() / "graph.nir")


def _recipe(folder: Path) -> None:
    recipe = load_recipe(folder / "recipe.toml")
    plan(recipe)
    load_student(recipe, run() / "student.safetensors")


def _weights(folder: Path) -> None:
    load_teacher(load_recipe(model() / "recipe.toml"), folder / "teacher.safetensors")


def _checkpoint(folder: Path) -> None:
    checkpoint.load(folder)
    golden_samples(_student_graph(), 2, folder, "synthetic")
    operating_point(folder, limit=2)


@cache
def _student_graph() -> Any:
    return open_source(run()).graph


def _resumed(folder: Path) -> None:
    recipe = folder / "model" / "recipe.toml"
    distill(load_recipe(recipe), folder / "run", origin=recipe, resume=True)


def _exported(folder: Path) -> None:
    from stars_deploy.workflow.export import export

    export(folder, ["nir"], "reference", 1, "raw", folder.parent / "bundle", golden_images="random")


def edit_state(rng: random.Random, path: Path) -> None:
    """Change entries of a checkpoint, which stays one that can be unpickled."""
    state = torch.load(path, weights_only=True)
    torch.save(mutate.edit_document(rng, state), path)


J, N, B = mutate.edit_json, mutate.edit_npz, mutate.flip_bytes
_PNG, _JPEG = "files/test/a/0.png", "files/test/b/1j.jpg"
_RESULT = "out/runs/stars=on/seed0/result.json"


def _validated(engine: str) -> Read:
    return lambda folder: validate(folder, "loihi2", engine)


def _load(place: str) -> Read:
    return lambda folder: load_data(str(folder / place), _data())


READERS = [
    Reader("recipe", model, "recipe.toml", [mutate.edit_toml] * 5 + [B], _recipe, 0.03),
    Reader("profile", profile, "profile.toml", [mutate.edit_toml] * 5 + [B], _profile, 0.1),
    Reader("graph", bundle, "graph.nir", [mutate.edit_hdf5, mutate.edit_hdf5, B], _graph, 1.5),
    Reader("manifest", bundle, "manifest.json", [J, J, B], open_bundle),
    Reader("golden", bundle, "golden.npz", [N, N, N, B], lambda f: read_golden(f / "golden.npz")),
    Reader("network.json", bundle, "loihi/network.json", [J, J, J, B], _integers, 0.02, _resealed),
    Reader("network.npz", bundle, "loihi/network.npz", [N, N, N, B], _integers, 0.02, _resealed),
    Reader("model.onnx", bundle, "model.onnx", [mutate.edit_onnx, B], _onnx, 0.1, _resealed),
    Reader(
        "model_step.onnx", bundle, "model_step.onnx", [mutate.edit_onnx, B], _onnx, 0.1, _resealed
    ),
    Reader("trace", recording, "trace.npz", [N, N, N, B], _replayed, 0.05, _sealed_trace),
    Reader("checkpoint", run, "checkpoint/state.pt", [edit_state, mutate.edit_pickle, B],
           _checkpoint, 0.3),
    Reader("summary", run, "summary.json", [J, J, B], _exported, 1.0),
    Reader("weights", model, "teacher.safetensors", [mutate.edit_safetensors, B], _weights),
    Reader("own weights", teacher, "net.th", [edit_state, edit_state, mutate.edit_pickle, B],
           _imported("card.toml"), 0.03),
    Reader("card.toml", teacher, "card.toml", [mutate.edit_toml] * 5 + [B],
           _imported("card.toml"), 0.03),
    Reader("config.json", teacher, "config.json", [J, J, J, B], _imported("config.json"), 0.03),
    Reader("data.npz", images, "data.npz", [N, N, N, B], _load("data.npz")),
    Reader("jpeg.npz", images, "jpeg.npz", [N, N, N, B], _load("jpeg.npz")),
    Reader("idx", images, "idx/t10k-images-idx3-ubyte", [mutate.edit_idx, B], _load("idx")),
    Reader("idx.gz", images, "idx/t10k-labels-idx1-ubyte.gz", [B], _load("idx")),
    Reader("png", images, _PNG, [mutate.edit_png, B], _load("files")),
    Reader("jpeg", images, _JPEG, [B], _load("files")),
    Reader("sweep.json", swept, "sweep/sweep.json", [J, B],
           lambda f: sweep(bundle(), "reference", f / "sweep", "T", [1]), 1.0),
    Reader("grid.json", compared, "out/grid.json", [J, B], _compare, 1.5),
    Reader("result.json", compared, _RESULT, [J, B], _compare, 1.5),
    Reader("validation.json", bundle, "validation.json", [J, J, B], _validated("integer"), 1.5),
    Reader("training.json", bundle, "training.json", [J, J, B], _validated("float"), 1.5,
           _resealed),
    Reader("manifest, validated", bundle, "manifest.json", [J], _validated("float"), 1.5),
    Reader("golden, validated", bundle, "golden.npz", [N], _validated("integer"), 1.5, _resealed),
    Reader("network.json, validated", bundle, "loihi/network.json", [J], _validated("integer"), 1.5,
           _resealed),
    Reader("resumed checkpoint", half_run, "run/checkpoint/state.pt", [edit_state], _resumed, 1.5),
    Reader("metrics", half_run, "run/metrics.jsonl", [B], _resumed, 1.5),
    Reader("recipe of a run", half_run, "run/recipe.toml", [mutate.edit_toml, B], _resumed, 0.5),
]  # fmt: skip
