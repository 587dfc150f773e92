"""Chromium without a window, driven over its DevTools protocol through a pipe; it needs no package.

Source: https://chromedevtools.github.io/devtools-protocol/, --remote-debugging-pipe.
"""

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import time
from pathlib import Path

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser")
_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --remote-debugging-pipe"
).split()


class Page:
    """One page; `events` has all that the browser reported of it: console, errors, requests."""

    def __init__(self, profile: Path, *, timeout: float = 60):
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        # Chromium reads its commands from descriptor 3 and answers on 4; no pipe may lie in the other's way there.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (to_browser, from_browser)]
        actions = [(os.POSIX_SPAWN_DUP2, ends[0], 3), (os.POSIX_SPAWN_DUP2, ends[1], 4)]
        actions += [(os.POSIX_SPAWN_OPEN, stream, os.devnull, os.O_RDWR, 0) for stream in (0, 1, 2)]
        arguments = [PROGRAM, *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self._process = os.posix_spawn(PROGRAM, arguments, os.environ, file_actions=actions)
        for end in (to_browser, from_browser, *ends):
            os.close(end)
        self._timeout, self._buffer, self._number, self._session = timeout, b"", 0, None
        self.events = []
        targets = self("Target.getTargets")["targetInfos"]
        target = next(each["targetId"] for each in targets if each["type"] == "page")
        self._session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **parameters) -> dict:
        """Sends a command and waits for its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        number = self._number
        while True:
            answer = self._receive(self._timeout)
            if answer is None:
                raise TimeoutError(f"Chromium did not answer {method} within {self._timeout} s")
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def _receive(self, timeout: float) -> dict | None:
        """The next message, or None after `timeout` seconds; events are also kept."""
        end = time.monotonic() + timeout
        while b"\0" not in self._buffer:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self._read], [], [], left)[0]:
                return None
            chunk = os.read(self._read, 1 << 20)
            if not chunk:
                raise RuntimeError("Chromium ended")
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\0", 1)
        message = json.loads(line)
        if "method" in message:
            self.events.append(message)
        return message

    def open(self, path: Path, *, width: int, height: int, dark: bool = False) -> None:
        """Opens a file in a window of that size."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self("Emulation.setEmulatedMedia", features=[scheme])
        self.resize(width, height)
        self.events.clear()
        self("Page.navigate", url=path.absolute().as_uri())
        self.wait("document.readyState === 'complete' && location.protocol === 'file:'")

    def resize(self, width: int, height: int) -> None:
        """Gives the window another size; a phone's if it is narrow."""
        self(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )  # fmt: skip

    def js(self, expression: str):
        """The value of a JavaScript expression."""
        result = self("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{expression}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def wait(self, condition: str, seconds: float = 30):
        """Waits until a JavaScript expression is true, and gives back its value."""
        end = time.monotonic() + seconds
        while not (value := self.js(condition)):
            if time.monotonic() > end:
                raise TimeoutError(f"not true within {seconds} s: {condition}")
            self._receive(0.05)
        return value

    def move(self, x: float, y: float) -> None:
        """Moves the mouse to a place in the window."""
        self("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def press(self, key: str) -> None:
        """Presses and releases a key, such as Tab."""
        code, text = {"Tab": (9, ""), "Enter": (13, "\r")}[key]
        for kind in ("keyDown", "keyUp"):
            self("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, text=text)

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """Writes a PNG of the page, or of the window."""
        path.write_bytes(base64.b64decode(self("Page.captureScreenshot", captureBeyondViewport=whole)["data"]))

    def close(self) -> None:
        """Ends the browser."""
        self._session = None
        with contextlib.suppress(OSError, RuntimeError, TimeoutError):
            self("Browser.close")
        end = time.monotonic() + 20
        while os.waitpid(self._process, os.WNOHANG) == (0, 0):
            if time.monotonic() > end:
                os.kill(self._process, signal.SIGKILL)
            time.sleep(0.05)
        os.close(self._write)
        os.close(self._read)
