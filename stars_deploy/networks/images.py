"""Images on the way into a network: normalisation, random shifts and mirroring."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from stars_deploy.config.recipe import Data


def normalise(images: Tensor, data: Data) -> Tensor:
    """Return (x - mean) / std per channel for float images [B, C, H, W] in [0, 1]."""
    mean = images.new_tensor(data.mean).view(-1, 1, 1)
    std = images.new_tensor(data.std).view(-1, 1, 1)
    return (images - mean) / std


def denormalise(images: Tensor, data: Data) -> Tensor:
    """Return the images in [0, 1] that `normalise` makes these from."""
    mean = images.new_tensor(data.mean).view(-1, 1, 1)
    std = images.new_tensor(data.std).view(-1, 1, 1)
    return images * std + mean


def to_input(images: NDArray[np.uint8] | Tensor, data: Data, device: torch.device) -> Tensor:
    """Return uint8 images [B, C, H, W] as a normalised float32 network input on `device`."""
    pixels = images if isinstance(images, Tensor) else torch.tensor(images)
    return normalise(pixels.to(device=device, dtype=torch.float32) / 255, data)


def augment(images: Tensor, padding: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Shift every image [B, C, H, W] by up to `padding` pixels, filling with 0; mirror half.

    The random numbers come from `generator` (a CPU one) and differ per image. Differentiable with
    respect to the images.
    """
    batch, _, height, width = images.shape
    shift = torch.randint(0, 2 * padding + 1, (2, batch, 1), generator=generator)
    rows = shift[0] + torch.arange(height)  # [B, H] into the padded image
    columns = shift[1] + torch.arange(width)
    if flip:
        mirrored = torch.rand(batch, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    padded = F.pad(images, (padding,) * 4).permute(0, 2, 3, 1)
    index = torch.arange(batch).view(-1, 1, 1), rows.unsqueeze(2), columns.unsqueeze(1)
    picked = padded[tuple(i.to(images.device) for i in index)]  # [B, H, W, C]
    return picked.permute(0, 3, 1, 2)


def random_resized_crop(
    images: Tensor, scale: tuple[float, float], flip: bool, generator: torch.Generator
) -> Tensor:
    """Cut a rectangle out of every image [B, C, H, W], resize it to H x W bilinearly; mirror half.

    Its share of the area is uniform in `scale`, its aspect ratio log-uniform in [3/4, 4/3], both
    cut to the image. Differentiable with respect to the images.
    """
    batch = len(images)
    area, ratio, left, top, mirror = torch.rand(5, batch, generator=generator)
    share = (scale[0] + (scale[1] - scale[0]) * area).sqrt()
    stretch = (4 / 3) ** (ratio - 0.5)  # the square root of an aspect ratio of 3/4 to 4/3
    size = torch.stack([share * stretch, share / stretch]).clamp(max=1.0)  # of 1: width, height
    center = (torch.stack([left, top]) * 2 - 1) * (1 - size)  # in [-1, 1] across the image
    theta = torch.zeros(batch, 2, 3)
    theta[:, 0, 0] = size[0] * (1 - 2 * (mirror < 0.5).float() if flip else 1.0)
    theta[:, 1, 1] = size[1]
    theta[:, 0, 2], theta[:, 1, 2] = center
    grid = F.affine_grid(theta.to(images), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
