"""Hold the small functions that need neither torch nor a group."""

from __future__ import annotations

import os
import sys
import time

from pgplan.errors import DivisibilityError

# Before 3.11.1 os.sched_yield() kept the GIL (vLLM, vllm/distributed/utils.py).
USE_SCHED_YIELD = hasattr(os, "sched_yield") and sys.version_info >= (3, 11, 1)


def sched_yield() -> None:
    """Let another thread or process run, for loops that poll memory.

    >>> sched_yield()
    """
    if USE_SCHED_YIELD:
        os.sched_yield()
    else:
        time.sleep(0)


def ensure_divisibility(numerator: int, denominator: int) -> None:
    """Raise DivisibilityError unless ``denominator`` divides ``numerator``.

    >>> ensure_divisibility(12, 4)
    """
    if denominator < 1 or numerator % denominator:
        raise DivisibilityError(
            f"{numerator} is not divisible by {denominator}; give sizes that divide without a remainder"
        )


def divide(numerator: int, denominator: int) -> int:
    """Return the quotient of two numbers that divide, or raise DivisibilityError.

    >>> divide(12, 4)
    3
    """
    ensure_divisibility(numerator, denominator)
    return numerator // denominator
