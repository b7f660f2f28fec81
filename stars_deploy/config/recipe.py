"""Recipes: one TOML file says everything about a teacher and its distillation.

Every field has a default except the teacher's and the data's; unknown keys are errors that name
the nearest valid key. Defaults are those of the STARS paper (arXiv 2605.27409, appendix A) where
it states one.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from stars_deploy.assets import asset
from stars_deploy.errors import RecipeError, nearest
from stars_deploy.files import require_plain

RECIPE_BYTES = 1 << 20
MOST_FILES = 64  # that one recipe is put together from
# Bounds far outside of what is sensible keep a slip of the pen from filling memory, or from
# becoming 0 or infinity in float32.
LARGEST = 1e6
MOST_VALUES = 1 << 24  # of one image
MOST_STEPS = 1024  # as in a graph
Positive = Annotated[int, Field(ge=1, lt=1 << 31)]
Seed = Annotated[int, Field(ge=0, lt=1 << 63)]
NotNegative = Annotated[float, Field(ge=0)]
Scale = Annotated[float, Field(ge=1 / LARGEST, le=LARGEST)]
Bounded = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Data(_Section):
    """What the teacher was trained on; distillation uses only the constants, never the images."""

    name: str
    shape: tuple[Positive, Positive, Positive]  # C, H, W
    classes: tuple[str, ...] = Field(min_length=2)
    mean: tuple[Bounded, ...]  # per channel, of images in [0, 1]
    std: tuple[Scale, ...]
    flip: bool = True  # whether a mirrored image is still an image of its class
    crop_padding: int = Field(default=4, ge=0, le=4096)  # random shifts up to this many pixels

    @model_validator(mode="after")
    def _channels_agree(self) -> Data:
        if math.prod(self.shape) > MOST_VALUES:
            raise ValueError(f"shape {list(self.shape)}: more than {MOST_VALUES} values an image")
        if not len(self.mean) == len(self.std) == self.shape[0]:
            raise ValueError(
                f"mean has {len(self.mean)} and std {len(self.std)} values "
                f"for {self.shape[0]} channels"
            )
        return self


class Teacher(_Section):
    """An ANN with BatchNorm: a network family of ours, its arguments, and its weights."""

    family: str = "cnn"
    args: dict[str, Any] = Field(default_factory=dict)
    weights: str | None = None  # safetensors, relative to the recipe's folder
    sha256: str | None = None


class TeacherTraining(_Section):
    """How `stars-deploy teacher train` trains the teacher with real data."""

    epochs: Positive = 30
    batch_size: Positive = 128
    lr: float = Field(default=0.1, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: NotNegative = 5e-4
    seed: Seed = 0


class Neuron(_Section):
    """The student's neuron: lif H = V + (X - (V - V_r)) / tau, spike where H > V_th, reset to V_r.

    if: H = V + X, without leak. plif: one learned time constant per layer, tau to begin with.
    """

    model: Literal["lif", "if", "plif"] = "lif"
    tau: float = Field(default=2.0, ge=1, le=LARGEST)  # membrane time constant in time steps
    v_threshold: Scale = 1.0
    v_reset: Bounded = 0.0
    decay_input: bool = True  # False: H = V (1 - 1/tau) + X
    surrogate: str = (
        "atan"  # of fused and compiled: atan, sigmoid, triangle, rectangle; norse: its own
    )
    alpha: Scale = 2.0  # sharpness of the surrogate
    detach_reset: bool = True  # no gradient through the reset
    backend: Literal["fused", "compiled", "norse"] = "fused"  # compiled: for long runs


class Student(_Section):
    """The spiking network that is trained."""

    architecture: str = "twin"  # the teacher's layers with every ReLU made a neuron; or a family
    args: dict[str, Any] = Field(default_factory=dict)  # of a twin: where it differs
    T: int = Field(default=4, ge=1, le=MOST_STEPS)  # time steps
    tdbn: Scale | None = None  # BatchNorm weights start at this times V_th


class Nayer(_Section):
    """NAYER (noisy layer generation): label embeddings through a re-initialised noisy layer."""

    g_steps: Positive = 75
    g_life: int = Field(default=10, ge=0)  # epochs before a new generator; 0: one for the whole run
    g_loops: Positive = 4  # batches per epoch
    gwp_loops: Positive = 10  # batches per epoch of the warm-up
    lte: Literal["orthogonal", "random", "onehot"] = "orthogonal"
    lte_dim: Positive = 512
    le_emb: Positive = 1000
    ngf: Positive = 64
    latent_noise: NotNegative = 0.0  # std of noise added to the label embedding (NAYER: none)
    bn_momentum: float = Field(default=0.9, ge=0, lt=1)
    select: Literal["best_per_loop", "last"] = "best_per_loop"
    # Also pool every n-th iterate of a loop, from a certain one on; 0: the selected one only.
    # The first loop of a new generator is left out.
    harvest_every: int = Field(default=0, ge=0)
    harvest_from: int = Field(default=30, ge=0)


class DeepInversion(_Section):
    """DeepInversion: every batch is optimised pixel by pixel from noise."""

    g_steps: Positive = 1000
    select: Literal["last", "best"] = "last"


class Cmi(_Section):
    """CMI (contrastive model inversion): per batch a new generator and latent codes, both trained.

    The contrastive term tells images of a batch, and of earlier ones, apart in teacher features.
    """

    g_steps: Positive = 200
    nz: Positive = 256
    ngf: Positive = 64
    cr: NotNegative = 0.8  # weight of the contrastive term
    cr_T: float = Field(default=0.2, gt=0)  # its temperature
    n_neg: Positive = 4096  # earlier images that a batch is compared with
    bank: Positive = 40_960  # features of earlier images kept
    head_dim: Positive = 256
    features: Literal["auto", "bn", "stages"] = "auto"  # auto: stages above 2048 BN channels
    select: Literal["last", "best"] = "best"


# The published weights of each method for 32x32 images: STARS, appendix A.
METHOD_DEFAULTS: dict[str, dict[str, float]] = {
    "deepinversion": {"batch_size": 256, "lr": 0.1, "adv": 1.0, "bn": 10.0, "oh": 1.0},
    "cmi": {"batch_size": 256, "lr": 1e-3, "adv": 0.5, "bn": 1.0, "oh": 1.0},
    "nayer": {"batch_size": 400, "lr": 4e-3, "adv": 1.33, "bn": 20.0, "oh": 0.75},
}


class Synthesis(_Section):
    """Image synthesis from the teacher; what a recipe leaves out is the method's published value.

    Weights: adv competition with the student, bn BatchNorm statistics, oh class prior, tv total
    variation, l2 norm of the images.
    """

    method: Literal["deepinversion", "cmi", "nayer"] = "nayer"
    batch_size: int = Field(ge=2)  # statistics of one image match nothing
    lr: float = Field(gt=0)
    adv: NotNegative
    bn: NotNegative
    oh: NotNegative
    tv: NotNegative = 0.0
    l2: NotNegative = 0.0
    bn_loss: Literal["norm", "squared"] = "norm"
    flip: bool | None = None  # whether the networks see images mirrored; unset: as data.flip
    deepinversion: DeepInversion = DeepInversion()
    cmi: Cmi = Cmi()
    nayer: Nayer = Nayer()

    @model_validator(mode="before")
    @classmethod
    def _published(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        method = given.get("method", "nayer")
        known = METHOD_DEFAULTS.get(method) if isinstance(method, str) else None
        return (known or METHOD_DEFAULTS["nayer"]) | given


class Stars(_Section):
    """STARS: relational consistency (RCA) and tail-aware rate (TAR) alignment, Eq. 12-18.

    The paper leaves choices open; the first value of each key is our default, and what its text
    says where it says anything.
    """

    enabled: bool = True
    lambda_rca: NotNegative = 1.0
    lambda_tar: NotNegative = 1.0
    # Which pre-activations: the last one of every stage, all, the last, or neuron layers by name.
    layers: Literal["stage_ends", "all", "last"] | tuple[str, ...] = "stage_ends"
    features: Literal["pre_activation", "pre_bn"] = "pre_activation"
    # Networks of different depth: the i-th selected layer with the i-th, or by relative depth.
    pairing: Literal["stage", "depth"] = "stage"
    layer_weights: Literal["equal", "linear"] | tuple[NotNegative, ...] = "equal"
    per_step: bool = False  # compare every time step, instead of the mean over time
    quantiles: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.6, 0.7, 0.8, 0.9, 0.95)
    # TAR: quantiles of the teacher (of all values, or per channel), the values of `fixed`, or the
    # constant currents above which the neuron fires by step 1, 2, ..., T (Eq. 8).
    thresholds: Literal["quantile", "channel_quantile", "fixed", "lif"] = "quantile"
    fixed: tuple[float, ...] = ()
    delta: float = Field(default=0.5, gt=0)
    normalization: Literal["teacher_global", "teacher_channel", "teacher_running", "none"] = (
        "teacher_global"
    )
    dead_rows: Literal["mask", "eps"] = "mask"  # RCA: silent samples left out, or a floor of 0.01
    detach_teacher: bool = False
    # With the student's first training epoch, one epoch later, or from epoch 0 on.
    start: Literal["warmup", "warmup+1", "always"] = "warmup"
    # Gradient norm of RCA + TAR at the images relative to that of all other terms; unset: as it is.
    balance: float | None = Field(default=None, gt=0)
    # teacher: the student's features are brought to the teacher's moments on the pool first.
    units: Literal["literal", "teacher"] = "literal"

    @model_validator(mode="after")
    def _fixed_are_given(self) -> Stars:
        if (self.thresholds == "fixed") != bool(self.fixed):
            raise ValueError("stars.fixed holds values if and only if thresholds = 'fixed'")
        if self.thresholds.endswith("quantile") and not self.quantiles:
            raise ValueError("stars.quantiles is empty")
        if isinstance(self.layers, tuple) and not self.layers:
            raise ValueError("stars.layers names no layer")
        return self


class Pool(_Section):
    """The pool of synthetic images that the student is trained on."""

    max_images: Positive | None = None
    newest_fraction: float = Field(
        default=0.0, ge=0, le=1
    )  # share of a batch from the newest round
    # Every image that enters the pool is also written there as a PNG; relative to the current
    # folder. Unset: no files.
    dir: str | None = Field(default=None, min_length=1)


class WarmStart(_Section):
    """Data-free start of a twin: teacher weights, and per channel an affine fitted to the LIF."""

    enabled: bool = False
    calibration_images: int = Field(default=512, ge=0)  # from the pool; 0: no calibration
    ridge: NotNegative = 0.1  # pull of refitted weights to the teacher's; 0: keep the teacher's


class Kd(_Section):
    """Distillation of the student on pool images: tau^2 KL(teacher/tau || student/tau)."""

    steps: Positive = 1000  # per epoch
    batch_size: Positive = 512
    lr: float = Field(default=0.2, gt=0)
    lr_min: NotNegative = 2e-4
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: NotNegative = 1e-4
    schedule: Literal["cosine", "onecycle"] = "cosine"  # stepped per epoch, or per step
    tau: float = Field(default=20.0, gt=0)
    feature: NotNegative = 0.0  # weight of the relative rate-to-ReLU error (warm start only)
    bf16: bool = False  # student forward under bfloat16 autocast


class Run(_Section):
    """Length, seed and place of a run."""

    epochs: Positive = 320
    warmup: int = Field(default=20, ge=0, lt=1 << 31)  # epochs that only fill the pool
    seed: Seed = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(default=0, ge=0, le=4096)  # 0 = torch's default
    checkpoint_seconds: NotNegative = 15.0  # least time between checkpoints inside an epoch

    @model_validator(mode="after")
    def _some_epochs_train(self) -> Run:
        if self.warmup >= self.epochs:
            raise ValueError(f"warmup is {self.warmup} of {self.epochs} epochs; none would train")
        return self


class Recipe(_Section):
    """Everything about one teacher and its distillation."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    data: Data
    teacher: Teacher = Teacher()
    training: TeacherTraining = TeacherTraining()
    student: Student = Student()
    neuron: Neuron = Neuron()
    synthesis: Synthesis = Field(default_factory=lambda: Synthesis.model_validate({}))
    stars: Stars = Stars()
    pool: Pool = Pool()
    warm_start: WarmStart = WarmStart()
    kd: Kd = Kd()
    run: Run = Run()

    def resolved(self) -> dict[str, Any]:
        """Return the recipe with every default written out, ready for JSON or TOML."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def find_recipe(spec: str | Path) -> Path:
    """Return the recipe file that `spec` names: a path, or the name of a packaged model."""
    path = Path(spec)
    if path.is_dir() and (path / "recipe.toml").is_file():
        return path / "recipe.toml"
    if path.is_file():
        return path
    packaged = asset("models", str(spec), "recipe.toml")
    if path.name == str(spec) and packaged.is_file():
        return packaged
    known = [entry.parent.name for entry in asset("models").glob("*/recipe.toml")]
    raise RecipeError(
        f"recipe {str(spec)!r} is neither a file nor a packaged model{nearest(str(spec), known)}"
    )


def recipe_document(spec: str | Path) -> dict[str, Any]:
    """Return what a recipe says, with what it extends, before it is validated.

    Raises:
        RecipeError: unknown recipe or malformed TOML.
    """
    return _document(find_recipe(spec), (), [])


def load_recipe(
    spec: str | Path,
    overrides: Sequence[str] = (),
    options: Mapping[str, str] | None = None,
    sections: Mapping[str, Any] | None = None,
) -> Recipe:
    """Read and validate a recipe; `overrides` are ``key.path=value`` strings, values in TOML.

    A message about an override says that it came from --set, or from what `options` holds for its
    key, such as "--method cmi".

    `sections` stand in the place of the file's own sections of these names.

    ``extends = ["base.toml", ...]`` names recipes, relative to the file, whose values it starts
    from, later ones over earlier ones.

    Raises:
        RecipeError: unknown recipe, malformed TOML, unknown key, or a value out of range.
    """
    path = find_recipe(spec)
    document = {**_document(path, (), []), **(sections or {})}
    given: dict[str, str] = {}
    for override in overrides:
        key = _set(document, override)
        given.pop(key, None)  # the last one counts
        given[key] = (options or {}).get(key, f"--set {override}")
    return parse_recipe(document, str(path), given)


def _document(path: Path, above: tuple[Path, ...], read: list[Path]) -> dict[str, Any]:
    """Return the document of a recipe file with what it extends.

    `above` are its heirs, `read` all files so far: two that each extend one twice, and so on,
    would be read 2^n times.
    """
    if path.resolve() in above:
        raise RecipeError(f"{path}: extends itself")
    read.append(path)
    if len(read) > MOST_FILES:
        raise RecipeError(f"{path}: more than {MOST_FILES} recipes extend each other; use fewer")
    try:
        require_plain(path, RecipeError, RECIPE_BYTES)
        own = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise RecipeError(f"{path}: cannot be read ({problem.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as problem:
        raise RecipeError(f"{path}: not valid TOML ({problem})") from None
    bases = own.pop("extends", [])
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise RecipeError(f"{path}: extends must be a list of recipe files")
    document: dict[str, Any] = {}
    for base in bases:
        inherited = _document(path.parent / base, (*above, path.resolve()), read)
        teacher = inherited.get("teacher", {})
        if isinstance(teacher, dict) and isinstance(teacher.get("weights"), str):
            # Relative to the file that says it, whoever inherits it.
            teacher["weights"] = str((path.parent / base).resolve().parent / teacher["weights"])
        document = _merged(document, inherited)
    return _merged(document, own)


def _merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    result = dict(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = _merged(result[key], value) if both else value
    return result


def parse_recipe(
    document: Mapping[str, Any], origin: str, given: Mapping[str, str] | None = None
) -> Recipe:
    """Validate a recipe given as nested mappings; `origin` names it in messages.

    Args:
        given: keys whose values came from elsewhere, and from where.
    """
    try:
        recipe = Recipe.model_validate(document)
        recipe.resolved()
        return recipe
    except ValidationError as problem:
        lines: dict[str, list[str]] = {}
        for error in problem.errors():
            source = _source(error["loc"], origin, given or {})
            lines.setdefault(source, []).append(_explain_one(error, Recipe))
        text = "; ".join(f"{source}: {'; '.join(found)}" for source, found in lines.items())
        raise RecipeError(text) from None
    except (RecursionError, ValueError):  # of what writing it out again would meet
        raise RecipeError(f"{origin}: values are nested too deeply") from None


def _source(location: Sequence[str | int], origin: str, given: Mapping[str, str]) -> str:
    """Return where the value at `location` came from: the recipe, the command line, or both."""
    path = "".join(f"{part}." for part in location)
    whole = [source for key, source in given.items() if path.startswith(f"{key}.")]
    if whole:
        return whole[-1]
    parts = [source for key, source in given.items() if key.startswith(path)]
    return " with ".join([origin, *parts])


def _set(document: dict[str, Any], override: str) -> str:
    """Change a value of the document; return its key."""
    key, separator, text = override.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not separator or not all(parts):
        raise RecipeError(f"--set {override!r}: expected key.path=value, such as kd.lr=0.05")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        value = text.strip()  # a bare word is a string
    node = document
    for part in parts[:-1]:
        child = node.setdefault(part, {})
        if not isinstance(child, dict):
            raise RecipeError(f"--set {override!r}: {part!r} is a value, not a section")
        node = child
    node[parts[-1]] = value
    return ".".join(parts)


def explain(problem: ValidationError, model: type[BaseModel]) -> str:
    """Turn pydantic's report into one line per mistake: key path, value, what was expected."""
    return "; ".join(_explain_one(error, model) for error in problem.errors())


def _explain_one(error: ErrorDetails, model: type[BaseModel]) -> str:
    path = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        valid = _keys_at(model, error["loc"][:-1])
        return f"unknown key {path!r}{nearest(str(error['loc'][-1]), valid)}"
    if error["type"] == "missing":
        return f"key {path!r} is missing"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "model_type":
        message = f"expected a table with the keys {', '.join(_keys_at(model, error['loc']))}"
    if error["type"] == "value_error" and isinstance(error["input"], Mapping):
        return f"key {path!r}: {message}" if path else message  # a rule between several keys
    shown = repr(error["input"])
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return f"key {path!r} has value {shown}: {message}"


def _keys_at(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """Return the valid keys of the section at `location`, following lists, tables and optionals."""
    current: type[BaseModel] | None = model
    for part in location:
        if current is None or isinstance(part, int) or part not in current.model_fields:
            continue
        current = _section_in(current.model_fields[part].annotation)
    fields = current.model_fields if current else {}
    return [field.alias or name for name, field in fields.items()]


def _section_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation):
        found = _section_in(argument)
        if found is not None:
            return found
    return None
