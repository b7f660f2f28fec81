"""RUN/metrics.jsonl: one JSON object a line, cut back to the checkpoint when a run is resumed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import TracebackType
from typing import Any

from stars_deploy.errors import InputError


class MetricsLog:
    """Appends lines; `size` is the length in bytes that a checkpoint remembers."""

    def __init__(self, path: Path, size: int) -> None:
        if path.is_symlink():
            raise InputError(f"{path}: is a symbolic link; start the run again in another folder")
        held = path.stat().st_size if path.exists() else 0
        if held < size:
            raise InputError(
                f"{path}: holds {held} bytes, the checkpoint was written after {size}; "
                "the file was changed, start the run again in another folder"
            )
        self._stream = path.open("ab")
        self._stream.truncate(size)
        self.size = size

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stream.close()

    def write(self, record: dict[str, Any]) -> None:
        """Append one line; floats keep six significant digits, infinities become null."""
        line = json.dumps(_rounded(record), allow_nan=False).encode() + b"\n"
        self._stream.write(line)
        # Before the next checkpoint, so that a resumed run finds every line it counts on.
        self._stream.flush()
        self.size += len(line)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return value
