"""`pool.dir`: every image that enters the pool, as a PNG of the same uint8 values."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from torch import Tensor

from stars_deploy.config.recipe import Recipe
from stars_deploy.errors import InputError
from stars_deploy.files import atomic_path

NAME = re.compile(r"(?P<number>[0-9]{7,})_[0-9]+\.png")
UNFINISHED = re.compile(r"\.[0-9]{7,}_[0-9]+\.png\.\w+\.png")  # of a write that was killed
OWNER = "stars-deploy run"  # the text chunk of a PNG that says which run made it


class ImageFolder:
    """A folder of <running number>_<class index>.png.

    Every file names the run that made it, so that a continued run removes its own files and no
    others. Equal runs make equal files, and count as one.
    """

    def __init__(self, recipe: Recipe, path: Path) -> None:
        if recipe.data.shape[0] not in (1, 3):
            raise InputError(
                f"pool.dir = {str(path)!r}: images have {recipe.data.shape[0]} channels, a PNG "
                "holds 1 or 3; leave pool.dir out"
            )
        self.path = path
        content = json.dumps(recipe.resolved(), sort_keys=True)
        self._owner = hashlib.sha256(content.encode()).hexdigest()

    def require_empty(self) -> None:
        """Refuse a folder that holds anything: a new run starts with none."""
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path}: is a file, expected a folder for pool.dir")
        held = self._names()
        if held:
            raise InputError(
                f"{self.path}: pool.dir holds {held[0]}; give a new or empty folder, or continue "
                "the run that wrote there with --resume"
            )

    def cut_back(self, count: int) -> None:
        """Remove what this run wrote after its first `count` images.

        Raises:
            InputError: a file that this run did not make has one of the names it will use.
        """
        late = [self.path / name for name in self._names() if _number(name) >= count]
        for path in late:
            if self._owner_of(path) != self._owner:
                raise InputError(
                    f"{path}: was not written by this run, which will write a file of that "
                    "number; move it away, then resume"
                )
        unfinished = [self.path / name for name in self._names() if UNFINISHED.fullmatch(name)]
        for path in late + unfinished:
            path.unlink()

    def write(self, first: int, images: Tensor, labels: Tensor) -> None:
        """Write uint8 images `[B, C, H, W]`, numbered from `first` on."""
        from PIL import Image
        from PIL.PngImagePlugin import PngInfo

        owner = PngInfo()
        owner.add_text(OWNER, self._owner)
        pairs = zip(images.cpu(), labels.tolist(), strict=True)
        for number, (image, label) in enumerate(pairs, start=first):
            pixels = image.permute(1, 2, 0).numpy()
            picture = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
            with atomic_path(self.path / f"{number:07}_{label}.png") as temporary:
                picture.save(temporary, format="PNG", pnginfo=owner)

    def _names(self) -> list[str]:
        return sorted(path.name for path in self.path.glob("*")) if self.path.is_dir() else []

    def _owner_of(self, path: Path) -> str | None:
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(path) as image:
                owner = image.info.get(OWNER)
        except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError):
            return None
        return owner if isinstance(owner, str) else None


def _number(name: str) -> int:
    """Return the running number of a file, -1 for a name that no run gives."""
    match = NAME.fullmatch(name)
    return int(match["number"]) if match else -1


def image_folder(recipe: Recipe) -> ImageFolder | None:
    """Return the folder that the recipe asks for, if it does."""
    return None if recipe.pool.dir is None else ImageFolder(recipe, Path(recipe.pool.dir))
