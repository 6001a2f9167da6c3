"""What is told about a run that failed: the rank that failed first, and the others as its echo."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pgplan.errors import LaunchError, LaunchTimeoutError
from pgplan.launcher.processes import RankProcess


@dataclass(frozen=True, slots=True, kw_only=True)
class RankFailure:
    """Tell how one rank failed.

    Args:
        rank: The rank.
        pid: Its process id.
        phase: What it was doing, in its own words.
        cause: One line: the signal, the exit code, or the exception's type and message.
        traceback: The traceback in the worker, as text; empty if it died without one.
        log_tail: The last lines that it wrote.
        stacks: The stacks of all its threads, if it hung.
        is_echo: Whether it failed because another rank had.
    """

    rank: int
    pid: int
    phase: str
    cause: str
    traceback: str = ""
    log_tail: str = ""
    stacks: str = ""
    is_echo: bool = False

    def __str__(self) -> str:
        return f"rank {self.rank} (pid {self.pid}) in phase {self.phase!r}: {self.cause}"


def failure_of(rank: RankProcess) -> RankFailure:
    """State how a rank failed, once it is gone."""
    error = rank.error or {}
    return RankFailure(
        rank=rank.rank,
        pid=rank.pid,
        phase=rank.hangs_in or rank.phase,
        cause=_cause(rank),
        traceback=str(error.get("traceback", "")),
        log_tail=rank.log_tail(),
        stacks=rank.stacks() if rank.hangs_in else "",
        is_echo=rank.blames_peer,
    )


def _cause(rank: RankProcess) -> str:
    if rank.hangs_in is not None:
        return "it hangs, stopped by a signal" if rank.was_stopped else "it hangs"
    if rank.error is not None:
        first_line = str(rank.error.get("message")).strip().partition("\n")[0]
        return f"{rank.error.get('type')}: {first_line}"
    code, after = rank.returncode, "after" if rank.has_result else "before"
    when = f"{after} it had handed over its result"
    if code is None:
        return "it does not end, not even by SIGKILL"
    if code >= 0:
        return f"exited with code {code} {when}"
    if -code in rank.signalled:
        return "closed its connection to the launcher, and went only when it was killed"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = "signal"
    hint = ", perhaps by the kernel for want of memory" if -code == signal.SIGKILL else ""
    return f"killed by {name} (signal {-code}{hint}) {when}"


def first_failure_first(ranks: Sequence[RankProcess]) -> list[RankProcess]:
    """Order the failed ranks: causes before echoes, and each by the time it was seen."""
    failed = [(rank.blames_peer, rank.failed_at, rank) for rank in ranks if rank.failed_at is not None]
    return [rank for *_, rank in sorted(failed, key=lambda entry: entry[:2])]


def launch_error(
    entry: str, failures: Sequence[RankFailure], silent: Mapping[int, str], *, ranks: int, log_dir: Path
) -> LaunchError:
    """Make the error for ranks that failed; the first is the headline, the rest stands in the notes.

    Args:
        entry: What they ran.
        failures: How they failed, the first one first.
        silent: The stacks of ranks that did not fail, where they were asked for because all the others
            blame a peer.
        ranks: How many ranks there are.
        log_dir: Where the logs are.
    """
    first = failures[0]
    error = LaunchError(
        f"rank {first.rank} of {ranks} (pid {first.pid}) failed in phase {first.phase!r} of {entry}: "
        f"{first.cause}",
        failures=failures,
    )
    _add_details(error, failures, log_dir, silent)
    return error


def timeout_error(
    entry: str, failures: Sequence[RankFailure], *, ranks: int, after: str, log_dir: Path
) -> LaunchTimeoutError:
    """Make the error for a run whose time was over, with the stacks of the ranks that hang."""
    who = ", ".join(f"{failure.rank} (pid {failure.pid}, phase {failure.phase!r})" for failure in failures)
    plural = "s" if len(failures) > 1 else ""
    error = LaunchTimeoutError(
        f"{entry} {after}: waited for rank{plural} {who} of {ranks}; their stacks are below, "
        "and a longer timeout= gives them more time",
        failures=failures,
    )
    _add_details(error, failures, log_dir, {})
    return error


def _add_details(
    error: BaseException, failures: Sequence[RankFailure], log_dir: Path, silent: Mapping[int, str]
) -> None:
    first, *others = failures
    for title, text in (
        (f"Traceback in rank {first.rank}:", first.traceback),
        (f"Last lines of rank {first.rank}:", "" if first.traceback else first.log_tail),
        *((f"Stacks of rank {failure.rank} ({failure.cause}):", failure.stacks) for failure in failures),
        *((f"Stacks of rank {rank}, which did not fail:", stacks) for rank, stacks in silent.items()),
        ("After that:", "\n".join(map(str, others)) if not first.stacks else ""),
    ):
        if text:
            error.add_note(f"{title}\n{text.rstrip()}")
    error.add_note(f"Logs: {log_dir}")
