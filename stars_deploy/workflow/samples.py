"""Images for engines: data sets that a graph was trained for, and golden images of a bundle."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nir
import numpy as np
from numpy.typing import NDArray

from stars_deploy.assets import asset
from stars_deploy.config.recipe import Data, load_recipe
from stars_deploy.data import EVALUATION, Images, Labels, data_label, load_data
from stars_deploy.errors import DataError, GraphError, InputError
from stars_deploy.files import read_npz
from stars_deploy.graph.geometry import input_shape, output_shapes
from stars_deploy.graph.metadata import metadata_of
from stars_deploy.graph.order import output_name
from stars_deploy.simulation.reference import FloatEngine
from stars_deploy.targets.bundle import Golden
from stars_deploy.validation.counts import state_of

UNKNOWN = -1
AUTO = "auto"
#: Styles of random images in the order they are tried; each maps [0, 1] to [0, 1].
STYLES: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "plain": lambda x: x,
    "contrast": lambda x: (x > 0.5).astype(np.float64),
    "bright": lambda x: 0.5 + 0.5 * x,
    "dark": lambda x: 0.3 * x,
}


@dataclass(frozen=True)
class Samples:
    """Images uint8 [N, C, H, W], labels int64 [N] (-1 where unknown), and where they come from."""

    images: Images
    labels: Labels
    source: str

    def first(self, limit: int | None) -> Samples:
        """Return the first `limit` images, all if None."""
        return Samples(self.images[:limit], self.labels[:limit], self.source)


def data_of(graph: nir.NIRGraph) -> Data:
    """Return what the graph says about its data; the name is that of the packaged model it fits.

    A packaged model fits if its classes, image shape and normalisation are those of the graph.
    """
    metadata, shape = metadata_of(graph), input_shape(graph)
    if len(shape) != 3:
        raise GraphError(f"input has shape {shape}; images need (C, H, W)")
    outputs = output_shapes(graph)[output_name(graph)][0]
    classes = metadata.classes or tuple(map(str, range(outputs)))
    known = (shape, classes, metadata.mean, metadata.std)
    for path in sorted(asset("models").glob("*/recipe.toml")):
        data = load_recipe(path).data
        if (data.shape, data.classes, data.mean, data.std) == known:
            return data
    size = (shape[0], shape[1], shape[2])
    # Not validated as a recipe's data: a graph may put out a single value.
    return Data.model_construct(
        name="unnamed", shape=size, classes=classes, mean=metadata.mean, std=metadata.std
    )


def load_samples(graph: nir.NIRGraph, spec: str, limit: int | None) -> Samples:
    """Load the data set that `spec` names as the graph's images; errors as load_data."""
    data = data_of(graph)
    images, labels = load_data(spec, data)
    if limit is not None and limit > len(images):
        raise InputError(f"--limit {limit}: data {spec!r} holds {len(images)} images")
    return Samples(images, labels, data_label(spec, data)).first(limit)


def golden_part(golden: Golden, limit: int | None) -> Samples:
    """Return the golden images of a bundle, the first `limit`; InputError if there are fewer."""
    if limit is not None and limit > len(golden.images):
        raise InputError(
            f"--limit {limit}: the golden set has {len(golden.images)} images; "
            "give more with --data"
        )
    return Samples(golden.images, golden.labels, f"golden ({golden.source})").first(limit)


def golden_samples(
    graph: nir.NIRGraph, count: int, run: Path | None, choice: str = AUTO
) -> Samples:
    """Choose golden images: `choice` is auto, evaluation, synthetic, random or data to load.

    auto: packaged evaluation images if a packaged model fits, else synthetic ones of RUN, else
    random. Data is a FILE.npz or a folder, as load_data takes it; an npz may lack labels.
    Raises: InputError where there are none of the kind asked for, or fewer than `count`.
    """
    data = data_of(graph)
    packaged = asset("models", data.name, "evaluation.npz").is_file()
    if choice == EVALUATION or (choice == AUTO and packaged):
        images, labels = load_data(EVALUATION, data)
        return _chosen(images, labels, spread(labels, count), "evaluation", count)
    if choice in (AUTO, "synthetic"):
        pool = _synthetic(run, data) if run is not None else None
        if pool is not None:
            unknown = np.full(len(pool), UNKNOWN, np.int64)  # the teacher's wish is no ground truth
            latest = np.arange(len(pool))[-count:]
            return _chosen(pool, unknown, latest, "synthetic", count)
        if choice == "synthetic":
            raise InputError(
                "--golden-images synthetic: only a run with its checkpoint holds synthetic "
                "images; use random, or a FILE.npz"
            )
    if choice in (AUTO, "random"):
        return Samples(lively_images(graph, count), np.full(count, UNKNOWN, np.int64), "random")
    images, labels = _given(choice, data)
    return _chosen(images, labels, spread(labels, count), "file", count)


def _given(choice: str, data: Data) -> tuple[Images, Labels]:
    """Return the images of a file or folder; an npz needs no labels here."""
    path = Path(choice).expanduser()
    if not path.exists():
        raise InputError(
            f"--golden-images {choice!r}: no such file; expected auto, evaluation, synthetic, "
            "random, or images uint8 [N, C, H, W] in a FILE.npz"
        )
    if path.is_file():
        arrays = read_npz(path, DataError)
        images = arrays.get("images")
        if images is not None and "labels" not in arrays:
            if images.dtype != np.uint8 or images.shape[1:] != data.shape:
                raise DataError(
                    f"{path}: images are {images.dtype} {list(images.shape)}, the graph takes "
                    f"uint8 [N, {', '.join(map(str, data.shape))}]"
                )
            return images, np.full(len(images), UNKNOWN, np.int64)
    return load_data(choice, data)


def lively_images(graph: nir.NIRGraph, count: int) -> Images:
    """Return random images of the first style under which every population of `graph` fires.

    Evidence needs spikes: where none of the styles wakes all populations, the one that wakes most.
    """
    shape = data_of(graph).shape
    engine = FloatEngine(graph)
    best, most = next(iter(STYLES)), -1
    for style in STYLES:
        rates = [s.mean() for s in engine.run(random_images(2, shape, style=style)).spikes.values()]
        active = sum(state_of(float(rate)) == "active" for rate in rates)
        if active > most:
            best, most = style, active
        if active == len(rates):
            break
    return random_images(count, shape, style=best)


def spread(labels: Labels, count: int) -> Labels:
    """Return `count` indices that take the classes in turn, each in the order of its images."""
    ranked = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    rounds = itertools.chain.from_iterable(itertools.zip_longest(*(map(int, r) for r in ranked)))
    order = [index for index in rounds if index is not None]
    return np.array(order[:count], np.int64)


def random_images(
    count: int, shape: tuple[int, int, int], seed: int = 0, style: str = "plain"
) -> Images:
    """Return images of random blocks and grain; more images begin with the same ones."""
    channels, height, width = shape
    images = np.empty((count, *shape), np.uint8)
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        blocks = rng.random((channels, -(-height // 4), -(-width // 4)))
        smooth = blocks.repeat(4, axis=1).repeat(4, axis=2)[:, :height, :width]
        images[index] = 255 * STYLES[style](0.8 * smooth + 0.2 * rng.random(shape))
    return images


def _chosen(images: Images, labels: Labels, chosen: Labels, source: str, wanted: int) -> Samples:
    if len(chosen) < wanted:
        raise InputError(
            f"--golden {wanted}: there are {len(chosen)} {source} images; ask for no more"
        )
    return Samples(
        np.ascontiguousarray(images[chosen]), np.ascontiguousarray(labels[chosen]), source
    )


def _synthetic(run: Path, data: Data) -> Images | None:
    """Return the synthetic images in a run's checkpoint, None if it keeps none."""
    from stars_deploy.distillation import checkpoint

    state = checkpoint.load(run)
    if state is None:
        return None
    images = np.asarray(state["session"]["pool"]["images"])
    if images.dtype != np.uint8 or images.shape[1:] != data.shape:
        raise DataError(
            f"{run}: synthetic images of its checkpoint are {images.dtype} "
            f"{list(images.shape[1:])}, the student takes uint8 {list(data.shape)}"
        )
    return images if len(images) else None
