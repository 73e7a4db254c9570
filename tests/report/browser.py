"""Headless Chromium over WebDriver, with the standard library alone."""

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

__all__ = ["Browser", "missing"]

_ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage"]


def missing() -> str:
    """What there is not; empty when a browser can be started."""
    return ", ".join(name for name in ("chromium", "chromedriver") if shutil.which(name) is None)


class Browser:
    """One browser with one tab; everything goes through :meth:`call`."""

    def __init__(self, profile: Path) -> None:
        log = (profile / "driver.log").open("wb+")
        command = [str(shutil.which("chromedriver")), "--port=0"]
        self._process = subprocess.Popen(command, stdout=log, stderr=log)  # noqa: S603 - the driver on this machine
        try:
            self._address = f"http://127.0.0.1:{self._port(profile / 'driver.log')}"
            options = {"binary": shutil.which("chromium"), "args": [*_ARGUMENTS, f"--user-data-dir={profile / 'user'}"]}
            wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
            self._session = ""
            started = self.call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
            self._session = f"/session/{started['sessionId']}"
        except BaseException:
            self._process.kill()
            raise

    def _port(self, log: Path) -> int:
        """The port that the driver chose."""
        for _ in range(300):
            for line in log.read_text(errors="replace").splitlines():
                if "started successfully on port" in line:
                    return int(line.rstrip(".").rsplit(" ", 1)[-1])
            time.sleep(0.1)
        raise TimeoutError(log.read_text(errors="replace"))

    def call(self, method: str, path: str, data: Any = None) -> Any:
        """One command of WebDriver."""
        body = None if data is None else json.dumps(data).encode()
        place = path if path == "/session" and data and "capabilities" in data else self._session + path
        request = urllib.request.Request(  # noqa: S310 - the driver on this machine
            self._address + place, body, {"Content-Type": "application/json"}, method=method
        )
        with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310 - see above
            return json.load(answer)["value"]

    def protocol(self, command: str, **parameters: Any) -> Any:
        """One command of the browser's own protocol."""
        return self.call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def open(self, page: Path, width: int, dark: bool = False) -> None:
        """Show a page at a width, in light or in dark."""
        self.protocol(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.protocol("Emulation.setEmulatedMedia", features=[scheme])
        self.call("POST", "/url", {"url": page.resolve().as_uri()})

    def run(self, script: str, *arguments: Any) -> Any:
        """What a function body of JavaScript returns."""
        return self.call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def press(self, key: str) -> None:
        """Press and release one key."""
        strokes = [{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]
        self.call("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": strokes}]})

    def messages(self) -> list[str]:
        """What the console has said since the last time."""
        return [entry["message"] for entry in self.call("POST", "/se/log", {"type": "browser"})]

    def picture(self, path: Path) -> None:
        """The whole page as a PNG."""
        shot = self.protocol("Page.captureScreenshot", captureBeyondViewport=True, format="png")
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        """End the browser and its driver."""
        try:
            self.call("DELETE", "")
        finally:
            self._process.terminate()
            self._process.wait(timeout=30)
