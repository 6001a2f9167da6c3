"""A real browser, and the servers that it visits: for the browser tests, the widget benchmark, the pictures.

A server has settings of its own, a free port on 127.0.0.1 and a token. When its user is done, however that
came about, it is gone, and so is every kernel that it started.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from fetch_chromium import find_chromium
from playwright.sync_api import Browser, Page, Route, sync_playwright

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
ELSEWHERE = re.compile(r"^(?!(https?|wss?)://127\.0\.0\.1[:/]|data:|blob:|file:|about:)")
# The machine may be busy with other things: whoever waits looks for a condition and gives up late.
PATIENCE_S = 60.0


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start a headless Chromium; its profile goes with it."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


@dataclass(frozen=True, kw_only=True)
class Visit:
    """Hold a page, and everything that went wrong on it."""

    page: Page
    complaints: list[str] = field(default_factory=list)


@contextmanager
def visit(browser: Browser, **options: Any) -> Iterator[Visit]:
    """Open an empty page that may talk to this machine only, and listen to its console.

    Args:
        browser: Who opens it.
        options: Of its context, e.g. ``color_scheme="dark"``.
    """
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 720}, **options})
    context.set_default_timeout(1e3 * PATIENCE_S)
    visited = Visit(page=context.new_page())
    tell = visited.complaints.append

    def refuse(route: Route) -> None:
        tell(f"it asks for {route.request.url}, which is not on this machine")
        route.abort()

    context.route(ELSEWHERE, refuse)
    visited.page.on("pageerror", lambda error: tell(f"uncaught: {error}"))
    visited.page.on(
        "console", lambda line: tell(f"{line.text} ({line.location})") if line.type == "error" else None
    )
    try:
        yield visited
    finally:
        context.close()


@dataclass(frozen=True, kw_only=True)
class Server:
    """Hold where a server is, what opens it, and its process."""

    url: str
    token: str
    pid: int

    def address(self, path: str = "/") -> str:
        """Return the address of one of its pages."""
        return f"{self.url}{path}?token={self.token}"


@contextmanager
def jupyterlab(notebooks: Path, home: Path) -> Iterator[Server]:
    """Start a JupyterLab.

    Args:
        notebooks: The folder that it shows.
        home: An empty folder for its settings and its log.
    """
    token = secrets.token_hex(16)
    no_news = home / "config/lab/user-settings/@jupyterlab/apputils-extension"
    no_news.mkdir(parents=True)
    settings = {"fetchNews": "false", "checkForUpdates": False}
    (no_news / "notification.jupyterlab-settings").write_text(json.dumps(settings))
    words = (
        *("-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser"),
        *("--ServerApp.ip=127.0.0.1", "--ServerApp.port=0", f"--ServerApp.root_dir={notebooks}"),
        "--LabApp.extension_manager=readonly",
    )
    with python(*words, home=home, JUPYTER_TOKEN=token) as process:
        record = home / f"runtime/jpserver-{process.pid}.json"
        wait_until(lambda: record.exists() and record.read_text().endswith("}"), process)
        port = json.loads(record.read_text())["port"]
        yield Server(url=f"http://127.0.0.1:{port}", token=token, pid=process.pid)


@contextmanager
def planner_app(home: Path) -> Iterator[Server]:
    """Start ``pgplan app``, with an empty folder for its settings and its log."""
    with python("-m", "pgplan", "app", "--no-browser", home=home) as process:
        log = home / "log"
        address = re.compile(r"(http://127\.0\.0\.1:\d+)/\?token=(\w+)\n")
        wait_until(lambda: address.search(log.read_text()), process)
        url, token = address.findall(log.read_text())[0]
        yield Server(url=url, token=token, pid=process.pid)


def wait_until(look: Callable[[], Any], process: subprocess.Popen[bytes]) -> None:
    """Look until it is so, as long as the process lives and the patience lasts."""
    give_up_s = time.monotonic() + PATIENCE_S
    while not look():
        if time.monotonic() > give_up_s or process.poll() is not None:
            raise AssertionError(f"{' '.join(map(str, process.args))} does not become ready")
        time.sleep(0.05)


@contextmanager
def python(*words: str, home: Path, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run Python in a process group of its own, with settings and a log in ``home``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "IPYTHON"))}
    own = {f"JUPYTER_{what.upper()}_DIR": str(home / what) for what in ("config", "data", "runtime")}
    own |= {"IPYTHONDIR": str(home / "ipython"), "PYTHONUNBUFFERED": "1"}
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, *words],
            env={**kept, **own, **variables},
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield process
    except BaseException as error:
        error.add_note(f"the server's log ends with:\n{(home / 'log').read_text()[-2000:]}")
        raise
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a server and whatever it started; a kernel has a process group of its own and may outlive it."""
    if process.poll() is not None:
        return
    family = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for relative in psutil.wait_procs(family, timeout=5)[1]:
        relative.kill()
