"""docs/json.md, written from the schemas: `python tests/json_page.py > docs/json.md`."""

from __future__ import annotations

from typing import Any

from stars_deploy.results.schemas import RESULTS, schema

Part = dict[str, Any]
HEAD = """\
# JSON: what the commands print and write

Under `--json` (before or after the command's name) a command prints exactly one JSON object on
stdout, all else on stderr. A command that fails prints `{"error": ...}` instead; one that ends with
a verdict that failed (`check`, `validate`, `demo`) prints its result and ends with that exit code.
The same objects are what the functions of the [Python API](api.md) return, and the content of the
files that are named here.

`stars-deploy schema NAME` prints the JSON Schema of one, in which unknown keys are refused;
`NAME` is one of the headings below. Fractions are 0 to 1, times are seconds, spikes are counts.
This page is written from the schemas (`python tests/json_page.py > docs/json.md`).
"""


def page() -> str:
    """Return the page."""
    parts: dict[str, Any] = {}
    sections = []
    for name in RESULTS:
        document = schema(name)
        parts |= document.get("$defs", {})
        sections.append(_section(name, document, parts))
    sections += ["## Parts\n"]
    sections += [_table(f"### {name}", part, parts) for name, part in sorted(parts.items())]
    return "\n".join([HEAD, *sections])


def _section(name: str, document: Part, parts: dict[str, Part]) -> str:
    if "anyOf" in document:
        choices = ", or ".join(_type(choice) for choice in document["anyOf"])
        return f"## {name}\n\n{choices}\n"
    if "$ref" in document:
        return f"## {name}\n\n{_type(document)}\n"
    return _table(f"## {name}", document, parts)


def _table(heading: str, document: Part, parts: dict[str, Part]) -> str:
    required = document["required"]
    rows = ["| key | type | meaning |", "|---|---|---|"]
    for key, value in document["properties"].items():
        absent = "" if key in required else ", may be absent"
        # Where a key means what its part says, the schema says it once.
        meant = value if "description" in value else parts[_named(value)]
        meaning = meant["description"].replace("|", "\\|")
        rows.append(f"| `{key}` | {_type(value)}{absent} | {meaning} |")
    text = document.get("description")
    return "\n".join([heading, "", *([text, ""] if text else []), *rows, ""])


def _named(value: Part) -> str:
    return str(value["$ref"].rpartition("/")[2])


def _type(value: Part) -> str:
    if "$ref" in value:
        return f"[{_named(value)}](#{_named(value).lower()})"
    if "anyOf" in value:
        return " or ".join(_type(choice) for choice in value["anyOf"])
    if "const" in value or "enum" in value:
        return " or ".join(f"`{x}`" for x in value.get("enum", [value.get("const")]))
    if value.get("type") == "array":
        return f"list of {_type(value.get('items', {}))}"
    if value.get("type") == "object":
        inner = value.get("additionalProperties")
        return f"object of {_type(inner)}" if isinstance(inner, dict) else "object"
    return str(value.get("type", "any"))


if __name__ == "__main__":
    print(page(), end="")
