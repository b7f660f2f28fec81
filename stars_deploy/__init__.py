"""stars-deploy: data-free ANN-to-SNN distillation with a lowering proved spike for spike.

Every command is a function here: `stars_deploy.distill(...)`, see stars_deploy.api. The import of
this package alone loads neither torch nor numpy.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stars_deploy.api import (
        check,
        compare,
        demo,
        distill,
        doctor,
        evaluate,
        export,
        finetune,
        import_teacher,
        operating_point,
        profiles,
        schema,
        simulate,
        sweep,
        tensorboard,
        train_teacher,
        validate,
        zoo,
    )

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "check",
    "compare",
    "demo",
    "distill",
    "doctor",
    "evaluate",
    "export",
    "finetune",
    "import_teacher",
    "operating_point",
    "profiles",
    "schema",
    "simulate",
    "sweep",
    "tensorboard",
    "train_teacher",
    "validate",
    "zoo",
]


if not TYPE_CHECKING:  # to a type checker, a module with __getattr__ has every name there is

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from stars_deploy import api

        return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
