"""The network families by name: a recipe's teacher and its spiking twin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stars_deploy.config.recipe import Recipe, explain
from stars_deploy.errors import RecipeError, nearest
from stars_deploy.networks.base import Network, Spiking
from stars_deploy.networks.cnn import Cnn

Build = Callable[[Recipe, "Spiking | None"], Network]
Positive = Annotated[int, Field(ge=1, strict=True)]


class CnnArgs(BaseModel):
    """`teacher.args` of family cnn: width and stride of every block."""

    model_config = ConfigDict(extra="forbid")
    channels: list[Positive] = Field(min_length=1)
    strides: list[Positive]

    @model_validator(mode="after")
    def _one_stride_per_block(self) -> CnnArgs:
        if len(self.strides) != len(self.channels):
            raise ValueError(f"{len(self.strides)} strides for {len(self.channels)} channels")
        return self


def _cnn(recipe: Recipe, spiking: Spiking | None) -> Network:
    try:
        args = CnnArgs.model_validate(recipe.teacher.args)
    except ValidationError as problem:
        raise RecipeError(f"teacher.args of family 'cnn': {explain(problem, CnnArgs)}") from None
    classes = len(recipe.data.classes)
    return Cnn(recipe.data.shape[0], classes, args.channels, args.strides, spiking)


FAMILIES: dict[str, Build] = {"cnn": _cnn}


def build_teacher(recipe: Recipe) -> Network:
    """Return the recipe's ANN with fresh weights drawn from torch's generator.

    Raises:
        RecipeError: unknown family, or arguments that it does not take.
    """
    return _family(recipe)(recipe, None)


def build_student(recipe: Recipe) -> Network:
    """Return the recipe's spiking student with fresh weights drawn from torch's generator.

    Its layers and parameter names are the teacher's, so a teacher's state dict fits it.

    Raises:
        RecipeError: unknown family, arguments that it does not take, or an unknown surrogate.
    """
    return _family(recipe)(recipe, Spiking(recipe.neuron, recipe.student.T))


def seeded(build: Callable[[Recipe], Network], recipe: Recipe, seed: int) -> Network:
    """Return `build(recipe)` with weights that depend on `seed` only; global state is kept."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(recipe)


def _family(recipe: Recipe) -> Build:
    name = recipe.teacher.family
    if name not in FAMILIES:
        raise RecipeError(f"teacher.family {name!r} is unknown{nearest(name, FAMILIES)}")
    return FAMILIES[name]
