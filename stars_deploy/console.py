"""What a person or a script sees: tables and progress on stderr, one JSON object on stdout."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

#: Long tasks call this with what they do, steps completed, and steps in all.
Progress = Callable[[str, int, int], None]


@dataclass
class Settings:
    """The global options of the command line, which sets them; the library alone is silent."""

    json: bool = False
    quiet: bool = True
    verbose: bool = False
    words: tuple[str, ...] = ()  # as typed, after the program's name


settings = Settings()
#: What stands in a column of numbers: -1,234.5e-3, 12.5 %, and - where there is none.
_NUMBER = re.compile(r"-|[-+]?[\d,]*\.?\d+(e[-+]?\d+)?( ?%)?|nan|-?inf", re.IGNORECASE)
LINE_SECONDS = 30.0  # between two lines of progress in a log
PIPED_WIDTH = 132  # of tables in a file or a log, which have no width of their own


def no_progress(description: str, completed: int, total: int) -> None:
    """Report to nobody."""


def on_terminal() -> bool:
    """Return whether people watch stderr; FORCE_COLOR colours a log but makes no terminal of it."""
    return sys.stderr is not None and sys.stderr.isatty()


def stderr() -> Console:
    """Return the console that people read.

    rich colours a terminal, under FORCE_COLOR also a file or a pipe, and nothing under NO_COLOR.
    """
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """Print a line for people, unless --quiet."""
    if not settings.quiet:
        stderr().print(printable(text), markup=False)


def complain(text: str) -> None:
    """Print an error, also under --quiet."""
    stderr().print(printable(text), markup=False, style="bold red")


def show(title: str, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """Print a table for people; columns of numbers are right-aligned, words left-aligned."""
    if settings.quiet:
        return
    from rich.markup import escape

    table = _table()
    cells = [[printable(_cell(value)) for value in row] for row in rows]
    for index, column in enumerate(columns):
        words = index == 0 or not all(_NUMBER.fullmatch(row[index]) for row in cells)
        table.add_column(column, justify="left" if words else "right", overflow="fold")
    for row in cells:
        table.add_row(*map(escape, row))
    console = stderr()
    console.print(printable(title), markup=False, style="bold")  # a narrow table would wrap it
    console.soft_wrap = False
    if not on_terminal():
        console.width = PIPED_WIDTH
    console.print(table)


def printable(text: str) -> str:
    """Return `text` with what would steer a terminal or hide written as escapes.

    Names come from files: one may hold colours, a new window title, or text that runs backwards.
    """
    return "".join(c if c.isprintable() or c in "\n\t\u00a0" else ascii(c)[1:-1] for c in text)


def _table() -> Table:
    from rich import box
    from rich.table import Table

    return Table(box=box.SIMPLE_HEAD)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def emit(result: Mapping[str, Any]) -> None:
    """Print the command's result as one JSON object on stdout, if --json was given."""
    if settings.json:
        text = json.dumps(result, allow_nan=False, ensure_ascii=False) + "\n"
        # A byte of a file name that is no UTF-8 stands as an escape, which JSON has too.
        write_stdout(text.encode("utf-8", "backslashreplace").decode())


def write_stdout(text: str) -> None:
    """Print what was asked for on stdout.

    A reader that has seen enough (`| head`) changes nothing of what the command did.
    Raises: OSError naming stdout where it is closed or full; nothing more is printed on it then.
    """
    try:
        if sys.stdout is None:
            raise OSError(errno.EBADF, "is closed")
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as problem:
        settings.json = False
        if sys.stdout is not None:  # what is left in its buffer goes nowhere at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(problem, BrokenPipeError):
            raise OSError(problem.errno, problem.strerror, "stdout") from None


@contextlib.contextmanager
def progress() -> Iterator[Progress]:
    """Yield a Progress that draws bars on a terminal, and prints one line per task elsewhere."""
    if settings.quiet:
        yield no_progress
        return
    if not on_terminal():
        yield _line_progress()
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    bars = Bars(*columns, console=stderr())
    tasks: dict[str, Any] = {}

    def advance(description: str, completed: int, total: int) -> None:
        bars.start()  # not before: a command that turns out short draws nothing
        if description not in tasks:
            tasks[description] = bars.add_task(description, total=total)
        bars.update(tasks[description], completed=completed, total=total)

    try:
        yield advance
    finally:
        bars.stop()


def _line_progress() -> Progress:
    finished: set[str] = set()
    last = time.monotonic()

    def advance(description: str, completed: int, total: int) -> None:
        nonlocal last
        done = completed >= total and description not in finished
        if done or (completed < total and time.monotonic() - last >= LINE_SECONDS):
            if done:
                finished.add(description)
            last = time.monotonic()
            say(f"{description}: {completed}/{total}")

    return advance
