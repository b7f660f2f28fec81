"""The command line: one module per group of commands, each a thin layer over `api`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

# Accepted before and after the command's name, because nobody remembers which it is.
ANYWHERE = ("--json", "-q", "--quiet", "-v", "--verbose")


def main() -> None:
    """Run `stars-deploy`; the process ends with the exit code of the command."""
    try:
        from stars_deploy.cli.app import app

        app()
    except KeyboardInterrupt:  # before a command has begun; commands themselves say more
        sys.exit(130)


def _global_options_first(arguments: Sequence[str]) -> list[str]:
    end = arguments.index("--") if "--" in arguments else len(arguments)
    head, tail = arguments[:end], arguments[end:]
    moved = [word for word in head if word in ANYWHERE]
    return [*moved, *(word for word in head if word not in ANYWHERE), *tail]
