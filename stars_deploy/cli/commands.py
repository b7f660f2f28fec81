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
from stars_deploy.cli.base import explain_os_error
from stars_deploy.cli.completion import attach
from stars_deploy.errors import InputError

HELP = ("-h", "--help")
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
        # The name does not depend on how Python was started: completion is bound to it.
        name = prog_name or "stars-deploy"
        try:
            result = self._run(words, name, complete_var, **more)
        except OSError as problem:  # stdout, which was to take help or an error, is closed or full
            console.complain(f"Error: {explain_os_error(problem)}")
            result = InputError.exit_code
        if standalone_mode:
            sys.exit(result)
        return result

    def _run(self, words: list[str], name: str, complete_var: str | None, **more: Any) -> Any:
        if page := self._help_page(name, words):
            console.write_stdout(page + "\n")
            return 0
        try:
            return super().main(words, name, complete_var, standalone_mode=False, **more)
        except UsageError as error:
            error.show()
            console.settings.json = "--json" in takewhile(ANYWHERE.__contains__, words)
            message, code = error.format_message(), error.exit_code
            console.emit({"error": {"message": message, "exit_code": code}})
            return code

    def _help_page(self, name: str, words: Sequence[str]) -> str | None:
        """Return the help of a command if that is all that is asked for.

        Typer itself would first read the options before it, for which it imports pydantic: 0.2 s.
        """
        *names, last = [word for word in words if word not in ANYWHERE] or [""]
        if last not in HELP or not names:
            return None
        command: Any = self
        context = self.context_class(self, info_name=name, **self.context_settings)
        for word in names:
            command = getattr(command, "commands", {}).get(word)
            if command is None:
                return None
            context = command.context_class(command, info_name=word, parent=context)
        return str(command.get_help(context))


def add(app: typer.Typer, function: Callable[..., None], name: str | None = None) -> None:
    """Add a command to `app`; the examples of its docstring are shown as they are written."""
    text = inspect.cleandoc(function.__doc__ or "")
    # Click rewraps a paragraph unless it begins with \b.
    shown = text.replace("\n\nExample", "\n\n\b\nExample")
    attach(function)
    app.command(name, help=shown, epilog=GLOBAL_OPTIONS)(function)
