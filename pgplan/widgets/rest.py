"""Put off what need not be there at once until the user rests."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable


class Rest:
    """Do something once nobody has asked for it for a while; at once where no kernel's loop runs.

    Args:
        act: What is done, in the kernel's thread.
        after_s: How long nobody must have asked.
    """

    def __init__(self, act: Callable[[], None], *, after_s: float) -> None:
        self._act, self._after_s = act, after_s
        self._loop = running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def soon(self) -> None:
        """Ask for it, from any thread; what was asked for before is put off once more."""
        here = running_loop()
        self._loop = here or self._loop
        if here is not None:
            self._put_off(here)
        elif self._loop is not None and self._loop.is_running():
            self._loop.call_soon_threadsafe(self._put_off, self._loop)
        else:
            self._act()

    def stop(self) -> None:
        """Do it no more."""
        self._act = lambda: None
        if self._timer is not None:
            self._timer.cancel()

    def _put_off(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_later(self._after_s, lambda: self._act())


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the loop that runs in this thread, if one does."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def is_page_asking() -> bool:
    """Tell whether the kernel answers a widget on the page, rather than runs code.

    Code may read right away what it led to, and may run on for minutes without a rest.
    """
    ipython = sys.modules.get("IPython")
    kernel = getattr(ipython.get_ipython(), "kernel", None) if ipython else None
    try:
        message = kernel.get_parent() if kernel is not None else {}
    except (AttributeError, LookupError):
        # A kernel that does not tell, or a thread that no message led to.
        return False
    return bool(message) and message["header"]["msg_type"] == "comm_msg"
