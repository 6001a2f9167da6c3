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
    _SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


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


def open_file(descriptor: int, size_bytes: int) -> memoryview:
    """Return the private, writable contents of a sealed memory file, and close its descriptor.

    From 1 MiB the file is mapped copy-on-write, so that nothing is copied until somebody writes. Before
    Python 3.13 ``mmap`` keeps one descriptor for as long as the mapping lives.

    Raises:
        MessageError: The file is not sealed, or not of the size that the frame said. Mapping it could
            then end this process by SIGBUS when its sender shrinks it.
    """
    try:
        sealed = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS == _SEALS
        actual_bytes = os.fstat(descriptor).st_size
        if not sealed or actual_bytes != size_bytes:
            raise MessageError(
                f"a message's memory file must be sealed and hold {size_bytes:,} bytes, "
                f"but it is {'sealed' if sealed else 'not sealed'} and holds {actual_bytes:,}"
            )
        if size_bytes < MAPPED_BYTES:
            copy = bytearray(size_bytes)
            os.preadv(descriptor, [copy], 0)
            return memoryview(copy)
        if sys.version_info >= (3, 13):
            mapping = mmap.mmap(descriptor, size_bytes, access=mmap.ACCESS_COPY, trackfd=False)
        else:
            mapping = mmap.mmap(descriptor, size_bytes, access=mmap.ACCESS_COPY)
        return memoryview(mapping)
    except OSError as error:
        raise MessageError(f"a message's memory file cannot be read: {error}") from error
    finally:
        os.close(descriptor)
