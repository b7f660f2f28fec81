"""Values of a hardware profile: each with its source and how far to trust it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A table of a profile: no unknown key, no change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


MOST = 1 << 53  # exact in a float
Confidence = Literal["code", "paper", "secondary", "inferred", "choice"]


class Whole(Section):
    """An integer constant, its source, and how far to trust it."""

    value: int = Field(ge=0, le=MOST, strict=True)
    source: str = Field(min_length=1)
    confidence: Confidence


class Count(Whole):
    """A number of things of which there is at least one."""

    value: int = Field(ge=1, le=MOST, strict=True)


class Real(Section):
    """A real constant, its source, and how far to trust it."""

    value: float = Field(ge=0)
    source: str = Field(min_length=1)
    confidence: Confidence


class Flag(Section):
    """Whether something holds, who says so, and how far to trust it."""

    value: bool
    source: str = Field(min_length=1)
    confidence: Confidence


class Wholes(Section):
    """Integers that are allowed, their source, and how far to trust it."""

    value: tuple[int, ...] = Field(min_length=1)
    source: str = Field(min_length=1)
    confidence: Confidence
