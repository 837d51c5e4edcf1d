"""Headless Chromium, steered over a pipe by its DevTools protocol."""

import base64
import json
import os
import select
import shutil
import subprocess
import time

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
)


def find_chromium():
    """Return the path of the browser, or `None`."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


class Chromium:
    """One page of a browser of its own.

    Args:
        folder: `pathlib.Path`, an empty directory for the profile.
        width, height: ints, CSS pixels.
    """

    def __init__(self, folder, width=1280, height=900):
        self._number = 0
        self.errors = []
        read, their_write = os.pipe()
        their_read, write = os.pipe()

        # The protocol's files are those of number 3 and 4.
        script = 'exec 3<&"$0" 4>&"$1" && shift && exec "$@"'
        self._process = subprocess.Popen(
            [
                *("bash", "-c", script, str(their_read), str(their_write)),
                *(find_chromium(), *FLAGS),
                f"--user-data-dir={folder}",
                f"--window-size={width},{height}",
            ],
            pass_fds=(their_read, their_write),
            stderr=subprocess.DEVNULL,
        )
        os.close(their_read)
        os.close(their_write)
        self._read, self._write, self._buffer = read, write, b""
        self._session = None
        target = self.call("Target.createTarget", url="about:blank")
        attached = self.call(
            "Target.attachToTarget",
            targetId=target["targetId"],
            flatten=True,
        )
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.resize(width, height)

    def call(self, method, **parameters):
        """Call a method of the protocol and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self._note(answer)

    def _note(self, event):
        if event.get("method") == "Runtime.exceptionThrown":
            self.errors.append(event["params"]["exceptionDetails"])
        if event.get("method") == "Log.entryAdded":
            entry = event["params"]["entry"]
            if entry["level"] == "error":
                self.errors.append(entry)

    def _next(self):
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], 120)
            part = os.read(self._read, 1 << 16) if ready else b""
            if not part:
                raise RuntimeError("Chromium does not answer.")
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def resize(self, width, height, phone=False):
        """Change the size of the page."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )

    def scheme(self, name):
        """Prefer a `light` or a `dark` page."""
        feature = {"name": "prefers-color-scheme", "value": name}
        self.call("Emulation.setEmulatedMedia", features=[feature])

    def open(self, url):
        """Go to a page."""
        self.call("Page.navigate", url=url)
        self.wait("document.readyState == 'complete'")

    def run(self, script):
        """Evaluate JavaScript and return its value."""
        result = self.call(
            "Runtime.evaluate",
            expression=script,
            returnByValue=True,
            awaitPromise=True,
        )
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"])
        return result["result"].get("value")

    def wait(self, condition, seconds=60):
        """Wait until a JavaScript expression is true, and return it."""
        end = time.monotonic() + seconds
        while not (value := self.run(condition)):
            if time.monotonic() > end:
                raise RuntimeError(f"This did not come true: {condition}")
            time.sleep(0.05)
        return value

    def type(self, text):
        """Type into what has the focus."""
        self.call("Input.insertText", text=text)

    def press(self, key, shift=False):
        """Press a key, named as in JavaScript."""
        code = {"Enter": 13, "ArrowDown": 40, "ArrowRight": 39, "Escape": 27}
        event = {
            "key": key,
            "code": key if len(key) > 1 else "",
            "windowsVirtualKeyCode": code.get(key, ord(key[0])),
            "modifiers": 8 if shift else 0,
        }
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else None)
        down = {**event, "text": text} if text else event
        self.call("Input.dispatchKeyEvent", type="keyDown", **down)
        self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def drop(self, path, x=400, y=400):
        """Drop a file onto the page."""
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def screenshot(self, path):
        """Write what the page shows to a PNG file."""
        image = self.call("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(image))

    def close(self):
        """End the browser."""
        self._session = None
        try:
            self.call("Browser.close")
            self._process.wait(20)
        except (RuntimeError, OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        os.close(self._read)
        os.close(self._write)
