"""What an entry is given: its place in the run, and the means to talk."""

from __future__ import annotations

import socket
import threading
import time
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pgplan.launcher import protocol

if TYPE_CHECKING:
    from pgplan.distributed import StatelessProcessGroup

_PROGRESS_EVERY_S = 0.05  # nobody sees more than twenty steps a second


class Worker:
    """Give an entry its place in the run: the first argument of every entry.

    Attributes:
        rank: This process's rank, from 0.
        world_size: How many ranks the run has.
        backend: ``"nccl"``, ``"gloo"`` or ``None``.
        device: This rank's device as torch writes it: ``"cuda:0"``, ``"cpu"``.
    """

    def __init__(
        self, *, rank: int, world_size: int, backend: str | None, device: str, control: socket.socket
    ):
        self.rank, self.world_size = rank, world_size
        self.backend, self.device = backend, device
        self._control = control
        self._lock = threading.Lock()
        self._phase = "start"
        self._told_at = 0.0

    @cached_property
    def group(self) -> StatelessProcessGroup:
        """The metadata plane between all ranks, over the sockets that the launcher made."""
        from pgplan.distributed import StatelessProcessGroup

        return StatelessProcessGroup.from_environment()

    def phase(self, name: str) -> None:
        """Tell the launcher what comes now; an error names the phase it happened in."""
        self._phase = name
        self.say({"say": "phase", "phase": name})

    def progress(self, step: int, total: int | None = None, **data: Any) -> None:
        """Tell the launcher how far the phase has come; steps in quick succession are told in part.

        Args:
            step: Steps done in this phase.
            total: Steps in all, where known.
            **data: JSON values to show or keep beside it, e.g. ``weight_bytes=...``.
        """
        now = time.monotonic()
        if now - self._told_at < _PROGRESS_EVERY_S and step != total:
            return
        self._told_at = now
        self.say({"say": "progress", "phase": self._phase, "step": step, "total": total, "data": data})

    def say(self, message: protocol.Message) -> None:
        """Send a message of the protocol to the launcher; raises MessageError if it is not plain data."""
        frame = protocol.encode(message)
        with self._lock:
            self._control.sendall(frame)
