"""Headless Chromium over its DevTools protocol, for the tests of what a reader sees in a browser."""

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import httpx

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ("gpu", "quic", "background-networking", "component-update", "sync")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--no-first-run",
    "--remote-debugging-port=0",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # as if the line was cut: nothing but loopback
    *(f"--disable-{one}" for one in QUIET),
]
KEYS = {"Tab": 9, "Enter": 13, "ArrowDown": 40, "ArrowUp": 38, "Escape": 27, " ": 32}


@contextmanager
def running(profile: Path) -> Iterator[int]:
    """Port of the DevTools of a browser that has this new folder to itself."""
    process = subprocess.Popen(
        [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        said = profile / "DevToolsActivePort"
        while not said.is_file() or not said.read_text().strip():
            assert process.poll() is None, "Chromium did not start"
            time.sleep(0.05)
        yield int(said.read_text().split()[0])
    finally:
        process.terminate()
        process.wait(20)


class Tab:
    """One tab: commands, JavaScript, keys, and what the tab asked of the network."""

    def __init__(self, port: int):
        import websocket

        target = httpx.put(f"http://127.0.0.1:{port}/json/new?about:blank", timeout=30).json()
        self.socket = websocket.create_connection(
            target["webSocketDebuggerUrl"], timeout=120, suppress_origin=True, http_no_proxy=["127.0.0.1"]
        )
        self.numbers, self.requests, self.complaints = count(1), [], []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters) -> dict:
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("method") == "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])
            if message.get("method") == "Log.entryAdded":
                self.complaints.append(message["params"]["entry"]["text"])
            if message.get("method") == "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(message["params"]))
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]

    def js(self, expression: str):
        result = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, expression: str, seconds: float = 60):
        end = time.monotonic() + seconds
        while not (value := self.js(expression)):
            assert time.monotonic() < end, (
                f"{expression} stayed {value!r}; the page says {self.js('document.body.innerText')}"
            )
            time.sleep(0.03)
        return value

    def expect(self, expression: str, value) -> None:
        """Wait until an expression has this value: a page changes part by part."""
        end = time.monotonic() + 60
        while (found := self.js(expression)) != value and time.monotonic() < end:
            time.sleep(0.03)
        assert found == value, self.js("document.body.innerText")

    def open(self, url: str, width: int = 1280, height: int = 900) -> "Tab":
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        self.send("Page.navigate", url=url)
        self.wait("location.href !== 'about:blank' && document.readyState === 'complete'")
        return self

    def choose(self, selector: str, value: str) -> None:
        """Set a field, as its user would, and tell the page."""
        field = f"document.querySelector({json.dumps(selector)})"
        self.js(f"{field}.value = {json.dumps(value)}; {field}.dispatchEvent(new Event('change'))")

    def press(self, key: str, times: int = 1) -> None:
        text = {"text": "\r"} if key == "Enter" else {"text": " "} if key == " " else {}
        for _ in range(times):
            facts = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": KEYS[key]}
            self.send("Input.dispatchKeyEvent", type="keyDown", **facts, **text)
            self.send("Input.dispatchKeyEvent", type="keyUp", **facts)

    def type(self, text: str) -> None:
        self.send("Input.insertText", text=text)
