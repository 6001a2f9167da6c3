"""One rank as the launcher sees it: its process, its conversation, and what is known of its fate."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pgplan.distributed import bootstrap
from pgplan.launcher import protocol

# Left over from a launcher that started *us* (torchrun, mpirun wrappers); a worker must not believe them.
_FOREIGN = ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK")


@dataclass(slots=True, kw_only=True, eq=False)
class RankProcess:
    """Own one worker process and everything that belongs to it.

    As long as its end is not collected with ``reap``, its id cannot be given to another process: a signal
    never hits a stranger.
    """

    rank: int
    process: subprocess.Popen[bytes]
    exit_fd: int
    channel: protocol.Channel
    lifeline: int
    log: Path
    stacks_file: Path
    stacks_done: int

    phase: str = "start"
    has_result: bool = False
    result: Any = None
    error: protocol.Message | None = None
    failed_at: float | None = None
    signalled: set[int] = field(default_factory=set)
    hangs_in: str | None = None  # the phase it was in when the run's time was over
    was_stopped: bool = False
    owes_stacks: bool = False
    returncode: int | None = None

    @property
    def pid(self) -> int:
        """The process id, also after the process is gone."""
        return self.process.pid

    @property
    def is_ready(self) -> bool:
        """Tell whether the rank has imported its entry."""
        return self.has_result or self.phase not in ("start", "import")

    @property
    def blames_peer(self) -> bool:
        """Tell whether the rank failed because, as it says, another one did."""
        return bool(self.error and self.error.get("blames_peer"))

    def send_signal(self, number: int) -> None:
        """Send a signal, if the process is still there."""
        if self.returncode is None:
            os.kill(self.pid, number)
            self.signalled.add(number)

    def ask_for_stacks(self) -> None:
        """Have the process write its threads' stacks; a stopped one is let run for that."""
        self.was_stopped = _kernel_state(self.pid) in ("T", "t")
        if self.phase != "start":  # before that, nobody listens to the signal and it would kill
            self.owes_stacks = True
            os.kill(self.pid, protocol.STACKS_SIGNAL)
            os.kill(self.pid, signal.SIGCONT)

    def note_stacks(self) -> bool:
        """Take the process's word that its stacks are written; return whether it may say so again."""
        said = os.read(self.stacks_done, 64)
        if protocol.STACKS_SIGNAL in said:
            self.owes_stacks = False
        return bool(said)

    def ends_within(self, seconds: float) -> bool:
        """Wait for the process's end; return whether it has come."""
        poll = select.poll()
        poll.register(self.exit_fd)
        return bool(poll.poll(1e3 * seconds))

    def reap(self) -> None:
        """Wait for the process's end, end what it left in its group, and collect its exit status.

        In this order, because from then on its id may become that of another process and group.
        """
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self.returncode = self.process.wait()

    def close(self) -> None:
        """Give back the descriptors."""
        self.channel.close()
        for descriptor in (self.lifeline, self.stacks_done, self.exit_fd):
            os.close(descriptor)

    def log_tail(self, *, lines: int = 20) -> str:
        """Read the last lines that the rank wrote to stdout and stderr."""
        return _tail(self.log, lines=lines)

    def stacks(self) -> str:
        """Read the stacks that a hanging rank wrote."""
        return _tail(self.stacks_file, lines=200)


def start_rank(
    rank: int,
    sockets: dict[int, socket.socket],
    *,
    directory: Path,
    extra_env: Mapping[str, str],
    job: protocol.Message,
) -> RankProcess:
    """Start one rank as a fresh Python process in its own session, and queue its job.

    Args:
        rank: The rank.
        sockets: Its end of the socket pair to each peer, by peer; they stay the caller's to close.
        directory: Where its log and its stacks go.
        extra_env: The user's additions to the environment; they win over everything.
        job: The first message of the conversation.

    Raises:
        OSError: If no process, descriptor or file is to be had.
    """
    with contextlib.ExitStack() as undo:
        ours, theirs = socket.socketpair()
        undo.callback(theirs.close)
        failed = undo.enter_context(contextlib.ExitStack())  # left empty when all goes well
        channel = protocol.Channel(ours)
        failed.callback(channel.close)
        lifeline_end, lifeline = os.pipe()
        undo.callback(os.close, lifeline_end)
        failed.callback(os.close, lifeline)
        stacks_done, stacks_done_end = os.pipe()
        undo.callback(os.close, stacks_done_end)
        failed.callback(os.close, stacks_done)
        os.set_blocking(stacks_done_end, False)  # a signal handler writes there

        log, stacks_file = directory / f"rank{rank}.log", directory / f"rank{rank}.stacks"
        environment = _environment(rank, len(sockets) + 1) | {
            bootstrap.SOCKETS_VARIABLE: bootstrap.sockets_variable(sockets),
            protocol.CONTROL: str(theirs.fileno()),
            protocol.LIFELINE: str(lifeline_end),
            protocol.STACKS: str(stacks_file),
            protocol.STACKS_DONE: str(stacks_done_end),
            **extra_env,
        }
        inherited = [
            theirs.fileno(),
            lifeline_end,
            stacks_done_end,
            *(end.fileno() for end in sockets.values()),
        ]
        channel.send(job)
        process, exit_fd = _spawn(environment, inherited, log)
        failed.pop_all()
        return RankProcess(
            rank=rank,
            process=process,
            exit_fd=exit_fd,
            channel=channel,
            lifeline=lifeline,
            log=log,
            stacks_file=stacks_file,
            stacks_done=stacks_done,
        )


def _spawn(
    environment: Mapping[str, str], inherited: Sequence[int], log: Path
) -> tuple[subprocess.Popen[bytes], int]:
    """Start a worker; return its process and the descriptor that tells its end."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            # -P: the search path is the launcher's own (PYTHONPATH, below), not the working directory.
            [sys.executable, "-P", "-u", "-m", "pgplan.launcher.worker"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            pass_fds=inherited,
            start_new_session=True,
        )
    try:
        return process, _exit_fd(process.pid)
    except OSError:
        process.kill()
        process.wait()
        raise


def _exit_fd(pid: int) -> int:
    """Return a descriptor that becomes readable when a child ends."""
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        if error.errno != errno.ENOSYS:  # some sandboxes do without
            raise
    reader, writer = os.pipe()

    def wait() -> None:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        os.close(writer)

    threading.Thread(target=wait, name="pgplan-exit", daemon=True).start()
    return reader


def _environment(rank: int, world_size: int) -> dict[str, str]:
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in _FOREIGN and not name.startswith("TORCHELASTIC_")
    }
    return inherited | {
        bootstrap.RANK_VARIABLE: str(rank),
        bootstrap.WORLD_SIZE_VARIABLE: str(world_size),
        "LOCAL_RANK": str(rank),
        "PYTHONPATH": os.pathsep.join(_search_path(sys.path)),
        # All ranks are on this host: gloo and NCCL open their ports on the loopback interface only.
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
    }


def _search_path(entries: Sequence[str]) -> Iterator[str]:
    for entry in entries:
        yield str(Path.cwd()) if entry == "" else entry


def _kernel_state(pid: int) -> str:
    """Read the process's state letter (see proc(5)); ``""`` if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def _tail(path: Path, *, lines: int, limit_bytes: int = 1 << 16) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - limit_bytes))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])
