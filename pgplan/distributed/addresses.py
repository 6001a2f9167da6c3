"""Find, check and open the TCP addresses of a group."""

from __future__ import annotations

import errno
import ipaddress
import socket
from typing import Any

from pgplan.errors import GroupError

# Notice a peer whose host vanished, which no EOF tells: after 10 s of silence ask every 5 s, three times.
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}


def resolve(host: str, port: int) -> list[tuple[socket.AddressFamily, Any]]:
    """Return the socket addresses, of either family, that a host name and a port stand for.

    >>> resolve("127.0.0.1", 29500)
    [(<AddressFamily.AF_INET: 2>, ('127.0.0.1', 29500))]
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise GroupError(
            f"the group's host {host!r} has no address: {error}; give a name or an address"
        ) from error
    return [(family, address) for family, _, _, _, address in found]


def check_address(address: Any, *, has_token: bool) -> None:
    """Raise GroupError if a group must not listen at, or connect to, a socket address.

    All interfaces at once are never right; beyond loopback a token is required.
    """
    ip = ipaddress.ip_address(str(address[0]).partition("%")[0])
    ip = getattr(ip, "ipv4_mapped", None) or ip
    if ip.is_unspecified:
        raise GroupError(
            f"{ip} means every interface of the host; give the one address where the others reach rank 0"
        )
    if not (has_token or ip.is_loopback):
        raise GroupError(
            f"{ip} can be reached from other hosts, and without a token a group uses loopback only; "
            "give every rank the same token, token_file, PGPLAN_GROUP_TOKEN or PGPLAN_GROUP_TOKEN_FILE"
        )


def listen(host: str, port: int, *, has_token: bool, backlog: int) -> socket.socket:
    """Return a socket that listens at this address, and at no other."""
    family, address = resolve(host, port)[0]
    check_address(address, has_token=has_token)
    try:
        sock = socket.create_server(address, family=family, backlog=backlog)
    except OSError as error:
        taken = (
            "; another process listens there, choose another port" if error.errno == errno.EADDRINUSE else ""
        )
        raise GroupError(f"cannot listen at {host}, port {port}: {error.strerror}{taken}") from error
    sock.setblocking(False)
    return sock


def adopt(listener: socket.socket, *, has_token: bool, backlog: int) -> None:
    """Listen on a socket that the caller bound, checked like one that is made here."""
    check_address(listener.getsockname(), has_token=has_token)
    listener.listen(backlog)
    listener.setblocking(False)


def tune(sock: socket.socket) -> None:
    """Make a connection deliver at once and notice hosts that vanish."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
