"""Random numbers of a run: drawn on the CPU from generators whose state a checkpoint can hold."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import torch


def make_rng(seed: int, stream: str) -> torch.Generator:
    """Return a CPU generator for one named purpose, independent of those of other purposes."""
    digest = hashlib.sha256(f"{seed}/{stream}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


@contextlib.contextmanager
def module_init(rng: torch.Generator) -> Iterator[None]:
    """Let modules built inside draw their weights from `rng`; torch's global state is kept."""
    seed = int(torch.randint(2**62, (), generator=rng))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
