"""The pool of synthetic images that the student is trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def quantise(images: Tensor) -> Tensor:
    """Return images in [0, 1] as uint8, truncated: 0.999 becomes 254, as a saved PNG would hold."""
    return (images.detach().clamp(0, 1) * 255).to(torch.uint8)


class ImagePool:
    """A ring buffer of uint8 images in memory, with the label each image was made for.

    Labels are kept for display only; the student never sees them. Batches are drawn without
    replacement until every image was seen, then in a new order.

    Attributes:
        added: images that ever entered the pool.
        keep: called with every block of images that enters: the number of its first image, the
            images as they are held, and their labels.
    """

    def __init__(
        self, shape: tuple[int, int, int], rng: torch.Generator, max_images: int | None = None
    ) -> None:
        self._images = torch.empty((0, *shape), dtype=torch.uint8)
        self._labels = torch.empty(0, dtype=torch.int64)
        self._rng = rng
        self._max_images = max_images
        self._size = 0  # images held
        self._head = 0  # where the next image goes
        self._newest = 0  # images added since start_round, the ones just before the head
        self._all = _Deck()
        self._fresh = _Deck()
        self.added = 0
        self.keep: Callable[[int, Tensor, Tensor], None] | None = None

    def __len__(self) -> int:
        return self._size

    @property
    def images(self) -> Tensor:
        """Every image held, uint8 `[N, C, H, W]`, in storage order."""
        return self._images[: self._size]

    @property
    def labels(self) -> Tensor:
        """The class each image was made for, `[N]`."""
        return self._labels[: self._size]

    def start_round(self) -> None:
        """Let the images added from now on count as the newest."""
        self._newest = 0

    def add(self, images: Tensor, labels: Tensor) -> None:
        """Append images `[B, C, H, W]` in [0, 1]; a full pool loses its oldest."""
        block = quantise(images).cpu()
        if self._max_images is not None and len(block) > self._max_images:
            block, labels = block[-self._max_images :], labels[-self._max_images :]
        if self.keep is not None:
            self.keep(self.added, block, labels)
        self.added += len(block)
        self._reserve(self._size + len(block))
        places = (self._head + torch.arange(len(block))) % len(self._images)
        self._images[places] = block
        self._labels[places] = labels.cpu()
        self._head = (self._head + len(block)) % len(self._images)
        self._size = min(self._size + len(block), len(self._images))
        self._newest = min(self._newest + len(block), self._size)
        self._all, self._fresh = _Deck(), _Deck()

    def _reserve(self, wanted: int) -> None:
        capacity = len(self._images)
        if wanted <= capacity or capacity == self._max_images:
            return
        capacity = max(wanted, 2 * capacity)
        if self._max_images is not None:
            capacity = min(capacity, self._max_images)
        grown = torch.zeros((capacity, *self._images.shape[1:]), dtype=torch.uint8)
        labels = torch.zeros(capacity, dtype=torch.int64)
        grown[: self._size] = self.images
        labels[: self._size] = self.labels
        self._images, self._labels, self._head = grown, labels, self._size

    def draw(self, batch_size: int, newest_fraction: float = 0.0) -> Tensor:
        """Return uint8 images `[batch_size, C, H, W]`, a share of them from the newest round."""
        fresh = round(batch_size * newest_fraction) if self._newest else 0
        start = self._head - self._newest
        newest = (start + self._fresh.draw(fresh, self._newest, self._rng)) % len(self._images)
        rest = self._all.draw(batch_size - fresh, self._size, self._rng)
        return self._images[torch.cat([newest, rest])]

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to continue drawing the same batches."""
        return {
            # A slice would be saved with its whole storage.
            "images": self.images.clone(),
            "labels": self.labels.clone(),
            "capacity": len(self._images),
            "head": self._head,
            "newest": self._newest,
            "added": self.added,
            "rng": self._rng.get_state(),
            "decks": [[deck.order, deck.position] for deck in (self._all, self._fresh)],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self._size = len(state["images"])
        shape = (state["capacity"], *state["images"].shape[1:])
        self._images = torch.zeros(shape, dtype=torch.uint8)
        self._labels = torch.zeros(state["capacity"], dtype=torch.int64)
        self._images[: self._size] = state["images"]
        self._labels[: self._size] = state["labels"]
        self._head, self._newest = state["head"], state["newest"]
        # Checkpoints written before images were counted have none on the disk to be numbered.
        self.added = state.get("added", self._size)
        self._rng.set_state(state["rng"])
        self._all, self._fresh = (_Deck(order, position) for order, position in state["decks"])


@dataclass
class _Deck:
    """A shuffled order of indices and how far it has been dealt."""

    order: Tensor | None = None
    position: int = 0

    def draw(self, count: int, size: int, rng: torch.Generator) -> Tensor:
        dealt = [torch.empty(0, dtype=torch.int64)]
        while count > 0:
            if self.order is None or self.position == len(self.order):
                self.order, self.position = torch.randperm(size, generator=rng), 0
            hand = self.order[self.position : self.position + count]
            self.position += len(hand)
            count -= len(hand)
            dealt.append(hand)
        return torch.cat(dealt)
