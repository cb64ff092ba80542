"""The one atomic write: a file is there whole and durable, or not there at all."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re

from phi4d.errors import EnvironmentFault, FileError
from phi4d.job import printable

_TEMP = ".phi4d-%d-%d.tmp"
_TEMP_PATTERN = re.compile(rb"^\.phi4d-\d+-\d+\.tmp$")
_counter = itertools.count()


def write(folder: bytes, name: bytes, data: bytes) -> bytes:
    """Write a file durably, in place of an older one of the same name.

    The folder must exist. Temporary file in the same folder, fsync, rename, fsync of the folder:
    when this returns, a power cut cannot take the file back.

    Returns:
        The path written.

    Raises:
        EnvironmentFault: full disk, read-only or missing folder, no permission, I/O error.
        FileError: the name is longer than the file system takes, or a folder has it.
    """
    path = os.path.join(folder, name)
    try:
        _write(folder, name, data)
    except IsADirectoryError as error:
        raise FileError(f"{printable(path)}: a folder is where its sidecar should be") from error
    except OSError as error:
        # the folder's name, not the file's: the next file's fault is then the same news
        raise as_fault(error, folder) from error
    return path


def _write(folder: bytes, name: bytes, data: bytes) -> None:
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        temp = _TEMP % (os.getpid(), next(_counter))
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(temp, flags, 0o666, dir_fd=directory)
        try:
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(file, view) :]
                os.fsync(file)
            finally:
                os.close(file)
            os.rename(temp, name, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            # after a failed fsync the data's fate is unknown: throw it away, never try it again
            with contextlib.suppress(OSError):
                os.unlink(temp, dir_fd=directory)
            raise
        os.fsync(directory)
    finally:
        os.close(directory)


def make_folder(folder: bytes, root: bytes) -> None:
    """Make a folder below a root, durably. The root itself is never made: it may be a mount.

    Raises:
        EnvironmentFault: the root is missing, or the folder cannot be made.
        FileError: a file is where the folder should be.
    """
    missing = []
    path = folder
    while path != root and not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    try:
        for path in reversed(missing):
            with contextlib.suppress(FileExistsError):
                os.mkdir(path)
            parent = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(parent)
            finally:
                os.close(parent)
        if missing and not os.path.isdir(folder):
            raise NotADirectoryError
    except NotADirectoryError as error:
        if os.path.isdir(root):
            raise FileError(
                f"{printable(folder)}: a file is where the folder of its sidecars should be: move "
                "it away"
            ) from error
        raise as_fault(error, root) from error
    except OSError as error:
        raise as_fault(error, path) from error


def sweep(folder: bytes) -> int:
    """Remove temporary files that a killed daemon left in a folder.

    Returns:
        How many there were.
    """
    gone = 0
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            if _TEMP_PATTERN.match(name):
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(folder, name))
                    gone += 1
    return gone


def as_fault(error: OSError, path: bytes) -> EnvironmentFault | FileError:
    """Whose fault a failed write is: never the source file's, unless its name is too long."""
    where, why = printable(path), error.strerror or os.strerror(error.errno or errno.EIO)
    if error.errno == errno.ENAMETOOLONG:
        return FileError("the sidecar's name is too long for the file system; shorten the file's")
    advice = {
        errno.ENOSPC: "free some space or inodes",
        errno.EDQUOT: "raise the quota",
        errno.EROFS: "mount it writable; in a systemd service, name it in ReadWritePaths=",
        errno.EACCES: "give the daemon's user write access",
        errno.EPERM: "give the daemon's user write access",
        errno.ENOENT: "mount or make the outbox",
        errno.ENOTDIR: "a file is where the outbox should be: move it away",
    }.get(error.errno or 0, "look at the disk or mount")
    return EnvironmentFault(f"{where}: cannot be written: {why}; {advice}")


def probe(folder: bytes) -> None:
    """Try whether a folder can be written now, and leave nothing there.

    Raises:
        EnvironmentFault: it cannot.
    """
    name = _TEMP % (os.getpid(), next(_counter))
    path = os.path.join(folder, name.encode())
    try:
        write(folder, name.encode(), b"phi4d\n" * 1024)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)
