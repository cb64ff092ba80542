"""The one atomic write: a file is there whole and durable, or not there at all."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
from collections.abc import Sequence

from phi4d.errors import EnvironmentFault, FileError
from phi4d.job import printable

_TEMP = b".phi4d-%d-%d.tmp"
_TEMP_PATTERN = re.compile(rb"^\.phi4d-\d+-\d+\.tmp$")
_counter = itertools.count()
_MOST_SYNCED = 10_000
_synced: dict[bytes, tuple[int, int]] = {}
"""folders whose entries in those above are known to be durable, with device and inode"""


def write(folder: bytes, name: bytes, data: bytes) -> bytes:
    """Write one file durably; see `write_all`.

    Returns:
        The path written.
    """
    (path,) = write_all(folder, [(name, data)])
    return path


def write_all(folder: bytes, files: Sequence[tuple[bytes, bytes]]) -> list[bytes]:
    """Write files of one folder durably, in place of older ones of the same names.

    The folder must exist. All are written to temporary files there and synced before the first is
    renamed; they become visible in the order given, and the folder is synced once, at the end.
    When this returns, a power cut cannot take the files back. When it raises, or is killed, each
    file is whole or the one that was there before, and a later one is never new without those
    before it.

    Args:
        folder: where.
        files: name and content of each.

    Returns:
        The paths written.

    Raises:
        EnvironmentFault: full disk, read-only or missing folder, no permission, I/O error.
        FileError: a name is longer than the file system takes, or a folder has it.
    """
    try:
        _write_all(folder, files)
    except IsADirectoryError as error:
        raise FileError(
            f"{printable(os.path.join(folder, error.filename2))}: a folder is where its sidecar "
            "should be: move it away"
        ) from error
    except OSError as error:
        # the folder's name, not the file's: the next file's fault is then the same news
        raise as_fault(error, folder) from error
    return [os.path.join(folder, name) for name, _ in files]


def _write_all(folder: bytes, files: Sequence[tuple[bytes, bytes]]) -> None:
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    temps: list[bytes] = []
    try:
        try:
            for _, data in files:
                temp = _TEMP % (os.getpid(), next(_counter))
                temps.append(temp)
                _write_temp(temp, data, directory)
            for temp, (name, _) in zip(temps, files, strict=True):
                os.rename(temp, name, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            # after a failed fsync the data's fate is unknown: throw it away, never try it again
            for temp in temps:
                with contextlib.suppress(OSError):
                    os.unlink(temp, dir_fd=directory)
            raise
        os.fsync(directory)
    finally:
        os.close(directory)


def _write_temp(temp: bytes, data: bytes, directory: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.open(temp, flags, 0o666, dir_fd=directory)
    try:
        write_out(file, data)
        os.fsync(file)
    finally:
        os.close(file)


def write_out(file: int, data: bytes) -> None:
    """Write all of it: one call of the system may take less."""
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def remove(folder: bytes, name: bytes) -> bool:
    """Remove a file durably, if there is one.

    Returns:
        Whether there was one.

    Raises:
        EnvironmentFault: it is there, and cannot be removed now.
    """
    try:
        try:
            os.unlink(os.path.join(folder, name))
        except (FileNotFoundError, IsADirectoryError):
            return False
        sync_folder(folder)
    except OSError as error:
        raise as_fault(error, folder) from error
    return True


def sync_folder(folder: bytes) -> None:
    """Make the names in a folder durable.

    Raises:
        OSError: it is not there or cannot be read, or its disk failed.
    """
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def make_folder(folder: bytes, root: bytes) -> None:
    """Make a folder of sidecars below a root, durably; see `make_folders`.

    Raises:
        EnvironmentFault: the root is missing, or the folder cannot be made now.
        FileError: a file is where the folder should be, or its path is too long.
    """
    try:
        make_folders(folder, root)
    except OSError as error:
        if not os.path.isdir(root):
            raise as_fault(error, root) from error
        if isinstance(error, NotADirectoryError):
            raise FileError(
                f"{printable(folder)}: a file is where the folder of its sidecars should be: move "
                "it away"
            ) from error
        raise as_fault(error, error.filename or folder) from error


def make_root(folder: bytes) -> None:
    """Make a folder that is configured and those above it, as far as they are missing, durably.

    Raises:
        OSError: it cannot be made.
    """
    above = os.path.dirname(folder)
    try:
        os.mkdir(folder)
    except FileNotFoundError:
        make_root(above)
        os.mkdir(folder)
    except FileExistsError:
        if not os.path.isdir(folder):
            raise
    with contextlib.suppress(OSError):  # one that is not ours we may not even read
        sync_folder(above)


def make_folders(folder: bytes, root: bytes) -> None:
    """Make a folder and those between it and a root, durably, as far as they are missing.

    The root itself is never made: it may be a mount. A folder that stands there may have been made
    by a process that was killed before it was durable, or by another thread just now: when this
    process meets one for the first time, the entry in the folder above is synced, whoever made it.

    Raises:
        OSError: of the first folder that cannot be made or synced; NotADirectoryError if something
            else is in its place.
    """
    missing = []
    while len(folder) > len(root) and not _is_synced(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    for path in reversed(missing):
        try:
            os.mkdir(path)
        except FileExistsError:
            if not os.path.isdir(path):
                raise NotADirectoryError(errno.ENOTDIR, "Not a directory", path) from None
        sync_folder(os.path.dirname(path))
        if len(_synced) >= _MOST_SYNCED:
            _synced.clear()
        _synced[path] = _identity(path)


def _identity(folder: bytes) -> tuple[int, int]:
    found = os.stat(folder)
    return found.st_dev, found.st_ino


def _is_synced(folder: bytes) -> bool:
    try:
        return _synced.get(folder) == _identity(folder)
    except OSError:
        return False


def sweep(folder: bytes) -> int:
    """Remove temporary files that a killed daemon left in a folder.

    Returns:
        How many there were.
    """
    gone = 0
    with contextlib.suppress(OSError):
        with os.scandir(folder) as entries:  # there may be a million
            left = [entry.path for entry in entries if _TEMP_PATTERN.match(entry.name)]
        for path in left:
            with contextlib.suppress(OSError):
                os.unlink(path)
                gone += 1
    return gone


def as_fault(error: OSError, path: bytes) -> EnvironmentFault | FileError:
    """Whose fault a failed write is: never the source file's, unless its name is too long."""
    where, why = printable(path), error.strerror or os.strerror(error.errno or errno.EIO)
    if error.errno == errno.ENAMETOOLONG:
        return FileError(
            f"{where}: the names of its sidecars are too long for this file system: shorten "
            "the file's name, and those of its folders"
        )
    advice = {
        errno.ENOSPC: "free some space or inodes",
        errno.EDQUOT: "raise the quota",
        errno.EROFS: "mount it writable; as a service, phi4d unit --write opens it",
        errno.EACCES: "give the daemon's user write access",
        errno.EPERM: "give the daemon's user write access",
        errno.ENOENT: "mount or make the outbox",
        errno.ENOTDIR: "a file is where the outbox should be: move it away",
    }.get(error.errno or 0, "look at the disk or mount")
    return EnvironmentFault(f"{where}: cannot be written: {why}; {advice}", path)


def probe(folder: bytes) -> None:
    """Try whether a folder can be written now, and leave nothing there.

    Raises:
        EnvironmentFault: it cannot.
    """
    name = _TEMP % (os.getpid(), next(_counter))
    path = os.path.join(folder, name)
    try:
        write(folder, name, b"phi4d\n" * 1024)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)
