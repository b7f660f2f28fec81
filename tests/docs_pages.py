"""What the documents say: their commands, links, anchors and places in the code."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SHELL = ("console", "sh", "")


def name_of(page: Path) -> str:
    """The page as tests name it."""
    return str(page.relative_to(ROOT))


def blocks(page: Path, *languages: str) -> list[str]:
    """Fenced blocks of these languages."""
    text = page.read_text(encoding="utf-8")
    return [body for language, body in FENCE.findall(text) if language in languages]


def words_of(block: str) -> list[list[str]]:
    """The words of every command of a block, prompts and comments taken off."""
    lines = block.replace("\\\n", " ").splitlines()
    found = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines]
    return [words for words in found if words]


def commands(page: Path) -> list[list[str]]:
    """The words of every command of a page, in order."""
    return [words for block in blocks(page, *SHELL) for words in words_of(block)]


def ours(page: Path) -> list[list[str]]:
    """The commands of stars-deploy on a page, without the program."""
    words = [command for command in commands(page) if Path(command[0]).name == "stars-deploy"]
    return [command[1:] for command in words]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def links(page: Path) -> list[str]:
    """Targets of links and pictures that are not on the web."""
    found = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def anchors(page: Path) -> set[str]:
    """What a link may name behind #, as GitHub makes it of headings."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-") for text in plain}


def places(page: Path) -> list[tuple[str, str | None]]:
    """Files of the repository that a page names, and what in them."""
    folders = "stars_deploy|tests|benchmarks|export|hardware_profiles|models|docs"
    pattern = rf"(?<![\w/.-])((?:{folders})/[\w/.-]*[\w/])(?![\w*/-])(?::([\w.]+))?"
    return [(file, name or None) for file, name in re.findall(pattern, prose(page))]
