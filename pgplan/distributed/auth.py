"""Tell members of a group from strangers: the token, the handshake's answers, the signature of a frame.

Both ends prove that they hold the token before anything else of the other is looked at: each sends a nonce,
and answers with HMAC-SHA256 over both nonces, both ranks, the group's size, and which side it is. From the
same transcript each direction gets a key of its own; every frame then carries a BLAKE2b tag over its
counter, header, head and the SHA-256 of its body. This keeps others on the machine or the network from
speaking in the group; it does not hide what is said.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
from collections.abc import Iterable
from pathlib import Path

from pgplan.distributed.wire import body_digest
from pgplan.errors import GroupError, MessageError

TOKEN_BYTES = 32
TOKEN_VARIABLE = "PGPLAN_GROUP_TOKEN"
TOKEN_FILE_VARIABLE = "PGPLAN_GROUP_TOKEN_FILE"
_TAG_BYTES = 16
_DIGEST_BYTES = 32


def new_token() -> str:
    """Return a fresh 256-bit token as hexadecimal digits, to be given to every rank and to nobody else.

    >>> len(new_token())
    64
    """
    return secrets.token_hex(TOKEN_BYTES)


def read_token(
    token: str | bytes | None = None, token_file: str | os.PathLike[str] | None = None
) -> bytes | None:
    """Return the group's token from what was given, else from the environment, else None.

    Args:
        token: 64 hexadecimal digits or 32 bytes; for callers that keep it in memory.
        token_file: A file that holds the digits and that only its owner may read.

    Raises:
        GroupError: The token has another length, or others may read its file.
    """
    if token is None and token_file is None:
        token, token_file = os.environ.get(TOKEN_VARIABLE), os.environ.get(TOKEN_FILE_VARIABLE)
    if token is None and token_file is not None:
        token = _read_token_file(Path(token_file))
    if token is None:
        return None
    try:
        raw = bytes.fromhex(token) if isinstance(token, str) else bytes(token)
    except ValueError:
        raw = b""
    if len(raw) < TOKEN_BYTES:
        raise GroupError(
            f"a group token is 256 bits: {2 * TOKEN_BYTES} hexadecimal digits or {TOKEN_BYTES} bytes, but "
            f"{len(token)} {'characters' if isinstance(token, str) else 'bytes'} were given; make one with "
            "pgplan.distributed.new_token()"
        )
    return raw


def _read_token_file(path: Path) -> str:
    try:
        mode, text = path.stat().st_mode, path.read_text()
    except OSError as error:
        raise GroupError(f"the group token cannot be read from {path}: {error.strerror}") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise GroupError(f"others may read the group token in {path}; run chmod 600 {path}")
    return text.strip()


class Seal:
    """Sign the frames of one direction of a connection and check those of the other."""

    def __init__(self, *, sending_key: bytes, receiving_key: bytes) -> None:
        self._sending = hashlib.blake2b(key=sending_key, digest_size=_TAG_BYTES)
        self._receiving = hashlib.blake2b(key=receiving_key, digest_size=_TAG_BYTES)
        self._sent = self._received = 0

    def signature_bytes(self, body_bytes: int) -> int:
        """Return how long the signature of a frame is: a tag, and the digest of a body if there is one."""
        return _TAG_BYTES + (_DIGEST_BYTES if body_bytes else 0)

    def sign(self, prologue: bytes, digest: bytes = b"") -> bytes:
        """Return the signature of the next frame sent: the body's digest, if any, and the tag."""
        tag = _tag(self._sending, self._sent, prologue, digest)
        self._sent += 1
        return digest + tag

    def check(self, prologue: bytes, signature: bytes) -> bytes:
        """Return the digest that the next frame's body must have; raise unless its tag is right."""
        digest, tag = signature[:-_TAG_BYTES], signature[-_TAG_BYTES:]
        if not hmac.compare_digest(tag, _tag(self._receiving, self._received, prologue, digest)):
            raise MessageError("a frame's tag is wrong: it was not sent by a member, or changed on its way")
        self._received += 1
        return digest

    def check_body(self, body: memoryview, digest: bytes) -> None:
        """Raise unless the body is the one that the checked prologue promised."""
        if not hmac.compare_digest(body_digest([body]), digest):
            raise MessageError("a message's body changed on its way")


def _tag(keyed: hashlib.blake2b, counter: int, prologue: bytes, digest: bytes) -> bytes:
    mac = keyed.copy()
    mac.update(counter.to_bytes(8, "big") + prologue + digest)
    return mac.digest()


def answer(token: bytes, label: bytes, transcript: Iterable[bytes]) -> bytes:
    """Return the HMAC-SHA256 by which one side proves that it holds the token, or derives a key from it."""
    return hmac.digest(token, label + b"\0" + b"".join(transcript), "sha256")
