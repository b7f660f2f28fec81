"""What a target has to say about a graph: one finding per fact, tied to a node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from stars_deploy.errors import DoesNotFit, GraphError

Severity = Literal["error", "warning", "info"]

# Errors of these codes mean that the graph is understood but exceeds what the hardware holds.
LIMIT_CODES = frozenset(
    {
        "input_messages",
        "scale_range",
        "convolution_field",
        "cores",
        "synaptic_memory",
        "input_axons",
        "output_axons",
        "neurons",
        "destinations",
        "synaptic_delay",
        "convolution_limit",
    }
)


@dataclass(frozen=True)
class Finding:
    """A fact about a graph on a target; `value` is what was found, `limit` what is allowed."""

    code: str
    severity: Severity
    node: str | None
    message: str
    value: float | str | None = None
    limit: float | str | None = None
    remedy: str = ""

    def __str__(self) -> str:
        where = f"{self.node}: " if self.node else ""
        remedy = f"; {self.remedy}" if self.remedy else ""
        return f"{where}{self.message}{remedy}"

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as it stands in validation.json."""
        return asdict(self)


def exit_code(findings: Sequence[Finding]) -> int:
    """Return 2 if something is not supported, else 4 if a limit is exceeded, else 0."""
    errors = {finding.code for finding in findings if finding.severity == "error"}
    if errors - LIMIT_CODES:
        return GraphError.exit_code
    return DoesNotFit.exit_code if errors else 0


def require_no_errors(findings: Sequence[Finding], what: str) -> None:
    """Raise GraphError or DoesNotFit listing every finding of severity error."""
    errors = [finding for finding in findings if finding.severity == "error"]
    if not errors:
        return
    shown = "\n  ".join(str(finding) for finding in errors)
    kind = DoesNotFit if exit_code(errors) == DoesNotFit.exit_code else GraphError
    raise kind(f"{what}:\n  {shown}")
