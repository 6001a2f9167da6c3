"""Hand large contents from one process to others without copying them once per reader.

A sealed memory file (memfd_create(2), Linux) is written once; its descriptor travels over a socket pair, and
each reader maps it privately. The seals promise the reader that no writer can change or shrink it.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import sys
from collections.abc import Sequence

from pgplan.errors import MessageError

MAPPED_BYTES = 1 << 20
# Where the platform has no such files, contents travel in the stream.
HAS_SEALED_FILES = hasattr(os, "memfd_create") and hasattr(fcntl, "F_ADD_SEALS")
if HAS_SEALED_FILES:
    _SHARED_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    _SEALS = _SHARED_SEALS | fcntl.F_SEAL_WRITE


def sealed_file(parts: Sequence[bytes | memoryview], size_bytes: int) -> int | None:
    """Write ``parts`` to a new memory file and seal it against every change.

    Returns None where the platform has no such files or the process has no descriptor left.
    """
    if not HAS_SEALED_FILES:
        return None
    try:
        descriptor = os.memfd_create("pgplan", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError:
        return None
    try:
        offset = 0
        for part in parts:
            view = memoryview(part)
            while view:
                written = os.pwrite(descriptor, view, offset)
                view, offset = view[written:], offset + written
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except OSError as error:
        os.close(descriptor)
        raise MessageError(f"no memory to hold a message of {size_bytes:,} bytes: {error}") from error
    return descriptor


def shared_file(size_bytes: int) -> int | None:
    """Return a memory file of zeros that its readers may change, but whose size nobody can.

    Returns None where the platform has no such files or the process has no descriptor left.
    """
    if not HAS_SEALED_FILES:
        return None
    try:
        descriptor = os.memfd_create("pgplan-shared", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError:
        return None
    try:
        os.ftruncate(descriptor, size_bytes)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SHARED_SEALS)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def open_shared_file(descriptor: int, size_bytes: int) -> memoryview:
    """Return the contents of a shared memory file, which all who open it see change; close its descriptor.

    Raises:
        MessageError: Its size is not sealed, or not what the frame said.
    """
    try:
        _check_file(descriptor, size_bytes, _SHARED_SEALS)
        return memoryview(_map(descriptor, size_bytes, mmap.ACCESS_WRITE))
    except OSError as error:
        raise MessageError(f"a shared memory file cannot be mapped: {error}") from error
    finally:
        os.close(descriptor)


def open_file(descriptor: int, size_bytes: int) -> memoryview:
    """Return the private, writable contents of a sealed memory file, and close its descriptor.

    From 1 MiB the file is mapped copy-on-write, so that nothing is copied until somebody writes. Before
    Python 3.13 ``mmap`` keeps one descriptor for as long as the mapping lives.

    Raises:
        MessageError: The file is not sealed, or not of the size that the frame said. Mapping it could
            then end this process by SIGBUS when its sender shrinks it.
    """
    try:
        _check_file(descriptor, size_bytes, _SEALS)
        if size_bytes < MAPPED_BYTES:
            copy = bytearray(size_bytes)
            os.preadv(descriptor, [copy], 0)
            return memoryview(copy)
        return memoryview(_map(descriptor, size_bytes, mmap.ACCESS_COPY))
    except OSError as error:
        raise MessageError(f"a message's memory file cannot be read: {error}") from error
    finally:
        os.close(descriptor)


def _check_file(descriptor: int, size_bytes: int, seals: int) -> None:
    sealed = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & seals == seals
    actual_bytes = os.fstat(descriptor).st_size
    if not sealed or actual_bytes != size_bytes:
        raise MessageError(
            f"a message's memory file must be sealed and hold {size_bytes:,} bytes, "
            f"but it is {'sealed' if sealed else 'not sealed'} and holds {actual_bytes:,}"
        )


def _map(descriptor: int, size_bytes: int, access: int) -> mmap.mmap:
    if sys.version_info >= (3, 13):
        return mmap.mmap(descriptor, size_bytes, access=access, trackfd=False)
    return mmap.mmap(descriptor, size_bytes, access=access)
