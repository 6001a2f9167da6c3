"""Begin together without an implementation's help, for benchmarks that compare implementations."""

from __future__ import annotations

import socket
import struct

from pgplan.distributed.bootstrap import inherited_sockets


class Gate:
    """Let the ranks begin together, and bring their times to rank 0, by nothing but blocking sockets."""

    _SPAN = struct.Struct("dd")

    def __init__(self) -> None:
        self.rank, self.world_size, sockets = inherited_sockets()
        self._sockets = [sockets[peer] for peer in sorted(sockets)]

    def pass_through(self) -> None:
        """Return when every rank has come."""
        if self.rank:
            self.send()
            self._sockets[0].recv(1)
            return
        for sock in self._sockets:
            sock.recv(1)
        self.send()

    def send(self, data: bytes = b".") -> None:
        """Send to every rank from rank 0, and from the others to that one."""
        for sock in self._sockets if self.rank == 0 else self._sockets[:1]:
            sock.send(data)

    def broadcast(self, data: bytes) -> None:
        """Give what rank 0 has to every rank, as cheaply as Python can."""
        if self.rank:
            self._sockets[0].recv(len(data))
        else:
            self.send(data)

    def gather(self, start_s: float, end_s: float) -> list[tuple[float, float]]:
        """Return every rank's times at rank 0 and nothing elsewhere, when every rank is done."""
        if self.rank:
            self.send(self._SPAN.pack(start_s, end_s))
            self._sockets[0].recv(1)
            return []
        received = [sock.recv(self._SPAN.size, socket.MSG_WAITALL) for sock in self._sockets]
        self.send()
        return [(start_s, end_s), *(self._SPAN.unpack(data) for data in received)]
