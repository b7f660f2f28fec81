"""The network families by name: a recipe's teacher and its spiking student."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from stars_deploy.config.recipe import Data, Recipe, explain
from stars_deploy.errors import RecipeError, nearest
from stars_deploy.networks.base import Network, Spiking
from stars_deploy.networks.cnn import Cnn
from stars_deploy.networks.resnet import ResNet, Shortcut, Style
from stars_deploy.networks.traced import TracedArgs, build_traced
from stars_deploy.networks.vgg import VGG16, Pooling, Vgg

Positive = Annotated[int, Field(ge=1, le=1 << 16, strict=True)]
Depth = Annotated[int, Field(ge=1, le=256, strict=True)]  # blocks
MOST_BLOCKS = 1024
MOST_PARAMETERS = 1 << 28  # 1 GiB of float32
TRACED = "traced"  # of networks that were not written here
TWIN = "twin"  # as student.architecture: the teacher's family


class Args(BaseModel):
    """Arguments of every family: a factor on all widths (at least one channel is left)."""

    model_config = ConfigDict(extra="forbid")
    width: float = Field(default=1.0, gt=0, le=100)

    def wide(self, channels: int) -> int:
        """Return a number of channels after scaling."""
        return max(1, round(channels * self.width))


class CnnArgs(Args):
    """Family cnn: channels and stride of every block."""

    channels: list[Positive] = Field(min_length=1, max_length=MOST_BLOCKS)
    strides: list[Positive]

    @model_validator(mode="after")
    def _one_stride_per_block(self) -> CnnArgs:
        if len(self.strides) != len(self.channels):
            raise ValueError(f"{len(self.strides)} strides for {len(self.channels)} channels")
        return self


class VggArgs(Args):
    """Family vgg16."""

    pooling: Pooling | None = None  # None: max in an ANN, average in a spiking network


class ResNetArgs(Args):
    """The residual families."""

    style: Style = "post_add"
    shortcut: Shortcut | None = None  # where the shape changes; None: as the family's authors
    hidden: Positive | None = None  # width of a layer with an activation before the read-out
    blocks: list[Depth] | None = None  # per stage; None: the family's depth


class Family(NamedTuple):
    """What arguments a family takes, and how it is built from them."""

    args: type[BaseModel]
    build: Callable[[Data, Any, Spiking | None], Network]


def _cnn(data: Data, args: CnnArgs, spiking: Spiking | None) -> Network:
    channels = [args.wide(width) for width in args.channels]
    return Cnn(data.shape[0], len(data.classes), channels, args.strides, spiking)


def _vgg(data: Data, args: VggArgs, spiking: Spiking | None) -> Network:
    groups = [(args.wide(width), depth) for width, depth in VGG16]
    pooling = args.pooling or ("average" if spiking else "max")
    return Vgg(data.shape, len(data.classes), groups, pooling, spiking)


class ResNetShape(NamedTuple):
    """Stem channels, channels and blocks of each stage, and the family's own shortcut."""

    stem: int
    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    shortcut: Shortcut = "projection"


RESNETS = {
    "resnet18": ResNetShape(64, (64, 128, 256, 512), (2, 2, 2, 2)),
    "resnet34": ResNetShape(64, (64, 128, 256, 512), (3, 4, 6, 3)),
    "resnet19": ResNetShape(128, (128, 256, 512), (3, 3, 2)),  # Zheng et al. (AAAI 2021)
    "resnet19_sakd": ResNetShape(64, (128, 256, 512), (3, 3, 2)),  # as SAKD (2024) has it
    "resnet20": ResNetShape(16, (16, 32, 64), (3, 3, 3), "pad"),
}


def _resnet(shape: ResNetShape) -> Callable[[Data, ResNetArgs, Spiking | None], Network]:
    def build(data: Data, args: ResNetArgs, spiking: Spiking | None) -> Network:
        blocks = args.blocks or shape.blocks
        if len(blocks) != len(shape.widths):
            raise RecipeError(
                f"blocks = {list(blocks)}: expected {len(shape.widths)} numbers, one per stage"
            )
        return ResNet(
            data.shape[0],
            len(data.classes),
            args.wide(shape.stem),
            [args.wide(width) for width in shape.widths],
            blocks,
            args.shortcut or shape.shortcut,
            args.style,
            args.hidden,
            spiking,
        )

    return build


FAMILIES: dict[str, Family] = {
    "cnn": Family(CnnArgs, _cnn),
    "vgg16": Family(VggArgs, _vgg),
    **{name: Family(ResNetArgs, _resnet(shape)) for name, shape in RESNETS.items()},
    TRACED: Family(TracedArgs, build_traced),
}


def build_teacher(recipe: Recipe) -> Network:
    """Return the recipe's ANN with fresh weights drawn from torch's generator.

    Raises:
        RecipeError: unknown family, or arguments that it does not take.
    """
    teacher = recipe.teacher
    return _build("teacher.family", teacher.family, recipe.data, teacher.args, None)


def build_student(recipe: Recipe) -> Network:
    """Return the recipe's spiking student with fresh weights drawn from torch's generator.

    A twin has the teacher's layers and parameter names, so a teacher's state dict fits it; PLIF
    neurons have one parameter more. `student.args` change single arguments of the teacher.

    Raises:
        RecipeError: unknown family, arguments that it does not take, or an unknown surrogate.
    """
    student, teacher = recipe.student, recipe.teacher
    twin = student.architecture == TWIN
    family = teacher.family if twin else student.architecture
    args = {**teacher.args, **student.args} if twin else student.args
    spiking = Spiking(recipe.neuron, student.T)
    network = _build("student.architecture", family, recipe.data, args, spiking)
    if student.tdbn is not None:
        _threshold_dependent(network, student.tdbn * recipe.neuron.v_threshold)
    return network


def seeded(build: Callable[[Recipe], Network], recipe: Recipe, seed: int) -> Network:
    """Return `build(recipe)` with weights that depend on `seed` only; global state is kept."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(recipe)


def _build(
    key: str, name: str, data: Data, args: Mapping[str, Any], spiking: Spiking | None
) -> Network:
    if name not in FAMILIES:
        known = [*FAMILIES, *([TWIN] if spiking else [])]
        raise RecipeError(f"{key} {name!r} is unknown{nearest(name, known)}")
    family = FAMILIES[name]
    try:
        parsed = family.args.model_validate(dict(args))
    except ValidationError as problem:
        detail = explain(problem, family.args)
        raise RecipeError(f"arguments of family {name!r}: {detail}") from None
    _require_size(key, family, data, parsed, spiking)
    return family.build(data, parsed, spiking)


class _NoDraws(TorchFunctionMode):
    """Weights stay as they are: drawing them without memory imports torch's compiler, seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        drawn = func in (Tensor.normal_, Tensor.uniform_)
        return args[0] if drawn else func(*args, **(kwargs or {}))


def _require_size(
    key: str, family: Family, data: Data, args: BaseModel, spiking: Spiking | None
) -> None:
    """Build it without memory first: a digit too many would fill the machine's."""
    with torch.device("meta"), _NoDraws():
        size = sum(tensor.numel() for tensor in family.build(data, args, spiking).parameters())
    if size > MOST_PARAMETERS:
        raise RecipeError(
            f"{key}: the network would have {size} parameters, at most {MOST_PARAMETERS} are "
            "built; use fewer channels"
        )


def _threshold_dependent(network: Network, weight: float) -> None:
    """Start every BatchNorm with weight alpha V_th (tdBN; Zheng et al., AAAI 2021)."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, weight)
