"""A headless Chromium, driven over its debugging pipe: no driver, no port, no network.

Speaks the Chrome DevTools Protocol (https://chromedevtools.github.io/devtools-protocol/): JSON
messages that end with a zero byte, to file descriptor 3 of the browser and from descriptor 4.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip
TIMEOUT_S = 120.0
SETTLE_S = 0.3  # for what a page does after it has loaded

Json = dict[str, Any]


def find_chromium() -> str:
    """Return the browser's command; FileNotFoundError says how to get one."""
    found = next((path for path in map(shutil.which, NAMES) if path), None)
    if found is None:
        raise FileNotFoundError(
            f"no browser on PATH (looked for {', '.join(NAMES)}); on Debian or Ubuntu: "
            "apt-get install chromium"
        )
    return found


class Chromium:
    """One page of a browser with an empty profile under `folder`.

    Attributes:
        events: every message of the browser that answers no command, in order.
    """

    def __init__(self, folder: Path) -> None:
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        # The browser expects its ends as 3 and 4; a shell puts them there.
        line = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
        command = [find_chromium(), *FLAGS, f"--user-data-dir={folder}", "about:blank"]
        self._process = subprocess.Popen(
            ["bash", "-c", line, "bash", *command],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self.events: list[Json] = []
        self._buffer, self._number, self._session = b"", 0, None
        pages = self.send("Target.getTargets")["targetInfos"]
        target = next(page["targetId"] for page in pages if page["type"] == "page")
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def __enter__(self) -> Chromium:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._session = None
            self.send("Browser.close")
            self._process.wait(10)
        except (OSError, RuntimeError, TimeoutError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        os.close(self._write)
        os.close(self._read)

    def send(self, method: str, **parameters: Any) -> Json:
        """Send a command and return its answer; RuntimeError if the browser refuses it."""
        self._number += 1
        message: Json = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return dict(answer["result"])
            self.events.append(answer)

    def _next(self, seconds: float = TIMEOUT_S) -> Json:
        end = time.monotonic() + seconds
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                raise TimeoutError(f"Chromium did not answer within {seconds} s")
            content = os.read(self._read, 1 << 20)
            if not content:
                raise RuntimeError("Chromium ended unexpectedly")
            self._buffer += content
        message, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(message))

    def open(self, page: Path, width: int, height: int = 900, scheme: str = "light") -> None:
        """Load a file with a viewport of width x height CSS pixels in a colour scheme."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=False)  # fmt: skip
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.send("Emulation.setEmulatedMedia", media="screen", features=features)
        self.events.clear()
        self.send("Page.navigate", url=page.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())
        end = time.monotonic() + SETTLE_S
        while (left := end - time.monotonic()) > 0:
            try:
                self.events.append(self._next(left))
            except TimeoutError:
                break

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression in the page."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression[:60]}: {answer['exceptionDetails']['text']}")
        return answer["result"].get("value")

    def messages(self) -> list[str]:
        """Return what the page wrote to the console since it was opened, errors included."""
        kinds = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [json.dumps(x["params"])[:2000] for x in self.events if x.get("method") in kinds]

    def requests(self) -> list[str]:
        """Return every address the page asked for since it was opened, itself included."""
        sent = [x for x in self.events if x.get("method") == "Network.requestWillBeSent"]
        return [str(event["params"]["request"]["url"]) for event in sent]

    def screenshot(self, whole: bool = False) -> bytes:
        """Return a PNG of the viewport, or of the whole page."""
        answer = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        return base64.b64decode(answer["data"])

    def pdf(self) -> bytes:
        """Return the page printed on A4, as a person's browser prints it."""
        self.send("Emulation.setEmulatedMedia", media="", features=[])
        answer = self.send("Page.printToPDF", paperWidth=8.27, paperHeight=11.69,
                           printBackground=True)  # fmt: skip
        return base64.b64decode(answer["data"])
