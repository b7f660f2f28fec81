"""Pictures of a bundle's report.html for the documentation: docs/report-light.png and -dark.png.

Needs Chromium. Run on the bundle that `stars-deploy demo --out demo` writes:

    python benchmarks/screenshots.py demo/bundle
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # the browser of the tests

from chromium import Chromium  # noqa: E402

WIDTH, HEIGHT = 1400, 1000
COLOURS = 128  # of the PNG: flat surfaces and text need no more


def main() -> None:
    """Write both pictures of the page named on the command line."""
    page = Path(sys.argv[1] if len(sys.argv) > 1 else "demo/bundle") / "report.html"
    with tempfile.TemporaryDirectory() as folder, Chromium(Path(folder)) as browser:
        for scheme in ("light", "dark"):
            browser.open(page, WIDTH, HEIGHT, scheme)
            picture = Image.open(io.BytesIO(browser.screenshot())).convert("RGB")
            path = ROOT / "docs" / f"report-{scheme}.png"
            picture.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
            print(f"{path.relative_to(ROOT)}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
