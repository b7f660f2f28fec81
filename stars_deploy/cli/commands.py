"""How commands are gathered: options anywhere, usage errors as JSON, examples as written."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any

import typer
from typer.core import TyperGroup

from stars_deploy import console
from stars_deploy.cli import ANYWHERE, _global_options_first
from stars_deploy.cli.completion import attach

GLOBAL_OPTIONS = (
    "Global options, before or after the command's name: --json (one JSON object on stdout), "
    "-q, --quiet (errors only), -v, --verbose (tracebacks too)."
)
# Typer keeps this exception private; what it exports derives from it.
UsageError: Any = typer.BadParameter.__base__


class Commands(TyperGroup):
    """The root group. A usage error ends with 2, on stderr, and under --json on stdout, too."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **more: Any,
    ) -> Any:
        """Run a command: see click.Group.main."""
        typed = tuple(sys.argv[1:] if args is None else args)
        words = _global_options_first(typed)
        console.settings.words = typed
        try:
            # The name does not depend on how Python was started: completion is bound to it.
            name = prog_name or "stars-deploy"
            result = super().main(words, name, complete_var, standalone_mode=False, **more)
        except UsageError as error:
            error.show()
            console.settings.json = "--json" in takewhile(ANYWHERE.__contains__, words)
            message, code = error.format_message(), error.exit_code
            console.emit({"error": {"message": message, "exit_code": code}})
            result = code
        if standalone_mode:
            sys.exit(result)
        return result


def add(app: typer.Typer, function: Callable[..., None], name: str | None = None) -> None:
    """Add a command to `app`; the examples of its docstring are shown as they are written."""
    text = inspect.cleandoc(function.__doc__ or "")
    # Click rewraps a paragraph unless it begins with \b.
    shown = text.replace("\n\nExample", "\n\n\b\nExample")
    attach(function)
    app.command(name, help=shown, epilog=GLOBAL_OPTIONS)(function)
