"""A person's own teacher: their module and weights become a recipe and a file of weights of ours.

Their code runs once, here. What comes of it, a description and tensors, is all that a run needs.
"""

from __future__ import annotations

import hashlib
import math
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import tomli_w
from torch import nn

from stars_deploy.assets import asset
from stars_deploy.config.recipe import MOST_VALUES, Recipe, load_recipe, recipe_document
from stars_deploy.errors import InputError, WeightsError, nearest
from stars_deploy.files import (
    atomic_directory,
    json_text,
    read_json,
    sha256,
    write_bytes,
    write_json,
    write_text,
)
from stars_deploy.graph.foreign import Reading
from stars_deploy.locks import one_writer
from stars_deploy.networks.families import TRACED
from stars_deploy.networks.state_dicts import load_into, read_state_dict
from stars_deploy.networks.teacher_spec import (
    TORCHVISION,
    build_module,
    class_count,
    short_name,
    torchvision_data,
)
from stars_deploy.networks.traced import TracedArgs, TracedNetwork
from stars_deploy.networks.tracing.trace import trace
from stars_deploy.networks.weights import weights_bytes
from stars_deploy.workflow.card import read_card

WEIGHTS = "teacher.safetensors"
ABOUT = "teacher.json"
POOLINGS = ("window", "stride")
Json = dict[str, Any]


class Request(NamedTuple):
    """What was asked for.

    Attributes:
        spec: package.module:function, file.py:function or torchvision:NAME.
        weights: the file of its weights.
        images: shape, mean, std and classes as far as options gave them.
        card: a file that says the same.
        pooling: what the twin has for max pooling: window or stride.
    """

    spec: str
    weights: Path
    images: Reading | None = None
    card: Path | None = None
    pooling: str = "window"


@dataclass(frozen=True)
class OwnTeacher:
    """A teacher that was traced.

    Attributes:
        recipe: of family traced; its weights are `teacher.safetensors` beside it.
        network: the ANN, in eval mode.
        weights: the bytes of its safetensors file.
        about: where it came from, what differs in the twin, which activation became which neurons.
    """

    recipe: Recipe
    network: TracedNetwork
    weights: bytes
    about: Json

    def write(self, folder: Path) -> None:
        """Write teacher.safetensors and teacher.json."""
        write_bytes(folder / WEIGHTS, self.weights)
        write_text(folder / ABOUT, json_text(self.about))


def own_teacher(
    request: Request,
    base: str | None = None,
    overrides: Sequence[str] = (),
    options: Mapping[str, str] | None = None,
) -> OwnTeacher:
    """Load, trace and check a teacher, and return it with its recipe.

    Args:
        base: a recipe for everything but the teacher, and for its images where neither options nor
            a card say otherwise; None: models/bases/own-teacher.toml.
        overrides, options: as for load_recipe.

    Raises:
        InputError: the module cannot be had or traced, or its images are not known. WeightsError:
        not its weights, or no BatchNorm in it. RecipeError: a bad value.
    """
    if request.pooling not in POOLINGS:
        raise InputError(
            f"--pooling {request.pooling!r} is unknown{nearest(request.pooling, POOLINGS)}"
        )
    origin = base if base is not None else str(asset("models", "bases", "own-teacher.toml"))
    tensors = read_state_dict(request.weights)
    count = class_count(tensors)
    base_data = recipe_document(origin).get("data", {})
    assumed = {} if base_data else _of_torchvision(request, count)
    known = _images(request, base_data or assumed)
    module = build_module(request.spec, count)
    with redirect_stdout(sys.stderr):  # of what the person's forward prints
        load_into(module, tensors, request.weights)
        _require_batch_norm(module, request)
        traced = trace(module, _shape(known["shape"]), request.pooling)
    classes = known.setdefault("classes", [str(k) for k in range(traced.network.fc.out_features)])
    if not isinstance(classes, list):
        raise InputError(f"classes {classes!r}: expected a list of names, one per logit")
    if len(classes) != traced.network.fc.out_features:
        raise InputError(
            f"--classes: {len(classes)} names for the {traced.network.fc.out_features} logits of "
            f"{short_name(request.spec)}; give one name per logit"
        )
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", request.spec.rpartition(":")[2])
    weights = weights_bytes(traced.network)
    sections = {
        "name": name,
        "data": {"name": name, **known},
        "teacher": {
            "family": TRACED,
            "args": _described(traced.args),
            "weights": WEIGHTS,
            "sha256": hashlib.sha256(weights).hexdigest(),
        },
    }
    # An orthogonal embedding per class needs as many dimensions; a recipe of one's own says so.
    wide = [f"synthesis.nayer.lte_dim={len(classes)}"] if base is None and len(classes) > 64 else []
    recipe = load_recipe(origin, [*wide, *overrides], options, sections)
    about = _about(request, module, traced)
    if assumed:
        about["notes"].append(f"images: {', '.join(assumed)} of torchvision's own weights")
    return OwnTeacher(recipe, traced.network, weights, about)


@one_writer("out")
def import_teacher(teacher: OwnTeacher, out: Path) -> Json:
    """Write OUT as a whole: recipe.toml, teacher.safetensors and teacher.json; returns the last.

    Raises:
        InputError: OUT is not an empty folder.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: exists and is not an empty folder; give another one with --out")
    with atomic_directory(out) as folder:
        teacher.write(folder)
        write_text(folder / "recipe.toml", tomli_w.dumps(teacher.recipe.resolved()))
    return teacher.about


def keep(weights: Path, out: Path) -> None:
    """Copy the weights of a teacher that was imported, and what lies beside them about it."""
    if weights.resolve() == (out / WEIGHTS).resolve():
        return
    write_bytes(out / WEIGHTS, weights.read_bytes())
    about = weights.parent / ABOUT
    if about.is_file():
        write_json(out / ABOUT, read_json(about))


def _of_torchvision(request: Request, classes: int | None) -> Json:
    """Return what neither a card nor options say, as torchvision's own weights have it.

    Its names of classes are left out where the teacher has another number of them.
    """
    source, _, name = request.spec.rpartition(":")
    if source != TORCHVISION or request.card is not None:
        return {}
    known = torchvision_data(name)
    if len(known["classes"]) != classes:
        known.pop("classes")
    return {key: value for key, value in known.items() if key not in _given(request)}


def _given(request: Request) -> Json:
    """Return what options say of the images."""
    given = request.images or Reading()
    values = {
        "shape": given.image_shape,
        "mean": given.mean,
        "std": given.std,
        "classes": given.classes,
    }
    return {key: list(value) for key, value in values.items() if value is not None}


def _images(request: Request, base: Any) -> Json:
    """Return the [data] section: of the base recipe, the card, and the options."""
    known: Json = dict(base) if isinstance(base, dict) else {}
    if request.card is not None:
        known |= read_card(request.card)
    known |= _given(request)
    options = {"shape": "--image-shape C,H,W", "mean": "--mean", "std": "--std"}
    missing = [option for key, option in options.items() if key not in known]
    if missing:
        raise InputError(
            f"--teacher {request.spec}: its images are not known; give {', '.join(missing)} as the "
            "teacher was trained with, a --card, or a recipe with a [data] section"
        )
    for key in ("mean", "std"):
        if isinstance(known[key], list) and len(known[key]) == 1:
            known[key] = known[key] * _shape(known["shape"])[0]
    _require_small_pixels(known)
    return known


def _require_small_pixels(known: Json) -> None:
    """Refuse constants for pixels of 0 to 255: the network's are divided by 255 first."""
    for key in ("mean", "std"):
        values = known[key] if isinstance(known[key], list) else [known[key]]
        if any(isinstance(value, int | float) and value > 1 for value in values):
            raise InputError(
                f"--{key} {','.join(map(str, values))}: expected numbers up to 1, for pixels of 0 "
                "to 1; divide constants for pixels of 0 to 255 by 255"
            )


def _shape(value: Any) -> tuple[int, int, int]:
    if not (isinstance(value, list) and len(value) == 3 and all(isinstance(n, int) for n in value)):
        raise InputError(f"image shape {value!r}: expected three whole numbers, C, H, W")
    if min(value) < 1 or math.prod(value) > MOST_VALUES:
        raise InputError(
            f"image shape {value!r}: expected numbers from 1, and {MOST_VALUES} values at most"
        )
    return value[0], value[1], value[2]


def _described(args: TracedArgs) -> Json:
    """Return the description as a recipe holds it, without what is left at its default."""
    return args.model_dump(mode="json", exclude_defaults=True)


def _about(request: Request, module: nn.Module, traced: Any) -> Json:
    network: TracedNetwork = traced.network
    places = [traced.args.junctions[index].place for index in network.neurons]
    return {
        "teacher": short_name(request.spec),
        "module": type(module).__name__,
        "weights": request.weights.name,
        "weights_sha256": sha256(request.weights),
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "classes": network.fc.out_features,
        "largest_relative_difference": traced.difference,
        "neurons": {f"lif{number}": place for number, place in enumerate(places, 1)},
        "notes": list(traced.notes),
    }


def _require_batch_norm(module: nn.Module, request: Request) -> None:
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
    if not any(isinstance(m, kinds) and m.running_mean is not None for m in module.modules()):
        raise InputError(
            f"--teacher {short_name(request.spec)}: has no BatchNorm with running statistics; "
            "images are synthesised by matching them, so the teacher must be a network with "
            "BatchNorm"
        )


def require_own_weights(spec: str, weights: Path | None) -> Path:
    """Return the weights; WeightsError where --teacher came without."""
    if weights is None:
        raise WeightsError(
            f"--teacher {spec}: give its trained weights with --weights FILE (safetensors, or a "
            "state dict of torch.save)"
        )
    return weights
