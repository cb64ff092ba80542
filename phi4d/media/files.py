"""A stranger's file: opened so that nothing is followed and nothing hangs, and held to one version.

For the daemon, which looks at a few bytes, and for the decode processes, which read it all. Here it
is told whose fault it is when a file cannot be read: the file's own, or that of what it lies on.
"""

from __future__ import annotations

import errno
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from phi4d.errors import FileChanged, FileError, Phi4dError, SourceFault
from phi4d.job import Fingerprint


def open_descriptor(path: bytes) -> int:
    """Open for reading; the last part of the path is no link, and nothing is waited for.

    The time of the last access stays as it is where that is permitted: a look is no use of it.

    Raises:
        FileChanged, FileError, SourceFault: as `open_fault` says.
    """
    # O_NONBLOCK: a FIFO put in the file's place must not hang us.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        try:
            return os.open(path, flags | os.O_NOATIME)
        except PermissionError:  # only its owner may ask for that
            return os.open(path, flags)
    except OSError as error:
        raise open_fault(error) from error


@contextmanager
def opened(path: bytes, expected: Fingerprint | None, max_file_bytes: int) -> Iterator[BinaryIO]:
    """A regular file, open for reading, that is checked to be one and the same version throughout.

    Raises:
        FileError: it is empty, too large, or not a regular file; or, from the body, whatever was
            raised there (a codec's exception is the file's fault).
        FileChanged: it is gone, not the version expected, or changed while it was read.
        SourceFault: it cannot be opened or read at the moment.
    """
    try:
        file = open(path, "rb", opener=lambda *_: open_descriptor(path))  # noqa: SIM115 - below
    except OSError as error:  # Python finds a folder only now
        raise open_fault(error) from error
    with file:
        before = _checked(_stat(file), max_file_bytes)
        if expected is not None and before != expected:
            raise FileChanged("changed after it was queued")
        try:
            yield file
        except (MemoryError, GeneratorExit):
            raise
        except Exception as error:
            _check_unchanged(file, before)
            _check_readable(file)
            if isinstance(error, Phi4dError):
                raise
            raise FileError(
                f"could not be decoded ({type(error).__name__}: {cause(error)}): "
                "copy it again from its source"
            ) from error
        _check_unchanged(file, before)


def open_fault(error: OSError) -> Phi4dError:
    """Whose fault it is that a file cannot be opened."""
    text = _text(error)
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR:
            return FileChanged("is gone")
        case errno.ELOOP:
            return FileChanged("was replaced by a symbolic link, which is not followed")
        case errno.EISDIR | errno.ENXIO | errno.ENODEV | errno.ENAMETOOLONG:
            return FileError(f"cannot be opened as a file ({text}): remove it")
        case errno.EACCES | errno.EPERM:
            return SourceFault(
                f"cannot be read ({text}): give the daemon's user read access to it and to its "
                "folders; it is tried again by itself"
            )
        case errno.EAGAIN:  # a lease, as Samba takes one for a client that keeps a file to itself
            advice = "another program keeps it to itself"
        case errno.EMFILE | errno.ENFILE | errno.ENOMEM:
            advice = "look what uses this machine up"
        case _:
            advice = "look at its disk, mount or server"
    return SourceFault(f"cannot be opened now ({text}): {advice}; it is tried again by itself")


def read_fault(error: OSError) -> SourceFault:
    """What it is called when an opened file cannot be read."""
    return SourceFault(
        f"cannot be read now ({_text(error)}): look at its disk, mount or server; "
        "it is tried again by itself"
    )


def cause(error: BaseException) -> str:
    """A codec's exception as a few words on one line, without the path that the worker adds."""
    words = getattr(error, "strerror", None) or str(error)  # PyAV's errors have it, OSError or not
    return " ".join(words.split())[:200] or type(error).__name__


def _text(error: OSError) -> str:
    return (os.strerror(error.errno) if error.errno else str(error)).lower()


def _stat(file: BinaryIO) -> os.stat_result:
    try:
        return os.fstat(file.fileno())
    except OSError as error:
        raise read_fault(error) from error


def millions(number: int) -> str:
    """A limit in millions, such as ``200`` or ``1.5``."""
    return f"{round(number / 1e6, 1):,.10g}"


def above(number: int) -> str:
    """A number in millions, rounded up: what is too large never looks like what is allowed."""
    return f"{math.ceil(number / 1e5) / 10:,.10g}"


def _checked(found: os.stat_result, max_file_bytes: int) -> Fingerprint:
    if not stat.S_ISREG(found.st_mode):
        raise FileError("is not a regular file: remove it")
    if not found.st_size:
        raise FileError("is empty (0 bytes): copy it again from its source, or remove it")
    if found.st_size > max_file_bytes:
        raise FileError(
            f"has {above(found.st_size)} MB; at most {millions(max_file_bytes)} MB are read: cut "
            "it into parts, or raise max_file_mb"
        )
    return Fingerprint.of(found)


def _check_unchanged(file: BinaryIO, before: Fingerprint) -> None:
    if Fingerprint.of(_stat(file)) != before:
        raise FileChanged("changed while it was read")


def _check_readable(file: BinaryIO) -> None:
    """Codecs take a failing disk for the end of the file, so look whether it can be read at all.

    The first gigabyte will do: a damaged film on a slow disk is not worth a timeout.

    Raises:
        SourceFault: it cannot.
    """
    offset = 0
    try:
        while offset < 1 << 30 and (data := os.pread(file.fileno(), 1 << 22, offset)):
            offset += len(data)
    except OSError as error:
        raise read_fault(error) from error
