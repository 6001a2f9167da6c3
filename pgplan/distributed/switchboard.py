"""Carry on handshakes with many callers and callees at once, none of whom can hold up another."""

from __future__ import annotations

import itertools
import selectors
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pgplan.distributed.addresses import tune
from pgplan.distributed.handshake import Credentials, Handshake, Member, RefusedError, accept, dial

# A caller that has not proved itself by then is dropped; a member that was merely slow calls again.
HANDSHAKE_S = 0.5
MAX_HANDSHAKES = 256
_REDIAL_S = 0.02
# The longest wait in one go, so that a deadline may be as far as anybody likes.
_LONGEST_S = 3600.0


@dataclass(kw_only=True)
class _Conversation:
    """Hold a handshake under way; ``peer`` is whom this rank dialled, or None if it was called."""

    sock: socket.socket
    handshake: Handshake
    peer: int | None
    deadline_s: float
    received: bytes = b""
    wanted_bytes: int = 0


class Switchboard:
    """Accept calls, dial peers until they answer, and hand over every connection that was proved.

    Attributes:
        me: What this rank proves; handshakes that begin later use what it is then.
        refused: What was wrong with the first few callers that were turned away.
    """

    def __init__(self, me: Credentials, *, on_member: Callable[[socket.socket, Member], str]) -> None:
        self.me = me
        self.refused: list[str] = []
        self._on_member = on_member
        self._selector = selectors.DefaultSelector()
        self._conversations: dict[socket.socket, _Conversation] = {}
        self._dials: dict[int, Iterator[tuple[socket.AddressFamily, Any]]] = {}
        self._redial_s: dict[int, float] = {}

    def serve(self, deadline_s: float) -> None:
        """Wait for something to happen, at most until the deadline, and see to it."""
        now_s = time.monotonic()
        for conversation in [c for c in self._conversations.values() if c.deadline_s <= now_s]:
            self._end(conversation, "said too little, too slowly")
        for peer in [p for p, due_s in self._redial_s.items() if due_s <= now_s]:
            self._dial(peer)
        limits = [c.deadline_s for c in self._conversations.values()]
        wake_s = min([deadline_s, *limits, *self._redial_s.values()])
        for key, _ in self._selector.select(min(max(0.0, wake_s - time.monotonic()), _LONGEST_S)):
            if key.fileobj in self._selector.get_map():  # else one before it has ended this one
                key.data()

    def watch(self, sock: socket.socket, on_readable: Callable[[], None]) -> None:
        """Call ``on_readable`` whenever something has arrived on ``sock``."""
        self._selector.register(sock, selectors.EVENT_READ, on_readable)

    def forget(self, sock: socket.socket) -> None:
        """Watch ``sock`` no more."""
        self._selector.unregister(sock)

    def listen(self, listener: socket.socket) -> None:
        """Answer who calls at ``listener``."""
        self.watch(listener, lambda: self._answer(listener))

    def call(self, peer: int, found: list[tuple[socket.AddressFamily, Any]]) -> None:
        """Dial ``peer`` until it answers, at each of its addresses in turn."""
        self._dials[peer] = itertools.cycle(found)
        self._redial_s[peer] = 0.0

    def close(self) -> None:
        """Drop every handshake under way."""
        for conversation in self._conversations.values():
            conversation.sock.close()
        self._selector.close()

    def _answer(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError:  # the caller has hung up, or this process has no descriptor left for it
            return
        callers = [c for c in self._conversations.values() if c.peer is None]
        if len(callers) >= MAX_HANDSHAKES:  # the oldest: a member proves itself long before so many have come
            self._end(callers[0], "said too little while too many others called")
        self._converse(sock, accept(sock, self.me), peer=None)

    def _dial(self, peer: int) -> None:
        self._redial_s.pop(peer)
        family, address = next(self._dials[peer])
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.connect_ex(address)
        # Whoever is called has all the time there is: rank 0 may be busy with strangers.
        conversation = _Conversation(
            sock=sock, handshake=dial(sock, self.me, peer=peer), peer=peer, deadline_s=float("inf")
        )
        self._conversations[sock] = conversation
        self._selector.register(sock, selectors.EVENT_WRITE, lambda: self._connected(conversation))

    def _connected(self, conversation: _Conversation) -> None:
        sock = conversation.sock
        try:
            # A port without a listener can, by chance, connect to itself.
            connected = sock.getpeername() != sock.getsockname()
        except OSError:
            connected = False
        if not connected:
            self._end(conversation, "did not answer")
            return
        self._selector.unregister(sock)
        self._converse(sock, conversation.handshake, peer=conversation.peer)

    def _converse(self, sock: socket.socket, handshake: Handshake, *, peer: int | None) -> None:
        """Begin a handshake on a connection."""
        sock.setblocking(False)
        deadline_s = float("inf") if peer is not None else time.monotonic() + HANDSHAKE_S
        conversation = _Conversation(sock=sock, handshake=handshake, peer=peer, deadline_s=deadline_s)
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

    def _welcome(self, conversation: _Conversation, member: Member) -> None:
        """Hand a proved connection over; whoever takes it may say why not."""
        self._release(conversation)
        if objection := self._on_member(conversation.sock, member):
            self._turn_away(conversation, objection)

    def _end(self, conversation: _Conversation, reason: str) -> None:
        """Break a handshake off."""
        self._release(conversation)
        self._turn_away(conversation, reason)

    def _release(self, conversation: _Conversation) -> None:
        self._selector.unregister(conversation.sock)
        del self._conversations[conversation.sock]

    def _turn_away(self, conversation: _Conversation, reason: str) -> None:
        """Close a connection; dial again if this rank had dialled, note why if it was called."""
        if conversation.peer is not None:
            self._redial_s[conversation.peer] = time.monotonic() + _REDIAL_S
        elif len(self.refused) < 3:
            self.refused.append(f"a caller from {_peer_name(conversation.sock)} {reason}")
        conversation.sock.close()


def _peer_name(sock: socket.socket) -> str:
    try:
        host, port = sock.getpeername()[:2]
    except OSError:
        return "somewhere"
    return f"{host} port {port}"
