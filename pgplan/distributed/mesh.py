"""Wait on the links of one rank.

Every wait is on one ``epoll`` over all links; one for a single peer listens to that peer alone for a moment
before (``Incoming.hear``), and nothing else in the metadata plane ever blocks. A wait ends when what it
waits for is there, at its limit, or as soon as any peer is lost: a group that has lost a member cannot finish
what it is about, and the ranks that do not talk to the dead one should learn its name too, not that of the
next one to fail.
"""

from __future__ import annotations

import atexit
import os
import select
import sys
import time
from collections.abc import Callable, Iterable, Mapping

from pgplan.distributed.basics import sched_yield
from pgplan.distributed.link import Link
from pgplan.distributed.wire import Kind, Parcel
from pgplan.errors import PeerLostError

# How long a wait stays awake. To wake a process that sleeps costs its waker and itself 10 to 50 us, and peers
# that go in step answer sooner. With more ranks than cores it pays as well: a rank that yields its core lets
# the others get on, and who sends to it need not wake it.
AWAKE_S = 100e-6
# The longest sleep in one go: what waits for longer, for ever perhaps, sleeps again.
LONGEST_S = 3600.0
# How long the exit of an interpreter may wait for messages that its peers have no room for.
EXIT_LINGER_S = 30.0
_open: set[Mesh] = set()


class Mesh:
    """Hold the links of one rank to its peers and wait on them.

    Attributes:
        others: The ranks of all peers the group began with, in order.
        whole: Whether every peer is still there, as far as known: none has left, none is lost.

    Args:
        links: The link to each peer, by rank.
        rank: This rank.
        on_parcel: Told the sender's rank and every frame that concerns the whole group.
    """

    def __init__(
        self, links: Mapping[int, Link], *, rank: int, on_parcel: Callable[[int, Parcel], None]
    ) -> None:
        self.links = dict(links)
        self.rank = rank
        self.whole = True
        self._process = os.getpid()
        self._epoll = select.epoll()
        self._most_events = max(1, len(self.links))
        self._by_descriptor = {link.socket.fileno(): link for link in self.links.values()}
        for descriptor, link in self._by_descriptor.items():
            self._epoll.register(descriptor, select.EPOLLIN)
            link.on_business = on_parcel
        self.others = sorted(links)
        self._present = sorted([rank, *links])
        _open.add(self)

    def present(self) -> list[int]:
        """Return the ranks that have not left, in order, this one among them."""
        return self._present

    @property
    def is_here(self) -> bool:
        """Tell whether this process made it, and not one that it was forked from."""
        return self._process == os.getpid()

    def raise_if_lost(self, doing: str) -> None:
        """Raise PeerLostError if any peer is lost, naming all that are."""
        lost = [] if self.whole else [link for link in self.links.values() if link.lost]
        if lost:
            reasons = "; ".join(f"rank {link.rank} is gone: {link.lost}" for link in lost)
            raise PeerLostError(f"{reasons}; rank {self.rank} was {doing}; look at the lost rank's log")

    def pump(self, timeout_s: float) -> None:
        """Take in what arrives, waiting at most ``timeout_s`` for the first of it."""
        events = self._epoll.poll(0.0, self._most_events)
        if not events and timeout_s > 0.0:
            events = self._await_events(timeout_s)
        for descriptor, _ in events:
            link = self._by_descriptor[descriptor]
            if not link.receive():
                self.part(link)

    def _await_events(self, timeout_s: float) -> list[tuple[int, int]]:
        """Wait for events: awake for a moment, giving the core to whoever wants it, then asleep."""
        asleep_s = time.monotonic() + min(AWAKE_S, timeout_s)
        while time.monotonic() < asleep_s:
            sched_yield()
            if events := self._epoll.poll(0.0, self._most_events):
                return events
        return self._epoll.poll(min(max(0.0, timeout_s - AWAKE_S), LONGEST_S), self._most_events)

    def part(self, link: Link) -> None:
        """Do without a peer that has left or is lost, as its link's ``receive`` tells."""
        self.whole = False
        self._epoll.unregister(link.socket)
        if link.left:
            self._present = [r for r in self._present if r != link.rank]

    def wait(self, done: Callable[[], bool], *, doing: Callable[[], str], deadline_s: float) -> bool:
        """Pump until ``done()`` or the deadline (on the monotonic clock); return whether it is done.

        ``doing()`` says, in an error, what this rank was about.

        Raises:
            PeerLostError: A peer is lost and ``done()`` does not hold.
        """
        while not done():
            if not self.whole and any(link.lost for link in self.links.values()):
                self.pump(0.0)  # what the others sent before may be what is waited for
                if done():
                    return True
                self.raise_if_lost(doing())
            remaining_s = deadline_s - time.monotonic()
            if remaining_s <= 0:
                return False
            self.pump(remaining_s)
        return True

    def leave(self, reason: str = "", *, linger_s: float = EXIT_LINGER_S) -> list[int]:
        """Say goodbye, wait until the peers' kernels hold what was sent, and close the links.

        Args:
            reason: Why this rank cannot go on; empty for an orderly goodbye.
            linger_s: How long to wait for peers that have no room.

        Returns:
            The ranks that did not get everything.
        """
        if not self.is_here:
            self.abandon()
            return []
        for link in self.links.values():
            link.tell(Kind.GOODBYE, content=reason.encode())
        deadline_s = time.monotonic() + linger_s
        pause_s = 0.0
        while (short := self._undelivered()) and time.monotonic() < deadline_s:
            # Their output may wait for this rank to take in its own, which nobody will read any more.
            self.pump(pause_s)
            pause_s = min(0.01, 2 * pause_s + 0.0002)
        self.close()
        return short

    def _undelivered(self) -> list[int]:
        return [
            r
            for r, link in self.links.items()
            if not link.left and not link.lost and link.undelivered_bytes()
        ]

    def abandon(self) -> None:
        """Let go of what a fork left here of another process's group, without a trace for that process."""
        _open.discard(self)
        self._epoll.close()
        for link in self.links.values():
            link.socket.close()

    def close(self) -> None:
        """Close every link."""
        _open.discard(self)
        self._epoll.close()
        for link in self.links.values():
            link.close()


def name_ranks(ranks: Iterable[int]) -> str:
    """Return the ranks as a reader expects them in a sentence.

    >>> name_ranks([2]), name_ranks([1, 3])
    ('rank 2', 'ranks 1, 3')
    """
    names = ", ".join(str(r) for r in sorted(ranks))
    return f"ranks {names}" if "," in names else f"rank {names}"


@atexit.register
def _leave_all() -> None:
    """Say goodbye for the groups that nobody closed; with the reason if an exception ended the program."""
    failure = getattr(sys, "last_value", None)
    reason = f"it ended with {type(failure).__name__}: {failure}" if failure is not None else ""
    for mesh in list(_open):
        mesh.leave(reason)
