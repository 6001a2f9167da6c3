"""Connect the ranks of a group over TCP: every rank to every other, so that any may leave.

Rank 0 listens at the group's address. The others prove themselves there and say where they listen; when all
have come, rank 0 gives the addresses out, each rank dials those below it, and when all are connected rank 0
lets everybody go and every listener closes. Until then rank 0 tells who has come, so that each rank can name
the missing ones when its time is up. Everything runs in one loop over non-blocking sockets with a time
limit per handshake: strangers that connect and say nothing, or nonsense, delay nobody.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pgplan.distributed import codec
from pgplan.distributed.addresses import adopt, check_address, listen, resolve
from pgplan.distributed.handshake import Credentials, Member
from pgplan.distributed.link import Link
from pgplan.distributed.mesh import name_ranks
from pgplan.distributed.switchboard import MAX_HANDSHAKES, Switchboard
from pgplan.distributed.wire import Kind, Parcel
from pgplan.errors import GroupError, GroupTimeoutError, MessageError, PeerLostError


class Rendezvous:
    """Bring one rank together with the others of its group.

    Attributes:
        links: The links made so far, by rank.
        early: What peers that were let go before this rank have already said to it.
    """

    def __init__(
        self, me: Credentials, *, timeout_s: float, max_message_bytes: int, listener: socket.socket | None
    ) -> None:
        self.links: dict[int, Link] = {}
        self.early: list[tuple[int, Parcel]] = []
        self._me = me
        self._timeout_s, self._deadline_s = timeout_s, time.monotonic() + timeout_s
        self._max_message_bytes = max_message_bytes
        self._listener = listener
        self._board = Switchboard(me, on_member=self._welcome)
        self._heard: dict[str, dict[int, Any]] = {
            "address": {},
            "ready": {},
            "came": {},
            "connect": {},
            "go": {},
        }
        self._came = {me.rank}
        # Whom this rank dials, and where; whether it has told rank 0 that all of its links stand.
        self._called: dict[int, list[tuple[socket.AddressFamily, Any]]] = {}
        self._is_ready = False

    # The two parts ---------------------------------------------------------------------------------------

    def host(self, host: str, port: int) -> None:
        """Gather the others, as rank 0."""
        others = set(range(1, self._me.world_size))
        self._listener = self._listener or self._listen(host, port)
        self._board.listen(self._listener)
        try:
            self._until(lambda: self._heard["address"].keys() == others)
            self._heard["connect"][0] = {"group": os.urandom(16), "addresses": self._heard["address"]}
            self._tell("connect", self._heard["connect"][0])
            self._until(lambda: self._heard["ready"].keys() == others)
        except GroupError as error:
            self._tell("fail", str(error))
            raise
        self._tell("go", None)

    def join(self, host: str, port: int) -> None:
        """Find rank 0, then the others."""
        found = resolve(host, port)
        for _, address in found:
            check_address(address, has_token=self._me.token is not None)
        self._call(0, found)
        self._until(lambda: bool(self._heard["connect"]))
        invitation = self._heard["connect"][0]
        self._board.me = replace(self._me, context=invitation["group"])
        assert self._listener is not None  # made when rank 0 was reached
        self._board.listen(self._listener)
        for rank in range(1, self._me.rank):
            self._call(rank, resolve(*invitation["addresses"][rank]))
        while not self._is_ready:
            self._until(lambda: len(self.links) == self._me.world_size - 1)
            self._board.serve(time.monotonic())  # a call that was dropped meanwhile is heard of now
            self._is_ready = len(self.links) == self._me.world_size - 1
        self._tell("ready", True, only=0)
        self._until(lambda: bool(self._heard["go"]))

    def close(self, *, links_too: bool) -> None:
        """Stop listening, drop strangers and, if the group did not come about, everybody."""
        self._board.close()
        if self._listener is not None:
            self._listener.close()
        if links_too:
            for link in self.links.values():
                link.close()

    # Within ------------------------------------------------------------------------------------------

    def _until(self, done: Callable[[], bool]) -> None:
        while not done():
            if time.monotonic() >= self._deadline_s:
                raise GroupTimeoutError(self._complaint())
            self._board.serve(self._deadline_s)

    def _listen(self, host: str, port: int) -> socket.socket:
        return listen(host, port, has_token=self._me.token is not None, backlog=MAX_HANDSHAKES)

    def _welcome(self, sock: socket.socket, member: Member) -> str:
        """Make a proved connection a link, or say why not."""
        if member.rank in self.links:
            return f"says it is rank {member.rank}, which is here already"
        link = Link(
            sock,
            member.rank,
            max_message_bytes=self._max_message_bytes,
            seal=member.seal,
            clock_offset_s=member.clock_offset_s,
        )
        link.on_business = self._take
        self.links[member.rank] = link
        self._board.watch(sock, lambda: self._hear(link))
        if self._me.rank == 0:
            self._came.add(member.rank)
            self._tell("came", sorted(self._came))
        elif member.rank == 0:
            # Where rank 0 is reached from, the others can be reached from too.
            self._listener = self._listener or self._listen(sock.getsockname()[0], 0)
            self._tell("address", list(self._listener.getsockname()[:2]), only=0)
        return ""

    def _take(self, rank: int, parcel: Parcel) -> None:
        """Keep in mind what a member says of the meeting; leave the rest to the group."""
        if parcel.kind == Kind.RENDEZVOUS:
            self._note(rank, *codec.decode(parcel.head))
        else:
            self.early.append((rank, parcel))

    def _hear(self, link: Link) -> None:
        """Take in what a member says."""
        if link.receive():
            return
        if link.left:  # in order, and so after everybody was let go; what it said before can be read
            self._board.forget(link.socket)
            return
        if self._me.rank == 0 and not self._heard["connect"]:
            # It may come again: until the addresses are given out nothing depends on it.
            self._heard["address"].pop(link.rank, None)
            self._lose(link)
            return
        if link.rank in self._called and not self._is_ready and link.rank not in self._heard["came"]:
            # It had dropped the call, as this rank was slow to prove itself, and had not made it a link.
            self._lose(link)
            self._board.call(link.rank, self._called[link.rank])
            return
        raise PeerLostError(f"rank {link.rank} left while the group was made: {link.lost or 'it closed'}")

    def _lose(self, link: Link) -> None:
        """Do without a link, until another takes its place."""
        self._board.forget(link.socket)
        self.links.pop(link.rank).close()

    def _call(self, rank: int, found: list[tuple[socket.AddressFamily, Any]]) -> None:
        self._called[rank] = found
        self._board.call(rank, found)

    def _note(self, rank: int, what: str, content: Any) -> None:
        if what == "fail":
            raise GroupTimeoutError(f"rank 0 gave the group up: {content}")
        if what not in self._heard:
            raise MessageError(f"rank {rank} said {what!r}, which means nothing while a group is made")
        self._heard[what][rank] = content
        if what == "came":
            self._came.update(content)

    def _tell(self, what: str, content: Any, *, only: int | None = None) -> None:
        head, _ = codec.encode((what, content))
        for rank, link in self.links.items():
            if only in (None, rank):
                link.tell(Kind.RENDEZVOUS, content=head)

    def _complaint(self) -> str:
        me, everybody = self._me, set(range(self._me.world_size))
        if me.rank != 0 and 0 not in self.links:
            text = f"rank 0 did not answer rank {me.rank} within {self._timeout_s:g} s"
        elif missing := everybody - self._came - self.links.keys():
            text = f"{name_ranks(missing)} did not come within {self._timeout_s:g} s"
        elif apart := everybody - self.links.keys() - {me.rank}:
            happened = "could not connect to" if self._heard["connect"] else "had, and lost again,"
            text = f"rank {me.rank} {happened} {name_ranks(apart)} within {self._timeout_s:g} s"
        else:
            slow = everybody - self._heard["ready"].keys() - {0} if me.rank == 0 else {0}
            text = f"{name_ranks(slow)} did not finish connecting within {self._timeout_s:g} s"
        refused = "".join(f"; {reason}" for reason in self._board.refused)
        return f"{text}{refused}; start every rank with the same host, port, world_size and token"


def meet_over_tcp(
    me: Credentials,
    host: str,
    port: int,
    *,
    timeout_s: float,
    max_message_bytes: int,
    listen_socket: socket.socket | None,
) -> Rendezvous:
    """Connect this rank to every other and return the finished rendezvous, its listener closed."""
    meeting = Rendezvous(me, timeout_s=timeout_s, max_message_bytes=max_message_bytes, listener=listen_socket)
    links_too = True
    try:
        if listen_socket is not None:
            adopt(listen_socket, has_token=me.token is not None, backlog=MAX_HANDSHAKES)
        if me.rank == 0:
            meeting.host(host, port)
        else:
            meeting.join(host, port)
        links_too = False
    finally:
        meeting.close(links_too=links_too)
    return meeting
