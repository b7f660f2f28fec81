"""The root command and its global options."""

from __future__ import annotations

from typing import Annotated

import typer

from stars_deploy import __version__, console
from stars_deploy.cli import bundle, demo, inventory, science, sweep, train
from stars_deploy.cli.commands import Commands

app = typer.Typer(
    name="stars-deploy",
    cls=Commands,
    help="Distil a trained classifier into a spiking network without data, "
    "and lower it to Loihi and ONNX spike for spike.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich help costs 0.3 s of imports
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="First time? Run: stars-deploy demo",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"stars-deploy {__version__}")
        raise typer.Exit


@app.callback()
def global_options(
    json: Annotated[
        bool, typer.Option("--json", help="One JSON object on stdout, all else on stderr.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Errors only.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Tracebacks too.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Options of every command; they may also follow the command's name."""
    console.settings.json = json
    console.settings.quiet = quiet
    console.settings.verbose = verbose


for module in (demo, train, bundle, sweep, science, inventory):
    module.register(app)
