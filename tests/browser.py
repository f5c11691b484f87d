"""A real browser for the tests: headless Chromium, through two pipes, with the standard library alone.

    with Browser() as browser:
        browser.open(path)
        browser.click(10, 20)
        browser.run("document.title")

The DevTools protocol: a message is JSON that ends with a zero byte. Chromium reads them from its file 3 and
writes them to its file 4.
"""
import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

NAMES = "chromium", "chromium-browser", "google-chrome"
MISSING = "no Chromium for the page's tests; install it: apt-get update && apt-get install -y chromium"
KEYS = {"ArrowRight": 39, "ArrowLeft": 37, "ArrowUp": 38, "ArrowDown": 40, "Tab": 9}


class Browser:
    """A window of width x height. errors: what the pages complained of. fetched: the addresses that they
    asked for."""

    def __init__(self, width: int = 1280, height: int = 800):
        program = next(filter(None, map(shutil.which, NAMES)), None)
        if program is None:
            raise FileNotFoundError(MISSING)
        self.size, self.errors, self.fetched = (width, height), [], []
        self.count, self.session, self.rest = 0, None, b""
        self.folder = tempfile.mkdtemp()
        read, self.write = os.pipe()
        self.read, write = os.pipe()
        flags = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                 "--hide-scrollbars", "--no-first-run", "--remote-debugging-pipe",
                 f"--user-data-dir={self.folder}", "about:blank")
        connected = ["bash", "-c", f'exec "$0" "$@" 3<&{read} 4>&{write}', program, *flags]
        self.process = subprocess.Popen(connected, pass_fds=(read, write), stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL)
        os.close(read)
        os.close(write)

    def __enter__(self) -> "Browser":
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")
        self.resize(*self.size)
        return self

    def __exit__(self, *_) -> None:
        self.process.terminate()
        self.process.wait(20)
        os.close(self.read)
        os.close(self.write)
        shutil.rmtree(self.folder, ignore_errors=True)

    def receive(self, seconds: float) -> dict:
        """The next message; TimeoutError if there is none in time."""
        end = time.time() + seconds
        while b"\0" not in self.rest:
            if not select.select([self.read], [], [], max(0, end - time.time()))[0]:
                raise TimeoutError("the browser does not answer")
            more = os.read(self.read, 2 ** 20)
            if not more:
                raise ConnectionError("the browser has ended")
            self.rest += more
        line, self.rest = self.rest.split(b"\0", 1)
        return json.loads(line)

    def note(self, event: dict) -> None:
        """Keep what is an error, or an address that was asked for."""
        method, given = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            detail = given["exceptionDetails"]
            self.errors.append(detail.get("exception", {}).get("description", detail["text"]))
        if method == "Log.entryAdded" and given["entry"]["level"] in ("error", "warning"):
            self.errors.append(given["entry"]["text"])
        if method == "Runtime.consoleAPICalled" and given["type"] in ("error", "warning", "assert"):
            self.errors.append(str(given["args"]))
        if method == "Network.requestWillBeSent" and not given["request"]["url"].startswith("data:"):
            self.fetched.append(given["request"]["url"])

    def ask(self, method: str, **parameters) -> dict:
        """A command of the protocol -> its result. RuntimeError if the browser refuses it."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive(60)
            if answer.get("id") == self.count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.note(answer)

    def open(self, path: Path) -> None:
        """Open a file, and wait until it is loaded and its pictures are drawn."""
        self.ask("Page.navigate", url=path.resolve().as_uri())
        self.run("new Promise(done => document.readyState === 'complete' ? done()"
                 " : addEventListener('load', () => done()))")
        self.settle()

    def settle(self) -> None:
        """Wait until what was asked for is drawn."""
        self.run("new Promise(done => requestAnimationFrame(() => setTimeout(done, 50)))")

    def run(self, expression: str):
        """The value of an expression in the page; a promise is waited for."""
        result = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"].get("exception", {}).get("description", "error"))
        return result["result"].get("value")

    def click(self, x: float, y: float) -> None:
        """A click at (x, y) of the window."""
        for kind in ("mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        self.settle()

    def press(self, key: str) -> None:
        """A key: an arrow, Tab, or a character."""
        code = KEYS.get(key, ord(key[0].upper()))
        for kind in ("keyDown", "keyUp"):
            text = {"text": key} if len(key) == 1 and kind == "keyDown" else {}
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **text)
        self.settle()

    def resize(self, width: int, height: int) -> None:
        """Another size of the window."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                 mobile=False)

    def picture(self, path: Path, whole: bool = False) -> None:
        """The window as a png, or the whole page."""
        content = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(content))
