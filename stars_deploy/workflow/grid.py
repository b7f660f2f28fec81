"""The cells of a comparison: what is varied, with which values, and their recipes."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tomli_w

from stars_deploy.errors import InputError

# Short names of what is varied most, and what their words stand for.
SHORT = {
    "stars": "stars.enabled",
    "stars.rca": "stars.lambda_rca",
    "stars.tar": "stars.lambda_tar",
    "method": "synthesis.method",
    "warm": "warm_start.enabled",
    "neuron": "neuron.model",
    "T": "student.T",
}
WORDS = {"on": True, "off": False}
MOST_SEEDS = 10_000  # of one range; more is a mistake


@dataclass(frozen=True)
class Cell:
    """One combination of values.

    Attributes:
        name: for people and folders, such as "stars=on,method=cmi".
        overrides: the recipe values it stands for, as `key=value` strings in TOML.
    """

    name: str
    overrides: tuple[str, ...]


def parse_vary(texts: Sequence[str]) -> list[Cell]:
    """Return the product of all `key=value,value,...`; the first value of each is the baseline.

    Values are TOML (numbers, strings, lists in brackets) or bare words; on and off are booleans.
    Values of one key that are separated by `|` may themselves hold commas. A value in braces is a
    whole section: stars={enabled=false}|{balance=1.0}.

    Raises:
        InputError: no key, a key given twice, fewer than two values, or a value given twice.
    """
    axes = []
    seen: set[str] = set()
    for text in texts:
        key, separator, listed = text.partition("=")
        key = key.strip()
        if not separator or not key:
            raise InputError(f"--vary {text!r}: expected key=value,value such as stars=on,off")
        if SHORT.get(key, key) in seen:
            raise InputError(f"--vary {text!r}: {key} is varied twice")
        seen.add(SHORT.get(key, key))
        axes.append([(key, value) for value in _values(listed, text)])
    return [_cell(combination) for combination in itertools.product(*axes)]


def _values(listed: str, text: str) -> list[Any]:
    if "|" in listed:
        values = [_value(part) for part in listed.split("|")]
    else:
        try:
            values = tomllib.loads(f"v = [{listed}]")["v"]
        except (tomllib.TOMLDecodeError, RecursionError):
            values = [_value(part) for part in listed.split(",")]
    if len(values) < 2:
        raise InputError(f"--vary {text!r}: names one value, a comparison needs at least two")
    if any(values.count(value) > 1 for value in values):
        raise InputError(f"--vary {text!r}: a value is given twice")
    return values


def _value(text: str) -> Any:
    word = text.strip()
    if word in WORDS:
        return WORDS[word]
    try:
        return tomllib.loads(f"v = {word}")["v"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return word


def _cell(combination: Sequence[tuple[str, Any]]) -> Cell:
    names, overrides = [], []
    for key, value in combination:
        shown = {True: "on", False: "off"}[value] if isinstance(value, bool) else value
        whole = isinstance(value, dict)  # a whole section, not the short name's key
        names.append(f"{key}={_literal(value) if whole else shown}")
        overrides.append(f"{key if whole else SHORT.get(key, key)}={_literal(value)}")
    return Cell(", ".join(names), tuple(overrides))


def _literal(value: Any) -> str:
    """Return a value as TOML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_literal(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return tomli_w.dumps({"v": value}).removeprefix("v = ").strip()


def parse_seeds(given: str | Sequence[int]) -> list[int]:
    """Return the seeds of "0,1,2" or "0-4", or those given as numbers.

    Raises:
        InputError: not numbers, none, or one given twice.
    """
    text = given if isinstance(given, str) else ",".join(map(str, given))
    seeds: list[int] = []
    try:
        for part in text.split(","):
            first, dash, last = part.strip().partition("-")
            begin, end = int(first), int(last if dash else first)
            if not 0 <= end - begin < MOST_SEEDS:
                raise ValueError
            seeds += range(begin, end + 1)
    except ValueError:
        raise InputError(f"--seeds {text!r}: expected numbers such as 0,1,2 or 0-4") from None
    twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
    if twice or not seeds:
        raise InputError(
            f"--seeds {text!r}: seed {twice[0]} is given twice" if twice else "--seeds: none given"
        )
    return seeds
