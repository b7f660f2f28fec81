"""Small PNGs on the page: images, and which neurons fired when."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import image as png
from numpy.typing import NDArray

COLUMNS = 360  # of a raster; wider layers are binned
SPIKE = (61, 122, 230)  # seen on light and dark


def raster(spikes: Mapping[str, NDArray[np.uint8]]) -> list[dict[str, Any]]:
    """Return per layer when which neuron fired for one image; `spikes` per layer [T, ...].

    A row of pixels is a step, a column a neuron. A layer of more neurons than columns is binned:
    the more neurons of the bin fired, the more opaque its pixel.
    """
    rows = []
    for node, train in spikes.items():
        flat = train.reshape(len(train), -1)
        shares = _binned(flat)
        pixels = np.empty((*shares.shape, 4), np.uint8)
        pixels[..., :3] = SPIKE
        pixels[..., 3] = np.round(255 * shares)
        label = f"{node}: {flat.shape[1]:,} neurons, {int(flat.sum()):,} spikes"
        rows.append({"label": label, "image": _png(pixels), "steps": len(flat)})
    return rows


def image_grid(images: NDArray[np.uint8], scale: int = 2) -> str:
    """Return images [N, C, H, W] side by side as a PNG data URI; C = 1 is grey, 3 is colour."""
    tiles = images.transpose(0, 2, 3, 1)
    if tiles.shape[-1] != 3:
        tiles = np.repeat(tiles.mean(axis=-1, keepdims=True).astype(np.uint8), 3, axis=-1)
    gap = np.full((len(tiles), tiles.shape[1], 1, 3), 128, np.uint8)
    strip = np.concatenate(list(np.concatenate([tiles, gap], axis=2)), axis=1)[:, :-1]
    buffer = io.BytesIO()
    png.imsave(buffer, strip.repeat(scale, axis=0).repeat(scale, axis=1), format="png")
    return data_uri(buffer.getvalue())


def data_uri(content: bytes) -> str:
    """Return a PNG as a data URI."""
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")


def _binned(flat: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return [T, columns]: the share of neurons per column that fired, scaled to the busiest."""
    columns = min(COLUMNS, flat.shape[1])
    edges = np.linspace(0, flat.shape[1], columns + 1).astype(int)
    shares = np.add.reduceat(flat.astype(np.float64), edges[:-1], axis=1) / np.diff(edges)
    return shares / max(float(shares.max()), 1e-9)


def _png(pixels: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    unsigned: dict[str, Any] = {"Software": None}
    png.imsave(buffer, pixels, format="png", metadata=unsigned)
    return data_uri(buffer.getvalue())
