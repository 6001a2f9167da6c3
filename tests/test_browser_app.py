"""``pgplan app``: who reaches it, how it ends, and what it says when it cannot begin."""

from __future__ import annotations

import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest
from browser import PATIENCE_S, chromium, find_chromium, planner_app, python, visit, wait_until
from fetch_chromium import MISSING
from planner_page import PlannerPage


def test_it_says_that_voila_is_missing(tmp_path: Path) -> None:
    code = "import sys; sys.modules['voila'] = None; from pgplan.cli import main; sys.exit(main(['app']))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "pip install 'pgplan[app]'" in done.stderr


@pytest.mark.slow
def test_only_this_machine_and_only_with_the_token(tmp_path: Path) -> None:
    with planner_app(tmp_path) as app:
        listening = {
            connection.laddr.ip
            for connection in psutil.Process(app.pid).net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }
        assert listening == {"127.0.0.1"}
        without = urllib.request.urlopen(app.url, timeout=PATIENCE_S)
        assert without.url.startswith(f"{app.url}/login")
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"{app.url}/api/kernels/0-0-0-0-0", timeout=PATIENCE_S)
        assert psutil.Process(app.pid).children(recursive=True) == []
        assert app.token not in " ".join(psutil.Process(app.pid).cmdline())


@pytest.mark.slow
@pytest.mark.skipif(find_chromium() is None, reason=MISSING)
def test_ctrl_c_ends_it_with_its_kernels(tmp_path: Path) -> None:
    with planner_app(tmp_path) as app, chromium() as browser, visit(browser) as visited:
        visited.page.goto(app.address())
        PlannerPage(visited.page).picture.wait_for()
        server = psutil.Process(app.pid)
        (kernel,) = server.children(recursive=True)
        assert Path(kernel.cwd()) == tmp_path
        server.send_signal(signal.SIGINT)
        assert psutil.wait_procs([server, kernel], timeout=PATIENCE_S)[1] == []
        printed = (tmp_path / "log").read_text()
        assert "Traceback" not in printed
        assert visited.complaints == []


@pytest.mark.slow
@pytest.mark.skipif(find_chromium() is None, reason=MISSING)
def test_a_page_that_is_left_takes_its_kernel_with_it(tmp_path: Path) -> None:
    with planner_app(tmp_path) as app, chromium() as browser, visit(browser) as visited:
        server = psutil.Process(app.pid)
        visited.page.goto(app.address())
        PlannerPage(visited.page).picture.wait_for()
        (first,) = server.children(recursive=True)
        visited.page.reload()
        PlannerPage(visited.page).picture.wait_for()
        assert psutil.wait_procs([first], timeout=PATIENCE_S)[1] == []
        (second,) = server.children(recursive=True)
        visited.page.close(run_before_unload=True)
        assert psutil.wait_procs([second], timeout=PATIENCE_S)[1] == []
        assert visited.complaints == []


@pytest.mark.slow
def test_it_opens_a_browser_on_the_address_with_the_token(tmp_path: Path) -> None:
    # What stands in $BROWSER is what Python's webbrowser starts.
    told = tmp_path / "told"
    script = tmp_path / "browser"
    script.write_text(f'#!/bin/sh\necho "$1" > {told}.part && mv {told}.part {told}\n')
    script.chmod(0o755)
    (tmp_path / "home").mkdir()
    with python("-m", "pgplan", "app", home=tmp_path / "home", BROWSER=f"{script} %s") as process:
        wait_until(told.exists, process)
        assert f"planner: {told.read_text()}" in (tmp_path / "home" / "log").read_text()
        assert "?token=" in told.read_text()
