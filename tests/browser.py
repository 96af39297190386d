"""A client of chromedriver, by the protocol of W3C WebDriver."""

import base64
import json
import re
import shutil
import subprocess
import tempfile
import urllib.request
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


class Browser:
    """A headless Chromium of its own."""

    def __init__(self, width=1280, height=900, dark=False):
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._process = subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, text=True)
        try:
            self._begin(width, height, dark)
        except BaseException:
            self._end()
            raise

    def _begin(self, width, height, dark):
        said = (re.search(r"successfully on port (\d+)", line) for line in self._process.stdout)
        self._session = f"http://127.0.0.1:{next(filter(None, said))[1]}/session"
        options = {"binary": CHROMIUM, "args": [*_FLAGS, f"--user-data-dir={self._folder.name}"]}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"performance": "ALL", "browser": "ALL"}}
        self._session += "/" + self._call("", capabilities={"alwaysMatch": wanted})["sessionId"]
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._command("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._command("Emulation.setEmulatedMedia", features=[scheme])

    def _end(self):
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        self._folder.cleanup()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        request = urllib.request.Request(self._session, method="DELETE")
        with urllib.request.urlopen(request, timeout=60):
            pass
        self._end()

    def _call(self, path, **body):
        request = urllib.request.Request(self._session + path, json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)["value"]

    def _command(self, name, **params):
        return self._call("/goog/cdp/execute", cmd=name, params=params)

    def open(self, url):
        self._call("/url", url=url)

    def run(self, script):
        """What a function's body returns in the page."""
        return self._call("/execute/sync", script=script, args=[])

    def element(self, selector):
        (name,) = self._call("/element", using="css selector", value=selector).values()
        return f"/element/{name}"

    def type(self, selector, text):
        """Presses keys."""
        self._call(self.element(selector) + "/value", text=text)

    def click(self, selector):
        self._call(self.element(selector) + "/click")

    def log(self, kind):
        """What was logged since the last look."""
        return self._call("/se/log", type=kind)

    def requested(self):
        """Addresses that pages have asked for since the last look at them, the browser's own first page left out."""
        events = [json.loads(entry["message"])["message"] for entry in self.log("performance")]
        sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
        return [told["request"]["url"] for told in sent if not told["documentURL"].startswith("chrome")]

    def picture(self, path):
        """Writes the whole page as PNG."""
        told = self._command("Page.captureScreenshot", captureBeyondViewport=True)
        Path(path).write_bytes(base64.b64decode(told["data"]))
