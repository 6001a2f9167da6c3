"""Connect the ranks of a group over TCP: every rank to every other, so that any may leave.

Rank 0 listens at the group's address. The others prove themselves there and say where they listen; when all
have come, rank 0 gives the addresses out, each rank dials those below it, and when all are connected rank 0
lets everybody go and every listener closes. Until then rank 0 tells who has come, so that each rank can name
the missing ones when its time is up. Everything runs in one loop over non-blocking sockets with a time
limit per handshake: strangers that connect and say nothing, or nonsense, delay nobody.
"""

from __future__ import annotations

import itertools
import os
import selectors
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from pgplan.distributed import codec
from pgplan.distributed.addresses import adopt, check_address, listen, resolve, tune
from pgplan.distributed.handshake import Credentials, Handshake, Member, RefusedError, accept, dial
from pgplan.distributed.link import Link
from pgplan.distributed.mesh import name_ranks
from pgplan.distributed.wire import Kind, Parcel
from pgplan.errors import GroupError, GroupTimeoutError, MessageError, PeerLostError

HANDSHAKE_S = 0.5
_MAX_HANDSHAKES = 256
_REDIAL_S = 0.02


@dataclass(kw_only=True)
class _Conversation:
    """Hold a handshake under way; ``peer`` is whom this rank dialled, or None if it was called."""

    sock: socket.socket
    handshake: Handshake
    peer: int | None
    deadline_s: float
    received: bytes = b""
    wanted_bytes: int = 0


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
        self._selector = selectors.DefaultSelector()
        self._listener = listener
        self._conversations: dict[socket.socket, _Conversation] = {}
        self._dials: dict[int, Iterator[tuple[socket.AddressFamily, Any]]] = {}
        self._redial_s: dict[int, float] = {}
        self._heard: dict[str, dict[int, Any]] = {
            "address": {},
            "ready": {},
            "came": {},
            "connect": {},
            "go": {},
        }
        self._came = {me.rank}
        self._refused: list[str] = []

    # The two parts ---------------------------------------------------------------------------------------

    def host(self, host: str, port: int) -> None:
        """Gather the others, as rank 0."""
        others = set(range(1, self._me.world_size))
        self._listener = self._listener or self._listen(host, port)
        self._open(self._listener)
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
        self._until(lambda: 0 in self.links)
        # Where rank 0 is reached from, the others can be reached from too.
        self._listener = self._listener or self._listen(self.links[0].socket.getsockname()[0], 0)
        self._tell("address", list(self._listener.getsockname()[:2]), only=0)
        self._until(lambda: bool(self._heard["connect"]))
        invitation = self._heard["connect"][0]
        self._me = replace(self._me, context=invitation["group"])
        self._open(self._listener)
        for rank in range(1, self._me.rank):
            self._call(rank, resolve(*invitation["addresses"][rank]))
        self._until(lambda: len(self.links) == self._me.world_size - 1)
        self._tell("ready", True, only=0)
        self._until(lambda: bool(self._heard["go"]))

    def close(self, *, links_too: bool) -> None:
        """Stop listening, drop strangers and, if the group did not come about, everybody."""
        for conversation in self._conversations.values():
            conversation.sock.close()
        if self._listener is not None:
            self._listener.close()
        self._selector.close()
        if links_too:
            for link in self.links.values():
                link.close()

    # The loop --------------------------------------------------------------------------------------------

    def _until(self, done: Callable[[], bool]) -> None:
        while not done():
            now_s = time.monotonic()
            if now_s >= self._deadline_s:
                raise GroupTimeoutError(self._complaint())
            for conversation in [c for c in self._conversations.values() if c.deadline_s <= now_s]:
                self._end(conversation, "said too little, too slowly")
            for peer in [p for p, due_s in self._redial_s.items() if due_s <= now_s]:
                self._dial(peer)
            limits = [c.deadline_s for c in self._conversations.values()]
            wake_s = min([self._deadline_s, *limits, *self._redial_s.values()])
            for key, _ in self._selector.select(max(0.0, wake_s - time.monotonic())):
                key.data()

    def _listen(self, host: str, port: int) -> socket.socket:
        return listen(host, port, has_token=self._me.token is not None, backlog=_MAX_HANDSHAKES)

    def _open(self, listener: socket.socket) -> None:
        self._selector.register(listener, selectors.EVENT_READ, self._answer)

    def _answer(self) -> None:
        """Take in whoever called."""
        if self._listener is None:
            return
        try:
            sock, _ = self._listener.accept()
        except OSError:  # the caller has hung up, or this process has no descriptor left for it
            return
        if len(self._conversations) >= _MAX_HANDSHAKES:
            sock.close()
            return
        self._converse(sock, accept(sock, self._me), peer=None)

    def _call(self, peer: int, found: list[tuple[socket.AddressFamily, Any]]) -> None:
        """Dial ``peer`` until it answers, at each of its addresses in turn."""
        self._dials[peer] = itertools.cycle(found)
        self._redial_s[peer] = 0.0

    def _dial(self, peer: int) -> None:
        self._redial_s.pop(peer)
        family, address = next(self._dials[peer])
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.connect_ex(address)
        self._conversations[sock] = _Conversation(
            sock=sock, handshake=dial(sock, self._me, peer=peer), peer=peer, deadline_s=self._deadline_s
        )
        self._selector.register(sock, selectors.EVENT_WRITE, lambda: self._connected(sock))

    def _connected(self, sock: socket.socket) -> None:
        conversation = self._conversations[sock]
        try:
            # A port without a listener can, by chance, connect to itself.
            connected = sock.getpeername() != sock.getsockname()
        except OSError:
            connected = False
        if not connected:
            self._end(conversation, "")
            return
        self._selector.unregister(sock)
        del self._conversations[sock]
        self._converse(sock, conversation.handshake, peer=conversation.peer)

    def _converse(self, sock: socket.socket, handshake: Handshake, *, peer: int | None) -> None:
        """Begin a handshake; a dialled peer has all the time there is, a caller has little."""
        sock.setblocking(False)
        limit_s = self._deadline_s if peer is not None else time.monotonic() + HANDSHAKE_S
        conversation = _Conversation(sock=sock, handshake=handshake, peer=peer, deadline_s=limit_s)
        self._conversations[sock] = conversation
        self._selector.register(sock, selectors.EVENT_READ, lambda: self._advance(conversation))
        try:
            tune(sock)
            conversation.wanted_bytes = next(handshake)
        except OSError as error:
            self._end(conversation, f"hung up ({error.strerror})")

    def _advance(self, conversation: _Conversation) -> None:
        """Take a handshake one step on with what has arrived."""
        try:
            data = conversation.sock.recv(conversation.wanted_bytes - len(conversation.received))
            if not data:
                self._end(conversation, "hung up before it had proved itself")
                return
            conversation.received += data
            if len(conversation.received) == conversation.wanted_bytes:
                received, conversation.received = conversation.received, b""
                conversation.wanted_bytes = conversation.handshake.send(received)
        except StopIteration as done:
            self._welcome(conversation, done.value)
        except RefusedError as error:
            self._end(conversation, str(error))
            if conversation.peer is not None:
                raise RefusedError(f"what answers for rank {conversation.peer} {error}") from None
        except OSError as error:
            self._end(conversation, f"hung up ({error.strerror})")

    def _end(self, conversation: _Conversation, reason: str) -> None:
        """Drop a handshake; dial again if this rank had dialled."""
        sock = conversation.sock
        if conversation.peer is not None:
            self._redial_s[conversation.peer] = time.monotonic() + _REDIAL_S
        elif reason and len(self._refused) < 3:
            self._refused.append(f"a caller from {_peer_name(sock)} {reason}")
        self._selector.unregister(sock)
        del self._conversations[sock]
        sock.close()

    def _welcome(self, conversation: _Conversation, member: Member) -> None:
        """Make a proved connection a link."""
        if member.rank in self.links:
            self._end(conversation, f"says it is rank {member.rank}, which is here already")
            return
        sock = conversation.sock
        del self._conversations[sock]
        self._selector.unregister(sock)
        link = Link(
            sock,
            member.rank,
            max_message_bytes=self._max_message_bytes,
            seal=member.seal,
            clock_offset_s=member.clock_offset_s,
        )
        self.links[member.rank] = link
        self._selector.register(sock, selectors.EVENT_READ, lambda: self._hear(link))
        if self._me.rank == 0:
            self._came.add(member.rank)
            self._tell("came", sorted(self._came))
        self._hear(link)

    def _hear(self, link: Link) -> None:
        """Take in what a member says."""
        for parcel in link.receive():
            if parcel.kind == Kind.RENDEZVOUS:
                self._note(link.rank, *codec.decode(parcel.head))
            else:
                self.early.append((link.rank, parcel))
        if not (link.lost or link.left):
            return
        if self._me.rank == 0 and not self._heard["connect"]:
            # It may come again: until the addresses are given out nothing depends on it.
            self._selector.unregister(link.socket)
            self._heard["address"].pop(link.rank, None)
            self.links.pop(link.rank).close()
            return
        raise PeerLostError(f"rank {link.rank} left while the group was made: {link.lost or 'it closed'}")

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
        refused = "".join(f"; {reason}" for reason in self._refused)
        return f"{text}{refused}; start every rank with the same host, port, world_size and token"


def _peer_name(sock: socket.socket) -> str:
    try:
        host, port = sock.getpeername()[:2]
    except OSError:
        return "somewhere"
    return f"{host} port {port}"


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
            adopt(listen_socket, has_token=me.token is not None, backlog=_MAX_HANDSHAKES)
        if me.rank == 0:
            meeting.host(host, port)
        else:
            meeting.join(host, port)
        links_too = False
    finally:
        meeting.close(links_too=links_too)
    return meeting
