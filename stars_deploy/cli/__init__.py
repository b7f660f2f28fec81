"""The command line: one module per group of commands, each a thin layer over `workflow`."""

from __future__ import annotations

import sys

# Accepted before and after the command's name, because nobody remembers which it is.
_ANYWHERE = ("--json", "-q", "--quiet", "-v", "--verbose")


def main() -> None:
    """Run `stars-deploy`; the process ends with the exit code of the command."""
    from stars_deploy.cli.app import app

    app(_global_options_first(sys.argv[1:]))


def _global_options_first(arguments: list[str]) -> list[str]:
    end = arguments.index("--") if "--" in arguments else len(arguments)
    head, tail = arguments[:end], arguments[end:]
    moved = [word for word in head if word in _ANYWHERE]
    return moved + [word for word in head if word not in _ANYWHERE] + tail
