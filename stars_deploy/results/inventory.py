"""Results of `profiles`, `zoo` and `doctor`, and what an error looks like."""

from __future__ import annotations

from typing import Annotated, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from stars_deploy.results.parts import closed


@closed
class Profiles(TypedDict):
    """`profiles`: the packaged hardware profiles."""

    profiles: dict[str, str]
    """What each is, by name."""


@closed
class Model(TypedDict):
    """A packaged model."""

    name: str
    """As distill takes it."""
    teacher: str
    """The teacher's network family."""
    data: str
    """Name of its data set."""
    T: int
    """Time steps per image."""


@closed
class Zoo(TypedDict):
    """`zoo`: the packaged models."""

    models: list[Model]
    """By name."""


@closed
class System(TypedDict):
    """The machine."""

    platform: str
    """Operating system, kernel, architecture."""
    cpus: int | None
    """Logical CPUs."""


# Keys with spaces and dashes, for people.
Lava = TypedDict(
    "Lava",
    {
        "state": Annotated[str, Field(description="ready, or what is missing and the remedy.")],
        "directory": Annotated[str, Field(description="Its folder, without private parts.")],
        "versions": NotRequired[
            Annotated[dict[str, str], Field(description="Of Python, Lava, numpy and torch.")]
        ],
        "verified": NotRequired[
            Annotated[str, Field(description="Whether it computed three neurons as by hand.")]
        ],
        "of other versions, may be deleted": NotRequired[
            Annotated[list[str], Field(description="Folders of older environments.")]
        ],
    },
)
closed(Lava)
Diagnosed = TypedDict(
    "Diagnosed",
    {
        "stars-deploy": Annotated[str, Field(description="Version of this package.")],
        "python": Annotated[str, Field(description="Version of Python.")],
        "system": Annotated[System, Field(description="The machine.")],
        "packages": Annotated[dict[str, str], Field(description="Versions, by name.")],
        "cuda": Annotated[str, Field(description="yes with names of GPUs, no, or unknown.")],
        "lava": Annotated[Lava, Field(description="The Lava environment.")],
        "profiles": Annotated[list[str], Field(description="Packaged profiles.")],
        "models": Annotated[list[str], Field(description="Packaged models.")],
    },
)
closed(Diagnosed)


@closed
class Problem(TypedDict):
    """Why a command failed."""

    message: str
    """Who, the value, what was expected, what to do."""
    exit_code: int
    """What the process ends with."""


@closed
class Failed(TypedDict):
    """What any command prints under --json where it fails; nothing else is on stdout then."""

    error: Problem
    """Why."""
