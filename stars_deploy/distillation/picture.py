"""RUN/synthetic.png: what the pool holds, one row per class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from stars_deploy.distillation.pool import ImagePool
from stars_deploy.files import atomic_path

COLUMNS = 10
ROWS = 20  # classes shown at most


def draw_pool(pool: ImagePool, classes: Sequence[str], path: Path) -> None:
    """Write a PNG with images of every class, evenly spread over the age of the pool.

    Equal pools give equal bytes. Without images nothing is written.
    """
    from matplotlib.figure import Figure  # half a second to import

    shown = classes[:ROWS]
    figure = Figure(figsize=(0.62 * COLUMNS + 1.6, 0.62 * len(shown) + 0.2), dpi=100)
    axes = figure.subplots(len(shown), COLUMNS, squeeze=False)
    for row, name in enumerate(shown):
        for column, image in enumerate(_spread(pool, row)):
            # Colour is for three channels; of any other number the mean is shown, in grey.
            shades = image.permute(1, 2, 0) if len(image) == 3 else image.float().mean(0)
            axes[row][column].imshow(shades.numpy(), cmap="gray", vmin=0, vmax=255)
        axes[row][0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    for cell in axes.flat:
        cell.set(xticks=[], yticks=[])
        cell.spines[:].set_visible(False)
    figure.subplots_adjust(left=1.5 / figure.get_figwidth(), right=0.99, top=0.98, bottom=0.02)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _spread(pool: ImagePool, label: int) -> torch.Tensor:
    """Return up to COLUMNS images of a class, from the oldest to the newest."""
    indices = torch.nonzero(pool.labels == label).flatten()
    if len(indices) > COLUMNS:
        indices = indices[torch.linspace(0, len(indices) - 1, COLUMNS).round().long()]
    return pool.images[indices]
