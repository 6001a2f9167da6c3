"""The fault matrix: each fault once, with 2 and 4 ranks; ``benchmarks/faults.py`` repeats and times them."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from distributed_helpers import descriptors

import pgplan
from pgplan.errors import (
    BackendError,
    GroupError,
    GroupTimeoutError,
    LaunchError,
    LaunchTimeoutError,
    MessageError,
)
from pgplan.launcher import Event, Run, launch, lifecycle, start, supervisor
from pgplan.launcher.lifecycle import State
from pgplan.launcher.processes import RankProcess

RANKS = pytest.mark.parametrize("ranks", [2, 4])


def is_there(pid: int) -> bool:
    """Whether a process exists, be it as a zombie."""
    return Path(f"/proc/{pid}").exists()


def runs(pid: int) -> bool:
    """Whether a process exists that is no zombie: orphans are reaped by init, in its own time."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def soon(condition: Callable[[], bool], within_s: float = 10.0) -> bool:
    give_up_s = time.monotonic() + within_s
    while not condition() and time.monotonic() < give_up_s:
        time.sleep(0.02)
    return condition()


@pytest.fixture(autouse=True)
def nothing_is_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """After every test: as many descriptors and threads as before, and no child, dead or alive."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # for the logs of failed runs
    before = descriptors()
    yield
    assert soon(lambda: not [t for t in threading.enumerate() if t.name.startswith("pgplan")])
    assert soon(lambda: descriptors() <= before)
    with pytest.raises(ChildProcessError):
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)


def fail(entry: str, run_dir: Path, *, ranks: int, **args: object) -> LaunchError:
    run = start(f"launcher_entries:{entry}", ranks=ranks, args=args, log_dir=run_dir, timeout=100)
    with pytest.raises(LaunchError) as caught:
        run.wait()
    assert len(run.pids) == ranks
    assert not any(map(is_there, run.pids))
    assert not isinstance(caught.value, TimeoutError)
    headline = caught.value.failures[0]
    assert headline.pid == run.pids[headline.rank]
    assert f"rank {headline.rank} of {ranks} (pid {headline.pid})" in str(caught.value)
    assert "\n" not in str(caught.value)
    return caught.value


@RANKS
@pytest.mark.parametrize("where", ["create", "barrier", "recv"])
@pytest.mark.parametrize(
    ("how", "cause"),
    [
        ("SIGKILL", "killed by SIGKILL (signal 9, perhaps by the kernel for want of memory)"),
        ("SIGSEGV", "killed by SIGSEGV (signal 11)"),
        ("exit", "exited with code 3 before it had handed over its result"),
    ],
)
def test_the_rank_that_dies_is_the_headline(
    how: str, cause: str, where: str, ranks: int, tmp_path: Path
) -> None:
    error = fail("fault", tmp_path, ranks=ranks, how=how, where=where, victim=1)
    first = error.failures[0]
    assert (first.rank, first.phase) == (1, "run" if where == "create" else "fault")
    assert first.cause.startswith(cause)
    assert not first.is_echo and all(failure.is_echo for failure in error.failures[1:])
    if where != "create":
        assert "these are the last words" in first.log_tail
        assert any("these are the last words" in note for note in error.__notes__)
    if how == "SIGSEGV":
        assert "come_to_grief" in first.log_tail  # faulthandler's last service


@RANKS
@pytest.mark.parametrize("how", ["sys.exit", "return", "SIGTERM"])
def test_other_ways_to_go_are_told_apart(how: str, ranks: int, tmp_path: Path) -> None:
    cause = fail("fault", tmp_path, ranks=ranks, how=how, where="barrier", victim=0).failures[0].cause
    assert cause.startswith(
        {"sys.exit": "exited with code 4", "return": "exited with code 0", "SIGTERM": "killed by SIGTERM"}[
            how
        ]
    )


@RANKS
@pytest.mark.parametrize("where", ["barrier", "sleep"])
def test_an_exception_comes_with_its_type_message_and_traceback(
    where: str, ranks: int, tmp_path: Path
) -> None:
    error = fail("fault", tmp_path, ranks=ranks, how="exception", where=where, victim=ranks - 1)
    first = error.failures[0]
    assert (first.rank, first.cause) == (ranks - 1, "ValueError: seven is no answer")
    assert "come_to_grief" in first.traceback and "and this is the second line" in first.traceback
    assert first.traceback.rstrip() in "\n".join(error.__notes__)
    assert all("PeerLostError" in echo.cause for echo in error.failures[1:])


@pytest.mark.parametrize(
    ("how", "cause"),
    [
        ("unpicklable", "launcher_entries.Unpicklable: cannot be pickled"),
        ("unprintable", "launcher_entries.Unprintable: (its message cannot be printed: RuntimeError)"),
    ],
)
def test_strange_exceptions_are_told_as_text(how: str, cause: str, tmp_path: Path) -> None:
    assert fail("fault", tmp_path, ranks=2, how=how, where="barrier", victim=1).failures[0].cause == cause


@RANKS
@pytest.mark.parametrize("how", ["loop", "stopped", "holds the GIL"])
def test_a_rank_that_hangs_is_named_with_its_stacks(
    how: str, ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "STACKS_S", 60.0)  # the ranks say themselves when they have written
    began_s = time.monotonic()
    run = start(
        "launcher_entries:hang", ranks=ranks, args={"how": how, "victim": 1}, timeout=1.5, log_dir=tmp_path
    )
    with pytest.raises(
        TimeoutError, match=r"hang did not end within 1.5 s: waited for rank 1 \(pid"
    ) as caught:
        run.wait()
    assert 1.5 <= time.monotonic() - began_s < 10
    assert isinstance(caught.value, LaunchTimeoutError) and isinstance(caught.value, GroupTimeoutError)
    (failure,) = caught.value.failures
    assert (failure.rank, failure.pid, failure.phase) == (1, run.pids[1], "hanging")
    assert failure.cause == ("it hangs, stopped by a signal" if how == "stopped" else "it hangs")
    assert "launcher_entries.py" in failure.stacks
    assert "loop_for_ever" in failure.stacks or how != "loop"
    assert not any(map(is_there, run.pids))


@RANKS
def test_when_all_blame_a_peer_that_hangs_its_stacks_are_told(ranks: int, tmp_path: Path) -> None:
    error = fail("wait_in_vain", tmp_path, ranks=ranks)
    assert "GroupTimeoutError" in error.failures[0].cause and f"rank {ranks - 1}" in error.failures[0].cause
    assert len(error.failures) == ranks - 1
    (stacks,) = [note for note in error.__notes__ if note.startswith(f"Stacks of rank {ranks - 1}")]
    assert "loop_for_ever" in stacks


@RANKS
def test_the_deaf_are_killed_after_the_grace(ranks: int, tmp_path: Path) -> None:
    began_s = time.monotonic()
    error = fail("deaf", tmp_path, ranks=ranks, victim=0)
    assert error.failures[0].cause == "ValueError: the others are deaf"
    assert 2.0 < time.monotonic() - began_s < 12


def test_a_result_that_no_exit_follows_is_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgplan.launcher.lifecycle.FINISH_S", 0.5)
    with pytest.raises(
        LaunchTimeoutError, match=r"returned on every rank, but does not exit .* phase 'exit'"
    ):
        launch("launcher_entries:never_exit", ranks=2)


@RANKS
@pytest.mark.parametrize("entry", ["sleep", "hold_the_gil"])
@pytest.mark.parametrize("from_thread", [False, True])
def test_no_worker_outlives_its_launcher(entry: str, from_thread: bool, ranks: int) -> None:
    args = {"seconds": 120} if entry == "sleep" else {}
    script = f"""
import sys, threading, time
sys.path[:0] = {[str(Path(pgplan.__file__).parents[1]), str(Path(__file__).parent)]!r}
from pgplan.launcher import start
def go():
    global run
    run = start("launcher_entries:{entry}", ranks={ranks}, args={args})
if {from_thread}:
    thread = threading.Thread(target=go)
    thread.start()
    thread.join()
else:
    go()
while [e.text for e in run.events if e.kind == "phase"].count("sleeping") < {ranks}:
    time.sleep(0.01)
print(*run.pids, flush=True)
run.wait()
"""
    launcher = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert launcher.stdout is not None
    with launcher.stdout:
        pids = [int(word) for word in launcher.stdout.readline().split()]
    assert len(pids) == ranks and all(map(runs, pids))
    launcher.kill()
    launcher.wait()
    assert soon(lambda: not any(map(runs, pids)))


@pytest.mark.parametrize("then", ["return", "die", "cancel"])
def test_what_a_rank_has_started_ends_with_it(then: str, tmp_path: Path) -> None:
    run = start(
        "launcher_entries:leave_a_child",
        ranks=2,
        args={"then": "sleep" if then == "cancel" else then},
        log_dir=tmp_path,
    )
    if then == "cancel":
        assert soon(lambda: len([e for e in run.events if e.kind == "progress"]) == 2)
        run.cancel()
    if then == "return":
        children = list(run.wait().results)
    else:
        with pytest.raises(LaunchError):
            run.wait()
        children = [int(log.read_text()) for log in tmp_path.glob("rank*.log") if log.read_text()]
    assert children and soon(lambda: not any(map(runs, children)))


def test_a_kernel_without_pidfd_will_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(pid: int) -> int:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", missing)
    assert launch("launcher_entries:echo", ranks=2, args={"value": 1}).results == (1, 1)
    assert fail("fault", tmp_path, ranks=2, how="exit", where="barrier", victim=1).failures[0].rank == 1


def test_fifty_launches_at_once() -> None:
    started = [start("launcher_entries:tell", ranks=2) for _ in range(50)]
    results = [run.wait().results for run in started]
    assert all([seen["ranks"] for seen in result] == [[0, 1], [0, 1]] for result in results)
    pids = [seen["pid"] for result in results for seen in result]
    assert len(set(pids)) == 100 and not any(map(is_there, pids))


def test_one_after_the_other_leaves_no_descriptor() -> None:
    launch("launcher_entries:echo", ranks=2, args={"value": 0})
    before = descriptors()
    for number in range(10):
        assert launch("launcher_entries:echo", ranks=2, args={"value": number}).results == (number, number)
        assert descriptors() == before


def test_a_missing_backend_is_told_before_any_process_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    with pytest.raises(BackendError, match="no NVIDIA GPU is visible"):
        launch("launcher_entries:tell", ranks=2, backend="nccl")


def test_arguments_that_are_no_data_start_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    with pytest.raises(MessageError, match="travel as JSON"):
        launch("launcher_entries:echo", ranks=2, args={"value": {1, 2}})


@contextlib.contextmanager
def free_descriptors(count: int) -> Iterator[None]:
    """Leave this process ``count`` descriptors, whatever holes there are among those that it has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    numbers = [int(path.name) for path in Path("/proc/self/fd").iterdir()]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(numbers) + count + 2, hard))
    taken: list[int] = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        for _ in range(count):
            os.close(taken.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for number in taken:
            os.close(number)


@pytest.mark.parametrize("count", range(30))
def test_a_launch_without_descriptors_fails_clearly_and_leaves_nothing(count: int, tmp_path: Path) -> None:
    # Each number is used up at another step of the start; 4 ranks need 31. What only the garbage
    # collector would give back is left behind.
    before = descriptors()
    gc.disable()
    try:
        with free_descriptors(count), pytest.raises(GroupError, match="raise the limit") as caught:
            launch("launcher_entries:sleep", ranks=4, args={"seconds": 60}, log_dir=tmp_path)
        assert soon(lambda: descriptors() <= before)
    finally:
        gc.enable()
    assert "Too many open files" in str(caught.value)


def test_a_listener_that_raises_ends_the_run() -> None:
    def listen(event: Event) -> None:
        if event.kind == "phase" and event.text == "sleeping":
            raise ZeroDivisionError("in the listener")

    run: Run = start("launcher_entries:sleep", ranks=2, args={"seconds": 60}, on_event=listen)
    with pytest.raises(ZeroDivisionError, match="in the listener"):
        run.wait()
    assert not any(map(is_there, run.pids))


@pytest.fixture
def deaf(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[RankProcess]]:
    """Let rank 1 be where a process hears no signal, which none can be brought to at will; end it after."""
    found: list[RankProcess] = []
    send = RankProcess.send_signal

    def send_signal(rank: RankProcess, number: int) -> None:
        if rank.rank == 1:
            found.append(rank)
        else:
            send(rank, number)

    monkeypatch.setattr(RankProcess, "send_signal", send_signal)
    for module in (lifecycle, supervisor):
        monkeypatch.setattr(module, "STUCK_S", 0.3)
    yield found
    with contextlib.suppress(ProcessLookupError):
        os.kill(found[0].pid, signal.SIGKILL)
    found[0].reap()


def test_a_rank_that_survives_sigkill_does_not_hold_up_a_run_that_is_cut_short(
    deaf: list[RankProcess],
) -> None:
    def listen(event: Event) -> None:
        if (event.kind, event.rank, event.text) == ("phase", 1, "sleeping"):
            raise ZeroDivisionError("in the listener")

    run = start("launcher_entries:hold_the_gil", ranks=2, on_event=listen)
    with pytest.raises(ZeroDivisionError) as caught:
        run.wait()
    assert run.state is State.ENDED and not is_there(run.pids[0])
    assert caught.value.__notes__ == [
        f"not even SIGKILL ends rank 1 (pid {run.pids[1]}): stuck in the kernel, look at its driver"
    ]


def test_a_rank_that_survives_sigkill_is_named_when_a_run_is_cancelled(deaf: list[RankProcess]) -> None:
    run = start("launcher_entries:hold_the_gil", ranks=2)
    assert soon(lambda: any((e.rank, e.text) == (1, "sleeping") for e in run.events))
    run.cancel()
    with pytest.raises(
        LaunchError, match=rf"was cancelled; not even SIGKILL ends rank 1 \(pid {run.pids[1]}\)"
    ):
        run.wait()
    assert not is_there(run.pids[0])


def test_a_keyboard_interrupt_ends_the_run_and_comes_through() -> None:
    began: list[Run] = []
    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        assert soon(lambda: bool(began) and sum(e.text == "sleeping" for e in began[0].events) == 2)
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    began.append(start("launcher_entries:sleep", ranks=2, args={"seconds": 60}))
    with pytest.raises(KeyboardInterrupt):
        began[0].wait()
    thread.join()
    assert not any(map(is_there, began[0].pids))
