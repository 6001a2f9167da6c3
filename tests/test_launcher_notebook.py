"""The launcher in a real notebook kernel."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.manager import KernelManager

import pgplan

ROOTS = [str(Path(pgplan.__file__).parents[1]), str(Path(__file__).parent)]


class Kernel:
    """A kernel and its client; ``run`` gives what a cell printed, and what it raised."""

    def __init__(self) -> None:
        self.manager = KernelManager()
        self.manager.start_kernel()
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)

    def begin(self, cell: str) -> str:
        return str(self.client.execute(cell))

    def finish(self, cell: str, until: str | None = None) -> tuple[str, str | None, list[str]]:
        printed, error, mimes = "", None, []
        give_up_s = time.monotonic() + 60
        while time.monotonic() < give_up_s:
            message: dict[str, Any] = self.client.get_iopub_msg(timeout=60)
            if message["parent_header"].get("msg_id") != cell:
                continue
            content = message["content"]
            match message["msg_type"]:
                case "stream":
                    printed += content["text"]
                case "error":
                    error = content["ename"]
                case "display_data":
                    mimes += content["data"]
                case "status" if content["execution_state"] == "idle":
                    return printed, error, mimes
            if until and until in printed:
                return printed, error, mimes
        raise AssertionError(f"the cell does not end; it has printed {printed!r}")

    def run(self, cell: str) -> tuple[str, str | None, list[str]]:
        return self.finish(self.begin(cell))


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    kernel = Kernel()
    printed, error, _ = kernel.run(
        f"import sys; sys.path[:0] = {ROOTS!r}\nfrom pgplan.launcher import launch, start"
    )
    assert (printed, error) == ("", None)
    yield kernel
    kernel.client.stop_channels()
    kernel.manager.shutdown_kernel(now=True)
    kernel.manager.cleanup_resources()


ECHO = 'launch("launcher_entries:echo", ranks=2, args={"value": [1, 2]}).results'


def test_a_cell_launches_twice_in_a_row_and_nothing_leaks_into_its_output(kernel: Kernel) -> None:
    assert kernel.run(f"print({ECHO}, {ECHO})") == ("([1, 2], [1, 2]) ([1, 2], [1, 2])\n", None, [])


def test_a_cell_shows_a_run_as_widgets(kernel: Kernel) -> None:
    printed, error, mimes = kernel.run(
        'launch("launcher_entries:count", ranks=2, args={"steps": 5}, show="notebook").results'
    )
    assert (printed, error) == ("", None)
    assert "application/vnd.jupyter.widget-view+json" in mimes


@pytest.mark.parametrize("entry", ["sleep", "deaf_sleep"])
def test_an_interrupted_cell_ends_its_ranks_and_the_next_one_works(kernel: Kernel, entry: str) -> None:
    cell = kernel.begin(
        "def show(event):\n"
        "    if event.text == 'sleeping': print('asleep', flush=True)\n"
        f"run = start('launcher_entries:{entry}', ranks=2, args={{'seconds': 60}}, on_event=show)\n"
        "run.wait()"
    )
    _, error, _ = kernel.finish(cell, until="asleep\nasleep\n")
    assert error is None
    began_s = time.monotonic()
    kernel.manager.interrupt_kernel()
    _, error, _ = kernel.finish(cell)
    assert error == "KeyboardInterrupt"
    assert time.monotonic() - began_s < 10
    pids = [int(pid) for pid in kernel.run("print(*run.pids)")[0].split()]
    assert len(pids) == 2 and not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert kernel.run(f"print({ECHO})") == ("([1, 2], [1, 2])\n", None, [])


def test_a_failure_is_one_line_with_its_notes(kernel: Kernel) -> None:
    printed, error, _ = kernel.run(
        "from pgplan.errors import LaunchError\n"
        "import shutil\n"
        "try:\n"
        "    args = dict(how='exception', where='barrier', victim=1)\n"
        "    launch('launcher_entries:fault', ranks=2, args=args)\n"
        "except LaunchError as error:\n"
        "    print(error)\n"
        "    shutil.rmtree(error.__notes__[-1].removeprefix('Logs: '))"
    )
    assert error is None
    assert "rank 1 of 2" in printed and "ValueError: seven is no answer" in printed


def test_a_thread_of_the_kernel_may_launch(kernel: Kernel) -> None:
    printed, error, _ = kernel.run(
        "import threading\n"
        f"thread = threading.Thread(target=lambda: globals().update(got={ECHO}))\n"
        "thread.start(); thread.join(); print(got)"
    )
    assert (printed, error) == ("([1, 2], [1, 2])\n", None)
