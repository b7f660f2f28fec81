"""What an interrupted command leaves behind, and the command that goes on."""

from __future__ import annotations

import shlex
from pathlib import Path

from stars_deploy import console

GOES_ON = ("compare", "demo")
WRITES_AT_THE_END = ("export", "finetune", "sweep", "teacher_import", "tensorboard")


def afterwards(name: str, out: object) -> str:
    """Return what is left of the interrupted command, and how to go on; OUT is its --out."""
    if name == "distill":
        return _distillation(Path(str(out)))
    if name == "teacher_train":
        return (
            f"{out}/checkpoint holds the last complete epoch, but training cannot go on from it; "
            f"delete {out} and start again: {_typed()}"
        )
    if name in GOES_ON:
        return f"{out} keeps what is done; go on with: {_typed()}"
    if name in WRITES_AT_THE_END:
        return f"nothing was written to {out}; start again: {_typed()}"
    return f"earlier results are as they were; start again: {_typed()}"


def _distillation(out: Path) -> str:
    if not (out / "recipe.toml").is_file():
        return f"nothing was written to {out} yet; start again: {_typed()}"
    return f"{out} keeps what is done; go on with: {_typed('--resume')}"


def _typed(*more: str) -> str:
    """Return the command as it was typed, with options that it lacks."""
    words = ["stars-deploy", *console.settings.words]
    return shlex.join([*words, *(word for word in more if word not in words)])
