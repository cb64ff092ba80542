"""Bytes that cross from one process to another without being copied on the way.

The one that has them fills memory without a name, seals it, and sends its descriptor; the other
maps it for reading. Sealed is what nobody can change or cut off any more: a process that is not
trusted can neither alter what was looked at, nor have a read end in SIGBUS.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
_FLAGS = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
_NOEXEC = 0x8  # MFD_NOEXEC_SEAL of Linux 6.3, which may be told to refuse memory without it


def filled(data: NDArray[Any]) -> int:
    """A descriptor of sealed memory that holds an array's bytes; the caller closes it.

    Raises:
        OSError: there is no more memory, or no more descriptors.
    """
    descriptor = _memory()
    try:
        left = np.ascontiguousarray(data).reshape(-1).view(np.uint8).data
        while left:
            left = left[os.write(descriptor, left) :]
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def mapped(descriptor: int, most: int) -> NDArray[np.uint8]:
    """What `filled` holds: (bytes,), to be read only. Closes the descriptor.

    The array has one of its own for as long as it lives (Python's mmap does).

    Args:
        descriptor: of sealed memory.
        most: bytes that are accepted.

    Raises:
        ValueError: it is something else, not sealed, empty, or holds more.
    """
    try:
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
        size = os.fstat(descriptor).st_size
        if seals & _SEALS != _SEALS or not 0 < size <= most:
            raise ValueError(f"a body of {size} bytes, seals {seals:#x}")
        # All of it at once: whoever uses it is not to wait for page after page.
        flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
        memory = mmap.mmap(descriptor, size, flags=flags, prot=mmap.PROT_READ)
    except OSError as error:
        raise ValueError(f"a body that cannot be mapped ({error})") from error
    finally:
        os.close(descriptor)
    return np.frombuffer(memory, np.uint8)


def _memory() -> int:
    try:
        return os.memfd_create("phi4d", _FLAGS | _NOEXEC)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.memfd_create("phi4d", _FLAGS)
