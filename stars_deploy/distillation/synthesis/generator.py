"""The image generator: label embedding, noisy layers, and a convolutional trunk.

Source: Tran et al., NAYER (CVPR 2024); the trunk is that of CMI (Fang et al., IJCAI 2021).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from stars_deploy.errors import InputError


class Trunk(nn.Module):
    """Codes `[B, inputs]` to images `[B, C, H, W]` in (0, 1).

    Linear to 2 ngf maps of a quarter of the size, BatchNorm, then twice nearest up-sampling by 2
    with a 3x3 convolution, BatchNorm and LeakyReLU(0.2); a last 3x3 convolution and a sigmoid.

    Raises:
        InputError: height or width is not a multiple of 4.
    """

    def __init__(self, inputs: int, ngf: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, height, width = shape
        if height % 4 or width % 4:
            raise InputError(
                f"the generator up-samples by 4, so images of {height}x{width} pixels cannot be "
                "made; data.shape needs a height and a width that are multiples of 4"
            )
        self._start = (2 * ngf, height // 4, width // 4)
        self.project = nn.Linear(inputs, math.prod(self._start))
        self.layers = nn.Sequential(
            nn.BatchNorm2d(2 * ngf),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(2 * ngf, 2 * ngf, 3, padding=1, bias=False),
            nn.BatchNorm2d(2 * ngf),
            nn.LeakyReLU(0.2),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(2 * ngf, ngf, 3, padding=1, bias=False),
            nn.BatchNorm2d(ngf),
            nn.LeakyReLU(0.2),
            nn.Conv2d(ngf, channels, 3, padding=1),
            nn.Sigmoid(),
        )

    def forward(self, codes: Tensor) -> Tensor:
        images: Tensor = self.layers(self.project(codes).unflatten(1, self._start))
        return images


class NoisyLayers(nn.Module):
    """One random linear map for every K rows of a batch, K being the number of classes.

    Rows i K to (i + 1) K - 1 go through map i, so that each map sees every class once; a batch of
    B rows has ceil(B / K) maps. Weights are N(0, 1), biases 0, drawn anew by `reset`.
    """

    def __init__(self, batch_size: int, classes: int, inputs: int, outputs: int) -> None:
        super().__init__()
        maps = math.ceil(batch_size / classes)
        self._classes = classes
        self.weight = nn.Parameter(torch.zeros(maps, inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(maps, 1, outputs))

    def reset(self, rng: torch.Generator) -> None:
        """Draw new weights."""
        with torch.no_grad():
            self.weight.copy_(torch.randn(self.weight.shape, generator=rng))
            self.bias.zero_()

    def forward(self, rows: Tensor) -> Tensor:
        maps = len(self.weight)
        spare = maps * self._classes - len(rows)
        blocks = nn.functional.pad(rows, (0, 0, 0, spare)).view(maps, self._classes, -1)
        mapped = torch.baddbmm(self.bias, blocks, self.weight).flatten(0, 1)
        return mapped[: len(rows)]


class NayerGenerator(nn.Module):
    """Label embeddings `[B, d]` to images: BatchNorm1d, noisy layers, trunk."""

    def __init__(
        self,
        batch_size: int,
        classes: int,
        shape: tuple[int, int, int],
        lte_dim: int = 512,
        le_emb: int = 1000,
        ngf: int = 64,
    ) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(lte_dim)
        self.noisy = NoisyLayers(batch_size, classes, lte_dim, le_emb)
        self.trunk = Trunk(le_emb, ngf, shape)

    def forward(self, embeddings: Tensor) -> Tensor:
        images: Tensor = self.trunk(self.noisy(self.norm(embeddings)))
        return images


def label_embeddings(source: str, classes: int, dim: int, rng: torch.Generator) -> Tensor:
    """Return one fixed vector per class, `[K, d]`; no data or language model is behind them.

    orthogonal: orthogonal rows of length 8; random: N(0, 1); onehot: unit vectors. What follows is
    a BatchNorm and a random map, so only the rows' mutual distances matter.

    Raises:
        InputError: more classes than dimensions for orthogonal or one-hot rows.
    """
    if source == "random":
        return torch.randn(classes, dim, generator=rng)
    if classes > dim:
        raise InputError(
            f"synthesis.nayer.lte_dim is {dim}, but {classes} {source} label embeddings need at "
            f"least {classes} dimensions; raise it or use lte = 'random'"
        )
    if source == "onehot":
        return torch.eye(classes, dim)
    basis, _ = torch.linalg.qr(torch.randn(dim, classes, generator=rng))
    rows: Tensor = 8 * basis.T.contiguous()
    return rows


def balanced_labels(batch_size: int, classes: int, rng: torch.Generator) -> Tensor:
    """Return labels 0..K-1 block after block, and random ones for the remainder, `[B]`."""
    blocks, rest = divmod(batch_size, classes)
    tail = torch.randint(classes, (rest,), generator=rng)
    return torch.cat([torch.arange(classes).repeat(blocks), tail])
