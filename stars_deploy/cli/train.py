"""`teacher train`, `distill`, `finetune`, `evaluate`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

import stars_deploy
from stars_deploy import console
from stars_deploy.api.training import DEFAULT_MODEL
from stars_deploy.cli.base import command, next_step, quoted
from stars_deploy.cli.commands import add

Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
DataOption = Annotated[
    str, typer.Option("--data", help="Data set: a name, a folder of idx or image files, an npz.")
]
OWN = "Own teacher:"
Card = Annotated[
    Path | None,
    typer.Option(help=f"{OWN} file that says shape, mean, std, classes (TOML, or a hub's JSON)."),
]
ImageShape = Annotated[
    str | None, typer.Option(help=f"{OWN} C,H,W of the images it takes, 3,32,32.")
]
Mean = Annotated[
    str | None,
    typer.Option(help=f"{OWN} mean of pixel / 255, one number or one per channel: 0.5,0.4,0.4."),
]
Std = Annotated[
    str | None, typer.Option(help=f"{OWN} standard deviation of pixel / 255, as --mean.")
]
Classes = Annotated[
    str | None, typer.Option(help=f"{OWN} names of the logits, a,b,c or a JSON list.")
]
POOLING = "max pooling becomes an average over the same window, or stride: without overlap."
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a recipe value: kd.lr=0.05."),
]


@command
def teacher_train(
    recipe: Annotated[str, typer.Argument(help="Recipe file or packaged model.")],
    out: Annotated[Path, typer.Option(help="Folder for teacher.safetensors and summary.json.")],
    data: DataOption = "fashion-mnist",
    overrides: SetOption = None,
    device: Device = "auto",
) -> None:
    """Train an ANN teacher with real data.

    Examples:
      stars-deploy teacher train fashion-mnist --out teacher
      stars-deploy teacher train my-model/recipe.toml --data images/ --set training.epochs=5 \\
        --out teacher
    """
    with console.progress() as progress:
        summary = stars_deploy.train_teacher(
            recipe, out=out, data=data, overrides=overrides or (), device=device, progress=progress
        )
    console.emit(summary)
    console.say(f"Accuracy on {summary['n']} test images: {summary['accuracy']:.4f}")
    weights = quoted(out / "teacher.safetensors")
    next_step(f"stars-deploy distill {quoted(recipe)} --weights {weights} --out run")


@command
def teacher_import(
    teacher: Annotated[
        str,
        typer.Argument(
            help="package.module:function, file.py:function, or torchvision:NAME; the code is run."
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="Folder for recipe.toml, teacher.safetensors, teacher.json.")
    ],
    weights: Annotated[
        Path | None, typer.Option(help="Trained weights: safetensors, .pt, .pth or .th.")
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="Recipe that the new one starts from.")] = None,
    card: Card = None,
    image_shape: ImageShape = None,
    mean: Mean = None,
    std: Std = None,
    classes: Classes = None,
    pooling: Annotated[str, typer.Option(help=f"window: {POOLING}")] = "window",
    overrides: SetOption = None,
) -> None:
    """Turn a trained network of your own into a recipe that every command takes.

    Examples:
      stars-deploy teacher import net.py:resnet20 --weights resnet20.th \\
        --image-shape 3,32,32 --mean 0.5 --std 0.25 --out teacher
      stars-deploy teacher import torchvision:resnet18 --weights resnet18.pth --out teacher
    """
    result = stars_deploy.import_teacher(
        teacher,
        out=out,
        weights=weights,
        recipe=recipe,
        card=card,
        image_shape=image_shape,
        mean=mean,
        std=std,
        classes=classes,
        pooling=pooling,
        overrides=overrides or (),
    )
    console.emit(result)
    rows = list(result["neurons"].items())
    console.show(f"{result['module']}: {result['parameters']:,} parameters", ("twin", "of"), rows)
    for note in result["notes"]:
        console.say(f"Teacher: {note}")
    console.say(f"Logits as the network's own, to {result['largest_relative_difference']:.0e}.")
    next_step(f"stars-deploy distill {quoted(out / 'recipe.toml')} --out run")


@command
def distill(
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    recipe: Annotated[
        str | None,
        typer.Argument(help="Recipe file or packaged model.", show_default=DEFAULT_MODEL),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            help=f"{OWN} package.module:function, file.py:function or torchvision:NAME; "
            "the code is run."
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="The teacher's weights: safetensors; with --teacher also .pt, .pth, .th."
        ),
    ] = None,
    card: Card = None,
    image_shape: ImageShape = None,
    mean: Mean = None,
    std: Std = None,
    classes: Classes = None,
    pooling: Annotated[
        str | None, typer.Option(help=f"{OWN} window (as if not given): {POOLING}")
    ] = None,
    student: Annotated[
        str | None, typer.Option(help="twin (the teacher's layers as neurons), or a family.")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="Synthesis: deepinversion, cmi or nayer.")
    ] = None,
    stars: Annotated[
        bool | None, typer.Option("--stars/--no-stars", help="RCA and TAR on or off.")
    ] = None,
    overrides: SetOption = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of everything random.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue an interrupted run, with the recipe that it has."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and its size; run nothing.")
    ] = False,
) -> None:
    """Distil a teacher into a spiking student without any data.

    Examples:
      stars-deploy distill fashion-mnist --seed 1 --out run
      stars-deploy distill fashion-mnist --method cmi --no-stars --set kd.lr=0.05 --out run
      stars-deploy distill --resume --out run
      stars-deploy distill --teacher net.py:resnet20 --weights resnet20.th \\
        --image-shape 3,32,32 --mean 0.5 --std 0.25 --out run
    """
    with console.progress() as progress:
        result = stars_deploy.distill(
            recipe,
            out=out,
            teacher=teacher,
            weights=weights,
            card=card,
            image_shape=image_shape,
            mean=mean,
            std=std,
            classes=classes,
            pooling=pooling,
            student=student,
            method=method,
            stars=stars,
            overrides=overrides or (),
            seed=seed,
            device=device,
            resume=resume,
            dry_run=dry_run,
            progress=progress,
        )
    console.emit(result)
    if dry_run:
        _show_plan(result)
        return
    console.say(f"Student: {out / 'student.safetensors'} ({result['wall_time_s']:.0f} s)")
    if "source" in result["teacher"]:
        targets = "--target nir --target onnx --target loihi"
        next_step(f"stars-deploy export {quoted(out)} {targets} --out bundle")
    else:
        next_step(f"stars-deploy evaluate {quoted(out)} --data evaluation")


def _show_plan(plan: Mapping[str, object]) -> None:
    rows = [(key, value) for key, value in plan.items() if not isinstance(value, dict)]
    console.show("Plan (nothing was run)", ("what", "value"), rows)
    next_step("the same command without --dry-run")


@command
def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a distillation run.")],
    data: DataOption = "evaluation",
    device: Device = "auto",
) -> None:
    """Measure accuracy (also against T) and spikes per layer; writes RUN/training.json.

    Example: stars-deploy evaluate run --data fashion-mnist
    """
    with console.progress() as progress:
        result = stars_deploy.evaluate(run, data=data, device=device, progress=progress)
    console.emit(result)
    console.show(
        f"{result['n']} images of {result['data']} on {result['device']}",
        ("T", "accuracy"),
        [(t + 1, f"{value:.4f}") for t, value in enumerate(result["accuracy_by_t"])],
    )
    console.show("Spikes", ("node", "spikes"), list(result["spikes"].items()))
    next_step(
        f"stars-deploy export {quoted(run)} --target nir --target onnx --target loihi --out bundle"
    )


@command
def finetune(
    source: Annotated[Path, typer.Argument(help="A run, a bundle or a .nir file.")],
    out: Annotated[Path, typer.Option(help="Folder for graph.nir and finetune.json.")],
    profile: Annotated[str, typer.Option(help="Loihi profile: a name or a TOML file.")] = "loihi2",
    bits: Annotated[
        int | None, typer.Option(help="Bits of the weights; the profile's if not given.")
    ] = None,
    updates: Annotated[
        int, typer.Option(min=0, help="Updates of the weights; 0 corrects the biases only.")
    ] = 300,
    lr: Annotated[
        float, typer.Option(min=1e-9, help="Learning rate, relative to the largest weight.")
    ] = 0.001,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the order of the images.")] = 0,
    pool: Annotated[
        Path | None, typer.Option(help="Run whose synthetic images and teacher are used.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="The teacher's weights (safetensors).")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Labelled images to measure on, never to train on.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Train a student's integers as a chip computes them, on synthetic images.

    Example: stars-deploy finetune run --profile loihi2 --bits 4 --out run4
    """
    with console.progress() as progress:
        result = stars_deploy.finetune(
            source,
            out=out,
            profile=profile,
            bits=bits,
            updates=updates,
            lr=lr,
            seed=seed,
            pool=pool,
            weights=weights,
            data=data,
            device=device,
            progress=progress,
        )
    console.emit(result)
    _show_finetuning(result)
    own = out / "profile.toml" if (out / "profile.toml").is_file() else profile
    next_step(
        f"stars-deploy export {quoted(out / 'graph.nir')} --target loihi "
        f"--profile {quoted(own)} --out bundle"
    )


def _show_finetuning(result: Mapping[str, Any]) -> None:
    tables = [result["agreement"], *([result["accuracy"]] if result["accuracy"] else [])]
    titles = ["agreement with the teacher", "accuracy"]
    for title, table in zip(titles, tables, strict=False):
        where = table.get("data", "synthetic images")
        rows = [
            (name.replace("_", " "), f"{value:.4f}")
            for name, value in table.items()
            if isinstance(value, float)
        ]
        console.show(f"{result['bits']} bits, {table['n']} of {where}", ("network", title), rows)


def register(app: typer.Typer) -> None:
    """Add this module's commands to the application."""
    teacher = typer.Typer(
        help="Teachers: import one of your own, or train one with real data.", no_args_is_help=True
    )
    add(teacher, teacher_import, "import")
    add(teacher, teacher_train, "train")
    app.add_typer(teacher, name="teacher")
    add(app, distill)
    add(app, finetune)
    add(app, evaluate)
