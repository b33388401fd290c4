"""Chromium driven over the DevTools protocol, through the pipe it offers: no port, no library."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SECONDS = 30.0
"""How long anything may take."""
KEYS = {"Enter": (13, "\r"), "Escape": (27, ""), "Tab": (9, ""), "ArrowUp": (38, ""), "ArrowDown": (40, "")}
"""Key code, and the text it types; of all others, the character is the key."""
SHIFT = 8


class Browser:
    """One Chromium without a window."""

    def __init__(self, profile: Path) -> None:
        theirs, self._out = os.pipe()
        self._in, mine = os.pipe()
        # Chromium reads from 3 and writes to 4; no end of ours may have these numbers when they are put there.
        ends = [fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 10) for number in (theirs, mine)]

        def give_pipes() -> None:
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        words = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        words += ["--remote-debugging-pipe", f"--user-data-dir={profile}", "--disable-background-networking"]
        self._process = subprocess.Popen(
            words, preexec_fn=give_pipes, pass_fds=(3, 4), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for number in (theirs, mine, *ends):
            os.close(number)
        self._read = b""
        self._number = 0
        self.events: list[dict[str, Any]] = []
        """Everything that was reported without being asked for, oldest first."""

    def tell(self, method: str, session: str | None = None, **params: Any) -> None:
        """Sends a command and does not wait for its result, which becomes an event."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]

    def ask(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Sends a command and returns its result."""
        self.tell(method, session, **params)
        end = time.monotonic() + SECONDS
        while True:
            reply = self._next(end)
            if reply.get("id") != self._number:
                self.events.append(reply)
            elif "error" in reply:
                raise RuntimeError(f"{method}: {reply['error']}")
            else:
                return dict(reply["result"])

    def open(self, url: str, **options: Any) -> Page:
        """A page with storage of its own."""
        return Page(self, url, **options)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(SECONDS)
        os.close(self._in)
        os.close(self._out)

    def _next(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._read:
            ready, _, _ = select.select([self._in], [], [], max(0.0, end - time.monotonic()))
            part = os.read(self._in, 1 << 20) if ready else b""
            if not part:
                raise RuntimeError(f"Chromium said nothing for {SECONDS:g} s, or ended")
            self._read += part
        message, _, self._read = self._read.partition(b"\0")
        return dict(json.loads(message))


class Page:
    """A page of the browser, used as a person would: keys, clicks, and looking.

    Args:
        language: of the browser, `en` or `zh-CN`.
        width, height: of the window, in pixels.
        dark: whether the system prefers dark colours.
        first: JavaScript that runs before the page's own.
    """

    def __init__(
        self,
        browser: Browser,
        url: str,
        *,
        language: str = "en",
        width: int = 1280,
        height: int = 800,
        dark: bool = False,
        first: str = "",
    ) -> None:
        self._browser = browser
        self._context = browser.ask("Target.createBrowserContext")["browserContextId"]
        target = browser.ask("Target.createTarget", url="about:blank", browserContextId=self._context)["targetId"]
        self._session = browser.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")
        agent = browser.ask("Browser.getVersion")["userAgent"]
        self.ask("Emulation.setUserAgentOverride", userAgent=agent, acceptLanguage=language)
        self.ask("Emulation.setFocusEmulationEnabled", enabled=True)
        self.resize(width, height)
        self.prefer(dark=dark)
        if first:
            self.ask("Page.addScriptToEvaluateOnNewDocument", source=first)
        self.ask("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        return self._browser.ask(method, self._session, **params)

    def tell(self, method: str, **params: Any) -> None:
        self._browser.tell(method, self._session, **params)

    def js(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        found = self.ask("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, condition: str) -> Any:
        """Waits until an expression is true; returns its value."""
        end = time.monotonic() + SECONDS
        while not (value := self.js(condition)):
            assert time.monotonic() < end, f"{condition} is still {value!r}; the page reads: {self.text('body')}"
            time.sleep(0.02)
        return value

    def text(self, selector: str) -> str:
        """What a person reads there."""
        return str(self.js(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def texts(self, selector: str) -> list[str]:
        found = self.js(f"[...document.querySelectorAll({json.dumps(selector)})].map((one) => one.innerText)")
        return [str(one) for one in found]

    def type(self, text: str) -> None:
        """Types where the focus is."""
        self.ask("Input.insertText", text=text)

    def press(self, key: str, *, shift: bool = False) -> None:
        code, text = KEYS.get(key, (ord(key.upper()[0]), key))
        same = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": SHIFT * shift}
        self.ask("Input.dispatchKeyEvent", type="keyDown", text=text, **same)
        self.ask("Input.dispatchKeyEvent", type="keyUp", **same)

    def click(self, selector: str) -> None:
        """Clicks in the middle of what is visible of an element."""
        element = f"document.querySelector({json.dumps(selector)})"
        self.js(f"{element}.scrollIntoView({{block: 'nearest'}})")
        x, y = self.js(
            f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])({element}.getBoundingClientRect())"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def middle(self, selector: str) -> tuple[float, float]:
        """Where an element is in the window, in pixels."""
        x, y = self.js(
            f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])"
            f"(document.querySelector({json.dumps(selector)}).getBoundingClientRect())"
        )
        return x, y

    def drag(self, selector: str, to: tuple[float, float], *, touch: bool = False, steps: int = 12) -> None:
        """Takes an element in its middle and lets go of it elsewhere, with the mouse or a finger."""
        start = self.middle(selector)
        places = [tuple(a + (b - a) * n / steps for a, b in zip(start, to, strict=True)) for n in range(steps + 1)]
        for n, (x, y) in enumerate([*places, places[-1]]):
            if touch:
                kind = "touchStart" if n == 0 else "touchMove"
                self.ask("Input.dispatchTouchEvent", type=kind, touchPoints=[{"x": x, "y": y}])
            else:
                kind = "mousePressed" if n == 0 else "mouseMoved"
                held = {"button": "left", "buttons": 1, "clickCount": 1}
                self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, **held)
            time.sleep(0.03)  # what follows a hand looks once a frame
        if touch:
            self.ask("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        else:
            x, y = to
            self.ask("Input.dispatchMouseEvent", type="mouseReleased", x=x, y=y, button="left", clickCount=1)

    def tap(self, selector: str) -> None:
        """Touches the middle of an element."""
        element = f"document.querySelector({json.dumps(selector)})"
        self.js(f"{element}.scrollIntoView({{block: 'center'}})")
        x, y = self.middle(selector)
        # At once: where the page is slow to answer, a finger that waits for it is one that presses long.
        self.tell("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        self.ask("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def choose(self, selector: str, value: str) -> None:
        """Chooses an option of a selection."""
        done = self.js(
            f"((one) => {{ one.value = {json.dumps(value)}; one.dispatchEvent(new Event('change', {{bubbles: true}}));"
            f" return one.value; }})(document.querySelector({json.dumps(selector)}))"
        )
        assert done == value, f"{selector} has no option {value!r}"

    def resize(self, width: int, height: int) -> None:
        mobile = width < 640
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        self.ask("Emulation.setTouchEmulationEnabled", enabled=mobile)

    def prefer(self, *, dark: bool) -> None:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])

    def allow(self, permission: str) -> None:
        self._browser.ask("Browser.grantPermissions", permissions=[permission], browserContextId=self._context)

    def go_offline(self, offline: bool) -> None:
        self.ask(
            "Network.emulateNetworkConditions", offline=offline, latency=0, downloadThroughput=-1, uploadThroughput=-1
        )

    def reload(self) -> None:
        self.ask("Page.reload")
        self.wait("document.readyState === 'complete'")

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"]))

    def complaints(self) -> list[str]:
        """What the browser found wrong: exceptions, and what the Content-Security-Policy forbade."""
        self.js("0")  # reads what was reported until now
        found = []
        for event in self._browser.events:
            if event.get("sessionId") != self._session:
                continue
            if event.get("method") == "Runtime.exceptionThrown":
                found.append(str(event["params"]["exceptionDetails"]))
            elif event.get("method") == "Log.entryAdded" and event["params"]["entry"]["source"] != "network":
                found.append(str(event["params"]["entry"]["text"]))
        return found

    def close(self) -> None:
        self._browser.ask("Target.disposeBrowserContext", browserContextId=self._context)
