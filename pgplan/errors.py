"""Every exception that pgplan raises, in one tree.

    PgplanError
    ├── PlanError (ValueError)                 bad input: one line with rule, value and mend; exit code 2
    │   ├── ModelError                         a model or its configuration
    │   ├── HardwareError                      a GPU, a cluster, a link
    │   │   └── CalibrationError               a calibration, or a point that it does not cover
    │   ├── WorkloadError                      lengths, concurrency, dtypes
    │   ├── SplitError                         a split, an override, a pin, a forbidden cut
    │   ├── EngineError                        an engine, its version, what it cannot express
    │   └── DivisibilityError (AssertionError) a size that must divide does not
    ├── InfeasibleError                        well-formed, but nothing fits; exit code 1
    │   └── SplitInfeasibleError               (pgplan.split) every split breaks a stage's limit
    └── GroupError (RuntimeError)              process groups and workers
        ├── GroupTimeoutError (TimeoutError)   a wait ended; names the ranks that were missing
        ├── PeerLostError (ConnectionError)    a peer died or left; names it
        ├── MessageError                       a message that cannot be sent, read or trusted
        ├── BackendError                       a backend that is not there
        └── LaunchError                        a worker failed; names rank, phase and cause
            └── LaunchTimeoutError (GroupTimeoutError)  workers hang; names them

A message states the rule, the value that broke it and the mend, on one line:
``split has 3 stages but pp_size is 4; give 4 layer counts, e.g. 20,20,20,20``.
"""

from __future__ import annotations

from collections.abc import Iterable
from reprlib import repr as shown
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pgplan.launcher.failures import RankFailure


class PgplanError(Exception):
    """Stand above every error that pgplan raises on purpose."""


class PlanError(PgplanError, ValueError):
    """Report bad input: the rule, the value given and the mend, on one line."""


class ModelError(PlanError):
    """Report a model or a configuration that cannot be read, or is not known."""


class HardwareError(PlanError):
    """Report a GPU, a cluster or a link that is unknown or contradicts itself."""


class CalibrationError(HardwareError):
    """Report a calibration that cannot be read or used, or a point that it does not cover."""


class WorkloadError(PlanError):
    """Report lengths, a concurrency or a dtype that no engine would accept."""


class SplitError(PlanError):
    """Report a split that no engine could run, or a search that was asked wrongly."""


class EngineError(PlanError):
    """Report an engine that is unknown, or what an engine cannot express."""


class DivisibilityError(PlanError, AssertionError):
    """Report a size that does not divide; an ``AssertionError`` too, as vLLM raises there."""


class InfeasibleError(PgplanError):
    """Report that no split satisfies the limits: what is short, by how much, and what would help."""


class GroupError(PgplanError, RuntimeError):
    """Report a failure of a process group or of a worker."""


class GroupTimeoutError(GroupError, TimeoutError):
    """Report a wait that ended at its limit, with the ranks that were missing."""


class PeerLostError(GroupError, ConnectionError):
    """Report a peer that died or left, by rank."""


class MessageError(GroupError):
    """Report a message that cannot be sent, read or trusted."""


class BackendError(GroupError):
    """Report a communication backend that is not there."""


class LaunchError(GroupError):
    """Report the worker that failed first: its rank, its phase and the cause.

    Attributes:
        failures: How each rank failed (``pgplan.launcher.RankFailure``), the cause first, echoes after it.
    """

    def __init__(self, message: str, *, failures: Iterable[RankFailure] = ()) -> None:
        super().__init__(message)
        self.failures = tuple(failures)


class LaunchTimeoutError(LaunchError, GroupTimeoutError):
    """Report a run that did not end in time; ``failures`` holds the ranks that hang, with their stacks."""


def check_kind(
    value: object,
    *kinds: type,
    name: str,
    mend: str,
    error: type[PlanError] = PlanError,
) -> None:
    """Refuse an argument that is of none of these types.

    Args:
        value: What was given.
        kinds: What is taken.
        name: What the caller calls it.
        mend: What to give instead.
        error: What is raised.

    >>> check_kind("H200", Iterable, name="gpus", mend="give ['H200']")
    >>> check_kind(5, str, name="engine", mend="give e.g. 'vllm'")
    Traceback (most recent call last):
    ...
    pgplan.errors.PlanError: engine must be str, got 5; give e.g. 'vllm'
    """
    if not isinstance(value, kinds):
        got = shown(value) if isinstance(value, (str, int, float, None.__class__)) else type(value).__name__
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise error(f"{name} must be {wanted}, got {got}; {mend}")
