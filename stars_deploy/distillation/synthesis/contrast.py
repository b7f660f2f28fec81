"""The contrastive side of CMI: projection head, memory of earlier images, loss.

Source: Fang et al., Contrastive Model Inversion (IJCAI 2021).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Head(nn.Module):
    """Features `[N, d]` to unit vectors `[N, out]`: linear, ReLU, linear, L2 norm."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(inputs, inputs), nn.ReLU(), nn.Linear(inputs, outputs)
        )

    def forward(self, features: Tensor) -> Tensor:
        return F.normalize(self.layers(features), dim=1)


def info_nce(anchors: Tensor, partners: Tensor, temperature: float) -> Tensor:
    """Return the cross-entropy per row of anchors `[N, d]` picking their partners `[N, d]`, `[N]`.

    logits[i, j] = a_i . p_j / temperature, the right answer of row i is i. Partners get no
    gradient.
    """
    logits = anchors @ partners.detach().T / temperature
    rows = torch.arange(len(anchors), device=anchors.device)
    return F.cross_entropy(logits, rows, reduction="none")


def contrastive_loss(
    head: Head, local: Tensor, globe: Tensor, earlier: Tensor, temperature: float
) -> Tensor:
    """Return the mean loss of this batch's rows plus, if there are any, that of earlier rows.

    local, globe: teacher features `[B, d]` of two views of the batch; earlier: `[N, 2 d]`, the same
    two side by side for images of earlier rounds.
    """
    past_local, past_globe = earlier.chunk(2, dim=1)
    anchors = head(torch.cat([local, past_local]))
    partners = head(torch.cat([globe, past_globe]))
    losses = info_nce(anchors, partners, temperature)
    total = losses[: len(local)].mean()
    return total + losses[len(local) :].mean() if len(earlier) else total


class Bank:
    """The features `[N, 2 d]` of up to `capacity` earlier images, the oldest replaced first."""

    def __init__(self, capacity: int, width: int) -> None:
        self.rows = torch.empty(0, width)
        self._capacity = capacity

    def add(self, rows: Tensor) -> None:
        """Append rows `[B, 2 d]`."""
        self.rows = torch.cat([self.rows, rows.detach().cpu()])[-self._capacity :]

    def sample(self, count: int, rng: torch.Generator) -> Tensor:
        """Return up to `count` random rows, none twice."""
        picked = torch.randperm(len(self.rows), generator=rng)[:count]
        return self.rows[picked]
