"""The command that runs a bundle elsewhere: a template in the words of a shell, run without one."""

from __future__ import annotations

import shlex
import string
from dataclasses import dataclass
from pathlib import Path

from stars_deploy.errors import DataError, EngineError, InputError
from stars_deploy.simulation.subprocesses import TimedOut, run_session, tail

PLACEHOLDERS = ("bundle", "trace", "images")
EXAMPLE = "python hil_run.py --host HOST {bundle} {trace} --images {images}"


@dataclass(frozen=True)
class BoardCommand:
    """A template split into words. `{{` and `}}` in it stand for braces."""

    template: str
    words: tuple[str, ...]
    fields: frozenset[str]

    def run(self, bundle: Path, trace: Path, images: Path, timeout: float | None) -> None:
        """Run the command with absolute paths filled in, and see that it wrote `trace`.

        Raises: EngineError when it cannot be started or ends with another status than 0, TimedOut
            after `timeout` seconds (its whole process session is ended then), DataError when it
            ends well without a trace.
        """
        paths = {"bundle": bundle, "trace": trace, "images": images}
        filled = {name: str(path.resolve()) for name, path in paths.items()}
        command = [word.format_map(filled) for word in self.words]
        shown = shlex.join(command)
        try:
            completed = run_session(command, timeout)
        except TimedOut as problem:
            raise TimedOut(f"--command {shown}: {problem}\nmore time: --timeout") from None
        if completed.status:
            raise EngineError(
                f"--command {shown}: ended with status {completed.status}\n{tail(completed.stderr)}"
            )
        if not trace.is_file():
            raise DataError(
                f"--command {shown}: ended well but wrote no trace; expected a file of run_lava.py "
                f"at the place of {{trace}}\n{tail(completed.stderr)}"
            )


def parse_command(template: str) -> BoardCommand:
    """Split TEMPLATE like a shell line and check its placeholders.

    Raises: InputError that shows the template, for unbalanced quotes or braces, an unknown
        placeholder, or no `{trace}`.
    """
    try:
        words = shlex.split(template)
        fields = {field for word in words for field in _fields(word)}
    except ValueError as problem:
        raise _bad(template, str(problem)) from None
    unknown = sorted(fields - set(PLACEHOLDERS))
    if unknown:
        known = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
        found = ", ".join(f"{{{name}}}" for name in unknown)
        raise _bad(template, f"{found} is unknown, there are {known}; write {{{{ for a brace")
    if "trace" not in fields:
        raise _bad(template, "no {trace}, the file that the command has to write")
    return BoardCommand(template, tuple(words), frozenset(fields))


def _fields(word: str) -> list[str]:
    """Return the placeholders of a word, with any format or conversion, which none of them has."""
    found = []
    for _, field, form, conversion in string.Formatter().parse(word):
        if field is not None:
            suffix = (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
            found.append(field + suffix)
    return found


def _bad(template: str, problem: str) -> InputError:
    return InputError(f"--command {template!r}: {problem}; expected words as in\n    {EXAMPLE}")
